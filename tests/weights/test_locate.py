"""Find a model's folder by name: local folders, a hub cache built on disk, and every kind of failure."""

import os
import shutil
from types import SimpleNamespace

import pytest
from helpers.messages import refusal
from helpers.small_models import COMMIT, NAME, snapshot_of

huggingface_hub = pytest.importorskip("huggingface_hub")

from huggingface_hub import errors  # noqa: E402

from lastword.errors import ConfigError, WeightsError  # noqa: E402
from lastword.weights import locate, read_config, read_embedding_spec  # noqa: E402
from lastword.weights.locate import FETCHED, NEVER_FETCHED  # noqa: E402


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_local_folder(model, kind):
    found = locate(kind(model))
    assert (found.name, found.folder, found.revision) == (str(model), model, None)


def test_the_builtin_models_own_folder_is_the_builtin_model(tmp_path):
    builtin = locate(None)
    assert locate(builtin.folder) == locate(str(builtin.folder)) == builtin
    link = tmp_path / "link"
    link.symlink_to(builtin.folder)
    assert locate(link) == builtin
    copy = tmp_path / "copy"
    shutil.copytree(builtin.folder, copy)
    assert locate(copy).name == str(copy)


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
    with pytest.raises(WeightsError) as caught:
        locate("owner/other", cache_dir=cache)
    assert caught.value.where == "owner/other"
    assert "network use is off" in caught.value.what
    assert caught.value.remedy == "Run once with network access."


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
        "1_Pooling/config.json", "modules.json", "sentence_bert_config.json", "sentence_roberta_config.json",
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "adapter_config.json",
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


FOLDER = "Name a folder that holds the whole model."
BAD_LOCAL = {
    "no-folder": (gone, "no such folder, and not a valid hub id (owner/name)", None, None),
    "a-file": (
        lambda folder: (gone(folder), folder.write_text("")),
        "is a file",
        "a folder",
        "Name the folder that contains it.",
    ),
    "empty": (
        lambda folder: (gone(folder), folder.mkdir()),
        "missing config.json, tokenizer.json",
        None,
        FOLDER,
    ),
    "no-config": (
        lambda folder: (folder / "config.json").unlink(),
        "missing config.json",
        None,
        FOLDER,
    ),
    "no-tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "missing tokenizer.json",
        None,
        FOLDER,
    ),
    "no-weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "no weights",
        "model.safetensors or model.safetensors.index.json",
        None,
    ),
}


@pytest.mark.parametrize("name", BAD_LOCAL)
def test_wrong_folder(model, name):
    damage, what, expected, remedy = BAD_LOCAL[name]
    damage(model)
    with pytest.raises(WeightsError) as caught:
        locate(str(model))
    wanted = WeightsError(str(model), what, expected=expected, remedy=remedy)
    assert vars(caught.value) == vars(wanted)
    assert "\n" not in str(caught.value)


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
        "a/b\0c",
        "~\0/x",
        "\ud800",
        "a\nb",
        "x" * 97,
        "o/" + "x" * 5000,
        "/".join(["x"] * 3000),
        "é/é",
    ],
    ids=lambda name: ascii(name)[:30],
)
def test_neither_folder_nor_hub_id(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as caught:
        locate(name)
    assert caught.value.where == (name or ".")
    if name:
        assert caught.value.what == "no such folder, and not a valid hub id (owner/name)"
    else:  # the current folder, which is empty
        assert caught.value.what == "missing config.json, tokenizer.json"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text("")])
def test_what_is_no_folder(tmp_path, make):
    make(tmp_path / "model")
    with refusal(WeightsError, what="is a file", expected="a folder"):
        locate(tmp_path / "model")


def test_a_link_to_no_folder(tmp_path):
    (tmp_path / "model").symlink_to("gone")
    with refusal(WeightsError, where=str(tmp_path / "model"), what="a link that leads nowhere"):
        locate(tmp_path / "model")


