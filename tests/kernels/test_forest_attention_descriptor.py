"""Attention by descriptors is warp-specialised as its kernel says: read from Triton's form for the GPU, compiled ahead.

Triton's pass has two silent ways to fail, both seen while this kernel was written: two warp groups that compute the
same rows, and rows of the second group counted from the wrong place.
"""

import re
from typing import Any

import pytest
import torch

from lastword.bench.compile import compile_kernel
from lastword.bench.launches import Launch, model_launches

ROWS = 64  # of each of the two warp groups that compute


@pytest.fixture(scope="module")
def compiled() -> Any:
    return compile_kernel(launch(), "sm_90")


def launch() -> Launch:
    return model_launches("4B", torch.bfloat16, "sm_90")["forest_attention_descriptor"]


def warp_groups(ttgir: str) -> list[str]:
    """The code of each warp group: the one that copies, then those that compute."""
    _, _, rest = ttgir.partition("ttg.warp_specialize(")
    assert rest, "not warp-specialised"
    return re.split(r"^ *partition\d+\(", rest, flags=re.MULTILINE)


def definition(name: str, code: str) -> str:
    """The line that defines a value."""
    found = re.search(rf"^ *{re.escape(name)} = (.*)$", code, re.MULTILINE)
    assert found, f"{name} comes from outside the warp group"
    return found.group(1)


def first_rows(group: str) -> set[int]:
    """Where the group's rows begin in the tile, each time that they are counted; a row is first + range."""
    starts = set()
    size = rf"tensor<{ROWS}xi32"
    for name, start in re.findall(
        rf"(%\w+) = tt\.make_range {{.*start = (\d+) : i32}} : {size}", group
    ):
        sums = re.findall(rf"arith\.addi (%\w+), {name} .*: {size}", group)
        assert sums, f"{name} is not a row"
        for other in sums:
            splat = re.match(r"tt\.splat (%\w+)", definition(other, group))
            assert splat
            if not definition(splat.group(1), group).startswith("tt.load"):
                raise AssertionError(f"{splat.group(1)}: the tile's first row was moved")
        starts.add(int(start))
    return starts


def test_three_warp_groups(compiled: Any) -> None:
    copies, *computes = warp_groups(compiled.asm["ttgir"])
    assert len(computes) == 2
    assert compiled.metadata.num_warps == 12
    assert ".reqntid 384" in compiled.asm["ptx"].replace(",", "")
    assert "setmaxnreg.dec" in compiled.asm["ptx"]
    assert "setmaxnreg.inc" in compiled.asm["ptx"]
    assert copies.count("ttng.async_tma_copy_global_to_local") == 4  # q for each group, k, v
    assert "warp_group_dot" not in copies
    for group in computes:
        assert group.count("ttng.warp_group_dot ") == 2
        assert group.count("tt.store ") == 1
        assert "async_tma_copy" not in group


def test_each_group_has_rows_of_its_own(compiled: Any) -> None:
    _, *computes = warp_groups(compiled.asm["ttgir"])
    assert [first_rows(group) for group in computes] == [{0}, {ROWS}]


def test_the_copied_box_is_the_buffer(compiled: Any) -> None:
    copies, *_ = warp_groups(compiled.asm["ttgir"])
    pair = r"tensordesc<tensor<(\w+), .*memdesc<(\w+), [^>]*>$"
    boxes = re.findall(pair, without_places(copies), re.MULTILINE)
    assert sorted(boxes) == [("128x128xbf16",) * 2] * 2 + [("64x128xbf16",) * 2] * 2


def without_places(ttgir: str) -> str:
    """The code without its places in the source."""
    return re.sub(r" loc\(.*\)$", "", ttgir, flags=re.MULTILINE)


GROUP = """
      %first = tt.load %at : !tt.ptr<i32>
      %m = tt.make_range {end = 128 : i32, start = 64 : i32} : tensor<64xi32, #s>
      %moved = arith.addi %first, %c64_i32 : i32
      %t = tt.splat %first : i32 -> tensor<64xi32, #s>
      %token = arith.addi %t, %m : tensor<64xi32, #s>
"""


def test_a_moved_first_row_is_seen() -> None:
    assert first_rows(GROUP) == {64}
    with pytest.raises(AssertionError, match="%moved: the tile's first row was moved"):
        first_rows(GROUP.replace("splat %first", "splat %moved"))


def test_equal_rows_are_seen() -> None:
    """64 rows a tile: the pass gives all of them to both groups."""
    half = launch()
    constants = tuple(
        (name, ROWS if name == "BLOCK_M" else value) for name, value in half.constants
    )
    both = Launch(half.kernel, half.types, half.aligned, constants, half.options)
    _, *computes = warp_groups(compile_kernel(both, "sm_90").asm["ttgir"])
    assert [first_rows(group) for group in computes] == [{0}, {0}]
