"""The operations, attention plans and linear layers of the forward pass; `ops.py` documents each operation.

Importing this package imports PyTorch but not Triton: each Triton kernel is imported at its first launch.
"""

from lastword.kernels.arguments import launches_triton
from lastword.kernels.attention_plan import (
    AttentionPlan,
    CpuPlan,
    KernelTables,
    Segments,
    kernel_tables,
)
from lastword.kernels.gpu.block_sizes import attention_tile_rows
from lastword.kernels.linear.fp8 import (
    Fp8Linear,
    Fp8SwigluLinear,
    MatmulInput,
    check_fp8,
    fp8_format,
)
from lastword.kernels.linear.int8 import (
    MAX_ROUNDING,
    SMOOTHING_LIMIT,
    SMOOTHING_SHARE,
    SMOOTHING_TOKENS,
    Int8Linear,
    Int8SwigluLinear,
    activation_levels,
    check_int8,
)
from lastword.kernels.linear.observed import ObservedLinear, ObservedSwigluLinear
from lastword.kernels.linear.plain import Linear, SwigluLinear
from lastword.kernels.ops import (
    add_rms_norm,
    add_rms_norm_quantize,
    embed_rms_norm,
    final_attention,
    forest_attention,
    qk_norm_rope,
    quantize_rows,
    rms_norm,
    rope_tables,
    swiglu,
    swiglu_quantize,
)

__all__ = [
    "MAX_ROUNDING",
    "SMOOTHING_LIMIT",
    "SMOOTHING_SHARE",
    "SMOOTHING_TOKENS",
    "AttentionPlan",
    "CpuPlan",
    "Fp8Linear",
    "Fp8SwigluLinear",
    "Int8Linear",
    "Int8SwigluLinear",
    "KernelTables",
    "Linear",
    "MatmulInput",
    "ObservedLinear",
    "ObservedSwigluLinear",
    "Segments",
    "SwigluLinear",
    "activation_levels",
    "add_rms_norm",
    "add_rms_norm_quantize",
    "attention_tile_rows",
    "check_fp8",
    "check_int8",
    "embed_rms_norm",
    "final_attention",
    "forest_attention",
    "fp8_format",
    "kernel_tables",
    "launches_triton",
    "qk_norm_rope",
    "quantize_rows",
    "rms_norm",
    "rope_tables",
    "swiglu",
    "swiglu_quantize",
]
