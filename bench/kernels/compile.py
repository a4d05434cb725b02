"""Compile every kernel of the published models ahead of time, without a GPU, and print the resources of each.

    python -m lastword.bench.kernels.compile                              all targets, models and dtypes
    python -m lastword.bench.kernels.compile --target sm_90 --model 4B --dtype bfloat16
    python -m lastword.bench.kernels.compile --json resources.jsonl
    python -m lastword.bench.kernels.compile --bounds kernels/gpu/resources.toml   rewrite this Triton version's bounds
    python -m lastword.bench.kernels.compile --candidate-bounds bench/kernels/resources.toml   and the candidates'

For NVIDIA, registers, spilled bytes and shared memory are read from the binary with the `cuobjdump` that comes with
Triton; for AMD they are read from the notes in the assembly. `inner_loop.py` says what the second line of each kernel
means, and what its estimate assumes.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler.compiler import ASTSource

from lastword.bench.kernels.baselines import CHANGES
from lastword.bench.kernels.inner_loop import (
    InnerLoop,
    estimate,
    programs_per_multiprocessor,
    read_amdgcn,
    read_sass,
)
from lastword.bench.kernels.launches import Launch, all_launches
from lastword.bench.machine import json_lines

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
MODELS = ("0.6B", "4B", "8B")
DTYPES = ("bfloat16", "float32")  # the engine's compute dtypes
# Forms that lastword does not use.
CANDIDATES = frozenset(
    {"forest_attention_descriptor", *(f"forest_attention {name}" for name in CHANGES)}
)

Launches = Callable[[str, torch.dtype, str], dict[str, Launch]]


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of one compiled kernel: registers and `spills` (bytes) per thread, `shared` bytes per program.

    `programs` is the number of programs per multiprocessor and `share` the estimated share of the device's peak, from
    and to; on AMD they are 0 and None, because they are not read.
    """

    target: str
    model: str
    dtype: str
    operation: str
    registers: int
    spills: int
    shared: int
    matrix: bool  # whether it uses the architecture's newest matrix instructions: wgmma, tcgen05 or mfma
    serial: bool  # whether each wgmma waits for the previous one
    wide: bool  # whether every multiplication by a row width is done in 64 bits
    loop: InnerLoop
    programs: int
    share: tuple[float, float] | None


def compile_kernel(launch: Launch, target: str) -> Any:
    """Compile one launch and return Triton's compiled kernel, whose `asm` has its intermediate forms."""
    source = ASTSource(
        launch.kernel,
        signature=dict(launch.types),
        constexprs=dict(launch.constants),
        # Triton's cache key depends on the order, so a fixed order is needed to hit the cache.
        attrs={
            (launch.kernel.arg_names.index(name),): [["tt.divisibility", 16]]
            for name in sorted(launch.aligned)
        },
    )
    return triton.compile(source, target=TARGETS[target], options=dict(launch.options))


def compile_launch(launch: Launch, target: str) -> Resources:
    """Compile one launch and read its resources; the caller fills in `model` and `dtype`."""
    compiled = compile_kernel(launch, target)
    if TARGETS[target].backend == "cuda":
        usage, assembly = _cuda_usage(compiled.asm["cubin"]), compiled.asm["ptx"]
        loop = read_sass(_nvidia_text("nvdisasm", "-c", compiled.asm["cubin"]))
    else:
        assembly = compiled.asm["amdgcn"]
        usage, loop = _amd_usage(assembly), read_amdgcn(assembly)
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    return Resources(
        target, "", "", launch.name, **usage, shared=shared,
        matrix=any(name in assembly for name in ("wgmma", "tcgen05.mma", "v_mfma")),
        serial="wgmma" in assembly and _serializes(assembly),
        wide=not narrow_products(str(compiled.asm["ttir"]), row_widths(launch)),
        loop=loop, programs=programs_per_multiprocessor(target, usage["registers"], shared, warps),
        share=estimate(loop, target, warps=warps, flops=_flops(launch), in_fp32=_in_fp32(launch)),
    )  # fmt: skip


def _flops(launch: Launch) -> int:
    """Return the FLOPs of an iteration of `forest_attention`: two matmuls of BLOCK_M · BLOCK_N · BLOCK_D; else 0."""
    of = dict(launch.constants)
    return 4 * of["BLOCK_M"] * of["BLOCK_N"] * of["BLOCK_D"] if "BLOCK_M" in of else 0


