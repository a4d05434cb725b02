"""Draws of bags: exact shares of every dataset, equal probability for every row, equal on every machine."""

import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastword.errors import InputError
from lastword.weights.merging.bags import Dataset, choose_rows, read_bags

PERCENTAGE = "a percentage above 0, up to 100, with at most 4 decimals"
ONE_REST = "rest at most once, with at least one other ratio"


def dataset(rows: int, name: str = "d", *, old: bool = False) -> Dataset:
    return Dataset(name, Path(f"{name}.jsonl"), old, rows, "")


def draw(rows: int, ratios: str, *, seed: int = 1, name: str = "d", old=None) -> list[list[int]]:
    bags = read_bags(ratios)
    data = dataset(rows, name, old=old is not None)
    return [list(choose_rows(seed, bags, bag, data, Fraction(old or 40))) for bag in bags]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 400),
    st.lists(st.integers(1, 100), min_size=1, max_size=4),
    st.booleans(),
    st.integers(-(2**70), 2**70),
)
def test_shares_are_exact_and_without_replacement(rows, ratios, rest, seed):
    rest = rest and 100 not in ratios
    words = [str(ratio) for ratio in ratios] + ["rest"] * rest
    drawn = draw(rows, ",".join(words), seed=seed)
    for ratio, bag in zip(ratios, drawn, strict=False):
        assert len(bag) == int(rows * ratio / 100 + 0.5)
        assert bag == sorted(set(bag))
        assert all(0 <= row < rows for row in bag)
    if rest:
        taken = {row for bag in drawn[:-1] for row in bag}
        assert drawn[-1] == [row for row in range(rows) if row not in taken]


def test_every_row_is_as_likely_as_any_other():
    """In 4,000 draws of 30 % of 20 rows each row comes about 1,200 times; six standard deviations are 174."""
    counts = Counter(row for seed in range(4000) for row in draw(20, "30", seed=seed)[0])
    assert all(abs(counts[row] - 1200) < 174 for row in range(20))
    pairs = Counter(frozenset(draw(4, "50", seed=seed)[0]) for seed in range(3000))
    assert len(pairs) == 6
    assert all(abs(count - 500) < 123 for count in pairs.values())


def test_what_a_draw_depends_on():
    first = draw(1000, "60,60,60")
    assert draw(1000, "60,60,60") == first
    assert len({tuple(bag) for bag in first}) == 3  # bags of equal size are drawn independently
    assert draw(1000, "60,60,60", seed=2) != first
    assert draw(1000, "60,60,60", name="e") != first
    overlap = len(set(first[0]) & set(first[1]))
    assert 300 < overlap < 420  # independent: 360 expected


def test_the_draw_is_the_same_on_every_machine():
    """Compare a recorded plan: it must not change with the version of Python or lastword."""
    assert draw(20, "40,rest", seed=7) == [
        [1, 3, 5, 9, 10, 12, 14, 17],
        [0, 2, 4, 6, 7, 8, 11, 13, 15, 16, 18, 19],
    ]


def test_old_data():
    drawn = draw(1000, "100,50", old=40)
    assert [len(bag) for bag in drawn] == [400, 400]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("ratios", "what", "got", "expected"),
    [
        ("", "out of range", '""', PERCENTAGE),
        ("0", "out of range", '"0"', PERCENTAGE),
        ("101", "out of range", '"101"', PERCENTAGE),
        ("-5", "out of range", '"-5"', PERCENTAGE),
        ("nan", "out of range", '"nan"', PERCENTAGE),
        ("1/2", "out of range", '"1/2"', PERCENTAGE),
        ("80,", "out of range", '""', PERCENTAGE),
        ("half", "out of range", '"half"', PERCENTAGE),
        ("1e1", "out of range", '"1e1"', PERCENTAGE),
        ("1e-999999999", "out of range", '"1e-999999999"', PERCENTAGE),
        ("1e999999999", "out of range", '"1e999999999"', PERCENTAGE),
        ("5_0", "out of range", '"5_0"', PERCENTAGE),
        ("٥٠", "out of range", '"\\u0665\\u0660"', PERCENTAGE),
        (".", "out of range", '"."', PERCENTAGE),
        ("50.00001", "out of range", '"50.00001"', PERCENTAGE),
        ("rest", "wrong list", "rest", ONE_REST),
        ("50,rest,rest", "wrong list", "50,rest,rest", ONE_REST),
        ("100,rest", "a bag of 100 leaves no rows for rest", "100,rest", None),
    ],
)
def test_bad_ratios(ratios, what, got, expected):
    with pytest.raises(InputError) as caught:
        read_bags(ratios)
    assert vars(caught.value) == vars(InputError("ratios", what, got=got, expected=expected))


def test_ratios_are_exact():
    assert [bag.name for bag in read_bags(" 12.5 , 80.0,rest")] == ["1-12.5", "2-80", "3-rest"]
    assert len(draw(1000, "0.1")[0]) == 1
    assert len(draw(10**4, "33.33")[0]) == 3333


def test_a_seeded_generator_is_what_python_promises():
    """Draws use `random.Random(int).random()`; compare it with its published sequence."""
    generator = random.Random(42)
    assert [generator.random() for _ in range(3)] == [
        0.6394267984578837, 0.025010755222666936, 0.27502931836911926
    ]  # fmt: skip


@given(st.decimals(min_value=0, max_value=100, places=4))
def test_a_bags_name_states_its_ratio_exactly(ratio):
    if ratio:
        (bag,) = read_bags(str(ratio))
        assert Fraction(bag.name.removeprefix("1-")) == bag.ratio == Fraction(ratio)
