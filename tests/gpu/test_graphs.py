"""Small batches as CUDA graphs on the device: the bits of the same batches without, no compile, nothing mixed up."""

import os
import random
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
import torch
import triton
from helpers.kernels.operations import fill_with_nan

from lastword import Embedder, kernels
from lastword.batching.forest import Forest, plan_forests
from lastword.bench.models.random_model import random_embedder
from lastword.bench.models.stages import model_of
from lastword.errors import LastwordWarning
from lastword.model.qwen3 import Model
from lastword.runtime.cuda_graphs import CudaRecorder
from lastword.runtime.runner import to_host

GPU = torch.device("cuda")


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return random_embedder(tmp_path_factory.mktemp("random"), "0.6B", 3, GPU, request.param)


def batches(seed: int, count: int) -> Iterator[Forest]:
    """Batches of every bucket: one text or many, short or long, with and without a common prompt."""
    draw = random.Random(seed)
    for _ in range(count):
        prompt = [7] * draw.choice((0, 0, 24))
        longest = draw.choice((1, 12, 100, 700, 2000))
        texts = [
            prompt + [draw.randrange(8000) for _ in range(draw.randrange(1, longest + 1))]
            for _ in range(draw.choice((1, 2, 3, 10, 100)))
        ]
        yield next(plan_forests(texts, 2048))


def graphs(model: Model) -> CudaRecorder:
    """Record all graphs anew."""
    with torch.cuda.device(GPU):
        recorder = CudaRecorder()
    model.use_packing(recorder)
    model.warm_up(2048)
    return recorder


def test_the_same_bits_as_without_graphs(embedder: Embedder) -> None:
    model, forests = model_of(embedder), list(batches(0, 60))
    model.use_packing(None)
    eager = [model.forward(forest) for forest in forests]
    graphs(model)
    order = [*range(len(forests)), *random.Random(1).sample(range(len(forests)), len(forests))]
    replayed = [model.forward(forests[i]) for i in order]
    for i, states in zip(order, replayed, strict=True):
        assert torch.equal(states, eager[i])
        assert bool(states.isfinite().all())


def test_padding_moves_nothing(embedder: Embedder) -> None:
    """Beside the same batch as it is, which observers see; in bfloat16 products of other shapes round otherwise."""
    model = model_of(embedder)
    graphs(model)
    for forest in batches(2, 20):
        padded = torch.nn.functional.normalize(model.forward(forest).float())
        exact = model.forward(forest, lambda layer, states: None).float()
        exact = torch.nn.functional.normalize(exact)
        if embedder.info.dtype == torch.float32:
            assert float((padded - exact).abs().max()) <= 1e-5
        assert float((padded * exact).sum(1).min()) > 0.999


def test_nothing_compiles_after_warm_up(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, compiled = model_of(embedder), []
    graphs(model)
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda **what: compiled.append(what["repr"])
    )
    for forest in batches(3, 100):
        model.forward(forest)
    assert compiled == []


def test_the_graphs_take_what_was_counted(embedder: Embedder) -> None:
    model = model_of(embedder)
    recorder = graphs(model)
    taken = sum(
        segment["total_size"]
        for segment in torch.cuda.memory_snapshot()
        if tuple(segment["segment_pool_id"]) == tuple(recorder.pool)
    )
    assert 0 < taken <= 1.25 * model.graph_bytes + (64 << 20), (
        "segments are whole numbers of 20 MiB"
    )


