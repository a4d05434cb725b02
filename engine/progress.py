"""A progress bar for long work: huggingface-hub's own tqdm, on a terminal unless asked for elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Smaller work shows its bar only once it has taken so many seconds: a flash of one helps nobody.
_SMALL = 256
_PATIENCE_S = 1.0


def on_terminal() -> bool:
    """Whether stderr is a terminal; it is None where it was closed before Python started."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def progress_bar(
    total: int | None, *, show: bool | None, unit: str = " texts", what: str = "Embedding"
) -> Iterator[Callable[[int], None]]:
    """Give a function that counts what is done; `total` None stands for a stream of unknown length.

    `show` None stands for: on a terminal, and of more than one item. The unit `B` stands for bytes, shown as MB and GB.
    """
    delay = 0.0
    if show is None:
        show = on_terminal() and total != 1
        delay = 0.0 if total is None or total >= _SMALL else _PATIENCE_S
    if not show:
        yield lambda _: None
        return
    from huggingface_hub.utils.tqdm import tqdm  # slow to import, needed only here

    with tqdm(  # type: ignore[no-untyped-call]
        total=total, unit=unit, desc=what, unit_scale=unit == "B", delay=delay
    ) as bar:
        yield lambda done: bar.update(done) and None
