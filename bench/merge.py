"""Compare the speed of a merge with that of a plain copy on the same disk, and measure the merge's memory.

    python -m lastword.bench.merge --like 4B --layers 6 --rounds 3

Copy and merge start with no file in the page cache and end when all data is on the disk. The copy reads one model and
writes one; the merge reads two and writes one. So the merge's speed relative to the copy is given twice: in bytes
written, and in bytes read and written. This runs on Linux only, because it uses the page cache and /proc.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lastword.bench.machine import describe_run
from lastword.bench.memory import watch_peak
from lastword.bench.shapes import SIZES
from lastword.runtime.device import choose_dtype
from lastword.weights.files.blocks import block_threads
from lastword.weights.files.file_tensor import map_tensor
from lastword.weights.files.shards import read_tensors, weight_files
from lastword.weights.merging.job import write_model
from lastword.weights.merging.merge import Merge
from lastword.weights.merging.recipe import parse_recipe

_COPY_BYTES = 8 << 20  # bytes that the plain copy reads and writes at once
WEIGHTS = (2.8, 4.3)
CHECKED = ("norm.weight", "layers.0.self_attn.k_proj.weight")


def multislerp(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """Merge tensors into their weighted mean direction times their weighted mean norm, as the formula says.

    This function is the reference for the merges of `lastword.weights`. It shares no code with them, works on whole
    tensors, and does not handle directions that cancel or tensors that are zero.

        w = weights / sum(weights), or the given weights;  x_i = tensors_i - base
        S = sum_i w_i x_i / |x_i|;  out = base + (sum_i w_i |x_i|) S / |S|

    Args:
        tensors: N >= 1 tensors of one shape; each is treated as one vector.
        weights: N numbers.
        base: tensor that is subtracted first and added last; None for zeros.
        normalize: whether to divide the weights by their sum.

    Returns:
        A float64 tensor of the same shape.
    """
    origin = torch.zeros_like(tensors[0], dtype=torch.float64) if base is None else base.double()
    total = sum(weights) if normalize else 1.0
    direction, norm = torch.zeros_like(origin), 0.0
    for tensor, weight in zip(tensors, weights, strict=True):
        x = tensor.double() - origin
        direction += weight / total * x / x.norm()
        norm += weight / total * float(x.norm())
    merged: Tensor = origin + norm * direction / direction.norm()
    return merged


def make_models(folder: Path, options: argparse.Namespace) -> list[Path]:
    """Make two random models, each in its own process, so that the memory for making it is freed."""
    models = [folder / f"model-{i}" for i in (1, 2)]
    for seed, model in enumerate(models):
        words = [
            str(model),
            "--like",
            options.like,
            "--layers",
            str(options.layers),
            "--seed",
            str(seed),
        ]
        words += ["--dtype", options.dtype, "--shards", "2"]
        command = [sys.executable, "-m", "lastword.bench.checkpoint", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return models


def drop_from_cache(models: Sequence[Path]) -> None:
    """Drop the models' files from the page cache, so that the next run reads the disk."""
    for file in (file for model in models for file in weight_files(model)):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy(model: Path, out: Path) -> None:
    """Copy a model's weights in the simplest way: read, write, sync."""
    out.mkdir()
    buffer = memoryview(bytearray(_COPY_BYTES))
    for file in weight_files(model):
        with (
            file.open("rb", buffering=0) as source,
            (out / file.name).open("xb", buffering=0) as sink,
        ):
            while count := source.readinto(buffer):
                sink.write(buffer[:count])
            os.fsync(sink.fileno())


def merge(models: Sequence[Path], out: Path) -> None:
    """Merge the models by Multi-SLERP, like `lastword merge`."""
    listed = [
        f"- {{model: {model}, parameters: {{weight: {weight}}}}}"
        for model, weight in zip(models, WEIGHTS, strict=True)
    ]
    text = "\n".join(["merge_method: multislerp", "models:", *listed])
    with block_threads() as threads:
        write_model(Merge(parse_recipe(text, "bench"), threads), out)


def check(models: Sequence[Path], out: Path) -> None:
    """Compare two merged tensors with the formula, within one rounding; if one differs, exit without figures."""
    made, *stored = (read_tensors(folder) for folder in (out, *models))
    for name in CHECKED:
        expected = multislerp([map_tensor(each[name], name) for each in stored], WEIGHTS)
        got = map_tensor(made[name], name)
        small = 1e-12 * float(expected.abs().max())
        if not torch.allclose(got.double(), expected, torch.finfo(got.dtype).eps, small):
            raise SystemExit(f"{name}: the merge differs from the formula: no figures")


def time_work(models: Sequence[Path], work: Callable[[], None]) -> float:
    """Return the seconds that `work` takes when no file of the models is in the page cache."""
    drop_from_cache(models)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(models: Sequence[Path], out: Path, rounds: int) -> dict[str, list[float]]:
    """Copy and merge once per round, in alternating order; print each round, and return the seconds by kind of work."""
    jobs = {"copy": lambda: copy(models[0], out), "merge": lambda: merge(models, out)}
    seconds: dict[str, list[float]] = {kind: [] for kind in jobs}
    for number in range(rounds):
        for kind in list(jobs)[:: 1 if number % 2 else -1]:
            shutil.rmtree(out, ignore_errors=True)
            seconds[kind].append(time_work(models, jobs[kind]))
        taken = ", ".join(f"{kind} {each[-1]:.1f} s" for kind, each in seconds.items())
        print(f"round {number + 1}: {taken}")
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the models, check a merge, then measure and print."""
    parser = argparse.ArgumentParser(prog="python -m lastword.bench.merge", description=__doc__)
    parser.add_argument(
        "--like",
        choices=sorted(SIZES),
        default="4B",
        help="model whose sizes are used; by default 4B",
    )
    parser.add_argument("--layers", type=int, default=6, help="number of layers; by default 6")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to work; by default the system's temporary folder")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error(f"needs the page cache and /proc; got {sys.platform}, expected linux")
    about = describe_run(torch.device("cpu"), choose_dtype(options.dtype, torch.device("cpu")))
    print(json.dumps({"run": about}))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        models, out = make_models(folder, options), folder / "out"
        size = sum(file.stat().st_size for file in weight_files(models[0]))
        print(
            f"two models of {size / 1e9:.2f} GB each, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        merge(models, out)
        check(models, out)
        with watch_peak("RssAnon") as peak:
            seconds = measure(models, out, options.rounds)
            held = peak()
    took = {kind: statistics.median(each) for kind, each in seconds.items()}
    share = took["copy"] / took["merge"]
    print(f"copy   {size / took['copy'] / 1e6:7.0f} MB/s written (median)")
    print(f"merge  {size / took['merge'] / 1e6:7.0f} MB/s written (median)")
    print(
        f"share of the copy's speed: {share:.0%} in bytes written, {1.5 * share:.0%} in bytes moved"
    )
    print(f"peak memory beyond files: {held / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
