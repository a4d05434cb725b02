"""Bags: seeded random subsets of training data. One model is trained on each bag, and then the models are merged.

Each dataset (a file with one row per line) is sampled separately, without replacement: a bag of 80 has 80 % of every
new dataset. Of an old dataset, on which an earlier model was trained, every bag has the same percentage. Which rows are
chosen depends only on the seed, the bags, that percentage, and the dataset's name and number of rows. lastword does not
train; `bags_plan.py` writes the numbers or ids of the chosen rows to disk.
"""

import hashlib
import heapq
import json
import os
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from lastword.errors import InputError, list_some
from lastword.weights.files.reading import open_regular, read_error
from lastword.weights.json_fields import parse_object, show_value
from lastword.weights.merging.recipe import MAX_MODELS, wrong_name

REST = "rest"  # the ratio of the bag that gets all new rows which are in no other bag
_PROGRESS_BYTES = 1 << 22  # bytes between two calls of `progress`
_MAX_ROW = 1 << 26  # bytes; a file without line ends is refused before memory runs out
# At most 4 decimals, so that a bag's name can state its ratio exactly.
_PERCENT = re.compile(r"\d{1,3}(\.\d{,4})?|\.\d{1,4}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file of rows: their number and sha256, and whether an earlier model was trained on them (`old`)."""

    name: str
    path: Path
    old: bool
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Bag:
    """One subset: its name, and its percentage of every new dataset; None for the bag with the remaining rows."""

    name: str
    ratio: Fraction | None


def read_bags(ratios: str, where: str = "ratios") -> list[Bag]:
    """Read percentages such as `80,100` or `50,rest`, and return a bag for each; bag i, from 1, is named `i-RATIO`.

    Args:
        ratios: the percentages, separated by commas.
        where: the beginning of each error message.

    Raises:
        InputError: `ratios` is not a list of percentages above 0 and up to 100, with `rest` at most once and not alone;
            there are too many; or a bag of 100 leaves no rows for `rest`.
    """
    words = [word.strip() for word in ratios.split(",")]
    if len(words) >= MAX_MODELS:  # an existing model may be merged with the bags' models
        got, expected = str(len(words)), f"at most {MAX_MODELS - 1}"
        raise InputError(where, "too many bags", got=got, expected=expected)
    shares = [None if word == REST else percent(word, where) for word in words]
    bags = [
        Bag(f"{i}-{REST if share is None else format_percent(share)}", share)
        for i, share in enumerate(shares, 1)
    ]
    if words.count(REST) > 1 or words == [REST]:
        expected = "rest at most once, with at least one other ratio"
        raise InputError(where, "wrong list", got=ratios, expected=expected)
    if REST in words and any(bag.ratio == 100 for bag in bags):
        raise InputError(where, "a bag of 100 leaves no rows for rest", got=ratios)
    return bags


def percent(word: str, where: str) -> Fraction:
    """Read one percentage exactly; the error message begins with `where`."""
    ratio = Fraction(word) if _PERCENT.fullmatch(word) else Fraction(0)
    if not 0 < ratio <= 100:
        expected = "a percentage above 0, up to 100, with at most 4 decimals"
        raise InputError(where, "out of range", got=show_value(word), expected=expected)
    return ratio


def format_percent(ratio: Fraction) -> str:
    """Format a percentage, such as 80 or 12.5."""
    return str(int(ratio)) if ratio.denominator == 1 else f"{float(ratio):g}"


def read_dataset(
    name: str, path: Path, *, old: bool = False, progress: Callable[[int], object] = lambda _: None
) -> Dataset:
    """Read a dataset's file line by line; count the rows and hash them.

    Each line is a row. In a `.jsonl` file blank lines are not rows, and each row must begin with `{`.

    Args:
        name: the dataset's name.
        path: the file.
        old: whether an earlier model was trained on this data.
        progress: called with the number of bytes read since the last call.

    Raises:
        InputError: the file cannot be read, has no rows, or a row of a `.jsonl` file does not begin with `{`.
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
    """Refuse datasets with equal names, or with names that some file systems treat as equal."""
    found: dict[str, str] = {}
    for name in names:
        same = unicodedata.normalize("NFC", name).casefold()
        if same in found:
            both = list_some({found[same], name})
            remedy = f"Give them different names, as in first={name}.jsonl."
            raise InputError("datasets", f"named twice: {both}", remedy=remedy)
        found[same] = name


def check_into(into: str, bags: Sequence[Bag], where: str) -> None:
    """Check the name of an existing model that is to be merged with the models of the bags.

    Args:
        into: the existing model's folder or hub id.
        bags: the bags; the recipe expects each bag's model in a folder with the bag's name.
        where: the beginning of the error message.

    Raises:
        InputError: the name cannot be used in a recipe, or is the folder in which a bag's model is expected.
    """
    if (wrong := wrong_name(into)) is not None:
        expected, remedy = wrong
        got = show_value(into)
        raise InputError(where, "wrong value", got=got, expected=expected, remedy=remedy)
    if os.path.normpath(into) in {bag.name for bag in bags}:
        what = "is the folder of a bag's own model"
        raise InputError(where, what, got=show_value(into), remedy="Move the existing model.")


def choose_rows(
    seed: int, bags: Sequence[Bag], bag: Bag, dataset: Dataset, old_ratio: Fraction
) -> Iterator[int]:
    """Yield the numbers (from 0, ascending) of those rows of a dataset that are in a bag.

    Args:
        seed: the plan's seed.
        bags: all bags of the plan; the bag with the ratio None gets the new rows that are in no other bag.
        bag: one of these bags.
        dataset: the dataset.
        old_ratio: the percentage of each old dataset that every bag gets, whatever the bag's own ratio is.
    """
    if dataset.old:
        return _draw(seed, bag, dataset, old_ratio)
    if bag.ratio is not None:
        return _draw(seed, bag, dataset, bag.ratio)
    others = [_draw(seed, each, dataset, each.ratio) for each in bags if each.ratio is not None]
    return _remaining_rows(dataset.rows, others)


def _draw(seed: int, bag: Bag, dataset: Dataset, ratio: Fraction) -> Iterator[int]:
    """Draw exactly `ratio` percent of the rows, rounded half up; all subsets of this size are equally likely."""
    left = int(dataset.rows * ratio / 100 + Fraction(1, 2))
    key = json.dumps([seed, bag.name, dataset.name, dataset.rows]).encode()
    # Python guarantees that random() gives the same sequence for a seed on every machine and in every version.
    generator = random.Random(int.from_bytes(hashlib.sha256(key).digest()))  # noqa: S311
    draw = generator.random
    for row in range(dataset.rows):
        if not left:
            return
        if draw() * (dataset.rows - row) < left:
            left -= 1
            yield row


def _remaining_rows(rows: int, drawn: Sequence[Iterator[int]]) -> Iterator[int]:
    taken = heapq.merge(*drawn)
    next_taken = next(taken, rows)
    for row in range(rows):
        while next_taken < row:
            next_taken = next(taken, rows)
        if next_taken != row:
            yield row


def row_ids(dataset: Dataset, rows: Iterator[int], id_field: str | None) -> Iterator[str]:
    """Yield the id of each row whose number is in `rows`: its field `id_field`; without `id_field`, the row number.

    Raises:
        InputError: a row lacks the field, its value is neither a whole number nor a one-line string, or the file has
            become shorter.
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
    if wanted is not None:
        what = "changed while it was read"
        raise InputError(str(dataset.path), what, remedy="Run again when it is complete.")


def _id_of(line: bytes, field: str, where: str) -> str:
    value = parse_object(line, where, InputError).get(field)
    if isinstance(value, str) and value and value.isprintable():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InputError(
        f"{where}: field {show_value(field)}",
        "cannot be the row's id",
        got=show_value(value),
        expected="a whole number or a string of one line",
    )


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the rows of a file as they are stored, with their line ends."""
    objects = path.suffix == ".jsonl"
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(_MAX_ROW + 1):
                number += 1
                if len(line) > _MAX_ROW:
                    expected = f"at most {_MAX_ROW:,} bytes"
                    raise InputError(
                        f"{path}:{number}", "is too long for one row", expected=expected
                    )
                if not objects:
                    yield line
                elif row := line.strip():
                    if not row.startswith(b"{"):
                        got = show_value(row[:40].decode("utf-8", "replace"))
                        raise InputError(
                            f"{path}:{number}", "wrong row", got=got, expected="a JSON object"
                        )
                    yield line
    except OSError as problem:
        raise read_error(path, problem, InputError) from None
