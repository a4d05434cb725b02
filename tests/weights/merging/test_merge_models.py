"""Merges of whole models: tensors follow the formulas, files load in other libraries, mismatches are named early."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.small_models import model, recipe_text
from helpers.transformers_reference import (
    TOLERANCE,
    difference,
    load_ours,
    load_theirs,
    our_states,
    their_states,
)
from safetensors.torch import load_file, save_file

from lastword.bench.merge import multislerp
from lastword.cli.main import main
from lastword.errors import ConfigError, InputError, WeightsError
from lastword.weights import Checkpoint, read_config
from lastword.weights.files.blocks import block_threads
from lastword.weights.files.header import read_header
from lastword.weights.locate import ModelFiles
from lastword.weights.merging.merge import Merge
from lastword.weights.merging.model_card import merge_card
from lastword.weights.merging.recipe import parse_recipe


def weights_of(folder) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found |= {name.removeprefix("model."): t for name, t in load_file(file).items()}
    return found


@pytest.fixture
def merged(tmp_path, monkeypatch, capfd):
    """Run `lastword merge` on a recipe; return status, the new folder and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*recipe, out="out", options=(), **others):
        Path("merge.yaml").write_text(recipe_text(*recipe, **others), encoding="utf-8")
        status = main(["merge", "merge.yaml", out, *options])
        return status, tmp_path / out, capfd.readouterr().err

    return run


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[str]:
    """Create three models, stored in three ways."""
    root = tmp_path_factory.mktemp("models")
    ways = [{"shards": 2}, {"prefix": "model."}, {}]
    return [model(root / f"m{i}", seed=i, **way) for i, way in enumerate(ways)]


def exact(method, tensors, base):
    """Compute the methods again in plain form, on whole float64 tensors."""
    x = [t.double() for t in tensors]
    if method == "linear":
        return 0.4 * x[0] + 0.6 * x[1]
    if method == "task_arithmetic":
        return base + 0.5 * (0.8 * (x[0] - base) + 1.2 * (x[1] - base))
    if method == "slerp":
        u, v = (t / t.norm() for t in x)
        angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())
        return (torch.sin(0.7 * angle) * x[0] + torch.sin(0.3 * angle) * x[1]) / torch.sin(angle)
    x = [t - base for t in x] if base is not None else x
    s = 0.4 * x[0] / x[0].norm() + 0.6 * x[1] / x[1].norm()
    merged = (0.4 * x[0].norm() + 0.6 * x[1].norm()) * s / s.norm()
    return merged if base is None else base + merged


@pytest.mark.parametrize(
    ("method", "weights", "others"),
    [
        ("linear", [0.8, 1.2], {}),
        ("multislerp", [0.8, 1.2], {}),
        ("multislerp", [0.8, 1.2], {"base_model": 2}),
        ("task_arithmetic", [0.8, 1.2], {"base_model": 2, "parameters": {"lambda": 0.5}}),
        ("slerp", [None, None], {"base_model": 0, "parameters": {"t": 0.3}}),
    ],
    ids=["linear", "multislerp", "multislerp-base", "task-arithmetic", "slerp"],
)
def test_every_tensor_is_what_the_formula_says(three, merged, method, weights, others):
    base = others.get("base_model")
    named = {**others, "base_model": three[base]} if base is not None else others
    status, out, err = merged(three[:2], weights, method=method, dtype="float32", **named)
    assert (status, err.count("\n")) == (0, 1), err
    made, stored = weights_of(out), [weights_of(name) for name in three]
    assert made.keys() == stored[0].keys()
    for name, tensor in made.items():
        origin = stored[2][name].double() if base == 2 else None
        expected = exact(method, [s[name] for s in stored[:2]], origin)
        assert tensor.dtype == torch.float32
        apart = (tensor.double() - expected).abs().max() / expected.abs().max()
        assert apart < 1e-7, name


def test_names_and_files_are_those_of_the_base_or_the_first_model(three, merged):
    _, out, _ = merged(three, [1, 1, 1], dtype="float32", parameters={"normalize_weights": True})
    assert all(not name.startswith("model.") for name in read_header(out / "model.safetensors"))
    for name in ("tokenizer.json", "modules.json", "1_Pooling/config.json"):
        assert (out / name).read_bytes() == (Path(three[0]) / name).read_bytes()
    _, out, _ = merged(three, [1, None, 1], dtype="float32", base_model=three[1], out="out2")
    assert any(name.startswith("model.") for name in read_header(out / "model.safetensors"))


