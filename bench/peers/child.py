"""One library in its own process: it reads orders as JSON lines and answers each with one number.

`Child` is the parent's end. The other end, `python -m lastword.bench.peers.child PEER FOLDER SCRATCH THREADS DEVICE
DTYPE`, loads the library and then runs workloads on request. So the memory and threads of one library never mix with
another's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from lastword.bench.memory import peak_bytes
from lastword.bench.peers.llama_cpp import open_model
from lastword.errors import LastwordError
from lastword.weights import tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor

    Encode = Callable[[list[str], str], Tensor]  # texts, "query" or "document" -> [N, C]
    EncodeBytes = Callable[[list[str], str], bytes]  # the same in fp32, row by row


class Child:
    """The parent's end: it starts the process, sends orders and ends it.

    Args:
        peer: name of the library.
        folder: the checkpoint.
        scratch: folder of workloads.json and of prepared files.
        threads: threads of the library.
        device: device as PyTorch names it.
        dtype: name of the compute dtype.
    """

    def __init__(
        self, peer: str, folder: Path, scratch: Path, *, threads: int, device: str, dtype: str
    ) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
        env["HF_HUB_OFFLINE"] = "1"
        self._peer = peer
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                __name__,
                peer,
                str(folder),
                str(scratch),
                str(threads),
                device,
                dtype,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def ask(self, **order: str | None) -> float:
        """Send one order and return its answer.

        Args:
            order: the order's fields, sent as JSON.

        Raises:
            LastwordError: the process died.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError(f"{self._peer}: started without pipes")
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            remedy = "Its own message is above."
            raise LastwordError(self._peer, "its process died", remedy=remedy)
        return float(answer)

    def close(self) -> None:
        """End the child by closing its input."""
        self._process.communicate()


def _lastword(folder: str, device: str, dtype: str) -> "Encode":
    from lastword import Embedder

    model = Embedder(folder, device=device, dtype=dtype)
    ways = {"query": model.encode_query, "document": model.encode_document}
    return lambda texts, kind: ways[kind](texts, show_progress_bar=False)


def _sentence_transformers(folder: str, device: str, dtype: str) -> "Encode":
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device=device, model_kwargs={"dtype": dtype})
    ways = {"query": model.encode_query, "document": model.encode_document}
    return lambda texts, kind: ways[kind](texts, convert_to_tensor=True, show_progress_bar=False)


def _open(
    peer: str, folder: str, scratch: str, threads: int, device: str, dtype: str
) -> "EncodeBytes":
    if peer == "llama.cpp":
        return open_model(Path(folder), Path(scratch), threads)
    import torch

    torch.set_num_threads(threads)
    open_peer = _lastword if peer == "lastword" else _sentence_transformers
    encode = open_peer(folder, device, dtype)
    return lambda texts, kind: bytes(tensor_bytes(encode(texts, kind).float()))


def _peak(device: str) -> int:
    if device == "cpu":
        return peak_bytes()
    import torch

    return torch.cuda.max_memory_allocated(device)


def _serve(peer: str, folder: str, scratch: str, threads: int, device: str, dtype: str) -> None:
    encode = _open(peer, folder, scratch, threads, device, dtype)
    loads = {load["name"]: load for load in json.loads(Path(scratch, "workloads.json").read_text())}
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "peak":
            print(_peak(device), flush=True)
            continue
        load = loads[order["workload"]]
        calls = [[text] for text in load["texts"]] if load["one_by_one"] else [load["texts"]]
        start = perf_counter()
        vectors = [encode(call, load["kind"]) for call in calls]
        seconds = perf_counter() - start
        if order["save"]:
            Path(order["save"]).write_bytes(b"".join(vectors))
        print(seconds, flush=True)


if __name__ == "__main__":
    _peer, _folder, _scratch, _threads, _device, _dtype = sys.argv[1:]
    _serve(_peer, _folder, _scratch, int(_threads), _device, _dtype)
