"""The descriptor candidate: when it can run, and that the compiled kernel is warp-specialised as documented.

Triton's pass has two silent ways to fail, both seen while this kernel was written: two warp groups that compute the
same rows, and rows of the second group counted from the wrong place.
"""

import re
import tomllib
from pathlib import Path
from unittest import mock

import pytest
import torch
import triton
from torch import Tensor

from lastword.bench.kernels import compile as aot
from lastword.bench.kernels import descriptor
from lastword.bench.kernels.baselines import CHANGES
from lastword.bench.kernels.launches import (
    Launch,
    all_launches,
    candidate_launches,
    model_launches,
)

BOUNDS = tomllib.loads(Path(descriptor.__file__).with_name("resources.toml").read_text())
ROWS = 64  # of each of the two warp groups that compute
FUSED = torch.zeros(256, 8, 128, dtype=torch.bfloat16)


def fits(x: Tensor, *, tree: bool = False, device: str = "sm_90") -> bool:
    with mock.patch.object(descriptor, "architecture", return_value=device):
        return descriptor.descriptors_fit(x[:, :4], x[:, 4:6], x[:, 6:], tree=tree)


def test_what_fits() -> None:
    assert fits(FUSED)
    assert fits(FUSED.half())
    assert fits(FUSED, device="sm_100")
    assert not fits(FUSED, device="sm_80")
    assert not fits(FUSED, device="gfx942")
    assert not fits(FUSED.float())
    assert not fits(FUSED, tree=True)


def test_rows_must_lie_on_16_bytes() -> None:
    flat = torch.zeros(256 * 1040, dtype=torch.bfloat16)
    for stride, offset in ((1024, 1), (1028, 0)):
        assert not fits(flat.as_strided((256, 8, 128), (stride, 128, 1), offset))
    assert fits(flat.as_strided((256, 8, 128), (1032, 128, 1), 8))
    assert fits(torch.zeros(256, 8, 80, dtype=torch.bfloat16))
    assert not fits(torch.zeros(256, 8, 20, dtype=torch.bfloat16))


def launch() -> Launch:
    return candidate_launches("4B", torch.bfloat16, "sm_90")["forest_attention_descriptor"]


def test_it_is_a_candidate_and_no_kernel_of_the_forward() -> None:
    for target in aot.TARGETS:
        for dtype in (torch.bfloat16, torch.float32):
            ours, candidates, both = (
                kind("0.6B", dtype, target)
                for kind in (model_launches, candidate_launches, all_launches)
            )
            there = target in ("sm_90", "sm_100") and dtype == torch.bfloat16
            forms = [f"forest_attention {name}" for name in CHANGES if target == "sm_90"]
            assert list(candidates) == (["forest_attention_descriptor", *forms] if there else [])
            assert not aot.CANDIDATES & ours.keys()
            assert both.keys() == ours.keys() | candidates.keys()


@pytest.fixture(scope="module")
def rows() -> list[aot.Resources]:
    targets = tuple(aot.TARGETS)
    return list(aot.compile_all(targets, aot.MODELS, aot.DTYPES, launches=candidate_launches))


def test_it_compiles_where_it_runs(rows: list[aot.Resources]) -> None:
    compiled = {(row.target, row.model, row.dtype, row.operation) for row in rows}
    assert compiled == {
        (target, model, "bfloat16", operation)
        for target, operations in (
            ("sm_90", aot.CANDIDATES),
            ("sm_100", {"forest_attention_descriptor"}),
        )
        for operation in operations
        for model in aot.MODELS
    }
    for row in rows:
        assert not row.loop.loop_spills
        if row.operation.endswith(("stages-2", "before")):
            assert row.loop.in_flight == 0
        elif row.operation.endswith("scaled"):
            assert row.loop.in_flight == 2
        assert not row.serial
        assert row.matrix
        assert row.wide


def test_resources_stay_within_bounds(rows: list[aot.Resources]) -> None:
    if triton.__version__ not in BOUNDS:
        pytest.skip(f"no bounds for triton {triton.__version__}; known: {', '.join(BOUNDS)}")
    used = aot.bounds(rows)
    assert used.keys() == BOUNDS[triton.__version__].keys()
    for name, bound in BOUNDS[triton.__version__].items():
        assert all(value <= bound.get(key, 0) for key, value in used[name].items()), name


