"""FastAPI with sentence-transformers, as people write it: `python fastapi_server.py FOLDER PORT`."""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Body(BaseModel):
    """A request; other fields that OpenAI's clients send are ignored."""

    input: list[str]
    input_type: str | None = None


def make(folder: str) -> FastAPI:
    """Make the application for a checkpoint folder."""
    model, app = SentenceTransformer(folder, device="cpu"), FastAPI()
    model.float()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    # Not async, so FastAPI calls it in its pool of threads.
    @app.post("/v1/embeddings")
    def embeddings(body: Body) -> dict[str, Any]:
        vectors = model.encode(body.input, prompt_name=body.input_type, normalize_embeddings=True)
        rows = enumerate(vectors.tolist())
        return {"data": [{"index": n, "embedding": each} for n, each in rows]}

    return app


if __name__ == "__main__":
    uvicorn.run(make(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
