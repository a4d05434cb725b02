"""`lastword bench peers --grid`: lastword and sentence-transformers on texts of equal length, from 1 to 4,000 tokens.

Texts of equal length need no padding, so only the computation differs. Lengths do not count the end token.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from lastword.bench.models.workloads import Workload, texts_of
from lastword.bench.peers.child import Child
from lastword.bench.peers.libraries import OURS, Setup, open_library, versions
from lastword.bench.peers.rounds import Lane, accuracy_of, disagreement, embed
from lastword.bench.peers.schedule import duration

THEIRS = "sentence-transformers"
LENGTHS = (1, 4, 16, 64, 250, 500, 1000, 2000, 4000)
COUNTS = (1, 2, 4, 16, 64, 512)
MOST_TOKENS = 8192  # largest number of tokens of a cell

Cell = tuple[int, int]  # tokens of a text, number of texts


def cells() -> list[Cell]:
    """Return the cells of the grid."""
    return [(n, count) for n in LENGTHS for count in COUNTS if n * count <= MOST_TOKENS]


def run_grid(
    setup: Setup,
    precisions: list[str],
    rounds: int,
    about: Mapping[str, object],
    show: Callable[[str], None],
    say: Callable[[str], None],
    *,
    json_only: bool,
) -> int:
    """Time every cell at every precision.

    Args:
        setup: the run's settings.
        precisions: names of precisions: fp32, bf16 or both.
        rounds: number of timed rounds, in which the two libraries take turns at going first.
        about: facts about the run, for the JSON line.
        show: prints a line of the result.
        say: prints progress.
        json_only: whether to print the JSON line alone.

    Returns:
        The exit status: 1 if vectors differ or lastword is slower in a cell, else 0.
    """
    rows, failed = [], False
    for precision in precisions:
        children: dict[str, Child] = {}
        try:
            for library in (OURS, THEIRS):
                children[library] = open_library(
                    library, setup, precision, threads=setup.threads, longest=max(LENGTHS) + 1
                )
            measured = _measure(setup, children, precision, rounds, say)
        finally:
            for child in children.values():
                child.close()
        rows += measured
        failed = failed or any(row["slower"] or row["differs"] for row in measured)
        if not json_only:
            show(grid_table(measured, precision))
    facts = {"versions": versions({THEIRS}, None), "threads": setup.threads, "rounds": rounds}
    show(json.dumps({**about, **facts, "rows": rows}))
    return 1 if failed else 0


def _measure(
    setup: Setup,
    children: Mapping[str, Child],
    precision: str,
    rounds: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Compare the two libraries' vectors in every cell, then time every cell in each round; return a row per cell.

    The comparison also shows how long the rounds will take.
    """
    lanes = [Lane(label, child, cache=False) for label, child in children.items()]
    differs, first_s = {}, {}
    for cell in cells():
        (ours, ours_s), (theirs, theirs_s) = (embed(setup, lane, _load(cell, 0)) for lane in lanes)
        differs[cell] = disagreement(accuracy_of(theirs, ours), precision)
        first_s[cell] = ours_s + theirs_s
        say(f"{precision} {cell[1]} texts of {cell[0]} tokens: vectors {differs[cell] or 'agree'}")
    taken: dict[Cell, dict[str, list[float]]] = {
        cell: {label: [] for label in children} for cell in cells()
    }
    for turn in range(1, rounds + 1):
        left = sum(first_s.values()) * (rounds - turn + 1)
        say(f"{precision} round {turn}/{rounds}; {duration(left)} left")
        for cell in cells():
            path = str(setup.write_texts(_load(cell, turn)))
            for lane in lanes if turn % 2 else lanes[::-1]:
                answer = lane.child.ask(do="run", texts=path, save=None, cache=False)
                taken[cell][lane.label].append(answer["seconds"])
    return [_row(cell, precision, taken[cell], differs[cell]) for cell in cells()]


def _load(cell: Cell, turn: int) -> Workload:
    length, count = cell
    return Workload(
        "grid", f"{count} texts of {length} tokens", texts_of(count, length, turn), "document"
    )


def _row(
    cell: Cell, precision: str, taken: Mapping[str, list[float]], differs: str | None
) -> dict[str, Any]:
    seconds = {label: statistics.median(times) for label, times in taken.items()}
    speedup = seconds[THEIRS] / seconds[OURS]
    return {
        "precision": precision,
        "tokens": cell[0],
        "texts": cell[1],
        "seconds": seconds,
        "round_seconds": dict(taken),
        "speedup": speedup,
        "slower": speedup < 1,
        "differs": differs,
    }


def grid_table(rows: list[dict[str, Any]], precision: str) -> str:
    """Format one precision's grid: the time of sentence-transformers divided by lastword's."""
    by_cell = {(row["tokens"], row["texts"]): row for row in rows}
    lines = [
        "",
        f"{precision}: time of sentence-transformers over lastword's; < marks where lastword is slower",
        f"{'tokens':>8}" + "".join(f"{f'{count} texts':>11}" for count in COUNTS),
    ]
    for length in LENGTHS:
        line = f"{length:8}"
        for count in COUNTS:
            row = by_cell.get((length, count))
            mark = "" if row is None else f"{row['speedup']:.2f}{'<' if row['slower'] else ' '}"
            line += f"{mark:>11}"
        lines.append(line.rstrip())
    lines += [
        f"{row['texts']} texts of {row['tokens']} tokens: vectors {row['differs']}"
        for row in rows
        if row["differs"]
    ]
    slower = sum(row["slower"] for row in rows)
    lines.append(f"lastword is slower in {slower} of {len(rows)} cells")
    return "\n".join(lines)
