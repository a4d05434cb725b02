"""Adapters for libraries that use an embedding model or a reranker: LangChain, LlamaIndex and Ray Data.

The other modules of this package are entry points, which run models only through the public `Embedder` and `Reranker`.
`langchain` and `llama_index` import their library, which must be installed; `ray` does not import Ray. This module has
what they share: it opens a model, embeds documents and queries, and computes the fingerprint that identifies vectors.
"""

import os
from collections.abc import Iterable
from typing import Any

from lastword.embedder import Embedder
from lastword.errors import ConfigError, list_some
from lastword.reranker import Reranker

__all__ = ["embed_documents", "embed_query", "embedder_of", "fingerprint_of", "reranker_of"]


def embedder_of(
    model: str | os.PathLike[str] | Embedder | None, options: dict[str, Any]
) -> Embedder:
    """Return `model` if it is an Embedder, so that adapters can share one; otherwise open it with `options`.

    Args:
        model: Hugging Face id, folder, or an Embedder; None is the small built-in model.
        options: keyword arguments of `Embedder`; must be empty if `model` is an Embedder.

    Raises:
        ConfigError: options are given together with an Embedder.
    """
    if not isinstance(model, Embedder):
        return Embedder(model, **options)
    _refuse_options("an Embedder", options)
    return model


def reranker_of(model: str | os.PathLike[str] | Reranker, options: dict[str, Any]) -> Reranker:
    """Return `model` if it is a Reranker, so that adapters can share one; otherwise open it with `options`.

    Args:
        model: Hugging Face id, folder, or a Reranker.
        options: keyword arguments of `Reranker`; must be empty if `model` is a Reranker.

    Raises:
        ConfigError: options are given together with a Reranker.
    """
    if not isinstance(model, Reranker):
        return Reranker(model, **options)
    _refuse_options("a Reranker", options)
    return model


def _refuse_options(model: str, options: dict[str, Any]) -> None:
    if options:
        raise ConfigError(
            "model",
            f"{model} already has its options",
            got=f"{model} and options ({list_some(options)})",
            expected="options only with a name or folder",
        )


def embed_documents(embedder: Embedder, texts: Iterable[str]) -> list[list[float]]:
    """Return the vector of each text, as `Embedder.encode_document` computes it.

    Raises:
        InputError: `texts` is not a list or an iterator of texts (a str is neither), or a text cannot be embedded.
    """
    prompt = embedder.resolve_prompt(kind="document")
    return [vector.tolist() for vector in embedder.encode_stream(texts, prompt=prompt)]


def embed_query(embedder: Embedder, text: str) -> list[float]:
    """Return the vector of one text, as `Embedder.encode_query` computes it.

    Raises:
        InputError: `text` is not a str, or cannot be embedded.
    """
    (vector,) = embedder.encode_stream([text], prompt=embedder.resolve_prompt(kind="query"))
    numbers: list[float] = vector.tolist()
    return numbers


def fingerprint_of(embedder: Embedder) -> str:
    """Return the run fingerprints of documents and of queries under the current settings, joined by a hyphen.

    Equal fingerprints mean equal weights, tokenizer, prompts, width, max_length, dtype and quantisation.
    """
    prompts = (embedder.resolve_prompt(kind=kind) for kind in ("document", "query"))
    return "-".join(map(embedder.info.run_fingerprint, prompts))
