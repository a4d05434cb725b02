"""Run one library in its own process, which reads orders as JSON lines and answers each with one JSON line.

The parent uses `Child`. The child process loads the library, and then embeds texts or scores pairs on request. The
child runs this module (`python -m lastword.bench.peers.child LIBRARY FOLDER SCRATCH THREADS DEVICE PRECISION TASK`), or
`vllm_child.py` in vLLM's interpreter. So the libraries share neither memory nor threads.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lastword.bench.memory import session_peak_bytes
from lastword.bench.peers.llama_cpp import open_model
from lastword.errors import LastwordError
from lastword.weights import tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor

    Encode = Callable[
        [list[Any], str], Tensor
    ]  # texts, "query" or "document" -> [N, C]; pairs, "pair" -> [N]
    EncodeBytes = Callable[[list[Any], str], bytes]  # the same in fp32, row by row

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "8bit": "float32"}
EMBED, SCORE = "embed", "score"  # the tasks of a library
# File in the scratch folder with a reranker's chat template, for sentence-transformers.
TEMPLATE = "chat_template.jinja"
_GOODBYE_S = 10  # seconds for a child to end by itself; vLLM needs most of this time


class Child:
    """A child process, as the parent sees it: starts the process, sends orders, and ends the process and its children.

    Between two orders the process and its children are stopped, so that they take no time from other libraries.

    Args:
        name: name of the library in messages.
        command: program and arguments.
        environment: variables that differ from this process's environment; None removes a variable.
        log: file for the library's output.

    Raises:
        LastwordError: the library cannot be loaded.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str | None], log: Path
    ) -> None:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
        self._name, self._log = name, log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={key: value for key, value in env.items() if value is not None},
                start_new_session=True,  # a process group, which `close` ends as a whole
            )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def ask(self, **order: str | bool | None) -> dict[str, Any]:
        """Send one order to the child and return its answer.

        Args:
            order: the order's fields, sent as JSON.

        Raises:
            LastwordError: the library failed, or the child died.
        """
        stdin = self._process.stdin
        if stdin is None:
            raise RuntimeError(f"{self._name}: started without pipes")
        self._signal(signal.SIGCONT)
        try:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
            return self._answer()
        except BrokenPipeError:
            raise self._death() from None
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, kind: signal.Signals) -> None:
        """Stop or continue the process group: vLLM's workers keep the cores busy for seconds after an answer."""
        with suppress(ProcessLookupError):  # the child has died
            os.killpg(self._process.pid, kind)

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        if stdout is None:
            raise RuntimeError(f"{self._name}: started without pipes")
        line = stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LastwordError(self._name, f"it failed ({' '.join(answer['error'].split())})")
        return answer

    def _death(self) -> LastwordError:
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return LastwordError(self._name, "its process died", got=said[-1].strip() if said else None)

    def close(self) -> None:
        """End the child by closing its input, then kill what is left of its process group."""
        self._signal(signal.SIGCONT)
        try:
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                if self._process.stdin is not None:
                    self._process.stdin.close()
                self._process.wait(_GOODBYE_S)
        finally:
            with suppress(ProcessLookupError):  # none is left
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()


def start(
    library: str,
    folder: Path,
    scratch: Path,
    *,
    precision: str,
    threads: int,
    device: str = "cpu",
    task: str = EMBED,
) -> Child:
    """Start a library in a child process that runs this Python, ready to embed or score.

    Args:
        library: lastword, sentence-transformers or llama.cpp.
        folder: the checkpoint.
        scratch: folder of prepared files.
        precision: a name in `DTYPES`.
        threads: number of threads of the library.
        device: the device, as PyTorch names it.
        task: `EMBED` or `SCORE`.

    Raises:
        LastwordError: the library cannot be loaded.
    """
    words = (library, str(folder), str(scratch), str(threads), device, precision, task)
    command = [sys.executable, "-m", __name__, *words]
    log = scratch / f"{library}-{threads}-{device}.log"
    return Child(library, command, thread_variables(threads), log)


