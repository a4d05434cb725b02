"""The graphs of small batches, with a stand-in for the recorder: order, buffers, memory counted, failures."""

import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from helpers.fake_devices import ByBatch
from helpers.kernels.stub_recorder import StubRecorder
from torch import Tensor

from lastword import Embedder, Reranker
from lastword.batching.forest import Forest, plan_forests
from lastword.batching.packing import Bucket, BucketLayout, ModelInputs, Packer
from lastword.errors import LastwordWarning
from lastword.model.qwen3 import Model
from lastword.runtime import runner
from lastword.runtime.cuda_graphs import CudaRecorder, Graphs, empty_cache
from lastword.runtime.runner import InProcess, WarmUpTask
from lastword.weights import Checkpoint, read_config

CPU = torch.device("cpu")
PACKER = Packer(CPU, torch.float32, 1, 1)
SMALL = PACKER.bucket_layout(Bucket(16, 8, tree=False))
LARGE = PACKER.bucket_layout(Bucket(64, 8, tree=False))


def pack(tokens: list[list[int]], layout: BucketLayout) -> Tensor:
    return PACKER.fill(layout, one_forest(tokens))


def one_forest(tokens: list[list[int]]) -> Forest:
    (forest,) = plan_forests(tokens, 10**6)
    return forest


ANY = [(layout, pack([[0]], layout)) for layout in (LARGE, SMALL)]


def forward(inputs: ModelInputs) -> Tensor:
    """Return a state [id of the last token, number of rows] for each last-token row."""
    last = inputs.ids[inputs.final_rows.long()]
    return torch.stack([last.float(), torch.full_like(last, len(inputs.ids)).float()], dim=1)


def graphs(recorder: StubRecorder) -> Graphs:
    return Graphs(width=2, dtype=torch.float32, device=CPU, recorder=recorder)


def test_every_bucket_is_rehearsed_and_recorded_in_the_order_given() -> None:
    order: list[tuple[str, int]] = []

    class Recorder(StubRecorder):
        def rehearse(self, run):
            order.append(("rehearse", rows[0]))
            super().rehearse(run)

        def record(self, run):
            order.append(("record", rows[0]))
            rows.pop(0)
            return super().record(run)

    rows = [64, 16]
    recorded = graphs(Recorder())
    recorded.record(forward, ANY)
    assert order == [("rehearse", 64), ("record", 64), ("rehearse", 16), ("record", 16)]
    assert SMALL in recorded
    assert LARGE in recorded
    assert replace(LARGE, rows=128) not in recorded
    recorded.record(forward, ANY)
    assert len(order) == 4, "recorded once"


def test_batches_do_not_mix() -> None:
    recorder = StubRecorder()
    recorded = graphs(recorder)
    recorded.record(forward, ANY)
    texts = {SMALL: [[5, 9], [6, 7]], LARGE: [[1] * 40, [2, 3]]}
    results = [
        recorded.run(layout, pack(texts[layout], layout), 2) for layout in (SMALL, LARGE, SMALL)
    ]
    assert [result.tolist() for result in results] == [
        [[9, 16], [7, 16]], [[1, 64], [3, 64]], [[9, 16], [7, 16]],
    ]  # fmt: skip
    assert len({result.data_ptr() for result in results}) == 3, "states are copied out"
    assert recorder.replayed == 3


def test_a_failure_of_a_kernel_is_raised_as_itself() -> None:
    failure = RuntimeError("CUDA error: an illegal memory access was encountered")
    recorder = StubRecorder(rehearsals=[None, failure])
    recorded = graphs(recorder)
    with warnings.catch_warnings(action="error"), pytest.raises(RuntimeError) as caught:
        recorded.record(forward, ANY)
    assert caught.value is failure
    assert LARGE in recorded
    assert SMALL not in recorded


@pytest.mark.parametrize(
    "errors",
    [
        {"rehearsals": [torch.OutOfMemoryError("CUDA out of memory\nmore")]},
        {"recordings": [torch.OutOfMemoryError("CUDA out of memory\nmore")]},
        {"recordings": [RuntimeError("CUDA out of memory\nmore")]},
    ],
    ids=["no memory for the rehearsal", "no memory for the graph", "the recording"],
)
def test_what_cannot_be_recorded_is_one_warning(errors: dict[str, list[Exception]]) -> None:
    recorded = graphs(StubRecorder(**errors))
    with pytest.warns(LastwordWarning) as caught:
        recorded.record(forward, ANY)
    (warning,) = (each.message for each in caught)
    assert warning.what == "batches of 64 rows could not be recorded"
    assert warning.got == "'CUDA out of memory'"
    assert LARGE not in recorded
    assert SMALL in recorded, "the smaller ones are recorded still"
    recorded.record(forward, ANY)
    assert LARGE in recorded, "a later call tries again"