def test_a_folder_that_may_not_be_read(model, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    with refusal(
        WeightsError, where=str(model), what="cannot be read (Permission denied)", remedy=None
    ):
        locate(model)


@pytest.mark.parametrize("revision", ["main", "", "v1"])
@pytest.mark.parametrize("builtin", [False, True])
def test_a_revision_is_for_the_hub(model, revision, builtin):
    kind = "the built-in model" if builtin else f"the folder {model}"
    with refusal(
        ConfigError,
        where="revision",
        what=f"cannot be chosen for {kind}",
        got=f'"{revision}"',
        expected="none",
        remedy="Leave it out, or name a model on the hub.",
    ):
        locate(None if builtin else model, revision=revision)


def test_an_empty_revision_is_not_the_main_branch():
    with refusal(ConfigError, where="revision", what="the name is empty", got="''"):
        locate(NAME, revision="")


def test_what_cannot_change_a_folder_s_weights_is_allowed(model):
    found = locate(model, cache_dir="/nowhere", token="t", local_files_only=True)
    assert found.folder == model


def broken(name: str):
    def damage(cache) -> None:
        (snapshot_of(cache) / name).resolve().unlink()  # the link stays, as after a cleaned cache

    return damage


def refuse_link(name: str):
    return lambda cache: (snapshot_of(cache) / name).unlink()


ABSENT = "no such folder here, and not in the local cache, and network use is off"
ONCE = "Run once with network access"
MAYBE = "the download is incomplete, or the repository does not have it."
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
FETCH = "The download is incomplete: fetch the model again. "
LINK, INDEX = "a link that leads nowhere", "model.safetensors.index.json"
DAMAGED = "The folder, or the hub's cache, is damaged: fetch the model again. "
BAD_CACHE = {
    "nothing": (lambda cache: shutil.rmtree(snapshot_of(cache).parents[1]), ABSENT, f"{ONCE}."),
    "no-snapshot": (lambda cache: shutil.rmtree(snapshot_of(cache)), ABSENT, f"{ONCE}."),
    "half": (
        refuse_link(SHARDS[1]),
        f"1 of 2 shards missing: {SHARDS[1]}",
        f"{FETCH}{ONCE}: {MAYBE}",
    ),
    "dangling": (broken(SHARDS[0]), LINK, f"{DAMAGED}{ONCE}: {MAYBE}", SHARDS[0]),
    "no-config": (broken("config.json"), LINK, f"{DAMAGED}{ONCE}: {MAYBE}", "config.json"),
    "no-tokenizer": (broken("tokenizer.json"), LINK, f"{DAMAGED}{ONCE}: {MAYBE}", "tokenizer.json"),
    "no-index": (broken(INDEX), LINK, f"{DAMAGED}{ONCE}: {MAYBE}", INDEX),
    "index-gone": (
        refuse_link(INDEX),
        f"shards without {INDEX}: {SHARDS[0]}, {SHARDS[1]}",
        f"Fetch the model again. {ONCE}: {MAYBE}",
    ),
}


@pytest.mark.parametrize("name", BAD_CACHE)
def test_incomplete_cache_is_named(cache, name):
    damage, what, remedy, *link = BAD_CACHE[name]
    damage(cache)
    with pytest.raises(WeightsError) as caught:
        locate(NAME, cache_dir=cache, local_files_only=True)
    error = caught.value
    place = snapshot_of(cache).joinpath(*link)
    assert error.where == (NAME if what == ABSENT else f"{NAME}: {place}")
    assert (error.what, error.remedy) == (what, remedy)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "name",
    [
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "adapter_config.json",
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "2_Normalize",
    ],
)
def test_no_setting_vanishes_with_a_damaged_cache(cache, name):
    """A file that need not be there must be readable if its name is: else prompts and limits change unnoticed."""
    link = snapshot_of(cache) / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to("../../blobs/gone")
    with pytest.raises(WeightsError) as caught:
        folder = locate(NAME, cache_dir=cache, local_files_only=True).folder
        read_embedding_spec(folder, read_config(folder))
    assert caught.value.where.endswith(str(link))
    assert caught.value.what == LINK


