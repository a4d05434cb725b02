"""Recognise the mistakes that engines typically make with these models.

A mistake is recognised by its result: the reference makes it on purpose, and its output equals lastword's.
"""

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.errors import count
from lastword.verify.evidence import Evidence, TextEvidence
from lastword.verify.transformers_reference import QWEN_END_TOKEN

_QUERY_FORM = re.compile(r"Instruct: .+\nQuery:", re.DOTALL)
# Whatever looks like an instruction must be one: a missing line break or an extra space changes every vector.
_INSTRUCTION = re.compile(r"instruct\w*\s*:|\n\s*query\s*:", re.IGNORECASE)
_MOST = 0.9  # share of the differing texts that one mistake must explain


E = TypeVar("E", bound=Evidence)
# A possible mistake: check, problem, what lastword makes of the texts, and what it would be with the mistake.
Candidate = tuple[str, str, Tensor, Tensor]


def text_mistakes(evidence: TextEvidence, same: Tensor, differ: list[int]) -> dict[str, str]:
    """Find the mistakes that explain wrong token ids or vectors of an embedding model; return {check: problem}.

    Args:
        evidence: the collected results.
        same: int64 [n], indices of the texts with correct token ids.
        differ: indices of the texts with wrong token ids.
    """
    problems = {
        "end token": _end_token_problem(evidence, differ),
        "prompt text": _prompt_problem(evidence) or alternate_in_ids(evidence, differ),
    }
    named = {name: problem for name, problem in problems.items() if problem is not None}
    return explain(evidence, same, _vector_candidates) | named


def _end_token_problem(evidence: TextEvidence, differ: list[int]) -> str | None:
    """Check that tokenizer.json appends an end token that the model's files name, and that lastword keeps it."""
    appended, named = evidence.text.appended(), evidence.text.end_tokens()
    # Other models than Qwen3-Embedding may have been trained without an end token.
    needed = bool(appended) or QWEN_END_TOKEN in named
    if needed and appended[-1:] not in [[token] for token in named]:
        got = f"{appended[-1]!r}" if appended else "none"
        expected = f"{named[0]!r}" if named else "none"
        return (
            f"tokenizer.json appends the wrong token; got {got}, expected {expected}. Download the tokenizer "
            "again; if the model was trained this way, pass --accept 'end token'"
        )
    if not appended:
        return None
    end, ours, theirs = appended[-1], evidence.ours, evidence.ids
    if differ and all(ours.ids[i] == theirs[i][:-1] for i in differ):
        return f"missing from {count(len(differ), 'text')}; expected {end!r} at their end"
    if differ and all(ours.ids[i][:-1] == theirs[i][:-1] for i in differ):
        others = sorted({ours.ids[i][-1] for i in differ})
        return f"wrong end token; got id {others}, expected {end!r}"
    if any(a[-1] != b[-1] for a, b in zip(ours.cut_ids, evidence.cut_ids, strict=True)):
        return f"missing after a text is cut; expected {end!r} last"
    return None


def _prompt_problem(evidence: TextEvidence) -> str | None:
    """Compare the prompts with the checkpoint's file, and an instruction in the file with Qwen3-Embedding's form.

    A prompt of another kind, such as "query: ", is the model's own and passes.
    """
    theirs, ours = evidence.text.prompts, evidence.prompts
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            return (
                f"prompt {name!r} differs from the checkpoint's; got {ours.get(name)!r}, "
                f"expected {theirs.get(name)!r}"
            )
    query, document = evidence.text.prompt("query"), evidence.text.prompt("document")
    trained = "If the model was trained this way, pass --accept 'prompt text'"
    if _INSTRUCTION.search(query) and not _QUERY_FORM.fullmatch(query):
        expected = "'Instruct: …\\nQuery:' with no space after it"
        what = "prompt 'query' in config_sentence_transformers.json is not quite an instruction"
        return f"{what}; got {query!r}, expected {expected}. {trained}"
    if _INSTRUCTION.search(document):
        what = "documents have the prompt of queries"
        return f"{what}; got {document!r}, expected none. {trained}"
    return None


