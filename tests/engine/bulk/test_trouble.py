"""Jobs in trouble: memory that runs out, disks that are full, odd files and odd names."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch

from lastword import Embedder
from lastword.bulk.job import Job, UnitResult
from lastword.bulk.plan import Plan, Slice, Unit
from lastword.bulk.progress import RunProgress
from lastword.cli.main import main
from lastword.runtime.runner import InProcess

pq = pytest.importorskip("pyarrow.parquet")

SMALL = ("--unit-records", "10", "--quiet")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    return tmp_path


def embed(*arguments: object, out: str = "out/") -> int:
    return main(["embed", *map(str, arguments), "-o", out])


def write_texts(count: int = 40) -> None:
    texts = (f"number {i} with {'many ' * (i % 11)}words" for i in range(count))
    Path("in/a.txt").write_text("".join(f"{text}\n" for text in texts))


def parts(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("part-*"))}


def done(folder: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(Path(folder, "_done").iterdir())]


@pytest.mark.filterwarnings("default::lastword.errors.LastwordWarning")
def test_a_unit_that_runs_out_of_memory_is_done_again_with_smaller_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its vectors are those of a run with such batches from the start, whichever batch was the first to fail."""
    write_texts()
    budget = Embedder().max_batch_tokens
    real = InProcess.start

    def start(self, task, forest):
        if forest.tokens_computed > 20:
            raise torch.OutOfMemoryError("pretended")
        return real(self, task, forest)

    with monkeypatch.context() as patch:
        patch.setattr(InProcess, "start", _refusing(start))
        assert embed("in", *SMALL) == 0
    tokens = [each["batch_tokens"] for each in done("out")]
    assert max(tokens) < budget
    for number, batch_tokens in enumerate(tokens):
        assert embed("in", *SMALL, "--max-batch-tokens", batch_tokens, out=f"{number}/") == 0
        name = f"part-{number:06d}.parquet"
        found, expected = (pq.read_table(f"{each}/{name}") for each in ("out", number))
        assert found.equals(expected)


def _refusing(start):
    """Make a runner's `start` return the error when waited for, as a real runner does."""

    def wrapped(self, task, forest):
        try:
            return start(self, task, forest)
        except torch.OutOfMemoryError as error:
            problem = error

        def wait():
            raise problem

        return wait

    return wrapped


def test_a_line_per_unit(capfd: pytest.CaptureFixture) -> None:
    write_texts()
    Path("in/a.txt").write_text(Path("in/a.txt").read_text() + "\n  \n☃☃☃\n")
    assert embed("in", "--unit-records", 15, "--json") == 0
    out, err = capfd.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["unit"] for line in lines] == [0, 1, 2]
    assert [line["units_done"] for line in lines] == [1, 2, 3]
    assert [line["rows"] for line in lines] == [15, 15, 13]
    assert lines[-1]["blank"] == 2
    assert lines[-1]["unknown"] == 1
    assert lines[-1]["seconds_left"] == 0
    texts = Path("in/a.txt").read_text().split("\n")[:-1]
    ids = Embedder().token_ids(texts)
    assert sum(line["tokens"] for line in lines) == sum(map(len, ids))
    assert all(line["tokens_computed"] <= line["tokens"] for line in lines)
    assert "out: complete; 43 texts" in err
    assert "2 blank texts embedded too" in err
    assert "1 text with words that the model does not know" in err
    assert embed("in", "--unit-records", 15, "--json") == 0
    assert capfd.readouterr().out == ""


def test_a_line_for_a_unit_of_an_empty_file(capfd: pytest.CaptureFixture) -> None:
    Path("in/a.txt").write_text("")
    Path("in/b.txt").write_text("one\ntwo\n")
    assert embed("in", "--files", "--unit-records", 1, "--json") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["units_done"] for line in lines] == [1, 2]
    assert [line["seconds_left"] for line in lines] == [None, 0]


def test_the_seconds_of_a_unit_are_those_that_it_took(capfd: pytest.CaptureFixture) -> None:
    plan = Plan({"format": "parquet"}, [], [Unit(0, (Slice(4, 0, 0, 100, 0),))])
    progress = RunProgress(Job(Path("out"), plan), plan.units, 0, lines=True)
    progress.finish_unit(plan.units[0], UnitResult(rows=40, tokens=100), 20.0)
    line = json.loads(capfd.readouterr().out)
    assert (line["seconds"], line["rows_per_second"], line["tokens_per_second"]) == (20, 2, 5)


