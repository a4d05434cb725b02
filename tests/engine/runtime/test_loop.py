"""The loop: order, counts, errors in order, bounded reading ahead, items from a queue, a device that never waits."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import Queue

import pytest
import torch
from helpers.fake_devices import DIM, FakeDevice, last_tokens, none_left, options

from lastword import Embedder, InputError
from lastword.batching.forest import Forest
from lastword.model.postprocess import VectorFormat
from lastword.report import Report
from lastword.runtime.loop import Loop
from lastword.runtime.results import Item
from lastword.runtime.runner import FutureWait
from lastword.text.tokenizer import TextTokenizer

SIZE = 100  # texts of a group, enough to be prepared in the thread
TEXTS = [f"text number {i % 37} " * (i % 5 + 1) for i in range(3 * SIZE + 70)]


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lastword.text.groups.GROUP_TEXTS", SIZE)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> TextTokenizer:
    return TextTokenizer(tiny_checkpoint, 100_000)


def ignore(_: int) -> None:
    """Ignore progress."""


def matrices(loop: Loop, texts, report: Report | None = None, **others) -> Iterator[torch.Tensor]:
    counts = Report() if report is None else report
    return loop.matrices(texts, options(), counts, ignore, **others)


# Groups: read, tokenised and packed, ahead of time if the runner allows it.


@pytest.mark.parametrize("ahead", [False, True])
def test_groups_have_every_text_in_order(
    ahead: bool, small_groups: None, tokenizer: TextTokenizer
) -> None:
    loop = Loop(tokenizer, FakeDevice(ahead=ahead))
    groups = list(loop.groups(TEXTS, options()))
    tags = [[item.tag for item in group.items] for group in groups]
    assert tags == [list(range(i, min(i + SIZE, len(TEXTS)))) for i in range(0, len(TEXTS), SIZE)]
    assert [group.counts.texts for group in groups] == [SIZE, SIZE, SIZE, 70]
    for group in groups:
        packed = sorted(i for forest in group.forests for i in forest.texts.tolist())
        assert packed == list(range(len(group.items)))
    assert none_left()


@pytest.mark.parametrize("ahead", [False, True])
def test_one_group_is_read_ahead_by_the_callers_thread(
    ahead: bool, small_groups: None, tokenizer: TextTokenizer
) -> None:
    read, readers = [0], set()

    def source() -> Iterator[str]:
        for text in TEXTS * 3:
            read[0] += 1
            readers.add(threading.get_ident())
            yield text

    groups = Loop(tokenizer, FakeDevice(ahead=ahead)).groups(source(), options())
    for number in range(4):
        next(groups)
        assert read[0] == SIZE * (number + 1 + ahead)
    groups.close()
    assert readers == {threading.get_ident()}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("threaded", [False, True])
def test_an_unreadable_text_fails_after_the_groups_before_its_own(
    ahead: bool, threaded: bool, small_groups: None, tokenizer: TextTokenizer
) -> None:
    def source() -> Iterator[str]:
        yield from TEXTS[: 2 * SIZE + 10]
        raise OSError("line 210: unreadable")

    done, report = [], Report()
    loop = Loop(tokenizer, FakeDevice(ahead=ahead))
    with pytest.raises(OSError, match="line 210: unreadable"):
        done.extend(len(each) for each in matrices(loop, source(), report, ahead=threaded))
    assert done == [SIZE, SIZE]
    assert report.texts == 2 * SIZE
    assert none_left()


def test_few_texts_are_prepared_without_a_thread(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tokenizer, FakeDevice())
    monkeypatch.setattr("lastword.runtime.threads.ThreadPoolExecutor.submit", None)
    (group,) = loop.groups(["a", "b"], options())
    assert len(group.items) == 2


# Results in order.


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_row_belongs_to_its_text(
    ahead: bool, depth: int, small_groups: None, tokenizer: TextTokenizer
) -> None:
    texts = random.Random(depth).sample(TEXTS, len(TEXTS))
    device = FakeDevice(ahead=ahead, depth=depth)
    report, told = Report(), []
    loop = Loop(tokenizer, device, 300)
    rows = torch.cat(list(loop.matrices(texts, options(), report, told.append, ahead=True)))
    ids = tokenizer.encode(texts, 1000).ids
    assert rows[:, 0].tolist() == [each[-1] for each in ids]
    assert rows[:, 1].tolist() == [len(each) for each in ids]
    assert sum(told) == report.texts == len(texts)
    assert report.tokens_requested == sum(map(len, ids))
    assert (report.tokens_computed, report.batches) == (sum(device.sizes), len(device.sizes))
    assert len(told) == report.batches > 4
    assert loop.plan(texts, options()).batches == report.batches


def test_a_batch_is_waited_for_when_the_next_has_started(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six batches of one text in two groups; each starts before the previous one is waited for (`depth` = 1)."""
    monkeypatch.setattr("lastword.text.groups.GROUP_TEXTS", 3)
    events: list[str] = []

    class Watched(FakeDevice):
        def start(self, task, forest):
            number = len(self.sizes)
            events.append(f"start {number}")
            wait = super().start(task, forest)
            return lambda: events.append(f"wait {number}") or wait()

    loop = Loop(tokenizer, Watched(ahead=False, depth=1), 1)
    texts = ["a", "b", "c", "d", "e", "f"]
    taken = loop.matrices(texts, options(), Report(), lambda _: events.append("done"))
    events.extend(f"group {len(matrix)}" for matrix in taken)
    assert events == (
        "start 0|start 1|wait 0|done|start 2|wait 1|done|start 3|wait 2|done|group 3"
        "|start 4|wait 3|done|start 5|wait 4|done|wait 5|done|group 3"
    ).split("|")


