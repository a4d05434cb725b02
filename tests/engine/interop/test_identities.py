"""What the caches of other libraries go by: another setting never gets the vectors of this one, an equal one does."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lastword import Embedder
from lastword.bench.checkpoint import make_checkpoint
from lastword.interop import fingerprint_of

TEXTS = [
    "Bread needs flour, water, salt, yeast and time.",
    "The ferry leaves at noon, and at four.",
]
# Gives (vectors of TEXTS as documents, vectors of TEXTS as queries or None where a cache has none).
Cached = Callable[[Embedder, Any], tuple[Any, Any]]


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("other") / "model", seed=1, hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    )  # fmt: skip


SETTINGS = {
    "width": {"truncate_dim": 16},
    "length": {"max_length": 6},
    "query prompt": {"prompts": {"query": "Q: "}},
    "document prompt": {"prompts": {"document": "D: "}},
    "dtype": {"dtype": "bfloat16"},
    "quantisation": {"quantize": "int8"},
    "weights": {},
}
# Settings of a live object, changed after its vectors were cached.
CHANGES: dict[str, Callable[[Embedder], None]] = {
    "width": lambda embedder: setattr(embedder, "truncate_dim", 16),
    "length": lambda embedder: setattr(embedder, "max_length", 6),
    "query prompt": lambda embedder: embedder.prompts.update(query="Q: "),
    "prompts": lambda embedder: setattr(embedder, "prompts", {"document": "D: "}),
}


def vectors_of(embedder: Embedder) -> tuple[Any, Any]:
    return embedder.encode_document(TEXTS).tolist(), embedder.encode_query(TEXTS).tolist()


def ingestion_cache(embedder: Embedder, store: dict[str, Any]) -> tuple[Any, Any]:
    from llama_index.core.ingestion import IngestionCache, IngestionPipeline
    from llama_index.core.schema import TextNode

    from lastword.interop.llama_index import LastwordEmbedding

    cache = store.setdefault("cache", IngestionCache())
    pipeline = IngestionPipeline(transformations=[LastwordEmbedding(embedder)], cache=cache)
    nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(TEXTS)]
    return [node.embedding for node in pipeline.run(nodes=nodes)], None


def embeddings_cache(embedder: Embedder, store: dict[str, Any]) -> tuple[Any, Any]:
    from llama_index.core.storage.kvstore import SimpleKVStore

    from lastword.interop.llama_index import LastwordEmbedding

    kept = store.setdefault("cache", SimpleKVStore())
    model = LastwordEmbedding(embedder, embeddings_cache=kept)
    documents = model.get_text_embedding_batch(TEXTS)
    queries = [model.get_query_embedding(text) for text in TEXTS]

    async def later() -> tuple[Any, Any]:
        again = [await model.aget_query_embedding(text) for text in TEXTS]
        return await model.aget_text_embedding_batch(TEXTS), again

    assert asyncio.run(later()) == (documents, queries)
    assert [model.get_text_embedding(text) for text in TEXTS] == documents
    return documents, queries


def langchain_cache(embedder: Embedder, store: dict[str, Any]) -> tuple[Any, Any]:
    from langchain_classic.embeddings import CacheBackedEmbeddings
    from langchain_core.stores import InMemoryByteStore

    from lastword.interop.langchain import LastwordEmbeddings

    model = LastwordEmbeddings(embedder)
    documents, queries = (store.setdefault(name, InMemoryByteStore()) for name in ("cache", "q"))
    cached = CacheBackedEmbeddings.from_bytes_store(
        model, documents, namespace=model.fingerprint, key_encoder="sha256",
        query_embedding_cache=queries,
    )  # fmt: skip
    return cached.embed_documents(TEXTS), [cached.embed_query(text) for text in TEXTS]


def joblib_memory(embedder: Embedder, store: dict[str, Any]) -> tuple[Any, Any]:
    import joblib

    return joblib.Memory(store["folder"] / "joblib", verbose=0).cache(vectors_of)(embedder)


CACHES: dict[str, Cached] = {
    "LlamaIndex ingestion": ingestion_cache,
    "LlamaIndex embeddings_cache": embeddings_cache,
    "LangChain": langchain_cache,
    "joblib": joblib_memory,
}
cached_by = pytest.mark.parametrize("cached", CACHES.values(), ids=CACHES)


@pytest.fixture
def store(tmp_path: Path) -> dict[str, Any]:
    return {"folder": tmp_path}


@pytest.fixture(scope="module")
def opened(tiny_checkpoint: Path, other_weights: Path) -> dict[str, Embedder]:
    """An Embedder per row of SETTINGS, and two without any."""
    rows = {"plain": {}, "equal": {}, **SETTINGS}
    return {
        name: Embedder(other_weights if name == "weights" else tiny_checkpoint, device="cpu", **row)
        for name, row in rows.items()
    }


def same(found: tuple[Any, Any], expected: tuple[Any, Any]) -> bool:
    """Whether vectors are equal, as far as they are there."""
    return all(
        each is None or torch.equal(torch.tensor(each), torch.tensor(right))
        for each, right in zip(found, expected, strict=True)
    )


@cached_by
@pytest.mark.parametrize("name", SETTINGS)
def test_another_setting_gets_its_own_vectors(
    cached: Cached, name: str, opened: dict[str, Embedder], store: dict[str, Any]
) -> None:
    first = cached(opened["plain"], store)
    assert same(first, vectors_of(opened["plain"]))
    found, expected = cached(opened[name], store), vectors_of(opened[name])
    assert not same(expected, vectors_of(opened["plain"])), "this setting changes no vector"
    assert same(found, expected)


@cached_by
@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_changed_on_the_live_object(
    cached: Cached, name: str, tiny_checkpoint: Path, store: dict[str, Any]
) -> None:
    embedder = Embedder(tiny_checkpoint, device="cpu")
    before, _ = vectors_of(embedder), cached(embedder, store)
    CHANGES[name](embedder)
    assert same(cached(embedder, store), vectors_of(embedder))
    assert not same(before, vectors_of(embedder)), "this setting changes no vector"


@cached_by
def test_an_equal_model_shares_the_vectors(
    cached: Cached, opened: dict[str, Embedder], store: dict[str, Any], monkeypatch
) -> None:
    first = cached(opened["plain"], store)

    def none(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(opened["equal"].loop.runner, "start", none)
    assert same(cached(opened["equal"], store), first)


def test_fingerprints(opened: dict[str, Embedder]) -> None:
    found = {name: fingerprint_of(embedder) for name, embedder in opened.items()}
    assert found.pop("equal") == found["plain"]
    assert len({*found.values()}) == len(found)


def test_the_live_cache_of_an_adapter(tiny_checkpoint: Path) -> None:
    """One adapter with one store: what is cached under the old settings is not found under the new ones."""
    from llama_index.core.storage.kvstore import SimpleKVStore

    from lastword.interop.llama_index import KeyedStore, LastwordEmbedding

    kept = SimpleKVStore()
    model = LastwordEmbedding(tiny_checkpoint, device="cpu")
    before = model.to_dict()
    model.embeddings_cache = kept
    wide = model.get_text_embedding(TEXTS[0])
    model.embedder.truncate_dim = 16
    assert len(model.get_text_embedding(TEXTS[0])) == 16
    assert model.to_dict()["fingerprint"] != before["fingerprint"]
    model.embedder.truncate_dim = None
    assert model.get_text_embedding(TEXTS[0]) == wide
    assert len(kept.get_all("embeddings")) == 2 == len(model.embeddings_cache.get_all("embeddings"))
    assert model.embeddings_cache.delete(TEXTS[0], "embeddings")
    assert not asyncio.run(model.embeddings_cache.adelete(TEXTS[0], "embeddings"))
    assert len(asyncio.run(model.embeddings_cache.aget_all("embeddings"))) == 1
    again = LastwordEmbedding(model.embedder, embeddings_cache=model.embeddings_cache)
    assert isinstance(again.embeddings_cache, KeyedStore)
    assert again.embeddings_cache.store is kept
