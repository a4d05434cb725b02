"""From what was measured to named checks: where vectors differ, which of the known mistakes gives exactly those.

A mistake is named by its own truth: the vectors that the reference gives when it is made on purpose.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.verify.evidence import Evidence
from lastword.verify.reference import END_TOKEN
from lastword.verify.verdict import LayerError, Verdict

_QUERY_FORM = re.compile(r"Instruct: .+\nQuery:", re.DOTALL)
_MOST = 0.9  # of the texts that differ must be explained by one mistake


def judge(evidence: Evidence, verdict: Verdict) -> None:
    """Add every check of token ids, states and vectors to the verdict."""
    differ = [i for i, ids in enumerate(evidence.ours.ids) if ids != evidence.ids[i]]
    mistakes = _token_mistakes(evidence, differ)
    same = torch.tensor([i for i in range(len(evidence.ours.ids)) if i not in set(differ)])
    if len(same):
        mistakes = {**_vector_mistakes(evidence, same), **mistakes}
    appended = evidence.text.appended()
    verdict.add("end token", mistakes.get("end token"), f"{''.join(appended)} after every text")
    prompts = len(evidence.text.prompts)
    verdict.add("prompt text", mistakes.get("prompt text"), f"{prompts} prompts")
    verdict.add("tokens", _token_problem(evidence, differ), f"{len(evidence.ours.ids)} texts equal")
    for name in ("pooled row", "final norm", "normalisation", "order"):
        verdict.add(name, mistakes.get(name), "as the model's")
    _neighbours(evidence, verdict)
    if len(same):
        _layers(evidence, same, verdict)
    _vectors(evidence, verdict)
    _ranking(evidence, verdict)


# Token ids.


def _token_problem(evidence: Evidence, differ: list[int]) -> str | None:
    pairs = [(evidence.label(i), evidence.ours.ids[i], evidence.ids[i]) for i in differ]
    cut = zip(evidence.cut, evidence.ours.cut_ids, evidence.cut_ids, strict=True)
    pairs += [
        (f"{text[:20]!r}… cut", ids, expected) for text, ids, expected in cut if ids != expected
    ]
    if not pairs:
        return None
    label, ours, theirs = pairs[0]
    place = next((k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    place = min(len(ours), len(theirs)) if place is None else place
    got, expected = (str(ids[place]) if place < len(ids) else "the end" for ids in (ours, theirs))
    return f"{len(pairs)} texts differ; {label}: token {place}: got {got}, expected {expected}"


def _token_mistakes(evidence: Evidence, differ: list[int]) -> dict[str, str]:
    """Name an end token or a prompt that is not as it should be."""
    found = {}
    appended = evidence.text.appended()
    if appended[-1:] != [END_TOKEN]:
        got = f"{appended[-1]!r}" if appended else "none"
        found["end token"] = (
            f"tokenizer.json appends the wrong one; got {got}, expected {END_TOKEN!r}. Fetch the tokenizer again; "
            "a model trained so passes with --accept 'end token'"
        )
    elif differ and all(evidence.ours.ids[i] == evidence.ids[i][:-1] for i in differ):
        found["end token"] = (
            f"missing from {len(differ)} texts; expected {END_TOKEN!r} at their end"
        )
    elif differ and all(evidence.ours.ids[i][:-1] == evidence.ids[i][:-1] for i in differ):
        others = sorted({evidence.ours.ids[i][-1] for i in differ})
        found["end token"] = f"another one; got id {others}, expected {END_TOKEN!r}"
    elif any(a[-1] != b[-1] for a, b in zip(evidence.ours.cut_ids, evidence.cut_ids, strict=True)):
        found["end token"] = f"lost where a text is cut; expected {END_TOKEN!r} last"
    problem = _prompt_problem(evidence) or _prompt_in_ids(evidence, differ)
    return {**found, "prompt text": problem} if problem else found


def _prompt_problem(evidence: Evidence) -> str | None:
    """Hold prompts to the file's, and the file's to the form that the family is trained with."""
    theirs, ours = evidence.text.prompts, evidence.ours.prompts
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            return (
                f"{name!r} is not the file's; got {ours.get(name)!r}, expected {theirs.get(name)!r}"
            )
    foreign = (
        "The file may be another model's; a model trained so passes with --accept 'prompt text'"
    )
    query = theirs.get("query")
    if query is not None and not _QUERY_FORM.fullmatch(query):
        expected = "'Instruct: …\\nQuery:' with no space after it"
        return f"'query' in config_sentence_transformers.json; got {query!r}, expected {expected}. {foreign}"
    if evidence.text.prompt("document"):
        got = evidence.text.prompt("document")
        return f"documents have one; got {got!r}, expected none. {foreign}"
    return None


def _prompt_in_ids(evidence: Evidence, differ: list[int]) -> str | None:
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


# Vectors.


def _limit(evidence: Evidence) -> float:
    """How far a vector may be from the truth."""
    truth = evidence.finish(evidence.truth.states[:, -1])
    theirs = evidence.finish(evidence.theirs.states[:, -1])
    return evidence.bounds.vector_limit(float((truth - theirs).abs().max()))


def _vector_mistakes(evidence: Evidence, same: Tensor) -> dict[str, str]:
    """Name the mistake whose own vectors are those that came out, among texts whose tokens are right."""
    limit = _limit(evidence)
    vectors, walk = evidence.ours.vectors.double(), evidence.truth
    truth = evidence.finish(walk.states[:, -1])
    off = same[_apart(vectors[same], truth[same]) > limit]
    if not len(off):
        return {}

    def explained(candidate: Tensor, ours: Tensor = vectors) -> bool:
        return float((_apart(ours[off], candidate[off]) <= limit).double().mean()) >= _MOST

    rows = {"the row before the last": walk.before_last, "the first row": walk.first}
    rows["the mean of the rows"] = walk.mean
    for name, row in rows.items():
        if explained(evidence.finish(row)):
            return {"pooled row": f"{len(off)} vectors are made of {name}, expected the last row"}
    if explained(evidence.finish(walk.unnormed)):
        return {"final norm": f"{len(off)} vectors are those before the final norm"}
    if explained(F.normalize(truth, dim=1), F.normalize(vectors, dim=1)):
        return {"normalisation": _lengths(evidence, off)}
    for alternate in evidence.alternates:
        place = {i: k for k, i in enumerate(alternate.index)}
        both = [i for i in off.tolist() if i in place]
        kinds = {evidence.probes[i].kind for i in off.tolist()}
        candidate = evidence.finish(alternate.states)[[place[i] for i in both]]
        if (
            both
            and kinds == {alternate.kind}
            and bool((_apart(vectors[both], candidate) <= limit).all())
        ):
            return {"prompt text": f"{alternate.kind} vectors are those with {alternate.name}"}
    nearest = (vectors[off] @ F.normalize(truth, dim=1).T).argmax(1)
    if explained(truth[torch.arange(len(truth)).index_put((off,), nearest)]):
        first = int(off[0])
        other = evidence.label(int(nearest[0]))
        return {
            "order": f"{len(off)} texts have another's vector; {evidence.label(first)} has that of {other}"
        }
    return {}


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Largest absolute difference of each row; what is not a number is infinitely far."""
    return (a - b).abs().nan_to_num(torch.inf).amax(1)


