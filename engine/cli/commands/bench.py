"""`lastword bench`: measure the kernels, a whole model, or lastword beside other libraries.

The measuring itself is `lastword.bench`, imported when a benchmark runs.
"""

import argparse
from functools import partial
from importlib.util import find_spec

from lastword.cli import console
from lastword.cli.parser import Parser, add_command, add_commands
from lastword.errors import ConfigError

ABOUT = "measure kernels, models and peers"
EXAMPLES = """examples:
  lastword bench kernels --help
  lastword bench peers --quick"""


def add_options(parser: Parser) -> None:
    """Add the benchmarks with their options."""
    from lastword.bench import options

    add = partial(add_command, add_commands(parser, "benchmark"))
    options.add_kernels(add("kernels", "check and time the kernels", options.KERNELS_EXAMPLES))
    options.add_peers(add("peers", "time lastword beside other libraries", options.PEERS_EXAMPLES))
    options.add_model(add("model", "time a whole model", options.MODEL_EXAMPLES))


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that was named; exit status 1 where a check failed."""
    if args.benchmark == "kernels" and args.compile_only:
        return _compile(args)
    if args.benchmark == "kernels":
        from lastword.bench.kernels.run import run as run_kernels

        failed = run_kernels(args, _show)
        if failed:
            console.say(f"kernels: {failed} of the implementations under test are wrong, see above")
        return 1 if failed else 0
    if args.benchmark == "model" and args.quantize:
        from lastword.bench.models.quantized import run as run_quantized

        return run_quantized(args, _show)
    if args.benchmark == "model":
        from lastword.bench.models.run import run as run_model

        return run_model(args, _show)
    from lastword.bench.peers.run import run as run_peers

    return run_peers(args, _show)


def _compile(args: argparse.Namespace) -> int:
    """Compile every kernel ahead of time; exit status 1 where one spills registers.

    Raises:   ConfigError for options of what is timed, or where Triton is not installed.
    """
    for name in ("op", "tokens", "device", "own", "beside", "rep_ms", "plot"):
        if getattr(args, name) is not None:
            option = "with" if name == "own" else name.replace("_", "-")
            raise ConfigError(
                f"--{option}: does not go with --compile-only; got both, expected one of them. "
                "Nothing is timed."
            )
    if find_spec("triton") is None:
        raise ConfigError(
            "--compile-only: needs triton, which is not installed here and comes for Linux only"
        )
    from lastword.bench.kernels.compile import DTYPES, MODELS
    from lastword.bench.kernels.compile import run as run_compile

    rows = run_compile(
        _show,
        models=args.model or MODELS,
        dtypes=[args.dtype] if args.dtype else DTYPES,
        json_file=args.json,
    )
    spilled = sum(row.spills > 0 for row in rows)
    if spilled:
        console.say(f"kernels: {spilled} of {len(rows)} spill registers, see above")
    return 1 if spilled else 0


def _show(text: str) -> None:
    console.print_lines([text])
