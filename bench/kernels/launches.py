"""List the kernel launches of a published model, and those of candidate kernels: kernel, argument types, constants.

Launches are recorded without a GPU: the real launchers run on small CPU tensors while Triton's `JITFunction.run` is
replaced.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from lastword.batching.forest import Forest, plan_forests
from lastword.bench.kernels import descriptor
from lastword.bench.kernels.baselines import CHANGES
from lastword.bench.shapes import SIZES
from lastword.kernels import kernel_tables
from lastword.kernels.gpu import block_sizes
from lastword.kernels.gpu import final_attention as final_attention_kernel
from lastword.kernels.gpu import forest_attention as forest_attention_kernel
from lastword.kernels.gpu import qk_norm_rope as qk_norm_rope_kernel
from lastword.kernels.gpu import quantize_rows as quantize_rows_kernel
from lastword.kernels.gpu import rms_norm as rms_norm_kernel
from lastword.kernels.gpu import swiglu as swiglu_kernel

CPU = torch.device("cpu")
# The fp8 format of each architecture's matrix units; sm_80 has none.
FP8 = {
    "sm_90": torch.float8_e4m3fn,
    "sm_100": torch.float8_e4m3fn,
    "gfx942": torch.float8_e4m3fnuz,
    "gfx950": torch.float8_e4m3fn,
}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e4m3fnuz: "*fp8e4b8",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """One specialisation of one kernel, as Triton compiles it.

    `types` has each argument's name and Triton type ("constexpr" for constants). `aligned` has the names of the
    arguments that are pointers aligned to 16 bytes. `constants` and `options` have names and values.
    """

    kernel: Any
    types: tuple[tuple[str, str], ...]
    aligned: frozenset[str]
    constants: tuple[tuple[str, int | bool], ...]
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """The name of the operation that the kernel computes."""
        return str(self.kernel.__name__).strip("_").removesuffix("_kernel")


@contextmanager
def record_launches(architecture: str) -> Iterator[list[Launch]]:
    """Record the kernel launches in the `with` block, as on a GPU of this `architecture`; the kernels do not run."""
    launches: list[Launch] = []

    def record(kernel: Any, *args: Any, **named: Any) -> None:
        del named["grid"], named["warmup"]
        launches.append(_launch(kernel, args, named))

    with ExitStack() as patched:
        patched.enter_context(mock.patch.object(JITFunction, "run", record))
        for module in (block_sizes, forest_attention_kernel, descriptor):
            named = mock.patch.object(module, "architecture", return_value=architecture)
            patched.enter_context(named)
        yield launches


def _launch(kernel: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    options = tuple((name, named.pop(name)) for name in _OPTIONS if name in named)
    values = dict(zip(kernel.arg_names, args, strict=False)) | named
    constant = {p.name for p in kernel.params if p.is_constexpr}
    types = {}
    for name in kernel.arg_names:
        value = values[name]
        if name in constant:
            types[name] = "constexpr"
        elif isinstance(value, Tensor):
            types[name] = _POINTERS[value.dtype]
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
            unspecialised = kernel.params[kernel.arg_names.index(name)].do_not_specialize
            if types[name] == "i32" and not unspecialised:
                raise TypeError(f"{kernel.__name__}: {name} would be specialised on its value")
    tensors = {n: v for n, v in values.items() if isinstance(v, Tensor)}
    return Launch(
        kernel,
        tuple(types.items()),
        frozenset(name for name, value in tensors.items() if value.data_ptr() % 16 == 0),
        tuple((name, values[name]) for name in kernel.arg_names if name in constant),
        options,
    )


class _Launches:
    """Records launches for one architecture, by operation and variant."""

    def __init__(self, architecture: str) -> None:
        self._architecture = architecture
        self.found: dict[str, Launch] = {}

    def note(self, variant: str, run: Callable[..., object], *args: Any, **named: Any) -> None:
        """Record the launches of `run` under `variant`."""
        with record_launches(self._architecture) as launches:
            run(*args, **named)
        for launch in launches:
            self.found[f"{launch.name} {variant}".strip()] = launch


def model_launches(model: str, dtype: torch.dtype, architecture: str) -> dict[str, Launch]:
    """Return every launch of a published model's forward, by operation and variant."""
    launches = _Launches(architecture)
    _note_rows(launches, model, dtype, FP8.get(architecture))
    _, _, _, H, KH, D = SIZES[model]
    for variant, forest in _forests().items():
        q, k, v = _heads(forest.tokens_computed, H, KH, D, dtype)
        launches.note(variant, _attend, forest_attention_kernel.forest_attention, q, k, v, forest)
        N = len(forest.final_rows)
        q = torch.zeros(N, H, D, dtype=dtype)
        _, k, v = _heads(forest.tokens_computed, 0, KH, D, dtype)
        split = "split" if N == 1 else "whole"
        launches.note(split, _attend, final_attention_kernel.final_attention, q, k, v, forest)
    return launches.found


