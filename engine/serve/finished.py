"""Tell the event loop which requests have their results: those that finish together wake it once."""

import asyncio
from collections import deque


class Finished:
    """Futures to complete in the event loop, which is woken for the first one and then completes all added since.

    Waking the loop for each future would cost a system call, in which the device's thread gives up the interpreter.
    """

    def __init__(self) -> None:
        self._futures: deque[asyncio.Future[None]] = deque()
        self._woken = False

    def add(self, future: "asyncio.Future[None]") -> None:
        """Have the event loop complete a future; may be called in any thread."""
        self._futures.append(future)
        if not self._woken:  # if True, the loop has yet to empty the deque
            self._woken = True
            future.get_loop().call_soon_threadsafe(self._complete)

    def _complete(self) -> None:
        self._woken = False  # first, so that no future that is added meanwhile is left behind
        while self._futures:
            future = self._futures.popleft()
            if not future.done():
                future.set_result(None)
