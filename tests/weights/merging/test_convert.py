"""Converted models: rounded once, readable by every library, and unchanged if the dtype stays the same."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers.transformers_reference import (
    TOLERANCE,
    difference,
    load_ours,
    load_theirs,
    our_states,
    their_states,
)
from safetensors.torch import load_file, save_file

from lastword.bench.checkpoint import make_checkpoint
from lastword.cli.main import main
from lastword.errors import WeightsError
from lastword.weights import Checkpoint, locate, read_config, read_embedding_spec
from lastword.weights.files.shards import read_tensors

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


@pytest.fixture
def converted(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def run(source, *options, out="out"):
        status = main(["convert", str(source), out, *options])
        return status, tmp_path / out, capfd.readouterr().err

    return run


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every tensor's bytes."""
    found = {}
    for name, info in read_tensors(folder).items():
        with info.file.open("rb") as file:
            file.seek(info.start)
            found[name] = hashlib.sha256(file.read(info.num_bytes)).hexdigest()
    return found


def fingerprint(folder: Path) -> str:
    return Checkpoint(folder, read_config(folder)).fingerprint


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_every_value_is_rounded_once(tmp_path, converted, source, target):
    folder = make_checkpoint(tmp_path / "m", dtype=DTYPES[source], prefix="model.")
    status, out, err = converted(folder, "--dtype", target)
    assert (status, err.count("\n")) == (0, 1), err
    before, after = weights_of(folder), weights_of(out)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name].to(DTYPES[target]))
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == target
    if source == target:
        assert hashes(out) == hashes(folder)
        assert fingerprint(out) == fingerprint(folder)


def test_there_and_back_is_the_same_model(tmp_path, converted):
    folder = make_checkpoint(tmp_path / "m", dtype=torch.bfloat16, shards=2)
    converted(folder, "--dtype", "float32", out="wide")
    _, out, _ = converted(tmp_path / "wide", "--dtype", "bfloat16", out="back")
    assert hashes(out) == hashes(folder)
    assert fingerprint(out) == fingerprint(folder)


def test_only_other_files(tmp_path, converted):
    folder = make_checkpoint(tmp_path / "m", tied=False, prefix="model.")
    (folder / "README.md").write_text("about")
    (folder / "code.py").write_text("raise SystemExit")
    status, out, _ = converted(folder, "--shard-size", "60KB")
    assert status == 0
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert hashes(out) == hashes(folder)
    assert "lm_head.weight" in hashes(out)
    assert (out / "README.md").read_text() == "about"
    assert not (out / "code.py").exists()
    names = {path.relative_to(folder) for path in folder.rglob("*.json")}
    assert names == {path.relative_to(out) for path in out.rglob("*.json")} - {
        Path("model.safetensors.index.json")
    }


def test_a_hub_model_comes_with_all_its_files(tmp_path, converted, monkeypatch):
    """The fake client copies only the files that match its patterns."""
    folder = make_checkpoint(tmp_path / "made")
    taken = ["LICENSE", "README.md", "chat_template.jinja", "generation_config.json", "vocab.json"]
    for name in (*taken, "code.py"):
        (folder / name).write_text(name)

    def snapshot_download(name, *, allow_patterns, ignore_patterns, **_):
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        for file in huggingface_hub.utils.filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, tmp_path / "cache" / file)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    locate("owner/model")
    assert not (tmp_path / "cache/README.md").exists()  # not needed to embed
    assert converted("owner/model")[0] == 0
    assert [name for name in taken if not (tmp_path / "out" / name).is_file()] == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in folder.iterdir()
    } - {"code.py", "2_Normalize"}


@pytest.mark.parametrize("config_format", ["v4", "v5"])
def test_loads_everywhere(tmp_path, converted, config_format):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    from lastword import Embedder

    folder = make_checkpoint(tmp_path / "m", config_format=config_format)
    _, out, _ = converted(folder, "--dtype", "bfloat16", "--shard-size", "100KB")
    assert AutoModel.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    tokens = [[5, 6, 7], [9] * 40]
    theirs, _ = their_states(load_theirs(out), tokens)
    ours, _ = our_states(load_ours(out), tokens)
    assert difference(ours, theirs) <= TOLERANCE
    library = SentenceTransformer(str(out), device="cpu", model_kwargs={"dtype": torch.float32})
    texts = ["plants make sugar from light", "gravity"]
    expected = library.encode(texts, prompt_name="query", convert_to_tensor=True)
    assert difference(Embedder(str(out)).encode(texts, prompt_name="query"), expected) <= TOLERANCE


def copy_damaged(folder: Path, target: Path, value: float) -> Path:
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    tensors["norm.weight"][3] = value
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


NOT_FINITE = {"what": "contains NaN or infinity", "expected": "finite weights"}
TOO_LARGE = {
    "what": "a value of size 70000 is too large for the dtype",
    "got": "float16",
    "expected": "a dtype with values above 65504",
    "remedy": "Choose bf16 or f32.",
}


