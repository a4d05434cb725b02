"""Texts in, vectors out: the only orchestrator, from prompts to the caller's order.

texts ─ tokens ─► token ids ─ forest ─► Forest ─ model ─► final states ─ finish ─► vectors
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lastword.device import (
    check_quantize,
    choose_device,
    choose_dtype,
    default_batch_tokens,
    quantize_identity,
)
from lastword.finish import finish, quantize
from lastword.forest import Forest, plan_forests
from lastword.identity import file_hash, fingerprint
from lastword.model import Model
from lastword.pipeline import compute_windows, count, prepare_windows
from lastword.progress import progress_bar
from lastword.report import Report
from lastword.settings import (
    EncodeOptions,
    Kind,
    TooLong,
    check_batch_tokens,
    check_dim,
    check_max_length,
    choose_prompt,
)
from lastword.similarity import similarity, similarity_pairwise
from lastword.states import last_token_states, layer_numbers
from lastword.tokens import TextTokenizer, Tokens
from lastword.weights import BUILTIN_NOTICE, Checkpoint, locate, read_config, read_embedding_spec
from lastword.windows import cut_windows


class Embedder:
    """A Qwen3-family embedding model, loaded and ready.

    Args:
        model: hub id or folder; None is the small built-in model (see `notices`).
        device: "cpu", "cuda", "cuda:1"; default the first GPU, else the CPU.
        dtype: "float32" or "bfloat16"; default float32 on a CPU, bfloat16 on a GPU.
        quantize: 8-bit matrix products, faster at a small drift: "int8" on a CPU, "fp8" on a GPU; default none.
        revision, cache_dir, token, local_files_only: as huggingface-hub takes them.
        max_length: tokens a text may have, the end token included; default as sentence-transformers reads it.
        max_batch_tokens: tokens computed in one forward; a longer text is a batch of its own.
        prompts: name -> prefix, beside the checkpoint's own and in place of those of the same name.
        truncate_dim: keep this many leading dimensions (renormalised).
    Raises: ConfigError, WeightsError or DeviceError, each a line that says what to do.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        prompts: Mapping[str, str] | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.quantize = check_quantize(quantize, self.device, self.dtype)
        self.files = locate(
            model,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        self.name = self.files.name
        self.config = read_config(self.files.folder)
        self.spec = read_embedding_spec(self.files.folder, self.config)
        notices = (BUILTIN_NOTICE if model is None else None, self.spec.notice)
        self.notices = tuple(notice for notice in notices if notice is not None)
        self.prompts = {**self.spec.prompts, **(prompts or {})}
        self.default_prompt_name = self.spec.default_prompt_name
        self._tokenizer = TextTokenizer(self.files.folder, self.config.vocab_size)
        self.max_length = self._check_max_length(max_length)
        self.max_batch_tokens = check_batch_tokens(
            max_batch_tokens, default_batch_tokens(self.device)
        )
        self.truncate_dim = truncate_dim
        self._size = self.config.hidden_size
        self.dim = check_dim(truncate_dim, self._size)
        self.checkpoint = self._open_checkpoint()
        self._model = Model(self.checkpoint, self.config, self.device, self.dtype, self.quantize)

    def _check_max_length(self, max_length: int | None) -> int:
        return check_max_length(
            max_length,
            default=self.spec.max_length,
            least=self._tokenizer.num_template_tokens + 1,
            limit=self.config.max_position_embeddings,
        )

    @property
    def max_seq_length(self) -> int:
        """`max_length` under sentence-transformers' name; it may be set."""
        return self.max_length

    @max_seq_length.setter
    def max_seq_length(self, max_length: int) -> None:
        self.max_length = self._check_max_length(max_length)

    def _open_checkpoint(self) -> Checkpoint:
        """Open the weights; the model benchmark puts random ones in their place."""
        return Checkpoint(self.files.folder, self.config)

    def resolve_prompt(
        self, prompt_name: str | None = None, prompt: str | None = None, kind: Kind | None = None
    ) -> str:
        """Find the prefix to put before every text: the prompt itself, one by name, or the kind's own.

        Raises:   ConfigError for an unknown name, listing the known ones.
        """
        if prompt is not None:
            return prompt
        return choose_prompt(self.prompts, prompt_name, self.default_prompt_name, kind)

    # Encoding.

    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,  # noqa: ARG002 (sentence-transformers' callers pass it)
        show_progress_bar: bool | None = None,
        precision: str = "float32",
        truncate_dim: int | None = None,
        ranges: Tensor | None = None,
        too_long: TooLong = "cut",
        convert_to_numpy: bool = False,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
    ) -> Any:
        """Embed texts: one vector for a str, a matrix [N, dim] in the caller's order for a sequence.

        Args:
            texts: what to embed.
            prompt_name: which of `prompts` goes before every text.
            prompt: a prefix of your own; it wins over `prompt_name`.
            batch_size: accepted for sentence-transformers' callers, without effect: batches are cut by tokens.
            show_progress_bar: default: on a terminal, when the work is long.
            precision: float32, float16, int8, uint8, binary or ubinary, see `finish.quantize`.
            truncate_dim: leading dimensions to keep; the vector is normalised after the cut.
            ranges: [2, dim] for int8 (optional) and uint8.
            too_long: "cut" keeps max_length tokens with the end token, "error" refuses the text.
            convert_to_numpy: return a NumPy array (where NumPy is installed).
            convert_to_tensor: return a tensor even so; it wins, as in sentence-transformers.
            normalize_embeddings: length 1 also where the checkpoint does not normalise.
        Returns: torch.Tensor on the CPU, float32 or the precision's own dtype.
        Raises:  InputError naming the text by its index; ConfigError for a setting.
        """
        single = isinstance(texts, str)
        listed: Sequence[str] = [texts] if isinstance(texts, str) else list(texts)
        prefix = self.resolve_prompt(prompt_name, prompt)
        dim = self._dim(truncate_dim)
        options = EncodeOptions(prefix, precision, dim, ranges, too_long, normalize_embeddings)
        with progress_bar(len(listed), show=show_progress_bar) as advance:
            windows = list(self._windows(iter(listed), options, Report(), advance))
        empty = torch.empty(0, dim)
        vectors = torch.cat(windows) if windows else quantize(empty, precision, ranges)
        result = vectors[0] if single else vectors
        return result.numpy() if convert_to_numpy and not convert_to_tensor else result

    def encode_query(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> Any:
        """Embed queries: `encode` with the prompt named "query", if there is one and no other is named."""
        return self.encode(
            texts, None, self.resolve_prompt(prompt_name, prompt, "query"), **options
        )

    def encode_document(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> Any:
        """Embed documents: `encode` with the prompt named "document", if there is one and no other is named."""
        return self.encode(
            texts, None, self.resolve_prompt(prompt_name, prompt, "document"), **options
        )

    def encode_stream(
        self,
        texts: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        precision: str = "float32",
        truncate_dim: int | None = None,
        ranges: Tensor | None = None,
        too_long: TooLong = "cut",
        report: Report | None = None,
        show_progress_bar: bool | None = None,
    ) -> Iterator[Tensor]:
        """Yield one vector [dim] a text, in order and in constant memory, reading `texts` a window ahead.

        Args:     report: counts are added to it as the work goes on; the rest as for `encode`.
        """
        prefix = self.resolve_prompt(prompt_name, prompt)
        options = EncodeOptions(prefix, precision, self._dim(truncate_dim), ranges, too_long)
        counts = Report() if report is None else report
        with progress_bar(None, show=show_progress_bar) as advance:
            for window in self._windows(iter(texts), options, counts, advance):
                yield from window

    def plan(
        self, texts: Iterable[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> Report:
        """Count what embedding these texts would compute, without computing it."""
        prefix = self.resolve_prompt(prompt_name, prompt)
        options = EncodeOptions(prefix, "float32", self.dim, None, "cut")
        report = Report()
        prepare = partial(self._forests, options)
        for window in prepare_windows(cut_windows(iter(texts)), prepare, ahead=False):
            for forest in window.forests:
                count(forest, window.counts)
            report.add(window.counts)
        return report

    # Looking inside.

    def token_ids(
        self, texts: Sequence[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> list[list[int]]:
        """Give the token ids that `encode` computes for each text: prompt, text, end token, cut to max_length."""
        prefix = self.resolve_prompt(prompt_name, prompt)
        ids: list[list[int]] = []
        for window in cut_windows(iter(texts)):
            ids += self._tokens(window, len(ids), prefix).ids
        return ids

    def hidden_states(
        self,
        texts: Sequence[str],
        layers: Sequence[int] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Tensor:
        """Give the hidden state of each text's last token after the named layers.

        Args:     layers: numbered as transformers numbers `hidden_states`: 0 the token's embedding, i the residual
                  stream after layer i, L (or -1) after the final norm; default all of them, 0 … L.
        Returns:  [N, len(layers), C] fp32 on the CPU, neither cut nor normalised.
        Raises:   InputError naming a text by its index; ConfigError for a layer that is not there.
        """
        numbers = layer_numbers(layers, self.config.num_hidden_layers)
        ids = self.token_ids(texts, prompt_name, prompt)
        return last_token_states(self._model, ids, self.max_batch_tokens, numbers)

    def _dim(self, truncate_dim: int | None) -> int:
        return self.dim if truncate_dim is None else check_dim(truncate_dim, self._size)

    def _windows(
        self,
        texts: Iterator[str],
        options: EncodeOptions,
        report: Report,
        advance: Callable[[int], None],
    ) -> Iterator[Tensor]:
        """Yield the vectors [n, dim] of one window of texts after another."""
        normalize = self.spec.normalize or options.normalize or options.dim < self._size

        def compute(forest: Forest) -> Tensor:
            return finish(self._model.forward(forest), options.dim, normalize=normalize)

        ahead = self.device.type != "cpu"
        windows = prepare_windows(cut_windows(texts), partial(self._forests, options), ahead=ahead)
        for vectors in compute_windows(windows, compute, options.dim, report, advance):
            yield quantize(vectors, options.precision, options.ranges)

    def _forests(
        self, options: EncodeOptions, window: list[str], first: int, counts: Report
    ) -> Iterator[Forest]:
        tokens = self._tokens(window, first, options.prefix)
        if options.too_long == "error":
            tokens.refuse_cut(self.max_length, first=first)
        counts.cut += sum(tokens.cut)
        yield from plan_forests(tokens.ids, self.max_batch_tokens)

    def _tokens(self, texts: list[str], first: int, prefix: str) -> Tokens:
        prefixed = [prefix + text for text in texts] if prefix else texts
        return self._tokenizer.encode(prefixed, self.max_length, first=first)

    # Comparing, and knowing what may be compared.

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare every vector of a with every one of b by the model's own similarity: [N, M] fp32."""
        return similarity(a, b, self.spec.similarity)

    def similarity_pairwise(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare row i of a with row i of b by the model's own similarity: [N] fp32."""
        return similarity_pairwise(a, b, self.spec.similarity)

    def get_embedding_dimension(self) -> int:
        """Width of the vectors that `encode` gives."""
        return self.dim

    def space_fingerprint(self, truncate_dim: int | None = None) -> str:
        """Hash what a vector's meaning depends on: vectors may be compared where it is equal."""
        return fingerprint(
            weights=self.checkpoint.fingerprint(),
            tokenizer=file_hash(self.files.folder / "tokenizer.json"),
            config=repr(self.config),
            normalize=self.spec.normalize,
            dim=self._dim(truncate_dim),
        )

    def run_fingerprint(
        self,
        prompt: str = "",
        precision: str = "float32",
        truncate_dim: int | None = None,
        ranges: Tensor | None = None,
    ) -> str:
        """Hash what a file of vectors depends on, the texts aside: the same run gives the same file."""
        return fingerprint(
            space=self.space_fingerprint(truncate_dim),
            prompt=prompt,
            dtype=str(self.dtype),
            quantize=quantize_identity(self.quantize, self.device),
            max_length=self.max_length,
            precision=precision,
            ranges=None if ranges is None else ranges.tolist(),
        )
