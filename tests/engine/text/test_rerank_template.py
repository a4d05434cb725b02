"""The text that a reranker reads, against Jinja: the same words from templates that are parsed, never run."""

import os
from pathlib import Path

import pytest
from helpers.messages import refusal
from helpers.small_models import INSTRUCTION, PREFIX, SUFFIX
from jinja2 import Environment
from tokenizers import Tokenizer

from lastword.errors import ConfigError
from lastword.text.rerank_template import QWEN3_RERANKER, RerankTemplate, parse_template
from lastword.text.tokenizer import TextTokenizer

DATA = os.environ.get("LASTWORD_TEST_DATA")


def first(role: str, default: str = "") -> str:
    found = f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'
    return f'{found} | default("{default}")' if default else found


PLAIN = (
    f"{PREFIX}<Instruct>: {{{{ {first('system', INSTRUCTION)} }}}}\n"
    f"<Query>: {{{{ {first('query')} }}}}\n<Document>: {{{{ {first('document')} }}}}{SUFFIX}\n"
)
NAMED = (
    f"{{%- set instruction = {first('system', INSTRUCTION)} -%}}\n"
    f"{{%- set query_text = {first('query')} -%}}\n"
    f"{{%- set document_text = {first('document')} -%}}\n"
    f"{PREFIX}<Instruct>: {{{{ instruction }}}}\n<Query>: {{{{ query_text }}}}\n"
    f"<Document>: {{{{ document_text }}}}{SUFFIX}\n"
)
OTHER = f"Task {{{{{first('system')}}}}} |{{{{{first('query')}}}}}|{{{{{first('document')}}}}}.\n\n"
CHAT = "{% for m in messages %}{{ m['role'] }}{{ m['content'] }}{% endfor %}"


def whole(template: RerankTemplate, instruction: str | None, query: str, document: str) -> str:
    used = template.instruction if instruction is None else instruction
    return (
        template.prefix + template.prompt(used) + template.text(query, document) + template.suffix
    )


def rendered(template: str, instruction: str | None, query: str, document: str) -> str:
    messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
    if instruction is not None:
        messages.insert(0, {"role": "system", "content": instruction})
    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return environment.from_string(template).render(messages=messages)


@pytest.mark.parametrize("template", [PLAIN, NAMED, OTHER, PLAIN.replace("\n", "\r\n")])
@pytest.mark.parametrize("instruction", [None, "Find it ", ""])
def test_the_text_is_that_of_jinja(template: str, instruction: str | None) -> None:
    parsed = parse_template(template, "here")
    assert parsed is not None
    given = instruction, "what is {{ x }}?", " a\n<Query>: b "
    assert whole(parsed, *given) == rendered(template, *given)


def test_that_of_qwen_is_the_known_one() -> None:
    assert parse_template(PLAIN, "here") == parse_template(NAMED, "here") == QWEN3_RERANKER
    assert whole(QWEN3_RERANKER, "I", "Q", "D") == (
        f"{PREFIX}<Instruct>: I\n<Query>: Q\n<Document>: D{SUFFIX}"
    )
    assert QWEN3_RERANKER.instruction == INSTRUCTION


@pytest.mark.parametrize("template", [None, "", CHAT, "{{ messages[0]['content'] }} query"])
def test_a_template_for_conversations_is_ignored(template: str | None) -> None:
    assert parse_template(template, "here") is None


@pytest.mark.parametrize(
    "template",
    [
        PLAIN.replace("| first }}", "| last }}"),
        PLAIN.replace('"eq", "query"', '"ne", "query"'),
        PLAIN + "{% if true %}x{% endif %}",
        PLAIN + "{# a comment #}",
        PLAIN.replace("<Query>: {{ ", "<Query>: {{- "),
        NAMED.replace("{{ query_text }}", "{{ other }}"),
        f"{{{{ {first('document')} }}}}{{{{ {first('query')} }}}}{{{{ {first('system')} }}}}",
        f"{{{{ {first('query')} }}}}{{{{ {first('document')} }}}}",
        "{% for m in messages %}{% if m.role == 'query' %}q{% elif m.role == 'document' %}d{% endif %}{% endfor %}",
    ],
)
def test_a_template_that_does_more_is_refused(template: str) -> None:
    with refusal(ConfigError, where="here", what="not supported"):
        parse_template(template, "here")


def test_a_huge_template_takes_no_time() -> None:
    sets = NAMED.partition("<|im_start|>")[0] * 20_000
    with refusal(ConfigError, what="not supported"):
        parse_template(sets + "{{ " * 100_000 + "{{" + " " * 100_000, "here")
    assert parse_template(sets + NAMED, "here") == QWEN3_RERANKER


@pytest.mark.skipif(not DATA, reason="LASTWORD_TEST_DATA is not set")
def test_the_tokens_are_those_of_the_whole_text() -> None:
    """With Qwen's own tokenizer: the parts that are tokenised apart end where tokens end."""
    folder = Path(str(DATA), "tokenizers", "Qwen3")
    frame = QWEN3_RERANKER.prefix, QWEN3_RERANKER.suffix
    ours = TextTokenizer(folder, 151936, truncation_side="right", frame=frame)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert (ours.token_id("yes"), ours.token_id("no"), ours.token_id("yes yes")) == (
        9693,
        2152,
        None,
    )
    for query, document in [("what?", "it is"), ("\n", "\n\n"), (" …", ""), ("1", "<|im_end|> x")]:
        prompt, text = QWEN3_RERANKER.prompt(INSTRUCTION), QWEN3_RERANKER.text(query, document)
        (ids,) = ours.encode([text], 8192, prompt=prompt).ids
        expected = theirs.encode(whole(QWEN3_RERANKER, None, query, document)).ids
        assert ids == expected
        kept = ours.prompt_ids(prompt, 100)
        assert ids[: len(kept)] == list(kept)
        (cut,) = ours.encode([text + " more" * 50], 120, prompt=prompt).ids
        assert len(cut) == 120
        assert cut[-len(ours.after) :] == ours.after
