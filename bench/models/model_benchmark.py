"""`lastword bench model`: time a whole model at its real shape, both from strings to vectors and the forward alone.

Weights are random, and texts consist of common words. Each row is shown and written as soon as it is measured.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch

from lastword.bench.kernels.table import format_speed, format_time
from lastword.bench.machine import busy_notice, describe_run, json_lines
from lastword.bench.measure import Timing, matmul_rate, median_seconds
from lastword.bench.memory import peak_bytes
from lastword.bench.models.breakdown import Breakdown, break_down, breakdown_lines
from lastword.bench.models.flops import needed_flops, work
from lastword.bench.models.random_model import random_embedder
from lastword.bench.models.stages import batches_of, forward
from lastword.bench.models.workloads import texts_of
from lastword.bench.plot import check_plot, plot_lengths
from lastword.embedder import Embedder
from lastword.errors import ConfigError
from lastword.runtime.device import choose_device, choose_dtype

_LATENCY_CALLS = 30
_LATENCY_TOKENS = (12, 128)


@dataclass(frozen=True, slots=True)
class LengthFigures:
    """Figures for texts of equal length: seconds for all of these texts, required FLOPs, and MFU.

    MFU (model FLOPs utilisation) is the rate of the required FLOPs divided by the FLOP rate of a measured matmul.
    """

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
    """Run the requested measurements.

    Args:
        args: options of `bench model`.
        show: prints a line.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: --quick is given without --quantize, or the plot of --plot cannot be written.
    """
    if args.quick:
        raise ConfigError(
            "--quick", "goes with --quantize", got="it alone", expected="both or neither"
        )
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
        about, (rate, matmul) = describe_run(device, dtype), matmul_rate(device, dtype)
        embedder = random_embedder(
            Path(scratch), args.model, args.layers, device, dtype, cuda_graphs=args.cuda_graphs
        )
        layers = embedder.info.config.num_hidden_layers
        busy = busy_notice(about)
        if busy is not None:
            show(busy)
        write({"run": about, "flops_per_s": rate, "model": args.model, "layers": layers,
               "cuda_graphs": args.cuda_graphs})  # fmt: skip
        show(f"{args.model} shape, {layers} layers, random weights: {about['device']}, {dtype}")
        show(f"matmul of this run: {format_speed(rate)} ({matmul}, random data)")
        show(f"{'tokens per text':>16}{'texts':>8}{'encode':>14}{'forward':>14}"
             f"{'MFU':>8}{'forward':>9}{'peak memory':>14}")  # fmt: skip
        rows: list[LengthFigures] = []
        if args.plot is not None:  # at the end, or when stopped, this draws the rows so far
            opened.callback(_plot, args.plot, rows, rate, about)
        for length in lengths:
            rows.append(measure_length(embedder, length, tokens, args.rounds, rate))
            write(asdict(rows[-1]))
            show(_line(rows[-1]))
        breakdowns = [row.breakdown for row in rows]
        for line in breakdown_lines([row.length for row in rows], breakdowns):
            show(line)
        embedder.warm_up()
        for length in _LATENCY_TOKENS:
            latency = measure_latency(embedder, length)
            write({"latency_of": length, **asdict(latency)})
            show(f"one text of {length} tokens: {format_time(latency.median_ms)} "
                 f"({format_time(latency.p20_ms)} to {format_time(latency.p80_ms)})")  # fmt: skip
    return 0


def measure_length(
    embedder: Embedder, length: int, tokens: int, rounds: int, rate: float
) -> LengthFigures:
    """Time `encode`, and the forward alone, on texts of equal length.

    Args:
        embedder: the model.
        length: tokens per text.
        tokens: approximate number of tokens of all texts together.
        rounds: number of timed rounds, after one warm-up round.
        rate: rate of a measured matmul, in FLOP/s.
    """
    device = embedder.device
    texts = texts_of(max(1, tokens // length), length - 1)  # the end token is added
    ids, forests = embedder.token_ids(texts), batches_of(embedder, texts)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    encode_s = median_seconds(
        lambda: embedder.encode(texts, show_progress_bar=False), rounds, device
    )
    forward_s = median_seconds(lambda: forward(embedder, forests), rounds, device)
    needed = needed_flops(embedder.info.config, work(ids))
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else peak_bytes()
    return LengthFigures(
        length=length,
        texts=len(texts),
        tokens=sum(map(len, ids)),
        encode_s=encode_s,
        forward_s=forward_s,
        needed_flops=needed,
        encode_mfu=needed / encode_s / rate,
        forward_mfu=needed / forward_s / rate,
        peak_bytes=peak,
        breakdown=break_down(embedder, texts, rounds=rounds, rate=rate),
    )


def measure_latency(embedder: Embedder, length: int) -> Timing:
    """Time calls of `encode` with one text of `length` tokens each, a different text in each call."""
    texts = texts_of(_LATENCY_CALLS + 3, length - 1)
    taken = []
    for text in texts:
        start = perf_counter()
        embedder.encode(text)
        taken.append((perf_counter() - start) * 1e3)
    return Timing.of(taken[3:])


def _line(row: LengthFigures) -> str:
    encode, forward = row.tokens / row.encode_s, row.tokens / row.forward_s
    return (
        f"{row.length:16,}{row.texts:8,}{encode:8,.0f} tok/s{forward:8,.0f} tok/s"
        f"{row.encode_mfu:8.0%}{row.forward_mfu:9.0%}{row.peak_bytes / 2**20:11,.0f} MB"
    )


def _plot(
    path: Path, rows: Sequence[LengthFigures], rate: float, about: Mapping[str, object]
) -> None:
    reached = {
        "forward alone": [row.tokens / row.forward_s for row in rows],
        "strings to vectors": [row.tokens / row.encode_s for row in rows],
    }
    limit = [row.tokens / row.needed_flops * rate for row in rows]
    lengths = [row.length for row in rows]
    plot_lengths(path, lengths, (f"limit at {format_speed(rate)}", limit), reached, about)