def test_with_itself_bit_for_bit(tmp_path, merged):
    for dtype in (torch.float32, torch.bfloat16):
        name = model(tmp_path / f"self-{dtype}", dtype=dtype)
        for method in ("linear", "multislerp"):
            status, out, _ = merged(
                [name] * 3, [2.8, 4.3, 0.1], method=method, out=f"{dtype}-{method}"
            )
            assert status == 0
            assert (out / "model.safetensors").read_bytes() == Path(
                name, "model.safetensors"
            ).read_bytes()


def test_a_merge_embeds_alike_in_lastword_transformers_and_sentence_transformers(three, merged):
    from sentence_transformers import SentenceTransformer

    from lastword import Embedder

    _, out, _ = merged(three, [2.8, 4.3, 1.0], dtype="float32", options=["--shard-size", "100KB"])
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    tokens = [[5, 6, 7], [9] * 40, [300, 2, 11, 12, 13]]
    theirs, _ = their_states(load_theirs(out), tokens)
    ours, _ = our_states(load_ours(out), tokens)
    assert difference(ours, theirs) <= TOLERANCE
    texts = ["plants make sugar from light", "gravity"]
    library = SentenceTransformer(str(out), device="cpu")
    expected = library.encode(texts, prompt_name="query", convert_to_tensor=True)
    assert difference(Embedder(str(out)).encode(texts, prompt_name="query"), expected) <= TOLERANCE


def rounded_once(tensor: torch.Tensor, exact: torch.Tensor) -> bool:
    """All values are equal except at most one, which another order of float64 sums may round the other way."""
    return int((tensor != exact.to(tensor.dtype)).sum()) <= 1


@pytest.mark.parametrize(
    ("out_dtype", "stored"), [("bfloat16", "BF16"), ("float16", "F16"), (None, "F32")]
)
def test_the_result_is_rounded_once(three, merged, out_dtype, stored):
    others = {} if out_dtype is None else {"out_dtype": out_dtype, "dtype": "float32"}
    _, out, _ = merged(three[:2], [1, 3], **others)
    assert Checkpoint(out, read_config(out)).dtypes == (stored,)
    stated = json.loads((out / "config.json").read_text())["torch_dtype"]
    assert stated == (out_dtype or "float32")
    first, second = (weights_of(name) for name in three[:2])
    for name, tensor in weights_of(out).items():
        expected = multislerp([first[name], second[name]], [1, 3])
        assert rounded_once(tensor, expected)


def test_report_and_card(three, merged):
    status, out, err = merged(three[:2], [2.8, 4.3], options=["--report", "report.jsonl"])
    assert status == 0
    assert f"out: {len(read_header(out / 'model.safetensors'))} tensors" in err
    lines = [json.loads(line) for line in Path("report.jsonl").read_text().splitlines()]
    made, stored = weights_of(out), [weights_of(name) for name in three[:2]]
    assert [line["tensor"] for line in lines] == list(weights_of(three[0]))  # in the order stored
    for line in lines:
        name = line["tensor"]
        x, y = (s[name].double().flatten() for s in stored)
        assert line["shape"] == list(made[name].shape)
        assert line["norms"] == pytest.approx([float(x.norm()), float(y.norm())])
        assert line["norm"] == pytest.approx(float(made[name].norm()), rel=1e-5)
        sum_of_both = line["coefficients"][0] * x + line["coefficients"][1] * y
        assert torch.allclose(sum_of_both, made[name].double().flatten(), atol=1e-6)
        cosine = torch.tensor(float(x @ y / x.norm() / y.norm()))
        assert line["angles"][0][1] == pytest.approx(
            float(torch.rad2deg(torch.acos(cosine))), rel=1e-3
        )
    card = (out / "README.md").read_text(encoding="utf-8")
    for name, weight in zip(three, ("2.8", "4.3"), strict=False):
        fingerprint = Checkpoint(Path(name), read_config(Path(name))).fingerprint
        assert f"| {name} | a folder | {weight} | `{fingerprint}` |" in card
    assert Checkpoint(out, read_config(out)).fingerprint in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["tags"] == ["lastword", "merge", "sentence-transformers"]
    shown = card.split("## Recipe")[1]
    assert yaml.safe_load(shown) == yaml.safe_load(Path("merge.yaml").read_text())


@pytest.mark.parametrize("report", ["merge.yaml", "out", "MODEL/model.safetensors", "MODEL/config.json",
                                    "MODEL/1_Pooling/config.json", "MODEL/tokenizer.json", "link"])  # fmt: skip
