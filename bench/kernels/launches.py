"""Every kernel launch that a published model asks for, recorded without a GPU: kernel, argument types, constants.

The real launchers run on small CPU tensors while Triton's `JITFunction.run` is replaced by a recorder.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from triton.runtime.jit import JITFunction

from lastword.batching.forest import Forest, plan_forests
from lastword.bench.shapes import SIZES
from lastword.kernels.attention_plan import AttentionPlan
from lastword.kernels.gpu import block_sizes
from lastword.kernels.gpu import final_attention as final_attention_kernel
from lastword.kernels.gpu import forest_attention as forest_attention_kernel
from lastword.kernels.gpu import forest_attention_descriptor as forest_attention_descriptor_kernel
from lastword.kernels.gpu import qk_norm_rope as qk_norm_rope_kernel
from lastword.kernels.gpu import quantize_rows as quantize_rows_kernel
from lastword.kernels.gpu import rms_norm as rms_norm_kernel
from lastword.kernels.gpu import swiglu as swiglu_kernel
from lastword.kernels.gpu.block_sizes import descriptor_blocks

CPU = torch.device("cpu")
# The fp8 format of each architecture's matrix units; sm_80 has none.
FP8 = {
    "sm_90": torch.float8_e4m3fn,
    "sm_100": torch.float8_e4m3fn,
    "gfx942": torch.float8_e4m3fnuz,
    "gfx950": torch.float8_e4m3fn,
}
_OPTIONS = ("num_warps", "num_stages")
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
    """One specialisation of one kernel: what Triton compiles for it.

    `types`: argument name -> Triton type, "constexpr" for constants. `aligned`: names of pointers on 16 bytes.
    """

    kernel: Any
    types: tuple[tuple[str, str], ...]
    aligned: frozenset[str]
    constants: tuple[tuple[str, int | bool], ...]
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """Name the operation, as its file is."""
        return str(self.kernel.__name__).strip("_").removesuffix("_kernel")


@contextmanager
def recording(architecture: str) -> Iterator[list[Launch]]:
    """Collect what would be launched on `architecture`; outputs keep whatever their memory held."""
    launches: list[Launch] = []

    def record(kernel: Any, *args: Any, **named: Any) -> None:
        del named["grid"], named["warmup"]
        launches.append(_launch(kernel, args, named))

    with ExitStack() as patched:
        patched.enter_context(mock.patch.object(JITFunction, "run", record))
        for module in (block_sizes, forest_attention_kernel, forest_attention_descriptor_kernel):
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
        elif isinstance(value, torch.Tensor):
            types[name] = _POINTERS[value.dtype]
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
            unspecialised = kernel.params[kernel.arg_names.index(name)].do_not_specialize
            if types[name] == "i32" and not unspecialised:
                raise TypeError(f"{kernel.__name__}: {name} would be specialised on its value")
    tensors = {n: v for n, v in values.items() if isinstance(v, torch.Tensor)}
    return Launch(
        kernel,
        tuple(types.items()),
        frozenset(name for name, value in tensors.items() if value.data_ptr() % 16 == 0),
        tuple((name, values[name]) for name in kernel.arg_names if name in constant),
        options,
    )


def model_launches(model: str, dtype: torch.dtype, architecture: str) -> dict[str, Launch]:
    """Give every launch of a published model's forward, by operation and variant."""
    hidden, width, _, H, KH, D = SIZES[model]
    eps, scale = 1e-6, D**-0.5
    found: dict[str, Launch] = {}

    def note(variant: str, run: Callable[[], object]) -> None:
        with recording(architecture) as launches:
            run()
        for launch in launches:
            found[f"{launch.name} {variant}".strip()] = launch

    x, residual = torch.zeros(2, 4, hidden, dtype=dtype).unbind()
    weight = torch.zeros(hidden, dtype=dtype)
    note("", lambda: rms_norm_kernel.rms_norm(x, weight, eps))
    ids = torch.zeros(4, dtype=torch.int32)
    note("lookup", lambda: rms_norm_kernel.embed_rms_norm(ids, x, weight, eps))
    note("add", lambda: rms_norm_kernel.add_rms_norm(x, residual, weight, eps))
    note("", lambda: swiglu_kernel.swiglu(torch.zeros(4, 2 * width, dtype=dtype)))
    fp8 = FP8.get(architecture)
    if fp8 is not None:
        gate_up, attended = (
            torch.zeros(4, 2 * width, dtype=dtype),
            torch.zeros(4, H * D, dtype=dtype),
        )
        note("", lambda: swiglu_kernel.swiglu_quantize(gate_up, fp8))
        note("", lambda: rms_norm_kernel.add_rms_norm_quantize(x, residual, weight, eps, fp8))
        note("", lambda: quantize_rows_kernel.quantize_rows(attended, fp8))
    head_weight, table = torch.zeros(D, dtype=dtype), torch.zeros(4, D // 2)
    for variant, heads, kv_heads in (("", H, KH), ("last q", H, 0), ("last k", 0, KH)):
        qkv = torch.zeros(4, (heads + 2 * kv_heads) * D, dtype=dtype)
        note(variant, lambda qkv=qkv, heads=heads, kv_heads=kv_heads: (  # type: ignore[misc]
            qk_norm_rope_kernel.qk_norm_rope(
                qkv, head_weight, head_weight, table, table,
                num_heads=heads, num_kv_heads=kv_heads, eps=eps,
            )
        ))  # fmt: skip
    for variant, forest in _forests().items():
        plan = AttentionPlan(forest.segments, forest.final_rows, CPU)
        T, N = forest.tokens_computed, len(forest.final_rows)
        qkv = torch.zeros(T, H + 2 * KH, D, dtype=dtype)
        q, k, v = qkv[:, :H], qkv[:, H:-KH], qkv[:, -KH:]
        note(variant, lambda q=q, k=k, v=v, plan=plan: (  # type: ignore[misc]
            forest_attention_kernel.forest_attention(q, k, v, plan, scale)
        ))  # fmt: skip
        if variant == "plain" and descriptor_blocks(dtype, architecture) is not None:
            note("", lambda q=q, k=k, v=v, plan=plan: (  # type: ignore[misc]
                forest_attention_descriptor_kernel.forest_attention_descriptor(q, k, v, plan, scale)
            ))  # fmt: skip
        kv = torch.zeros(T, 2 * KH, D, dtype=dtype)
        q, k, v = torch.zeros(N, H, D, dtype=dtype), kv[:, :KH], kv[:, KH:]
        split = "split" if N == 1 else "whole"
        note(split, lambda q=q, k=k, v=v, plan=plan: (  # type: ignore[misc]
            final_attention_kernel.final_attention(q, k, v, plan, scale)
        ))  # fmt: skip
    return found


def _forests() -> dict[str, Forest]:
    """One batch for each variant of the attention."""
    batches = {
        "plain": [[1] * 1024],
        "tree": [[1] * 100 + [i] * 100 for i in range(8)],
        "short": [[i] * 12 for i in range(8)],
        "short tree": [[1] * 24 + [i] * 8 for i in range(8)],
    }
    return {name: next(plan_forests(tokens, 10**6)) for name, tokens in batches.items()}
