"""A model before its weights are read: files, config, prompts, limits, device and dtype, fingerprints.

`embedder.py` has one and adds the loop. Knows no forward.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Generic, Protocol, Self, TypedDict, TypeVar, Unpack, overload

import torch

from lastword.errors import ConfigError, some
from lastword.model.postprocess import VectorFormat
from lastword.options import (
    EncodeKwargs,
    EncodeOptions,
    check_dim,
    check_keywords,
    check_max_length,
)
from lastword.runtime.device import (
    check_quantize,
    choose_devices,
    choose_dtype,
    quantize_identity,
)
from lastword.similarity import Vectors, similarity, similarity_pairwise
from lastword.text.prompts import Kind, check_prompt, check_prompts, choose_prompt
from lastword.text.tokenizer import TextTokenizer
from lastword.weights import (
    BUILTIN_NOTICE,
    Checkpoint,
    ModelConfig,
    WeightsSource,
    expanded,
    locate,
    read_config,
    read_embedding_spec,
)

# What the two fingerprints are made of; raised when that changes, so that files of before are told apart.
FINGERPRINT_VERSION = 2
# Raised when a change of lastword's arithmetic moves vectors by more than rounding.
NUMERICS_VERSION = 1

T = TypeVar("T")
Got = TypeVar("Got")
Put = TypeVar("Put")


class Where(TypedDict, total=False):
    """Where a model comes from, as huggingface-hub takes it."""

    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None
    local_files_only: bool


class ModelKwargs(Where, total=False):
    """What `ModelInfo` takes beside the model, and `Embedder` hands on; see there."""

    device: str | torch.device | None
    dtype: str | torch.dtype | None
    quantize: str | None
    max_length: int | None
    prompts: Mapping[str, str] | None
    truncate_dim: int | None
    open_checkpoint: Callable[[Path, ModelConfig], WeightsSource]


class ModelInfo:
    """A model's files and the caller's settings, in force once both are known to fit; all are as `Embedder` takes them.

    Raises:
        ConfigError, WeightsError, DeviceError: each a line that says what to do.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        max_length: int | None = None,
        prompts: Mapping[str, str] | None = None,
        truncate_dim: int | None = None,
        open_checkpoint: Callable[[Path, ModelConfig], WeightsSource] = Checkpoint,
        **where: Unpack[Where],
    ) -> None:
        if model == "":
            raise ConfigError(
                "model",
                "the name is empty",
                got="''",
                expected="a hub id or folder, or none for the built-in model",
            )
        self.devices = choose_devices(device)
        self.device = self.devices[0]
        self.dtype = choose_dtype(dtype, self.device)
        for each in self.devices:
            check_quantize(quantize, each, self.dtype)
        self.quantize = quantize
        self.files = locate(model, **where)
        self.name = self.files.name
        self.config = read_config(self.files.folder)
        self.spec = read_embedding_spec(self.files.folder, self.config)
        notices = (BUILTIN_NOTICE if model is None else None, self.spec.notice)
        self.notices = tuple(notice for notice in notices if notice is not None)
        self.prompts = {**self.spec.prompts, **check_prompts(prompts)}
        self.default_prompt_name = self.spec.default_prompt_name
        self.tokenizer = TextTokenizer(self.files.folder, self.config.vocab_size)
        self.max_length = max_length
        self.truncate_dim = truncate_dim
        self.checkpoint = open_checkpoint(self.files.folder, self.config)

    # What may be set.

    @property
    def max_length(self) -> int:
        """Tokens that a text may have, the end token included; it may be set, to None for the model's own."""
        return self._max_length

    @max_length.setter
    def max_length(self, max_length: int | None) -> None:
        self._max_length = check_max_length(
            max_length,
            default=self.spec.max_length,
            least=self.tokenizer.num_template_tokens + 1,
            limit=self.config.max_position_embeddings,
            folder=self.files.folder,
        )

    @property
    def truncate_dim(self) -> int | None:
        """Leading dimensions that vectors keep, None for all; it may be set."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, truncate_dim: int | None) -> None:
        check_dim(truncate_dim, self.config.hidden_size)
        self._truncate_dim = truncate_dim

    @property
    def dim(self) -> int:
        """Width of the vectors that `encode` gives."""
        return check_dim(self.truncate_dim, self.config.hidden_size)

    # What one call's settings come to.

    def vector_format(
        self,
        truncate_dim: int | None = None,
        *,
        normalize_embeddings: bool = False,
        precision: str = "float32",
        ranges: torch.Tensor | None = None,
    ) -> VectorFormat:
        """Resolve how vectors are asked for; this alone decides that a vector which is cut is normalised.

        Raises:
            ConfigError: a width that the model does not have, or a precision that does not go with it.
        """
        chosen = self.truncate_dim if truncate_dim is None else truncate_dim
        dim = check_dim(chosen, self.config.hidden_size)
        normalize = normalize_embeddings or self.spec.normalize or dim < self.config.hidden_size
        return VectorFormat(dim, normalize, precision, ranges)

    def resolve_prompt(
        self, prompt_name: str | None = None, prompt: str | None = None, kind: Kind | None = None
    ) -> str:
        """Find the prompt to put before every text: the caller's own, one by name, or the kind's.

        Raises:
            ConfigError: an unknown name, with the known ones listed, or a prompt that is no text.
        """
        if prompt is None:
            prompt = choose_prompt(self.prompts, prompt_name, self.default_prompt_name, kind)
        return check_prompt(prompt)

    def encode_options(
        self, function: str, prompt_name: str | None, prompt: str | None, kwargs: EncodeKwargs
    ) -> EncodeOptions:
        """Resolve all settings of one call of `function`.

        Raises:
            ConfigError: a setting that the model does not allow.
            TypeError: a keyword that there is not.
        """
        check_keywords(function, kwargs, EncodeKwargs)
        wanted = self.vector_format(
            kwargs.get("truncate_dim"),
            normalize_embeddings=kwargs.get("normalize_embeddings", False),
            precision=kwargs.get("precision", "float32"),
            ranges=kwargs.get("ranges"),
        )
        resolved = self.resolve_prompt(prompt_name, prompt)
        return EncodeOptions(resolved, self.max_length, wanted, kwargs.get("too_long", "cut"))

    # Comparing, and knowing what may be compared.

    def similarity(self, a: Vectors, b: Vectors) -> torch.Tensor:
        """Compare every vector of a with every one of b by the model's own similarity: [N, M] fp32."""
        return similarity(a, b, self.spec.similarity)

    def similarity_pairwise(self, a: Vectors, b: Vectors) -> torch.Tensor:
        """Compare row i of a with row i of b by the model's own similarity: [N] fp32."""
        return similarity_pairwise(a, b, self.spec.similarity)

    def space_fingerprint(
        self, truncate_dim: int | None = None, *, normalize_embeddings: bool = False
    ) -> str:
        """Hash what a vector's meaning depends on: vectors may be compared where it is equal."""
        wanted = self.vector_format(truncate_dim, normalize_embeddings=normalize_embeddings)
        # A vector that is cut is normalised whatever was asked: that alone makes no space of its own.
        whole = wanted.dim == self.config.hidden_size
        return _fingerprint(
            weights=self.checkpoint.fingerprint,
            tokenizer=self.tokenizer.file_hash,
            config=self.config.numeric_settings(),
            normalize=wanted.normalize if whole else self.spec.normalize,
            dim=wanted.dim,
        )

    def run_fingerprint(
        self,
        prompt: str = "",
        precision: str = "float32",
        truncate_dim: int | None = None,
        ranges: torch.Tensor | None = None,
        *,
        normalize_embeddings: bool = False,
    ) -> str:
        """Hash the settings that a file of vectors depends on.

        The device, threads and max_batch_tokens are not in it: under other ones vectors may round differently.
        """
        return _fingerprint(
            space=self.space_fingerprint(truncate_dim, normalize_embeddings=normalize_embeddings),
            prompt=prompt,
            dtype=str(self.dtype),
            quantize=quantize_identity(self.quantize, self.device),
            max_length=self.max_length,
            precision=precision,
            ranges=None if ranges is None else ranges.tolist(),
        )


