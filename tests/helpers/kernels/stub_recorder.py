"""A stand-in for CUDA graphs on a CPU: a replay runs the recorded function again; nothing else is kept."""

from collections.abc import Callable


class StubRecorder:
    """Counts what is rehearsed, recorded and replayed; `rehearsals` and `recordings` hold errors to raise, in order."""

    def __init__(
        self,
        rehearsals: list[Exception | None] | None = None,
        recordings: list[Exception | None] | None = None,
    ) -> None:
        self.rehearsed = self.recorded = self.replayed = 0
        self._rehearsals, self._recordings = rehearsals or [], recordings or []

    def rehearse(self, run: Callable[[], None]) -> None:
        self.rehearsed += 1
        raise_first(self._rehearsals)
        run()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        raise_first(self._recordings)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def raise_first(errors: list[Exception | None]) -> None:
    """Take the first error from the list, and raise it unless it is None."""
    error = errors.pop(0) if errors else None
    if error is not None:
        raise error
