"""Linear layers whose weights are packed for oneDNN agree with PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from lastword.kernels import Linear, SwigluLinear
from lastword.kernels.linear import plain

# Relative error allowed: in bf16 one rounding of each number, and of the gate in SwiGLU.
ALLOWED = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


def relative(y: torch.Tensor, truth: torch.Tensor) -> float:
    return float((y.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("rows", [0, 1, 7, 64])
@pytest.mark.parametrize("dtype", ALLOWED)
def test_packed_weights_give_the_same(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 48).to(dtype), torch.randn(32, 48).to(dtype)
    bias, gate, up = (torch.randn(shape).to(dtype) for shape in ((32,), (32, 48), (32, 48)))
    gate, up = gate / 7, up / 7
    layer, mlp = Linear(weight, bias), SwigluLinear(gate, up)
    y, z = layer(x), mlp(x)
    assert (y.dtype, y.shape, z.dtype, z.shape) == (dtype, (rows, 32), dtype, (rows, 32))
    if rows:
        exact = x.double() @ weight.double().T + bias.double()
        assert relative(y, exact) < ALLOWED[dtype]
        gate, up = (x.double() @ half.double().T for half in (gate, up))
        assert relative(z, F.silu(gate) * up) < ALLOWED[dtype]


@pytest.mark.parametrize("packs", [True, False])
def test_a_layer_keeps_no_view_of_a_file(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packs:
        monkeypatch.setattr(plain, "_packs", lambda _: False)
    x, weight = torch.ones(1, 8), torch.ones(8, 8)
    linear, swiglu = Linear(weight), SwigluLinear(weight, weight)
    before = linear(x), swiglu(x)
    weight.zero_()  # as if the file had been overwritten
    assert torch.equal(linear(x), before[0])
    assert torch.equal(swiglu(x), before[1])


def test_bf16_is_packed_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(8, 8, dtype=torch.bfloat16)
    for supported in (True, False):
        monkeypatch.setattr(plain, "_has_bf16", lambda supported=supported: supported)
        available = torch.backends.mkldnn.is_available()
        assert plain._packs(weight) is (supported and available)
    assert not plain._packs(torch.ones(8, 8, dtype=torch.float16))
