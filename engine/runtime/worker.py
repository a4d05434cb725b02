"""The worker process of one device, started by `pool.py`: it loads the model, then computes batch after batch.

The process exits as soon as the parent's end of the socket closes, even in the middle of a batch, so it never outlives
its parent.
"""

import os
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from lastword.runtime.runner import InProcess, Wait
from lastword.runtime.serialization import pack, unpack


def main(handle: int) -> None:
    """Serve the parent at the other end of the socket: first the order to load the model, then batches.

    Orders are answered in the order received. The answer to the order to load is a pair: the default tokens per batch,
    and the maximum tokens of a cached prompt. The answer to a batch is its tensor. Any answer may be an exception
    instead.

    Args:
        handle: file descriptor of the socket.
    """
    connection = Connection(handle)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_read, args=(connection, inbox), daemon=True).start()
    try:
        runner = _open(inbox.get())
        connection.send_bytes(pack((runner.batch_tokens, runner.max_prompt_tokens)))
        started: deque[Callable[[], bytes]] = deque()
        while True:
            if not started or (len(started) <= runner.depth and not inbox.empty()):
                started.append(_start(runner, inbox.get()))
                continue
            connection.send_bytes(started.popleft()())
    except ConnectionError:  # the parent is gone
        return
    except Exception as error:  # noqa: BLE001  raised again in the parent
        connection.send_bytes(pack(_make_portable(error)))


def _read(connection: Connection, inbox: "SimpleQueue[bytes]") -> None:
    """Receive orders, also while a batch is computed; exit at once when the parent is gone."""
    try:
        while True:
            inbox.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


def _open(order: bytes) -> InProcess:
    load, device, threads = unpack(order)
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return InProcess(load(device=device))


def _start(runner: InProcess, order: bytes) -> Callable[[], bytes]:
    """Start a batch; return a function that waits for its result and returns the packed answer."""
    try:
        wait = runner.start(*unpack(order))
    except Exception as error:  # noqa: BLE001  raised again in the parent
        return partial(pack, _make_portable(error))
    return partial(_answer, wait)


def _answer(wait: Wait) -> bytes:
    try:
        return pack(wait())
    except Exception as error:  # noqa: BLE001  raised again in the parent
        return pack(_make_portable(error))


def _make_portable(error: Exception) -> Exception:
    """Add this process's traceback to an exception as a note; replace an unpicklable exception by a RuntimeError."""
    error.add_note(f"In the worker process:\n{traceback.format_exc()}")
    try:
        copy: Any = unpack(pack(error))
    except Exception:  # noqa: BLE001  whatever its own pickling does
        copy = None
    if type(copy) is type(error):
        return error
    stand_in = RuntimeError(f"{type(error).__name__}: {error}")
    for note in error.__notes__:
        stand_in.add_note(note)
    return stand_in
