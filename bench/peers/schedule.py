"""Estimate how long a run will still take, from a guess for each part, or its measured time once the part has run."""

Key = tuple[str, str, str]  # precision, label of the library, part (a workload's name, or "start")


class Schedule:
    """The parts of a run: how many times each part is still to run, and about how many seconds it takes each time."""

    def __init__(self) -> None:
        self._seconds: dict[Key, float] = {}
        self._times: dict[Key, int] = {}

    def add(self, key: Key, seconds: float, times: int = 1) -> None:
        """Add a part that is to run `times` times and takes about `seconds` each time."""
        self._seconds[key], self._times[key] = seconds, times

    def done(self, key: Key, seconds: float) -> None:
        """Note that a part has run once and took `seconds`."""
        if key in self._times:
            self._seconds[key] = seconds
            self._times[key] -= 1

    def drop(self, precision: str, label: str) -> None:
        """Remove all parts of a library at a precision: the library no longer takes part there."""
        for key in self._times:
            if key[:2] == (precision, label):
                self._times[key] = 0

    def seconds_left(self) -> float:
        """Return the seconds that the remaining parts will take."""
        return sum(self._seconds[key] * times for key, times in self._times.items())

    def time_left(self) -> str:
        """Return the remaining time in words."""
        return f"{duration(self.seconds_left())} left"


def duration(seconds: float) -> str:
    """Format seconds, such as `about 40 s` or `about 12 min`."""
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"
