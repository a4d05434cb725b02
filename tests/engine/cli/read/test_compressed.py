"""Compressed files give the records and errors of the files that they hold; damage names the file and the place."""

import gzip
import os
import sys
from pathlib import Path

import pytest

from lastword.cli.documents.paths import Finder
from lastword.cli.main import main
from lastword.cli.read import Fields, Meter, Record, Source, read, sources
from lastword.errors import InputError, MissingPackageError

CONTENT = {
    "txt": "one\r\ntwo\n\nfour",
    "jsonl": '{"text": "one", "n": 1}\n{"n": 2}\n{"text": "three"}\n',
    "csv": '\ufeffid,text\n1,"a\nb"\n2\n3,c\n',
    "tsv": "id\ttext\n1\tone\n",
}
# Lines of which gzip and zstd leave much, so that the file can be damaged in its middle.
LONG = "".join(f"line {i} {os.urandom(20).hex()}\n" for i in range(20_000))


def compress(content: str, how: str) -> bytes:
    if how == "gz":
        return gzip.compress(content.encode())
    return pytest.importorskip("zstandard").compress(content.encode())


def read_all(inputs: list[Source], **options) -> tuple[list[Record], list[str]]:
    errors: list[str] = []
    bad = lambda error, path, line: errors.append(f"{line} {error}")  # noqa: E731
    return list(read(inputs, Fields(), on_bad=bad, **options)), errors


@pytest.mark.parametrize("how", ["gz", "zst"])
@pytest.mark.parametrize("kind", [*CONTENT, "files"])
def test_records_are_those_of_the_file(kind: str, how: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a.md" if kind == "files" else f"a.{kind}"
    content = CONTENT["txt" if kind == "files" else kind]
    Path(name).write_bytes(content.encode())
    Path(f"{name}.{how}").write_bytes(compress(content, how))
    plain = read_all(sources([name], None, whole=kind == "files"))
    inputs = sources([f"{name}.{how}"], None, whole=kind == "files")
    meter = Meter(inputs)
    found = read_all(inputs, meter=meter)
    assert meter.position() == meter.total == Path(f"{name}.{how}").stat().st_size
    rename = lambda each: each.replace(name, f"{name}.{how}")  # noqa: E731
    assert [(r.text, r.line, r.fields) for r in found[0]] == [
        (r.text, r.line, r.fields) for r in plain[0]
    ]
    assert found[1] == list(map(rename, plain[1]))
    assert found[0]


def test_several_members_and_a_given_format(tmp_path) -> None:
    path = tmp_path / "a.GZ"
    path.write_bytes(gzip.compress(b'{"text": "on') + gzip.compress(b'e"}\n{"text": "two"}'))
    found, errors = read_all(sources([str(path)], "jsonl"))
    assert [record.text for record in found] == ["one", "two"]
    assert not errors


def test_folders_and_patterns_find_them(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl.gz", "b.TXT.ZST", "c.tar.gz", "d.gz", "e.parquet.gz", "f.csv"):
        Path(name).write_bytes(b"x")
    finder = Finder(None, whole=False, ignore=[])
    found = finder.find(["."])
    assert [(Path(each.path).name, each.format) for each in found] == [
        ("a.jsonl.gz", "jsonl"),
        ("b.TXT.ZST", "txt"),
        ("f.csv", "csv"),
    ]
    assert list(finder.notices()) == ["skipped 3 files of other kinds (.gz)"]
    found = Finder("csv", whole=False, ignore=[]).find(["*.gz"])
    assert [each.format for each in found] == ["csv"] * 4


@pytest.mark.parametrize("damage", ["cut", "changed"])
@pytest.mark.parametrize("how", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_damage_names_the_file_and_the_place(kind: str, how: str, damage: str, tmp_path) -> None:
    path = tmp_path / f"a.{kind}.{how}"
    data = bytearray(compress(LONG if kind == "txt" else f"text\n{LONG}", how))
    middle = len(data) // 2
    if damage == "cut":
        del data[middle:]
    else:
        data[middle : middle + 50] = bytes(50)
    path.write_bytes(data)
    found, (error,) = read_all([Source(str(path), kind)])
    lines = LONG.splitlines()
    assert 100 < len(found) < len(lines)
    # A checksum comes after the content, so a few wrong texts may come before the error.
    assert [record.text for record in found][:5000] == lines[: min(5000, len(found))]
    assert path.name in error
    assert "cannot be unpacked as" in error
    assert "unpacked bytes" in error


def test_a_job_notices_damage_before_it_computes(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("pyarrow")
    data = gzip.compress(LONG.encode())
    Path("a.txt.gz").write_bytes(data[: len(data) // 2])
    assert main(["embed", "a.txt.gz", "-o", "out/"]) == 2
    assert "a.txt.gz: cannot be unpacked as gzip" in capfd.readouterr().err
    assert not Path("out/_plan.json").exists()


def test_zst_without_its_package(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"needs pyarrow.*bulk"):
        list(read([Source(str(path), "txt")], Fields()))


def test_search_and_its_queries(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv.gz").write_bytes(gzip.compress(b"id,text\n1,about tin\n2,about cats\n"))
    Path("q.txt.gz").write_bytes(gzip.compress(b"tin\n"))
    assert main(["search", "--queries", "q.txt.gz", "a.csv.gz", "--top-k", "1", "--quiet"]) == 0
    assert "a.csv.gz:2  about tin" in capfd.readouterr().out


def test_an_unreadable_file_is_an_error(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        list(read([Source(str(tmp_path / "gone.txt.gz"), "txt")], Fields()))
