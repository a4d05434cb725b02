"""An Embedder in worker processes, after a fork, and in several threads."""

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import worker_tasks
from helpers.messages import refusal
from helpers.worker_pools import all_end, pids, pool_of

from lastword import DeviceError, Embedder
from lastword.errors import LastwordWarning
from lastword.report import Report
from lastword.runtime import process_tuning

TEXTS = [f"text number {i % 13} " * (i % 5 + 1) for i in range(40)]
HALVES = [TEXTS[:20], TEXTS[20:]]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu", truncate_dim=16)


@pytest.fixture(scope="module")
def expected(embedder: Embedder) -> torch.Tensor:
    return embedder.encode(TEXTS)


def close(found: Any, expected: torch.Tensor) -> bool:
    return bool((torch.as_tensor(found) - expected).abs().max() <= 1e-5)


@contextmanager
def fork_warnings_ignored() -> Iterator[None]:
    """Ignore that a child computes on one thread and, since Python 3.12, that a process with threads forks."""
    with warnings.catch_warnings(action="ignore"):
        yield


# Worker processes.


def by_llama_index(embedder: Embedder) -> list[list[float]]:
    """Its `num_workers` are processes started with "spawn"."""
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index.core.schema import TextNode

    from lastword.interop.llama_index import LastwordEmbedding

    pipeline = IngestionPipeline(transformations=[LastwordEmbedding(embedder)], disable_cache=True)
    done = pipeline.run(nodes=[TextNode(text=text) for text in TEXTS], num_workers=2)
    return [node.embedding for node in done]


def by_joblib(embedder: Embedder) -> list[list[float]]:
    import joblib

    encode = joblib.delayed(partial(embedder.encode, convert_to_numpy=True))
    parts = joblib.Parallel(2)(encode(half) for half in HALVES)
    return [vector.tolist() for part in parts for vector in part]


def by_datasets(embedder: Embedder) -> list[list[float]]:
    """It forks, but sends the function to the processes by dill."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    texts = Dataset.from_dict({"text": TEXTS})
    work = lambda batch: {"vector": embedder.encode(batch["text"]).tolist()}  # noqa: E731
    return texts.map(work, batched=True, num_proc=2)["vector"]


def by_fork(embedder: Embedder) -> list[list[float]]:
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as processes:
        parts = processes.map(partial(embedder.encode, convert_to_numpy=True), HALVES)
        return [vector.tolist() for part in parts for vector in part]


WORKERS: dict[str, Callable[[Embedder], list[list[float]]]] = {
    "LlamaIndex, spawn": by_llama_index,
    "joblib, loky": by_joblib,
    "datasets": by_datasets,
    "futures, fork": by_fork,
}


@pytest.mark.timing
@forks
@pytest.mark.parametrize("by", WORKERS.values(), ids=WORKERS)
def test_workers(by: Any, embedder: Embedder, expected: torch.Tensor) -> None:
    with fork_warnings_ignored():
        assert close(by(embedder), expected)


@pytest.mark.timing
@forks
def test_a_worker_loads_the_model_once(embedder: Embedder) -> None:
    with (
        fork_warnings_ignored(),
        ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as processes,
    ):
        tasks = [processes.submit(worker_tasks.runner_of, embedder, i) for i in range(3)]
        found = [task.result() for task in tasks]
    assert [index for index, *_ in found] == [0, 1, 2]
    assert len({tuple(rest) for _, *rest in found}) == 1
    assert found[0][1] != os.getpid()


def test_this_process_keeps_no_model_that_was_unpickled(embedder: Embedder) -> None:
    first, second = (pickle.loads(pickle.dumps(embedder)) for _ in range(2))
    assert first.loop.runner is not second.loop.runner
    from lastword.base import reopen

    assert reopen._kept is None


# Forks.


@contextmanager
def child(then: Callable[[], object]) -> Iterator[None]:
    """Run a function in a fork of this process, which must end well in time."""
    reading, writing = os.pipe()
    with fork_warnings_ignored():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(60)
                then()
                code = 0
            except BaseException as error:  # noqa: BLE001  told to the parent
                os.write(writing, repr(error).encode()[:4000])
            finally:
                os._exit(code)
    os.close(writing)
    yield
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reading) as said:
        assert status == 0, said.read()


USES: dict[str, Callable[[Embedder], object]] = {
    "encode": lambda embedder: embedder.encode(TEXTS),
    "encode_query": lambda embedder: embedder.encode_query("one"),
    "encode_stream": lambda embedder: list(embedder.encode_stream(TEXTS)),
    "hidden_states": lambda embedder: embedder.hidden_states(TEXTS),
    "plan": lambda embedder: embedder.plan(TEXTS),
    "token_ids": lambda embedder: embedder.token_ids(TEXTS),
    "a copy": lambda embedder: copy.copy(embedder).encode(TEXTS),
}


@pytest.mark.timing
@forks
@pytest.mark.parametrize(("device", "used"), [("cpu", False), ("cpu", True), ("cpu,cpu", True)])
def test_after_a_fork(device: str, used: bool, tiny_checkpoint: Path, two_threads: None) -> None:
    """Every use is refused, what is opened or unpickled there computes, and the parent's workers go on."""
    parent = os.getpid()
    embedder = Embedder(tiny_checkpoint, device=device)
    begun = iter(())
    if used:
        embedder.encode(TEXTS)
        begun = embedder.encode_groups(text for text in TEXTS * 300)
        next(begun)
    refused = {
        "where": f"device {', '.join(device.split(','))}",
        "what": "belongs to another process",
        "expected": f"one from {parent}, which opened the model",
        "remedy": "Open the model again after the fork.",
    }

    def then() -> None:
        nonlocal embedder
        for use in USES.values():
            with refusal(DeviceError, got=f"a call from process {os.getpid()}", **refused):
                use(embedder)
        if used:
            with refusal(DeviceError, got=f"a call from process {os.getpid()}", **refused):
                next(begun)
        again = Embedder(tiny_checkpoint, device="cpu")
        assert torch.get_num_threads() == 1
        sent = pickle.loads(pickle.dumps(embedder))
        assert close(sent.encode(TEXTS), again.encode(TEXTS))
        sent.close()
        embedder.close()
        del embedder
        gc.collect()

    with child(then):
        pass
    assert torch.get_num_threads() == 2
    assert embedder.encode(TEXTS).shape == (len(TEXTS), 64)
    assert sum(map(len, begun)) < 300 * len(TEXTS), "the rest of the stream"
    workers = pids(pool_of(embedder)) if "," in device else []
    embedder.close()
    assert all_end(workers)


