"""The public surface: one object that opens a checkpoint, resolves prompts and settings, and embeds.

The work is `encoder.py`'s; what callers may set, and what is set where they do not, is decided here.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from lastword.errors import DeviceError, InputError
from lastword.model.hidden_states import layer_numbers
from lastword.model.postprocess import quantize
from lastword.model.qwen3 import Model
from lastword.model_info import OpenedModel
from lastword.options import EncodeOptions, TooLong, check_batch_tokens
from lastword.progress import progress_bar
from lastword.report import Report
from lastword.runtime.encoder import Encoder
from lastword.runtime.pool import Pool
from lastword.runtime.runner import InProcess, Runner


class Embedder(OpenedModel):
    """A Qwen3-family embedding model, loaded and ready.

    Args:
        model: hub id or folder; None is the small built-in model (see `notices`).
        device: "cpu", "cuda", "cuda:1"; default the first GPU, else the CPU. "cuda:0,1" and "cuda:all" compute on
            several GPUs, a process each ("cpu,cpu" does so on the CPU); vectors come in the same order.
        dtype: "float32" or "bfloat16"; default float32 on a CPU, bfloat16 on a GPU.
        quantize: 8-bit matrix products, faster at a small drift: "int8" on a CPU, "fp8" on a GPU; default none.
        revision, cache_dir, token, local_files_only: as huggingface-hub takes them.
        max_length: tokens a text may have, the end token included; default as sentence-transformers reads it.
        max_batch_tokens: tokens computed in one forward; a longer text is a batch of its own. By default what suits the
            device, on a GPU its free memory too; halved, with a warning, where memory runs out all the same.
        prompts: name -> prefix, beside the checkpoint's own and in place of those of the same name.
        truncate_dim: keep this many leading dimensions (renormalised).
        cuda_graphs: replay small batches on a GPU as CUDA graphs: the same vectors, sooner; each size of batch is
            recorded when it first comes. False saves that time and memory.
        show_progress_bar: of the weights as they load; default: on a terminal, when it takes over a second.
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
        cuda_graphs: bool = True,
        show_progress_bar: bool | None = None,
    ) -> None:
        check_batch_tokens(max_batch_tokens)
        super().__init__(
            model,
            device=device,
            dtype=dtype,
            quantize=quantize,
            max_length=max_length,
            prompts=prompts,
            truncate_dim=truncate_dim,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        self._encoder = Encoder(
            self._tokenizer,
            self._open_runner(cuda_graphs=cuda_graphs, show=show_progress_bar),
            self.config.hidden_size,
            max_batch_tokens,
        )

    def _open_runner(self, *, cuda_graphs: bool, show: bool | None) -> Runner:
        """Load the model, on several devices in a process for each."""
        load = partial(
            Model,
            self.checkpoint,
            self.config,
            dtype=self.dtype,
            quantize=self.quantize,
            cuda_graphs=cuda_graphs,
        )
        try:
            if len(self.devices) > 1:
                return Pool(load, self.devices)
            layers = self.config.num_hidden_layers
            with progress_bar(layers, show=show, unit=" layers", what="Loading") as loaded:
                return InProcess(load(device=self.device, loaded=loaded))
        except torch.OutOfMemoryError as error:
            names, dtype = ", ".join(map(str, self.devices)), str(self.dtype).removeprefix("torch.")
            raise DeviceError(
                f"device: the model does not fit in the memory that is free; got {names} and {dtype} weights, expected "
                "room for them. Use bfloat16, fp8 or another device, or free memory there."
            ) from error

    @property
    def max_batch_tokens(self) -> int:
        """Tokens computed in one forward; it may be set, to None for what suits the devices."""
        return self._encoder.max_batch_tokens

    @max_batch_tokens.setter
    def max_batch_tokens(self, max_batch_tokens: int | None) -> None:
        check_batch_tokens(max_batch_tokens)
        self._encoder.max_batch_tokens = max_batch_tokens or self._encoder.runner.batch_tokens

    def close(self) -> None:
        """End the processes of several devices, if there are any; they end with the Embedder and with Python too."""
        self._encoder.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        report: Report | None = None,
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
            report: counts are added to it: texts cut, tokens asked for and computed.
        Returns: torch.Tensor on the CPU, float32 or the precision's own dtype.
        Raises:  InputError naming the text by its index; ConfigError for a setting.
        """
        single = isinstance(texts, str)
        listed: Sequence[str] = [texts] if isinstance(texts, str) else list(texts)
        options = self._options(
            prompt_name,
            prompt,
            truncate_dim,
            normalize=normalize_embeddings,
            precision=precision,
            ranges=ranges,
            too_long=too_long,
        )
        counts = Report() if report is None else report
        with progress_bar(len(listed), show=show_progress_bar) as advance:
            windows = list(self._encoder.windows(listed, options, counts, advance))
        empty = torch.empty(0, options.dim)
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
        prefix = self.resolve_prompt(prompt_name, prompt, "query")
        return self.encode(texts, None, prefix, **options)

    def encode_document(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> Any:
        """Embed documents: `encode` with the prompt named "document", if there is one and no other is named."""
        prefix = self.resolve_prompt(prompt_name, prompt, "document")
        return self.encode(texts, None, prefix, **options)

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
        normalize_embeddings: bool = False,
        report: Report | None = None,
        show_progress_bar: bool | None = None,
    ) -> Iterator[Tensor]:
        """Yield one vector [dim] a text, in order and in constant memory, reading `texts` some windows ahead.

        Args:     report: counts are added to it as the work goes on; the rest as for `encode`.
        """
        options = self._options(
            prompt_name,
            prompt,
            truncate_dim,
            normalize=normalize_embeddings,
            precision=precision,
            ranges=ranges,
            too_long=too_long,
        )
        several, counts = _several(texts), Report() if report is None else report
        with progress_bar(None, show=show_progress_bar) as advance:
            for window in self._encoder.windows(several, options, counts, advance):
                yield from window

    def plan(
        self, texts: Iterable[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> Report:
        """Count what embedding these texts would compute, without computing it."""
        return self._encoder.plan(_several(texts), self._options(prompt_name, prompt))

    # Looking inside.

    def token_ids(
        self, texts: Sequence[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> list[list[int]]:
        """Give the token ids that `encode` computes for each text: prompt, text, end token, cut to max_length."""
        return self._encoder.token_ids(_several(texts), self._options(prompt_name, prompt))

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
        options = self._options(prompt_name, prompt)
        return self._encoder.hidden_states(_several(texts), numbers, options)

    def _options(
        self,
        prompt_name: str | None,
        prompt: str | None,
        truncate_dim: int | None = None,
        *,
        normalize: bool = False,
        **others: Any,
    ) -> EncodeOptions:
        """Resolve the settings of one call; a vector that is cut is always normalised."""
        dim = self._dim(truncate_dim)
        normalize = normalize or self.spec.normalize or dim < self.config.hidden_size
        prefix = self.resolve_prompt(prompt_name, prompt)
        return EncodeOptions(prefix, self.max_length, dim, normalize, **others)


def _several(texts: Iterable[str]) -> Iterable[str]:
    """Refuse one str where several are expected: its items are its characters."""
    if isinstance(texts, str):
        raise InputError(
            "texts: a single str, which is not taken here; got str, expected a list or an iterator of them. "
            "Put it in a list."
        )
    return texts
