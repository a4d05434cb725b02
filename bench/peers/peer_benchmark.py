"""`lastword bench peers`: compare lastword and other libraries on one checkpoint, precision by precision.

Each library runs in its own child process (`bench/peers/child.py`) and waits while another library works. Vectors are
compared first: a library whose vectors differ has no figures. `bench/README.md` explains the method.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lastword.bench.checkpoint import make_checkpoint, word_tokenizer
from lastword.bench.machine import busy_notice, describe_run
from lastword.bench.models.workloads import (
    FULL,
    Workload,
    long_workloads,
    pair_workload,
    real_tokenizer,
    workloads,
)
from lastword.bench.options import PRECISIONS
from lastword.bench.peers.grid import run_grid
from lastword.bench.peers.libraries import (
    OURS,
    Setup,
    choose_libraries,
    open_library,
    versions,
    vllm_version,
)
from lastword.bench.peers.limits import Rates, limit, workload_cost
from lastword.bench.peers.rounds import Contender, Group, Lane, LoadsOf, Runner, embed, lanes_of
from lastword.bench.peers.schedule import Schedule, duration
from lastword.bench.peers.table import rows_of, slower_lines, table, target_lines
from lastword.bench.shapes import VOCABULARY, sizes_of
from lastword.errors import ConfigError
from lastword.kernels.linear.int8 import check_int8
from lastword.runtime.device import choose_device
from lastword.text.rerank_template import QWEN3_RERANKER
from lastword.weights import read_config

# Numbers of documents, of short queries, and of queries with one call each: for more than MANY_LAYERS layers, for at
# most MANY_LAYERS, and with --quick.
REAL, SHALLOW, FEW = (24, 60, 6), (96, 200, 16), (8, 20, 4)
# Numbers of queries, and of documents per query, with --rerank: in the same three cases, and on a GPU.
PAIRS, SHALLOW_PAIRS, FEW_PAIRS, ALL_PAIRS = (2, 50), (5, 50), (2, 10), (20, 50)
MANY_LAYERS = 8  # with more layers on a CPU, long texts are left out
ROUNDS = 5
_POSITIONS = 4096
# Guesses from which the length of the run is announced before anything is timed. For each library: its time as a
# multiple of the limit (`limits.limit`), and how many seconds it takes to start.
_GUESSES = {
    OURS: (1.5, 15),
    "sentence-transformers": (4, 20),
    "llama.cpp": (6, 15),
    "vllm": (2, 120),
}
_BUSY_LOOPS = 2
_MODES = {  # with which library each of these options compares
    "grid": "sentence-transformers",
    "busy": "sentence-transformers",
    "scaling": "lastword itself",
}

Result = dict[str, Any]  # the values of the JSON line


def run(args: argparse.Namespace, show: Callable[[str], None]) -> int:
    """Run the comparison.

    Args:
        args: options of `bench peers`.
        show: prints a line.

    Returns:
        The exit status: 1 if vectors or log-odds differ, or --grid or --busy find lastword slower anywhere, else 0.

    Raises:
        ConfigError: a requested library cannot take part, or none can; or options cannot be combined.
    """
    rerank = args.rerank is not None
    # lastword checks the checkpoint before the other libraries load it.
    config = None if args.model is None else read_config(args.model, reranker=rerank)
    device = choose_device(args.device)
    precisions = _precisions(args, device)
    requested = ["sentence-transformers"] if args.grid or args.busy else args.beside
    if args.python is not None:
        vllm_version(args.python)  # before anything is made
    found: dict[str, list[str]] = {precision: [] for precision in precisions}
    if not args.scaling:
        found = choose_libraries(
            requested, precisions, config, device, args.python, _say, rerank=rerank
        )
    layers = args.layers if config is None else config.num_hidden_layers
    with tempfile.TemporaryDirectory(prefix="lastword-peers-") as scratch:
        make = _reranker if rerank else _checkpoint
        folder = args.model or make(Path(scratch) / "model", layers, precisions, device)
        setup = Setup.of(folder, Path(scratch), device, args.threads, args.python, rerank=rerank)
        torch.set_num_threads(args.threads)
        about = describe_run(device, torch.float32) | {"layers": layers, "random": config is None}
        del about["dtype"]  # each row has its own
        notice = busy_notice(about)
        if notice is not None:
            _say(notice)
        rounds = args.rounds or (1 if args.quick else ROUNDS)
        if args.grid:
            return run_grid(setup, precisions, rounds, about, show, _say, json_only=args.json)
        busy_loops = _BUSY_LOOPS if args.busy else 0
        loads = partial(loads_of, args, layers, device)
        with _busy_loops(busy_loops):
            show_table = _say if args.json else show
            result = compare(setup, found, loads, rounds, _variants(args), show_table)
    for line in target_lines(result["rows"]):
        (_say if args.json else show)(line)
    show(json.dumps({**about, "busy_loops": busy_loops, **result}))
    slower = slower_lines(result["rows"]) if args.busy else []
    for line in slower:
        _say(line)
    return 1 if result["differs"] or slower else 0


def _precisions(args: argparse.Namespace, device: torch.device) -> list[str]:
    """Return the precisions to compare, in the order of the table.

    Raises:
        ConfigError: options cannot be combined.
    """
    for name, what in _MODES.items():
        if getattr(args, name) and (args.beside or args.python):
            raise ConfigError(
                f"--{name}",
                f"compares with {what} only",
                got="--beside or --python",
                expected="neither",
            )
    if (args.grid or args.busy) and "8bit" in (args.precisions or ()):
        what = "sentence-transformers has no 8-bit weights"
        raise ConfigError("--precisions", what, got="8bit", expected="fp32 or bf16")
    on_cpu = device.type == "cpu"
    if args.scaling and (args.threads == 1 or not on_cpu):
        got = f"--threads {args.threads}, {device}"
        raise ConfigError(
            "--scaling", "compares threads", got=got, expected="at least two, on a CPU"
        )
    default = ["fp32"] if args.grid or args.busy else [*PRECISIONS] if on_cpu else ["bf16"]
    if args.rerank is not None:
        default = [each for each in default if each != "8bit"]  # nobody else scores in 8 bits
    chosen = args.precisions or default
    if "8bit" in chosen and not on_cpu:
        raise ConfigError(
            "--precisions", "8bit is compared on a CPU only", got=str(device), expected="cpu"
        )
    found = [each for each in PRECISIONS if each in chosen]
    if "8bit" in found:
        try:
            check_int8()
        except ConfigError as error:
            if args.precisions:
                raise
            error.where = "8bit is left out"
            _say(str(error))
            found.remove("8bit")
    return found


def loads_of(
    args: argparse.Namespace, layers: int, device: torch.device, turn: int
) -> list[Workload]:
    """Make a round's workloads; a faster model gets more texts."""
    many = layers > MANY_LAYERS and device.type == "cpu"
    if args.rerank is not None:
        pairs = FEW_PAIRS if args.quick else PAIRS if many else SHALLOW_PAIRS
        if device.type != "cpu" and not args.quick:
            pairs = ALL_PAIRS
        queries, documents = args.rerank or pairs
        return [pair_workload(queries, documents, turn)]
    counts = FEW if args.quick else REAL if many else SHALLOW
    if device.type != "cpu" and not args.quick:
        counts = FULL
    long = [] if many or args.quick else long_workloads(turn)
    return workloads(*counts, turn=turn) + long


