"""The routes that take a body: for each, the model of the body and the functions of `protocols` that answer it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lastword.embedder import Embedder
from lastword.serve.protocols import cohere, ollama, openai, rerank, tei
from lastword.serve.protocols.body import Body


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """A route whose answer a model computes on its device.

    Args:
        path: path of the route.
        body: model of the request's body.
        call: turns the body into an `EmbedCall`, or into a `RerankCall` if `reranks`.
        render: makes the answer from the body and the `Answer`, or the `Scores` if `reranks`.
        reranks: whether the reranker computes the answer.
    """

    path: str
    body: type[Body]
    call: Callable[[Any], Any]
    render: Callable[[Any, Any], Any]
    reranks: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerRoute:
    """A route that needs only the tokenizer: `work` makes the answer from the model and the body."""

    path: str
    body: type[Body]
    work: Callable[[Embedder, Any], object]


EMBEDDINGS = (
    ModelRoute("/v1/embeddings", openai.EmbeddingsBody, openai.call, openai.render),
    ModelRoute("/embed", tei.EmbedBody, tei.embed_call, tei.embed_render),
    ModelRoute("/similarity", tei.SimilarityBody, tei.similarity_call, tei.similarity_render),
    ModelRoute("/v2/embed", cohere.CohereEmbedBody, cohere.call, cohere.render),
    ModelRoute("/api/embed", ollama.OllamaEmbedBody, ollama.call, ollama.render),
)
# `/rerank` takes the bodies of two protocols: the first route here is TEI's, the second that of Jina and vLLM.
RERANKINGS = (
    ModelRoute("/rerank", rerank.TeiRerankBody, rerank.tei_call, rerank.tei_render, reranks=True),
    ModelRoute("/v1/rerank", rerank.RerankBody, rerank.call, rerank.render, reranks=True),
    ModelRoute("/v2/rerank", rerank.RerankBody, rerank.call, rerank.cohere_render, reranks=True),
    ModelRoute("/score", rerank.ScoreBody, rerank.score_call, rerank.score_render, reranks=True),
)
ROUTES = {route.path: route for route in (*EMBEDDINGS, *RERANKINGS)}
# Paths that take the bodies of several routes: for each, the function that returns the path of the route for a body,
# and the paths of all its routes.
SHARED: dict[str, tuple[Callable[[object], str], tuple[str, ...]]] = {
    "/": (tei.dispatch, ("/embed", "/similarity", "/rerank", "/v1/rerank")),
    "/rerank": (rerank.rerank_path, ("/rerank", "/v1/rerank")),
}
TOKENIZER_ROUTES = (
    TokenizerRoute("/tokenize", tei.TokenizeBody, tei.tokenize),
    TokenizerRoute("/decode", tei.DecodeBody, tei.decode),
)
