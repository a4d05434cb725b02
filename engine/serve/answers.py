"""Turn vectors into the bytes of an answer, without a Python loop over numbers."""

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import torch
from torch import Tensor

from lastword.errors import LastwordError
from lastword.model.postprocess import to_precision
from lastword.serve.errors import bad_request
from lastword.serve.texts import Prepared


@dataclass(frozen=True, slots=True)
class Answer:
    """The vectors of one request, and what the answer reports with them.

    Args:
        vectors: [N, dim], fp32.
        prepared: the request's texts as token ids.
        computed: this request's share of the tokens computed. The tokens of a batch are divided among its texts in
            proportion to the texts' lengths.
        space: fingerprint of the vector space; only vectors of the same space can be compared.
        model: name of the model.
        similarity: the model's similarity function.
        seconds: time from entering the queue to having the vectors.
        ranges: [2, dim], lowest and highest value of each dimension, for int8 and uint8; None if the server has none.
    """

    vectors: Tensor
    prepared: Prepared
    computed: int
    space: str
    model: str
    similarity: Callable[[Tensor, Tensor], Tensor]
    seconds: float
    ranges: Tensor | None = None

    def to_numpy(self, precision: str = "float32") -> Any:
        """Return the vectors as a NumPy array, which `to_json` writes as a list of lists.

        Raises:
            ServeError: the vectors cannot be given in this precision.
        """
        if precision == "float32":
            return self.vectors.numpy()
        if precision == "uint8" and self.ranges is None:
            said = "uint8: needs ranges. Start the server with --ranges, or ask for int8."
            raise bad_request(said, "encoding_format")
        if precision.endswith("binary") and self.vectors.shape[1] % 8:
            said = (
                f"{precision}: packs 8 dimensions per byte; got {self.vectors.shape[1]} dimensions."
            )
            raise bad_request(said, "dimensions")
        ranges = self.ranges if precision.endswith("int8") else None
        if ranges is not None and ranges.shape[1] != self.vectors.shape[1]:
            said = f"{precision}: the server's ranges are for {ranges.shape[1]} dimensions."
            raise bad_request(said, "dimensions")
        try:
            return to_precision(self.vectors, precision, ranges).numpy()
        except LastwordError as error:
            raise bad_request(str(error)) from None

    def to_base64(self, precision: str = "float32") -> list[str]:
        """Return each vector as base64 of its little-endian bytes."""
        rows = self.to_numpy(precision)
        rows = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
        return [b64encode(row.tobytes()).decode("ascii") for row in rows]

    def headers(self) -> dict[str, str]:
        """Return the response headers that are the same in every protocol: the vector space and `Prepared.headers`."""
        return {"x-lastword-space": self.space, **self.prepared.headers(self.computed)}


def stack(results: list[Tensor]) -> Tensor:
    """Stack N vectors [dim] into one tensor [N, dim] that is not an inference tensor."""
    with torch.inference_mode(False):
        return torch.stack(results)


def to_json(value: object) -> bytes:
    """Serialise an answer as JSON."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