def compare(
    setup: Setup,
    found: dict[str, list[str]],
    loads: LoadsOf,
    rounds: int,
    variants: list[Contender],
    show: Callable[[str], None],
) -> Result:
    """Compare the libraries, one precision after the other.

    Args:
        setup: the run's settings.
        found: the libraries to compare with, by precision.
        loads: a function that makes the workloads of a round.
        rounds: number of timed rounds.
        variants: lastword with other settings; each variant takes part like a library.
        show: prints the table of one precision.

    Returns:
        The values of the JSON line, without the facts of the run (`describe_run`).
    """
    contenders = {
        precision: [Contender(OURS, OURS), *variants, *(Contender(each, each) for each in some)]
        for precision, some in found.items()
    }
    rates = Rates.measure(list(found), setup.device)
    amounts = {load.name: workload_cost(setup, load) for load in loads(0)}
    limits = {
        (each, name): limit(amount, setup.config, each, rates)[0]
        for each in found
        for name, amount in amounts.items()
    }
    schedule = _schedule(setup, contenders, loads(0), limits, rounds)
    _say(f"{', '.join(found)}, {rounds} rounds: {duration(schedule.seconds_left())}")
    longest = _longest(setup, loads, rounds)
    reference = {} if "fp32" in found else _reference(setup, loads(0), longest)
    groups: list[Group] = []
    rows: list[dict[str, Any]] = []
    for precision, libraries in found.items():
        if "llama.cpp" in libraries:
            _prepare_llama_cpp(setup, loads, rounds, precision)
        matmul = partial(rates.improve, precision, setup.device)
        runner = Runner(setup, precision, loads, rounds, schedule, reference, matmul, _say)
        groups.append(runner.run(contenders[precision], longest))
        measured = rows_of(groups[-1], loads(0), amounts, setup.config, rates)
        show(table(measured, groups[-1], rates, layers=setup.config.num_hidden_layers))
        rows += measured
    used = {each for some in found.values() for each in some}
    return {
        "versions": versions(used, setup.python),
        "threads": setup.threads,
        "rounds": rounds,
        "flops_per_s": rates.flops_per_s,
        "read_bytes_per_s": rates.read_bytes_per_s,
        "peak_bytes": {group.precision: group.peak_bytes for group in groups},
        "left_out": [line for group in groups for line in group.left_out],
        "differs": any(group.differs for group in groups),
        "rows": rows,
    }