def test_no_second_is_counted_twice(small_groups: None, tokenizer: TextTokenizer) -> None:
    report, device = Report(), FakeDevice(0.01)
    began = time.perf_counter()
    list(matrices(Loop(tokenizer, device, 300), TEXTS, report))
    taken = time.perf_counter() - began
    assert len(device.sizes) * 0.01 <= report.seconds <= taken


@pytest.fixture
def both(small_groups: None, tiny_checkpoint: Path) -> dict[bool, Embedder]:
    """Make two embedders on the CPU; the second works ahead by batches and groups as on a GPU."""
    models = {ahead: Embedder(tiny_checkpoint, device="cpu") for ahead in (False, True)}
    models[True].loop.runner.ahead, models[True].loop.runner.depth = True, 3
    return models


def test_the_same_vectors_and_counts(both: dict[bool, Embedder]) -> None:
    texts = TEXTS[:SIZE] * 3 + TEXTS[:70]  # the same groups with and without small ones first
    reports = {ahead: Report() for ahead in both}
    vectors = {
        ahead: torch.stack(list(model.encode_stream(texts, report=reports[ahead])))
        for ahead, model in both.items()
    }
    assert torch.equal(vectors[True], vectors[False])
    assert torch.equal(torch.cat(list(both[True].encode_groups(texts))), vectors[True])
    for name in ("texts", "tokens_requested", "tokens_computed", "cut", "batches"):
        assert getattr(reports[True], name) == getattr(reports[False], name)
    assert reports[True].texts == len(texts)
    assert reports[True].seconds > 0


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("bad", ["\udfff", None])
def test_a_stream_gives_all_groups_before_the_bad_text(
    ahead: bool, bad: str | None, both: dict[bool, Embedder]
) -> None:
    texts = [*TEXTS[:250], bad, *TEXTS[250:]]
    got = 0
    with pytest.raises(InputError) as caught:
        for _ in both[ahead].encode_stream(texts):
            got += 1
    error = caught.value
    assert (got, error.index, error.where, error.what[:4]) == (200, 250, "text 250", "not ")
    assert none_left()


def test_a_second_stream_counts_from_its_own_first_text(both: dict[bool, Embedder]) -> None:
    report = Report(texts=1000)
    with pytest.raises(InputError) as caught:
        list(both[False].encode_stream(["a", "\udfff"], report=report))
    assert (caught.value.where, caught.value.what) == ("text 1", "not valid Unicode")


# The consumer of the results does not hold up the device.


@pytest.mark.timing
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("20 ms per batch", lambda number: 0.020),
        ("250 ms every eighth batch", lambda number: 0.250 if number % 8 == 7 else 0.0),
    ],
)
def test_a_slow_writer_does_not_hold_up_the_device(
    name: str, write, small_groups: None, tokenizer: TextTokenizer
) -> None:
    device = FakeDevice(0.030)
    loop = Loop(tokenizer, device)
    texts = [f"text number {i}" for i in range(48 * SIZE)]
    for number, matrix in enumerate(matrices(loop, texts, ahead=True)):
        assert len(matrix) == SIZE
        time.sleep(write(number))
    assert len(device.sizes) == 48
    assert device.busy >= 0.95, f"busy {device.busy:.1%} with a writer of {name}"


@pytest.mark.timing
def test_without_a_thread_of_its_own_the_device_would_wait(
    small_groups: None, tokenizer: TextTokenizer
) -> None:
    """Check that the measurement can fail: here the same work is computed between two writes."""
    device = FakeDevice(0.030, depth=0)
    for _ in matrices(Loop(tokenizer, device), TEXTS * 3):
        time.sleep(0.020)
    assert device.busy < 0.8


