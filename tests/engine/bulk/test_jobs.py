"""Corpus jobs from the command line: the same vectors as without a job, and the same folder after any interruption."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lastword import Embedder
from lastword.cli.main import main

pq = pytest.importorskip("pyarrow.parquet")

TEXTS = [f"text number {i}, with some words about {'tin ' * (i % 9)}" for i in range(120)]
COMMAND = [sys.executable, "-c", "from lastword.cli.entry import main; raise SystemExit(main())"]
SMALL = ("--unit-records", "10", "--quiet")


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"id": i, "text": text, "score": i / 2}) for i, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("\n".join(lines[:70]) + "\n")
    (folder / "b.jsonl").write_text("\n".join(lines[70:]) + "\n")
    return folder


def embed(*arguments: object, out: str = "out/") -> int:
    return main(["embed", *map(str, arguments), "-o", out])


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a job by its path in the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_parquet_holds_fields_vectors_and_counts() -> None:
    assert embed("corpus", *SMALL) == 0
    parts = sorted(Path("out").glob("part-*.parquet"))
    assert len(parts) == 12
    table = pq.read_table("out")
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == list(range(120))
    assert [row["text"] for row in rows] == TEXTS
    assert [row["score"] for row in rows] == [i / 2 for i in range(120)]
    assert rows[75]["path"].endswith("b.jsonl")
    assert rows[75]["line"] == 6
    assert {row["truncated"] for row in rows} == {False}
    model = Embedder()
    expected = model.encode(TEXTS)
    found = torch.tensor([row["embedding"] for row in rows])
    assert (found - expected).abs().max() < 1e-6
    assert [row["tokens"] for row in rows] == [len(ids) for ids in model.token_ids(TEXTS)]
    metadata = json.loads(pq.read_schema(parts[0]).metadata[b"lastword"])
    assert metadata["space"] == model.info.space_fingerprint()


def test_texts_that_are_cut_are_marked() -> None:
    assert embed("corpus", "--max-length", 14, *SMALL) == 0
    rows = pq.read_table("out").to_pylist()
    long = [len(ids) > 14 for ids in Embedder().token_ids(TEXTS)]
    assert [row["truncated"] for row in rows] == long
    assert {row["tokens"] for row in rows if row["truncated"]} == {14}
    assert 0 < sum(long) < len(long)


def test_fields_that_the_first_records_do_not_have(corpus: Path) -> None:
    lines = [{"text": "a", "n": 1, "deep": {"x": [1]}}, {"text": "b", "n": "one", "more": None}]
    lines += [{"text": "c", "n": 2**70, "embedding": 5}, {"text": "d", "n": None, "deep": "flat"}]
    (corpus / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (corpus / "b.jsonl").unlink()
    assert embed("corpus", *SMALL) == 0
    rows = pq.read_table("out").to_pylist()
    assert [row["n"] for row in rows] == ["1", '"one"', str(2**70), None]
    assert [row["deep"] for row in rows] == ['{"x": [1]}', None, None, '"flat"']
    assert [row["other"] for row in rows] == [None, None, '{"embedding": 5}', None]
    assert [row["id"] for row in rows] == [f"corpus/a.jsonl:{line}" for line in (1, 2, 3, 4)]


@pytest.mark.parametrize("kind", ["npy", "safetensors", "jsonl"])
def test_other_formats_are_those_of_single_files(kind: str) -> None:
    assert embed("corpus", "--format", kind, *SMALL) == 0
    assert embed("corpus/a.jsonl", "corpus/b.jsonl", "--quiet", out=f"whole.{kind}") == 0
    if kind == "jsonl":
        parts = sorted(Path("out").glob("part-*.jsonl"))
        lines = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
        whole = [json.loads(line) for line in Path("whole.jsonl").read_text().splitlines()]
        assert [line["text"] for line in lines] == [line["text"] for line in whole]
        return
    rows = [
        line
        for p in sorted(Path("out").glob("*.rows.jsonl"))
        for line in p.read_text().splitlines()
    ]
    assert rows == Path(f"whole.{kind}.rows.jsonl").read_text().splitlines()


def test_bad_records_are_listed_and_left_out(corpus: Path, capfd: pytest.CaptureFixture) -> None:
    (corpus / "c.jsonl").write_text('{"text": 3}\n{"text": "fine"}\nno json\n')
    assert embed("corpus", "--unit-records", 50) == 0
    assert "2 records left out (see out/_errors)" in capfd.readouterr().err
    listed = [
        json.loads(line)
        for path in Path("out/_errors").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert [(Path(each["path"]).name, each["line"]) for each in listed] == [
        ("c.jsonl", 1),
        ("c.jsonl", 3),
    ]
    assert pq.read_table("out").num_rows == 121


def test_a_finished_job_does_nothing_and_checks(capfd: pytest.CaptureFixture) -> None:
    assert embed("corpus", *SMALL) == 0
    before = contents(Path("out"))
    assert embed("corpus", *SMALL) == 0
    assert embed(*SMALL) == 0, "the plan knows the files"
    assert contents(Path("out")) == before
    assert embed("--check") == 0
    assert "complete, 120 texts" in capfd.readouterr().out
    part = Path("out/part-000003.parquet")
    part.write_bytes(part.read_bytes()[:-1])
    Path("out/part-000005.parquet").unlink()
    Path("out/_done/000007.json").unlink()
    assert embed("--check") == 1
    assert capfd.readouterr().out.splitlines() == [
        "out/part-000003.parquet has changed since it was written",
        "out/part-000005.parquet is missing",
        "unit 7 is not done",
    ]
    part.unlink()
    assert embed("corpus", *SMALL) == 0
    assert contents(Path("out")) == before


def test_files_that_were_lost_or_cut_are_written_again(capfd: pytest.CaptureFixture) -> None:
    assert embed("corpus", *SMALL) == 0
    before = contents(Path("out"))
    Path("out/part-000003.parquet").unlink()
    Path("out/part-000005.parquet").write_bytes(b"PAR1")
    assert embed("corpus", "--unit-records", 10) == 0
    err = capfd.readouterr().err
    assert "2 units to do again: the files are missing, or their size has changed" in err
    assert "10 of 12 units are done already" in err
    assert "out: complete; 120 texts" in err
    assert contents(Path("out")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dim", "8"), "another dim; got 8, expected 256"),
        (("--precision", "float16"), "another precision"),
        (("--format", "npy"), "another format"),
        (("--prompt", "Q: "), "another prompt"),
        (("--max-batch-tokens", "100"), "another max batch tokens; got 100, expected"),
        (("--unit-records", "11"), "another unit records; got 11, expected 10"),
    ],
)
def test_other_settings_are_refused(
    options: tuple[str, ...], message: str, capfd: pytest.CaptureFixture
) -> None:
    assert embed("corpus", *SMALL) == 0
    before = contents(Path("out"))
    assert embed("corpus", *SMALL, *options) == 2
    assert message in capfd.readouterr().err
    assert contents(Path("out")) == before


def test_other_rounding_is_refused_unless_it_is_allowed(capfd: pytest.CaptureFixture) -> None:
    assert embed("corpus", *SMALL) == 0
    Path("out/_done/000004.json").unlink()
    assert embed("corpus", *SMALL, "--max-batch-tokens", 100) == 2
    assert "Pass --allow-mixed" in capfd.readouterr().err
    assert embed("corpus", *SMALL, "--max-batch-tokens", 100, "--allow-mixed") == 0
    done = [json.loads(path.read_text()) for path in sorted(Path("out/_done").iterdir())]
    assert [each["batch_tokens"] == 100 for each in done] == [i == 4 for i in range(12)]
    assert embed("corpus", *SMALL) == 0
    assert embed("--check") == 0


def test_other_files_are_refused(corpus: Path, capfd: pytest.CaptureFixture) -> None:
    assert embed("corpus", *SMALL) == 0
    assert embed("corpus/a.jsonl", *SMALL) == 2
    assert "planned with other input files" in capfd.readouterr().err
    assert embed("corpus/a.jsonl", "corpus/b.jsonl", "--input-format", "txt", *SMALL) == 2
    assert "a.jsonl as txt, expected " in capfd.readouterr().err
    for spelling in ("./corpus/", str(corpus), "../" + corpus.parent.name + "/corpus"):
        assert embed(spelling, *SMALL) == 0, "the same files, named otherwise"
    with (corpus / "a.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert embed("corpus", *SMALL) == 2
    assert "has changed since the job was planned" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-",), "stdin: cannot be read twice"),
        ((), "out/: holds no job; expected input files to begin one with"),
        (("corpus", "--header"), "--header: is for stdout and pipes"),
        (("corpus", "--errors", "e.jsonl"), "--errors: is not needed"),
        (
            ("corpus", "--vector-field", "tokens"),
            "--vector-field: the name 'tokens' is already used",
        ),
        (("corpus", "--vector-field", "text"), "--vector-field: the name 'text' is already used"),
        (("corpus", "--vector-field", "v", "--format", "npy"), "--vector-field: npy has no names"),
        (("corpus", "--precision", "uint8"), "--precision uint8: needs ranges"),
        (("corpus", "--rank", "2", "--world", "2"), "--rank: out of range"),
        (("corpus", "--hourly-price", "2"), "--hourly-price: is for --dry-run"),
        (("corpus", "--dry-run", "--hourly-price", "0"), "--hourly-price: not a number above 0"),
        (("corpus", "--table", "t"), "--table: is for --to"),
        (("corpus", "--dry-run", "--json"), "--json: does not fit --dry-run"),
        (("corpus", "--dry-run", "--rank", "1", "--world", "2"), "--rank: does not fit --dry-run"),
        (("--check", "--json"), "--json: does not fit --check"),
        (("--check", "--dry-run"), "--dry-run: does not fit --check"),
        (("--check", "--rank", "1", "--world", "2"), "--rank: does not fit --check"),
        (("--check", "--world", "2"), "--world: does not fit --check"),
        (("--check", "--allow-mixed"), "--allow-mixed: does not fit --check"),
        (("--check", "--unit-records", "5"), "--unit-records: does not fit --check"),
    ],
)
def test_refused(arguments: tuple[str, ...], message: str, capfd: pytest.CaptureFixture) -> None:
    assert embed(*arguments) == 2
    assert message in capfd.readouterr().err
    assert not Path("out").exists()


def test_a_folder_with_other_files_is_refused(capfd: pytest.CaptureFixture) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    assert embed("corpus", *SMALL) == 2
    assert "is not empty and holds no job" in capfd.readouterr().err


@pytest.mark.parametrize(
    "option", [("--rank", "1"), ("--dry-run",), ("--check",), ("--format", "parquet")]
)
def test_options_of_jobs_need_a_folder(
    option: tuple[str, ...], capfd: pytest.CaptureFixture
) -> None:
    assert embed("corpus", *option, out="a.npy") == 2
    assert "is for jobs" in capfd.readouterr().err


def test_a_job_inside_its_corpus_does_not_read_itself(capfd: pytest.CaptureFixture) -> None:
    out = "corpus/vectors/"
    for _ in range(2):
        assert embed("corpus", "--format", "jsonl", "--unit-records", 50, out=out) == 0
    assert "1 folder of a job's output" in capfd.readouterr().err
    assert len(list(Path(out, "_done").iterdir())) == 3


def test_dry_run(capfd: pytest.CaptureFixture) -> None:
    options = ("--precision", "int8", "--dim", 64, "--hourly-price", 3.6, "--world", 2)
    assert embed("corpus", *SMALL, "--dry-run", *options) == 0
    out = capfd.readouterr().out
    size = sum(path.stat().st_size for path in Path("corpus").iterdir())
    assert f"120 records in 12 units, {size:,} bytes" in out
    assert "tokens per text, of a sample of 60: median" in out
    assert f"vectors of {120 * 64:,} bytes" in out
    seconds = float(re.search(r"about (\S+) seconds on 2 machines such as this", out)[1])
    speed = float(re.search(r"at (\S+) tokens/s", out)[1].replace(",", ""))
    tokens = float(re.search(r"about (\S+) tokens", out)[1].replace(",", ""))
    assert abs(seconds - tokens / speed / 2) < 0.1
    price, million = map(float, re.search(r"about (\S+) in all, (\S+) per million", out).groups())
    assert abs(million - tokens / speed * 3.6 / 3600 / 120 * 1e6) < 0.02
    assert price == round(million * 120 / 1e6, 2)
    assert not Path("out").exists()
    assert embed("corpus", *SMALL) == 0
    for number in (3, 8):
        Path(f"out/_done/{number:06d}.json").unlink()
    capfd.readouterr()
    assert embed("corpus", *SMALL, "--dry-run") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == ["out: 10 of 12 units are done already", "what is left to do:"]
    assert lines[2].startswith("20 records in 2 units")


def dry_run(capfd: pytest.CaptureFixture, *options: object) -> tuple[str, int]:
    """Return what --dry-run prints, and the vectors that it expects."""
    assert embed("corpus", "--unit-records", 40, "--dim", 1, "--dry-run", *options) == 0
    out = capfd.readouterr().out
    return out, int(re.search(r"vectors of (\S+) bytes", out)[1].replace(",", "")) // 4


@pytest.mark.parametrize("texts", [1000, 20])
@pytest.mark.parametrize("options", [("--chunk", 20), ("--where", "kind=x"), ("--skip-blank",)])
def test_dry_run_counts_texts(
    options: tuple, texts: int, corpus: Path, capfd: pytest.CaptureFixture, monkeypatch
) -> None:
    from lastword.bulk import estimate

    if options[0] == "--chunk":
        pytest.importorskip("semantic_text_splitter")
    monkeypatch.setattr(estimate, "_TEXTS", texts)
    many = "one two three four five six seven. " * 30
    rows = [{"id": i, "text": many if i % 2 else "  ", "kind": "xyyyy"[i % 5]} for i in range(120)]
    for name, part in (("a", rows[:70]), ("b", rows[70:])):
        (corpus / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    out, found = dry_run(capfd, *options)
    assert out.startswith("120 records in ")
    assert embed("corpus", *SMALL, *options) == 0
    capfd.readouterr()
    expected = pq.read_table("out").num_rows
    assert expected != 120
    if texts == 1000:
        assert found == expected
    assert abs(found - expected) < expected / 4
    assert f"about {found:,} texts, as " in out


def test_dry_run_leaves_out_what_the_tokenizer_refuses(
    corpus: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lastword.errors import InputError
    from lastword.text.tokenizer import TextTokenizer

    real = TextTokenizer.encode

    def encode(self, texts, max_length, *, first=0, **others):
        for index, text in enumerate(texts, first):
            if text == TEXTS[5]:
                raise InputError(f"text {index}", "too long to tokenise", index=index)
        return real(self, texts, max_length, first=first, **others)

    monkeypatch.setattr(TextTokenizer, "encode", encode)
    out, found = dry_run(capfd)
    assert found == 119
    assert "of a sample of 119:" in out


def test_two_shares_make_the_whole(capfd: pytest.CaptureFixture) -> None:
    assert embed("corpus", *SMALL, out="one/") == 0
    for rank in (1, 0):
        assert embed("corpus", *SMALL, "--rank", rank, "--world", 2) == 0
        assert len(list(Path("out/_done").iterdir())) == (6 if rank else 12)
    assert contents(Path("out")) == contents(Path("one"))


@pytest.mark.parametrize("last", [(), ("--rank", "0", "--world", "2")])
def test_a_share_that_is_missing_is_done_by_another_run(last: tuple[str, ...]) -> None:
    assert embed("corpus", *SMALL, out="one/") == 0
    assert embed("corpus", *SMALL, "--rank", 1, "--world", 3) == 0
    assert embed("corpus", *SMALL, "--rank", 1, "--world", 2) == 0
    assert len(list(Path("out/_done").iterdir())) == 8
    assert embed("corpus", *SMALL, *last) == 0
    assert contents(Path("out")) == contents(Path("one"))


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, "embed", "corpus", *SMALL, "-o", "out/", *arguments],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_two_processes_share_a_job() -> None:
    both = [start(), start()]
    for process in both:
        assert process.wait() == 0
    done = contents(Path("out"))
    shutil.rmtree("out")
    assert start().wait() == 0
    assert contents(Path("out")) == done


FULL = OSError(28, "No space left on device")


class FullDisk:
    """A file that takes no bytes."""

    def __init__(self, file) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        raise FULL

    def __getattr__(self, name: str):
        return getattr(self._file, name)


@pytest.mark.parametrize("kind", ["parquet", "npy"])
@pytest.mark.parametrize("what", ["open", "write"])
def test_a_full_disk_loses_no_finished_unit(
    kind: str, what: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    from lastword.bulk import job

    assert embed("corpus", "--format", kind, *SMALL, out="whole/") == 0
    real, left = job.replace_file, 20

    @contextmanager
    def full(path: Path):
        nonlocal left
        left -= path.name.startswith("part-0")
        if left == 14 and what == "open":
            raise FULL
        with real(path) as file:
            yield FullDisk(file) if left == 14 else file

    monkeypatch.setattr(job, "replace_file", full)
    assert embed("corpus", "--format", kind, *SMALL) != 0
    err = capfd.readouterr().err
    assert "No space left on device" in err
    assert "Traceback" not in err
    assert 0 < len(list(Path("out/_done").iterdir())) < 12
    monkeypatch.setattr(job, "replace_file", real)
    assert embed("corpus", "--format", kind, *SMALL) == 0
    assert contents(Path("out")) == contents(Path("whole"))
