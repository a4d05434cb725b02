"""When attention by descriptors is chosen, and that it is warp-specialised as its kernel says, compiled ahead of time.

Triton's pass has two silent ways to fail, both seen while this kernel was written: two warp groups that compute the
same rows, and rows of the second group counted from the wrong place.
"""

import re
from unittest import mock

import pytest
import torch
from torch import Tensor

from lastword.batching.forest import plan_forests
from lastword.bench.kernels.compile import compile_kernel
from lastword.bench.kernels.launches import Launch, model_launches
from lastword.kernels.attention_plan import AttentionPlan
from lastword.kernels.gpu import block_sizes
from lastword.kernels.gpu import forest_attention_descriptor as by_descriptors

ROWS = 64  # of each of the two warp groups that compute


def plan_of(texts: list[list[int]]) -> AttentionPlan:
    (forest,) = plan_forests(texts, 10**6)
    return AttentionPlan(forest.segments, forest.final_rows, torch.device("cpu"))


PLAN = plan_of([[1] * 200, [2] * 56])
TREE = plan_of([[1] * 100 + [2] * 78, [1] * 100 + [3] * 78])
FUSED = torch.zeros(256, 8, 128, dtype=torch.bfloat16)


def fits(x: Tensor, plan: AttentionPlan = PLAN, device: str = "sm_90") -> bool:
    with mock.patch.object(by_descriptors, "architecture", return_value=device):
        return by_descriptors.descriptors_fit(x[:, :4], x[:, 4:6], x[:, 6:], plan)


def test_what_fits() -> None:
    assert len(FUSED) == sum(PLAN.segments.length) == sum(TREE.segments.length)
    assert fits(FUSED)
    assert fits(FUSED.half())
    assert fits(FUSED, device="sm_100")
    assert not fits(FUSED, device="sm_80")
    assert not fits(FUSED, device="gfx942")
    assert not fits(FUSED.float())
    assert not fits(FUSED, TREE)


def test_rows_must_lie_on_16_bytes() -> None:
    flat = torch.zeros(256 * 1040, dtype=torch.bfloat16)
    for stride, offset in ((1024, 1), (1028, 0)):
        assert not fits(flat.as_strided((256, 8, 128), (stride, 128, 1), offset))
    assert fits(flat.as_strided((256, 8, 128), (1032, 128, 1), 8))
    assert fits(torch.zeros(256, 8, 80, dtype=torch.bfloat16))
    assert not fits(torch.zeros(256, 8, 20, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("listed", "lengths", "preferred"),
    [((), [256], False), (["sm_90"], [256], True), (["sm_90"], [128, 128], True), (["sm_90"], [129, 126, 1], False),
     (["sm_100"], [256], False)],
)  # fmt: skip
def test_it_is_preferred_where_listed_and_tiles_are_full(
    listed: list[str], lengths: list[int], preferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_sizes, "DESCRIPTOR_DEFAULT", frozenset(listed))
    monkeypatch.setattr(by_descriptors, "architecture", lambda _: "sm_90")
    plan = plan_of([[i] * n for i, n in enumerate(lengths)])
    q, k, v = FUSED[:, :4], FUSED[:, 4:6], FUSED[:, 6:]
    assert by_descriptors.descriptors_preferred(q, k, v, plan) == preferred


def launch() -> Launch:
    return model_launches("4B", torch.bfloat16, "sm_90")["forest_attention_descriptor"]


@pytest.fixture(scope="module")
def compiled():
    return compile_kernel(launch(), "sm_90")


def warp_groups(ttgir: str) -> list[str]:
    """The code of each warp group: the one that copies, then those that compute."""
    code = re.sub(r" loc\(.*$", "", ttgir, flags=re.MULTILINE)
    _, _, rest = code.partition("ttg.warp_specialize(")
    assert rest, "not warp-specialised"
    return re.split(r"^ *partition\d+\(", rest, flags=re.MULTILINE)


def compared(group: str) -> list[str]:
    """A group's lines with its values named in order, constants written out and its number left out."""
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
    """The lines in which the two groups that compute differ."""
    _, first, second = (compared(group) if i else [] for i, group in enumerate(warp_groups(ttgir)))
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
    boxes = re.findall(r"tensordesc<tensor<(\w+), .*memdesc<(\w+), [^>]*>$", copies, re.MULTILINE)
    assert sorted(boxes) == [("128x128xbf16",) * 2] * 2 + [("64x128xbf16",) * 2] * 2


def test_groups_with_the_same_rows_are_seen() -> None:
    """64 rows a tile: the pass gives all of them to both groups."""
    half = launch()
    constants = tuple((name, ROWS if name == "BLOCK_M" else value) for name, value in half.constants)  # fmt: skip
    both = Launch(half.kernel, half.types, half.aligned, constants, half.options)
    assert rows_apart(compile_kernel(both, "sm_90").asm["ttgir"]) == []