def candidate_launches(model: str, dtype: torch.dtype, architecture: str) -> dict[str, Launch]:
    """Return the launches of the candidate kernels (`options.FORMS`) at a published model's shapes, by operation."""
    launches = _Launches(architecture)
    if descriptor.descriptor_blocks(dtype, architecture) is not None:
        _, _, _, H, KH, D = SIZES[model]
        forest = _forests()["plain"]
        q, k, v = _heads(forest.tokens_computed, H, KH, D, dtype)
        launches.note("", _attend_by_descriptors, q, k, v, forest)
        if architecture == "sm_90":
            for name, changes in CHANGES.items():
                changed = partial(forest_attention_kernel.forest_attention, changes=changes)
                launches.note(name, _attend, changed, q, k, v, forest)
    return launches.found


def all_launches(model: str, dtype: torch.dtype, architecture: str) -> dict[str, Launch]:
    """Return the launches of the model's own kernels and of the candidate kernels, by operation and variant."""
    kinds = (model_launches, candidate_launches)
    return {
        name: launch for kind in kinds for name, launch in kind(model, dtype, architecture).items()
    }


def _note_rows(
    launches: _Launches, model: str, dtype: torch.dtype, fp8: torch.dtype | None
) -> None:
    """Record the launches of the row-wise operations: norms, SwiGLU, quantisation, rotation."""
    hidden, width, _, H, KH, D = SIZES[model]
    note, eps = launches.note, 1e-6
    x, residual = torch.zeros(2, 4, hidden, dtype=dtype).unbind()
    weight, ids = torch.zeros(hidden, dtype=dtype), torch.zeros(4, dtype=torch.int32)
    gate_up = torch.zeros(4, 2 * width, dtype=dtype)
    note("", rms_norm_kernel.rms_norm, x, weight, eps)
    note("lookup", rms_norm_kernel.embed_rms_norm, ids, x, weight, eps)
    note("add", rms_norm_kernel.add_rms_norm, x, residual, weight, eps)
    note("", swiglu_kernel.swiglu, gate_up)
    if fp8 is not None:
        attended = torch.zeros(4, H * D, dtype=dtype)
        note("", swiglu_kernel.swiglu_quantize, gate_up, fp8)
        note("", rms_norm_kernel.add_rms_norm_quantize, x, residual, weight, eps, fp8)
        note("", quantize_rows_kernel.quantize_rows, attended, fp8)
    head_weight, table = torch.zeros(D, dtype=dtype), torch.zeros(4, D // 2)
    for variant, heads, kv_heads in (("", H, KH), ("last q", H, 0), ("last k", 0, KH)):
        qkv = torch.zeros(4, (heads + 2 * kv_heads) * D, dtype=dtype)
        note(
            variant, qk_norm_rope_kernel.qk_norm_rope,
            qkv, head_weight, head_weight, table, table,
            num_heads=heads, num_kv_heads=kv_heads, eps=eps,
        )  # fmt: skip


def _heads(T: int, H: int, KH: int, D: int, dtype: torch.dtype) -> Sequence[Tensor]:
    """Return q [T, H, D], k and v [T, KH, D] as views of one fused projection, as in the forward."""
    fused = torch.zeros(T, H + 2 * KH, D, dtype=dtype)
    return fused[:, :H], fused[:, H : H + KH], fused[:, H + KH :]


def _attend(launch: Callable[..., object], q: Tensor, k: Tensor, v: Tensor, forest: Forest) -> None:
    tables = kernel_tables(
        forest.segments, forest.final_rows, CPU, dtype=q.dtype, group=q.shape[1] // k.shape[1]
    )
    launch(q, k, v, tables, q.shape[2] ** -0.5)


def _attend_by_descriptors(q: Tensor, k: Tensor, v: Tensor, forest: Forest) -> None:
    tables = descriptor.descriptor_tables(q, forest.segments, forest.final_rows)
    descriptor.forest_attention_descriptor(q, k, v, tables, q.shape[2] ** -0.5)


def _forests() -> dict[str, Forest]:
    """Make one batch for each variant of attention."""
    batches = {
        "plain": [[1] * 1024],
        "tree": [[1] * 100 + [i] * 100 for i in range(8)],
        "short": [[i] * 12 for i in range(8)],
        "short tree": [[1] * 24 + [i] * 8 for i in range(8)],
    }
    return {name: next(plan_forests(tokens, 10**6)) for name, tokens in batches.items()}
