"""Test the proof: ttsem must stop a kernel that reads or writes outside its tensors, or whose programs race."""

import os
from pathlib import Path

import pytest
import torch
from helpers.kernels.cases import CASES, QUANTIZING, check, check_quantized
from helpers.kernels.mutants import mutant_of

from lastword.kernels.gpu import forest_attention

# For each case: what is wrong, and the source with its replacement.
BOUNDS: dict[str, dict[str, tuple[str, str]]] = {
    "rms_norm": {
        "the row is stored without a mask": (".to(dtype), mask=at < C)", ".to(dtype))"),
    },
    "add_rms_norm": {
        "the row is read without a mask": ("residual_ptr, at, at < C,", "residual_ptr, at, at < BLOCK,"),
    },
    "embed_rms_norm": {
        "the row after the token's": ("tl.load(ids_ptr + number)", "(tl.load(ids_ptr + number) + 1)"),
    },
    "qk_norm_rope": {
        "heads beyond the row": ("(head < H + KH) & (d < HALF)", "(head >= 0) & (d < HALF)"),
    },
    "swiglu": {"columns beyond the row": ("mask = column < F", "mask = column < F + 1")},
    "forest_attention": {"keys after the segment": ("(first + key < high)", "(first + key < high + BLOCK_N)")},
    "final_attention": {"a key after the path": ("inside = at < end", "inside = at <= end")},
    "quantize_rows": {
        "the row is stored without a mask": ("y_ptr.dtype.element_ty), mask=at < C)", "y_ptr.dtype.element_ty))"),
    },
    "swiglu_quantize": {
        "the tail is stored without a mask": ("y_ptr.dtype.element_ty), mask=t_at < F)", "y_ptr.dtype.element_ty))"),
    },
}  # fmt: skip
RACES: dict[str, dict[str, tuple[str, str]]] = {
    "rms_norm": {"all programs write the first row": ("y_ptr + row + at", "y_ptr + at")},
    "qk_norm_rope": {"programs share heads": ("tl.program_id(1) * HEADS", "tl.program_id(1) * (HEADS // 2)")},
    "quantize_rows": {"one scale for all rows": ("scale_ptr + row, scale", "scale_ptr, scale")},
    "final_attention, split": {
        "all splits write the peak of the first": ("at = (split * N + text)", "at = text"),
    },
}  # fmt: skip


def run(case: str, old: str, new: str, folder: Path) -> None:
    if case in CASES:
        check(case, mutant_of(CASES[case][0], old, new, folder))
    else:
        check_quantized(case, mutant_of(QUANTIZING[case][0], old, new, folder))


def cases(table: dict[str, dict[str, tuple[str, str]]]) -> list[tuple[str, str]]:
    return [(case, name) for case in table for name in table[case]]


@pytest.mark.parametrize(("case", "name"), cases(BOUNDS))
def test_an_access_outside_a_tensor_is_found(case: str, name: str, tmp_path: Path) -> None:
    from ttsem.sanitize import KernelFault

    with pytest.raises(KernelFault) as caught:
        run(case, *BOUNDS[case][name], tmp_path)
    assert caught.value.fault.kind in ("oob_read", "oob_write")


@pytest.mark.skipif(
    os.environ.get("PROVE_KERNELS") != "pipelined",
    reason="only for the last IR: make prove-kernels",
)
def test_the_last_ir_of_attention_is_executed(executed: list[str]) -> None:
    _, attend = CASES["forest_attention"]
    assert bool(attend(forest_attention, torch.Tensor.bfloat16).isfinite().all())
    assert executed
    for ir in executed:
        assert "ttng.warp_group_dot" in ir
        assert "ttg.async_copy_global_to_local" in ir


@pytest.mark.parametrize(("case", "name"), cases(RACES))
def test_a_race_is_found(case: str, name: str, tmp_path: Path) -> None:
    from ttsem.sanitize import KernelFault

    with pytest.raises(KernelFault) as caught:
        run(case, *RACES[case][name], tmp_path)
    assert caught.value.fault.kind == "race"