def _lengths(evidence: Evidence, off: Tensor) -> str:
    lengths = evidence.ours.vectors[off].norm(dim=1)
    expected = "1" if evidence.text.normalize else "the state's own"
    return f"lengths of {lengths.min():.4g} to {lengths.max():.4g}, expected {expected}"


def _neighbours(evidence: Evidence, verdict: Verdict) -> None:
    index = [i for i, probe in enumerate(evidence.probes) if probe.alone]
    apart = _apart(evidence.ours.alone.double(), evidence.ours.vectors[index].double())
    worst, place = (float(x) for x in apart.max(0))
    verdict.figures["neighbour_shift"] = worst
    limit = evidence.bounds.neighbour
    label = evidence.label(index[int(place)])
    problem = f"{label} moves by {worst:.1e} beside others, allowed {limit:.0e}"
    detail = f"moves by at most {worst:.1e}"
    verdict.add("neighbours", problem if not worst <= limit else None, detail)


def _layers(evidence: Evidence, same: Tensor, verdict: Verdict) -> None:
    truth = evidence.truth.states[same]
    ours = _relative_rms(evidence.ours.states[same].double(), truth)
    theirs = _relative_rms(evidence.theirs.states[same], truth)
    verdict.layers = [
        LayerError(layer, ours[layer], theirs[layer], evidence.bounds.layer_limit(theirs[layer]))
        for layer in range(len(ours))
    ]
    wrong = [each for each in verdict.layers if not each.ours <= each.allowed]
    problem = None
    if wrong:
        first = wrong[0]
        problem = (
            f"first differs after layer {first.layer} of {len(ours) - 1}: relative RMS error {first.ours:.1e}, "
            f"transformers' own {first.theirs:.1e}, allowed {first.allowed:.1e}"
        )
    worst = max(verdict.layers, key=lambda each: each.ours)
    detail = f"relative RMS error at most {worst.ours:.1e} (transformers' own {worst.theirs:.1e})"
    verdict.add("layers", problem, detail)


