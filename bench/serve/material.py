"""The texts of the requests, and the vectors that the answers must hold; written to a folder that all processes read.

The process of the load generator imports this, so nothing here imports torch.
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
    """The texts of one kind, and their vectors [N, dim] by `encode`, fp32."""

    texts: Sequence[str]
    vectors: NDArray[Any]
    kind: str
    tolerance: float

    def save(self, folder: Path) -> None:
        """Write them to files."""
        np.save(folder / f"{self.kind}.npy", self.vectors)
        text = json.dumps({"texts": list(self.texts), "tolerance": self.tolerance})
        (folder / f"{self.kind}.json").write_text(text, encoding="utf-8")

    @staticmethod
    def load(folder: Path, kind: str) -> "Material":
        """Read what `save` has written."""
        held = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
        vectors = np.load(folder / f"{kind}.npy")
        return Material(held["texts"], vectors, kind, held["tolerance"])

    def blocks(self, size: int) -> int:
        """Return how many requests with `size` texts each have no text in common."""
        return len(self.texts) // size

    def body(self, block: int, size: int, **fields: object) -> bytes:
        """Return the body of `POST /v1/embeddings` for a block of texts."""
        texts = list(self.texts[block * size : (block + 1) * size])
        asked = {"input": texts, "input_type": PROMPTS[self.kind], "encoding_format": "base64"}
        return orjson.dumps({**asked, "truncate": True, **fields})  # `encode` cuts, too

    def is_right(self, block: int, size: int, answer: bytes) -> bool:
        """Return whether an answer holds the vectors of a block, in base64 and in order."""
        try:
            data = orjson.loads(answer)["data"]
            if [each["index"] for each in data] != list(range(size)):
                return False
            raw = b"".join(b64decode(each["embedding"], validate=True) for each in data)
            got = np.frombuffer(raw, "<f4").reshape(size, -1)
        except (ValueError, KeyError, TypeError):
            return False
        expected = self.vectors[block * size : (block + 1) * size]
        if got.shape != expected.shape:
            return False
        return bool(np.abs(got - expected).max() <= self.tolerance)
