"""`lastword bench model --quantize MODE`: compare a quantised and an unquantised model in one process.

Both models have the same random weights, with a few outlier channels in the residual stream, as trained models have.
The models' vectors are compared; then both models are timed from strings to vectors, in alternating order.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from lastword.bench.machine import busy_notice, describe_run, json_lines
from lastword.bench.models.random_model import random_embedder
from lastword.bench.models.workloads import FULL, QUICK, Workload, workloads
from lastword.embedder import Embedder
from lastword.errors import ConfigError
from lastword.runtime.device import check_quantize, choose_device, choose_dtype

# Number of channels of the residual stream that have far larger values than the others.
_OUTLIERS = 8


def run(args: argparse.Namespace, show: Callable[[str], None]) -> int:
    """Compare both models, time them and print one line per workload.

    Args:
        args: options of `bench model`.
        show: prints a line.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: an option is given that `bench model` accepts only without --quantize.
    """
    for option in ("lengths", "tokens", "plot"):
        if getattr(args, option) is not None:
            raise ConfigError(
                f"--{option}",
                "does not go with --quantize",
                got="both",
                expected="one of them",
                remedy="With --quantize, texts are documents and queries.",
            )
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    check_quantize(args.quantize, device, dtype)  # fails before two models are made
    loads = workloads(*(QUICK if args.quick else FULL))
    about = describe_run(device, dtype)
    with ExitStack() as opened:
        write = opened.enter_context(json_lines(args.json))
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lastword-model-")))
        plain, ours = (
            random_embedder(
                scratch / str(quantize), args.model, args.layers, device, dtype,
                quantize=quantize, cuda_graphs=args.cuda_graphs, outliers=_OUTLIERS,
            )
            for quantize in (None, args.quantize)
        )  # fmt: skip
        layers = plain.info.config.num_hidden_layers
        write({"run": about, "model": args.model, "layers": layers, "quantize": args.quantize,
               "cuda_graphs": args.cuda_graphs})  # fmt: skip
        busy = busy_notice(about)
        if busy is not None:
            show(busy)
        show(f"{args.model} shape, {layers} layers, random weights with {_OUTLIERS} outlier channels: "
             f"{about['device']}, {about['threads']} threads, {dtype}")  # fmt: skip
        show(f"{'':18}{'texts':>6}{'plain':>11}{args.quantize:>11}{'speed-up':>10}"
             f"{'mean cosine':>13}{'least':>9}")  # fmt: skip
        for model in (plain, ours):
            model.warm_up()
        for load in loads:
            row = compare(plain, ours, load, args.rounds)
            write(row)
            show(f"{load.title:18}{row['texts']:6}{row['plain_s']:9.2f} s{row['quantized_s']:9.2f} s"
                 f"{row['speedup']:9.2f}x{row['mean_cosine']:13.5f}{row['min_cosine']:9.5f}")  # fmt: skip
    return 0


def compare(plain: Embedder, ours: Embedder, load: Workload, rounds: int) -> dict[str, object]:
    """Compare the vectors of both models and time both.

    Args:
        plain: the model without quantisation.
        ours: the quantised model.
        load: texts to embed.
        rounds: number of timed rounds; the models take turns at going first. Comparing the vectors is the warm-up.

    Returns:
        The row that is written as JSON: median seconds of both models, their ratio, and the mean and least cosine.
    """
    cosine = torch.nn.functional.cosine_similarity(_encode(plain, load), _encode(ours, load))
    taken: dict[Embedder, list[float]] = {plain: [], ours: []}
    for turn in range(rounds):
        for model in (plain, ours) if turn % 2 == 0 else (ours, plain):
            start = perf_counter()
            _encode(model, load)
            taken[model].append(perf_counter() - start)
    plain_s, quantized_s = (statistics.median(taken[model]) for model in (plain, ours))
    return {
        "workload": load.title,
        "texts": len(load.texts),
        "plain_s": plain_s,
        "quantized_s": quantized_s,
        "speedup": plain_s / quantized_s,
        "mean_cosine": float(cosine.mean()),
        "min_cosine": float(cosine.min()),
    }


def _encode(model: Embedder, load: Workload) -> Tensor:
    encode = model.encode_query if load.kind == "query" else model.encode_document
    if load.one_by_one:
        return torch.stack([encode(text) for text in load.texts])
    vectors: Tensor = encode(load.texts, show_progress_bar=False)
    return vectors
