"""Compare the merge methods with their published formulas in float64, including edge cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lastword.bench.merge import multislerp
from lastword.errors import InputError
from lastword.weights.files.blocks import block_threads
from lastword.weights.merging import methods
from lastword.weights.merging.recipe import parse_recipe
from lastword.weights.merging.tensor_merge import PIECE, TensorMerge

WEIGHTS = {
    "1": [0.7],
    "2-card": [2.8, 4.3],
    "2-negative": [1.5, -0.4],
    "2-zero": [0.0, 1.0],
    "3": [0.2, 0.5, 0.3],
    "3-all-negative": [-1.0, -2.0, -0.5],
    "5": [1.0, 0.25, 3.0, 0.0, -0.5],
}


def draw(count: int, *shape: int, dtype=torch.float32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(shape, generator=generator)
    return [(common + torch.randn(shape, generator=generator)).to(dtype) for _ in range(count)]


def by_tangent(tensors, weights, base, normalize):
    """Compute Multi-SLERP step by step as published: mean direction, tangent plane, exponential map."""
    origin = torch.zeros_like(tensors[0]).double() if base is None else base.double()
    total = sum(weights) if normalize else 1.0
    w = [weight / total for weight in weights]
    x = [(t.double() - origin).flatten() for t in tensors]
    if len(x) == 1:
        return tensors[0].double()
    units = [each / each.norm() for each in x]
    mean = sum(a * u for a, u in zip(w, units, strict=True))
    mean = mean / mean.norm()
    tangent = sum(a * (u - (u @ mean) * mean) for a, u in zip(w, units, strict=True))
    angle = tangent.norm() + 1e-8
    turned = mean * angle.cos() + tangent * (angle.sin() / angle)
    length = sum(a * each.norm() for a, each in zip(w, x, strict=True))
    return (turned * length).view(tensors[0].shape) + origin


def recipe(method: str, weights: list[float], *, base: bool = False, t: float | None = None, **own):
    models = "".join(
        f"- {{model: m{i}, parameters: {{weight: {weight!r}}}}}\n"
        for i, weight in enumerate(weights)
    )
    own = {key: str(value).lower() for key, value in own.items()}
    if method == "slerp":
        models, own, base = "- {model: m1}\n", {"t": t}, True
    parameters = "".join(f"  {key}: {value}\n" for key, value in own.items())
    text = f"merge_method: {method}\nmodels:\n{models}"
    text += f"parameters:\n{parameters}" if parameters else ""
    return parse_recipe(text + ("base_model: base\n" if base else ""), "recipe")


def merge_in_stream(tensors, made, *, base=None, dtype=None):
    dtype = dtype or tensors[0].dtype
    flat = [tensor.reshape(-1) for tensor in tensors]
    with block_threads() as threads:
        origin = None if base is None else base.reshape(-1)
        work = TensorMerge(flat, origin, dtype, threads)
        return torch.cat([block.clone() for block in work.run(made)]).view(tensors[0].shape)


def merged(tensors, weights, *, base=None, normalize=True, dtype=None):
    """Compute Multi-SLERP as a merge does."""
    made = recipe("multislerp", weights, base=base is not None, normalize_weights=normalize)
    return merge_in_stream(tensors, made, base=base, dtype=dtype)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("with_base", [False, True], ids=["plain", "base"])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
def test_multislerp_is_the_published_formula(weights, with_base, normalize):
    tensors = draw(len(weights), 70, 33)
    base = draw(1, 70, 33, seed=9)[0] if with_base else None
    expected = by_tangent(tensors, weights, base, normalize)
    got = merged(tensors, weights, base=base, normalize=normalize, dtype=torch.float64)
    assert relative(got, expected) < 1e-12
    if len(tensors) > 1:  # a single model is copied, with any weight
        plain = multislerp(tensors, weights, base=base, normalize=normalize)
        assert relative(plain, expected) < 1e-12
    rounded = merged(tensors, weights, base=base, normalize=normalize)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, got.float())


def wrong_linear(tensors, weights):
    w = torch.tensor(weights) / sum(weights)
    return sum(a * t.double() for a, t in zip(w, tensors, strict=True))


def wrong_by_row(tensors, weights):
    rows = [merged([t[i] for t in tensors], weights, dtype=torch.float64) for i in range(70)]
    return torch.stack(rows)


def wrong_unscaled(tensors, weights):
    made = merged(tensors, weights, dtype=torch.float64)
    return made / made.norm()


@pytest.mark.parametrize("wrong", [wrong_linear, wrong_by_row, wrong_unscaled])
def test_a_wrong_formula_is_rejected(wrong):
    tensors = draw(2, 70, 33)
    expected = by_tangent(tensors, [2.8, 4.3], None, True)
    assert relative(wrong(tensors, [2.8, 4.3]), expected) > 1e-6


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 7])
def test_multislerp_in_pieces(size):
    tensors = draw(3, size)
    got = merged(tensors, [1, 2, 3], dtype=torch.float64)
    assert relative(got, by_tangent(tensors, [1, 2, 3], None, True)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_tensor_merged_with_itself_is_itself_bit_for_bit(dtype, count):
    (x,) = draw(1, 50, 31, dtype=dtype)
    x[3] = 0
    for weights in ([0.1 * (i + 1) for i in range(count)], [2.8] * count):
        assert torch.equal(merged([x] * count, weights), x)
        assert torch.equal(merged([x] * count, weights, base=x), x)
        for method in ("linear", "multislerp"):
            assert torch.equal(merge_in_stream([x] * count, recipe(method, weights)), x)
    if count == 2:
        assert torch.equal(merge_in_stream([x, x], recipe("slerp", [], t=0.3)), x)


def test_a_merge_of_another_dtype_is_rounded_once():
    x, y = draw(2, 40)
    half = merged([x.bfloat16(), y.bfloat16()], [1, 1], dtype=torch.float16)
    exact = merged([x.bfloat16(), y.bfloat16()], [1, 1], dtype=torch.float64)
    assert torch.equal(half, exact.half())


def test_opposite_directions_of_two_models_are_merged_linearly():
    (x,) = draw(1, 999)
    assert torch.equal(merged([x, -x], [1, 1]), torch.zeros(999))
    longer = merged([x, -4 * x], [0.5, 0.5], dtype=torch.float64)
    assert torch.equal(longer, -1.5 * x.double())
    base, x = torch.ones(999), (8 * x).round() / 8  # so that base ± x is exact
    assert torch.equal(merged([base + x, base - x], [1, 1], base=base), base)


def test_opposite_directions_of_three_models_are_an_error():
    thirds = [[1.0, 0.0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]]
    tensors = [torch.tensor(each, dtype=torch.float64) for each in thirds]
    with pytest.raises(InputError) as caught:
        merged(tensors, [1, 1, 1])
    assert caught.value.what == "the weighted directions cancel out, so their mean has no direction"
    assert caught.value.remedy == "Change the weights."


@pytest.mark.parametrize("distance", [1e-3, 1e-5, 1e-6])
def test_nearly_opposite_directions_keep_their_digits(distance):
    x, noise = (t.double() for t in draw(2, 4000))
    tensors = [x, -x + distance * noise]
    got = merged(tensors, [1, 1])
    assert relative(got, by_tangent(tensors, [1, 1], None, True)) < 1e-5


def test_zero_tensors():
    zero, (x, y) = torch.zeros(100), draw(2, 100)
    assert torch.equal(merged([zero, zero], [1, 2]), zero)
    assert torch.equal(merged([zero] * 3, [1, 2, 3]), zero)
    assert torch.equal(merged([x] * 3, [1, 2, 3], base=x), x)
    # a zero row has no direction and reduces the length by its weight
    assert relative(merged([x, zero], [1, 3]), 0.25 * x) < 1e-7
    got = merged([x, y, zero], [1, 1, 2], dtype=torch.float64)
    assert relative(got, 0.5 * by_tangent([x, y], [1, 1], None, True)) < 1e-12


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [0.1, 0.2, -0.3]])
def test_weights_that_sum_to_zero_cannot_be_normalised(weights):
    tensors = draw(len(weights), 30)
    with pytest.raises(InputError) as caught:
        merged(tensors, weights)
    error = caught.value
    assert (error.where, error.expected) == ("merge", "a sum other than 0")
    assert error.what.startswith(f"the weights {weights} sum to ")
    assert error.remedy == "Change the weights, or do not normalise them."
    if any(weights):
        assert merged(tensors, weights, normalize=False).isfinite().all()


@pytest.mark.parametrize(
    ("tensors", "weights", "what"),
    [
        ([torch.ones(2), torch.full((2,), math.nan)], [1, 1], "model 2 contains NaN or infinity"),
        ([torch.full((2,), math.inf), torch.ones(2)], [1, 1], "model 1 contains NaN or infinity"),
    ],
)
def test_bad_input(tensors, weights, what):
    with pytest.raises(InputError) as caught:
        merged(tensors, weights)
    assert (caught.value.what, caught.value.expected) == (what, "finite weights")


@pytest.mark.parametrize("weights", [w for w in WEIGHTS.values() if len(w) > 1])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
def test_linear_and_task_arithmetic(weights, normalize):
    tensors, base = draw(len(weights), 70, 33), draw(1, 70, 33, seed=9)[0]
    total = sum(weights) if normalize else 1.0
    linear = sum(w / total * t.double() for w, t in zip(weights, tensors, strict=True))
    made = recipe("linear", weights, normalize=normalize)
    exact = merge_in_stream(tensors, made, dtype=torch.float64)
    assert relative(exact, linear) < 1e-13
    assert torch.equal(merge_in_stream(tensors, made), exact.float())
    deltas = sum(w / total * (t.double() - base) for w, t in zip(weights, tensors, strict=True))
    made = recipe("task_arithmetic", weights, base=True, normalize=normalize, **{"lambda": 0.7})
    got = merge_in_stream(tensors, made, base=base, dtype=torch.float64)
    assert relative(got, base + 0.7 * deltas) < 1e-13


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_turns_in_the_plane_of_the_two(t):
    x, y = (tensor.double() / tensor.double().norm() for tensor in draw(2, 70, 33))
    cosine = float((x * y).sum())
    angle, side = math.acos(cosine), y - cosine * x
    expected = math.cos(t * angle) * x + math.sin(t * angle) * side / side.norm()
    made = recipe("slerp", [], t=t)
    assert relative(merge_in_stream([x, y], made), expected) < 1e-12
    # lengths: each end counts with its own
    scaled = merge_in_stream([2 * x, 5 * y], made)
    first, second = math.sin((1 - t) * angle), math.sin(t * angle)
    assert relative(scaled, (2 * first * x + 5 * second * y) / math.sin(angle)) < 1e-12


@pytest.mark.parametrize("other", ["opposite", "parallel", "zero"])
def test_slerp_is_linear_where_the_angle_means_nothing(other):
    (x,) = draw(1, 70)
    y = {"opposite": -2 * x, "parallel": 3 * x, "zero": torch.zeros(70)}[other]
    got = merge_in_stream([x, y], recipe("slerp", [], t=0.25), dtype=torch.float64)
    assert relative(got, 0.75 * x.double() + 0.25 * y.double()) < 1e-12


def test_blocks_and_whole_tensors_give_the_same_bits(monkeypatch):
    tensors, base = draw(3, 5000), draw(1, 5000, seed=3)[0]
    whole = merged(tensors, [1, 2, 3], base=base)
    monkeypatch.setattr("lastword.weights.files.blocks.BLOCK", 1024)
    monkeypatch.setattr("lastword.weights.merging.tensor_merge.PIECE", 1024)
    assert torch.equal(merged(tensors, [1, 2, 3], base=base), whole)


def test_a_value_too_large_for_the_result_is_an_error():
    x = torch.full((10,), 60000.0)
    with pytest.raises(InputError) as caught:
        merge_in_stream([x, x], recipe("linear", [2.0, 2.0], normalize=False), dtype=torch.float16)
    error = caught.value
    assert error.what == "a merged value is not finite in float16"
    assert (error.got, error.expected) == ("inf", "finite values")
    assert (
        merge_in_stream([x, -x], recipe("linear", [1.0, 2.0]), dtype=torch.float16).isfinite().all()
    )


def test_what_the_report_says():
    x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    facts = methods.describe(methods.gram([torch.stack([x, y]).double()], 2), [0.5, 2.0])
    assert facts["norms"] == [3.0, 4.0]
    assert facts["angles"] == [[0.0, 90.0], [90.0, 0.0]]
    assert facts["norm"] == pytest.approx(math.hypot(1.5, 8.0))
    zero = methods.describe(methods.gram([torch.zeros(2, 3, dtype=torch.float64)], 2), [1.0, 1.0])
    assert zero["angles"] == [[None, None], [None, None]]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 5).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(0.05, 10), min_size=n, max_size=n), st.permutations(range(n))
        )
    ),
    st.integers(0, 2**20),
    st.floats(0.01, 100),
)
def test_laws(case, seed, factor):
    """Order does not matter, scaled inputs give a scaled result, and the length is the weighted mean of lengths."""
    weights, order = case
    tensors = [t.double() for t in draw(len(weights), 60, seed=seed)]
    made = merged(tensors, weights)
    shuffled = merged([tensors[i] for i in order], [weights[i] for i in order])
    assert relative(shuffled, made) < 1e-11
    assert relative(merged([factor * t for t in tensors], weights), factor * made) < 1e-11
    assert relative(merged(tensors, [factor * w for w in weights]), made) < 1e-11
    length = sum(w * t.norm() for w, t in zip(weights, tensors, strict=True)) / sum(weights)
    assert float(made.norm()) == pytest.approx(float(length), rel=1e-11)
