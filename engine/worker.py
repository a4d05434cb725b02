"""The process of one device: opens the model, then computes one batch after another. `pool.py` starts it.

It ends as soon as the parent's end of the socket closes, in the middle of a batch too, so that it outlives no parent.
"""

import os
import traceback
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from lastword import memory
from lastword.model import Model
from lastword.wire import pack, unpack


def main(handle: int) -> None:
    """Serve the parent at the other end of the socket: first the order to open the model, then batches.

    Each order is answered, in turn, with what it gave: None for the model, a tensor for a batch, or the exception.
    """
    connection = Connection(handle)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_read, args=(connection, inbox), daemon=True).start()
    try:
        model = _open(inbox.get())
        connection.send_bytes(pack(None))
        batches = 0
        while True:
            connection.send_bytes(_answer(model, inbox.get()))
            batches += 1
            if batches % memory.BATCHES == 0:
                memory.give_back()
    except ConnectionError:  # the parent is gone
        return
    except Exception as error:  # noqa: BLE001  raised again in the parent
        connection.send_bytes(pack(_portable(error)))


def _read(connection: Connection, inbox: "SimpleQueue[bytes]") -> None:
    """Take orders while a batch is computed, and notice the parent's end at once."""
    try:
        while True:
            inbox.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


def _open(order: bytes) -> Model:
    load, device, threads = unpack(order)
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    model: Model = load(device=device)
    return model


def _answer(model: Model, order: bytes) -> bytes:
    try:
        task, forest = unpack(order)
        return pack(task(model, forest))
    except Exception as error:  # noqa: BLE001  raised again in the parent
        return pack(_portable(error))


def _portable(error: Exception) -> Exception:
    """The exception with this process's traceback as a note, or its text where it does not survive a pickle."""
    error.add_note(f"In the worker process:\n{traceback.format_exc()}")
    try:
        copy: Any = unpack(pack(error))
    except Exception:  # noqa: BLE001  whatever its own pickling does
        copy = None
    return error if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
