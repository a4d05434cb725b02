"""The baselines of each operation: eager PyTorch, torch.compile, PyTorch's own attention, Liger-Kernel.

Candidates for lastword's own kernels (`FORMS`) are included. All baselines and candidates take the same inputs. If one
needs a different layout, the inputs are converted before the clock starts. One that is missing, or refuses a shape,
dtype or device, raises an exception, which the caller turns into a line that gives the reason.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lastword.bench.kernels.cases import Case, CaseInputs
from lastword.bench.kernels.eager_attention import eager_forest_attention
from lastword.bench.kernels.gate import Implementation, wrap_operation
from lastword.bench.options import BASELINES, FORMS
from lastword.errors import DeviceError
from lastword.kernels import cpu, launches_triton

Prepare = Callable[[CaseInputs], Implementation]

# The launch arguments in which the other forms of forest_attention without ancestors differ (`options.FORMS`).
CHANGES: dict[str, dict[str, int]] = {
    "stages-2": {"num_stages": 2},
    "scaled": {"TIGHT": True},
    "before": {"num_stages": 2, "TIGHT": True},
}


def baselines(case: Case, chosen: tuple[str, ...]) -> dict[str, Prepare]:
    """Return the chosen baselines and candidates that apply to a case, in the order of `BASELINES` and `FORMS`.

    Args:
        case: the case to time.
        chosen: names of `BASELINES` and `FORMS`.

    Returns:
        For each name, a function that turns inputs into an `Implementation`.
    """
    found: dict[str, Prepare] = {
        "eager": lambda inputs: _eager(case, inputs),
        "compile": lambda inputs: _compile(case, inputs),
    }
    if case.batch is not None and case.batch.equal is not None:
        equal, final = case.batch.equal, case.op == "final_attention"
        flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
        found["sdpa-flash"] = lambda inputs: _sdpa(inputs, equal, flash, final=final)
        found["sdpa-cudnn"] = lambda inputs: _sdpa(inputs, equal, cudnn, final=final)
        found["varlen"] = lambda inputs: _varlen(inputs, equal, final=final)
        if not final:
            found["descriptor"] = _descriptor
            found |= {name: partial(_changed, changes) for name, changes in CHANGES.items()}
    if case.op in _LIGER:
        found["liger"] = _LIGER[case.op]
    return {name: found[name] for name in BASELINES + FORMS if name in found and name in chosen}


def _eager_function(case: Case, inputs: CaseInputs) -> Callable[..., Any]:
    """Return the function that "eager" runs and "compile" compiles.

    The function is lastword's CPU implementation, except for forest attention: for that there is a form that runs
    faster on a GPU (`eager_attention.py`).
    """
    if case.op == "forest_attention":
        return eager_forest_attention(inputs.args[3], inputs.args[0].device)
    implementation: Callable[..., Any] = getattr(cpu, case.op)
    return implementation


def _eager(case: Case, inputs: CaseInputs) -> Implementation:
    if inputs.tensors()[0].device.type == "cpu":
        raise DeviceError("cpu", "lastword itself runs eager PyTorch here")
    dense = inputs.dense()
    return wrap_operation(_eager_function(case, dense), dense)


def _compile(case: Case, inputs: CaseInputs) -> Implementation:
    torch.compiler.reset()  # otherwise PyTorch would compile a second case's shapes as dynamic
    dense = inputs.dense()
    return wrap_operation(torch.compile(_eager_function(case, dense), dynamic=False), dense)


def _sdpa(
    inputs: CaseInputs, equal: tuple[int, int], backend: SDPBackend, *, final: bool
) -> Implementation:
    """Run F.scaled_dot_product_attention on [texts, heads, tokens, D] views of the packed rows."""
    q, k, v, _, scale = inputs.args
    texts, tokens = equal
    q_rows = 1 if final else tokens
    dense_q = q.view(texts, q_rows, *q.shape[1:]).transpose(1, 2)
    dense_k, dense_v = (x.view(texts, tokens, *x.shape[1:]).transpose(1, 2) for x in (k, v))

    def run() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                dense_q, dense_k, dense_v, is_causal=not final, scale=scale, enable_gqa=True
            )

    def read(result: object) -> list[Tensor]:
        assert isinstance(result, Tensor)
        return [result.transpose(1, 2).reshape(len(q), -1), q, k, v]

    return Implementation(run, read)


def _varlen(inputs: CaseInputs, equal: tuple[int, int], *, final: bool) -> Implementation:
    """Run torch.nn.attention.varlen on the packed rows; if it lacks `enable_gqa`, repeat keys and values beforehand."""
    attend: Callable[..., Any] = import_module("torch.nn.attention.varlen").varlen_attn
    known = inspect.signature(attend).parameters
    q, k, v, _, scale = inputs.args
    texts, tokens = equal
    q_rows = 1 if final else tokens
    options: dict[str, Any] = {"scale": scale} if "scale" in known else {}
    if not final:
        options |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    keys, values = k, v
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    else:
        keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    steps = torch.arange(texts + 1, dtype=torch.int32, device=q.device)
    ends_q, ends_k = steps * q_rows, steps * tokens

    def run() -> object:
        return attend(q, keys, values, ends_q, ends_k, q_rows, tokens, **options)

    def read(result: object) -> list[Tensor]:
        assert isinstance(result, Tensor)
        return [result.flatten(1), q, k, v]

    return Implementation(run, read)


def _descriptor(inputs: CaseInputs) -> Implementation:
    """Run the candidate for forest_attention; raise a DeviceError if it cannot run on these inputs."""
    q, k, v, plan, scale = inputs.args
    if not launches_triton(q.device):
        raise DeviceError("cpu", "no Triton kernel runs here")
    from lastword.bench.kernels import descriptor

    if not descriptor.descriptors_fit(q, k, v, tree=plan.has_ancestors):
        where = f"{q.dtype} on {q.device}"
        raise DeviceError(where, "descriptors are for 16-bit rows on sm_90 and sm_100")
    tables = descriptor.descriptor_tables(q, plan.segments, plan.final_rows)
    return wrap_operation(
        descriptor.forest_attention_descriptor, replace(inputs, args=(q, k, v, tables, scale))
    )


def _changed(changes: Mapping[str, int], inputs: CaseInputs) -> Implementation:
    """Run forest_attention with other launch arguments; raise a DeviceError if it is not for this device."""
    q = inputs.args[0]
    if not launches_triton(q.device):
        raise DeviceError("cpu", "no Triton kernel runs here")
    from lastword.kernels.gpu import block_sizes
    from lastword.kernels.gpu.forest_attention import forest_attention

    found = block_sizes.architecture(q.device)
    if found not in ("sm_90", "interpreter") or (found == "sm_90" and q.dtype == torch.float32):
        raise DeviceError(f"{q.dtype} on {q.device}", "this form is for 16-bit rows on sm_90")
    return wrap_operation(partial(forest_attention, changes=changes), inputs)


def _liger(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(
        import_module("liger_kernel.transformers.functional"), name
    )
    return function


def _liger_rms_norm(inputs: CaseInputs) -> Implementation:
    return wrap_operation(_liger("liger_rms_norm"), inputs)


def _liger_add_rms_norm(inputs: CaseInputs) -> Implementation:
    """Run Liger's operation, which returns the norm and the sum; lastword's operation puts the sum in the residual."""
    operation = _liger("liger_fused_add_rms_norm")
    x, residual, weight, eps = inputs.args

    def read(result: object) -> list[Tensor]:
        assert isinstance(result, tuple)
        return [result[0], x, result[1], weight]

    return Implementation(lambda: operation(x, residual, weight, eps), read)


def _liger_swiglu(inputs: CaseInputs) -> Implementation:
    """Run Liger's operation, which takes the two halves as separate contiguous tensors."""
    operation = _liger("liger_swiglu")
    (gate_up,) = inputs.args
    gate, up = (half.contiguous() for half in gate_up.chunk(2, dim=-1))

    def read(result: object) -> list[Tensor]:
        assert isinstance(result, Tensor)
        return [result, gate_up]

    return Implementation(lambda: operation(gate, up), read)


_LIGER: dict[str, Prepare] = {
    "rms_norm": _liger_rms_norm,
    "add_rms_norm": _liger_add_rms_norm,
    "swiglu": _liger_swiglu,
}
