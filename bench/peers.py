"""`lastword bench peers`: it and sentence-transformers on one checkpoint, device, dtype and number of threads.

Each library lives in its own child process (`bench/peer_child.py`) and waits while the other works.
Vectors are compared first: where they differ, no figure is printed. See `bench/README.md`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from lastword.bench.checkpoint import make_checkpoint
from lastword.bench.flops import Work, needed_flops, work
from lastword.bench.machine import busy_notice, describe_run
from lastword.bench.measure import product_rate
from lastword.bench.peer_child import Child
from lastword.bench.shapes import VOCABULARY, sizes_of
from lastword.bench.workloads import FULL, QUICK, Workload, workloads
from lastword.device import choose_device, choose_dtype
from lastword.errors import ConfigError
from lastword.weights import read_config

PEERS = ("lastword", "sentence-transformers")
TOLERANCE = 2e-5  # largest absolute difference of fp32 vectors
# Least cosine of bf16 vectors: both libraries round at other places, layer after layer.
COSINE = 0.99


def run(args: argparse.Namespace, show: Callable[[str], None]) -> int:
    """Run the comparison; exit status 1 when the vectors disagree."""
    if find_spec("sentence_transformers") is None:
        raise ConfigError(
            "peers: needs sentence-transformers. Install it with: pip install 'lastword[bench]'"
        )
    if args.model is not None:
        read_config(args.model)  # before two libraries load it
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    rounds = args.rounds or (1 if args.quick else 3)
    with tempfile.TemporaryDirectory(prefix="lastword-peers-") as scratch:
        folder = args.model or _checkpoint(Path(scratch) / "model", layers=args.layers, dtype=dtype)
        loads = workloads(*(QUICK if args.quick else FULL))
        result = compare(
            folder,
            loads,
            Path(scratch),
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


def compare(
    folder: Path,
    loads: list[Workload],
    scratch: Path,
    *,
    rounds: int,
    threads: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, object] | None:
    """Check, then time; None when the peers' vectors differ by more than the tolerance."""
    torch.set_num_threads(threads)
    about = describe_run(device, dtype)
    busy = busy_notice(about)
    if busy is not None:
        _say(busy)
    (scratch / "workloads.json").write_text(json.dumps([asdict(load) for load in loads]))
    name = str(dtype).removeprefix("torch.")
    children = {
        peer: Child(peer, folder, scratch, threads=threads, device=str(device), dtype=name)
        for peer in PEERS
    }
    try:
        differences = {load.name: _difference(children, load, scratch) for load in loads}
        if not _agree(differences, dtype):
            return None
        seconds, rate = _time(children, loads, rounds, lambda: product_rate(device, dtype)[0])
        peaks = {peer: int(child.ask(do="peak")) for peer, child in children.items()}
    finally:
        for child in children.values():
            child.close()
    rows = [
        {
            "workload": load.name,
            "title": load.title,
            "texts": len(load.texts),
            "max_abs_difference": differences[load.name][0],
            "min_cosine": differences[load.name][1],
            **_figures(folder, load, seconds[load.name], rate),
        }
        for load in loads
    ]
    return {
        **about,
        "peers": {name: version(name) for name in (*PEERS, "transformers")},
        "threads": threads,
        "rounds": rounds,
        "gemm_gflops": rate / 1e9,
        "peak_bytes": peaks,
        "rows": rows,
    }


def _difference(children: dict[str, Child], load: Workload, scratch: Path) -> tuple[float, float]:
    """The largest absolute difference and the least cosine of the vectors, saved by each child in turn."""
    vectors = []
    for peer, child in children.items():
        path = scratch / f"{peer}.safetensors"
        child.ask(do="run", workload=load.name, save=str(path))
        with safe_open(path, framework="pt") as file:
            vectors.append(file.get_tensor("vectors"))
    ours, theirs = vectors
    cosine = torch.nn.functional.cosine_similarity(ours, theirs)
    return float((ours - theirs).abs().max()), float(cosine.min())


