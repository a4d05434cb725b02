"""`lastword bench peers`: compare lastword and other libraries on one checkpoint, device, dtype and thread count.

Each library runs in its own child process (`bench/peers/child.py`) and waits while another works. Vectors are compared
first: if they differ, no figure is printed. See `bench/README.md`.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lastword.bench.checkpoint import make_checkpoint
from lastword.bench.machine import busy_notice, describe_run
from lastword.bench.measure import product_rate
from lastword.bench.models.flops import Work, needed_flops, work
from lastword.bench.models.workloads import (
    FULL,
    QUICK,
    Workload,
    real_tokenizer,
    tokenizer_of,
    workloads,
)
from lastword.bench.options import PEERS
from lastword.bench.peers.child import Child
from lastword.bench.peers.gguf import refusal
from lastword.bench.peers.llama_cpp import prepare
from lastword.bench.shapes import VOCABULARY, sizes_of
from lastword.errors import ConfigError, MissingPackageError, install_hint
from lastword.runtime.device import choose_device, choose_dtype
from lastword.weights import ModelConfig, dtype_name, read_config, read_embedding_spec

OURS = "lastword"
# Packages that each library needs, the one that computes first.
PACKAGES = {
    "sentence-transformers": ("sentence_transformers", "transformers"),
    "llama.cpp": ("xllamacpp", "gguf"),
}
TOLERANCE = 2e-5  # largest absolute difference of fp32 vectors
# Least cosine of bf16 vectors: the libraries round at different places in every layer.
COSINE = 0.99

Differences = dict[str, tuple[float, float]]  # by peer: largest difference from ours, least cosine
Result = dict[str, Any]  # the result as written in JSON


def run(args: argparse.Namespace, show: Callable[[str], None]) -> int:
    """Run the comparison.

    Args:
        args: options of `bench peers`.
        show: prints a line.

    Returns:
        The exit status: 1 if the vectors differ, else 0.

    Raises:
        ConfigError: a requested library cannot take part, or none can.
    """
    config = None if args.model is None else read_config(args.model)  # before others load it
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    beside = _beside(args.beside, config, device, dtype)
    rounds = args.rounds or (1 if args.quick else 3)
    with tempfile.TemporaryDirectory(prefix="lastword-peers-") as scratch:
        folder = args.model or _checkpoint(Path(scratch) / "model", layers=args.layers, dtype=dtype)
        loads = workloads(*(QUICK if args.quick else FULL))
        result = compare(
            folder,
            loads,
            Path(scratch),
            beside=beside,
            rounds=rounds,
            threads=args.threads,
            device=device,
            dtype=dtype,
        )
    if result is None:
        return 1
    if not args.json:
        show(table(result))
    show(json.dumps(result))
    return 0


def _beside(
    requested: list[str] | None,
    config: ModelConfig | None,
    device: torch.device,
    dtype: torch.dtype,
) -> list[str]:
    """Choose the libraries to compare with: the requested ones, or all that can take part.

    Raises:
        ConfigError: a requested library cannot take part, or none can.
    """
    found = []
    for peer in requested or PEERS:
        obstacle = _obstacle(peer, config, device, dtype)
        if obstacle is None:
            found.append(peer)
        elif requested:
            obstacle.where = f"--beside {peer}"
            raise obstacle
        else:
            obstacle.where = f"{peer} is left out"
            _say(str(obstacle))
    if not found:
        raise ConfigError("peers", "nothing to compare with", remedy=install_hint("bench"))
    return found


def _obstacle(
    peer: str, config: ModelConfig | None, device: torch.device, dtype: torch.dtype
) -> ConfigError | None:
    """Return the reason why a library cannot take part; None if it can."""
    missing = [name for name in PACKAGES[peer] if find_spec(name) is None]
    if missing:
        needed = f"needs {' and '.join(missing)}"
        return MissingPackageError(peer, needed, remedy=install_hint("bench"))
    if peer != "llama.cpp":
        return None
    if device.type != "cpu" or dtype != torch.float32:
        got = f"{device} and {dtype_name(dtype)}"
        return ConfigError(peer, "it is compared on a CPU in float32 only", got=got)
    refused = None if config is None else refusal(config)
    if refused is None:
        return None
    return ConfigError(peer, f"the model has {refused}, which is not written to GGUF")


def compare(
    folder: Path,
    loads: list[Workload],
    scratch: Path,
    *,
    beside: list[str],
    rounds: int,
    threads: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Result | None:
    """Compare the vectors, then time the libraries; `scratch` is for files that the children read and write.

    Returns:
        The result; None if the vectors differ by more than the tolerance.
    """
    torch.set_num_threads(threads)
    about = describe_run(device, dtype)
    busy = busy_notice(about)
    if busy is not None:
        _say(busy)
    (scratch / "workloads.json").write_text(json.dumps([asdict(load) for load in loads]))
    if "llama.cpp" in beside:
        prepare(folder, loads, scratch)
    needed = {load.name: _needed(folder, load) for load in loads}
    children = {
        peer: Child(
            peer, folder, scratch, threads=threads, device=str(device), dtype=dtype_name(dtype)
        )
        for peer in (OURS, *beside)
    }
    try:
        differences = {load.name: _differences(children, load, scratch) for load in loads}
        if not _agree(differences, dtype):
            return None
        rounds_s, rate = _time(children, loads, rounds, lambda: product_rate(device, dtype)[0])
        peaks = {peer: int(child.ask(do="peak")) for peer, child in children.items()}
    finally:
        for child in children.values():
            child.close()
    rows = [
        {
            "workload": load.name,
            "title": load.title,
            "texts": len(load.texts),
            "max_abs_difference": {peer: d for peer, (d, _) in differences[load.name].items()},
            "min_cosine": {peer: c for peer, (_, c) in differences[load.name].items()},
            **_figures(needed[load.name], rounds_s[load.name], rate),
        }
        for load in loads
    ]
    return {
        **about,
        "peers": {name: version(name) for name in (OURS, *_packages(beside))},
        "threads": threads,
        "rounds": rounds,
        "gemm_gflops": rate / 1e9,
        "peak_bytes": peaks,
        "rows": rows,
    }


def _packages(beside: list[str]) -> list[str]:
    """List the packages of these libraries by their pip names."""
    return [name.replace("_", "-") for peer in beside for name in PACKAGES[peer]]


def _differences(children: dict[str, Child], load: Workload, scratch: Path) -> Differences:
    """Measure how far each library's vectors are from ours; each child computes and saves them in turn."""
    vectors = {}
    for peer, child in children.items():
        path = scratch / "vectors"
        child.ask(do="run", workload=load.name, save=str(path))
        rows = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32)
        vectors[peer] = rows.view(len(load.texts), -1)
    ours = vectors.pop(OURS)
    return {
        peer: (
            float((ours - theirs).abs().max()),
            float(torch.nn.functional.cosine_similarity(ours, theirs).min()),
        )
        for peer, theirs in vectors.items()
    }


