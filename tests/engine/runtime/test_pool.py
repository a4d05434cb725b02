"""Several devices give the vectors, order, counts and errors of one device; `test_pool_ends.py` tests how they end.

Workers on the CPU stand in for GPUs: only the location of the model depends on the device.
"""

import sys
import threading
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import worker_tasks
from helpers.worker_pools import CPU, FOREST, pids, pool_of

from lastword import DeviceError, Embedder, InputError
from lastword.batching.forest import plan_forests
from lastword.encode_options import EncodeOptions
from lastword.errors import LastwordWarning
from lastword.report import Report
from lastword.runtime import pool as pool_module
from lastword.runtime.pool import open_runner
from lastword.runtime.runner import WarmUpTask
from lastword.runtime.serialization import unpack

GROUP = 50
TEXTS = [f"text number {i % 97} " * (i % 5 + 1) for i in range(6 * GROUP + 20)]


@pytest.fixture(scope="module")
def one(one_thread: None, tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu", max_batch_tokens=200)


@pytest.fixture(scope="module")
def two(one_thread: None, tiny_checkpoint: Path) -> Embedder:
    with Embedder(tiny_checkpoint, device="cpu,cpu", max_batch_tokens=200) as embedder:
        yield embedder


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lastword.text.groups.GROUP_TEXTS", GROUP)


# The same results as one device.


def test_vectors_counts_and_progress(small_groups: None, one: Embedder, two: Embedder) -> None:
    reports, vectors, told = [Report(), Report()], [], []
    for embedder, report in zip((one, two), reports, strict=True):
        wanted = EncodeOptions(
            embedder.resolve_prompt("query"), embedder.max_length, embedder.info.vector_format()
        )
        groups = list(embedder.loop.matrices(TEXTS, wanted, report, told.append))
        assert [len(group) for group in groups] == [GROUP] * 6 + [20]
        vectors.append(torch.cat(groups))
    assert torch.equal(*vectors), "equal batches give equal bits"
    assert sum(told) == 2 * len(TEXTS)
    for name in ("texts", "tokens_requested", "tokens_computed", "cut", "batches"):
        assert getattr(reports[0], name) == getattr(reports[1], name)
    assert reports[1].batches > 12
    assert two.plan(TEXTS, "query").batches == reports[1].batches


def test_both_workers_are_warmed_up(two: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, orders = pool_of(two), []
    for worker in pool._workers:
        submit = worker.submit
        monkeypatch.setattr(
            worker, "submit", lambda *order, to=submit: orders.append(order) or to(*order)
        )
    pool.warm_up(64)
    assert len(orders) == 2
    task, _ = unpack(orders[0][0])
    assert (task, orders[0], orders[0][1]) == (WarmUpTask(64), orders[1], 0)


def test_a_failure_while_warming_up_is_raised(
    two: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = partial(worker_tasks.fail, ValueError("a kernel failed"))
    monkeypatch.setattr(pool_module, "WarmUpTask", lambda _: failing)
    with pytest.raises(ValueError, match="a kernel failed"):
        two.warm_up()


def test_both_workers_work(two: Embedder) -> None:
    pool = pool_of(two)
    answers = [pool.start(worker_tasks.pid, FOREST) for _ in range(4)]
    seen = [wait().tolist() for wait in answers]
    assert sorted({pid for pid, _ in seen}) == sorted(pids(pool))
    assert {threads for _, threads in seen} == {max(1, torch.get_num_threads() // 2)}
    assert [worker.tokens for worker in pool._workers] == [0, 0]


@pytest.mark.timing
def test_the_worker_with_fewer_tokens_is_next(two: Embedder) -> None:
    pool = pool_of(two)
    (large,) = plan_forests([[1] * 500], 1000)
    waits = [pool.start(partial(worker_tasks.sleep, 0.5), large)]
    waits += [pool.start(worker_tasks.pid, FOREST) for _ in range(3)]
    assert len({int(wait()[0]) for wait in waits[1:]}) == 1
    waits[0]()


def test_looking_inside(one: Embedder, two: Embedder) -> None:
    assert torch.equal(two.hidden_states(TEXTS[:60]), one.hidden_states(TEXTS[:60]))
    assert two.hidden_states([], [0, -1]).shape == (0, 2, 64)
    assert two.token_ids(TEXTS[:9], "query") == one.token_ids(TEXTS[:9], "query")
    assert two.info.space_fingerprint() == one.info.space_fingerprint()
    assert two.info.run_fingerprint() == one.info.run_fingerprint()
    assert (two.device, two.info.devices) == (CPU, (CPU, CPU))


# Streams.


def test_a_stream_reads_and_starts_a_bounded_number_ahead(
    small_groups: None, two: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, under_way, most, read = pool_of(two), 0, 0, 0
    plain = pool.start

    def start(task, forest):
        nonlocal under_way, most
        wait, under_way = plain(task, forest), under_way + 1
        most = max(most, under_way)

        def done():
            nonlocal under_way
            vectors, under_way = wait(), under_way - 1
            return vectors

        return done

    def texts():
        nonlocal read
        for text in TEXTS * 3:
            read += 1
            yield text

    monkeypatch.setattr(pool, "start", start)
    furthest = max(read - n for n, _ in enumerate(two.encode_stream(texts())))
    assert 2 < most <= pool.depth + 1
    assert furthest <= (1 + 16) * GROUP, "the group that is used, and sixteen computed ahead"


def test_calls_within_a_stream_and_from_other_threads(
    small_groups: None, one: Embedder, two: Embedder
) -> None:
    expected, got = one.encode(TEXTS), {}
    stream = two.encode_stream(TEXTS)
    first = next(stream)
    assert torch.equal(two.encode(TEXTS[7]), one.encode(TEXTS[7]))
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: two.encode(TEXTS)})) for i in range(3)
    ]
    for thread in threads:
        thread.start()
    rest = list(stream)
    for thread in threads:
        thread.join()
    assert torch.equal(torch.stack([first, *rest]), expected)
    assert all(torch.equal(got[i], expected) for i in range(3))


def test_an_abandoned_stream_leaves_the_workers_usable(
    small_groups: None, one: Embedder, two: Embedder
) -> None:
    stream = two.encode_stream(TEXTS)
    next(stream)
    stream.close()
    assert torch.equal(two.encode(TEXTS[:9]), one.encode(TEXTS[:9]))


# Errors.


@pytest.mark.parametrize("bad", ["\udfff", None])
def test_a_bad_text_fails_after_the_groups_before_it(
    bad: str | None, small_groups: None, two: Embedder
) -> None:
    got = 0
    with pytest.raises(InputError) as caught:
        for _ in two.encode_stream([*TEXTS[:120], bad, *TEXTS[120:]]):
            got += 1
    assert (got, caught.value.index, caught.value.where) == (100, 120, "text 120")
    assert caught.value.what in ("not a string", "not valid Unicode")


def test_a_vector_that_is_not_finite_is_named(
    small_groups: None, two: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, broken = pool_of(two), 20
    plain, started = pool.start, []

    def start(task, forest):
        started.append(forest)
        if len(started) == broken:
            task = partial(worker_tasks.not_finite, 64)
        return plain(task, forest)

    monkeypatch.setattr(pool, "start", start)
    got = 0
    with pytest.raises(InputError) as caught:
        for _ in two.encode_stream(TEXTS):
            got += 1
    assert caught.value.what == "its vector is zero or not finite"
    group, within = divmod(caught.value.index, GROUP)
    assert within == started[broken - 1].texts.min()
    assert got == group * GROUP > 0


@pytest.mark.parametrize(
    "error", [InputError("text 3", "bad", index=3), RuntimeError("no memory"), KeyError("x")]
)
def test_exceptions_of_a_worker(error: Exception, two: Embedder) -> None:
    wait = pool_of(two).start(partial(worker_tasks.fail, error), FOREST)
    with pytest.raises(type(error)) as caught:
        wait()
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "index", None) == getattr(error, "index", None)
    assert "worker_tasks.py" in caught.value.__notes__[0], "the worker's own traceback"


def test_a_worker_out_of_memory(
    one: Embedder, two: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, report = pool_of(two), Report()
    plain = pool.start
    monkeypatch.setattr(
        pool, "start", lambda task, forest: plain(partial(worker_tasks.small, 60, task), forest)
    )
    two.max_batch_tokens = 200
    with pytest.warns(RuntimeWarning, match=r"cpu, cpu is out of memory at \d+ tokens") as warned:
        vectors = torch.stack(list(two.encode_stream(TEXTS, report=report)))
    assert float((vectors - one.encode(TEXTS)).abs().max()) <= 1e-5
    assert (len(warned), report.texts) == (1, len(TEXTS))
    assert two.loop.budget.tokens <= 100
    two.max_batch_tokens = 200  # restore it for later tests


def test_an_exception_that_cannot_be_sent(two: Embedder) -> None:
    with pytest.raises(RuntimeError, match="UnpicklableError: one two") as caught:
        pool_of(two).start(worker_tasks.fail_unpicklable, FOREST)()
    assert "worker_tasks.py" in caught.value.__notes__[0], "the worker's own traceback"


def test_a_task_that_the_worker_does_not_know(two: Embedder) -> None:
    module = type(sys)("only_here")
    sys.modules["only_here"] = module
    exec("def task(model, forest): ...", module.__dict__)
    with pytest.raises(ModuleNotFoundError, match="only_here"):
        pool_of(two).start(module.task, FOREST)()


def test_a_gpu_is_warned_of_once_while_no_run_is_recorded() -> None:
    def load(device, loaded):
        raise torch.OutOfMemoryError("no GPU here")

    stub = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=1), dtype=torch.bfloat16)
    loader = type("Loader", (), {**vars(stub), "__call__": lambda _, *others: load(*others)})()
    pool_module._warn_of_unproved_kernels.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with pytest.raises(DeviceError):
                open_runner(loader, [torch.device("cuda", 0)], show=False)
        with pytest.raises(DeviceError):
            open_runner(loader, [CPU], show=False)
    (warning,) = [each.message for each in caught if isinstance(each.message, LastwordWarning)]
    assert warning.where == "device"
    assert "no run on a GPU is recorded" in warning.what
