"""LangChain: `LastwordEmbeddings` wherever its `Embeddings` is taken.

store = InMemoryVectorStore(LastwordEmbeddings("Qwen/Qwen3-Embedding-0.6B"))
"""

import os
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import needing
from lastword.interop import embedder_of

with needing("langchain-core", "langchain", "lastword.interop.langchain"):
    from langchain_core.embeddings import Embeddings


class LastwordEmbeddings(Embeddings):  # type: ignore[misc]  # its types are not followed
    """LangChain embeddings by lastword: queries with the model's query prompt, documents with theirs.

    The asynchronous methods are LangChain's own: they run these in a thread.

    Args:
        model: hub id, folder, or an Embedder; None is the small built-in model.
        options: as `Embedder` takes them.
    """

    def __init__(
        self, model: str | os.PathLike[str] | Embedder | None = None, **options: Any
    ) -> None:
        self.embedder = embedder_of(model, options)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts that are to be found."""
        vectors: list[list[float]] = self.embedder.encode_document(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a text that others are looked for with."""
        vector: list[float] = self.embedder.encode_query(text).tolist()
        return vector
