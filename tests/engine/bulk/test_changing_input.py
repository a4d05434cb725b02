"""Input files that change, end early or cannot be read while a job is planned or runs; and texts that are no UTF-8."""

import json
import os
from pathlib import Path

import pytest

from lastword.bulk import plan
from lastword.cli.main import main
from lastword.cli.read import ReadError

pq = pytest.importorskip("pyarrow.parquet")

SMALL = ("--unit-records", "10", "--quiet")


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(f'{{"text": "text {i}"}}\n' for i in range(40)))


def embed(*arguments: object, out: str = "out/") -> int:
    return main(["embed", "in.jsonl", *map(str, arguments), "-o", out])


def before_unit(monkeypatch: pytest.MonkeyPatch, number: int, action) -> None:
    """Call `action` just before a unit's records are read."""
    real = plan.Plan.sources

    def sources(self, unit):
        if unit.number == number:
            action()
        return real(self, unit)

    monkeypatch.setattr(plan.Plan, "sources", sources)


@pytest.mark.parametrize("change", ["cut", "other content", "gone", "unreadable"])
def test_input_that_changes_while_a_job_runs_ends_it(
    change: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    path, content = Path("in.jsonl"), Path("in.jsonl").read_bytes()
    changes = {
        "cut": lambda: os.truncate(path, 500),
        "other content": lambda: path.write_bytes(content.replace(b"text 2", b"word 2")),
        "gone": path.unlink,
    }
    with monkeypatch.context() as patch:
        if change == "unreadable":
            patch.setattr("lastword.cli.read.opening.open_bytes", _failing_from_the_third())
        else:
            before_unit(patch, 2, changes[change])
        assert embed(*SMALL) == 2
    assert "in.jsonl" in capfd.readouterr().err
    assert len(list(Path("out/_done").iterdir())) == 2, "the unit is not done"
    path.write_bytes(content)
    assert embed(*SMALL) == 0
    assert pq.read_table("out").num_rows == 40


def _failing_from_the_third():
    """Open two units' parts, and refuse the third, as a mount that is lost does."""
    from lastword.cli.read import opening

    real, calls = opening.open_bytes, 0

    def open_bytes(source):
        nonlocal calls
        calls += source.part is not None
        if calls > 2:
            raise ReadError(source.name, "cannot be read (stale file handle)")
        return real(source)

    return open_bytes


def test_input_that_grows_while_it_is_planned_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    real = plan.cut_file

    def growing(*arguments):
        found = real(*arguments)
        with open("in.jsonl", "a") as file:
            file.write('{"text": "late"}\n')
        return found

    with monkeypatch.context() as patch:
        patch.setattr(plan, "cut_file", growing)
        assert embed(*SMALL) == 2
    assert "in.jsonl: changes while it is read" in capfd.readouterr().err
    assert not Path("out").exists()


def test_a_large_plan_is_read_again() -> None:
    """A plan of 20,000 files has more than the 4 MiB that a model's settings may have."""
    made = plan.Plan(
        {"columns": {}},
        [
            plan.InputFile(f"folder/file {i}.txt", "txt", 9, "1", "0" * 64, "")
            for i in range(20_000)
        ],
        [plan.Unit(i, (plan.Slice(1, 0, 0, 9, i),)) for i in range(20_000)],
    )
    made.save(Path())
    assert Path("_plan.json").stat().st_size > 4 << 20
    assert plan.Plan.load(Path()) == made


def test_a_file_without_permission_is_left_out_and_listed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    Path("in").mkdir()
    Path("in/a.txt").write_text("one\n")
    Path("in/b.txt").write_text("two\n")
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: "b.txt" not in str(path) and real(path, mode)
    )
    assert main(["embed", "in", "-o", "out/"]) == 0
    assert "1 file left out (see out/_errors)" in capfd.readouterr().err
    listed = json.loads(Path("out/_errors/files.jsonl").read_text())
    assert (listed["path"], "cannot be read" in listed["error"]) == ("in/b.txt", True)


def test_texts_that_are_not_utf8_in_other_fields_are_kept() -> None:
    rows = [
        {"text": "a", "user": "fine", "deep": {"x": "é"}},
        {"text": "b", "user": "\ud83d", "deep": {"x": "\ud83d"}, "odd \ud83d": 1},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert embed("--quiet") == 0
    found = pq.read_table("out").to_pylist()
    assert [row["text"] for row in found] == ["a", "b"]
    assert found[0]["deep"] == '{"x": "é"}'
    assert json.loads(found[1]["user"]) == "\ud83d"
    assert found[0]["user"] == '"fine"', "a column of several types is JSON"
    assert json.loads(found[1]["other"]) == {"odd \ud83d": 1}
    assert json.loads(found[1]["deep"]) == {"x": "\ud83d"}


def test_a_plan_of_failed_planning_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of a run whose planning failed does not let two others plan at the same time."""
    from lastword.bulk import job

    folder = Path("out")
    folder.mkdir()
    calls = 0
    real = job.lock

    def lock(descriptor: int, *, wait: bool = False) -> None:
        nonlocal calls
        calls += 1
        real(descriptor, wait=wait)
        if calls == 1:  # the run that held the lock ends now, and removes the file
            (folder / "_claims" / "plan").unlink()

    monkeypatch.setattr(job, "lock", lock)
    with job.planning(folder):
        assert calls == 2
        assert (folder / "_claims" / "plan").exists()
