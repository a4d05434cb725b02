"""`LastwordEmbedding`, which can be used wherever LlamaIndex expects `BaseEmbedding`.

index = VectorStoreIndex(nodes, embed_model=LastwordEmbedding("Qwen/Qwen3-Embedding-0.6B"))
"""

import asyncio
import os
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import require_extra
from lastword.interop import embedder_of

with require_extra("llama-index-core", "llama-index", "lastword.interop.llama_index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr

# The largest batch that LlamaIndex allows: lastword forms its own batches by tokens.
_TEXTS_AT_ONCE = 2048


class LastwordEmbedding(BaseEmbedding):  # type: ignore[misc]  # mypy skips this library
    """LlamaIndex embeddings computed by lastword, with the model's query and document prompts.

    The asynchronous methods call the synchronous ones in a thread.

    Args:
        model: Hugging Face id, folder, or an Embedder; None is the small built-in model.
        embed_batch_size: number of texts that LlamaIndex passes at once.
        callback_manager: passed to BaseEmbedding.
        num_workers: passed to BaseEmbedding.
        embeddings_cache: passed to BaseEmbedding.
        options: options of `Embedder`.

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
            embeddings_cache=embeddings_cache,
        )
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores for this class."""
        return "LastwordEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._embedder.encode_query(query).tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.encode_document(texts).tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
