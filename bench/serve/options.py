"""The options of `lastword bench serve`. Every `--help` imports this module, so it imports nothing heavy."""

import argparse

from lastword.bench.options import json_lines_file, path, positive

SCENARIOS = ("throughput", "latency", "overload", "slow", "disconnects", "sigterm", "soak")
BY_DEFAULT = SCENARIOS[:-1]
PEERS = ("fastapi", "vllm")

EXAMPLES = """examples:
  lastword bench serve                              every scenario but soak; about four minutes
  lastword bench serve --quick                      small counts
  lastword bench serve --scenarios throughput latency --json serve.jsonl
  lastword bench serve --scenarios soak --minutes 60
  lastword bench serve --scenarios sigterm --restarts 100
  lastword bench serve --model ./model --scenarios throughput overload
  lastword bench serve --model ./model --beside fastapi vllm --python vllm/bin/python

Starts `lastword serve` on a free loopback port, and sends requests to it from a separate process.
Requests arrive at times drawn in advance, whether or not earlier ones have been answered, and
latency is measured from these times. Every vector is compared with that of `encode`. Each row of
the printed table ends with the target and whether it was met. The exit status is 1 if an answer was
wrong, an accepted request was lost, or memory or file descriptors leaked; a missed target for speed
does not change it. Needs Linux, and pip install 'lastword[serve,bench]'."""


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench serve`."""
    parser.add_argument(
        "--scenarios",
        nargs="+",
        choices=SCENARIOS,
        default=list(BY_DEFAULT),
        metavar="NAME",
        help=f"what to measure: {', '.join(SCENARIOS)} (see bench/README.md in the source "
        "repository); by default all but soak",
    )
    parser.add_argument(
        "--model",
        type=path,
        metavar="FOLDER",
        help="checkpoint folder; by default the built-in model",
    )
    parser.add_argument(
        "--texts", type=positive, default=16, help="number of texts per request; by default 16"
    )
    for name, default, quick, about in (
        ("seconds", 10, 2, "length of each timed load in seconds"),
        (
            "clients",
            500,
            50,
            "for the slow scenario: number of clients that send or read a few bytes at a time",
        ),
        (
            "disconnects",
            2000,
            200,
            "for the disconnects scenario: number of clients that leave during a request",
        ),
        ("restarts", 20, 2, "for the sigterm scenario: number of servers that get a SIGTERM"),
    ):
        parser.add_argument(
            f"--{name}",
            type=positive,
            help=f"{about}; by default {default:,}, or {quick} with --quick",
        )
        parser.set_defaults(**{f"{name}_by_default": (default, quick)})
    parser.add_argument(
        "--minutes",
        type=positive,
        default=10,
        help="for the soak scenario: its length in minutes; by default 10",
    )
    _add_beside(parser)
    parser.add_argument("--quick", action="store_true", help="small counts and short loads")
    parser.add_argument(
        "--json",
        type=json_lines_file,
        metavar="FILE",
        help="write each result to this .jsonl file as soon as it is measured",
    )


def _add_beside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--beside",
        nargs="+",
        choices=PEERS,
        default=[],
        metavar="NAME",
        help=f"instead of the scenarios, compare with other servers ({', '.join(PEERS)}) that serve the same model",
    )
    parser.add_argument(
        "--python",
        type=path,
        metavar="FILE",
        help="Python of the virtual environment in which vLLM is installed",
    )


def fill(args: argparse.Namespace) -> None:
    """Set the counts that the command line left out to their defaults, which are smaller with --quick."""
    for name in ("seconds", "clients", "disconnects", "restarts"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(args, f"{name}_by_default")[args.quick])
