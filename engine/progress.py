"""A progress bar for long work: huggingface-hub's own tqdm, on a terminal unless asked for elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Work of fewer texts shows no bar unless asked to.
_MIN_TEXTS = 256


def on_terminal() -> bool:
    """Whether stderr is a terminal; a closed one is not."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def progress_bar(
    total: int | None, *, show: bool | None, unit: str = " texts", what: str = "Embedding"
) -> Iterator[Callable[[int], None]]:
    """Give a function that counts what is done; `total` None stands for a stream of unknown length.

    The unit `B` stands for bytes, shown as MB and GB.
    """
    if show is None:
        show = sys.stderr.isatty() and (total is None or total >= _MIN_TEXTS)
    if not show:
        yield lambda _: None
        return
    from huggingface_hub.utils.tqdm import tqdm  # slow to import, needed only here

    with tqdm(  # type: ignore[no-untyped-call]
        total=total, unit=unit, desc=what, unit_scale=unit == "B"
    ) as bar:
        yield lambda done: bar.update(done) and None
