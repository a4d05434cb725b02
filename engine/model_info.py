"""A model without its weights: its files, config, tokenizer, prompts, limits, device, dtype and fingerprints.

An `Embedder` has a `ModelInfo`, and a `Reranker` a `RerankerInfo` (`reranker_info.py`). This module runs no model:
`Embedder` and `Reranker` add the loop that does.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import SupportsIndex, TypedDict, TypeVar, Unpack, cast

import torch

from lastword.arguments import Numbers, as_switch, short_repr
from lastword.encode_options import (
    EncodeKwargs,
    EncodeOptions,
    GroupKwargs,
    check_dim,
    check_functions,
    check_max_length,
    check_report,
    check_switches,
    known_keywords,
)
from lastword.errors import ConfigError, list_some
from lastword.model.postprocess import VectorFormat
from lastword.model.prompt_cache import MAX_BYTES, MAX_PROMPT_BYTES, MAX_PROMPTS
from lastword.runtime.device import (
    check_quantize,
    check_quantized_layers,
    choose_devices,
    choose_dtype,
    quantize_identity,
)
from lastword.similarity import Vectors, similarity, similarity_pairwise
from lastword.text.prompts import (
    Kind,
    check_choice,
    check_prompt,
    check_prompts,
    choose_prompt,
)
from lastword.text.rerank_template import is_for_pairs, is_named_reranker
from lastword.text.tokenizer import TextTokenizer
from lastword.weights import (
    BUILTIN_NOTICE,
    Checkpoint,
    EmbeddingSpec,
    ModelConfig,
    RerankerSpec,
    WeightsSource,
    check_pipeline,
    check_tokens,
    expand_home,
    loaded_bytes,
    locate,
    read_chat_template,
    read_config,
    read_embedding_spec,
)

# Incremented when the set of settings in the space or run fingerprint changes, so that files by older versions are
# recognised as such.
FINGERPRINT_VERSION = 2
# Incremented when a change in lastword's arithmetic changes vectors by more than rounding.
NUMERICS_VERSION = 1

# Settings passed to huggingface-hub, each with its accepted types: in words for messages, and as classes. None is
# accepted for every setting.
_HUB_TYPES: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "revision": ("a str", (str,)),
    "cache_dir": ("a str or a path", (str, os.PathLike)),
    "token": ("a str or a bool", (str, bool)),
}

T = TypeVar("T")

_RERANKER_NOTICE = (
    "{folder}: its name says that it is a reranker, whose vectors are of little use; "
    "to score documents, use lastword rerank or lastword.Reranker"
)


class HubOptions(TypedDict, total=False):
    """Keyword arguments that say where to find a model; passed to huggingface-hub."""

    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None
    local_files_only: bool


class OpenKwargs(HubOptions, total=False):
    """Keyword arguments of `OpenedModel`; `Embedder` describes them."""

    device: str | torch.device | None
    dtype: str | torch.dtype | None
    quantize: str | None
    max_length: SupportsIndex | None
    prompts: Mapping[str, str] | None


class ModelKwargs(OpenKwargs, total=False):
    """Keyword arguments of `ModelInfo`. `Embedder` describes them, and passes them on."""

    truncate_dim: SupportsIndex | None
    open_checkpoint: Callable[[Path, ModelConfig], WeightsSource]


class OpenedModel:
    """What `ModelInfo` and `RerankerInfo` have in common: files, device, tokenizer, prompts, limits.

    A subclass reads the settings of its kind of model. `Embedder` describes the arguments.

    Raises:
        ConfigError: a setting is not accepted.
        WeightsError: the checkpoint is incomplete, damaged or inconsistent.
        DeviceError: the device is missing or cannot compute as requested.
    """

    spec: EmbeddingSpec | RerankerSpec
    checkpoint: WeightsSource
    notices: tuple[str, ...] = ()
    _also: tuple[str, ...] = ()  # more files to fetch for this kind of model

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        max_length: SupportsIndex | None = None,
        prompts: Mapping[str, str] | None = None,
        **where: Unpack[HubOptions],
    ) -> None:
        _check_source(model, where)
        self.devices = choose_devices(device)
        self.device = self.devices[0]
        self.dtype = choose_dtype(dtype, self.device)
        for each in self.devices:
            check_quantize(quantize, each, self.dtype)
        self.quantize = quantize
        files = locate(model, also=self._also, **where)
        # An absolute path stays right if the process changes its working directory.
        self.files = replace(files, folder=files.folder.absolute())
        self.name = self.files.name
        self.config, self.spec = self._read_settings(self.files.folder)
        check_quantized_layers(quantize, self.config.num_hidden_layers)
        self.prompts = {**self.spec.prompts, **check_prompts(prompts)}
        self.default_prompt_name = self.spec.default_prompt_name
        self.tokenizer = self._open_tokenizer()
        check_tokens(self.spec.tokenizer, self.tokenizer.added_tokens)
        check_pipeline(self.spec.tokenizer, qwen=self.tokenizer.has_qwen_pipeline)
        self.max_length = max_length

    def _read_settings(self, folder: Path) -> "tuple[ModelConfig, EmbeddingSpec | RerankerSpec]":
        """Read config.json, and the settings that the checkpoint's other files hold."""
        raise NotImplementedError

    def _open_tokenizer(self) -> TextTokenizer:
        """Open the tokenizer; called once the settings are read."""
        raise NotImplementedError

    def identity(self) -> str:
        """Return a fingerprint of the model that does not depend on the settings that can be changed."""
        raise NotImplementedError

    @property
    def prompt_cache(self) -> dict[str, int] | None:
        """The limits of the prompt cache, which keeps the keys and values of prompts between calls; None on a GPU.

        max_prompts and max_bytes limit the whole cache; a prompt of more than max_prompt_tokens is not kept;
        bytes_per_token is the memory for the keys and values of one token.
        """
        if self.device.type != "cpu":
            return None
        token_bytes = self.config.keys_values_bytes(self.dtype.itemsize)
        return {
            "max_prompts": MAX_PROMPTS,
            "max_bytes": MAX_BYTES,
            "bytes_per_token": token_bytes,
            "max_prompt_tokens": MAX_PROMPT_BYTES // token_bytes,
        }

    @property
    def weights_bytes(self) -> int:
        """Bytes that the weights will take in the memory of each device.

        On a CPU, the token embeddings stay in the memory-mapped file and are not counted. An int8 model keeps some rows
        of its weights in fp32. Which rows these are is known only after loading, so here all rows count as int8.
        """
        layers = range(self.config.num_hidden_layers)
        quantized = {None: layers[:0], "int8": layers, "fp8": layers[1:-1]}[self.quantize]
        on_gpu = self.device.type != "cpu"
        return loaded_bytes(self.config, self.dtype.itemsize, table=on_gpu, quantized=quantized)

    # Settings that can be changed.

    @property
    def max_length(self) -> int:
        """Maximum tokens per text or pair, prompt or template included. Can be set; None restores the default."""
        return self._max_length

    @max_length.setter
    def max_length(self, max_length: SupportsIndex | None) -> None:
        self._max_length = check_max_length(
            max_length,
            default=self.spec.max_length,
            least=self.tokenizer.num_template_tokens + 1,
            limit=self.config.max_position_embeddings,
            folder=self.files.folder,
            beyond=self.config.more_positions(),
        )

    @property
    def prompts(self) -> dict[str, str]:
        """The texts of the prompts by name. Can be set."""
        return self._prompts

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        self._prompts = check_prompts(prompts)

    @property
    def default_prompt_name(self) -> str | None:
        """Name of the prompt for calls that give no prompt; None for no prompt. Can be set."""
        return self._default_prompt_name

    @default_prompt_name.setter
    def default_prompt_name(self, default_prompt_name: str | None) -> None:
        check_choice(default_prompt_name, None, where="default_prompt_name")
        self._default_prompt_name = default_prompt_name