class HasInfo(Protocol):
    """An `Embedder`, as far as `FromInfo` knows it."""

    info: ModelInfo


class FromInfo(Generic[Got, Put]):
    """An attribute of an `Embedder` that is its `info`'s: read there and set there."""

    def __init__(self, name: str, doc: str) -> None:
        self._name, self.__doc__ = name, doc

    @overload
    def __get__(self, embedder: None, kind: type) -> Self: ...
    @overload
    def __get__(self, embedder: HasInfo, kind: type) -> Got: ...
    def __get__(self, embedder: HasInfo | None, kind: type) -> Self | Got:
        return self if embedder is None else getattr(embedder.info, self._name)

    def __set__(self, embedder: HasInfo, value: Put) -> None:
        setattr(embedder.info, self._name, value)


def _fingerprint(**settings: object) -> str:
    """Hash named settings to 16 hexadecimal digits; equal settings in any order give equal hashes."""
    versions = {"version": FINGERPRINT_VERSION, "numerics": NUMERICS_VERSION}
    text = json.dumps(versions | settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Which published model a name or folder stands for.


def known_name(model: str, known: Collection[str]) -> str:
    """Map a model name or folder to the hub id among `known` that it bears, else return it as it is."""
    folder = expanded(model)
    own = folder.absolute().name.lower() if folder.is_dir() else None
    for name in known:
        if model.lower() == name.lower() or own == name.lower().split("/")[1]:
            return name
    return model


def published(model: str, facts: Mapping[str, T], where: str, what: str) -> T:
    """Find what is known about a published model, by its hub id or its folder's name.

    Raises:
        ConfigError: nothing is known; `where` and `what` begin its message, as in "card" and "no table is known".
    """
    name = known_name(model, facts)
    if name not in facts:
        raise ConfigError(
            where,
            what,
            got=repr(model),
            expected=f"one of: {some(facts)}",
            remedy="Where MODEL does not say which, name it with --as (in Python known_as).",
        )
    return facts[name]
