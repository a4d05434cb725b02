"""`quantize="int8"` through the public API: quantisation error, batch independence, fingerprints, errors, memory."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.messages import refusal
from helpers.project import numbers_of

from lastword import ConfigError, Embedder
from lastword.bench.checkpoint import make_checkpoint
from lastword.runtime.device import check_quantize, quantize_identity

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [f"text number {i}, " + "some words of it " * (i % 9) for i in range(60)]


@pytest.fixture(scope="module")
def exact(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def int8(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu", quantize="int8")


def test_the_quantisation_error_is_small_but_not_zero(exact: Embedder, int8: Embedder) -> None:
    cosine = (exact.encode(TEXTS) * int8.encode(TEXTS)).sum(1)
    assert cosine.mean() >= 0.9995
    assert cosine.min() >= 0.999
    assert cosine.max() < 1 - 1e-7, "nothing was quantised"


def test_other_texts_in_a_batch_hardly_change_a_vector(int8: Embedder) -> None:
    """Attention is in fp32 and may round differently in another batch, which can change a code of the next matmul."""
    together = int8.encode(TEXTS)
    alone = torch.stack([int8.encode(text) for text in TEXTS[:12]])
    assert (together[:12] - alone).abs().max() < 2e-3
    assert torch.equal(together, int8.encode(TEXTS))


def test_the_run_fingerprint_differs_in_the_same_space(exact: Embedder, int8: Embedder) -> None:
    assert (exact.info.quantize, int8.info.quantize) == (None, "int8")
    assert exact.info.space_fingerprint() == int8.info.space_fingerprint()
    assert exact.info.run_fingerprint() != int8.info.run_fingerprint()


def test_the_run_fingerprint_has_the_levels(
    int8: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for vnni, levels in ((True, 127), (False, 63)):
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda vnni=vnni: vnni)
        found.append(int8.info.run_fingerprint())
        assert quantize_identity("int8", torch.device("cpu")) == ["int8", levels, "smoothed"]
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("options", "what", "got", "rest"),
    [
        (
            {"quantize": "fp4"},
            "unknown",
            "'fp4'",
            {"expected": "None, 'int8' on a CPU or 'fp8' on a GPU"},
        ),
        ({"quantize": "fp8"}, "fp8 is for GPUs", "device 'cpu'", {"expected": "'cuda'"}),
        ({"quantize": True}, "unknown", "True", {}),
        (
            {"quantize": "int8", "dtype": "bfloat16"},
            "int8 needs dtype float32",
            "dtype 'bfloat16'",
            {"remedy": "Leave dtype out."},
        ),
    ],
)
def test_refused(
    options: dict, what: str, got: str, rest: dict[str, str], tiny_checkpoint: Path
) -> None:
    with refusal(ConfigError, where="quantize", what=what, got=got, **rest):
        Embedder(tiny_checkpoint, device="cpu", **options)


def test_refused_on_a_gpu() -> None:
    with refusal(ConfigError, what="int8 is for CPUs", got="device 'cuda:1'", expected="'cpu'"):
        check_quantize("int8", torch.device("cuda:1"), torch.bfloat16)


LOADING = """
import ctypes, sys
from lastword import Embedder
from lastword.bench.memory import held_bytes, watch_peak

Embedder(sys.argv[1], device="cpu", quantize="int8").encode("once")
base = held_bytes("VmRSS")
with watch_peak("VmRSS", every=0.0005) as peak:
    model = Embedder(sys.argv[2], device="cpu", quantize="int8")
    ctypes.CDLL(None).malloc_trim(0)  # freed memory not yet returned to the system must not count
print(peak() - base, held_bytes("VmRSS") - base)
"""


@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_two_layers_in_fp32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(
        tmp_path,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=16,
        num_attention_heads=8,
        head_dim=64,
        dtype=torch.bfloat16,
    )
    peak, held = numbers_of(LOADING, tiny_checkpoint, folder)
    q, kv = 8 * 64, 2 * 64
    layer = 512 * (2 * q + 2 * kv + 3 * 1536)
    # int8 codes of 16 layers, and the file's pages with the 64 tokens that smoothing reads, which the system may drop;
    # for one layer in addition fp32 weights before and after smoothing, or with copies of one matrix
    assert held < 1.1 * 16 * layer + 8 * 2**20
    assert peak - held < 2 * 4 * layer + 10 * 2**20
    assert peak < 4 * 16 * layer, "never all layers in fp32"


def test_the_builtin_model_stays_accurate() -> None:
    """Cosine at least 0.9997 on average, and at most one of the hundred questions is answered differently."""
    lines = (ROOT / "bench/builtin/questions.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line) for line in lines]
    found = []
    for mode in (None, "int8"):
        model = Embedder(device="cpu", quantize=mode)
        questions = model.encode_query([each["question"] for each in asked])
        passages = model.encode_document([each["passage"] for each in asked])
        best = (questions @ passages.T).argmax(1)
        found.append((questions, passages, int((best == torch.arange(len(asked))).sum())))
    (exact_q, exact_p, exact_hits), (q, p, hits) = found
    assert torch.cat([(exact_q * q).sum(1), (exact_p * p).sum(1)]).mean() >= 0.9997
    assert abs(hits - exact_hits) <= 1
