"""The text that a reranker reads: an instruction, a query and a document, inserted into fixed text.

A checkpoint's chat template is used if it does no more than insert these three. The template is parsed here and never
run. A template for conversations, without a query and a document, is ignored.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from lastword.errors import ConfigError

# The template of Qwen3-Reranker, as in its model card and its chat template.
_OPENING = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_CLOSING = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

_ROLES = ("system", "query", "document")
# The Jinja expression for one of the three texts: the first message with that role, perhaps with a default.
_MESSAGE = (
    r'messages\s*\|\s*selectattr\(\s*"role"\s*,\s*"eq"\s*,\s*"(?P<role>system|query|document)"\s*\)'
    r'\s*\|\s*map\(\s*attribute\s*=\s*"content"\s*\)\s*\|\s*first'
    r'(?:\s*\|\s*default\(\s*"(?P<default>[^"\\]*)"\s*\))?'
)
_SET = re.compile(rf"\s*\{{%-\s*set\s+(?P<name>\w+)\s*=\s*{_MESSAGE}\s*-%\}}\s*")
_PUT = re.compile(rf"\{{\{{\s*(?:{_MESSAGE}|(?P<name>\w+))\s*\}}\}}")
_QUERIES = re.compile(r"""["']query["']""")
_DOCUMENTS = re.compile(r"""["']document["']""")


@dataclass(frozen=True, slots=True)
class RerankTemplate:
    """The fixed text around instruction, query and document.

    Args:
        prefix: the beginning of every text; it is tokenised on its own.
        before_instruction: between the prefix and the instruction.
        before_query: between the instruction and the query.
        before_document: between the query and the document.
        suffix: the end of every text, after the document; it is tokenised on its own.
        instruction: the instruction for calls that give none.
    """

    prefix: str
    before_instruction: str
    before_query: str
    before_document: str
    suffix: str
    instruction: str

    def prompt(self, instruction: str) -> str:
        """Return the text between the prefix and the query, without trailing spaces.

        A trailing space would form one token with the query's first word. Then the tokens of the whole text would not
        begin with those of the prompt.
        """
        return f"{self.before_instruction}{instruction}{self.before_query.rstrip(' ')}"

    def text(self, query: str, document: str) -> str:
        """Return the text between `prompt` and suffix, beginning with the spaces that `prompt` leaves out."""
        spaces = len(self.before_query) - len(self.before_query.rstrip(" "))
        return f"{' ' * spaces}{query}{self.before_document}{document}"


QWEN3_RERANKER = RerankTemplate(
    prefix=_OPENING,
    before_instruction="<Instruct>: ",
    before_query="\n<Query>: ",
    before_document="\n<Document>: ",
    suffix=_CLOSING,
    instruction=_INSTRUCTION,
)


def is_for_pairs(template: str) -> bool:
    """Return whether a chat template has a query and a document, so that its model is a reranker."""
    return bool(_QUERIES.search(template) and _DOCUMENTS.search(template))


def is_named_reranker(folder: Path, name: str) -> bool:
    """Return whether a model's own name says that it is a reranker.

    Args:
        folder: the model's folder.
        name: the Hugging Face id or the folder, as the caller gave it; folders above the model's do not count.
    """
    return "rerank" in f"{Path(name).name} {folder.name}".lower()


def parse_template(template: str | None, where: str) -> RerankTemplate | None:
    """Parse a checkpoint's chat template.

    Args:
        template: the chat template; None if there is none.
        where: the file that the template is from, for the error message.

    Returns:
        The template; None if there is no chat template, or if it does not mention both a query and a document.

    Raises:
        ConfigError: the template has a query and a document, but does more than insert the three texts.
    """
    if template is None or not is_for_pairs(template):
        return None
    names: dict[str, tuple[str, str | None]] = {}
    rest = template.replace("\r\n", "\n").replace("\r", "\n")  # as Jinja does
    end = 0
    while (found := _SET.match(rest, end)) is not None:
        names[found["name"]] = found["role"], found["default"]
        end = found.end()
    words, slots = [], []
    for found in _PUT.finditer(rest, end):
        slot = (found["role"], found["default"]) if found["role"] else names.get(found["name"])
        words.append(rest[end : found.start()])
        slots.append(slot)
        end = found.end()
    words.append(rest[end:].removesuffix("\n"))  # Jinja drops a newline at the end
    known = [slot for slot in slots if slot is not None]
    fixed = not any(mark in word for word in words for mark in ("{{", "{%", "{#"))
    if len(known) < len(slots) or not fixed or tuple(role for role, _ in known) != _ROLES:
        raise ConfigError(
            where,
            "not supported",
            got="a chat template for pairs that does more than insert texts",
            expected="fixed text with the instruction, the query and the document inserted in this order",
            remedy="The template of a checkpoint is never run. Name another model.",
        )
    opening, before_query, before_document, suffix = words
    lines, newline, before = opening.rpartition("\n")
    default = known[0][1] or ""
    return RerankTemplate(lines + newline, before, before_query, before_document, suffix, default)