def _agree(differences: dict[str, tuple[float, float]], dtype: torch.dtype) -> bool:
    """Hold fp32 vectors to a difference and bf16 ones to a cosine; say what fails."""
    for difference, cosine in differences.values():
        if dtype == torch.float32 and not difference <= TOLERANCE:
            _say(f"vectors differ by {difference:.2e}, allowed {TOLERANCE:.0e}: no figures")
            return False
        if not cosine >= COSINE:
            _say(f"vectors have a cosine of {cosine:.4f}, allowed {COSINE}: no figures")
            return False
    return True


def _time(
    children: dict[str, Child], loads: list[Workload], rounds: int, product: Callable[[], float]
) -> tuple[dict[str, dict[str, float]], float]:
    """Median seconds by workload and peer over alternated rounds, and the best rate of `product`."""
    taken: dict[str, dict[str, list[float]]] = {w.name: {p: [] for p in PEERS} for w in loads}
    rate = 0.0
    for turn in range(rounds):
        for load in loads:
            rate = max(rate, product())
            for peer in PEERS if turn % 2 == 0 else reversed(PEERS):
                seconds = children[peer].ask(do="run", workload=load.name, save=None)
                taken[load.name][peer].append(seconds)
                _say(f"round {turn + 1}/{rounds} ({load.name}) {peer}: {seconds:.2f} s")
    medians = {
        name: {peer: statistics.median(times) for peer, times in by_peer.items()}
        for name, by_peer in taken.items()
    }
    return medians, rate


def _figures(
    folder: Path, load: Workload, seconds: dict[str, float], rate: float
) -> dict[str, object]:
    """Speed-up and share of the limit of one workload."""
    needed, flops = _needed(folder, load)
    ours, theirs = (seconds[peer] for peer in PEERS)
    return {
        "tokens_asked": sum(item.tokens_asked for item in needed),
        "tokens_needed": sum(item.tokens for item in needed),
        "seconds": seconds,
        "speedup": theirs / ours,
        "needed_gflop": flops / 1e9,
        "share_of_limit": flops / ours / rate,
    }


def _needed(folder: Path, load: Workload) -> tuple[list[Work], int]:
    """What each call of the workload needs: one call, or one a text."""
    config = read_config(folder)
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    prompt = prompts.get(load.kind, "")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [item.ids for item in tokenizer.encode_batch([prompt + text for text in load.texts])]
    calls = [work([one]) for one in ids] if load.one_by_one else [work(ids)]
    return calls, sum(needed_flops(config, call) for call in calls)


def table(result: dict[str, object]) -> str:
    """The result for people."""
    rows, peaks = result["rows"], result["peak_bytes"]
    if not isinstance(rows, list) or not isinstance(peaks, dict):
        raise TypeError("not a result of compare")
    head = f"{'':22}{'texts':>6}{'tokens':>9}{'needed':>9}{'lastword':>11}{'sent.-tr.':>11}"
    lines = [head + f"{'speed-up':>10}{'of limit':>10}{'max diff':>10}"]
    for row in rows:
        ours, theirs = (row["seconds"][peer] for peer in PEERS)
        lines.append(
            f"({row['workload']}) {row['title']:18}{row['texts']:6}{row['tokens_asked']:9}"
            f"{row['tokens_needed']:9}{ours:9.2f} s{theirs:9.2f} s{row['speedup']:9.2f}x"
            f"{row['share_of_limit']:10.0%}{row['max_abs_difference']:10.1e}"
        )
    peak = [f"{peaks[peer] / 2**20:7.0f} MB" for peer in PEERS]
    lines.append(f"{'peak memory':46}{peak[0]:>11}{peak[1]:>11}")
    lines.append(f"limit: needed operations at {result['gemm_gflops']:.0f} GFLOP/s, the best GEMM")
    return "\n".join(lines)


def _checkpoint(folder: Path, *, layers: int, dtype: torch.dtype) -> Path:
    """A random checkpoint of the 0.6B shape, with the real tokenizer where it is to be had."""
    data = os.environ.get("LASTWORD_TEST_DATA")
    real = Path(data, "tokenizers", "Qwen3-Embedding-0.6B", "tokenizer.json") if data else None
    _say(f"making a random checkpoint: 0.6B shape, {layers} layers")
    return make_checkpoint(
        folder,
        **sizes_of("0.6B", layers),
        vocab_size=VOCABULARY,
        tokenizer=real,
        dtype=dtype,
    )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