def test_one_thread_after_a_fork_is_told(two_threads: None, monkeypatch) -> None:
    monkeypatch.setattr(process_tuning, "_loaded_in", os.getpid() + 1)
    with pytest.warns(LastwordWarning, match="device cpu: computes on one thread"):
        process_tuning.prepare_threads(torch.device("cpu"))
    assert torch.get_num_threads() == 1
    process_tuning.prepare_threads(torch.device("cpu"))


def test_a_gpu_that_the_parent_has_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with refusal(
        DeviceError,
        where="device cuda:0",
        what="cannot be used after a fork",
        remedy="Start processes with 'spawn' or 'forkserver'.",
    ):
        process_tuning.prepare_threads(torch.device("cuda:0"))


@pytest.mark.timing
@forks
def test_a_data_loader(embedder: Embedder) -> None:
    """Its workers are forks; the one line is in the message that torch makes of the error."""
    from torch.utils.data import DataLoader

    loader = DataLoader(TEXTS, collate_fn=embedder.encode, num_workers=1, multiprocessing_context="fork")  # fmt: skip
    with fork_warnings_ignored(), pytest.raises(RuntimeError, match="Open the model again after"):
        list(loader)


# Threads.


def in_threads(*work: Callable[[], object]) -> list[Any]:
    """Run each function in a thread of its own, all at once; return their results or errors."""
    start, results = threading.Barrier(len(work)), [None] * len(work)

    def run(place: int) -> None:
        start.wait()
        try:
            results[place] = work[place]()
        except Exception as error:  # noqa: BLE001  compared by the test
            results[place] = error

    threads = [threading.Thread(target=run, args=[i], daemon=True) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    return results


def mixed(embedder: Embedder) -> list[Callable[[], Any]]:
    own = copy.copy(embedder)

    def with_own_settings() -> Any:
        own.max_length, own.truncate_dim = 7, 8
        return own.encode(TEXTS)

    def counted() -> Report:
        report = Report()
        embedder.encode(TEXTS, report=report)
        report.seconds = 0
        return report

    return [
        lambda: embedder.encode(TEXTS),
        lambda: embedder.encode_query(TEXTS[:9], truncate_dim=4),
        lambda: torch.stack(list(embedder.encode_stream(iter(TEXTS), precision="int8"))),
        lambda: embedder.plan(TEXTS, "query"),
        lambda: embedder.hidden_states(TEXTS, [0, -1]),
        with_own_settings,
        counted,
        lambda: embedder.token_ids(TEXTS),
    ]


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_eight_threads_and_then_a_close(device: str, tiny_checkpoint: Path) -> None:
    embedder = Embedder(tiny_checkpoint, device=device, max_batch_tokens=150)
    work = mixed(embedder)
    assert len(work) == 8
    expected = [each() for each in work]
    for _ in range(3):
        for found, right in zip(in_threads(*work), expected, strict=True):
            if isinstance(right, torch.Tensor):
                assert isinstance(found, torch.Tensor), found
                bound = 1 if right.dtype == torch.int8 else 1e-5
                assert (found.double() - right.double()).abs().max() <= bound
            else:
                assert found == right
    del work  # and with it the copy, which would keep the workers
    check_close(embedder)


def check_close(embedder: Embedder) -> None:
    """Whoever embeds with a model that is closed gets one clear error, whichever process has the model."""
    going = threading.Event()

    def work() -> None:
        for _ in range(2000):
            embedder.encode(TEXTS)
            going.set()

    def end() -> None:
        going.wait(30)
        embedder.close()

    *found, _ = in_threads(*[work] * 7, end)
    for error in found:
        assert isinstance(error, DeviceError), error
        told = (error.what, error.got, error.remedy)
        assert told == ("closed", "a closed model", "Open it again.")