class FakeCuda:
    """What `CudaRecorder` uses of torch.cuda; recordings in `aborted` fail as if another thread had synchronised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, aborted: set[int]) -> None:
        self.pools: list[int] = []  # the pool of each recording
        self.left: list[int] = []  # pools whose use was ended after an abort
        handles, streams = count(), count()

        @contextmanager
        def graph(_graph, pool, _stream, *, capture_error_mode):
            assert capture_error_mode == "thread_local"
            self.pools.append(pool)
            yield
            if len(self.pools) - 1 in aborted:
                raise RuntimeError("CUDA error: operation failed due to a previous error")

        def end(_device: int, pool: int) -> None:
            self.left.append(pool)
            raise RuntimeError("it was ended after all")

        def stream() -> SimpleNamespace:
            return SimpleNamespace(
                number=next(streams), wait_stream=lambda _: None, synchronize=lambda: None
            )

        caller = stream()
        for name, fake in {
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "Stream": stream,
            "current_device": lambda: 0,
            "current_stream": lambda: caller,
            "graph": graph,
            "graph_pool_handle": lambda: next(handles),
            "stream": lambda _: nullcontext(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)


def test_an_aborted_recording_leaves_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would refuse every later recording into it; the next try, and all after it, use a new one."""
    cuda = FakeCuda(monkeypatch, aborted={1})
    recorder = CudaRecorder()
    with warnings.catch_warnings(action="error"):
        graphs(recorder).record(forward, ANY)
        assert (cuda.pools, cuda.left) == ([0, 0, 1], [0])
        graphs(recorder).record(forward, ANY)
    assert cuda.pools == [0, 0, 1, 1, 1]


def test_a_recording_that_is_aborted_twice_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch, aborted={0, 1})
    recorded = graphs(CudaRecorder())
    with pytest.warns(LastwordWarning, match="batches of 64 rows could not be recorded"):
        recorded.record(forward, ANY)
    assert (cuda.pools, cuda.left) == ([0, 1, 2], [0, 1])
    assert SMALL in recorded


def test_a_rehearsal_and_a_recording_have_streams_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that cuBLAS takes the workspace that the graphs use from the graphs' own memory."""
    FakeCuda(monkeypatch, aborted=set())
    recorder = CudaRecorder()
    assert recorder._rehearsals.number != recorder._stream.number


def test_unused_memory_is_not_returned_during_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, aborted=set())
    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: called.append("empty"))
    other = Thread(target=empty_cache)

    def run() -> None:
        other.start()
        other.join(0.05)
        called.append("recorded")

    CudaRecorder().record(run)
    other.join(10)
    assert called == ["recorded", "empty"]


def cpu_model(folder: Path) -> Model:
    config = read_config(folder)
    return Model(Checkpoint(folder, config), config, CPU, torch.float32)


def test_a_model_records_the_largest_first(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = cpu_model(tiny_checkpoint), []
    assert model.graph_bytes == 0
    model.warm_up(2048)  # no packing: nothing to do

    def states(inputs: ModelInputs) -> Tensor:
        seen.append((len(inputs.ids), inputs.plan.num_finals, inputs.plan.has_ancestors))
        return torch.zeros(inputs.plan.num_finals, model.config.hidden_size)

    monkeypatch.setattr(model, "_forward", states)
    for recorder, most, number in (
        (StubRecorder(), 2048, 40),
        (StubRecorder(), 100, 20),
        (None, 16, 5),
    ):
        model.use_packing(recorder)
        seen.clear()
        model.warm_up(most)
        assert len(seen) == number
        assert seen == sorted(seen, reverse=True)
        if recorder is not None:
            assert (recorder.rehearsed, recorder.recorded) == (number, number)


def test_a_batch_without_graphs_needs_no_memory_for_warming_up(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = cpu_model(tiny_checkpoint), []

    def states(inputs: ModelInputs) -> Tensor:
        seen.append(len(inputs.ids))
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(model, "_forward", states)
    model.use_packing(None)
    model.warm_up(16)
    assert seen == [16] * 5


def test_the_graphs_are_counted_in_the_batch_budget(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs share the activations of the largest, 2,048 rows."""
    asked = []

    def default(device: torch.device, token_bytes: int, *, reserved: int) -> int:
        asked.append((token_bytes, reserved))
        return 7

    monkeypatch.setattr(runner, "default_batch_tokens", default)
    model = cpu_model(tiny_checkpoint)
    model.use_packing(StubRecorder())
    assert InProcess(model).batch_tokens == 7
    model.use_packing(None)
    InProcess(model)
    size = model.token_bytes
    assert asked == [(size, 2048 * size), (size, 0)]


@pytest.mark.parametrize("kind", [Embedder, Reranker])
def test_warming_up_starts_with_the_devices(
    kind: type[Embedder | Reranker],
) -> None:
    called: list[str] = []
    loop = SimpleNamespace(warm_up=lambda: called.append("loop"))
    model = SimpleNamespace(
        loop=loop,
        encode_query=lambda _: called.append("query"), encode_document=lambda _: called.append("documents"),
        predict=lambda _: called.append("pairs"),
    )  # fmt: skip
    kind.warm_up(model)
    assert called == ["loop", *(["query", "documents"] if kind is Embedder else ["pairs"])]


def test_the_loop_names_its_largest_batch() -> None:
    device = ByBatch(256)
    model = Embedder(device="cpu", runner=device, max_batch_tokens=300)
    model.warm_up()
    assert device.warmed == 300


def test_a_worker_process_warms_its_model_up() -> None:
    called: list[int] = []
    model = SimpleNamespace(warm_up=called.append)
    assert WarmUpTask(512)(model, one_forest([[0]])).shape == (0,)
    assert called == [512]
