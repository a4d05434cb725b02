"""Recognise the mistakes that engines typically make with these models.

The reference makes each mistake on purpose. If the result equals lastword's, lastword makes the same mistake.
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
# A prompt that looks like an instruction must match `_QUERY_FORM`; an extra space would change every vector.
_INSTRUCTION = re.compile(r"instruct\w*\s*:|\n\s*query\s*:", re.IGNORECASE)
_MOST = 0.9  # share of the differing texts that one mistake must explain


E = TypeVar("E", bound=Evidence)
# A possible mistake: the check that it makes fail, the problem in words, lastword's results [n, dim], and the results
# [n, dim] that the reference has with the mistake.
Candidate = tuple[str, str, Tensor, Tensor]


def text_mistakes(evidence: TextEvidence, same: Tensor, differ: list[int]) -> dict[str, str]:
    """Find the mistakes that explain wrong token ids or vectors of an embedding model; return {check: problem}.

    Args:
        evidence: the collected results.
        same: [n], int64, indices of the texts with correct token ids.
        differ: indices of the texts with wrong token ids.
    """
    problems = {
        "end token": _end_token_problem(evidence, differ),
        "prompt text": _prompt_problem(evidence) or alternate_in_ids(evidence, differ),
    }
    named = {name: problem for name, problem in problems.items() if problem is not None}
    return explain(evidence, same, _vector_candidates) | named


def _end_token_problem(evidence: TextEvidence, differ: list[int]) -> str | None:
    """Return what is wrong with the end token: in tokenizer.json, or in lastword's token ids; None if nothing is."""
    appended, named = evidence.text.appended(), evidence.text.end_tokens()
    # Models other than Qwen3-Embedding may have been trained without an end token.
    needed = bool(appended) or QWEN_END_TOKEN in named
    if needed and appended[-1:] not in [[token] for token in named]:
        got = f"{appended[-1]!r}" if appended else "none"
        expected = f"{named[0]!r}" if named else "none"
        return (
            f"tokenizer.json appends the wrong token; got {got}, expected {expected}. Download the tokenizer "
            "again; if the model was trained with it, pass --accept 'end token'"
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
        return f"missing from a text that was cut; expected {end!r} at its end"
    return None


def _prompt_problem(evidence: TextEvidence) -> str | None:
    """Return what is wrong with the prompts; None if nothing is.

    lastword's prompts must equal the checkpoint's, and a prompt that looks like an instruction must have the form of
    Qwen3-Embedding's. Any other prompt, such as "query: ", passes.
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
        what = "prompt 'query' in config_sentence_transformers.json is a malformed instruction"
        return f"{what}; got {query!r}, expected {expected}. {trained}"
    if _INSTRUCTION.search(document):
        what = "the document prompt is a query instruction"
        return f"{what}; got {document!r}, expected none. {trained}"
    return None


def alternate_in_ids(evidence: Evidence, differ: list[int]) -> str | None:
    """Return in words the prompt or template mistake that gives exactly lastword's wrong token ids; None for none."""
    for alternate in evidence.alternates:
        known = dict(zip(alternate.index, alternate.ids, strict=True))
        both = [i for i in differ if i in known]
        kinds = {evidence.probes[i].kind for i in differ}
        if (
            both
            and kinds == {alternate.kind}
            and all(evidence.ours.ids[i] == known[i] for i in both)
        ):
            return f"{alternate.kind} texts are tokenised with {alternate.name}"
    return None


def explain(
    evidence: E, same: Tensor, candidates: Callable[[E, Tensor], Iterator[Candidate]]
) -> dict[str, str]:
    """Find a mistake that explains the wrong vectors or scores; return {check: problem}.

    Args:
        evidence: the collected results.
        same: [n], int64, indices of the texts with correct token ids.
        candidates: yields every known mistake, given the evidence and the indices [m] of the texts that have correct
            token ids and wrong results.
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
    """Yield the mistakes of pooling a row other than the last, or of skipping the final norm."""
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
    """Yield the mistakes with prompts or templates: they are possible even if the reported token ids are correct."""
    ours, kinds = evidence.ours.vectors.double(), {evidence.probes[i].kind for i in off.tolist()}
    for alternate in evidence.alternates:
        place = {i: k for k, i in enumerate(alternate.index)}
        both = [i for i in off.tolist() if i in place]
        if both and kinds == {alternate.kind}:
            words = f"{alternate.kind} {evidence.noun}s are computed with {alternate.name}"
            states = alternate.states[[place[i] for i in both]]
            yield alternate.check, words, ours[both], evidence.postprocess(states)


def order_candidate(evidence: Evidence, off: Tensor) -> Candidate:
    """Return the mistake of giving a text the result of another text."""
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
    """Return the largest absolute difference in each row, [N]; NaN counts as infinity."""
    return (a - b).abs().nan_to_num(torch.inf).amax(1)
