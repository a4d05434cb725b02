"""`lastword bench`: time the kernels, a whole model, the server, corpus jobs, or lastword against other libraries.

The command line imports this module by its name in a table of commands, so `cli` and `bench` do not import each other.
Each benchmark is imported only when it runs.
"""

import argparse
from importlib.util import find_spec
from typing import Protocol

from lastword.bench import options
from lastword.bench.bulk.options import EXAMPLES as BULK_EXAMPLES
from lastword.bench.bulk.options import add_bulk
from lastword.bench.serve.options import EXAMPLES as SERVE_EXAMPLES
from lastword.bench.serve.options import add_serve
from lastword.errors import ConfigError, require_extra

ABOUT = (
    "time the kernels, a whole model, the server, corpus jobs, or lastword against other libraries"
)
EXAMPLES = """examples:
  lastword bench kernels --help
  lastword bench peers --quick"""

BENCHMARKS = {
    "kernels": ("check and time the kernels", options.KERNELS_EXAMPLES, options.add_kernels),
    "peers": ("time lastword against other libraries", options.PEERS_EXAMPLES, options.add_peers),
    "model": ("time a whole model", options.MODEL_EXAMPLES, options.add_model),
    "serve": ("put load on the server", SERVE_EXAMPLES, add_serve),
    "bulk": ("time corpus jobs", BULK_EXAMPLES, add_bulk),
}


class Console(Protocol):
    """The printing functions of a command, passed by the command line as `args.console`."""

    def say(self, message: str, /) -> None:
        """Print one line on stderr."""

    def print_lines(self, lines: list[str], /) -> None:
        """Print lines on stdout."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand with its options for each of the `BENCHMARKS`."""
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    for name, (about, examples, add) in BENCHMARKS.items():
        description = f"{about[0].upper()}{about[1:]}."
        add(benchmarks.add_parser(name, help=about, description=description, epilog=examples))


def run(args: argparse.Namespace) -> int:
    """Run the chosen benchmark and return the exit status: 1 if a check failed, else 0."""
    console: Console = args.console

    def show(text: str) -> None:
        console.print_lines([text])

    if args.benchmark == "kernels" and args.compile_only:
        return _compile(args, console)
    if args.benchmark == "kernels":
        from lastword.bench.kernels.kernel_benchmark import run as run_kernels

        failed = run_kernels(args, show)
        if failed:
            console.say(f"kernels: wrong implementations under test: {failed}; see the table above")
        return 1 if failed else 0
    if args.benchmark == "model" and args.quantize:
        from lastword.bench.models.quantized import run as run_quantized

        return run_quantized(args, show)
    if args.benchmark == "model":
        from lastword.bench.models.model_benchmark import run as run_model

        return run_model(args, show)
    if args.benchmark == "serve":
        with require_extra("FastAPI, aiohttp and others", "serve,bench", "lastword bench serve"):
            import aiohttp  # noqa: F401
            import fastapi  # noqa: F401
            import uvicorn  # noqa: F401
        from lastword.bench.serve.serve_benchmark import run as run_serve

        return run_serve(args, show)
    if args.benchmark == "bulk":
        with require_extra("pyarrow", "bulk,bench", "lastword bench bulk"):
            import pyarrow as pa  # noqa: F401
        from lastword.bench.bulk.bulk_benchmark import run as run_bulk

        return run_bulk(args, show)
    from lastword.bench.peers.peer_benchmark import run as run_peers

    return run_peers(args, show)


def _compile(args: argparse.Namespace, console: Console) -> int:
    """Compile every kernel ahead of time and return the exit status: 1 if a kernel spills in a loop, else 0.

    Raises:
        ConfigError: an option is given that makes sense for timed runs only, or Triton is not installed.
    """
    for name in ("op", "tokens", "device", "own", "beside", "rep_ms", "plot"):
        if getattr(args, name) is not None:
            option = "with" if name == "own" else name.replace("_", "-")
            raise ConfigError(
                f"--{option}",
                "does not go with --compile-only",
                got="both",
                expected="one of them",
                remedy="--compile-only times nothing.",
            )
    if find_spec("triton") is None:
        raise ConfigError(
            "--compile-only",
            "needs triton, which is not installed here and is available on Linux only",
        )
    from lastword.bench.kernels.compile import DTYPES, MODELS
    from lastword.bench.kernels.compile import run as run_compile

    rows = run_compile(
        lambda text: console.print_lines([text]),
        models=args.model or MODELS,
        dtypes=[args.dtype] if args.dtype else DTYPES,
        json_file=args.json,
    )
    spilled = sum(row.loop.loop_spills > 0 for row in rows)
    if spilled:
        console.say(f"kernels: {spilled} of {len(rows)} spill registers in a loop; see above")
    return 1 if spilled else 0