def thread_variables(threads: int) -> dict[str, str | None]:
    """Return the environment variables that give a library's process `threads` threads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": None,  # unset what the command line has set for itself; a lastword child sets it again
    }


def _lastword(folder: str, device: str, precision: str) -> "Encode":
    from lastword import Embedder

    quantize = "int8" if precision == "8bit" else None
    model = Embedder(folder, device=device, dtype=DTYPES[precision], quantize=quantize)
    model.warm_up()
    ways = {"query": model.encode_query, "document": model.encode_document}
    return lambda texts, kind: ways[kind](texts, show_progress_bar=False)


def _sentence_transformers(folder: str, device: str, precision: str) -> "Encode":
    from sentence_transformers import SentenceTransformer

    dtype = DTYPES[precision]
    model = SentenceTransformer(folder, device=device, model_kwargs={"dtype": dtype})
    ways = {"query": model.encode_query, "document": model.encode_document}
    return lambda texts, kind: ways[kind](texts, convert_to_tensor=True, show_progress_bar=False)


def _reranker(folder: str, _: str, device: str, precision: str) -> "Encode":
    from lastword import Reranker

    quantize = "int8" if precision == "8bit" else None
    model = Reranker(folder, device=device, dtype=DTYPES[precision], quantize=quantize)
    model.warm_up()
    how: dict[str, Any] = {"activation_fn": _log_odds, "show_progress_bar": False}
    predict: Any = model.predict
    return lambda pairs, _: predict(pairs, **how)


def _cross_encoder(folder: str, scratch: str, device: str, precision: str) -> "Encode":
    from sentence_transformers import CrossEncoder

    template = Path(scratch, TEMPLATE).read_text(encoding="utf-8")
    model = CrossEncoder(
        folder,
        device=device,
        model_kwargs={"dtype": DTYPES[precision]},
        processor_kwargs={"chat_template": template},
    )
    how = {"activation_fn": _log_odds, "show_progress_bar": False, "convert_to_tensor": True}
    return lambda pairs, _: model.predict([tuple(pair) for pair in pairs], **how)


def _log_odds(scores: "Tensor") -> "Tensor":
    return scores


def _open(
    library: str, folder: str, scratch: str, threads: int, device: str, precision: str, task: str
) -> "EncodeBytes":
    if library == "llama.cpp":
        return open_model(Path(folder), Path(scratch), threads, precision)
    # lastword and sentence-transformers compute on OMP_NUM_THREADS threads.
    if task == SCORE:
        encode = (_reranker if library == "lastword" else _cross_encoder)(
            folder, scratch, device, precision
        )
    else:
        open_library = _lastword if library == "lastword" else _sentence_transformers
        encode = open_library(folder, device, precision)
    return lambda texts, kind: bytes(tensor_bytes(encode(texts, kind).float()))


def _peak(device: str) -> int:
    if device.startswith("cpu"):
        return session_peak_bytes()
    import torch

    return torch.cuda.max_memory_allocated(device)


def _run(encode: "EncodeBytes", order: dict[str, Any]) -> dict[str, Any]:
    load = json.loads(Path(order["texts"]).read_text())
    calls = [[text] for text in load["texts"]] if load["one_by_one"] else [load["texts"]]
    start_s = perf_counter()
    vectors = [encode(call, load["kind"]) for call in calls]
    seconds = perf_counter() - start_s
    if order["save"]:
        Path(order["save"]).write_bytes(b"".join(vectors))
    return {"seconds": seconds}


def _serve(
    library: str, folder: str, scratch: str, threads: str, device: str, precision: str, task: str
) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's own output must not mix with the answers

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        encode = _open(library, folder, scratch, int(threads), device, precision, task)
    except Exception as error:
        answer({"error": str(error)})
        raise
    answer({})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer({"bytes": _peak(device)} if order["do"] == "peak" else _run(encode, order))
        except Exception as error:  # noqa: BLE001 - the other end prints it
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    _serve(*sys.argv[1:])
