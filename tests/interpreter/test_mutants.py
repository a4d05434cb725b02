"""Test the tests: a kernel with one fault in its source must fail the comparison with the reference, in bfloat16."""

from pathlib import Path

import pytest
from helpers.kernels.cases import CASES, QUANTIZING, check, check_quantized
from helpers.kernels.mutants import mutant_of

from lastword import kernels
from lastword.kernels.gpu import rms_norm

# For each case: what is wrong, and the source with its replacement.
MUTANTS: dict[str, dict[str, tuple[str, str]]] = {
    "rms_norm": {
        "no eps": ("tl.sum(h * h) / C + eps", "tl.sum(h * h) / C"),
        "no weight": ("(h * scale * weight)", "(h * scale)"),
        "the mean of the block": ("tl.sum(h * h) / C", "tl.sum(h * h) / BLOCK"),
        "the weight of the next element": ("weight_ptr + at, mask=at < C", "weight_ptr + at + 1, mask=at < C - 1"),
        "a last element unwritten": (".to(dtype), mask=at < C)", ".to(dtype), mask=at < C - 1)"),
    },
    "add_rms_norm": {
        "x replaces the residual": ("x += tl.load(residual_ptr", "x += 0.0 * tl.load(residual_ptr"),
        "the residual is not stored": ("rounded, mask=mask", "rounded, mask=mask & (at < 0)"),
        "one column is not stored": ("rounded, mask=mask", "rounded, mask=mask & (at > 0)"),
    },
    "embed_rms_norm": {
        "the row of another token": ("tl.load(ids_ptr + number)", "(tl.load(ids_ptr + number) // 2)"),
        "rows by number": ("tl.load(ids_ptr + number).to(tl.int64)", "number"),
        "no norm": ("h * scale * weight", "h * weight"),
    },
    "qk_norm_rope": {
        "rotates the other way": ("b * cos + a * sin", "b * cos - a * sin"),
        "the mean square of one half": ("tl.sum(b * b, 1)", "tl.sum(a * a, 1)"),
        "the tables of another row": ("row * HALF", "(row // 2) * HALF"),
        "no eps": ("/ (2 * HALF) + eps", "/ (2 * HALF)"),
    },
    "swiglu": {
        "no gate": ("gate * tl.sigmoid(gate) * up", "tl.sigmoid(gate) * up"),
        "up is gate": ("gate_up_ptr + F + at", "gate_up_ptr + at"),
        "the last element is not written": ("mask = column < F", "mask = column < F - 1"),
    },
    "forest_attention": {
        "logits in bfloat16": (
            's = tl.dot(q, k, input_precision="ieee")',
            's = tl.dot(q, k, input_precision="ieee").to(tl.bfloat16).to(tl.float32)',
        ),
        "a row sees the next key": ("[None, :] < visible", "[None, :] <= visible"),
        "sums are not rescaled": ("acc * shrink[:, None]", "acc"),
        "the total is not rescaled": ("total * shrink", "total"),
        "the first KV head for all": ("k_ptr += head * D", "k_ptr += 0"),
        "an ancestor loses a key": ("whole, fork, visible", "whole + 1, fork, visible"),
        "only the parent, not its parents": ("ancestor = tl.load(segments_ptr + ancestor", "ancestor = -1 + 0 * tl.load(segments_ptr + ancestor"),  # noqa: E501
    },
    "final_attention": {
        "logits in bfloat16": (
            's = tl.dot(q, k, input_precision="ieee")',
            's = tl.dot(q, k, input_precision="ieee").to(tl.bfloat16).to(tl.float32)',
        ),
        "the last key is left out": ("inside = at < end", "inside = at < end - 1"),
        "keys beyond the end count": ('tl.where(inside[None, :], s, float("-inf"))', "s"),
        "ancestors are left out": ("segment = tl.load(segments_ptr + segment * 4 + 2)", "segment = -1"),
    },
    "final_attention, split": {
        "every split has all keys": ("tl.minimum(high - passed, keys)", "keys"),
        "keys of descendants count as negative": ("passed += keys", "passed -= keys"),
        "joined without rescaling": ("weight = tl.exp2(part_peak - new_peak)", "weight = 1.0"),
        "joins one split only": ("at = split * rows + row", "at = row"),
        "sums are not rescaled": ("acc * shrink + part", "acc + part"),
    },
}  # fmt: skip
QUANTIZING_MUTANTS: dict[str, dict[str, tuple[str, str]]] = {
    "add_rms_norm_quantize": {
        "no weight": ("h * inverse * tl.load(weight_ptr + h_at).to(tl.float32)", "h * inverse"),
        "the scale without the tail": ("tl.maximum(peak, tl.max(tl.abs(t)))", "peak"),
        "codes 2 % too small": ("(h / scale)", "(h / scale * 0.98)"),
        "scale 1 % too large": ("scale_ptr + number, scale", "scale_ptr + number, scale * 1.01"),
    },
    "quantize_rows": {
        "NaN for a row of zeros": ("tl.maximum(peak, 1e-12)", "peak"),
        "the largest of the positive values": ("tl.max(tl.abs(x))", "tl.max(x)"),
        "a last element unwritten": ("mask=at < C)", "mask=at < C - 1)"),
    },
    "swiglu_quantize": {
        "up is gate": ("gate_up_ptr + F + at", "gate_up_ptr + at"),
        "the scale without the tail": ("tl.maximum(peak, tl.max(tl.abs(t)))", "peak"),
        "codes 2 % too small": ("(h / scale)", "(h / scale * 0.98)"),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_right_kernels_pass(case: str) -> None:
    check(case, kernels)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns about NaN
@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in MUTANTS for name in MUTANTS[case]]
)
def test_a_mutant_is_caught(case: str, name: str, tmp_path: Path) -> None:
    mutant = mutant_of(CASES[case][0], *MUTANTS[case][name], tmp_path)
    with pytest.raises(AssertionError):
        check(case, mutant)


@pytest.mark.parametrize("case", QUANTIZING)
def test_the_right_quantising_kernels_pass(case: str) -> None:
    check_quantized(case, kernels)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns about 0 / 0
@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in QUANTIZING for name in QUANTIZING_MUTANTS[case]]
)
def test_a_quantising_mutant_is_caught(case: str, name: str, tmp_path: Path) -> None:
    mutant = mutant_of(QUANTIZING[case][0], *QUANTIZING_MUTANTS[case][name], tmp_path)
    with pytest.raises(AssertionError):
        check_quantized(case, mutant)


def test_every_kernel_has_three_mutants() -> None:
    files = Path(str(rms_norm.__file__)).parent.glob("*.py")
    kernels_ = {f.stem for f in files if "@triton.jit" in f.read_text(encoding="utf-8")}
    tested = {
        module.__name__.rpartition(".")[2] for module, _ in (*CASES.values(), *QUANTIZING.values())
    }
    assert tested == kernels_
    assert all(len(some) >= 3 for some in (*MUTANTS.values(), *QUANTIZING_MUTANTS.values()))
