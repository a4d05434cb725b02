"""The clients that people have, as they are: each gets the vectors of `encode`."""

import asyncio

import httpx
import numpy as np
import pytest

NAME = "lastword-builtin-embedding"
TEXTS = ["how do plants make sugar?", "", "zwölf Boxkämpfer 🥊"]


@pytest.fixture(scope="module")
def wanted(model):
    return model.encode(TEXTS).numpy()


def close(found, expected):
    np.testing.assert_allclose(np.array(found), expected, atol=1e-5)


def test_openai_async(server, wanted):
    openai = pytest.importorskip("openai")

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await client.embeddings.create(model=NAME, input=TEXTS)

    close([each.embedding for each in asyncio.run(ask()).data], wanted)


def test_langchain_openai(server, wanted):
    langchain = pytest.importorskip("langchain_openai")
    where = {"base_url": f"{server.url}/v1", "api_key": "none", "model": NAME, "max_retries": 0}
    with httpx.Client(trust_env=False) as http:
        good = langchain.OpenAIEmbeddings(
            **where, check_embedding_ctx_length=False, http_client=http
        )
        close(good.embed_documents(TEXTS), wanted)
        close(good.embed_query(TEXTS[0]), wanted[0])


def test_cohere(server, wanted):
    cohere = pytest.importorskip("cohere")
    with httpx.Client(trust_env=False) as http:
        client = cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=http)
        answer = client.embed(
            model=NAME, texts=TEXTS, input_type="search_document", embedding_types=["float"]
        )
        close(answer.embeddings.float_, wanted)
        with pytest.raises(cohere.errors.NotFoundError, match="is not served here"):
            client.embed(model="embed-v4.0", texts=TEXTS, input_type="search_document")