def _longest(setup: Setup, loads: LoadsOf, rounds: int) -> int:
    """Return the number of tokens of the longest text, with the prompt and the end token."""
    return max(
        len(ids)
        for turn in range(rounds + 1)
        for load in loads(turn)
        for ids in setup.tokenize(load.texts, load.kind)
    )


def _variants(args: argparse.Namespace) -> list[Contender]:
    """Return lastword with one thread, for --busy and --scaling, and with --threads models, for --scaling."""
    one = [Contender(f"{OURS}, 1 thread", OURS, threads=1)] if args.busy or args.scaling else []
    if not args.scaling:
        return one
    devices = ",".join(["cpu"] * args.threads)
    return [*one, Contender(f"{OURS}, {args.threads} models", OURS, device=devices)]


def _schedule(
    setup: Setup,
    contenders: dict[str, list[Contender]],
    loads: list[Workload],
    limits: dict[tuple[str, str], float],
    rounds: int,
) -> Schedule:
    """Estimate how long each part of the run takes, as a multiple (`_GUESSES`) of the least time for its workload.

    Args:
        setup: the run's settings.
        contenders: the libraries that take part, by precision.
        loads: the workloads of one round.
        limits: each workload's shortest possible time on this machine, in seconds, by precision and workload name.
        rounds: number of timed rounds.
    """
    schedule = Schedule()
    for precision, some in contenders.items():
        for each in some:
            factor, start_s = _GUESSES[each.library]
            schedule.add((precision, each.label, "start"), start_s)
            for load in loads:
                for label in _labels(each.label, load, setup):
                    guess = factor * limits[precision, load.name]
                    schedule.add((precision, label, load.name), guess, rounds + 1)
    return schedule


def _labels(label: str, load: Workload, setup: Setup) -> list[str]:
    nobody: Any = None
    return [lane.label for lane in lanes_of({label: nobody}, load, setup)]


def _reference(setup: Setup, loads: list[Workload], longest: int) -> dict[str, Tensor]:
    """Compute lastword's fp32 vectors, with which the vectors at every other precision are compared."""
    child = open_library(OURS, setup, "fp32", threads=setup.threads, longest=longest)
    try:
        lane = Lane(OURS, child, cache=True)
        return {load.name: embed(setup, lane, load)[0] for load in loads}
    finally:
        child.close()


def _prepare_llama_cpp(setup: Setup, loads: LoadsOf, rounds: int, precision: str) -> None:
    from lastword.bench.peers.llama_cpp import prepare

    _say(f"writing a GGUF file in {precision}")
    texts = [load for turn in range(rounds + 1) for load in loads(turn)]
    prepare(setup.folder, texts, setup.scratch, precision)


@contextmanager
def _busy_loops(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run `count` endless loops during the `with` block, each in its own process."""
    command = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _checkpoint(
    folder: Path,
    layers: int,
    precisions: list[str],
    device: torch.device,
    tokenizer: Path | Tokenizer | None = None,
    *,
    classifier: bool = False,
) -> Path:
    """Make a random checkpoint of the 0.6B shape, by default with the real tokenizer if it is available."""
    if tokenizer is None:
        real = real_tokenizer()
        tokenizer = word_tokenizer() if real is None else real / "tokenizer.json"
    dtype = torch.float32 if device.type == "cpu" or "fp32" in precisions else torch.bfloat16
    _say(f"making a random checkpoint: 0.6B shape, {layers} layers")
    return make_checkpoint(
        folder,
        **sizes_of("0.6B", layers),
        vocab_size=VOCABULARY,
        tokenizer=tokenizer,
        dtype=dtype,
        max_position_embeddings=_POSITIONS,
        prefix="model." if classifier else "",
        sentence_transformers=not classifier,
        classifier=classifier,
    )


def _reranker(folder: Path, layers: int, precisions: list[str], device: torch.device) -> Path:
    """Make a random 0.6B reranker for sequence classification, so every library scores by the same row of weights."""
    real, template = real_tokenizer(), QWEN3_RERANKER
    tokenizer: Path | Tokenizer  # without an end token
    if real is None:
        prompt = template.prompt(template.instruction)
        texts = (template.prefix, prompt, template.text("", ""), template.suffix)
        tokenizer = word_tokenizer(texts, end_token=False)
    else:
        tokenizer = real.with_name("Qwen3") / "tokenizer.json"
    return _checkpoint(folder, layers, precisions, device, tokenizer, classifier=True)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
