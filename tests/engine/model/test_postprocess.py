"""From states to stored vectors: truncation, normalisation, quantisation, similarity."""

from typing import get_args

import numpy as np
import pytest
import torch
from helpers.messages import refusal

from lastword.encode_options import Precision
from lastword.errors import ConfigError, InputError
from lastword.model.postprocess import (
    PRECISIONS,
    VectorFormat,
    check_precision,
    postprocess,
    rows_without_direction,
    to_precision,
)
from lastword.similarity import similarity, similarity_pairwise


@pytest.fixture
def vectors() -> torch.Tensor:
    torch.manual_seed(0)
    return postprocess(torch.randn(50, 64), 64, normalize=True)


def test_cut_vectors_have_length_one() -> None:
    states = torch.randn(4, 64, dtype=torch.float64).to(torch.bfloat16)
    cut = postprocess(states, 24, normalize=True)
    assert cut.dtype == torch.float32
    assert torch.allclose(cut.norm(dim=1), torch.ones(4), atol=1e-6)
    assert torch.equal(postprocess(states, 24, normalize=False), states[:, :24].float())


# The largest element of a row that points nowhere, or a row that does.
NOWHERE = {
    "zero": 0.0,
    "tiny": 1e-13,
    "huge": 1e20,
    "nan": torch.nan,
    "inf": torch.inf,
    "-inf": -torch.inf,
}
SOMEWHERE = {"small": 1e-11, "large": 1e18, "one": 1.0}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", [*NOWHERE, *SOMEWHERE])
def test_rows_without_a_direction_are_listed(name: str, normalize: bool) -> None:
    states = torch.randn(50, 64)
    states[7] = 0
    states[7, 3] = (NOWHERE | SOMEWHERE)[name]
    vectors = postprocess(states, 32, normalize=normalize)
    assert rows_without_direction(vectors) == ([7] if name in NOWHERE else [])
    if normalize and name in SOMEWHERE:
        assert vectors[7].norm() == 1
    states[7], states[9, 40] = 1, torch.nan  # what is cut off does not count
    assert rows_without_direction(postprocess(states, 32, normalize=normalize)) == []


def test_lengths_are_those_of_pytorch() -> None:
    states = torch.randn(200, 1024) * 30
    expected = torch.nn.functional.normalize(states[:, :256], dim=1)
    assert torch.equal(postprocess(states, 256, normalize=True), expected)


def test_int8_keeps_the_cosine(vectors: torch.Tensor) -> None:
    codes = to_precision(vectors, "int8")
    assert codes.dtype == torch.int8
    assert codes.abs().amax(1).tolist() == [127] * 50
    exact, coarse = similarity(vectors, vectors), similarity(codes, codes)
    assert (exact - coarse).abs().max() < 0.02


def test_saved_ranges_compare_by_integer_dot_product(vectors: torch.Tensor) -> None:
    ranges = torch.tensor([[-1.0], [1.0]]).expand(2, 64) * vectors.abs().max()
    codes = to_precision(vectors, "int8", ranges).int()
    step = float((ranges[1, 0] - ranges[0, 0]) / 254)
    assert ((codes @ codes.T) * step**2 - vectors @ vectors.T).abs().max() < 0.02
    assert torch.equal(to_precision(vectors, "uint8", ranges).int(), codes + 128)
    clamped = to_precision(vectors * 9, "int8", ranges)
    assert clamped.abs().max() == 127


def test_bits_are_packed_as_numpy_packs_them(vectors: torch.Tensor) -> None:
    expected = np.packbits(vectors.numpy() > 0, axis=1)
    assert np.array_equal(to_precision(vectors, "ubinary").numpy(), expected)
    assert np.array_equal(
        to_precision(vectors, "binary").numpy(), (expected.astype(int) - 128).astype(np.int8)
    )


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary", "ubinary"])
def test_no_vectors(precision: str, vectors: torch.Tensor) -> None:
    one, none = to_precision(vectors[:1], precision), to_precision(vectors[:0], precision)
    assert (none.shape, none.dtype) == ((0, one.shape[1]), one.dtype)


def test_half_precision(vectors: torch.Tensor) -> None:
    assert torch.equal(to_precision(vectors, "float16"), vectors.half())
    assert to_precision(vectors, "float32") is vectors


