"""Ask a running server with each client, in an environment of their own; print what they give as JSON.

ask.py URL CLIENT ... reads {"texts", "query", "model", "reranker", "out"} from stdin, and writes to the file "out" what
each client gives (vectors, or pairs of a document's place and its score), or how it fails.
"""

import json
import sys


def langchain_huggingface(url, asked):
    from huggingface_hub import InferenceClient
    from langchain_huggingface import HuggingFaceEndpointEmbeddings

    client = HuggingFaceEndpointEmbeddings(model=asked["model"])
    client.client = InferenceClient(url)  # it takes no URL of its own
    return client.embed_documents(asked["texts"])


def llama_index_embeddings(url, asked):
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    client = TextEmbeddingsInference(model_name=asked["model"], base_url=url)
    return client.get_text_embedding_batch(asked["texts"])


def llama_index_rerank(url, asked):
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(n))) for n, text in enumerate(asked["texts"])
    ]
    client = TextEmbeddingInference(base_url=url, top_n=len(nodes))
    found = client.postprocess_nodes(nodes, query_str=asked["query"])
    return [[int(each.node.node_id), each.score] for each in found]


def litellm_embedding(url, asked):
    import litellm

    answer = litellm.embedding(
        model=f"openai/{asked['model']}", input=asked["texts"], api_base=f"{url}/v1", api_key="none"
    )
    return [each["embedding"] for each in answer.data]


def litellm_rerank(url, asked, provider="cohere"):
    import litellm

    answer = litellm.rerank(
        model=f"{provider}/{asked['reranker']}",
        query=asked["query"],
        documents=asked["texts"],
        api_base=url if provider != "cohere" else f"{url}/v2/rerank",
        api_key="none",
    )
    return [[each["index"], each["relevance_score"]] for each in answer.results]


def litellm_rerank_jina(url, asked):
    return litellm_rerank(f"{url}/v1/rerank", asked, "jina_ai")


def litellm_rerank_vllm(url, asked):
    return litellm_rerank(url, asked, "hosted_vllm")


def litellm_rerank_huggingface(url, asked):
    return litellm_rerank(url, asked, "huggingface")


def haystack_openai(url, asked):
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder
    from haystack.utils import Secret

    client = OpenAIDocumentEmbedder(
        api_key=Secret.from_token("none"),
        api_base_url=f"{url}/v1",
        model=asked["model"],
        progress_bar=False,
    )
    documents = client.run([Document(content=text) for text in asked["texts"]])["documents"]
    return [each.embedding for each in documents]


def haystack_huggingface(url, asked):
    from haystack import Document
    from haystack_integrations.components.embedders.huggingface_api import (
        HuggingFaceAPIDocumentEmbedder,
    )

    client = HuggingFaceAPIDocumentEmbedder(
        api_type="text_embeddings_inference", api_params={"url": url}, progress_bar=False
    )
    documents = client.run([Document(content=text) for text in asked["texts"]])["documents"]
    return [each.embedding for each in documents]


def haystack_rank(url, asked):
    from haystack import Document
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    documents = [Document(content=text, id=str(n)) for n, text in enumerate(asked["texts"])]
    client = HuggingFaceTEIRanker(url=url, top_k=len(documents))
    found = client.run(query=asked["query"], documents=documents)["documents"]
    return [[int(each.id), each.score] for each in found]


def outcome(name, url, asked):
    try:
        return globals()[name](url, asked)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    where, *names = sys.argv[1:]
    given = json.load(sys.stdin)
    found = {name: outcome(name, where, given) for name in names}
    with open(given["out"], "w", encoding="utf-8") as file:  # some clients print
        json.dump(found, file)
