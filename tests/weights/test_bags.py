"""Bags: exact shares of every dataset, the same on every machine, in constant memory, with a recipe to merge."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_anonymous

from lastword.cli.main import main
from lastword.errors import InputError
from lastword.weights.bags import Dataset, chosen, read_bags
from lastword.weights.recipe import read_recipe


def dataset(rows: int, name: str = "d", *, old: bool = False) -> Dataset:
    return Dataset(name, Path(f"{name}.jsonl"), old, rows, "")


def draw(rows: int, ratios: str, *, seed: int = 1, name: str = "d", old=None) -> list[list[int]]:
    bags = read_bags(ratios)
    data = dataset(rows, name, old=old is not None)
    return [list(chosen(seed, bags, bag, data, Fraction(old or 40))) for bag in bags]


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
    """4,000 draws of 30 % of 20 rows: each row about 1,200 times; six standard deviations are 174."""
    counts = Counter(row for seed in range(4000) for row in draw(20, "30", seed=seed)[0])
    assert all(abs(counts[row] - 1200) < 174 for row in range(20))
    pairs = Counter(frozenset(draw(4, "50", seed=seed)[0]) for seed in range(3000))
    assert len(pairs) == 6
    assert all(abs(count - 500) < 123 for count in pairs.values())


def test_what_a_draw_depends_on():
    first = draw(1000, "60,60,60")
    assert draw(1000, "60,60,60") == first
    assert len({tuple(bag) for bag in first}) == 3  # bags of one size are drawn by themselves
    assert draw(1000, "60,60,60", seed=2) != first
    assert draw(1000, "60,60,60", name="e") != first
    overlap = len(set(first[0]) & set(first[1]))
    assert 300 < overlap < 420  # independent: 360 expected


def test_the_draw_is_the_same_on_every_machine():
    """Recorded once: a plan must not change with the version of Python or of lastword."""
    assert draw(20, "40,rest", seed=7) == [
        [1, 3, 5, 9, 10, 12, 14, 17],
        [0, 2, 4, 6, 7, 8, 11, 13, 15, 16, 18, 19],
    ]


def test_old_data():
    drawn = draw(1000, "100,50", old=40)
    assert [len(bag) for bag in drawn] == [400, 400]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ("", "expected a percentage"),
        ("0", "expected a percentage above 0"),
        ("101", "up to 100"),
        ("-5", "expected a percentage"),
        ("nan", "expected a percentage"),
        ("1/2", "expected a percentage"),
        ("80,", "expected a percentage"),
        ("half", "expected a percentage"),
        ("rest", "expected rest once"),
        ("50,rest,rest", "expected rest once"),
        ("100,rest", "there is no rest"),
    ],
)
def test_bad_ratios(ratios, message):
    with pytest.raises(InputError, match=message):
        read_bags(ratios)


def test_ratios_are_exact():
    assert [bag.name for bag in read_bags(" 12.5 , 80.0,rest")] == ["1-12.5", "2-80", "3-rest"]
    assert len(draw(1000, "0.1")[0]) == 1
    assert len(draw(10**4, "33.33")[0]) == 3333


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a", 10), ("b", 7), ("old", 20)):
        lines = (json.dumps({"id": f"{name}-{i}", "text": "é" * i}) for i in range(rows))
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def bags(*arguments, out="plan.json", ratios="80,100", seed=7) -> int:
    return main(["bags", *arguments, "--ratios", ratios, "--seed", str(seed), "-o", out])


def tree(*places: str) -> dict[str, bytes]:
    files = [path for place in places for path in [Path(place), *Path(place).rglob("*")]]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


def test_a_plan(files, capfd):
    assert bags("a.jsonl", "b.jsonl") == 0
    assert "bag 1-80: 14 rows of 2 datasets" in capfd.readouterr().err
    plan = json.loads(Path("plan.json").read_text())
    assert [(bag["name"], bag["rows"]) for bag in plan["bags"]] == [("1-80", 14), ("2-100", 17)]
    for bag in plan["bags"]:
        for name, part in bag["datasets"].items():
            ids = Path(part["ids"]).read_text().split()
            assert len(ids) == part["rows"] == len(set(ids))
            assert all(0 <= int(row) < plan["datasets"][name]["rows"] for row in ids)
            assert part["sha256"] == hashlib.sha256(Path(part["ids"]).read_bytes()).hexdigest()
    assert (
        plan["datasets"]["a"]["sha256"] == hashlib.sha256(Path("a.jsonl").read_bytes()).hexdigest()
    )
    recipe = read_recipe(Path("plan.merge.yaml"))
    assert (recipe.method, recipe.models, recipe.weights) == (
        "multislerp", ("./1-80", "./2-100"), (1.0, 1.0)
    )  # fmt: skip
    assert sorted(os.listdir()) == sorted(
        ["a.jsonl", "b.jsonl", "old.jsonl", "plan.json", "plan.merge.yaml", "plan.rows"]
    )


def test_the_same_plan_from_another_place_in_another_order(files, monkeypatch):
    bags("a.jsonl", "b.jsonl", "--id-field", "id")
    here = tree("plan.json", "plan.rows", "plan.merge.yaml")
    (files / "elsewhere").mkdir()
    monkeypatch.chdir(files / "elsewhere")
    bags("b=../b.jsonl", str(files / "a.jsonl"), "--id-field", "id")
    assert tree("plan.json", "plan.rows", "plan.merge.yaml") == here


def test_ids_and_weights_by_size(files):
    bags("a.jsonl", "b.jsonl", "--id-field", "id", "--weights", "size")
    ids = Path("plan.rows/1-80/a.txt").read_text().split()
    bags("a.jsonl", "b.jsonl", out="numbers.json")
    numbers = Path("numbers.rows/1-80/a.txt").read_text().split()
    assert ids == [f"a-{number}" for number in numbers]
    assert read_recipe(Path("plan.merge.yaml")).weights == (14.0, 17.0)


def test_incremental(files):
    bags("a.jsonl", "--old", "old.jsonl", "--into", "./released", "--weights", "size", ratios="100")
    plan = json.loads(Path("plan.json").read_text())
    parts = plan["bags"][0]["datasets"]
    assert {name: part["rows"] for name, part in parts.items()} == {"a": 10, "old": 8}
    assert plan["datasets"]["old"]["old"] is True
    assert plan["old_ratio"] == "40"
    recipe = read_recipe(Path("plan.merge.yaml"))
    assert (recipe.models, recipe.weights) == (("./released", "./1-100"), (20.0, 18.0))
    bags("a.jsonl", "--old", "old.jsonl", "--old-ratio", "75", ratios="100", out="more.json")
    more = json.loads(Path("more.json").read_text())
    assert more["bags"][0]["datasets"]["old"]["rows"] == 15


def test_the_recipe_merges(files, capfd):
    from lastword.bench.checkpoint import make_checkpoint

    bags("a.jsonl")
    for i, name in enumerate(("1-80", "2-100")):
        make_checkpoint(name, seed=i)
    assert main(["merge", "plan.merge.yaml", "merged"]) == 0
    assert yaml.safe_load(Path("plan.merge.yaml").read_text())["dtype"] == "float32"


def test_blank_lines_text_and_missing_last_newline(files):
    Path("t.txt").write_bytes(b"one\n\nthree \xff")
    Path("j.jsonl").write_bytes(b'\n{"id": 5}\n  \n{"id": "x"}')
    assert bags("t.txt", "j.jsonl", ratios="100") == 0
    plan = json.loads(Path("plan.json").read_text())
    assert {name: part["rows"] for name, part in plan["datasets"].items()} == {"t": 3, "j": 2}
    assert bags("j.jsonl", "--id-field", "id", ratios="100", out="i.json") == 0
    assert Path("i.rows/1-100/j.txt").read_text() == "5\nx\n"


BAD = {
    "gone": (["gone.jsonl"], "gone.jsonl: no such file"),
    "folder": (["."], "no such file"),
    "ending": (["x.csv"], "got .csv, expected .jsonl or .txt"),
    "empty": (["e.jsonl"], "e.jsonl: holds no rows"),
    "array": (["x.jsonl"], 'x.jsonl:2: got "[1]", expected a JSON object'),
    "twice": (["a.jsonl", "sub/a.jsonl"], "datasets: named twice: a"),
    "old-twice": (["a.jsonl", "--old", "a.jsonl"], "datasets: named twice: a"),
    "name": (["a b=a.jsonl"], "the name 'a b'; expected letters"),
    "hidden": ([".a=a.jsonl"], "the name '.a'"),
    "no-field": (["a.jsonl", "--id-field", "key"], 'row 0: field "key"; got null, expected a whole'),
    "bad-id": (["n.jsonl", "--id-field", "id"], 'field "id"; got "x\\ny", expected a whole number'),
    "not-json": (["bad.jsonl", "--id-field", "id"], "row 0: is not JSON"),
    "into": (["a.jsonl", "--into", "m", "--weights", "size"], "name them with --old"),
    "old-ratio": (["a.jsonl", "--old", "b.jsonl", "--old-ratio", "0"], '--old-ratio: got "0", expected a percentage'),
    "old-ratio-name": (["a.jsonl", "--old-ratio", "x"], '--old-ratio: got "x"'),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(files, capfd, case):
    (files / "sub").mkdir()
    (files / "sub/a.jsonl").write_text("{}\n")
    Path("x.csv").write_text("a\n")
    Path("e.jsonl").write_text("\n")
    Path("x.jsonl").write_text("{}\n[1]\n")
    Path("n.jsonl").write_text('{"id": "x\\ny"}\n')
    Path("bad.jsonl").write_text("{bad\n")
    before = sorted(os.listdir())
    arguments, message = BAD[case]
    assert bags(*arguments) == 2
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("name", ["plan.json", "plan.rows", "plan.merge.yaml"])
def test_an_earlier_plan_is_left_alone(files, capfd, name):
    Path(name).write_text("mine")
    assert bags("a.jsonl") == 2
    assert f"{name}: is there already, expected a new plan" in capfd.readouterr().err
    assert Path(name).read_text() == "mine"


@pytest.mark.parametrize("out", ["plan", ".", "", "/", "..", ".json"])
def test_a_plan_needs_the_ending_json(files, capfd, out):
    assert bags("a.jsonl", out=out) == 2
    err = capfd.readouterr().err
    assert "got no ending, expected a plan's name with .json" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("step", ["fsync", "rename", "replace"])
def test_a_plan_that_cannot_be_finished_leaves_no_plan(files, capfd, monkeypatch, step):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    assert bags("a.jsonl") == 2
    err = capfd.readouterr().err
    assert "cannot be written; No space left on device" in err
    assert err.count("\n") == 1
    assert not Path("plan.json").exists()
    assert not list(Path().glob(".*"))


def test_a_plan_is_on_the_disk_before_it_is_there(files, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        assert not Path("plan.json").exists()
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert bags("a.jsonl") == 0
    written = [path for place in Path().glob("plan*") for path in (place, *place.rglob("*"))]
    assert {path.stat().st_ino for path in written} == set(synced)


def test_a_bag_without_rows(files, capfd):
    Path("one.txt").write_text("x\n")
    assert bags("one.txt", ratios="10") == 2
    assert "bag 1-10: holds no rows" in capfd.readouterr().err
    assert not list(Path().glob("*plan*"))


def peak_of(rows: int, folder: Path) -> int:
    """Peak bytes, beyond files, of planning over `rows` rows."""
    text = b'{"text": "a row of some length", "id": 123456}\n'
    with (folder / f"{rows}.jsonl").open("wb") as file:
        for _ in range(rows // 10_000):
            file.write(text * 10_000)
    words = ["bags", f"{rows}.jsonl", "--ratios", "80,rest", "--seed", "1", "-o", f"p{rows}.json"]
    command = [sys.executable, "-m", "lastword.cli.main", *words, "--quiet"]
    with subprocess.Popen(command, cwd=folder) as process:
        peak = peak_anonymous(process)
    assert process.returncode == 0
    plan = json.loads((folder / f"p{rows}.json").read_text())
    assert [bag["rows"] for bag in plan["bags"]] == [rows * 8 // 10, rows * 2 // 10]
    return peak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("rows", [500_000, pytest.param(10_000_000, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_rows(tmp_path, rows):
    assert peak_of(rows, tmp_path) < peak_of(10_000, tmp_path) + 8_000_000


def test_a_seeded_generator_is_what_python_promises():
    """The generator that draws rests on `random.Random(int).random()`; this is its published sequence."""
    generator = random.Random(42)
    assert [generator.random() for _ in range(3)] == [
        0.6394267984578837, 0.025010755222666936, 0.27502931836911926
    ]  # fmt: skip
