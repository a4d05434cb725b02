"""Copies of public objects: by `copy`, and by `pickle`, which opens the model again from its name and settings."""

import copy
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from helpers.messages import refusal
from helpers.small_models import COMMIT, NAME, make_reranker, snapshot_of

import lastword
from lastword import ConfigError, DeviceError, Embedder, InputError, Reranker, WeightsError
from lastword.base.properties import FromInfo
from lastword.bench.checkpoint import make_checkpoint
from lastword.encode_options import EncodeOptions
from lastword.errors import LastwordError, LastwordWarning, MissingPackageError
from lastword.model.postprocess import VectorFormat
from lastword.model_info import ModelInfo
from lastword.report import Report
from lastword.reranker_info import RerankerInfo
from lastword.weights import Checkpoint

TEXTS = ["Bread needs flour, water, salt, yeast and time.", "The ferry leaves at noon."]


def sent(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": sent,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
copied_by = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@pytest.fixture
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu")


# Settings.

CHANGED: dict[str, Any] = {
    "max_length": 9,
    "truncate_dim": 16,
    "prompts": {"query": "Q: ", "other": "O: "},
    "default_prompt_name": "other",
    "max_batch_tokens": 99,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "settings": {**CHANGED, "default_prompt_name": None},
    "bfloat16": {"dtype": "bfloat16", "tune_process": False},
    "int8": {"quantize": "int8", "cuda_graphs": False},
}


def settable(kind: type, info: type) -> set[str]:
    names = set()
    for name in dir(kind):
        value = getattr(kind, name)
        if isinstance(value, FromInfo):
            value = getattr(info, name, None)
        if isinstance(value, property) and value.fset is not None:
            names.add(name)
    return names


def test_every_setting_is_tried() -> None:
    assert settable(Embedder, ModelInfo) == set(CHANGED)
    assert settable(Reranker, RerankerInfo) == set(CHANGED_OF_RERANKER)


@copied_by
@pytest.mark.parametrize("name", OPTIONS)
def test_a_copy_computes_the_same(copied, name: str, tiny_checkpoint: Path) -> None:
    options = {key: value for key, value in OPTIONS[name].items() if value is not None}
    embedder = Embedder(tiny_checkpoint, device="cpu", **options)
    other = copied(embedder)
    assert torch.equal(other.encode_query(TEXTS), embedder.encode_query(TEXTS))
    assert other.info.run_fingerprint() == embedder.info.run_fingerprint()
    for each in ("name", "notices", "device", "dtype", *CHANGED):
        assert getattr(other, each) == getattr(embedder, each), each
    assert other.info.files == embedder.info.files
    for each in ("cuda_graphs", "tune_process"):
        assert getattr(other._opened.how, each) == getattr(embedder._opened.how, each), each


@copied_by
def test_settings_are_copied_as_they_are_now(copied, embedder: Embedder) -> None:
    before = {name: copy.copy(getattr(embedder, name)) for name in CHANGED}
    for name, value in CHANGED.items():
        setattr(embedder, name, value)
    other = copied(embedder)
    assert {name: getattr(other, name) for name in CHANGED} == CHANGED
    for name, value in before.items():
        setattr(other, name, value)
    other.prompts["new"] = "N: "
    assert {name: getattr(embedder, name) for name in CHANGED} == CHANGED, "one has changed both"


@copied_by
def test_what_the_caller_adds(copied, tiny_checkpoint: Path) -> None:
    embedder = Own(tiny_checkpoint, ["a"])
    embedder.itself = embedder
    other = copied(embedder)
    assert type(other) is Own
    assert other.notes == ["a"]
    assert (other.itself is other) == (copied is not copy.copy)
    assert (other.notes is embedder.notes) == (copied is copy.copy)


class Own(Embedder):
    """A class of a user's, with arguments of its own."""

    def __init__(self, folder: Path, notes: list[str]) -> None:
        super().__init__(folder, device="cpu")
        self.notes = notes


def test_a_pickle_is_small_and_hashes_by_what_vectors_depend_on(embedder: Embedder) -> None:
    plain, length = joblib.hash(embedder), len(pickle.dumps(embedder))
    assert length < 2000
    embedder.encode(TEXTS)
    assert joblib.hash(embedder) == plain == joblib.hash(sent(embedder))
    embedder.truncate_dim = 8
    assert joblib.hash(embedder) != plain


# The model that is opened again.


def test_the_built_in_model() -> None:
    embedder = sent(Embedder(device="cpu"))
    assert embedder.name == "built-in"
    assert len(embedder.notices) == 1


def test_a_folder_named_relatively(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tiny_checkpoint.parent)
    embedder = Embedder(tiny_checkpoint.name, device="cpu")
    monkeypatch.chdir(tmp_path)
    other = sent(embedder)
    assert other.name == embedder.name == tiny_checkpoint.name
    assert torch.equal(other.encode(TEXTS), embedder.encode(TEXTS))


def in_hub_cache(tiny_checkpoint: Path, cache: Path) -> Path:
    snapshot = snapshot_of(cache)
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(tiny_checkpoint, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    return snapshot


def test_a_model_of_the_hub_at_its_commit_without_the_token(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = in_hub_cache(tiny_checkpoint, tmp_path / "hub")
    where = {"cache_dir": tmp_path / "hub", "local_files_only": True}
    embedder = Embedder(NAME, device="cpu", token="hf_secret", **where)
    data = pickle.dumps(embedder)
    assert b"hf_secret" not in data
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)  # here `owner/model` is a folder
    other = pickle.loads(data)
    assert (other.name, other.info.files) == (NAME, embedder.info.files)
    assert other.info.files.revision == COMMIT
    os.rename(snapshot, tmp_path / "away")
    monkeypatch.chdir(tmp_path / "owner")
    with pytest.raises(WeightsError) as caught:
        pickle.loads(data)
    assert caught.value.where == f"{NAME}@{COMMIT}", "asks the hub for the commit"


def test_another_model_in_its_place(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    embedder = Embedder(folder, device="cpu")
    data, space = pickle.dumps(embedder), embedder.info.space_fingerprint()
    shutil.rmtree(folder)
    with refusal(WeightsError, where=str(folder)):
        pickle.loads(data)
    make_checkpoint(folder, seed=5, hidden_size=64, num_hidden_layers=2)
    other = Embedder(folder, device="cpu").info.space_fingerprint()
    with refusal(
        WeightsError,
        where=str(folder),
        what="is not the model that the pickled Embedder had opened",
        got=f"fingerprint {other}",
        expected=space,
        remedy="The model's files or lastword have changed since the pickle was made. Open the model again.",
    ):
        pickle.loads(data)


def test_a_checkpoint_that_can_be_imported_is_opened_with_it(tiny_checkpoint: Path) -> None:
    embedder = Embedder(tiny_checkpoint, device="cpu", open_checkpoint=Checkpoint)
    assert torch.equal(sent(embedder).encode(TEXTS), embedder.encode(TEXTS))


CANNOT = {"remedy": "Open the model in the other process instead."}


@pytest.mark.parametrize("adapter", [False, True])
def test_what_cannot_be_sent(adapter: bool, tiny_checkpoint: Path, embedder: Embedder) -> None:
    from lastword.interop.llama_index import LastwordEmbedding

    made = {
        "runner": Embedder(tiny_checkpoint, device="cpu", runner=embedder.loop.runner),
        "open_checkpoint": Embedder(
            tiny_checkpoint, device="cpu", open_checkpoint=lambda *parts: Checkpoint(*parts)
        ),
    }
    got = {"runner": "InProcess", "open_checkpoint": "function"}
    for name, each in made.items():
        with refusal(ConfigError, where=name, got=got[name], **CANNOT):
            pickle.dumps(LastwordEmbedding(each) if adapter else each)
        assert torch.equal(copy.deepcopy(each).encode(TEXTS), each.encode(TEXTS))


# Copies in one process.


def test_copies_share_the_weights(embedder: Embedder) -> None:
    other = copy.deepcopy({"model": embedder})["model"]
    assert other.loop.runner is embedder.loop.runner
    assert other.loop.budget is not embedder.loop.budget


@pytest.mark.timing
def test_workers_end_with_the_last_copy(tiny_checkpoint: Path) -> None:
    first = Embedder(tiny_checkpoint, device="cpu,cpu")
    second, third = copy.copy(first), copy.deepcopy(first)
    expected = first.encode(TEXTS)
    first.close()
    first.close()
    assert torch.equal(second.encode(TEXTS), expected)
    second.close()
    assert torch.equal(third.encode(TEXTS), expected)
    third.close()
    with refusal(DeviceError, where="device cpu", what="closed"):
        third.encode(TEXTS)


# Rerankers.

PAIRS = [("bread", each) for each in TEXTS]
CHANGED_OF_RERANKER: dict[str, Any] = {
    "max_length": 200,
    "prompts": {"web": "Find", "other": "Find another"},
    "default_prompt_name": "other",
    "max_batch_tokens": 99,
    "instruction": "Find the recipe",
    "activation_fn": torch.tanh,
}


@pytest.fixture(scope="module")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker(tmp_path_factory.mktemp("copies") / "reranker")


@copied_by
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str)
def test_a_copy_of_a_reranker_scores_the_same(copied, options, reranker_folder: Path) -> None:
    reranker = Reranker(reranker_folder, device="cpu", **options)
    other = copied(reranker)
    assert type(other) is Reranker
    assert torch.equal(other.predict(PAIRS), reranker.predict(PAIRS))
    assert (other.name, repr(other)) == (reranker.name, repr(reranker))
    assert other.info.run_fingerprint() == reranker.info.run_fingerprint()
    assert other.activation_fn is reranker.activation_fn is torch.sigmoid


@copied_by
def test_settings_of_a_reranker_are_copied(copied, reranker_folder: Path) -> None:
    reranker = Reranker(reranker_folder, device="cpu")
    before = {name: copy.copy(getattr(reranker, name)) for name in CHANGED_OF_RERANKER}
    for name, value in CHANGED_OF_RERANKER.items():
        setattr(reranker, name, value)
    other = copied(reranker)
    assert {name: getattr(other, name) for name in CHANGED_OF_RERANKER} == CHANGED_OF_RERANKER
    assert torch.equal(other.predict(PAIRS), reranker.predict(PAIRS))
    for name, value in before.items():
        setattr(other, name, value)
    found = {name: getattr(reranker, name) for name in CHANGED_OF_RERANKER}
    assert found == CHANGED_OF_RERANKER, "one has changed both"
    assert not torch.equal(other.predict(PAIRS), reranker.predict(PAIRS))


class OwnReranker(Reranker):
    """A class of a user's, with arguments of its own."""

    def __init__(self, folder: Path, notes: list[str]) -> None:
        super().__init__(folder, device="cpu")
        self.notes = notes


@copied_by
def test_a_users_own_class_of_reranker(copied, reranker_folder: Path) -> None:
    reranker = OwnReranker(reranker_folder, ["a"])
    other = copied(reranker)
    assert (type(other), other.notes) == (OwnReranker, ["a"])
    assert torch.equal(other.predict(PAIRS), reranker.predict(PAIRS))


def test_what_of_a_reranker_cannot_be_sent(reranker_folder: Path) -> None:
    from lastword.interop.llama_index import LastwordRerank

    reranker = Reranker(reranker_folder, device="cpu", activation_fn=lambda scores: scores)
    with refusal(ConfigError, where="activation_fn", got="function", **CANNOT):
        pickle.dumps(reranker)
    assert torch.equal(copy.deepcopy(reranker).predict(PAIRS), reranker.predict(PAIRS))
    with refusal(ConfigError, where="activation_fn", **CANNOT):
        pickle.dumps(LastwordRerank(reranker))
    other = Reranker(reranker_folder, device="cpu", runner=reranker.loop.runner)
    what = "a Reranker made with it cannot be sent to another process"
    with refusal(ConfigError, where="runner", what=what, got="InProcess", **CANNOT):
        pickle.dumps(other)


def test_another_reranker_in_its_place(reranker_folder: Path, tmp_path: Path) -> None:
    """Even if only the head or the template differs, which no hidden state shows."""
    folder = tmp_path / "model"
    shutil.copytree(reranker_folder, folder)
    reranker = Reranker(folder, device="cpu")
    data = pickle.dumps(reranker)
    assert len(data) < 2000
    assert torch.equal(pickle.loads(data).predict(PAIRS), reranker.predict(PAIRS))
    shutil.rmtree(folder)
    make_reranker(folder, "untied")
    what = "is not the model that the pickled Reranker had opened"
    with refusal(WeightsError, where=str(folder), what=what, expected=reranker.info.identity()):
        pickle.loads(data)


def test_fingerprints_of_rerankers(reranker_folder: Path, tmp_path: Path) -> None:
    info = RerankerInfo(reranker_folder, device="cpu")
    other = RerankerInfo(make_reranker(tmp_path / "other", "untied"), device="cpu")
    assert other.checkpoint.fingerprint == info.checkpoint.fingerprint, "only the head differs"
    assert other.identity() != info.identity()
    run = info.run_fingerprint()
    assert info.run_fingerprint(info.template.instruction) == run
    assert info.run_fingerprint("Find") != run
    info.instruction = "Find"
    assert info.run_fingerprint() == info.run_fingerprint("Find") != run
    info.instruction, info.max_length = None, 200
    assert info.run_fingerprint() != run
    assert RerankerInfo(reranker_folder, device="cpu").run_fingerprint() == run
    changed = RerankerInfo(reranker_folder, device="cpu", dtype="bfloat16")
    assert changed.run_fingerprint() != run
    assert changed.identity() == info.identity()


@pytest.mark.timing
def test_workers_of_a_reranker_end_with_the_last_copy(reranker_folder: Path) -> None:
    first = Reranker(reranker_folder, device="cpu,cpu")
    second = copy.deepcopy(first)
    expected = first.predict(PAIRS)
    first.close()
    assert torch.equal(second.predict(PAIRS), expected)
    second.close()
    with refusal(DeviceError, what="closed"):
        second.predict(PAIRS)


@copied_by
@pytest.mark.parametrize("name", ["langchain", "llama_index"])
def test_adapters_of_rerankers(copied, name: str, reranker_folder: Path) -> None:
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from lastword.interop.langchain import LastwordReranker
    from lastword.interop.llama_index import LastwordRerank

    reranker = Reranker(reranker_folder, device="cpu", instruction="Find the recipe")
    one: Any

    def found(adapter: Any) -> list[float]:
        if name == "langchain":
            documents = adapter.compress_documents([Document(each) for each in TEXTS], "bread")
            return [each.metadata["relevance_score"] for each in documents]
        nodes = [NodeWithScore(node=TextNode(text=each)) for each in TEXTS]
        return [each.score for each in adapter.postprocess_nodes(nodes, query_str="bread")]

    kind = LastwordReranker if name == "langchain" else LastwordRerank
    one = kind(reranker, top_n=1)
    two = copied(one)
    assert two.top_n == 1
    assert found(two) == found(one)
    assert len(found(two)) == 1


# Adapters.


@copied_by
@pytest.mark.parametrize("name", ["langchain", "llama_index", "mteb"])
def test_adapters(copied, name: str, embedder: Embedder) -> None:
    from lastword.evaluate.encoder import LastwordEncoder
    from lastword.interop.langchain import LastwordEmbeddings
    from lastword.interop.llama_index import LastwordEmbedding

    make = {
        "langchain": LastwordEmbeddings,
        "llama_index": LastwordEmbedding,
        "mteb": lambda embedder: LastwordEncoder(embedder, "a/b"),
    }[name]

    def inside(adapter: Any) -> Embedder:
        return adapter.model if name == "mteb" else adapter.embedder

    def identity(adapter: Any) -> str:
        return adapter.mteb_model_meta.experiment_name if name == "mteb" else adapter.fingerprint

    embedder.truncate_dim = 16
    one = make(embedder)
    two = copied(one)
    assert identity(two) == identity(one)
    assert torch.equal(inside(two).encode(TEXTS), embedder.encode(TEXTS))
    assert (inside(two) is embedder) == (copied is copy.copy)


@copied_by
def test_a_llama_index_adapter_keeps_its_fields(copied, embedder: Embedder) -> None:
    from llama_index.core.storage.kvstore import SimpleKVStore

    from lastword.interop.llama_index import LastwordEmbedding

    one = LastwordEmbedding(
        embedder, embed_batch_size=7, num_workers=3, embeddings_cache=SimpleKVStore()
    )
    vector = one.get_text_embedding(TEXTS[0])
    two = copied(one)
    assert (two.embed_batch_size, two.num_workers) == (7, 3)
    assert two.embeddings_cache.embedder is two.embedder
    assert len(two.embeddings_cache.get_all("embeddings")) == 1
    assert two.get_text_embedding(TEXTS[0]) == vector


def test_a_llama_index_adapter_from_its_dictionary(tiny_checkpoint: Path) -> None:
    from lastword.interop.llama_index import LastwordEmbedding

    plain = LastwordEmbedding(tiny_checkpoint, device="cpu", embed_batch_size=7)
    made = LastwordEmbedding.from_dict(plain.to_dict(), device="cpu")
    assert made.to_dict() == plain.to_dict()
    assert LastwordEmbedding.from_dict(LastwordEmbedding().to_dict()).model_name == "built-in"
    narrow = LastwordEmbedding(tiny_checkpoint, device="cpu", truncate_dim=8)
    with refusal(ConfigError, where="from_dict", expected=narrow.to_dict()["fingerprint"]):
        LastwordEmbedding.from_dict(narrow.to_dict(), device="cpu")


# Errors and small objects.

PARTS = {"got": "this", "expected": "that", "remedy": "Do it."}
ERRORS = [
    *(kind("here", "wrong", **PARTS) for kind in (ConfigError, WeightsError, DeviceError)),
    *(kind("here", "wrong", **PARTS) for kind in (LastwordError, LastwordWarning)),
    InputError("text 3", "wrong", **PARTS, index=3),
    MissingPackageError("here", "needs a package", **PARTS),
    ConfigError("here", "wrong"),
]


@copied_by
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors(copied, error: Exception) -> None:
    error.add_note("a note")
    other = copied(error)
    assert type(other) is type(error)
    assert (str(other), vars(other), other.args) == (str(error), vars(error), error.args)
    assert other is not error


@copied_by
def test_small_objects(copied) -> None:
    wanted = EncodeOptions("Q: ", 9, VectorFormat(8, normalize=True, precision="float32"))
    for each in (Report(texts=3, cut=1), wanted):
        assert copied(each) == each


def test_every_public_name_is_tested() -> None:
    tested = {type(error).__name__ for error in ERRORS} | {"Embedder", "Reranker"}
    assert set(lastword.__all__) <= tested


@copied_by
def test_a_models_description(copied, embedder: Embedder) -> None:
    info = copied(embedder.info)
    assert info.run_fingerprint() == embedder.info.run_fingerprint()
