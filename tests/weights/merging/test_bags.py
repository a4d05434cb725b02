"""Plans of bags: their content, equal from every folder, written atomically, with a recipe to merge."""

import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from helpers.messages import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from lastword.cli.main import main
from lastword.errors import InputError
from lastword.weights.json_fields import show_value
from lastword.weights.merging.bags import check_into, read_bags, read_dataset, row_ids
from lastword.weights.merging.bags_plan import PlanSpec, _recipe
from lastword.weights.merging.recipe import parse_recipe, read_recipe


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


ONE_LINE = "a folder or a hub id in one line of at most 1000 characters"
ADAPTERS = "Adapters are not supported. Merge the adapter into its model first."
# A name that `merge` would refuse, or that is the folder of a bag's own model.
INTO = {
    "": ("wrong value", "a folder or a hub id", None),
    " ": ("wrong value", "a folder or a hub id", None),
    "a\nb": ("wrong value", ONE_LINE, None),
    "a\x7fb": ("wrong value", ONE_LINE, None),
    "a\x85b": ("wrong value", ONE_LINE, None),
    "x" * 1001: ("wrong value", ONE_LINE, None),
    "a+b": ("wrong value", "one model", ADAPTERS),
    "@": ("wrong value", "a folder or a hub id (owner/name@revision)", None),
    "own/er@": ("wrong value", "a folder or a hub id (owner/name@revision)", None),
    "./2-100": ("is the folder of a bag's own model", None, "Move the existing model."),
    "x/../2-100/": ("is the folder of a bag's own model", None, "Move the existing model."),
}


@pytest.mark.parametrize("into", INTO)
def test_a_model_that_merge_would_refuse_is_refused_at_once(files, capfd, into):
    what, expected, remedy = INTO[into]
    assert bags("a.jsonl", "--into", into) == 2
    error = InputError("--into", what, got=show_value(into), expected=expected, remedy=remedy)
    assert capfd.readouterr().err == f"lastword: {error}\n"
    assert not list(Path().glob("plan*"))


NAMES = ["-x", "own/er@v1.0", "{a: b}", "[", "*a", "&a", "!t", "%", "null", "1", "# x", "a: b", 'a"b\\c',
         "é/\U0001f600", "~", "x" * 1000, "a" * 300, "'", "|", ">", "---", "...", "a+b"]  # fmt: skip


@pytest.mark.parametrize("into", NAMES)
def test_any_other_name_is_read_by_merge_as_it_is(files, into):
    Path("a+b").mkdir()
    assert bags("a.jsonl", f"--into={into}") == 0
    assert read_recipe(Path("plan.merge.yaml")).models == (into, "./1-80", "./2-100")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_what_is_accepted_is_read_by_merge_as_it_is(into):
    drawn = read_bags("80,100")
    try:
        check_into(into, drawn, "--into")
    except InputError:
        return
    entries = [{"name": bag.name, "rows": 1} for bag in drawn]
    text = _recipe(PlanSpec(1, drawn, Fraction(40), None, False, into), [], entries)
    assert parse_recipe(text, "recipe").models == (into, "./1-80", "./2-100")


def test_as_many_bags_as_merge_takes_models(files, capfd, monkeypatch):
    monkeypatch.setattr("lastword.weights.files.atomic.sync", lambda _: None)  # hundreds of files
    assert bags("a.jsonl", "--into", "x" * 1000, ratios=",".join(["12.3456"] * 255)) == 0
    assert len(read_recipe(Path("plan.merge.yaml")).models) == 256
    capfd.readouterr()
    assert bags("a.jsonl", ratios=",".join(["50"] * 256), out="more.json") == 2
    error = InputError("--ratios", "too many bags", got="256", expected="at most 255")
    assert capfd.readouterr().err == f"lastword: {error}\n"


