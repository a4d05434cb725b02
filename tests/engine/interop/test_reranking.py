"""The adapters of a reranker for LangChain and LlamaIndex: the order and scores of `Reranker.rank`."""

import asyncio
from pathlib import Path

import pytest
from helpers.messages import refusal
from helpers.small_models import make_reranker

from lastword import ConfigError, InputError, Reranker

QUERY = "the cat"
TEXTS = ["no no", "the cat sat on the mat", "yes", "another text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker(tmp_path_factory.mktemp("interop") / "reranker")


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Reranker:
    return Reranker(folder, device="cpu")


def test_langchain(reranker: Reranker, folder: Path) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document

    from lastword.interop.langchain import LastwordReranker

    documents = [Document(text, metadata={"n": i}, id=str(i)) for i, text in enumerate(TEXTS)]
    expected = reranker.rank(QUERY, TEXTS)
    for adapter in (LastwordReranker(reranker), LastwordReranker(folder, device="cpu")):
        found = adapter.compress_documents(documents, QUERY)
        assert [each.metadata["n"] for each in found] == [e["corpus_id"] for e in expected]
        assert [each.metadata["relevance_score"] for each in found] == [
            pytest.approx(e["score"], abs=1e-6) for e in expected
        ]
        assert [each.page_content for each in found] == [TEXTS[e["corpus_id"]] for e in expected]
        assert found[0].id == str(expected[0]["corpus_id"])
    assert "relevance_score" not in documents[0].metadata
    two = LastwordReranker(reranker, top_n=2)
    assert asyncio.run(two.acompress_documents(documents, QUERY)) == found[:2]
    assert two.compress_documents([], QUERY) == []
    with refusal(ConfigError, what="a Reranker already has its options"):
        LastwordReranker(reranker, device="cpu")


def test_llama_index(reranker: Reranker, folder: Path) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeWithScore, TextNode

    from lastword.interop.llama_index import LastwordRerank

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]
    nodes[0].node.metadata = {"title": "the cat"}
    expected = reranker.rank(QUERY, ["title: the cat\n\nno no", *TEXTS[1:]])
    for adapter in (LastwordRerank(reranker), LastwordRerank(folder, device="cpu")):
        found = adapter.postprocess_nodes(nodes, query_str=QUERY)
        assert [each.node for each in found] == [nodes[e["corpus_id"]].node for e in expected]
        assert [each.score for each in found] == [
            pytest.approx(e["score"], abs=1e-6) for e in expected
        ]
    assert {each.score for each in nodes} == {0.5}
    two = LastwordRerank(reranker, top_n=2)
    again = asyncio.run(two.apostprocess_nodes(nodes, query_str=QUERY))
    assert [each.node for each in again] == [each.node for each in found[:2]]
    assert two.postprocess_nodes([], query_str=QUERY) == []
    with refusal(InputError, where="query", what="missing"):
        two.postprocess_nodes(nodes)
    with refusal(ConfigError, what="a Reranker already has its options"):
        LastwordRerank(reranker, max_length=200)
