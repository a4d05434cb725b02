"""From a name to a whole folder: local folders, a hub cache built on disk, and each way that can fail."""

import shutil
from types import SimpleNamespace

import pytest
from helpers.hub_cache import COMMIT, NAME, snapshot_of

huggingface_hub = pytest.importorskip("huggingface_hub")

from huggingface_hub import errors  # noqa: E402

from lastword.errors import WeightsError  # noqa: E402
from lastword.weights import locate  # noqa: E402
from lastword.weights.locate import FETCHED, NEVER_FETCHED  # noqa: E402


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_local_folder(model, kind):
    found = locate(kind(model))
    assert (found.name, found.folder, found.revision) == (str(model), model, None)


def test_local_folder_wins_and_home_is_expanded(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert locate("model").folder.samefile(model)
    monkeypatch.setenv("HOME", str(model.parent))
    assert locate("~/model").folder.samefile(model)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_cached_model_offline(cache, revision):
    found = locate(NAME, cache_dir=cache, local_files_only=True, revision=revision)
    assert (found.name, found.revision) == (NAME, COMMIT)
    assert found.folder.samefile(snapshot_of(cache))


def test_offline_variable_is_honoured(cache, monkeypatch):
    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", no_network)
    assert locate(NAME, cache_dir=cache).revision == COMMIT
    with pytest.raises(WeightsError, match="network use is off"):
        locate("owner/other", cache_dir=cache)


def test_what_the_hub_client_is_asked_for(model, monkeypatch):
    asked = {}

    def snapshot_download(name: str, **arguments: object) -> str:
        asked.update(arguments, name=name)
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    # a folder without a commit
    found = locate(NAME, revision="v2", cache_dir="/c", token="t", also=["README.md"])
    assert found.revision is None
    assert asked == {
        "name": NAME, "revision": "v2", "cache_dir": "/c", "token": "t", "local_files_only": False,
        "allow_patterns": [*FETCHED, "README.md"], "ignore_patterns": list(NEVER_FETCHED),
    }  # fmt: skip


def test_only_needed_files_are_fetched():
    files = [
        "config.json", "tokenizer.json", "model.safetensors", "model-00001-of-00002.safetensors",
        "1_Pooling/config.json", "modules.json", "sentence_bert_config.json",
    ]  # fmt: skip
    others = [
        "pytorch_model.bin", "onnx/model.onnx", "README.md", "vocab.json", "evil.py", "3_Dense/model.safetensors",
        "adapter_model.safetensors", "openvino/model.safetensors", "tokenizer.model",
    ]  # fmt: skip
    chosen = huggingface_hub.utils.filter_repo_objects(
        files + others, allow_patterns=list(FETCHED), ignore_patterns=list(NEVER_FETCHED)
    )
    assert list(chosen) == files


def gone(folder) -> None:
    shutil.rmtree(folder)


BAD_LOCAL = {
    "no-folder": (gone, "no such folder"),
    "a-file": (
        lambda folder: (gone(folder), folder.write_text("")),
        "is a file, expected a folder",
    ),
    "empty": (lambda folder: (gone(folder), folder.mkdir()), "missing config.json, tokenizer.json"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "missing config.json"),
    "no-tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "missing tokenizer.json"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
}


@pytest.mark.parametrize("name", BAD_LOCAL)
def test_wrong_folder(model, name):
    damage, what = BAD_LOCAL[name]
    damage(model)
    with pytest.raises(WeightsError) as error:
        locate(str(model))
    assert str(error.value).startswith(str(model))
    assert what in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b/c",
        "../x",
        "./x",
        "/no/such",
        "a b",
        "a/..b",
        "-x/y",
        "C:\\m",
        "~nosuch/x",
        "~nosuch",
    ],
)
def test_neither_folder_nor_hub_id(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"no such folder|missing config\.json"):
        locate(name)


def broken(name: str):
    def damage(cache) -> None:
        (snapshot_of(cache) / name).resolve().unlink()  # the link stays, as after a cleaned cache

    return damage


def shard_gone(cache) -> None:
    (snapshot_of(cache) / "model-00002-of-00002.safetensors").unlink()


