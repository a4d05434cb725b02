"""`lastword bench serve`: put load on `lastword serve` from a separate process. See `bench/README.md`, "The server"."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch

from lastword import Embedder
from lastword.bench.machine import busy_notice, describe_run, json_lines
from lastword.bench.serve import endurance, speed
from lastword.bench.serve.beside.comparison import check, compare
from lastword.bench.serve.options import fill
from lastword.bench.serve.processes import run_generator
from lastword.bench.serve.setting import Row, Setting, make_materials
from lastword.errors import ConfigError

SCENARIOS: dict[str, Callable[[Setting], Iterable[Row]]] = {
    "throughput": speed.throughput,
    "latency": speed.latency,
    "overload": speed.overload,
    "slow": speed.slow,
    "disconnects": endurance.disconnects,
    "sigterm": endurance.sigterm,
    "soak": endurance.soak,
}


def run(args: argparse.Namespace, show: Callable[[str], None]) -> int:
    """Run the scenarios.

    Args:
        args: options of `bench serve`.
        show: prints a line.

    Returns:
        The exit status: 1 if an answer was wrong, a request was lost, or memory or descriptors leaked, else 0.

    Raises:
        ConfigError: the system is not Linux, or options do not fit together.
        LastwordError: the model cannot be opened, or a process died.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError("lastword bench serve", "reads /proc", got=sys.platform, expected="Linux")
    fill(args)
    check(args.beside, args.model, args.python)
    right = True
    with ExitStack() as opened:
        write = opened.enter_context(json_lines(args.json))
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lastword-serve-")))
        about = describe_run(torch.device("cpu"), torch.float32)
        busy = busy_notice(about)
        if busy is not None:
            show(busy)
        model = None if args.model is None else str(args.model)
        embedder = Embedder(model, show_progress_bar=False)
        embedder.warm_up()
        materials = make_materials(embedder, quick=args.quick)
        for material in materials.values():
            material.save(folder)
        show(f"{embedder.name}: {about['device']}, {torch.get_num_threads()} threads")
        write({"run": about, "model": embedder.name, "quick": args.quick, "texts": args.texts})
        generator = opened.enter_context(run_generator(folder))
        setting = Setting(args, folder, embedder, materials, generator)
        chosen = [compare] if args.beside else [SCENARIOS[name] for name in args.scenarios]
        for scenario in chosen:
            for row in scenario(setting):
                show(row.line())
                write({
                    "scenario": row.scenario, "measured": row.measured, "target": row.target,
                    "met": row.met, "right": row.right, **row.figures,
                })  # fmt: skip
                right = right and row.right
    return 0 if right else 1