def test_the_thread_is_bounded(small_groups: None, tokenizer: TextTokenizer) -> None:
    device = FakeDevice(depth=0)
    taken = matrices(Loop(tokenizer, device), TEXTS * 30, ahead=True)
    next(taken)
    time.sleep(0.5)
    assert len(device.sizes) <= 1 + 16, "the one taken, and sixteen that are not"
    taken.close()
    assert none_left()


@pytest.mark.parametrize("where", ["reading", "computing"])
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_a_failure_in_the_threads_is_not_lost(
    where: str, error: BaseException, small_groups: None, tokenizer: TextTokenizer
) -> None:
    def source() -> Iterator[str]:
        yield from TEXTS[:250]
        if where == "reading":
            raise error
        yield from TEXTS[250:]

    def compute(forest: Forest) -> torch.Tensor:
        if where == "computing" and len(device.spans) == 2:
            raise error
        return last_tokens(forest)

    device, done = FakeDevice(compute=compute), []
    with pytest.raises(type(error)) as caught:
        done.extend(len(each) for each in matrices(Loop(tokenizer, device), source(), ahead=True))
    assert caught.value is error
    assert none_left()
    if isinstance(error, Exception):
        assert done == [SIZE, SIZE]


def test_ctrl_c_while_the_device_computes(small_groups: None, tokenizer: TextTokenizer) -> None:
    taken = matrices(Loop(tokenizer, FakeDevice(0.5)), TEXTS, ahead=True)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        list(taken)
    assert none_left()


def test_ctrl_c_while_the_results_are_used(small_groups: None, tokenizer: TextTokenizer) -> None:
    taken = matrices(Loop(tokenizer, FakeDevice(0.01)), TEXTS * 5, ahead=True)
    with pytest.raises(KeyboardInterrupt):
        for _ in taken:
            raise KeyboardInterrupt
    taken.close()
    assert none_left()


# A queue, as in a server.


class Fed:
    """Run a loop on a queue in a thread; collect the results by tag."""

    def __init__(self, tokenizer: TextTokenizer, runner) -> None:
        self.loop, self.queue, self.results = Loop(tokenizer, runner), Queue(), {}
        self.order: list[object] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for tag, result in self.loop.results(self.queue):
            self.order.append(tag)
            self.results[tag] = result

    def put(self, tag: object, ids: list[int], wanted: VectorFormat | None = None) -> None:
        self.queue.put(Item(tag, ids, wanted or options().format))

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while len(self.results) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(self.results) == count

    def end(self) -> dict[object, object]:
        self.queue.put(None)
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.results


def test_a_queue_is_answered_as_batches_finish(tokenizer: TextTokenizer) -> None:
    fed = Fed(tokenizer, FakeDevice(ahead=True, depth=3))
    fed.put("first", [5, 6, 7])
    fed.wait_for(1)  # even though the device could take more batches and nothing more arrives
    fed.put("second", [8])
    fed.put("third", [8, 9])
    fed.wait_for(3)
    results = fed.end()
    assert {tag: row[:2].tolist() for tag, row in results.items()} == {
        "first": [7, 3], "second": [8, 1], "third": [9, 2],
    }  # fmt: skip


def test_items_waiting_in_the_queue_are_packed_together(tokenizer: TextTokenizer) -> None:
    device = FakeDevice(0.1, depth=0)
    fed = Fed(tokenizer, device)
    fed.put(0, [1])
    deadline = time.monotonic() + 10
    while not device.sizes and time.monotonic() < deadline:
        time.sleep(0.001)
    for tag in range(1, 30):
        fed.put(tag, [1, 2, 3, 4, 5, 6, 7, 8, 9, tag])
    results = fed.end()
    assert sorted(results) == list(range(30))
    assert len(device.sizes) == 2
    assert device.sizes[1] == 9 + 29, "their common beginning is computed once"


def test_an_error_affects_only_its_text(tokenizer: TextTokenizer) -> None:
    def compute(forest: Forest) -> torch.Tensor:
        if 13 in forest.ids:
            raise RuntimeError("the kernel failed")
        if 14 in forest.ids and len(forest.ids) > 8:
            raise torch.OutOfMemoryError("no memory")
        vectors = last_tokens(forest)
        vectors[vectors[:, 0] == 15] = float("nan")
        return vectors

    def feed(fed: Fed, device: FakeDevice) -> dict[object, object]:
        fed.put("failed", [13])
        while not device.sizes:  # meanwhile the others wait in the queue and become one batch
            time.sleep(0.001)
        fed.put("fine", [1, 2])
        fed.put("too long", [14] * 9)
        fed.put("broken", [15])
        fed.put("fine too", [3])
        fed.wait_for(5)
        fed.put("later", [4])
        return fed.end()

    device = FakeDevice(0.1, depth=0, compute=compute)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        results = feed(Fed(tokenizer, device), device)
    assert str(results["failed"]) == "the kernel failed"
    too_long, broken = results["too long"], results["broken"]
    assert (too_long.where, too_long.got) == ("text too long", "9 tokens")
    assert (broken.where, broken.what) == ("text broken", "its vector is zero or not finite")
    assert broken.index is None
    for tag, last in (("fine", 2), ("fine too", 3), ("later", 4)):
        assert results[tag][0] == last


