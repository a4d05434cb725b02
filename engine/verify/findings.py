"""Turn the collected results into named checks. The detail of a check gives the figure that decides it.

`mistakes.py` recognises typical mistakes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lastword.errors import count
from lastword.kernels.caller_settings import integers
from lastword.verify.evidence import Evidence, TextEvidence
from lastword.verify.mistakes import row_differences, text_mistakes
from lastword.verify.pairs import PairEvidence, pair_mistakes
from lastword.verify.verdict import LayerError, Verdict


def judge(evidence: TextEvidence | PairEvidence, verdict: Verdict) -> None:
    """Add the checks of token ids, hidden states and vectors (or scores) to the verdict."""
    number = len(evidence.ids)
    differ = [i for i in range(number) if evidence.ours.ids[i] != evidence.ids[i]]
    same = integers([i for i in range(number) if i not in set(differ)])
    details = {"pooled row": "the last token", "final norm": "applied"}
    details["order"] = "the same as the texts"
    if isinstance(evidence, PairEvidence):
        mistakes = pair_mistakes(evidence, same, differ)
        details |= {"template": evidence.text.template, "head": evidence.text.head}
    else:
        mistakes = text_mistakes(evidence, same, differ)
        details |= {
            "end token": f"{''.join(evidence.text.appended()) or 'none'} after every text",
            "prompt text": f"{len(evidence.text.prompts)} prompts",
            "normalisation": "length 1" if evidence.text.normalize else "none",
        }
    for name, detail in details.items():
        verdict.add(name, mistakes.get(name), detail)
    verdict.add("tokens", _token_problem(evidence, differ), f"equal in {count(number, 'text')}")
    _neighbours(evidence, verdict)
    _layers(evidence, same, verdict)
    if isinstance(evidence, PairEvidence):
        _log_odds(evidence, verdict)
    else:
        _vectors(evidence, verdict)
        _ranking(evidence, verdict)
    if verdict.quantize:
        _drift(evidence, verdict)


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
    return f"{count(len(pairs), 'text')} with wrong tokens; {label}: token {place}: got {got}, expected {expected}"


def _neighbours(evidence: Evidence, verdict: Verdict) -> None:
    index = [i for i, probe in enumerate(evidence.probes) if probe.alone]
    moved = row_differences(evidence.ours.alone.double(), evidence.ours.vectors[index].double())
    worst, place = (float(x) for x in moved.max(0))
    verdict.figures["neighbour_shift"] = worst
    limit = evidence.bounds.neighbour_limit(evidence.their_difference)
    label = evidence.label(index[int(place)])
    problem = (
        f"the {evidence.noun} of {label} changes by {worst:.1e} in a batch, allowed {limit:.0e}"
    )
    detail = f"{evidence.noun}s change by at most {worst:.1e} in a batch"
    verdict.add("neighbours", problem if not worst <= limit else None, detail)


def _layers(evidence: Evidence, same: Tensor, verdict: Verdict) -> None:
    """Compare the hidden states of the texts with correct token ids; if there is no such text, add no check."""
    if not len(same):
        return
    reference = evidence.reference.states[same]
    ours = _relative_rms(evidence.ours.states[same].double(), reference)
    theirs = _relative_rms(evidence.theirs.states[same], reference)
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


def _relative_rms(states: Tensor, reference: Tensor) -> list[float]:
    """Return one error per layer: ‖state − reference‖ / ‖reference‖ of each text, as RMS over texts."""
    lengths = reference.norm(dim=2).clamp_min(1e-30)  # [N, L + 1]
    relative = (states - reference).norm(dim=2) / lengths
    errors: list[float] = relative.square().mean(0).sqrt().tolist()
    return errors


def _vectors(evidence: TextEvidence, verdict: Verdict) -> None:
    ours, reference = evidence.ours.vectors.double(), evidence.reference_vectors
    _cosines(ours, reference, verdict)
    mean, least = verdict.figures["mean_cosine"], verdict.figures["min_cosine"]
    _results("vectors", f", cosine {mean:.7f} on average, {least:.7f} at worst", evidence, verdict)


def _log_odds(evidence: PairEvidence, verdict: Verdict) -> None:
    """Compare the scores. `_drift` needs cosines; for scores, these are the cosines of the final hidden states."""
    _cosines(
        evidence.ours.states[:, -1].double(), evidence.reference.states[:, -1].double(), verdict
    )
    span = evidence.reference_vectors.aminmax()
    words = f", reference from {float(span.min):.4g} to {float(span.max):.4g}"
    _results("log-odds", words, evidence, verdict)


def _cosines(ours: Tensor, reference: Tensor, verdict: Verdict) -> None:
    cosine = F.cosine_similarity(ours, reference, dim=1)
    verdict.figures |= {"mean_cosine": float(cosine.mean()), "min_cosine": float(cosine.min())}


def _results(check: str, words: str, evidence: Evidence, verdict: Verdict) -> None:
    """Compare the vectors or scores with the reference; `words` is added to the check's detail."""
    reference = evidence.reference_vectors
    errors = row_differences(evidence.ours.vectors.double(), reference)
    worst, limit = float(errors.max()), evidence.vector_limit
    own = float(row_differences(evidence.their_vectors, reference).max())
    verdict.figures |= {"max_abs_difference": worst, "transformers_max_abs_difference": own}
    detail = f"largest difference {worst:.1e} (transformers' own {own:.1e}){words}"
    label = evidence.label(int(errors.argmax()))
    problem = f"{detail}; allowed difference {limit:.1e}; worst text: {label}"
    verdict.add(check, problem if not worst <= limit else None, detail)


def _drift(evidence: Evidence, verdict: Verdict) -> None:
    """Check that the cosines with the reference are within the bounds of the quantisation mode."""
    mean, least = verdict.figures["mean_cosine"], verdict.figures["min_cosine"]
    bounds = evidence.bounds
    detail = f"{verdict.quantize}: cosine {mean:.5f} on average, {least:.5f} at worst"
    problem = (
        f"{detail}; expected at least {bounds.mean_cosine} on average and {bounds.min_cosine} for every text. "
        f"If all earlier checks pass, this model is not suitable for {verdict.quantize}"
    )
    near = mean >= bounds.mean_cosine and least >= bounds.min_cosine
    verdict.add("drift", None if near else problem, detail)


def _ranking(evidence: Evidence, verdict: Verdict) -> None:
    """Compare the ten nearest texts of each text by lastword's and by reference vectors; equal texts count once."""
    first = {tuple(ids): i for i, ids in reversed(list(enumerate(evidence.ids)))}
    index = sorted(first.values())
    reference = evidence.reference_vectors[index]
    nearest = [_nearest(vectors) for vectors in (evidence.ours.vectors[index].double(), reference)]
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
