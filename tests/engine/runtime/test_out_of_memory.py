"""A batch that does not fit in memory is split, nothing is lost, one warning is issued; default batch sizes."""

import gc
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from helpers import worker_tasks

from lastword import DeviceError, Embedder, InputError
from lastword.batching.forest import Forest, plan_forests
from lastword.bench.shapes import SIZES
from lastword.model.qwen3 import Model
from lastword.report import Report
from lastword.runtime import device
from lastword.runtime.device import default_batch_tokens
from lastword.runtime.out_of_memory import BatchBudget
from lastword.weights.config import parse_config

GPU = torch.device("cuda", 0)
GIB = 2**30
TEXTS = [f"text {i % 17} " + "with a few more words " * (i % 5) for i in range(60)]


class Small:
    """A fake forward with memory for a limited number of tokens; it records the batches it is given."""

    def __init__(self, model: Embedder, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens, self.asked, self.true = tokens, [], model.loop.runner.model.forward
        self.held: weakref.ref[torch.Tensor] | None = None
        monkeypatch.setattr(model.loop.runner.model, "forward", self.forward)
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty_cache)

    def forward(self, forest: Forest, *others) -> torch.Tensor:
        activations = torch.empty(4)
        self.asked.append(forest.tokens_computed)
        if forest.tokens_computed > self.tokens:
            self.held = weakref.ref(activations)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.true(forest, *others)

    def empty_cache(self) -> None:
        assert self.held is not None
        assert self.held() is None, (
            "the failed forward's memory is let go before the cache is emptied"
        )


