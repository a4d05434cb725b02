"""`lastword bench model`: a whole model at its real shape, from strings to vectors and the forward alone.

Random weights are made on the device itself, so that no checkpoint is needed; texts are common words, each one token of
the synthetic tokenizer. Rows are shown and written as they come.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from lastword.batching.forest import Forest
from lastword.bench.checkpoint import make_checkpoint, make_tokenizer
from lastword.bench.kernels.table import shown_speed, shown_time
from lastword.bench.machine import busy_notice, describe_run
from lastword.bench.measure import product_rate, synchronize
from lastword.bench.memory import peak_bytes
from lastword.bench.models.breakdown import Breakdown, break_down, breakdown_lines, forests_of
from lastword.bench.models.flops import needed_flops, work
from lastword.bench.models.workloads import WORDS, texts_of
from lastword.bench.plot import check_plot, plot_lengths
from lastword.bench.records import json_lines
from lastword.bench.shapes import VOCABULARY, sizes_of
from lastword.embedder import Embedder
from lastword.errors import ConfigError
from lastword.model.qwen3 import Model
from lastword.runtime.device import choose_device, choose_dtype
from lastword.runtime.runner import InProcess
from lastword.weights import Checkpoint, LayerWeights, ModelConfig
from lastword.weights.files.shards import SINGLE

_POSITIONS = 32_768
_LATENCY_CALLS = 30
_LATENCY_TOKENS = (12, 128)


class RandomCheckpoint(Checkpoint):
    """Weights of a config's shapes, random, on the device and in the dtype of the run; no file is read."""

    def __init__(
        self, folder: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.folder, self.config = folder, config
        self._device, self._dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(0)

    def embedding(self) -> Tensor:
        return self._normal(self.config.vocab_size, self.config.hidden_size)

    def norm(self) -> Tensor:
        return self._normal(self.config.hidden_size).mul_(0.1).add_(1)

    def layer(self, index: int, dtype: torch.dtype) -> LayerWeights:  # noqa: ARG002
        """One layer; matrices keep the size of what they multiply."""
        c = self.config
        C, F, D = c.hidden_size, c.intermediate_size, c.head_dim
        queries, heads = (
            c.num_attention_heads * D,
            c.num_attention_heads + 2 * c.num_key_value_heads,
        )
        return LayerWeights(
            input_norm=self.norm(),
            qkv=self._normal(heads * D, C).div_(C**0.5),
            qkv_bias=None,
            q_norm=self._normal(D).mul_(0.1).add_(1),
            k_norm=self._normal(D).mul_(0.1).add_(1),
            o=self._normal(C, queries).div_(queries**0.5),
            o_bias=None,
            post_norm=self.norm(),
            gate_up=self._normal(2 * F, C).div_(C**0.5),
            down=self._normal(C, F).div_(F**0.5),
        )

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device, dtype=self._dtype)


class RandomEmbedder(Embedder):
    """An `Embedder` of which only the weights are made up."""

    def _open_checkpoint(self) -> Checkpoint:
        return RandomCheckpoint(self.files.folder, self.config, self.device, self.dtype)

    @property
    def model(self) -> Model:
        """What computes; a benchmark has one device."""
        runner = self._encoder.runner
        assert isinstance(runner, InProcess)
        return runner.model

    def windows(self, texts: list[str]) -> list[list[str]]:
        """The texts that `encode` would tokenise and pack together."""
        return list(self._encoder.cut(texts))

    def forests(self, texts: list[str]) -> list[Forest]:
        """The batches that `encode` would run."""
        ids = [self.token_ids(window) for window in self.windows(texts)]
        return forests_of(ids, self.max_batch_tokens)

    def forward(self, forests: list[Forest]) -> None:
        """The forward alone, without tokens, forests and finish; on a GPU packing is in it."""
        for forest in forests:
            self.model.forward(forest)


@dataclass(frozen=True, slots=True)
class Row:
    """Texts of one length: seconds of all of them, and operations needed over the measured product's rate."""

    length: int
    texts: int
    tokens: int
    encode_s: float
    forward_s: float
    needed_flops: int
    encode_mfu: float
    forward_mfu: float
    peak_bytes: int
    breakdown: Breakdown