def _agree(differences: dict[str, Differences], dtype: torch.dtype) -> bool:
    """Return whether all vectors agree, by the difference in fp32 and the cosine in bf16; print what fails."""
    for by_peer in differences.values():
        for peer, (difference, cosine) in by_peer.items():
            if dtype == torch.float32 and not difference <= TOLERANCE:
                reason = f"differ by {difference:.2e}, allowed {TOLERANCE:.0e}"
            elif not cosine >= COSINE:
                reason = f"have a cosine of {cosine:.4f}, allowed {COSINE}"
            else:
                continue
            _say(f"vectors of lastword and {peer} {reason}: no figures")
            return False
    return True


def _time(
    children: dict[str, Child], loads: list[Workload], rounds: int, product: Callable[[], float]
) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Time the workloads, the peers taking turns at going first.

    Args:
        children: the libraries.
        loads: workloads.
        rounds: timed rounds.
        product: measures the rate of a matmul, in FLOP/s.

    Returns:
        Seconds by workload, peer and round, and the best rate of the matmul.
    """
    taken: dict[str, dict[str, list[float]]] = {w.name: {p: [] for p in children} for w in loads}
    peers = list(children)
    rate = 0.0
    for turn in range(rounds):
        for load in loads:
            rate = max(rate, product())
            first = turn % len(peers)
            for peer in peers[first:] + peers[:first]:
                seconds = children[peer].ask(do="run", workload=load.name, save=None)
                taken[load.name][peer].append(seconds)
                _say(f"round {turn + 1}/{rounds} ({load.name}) {peer}: {seconds:.2f} s")
    return taken, rate


def _figures(
    needed: tuple[list[Work], int], rounds_s: dict[str, list[float]], rate: float
) -> dict[str, object]:
    """Compute one workload's figures: median seconds, speed-ups with their range over rounds, share of the limit."""
    calls, flops = needed
    seconds = {peer: statistics.median(times) for peer, times in rounds_s.items()}
    ours = seconds.pop(OURS)
    by_round = {
        peer: [theirs / own for theirs, own in zip(rounds_s[peer], rounds_s[OURS], strict=True)]
        for peer in seconds
    }
    return {
        "tokens_requested": sum(call.tokens_requested for call in calls),
        "tokens_needed": sum(call.tokens for call in calls),
        "round_seconds": rounds_s,
        "seconds": {OURS: ours, **seconds},
        "speedup": {peer: theirs / ours for peer, theirs in seconds.items()},
        "speedup_range": {peer: [min(ratios), max(ratios)] for peer, ratios in by_round.items()},
        "needed_gflop": flops / 1e9,
        "share_of_limit": flops / ours / rate,
    }


