"""Measure how cost grows with the number of texts: tokens per second of `encode`, peak memory of `encode_stream`.

    python -m lastword.bench.growth              the built-in model on 100, 1,000 and 10,000 texts

Both figures should stay constant while the number of texts grows a hundredfold. The peak for each number of texts is
measured in a separate process; it is the host's resident memory, even if a GPU computes.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from multiprocessing import get_context
from time import perf_counter

from lastword import Embedder
from lastword.bench.machine import describe_run
from lastword.bench.memory import peak_bytes
from lastword.bench.models.workloads import workloads
from lastword.errors import DeviceError, LastwordError
from lastword.report import Report
from lastword.runtime.device import choose_device, choose_dtype

COUNTS = (100, 1000, 10_000)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the facts of the run as JSON, measure, print one line per number of texts, and all rows as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m lastword.bench.growth",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument(
        "--model", help="a folder or Hugging Face model ID; default the built-in model"
    )
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda, cuda:1")
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), metavar="N")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device)
    except DeviceError as error:
        error.where = f"--{error.where}"
        parser.error(str(error))
    about = describe_run(device, choose_dtype(None, device))
    print(json.dumps({"run": about}))
    try:
        rows = measure(options.model, str(device), options.counts, options.rounds)
    except LastwordError as error:
        parser.error(str(error))
    print(f"{'texts':>8}{'tokens':>11}{'encode':>16}{'encode_stream':>18}")
    for row in rows:
        print(
            f"{row['texts']:>8,}{row['tokens']:>11,}{row['tokens_per_second']:>12,.0f} t/s"
            f"{row['peak_bytes'] / 2**20:>15,.0f} MB"
        )
    rates = [row["tokens_per_second"] for row in rows]
    print(f"the slowest is {1 - min(rates) / max(rates):.0%} below the fastest")
    print(json.dumps(rows))


def measure(
    model: str | None, device: str, counts: Sequence[int], rounds: int
) -> list[dict[str, float]]:
    """Time `encode`, and measure the peak memory of `encode_stream`, on each number of texts.

    Args:
        model: folder or Hugging Face model ID; None for the built-in model.
        device: the device that computes.
        counts: numbers of texts.
        rounds: number of rounds; every round times each count, and `tokens_per_second` is the median.

    Returns:
        One row per count: texts, tokens, tokens_per_second and peak_bytes.
    """
    texts = workloads(max(counts), 0, 0)[0].texts
    embedder = Embedder(model, device=device)
    tokens = {n: embedder.plan(texts[:n]).tokens_requested for n in counts}
    seconds: dict[int, list[float]] = {n: [] for n in counts}
    embedder.encode(texts[: min(counts)], show_progress_bar=False)
    for _ in range(rounds):
        for n in counts:
            # In each round, a count is timed over about max(counts) texts: a short time would be mostly noise.
            calls = max(counts) // n
            began = perf_counter()
            for i in range(calls):
                embedder.encode(texts[i * n : (i + 1) * n], show_progress_bar=False)
            seconds[n].append(perf_counter() - began)
    timed = {n: embedder.plan(texts[: max(counts) // n * n]).tokens_requested for n in counts}
    return [
        {
            "texts": n,
            "tokens": tokens[n],
            "tokens_per_second": timed[n] / statistics.median(seconds[n]),
            "peak_bytes": _peak_of_stream(model, device, n),
        }
        for n in counts
    ]


def _peak_of_stream(model: str | None, device: str, count: int) -> int:
    """Run `stream` in a new process and return its peak memory in bytes."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(stream, (model, device, count))


def stream(model: str | None, device: str, count: int) -> int:
    """Embed `count` texts from an iterator without keeping the vectors; return this process's peak memory in bytes."""
    texts = iter(workloads(count, 0, 0)[0].texts)
    report = Report()
    for _ in Embedder(model, device=device).encode_stream(texts, report=report):
        pass
    if report.texts != count:
        raise RuntimeError(f"growth: {report.texts} of {count} texts were embedded")
    return peak_bytes()


if __name__ == "__main__":
    main()