def run(args: argparse.Namespace, show: Callable[[str], None]) -> int:
    """Measure what the options ask for.

    Raises:   ConfigError for --quick, which is of --quantize.
    """
    if args.quick:
        raise ConfigError("--quick: goes with --quantize; got it alone, expected both or neither.")
    if args.plot is not None:
        check_plot(args.plot)
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    on_cpu = device.type == "cpu"
    lengths = args.lengths or ([32, 128, 512] if on_cpu else [32, 128, 512, 2048, 8192])
    tokens = args.tokens or (1024 if on_cpu else 65_536)
    with ExitStack() as opened:
        write = opened.enter_context(json_lines(args.json))
        scratch = opened.enter_context(tempfile.TemporaryDirectory(prefix="lastword-model-"))
        about, (rate, product) = describe_run(device, dtype), product_rate(device, dtype)
        embedder = random_embedder(
            Path(scratch), args.model, args.layers, device, dtype, cuda_graphs=args.cuda_graphs
        )
        layers = embedder.config.num_hidden_layers
        busy = busy_notice(about)
        if busy is not None:
            show(busy)
        write({"run": about, "flops_per_s": rate, "model": args.model, "layers": layers,
               "cuda_graphs": args.cuda_graphs})  # fmt: skip
        show(f"{args.model} shape, {layers} layers, random weights: {about['device']}, {dtype}")
        show(f"matrix product of this run: {shown_speed(rate)} ({product}, random data)")
        show(f"{'tokens of a text':>16}{'texts':>8}{'encode':>14}{'forward':>14}"
             f"{'MFU':>8}{'forward':>9}{'peak memory':>14}")  # fmt: skip
        rows: list[Row] = []
        if args.plot is not None:  # of what there is, also when stopped
            opened.callback(_plot, args.plot, rows, rate, about)
        for length in lengths:
            rows.append(measure_length(embedder, length, tokens, args.rounds, rate))
            write(asdict(rows[-1]))
            show(_line(rows[-1]))
        breakdowns = [row.breakdown for row in rows]
        for line in breakdown_lines([row.length for row in rows], breakdowns):
            show(line)
        for length in _LATENCY_TOKENS:
            latency = measure_latency(embedder, length)
            write({"latency_of": length, **latency})
            shown = {name: shown_time(ms) for name, ms in latency.items()}
            show(f"one text of {length} tokens: {shown['median_ms']} "
                 f"({shown['p20_ms']} to {shown['p80_ms']})")  # fmt: skip
    return 0


def random_embedder(
    folder: Path,
    model: str,
    layers: int | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    quantize: str | None = None,
    cuda_graphs: bool = True,
    kind: type[RandomEmbedder] = RandomEmbedder,
) -> RandomEmbedder:
    """Write config and tokenizer of a model's shape into the folder, and open it with random weights."""
    spellings = [*WORDS, *(f" {word}" for word in WORDS)]
    tokenizer = make_tokenizer(spellings, vocab_size=8192)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "words.json"))
    make_checkpoint(
        folder,
        **sizes_of(model, layers),
        vocab_size=VOCABULARY if model != "tiny" else None,
        tokenizer=folder / "words.json",
        max_position_embeddings=_POSITIONS,
        weights=False,
    )
    (folder / SINGLE).touch()  # a model folder without any is refused
    return kind(folder, device=device, dtype=dtype, quantize=quantize, cuda_graphs=cuda_graphs)


def measure_length(
    embedder: RandomEmbedder, length: int, tokens: int, rounds: int, rate: float
) -> Row:
    """Time texts of one length, as many as make about `tokens` tokens; `rate` is the product's, in FLOP/s."""
    device = embedder.device
    texts = texts_of(max(1, tokens // length), length - 1)  # and the end token
    ids, forests = embedder.token_ids(texts), embedder.forests(texts)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    encode_s = _seconds(lambda: embedder.encode(texts, show_progress_bar=False), device, rounds)
    forward_s = _seconds(lambda: embedder.forward(forests), device, rounds)
    needed = needed_flops(embedder.config, work(ids))
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else peak_bytes()
    return Row(
        length=length,
        texts=len(texts),
        tokens=sum(map(len, ids)),
        encode_s=encode_s,
        forward_s=forward_s,
        needed_flops=needed,
        encode_mfu=needed / encode_s / rate,
        forward_mfu=needed / forward_s / rate,
        peak_bytes=peak,
        breakdown=break_down(
            embedder, embedder.model, embedder.windows(texts), rounds=rounds, rate=rate
        ),
    )


def measure_latency(embedder: Embedder, length: int) -> dict[str, float]:
    """Milliseconds of `encode` of one text: median, 20th and 80th percentile, another text at each call."""
    texts = texts_of(_LATENCY_CALLS + 3, length - 1)
    taken = []
    for text in texts:
        start = perf_counter()
        embedder.encode(text)
        taken.append((perf_counter() - start) * 1e3)
    p20, *_, p80 = statistics.quantiles(taken[3:], n=5, method="inclusive")
    return {"median_ms": statistics.median(taken[3:]), "p20_ms": p20, "p80_ms": p80}


def _seconds(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median seconds of a call by the clock, after one that warms up."""
    taken = []
    for _ in range(rounds + 1):
        synchronize(device)
        start = perf_counter()
        call()
        synchronize(device)
        taken.append(perf_counter() - start)
    return statistics.median(taken[1:])


def _line(row: Row) -> str:
    encode, forward = row.tokens / row.encode_s, row.tokens / row.forward_s
    return (
        f"{row.length:16,}{row.texts:8,}{encode:8,.0f} tok/s{forward:8,.0f} tok/s"
        f"{row.encode_mfu:8.0%}{row.forward_mfu:9.0%}{row.peak_bytes / 2**20:11,.0f} MB"
    )


def _plot(path: Path, rows: Sequence[Row], rate: float, about: Mapping[str, object]) -> None:
    reached = {
        "forward alone": [row.tokens / row.forward_s for row in rows],
        "strings to vectors": [row.tokens / row.encode_s for row in rows],
    }
    limit = [row.tokens / row.needed_flops * rate for row in rows]
    lengths = [row.length for row in rows]
    plot_lengths(path, lengths, (f"limit at {shown_speed(rate)}", limit), reached, about)