@pytest.mark.parametrize("texts", [[], ["one"]])
def test_few_texts(texts: list[str], capfd: pytest.CaptureFixture) -> None:
    Path("in/a.txt").write_text("".join(f"{text}\n" for text in texts))
    assert embed("in") == 0
    assert f"out: complete; {len(texts)} text" in capfd.readouterr().err
    assert main(["embed", "--check", "out"]) == 0
    assert len(parts("out")) == len(texts)


def test_a_file_that_is_left_out_has_the_name_that_messages_have() -> None:
    write_texts()
    Path(os.fsdecode(b"in/\xff.parquet")).write_text("no")
    assert embed("in", *SMALL) == 0
    [line] = Path("out/_errors/files.jsonl").read_text().splitlines()
    assert ascii(json.loads(line)["path"]) == ascii("in/\\xff.parquet")


def test_a_line_of_100_mb_is_a_bad_record(capfd: pytest.CaptureFixture) -> None:
    with open("in/a.txt", "wb") as file:
        file.write(b"before\n")
        file.writelines(b"x" * 1_000_000 for _ in range(100))
        file.write(b"\nafter\n")
    assert embed("in", "--quiet") == 0
    [result] = done("out")
    assert (result["rows"], result["errors"]) == (2, 1)
    [line] = Path("out/_errors/000000.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 2


@pytest.mark.parametrize(
    "name", ["with space.txt", "ünï😀.txt", "100%s.txt", "new\nline.txt", "-o.txt", "\udcff.txt"]
)
def test_odd_names(name: str) -> None:
    write_texts(3)
    os.rename("in/a.txt", os.path.join("in", name))
    assert embed("in", "--quiet") == 0
    assert embed("in", "--quiet") == 0, "the plan knows the file again"
    assert pq.read_table("out").num_rows == 3
    assert main(["embed", "--check", "out"]) == 0


def test_a_file_size_limit_loses_no_finished_unit(capfd: pytest.CaptureFixture) -> None:
    write_texts()
    assert embed("in", *SMALL, "--format", "npy") == 0
    size = len(parts("out")["part-000000.npy"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
        assert embed("in", *SMALL, "--format", "npy", out="small/") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "small/part-000000.npy" in (err := capfd.readouterr().err)
    assert "too large" in err
    assert embed("in", *SMALL, "--format", "npy", out="small/") == 0
    assert parts("small") == parts("out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission() -> None:
    write_texts()
    Path("out").mkdir(mode=0o500)
    assert embed("in", *SMALL) == 2


@pytest.mark.parametrize("place", ["in/a.txt/", "in/a.txt/deep/", "/proc/none/"])
def test_a_folder_that_cannot_be_made(place: str, capfd: pytest.CaptureFixture) -> None:
    write_texts()
    assert embed("in", *SMALL, out=place) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_check_alone(capfd: pytest.CaptureFixture) -> None:
    write_texts()
    assert embed("in", *SMALL) == 0
    assert main(["embed", "--check", "out"]) == 0
    assert "out: complete, 40 texts" in capfd.readouterr().out
    assert main(["embed", "--check", "in"]) == 2
    assert "in: holds no job" in capfd.readouterr().err
    assert main(["embed", "--check", "out", "in"]) == 2
    assert "--check" in capfd.readouterr().err
    assert main(["embed", "--check"]) == 2
    assert "--check" in capfd.readouterr().err


def test_a_file_that_cannot_be_used_is_left_out_and_listed(capfd: pytest.CaptureFixture) -> None:
    write_texts(5)
    Path("in/excel.csv").write_text("Nr;Name\n1;x\n")
    Path("in/twice.csv").write_text("text,a,a\n1,2,3\n")
    Path("in/array.jsonl").write_text('[\n {"text": "one"}\n]\n')
    assert embed("in") == 0
    err = capfd.readouterr().err
    assert "out: complete; 5 texts" in err
    assert "3 files left out (see out/_errors)" in err
    listed = [
        json.loads(line)
        for path in sorted(Path("out/_errors").iterdir())
        for line in path.read_text().splitlines()
    ]
    assert [each["path"] for each in listed] == ["in/array.jsonl", "in/excel.csv", "in/twice.csv"]
    assert "has no field 'text'" in listed[1]["error"]
    assert "holds a JSON array" in listed[0]["error"]
    Path("out/_errors/files.jsonl").unlink()
    assert embed("in") == 0
    assert Path("out/_errors/files.jsonl").exists()
    assert embed("in", "--on-error", "stop", out="strict/") == 2
    assert not Path("strict").exists()


def test_a_job_of_unusable_files_is_refused(capfd: pytest.CaptureFixture) -> None:
    Path("in/excel.csv").write_text("Nr;Name\n1;x\n")
    assert embed("in") == 2
    assert "has no field 'text'" in capfd.readouterr().err
    assert not Path("out").exists()
