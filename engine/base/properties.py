"""The attributes of an `Embedder` or `Reranker` that describe its model, named as in sentence-transformers."""

from collections.abc import Mapping
from typing import Generic, Never, Self, SupportsIndex, TypeVar, overload

import torch
from torch import Tensor

from lastword.encode_options import check_batch_tokens
from lastword.errors import one_line, with_article
from lastword.model_info import ModelInfo, OpenedModel
from lastword.runtime.loop import Loop
from lastword.similarity import Vectors
from lastword.text.prompts import Kind
from lastword.weights import dtype_name

Got = TypeVar("Got")
Put = TypeVar("Put")


class FromInfo(Generic[Got, Put]):
    """A descriptor that gives an `Embedder` or `Reranker` an attribute of its `info`.

    The attribute can be set if it is a property of `info` with a setter.

    Args:
        name: name of the attribute of `info`.
        doc: the docstring of the attribute.
    """

    def __init__(self, name: str, doc: str) -> None:
        self._name, self.__doc__ = name, doc

    @overload
    def __get__(self, model: None, kind: type) -> Self: ...
    @overload
    def __get__(self, model: "ModelProperties", kind: type) -> Got: ...
    def __get__(self, model: "ModelProperties | None", kind: type) -> Self | Got:
        return self if model is None else getattr(model.info, self._name)

    def __set__(self, model: "ModelProperties", value: Put) -> None:
        if not isinstance(getattr(type(model.info), self._name, None), property):
            kind = type(model).__name__
            problem = f"{self._name!r} of {with_article(kind)} cannot be set; open a new one"
            raise AttributeError(problem)  # noqa: TRY004  as Python does for a property
        setattr(model.info, self._name, value)


class ModelProperties:
    """Gives an `Embedder` or `Reranker` the attributes of its `info`, and its `max_batch_tokens`."""

    info: OpenedModel
    loop: Loop

    name = FromInfo[str, Never]("name", "The Hugging Face id or folder that was opened.")
    notices = FromInfo[tuple[str, ...], Never](
        "notices", "Notices about the model for the user, one line each."
    )
    device = FromInfo[torch.device, Never]("device", "The device, or the first of several.")
    dtype = FromInfo[torch.dtype, Never]("dtype", "The compute dtype.")
    max_length = FromInfo[int, SupportsIndex | None](
        "max_length",
        "Maximum tokens per text, prompt or template included. Can be set; None restores the model's default.",
    )
    max_seq_length = FromInfo[int, SupportsIndex | None]("max_length", "The same as `max_length`.")
    prompts = FromInfo[dict[str, str], Mapping[str, str]](
        "prompts", "The texts of the prompts by name."
    )
    default_prompt_name = FromInfo[str | None, str | None](
        "default_prompt_name",
        "Name of the prompt for calls that give no prompt; None for no prompt.",
    )

    @property
    def max_batch_tokens(self) -> int:
        """Maximum tokens computed in one forward. Can be set; None restores the default for the devices."""
        return self.loop.budget.limit

    @max_batch_tokens.setter
    def max_batch_tokens(self, max_batch_tokens: SupportsIndex | None) -> None:
        tokens = check_batch_tokens(max_batch_tokens)
        self.loop.budget.limit = tokens or self.loop.runner.batch_tokens

    def _facts(self) -> dict[str, object]:
        """Return the settings that `repr` shows besides those that all models have."""
        return {}

    def __repr__(self) -> str:
        """Return one line with the model's name and the main settings."""
        info = self.info
        facts: dict[str, object] = {
            "device": ",".join(map(str, info.devices)),
            "dtype": dtype_name(info.dtype),
            **self._facts(),
            "max_length": info.max_length,
        }
        if info.quantize is not None:
            facts["quantize"] = info.quantize
        shown = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        closed = ", closed" if getattr(self, "closed", False) else ""
        return f"{type(self).__name__}({one_line(info.name)!r}, {shown}{closed})"


class EmbedderProperties(ModelProperties):
    """Gives an `Embedder` the attributes of its `info`, and methods that compare its vectors."""

    info: ModelInfo

    dim = FromInfo[int, Never]("dim", "Number of dimensions of the vectors that `encode` returns.")
    truncate_dim = FromInfo[int | None, SupportsIndex | None](
        "truncate_dim", "Number of leading dimensions to keep; None keeps all."
    )

    def _facts(self) -> dict[str, object]:
        return {"dim": self.dim}

    @property
    def similarity_fn_name(self) -> str:
        """The model's similarity function, under the name that sentence-transformers uses."""
        return self.info.spec.similarity

    def get_embedding_dimension(self) -> int:
        """Return `dim`, under the name that sentence-transformers uses."""
        return self.dim

    def resolve_prompt(
        self, prompt_name: str | None = None, prompt: str | None = None, kind: Kind | None = None
    ) -> str:
        """Return the prompt to put before every text; see `ModelInfo.resolve_prompt`."""
        return self.info.resolve_prompt(prompt_name, prompt, kind)

    def similarity(self, a: Vectors, b: Vectors) -> Tensor:
        """Compare every vector of a with every vector of b, using the model's similarity function: [N, M] fp32."""
        return self.info.similarity(a, b)

    def similarity_pairwise(self, a: Vectors, b: Vectors) -> Tensor:
        """Compare row i of a with row i of b, using the model's similarity function: [N] fp32."""
        return self.info.similarity_pairwise(a, b)