def test_a_row_without_an_end(files, capfd, monkeypatch):
    monkeypatch.setattr("lastword.weights.merging.bags._MAX_ROW", 100)
    Path("long.txt").write_text("x\n" + "y" * 99 + "\n")
    assert bags("long.txt", ratios="100") == 0
    Path("long.txt").write_text("x\n" + "y" * 100 + "\n")
    capfd.readouterr()
    assert bags("long.txt", ratios="100", out="more.json") == 2
    error = InputError("long.txt:2", "is too long for one row", expected="at most 100 bytes")
    assert capfd.readouterr().err == f"lastword: {error}\n"


def test_a_file_that_shrinks_while_it_is_read(files):
    data = read_dataset("a", Path("a.jsonl"))
    Path("a.jsonl").write_text('{"id": 1}\n')
    assert list(row_ids(data, iter([0]), "id")) == ["1"]
    with refusal(InputError, where="a.jsonl", what="changed while it was read"):
        list(row_ids(data, iter([0, 5]), "id"))


@pytest.mark.parametrize("seed", ["x", "1.5", "", "9" * 31, "١", "1_0", "1e3"])
def test_seeds_that_are_refused(files, capfd, seed):
    assert bags("a.jsonl", seed=seed) == 2
    err = capfd.readouterr().err
    assert err.startswith("lastword: --seed: not a whole number of at most 30 digits; got ")
    assert err.count("\n") == 1


def test_blank_lines_text_and_missing_last_newline(files):
    Path("t.txt").write_bytes(b"one\n\nthree \xff")
    Path("j.jsonl").write_bytes(b'\n{"id": 5}\n  \n{"id": "x"}')
    assert bags("t.txt", "j.jsonl", ratios="100") == 0
    plan = json.loads(Path("plan.json").read_text())
    assert {name: part["rows"] for name, part in plan["datasets"].items()} == {"t": 3, "j": 2}
    assert bags("j.jsonl", "--id-field", "id", ratios="100", out="i.json") == 0
    assert Path("i.rows/1-100/j.txt").read_text() == "5\nx\n"