def _in_fp32(launch: Launch) -> bool:
    return "*bf16" not in dict(launch.types).values()


def row_widths(launch: Launch) -> set[int]:
    """Return the row widths and row strides, in elements, that are among the launch's constants."""
    names = ("C", "F", "WIDTH", "Q_STRIDE", "K_STRIDE", "V_STRIDE")
    widths = {int(value) for name, value in launch.constants if name in names}
    return widths | {2 * value for name, value in launch.constants if name == "F"}


def narrow_products(ttir: str, widths: set[int]) -> list[str]:
    """Return the multiplications by a row width that are done in 32 bits and so overflow at 2^31 elements.

    Args:
        ttir: the text of Triton's first intermediate form, TTIR.
        widths: row widths, in elements.
    """
    constant = r"(%\w+) = arith\.constant (?:dense<)?(-?\d+)>? : "
    values = {name: int(value) for name, value in re.findall(constant, ttir)}
    products = re.findall(r"^.*arith\.muli (%\w+), (%\w+).* : .*i32.*$", ttir, re.MULTILINE)
    return [f"{a} * {b}" for a, b in products if {values.get(a), values.get(b)} & widths]


def _nvidia_tool(name: str) -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _assembler() -> str:
    """Return the ptxas that the installed Triton uses for sm_90; from 3.9 on it is the one for sm_100."""
    return str(get_ptxas(90).path)


def _serializes(ptx: str) -> bool:
    """Return whether ptxas warns that it serialises wgmma; ptxas runs again here, because Triton drops its warnings."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [
            _assembler(),
            "-v",
            "--gpu-name=sm_90a",
            file.name,
            "-o",
            os.devnull,
        ]
        warnings = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return "wgmma.mma_async instructions are serialized" in warnings


def _nvidia_text(tool: str, option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_nvidia_tool(tool)), option, file.name]
        text: str = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return text


def _cuda_usage(cubin: bytes) -> dict[str, int]:
    text = _nvidia_text("cuobjdump", "--dump-resource-usage", cubin)
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "spills": found["STACK"] + found["LOCAL"]}


def _amd_usage(assembly: str) -> dict[str, int]:
    def note(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found.group(1)) if found else 0

    return {
        "registers": note("vgpr_count"),
        "spills": max(4 * note("vgpr_spill_count"), note("private_segment_fixed_size")),
    }


def compile_model(
    target: str, model: str, dtype: str, launches: Launches = all_launches
) -> list[Resources]:
    """Compile every launch of one model on one target."""
    return [
        replace(compile_launch(launch, target), model=model, dtype=dtype, operation=operation)
        for operation, launch in launches(model, getattr(torch, dtype), target).items()
    ]


def compile_all(
    targets: Sequence[str],
    models: Sequence[str],
    dtypes: Sequence[str],
    *,
    launches: Launches = all_launches,
    workers: int = 2,
) -> Iterator[Resources]:
    """Compile the launches in worker processes, and yield the rows in the order of targets, models and dtypes.

    Args:
        targets: names of `TARGETS`.
        models: names of `SIZES`.
        dtypes: names of dtypes.
        launches: function from model, dtype and target to the launches.
        workers: number of processes.
    """
    jobs = [(t, m, d) for t in targets for m in models for d in dtypes]
    # Processes are spawned, because a fork would copy the locks of PyTorch's threads in any state.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for rows in pool.map(partial(compile_model, launches=launches), *zip(*jobs, strict=True)):
            yield from rows


def bounds(rows: Sequence[Resources]) -> dict[str, dict[str, int]]:
    """Return the most that any model needs of each resource, by "target dtype operation".

    The resources are registers, bytes of shared memory and, per iteration of the inner loop, instructions, waits and
    barriers; spilled bytes, and accesses to them in a loop, are there only if a model has any.
    """
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        loop = row.loop
        used = {"registers": row.registers, "shared": row.shared, "instructions": loop.instructions}
        used |= {f"{kind}s": loop.classes.get(kind, 0) for kind in ("wait", "barrier")}
        spilled = {"spills": row.spills, "loop_spills": loop.loop_spills}
        used |= {name: value for name, value in spilled.items() if value}
        bound = found.setdefault(f"{row.target} {row.dtype} {row.operation}", {})
        for name, value in used.items():
            bound[name] = max(bound.get(name, 0), value)
    return found


def write_bounds(path: Path, rows: Sequence[Resources]) -> None:
    """Replace the installed Triton version's table in the bounds file; keep the tables of other versions."""
    known = tomllib.loads(path.read_text()) if path.exists() else {}
    known[triton.__version__] = bounds(rows)
    lines = ["# Written by `python -m lastword.bench.kernels.compile`, as its --help says."]
    for release, table in sorted(known.items()):
        lines += ["", f'["{release}"]']
        for name, bound in table.items():
            values = ", ".join(f"{key} = {value}" for key, value in bound.items())
            lines.append(f'"{name}" = {{ {values} }}')
    path.write_text("\n".join(lines) + "\n")


