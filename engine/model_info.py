"""What a model is and how it would run, before any weight is read: files, config, prompts, limits, device and dtype.

`embedder.py` builds on it. Knows no forward.
"""

import os
from collections.abc import Mapping
from typing import TypedDict, Unpack

import torch

from lastword.errors import ConfigError
from lastword.identity import fingerprint
from lastword.options import (
    Kind,
    check_dim,
    check_max_length,
    check_prompt,
    check_prompts,
    choose_prompt,
)
from lastword.runtime.device import check_quantize, choose_devices, choose_dtype, quantize_identity
from lastword.similarity import Vectors, similarity, similarity_pairwise
from lastword.text.tokenizer import TextTokenizer
from lastword.weights import (
    BUILTIN_NOTICE,
    Checkpoint,
    locate,
    read_config,
    read_embedding_spec,
)


class Where(TypedDict, total=False):
    """Where a model comes from, as huggingface-hub takes it."""

    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None
    local_files_only: bool


class OpenedModel:
    """A model's files and the caller's settings, in force once both are known to fit; all are as `Embedder` takes them.

    Raises:   ConfigError, WeightsError or DeviceError, each a line that says what to do.
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
        **where: Unpack[Where],
    ) -> None:
        if model == "":
            raise ConfigError(
                "model: the name is empty; got '', expected a hub id or folder, or none for the built-in model."
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
        self._tokenizer = TextTokenizer(self.files.folder, self.config.vocab_size)
        self.max_length = max_length
        self.truncate_dim = truncate_dim
        self.checkpoint = self._open_checkpoint()

    def _open_checkpoint(self) -> Checkpoint:
        """Open the weights; the model benchmark puts random ones in their place."""
        return Checkpoint(self.files.folder, self.config)

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
            least=self._tokenizer.num_template_tokens + 1,
            limit=self.config.max_position_embeddings,
            folder=self.files.folder,
        )

    @property
    def max_seq_length(self) -> int:
        """`max_length` under sentence-transformers' name; it may be set."""
        return self.max_length

    @max_seq_length.setter
    def max_seq_length(self, max_length: int | None) -> None:
        self.max_length = max_length

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
        return self._dim(None)

    def get_embedding_dimension(self) -> int:
        """`dim` under sentence-transformers' name."""
        return self.dim

    def _dim(self, truncate_dim: int | None) -> int:
        """The width of one call's vectors: its own, else the model's."""
        chosen = self.truncate_dim if truncate_dim is None else truncate_dim
        return check_dim(chosen, self.config.hidden_size)

    def resolve_prompt(
        self, prompt_name: str | None = None, prompt: str | None = None, kind: Kind | None = None
    ) -> str:
        """Find the prefix to put before every text: the prompt itself, one by name, or the kind's own.

        Raises:   ConfigError for an unknown name, listing the known ones, and for a prompt that is no text.
        """
        if prompt is None:
            prompt = choose_prompt(self.prompts, prompt_name, self.default_prompt_name, kind)
        return check_prompt(prompt)

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
        dim = self._dim(truncate_dim)
        asked = normalize_embeddings and dim == self.config.hidden_size  # one that is cut always is
        return fingerprint(
            weights=self.checkpoint.fingerprint,
            tokenizer=self._tokenizer.file_hash,
            config=repr(self.config),
            normalize=self.spec.normalize or asked,
            dim=dim,
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
        return fingerprint(
            space=self.space_fingerprint(truncate_dim, normalize_embeddings=normalize_embeddings),
            prompt=prompt,
            dtype=str(self.dtype),
            quantize=quantize_identity(self.quantize, self.device),
            max_length=self.max_length,
            precision=precision,
            ranges=None if ranges is None else ranges.tolist(),
        )
