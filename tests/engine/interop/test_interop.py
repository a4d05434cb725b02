"""The adapters in the real libraries: each with an in-memory store of its library, sync and async."""

import asyncio
import importlib
import sys
from pathlib import Path

import pytest
import torch

from lastword import ConfigError, Embedder
from lastword.weights import BUILTIN

TEXTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other.",
    "Bread needs flour, water, salt, yeast and time.",
    "The ferry leaves at noon.",
]
QUERY = "what is the capital of China?"


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def ranking(embedder: Embedder) -> list[str]:
    """The texts, the nearest to the query first."""
    scores = embedder.similarity(embedder.encode_query([QUERY]), embedder.encode_document(TEXTS))
    return [TEXTS[i] for i in scores[0].argsort(descending=True).tolist()]


def close(a, b) -> bool:
    return bool((torch.as_tensor(a) - torch.as_tensor(b)).abs().max() <= 1e-6)


def test_langchain_store(embedder: Embedder, ranking: list[str]) -> None:
    from langchain_core.vectorstores import InMemoryVectorStore

    from lastword.interop.langchain import LastwordEmbeddings

    embeddings = LastwordEmbeddings(embedder)
    store = InMemoryVectorStore(embeddings)
    store.add_texts(TEXTS)
    assert [found.page_content for found in store.similarity_search(QUERY, k=4)] == ranking
    assert close(embeddings.embed_query(QUERY), embedder.encode_query(QUERY))
    assert embeddings.embed_documents([]) == []

    async def search() -> list[str]:
        store = InMemoryVectorStore(embeddings)
        await asyncio.gather(*(store.aadd_texts([text]) for text in TEXTS))
        return [found.page_content for found in await store.asimilarity_search(QUERY, k=4)]

    assert asyncio.run(search()) == ranking


def test_llama_index_store(embedder: Embedder, ranking: list[str]) -> None:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from lastword.interop.llama_index import LastwordEmbedding

    model = LastwordEmbedding(embedder)
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=model)
    retriever = index.as_retriever(similarity_top_k=4)
    assert [found.node.text for found in retriever.retrieve(QUERY)] == ranking
    assert [found.node.text for found in asyncio.run(retriever.aretrieve(QUERY))] == ranking
    assert close(model.get_query_embedding(QUERY), embedder.encode_query(QUERY))
    assert close(model.get_text_embedding(TEXTS[0]), embedder.encode_document(TEXTS[0]))
    many = asyncio.run(model.aget_text_embedding_batch(TEXTS))
    assert close(many, embedder.encode_document(TEXTS))
    assert close(asyncio.run(model.aget_text_embedding(TEXTS[1])), many[1])
    assert (model.model_name, model.class_name()) == (embedder.name, "LastwordEmbedding")


ADAPTERS = [
    ("lastword.interop.langchain", "LastwordEmbeddings", "langchain_core"),
    ("lastword.interop.llama_index", "LastwordEmbedding", "llama_index"),
]


@pytest.mark.parametrize(("module", "name", "library"), ADAPTERS)
def test_options_open_a_model(module: str, name: str, library: str, tiny_checkpoint: Path) -> None:
    adapter = getattr(importlib.import_module(module), name)
    one = adapter(tiny_checkpoint, device="cpu", truncate_dim=16)
    vector = one.embed_query("x") if library == "langchain_core" else one.get_query_embedding("x")
    assert len(vector) == 16
    with pytest.raises(ConfigError) as caught:
        adapter(Embedder(tiny_checkpoint, device="cpu"), dtype="float32")
    assert caught.value.where == "model"
    assert caught.value.got == "an Embedder and options (dtype)"
    assert caught.value.expected == "options only with a name or folder"


def test_no_model_named_is_the_built_in_one() -> None:
    from lastword.interop.langchain import LastwordEmbeddings
    from lastword.interop.llama_index import LastwordEmbedding

    assert LastwordEmbeddings(device="cpu").embedder.name == BUILTIN
    assert LastwordEmbedding(device="cpu").model_name == BUILTIN


@pytest.mark.parametrize(("module", "name", "library"), ADAPTERS)
def test_without_its_library(module: str, name: str, library: str, monkeypatch) -> None:
    for loaded in [*sys.modules]:
        if loaded.split(".")[0] == library or loaded == module:
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError) as caught:
        importlib.import_module(module)
    assert isinstance(caught.value, ConfigError)
    extra = library.removesuffix("_core").replace("_", "-")
    assert caught.value.where == module
    assert caught.value.what.startswith(f"needs {extra}")
    assert caught.value.remedy == f"Install it with: pip install 'lastword[{extra}]'."
