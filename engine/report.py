"""What a run cost: counted by the engine, printed by the doors."""

from dataclasses import dataclass


@dataclass(slots=True)
class Report:
    """Counts of one run; `cut` texts were longer than max_length, `seconds` is wall time."""

    texts: int = 0
    tokens_asked: int = 0
    tokens_computed: int = 0
    cut: int = 0
    batches: int = 0
    seconds: float = 0.0

    def add(self, other: "Report") -> None:
        """Add another run's counts."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def tokens_saved(self) -> int:
        """Tokens that sharing spared: asked less computed."""
        return self.tokens_asked - self.tokens_computed

    @property
    def tokens_per_second(self) -> float:
        """Tokens asked for in a second of wall time."""
        return self.tokens_asked / self.seconds if self.seconds else 0.0