@pytest.mark.parametrize(
    ("ids", "wanted", "what"),
    [
        ([], VectorFormat(8, normalize=True), "it has no tokens"),
        ([-1], VectorFormat(8, normalize=True), "unknown token"),
        ([10**6], VectorFormat(8, normalize=True), "unknown token"),
        ([5], None, "its format is missing"),
        ([5], VectorFormat(10**6, normalize=True), "out of range"),
    ],
)
def test_an_item_that_cannot_be_computed_affects_no_other(
    ids: list[int], wanted: VectorFormat | None, what: str, tiny_checkpoint: Path
) -> None:
    model = Embedder(tiny_checkpoint, device="cpu")
    good, queue, report = model.token_ids(["fine", "fine too"]), Queue(), Report()
    queue.put(Item("good", good[0], model.info.vector_format()))
    queue.put(Item("bad", ids, wanted))
    queue.put(Item("good too", good[1], model.info.vector_format(precision="int8")))
    queue.put(None)
    results = dict(model.loop.results(queue, report))
    assert results["bad"].what == what
    assert torch.equal(results["good"], model.encode("fine"))
    assert torch.equal(results["good too"], model.encode("fine too", precision="int8"))
    assert (report.batches, report.texts) == (1, 3)
    queue.put(Item("bad alone", ids, wanted))
    queue.put(None)
    assert dict(model.loop.results(queue))["bad alone"].what == what


class Unordered(FakeDevice):
    """Simulate several devices: batches finish in a different order than they were started."""

    def start(self, task, forest):
        long = 99 in forest.ids
        wait = Future()
        threading.Timer(0.5 if long else 0.0, lambda: wait.set_result(last_tokens(forest))).start()
        return FutureWait(wait)


def test_the_batch_finished_first_is_answered_first(tokenizer: TextTokenizer) -> None:
    fed = Fed(tokenizer, Unordered(depth=3))
    fed.put("long", [99])
    time.sleep(0.05)
    fed.put("short", [1])
    fed.wait_for(2)
    fed.end()
    assert fed.order == ["short", "long"]


def test_items_of_one_batch_may_differ_in_format(tiny_checkpoint: Path) -> None:
    """Each item gets its own width, normalisation and precision, as if it were computed alone."""
    model = Embedder(tiny_checkpoint, device="cpu")
    texts = ["the cat sat", "the cat sat on the mat", "a dog", "another text", "and one more"]
    ranges = torch.stack([torch.full((16,), -0.5), torch.full((16,), 0.5)])
    wanted = [
        {},
        {"truncate_dim": 24},
        {"truncate_dim": 16, "precision": "uint8", "ranges": ranges},
        {"precision": "float16"},
        {"truncate_dim": 8, "precision": "ubinary"},
    ]
    ids, queue = model.token_ids(texts), Queue()
    for tag, settings in enumerate(wanted):
        queue.put(Item(tag, ids[tag], model.info.vector_format(**settings)))
    queue.put(None)
    results = dict(model.loop.results(queue))
    for tag, settings in enumerate(wanted):
        alone = model.encode(texts[tag], **settings)
        assert (results[tag].dtype, results[tag].shape) == (alone.dtype, alone.shape)
        assert float((results[tag].float() - alone.float()).abs().max()) <= (
            1e-5 if alone.dtype == torch.float32 else 1e-3 if alone.dtype == torch.float16 else 1
        )
    assert results[0].shape[0] != DIM


def test_states_that_differ_only_in_precision_are_normalised_once(tiny_checkpoint: Path) -> None:
    model = Embedder(tiny_checkpoint, device="cpu")
    ids, queue = model.token_ids(["a text", "a text"]), Queue()
    for tag, precision in enumerate(["float32", "int8"]):
        queue.put(Item(tag, ids[tag], model.info.vector_format(precision=precision)))
    queue.put(None)
    results = dict(model.loop.results(queue))
    assert torch.equal(results[0], model.encode("a text"))
    assert torch.equal(results[1], model.encode("a text", precision="int8"))
