"""Estimate how long a run will still take; each part's guess is replaced by its measured time once it has run."""

Key = tuple[str, str, str]  # precision, label, part


class Schedule:
    """The parts of a run that are still to come: how often each runs, and how many seconds it takes each time."""

    def __init__(self) -> None:
        self._seconds: dict[Key, float] = {}
        self._times: dict[Key, int] = {}

    def add(self, key: Key, seconds: float, times: int = 1) -> None:
        """Add a part that runs so many times and takes about so many seconds each time."""
        self._seconds[key], self._times[key] = seconds, times

    def done(self, key: Key, seconds: float) -> None:
        """Note that a part ran once, and how long it took."""
        if key in self._times:
            self._seconds[key] = seconds
            self._times[key] -= 1

    def drop(self, precision: str, label: str) -> None:
        """Remove all parts of a library at a precision."""
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