@pytest.mark.parametrize(
    ("precision", "dim", "ranges", "parts"),
    [
        (
            "int4",
            64,
            None,
            {"got": "'int4'", "expected": f"one of {', '.join(PRECISIONS)}"},
        ),
        ("binary", 60, None, {"got": "dim 60", "expected": "a multiple of 8"}),
        ("uint8", 64, None, {"what": "uint8 needs ranges", "expected": "a [2, 64] tensor"}),
        ("int8", 64, torch.zeros(2, 8), {"got": "[2, 8]", "expected": "[2, 64]"}),
        (
            "int8",
            64,
            torch.zeros(2, 64),
            {"what": "not every upper bound exceeds its lower bound"},
        ),
    ],
)
def test_refused(precision: str, dim: int, ranges: torch.Tensor | None, parts: dict) -> None:
    where = "precision" if ranges is None else "ranges"
    with refusal(ConfigError, where=where, **parts):
        check_precision(precision, dim, ranges)
    with refusal(ConfigError, where=where, **parts):
        VectorFormat(dim, normalize=True, precision=precision, ranges=ranges)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_match_sentence_transformers(name: str, vectors: torch.Tensor) -> None:
    from sentence_transformers import SimilarityFunction

    a, b = vectors[:7] * 2, vectors[3:10]
    every = SimilarityFunction.to_similarity_fn(name)
    pairs = SimilarityFunction.to_similarity_pairwise_fn(name)
    assert torch.allclose(similarity(a, b, name), every(a, b), atol=1e-5)
    assert torch.allclose(similarity_pairwise(a, b, name), pairs(a, b), atol=1e-5)
    assert similarity(a[0], b, name).shape == (1, 7)
    assert similarity([[1.0, 0.0]], [[0.0, 1.0]], "dot").item() == 0


@pytest.mark.parametrize("compare", [similarity, similarity_pairwise])
def test_lists_of_vectors(compare, vectors: torch.Tensor) -> None:
    a, b = vectors[:3], vectors[3:6]
    expected = compare(a, b)
    arrays = lambda rows: list(rows.numpy())  # noqa: E731
    for kind in (list, tuple, arrays, torch.Tensor.tolist, torch.Tensor.numpy):
        assert torch.allclose(compare(kind(a), b), expected, atol=1e-6)
    assert compare(list(a), list(b)).dtype == torch.float32


@pytest.mark.parametrize(
    ("a", "b", "what", "got"),
    [
        (torch.ones(2, 64), torch.ones(3, 32), "of different widths", "64 and 32 dimensions"),
        ([], torch.ones(3, 32), "of different widths", "0 and 32 dimensions"),
        (
            [torch.ones(4), torch.ones(3)],
            torch.ones(4),
            "not numeric vectors of equal width",
            "list",
        ),
        ([[1.0, 2.0], [1.0]], torch.ones(2), "not numeric vectors of equal width", "list"),
        (["a"], torch.ones(2), "not numeric vectors of equal width", "list"),
        (torch.ones(2, 2, 2), torch.ones(2), "not a matrix", "the shape [2, 2, 2]"),
    ],
)
@pytest.mark.parametrize("compare", [similarity, similarity_pairwise])
def test_vectors_that_cannot_be_compared(compare, a, b, what: str, got: str) -> None:
    with refusal(InputError, where="vectors", what=what, got=got):
        compare(a, b)


@pytest.mark.parametrize("compare", [similarity, similarity_pairwise])
def test_codes_that_are_no_vectors_are_not_compared(vectors: torch.Tensor, compare) -> None:
    ranges = torch.stack([vectors.amin(0) - 1, vectors.amax(0) + 1])
    own = to_precision(vectors, "int8")
    wrong = [
        to_precision(vectors, "binary"),
        to_precision(vectors, "ubinary"),
        to_precision(vectors, "int8", ranges),
        to_precision(vectors, "uint8", ranges),
    ]
    for codes in wrong:
        for given in (codes, codes.numpy(), list(codes), list(codes.numpy())):
            with refusal(InputError, where="vectors"):
                compare(given, given)
        with refusal(InputError, where="vectors"):
            compare(own[:, : codes.shape[1]].float(), codes)
        assert compare(codes.float(), codes.float()).isfinite().all()  # as the caller wishes
    for name in ("dot", "euclidean", "manhattan"):
        with refusal(InputError, what=f"these int8 codes cannot be compared by {name}"):
            compare(own, own, name)
    assert torch.allclose(compare(own, own), compare(own.float(), own.float()))
    assert compare(own[:0], own[:0]).numel() == 0


def test_pairs_need_equal_numbers(vectors: torch.Tensor) -> None:
    assert similarity_pairwise(vectors[:1], vectors[:5]).shape == (5,)
    with refusal(InputError, what="not in pairs", got="2 and 5"):
        similarity_pairwise(vectors[:2], vectors[:5])


def test_the_type_names_every_precision() -> None:
    assert get_args(Precision) == PRECISIONS
