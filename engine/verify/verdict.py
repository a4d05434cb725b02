"""The result of a verification: named checks, figures, and whether all checks passed.

The checks are ordered from cause to effect: the first failed check names the problem, and later failures may be mere
consequences of that problem. This module knows nothing about models or texts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from lastword.errors import ConfigError

CHECKS = {
    "checkpoint": "the files can be opened and belong to a supported model",
    "weights": "every stored number is finite",
    "end token": "the model's end token, if it has one, ends every text, also after a cut",
    "prompt text": "prompts are the checkpoint's own, and instructions have Qwen3-Embedding's form",
    "template": "a reranker's instruction, query and document are in the template that it was trained with",
    "tokens": "token ids are equal to those of transformers' tokenizer",
    "pooled row": "vectors are made from the last token's row",
    "final norm": "the final norm is applied",
    "head": "a reranker's scores come from its own head, with yes and no the right way round",
    "normalisation": "vectors have length 1 if the checkpoint says so",
    "order": "each text gets its own vector",
    "neighbours": "a text has the same vector alone and in a batch",
    "layers": "hidden states are as close to the reference as transformers' own",
    "vectors": "final vectors are as close to the reference as transformers' own",
    "log-odds": "a reranker's scores are as close to the reference as transformers' own",
    "drift": "the quantisation error is small: quantised vectors are close to the exact ones",
    "ranking": "the ten nearest texts of every text are the same",
    "scores": "the example scores of the model card are the same",
}
_REQUESTED_BY = {"drift": "--quantize", "scores": "--scores"}
_OF_RERANKERS = ("template", "head", "log-odds")
_OF_EMBEDDERS = ("end token", "prompt text", "normalisation", "vectors", "ranking", "scores")

Status = Literal["ok", "FAIL", "accepted", "not run"]


@dataclass(frozen=True, slots=True)
class Check:
    """One named check, with its result in one line."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class LayerError:
    """Relative RMS error of the last token's hidden state after one layer."""

    layer: int
    ours: float  # of lastword
    theirs: (
        float  # of transformers, with its matmuls rounded like lastword's if these are quantised
    )
    allowed: float


@dataclass(slots=True)
class Verdict:
    """All results of one verification."""

    model: str  # name of the model, as the caller gave it
    folder: str
    device: str = ""
    dtype: str = ""  # compute dtype of lastword
    quantize: str | None = None
    reference: str = ""  # compute dtype of the reference
    texts: int = 0  # number of texts compared
    tokens: int = 0  # number of tokens in these texts
    checks: list[Check] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)  # from the embeddings to the final norm
    figures: dict[str, float] = field(default_factory=dict)  # measured values, by name

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return self.cause is None

    @property
    def cause(self) -> Check | None:
        """The first failed check, or None; later failures may be its consequences."""
        return next((check for check in self.checks if check.status == "FAIL"), None)

    def add(self, name: str, problem: str | None, detail: str = "") -> None:
        """Record a check: "FAIL" with `problem` if there is one, else "ok" with `detail`."""
        status: Status = "ok" if problem is None else "FAIL"
        self.checks.append(Check(name, status, detail if problem is None else problem))

    def close(self, accept: Sequence[str], requested: Sequence[str]) -> "Verdict":
        """Sort the checks, mark those that are accepted and those that did not run, and return this verdict.

        If any check did not run, no failure is accepted, since a model that was not fully compared must not pass.

        Args:
            accept: names of checks that may fail.
            requested: names of the checks of this run, in order.
        """
        done = {check.name: check for check in self.checks}
        missing = [name for name in requested if name not in done]
        done |= {name: Check(name, "not run", "another check failed") for name in missing}
        for name in {*accept}:
            check = done[name]
            if check.status == "FAIL" and missing:
                detail = f"{check.detail}; not accepted: other checks did not run"
                done[name] = replace(check, detail=detail)
            elif check.status == "FAIL":
                done[name] = replace(check, status="accepted")
        self.checks = [done[name] for name in requested]
        return self

    def as_dict(self) -> dict[str, object]:
        """Return the verdict as a dict that can be written as JSON."""
        cause = self.cause.name if self.cause else None
        return {"passed": self.passed, "cause": cause, **asdict(self)}


def requested_checks(quantize: str | None, *, scores: bool, reranker: bool) -> list[str]:
    """Return the names of the checks that a run includes, in order."""
    requested = {"drift": quantize is not None, "scores": scores}
    others = _OF_EMBEDDERS if reranker else _OF_RERANKERS
    return [name for name in CHECKS if requested.get(name, True) and name not in others]


def check_known(accept: Sequence[str]) -> None:
    """Check that the names in `accept` are names of checks.

    Raises:
        ConfigError: a name is not the name of a check.
    """
    for name in accept:
        if name not in CHECKS:
            known = f"one of: {', '.join(CHECKS)}"
            raise ConfigError("accept", "no such check", got=repr(name), expected=known)


def check_accepted(accept: Sequence[str], requested: Sequence[str], *, reranker: bool) -> None:
    """Check that the run includes the checks named in `accept`.

    Raises:
        ConfigError: the run does not include one of these checks.
    """
    others, kind = (
        (_OF_EMBEDDERS, "an embedding model") if reranker else (_OF_RERANKERS, "a reranker")
    )
    for name in accept:
        if name not in requested:
            when = kind if name in others else _REQUESTED_BY[name]
            what = f"this check runs only with {when}"
            raise ConfigError("accept", what, got=repr(name))