def test_a_failure_of_a_kernel_is_raised_as_itself(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = RuntimeError("a kernel failed")

    def fail(*_: object) -> None:
        raise failure

    model = model_of(embedder)
    model.use_packing(CudaRecorder())
    monkeypatch.setattr(kernels, "forest_attention", fail)
    with pytest.raises(RuntimeError) as caught:
        model.warm_up(2048)
    assert caught.value is failure
    monkeypatch.undo()
    model.warm_up(2048)
    assert bool(model.forward(next(batches(5, 1))).isfinite().all())


def test_padding_holds_numbers(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run by compute-sanitizer too, which sees reads of memory that nothing has written."""
    model = model_of(embedder)
    model.use_packing(None)
    if "LASTWORD_INITCHECK" not in os.environ:
        fill_with_nan(monkeypatch)
    for forest in batches(4, 10):
        layout, buffer = model._packer.pack(forest)
        with torch.inference_mode():
            states = model._forward(layout.read(buffer.to(GPU)))
        assert len(states) == layout.finals
        assert bool(states.isfinite().all())


def test_texts_from_several_threads(embedder: Embedder) -> None:
    graphs(model_of(embedder))
    lists = [[f"{i} {j} " + "some words " * (j % 7) for j in range(i % 5 + 1)] for i in range(60)]
    one_by_one = [embedder.encode(texts) for texts in lists]
    model_of(embedder).use_packing(CudaRecorder())  # nothing is recorded: launched kernel by kernel
    launched = [embedder.encode(texts) for texts in lists]
    graphs(model_of(embedder))
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(embedder.encode, lists))
    for mine, alone, theirs in zip(at_once, launched, one_by_one, strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(alone, theirs), "the same bits before the graphs are recorded"


def test_each_thread_on_a_stream_of_its_own(embedder: Embedder) -> None:
    """A bucket's buffers hold one batch at a time, whatever streams the batches are on."""
    graphs(model_of(embedder))
    lists = [[f"{i} {j} " + "some words " * (j % 7) for j in range(i % 5 + 1)] for i in range(60)]
    one_by_one = [embedder.encode(texts) for texts in lists]

    def encode(texts: list[str]) -> torch.Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            return embedder.encode(texts)

    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(encode, lists))
    for mine, theirs in zip(at_once, one_by_one, strict=True):
        assert torch.equal(mine, theirs)


def test_vectors_are_there_when_they_are_waited_for() -> None:
    """The copy ends after the work that makes the vectors, however late that is."""
    waits = []
    for i in range(20):
        x = torch.full((4096, 4096), float(i), device=GPU)
        torch.cuda._sleep(10_000_000)
        waits.append(to_host(x.mul_(2)))
        del x
    for i, wait in enumerate(waits):
        assert bool((wait() == 2.0 * i).all())


def test_many_batches_in_flight(tiny_checkpoint: Path) -> None:
    texts = [f"{i} " + "a few words " * (i % 9) for i in range(3000)]
    model = Embedder(tiny_checkpoint, device="cuda", dtype="float32", max_batch_tokens=700)
    on_cpu = Embedder(tiny_checkpoint, device="cpu").encode(texts)
    assert float((model.encode(texts) - on_cpu).abs().max()) <= 2e-5


def test_activations_take_what_was_counted(embedder: Embedder) -> None:
    model, tokens = model_of(embedder), 16_384
    model.use_packing(None)
    (forest,) = plan_forests([[i] * 512 for i in range(tokens // 512)], tokens)
    model.forward(forest)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model.forward(forest)
    used = torch.cuda.max_memory_allocated() - before
    assert 0.7 < used / (model.token_bytes * tokens) < 1.05


def test_a_batch_beyond_the_memory_is_split(embedder: Embedder) -> None:
    """Real exhaustion: all but a little of the device's memory is taken."""
    texts = [f"{i} " + "one word and another " * 40 for i in range(150)]
    expected, tokens = embedder.encode(texts), embedder.max_batch_tokens
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    tokens_of_batch = min(embedder.plan(texts).tokens_computed, tokens)
    needed = model_of(embedder).token_bytes * tokens_of_batch
    taken = torch.empty(int(free - needed // 2), dtype=torch.uint8, device=GPU)
    try:
        with pytest.warns(LastwordWarning, match="out of memory") as warned:
            vectors = embedder.encode(texts)
    finally:
        del taken
        embedder.max_batch_tokens = tokens
    assert "max_batch_tokens" in [getattr(each.message, "where", None) for each in warned]
    assert float((vectors * expected).sum(1).min()) > 0.999


def test_a_thread_that_synchronises_aborts_one_recording_only(embedder: Embedder) -> None:
    """What an aborted recording leaves behind must not end later recordings, or the use of memory."""
    model, end = model_of(embedder), Event()

    def disturb() -> None:
        while not end.wait(0.002):
            with suppress(RuntimeError):
                torch.cuda.synchronize()

    with ThreadPoolExecutor(1) as pool, warnings.catch_warnings(action="ignore"):
        disturbing = pool.submit(disturb)
        try:
            graphs(model)
        finally:
            end.set()
        disturbing.result()
    model.warm_up(2048)
    torch.cuda.empty_cache()
    assert bool(torch.randn(4, device=GPU).isfinite().all())
    graphs(model)
    for forest in batches(4, 10):
        assert bool(model.forward(forest).isfinite().all())