JSON_OR_TEXT, NAME = "JSON lines or text", "at most 60 letters, digits, _ . -"
TWICE = InputError(
    "datasets", "named twice: a", remedy="Give them different names, as in first=a.jsonl."
)
ROW_ID = {"what": "cannot be the row's id", "expected": "a whole number or a string of one line"}
PERCENTAGE = {
    "what": "out of range",
    "expected": "a percentage above 0, up to 100, with at most 4 decimals",
}
BAD = {
    "gone": (["gone.jsonl"], InputError("gone.jsonl", "no such file", expected=JSON_OR_TEXT)),
    "folder": (["."], InputError(".", "not a regular file", expected=JSON_OR_TEXT)),
    "ending": (
        ["x.csv"],
        InputError(
            "x.csv",
            "unsupported file extension",
            got=".csv",
            expected=".jsonl or .txt, one row per line",
        ),
    ),
    "empty": (["e.jsonl"], InputError("e.jsonl", "holds no rows", expected="at least one")),
    "array": (
        ["x.jsonl"],
        InputError("x.jsonl:2", "wrong row", got='"[1]"', expected="a JSON object"),
    ),
    "twice": (["a.jsonl", "sub/a.jsonl"], TWICE),
    "old-twice": (["a.jsonl", "--old", "a.jsonl"], TWICE),
    "name": (
        ["a b=a.jsonl"],
        InputError(
            "a.jsonl",
            "cannot be used as the name of a dataset: 'a b'",
            expected=NAME,
            remedy="Name the dataset: NAME=FILE.",
        ),
    ),
    "hidden": (
        [".a=a.jsonl"],
        InputError(
            "a.jsonl",
            "cannot be used as the name of a dataset: '.a'",
            expected=NAME,
            remedy="Name the dataset: NAME=FILE.",
        ),
    ),
    "no-field": (
        ["a.jsonl", "--id-field", "key"],
        InputError('a.jsonl: row 0: field "key"', got="null", **ROW_ID),
    ),
    "bad-id": (
        ["n.jsonl", "--id-field", "id"],
        InputError('n.jsonl: row 0: field "id"', got='"x\\ny"', **ROW_ID),
    ),
    "not-json": (
        ["bad.jsonl", "--id-field", "id"],
        InputError(
            "bad.jsonl: row 0",
            "not valid JSON (column 2: a name in double quotes is missing)",
        ),
    ),
    "into": (
        ["a.jsonl", "--into", "m", "--weights", "size"],
        InputError(
            "--into",
            "with --weights size, its weight is the number of old rows, but no old data is given",
            remedy="Pass the old data with --old.",
        ),
    ),
    "old-ratio": (
        ["a.jsonl", "--old", "b.jsonl", "--old-ratio", "0"],
        InputError("--old-ratio", got='"0"', **PERCENTAGE),
    ),
    "old-ratio-name": (
        ["a.jsonl", "--old-ratio", "x"],
        InputError("--old-ratio", got='"x"', **PERCENTAGE),
    ),
    "old-ratio-alone": (
        ["a.jsonl", "--old-ratio", "50"],
        InputError("--old-ratio", "no old data is given", remedy="Pass the old data with --old."),
    ),
    "name-long": (
        [f"{'x' * 61}=a.jsonl"],
        InputError(
            "a.jsonl",
            f"cannot be used as the name of a dataset: {'x' * 61!r}",
            expected=NAME,
            remedy="Name the dataset: NAME=FILE.",
        ),
    ),
    "name-case": (
        ["É=a.jsonl", "é=b.jsonl"],
        InputError(
            "datasets",
            "named twice: É, é",
            remedy="Give them different names, as in first=é.jsonl.",
        ),
    ),
    "pipe": (["pipe.txt"], InputError("pipe.txt", "not a regular file", expected=JSON_OR_TEXT)),
    "device": (
        ["d=/dev/zero"],
        InputError("/dev/zero", "not a regular file", expected=JSON_OR_TEXT),
    ),
    "key-twice": (
        ["t.jsonl", "--id-field", "id"],
        InputError("t.jsonl: row 0", 'not valid JSON (key "id" occurs twice)'),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(files, capfd, case):
    (files / "sub").mkdir()
    (files / "sub/a.jsonl").write_text("{}\n")
    Path("x.csv").write_text("a\n")
    Path("e.jsonl").write_text("\n")
    Path("x.jsonl").write_text("{}\n[1]\n")
    Path("n.jsonl").write_text('{"id": "x\\ny"}\n')
    Path("bad.jsonl").write_text("{bad\n")
    Path("t.jsonl").write_text('{"id": 1, "id": 2}\n')
    os.mkfifo("pipe.txt")
    before = sorted(os.listdir())
    arguments, error = BAD[case]
    assert bags(*arguments) == 2
    assert capfd.readouterr().err == f"lastword: {error}\n"
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("name", ["plan.json", "plan.rows", "plan.merge.yaml"])
def test_an_earlier_plan_is_left_alone(files, capfd, name):
    Path(name).write_text("mine")
    assert bags("a.jsonl") == 2
    error = InputError(name, "exists already", expected="a new plan", remedy="Name another one.")
    assert capfd.readouterr().err == f"lastword: {error}\n"
    assert Path(name).read_text() == "mine"


@pytest.mark.parametrize("out", ["plan", ".", "/", "..", ".json", "plan.JSON"])
def test_a_plan_needs_the_ending_json(files, capfd, out):
    assert bags("a.jsonl", out=out) == 2
    error = InputError(
        str(Path(out)),
        "wrong name",
        got=Path(out).suffix or "no ending",
        expected="a name that ends in .json",
    )
    assert capfd.readouterr().err == f"lastword: {error}\n"


@pytest.mark.parametrize("step", ["fsync", "rename", "replace"])
def test_a_plan_that_cannot_be_finished_leaves_no_plan(files, capfd, monkeypatch, step):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    assert bags("a.jsonl") == 2
    err = capfd.readouterr().err
    assert "cannot be written (No space left on device)" in err
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
    error = InputError("bag 1-10", "holds no rows", remedy="Choose a larger ratio.")
    assert capfd.readouterr().err == f"lastword: {error}\n"
    assert not list(Path().glob("*plan*"))