@pytest.fixture
def model(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu", max_batch_tokens=4096)


def test_nothing_is_lost(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, whole = model.encode(TEXTS), model.plan(TEXTS)
    assert whole.batches == 1
    small = Small(model, whole.tokens_computed // 5, monkeypatch)
    report = Report()
    gc.disable()
    try:
        with pytest.warns(RuntimeWarning, match=r"cpu is out of memory at \d+ tokens") as warned:
            vectors = torch.stack(list(model.encode_stream(TEXTS, report=report)))
    finally:
        gc.enable()
    assert float((vectors - expected).abs().max()) <= 1e-5
    assert len(warned) == 1
    ran = [tokens for tokens in small.asked if tokens <= small.tokens]
    assert len(ran) < len(small.asked)
    assert (report.texts, report.batches) == (len(TEXTS), len(ran))
    assert (report.tokens_requested, report.tokens_computed) == (whole.tokens_requested, sum(ran))


def test_batches_stay_small_and_the_warning_comes_once(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Small(model, 100, monkeypatch)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        model.encode(TEXTS)
    assert model.max_batch_tokens == model.loop.budget.limit == 4096, "the setting stays"
    assert model.loop.budget.tokens < 200
    failed = len([tokens for tokens in small.asked if tokens > small.tokens])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(TEXTS)
    assert len([tokens for tokens in small.asked if tokens > small.tokens]) <= failed + 1


def test_a_text_that_does_not_fit_is_named(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lastword.text.groups.GROUP_TEXTS", 4)
    Small(model, 50, monkeypatch)
    texts = ["a", "b", "c", "d", "e", "long " * 100, "f", "g", "h"]
    got: list[torch.Tensor] = []
    with (
        pytest.warns(RuntimeWarning, match="out of memory"),
        pytest.raises(InputError) as caught,
    ):
        got.extend(model.encode_stream(texts))
    error = caught.value
    assert (len(got), error.index, error.where) == (4, 5, "text 5")
    assert (error.what, error.expected) == ("does not fit in the device's memory", "fewer")
    assert error.got == f"{len(model.token_ids(texts)[5])} tokens"


def test_hidden_states_are_computed_in_halves_too(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.hidden_states(TEXTS)
    small = Small(model, model.plan(TEXTS).tokens_computed // 5, monkeypatch)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        states = model.hidden_states(TEXTS)
    assert float((states - expected).abs().max() / expected.abs().max()) <= 1e-5
    small.tokens = 50
    with pytest.raises(InputError) as caught:
        model.hidden_states(["a", "long " * 100])
    error = caught.value
    assert (error.index, error.what) == (1, "does not fit in the device's memory")
    assert error.got == f"{len(model.token_ids(['long ' * 100])[0])} tokens"


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_a_model_that_does_not_fit(
    devices: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lastword.base.opening.ModelLoader", worker_tasks.NoRoom)
    with pytest.raises(DeviceError) as caught:
        Embedder(tiny_checkpoint, device=devices)
    error = caught.value
    assert (error.where, error.what) == (
        "device",
        "the model does not fit in the free memory",
    )
    assert error.got == f"{devices.replace(',', ', ')} and float32 weights"
    assert error.expected is not None


def test_other_errors_pass(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.loop.runner.model, "forward", lambda forest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.encode(TEXTS)


def test_every_text_is_in_exactly_one_half() -> None:
    tokens = [[1] * 20 + [2] * 9, [1] * 20, [3, 4], [3, 4], [1] * 20 + [2] * 9 + [5], [6], [3, 4]]
    (forest,) = plan_forests(tokens, 1000)
    halves = forest.halves()
    lists = {}
    for half in halves:
        assert len(half.final_rows) in (2, 3)
        for index, which in zip(half.texts.tolist(), half.distinct.tolist(), strict=True):
            assert index not in lists
            lists[index], _ = half._tokens()[which]
    assert [lists[i] for i in range(len(tokens))] == tokens
    assert sum(half.tokens_requested for half in halves) == forest.tokens_requested


# Batches grow again.


def test_a_larger_batch_is_tried_again_after_full_ones_that_fit() -> None:
    budget = BatchBudget(4096, "cpu")
    with pytest.warns(RuntimeWarning, match="out of memory"):
        budget.lower(4000)
    assert (budget.tokens, budget.limit) == (2000, 4096)
    for _ in range(100):
        budget.record_success(10)  # small batches prove nothing
    assert budget.tokens == 2000
    for _ in range(31):
        budget.record_success(1999)
    assert budget.tokens == 2000
    budget.record_success(1000)
    assert budget.tokens == 4000
    for _ in range(32):
        budget.record_success(4000)
    assert budget.tokens == 4096


@pytest.mark.filterwarnings("ignore:max_batch_tokens")
def test_attempts_that_fail_become_rare() -> None:
    budget = BatchBudget(1000, "cpu")
    budget.lower(1000)
    patience = []
    for _ in range(7):  # a device with memory for 600 tokens
        fitted = 0
        while budget.tokens < 600:
            budget.record_success(budget.tokens)
            fitted += 1
        patience.append(fitted)
        budget.lower(1000)
    assert patience == [32, 64, 128, 256, 512, 1024, 1024]
    budget.limit = 700
    assert (budget.tokens, budget.limit) == (700, 700)


@pytest.mark.filterwarnings("ignore:max_batch_tokens")
def test_batches_planned_before_count_as_one_shortage() -> None:
    budget = BatchBudget(1000, "cpu")
    for _ in range(90):
        budget.lower(1000)
    assert budget.tokens == 500, "the second of them tells nothing new"


def test_batches_planned_before_are_split_before_they_start(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.max_batch_tokens = 200
    texts = [f"{i} {word}" for i in range(40) for word in ("one", "two three", "and more words")]
    whole = model.plan(texts)
    assert whole.batches > 3
    small = Small(model, 120, monkeypatch)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        model.encode(texts)
    assert len([tokens for tokens in small.asked if tokens > small.tokens]) == 1


def test_memory_that_becomes_free_is_used_again(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lastword.runtime.out_of_memory._PATIENCE", 2)
    model.max_batch_tokens = 4096
    whole = model.plan(TEXTS).tokens_computed
    small = Small(model, 100, monkeypatch)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        model.encode(TEXTS)
    small.tokens = 10**9
    for _ in range(60):
        model.encode(TEXTS)
    assert small.asked[-1] == whole, "one batch, as at first"


# Default tokens per batch.


@pytest.mark.parametrize(
    ("free", "unused", "tokens"),
    [
        (100 * GIB, 0, 16_384),  # memory for more tokens than the useful maximum
        (GIB, 0, int(0.8 * GIB) // 100_000),
        (GIB // 2, GIB // 2, int(0.8 * GIB) // 100_000),  # reserved by PyTorch but unused
        (10_000_000, 0, 1024),  # the minimum; a batch that does not fit is split
    ],
)
def test_default_tokens_depend_on_free_memory(
    free: int, unused: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda asked: (free, 140 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda asked: 8 * GIB + unused)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda asked: 8 * GIB)
    assert default_batch_tokens(GPU, 100_000) == tokens
    assert default_batch_tokens(GPU, 100_000, reserved=1) <= tokens


def test_memory_reserved_for_graphs_is_not_for_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda asked: (GIB, 140 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda asked: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda asked: 0)
    for reserved, tokens in ((GIB // 2, int(0.4 * GIB) // 100_000), (2 * GIB, 1024)):
        assert default_batch_tokens(GPU, 100_000, reserved=reserved) == tokens


def test_default_tokens_on_a_cpu_depend_on_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert default_batch_tokens(torch.device("cpu"), 10**12) == 4096


@pytest.mark.parametrize("asked", [None, 7])
def test_the_embedder_measures_memory_after_loading_the_weights(
    asked: int | None, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(
        Model, "token_bytes", property(lambda model: loaded.append(model.norm) or 3)
    )
    monkeypatch.setattr(device, "CPU_BATCH_TOKENS_MOST", 99)
    model = Embedder(tiny_checkpoint, device="cpu", max_batch_tokens=asked)
    assert model.max_batch_tokens == (asked or 99)
    model.max_batch_tokens = None
    assert model.max_batch_tokens == 99
    assert model.plan(["x"]).batches == 1


def shaped(model: str) -> Model:
    """Make a model's shape without its weights."""
    hidden, width, layers, H, KH, D = SIZES[model]
    made = object.__new__(Model)
    made.dtype = torch.bfloat16
    made.config = parse_config(
        {
            "model_type": "qwen3", "hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers,
            "num_attention_heads": H, "num_key_value_heads": KH, "head_dim": D, "vocab_size": 1000,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False,
            "rope_theta": 1e6, "rope_scaling": None, "tie_word_embeddings": True,
        },
        "shape",
    )  # fmt: skip
    return made


def test_a_text_of_32k_tokens_fits_next_to_the_4b_weights() -> None:
    """Residual, input and norm 3·2560; q, k, v and attention output 2·32·128 + 2·8·128; gate, up, product 3·9728."""
    model = shaped("4B")
    assert model.token_bytes == 2 * (7680 + 10_240 + 29_184) + 512
    assert 32_768 * model.token_bytes < 3 * GIB
    model.dtype = torch.float32
    assert 32_768 * model.token_bytes < 6 * GIB
    assert 32_768 * shaped("8B").token_bytes < 16 * GIB