@pytest.mark.parametrize(
    ("value", "parts"),
    [(70000.0, TOO_LARGE), (float("nan"), NOT_FINITE), (float("-inf"), NOT_FINITE)],
    ids=["large", "nan", "infinity"],
)
def test_what_does_not_fit_is_an_error(tmp_path, tiny_checkpoint, converted, value, parts):
    folder = copy_damaged(tiny_checkpoint, tmp_path / "m", value)
    status, out, err = converted(folder, "--dtype", "float16")
    assert status == 2
    assert err == f"lastword: {WeightsError(f'{folder}: tensor norm.weight', **parts)}\n"
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))
    if math.isfinite(value):
        assert converted(folder, "--dtype", "bfloat16")[0] == 0


def test_large_finite_values_are_no_error(tmp_path, tiny_checkpoint, converted):
    """Values whose sum overflows in half precision, but which do not overflow themselves."""
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "m"))
    tensors["embed_tokens.weight"][:] = 60000.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert converted(folder, "--dtype", "float16")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "int8"], "--dtype: unknown; got 'int8'"),
        (["--shard-size", "0"], "--shard-size: not a size such as 500MB or 5GB; got '0'."),
        (["--shard-size", "5 GiB"], "--shard-size: not a size such as 500MB or 5GB; got '5 GiB'."),
        (["--shard-size", "-1KB"], "shard-size"),
        (["--shard-size", "9" * 400], "--shard-size: not a size such as 500MB or 5GB; got '999"),
        (["--shard-size", "٣GB"], "--shard-size: not a size such as 500MB or 5GB; got '٣GB'."),
        (["--shard-size", ""], "--shard-size: not a size such as 500MB or 5GB; got ''."),
    ],
)
def test_bad_options(tiny_checkpoint, converted, arguments, message):
    status, out, err = converted(tiny_checkpoint, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_refused(tmp_path, tiny_checkpoint, converted, beside):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "m"))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "own/er"}')
    if not beside:
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
    status, out, err = converted(folder)
    assert (status, err.count("\n"), out.exists()) == (2, 1, False)
    assert err.startswith(f"lastword: {folder}/adapter_config.json: ")
    assert "own/er" in err


def test_a_module_whose_weights_would_be_lost_is_refused(tmp_path, tiny_checkpoint, converted):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "m"))
    modules = json.loads((folder / "modules.json").read_text())
    modules.append(
        {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    )
    (folder / "modules.json").write_text(json.dumps(modules))
    status, out, err = converted(folder)
    assert (status, err.count("\n"), out.exists()) == (2, 1, False)
    assert err.startswith(f"lastword: {folder}/modules.json: modules: not supported; got ")


@pytest.mark.parametrize(
    "file", ["LICENSE", "README.md", "tokenizer_config.json", "1_Pooling/config.json"]
)
def test_a_link_out_of_the_model_is_refused_before_anything_is_written(
    tmp_path, tiny_checkpoint, converted, file
):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "m"))
    secret = tmp_path / "secret"
    secret.write_text((folder / file).read_text() if (folder / file).exists() else "the secret")
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to(secret)
    status, out, err = converted(folder)
    assert (status, err.count("\n"), out.exists()) == (2, 1, False)
    assert err.startswith(
        f"lastword: {folder / file}: is stored outside the model's folder; got {secret}, expected "
    )
    assert not list(tmp_path.glob(".out*"))


def test_every_name_of_the_transformers_settings_is_copied(tmp_path, tiny_checkpoint, converted):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "m"))
    (folder / "sentence_xlnet_config.json").write_text('{"max_seq_length": 7}')
    _, out, _ = converted(folder)
    limits = {read_embedding_spec(each, read_config(each)).max_length for each in (folder, out)}
    assert limits == {7}


@pytest.mark.parametrize("name", ["@", "m@", "@x", "./m@"])
def test_half_a_revision(tmp_path, tiny_checkpoint, converted, name):
    shutil.copytree(tiny_checkpoint, tmp_path / "m")
    error = WeightsError(name, "no such folder, and not a valid hub id (owner/name@revision)")
    assert converted(name)[::2] == (2, f"lastword: {error}\n")


def test_a_folder_has_no_revision(tmp_path, tiny_checkpoint, converted):
    shutil.copytree(tiny_checkpoint, tmp_path / "m")
    status, out, err = converted("m@v2")
    assert (status, err.count("\n"), out.exists()) == (2, 1, False)
    assert err.startswith("lastword: m@v2: cannot be chosen for the folder m; got ")
    shutil.copytree(tiny_checkpoint, tmp_path / "m@v2")
    assert converted("m@v2")[0] == 0


def test_models_that_are_not_there(tmp_path, converted):
    status, _, err = converted(tmp_path / "gone")
    assert status == 2
    assert f"{tmp_path / 'gone'}: no such folder" in err


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("1KB", 1000), ("1.5mb", 1_500_000), ("5 GB", 5 * 10**9), ("2T", 2 * 10**12)]
)  # fmt: skip
def test_sizes(text, size):
    from lastword.cli.model_folder import byte_size

    assert byte_size(text) == size
