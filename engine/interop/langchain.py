"""`LastwordEmbeddings`, which can be used wherever LangChain expects `Embeddings`.

store = InMemoryVectorStore(LastwordEmbeddings("Qwen/Qwen3-Embedding-0.6B"))
"""

import os
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import require_extra
from lastword.interop import embed_documents, embed_query, embedder_of, fingerprint_of

with require_extra("langchain-core", "langchain", "lastword.interop.langchain"):
    from langchain_core.embeddings import Embeddings


class LastwordEmbeddings(Embeddings):  # type: ignore[misc]  # mypy skips this library
    """LangChain embeddings computed by lastword, with the model's query and document prompts.

    The asynchronous methods are LangChain's own; they call the synchronous ones in a thread.

    Args:
        model: Hugging Face id, folder, or an Embedder; None is the small built-in model.
        options: keyword arguments of `Embedder`.

    Raises:
        ConfigError: options are given together with an Embedder.
    """

    def __init__(
        self, model: str | os.PathLike[str] | Embedder | None = None, **options: Any
    ) -> None:
        self.embedder = embedder_of(model, options)

    @property
    def fingerprint(self) -> str:
        """A hash of all that the vectors depend on, for the settings as they are now; use it as a cache's namespace."""
        return fingerprint_of(self.embedder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents with the model's document prompt."""
        return embed_documents(self.embedder, texts)

    def embed_query(self, text: str) -> list[float]:
        """Embed a query with the model's query prompt."""
        return embed_query(self.embedder, text)