def _relative_rms(states: Tensor, truth: Tensor) -> list[float]:
    """Error of each text's state relative to its own length, root mean square over texts, by layer."""
    relative = (states - truth).norm(dim=2) / truth.norm(dim=2).clamp_min(1e-30)  # [N, L + 1]
    errors: list[float] = relative.square().mean(0).sqrt().tolist()
    return errors


def _vectors(evidence: Evidence, verdict: Verdict) -> None:
    truth = evidence.finish(evidence.truth.states[:, -1])
    theirs = evidence.finish(evidence.theirs.states[:, -1])
    apart = _apart(evidence.ours.vectors.double(), truth)
    cosine = F.cosine_similarity(evidence.ours.vectors.double(), truth, dim=1)
    worst, limit = float(apart.max()), _limit(evidence)
    own = float(_apart(theirs, truth).max())
    verdict.figures |= {
        "max_abs_difference": worst,
        "transformers_max_abs_difference": own,
        "mean_cosine": float(cosine.mean()),
        "min_cosine": float(cosine.min()),
    }
    detail = (
        f"largest difference {worst:.1e} (transformers' own {own:.1e}), "
        f"cosine {float(cosine.mean()):.7f} on average, {float(cosine.min()):.7f} at least"
    )
    label = evidence.label(int(apart.argmax()))
    problem = f"{detail}; allowed {limit:.1e}; worst: {label}"
    verdict.add("vectors", problem if not worst <= limit else None, detail)


def _ranking(evidence: Evidence, verdict: Verdict) -> None:
    """Rank all other texts by each text with both engines, and compare the ten nearest."""
    first = {(probe.kind, probe.text): i for i, probe in reversed(list(enumerate(evidence.probes)))}
    index = sorted(first.values())
    truth = evidence.finish(evidence.truth.states[:, -1])[index]
    nearest = [_nearest(vectors) for vectors in (evidence.ours.vectors[index].double(), truth)]
    shared = [len(a & b) / len(a) for a, b in zip(*nearest, strict=True)]
    overlap = sum(shared) / len(shared)
    verdict.figures["top10_overlap"] = overlap
    least = evidence.bounds.overlap
    detail = f"{overlap:.2%} of the ten nearest texts agree"
    problem = f"{detail}, expected at least {least:.0%}"
    verdict.add("ranking", problem if not overlap >= least else None, detail)


def _nearest(vectors: Tensor) -> list[set[int]]:
    vectors = F.normalize(vectors.nan_to_num(), dim=1)
    scores = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    return [set(row) for row in scores.topk(min(10, len(vectors) - 1)).indices.tolist()]
