"""Where a model's time goes: every operation of the forward is counted, and no patch remains afterwards."""

import inspect
from types import FunctionType

import pytest
import torch

from lastword import Embedder, kernels
from lastword.bench.models import breakdown
from lastword.bench.models.breakdown import (
    OperationClock,
    break_down,
    breakdown_lines,
    time_operations,
)
from lastword.bench.models.random_model import random_embedder
from lastword.bench.models.stages import batches_of, model_of
from lastword.bench.models.workloads import texts_of

CPU = torch.device("cpu")
STAGES = ["tokens", "forests", "forward", "postprocess"]
OPERATIONS = {*breakdown.TITLES} - {*STAGES}


@pytest.fixture(scope="module", params=[1, 3], ids=["one-layer", "three-layers"])
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("random")
    return random_embedder(folder, "tiny", request.param, CPU, torch.float32)


def forward(embedder: Embedder) -> list[torch.Tensor]:
    model = model_of(embedder)
    return [model.forward(forest) for forest in batches_of(embedder, texts_of(5, 30))]


def test_every_function_that_a_forward_calls_is_timed(embedder, monkeypatch) -> None:
    called = set()
    for name in kernels.__all__:
        function = getattr(kernels, name)
        if isinstance(function, FunctionType):

            def record(*args, name=name, function=function, **kwargs):
                called.add(name)
                return function(*args, **kwargs)

            monkeypatch.setattr(kernels, name, record)
    forward(embedder)
    assert called - {"attention_tile_rows"} <= breakdown._FUNCTIONS.keys()
    assert {"embed_rms_norm", "qk_norm_rope", "final_attention"} <= called


def test_every_part_of_a_layer_that_computes_is_timed(embedder) -> None:
    for layer in model_of(embedder).layers:
        parts = {name for name, part in vars(layer).items() if callable(part)}
        assert parts <= breakdown._LAYER_PARTS.keys()
        assert {"o", "gate_up", "down", "add_norm"} <= parts


def test_calls_are_counted_by_name(embedder) -> None:
    clock = OperationClock(CPU)
    layers = len(model_of(embedder).layers)
    with time_operations(model_of(embedder), clock):
        forward(embedder)
    names = [name for name, *_ in clock._calls]
    full = layers - 1
    assert {name: names.count(name) for name in names} == {
        "norms": 2 * layers + 1,
        "rotation": 1 + full + 2,  # the tables; queries and keys together, in the last layer apart
        "qkv": full + 2,
        "attention": layers,
        "o": layers,
        "gate_up": layers,
        "down": layers,
    }


def test_vectors_are_the_same_and_nothing_stays_patched(embedder) -> None:
    before = forward(embedder)
    functions = inspect.getmembers(kernels, inspect.isfunction)
    with time_operations(model_of(embedder), OperationClock(CPU)):
        timed = forward(embedder)
    assert inspect.getmembers(kernels, inspect.isfunction) == functions
    assert all(not isinstance(layer.o, FunctionType) for layer in model_of(embedder).layers)
    for a, b in zip(before, timed, strict=True):
        assert torch.equal(a, b)


def test_break_down(embedder) -> None:
    texts = texts_of(6, 15)
    found = break_down(embedder, texts, rounds=2, rate=1e9)
    assert list(found.stages_s) == STAGES
    assert found.operations_s.keys() == OPERATIONS
    assert all(seconds > 0 for seconds in found.stages_s.values())
    assert all(s > 0 for name, s in found.operations_s.items() if name != breakdown.REST)
    assert found.operations_mfu.keys() == OPERATIONS - {"norms", "rotation", breakdown.REST}
    c, rows = embedder.info.config, (len(model_of(embedder).layers) - 1) * 6 * 16 + 6
    down = 2 * rows * c.hidden_size * c.intermediate_size  # texts that share no word
    mfu = down / found.operations_s["down"] / 1e9
    assert found.operations_mfu["down"] == pytest.approx(mfu, rel=0.05)


def test_lines_are_shares(embedder) -> None:
    seconds = {"tokens": 1.0, "forests": 1.0, "forward": 6.0, "postprocess": 0.0}
    operations = {"norms": 1.0, breakdown.REST: 2.0, "down": 5.0}
    one = breakdown.Breakdown(seconds, operations, {"down": 0.9})
    two = breakdown.Breakdown(seconds, {**operations, "norms": 2.0}, {"down": 1.0})
    head, *lines = breakdown_lines([16, 2048], [one, two])
    assert head.split()[-4:] == ["16", "tokens", "2,048", "tokens"]
    assert [line.split() for line in lines] == [
        ["tokens", "12.5%", "12.5%"],
        ["forests", "12.5%", "12.5%"],
        ["forward", "75.0%", "75.0%"],
        ["postprocess", "0.0%", "0.0%"],
        ["in", "the", "forward", "MFU", "MFU"],
        ["down", "62.5%", "90%", "55.6%", "100%"],
        ["norms,", "residual", "12.5%", "22.2%"],
        ["rest", "25.0%", "22.2%"],
    ]


def test_on_a_gpu_events_are_read(monkeypatch) -> None:
    time = iter([1.0, 4.0, 10.0, 15.0])

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(time)

        def elapsed_time(self, other: "Event") -> float:
            assert waited, "an event that has not happened has no time"
            return other.at - self.at

    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = OperationClock(torch.device("cuda", 0))
    assert clock.wrap("o", lambda x: x + 1)(1) == 2
    assert clock.wrap("o", len)([]) == 0
    assert clock.take() == {"o": pytest.approx(8e-3)}
    assert clock.take() == {}