BAD_CACHE = {
    "nothing": (
        lambda cache: shutil.rmtree(snapshot_of(cache).parents[1]),
        "not in the local cache",
    ),
    "no-snapshot": (lambda cache: shutil.rmtree(snapshot_of(cache)), "not in the local cache"),
    "half": (shard_gone, "1 of 2 shards missing: model-00002-of-00002.safetensors"),
    "dangling": (broken("model-00001-of-00002.safetensors"), "1 of 2 shards missing: model-00001"),
    "no-config": (broken("config.json"), "missing config.json"),
    "no-tokenizer": (broken("tokenizer.json"), "missing tokenizer.json"),
    "no-index": (broken("model.safetensors.index.json"), "shards without model.safetensors.index"),
}


@pytest.mark.parametrize("name", BAD_CACHE)
def test_incomplete_cache_is_named(cache, name):
    damage, what = BAD_CACHE[name]
    damage(cache)
    with pytest.raises(WeightsError) as error:
        locate(NAME, cache_dir=cache, local_files_only=True)
    assert str(error.value).startswith(NAME)
    assert what in str(error.value)
    assert "Run once with the network" in str(error.value)
    assert "\n" not in str(error.value)


COMPLETE = ["config.json", "tokenizer.json", "model.safetensors"]
REPOSITORIES = {
    "gguf": (
        [*COMPLETE[:2], "m-q4.gguf"],
        "the repository does not have model.safetensors; got m-q4.gguf. Name one that",
    ),
    "pickled": (
        [*COMPLETE[:2], "pytorch_model.bin"],
        "the repository does not have model.safetensors; got pytorch_model.bin. Name one that",
    ),
    "no-tokenizer": (
        [COMPLETE[0], COMPLETE[2], "training.bin"],
        "the repository does not have tokenizer.json. Name one that",
    ),
    "nothing": ([], "does not have config.json, model.safetensors, tokenizer.json. Name one that"),
    "incomplete": (COMPLETE, "missing config.json, tokenizer.json. Run again to complete"),
    "sharded": (
        [*COMPLETE[:2], "model.safetensors.index.json"],
        "missing config.json, tokenizer.json. Run again to complete",
    ),
    "silent": (None, "Run again: the download is incomplete, or the repository does not have it"),
}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_what_a_repository_lacks_is_told_from_a_broken_download(tmp_path, monkeypatch, name):
    held, what = REPOSITORIES[name]

    def list_repo_files(api, name, *, revision):
        assert (api.token, name, revision) == ("t", NAME, "v1")
        if held is None:
            raise OSError("no network")
        return held

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    with pytest.raises(WeightsError) as error:
        locate(NAME, revision="v1", token="t")
    assert str(error.value).startswith(f"{NAME}: ")
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def answered(kind: type[Exception], status: int) -> Exception:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("two\nlines", response=response)


FAILURES = {
    "repository": (answered(errors.RepositoryNotFoundError, 404), "no such repository on the hub"),
    "private": (answered(errors.RepositoryNotFoundError, 401), "needs a token"),
    "revision": (answered(errors.RevisionNotFoundError, 404), "no such revision"),
    "gated": (answered(errors.GatedRepoError, 403), "gated"),
    "forbidden": (answered(errors.HfHubHTTPError, 403), "refused access (403)"),
    "server": (answered(errors.HfHubHTTPError, 503), "answered 503"),
    "network": (errors.LocalEntryNotFoundError("x"), "cannot be reached"),
    "disk": (OSError(28, "No space left on device"), "No space left on device"),
    "silent": (RuntimeError(), "cannot be fetched; RuntimeError"),
    "lines": (RuntimeError("first\nsecond"), "first"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_hub_failures_are_one_line(monkeypatch, name):
    problem, what = FAILURES[name]

    def fail(*args: object, **kwargs: object) -> None:
        raise problem

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(WeightsError) as error:
        locate(NAME, revision="v1")
    assert str(error.value).startswith(f"{NAME}@v1: ")
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_interrupt_is_not_swallowed(monkeypatch):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        locate(NAME)
