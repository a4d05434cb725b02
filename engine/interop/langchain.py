"""`LastwordEmbeddings`, which can be used wherever LangChain expects `Embeddings`.

store = InMemoryVectorStore(LastwordEmbeddings("Qwen/Qwen3-Embedding-0.6B"))
"""

import os
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import require_extra
from lastword.interop import embedder_of

with require_extra("langchain-core", "langchain", "lastword.interop.langchain"):
    from langchain_core.embeddings import Embeddings


class LastwordEmbeddings(Embeddings):  # type: ignore[misc]  # mypy skips this library
    """LangChain embeddings computed by lastword, with the model's query and document prompts.

    The asynchronous methods are LangChain's own; they call these methods in a thread.

    Args:
        model: Hugging Face id, folder, or an Embedder; None is the small built-in model.
        options: options of `Embedder`.

    Raises:
        ConfigError: options are given together with an Embedder.
    """

    def __init__(
        self, model: str | os.PathLike[str] | Embedder | None = None, **options: Any
    ) -> None:
        self.embedder = embedder_of(model, options)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents with the model's document prompt."""
        vectors: list[list[float]] = self.embedder.encode_document(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a query with the model's query prompt."""
        vector: list[float] = self.embedder.encode_query(text).tolist()
        return vector