def test_a_report_overwrites_nothing_that_is_read_or_written(tmp_path, three, merged, report):
    model = Path(shutil.copytree(three[2], tmp_path / "m"))
    (tmp_path / "link").symlink_to("m/config.json")
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    place = report.replace("MODEL", str(model))
    status, out, err = merged([model, three[0]], [1, 1], options=["--report", place])
    what = "has the extension of another format" if "." in report else "would be overwritten"
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"lastword: {place}: {what}; ")
    assert not out.exists()
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_a_report_on_stdout(three, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("merge.yaml").write_text(recipe_text(three[:2], [1, 1]))
    assert main(["merge", "merge.yaml", "out", "--report", "-"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert len(lines) == len(weights_of("out"))
    assert sorted(os.listdir()) == ["merge.yaml", "out"]


def test_untied_heads_are_merged_where_all_have_one(tmp_path, merged):
    heads = [model(tmp_path / f"h{i}", seed=i, prefix="model.", tied=False) for i in range(2)]
    _, out, _ = merged(heads, [1, 1])
    stored = [weights_of(name)["lm_head.weight"] for name in heads]
    assert rounded_once(weights_of(out)["lm_head.weight"], multislerp(stored, [1, 1]))
    tied = model(tmp_path / "tied", seed=3, prefix="model.")
    status, out, err = merged([heads[0], tied], [1, 1], out="out2")
    assert status == 0
    assert "lm_head.weight is omitted" in err
    assert "lm_head.weight" not in weights_of(out)


def edited(folder: str, target: Path, file: str, **settings) -> str:
    """Copy a model and set keys of one of its JSON files."""
    shutil.copytree(folder, target)
    values = json.loads((target / file).read_text()) if (target / file).exists() else {}
    (target / file).write_text(json.dumps(values | settings))
    return str(target)


SENTENCE = "config_sentence_transformers.json"
# A setting of the second model, and what is said about it: settings of vectors are never taken over in silence.
NOTICED = {
    "prompt": (SENTENCE, {"prompts": {"query": "Q: "}}, 'prompts.query "Q: " (used: "Instruct: '),
    "width": (SENTENCE, {"truncate_dim": 8}, "truncate_dim 8 (used: none)"),
    "side": ("tokenizer_config.json", {"truncation_side": "left"}, 'truncation_side "left" (used: none)'),
    "length": ("sentence_bert_config.json", {"max_seq_length": 99}, "only one of the two models has it"),
    "positions": ("config.json", {"max_position_embeddings": 99}, "max_position_embeddings 99 (used: 4096)"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTICED)
def test_settings_that_differ_are_noticed(tmp_path, three, merged, case):
    file, settings, told = NOTICED[case]
    other = edited(three[2], tmp_path / "other", file, **settings)
    _, out, err = merged([three[2], other], [1, 1])
    line = f"lastword: {other}: {file} differs from the one in {three[2]}, which is used: "
    assert line in err
    assert told in err.partition(line)[2].partition("\n")[0]
    assert (out / file).exists() is (case != "length")
    _, _, err = merged([three[2], other], [1, 1], out="out2", options=["--quiet"])
    assert err == ""


def test_an_unsupported_setting_of_any_model_is_refused(tmp_path, three, merged):
    other = edited(
        three[2], tmp_path / "other", "sentence_bert_config.json", config_args={"rope_theta": 5e6}
    )
    status, out, err = merged([three[2], other], [1, 1])
    assert (status, err.count("\n"), out.exists()) == (2, 1, False)
    assert err.startswith(f"lastword: {other}/sentence_bert_config.json: config_args: ")


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_refused(tmp_path, three, merged, beside):
    other = edited(
        three[2], tmp_path / "other", "adapter_config.json", base_model_name_or_path="own/er"
    )
    if not beside:
        (tmp_path / "other/model.safetensors").unlink()
        (tmp_path / "other/config.json").unlink()
    status, out, err = merged([three[2], other], [1, 1])
    assert (status, err.count("\n"), out.exists()) == (2, 1, False)
    assert err.startswith(f"lastword: {other}/adapter_config.json: ")
    assert "own/er" in err


def test_another_models_tokenizer_is_not_taken_for_the_donors(tmp_path, three, merged):
    other = edited(three[2], tmp_path / "other", "tokenizer.json", normalizer={"type": "Lowercase"})
    assert merged([three[2], three[0]], [1, 1], tokenizer_source=three[0])[0] == 0
    assert merged([three[2], other], [1, 1], out="out2", tokenizer_source="base")[0] == 0
    status, _, err = merged([three[2], other], [1, 1], out="out3", tokenizer_source=other)
    error = ConfigError(
        "tokenizer_source",
        f"differs from the tokenizer of {three[2]}, which is used: tokenizer.json",
        got=json.dumps(other),
        expected=json.dumps(three[2]),
        remedy="Name the model with that tokenizer as base_model, or leave tokenizer_source out.",
    )
    error.got, error.expected = (
        text if len(text) <= 60 else text[:59] + "…" for text in (error.got, error.expected)
    )
    assert (status, err) == (2, f"lastword: {error}\n")


def test_a_link_out_of_the_model_is_refused_before_anything_is_written(tmp_path, three, merged):
    """The merge's own model card takes the place of the donor's, which is not read."""
    (tmp_path / "secret").write_text("the secret")
    other = Path(shutil.copytree(three[2], tmp_path / "other"))
    (other / "README.md").symlink_to("/dev/zero")
    assert merged([other, three[2]], [1, 1])[0] == 0
    (other / "NOTICE").symlink_to("../secret")
    for models in ([other, three[2]], [three[2], other]):
        status, out, err = merged(models, [1, 1], out="out2")
        if models[0] != other:  # licences of other models are neither copied nor compared
            assert (status, (out / "NOTICE").exists()) == (0, False)
            continue
        assert (status, err.count("\n"), out.exists()) == (2, 1, False)
        assert err.startswith(
            f"lastword: {other}/NOTICE: is stored outside the model's folder; got {tmp_path}/secret"
        )
        assert not list(tmp_path.glob(".out2*"))


def copy_holding(folder: str, target: Path, value: float) -> str:
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    tensors["norm.weight"][3] = value
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return str(target)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["linear", "multislerp"])
def test_weights_that_are_not_finite_are_named(tmp_path, three, merged, value, method):
    bad = copy_holding(three[2], tmp_path / "bad", value)
    status, out, err = merged([three[2], bad], [1, 1], method=method)
    assert status == 2
    where = f"{bad}: tensor norm.weight"
    error = WeightsError(where, "contains NaN or infinity", expected="finite weights")
    assert err == f"lastword: {error}\n"
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def test_weights_that_sum_to_zero(three, merged):
    status, out, err = merged(three[:2], [1, -1])
    assert status == 2
    error = InputError(
        "merge",
        "the weights [1.0, -1.0] sum to 0",
        expected="a sum other than 0",
        remedy="Change the weights, or do not normalise them.",
    )
    assert err == f"lastword: {error}\n"
    assert not out.exists()


def test_directions_that_cancel_name_their_tensor(tmp_path, three, merged):
    tensors = load_file(Path(three[2]) / "model.safetensors")
    models = []
    for i in range(3):
        turned = {name: t.clone() for name, t in tensors.items()}
        turned["norm.weight"] = torch.zeros(32)
        turned["norm.weight"][:2] = torch.tensor([[1.0, 0], [-1.0, 0], [0, 0]][i])
        models.append(str(shutil.copytree(three[2], tmp_path / f"t{i}")))
        save_file(turned, tmp_path / f"t{i}" / "model.safetensors", {"format": "pt"})
    status, _, err = merged(models, [1, 1, 1])
    assert status == 2
    what = "the weighted directions cancel out, so their mean has no direction"
    error = WeightsError("tensor norm.weight", what, remedy="Change the weights.")
    assert err == f"lastword: {error}\n"


def test_threads_and_their_settings_are_given_back(three, merged):
    before = torch.get_num_threads()
    merged(three[:2], [1, 1])
    assert torch.get_num_threads() == before


def test_a_revision_of_a_hub_model(tmp_path, three, monkeypatch):
    asked = []

    def locate(model, *, revision, local_files_only, also):
        assert "README.md" in also
        asked.append((model, revision, local_files_only))
        return ModelFiles(model, Path(three[2]), "c0ffee")

    monkeypatch.setattr("lastword.weights.merging.stored.locate", locate)
    recipe = parse_recipe(recipe_text(["own/er@v2", "own/er"], [1, 1]), "merge.yaml")
    with block_threads() as threads:
        job = Merge(recipe, threads, local_files_only=True)
    assert asked == [("own/er", "v2", True), ("own/er", None, True)]
    card = merge_card(recipe, job.opened, job.specs, "hash")
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["own/er"]
    assert "| own/er@v2 | c0ffee | 1 |" in card
