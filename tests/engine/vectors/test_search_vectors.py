"""`search` over what `embed` wrote: the hits of a search over the texts, for every format and precision."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import change_file, make_reranker
from safetensors import safe_open

from lastword import Embedder

pq = pytest.importorskip("pyarrow.parquet")
QUERY = "cats and the moon"
JOB = ("--unit-records", "20")


def same_hits(found, expected, keys=("rank", "path", "line", "text")) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert [a[key] for key in keys] == [b[key] for key in keys]
        assert abs(a["score"] - b["score"]) <= 2e-6


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("source", ["a.jsonl", "a.txt"])
def test_a_job_with_texts_gives_the_hits_of_the_texts(call, kind, source) -> None:
    call.embed(source, "-o", "out/", "--format", kind, *JOB)
    expected = call.hits(QUERY, source)
    found = call.hits(QUERY, "out/")
    same_hits(found, expected)
    assert call.err == ""
    if source == "a.jsonl":
        assert [hit["record"] for hit in found] == [hit["record"] for hit in expected]
        assert [hit["id"] for hit in found] == [hit["record"]["id"] for hit in found]
        table = call("search", QUERY, "out/", "--top-k", "1").out
        assert table.split()[:1] + table.split()[2:3] == ["1", found[0]["id"]]
        assert table.endswith(f"{found[0]['text']}\n")
    else:
        table = call("search", QUERY, "out/").out
        assert table == call("search", QUERY, source).out


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_a_job_without_texts_gives_their_places(call, kind) -> None:
    call.embed("a.jsonl", "-o", "out/", "--format", kind, *JOB)
    expected = call.hits(QUERY, "a.jsonl")
    found = call.hits(QUERY, "out/")
    same_hits(found, expected, ("rank", "path", "line"))
    assert {hit["text"] for hit in found} == {None}
    first = call("search", QUERY, "out/", "--top-k", "1").out
    assert first == f"  1  {found[0]['score']:.4f}  a.jsonl:{found[0]['line']}\n"


@pytest.mark.parametrize("kind", ["npy", "safetensors", "jsonl"])
def test_single_files(call, kind) -> None:
    call.embed("a.jsonl", "-o", f"v.{kind}")
    call.embed("a.jsonl", "a.txt", "-o", f"w.{kind}")
    found = call.hits(QUERY, f"v.{kind}")
    same_hits(found, call.hits(QUERY, "a.jsonl"), ("rank", "line"))
    assert {hit["path"] for hit in found} == {f"v.{kind}"}
    same_hits(call.hits(QUERY, f"w.{kind}"), call.hits(QUERY, "a.jsonl", "a.txt"), ("path", "line"))


def test_lines_with_a_header_and_another_name_of_the_vector(call, capfd) -> None:
    call("embed", "a.jsonl", "--header", "--vector-field", 'v, "x"', "--text-field", "text")
    Path("piped.jsonl").write_text(call.out)
    found = call.hits(QUERY, "piped.jsonl")
    expected = call.hits(QUERY, "a.jsonl")
    same_hits(found, expected, ("rank", "text", "record"))
    assert [hit["line"] for hit in found] == [hit["line"] + 1 for hit in expected]


def test_a_part_of_a_job_alone(call) -> None:
    whole = call.hits(QUERY, "a.jsonl", "--top-k", "60")
    expected = [hit for hit in whole if 20 < hit["line"] < 41]
    for kind in ("parquet", "npy", "safetensors", "jsonl"):
        call.embed("a.jsonl", "-o", f"{kind}/", "--format", kind, *JOB)
        part = Path(f"{kind}/part-000001.{kind}")
        found = call.hits(QUERY, part, "--top-k", "60")
        same_hits(found, expected, ("path", "line"))
        if kind in ("parquet", "jsonl"):
            assert [hit["record"] for hit in found] == [hit["record"] for hit in expected]
    part = Path("parquet/part-000001.parquet").rename("moved.parquet")
    found = call.hits(QUERY, part, "--top-k", "60")
    assert [hit["record"] for hit in found] == [hit["record"] for hit in expected]
    Path("npy/_done/000001.json").unlink()
    error = call.refused(QUERY, "npy/part-000001.npy")
    assert "npy/part-000001.npy: holds no vectors yet; got 0 of 1 unit done" in error


def test_chunks_and_fields_of_other_types(call) -> None:
    rows = [{"text": "one cat. Two moons.", "n": 1, "deep": {"x": [1]}}, {"text": "tin", "n": "x"}]
    Path("b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("c.jsonl").write_text('{"doc": {"body": "nested"}, "id": 5}\n')
    chunk = ("--chunk", "10")
    expected = call.hits(QUERY, "b.jsonl", *chunk)
    place = ("path", "line", "chunk", "start", "end", "text", "rank")
    for kind in ("parquet", "jsonl", "npy"):
        call.embed("b.jsonl", *chunk, "-o", f"{kind}/", "--format", kind)
        same_hits(call.hits(QUERY, f"{kind}/"), expected, place)
    found = call.hits(QUERY, "parquet/")
    assert {"x": [1]} in [hit["record"].get("deep") for hit in found]
    call.embed("c.jsonl", "--text-field", "doc.body", "-o", "n/")
    (hit,) = call.hits(QUERY, "n/")
    assert (hit["text"], hit["id"], hit["record"]) == (
        "nested",
        5,
        {"id": 5, "doc": {"body": "nested"}},
    )


# Precisions against plain references.


def plain(file: str) -> np.ndarray:
    """Read stored codes with other packages."""
    if file.endswith(".npy"):
        return np.load(file)
    if file.endswith(".safetensors"):
        with safe_open(file, framework="np") as opened:
            return opened.get_tensor("embedding")
    if file.endswith(".jsonl"):
        return np.array(
            [json.loads(line)["embedding"] for line in Path(file).read_text().splitlines()]
        )
    return np.array([row["embedding"] for row in pq.read_table(file).to_pylist()])


def reference(codes: np.ndarray, precision: str, ranges: torch.Tensor | None) -> torch.Tensor:
    """Return the vectors of length 1 that the codes stand for."""
    if precision.endswith("binary"):
        unsigned = (codes.astype(np.int64) + (128 if precision == "binary" else 0)).astype(np.uint8)
        return F.normalize(torch.tensor(np.unpackbits(unsigned, axis=1) * 2.0 - 1), dim=1)
    values = torch.tensor(codes.astype(np.float64))
    if precision.startswith("float"):
        return torch.tensor(codes.astype(precision)).double()
    if ranges is not None:
        low, high = ranges.double()
        values = (values - (128 if precision == "uint8" else 0)) * (high - low) / 254 + (
            low + high
        ) / 2
    return F.normalize(values, dim=1)


@pytest.mark.parametrize("kind", ["npy", "safetensors", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("precision", "ranged"),
    [
        ("float32", False),
        ("float16", False),
        ("int8", False),
        ("int8", True),
        ("uint8", True),
        ("binary", False),
        ("ubinary", False),
    ],
)
def test_every_precision_ranks_as_a_plain_reference(call, kind, precision, ranged) -> None:
    out = "p/" if kind == "parquet" else f"v.{kind}"
    with_ranges, ranges = (), None
    if ranged:
        call.embed("a.jsonl", "-o", "f.npy", "--dim", "32", "--save-ranges", "r.safetensors")
        with_ranges = ("--ranges", "r.safetensors")
        with safe_open("r.safetensors", framework="pt") as opened:
            ranges = opened.get_tensor("ranges")
    call.embed("a.jsonl", "-o", out, "--dim", "32", "--precision", precision, *with_ranges)
    codes = plain(out if kind != "parquet" else "p/part-000000.parquet")
    query = Embedder(call.model, device="cpu", truncate_dim=32).encode_query(QUERY).double()
    scores = reference(codes, precision, ranges).double() @ query
    found = call.hits(QUERY, out, "--top-k", "15", *with_ranges)
    best = scores.topk(15).values
    assert (torch.tensor([hit["score"] for hit in found]) - best).abs().max() < 2e-6
    for hit in found:
        assert abs(scores[hit["line"] - 1].item() - hit["score"]) < 2e-6
    lines = [hit["line"] for hit in found]
    assert len(set(lines)) == 15
    for a, b in pairwise(found):  # among equal scores, the earlier first
        assert (-a["score"], a["line"]) < (-b["score"], b["line"])


def unscaled(call, folder, similarity: str) -> None:
    """Make `call` use a copy of its model that does not scale its vectors."""
    shutil.copytree(call.model, folder)
    modules = json.loads((folder / "modules.json").read_text())[:-1]
    change_file(folder, "modules.json", modules)
    change_file(folder, "config_sentence_transformers.json", {"similarity_fn_name": similarity})
    call.model = folder


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_vectors_that_are_not_scaled(call, tmp_path, similarity) -> None:
    """`--normalize` is part of the space, and the queries follow."""
    unscaled(call, tmp_path / "model", similarity)
    call.embed("a.txt", "-o", "long.npy")
    call.embed("a.txt", "-o", "unit.npy", "--normalize")
    assert np.abs(np.linalg.norm(np.load("long.npy"), axis=1) - 1).max() > 0.1
    expected = call.hits(QUERY, "a.txt")
    found = call.hits(QUERY, "long.npy")
    assert [hit["line"] for hit in found] == [hit["line"] for hit in expected]
    assert max(abs(a["score"] - b["score"]) for a, b in zip(found, expected, strict=True)) < 1e-4
    text = Path("a.txt").read_text().splitlines()[16]
    (best,) = call.hits(text, "unit.npy", "--top-k", "1", "--prompt", "")
    assert abs(best["score"] - (1 if similarity in ("cosine", "dot") else 0)) < 1e-3
    assert "vectors of different spaces cannot be searched together" in call.refused(
        QUERY, "long.npy", "unit.npy"
    )


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_codes_without_a_length_are_compared_by_cosine_only(call, tmp_path, precision) -> None:
    unscaled(call, tmp_path / "model", "dot")
    call.embed("a.txt", "-o", "v.npy", "--precision", precision)
    error = call.refused(QUERY, "v.npy")
    assert f"v.npy: {precision} vectors cannot be compared by the model's similarity, dot" in error
    call.embed("a.txt", "-o", "u.npy", "--precision", precision, "--normalize")
    assert len(call.hits(QUERY, "u.npy")) == 10


# Options.


def test_several_inputs_rank_together_and_ties_by_their_order(call) -> None:
    call.embed("a.jsonl", "-o", "a/", *JOB)
    call.embed("a.txt", "-o", "b/", *JOB)
    found = call.hits(QUERY, "b/", "a/", "--top-k", "30")
    expected = call.hits(QUERY, "a.txt", "a.jsonl", "--top-k", "30")
    same_hits(found, expected)
    assert [hit["path"] for hit in found[:2]] == ["a.txt", "a.jsonl"]
    assert call.hits(QUERY, "a/", "./a/", "a") == call.hits(QUERY, "a/")


def test_several_queries_and_a_threshold(call) -> None:
    Path("q.txt").write_text("tin\n\nthe moon\n")
    call.embed("a.txt", "-o", "v/", *JOB)
    options = ("--queries", "q.txt", "--top-k", "4")
    same_hits(call.hits("v/", *options), call.hits("a.txt", *options), ("query", "path", "line"))
    best = call.hits("tin", "v/")
    between = (best[1]["score"] + best[2]["score"]) / 2
    enough = [hit for hit in best if hit["score"] >= between]
    assert call.hits("tin", "v/", "--threshold", between) == enough
    call("search", "tin", "v/", "--threshold", "5")
    assert (call.out, "no text scores 5 or more" in call.err) == ("", True)


def test_more_hits_than_vectors(call) -> None:
    call.embed("a.txt", "-o", "v.npy")
    assert sorted(hit["line"] for hit in call.hits("q", "v.npy", "--top-k", "1000")) == list(
        range(1, 61)
    )


def test_the_number_of_dimensions_is_that_of_the_file(call) -> None:
    call.embed("a.txt", "-o", "v.npy", "--dim", "16")
    expected = call.hits(QUERY, "a.txt", "--dim", "16")
    same_hits(call.hits(QUERY, "v.npy"), expected, ("line",))
    same_hits(call.hits(QUERY, "v.npy", "--dim", "16"), expected, ("line",))
    error = call.refused(QUERY, "v.npy", "--dim", "8")
    assert "--dim: differs from the stored vectors; got 8, expected 16, as in v.npy" in error


def test_texts_embeds_again(call) -> None:
    call.embed("a.jsonl", "-o", "v.jsonl")
    call.embed("a.jsonl", "-o", "out/", *JOB)
    Path("v.jsonl.json").write_text(
        Path("v.jsonl.json").read_text().replace('"space": "', '"space": "x')
    )
    assert "v.jsonl: vectors of another model" in call.refused(QUERY, "v.jsonl")
    same_hits(call.hits(QUERY, "v.jsonl", "--texts"), call.hits(QUERY, "a.jsonl"), ("line", "text"))
    texts = [hit["text"] for hit in call.hits(QUERY, "out", "--texts", "--top-k", "60")]
    assert sorted(texts) == sorted(hit["text"] for hit in call.hits("q", "a.txt", "--top-k", "60"))
    call.embed("a.jsonl", "-o", "v.npy")
    assert "unsupported input format .npy" in call.refused(QUERY, "v.npy", "--texts")


def test_reranking_stored_texts(call, tmp_path) -> None:
    folder = make_reranker(tmp_path / "reranker")
    call.embed("a.jsonl", "-o", "v/", *JOB)
    call.embed("a.jsonl", "-o", "n/", "--format", "npy", *JOB)
    options = ("--rerank", folder, "--candidates", "8", "--top-k", "5")
    same_hits(call.hits(QUERY, "v/", *options), call.hits(QUERY, "a.jsonl", *options))
    error = call.refused(QUERY, "n/", *options)
    assert "--rerank: needs the texts; got n/part-000000.npy" in error


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--chunk", "9"), "--chunk"),
        (("--files",), "--files"),
        (("--ignore", "x"), "--ignore"),
        (("--input-format", "jsonl"), "--input-format"),
        (("--on-error", "skip"), "--on-error"),
        (("--text-field", "body"), "--text-field"),
        (("--where", "id=doc-1"), "--where"),
        (("--template", "{id}"), "--template"),
    ],
)
def test_options_about_texts_are_refused(call, option, named) -> None:
    call.embed("a.txt", "-o", "v.npy")
    error = call.refused(QUERY, "v.npy", *option)
    assert f"{named}: does not apply to stored vectors; got v.npy" in error


def test_other_options_that_do_not_fit(call) -> None:
    call.embed("a.txt", "-o", "v.npy")
    assert "--ranges: is for stored vectors" in call.refused(
        QUERY, "a.txt", "--ranges", "r.safetensors"
    )
    assert "--delimiter: is for .csv and .tsv files" in call.refused(
        QUERY, "v.npy", "--delimiter", ";"
    )
    error = call.refused(QUERY, "v.npy", "a.txt")
    assert "a.txt: texts and stored vectors cannot be searched together" in error
    assert "gone.txt: No such file" in call.refused(QUERY, "v.npy", "gone.txt")
    call.embed("a.jsonl", "-o", "v.jsonl")
    assert "v.jsonl:" in (error := call.refused(QUERY, "v.jsonl", "--text-field", "body"))
    assert "has no field 'body'; got id, text" in error


def test_ranges_are_checked(call) -> None:
    call.embed("a.txt", "-o", "f.npy", "--save-ranges", "r.safetensors")
    call.embed(
        "a.jsonl", "a.txt", "-o", "g.npy", "--save-ranges", "all.safetensors", "--prompt", "x "
    )
    call.embed("a.txt", "-o", "v.npy", "--precision", "uint8", "--ranges", "r.safetensors")
    error = call.refused(QUERY, "v.npy")
    assert "v.npy: uint8 vectors need the ranges that they were made with" in error
    error = call.refused(QUERY, "v.npy", "--ranges", "all.safetensors")
    assert "all.safetensors: are not the ranges that the vectors were made with" in error
    error = call.refused(QUERY, "f.npy", "--ranges", "r.safetensors")
    assert "expected none, as in f.npy" in error


def test_what_may_not_be_mixed(call, tmp_path) -> None:
    call.embed("a.txt", "-o", "v.npy")
    call.embed("a.txt", "-o", "h.npy", "--precision", "float16")
    call.embed("a.txt", "-o", "d.npy", "--dim", "16")
    error = call.refused(QUERY, "v.npy", "h.npy")
    assert (
        "h.npy: vectors of different precisions cannot be searched together; got float16" in error
    )
    assert "expected float32, as in v.npy" in error
    error = call.refused(QUERY, "v.npy", "d.npy")
    assert "d.npy: vectors of different spaces cannot be searched together" in error


def test_another_model_is_refused(call) -> None:
    call.embed("a.txt", "-o", "v/", *JOB)
    from lastword.weights import locate

    error = call.refused(QUERY, "v/", model=locate(None).folder)
    model = Embedder(call.model, device="cpu")
    assert (
        f"v/: vectors of another model or other settings; got space {model.info.space_fingerprint()}"
        in error
    )
    own = Embedder().info.space_fingerprint(64)
    assert f"expected space {own} of " in error
    assert "with 64 dimensions" in error


# Jobs.


def test_an_unfinished_job_is_searched_and_says_so(call) -> None:
    call.embed("a.jsonl", "-o", "v/", *JOB)
    Path("v/_done/000001.json").unlink()
    found = call.hits(QUERY, "v/", "--top-k", "60")
    assert "v/: not finished; 1 of 3 units are missing\n" in call.err
    expected = [
        hit for hit in call.hits(QUERY, "a.jsonl", "--top-k", "60") if not 20 < hit["line"] < 41
    ]
    same_hits(found, expected, ("line", "text"))
    shutil.rmtree("v/_done")
    assert "v/: holds no vectors yet; got 0 of 3 units done" in call.refused(QUERY, "v/")


def test_an_empty_job(call) -> None:
    Path("empty.txt").write_text("")
    for kind in ("parquet", "npy", "safetensors", "jsonl"):
        call.embed("empty.txt", "-o", f"{kind}/", "--format", kind)
        assert f"{kind}/: holds no vectors" in call.refused(QUERY, f"{kind}/")
    Path("bad.jsonl").write_text("no json\n")  # a unit without a vector
    for kind in ("parquet", "npy", "safetensors", "jsonl"):
        call.embed("bad.jsonl", "-o", f"bad-{kind}/", "--format", kind)
        assert f"bad-{kind}/: holds no vectors" in call.refused(QUERY, f"bad-{kind}/")
