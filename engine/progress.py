"""A progress bar for long work: the tqdm of huggingface-hub, by default shown only on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

# For fewer items than this, the bar appears only after a delay, so that it does not just flash up.
_SMALL = 256
_DELAY_S = 1.0  # seconds
# The bar is drawn again after this time even if nothing has advanced, so that its clock runs on.
_REFRESH_S = 0.5  # seconds


def on_terminal() -> bool:
    """Return whether stderr is a terminal; False if stderr was closed when Python started (`sys.stderr` is None)."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def progress_bar(
    total: int | None, *, show: bool | None, unit: str = " texts", what: str = "Embedding"
) -> Iterator[Callable[[int], None]]:
    """Show a bar during the `with` block, and yield the function that advances it by a number of items.

    Args:
        total: number of items, None for a stream of unknown length.
        show: whether to show the bar; None shows it only on a terminal and for more than one item, after one second if
            there are fewer than 256 items.
        unit: the word after the number of items; "B" means that items are bytes, shown as MB and GB.
        what: title of the bar.
    """
    delay = 0.0
    if show is None:
        show = on_terminal() and total != 1
        delay = 0.0 if total is None or total >= _SMALL else _DELAY_S
    if not show:
        yield lambda _: None
        return
    from huggingface_hub.utils.tqdm import tqdm  # slow to import, needed only here

    # The bar shows the time left where the total is known.
    with (
        tqdm(  # type: ignore[no-untyped-call]
            total=total, unit=unit, desc=what, unit_scale=unit == "B", delay=delay
        ) as bar,
        _refresh_often(bar.refresh, delay),
    ):
        yield lambda done: bar.update(done) and None


@contextmanager
def _refresh_often(refresh: Callable[[], object], delay: float) -> Iterator[None]:
    """Refresh a bar during the `with` block, so that its clock runs on while a huge text is tokenised or embedded.

    Args:
        refresh: draws the bar.
        delay: seconds to wait before the first refresh, because the bar must not appear earlier.
    """
    ended = Event()

    def run() -> None:
        ended.wait(delay)
        while not ended.wait(_REFRESH_S):
            refresh()

    thread = Thread(target=run, name="lastword-progress", daemon=True)

    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
