"""The texts of the requests, and the vectors that the answers must have.

The benchmark writes them to a folder, and the load generator reads them there. The load generator imports this module,
so nothing here imports torch.
"""

import json
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

KINDS = ("documents", "queries")
PROMPTS = {"documents": "document", "queries": "query"}  # `input_type` of the requests


@dataclass(frozen=True, slots=True)
class Material:
    """The texts of one kind, and their vectors [N, dim] fp32, computed by `encode`.

    A vector from the server is right if no number differs from that of `encode` by more than `tolerance`.
    """

    texts: Sequence[str]
    vectors: NDArray[Any]
    kind: str
    tolerance: float

    def save(self, folder: Path) -> None:
        """Write the texts and vectors to two files in `folder`."""
        np.save(folder / f"{self.kind}.npy", self.vectors)
        text = json.dumps({"texts": list(self.texts), "tolerance": self.tolerance})
        (folder / f"{self.kind}.json").write_text(text, encoding="utf-8")

    @staticmethod
    def load(folder: Path, kind: str) -> "Material":
        """Read the texts and vectors of one kind that `save` has written."""
        held = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
        vectors = np.load(folder / f"{kind}.npy")
        return Material(held["texts"], vectors, kind, held["tolerance"])

    def blocks(self, size: int) -> int:
        """Return how many requests of `size` texts can be made without using a text twice; each is called a block."""
        return len(self.texts) // size

    def body(self, block: int, size: int, prompt: str | None = None, **fields: object) -> bytes:
        """Return the body of `POST /v1/embeddings` for block number `block`: `size` texts from `block` · `size` on.

        With `prompt`, each text begins with it, and the body has only the fields that OpenAI's own servers know.
        """
        texts = list(self.texts[block * size : (block + 1) * size])
        if prompt is not None:
            texts = [prompt + text for text in texts]
            return orjson.dumps({"input": texts, "encoding_format": "base64", **fields})
        asked = {"input": texts, "input_type": PROMPTS[self.kind], "encoding_format": "base64"}
        return orjson.dumps({**asked, "truncate": True, **fields})  # as `encode` does

    def is_right(
        self, block: int, size: int, answer: bytes, tolerance: float | None = None
    ) -> bool:
        """Return whether an answer has the vectors of block number `block`, in order.

        The vectors may be in base64, or lists of numbers, as servers that ignore `encoding_format` send them.
        """
        try:
            data = orjson.loads(answer)["data"]
            if [each["index"] for each in data] != list(range(size)):
                return False
            got = np.stack([_vector(each["embedding"]) for each in data])
        except (ValueError, KeyError, TypeError):
            return False
        expected = self.vectors[block * size : (block + 1) * size]
        if got.shape != expected.shape:
            return False
        most = self.tolerance if tolerance is None else tolerance
        return bool(np.abs(got - expected).max() <= most)


def _vector(given: str | list[float]) -> NDArray[Any]:
    if isinstance(given, list):
        return np.array(given, "<f4")
    return np.frombuffer(b64decode(given, validate=True), "<f4")