COMPLETE = ["config.json", "tokenizer.json", "model.safetensors"]
LACKS, OTHER = (
    "the repository does not have",
    "Name a repository that has the model as safetensors.",
)
MISSING, COMPLETED = "missing config.json, tokenizer.json", "Run again to complete the download."
REPOSITORIES = {
    "gguf": ([*COMPLETE[:2], "m-q4.gguf"], f"{LACKS} model.safetensors", "m-q4.gguf", OTHER),
    "pickled": (
        [*COMPLETE[:2], "pytorch_model.bin"],
        f"{LACKS} model.safetensors",
        "pytorch_model.bin",
        OTHER,
    ),
    "no-tokenizer": (
        [COMPLETE[0], COMPLETE[2], "training.bin"],
        f"{LACKS} tokenizer.json",
        None,
        OTHER,
    ),
    "nothing": ([], f"{LACKS} config.json, model.safetensors, tokenizer.json", None, OTHER),
    "incomplete": (COMPLETE, MISSING, None, COMPLETED),
    "sharded": ([*COMPLETE[:2], "model.safetensors.index.json"], MISSING, None, COMPLETED),
    "silent": (None, MISSING, None, f"Run again: {MAYBE}"),
}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_what_a_repository_lacks_is_told_from_a_broken_download(tmp_path, monkeypatch, name):
    held, what, got, remedy = REPOSITORIES[name]

    def list_repo_files(api, name, *, revision):
        assert (api.token, name, revision) == ("t", NAME, "v1")
        if held is None:
            raise OSError("no network")
        return held

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    with pytest.raises(WeightsError) as caught:
        locate(NAME, revision="v1", token="t")
    where = NAME if what.startswith(LACKS) else f"{NAME}: {tmp_path}"
    assert vars(caught.value) == vars(WeightsError(where, what, got=got, remedy=remedy))
    assert "\n" not in str(caught.value)


def http_error(kind: type[Exception], status: int) -> Exception:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("two\nlines", response=response)


NOT_HERE = "no such folder here, and"
PRIVATE = "Check the name. A private repository needs a token."
FAILURES = {
    "repository": (
        http_error(errors.RepositoryNotFoundError, 404),
        f"{NOT_HERE} no such repository on the hub",
        PRIVATE,
    ),
    "private": (
        http_error(errors.RepositoryNotFoundError, 401),
        f"{NOT_HERE} no such repository on the hub",
        PRIVATE,
    ),
    "revision": (
        http_error(errors.RevisionNotFoundError, 404),
        "the hub has no such revision",
        "Check the revision.",
    ),
    "gated": (
        http_error(errors.GatedRepoError, 403),
        "the repository is gated",
        "Accept its terms on the hub and pass a token.",
    ),
    "forbidden": (
        http_error(errors.HfHubHTTPError, 403),
        "the hub refused access (403)",
        "Check the token.",
    ),
    "server": (
        http_error(errors.HfHubHTTPError, 503),
        "the hub answered 503",
        "Try again later.",
    ),
    "network": (
        errors.LocalEntryNotFoundError("x"),
        f"{NOT_HERE} not in the local cache, and the hub cannot be reached",
        "Check the network.",
    ),
    "disk": (
        OSError(28, "No space left on device"),
        "cannot be fetched (OSError: [Errno 28] No space left on device)",
        None,
    ),
    "silent": (RuntimeError(), "cannot be fetched (RuntimeError)", None),
    "lines": (RuntimeError("first\nsecond"), "cannot be fetched (RuntimeError: first)", None),
}


@pytest.mark.parametrize("name", FAILURES)
def test_hub_failures_are_one_line(monkeypatch, name):
    problem, what, remedy = FAILURES[name]

    def fail(*args: object, **kwargs: object) -> None:
        raise problem

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(WeightsError) as caught:
        locate(NAME, revision="v1")
    assert vars(caught.value) == vars(WeightsError(f"{NAME}@v1", what, remedy=remedy))
    assert "\n" not in str(caught.value)


def test_interrupt_is_not_swallowed(monkeypatch):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        locate(NAME)