def alternate_in_ids(evidence: Evidence, differ: list[int]) -> str | None:
    """Return the problem if the token ids are those of an alternate."""
    for alternate in evidence.alternates:
        known = dict(zip(alternate.index, alternate.ids, strict=True))
        both = [i for i in differ if i in known]
        kinds = {evidence.probes[i].kind for i in differ}
        if (
            both
            and kinds == {alternate.kind}
            and all(evidence.ours.ids[i] == known[i] for i in both)
        ):
            return f"{alternate.kind} texts are computed with {alternate.name}"
    return None


def explain(
    evidence: E, same: Tensor, candidates: Callable[[E, Tensor], Iterator[Candidate]]
) -> dict[str, str]:
    """Find a mistake that explains the wrong vectors or scores; return {check: problem}.

    Args:
        evidence: the collected results.
        same: int64 [n], indices of the texts with correct token ids.
        candidates: yields every known mistake, given the indices [m] of the texts with correct token ids and wrong
            results.
    """
    limit = evidence.vector_limit
    wrong = row_differences(evidence.ours.vectors.double(), evidence.reference_vectors) > limit
    off = same[wrong[same]]
    for name, words, ours, candidate in candidates(evidence, off) if len(off) else ():
        if float((row_differences(ours, candidate) <= limit).double().mean()) >= _MOST:
            return {name: words}
    return {}


def _vector_candidates(evidence: TextEvidence, off: Tensor) -> Iterator[Candidate]:
    got, reference = evidence.ours.vectors.double()[off], evidence.reference_vectors
    yield from row_candidates(evidence, off)
    yield "normalisation", _lengths(evidence, off), F.normalize(got), F.normalize(reference[off])
    yield from alternate_candidates(evidence, off)
    yield order_candidate(evidence, off)


def row_candidates(evidence: Evidence, off: Tensor) -> Iterator[Candidate]:
    """Yield the mistakes of taking another row than the last one, or the last one too early."""
    got, walk = evidence.ours.vectors.double()[off], evidence.reference
    what = count(len(off), evidence.noun)
    rows = {"row before the last": walk.before_last, "first row": walk.first}
    for name, states in {**rows, "mean of the rows": walk.mean}.items():
        words = f"{what} made from the {name}, expected the last row"
        yield "pooled row", words, got, evidence.postprocess(states)[off]
    yield (
        "final norm",
        f"{what} taken before the final norm",
        got,
        evidence.postprocess(walk.unnormed)[off],
    )


def alternate_candidates(evidence: Evidence, off: Tensor) -> Iterator[Candidate]:
    """Yield the mistakes of computing with other token ids than those that are reported."""
    ours, kinds = evidence.ours.vectors.double(), {evidence.probes[i].kind for i in off.tolist()}
    for alternate in evidence.alternates:
        place = {i: k for k, i in enumerate(alternate.index)}
        both = [i for i in off.tolist() if i in place]
        if both and kinds == {alternate.kind}:
            words = f"{alternate.kind} {evidence.noun}s are computed with {alternate.name}"
            states = alternate.states[[place[i] for i in both]]
            yield alternate.check, words, ours[both], evidence.postprocess(states)


def order_candidate(evidence: Evidence, off: Tensor) -> Candidate:
    """Return the mistake of giving a text the result of another one."""
    got, reference = evidence.ours.vectors.double()[off], evidence.reference_vectors
    nearest = torch.cdist(got, reference).argmin(1)
    first, other, noun = evidence.label(int(off[0])), evidence.label(int(nearest[0])), evidence.noun
    words = f"{count(len(off), 'text')} with the {noun} of another text; {first} has the {noun} of {other}"
    return "order", words, got, reference[nearest]


def _lengths(evidence: TextEvidence, off: Tensor) -> str:
    lengths = evidence.ours.vectors[off].norm(dim=1)
    expected = "1" if evidence.text.normalize else "the length of the hidden state"
    return f"lengths from {lengths.min():.4g} to {lengths.max():.4g}, expected {expected}"


def row_differences(a: Tensor, b: Tensor) -> Tensor:
    """Return the largest absolute difference of each row; NaN counts as infinite."""
    return (a - b).abs().nan_to_num(torch.inf).amax(1)
