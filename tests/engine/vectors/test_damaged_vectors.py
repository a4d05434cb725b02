"""Files of vectors that are damaged, changed or do not belong together are refused by name."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
JOB = ("--unit-records", "20")


def write_nan(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + 4] = np.float32("nan").tobytes()
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_line(path: Path, number: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new, 1)
    path.write_text("".join(lines))


NPY = [
    (lambda: cut(Path("v.npy")), "v.npy: truncated; got 15,481 bytes, expected 15,488"),
    (lambda: Path("v.npy").write_bytes(b"x" * 15488), "v.npy: its header does not fit its metadata"),
    (lambda: write_nan(Path("v.npy"), 128 + 64 * 4 * 7), "v.npy: vector 8: the vector is damaged: not finite"),
    (lambda: change_json(Path("v.npy.json"), texts=59), "v.npy: its header does not fit its metadata"),
    (lambda: change_json(Path("v.npy.json"), dim="many"), "v.npy: its metadata is damaged"),
    (lambda: change_json(Path("v.npy.json"), precision="int4"), "v.npy: its metadata is damaged"),
    (lambda: change_json(Path("v.npy.json"), precision="float16"), "v.npy: its header does not fit"),
    (lambda: change_json(Path("v.npy.json"), fingerprints=1), "fingerprints of another version of lastword"),
    (lambda: Path("v.npy.rows.jsonl").write_text('{"path": "a"}\n'), "v.npy.rows.jsonl: does not belong to the vec"),
    (lambda: Path("v.npy.rows.jsonl").write_text('{"path": 3}\n' * 60), "its place is damaged"),
    (lambda: Path("v.npy.rows.jsonl").write_text("{\n" * 60), "not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "said"), NPY)
def test_npy(call, damage, said) -> None:
    call.embed("a.txt", "-o", "v.npy")
    damage()
    assert said in call.refused("q", "v.npy")


def test_safetensors(call) -> None:
    call.embed("a.txt", "-o", "whole.safetensors")
    whole = Path("whole.safetensors").read_bytes()
    for change, said in (
        (whole[:-7], "v.safetensors: truncated"),
        (whole + b"more", "v.safetensors: trailing bytes"),
        (whole.replace(b"[60,64]", b"[64,60]"), "v.safetensors: damaged; got [64, 60] F32"),
        (
            whole.replace(b'"texts":"60"', b'"texts":"61"'),
            "v.safetensors: damaged; got 60 vectors, expected 61",
        ),
    ):
        Path("v.safetensors").write_bytes(change)
        error = call.refused("q", "v.safetensors")
        assert said in error
        assert "ownload" not in error


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("]}", "]", "v.jsonl:8: does not end with a vector"),
        (
            '"embedding": [',
            '"embedding": [1, ',
            "v.jsonl:8: its vector is damaged; got 65 elements",
        ),
        ('"embedding": [', '"embedding": ["1", ', "v.jsonl:8: its vector is damaged"),
        ('"embedding": [', '"embedding": [x', "v.jsonl:8: its vector is damaged"),
        ('{"', '"', "v.jsonl:8: not valid JSON"),
    ],
)
def test_lines(call, old, new, said) -> None:
    call.embed("a.txt", "-o", "v.jsonl")
    change_line(Path("v.jsonl"), 7, old, new)
    assert said in call.refused("q", "v.jsonl", "--top-k", "60")


def test_a_value_that_is_too_large(call) -> None:
    call.embed("a.txt", "-o", "v.jsonl")
    lines = Path("v.jsonl").read_text().splitlines()
    lines[7] = json.dumps({"text": "x", "embedding": [1e99] * 64})
    Path("v.jsonl").write_text("\n".join(lines))
    assert "v.jsonl: vector 8: the vector is damaged: not finite" in call.refused("q", "v.jsonl")


def test_a_lost_line(call) -> None:
    call.embed("a.txt", "-o", "v.jsonl")
    lines = Path("v.jsonl").read_text().splitlines(keepends=True)
    Path("v.jsonl").write_text("".join(lines[1:]))
    assert "v.jsonl: damaged; got 59 vectors, expected 60" in call.refused("q", "v.jsonl")


def test_a_part_that_has_changed_since_its_record(call) -> None:
    call.embed("a.jsonl", "-o", "whole/", *JOB)
    part = Path("v/part-000001.parquet")
    for damage, said in (
        (lambda: cut(part), "v/part-000001.parquet: has changed since it was written"),
        (
            lambda: part.unlink(),
            "v/part-000001.parquet: cannot be read (No such file or directory)",
        ),
    ):
        shutil.rmtree("v", ignore_errors=True)
        shutil.copytree("whole", "v")
        damage()
        error = call.refused("q", "v/")
        assert said in error
        assert "lastword embed --check v" in error
    shutil.rmtree("v")
    shutil.copytree("whole", "v")
    os.utime(part)  # a later time, but the same content
    assert len(call.hits("q", "v/")) == 10


def test_damaged_parquet(call) -> None:
    call.embed("a.jsonl", "-o", "p/")
    part = Path("p/part-000000.parquet")
    data = bytearray(part.read_bytes())
    record = Path("p/_done/000000.json").stat()
    for place in range(len(data) // 3, len(data) // 2):  # in the pages of vectors
        data[place] ^= 0xFF
    part.write_bytes(data)
    os.utime(part, ns=(record.st_mtime_ns, record.st_mtime_ns))
    error = call.refused("q", "p/")
    assert "p/part-000000.parquet" in error
    Path("x.parquet").write_bytes(b"PAR1 no")
    assert "x.parquet: cannot be read as Parquet" in call.refused("q", "x.parquet")


@pytest.mark.parametrize(
    "content", ['{\n "version": 1,\n "settings": {}}', '{\n "version": 1,\n "settings": {"a": ']
)
def test_a_damaged_plan(call, content) -> None:
    call.embed("a.jsonl", "-o", "v/", *JOB)
    Path("v/_plan.json").write_text(content)
    assert call.refused("q", "v/").startswith("lastword: v/")


def test_a_damaged_record_of_a_unit(call) -> None:
    call.embed("a.jsonl", "-o", "v/", *JOB)
    Path("v/_done/000002.json").write_text('{"nonsense": 1}')
    assert "v/: its plan or a record of a unit is damaged" in call.refused("q", "v/")
    Path("v/_done/000002.json").write_text('{"rows": 19}')
    assert "v/part-000002.parquet: damaged; got 20 rows, expected 19" in call.refused("q", "v/")
