"""`Nearest`: the order of one stable sort over everything, whatever the blocks; and how fast files are searched."""

import json
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lastword.cli.read import Record
from lastword.cli.write import ELEMENT_TYPES, Matrix, npy_header, safetensors_header
from lastword.errors import InputError
from lastword.vectors.codes import Codes
from lastword.vectors.find import find_vectors
from lastword.vectors.made import Made
from lastword.vectors.nearest import Nearest
from lastword.vectors.search import search_files

pa = pytest.importorskip("pyarrow")
METADATA = {"space": "s", "run": "r", "lastword": "0", "model": "m", "dim": "256"}


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b.T


@pytest.mark.parametrize("kind", ["random", "ties", "rising", "falling", "equal"])
@pytest.mark.parametrize("most", [1, 7, 300])
@pytest.mark.parametrize("block", [1, 5, 64, 1000])
def test_the_order_is_that_of_one_stable_sort(kind, most, block) -> None:
    generator = torch.Generator().manual_seed(most * 1000 + block)
    scores = torch.rand(3, 257, generator=generator)
    if kind == "ties":  # some differ by less than what is kept of a score
        scores = (scores * 9).round() / 9 + torch.rand(3, 257, generator=generator) * 4e-7
    elif kind != "random":
        scores = scores.sort(dim=1, descending=kind == "falling").values
        scores = scores * 0 if kind == "equal" else scores
    nearest = Nearest(torch.eye(3), product, most)
    for start in range(0, 257, block):
        rows = scores[:, start : start + block].T
        nearest.add(rows, [f"item {start + i}" for i in range(len(rows))])
    rounded = scores.double().round(decimals=6)
    for query, found in enumerate(nearest.ranked()):
        best, places = rounded[query].sort(descending=True, stable=True)
        assert [place for _, place, _ in found] == places[:most].tolist()
        assert [score for score, _, _ in found] == best[:most].tolist()
        assert [item for _, _, item in found] == [f"item {i}" for i in places[:most].tolist()]


def test_large_scores_that_differ_by_their_last_bit_only() -> None:
    scores = torch.tensor([[1e4, 1e4 + 2**-10, 1e4 - 2**-10, 1e4 + 2**-10]])
    nearest = Nearest(torch.eye(1), product, 2)
    for start in range(4):
        nearest.add(scores[:, start : start + 1].T, [start])
    assert [place for _, place, _ in next(nearest.ranked())] == [1, 3]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_score_that_is_not_finite_names_its_row(value) -> None:
    rows = torch.ones(9, 1)
    rows[4] = value
    with pytest.raises(InputError) as caught:
        Nearest(torch.ones(2, 1), product, 3).add(rows, range(9))
    assert caught.value.index == 4
    large = torch.full((9, 1), 3e38)  # finite, but their sum is not
    Nearest(torch.ones(1, 1), product, 3).add(large, range(9))


def made_file(kind: str, count: int) -> str:
    """Write a file of random vectors, as `embed` does, without a model."""
    from lastword.bulk.parquet import ParquetFile
    from lastword.model_info import FINGERPRINT_VERSION

    metadata = METADATA | {"precision": "float32", "fingerprints": str(FINGERPRINT_VERSION)}
    layout, path = ELEMENT_TYPES["float32"], f"v.{kind}"
    generator = torch.Generator().manual_seed(0)
    with open(path, "wb") as out:
        if kind == "parquet":
            columns = {"text": "string"}
            writer = ParquetFile(out, path, columns, "embedding", "float32", 256, metadata)
        else:
            named = ("embedding", layout, 256, metadata)
            header = npy_header(layout, 256) if kind == "npy" else safetensors_header(*named)
            writer = Matrix(out, path, header)
        for start in range(0, count, 4096):
            places = range(start, min(count, start + 4096))
            vectors = F.normalize(torch.randn(len(places), 256, generator=generator), dim=1)
            if kind == "parquet":
                writer.note_rows([(1, False)] * len(places))
            text = '{"text": "a"'
            writer.write(
                [Record("a", "a.txt", i + 1, frozenset(("text",)), text) for i in places], vectors
            )
        writer.finish()
    Path(f"{path}.json").write_text(json.dumps(metadata | {"texts": count}))
    return path


@pytest.mark.timing
@pytest.mark.parametrize(
    ("count", "mapped", "parquet"),
    [
        (200_000, 0.25, 1.5),
        pytest.param(1_000_000, 0.5, 3.0, marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet"])
def test_many_vectors_are_searched_fast(
    tmp_path, monkeypatch, kind, count, mapped, parquet
) -> None:
    """Vectors of 256 dimensions, in the page cache; and Parquet takes the memory of some row groups."""
    monkeypatch.chdir(tmp_path)
    path = made_file(kind, count)
    query = F.normalize(torch.randn(1, 256, generator=torch.Generator().manual_seed(7)), dim=1)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        (found,) = find_vectors([path], "text")
        codes = Codes(found.made, "cosine", None, unit=True)
        (hits,) = search_files(found.files, codes, query, 10, path, lambda _: None)
        times.append(time.perf_counter() - start)
    assert len(hits) == 10
    assert min(times) < (parquet if kind == "parquet" else mapped), times
    assert pa.default_memory_pool().max_memory() < 200 << 20


def test_what_was_written_for_the_speed_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    query = F.normalize(torch.randn(1, 256, generator=torch.Generator().manual_seed(7)), dim=1)
    found = []
    for kind in ("npy", "safetensors", "parquet"):
        (stored,) = find_vectors([made_file(kind, 9000)], "text")
        assert isinstance(stored.made, Made)
        codes = Codes(stored.made, "cosine", None, unit=True)
        (hits,) = search_files(stored.files, codes, query, 10, kind, lambda _: None)
        found.append([(score, place) for score, place, _ in hits])
    generator = torch.Generator().manual_seed(0)
    sizes = (4096, 4096, 808)
    parts = [F.normalize(torch.randn(n, 256, generator=generator), dim=1) for n in sizes]
    best, places = (torch.cat(parts) @ query[0]).topk(10)
    assert found[0] == found[1] == found[2]
    assert [place for _, place in found[0]] == places.tolist()
    assert (
        max(abs(score - value) for (score, _), value in zip(found[0], best.tolist(), strict=True))
        < 1e-6
    )
