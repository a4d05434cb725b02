"""Bags: seeded subsets of training data, on each of which a model is trained before the models are merged.

Each dataset (a file, one row per line) is sampled by itself, without replacement: a bag of 80 has 80 % of every
dataset. What is chosen depends on the seed, the bag and the dataset's name and number of rows alone. Knows
nothing about training; `bags_plan.py` writes what this decides.
"""

import hashlib
import heapq
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from lastword.errors import InputError, some
from lastword.weights.json_fields import parse_object, shown, unreadable

REST = "rest"  # the bag of all rows that no other bag has
_PROGRESS_BYTES = 1 << 22  # between two calls of `progress`


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file of rows, counted and hashed. `old` marks data that an earlier model was trained on."""

    name: str
    path: Path
    old: bool
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Bag:
    """One subset: its share of every new dataset in percent, `None` for the rest."""

    name: str
    ratio: Fraction | None


def read_bags(ratios: str, where: str = "ratios") -> list[Bag]:
    """Read percentages such as `80,100` or `50,rest`; bag i is called `i-RATIO`; `where` begins messages.

    Raises:
        InputError: not a list of numbers above 0 and up to 100, with `rest` at most once.
    """
    words = [word.strip() for word in ratios.split(",")]
    shares = [None if word == REST else percent(word, where) for word in words]
    bags = [
        Bag(f"{i}-{REST if share is None else shown_percent(share)}", share)
        for i, share in enumerate(shares, 1)
    ]
    if words.count(REST) > 1 or words == [REST]:
        expected = "rest once, beside another ratio"
        raise InputError(where, "wrong list", got=ratios, expected=expected)
    if REST in words and any(bag.ratio == 100 for bag in bags):
        raise InputError(where, "beside a bag of 100 there is no rest", got=ratios)
    return bags


def percent(word: str, where: str) -> Fraction:
    """Read one percentage, exactly; `where` begins the message."""
    try:
        ratio = Fraction(word)
    except (ValueError, ZeroDivisionError):
        ratio = Fraction(0)
    if not 0 < ratio <= 100 or "/" in word:
        expected = "a percentage above 0, up to 100"
        raise InputError(where, "out of range", got=shown(word), expected=expected)
    return ratio


def shown_percent(ratio: Fraction) -> str:
    """Show a percentage as it is usually written."""
    return str(int(ratio)) if ratio.denominator == 1 else f"{float(ratio):g}"


def read_dataset(
    name: str, path: Path, *, old: bool = False, progress: Callable[[int], object] = lambda _: None
) -> Dataset:
    """Count a file's rows and hash its bytes, a line at a time.

    A line is a row; in `.jsonl` blank lines are not, and any other must begin an object.

    Raises:
        InputError: the file cannot be read, has no rows, or a line of `.jsonl` holds no object.
    """
    rows, done, digest = 0, 0, hashlib.sha256()
    for line in _lines(path):
        digest.update(line)
        done += len(line)
        if done >= _PROGRESS_BYTES:
            progress(done)
            done = 0
        rows += 1
    progress(done)
    if not rows:
        raise InputError(str(path), "holds no rows", expected="at least one")
    return Dataset(name, path, old, rows, digest.hexdigest())


def check_names(names: Iterable[str]) -> None:
    """Refuse datasets that could not be told apart."""
    listed = list(names)
    if twice := {name for name in listed if listed.count(name) > 1}:
        remedy = f"Name them apart, as in first={some(twice)}.jsonl."
        raise InputError("datasets", f"named twice: {some(twice)}", remedy=remedy)


def chosen(
    seed: int, bags: Sequence[Bag], bag: Bag, dataset: Dataset, old_ratio: Fraction
) -> Iterator[int]:
    """Give the numbers of the rows, from 0, that a bag takes of a dataset, in rising order.

    Of old data every bag draws `old_ratio` percent.
    """
    if dataset.old:
        return _drawn(seed, bag, dataset, old_ratio)
    if bag.ratio is not None:
        return _drawn(seed, bag, dataset, bag.ratio)
    others = [_drawn(seed, each, dataset, each.ratio) for each in bags if each.ratio is not None]
    return _left_over(dataset.rows, others)


def _drawn(seed: int, bag: Bag, dataset: Dataset, ratio: Fraction) -> Iterator[int]:
    """Draw exactly `ratio` percent of the rows, rounded half up, each subset as likely as any other."""
    left = int(dataset.rows * ratio / 100 + Fraction(1, 2))
    key = json.dumps([seed, bag.name, dataset.name, dataset.rows]).encode()
    # Python promises that random() gives the same sequence for a seed on every machine and version.
    generator = random.Random(int.from_bytes(hashlib.sha256(key).digest()))  # noqa: S311
    draw = generator.random
    for row in range(dataset.rows):
        if not left:
            return
        if draw() * (dataset.rows - row) < left:
            left -= 1
            yield row


def _left_over(rows: int, drawn: Sequence[Iterator[int]]) -> Iterator[int]:
    taken = heapq.merge(*drawn)
    next_taken = next(taken, rows)
    for row in range(rows):
        while next_taken < row:
            next_taken = next(taken, rows)
        if next_taken != row:
            yield row


def row_ids(dataset: Dataset, rows: Iterator[int], id_field: str | None) -> Iterator[str]:
    """Give chosen rows by their number, or by the value of a field of their JSON object.

    Raises:
        InputError: a row's field is missing, or neither a number nor a one-line string.
    """
    if id_field is None:
        yield from map(str, rows)
        return
    wanted = next(rows, None)
    for row, line in enumerate(_lines(dataset.path)):
        if wanted is None:
            return
        if row == wanted:
            yield _id_of(line, id_field, f"{dataset.path}: row {row}")
            wanted = next(rows, None)


def _id_of(line: bytes, field: str, where: str) -> str:
    value = parse_object(line, where, InputError, unique_keys=False).get(field)
    if isinstance(value, str) and value and value.isprintable():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InputError(
        f"{where}: field {shown(field)}",
        "cannot name the row",
        got=shown(value),
        expected="a whole number or a string of one line",
    )


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the rows of a file as they stand."""
    objects = path.suffix == ".jsonl"
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not objects:
                    yield line
                elif row := line.strip():
                    if not row.startswith(b"{"):
                        got = shown(row[:40].decode("utf-8", "replace"))
                        raise InputError(
                            f"{path}:{number}", "wrong row", got=got, expected="a JSON object"
                        )
                    yield line
    except OSError as problem:
        raise unreadable(path, problem, InputError) from None