class ModelInfo(OpenedModel):
    """An embedding model without its weights: its files and the caller's settings, checked against each other.

    `Embedder` describes the arguments, and has others that concern only running the model.

    Raises:
        ConfigError: a setting is not accepted.
        WeightsError: the checkpoint is incomplete, damaged or inconsistent.
        DeviceError: the device is missing or cannot compute as requested.
    """

    spec: EmbeddingSpec

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        truncate_dim: SupportsIndex | None = None,
        open_checkpoint: Callable[[Path, ModelConfig], WeightsSource] = Checkpoint,
        **kwargs: Unpack[OpenKwargs],
    ) -> None:
        super().__init__(model, **kwargs)
        folder, own = self.files.folder, None
        # There is a notice only without modules.json, which would say that this is an embedding model.
        if self.spec.notice is not None and is_named_reranker(folder, self.name):
            own = _RERANKER_NOTICE.format(folder=folder)
        notices = (BUILTIN_NOTICE if model is None else None, self.spec.notice, own)
        self.notices = tuple(notice for notice in notices if notice is not None)
        self.truncate_dim = self.spec.truncate_dim if truncate_dim is None else truncate_dim
        self.checkpoint = open_checkpoint(self.files.folder, self.config)

    def _read_settings(self, folder: Path) -> tuple[ModelConfig, EmbeddingSpec]:
        config = read_config(folder)
        spec = read_embedding_spec(folder, config)
        if spec.notice is not None:  # there is no modules.json to say that it is an embedding model
            _refuse_reranker(folder)
        return config, spec

    def _open_tokenizer(self) -> TextTokenizer:
        side = self.spec.tokenizer.truncation_side
        return TextTokenizer(self.files.folder, self.config.vocab_size, truncation_side=side)

    @property
    def truncate_dim(self) -> int | None:
        """Number of leading dimensions to keep; None keeps all. Can be set."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, truncate_dim: SupportsIndex | None) -> None:
        dim = check_dim(truncate_dim, self.config.hidden_size)
        self._truncate_dim = None if truncate_dim is None else dim

    @property
    def dim(self) -> int:
        """Number of dimensions of the vectors that `encode` returns."""
        return check_dim(self.truncate_dim, self.config.hidden_size)

    # Settings of one call.

    def vector_format(
        self,
        truncate_dim: SupportsIndex | None = None,
        *,
        normalize_embeddings: bool = False,
        precision: str = "float32",
        ranges: Numbers | None = None,
    ) -> VectorFormat:
        """Return the format of a call's vectors; without `truncate_dim` or `normalize_embeddings`, the model decides.

        Truncated vectors are always normalised. The arguments are those of `lastword.encode_options.EncodeKwargs`.

        Raises:
            ConfigError: a setting is not accepted, or `precision` does not fit the number of dimensions or the ranges.
        """
        chosen = self.truncate_dim if truncate_dim is None else truncate_dim
        dim = check_dim(chosen, self.config.hidden_size)
        asked = as_switch(normalize_embeddings, "normalize_embeddings")
        normalize = asked or self.spec.normalize or dim < self.config.hidden_size
        return VectorFormat(dim, normalize, precision, cast("torch.Tensor | None", ranges))

    def resolve_prompt(
        self, prompt_name: str | None = None, prompt: str | None = None, kind: Kind | None = None
    ) -> str:
        """Return the prompt to put before every text.

        Args:
            prompt_name: name of one of `prompts`; by default `default_prompt_name`, unless `kind` is given.
            prompt: the prompt itself; takes precedence over `prompt_name`.
            kind: "query" or "document". Without `prompt_name` and `prompt`, the model's prompt of that name is used, or
                no prompt if the model has none of that name.

        Raises:
            ConfigError: the name is unknown (the known ones are listed), or the prompt is not valid text.
        """
        check_choice(prompt_name, kind)
        if prompt is None:
            prompt = choose_prompt(self.prompts, prompt_name, self.default_prompt_name, kind)
        return check_prompt(prompt)

    def encode_options(
        self,
        function: str,
        prompt_name: str | None,
        prompt: str | None,
        kwargs: EncodeKwargs | GroupKwargs,
    ) -> EncodeOptions:
        """Check all settings of one call, and fill in the defaults.

        Args:
            function: name of the method of `Embedder` that was called.
            prompt_name: as for `resolve_prompt`.
            prompt: as for `resolve_prompt`.
            kwargs: the other keyword arguments of the call.

        Raises:
            ConfigError: a setting is not accepted.
            TypeError: a keyword is unknown.
        """
        known = GroupKwargs if function == "encode_groups" else EncodeKwargs
        kwargs = cast("GroupKwargs", known_keywords(function, kwargs, known))
        check_report(kwargs.get("report"))
        check_switches(show_progress_bar=kwargs.get("show_progress_bar"))
        functions = {name: kwargs.get(name) for name in ("on_error", "on_done", "on_rows")}
        check_functions(**functions)
        wanted = self.vector_format(
            kwargs.get("truncate_dim"),
            normalize_embeddings=kwargs.get("normalize_embeddings", False),
            precision=kwargs.get("precision", "float32"),
            ranges=kwargs.get("ranges"),
        )
        resolved = self.resolve_prompt(prompt_name, prompt)
        return EncodeOptions(
            resolved,
            self.max_length,
            wanted,
            kwargs.get("too_long", "cut"),
            kwargs.get("on_error"),
            kwargs.get("on_done"),
            kwargs.get("on_rows"),
        )

    def identity(self) -> str:
        """Return the space fingerprint of the model's untruncated vectors, whatever `truncate_dim` is."""
        return self.space_fingerprint(self.config.hidden_size)

    # Similarity, and fingerprints that say which vectors can be compared.

    def similarity(self, a: Vectors, b: Vectors) -> torch.Tensor:
        """Compare every vector of a with every vector of b, using the model's similarity function: [N, M] fp32."""
        return similarity(a, b, self.spec.similarity)

    def similarity_pairwise(self, a: Vectors, b: Vectors) -> torch.Tensor:
        """Compare row i of a with row i of b, using the model's similarity function: [N] fp32."""
        return similarity_pairwise(a, b, self.spec.similarity)

    def space_fingerprint(
        self, truncate_dim: SupportsIndex | None = None, *, normalize_embeddings: bool = False
    ) -> str:
        """Hash the weights, tokenizer and settings that give a vector its meaning.

        Vectors with the same hash can be compared. The arguments are those of `lastword.encode_options.EncodeKwargs`.

        Returns:
            16 hexadecimal digits.
        """
        wanted = self.vector_format(truncate_dim, normalize_embeddings=normalize_embeddings)
        # Truncated vectors are always normalised, so for them the caller's choice must not change the hash.
        whole = wanted.dim == self.config.hidden_size
        return fingerprint(
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
        truncate_dim: SupportsIndex | None = None,
        ranges: Numbers | None = None,
        *,
        normalize_embeddings: bool = False,
        chunking: Mapping[str, str] | None = None,
    ) -> str:
        """Hash what a file of vectors depends on, besides its texts: the space, the prompt and the settings of the run.

        The device, the number of threads and max_batch_tokens are left out, although they may change the rounding.

        Args:
            prompt: the text of the prompt.
            precision: as for `EncodeKwargs`.
            truncate_dim: as for `EncodeKwargs`.
            ranges: as for `EncodeKwargs`.
            normalize_embeddings: as for `EncodeKwargs`.
            chunking: how texts were split into chunks, as settings by name; None if they were not split.

        Returns:
            16 hexadecimal digits.
        """
        given = self.vector_format(truncate_dim, precision=precision, ranges=ranges)
        _check_chunking(chunking)
        return fingerprint(
            space=self.space_fingerprint(truncate_dim, normalize_embeddings=normalize_embeddings),
            prompt=check_prompt(prompt),
            dtype=str(self.dtype),
            quantize=quantize_identity(self.quantize, self.device),
            max_length=self.max_length,
            # The truncation side is hashed only if it is not the usual one: older fingerprints stay valid.
            **({} if self.tokenizer.truncation_side == "right" else {"truncation_side": "left"}),
            precision=precision,
            ranges=None if given.ranges is None else given.ranges.tolist(),
            **({} if chunking is None else {"chunking": dict(chunking)}),
        )


