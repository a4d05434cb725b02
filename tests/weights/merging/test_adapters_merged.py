"""LoRA adapters merged by `lastword convert --adapter`: as PEFT merges them; all but plain LoRA is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lastword import Embedder
from lastword.bench.checkpoint import make_checkpoint
from lastword.cli.main import main
from lastword.errors import ConfigError, InputError, WeightsError
from lastword.weights.locate import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lastword.weights.lora.adapter import read_adapter

# PEFT reads a property of transformers' models that is to be removed.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model whose matrices take several blocks if a block is small."""
    return make_checkpoint(tmp_path / "base", prefix="model.", num_hidden_layers=2)


def trained(base: Path, out: Path, kind: str = "Qwen3Model", **settings: Any) -> torch.nn.Module:
    """Save an adapter with random matrices, and return the model into which PEFT has merged it."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = getattr(transformers, kind).from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": MATRICES} | settings
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(1)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    wrapped.save_pretrained(out)
    return wrapped.merge_and_unload()


def merge(base: Path, adapter: Path, out: Path, *options: str) -> int:
    return main(["convert", str(base), str(out), "--adapter", str(adapter), "--quiet", *options])


@pytest.mark.parametrize("kind", ["Qwen3Model", "Qwen3ForCausalLM"])
@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 14),
        ({"use_rslora": True}, 14),
        ({"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}}, 4),
        ({"target_modules": r".*layers\.1\..*down_proj"}, 1),
    ],
    ids=["plain", "rslora", "ranks", "one layer"],
)
def test_it_is_what_peft_merges(
    tmp_path: Path,
    base: Path,
    kind: str,
    settings: dict[str, Any],
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lastword.weights.files.blocks.BLOCK", 1000)
    expected = trained(base, tmp_path / "adapter", kind, **settings).state_dict()
    assert merge(base, tmp_path / "adapter", tmp_path / "out") == 0
    found, before = (load_file(p / "model.safetensors") for p in (tmp_path / "out", base))
    assert found.keys() == before.keys()
    changed = set()
    for name, weight in found.items():
        theirs = expected[name if name in expected else name.removeprefix("model.")]
        assert (weight - theirs).abs().max() <= 1e-6, name
        if not torch.equal(weight, before[name]):
            assert (weight - before[name]).abs().max() > 1e-3
            changed.add(name)
    assert len(changed) == count


def test_it_embeds_as_the_adapter_does_in_sentence_transformers(tmp_path: Path, base: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    trained(base, tmp_path / "adapter")
    assert merge(base, tmp_path / "adapter", tmp_path / "out") == 0
    theirs = library.SentenceTransformer(str(base), device="cpu")
    theirs.load_adapter(str(tmp_path / "adapter"))
    plain, ours = (Embedder(p, device="cpu").encode("a text") for p in (base, tmp_path / "out"))
    assert (ours - plain).abs().max() > 1e-2
    assert (ours - torch.from_numpy(theirs.encode("a text"))).abs().max() <= 2e-5


def test_it_is_rounded_once(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    trained(base, tmp_path / "adapter", target_modules=["up_proj"])
    assert merge(base, tmp_path / "adapter", tmp_path / "out") == 0
    assert merge(base, tmp_path / "adapter", tmp_path / "wide", "--dtype", "float32") == 0
    rounded, wide = (load_file(tmp_path / p / "model.safetensors") for p in ("out", "wide"))
    for name, weight in rounded.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, wide[name].bfloat16()), name


def test_the_model_card_is_not_copied(tmp_path: Path, base: Path) -> None:
    (base / "README.md").write_text("# The model without the adapter")
    write(tmp_path / "adapter")
    assert merge(base, tmp_path / "adapter", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "README.md").exists()
    assert not (tmp_path / "out" / ADAPTER_CONFIG).exists()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of one matrix, made without PEFT."""
    folder = tmp_path / "adapter"
    write(folder)
    return folder


def write(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **settings: Any) -> None:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "owner/base"}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | settings))
    pair = {"lora_A": torch.ones(2, 64), "lora_B": torch.ones(128, 2)}
    made = {
        f"base_model.model.layers.0.mlp.up_proj.{side}.weight": matrix
        for side, matrix in pair.items()
    }
    save_file(made if tensors is None else tensors, folder / ADAPTER_WEIGHTS)


