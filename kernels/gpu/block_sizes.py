"""The block sizes of the kernels: of the attention kernels by architecture, of the row-wise kernels by row width.

Each entry of the table `ATTENTION` states its source. A "compiled" entry has not been timed; according to
ahead-of-time compilation (`python -m lastword.bench.kernels.compile`) it fits in registers and shared memory. A
"measured" entry names the device, the date and the figure.
"""

from functools import cache
from typing import NamedTuple

import torch

from lastword.errors import ConfigError


class BlockSizes(NamedTuple):
    """One entry: BLOCK_M query rows and BLOCK_N keys per tile, warps, pipeline stages, and the source of these."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int
    source: str

    def arguments(self) -> dict[str, int]:
        """Return the entry as launch arguments, without its source."""
        blocks = self._asdict()
        del blocks["source"]
        return blocks


# "plain": no segment has ancestors; "tree": some do; "short": few rows per segment; "float32": any batch in fp32.
ATTENTION: dict[str, dict[str, BlockSizes]] = {
    "sm_80": {
        "plain": BlockSizes(128, 32, 8, 3, "compiled 2026-11-23"),
        "tree": BlockSizes(128, 32, 8, 3, "compiled 2026-11-23"),
        "short": BlockSizes(64, 32, 4, 2, "compiled 2026-11-23"),
        "float32": BlockSizes(16, 16, 2, 1, "compiled 2026-11-24"),
    },
    "sm_90": {
        "plain": BlockSizes(128, 128, 8, 3, "compiled 2026-11-30"),
        "tree": BlockSizes(128, 64, 8, 3, "compiled 2026-11-23"),
        "short": BlockSizes(64, 32, 4, 2, "compiled 2026-11-23"),
        "float32": BlockSizes(32, 16, 8, 1, "compiled 2026-11-23"),
    },
    "sm_100": {
        "plain": BlockSizes(128, 64, 8, 3, "compiled 2026-11-23"),
        "tree": BlockSizes(128, 64, 8, 3, "compiled 2026-11-23"),
        "short": BlockSizes(64, 32, 4, 2, "compiled 2026-11-23"),
        "float32": BlockSizes(32, 16, 8, 1, "compiled 2026-11-23"),
    },
    "gfx942": {
        "plain": BlockSizes(128, 64, 8, 1, "compiled 2026-11-23"),
        "tree": BlockSizes(128, 64, 8, 1, "compiled 2026-11-23"),
        "short": BlockSizes(64, 32, 4, 1, "compiled 2026-11-23"),
        "float32": BlockSizes(32, 16, 8, 1, "compiled 2026-11-23"),
    },
    "gfx950": {
        "plain": BlockSizes(128, 64, 8, 1, "compiled 2026-11-23"),
        "tree": BlockSizes(128, 64, 8, 1, "compiled 2026-11-23"),
        "short": BlockSizes(64, 32, 4, 1, "compiled 2026-11-23"),
        "float32": BlockSizes(32, 16, 8, 1, "compiled 2026-11-23"),
    },
    "interpreter": dict.fromkeys(
        ("plain", "tree", "short", "float32"), BlockSizes(64, 32, 1, 1, "small, for tests")
    ),
}

# A device without entries of its own uses the entries of this architecture, which need the least shared memory.
_ANY = {"sm": "sm_80", "gfx": "gfx942"}

# The "short" entry is used if segments have at most this many query rows (tokens · G) on average.
SHORT_ROWS = 64

# Keys per step of `final_attention` in fp32; other dtypes take 64.
_FINAL_KEYS = {torch.float32: 16}
# Least number of keys per split of the longest path, so a path of fewer than 512 keys is never split.
_MIN_SPLIT_KEYS = 256
_MAX_SPLITS = 64
# The number of keys per split is rounded up to a multiple of this.
_SPLIT_UNIT = 64


@cache
def architecture(device: torch.device) -> str:
    """Return the device's key in `ATTENTION`, such as "sm_90" or "gfx942"; "interpreter" for a CPU."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    else:
        major, minor = torch.cuda.get_device_capability(device)
        name = f"sm_{major}{minor}"
    return name if name in ATTENTION else _ANY[name[:2] if name.startswith("sm") else "gfx"]


