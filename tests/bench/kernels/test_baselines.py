"""Baselines: PyTorch's attention on the same inputs, Liger-Kernel through stand-ins of its functions."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from lastword.bench.kernels import descriptor
from lastword.bench.kernels.baselines import CHANGES, baselines
from lastword.bench.kernels.cases import Case, cases
from lastword.bench.kernels.gate import Gate, GateResult
from lastword.bench.kernels.launches import candidate_launches, model_launches
from lastword.bench.options import BASELINES, FORMS, OPS
from lastword.errors import DeviceError
from lastword.kernels import cpu
from lastword.kernels.gpu import block_sizes

CPU = torch.device("cpu")
ATTENTION = ("forest_attention", "final_attention")


def make_case(op: str, title: str = "") -> Case:
    found = cases([op], ["tiny"], 64, torch.float32, torch.device("cpu"))
    return next(case for case in found if title in case.title)


def judge(case: Case, name: str) -> GateResult:
    with torch.inference_mode():
        prepare = baselines(case, (name,))[name]
        return Gate(case, torch.float32).check(prepare(case.inputs()), poison=False)


def test_which_baselines_a_case_has() -> None:
    has = {op: list(baselines(make_case(op), BASELINES)) for op in OPS}
    attention = ["eager", "compile", "sdpa-flash", "sdpa-cudnn", "varlen"]
    assert has["forest_attention"] == has["final_attention"] == attention
    assert has["qk_norm_rope"] == ["eager", "compile"]
    rest = {"rms_norm", "add_rms_norm", "swiglu"}
    assert all(has[op] == ["eager", "compile", "liger"] for op in rest)
    assert list(baselines(make_case("forest_attention", "shared"), BASELINES)) == [
        "eager",
        "compile",
    ]
    assert list(baselines(make_case("rms_norm"), ("liger", "eager"))) == ["eager", "liger"]
    assert baselines(make_case("rms_norm"), ()) == {}
    assert list(baselines(make_case("forest_attention"), FORMS)) == list(FORMS)
    assert baselines(make_case("forest_attention", "shared"), FORMS) == {}
    assert baselines(make_case("final_attention"), FORMS) == {}


def test_other_forms_are_for_sm_90(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHANGES:
        with pytest.raises(DeviceError) as caught:
            judge(make_case("forest_attention"), name)
        assert (caught.value.where, caught.value.what) == ("cpu", "no Triton kernel runs here")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(block_sizes, "architecture", lambda _: "sm_80")
    with pytest.raises(DeviceError) as caught:
        judge(make_case("forest_attention"), "before")
    assert caught.value.what == "this form is for 16-bit rows on sm_90"


def test_other_forms_differ_in_what_they_are_named_for() -> None:
    launches = candidate_launches("0.6B", torch.bfloat16, "sm_90")
    ours = model_launches("0.6B", torch.bfloat16, "sm_90")["forest_attention plain"]
    for name, changes in CHANGES.items():
        form = launches[f"forest_attention {name}"]
        differ = dict({*form.constants, *form.options} - {*ours.constants, *ours.options})
        assert differ == changes


def test_a_candidate_is_for_gpus_and_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError) as caught:
        judge(make_case("forest_attention"), "descriptor")
    assert (caught.value.where, caught.value.what) == ("cpu", "no Triton kernel runs here")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(descriptor, "descriptors_fit", lambda *_, **__: False)
    with pytest.raises(DeviceError) as caught:
        judge(make_case("forest_attention"), "descriptor")
    assert caught.value.where == "torch.float32 on cpu"
    assert caught.value.what == "descriptors are for 16-bit rows on sm_90 and sm_100"


@pytest.mark.parametrize("title", ["1 text of 64", "4 texts of 16", "each"])
@pytest.mark.parametrize("op", ATTENTION)
def test_sdpa_on_the_packed_rows(op: str, title: str) -> None:
    assert judge(make_case(op, title), "sdpa-flash").right


@pytest.mark.parametrize("name", ["sdpa-cudnn", "varlen"])
def test_a_baseline_that_a_cpu_lacks_raises(name: str) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        judge(make_case("forest_attention"), name)


def test_eager_is_refused_on_a_cpu() -> None:
    with pytest.raises(DeviceError) as caught:
        judge(make_case("rms_norm"), "eager")
    assert caught.value.where == "cpu"
    assert caught.value.what == "lastword itself runs eager PyTorch here"


@pytest.mark.parametrize("op", OPS)
def test_compile_is_of_the_cpu_implementation(op: str, monkeypatch) -> None:
    compiled = []

    def fake(function, **options):
        compiled.append((function, options))
        return function

    monkeypatch.setattr(torch, "compile", fake)
    assert judge(make_case(op), "compile").right
    ((function, options),) = compiled
    assert options == {"dynamic": False}
    assert op == "forest_attention" or function is getattr(cpu, op)


@pytest.mark.parametrize(
    "case",
    list(cases(["forest_attention"], ["tiny"], 2048, torch.float32, CPU)),
    ids=lambda case: case.title,
)
def test_eager_attention_is_one_call_for_equal_texts(case: Case, monkeypatch) -> None:
    calls, attend = [], F.scaled_dot_product_attention
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **b: calls.append(0) or attend(*a, **b)
    )
    run = baselines(case, ("compile",))["compile"](case.inputs())
    calls.clear()
    run.run()
    assert len(calls) <= 2, "the shared instruction, and what is behind it"
    assert judge(case, "compile").right


def attend(q, k, v, ends_q, ends_k, max_q, max_k, causal):
    """Compute the same as varlen_attn, one text at a time; query rows are the last ones of their text."""
    assert ends_q.dtype == ends_k.dtype == torch.int32
    out = torch.empty_like(q)
    for i in range(len(ends_q) - 1):
        rows, keys = slice(ends_q[i], ends_q[i + 1]), slice(ends_k[i], ends_k[i + 1])
        assert q[rows].shape[0] == max_q
        assert k[keys].shape[0] == max_k
        q_i, k_i, v_i = (x.transpose(0, 1) for x in (q[rows], k[keys], v[keys]))
        options = {"is_causal": causal, "enable_gqa": True}
        out[rows] = F.scaled_dot_product_attention(q_i, k_i, v_i, **options).transpose(0, 1)
    return out


def varlen_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
    *, scale=None, window_size=(-1, -1), enable_gqa=False,
):  # fmt: skip
    assert window_size in ((-1, 0), (-1, -1))
    assert enable_gqa
    causal = window_size == (-1, 0)
    return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal)


def varlen_2_10(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None
):
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal)


@pytest.mark.parametrize("varlen", [varlen_2_10, varlen_2_13])
@pytest.mark.parametrize("title", ["1 text of 64", "4 texts of 16", "each"])
@pytest.mark.parametrize("op", ATTENTION)
def test_varlen_of_old_and_new_signature(op: str, title: str, varlen, monkeypatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    assert judge(make_case(op, title), "varlen").right


def liger_rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    return cpu.rms_norm(X, W, eps)


def liger_fused_add_rms_norm(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    total = X + R
    return cpu.rms_norm(total, W, eps), total


def liger_swiglu(a, b):
    assert a.is_contiguous()
    assert b.is_contiguous()
    return F.silu(a) * b


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "swiglu"])
def test_liger(op: str, monkeypatch) -> None:
    fake = ModuleType("liger_kernel.transformers.functional")
    for function in (liger_rms_norm, liger_fused_add_rms_norm, liger_swiglu):
        setattr(fake, function.__name__, function)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    assert judge(make_case(op), "liger").right


def test_liger_is_not_installed(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ModuleNotFoundError):
        judge(make_case("swiglu"), "liger")