def _needed(folder: Path, load: Workload) -> tuple[list[Work], int]:
    """Count the work of each call of the workload (one call, or one per text), and the operations of all."""
    config = read_config(folder)
    prompts = read_embedding_spec(folder, config).prompts
    ids = tokenizer_of(folder, prompts)(load.texts, load.kind)
    calls = [work([one]) for one in ids] if load.one_by_one else [work(ids)]
    return calls, sum(needed_flops(config, call) for call in calls)


def table(result: Result) -> str:
    """Format the result as a table."""
    rows, peaks = result["rows"], result["peak_bytes"]
    beside = [peer for peer in peaks if peer != OURS]
    head = f"{'':22}{'texts':>6}{'tokens':>9}{'needed':>9}{OURS:>11}{'of limit':>10}"
    lines = [head + "".join(f"{peer:>45}" for peer in beside)]
    for row in rows:
        line = (
            f"({row['workload']}) {row['title']:18}{row['texts']:6}{row['tokens_requested']:9}"
            f"{row['tokens_needed']:9}{row['seconds'][OURS]:9.2f} s{row['share_of_limit']:10.0%}"
        )
        for peer in beside:
            low, high = row["speedup_range"][peer]
            line += f"{row['seconds'][peer]:10.2f} s{row['speedup'][peer]:7.2f}x"
            line += f"  {f'({low:.2f} to {high:.2f})':<15}{row['max_abs_difference'][peer]:8.0e}"
        lines.append(line)
    peak = "".join(f"{peaks[peer] / 2**20:9.0f} MB{'':33}" for peer in beside)
    lines.append(f"{'peak memory':46}{peaks[OURS] / 2**20:8.0f} MB{'':10}{peak}".rstrip())
    lines.append(
        "for each other library: time, speed-up of lastword (lowest and highest of a round), largest difference"
    )
    lines.append(
        f"limit: needed operations at {result['gemm_gflops']:.0f} GFLOP/s, the best matmul"
    )
    return "\n".join(lines)


def _checkpoint(folder: Path, *, layers: int, dtype: torch.dtype) -> Path:
    """Make a random checkpoint of the 0.6B shape, with the real tokenizer if it is available."""
    real = real_tokenizer()
    _say(f"making a random checkpoint: 0.6B shape, {layers} layers")
    return make_checkpoint(
        folder,
        **sizes_of("0.6B", layers),
        vocab_size=VOCABULARY,
        tokenizer=real and real / "tokenizer.json",
        dtype=dtype,
    )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