def attention_blocks(
    dtype: torch.dtype, architecture: str, *, tree: bool, rows: float
) -> dict[str, int]:
    """Return the launch arguments of `forest_attention`.

    Args:
        dtype: dtype of q, k and v.
        architecture: a key of `ATTENTION`.
        tree: whether any segment has ancestors.
        rows: average number of query rows (tokens · G) per segment.
    """
    kind = "tree" if tree else "plain"
    if rows <= SHORT_ROWS:
        kind = "short"
    if dtype == torch.float32:
        kind = "float32"
    return ATTENTION[architecture][kind].arguments()


def attention_tile_rows(
    dtype: torch.dtype, device: torch.device, *, group: int, tree: bool, rows_per_segment: float
) -> int:
    """Return how many tokens a tile of `forest_attention` holds.

    Args:
        dtype: dtype of q, k and v.
        device: device that computes.
        group: G, the query heads per KV head.
        tree: whether any segment has ancestors.
        rows_per_segment: average number of tokens per segment.
    """
    rows = rows_per_segment * group
    blocks = attention_blocks(dtype, architecture(device), tree=tree, rows=rows)
    return tile_tokens(blocks, group)


def tile_tokens(blocks: dict[str, int], group: int) -> int:
    """Return how many tokens a tile holds if each token takes `group` = G query rows.

    Raises:
        ConfigError: the G query heads of one token do not fit in a tile.
    """
    if group > blocks["BLOCK_M"]:
        raise ConfigError(
            "forest_attention",
            "too many query heads per KV head",
            got=str(group),
            expected=f"at most {blocks['BLOCK_M']} on this device in this dtype",
            remedy="Pass device='cpu'.",
        )
    return blocks["BLOCK_M"] // group


def final_blocks(dtype: torch.dtype) -> dict[str, int]:
    """Return the launch arguments of `final_attention`; in fp32 a step takes fewer keys, to save registers."""
    return {"BLOCK_N": _FINAL_KEYS.get(dtype, 64), "num_warps": 4, "num_stages": 2}


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # the interpreter: enough that the tests split paths
    return torch.cuda.get_device_properties(device).multi_processor_count


def num_splits(device: torch.device, *, programs: int, keys: int) -> tuple[int, int]:
    """Return how many programs share one path in `final_attention`, and how many keys each takes.

    Args:
        device: device that computes.
        programs: number of programs without splitting; if so many programs fill the device, paths are not split.
        keys: number of keys of the longest path.
    """
    wanted = 2 * _multiprocessors(device) // programs
    splits = max(1, min(wanted, keys // _MIN_SPLIT_KEYS, _MAX_SPLITS))
    keys_per_split = -(-keys // (splits * _SPLIT_UNIT)) * _SPLIT_UNIT
    return splits, keys_per_split


def row_block(C: int) -> tuple[int, int]:
    """Return the block, a power of two, in which a program holds a row of C values, and its number of warps.

    There are 8 values per lane, or more in blocks of over 4,096 values.
    """
    block = 1 << (C - 1).bit_length()
    return block, min(max(block // 256, 1), 16)


def row_parts(C: int) -> tuple[int, int, int]:
    """Return the sizes of the two parts in which a quantising program holds a row of C values, and its number of warps.

    Both sizes are powers of two; the second is 0 if C is a power of two. There are about 8 to 16 values per lane.
    """
    head = 1 << (C.bit_length() - 1)
    tail = 1 << (C - head - 1).bit_length() if head < C else 0
    return head, tail, min(max(head // 256, 1), 16)
