"""The options of `lastword bench bulk`. Every `--help` imports this module, so it imports nothing heavy."""

import argparse

from lastword.bench.options import json_lines_file, path, positive

SCENARIOS = ("encode", "workers", "resume", "memory", "fleet", "ray")
BY_DEFAULT = SCENARIOS[:-1]
PEERS = ("pandas", "datasets", "ray", "vllm")

EXAMPLES = """examples:
  lastword bench bulk                               the built-in model, without other libraries
  lastword bench bulk --quick
  lastword bench bulk --model ./model --beside pandas datasets ray vllm --python vllm/bin/python
  lastword bench bulk --scenarios fleet
  lastword bench bulk --scenarios ray               needs pip install 'lastword[ray]' too

Times corpus jobs (lastword embed FILES -o DIRECTORY/) in processes of their own. The times
leave out process start, planning and model loading, with two exceptions: the resume scenario times
whole processes, and the time for Ray Data includes model loading, which its actor does. Scenarios:
encode compares a job with `Embedder.encode` on the same texts; workers compares one worker process
with two; resume reruns a finished job and a half-finished one; memory shows peak memory for inputs
of several sizes; fleet computes and simulates how long a billion texts take on 8 and on 512 GPUs,
from assumptions that it prints; ray compares the time per unit of a job with that of the same job
on a Ray cluster of this machine. --beside adds vLLM's run-batch, and sentence-transformers called
in three ways: for a pandas data frame, in datasets.map and in Ray Data. Needs pip install
'lastword[bulk,bench]'."""


def add_bulk(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench bulk`."""
    parser.add_argument(
        "--scenarios",
        nargs="+",
        choices=SCENARIOS,
        default=list(BY_DEFAULT),
        metavar="NAME",
        help=f"what to measure: {', '.join(SCENARIOS)}; by default all but ray",
    )
    parser.add_argument(
        "--model",
        type=path,
        metavar="FOLDER",
        help="checkpoint folder; by default the built-in model",
    )
    parser.add_argument(
        "--rows",
        type=positive,
        help="number of texts, of about 100 tokens each; by default 2,000, or 400 with --model",
    )
    parser.add_argument("--rounds", type=positive, default=5, help="number of rounds; by default 5")
    parser.add_argument(
        "--beside",
        nargs="+",
        choices=PEERS,
        default=[],
        metavar="NAME",
        help=f"other ways to embed the same texts: {', '.join(PEERS)}; needs --model",
    )
    parser.add_argument(
        "--python",
        type=path,
        metavar="PATH",
        help="Python interpreter of the environment that has vLLM",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the texts and one round, to try it out"
    )
    parser.add_argument(
        "--json",
        type=json_lines_file,
        metavar="FILE",
        help="write each result to this file, as a line of JSON",
    )