def _check_chunking(chunking: object) -> None:
    """Raise ConfigError unless `chunking` is None or a mapping of str to str."""
    if chunking is None or (
        isinstance(chunking, Mapping)
        and all(isinstance(each, str) for pair in chunking.items() for each in pair)
    ):
        return
    expected = "a mapping of str to str, or None"
    raise ConfigError("chunking", "of the wrong type", got=short_repr(chunking), expected=expected)


def _refuse_reranker(folder: Path) -> None:
    """Raise ConfigError if a model's chat template is for pairs of a query and a document."""
    template = read_chat_template(folder)
    if template is not None and is_for_pairs(template):
        raise ConfigError(
            f"{folder}: chat template",
            "is for pairs of a query and a document",
            got="a reranker",
            expected="an embedding model",
            remedy="Use lastword rerank, or lastword.Reranker in Python.",
        )


def _check_source(model: object, hub: Mapping[str, object]) -> None:
    """Raise ConfigError if a model's name is empty, or if the name or a setting in `hub` is of the wrong type."""
    expected = "a Hugging Face id or folder, or None for the built-in model"
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else model
    if name is not None and not isinstance(name, str):
        raise ConfigError("model", "not a name or folder", got=short_repr(model), expected=expected)
    if name == "":
        raise ConfigError("model", "the name is empty", got="''", expected=expected)
    for key, (expected, kinds) in _HUB_TYPES.items():
        value = hub.get(key)
        if value is not None and not isinstance(value, kinds):
            raise ConfigError(key, "of the wrong type", got=short_repr(value), expected=expected)
    as_switch(hub.get("local_files_only", False), "local_files_only")


