"""Read the inner loop of a compiled kernel: its instructions by class, and how near to its peak the device could come.

The instructions are those of one warp (AMD: wave) in one iteration of the shortest innermost loop that has matrix
instructions or, if there is none, loads: in attention, the loop over whole blocks of keys, without a mask. A kernel
without such a loop is counted as a whole. For NVIDIA they are read from the binary with the `nvdisasm` that comes with
Triton, for AMD from the assembly.

An estimate is no measurement. It assumes that loads arrive in time, that nothing else runs, and that each scheduler
issues one instruction per clock. The limits of a clock are those of `DEVICES`. For a kernel with matrix instructions
the estimate is a range: none, or all, of the other instructions run at the same time as the matrix units.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

# The classes of instructions by the beginning of their names; the first that fits counts, and the rest are "other".
NVIDIA = {
    "matrix": "HMMA|HGMMA|QGMMA|UTC[A-Z]*MMA",
    "exp": "MUFU",
    "float": "FADD|FMUL|FFMA|FMNMX|FSEL|FSETP|HADD|HMUL|HFMA",
    "convert": "F2F|I2F|F2I|PRMT",
    "load": "LDG(?!DEP)|UTMALDG|UBLKCP",
    "store": "STG|UTMASTG",
    "shared": "LDS|STS|LDTM|STTM",
    "spill": "LDL|STL",
    "barrier": "BAR",
    "wait": "DEPBAR|WARPGROUP.DEPBAR|SYNCS.PHASECHK",
    "control": "BRA|BSSY|BSYNC|EXIT|WARPSYNC|NOP|LDGDEPBAR",
}
AMD = {
    "matrix": "v_mfma",
    "exp": "v_(exp|rcp|rsq|sqrt|log)_",
    "float": "v_(pk_)?(add|sub|mul|fma|fmac|mac|max|max3|min|cmp_[a-z]+|div_[a-z]+)_(legacy_)?(f32|f64|f16)",
    "convert": "v_cvt|v_perm",
    "load": "(global|buffer|flat)_load",
    "store": "(global|buffer|flat)_store",
    "shared": "ds_",
    "spill": "scratch_",
    "barrier": "s_barrier",
    "wait": "s_waitcnt",
    "control": "s_cbranch|s_branch|s_endpgm|s_nop",
}
# NVIDIA's wait for copies: the number of those that need not have ended.
_AWAITS = r"DEPBAR\.LE SB0, (0x[0-9a-f]+)"
# Loops of fewer instructions compute nothing; for example, an endless one follows the end of each program.
_LEAST = 4


class Device(NamedTuple):
    """What one multiprocessor does per clock, and what it holds. AMD: registers only, so nothing is estimated."""

    matrix: int = 0  # 16-bit matrix units: FLOPs, dense
    memory: float = 0.0  # bytes from the device's memory: bandwidth / multiprocessors / clock
    shared: int = 0  # bytes of shared memory, 1 KB per program included


# A100 SXM, H100 SXM and B200 by their data sheets. Every one has 4 schedulers, 16 exponentials and 128 fp32 lanes per
# clock, 65,536 registers, 64 warps and 32 programs.
DEVICES = {
    "sm_80": Device(2048, 2.04e12 / 108 / 1.41e9, 164 << 10),
    "sm_90": Device(4096, 3.35e12 / 132 / 1.83e9, 228 << 10),
    "sm_100": Device(8192, 8e12 / 148 / 1.85e9, 228 << 10),
}


@dataclass(frozen=True, slots=True)
class InnerLoop:
    """What one warp executes in an iteration of the inner loop, or in all if the kernel has no loop (`looped`).

    `classes` has the number of instructions by class, `load_bytes` the bytes that one lane reads from the device's
    memory, and `store_bytes` those that it writes there.
    `loop_spills` is the most reads and writes of spilled registers in any innermost loop; 0 if spills are outside
    loops, where they cost little. `in_flight` is the number of copies that may still run after the loop has waited for
    the ones that it needs; 0 if it waits for all of them, or on AMD.
    """

    looped: bool
    classes: Mapping[str, int]
    load_bytes: int
    store_bytes: int
    loop_spills: int
    in_flight: int = 0

    @property
    def instructions(self) -> int:
        """The number of all instructions."""
        return sum(self.classes.values())


class _Instruction(NamedTuple):
    name: str
    target: str  # label of a branch's target, or ""
    line: str


def read_sass(text: str) -> InnerLoop:
    """Read the output of `nvdisasm -c` for one kernel."""
    return _read(
        text, NVIDIA, r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(?:.*`\((\.L_x_\d+)\))?"
    )


def read_amdgcn(text: str) -> InnerLoop:
    """Read Triton's assembly of one kernel for AMD."""
    return _read(text, AMD, r"^\s+([a-z]\w+)(?:\s+(\.LBB\d+_\d+))?")


