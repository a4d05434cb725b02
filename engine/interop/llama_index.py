"""Adapters for LlamaIndex: `LastwordEmbedding` is a `BaseEmbedding`, `LastwordRerank` a node postprocessor.

index = VectorStoreIndex(nodes, embed_model=LastwordEmbedding("Qwen/Qwen3-Embedding-0.6B"))
engine = index.as_query_engine(node_postprocessors=[LastwordRerank("Qwen/Qwen3-Reranker-0.6B", top_n=5)])
"""

import asyncio
import os
from collections.abc import Iterable
from typing import Any, Literal

from lastword.embedder import Embedder
from lastword.errors import ConfigError, InputError, require_extra
from lastword.interop import (
    embed_documents,
    embed_query,
    embedder_of,
    fingerprint_of,
    reranker_of,
)
from lastword.reranker import Reranker
from lastword.weights import BUILTIN

with require_extra("llama-index-core", "llama-index", "lastword.interop.llama_index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr, model_serializer
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
    from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

# The largest batch that LlamaIndex allows; lastword forms its own batches from it, by tokens.
_TEXTS_AT_ONCE = 2048


class _Query(str):
    """The text of a query; the type lets a `KeyedStore` tell it from a document."""

    __slots__ = ()


def _as_query(query: Any) -> Any:
    return _Query(query) if isinstance(query, str) else query


class KeyedStore(BaseKVStore):  # type: ignore[misc]  # mypy skips this library
    """A key-value store of vectors whose keys contain everything that a vector depends on.

    LlamaIndex's own keys are the texts alone, so another model, width or prompt would get the same vectors. Here a key
    is the run fingerprint (of queries or of documents), then the text. The fingerprint is computed for each access, so
    a changed setting gives other keys.

    Args:
        store: the store that keeps the vectors.
        embedder: the model that computes them.
    """

    def __init__(self, store: BaseKVStore, embedder: Embedder) -> None:
        self.store: Any = store.store if isinstance(store, KeyedStore) else store
        self.embedder = embedder

    def _key(self, text: str) -> str:
        kind: Literal["query", "document"] = "query" if isinstance(text, _Query) else "document"
        prompt = self.embedder.resolve_prompt(kind=kind)
        return f"{self.embedder.info.run_fingerprint(prompt)}:{text}"

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Store the vector of a text."""
        self.store.put(self._key(key), val, collection)

    async def aput(
        self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION
    ) -> None:
        """Store the vector of a text."""
        await self.store.aput(self._key(key), val, collection)

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> Any:
        """Return the vector of a text, or None."""
        return self.store.get(self._key(key), collection)

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> Any:
        """Return the vector of a text, or None."""
        return await self.store.aget(self._key(key), collection)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> Any:
        """Return all entries, including those of other models, by their full keys (fingerprint and text)."""
        return self.store.get_all(collection)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> Any:
        """Return all entries, including those of other models, by their full keys (fingerprint and text)."""
        return await self.store.aget_all(collection)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> Any:
        """Remove the vector of a text; return whether there was one."""
        return self.store.delete(self._key(key), collection)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> Any:
        """Remove the vector of a text; return whether there was one."""
        return await self.store.adelete(self._key(key), collection)


class LastwordEmbedding(BaseEmbedding):  # type: ignore[misc]  # mypy skips this library
    """LlamaIndex embeddings computed by lastword, with the model's query and document prompts.

    The asynchronous methods call the synchronous ones in a thread.

    Args:
        model: Hugging Face id, folder, or an Embedder; None is the small built-in model.
        embed_batch_size: number of texts that LlamaIndex passes at once.
        callback_manager: passed to BaseEmbedding.
        num_workers: passed to BaseEmbedding.
        embeddings_cache: a key-value store of LlamaIndex for vectors. The store is wrapped in a `KeyedStore`, so that
            other models and settings never get these vectors.
        options: keyword arguments of `Embedder`.

    Raises:
        ConfigError: options are given together with an Embedder.
    """

    _embedder: Embedder = PrivateAttr()

    def __init__(
        self,
        model: str | os.PathLike[str] | Embedder | None = None,
        *,
        embed_batch_size: int = _TEXTS_AT_ONCE,
        callback_manager: Any = None,
        num_workers: int | None = None,
        embeddings_cache: Any = None,
        **options: Any,
    ) -> None:
        embedder = embedder_of(model, options)
        super().__init__(
            model_name=embedder.name,
            embed_batch_size=embed_batch_size,
            callback_manager=callback_manager,
            num_workers=num_workers,
        )
        self._embedder = embedder
        self.embeddings_cache = embeddings_cache

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores for this class."""
        return "LastwordEmbedding"

    @property
    def embedder(self) -> Embedder:
        """The model. Its settings can be changed."""
        return self._embedder

    # With the next three members, LlamaIndex's caches tell apart the vectors of different models and settings.

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the vectors depend on, current settings included; `to_dict` includes it."""
        return fingerprint_of(self._embedder)

    @model_serializer(mode="wrap")  # type: ignore[untyped-decorator]
    def custom_model_dump(self, handler: Any, info: Any) -> dict[str, Any]:
        """Add the fingerprint to the result of `to_dict`, from which LlamaIndex's ingestion cache makes its keys."""
        data: dict[str, Any] = super().custom_model_dump(handler, info)
        return {**data, "fingerprint": self.fingerprint}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a store given as `embeddings_cache` is wrapped in a `KeyedStore`."""
        if name == "embeddings_cache" and isinstance(value, BaseKVStore):
            value = KeyedStore(value, self._embedder)
        super().__setattr__(name, value)

    # Pickling and dictionaries.

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle. If the model cannot be pickled, raise; LlamaIndex would silently leave it out."""
        self._embedder.__reduce__()  # raises if it cannot be pickled
        state: dict[str, Any] = super().__getstate__()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the object with its model; LlamaIndex's own method would open the built-in model."""
        type(self).__init__(self, state["__pydantic_private__"]["_embedder"])
        for name, value in state["__dict__"].items():
            setattr(self, name, value)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> "LastwordEmbedding":
        """Open the model that a dictionary from `to_dict` names. The dictionary contains no options; pass them again.

        Args:
            data: the dictionary.
            kwargs: keyword arguments of this class.

        Raises:
            ConfigError: the fingerprint differs from the one in the dictionary, so the vectors would differ too.
        """
        fields = ("embed_batch_size", "num_workers", "embeddings_cache")
        name = data.get("model_name")
        kept = {field: data[field] for field in fields if field in data}
        made = cls(None if name == BUILTIN else name, **{**kept, **kwargs})
        if (expected := data.get("fingerprint")) not in (None, made.fingerprint):
            raise ConfigError(
                "from_dict",
                "the model or its options differ from those of the stored object",
                got=f"fingerprint {made.fingerprint}",
                expected=str(expected),
                remedy="Pass the options that the stored object was made with.",
            )
        return made

    # Vectors.

    def get_query_embedding(self, query: str) -> list[float]:
        """Embed a query with the model's query prompt."""
        vector: list[float] = super().get_query_embedding(_as_query(query))
        return vector

    async def aget_query_embedding(self, query: str) -> list[float]:
        """Embed a query with the model's query prompt, in a thread."""
        vector: list[float] = await super().aget_query_embedding(_as_query(query))
        return vector

    def get_text_embedding_batch(self, texts: list[str], *args: Any, **kwargs: Any) -> Any:
        """Embed documents with the model's document prompt; arguments as for BaseEmbedding."""
        return super().get_text_embedding_batch(self._as_list(texts), *args, **kwargs)

    async def aget_text_embedding_batch(self, texts: list[str], *args: Any, **kwargs: Any) -> Any:
        """Embed documents with the model's document prompt, in threads; arguments as for BaseEmbedding."""
        return await super().aget_text_embedding_batch(self._as_list(texts), *args, **kwargs)

    def _as_list(self, texts: Iterable[str]) -> list[str]:
        """Return the texts as a list. Raise for what Embedder refuses, such as a str, which LlamaIndex would split."""
        self._embedder.encode_stream(texts)  # checks the texts; computes nothing yet
        return list(texts)

    def _get_query_embedding(self, query: str) -> list[float]:
        return embed_query(self._embedder, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return embed_documents(self._embedder, texts)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class LastwordRerank(BaseNodePostprocessor):  # type: ignore[misc]  # mypy skips this library
    """A LlamaIndex postprocessor that sorts nodes by their relevance to the query and sets their scores.

    A node's text is scored together with the metadata that LlamaIndex would embed. The nodes passed in are not changed.

    Args:
        model: Hugging Face id, folder, or a Reranker.
        top_n: number of nodes to return; by default all.
        options: keyword arguments of `Reranker`.

    Raises:
        ConfigError: options are given together with a Reranker.
    """

    top_n: int | None = None
    _reranker: Reranker = PrivateAttr()

    def __init__(
        self,
        model: str | os.PathLike[str] | Reranker,
        *,
        top_n: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(top_n=top_n)
        self._reranker = reranker_of(model, options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores for this class."""
        return "LastwordRerank"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle. If the model cannot be pickled, raise; LlamaIndex would silently leave it out."""
        self._reranker.__reduce__()  # raises if it cannot be pickled
        state: dict[str, Any] = super().__getstate__()
        return state

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            remedy = "Pass query_str or query_bundle."
            raise InputError("query", "missing", expected="a query to compare with", remedy=remedy)
        texts = [each.node.get_content(metadata_mode=MetadataMode.EMBED) for each in nodes]
        ranked = self._reranker.rank(query_bundle.query_str, texts, self.top_n)
        return [
            NodeWithScore(node=nodes[each["corpus_id"]].node, score=each["score"])
            for each in ranked
        ]