def fingerprint(**settings: object) -> str:
    """Hash named settings, in any order, to 16 hexadecimal digits."""
    versions = {"version": FINGERPRINT_VERSION, "numerics": NUMERICS_VERSION}
    text = json.dumps(versions | settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Lookup of facts about published models, by Hugging Face id or folder name.


def find_known_name(model: str, known: Collection[str]) -> str:
    """Return the Hugging Face id in `known` that matches `model`; if there is none, return `model`.

    An id matches if `model` is this id, or a folder whose name is the part of the id after the slash. Upper and lower
    case are not distinguished.
    """
    folder = expand_home(model)
    own = folder.absolute().name.lower() if os.path.isdir(folder) else None
    for name in known:
        if model.lower() == name.lower() or own == name.lower().split("/")[1]:
            return name
    return model


def find_published(model: str, facts: Mapping[str, T], where: str, what: str) -> T:
    """Return the facts about a published model, by its Hugging Face id or its folder's name.

    Args:
        model: Hugging Face id or folder.
        facts: the known facts, by Hugging Face id.
        where: first part of the error message, such as "card".
        what: second part of the error message, such as "no table is known".

    Raises:
        ConfigError: nothing is known about this model.
    """
    name = find_known_name(model, facts)
    if name not in facts:
        raise ConfigError(
            where,
            what,
            got=repr(model),
            expected=f"one of: {list_some(facts)}",
            remedy="Give the published model's id with known_as.",
        )
    return facts[name]