HEADER = (
    f"{'target':8}{'model':6}{'dtype':10}{'operation':28}{'registers':>10}{'spills':>8}"
    f"{'shared':>9}  matrix"
)


def line(row: Resources) -> str:
    """Format one row of the table, without its inner loop."""
    matrix = ("serial" if row.serial else "yes") if row.matrix else "-"
    return (
        f"{row.target:8}{row.model:6}{row.dtype:10}{row.operation:28}{row.registers:10}"
        f"{row.spills:8}{row.shared:9}  {matrix}"
    )


def loop_line(row: Resources) -> str:
    """Format what was read of a kernel's inner loop, and the estimate."""
    loop = row.loop
    classes = ", ".join(f"{count} {kind}" for kind, count in sorted(loop.classes.items()))
    parts = [
        f"{loop.instructions} instructions {'per iteration' if loop.looped else 'in all'}: {classes}"
    ]
    if loads := loop.classes.get("load", 0):
        parts.append(f"{loop.load_bytes / loads:.3g} bytes per load")
    if loop.in_flight:
        parts.append(f"{loop.in_flight} copies in flight")
    if loop.loop_spills:
        parts.append(f"{loop.loop_spills} spills in a loop")
    if row.programs:
        parts.append(f"programs per multiprocessor: {row.programs}")
    if row.share is not None:
        low, high = (f"{share:.0%}" for share in row.share)
        parts.append(f"estimated {high if low == high else f'{low} to {high}'} of peak")
    return f"        {'; '.join(parts)}"


def run(
    show: Callable[[str], None],
    targets: Sequence[str] = tuple(TARGETS),
    models: Sequence[str] = MODELS,
    dtypes: Sequence[str] = DTYPES,
    json_file: Path | None = None,
) -> list[Resources]:
    """Compile every kernel, and show each row of the table when it is ready.

    Args:
        show: prints a line.
        targets: names of `TARGETS`.
        models: names of `SIZES`.
        dtypes: names of dtypes.
        json_file: a file to write the rows to as JSON lines; None for none.

    Returns:
        The rows.
    """
    rows = []
    with json_lines(json_file) as write:
        show(
            f"triton {triton.__version__}, compiled ahead of time, not run; estimates assume that loads arrive in time"
        )
        show(HEADER)
        for row in compile_all(targets, models, dtypes):
            rows.append(row)
            write({"triton": triton.__version__, **asdict(row)})
            show(line(row))
            show(loop_line(row))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and rewrite the files of bounds that are named; return exit status 0."""
    options = _parser().parse_args(argv)
    rows = run(
        lambda text: print(text, flush=True),
        options.target or tuple(TARGETS),
        options.model or MODELS,
        options.dtype or DTYPES,
        options.json,
    )
    if options.bounds:
        write_bounds(options.bounds, [row for row in rows if row.operation not in CANDIDATES])
    if options.candidate_bounds:
        candidates = [row for row in rows if row.operation in CANDIDATES]
        write_bounds(options.candidate_bounds, candidates)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lastword.bench.kernels.compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", action="append", choices=tuple(TARGETS))
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write JSON lines as they come"
    )
    parser.add_argument(
        "--bounds",
        type=Path,
        metavar="FILE",
        help="rewrite the bounds of lastword's kernels in FILE",
    )
    parser.add_argument(
        "--candidate-bounds",
        type=Path,
        metavar="FILE",
        help="rewrite the bounds of the candidates in FILE",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
