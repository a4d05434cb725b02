"""Block sizes of the attention kernels by architecture, and how the last layer's keys are split. The one table.

A row says where it comes from: "compiled" rows fit in registers and shared memory by ahead-of-time compilation
(`python -m lastword.bench.kernels.compile`) and wait for a measurement; "measured" rows name device, date and figure.
"""

from functools import cache
from typing import NamedTuple

import torch

from lastword.errors import ConfigError


class Blocks(NamedTuple):
    """One row: tile of query rows × keys, warps, stages of the key pipeline, and where it comes from."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int
    source: str


# "plain": no segment has ancestors; "tree": some have; "short": few rows a segment; "float32": IEEE products;
# "descriptor": the other form of "plain" (`forest_attention_descriptor_kernel.py`), where there is one.
ATTENTION: dict[str, dict[str, Blocks]] = {
    "sm_80": {
        "plain": Blocks(128, 32, 8, 3, "compiled 2026-11-23"),
        "tree": Blocks(128, 32, 8, 3, "compiled 2026-11-23"),
        "short": Blocks(64, 32, 4, 2, "compiled 2026-11-23"),
        "float32": Blocks(16, 16, 2, 1, "compiled 2026-11-24"),
    },
    "sm_90": {
        "plain": Blocks(128, 128, 8, 2, "compiled 2026-11-23"),
        "descriptor": Blocks(128, 128, 4, 2, "compiled 2026-11-23"),
        "tree": Blocks(128, 64, 8, 3, "compiled 2026-11-23"),
        "short": Blocks(64, 32, 4, 2, "compiled 2026-11-23"),
        "float32": Blocks(32, 16, 8, 1, "compiled 2026-11-23"),
    },
    "sm_100": {
        "plain": Blocks(128, 64, 8, 3, "compiled 2026-11-23"),
        "descriptor": Blocks(128, 64, 8, 3, "compiled 2026-11-23"),
        "tree": Blocks(128, 64, 8, 3, "compiled 2026-11-23"),
        "short": Blocks(64, 32, 4, 2, "compiled 2026-11-23"),
        "float32": Blocks(32, 16, 8, 1, "compiled 2026-11-23"),
    },
    "gfx942": {
        "plain": Blocks(128, 64, 8, 1, "compiled 2026-11-23"),
        "tree": Blocks(128, 64, 8, 1, "compiled 2026-11-23"),
        "short": Blocks(64, 32, 4, 1, "compiled 2026-11-23"),
        "float32": Blocks(32, 16, 8, 1, "compiled 2026-11-23"),
    },
    "gfx950": {
        "plain": Blocks(128, 64, 8, 1, "compiled 2026-11-23"),
        "tree": Blocks(128, 64, 8, 1, "compiled 2026-11-23"),
        "short": Blocks(64, 32, 4, 1, "compiled 2026-11-23"),
        "float32": Blocks(32, 16, 8, 1, "compiled 2026-11-23"),
    },
    "interpreter": dict.fromkeys(
        ("plain", "descriptor", "tree", "short", "float32"),
        Blocks(64, 32, 1, 1, "small, for tests"),
    ),
}
# Architectures whose default for long texts without ancestors is the "descriptor" row. None yet: it waits for a
# measurement (`lastword bench kernels --op forest_attention --beside descriptor`) that it is faster there.
DESCRIPTOR_DEFAULT: frozenset[str] = frozenset()

# Devices without rows of their own take these, which need the least shared memory.
_ANY = {"sm": "sm_80", "gfx": "gfx942"}

# Segments whose rows · G are at most this many on average take the "short" row.
SHORT_ROWS = 64

# Keys of one step of the last layer's attention, where not 64.
_FINAL_KEYS = {torch.float32: 16}
# Fewer keys than this are never split.
_MIN_SPLIT_KEYS = 256
_MAX_SPLITS = 64
_SPLIT_UNIT = 64


@cache
def architecture(device: torch.device) -> str:
    """Name the device's row of the table: "sm_90", "gfx942"; "interpreter" for a CPU."""
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
    """Choose the row for `rows` query rows (tokens · G) a segment on average, as launch arguments."""
    kind = "tree" if tree else "plain"
    if rows <= SHORT_ROWS:
        kind = "short"
    if dtype == torch.float32:
        kind = "float32"
    return _launch_arguments(ATTENTION[architecture][kind])


def descriptor_blocks(dtype: torch.dtype, architecture: str) -> dict[str, int] | None:
    """Give the "descriptor" row as launch arguments; None where there is none, and in fp32 on a GPU."""
    row = ATTENTION[architecture].get("descriptor")
    if row is None or (dtype == torch.float32 and architecture != "interpreter"):
        return None
    return _launch_arguments(row)


def prefers_descriptors(
    dtype: torch.dtype, architecture: str, *, tree: bool, rows_per_segment: float
) -> bool:
    """Whether the "descriptor" row is the default: on the listed architectures, where segments fill a tile."""
    blocks = descriptor_blocks(dtype, architecture)
    if architecture not in DESCRIPTOR_DEFAULT or tree or blocks is None:
        return False
    return rows_per_segment >= blocks["BLOCK_M"]


def _launch_arguments(row: Blocks) -> dict[str, int]:
    blocks = row._asdict()
    del blocks["source"]
    return blocks


def attention_tile_rows(
    dtype: torch.dtype, device: torch.device, *, group: int, tree: bool, rows_per_segment: float
) -> int:
    """Rows of a tile of `forest_attention` with `group` = G query heads a KV head: what its tiles are cut by."""
    name = architecture(device)
    descriptors = descriptor_blocks(dtype, name)
    if descriptors is not None and prefers_descriptors(
        dtype, name, tree=tree, rows_per_segment=rows_per_segment
    ):
        return descriptors["BLOCK_M"]
    rows = rows_per_segment * group
    return tile_tokens(attention_blocks(dtype, name, tree=tree, rows=rows), group)


def tile_tokens(blocks: dict[str, int], group: int) -> int:
    """Token rows of a tile that packs `group` = G query heads beside each.

    Raises:   ConfigError where a tile has no room for one.
    """
    if group > blocks["BLOCK_M"]:
        raise ConfigError(
            f"forest_attention: too many query heads a KV head; got {group}, expected {blocks['BLOCK_M']} at most on "
            "this device in this dtype. Compute on a CPU."
        )
    return blocks["BLOCK_M"] // group


def final_blocks(dtype: torch.dtype) -> dict[str, int]:
    """Launch arguments of the last layer's attention; fp32 tiles take twice the registers."""
    return {"BLOCK_N": _FINAL_KEYS.get(dtype, 64), "num_warps": 4, "num_stages": 2}


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # the interpreter: enough for tests to split
    return torch.cuda.get_device_properties(device).multi_processor_count


def num_splits(device: torch.device, *, programs: int, keys: int) -> tuple[int, int]:
    """How many programs share one path, and how many keys each takes; one where the device is full anyway."""
    wanted = 2 * _multiprocessors(device) // programs
    splits = max(1, min(wanted, keys // _MIN_SPLIT_KEYS, _MAX_SPLITS))
    keys_per_split = -(-keys // (splits * _SPLIT_UNIT)) * _SPLIT_UNIT
    return splits, keys_per_split