def test_alpha_and_rank_scale_it(tmp_path: Path, base: Path, adapter: Path) -> None:
    assert merge(base, adapter, tmp_path / "out") == 0
    before, after = (load_file(p / "model.safetensors") for p in (base, tmp_path / "out"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(after[name], before[name] + 4 / 2 * 2, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["embed_tokens"]),
        ("trainable_token_indices", [1]),
        ("alpha_pattern", {"q_proj": 8}),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["mlp.up_proj.weight"]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "loftq"),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("peft_type", "IA3"),
        ("lora_alpha", "8"),
        ("lora_alpha", 0),
        ("use_rslora", 1),
    ],
)
def test_settings_that_would_change_the_weights_are_refused(
    adapter: Path, key: str, value: object
) -> None:
    write(adapter, **{key: value})
    with pytest.raises(ConfigError, match=key):
        read_adapter(adapter)


@pytest.mark.parametrize("settings", [{"r": 4}, {"r": 4, "rank_pattern": {"up_proj": 8}}])
def test_a_rank_that_the_config_does_not_state(adapter: Path, settings: dict[str, Any]) -> None:
    """The rank divides alpha: files of two trainings would give wrong weights and no error."""
    write(adapter, **settings)
    with pytest.raises(WeightsError, match=r"up_proj.*the rank is not one.*got 2, expected r or"):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("key", "value"), [("r", 0), ("r", "2"), ("r", None), ("rank_pattern", [2])]
)
def test_a_rank_that_is_no_number(adapter: Path, key: str, value: object) -> None:
    write(adapter, **{key: value})
    with pytest.raises(ConfigError, match=key):
        read_adapter(adapter)


def test_an_unknown_setting_is_refused(adapter: Path) -> None:
    write(adapter, new_kind_of_update=3)
    with pytest.raises(ConfigError, match=r"new_kind_of_update.*merge_and_unload"):
        read_adapter(adapter)


A, B = torch.ones(2, 64), torch.ones(128, 2)
AT = "base_model.model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "holds no matrices"),
        ({f"{AT}.lora_A.weight": A}, "has only one of the two matrices"),
        ({f"{AT}.lora_A.weight": A, f"{AT}.lora_B.weight": torch.ones(128, 3)}, "the ranks"),
        ({f"{AT}.lora_A.weight": A[0], f"{AT}.lora_B.weight": B}, "wrong dtype or shape"),
        ({f"{AT}.lora_A.weight": A.double(), f"{AT}.lora_B.weight": B}, "wrong dtype or shape"),
        ({f"{AT}.lora_magnitude_vector": B}, "not one of a pair"),
        ({"layers.0.mlp.up_proj.lora_A.weight": A}, "not one of a pair"),
        (
            {
                f"{AT}.lora_A.weight": A,
                f"{AT.replace('layers', 'model.layers')}.lora_A.weight": A + 1,
            },
            "has two matrices A",
        ),
        (
            {f"base_model.model.lm_head.lora_{s}.weight": m for s, m in (("A", A), ("B", B))},
            "lm_head",
        ),
    ],
    ids=range(9),
)
def test_damaged_weights_are_refused(
    adapter: Path, tensors: dict[str, torch.Tensor], said: str
) -> None:
    write(adapter, tensors)
    with pytest.raises(WeightsError, match=said):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("names", "shape", "said"),
    [
        (AT.replace("layers.0", "layers.7"), (128, 64), "layers.7.mlp.up_proj.weight, which"),
        (AT.replace("up_proj", "down_proj"), (128, 64), "does not fit"),
    ],
)
def test_an_adapter_of_another_model(
    tmp_path: Path,
    base: Path,
    adapter: Path,
    names: str,
    shape: tuple[int, int],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(adapter, {f"{names}.lora_A.weight": A, f"{names}.lora_B.weight": B})
    assert merge(base, adapter, tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_files(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        read_adapter(tmp_path / "none")
    (adapter / ADAPTER_WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(
        InputError, match=r"has no adapter_model\.safetensors; got adapter_model\.bin"
    ):
        read_adapter(adapter)


def test_infinite_matrices_are_refused(
    tmp_path: Path, base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(adapter, {f"{AT}.lora_A.weight": A * torch.inf, f"{AT}.lora_B.weight": B})
    assert merge(base, adapter, tmp_path / "out") == 2
    assert "with its adapter: tensor" in capsys.readouterr().err
