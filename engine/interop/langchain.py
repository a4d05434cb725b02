"""Adapters for LangChain: `LastwordEmbeddings` is an `Embeddings`, `LastwordReranker` a document compressor.

store = InMemoryVectorStore(LastwordEmbeddings("Qwen/Qwen3-Embedding-0.6B"))
reranker = LastwordReranker("Qwen/Qwen3-Reranker-0.6B", top_n=5)
"""

import os
from collections.abc import Sequence
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import require_extra
from lastword.interop import (
    embed_documents,
    embed_query,
    embedder_of,
    fingerprint_of,
    reranker_of,
)
from lastword.reranker import Reranker

with require_extra("langchain-core", "langchain", "lastword.interop.langchain"):
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings


class LastwordEmbeddings(Embeddings):  # type: ignore[misc]  # mypy skips this library
    """LangChain embeddings computed by lastword, with the model's query and document prompts.

    The asynchronous methods are LangChain's own: they call the synchronous methods in a thread.

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
        """A hash of everything that the vectors depend on, current settings included; use it as a cache's namespace."""
        return fingerprint_of(self.embedder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents with the model's document prompt."""
        return embed_documents(self.embedder, texts)

    def embed_query(self, text: str) -> list[float]:
        """Embed a query with the model's query prompt."""
        return embed_query(self.embedder, text)


class LastwordReranker(BaseDocumentCompressor):  # type: ignore[misc]  # mypy skips this library
    """A LangChain document compressor that sorts documents by their relevance to the query.

    The returned documents are copies, with the score in `metadata["relevance_score"]`.

    Args:
        model: Hugging Face id, folder, or a Reranker.
        top_n: number of documents to return; by default all.
        options: keyword arguments of `Reranker`.

    Raises:
        ConfigError: options are given together with a Reranker.
    """

    reranker: Any
    top_n: int | None = None

    def __init__(
        self,
        model: str | os.PathLike[str] | Reranker,
        *,
        top_n: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(reranker=reranker_of(model, options), top_n=top_n)

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Any = None,  # noqa: ARG002  LangChain's signature
    ) -> list[Document]:
        """Return the `top_n` most relevant documents, the most relevant first."""
        texts = [document.page_content for document in documents]
        found = []
        for each in self.reranker.rank(query, texts, self.top_n):
            document = documents[each["corpus_id"]]
            metadata = {**document.metadata, "relevance_score": each["score"]}
            found.append(document.model_copy(update={"metadata": metadata}))
        return found
