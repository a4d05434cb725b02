"""The evidence for a reranker: pairs of a query and a document instead of texts, scores instead of vectors.

The reference takes neither the template nor the score head from lastword. transformers renders the checkpoint's chat
template; for a checkpoint without a template for pairs, this module has a copy of Qwen3-Reranker's. The head is read
from the stored tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lastword.errors import count
from lastword.reranker import Reranker
from lastword.verify.bounds import bounds_of
from lastword.verify.evidence import (
    CUT,
    Alternate,
    Evidence,
    Ours,
    compute_references,
    long_texts,
)
from lastword.verify.mistakes import (
    Candidate,
    alternate_candidates,
    alternate_in_ids,
    explain,
    order_candidate,
    row_candidates,
)
from lastword.verify.probes import Probe
from lastword.verify.transformers_reference import StoredTensors, open_tokenizer, read_json

# The fixed text around a pair, and the instruction, from the model card of Qwen3-Reranker.
_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_MARK = "@@document@@"  # takes the document's place while a chat template is rendered
_SHORT = 6  # number of short pairs for which the mistakes are computed


class ReferencePairs:
    """A reranker's template, tokenizer and head, read as sentence-transformers and Qwen3-Reranker's card read them.

    Args:
        folder: the checkpoint.
        instruction: the instruction for every pair; None for the checkpoint's own.

    Raises:
        ConfigError: transformers cannot open the tokenizer.
    """

    def __init__(self, folder: Path, instruction: str | None) -> None:
        self._folder = folder
        self._tokenizer = open_tokenizer(folder)
        self._modules: list[dict[str, str]] = read_json(folder / "modules.json", [])
        settings = read_json(folder / "config_sentence_transformers.json", {})
        prompts = (self._modules and settings.get("prompts")) or {}
        own = prompts.get(settings.get("default_prompt_name"))
        self._instruction: str | None = own if instruction is None else instruction
        template = self._tokenizer.chat_template or ""
        named = [f"'{r}'" in template or f'"{r}"' in template for r in ("query", "document")]
        self._has_template = all(named)
        self.template = "the checkpoint's" if self._has_template else "Qwen3-Reranker's own"
        self.head, self.row, self.wrong_rows = self._read_head()

    def template_problem(self) -> str | None:
        """Return how the checkpoint's template differs from Qwen3-Reranker's; None if it is the same or unrelated."""
        text, card = ("".join(parts("query")) for parts in (self._parts, self._card_parts))
        if "<Instruct>" not in text or text == card:
            return None
        place = next((i for i, (a, b) in enumerate(zip(text, card, strict=False)) if a != b), None)
        start = max(0, (min(len(text), len(card)) if place is None else place) - 10)
        got, expected = text[start : start + 30], card[start : start + 30]
        return (
            f"the chat template differs from that of Qwen3-Reranker; got {got!r}, expected {expected!r}. If the model "
            "was trained this way, pass --accept template"
        )

    def ids(self, query: str, document: str, max_length: int) -> list[int]:
        """Return the token ids of a pair, at most `max_length`; the document is cut to fit."""
        prefix, middle, suffix = self._parts(query)
        before, after = self._ids(prefix), self._ids(suffix)
        return (
            before + self._ids(middle + document)[: max_length - len(before) - len(after)] + after
        )

    def mistakes(self, probes: Sequence[Probe], max_length: int) -> list[Alternate]:
        """Build the typical mistakes with templates, for a few short pairs.

        The mistakes come without hidden states; `compute_references` adds them later.
        """
        index = [i for i, each in enumerate(probes) if 0 < len(each.text) < 100][:_SHORT]
        end = self._tokenizer.eos_token_id
        found: dict[str, list[list[int]]] = {}
        for i in index:
            query, text = probes[i].query, probes[i].text
            prefix, middle, suffix = self._parts(query)
            right = self.ids(query, text, max_length)
            wrong = {
                "no template": self._ids(query + text),
                "the query and the document exchanged": self.ids(text, query, max_length),
                "no end of the template": self._ids(prefix) + self._ids(middle + text),
                "two line breaks between the lines of the template": self._ids(prefix)
                + self._ids(middle.replace("\n<", "\n\n<") + text)
                + self._ids(suffix),
            }
            if prefix:
                wrong["no text around instruction, query and document"] = self._ids(middle + text)
            if end is not None:
                wrong["an end token after the template"] = [*right, end]
            for name, ids in wrong.items():
                found.setdefault(name, []).append(ids)
        return [Alternate("template", name, "pair", index, ids) for name, ids in found.items()]

    def _parts(self, query: str) -> tuple[str, str, str]:
        """Return a pair's text without its document, in three parts: opening, instruction and query, closing.

        With the checkpoint's own template, the opening is "", and the second part is all the text before the document.
        """
        if not self._has_template:
            return self._card_parts(query)
        messages = [{"role": "query", "content": query}, {"role": "document", "content": _MARK}]
        if self._instruction is not None:
            messages.insert(0, {"role": "system", "content": self._instruction})
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False)
        middle, _, suffix = text.partition(_MARK)
        return "", middle, suffix

    def _card_parts(self, query: str) -> tuple[str, str, str]:
        instruction = _INSTRUCTION if self._instruction is None else self._instruction
        return (
            _PREFIX,
            f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: ",
            _SUFFIX,
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _read_head(self) -> tuple[str, Tensor, dict[str, Tensor]]:
        """Return the head in words, its row ([C], fp64), and by name the row that each typical mistake uses."""
        tensors = StoredTensors(self._folder)
        config = read_json(self._folder / "config.json", {})
        wrong = {}
        if config["architectures"] == ["Qwen3ForSequenceClassification"]:
            words, row = "score.weight", tensors.read("score.weight")[0].double()
        else:
            true, false = self._tokens()
            table = "embed_tokens" if config.get("tie_word_embeddings", False) else "lm_head"
            head, embedding = (tensors.read(f"{name}.weight") for name in (table, "embed_tokens"))
            yes, row = head[true].double(), _row(head, true, false)
            names = [repr(self._tokenizer.decode([i])) for i in (true, false) if i is not None]
            words = f"{' minus '.join(names)} of {table}"
            if false is not None:
                wrong["without the logit of no"] = yes
            if table == "lm_head":
                wrong["from the token embeddings; lm_head is lost"] = _row(embedding, true, false)
        wrong |= {"with yes and no swapped": -row, "without a head, 0 for every pair": 0 * row}
        return words, row, wrong

    def _tokens(self) -> tuple[int, int | None]:
        """Return two token ids: the score is the first token's logit, minus the second's unless the second is None."""
        place = next((m["path"] for m in self._modules if m["type"].endswith(".LogitScore")), None)
        if place is not None:
            named = read_json(self._folder / place / "config.json", {})
            return named["true_token_id"], named.get("false_token_id")
        yes, no = self._tokenizer.convert_tokens_to_ids(["yes", "no"])
        return yes, no

    def head_problem(self) -> str | None:
        """Return the problem if LogitScore has "yes" and "no" exchanged, else None."""
        if not self.head.startswith("'no' minus 'yes'"):
            return None
        return (
            "yes and no are swapped in LogitScore's config.json; got true_token_id 'no', expected 'yes'. If the model "
            "was trained with them swapped, pass --accept head"
        )


def _row(head: Tensor, true: int, false: int | None) -> Tensor:
    return head[true].double() - (0 if false is None else head[false].double())


@dataclass(frozen=True, slots=True, kw_only=True)
class PairEvidence(Evidence):
    """The results of lastword and transformers for a reranker.

    The scores before the sigmoid are vectors of width 1, so that they are compared like an embedding model's vectors.
    """

    noun: ClassVar[str] = "score"

    text: ReferencePairs

    def postprocess(self, states: Tensor) -> Tensor:
        """Turn final hidden states [n, C] into scores [n, 1]."""
        return states.double() @ self.text.row[:, None]


def gather_pairs(
    reranker: Reranker, probes: Sequence[Probe], advance: Callable[[int], None]
) -> PairEvidence:
    """Score the probes with lastword and with transformers.

    Args:
        reranker: lastword's model.
        probes: pairs to score.
        advance: called with 1 after each layer that transformers computes, 2·L times in all.

    Raises:
        InputError: a pair cannot be scored, or there are too many pairs or tokens.
        ConfigError: transformers' tokenizer gives ids that the model does not have.
    """
    info = reranker.info
    text = ReferencePairs(info.files.folder, info.instruction)
    ids = [text.ids(each.query, each.text, info.max_length) for each in probes]
    query, cut = probes[0].query, long_texts(probes)
    limit = min(info.max_length, len(text.ids(query, "", info.max_length)) + CUT)
    mistakes = text.mistakes(probes, info.max_length)
    pairs = [(each.query, each.text) for each in probes]
    ours = reranker.token_ids(
        pairs
    )  # first, because it raises an InputError before anything is computed
    reference, theirs, alternates = compute_references(info, ids, mistakes, advance)
    alone = [pair for pair, each in zip(pairs, probes, strict=True) if each.alone]
    return PairEvidence(
        probes=list(probes),
        text=text,
        ids=ids,
        cut=cut,
        cut_ids=[text.ids(query, each, limit) for each in cut],
        reference=reference,
        theirs=theirs,
        alternates=alternates,
        ours=Ours(
            ids=ours,
            cut_ids=_cut_ids(reranker, [(query, each) for each in cut], limit),
            states=reranker.hidden_states(pairs),
            vectors=_scores(reranker, pairs),
            alone=torch.cat([_scores(reranker, [pair]) for pair in alone]),
        ),
        bounds=bounds_of(info.dtype, info.quantize).for_scores(),
    )


def _scores(reranker: Reranker, pairs: Sequence[tuple[str, str]]) -> Tensor:
    identity = torch.nn.Identity()
    scores: Any = reranker.predict(pairs, activation_fn=identity, show_progress_bar=False)
    column: Tensor = scores[:, None]
    return column


def _cut_ids(reranker: Reranker, pairs: list[tuple[str, str]], limit: int) -> list[list[int]]:
    before, reranker.max_length = reranker.max_length, limit
    try:
        return reranker.token_ids(pairs)
    finally:
        reranker.max_length = before


def pair_mistakes(evidence: PairEvidence, same: Tensor, differ: list[int]) -> dict[str, str]:
    """Find the mistakes that explain wrong token ids or scores; return {check: problem}.

    Args:
        evidence: the collected results.
        same: [n], int64, indices of the pairs with correct token ids.
        differ: indices of the pairs with wrong token ids.
    """
    problems = {
        "template": evidence.text.template_problem() or alternate_in_ids(evidence, differ),
        "head": evidence.text.head_problem(),
    }
    named = {name: problem for name, problem in problems.items() if problem is not None}
    return explain(evidence, same, _score_candidates) | named


def _score_candidates(evidence: PairEvidence, off: Tensor) -> Iterator[Candidate]:
    got, states = evidence.ours.vectors.double()[off], evidence.reference.states[off, -1]
    for name, row in evidence.text.wrong_rows.items():
        words = f"{count(len(off), 'score')} made {name}"
        yield "head", words, got, states.double() @ row[:, None]
    yield from row_candidates(evidence, off)
    yield from alternate_candidates(evidence, off)
    yield order_candidate(evidence, off)
