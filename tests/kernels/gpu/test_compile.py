"""Every kernel of the published models compiles ahead of time for every target, within its bounds, without a spill."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton

from lastword.bench.kernels import compile as aot
from lastword.bench.kernels.launches import model_launches

BOUNDS = tomllib.loads(Path(__file__).parents[3].joinpath("kernels/gpu/resources.toml").read_text())
OPERATIONS = {
    "rms_norm", "rms_norm lookup", "rms_norm add", "swiglu",
    "qk_norm_rope", "qk_norm_rope last q", "qk_norm_rope last k",
    "forest_attention plain", "forest_attention tree", "forest_attention short", "forest_attention short tree",
    "final_attention whole", "final_attention split", "join split",
}  # fmt: skip
# Where a kernel spills registers, in which release of Triton: bytes per thread, and accesses in an iteration of a loop.
# Outside loops a spill costs a few cycles per program. On gfx950 smaller blocks of keys would not spill but cost more.
SPILLS = {
    ("3.8.0", "sm_80 bfloat16 final_attention whole"): (8, 0),
    ("3.8.0", "sm_80 float32 final_attention split"): (8, 0),
    ("3.9.0", "sm_80 bfloat16 final_attention whole"): (8, 0),
    ("3.9.0", "sm_90 bfloat16 forest_attention plain"): (48, 0),
    ("3.9.0", "gfx942 bfloat16 forest_attention tree"): (24, 0),
    ("3.9.0", "gfx950 bfloat16 forest_attention tree"): (100, 5),
}
FP8 = {"add_rms_norm_quantize", "quantize_rows", "swiglu_quantize"}


def operations(target: str) -> set[str]:
    """sm_80 has no fp8."""
    return OPERATIONS if target == "sm_80" else OPERATIONS | FP8


@pytest.fixture(scope="module")
def rows() -> list[aot.Resources]:
    targets = tuple(aot.TARGETS)
    return list(aot.compile_all(targets, aot.MODELS, aot.DTYPES, launches=model_launches))


def test_every_operation_compiles_everywhere(rows: list[aot.Resources]) -> None:
    compiled = {(row.target, row.model, row.dtype, row.operation) for row in rows}
    expected = {
        (target, model, dtype, operation)
        for target in aot.TARGETS
        for model in aot.MODELS
        for dtype in aot.DTYPES
        for operation in operations(target)
    }
    assert compiled == expected


def test_only_known_kernels_spill() -> None:
    """`test_resources_stay_within_bounds` compares what is compiled with the bounds."""
    found = {
        (release, name): (bound["spills"], bound.get("loop_spills", 0))
        for release, table in BOUNDS.items()
        for name, bound in table.items()
        if "spills" in bound
    }
    assert found == SPILLS


def test_resources_stay_within_bounds(rows: list[aot.Resources]) -> None:
    if triton.__version__ not in BOUNDS:
        pytest.skip(f"no bounds for triton {triton.__version__}; known: {', '.join(BOUNDS)}")
    over = []
    for name, used in aot.bounds(rows).items():
        bound = BOUNDS[triton.__version__][name]
        over += [f"{name}: {used}, bound {bound}" for k in used if used[k] > bound.get(k, 0)]
    assert over == []


def test_bounds_fit_the_devices() -> None:
    shared = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64, "gfx950": 160}
    assert list(BOUNDS) == ["3.6.0", "3.7.1", "3.8.0", "3.9.0"], (
        "the releases that pyproject.toml admits"
    )
    for table in BOUNDS.values():
        assert len(table) == sum(len(operations(t)) for t in aot.TARGETS for _ in aot.DTYPES)
        for name, bound in table.items():
            assert bound["shared"] <= shared[name.split()[0]] * 1024, name


def test_attention_uses_matrix_instructions(rows: list[aot.Resources]) -> None:
    newest = ("sm_90", "sm_100", "gfx942", "gfx950")
    attention = [
        row
        for row in rows
        if row.operation.startswith("forest") and row.dtype == "bfloat16" and row.target in newest
    ]
    assert len(attention) == 4 * len(newest) * len(aot.MODELS)
    assert [aot.line(row) for row in attention if not row.matrix] == []


def test_matrix_instructions_overlap(rows: list[aot.Resources]) -> None:
    assert [aot.line(row) for row in rows if row.serial] == []


def test_copies_are_not_all_awaited_in_each_iteration(rows: list[aot.Resources]) -> None:
    """With three stages the next block's keys and values stay in flight; with two, the loop waits for them."""
    plain = [row for row in rows if row.target == "sm_90" and row.dtype == "bfloat16"]
    plain = [row for row in plain if row.operation == "forest_attention plain"]
    assert len(plain) == len(aot.MODELS)
    for row in plain:
        assert row.loop.looped
        assert row.loop.classes["matrix"] == 16
        assert (row.loop.in_flight, row.programs) == (2, 1)


def test_row_offsets_are_64_bit(rows: list[aot.Resources]) -> None:
    assert [aot.line(row) for row in rows if not row.wide] == []


def test_a_32_bit_row_offset_is_seen() -> None:
    ttir = """
    %c2560_i32 = arith.constant 2560 : i32 loc(#loc)
    %c8_i32 = arith.constant 8 : i32 loc(#loc)
    %row = arith.muli %pid, %c2560_i32 : i32 loc(#loc1)
    %head = arith.muli %pid_0, %c8_i32 : i32 loc(#loc1)
    """
    assert aot.narrow_products(ttir, {2560}) == ["%pid * %c2560_i32"]
    assert aot.narrow_products(ttir, {1024}) == []


def test_row_widths_are_those_of_the_model() -> None:
    launches = model_launches("4B", torch.bfloat16, "sm_90")
    assert aot.row_widths(launches["rms_norm"]) == {2560}
    assert aot.row_widths(launches["swiglu"]) == {9728, 2 * 9728}
    assert aot.row_widths(launches["qk_norm_rope"]) == {(32 + 2 * 8) * 128}
    assert aot.row_widths(launches["final_attention whole"]) == {32 * 128, 2 * 8 * 128}


def test_a_launch_has_one_key_in_the_cache_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of names in a set differs between processes."""
    monkeypatch.setattr(triton, "compile", lambda source, **_: source.hash())
    launch = model_launches("4B", torch.bfloat16, "sm_90")["swiglu"]
    names = sorted(launch.aligned)
    assert len(names) > 1
    orders = (replace(launch, aligned=order) for order in (names, names[::-1]))
    assert len({aot.compile_kernel(each, "sm_90") for each in orders}) == 1