def _read(text: str, classes: Mapping[str, str], pattern: str) -> InnerLoop:
    code: list[_Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        label = re.match(r"(\.L\w+):", line)
        found = re.match(pattern, line)
        if label:
            labels[label[1]] = len(code)
        elif found:
            code.append(_Instruction(found[1], found[2] or "", line))
    loops = _innermost(code, labels)
    counted = [_count(code[start:end], classes) for start, end in loops]
    spills = max((each["spill"] for each in counted), default=0)
    kinds = "matrix" if any(each["matrix"] for each in counted) else "load"
    candidates = [i for i, each in enumerate(counted) if each[kinds]]
    chosen = min(candidates, key=lambda i: counted[i].total(), default=None)
    part = code if chosen is None else code[slice(*loops[chosen])]
    return InnerLoop(
        chosen is not None,
        dict(_count(part, classes)),
        sum(_bytes(each.name) for each in part if re.match(classes["load"], each.name)),
        sum(_bytes(each.name) for each in part if re.match(classes["store"], each.name)),
        spills,
        max((int(n, 16) for each in part for n in re.findall(_AWAITS, each.line)), default=0),
    )


def _innermost(code: list[_Instruction], labels: Mapping[str, int]) -> list[tuple[int, int]]:
    """Return the loops that contain no other loop, as slices: from a label to the last branch back to it."""
    ends: dict[int, int] = {}
    for i, each in enumerate(code):
        start = labels.get(each.target, i + 1)
        if start <= i - _LEAST:
            ends[start] = i + 1
    loops = sorted(ends.items())
    return [
        (start, end)
        for start, end in loops
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in loops)
    ]


def _count(part: list[_Instruction], classes: Mapping[str, str]) -> Counter[str]:
    return Counter(
        next((kind for kind, names in classes.items() if re.match(names, each.name)), "other")
        for each in part
    )


def _bytes(name: str) -> int:
    """Return the bytes that a lane moves with a load or store, by its name: LDG.E.128, global_load_dwordx4."""
    if name[0].islower():
        words = re.search(r"dword(?:x(\d))?", name)
        return 4 * int(words[1] or 1) if words else 1 if "byte" in name else 2
    bits = re.search(r"\.(?:U|S)?(8|16|64|128|256)\b", name)
    return int(bits[1]) // 8 if bits else 4


def programs_per_multiprocessor(target: str, registers: int, shared: int, warps: int) -> int:
    """Return how many programs of a kernel run on a multiprocessor at the same time; 0 on AMD, where it is not read."""
    if target not in DEVICES:
        return 0
    each = -(-max(registers, 1) * 32 // 256) * 256 * warps
    return min(65_536 // each, 64 // warps, 32, DEVICES[target].shared // (shared + 1024))


def estimate(
    loop: InnerLoop, target: str, *, warps: int, flops: int, in_fp32: bool
) -> tuple[float, float] | None:
    """Return the estimated share of the device's peak, from and to; None for AMD.

    The peak is that of the matrix units or, in fp32, of the lanes for `forest_attention`, and of the memory's bandwidth
    for the rest, where the estimate is an upper bound: the bytes of every lane count.

    Args:
        loop: the inner loop.
        target: the architecture.
        warps: warps per program.
        flops: FLOPs of the matmuls in an iteration of `forest_attention`; 0 for other kernels.
        in_fp32: whether the kernel computes in fp32.
    """
    if target not in DEVICES:
        return None
    device = DEVICES[target]
    issue = loop.instructions * warps / 4
    exponentials = loop.classes.get("exp", 0) * warps * 32 / 16
    if not flops:
        moved = (loop.load_bytes + loop.store_bytes) * 32 * warps
        share = min(1.0, moved / max(issue, exponentials) / device.memory)
        return share, share
    if in_fp32:
        share = flops / 256 / max(issue, exponentials)
        return share, share
    matrix = flops / device.matrix
    return matrix / (matrix + max(issue, exponentials)), matrix / max(matrix, issue, exponentials)
