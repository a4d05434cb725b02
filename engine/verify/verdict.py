"""What verification found: named checks, figures, and whether the model may be used.

The order of the checks is the order of causes: where one thing is wrong, the first failed check names it and the
later ones show what follows from it. Knows neither models nor texts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from lastword.errors import ConfigError

CHECKS = {
    "checkpoint": "the files open, and are of a model that lastword runs",
    "weights": "every stored number is finite",
    "end token": "<|endoftext|> ends every text, a cut one too",
    "prompt text": "prompts are the checkpoint's own, and of this family's form",
    "tokens": "token ids are those of transformers' tokenizer",
    "pooled row": "a vector is made of the last token's row",
    "final norm": "the state is taken after the final norm",
    "normalisation": "vectors have length 1 where the checkpoint says so",
    "order": "each text gets its own vector",
    "neighbours": "a text's vector is the same alone and in a batch",
    "layers": "hidden states are as near the truth as transformers' own",
    "vectors": "final vectors are as near the truth as transformers' own",
    "drift": "quantised vectors stay near the exact ones",
    "ranking": "the same ten nearest texts",
    "scores": "the scores on the model's card",
}
_ASKED_BY = {"drift": "--quantize", "scores": "--scores"}

Status = Literal["ok", "FAIL", "accepted", "not run"]


@dataclass(frozen=True, slots=True)
class Check:
    """One named check: what came out, in a line."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class LayerError:
    """Relative RMS error of the last tokens' states after a layer: lastword's, transformers', and what is allowed.

    With a quantised mode transformers' is that of its layers with matmuls rounded by the same rule.
    """

    layer: int
    ours: float
    theirs: float
    allowed: float


@dataclass(slots=True)
class Verdict:
    """Everything that one verification found."""

    model: str
    folder: str
    device: str = ""
    dtype: str = ""
    quantize: str | None = None
    reference: str = ""
    texts: int = 0
    tokens: int = 0
    checks: list[Check] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return self.cause is None

    @property
    def cause(self) -> Check | None:
        """The first failed check, from which the others may follow."""
        return next((check for check in self.checks if check.status == "FAIL"), None)

    def add(self, name: str, problem: str | None, detail: str = "") -> None:
        """Note a check: failed with `problem`, else in order with `detail`."""
        status: Status = "ok" if problem is None else "FAIL"
        self.checks.append(Check(name, status, detail if problem is None else problem))

    def close(self, accept: Sequence[str], asked: Sequence[str]) -> "Verdict":
        """Put the checks in order, mark the accepted ones and those that did not run.

        Where some did not run no failure is accepted: what was not compared must not pass.
        """
        done = {check.name: check for check in self.checks}
        missing = [name for name in asked if name not in done]
        done |= {name: Check(name, "not run", "another check failed") for name in missing}
        for name in {*accept}:
            check = done[name]
            if check.status == "FAIL" and missing:
                detail = f"{check.detail}; not accepted: other checks did not run"
                done[name] = replace(check, detail=detail)
            elif check.status == "FAIL":
                done[name] = replace(check, status="accepted")
        self.checks = [done[name] for name in asked]
        return self

    def as_dict(self) -> dict[str, object]:
        """The verdict as JSON holds it."""
        cause = self.cause.name if self.cause else None
        return {"passed": self.passed, "cause": cause, **asdict(self)}


def asked_checks(quantize: str | None, *, scores: bool) -> list[str]:
    """Name the checks of a run, in their order."""
    asked = {"drift": quantize is not None, "scores": scores}
    return [name for name in CHECKS if asked.get(name, True)]


def check_accepted(accept: Sequence[str], asked: Sequence[str]) -> None:
    """Refuse a name that no check has, or a check that does not run."""
    for name in accept:
        if name not in CHECKS:
            known = f"one of: {', '.join(CHECKS)}"
            raise ConfigError("accept", "no such check", got=repr(name), expected=known)
        if name not in asked:
            expected = f"it with {_ASKED_BY[name]} only"
            raise ConfigError(
                "accept", "not checked in this run", got=repr(name), expected=expected
            )