def test_bounds_fit_the_devices() -> None:
    assert list(BOUNDS) == ["3.6.0", "3.7.1", "3.8.0", "3.9.0"]
    for table in BOUNDS.values():
        assert len(table) == 2 + len(CHANGES)
        assert all(bound["shared"] <= 227 * 1024 for bound in table.values())


@pytest.fixture(scope="module")
def compiled():
    return aot.compile_kernel(launch(), "sm_90")


def warp_groups(ttgir: str) -> list[str]:
    """Return the code of each warp group: first the one that copies, then those that compute."""
    code = re.sub(r" loc\(.*$", "", ttgir, flags=re.MULTILINE)
    _, _, rest = code.partition("ttg.warp_specialize(")
    assert rest, "not warp-specialised"
    return re.split(r"^ *partition\d+\(", rest, flags=re.MULTILINE)


def compare(group: str) -> list[str]:
    """Return a group's lines with values named in order, constants written out and the group's number left out."""
    body = group[group.index("\n") : group.index("ttg.warp_return")]
    constant = r"^ *(%\w+) = arith\.constant (?:{.*?} )?(.*)\n"
    constants = dict(re.findall(constant, body, re.MULTILINE))
    names: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        value = found.group()
        return constants.get(value) or names.setdefault(value, f"%{len(names)}")

    body = re.sub(r"%\w+", name, re.sub(constant, "", body, flags=re.MULTILINE))
    return re.sub(r"async_task_id = array<i32: \d>,? ?", "", body).splitlines()


def test_three_warp_groups(compiled) -> None:
    copies, *computes = warp_groups(compiled.asm["ttgir"])
    assert len(computes) == 2
    assert compiled.metadata.num_warps == 12
    assert ".reqntid 384" in compiled.asm["ptx"]
    assert {"inc", "dec"} <= set(re.findall(r"setmaxnreg\.(\w+)", compiled.asm["ptx"]))
    assert copies.count("ttng.async_tma_copy_global_to_local") == 4  # q for each group, k, v
    assert "warp_group_dot" not in copies
    for group in computes:
        assert group.count("ttng.warp_group_dot ") == 2
        assert group.count("tt.store ") == 1
        assert "async_tma_copy" not in group


def rows_apart(ttgir: str) -> list[tuple[str, str]]:
    """Return the lines in which the two groups that compute differ."""
    _, first, second = (compare(group) if i else [] for i, group in enumerate(warp_groups(ttgir)))
    return [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]


def test_the_groups_differ_in_where_their_rows_begin_and_in_nothing_else(compiled) -> None:
    pairs = rows_apart(compiled.asm["ttgir"])
    assert pairs
    for first, second in pairs:
        assert f"tt.make_range {{end = {ROWS} : i32, start = 0 : i32}}" in first
        moved = first.replace(f"end = {ROWS}", f"end = {2 * ROWS}").replace("start = 0", f"start = {ROWS}")  # fmt: skip
        assert second == moved


def test_the_copied_box_is_the_buffer(compiled) -> None:
    copies, *_ = warp_groups(compiled.asm["ttgir"])
    boxes = re.findall(
        r"tensordesc<(?:tensor<)?(\w+)[,>].*memdesc<(\w+), [^>]*>$", copies, re.MULTILINE
    )
    assert sorted(boxes) == [("128x128xbf16",) * 2] * 2 + [("64x128xbf16",) * 2] * 2


def test_groups_with_the_same_rows_are_seen() -> None:
    """With 64 rows per tile, the pass gives all of them to both groups."""
    half = launch()
    constants = tuple((name, ROWS if name == "BLOCK_M" else value) for name, value in half.constants)  # fmt: skip
    both = Launch(half.kernel, half.types, half.aligned, constants, half.options)
    assert rows_apart(aot.compile_kernel(both, "sm_90").asm["ttgir"]) == []
