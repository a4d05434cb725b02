"""Files read in parts give the records, places and errors of the whole file, wherever the parts begin."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest
from helpers.project import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lastword.bulk import cutting
from lastword.bulk.plan import Plan, Unit
from lastword.cli.read import Fields, KeptOpen, Meter, Record, Source, read
from lastword.errors import InputError

TEXT = st.text(st.sampled_from('ab é\u2028,;"\t|'), max_size=6)
ENDS = st.sampled_from(["\n", "\r\n"])
SETTINGS = {"delimiter": None}


def read_all(inputs: list[Source], kept: KeptOpen | None = None) -> tuple[list[Record], list[str]]:
    errors: list[str] = []
    bad = lambda error, path, line: errors.append(f"{path} {line} {error}")  # noqa: E731
    return list(read(inputs, Fields(), on_bad=bad, kept=kept)), errors


def check(path: Path, kind: str, records: int) -> None:
    size = path.stat().st_size
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    units = [check_file(each, kind, records, size) for each in (path, packed)]
    assert units[0] == units[1]


def check_file(path: Path, kind: str, records: int, size: int) -> Sequence[Unit]:
    source = Source(str(path), kind)
    plan = Plan.make([source], SETTINGS, records, Fields())
    found: tuple[list[Record], list[str]] = ([], [])
    with closing(KeptOpen()) as kept:
        for unit in plan.units:
            for part, more in zip(found, read_all(plan.sources(unit), kept), strict=True):
                part.extend(more)  # type: ignore[arg-type]
    assert found == read_all([source])
    assert all(1 <= unit.records <= records for unit in plan.units)
    if plan.units:
        content = size - plan.units[0].slices[0].start
        assert sum(unit.num_bytes for unit in plan.units) == content
    return plan.units


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lines=st.lists(st.tuples(TEXT, ENDS)), last=TEXT, records=st.integers(1, 4), mark=st.booleans()
)
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_lines(kind: str, lines: list, last: str, records: int, mark: bool, tmp_path: Path) -> None:
    def line(text: str) -> str:
        return json.dumps({"text": text, "n": 1}) if kind == "jsonl" and len(text) % 3 else text

    path = tmp_path / f"a.{kind}"
    content = "".join(line(text) + end for text, end in lines) + last
    path.write_bytes(b"\xef\xbb\xbf" * mark + content.encode())
    check(path, kind, records)


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(st.lists(st.text(st.sampled_from('a,"\né;'), max_size=5), min_size=1, max_size=3)),
    end=ENDS, records=st.integers(1, 4), mark=st.booleans(), rest=st.sampled_from(["", '"a', "x,y\n\n"]),
)  # fmt: skip
@pytest.mark.parametrize("header", [["text"], ["id", "text"], ["text", "a\nb"]])
def test_tables(
    header: list, rows: list, end: str, records: int, mark: bool, rest: str, tmp_path: Path
) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator=end).writerows([header, *rows])
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" * mark + out.getvalue().encode() + rest.encode())
    check(path, "csv", records)


@pytest.mark.parametrize("records", [1, 5, 7, 100])
def test_row_groups(records: int, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [None if i == 13 else f"text {i}" for i in range(31)]
    rows = [{"text": text, "day": date(2026, 1, 1 + i), "n": i} for i, text in enumerate(texts)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    source = Source(str(path), "parquet")
    whole, errors = read_all([source])
    assert [record.text for record in whole] == [text for text in texts if text is not None]
    assert whole[20].line == 22
    assert json.loads(whole[20].fields + "}") == {"text": "text 21", "day": "2026-01-22", "n": 21}
    assert len(errors) == 1
    assert "got null, expected a string" in errors[0]
    plan = Plan.make([source], SETTINGS, records, Fields())
    parts = [read_all(plan.sources(unit)) for unit in plan.units]
    assert [record for part, _ in parts for record in part] == whole
    assert [error for _, part in parts for error in part] == errors
    assert len(plan.units) == {1: 7, 5: 7, 7: 6, 100: 1}[records]


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    texts = [f"text {i} of some length" for i in range(3000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1000, compression="zstd")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    at = column.dictionary_page_offset or column.data_page_offset
    data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    found, errors = read_all([Source(str(path), "parquet")])
    assert len(found) == 1000
    assert len(errors) == 1
    assert "a.parquet: row group 1: cannot be read" in errors[0]


def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join("x" * (i % 7) + "\n" for i in range(50)) + "end")
    for size in (1, 2, 5, 64):
        monkeypatch.setattr(cutting, "_BLOCK", size)
        for records in (1, 3, 51, 100):
            check(path, "txt", records)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_units_in_order_read_a_compressed_file_once(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt.{ending}"
    lines = "".join(f"{i:07}\n" for i in range(50_000)).encode()
    if ending == "gz":
        path.write_bytes(gzip.compress(lines))
    else:
        path.write_bytes(pytest.importorskip("zstandard").compress(lines))
    plan = Plan.make([Source(str(path), "txt")], SETTINGS, 1000, Fields())
    order = [*range(50), 7, 3, 4, 49]  # a unit before the present place begins at the file's start
    opened = 0
    with closing(KeptOpen()) as kept:
        before = None
        for number in order:
            found, _ = read_all(plan.sources(plan.units[number]), kept)
            assert [record.text for record in found] == [
                f"{i:07}" for i in range(1000 * number, 1000 * number + 1000)
            ]
            assert found[0].line == 1000 * number + 1
            assert kept._kept is not None
            opened += kept._kept is not before
            before = kept._kept
    assert before is not None
    assert before.closed
    assert opened == 3


def test_small_files_share_a_unit_and_large_ones_do_not(tmp_path: Path) -> None:
    inputs = []
    for name, lines in (("a", 2), ("b", 1), ("c", 7), ("d", 0), ("e", 2)):
        path = tmp_path / f"{name}.txt"
        path.write_text("x\n" * lines)
        inputs.append(Source(str(path), "txt"))
    units = Plan.make(inputs, SETTINGS, 4, Fields()).units
    assert [[(each.file, each.records) for each in unit.slices] for unit in units] == [
        [(0, 2), (1, 1)],
        [(2, 4)],
        [(2, 3)],
        [(4, 2)],
    ]


@pytest.mark.parametrize("change", ["content", "size", "gone", "touch"])
def test_a_changed_file_is_noticed(change: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    plan = Plan.make([Source(str(path), "txt")], SETTINGS, 1, Fields())
    plan.save(tmp_path)
    plan = Plan.load(tmp_path)
    plan.check_files([Source(str(path), "txt")])
    if change == "gone":
        path.unlink()
    else:
        text = {"content": "one\ntwo.", "size": "one\ntwo\nthree\n", "touch": "one\ntwo\n"}[change]
        path.write_text(text)
    if change == "touch":
        plan.check_files()
        return
    with pytest.raises(InputError, match=r"a\.txt"):
        plan.check_files()


def test_newlines_are_counted_once_per_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0

    class Block(bytes):
        def count(self, *given) -> int:
            nonlocal counted
            counted += 1
            return super().count(*given)

    blocks = cutting._blocks
    monkeypatch.setattr(cutting, "_blocks", lambda file: map(Block, blocks(file)))
    path = tmp_path / "a.txt"
    path.write_text("x\n" * 1000)
    cuts = cutting.cut_file(Source(str(path), "txt"), Fields(), None, 3).cuts
    assert [cut.records for cut in cuts] == [3] * 333 + [1]
    assert counted == 1


def test_a_part_of_parquet_adds_up_its_own_row_groups_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lastword.cli.read import parquet

    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text {i}" for i in range(40)]})
    with pq.ParquetWriter(path, table.schema) as writer:
        for at in range(0, 40, 2):
            writer.write_table(table.slice(at, 2))
            writer.write_table(table.slice(at, 0))
    source = Source(str(path), "parquet")
    plan = Plan.make([source], SETTINGS, 4, Fields())
    assert [unit.records for unit in plan.units] == [4] * 10
    added = 0
    size = parquet._size

    def count(group) -> int:
        nonlocal added
        added += 1
        return size(group)

    monkeypatch.setattr(parquet, "_size", count)
    inputs = plan.sources(plan.units[8])
    meter = Meter(inputs)
    places = []
    for record in read(inputs, Fields(), meter=meter):
        assert meter.total is not None
        places.append((record.text, record.line, meter.position() < meter.total))
    assert places == [(f"text {i}", i + 1, True) for i in range(32, 36)]
    assert added < 15
    assert meter.position() == meter.total
