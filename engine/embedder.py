"""The public surface: one object that opens a checkpoint, resolves prompts and settings, and embeds.

The work is done by `runtime/loop.py`; what callers may set, and what holds where they do not, is decided here and in
`model_info.py`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

import torch
from torch import Tensor

from lastword.errors import DeviceError, InputError
from lastword.model.hidden_states import layer_numbers
from lastword.model.postprocess import quantize as quantize_vectors
from lastword.model_info import ModelInfo
from lastword.options import EncodeKwargs, EncodeOptions, check_batch_tokens, check_keywords
from lastword.progress import progress_bar
from lastword.report import Report
from lastword.runtime.loop import Loop
from lastword.runtime.pool import Pool
from lastword.runtime.runner import InProcess, ModelLoader, Runner, StatesTask
from lastword.similarity import Vectors
from lastword.text.prompts import Kind
from lastword.weights import Checkpoint, ModelConfig, WeightsSource, dtype_name

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Embedder:
    """A Qwen3-family embedding model, loaded and ready.

    `info` says what the model is (`ModelInfo`), `loop` is what computes (`runtime.loop.Loop`).

    Loading a CPU model changes the process it is in: the C library keeps freed memory for the next batch, the
    variables ONEDNN_PRIMITIVE_CACHE_CAPACITY and LRU_CACHE_CAPACITY are set where they are not (without effect where
    torch has multiplied matrices before), and torch's warning that NumPy is missing is not shown. `tune_process=False`
    leaves all of it out.

    Args:
        model: hub id or folder; None is the small built-in model (see `notices`).
        device: "cpu", "cuda", "cuda:1"; default the first GPU, else the CPU. "cuda:0,1" and "cuda:all" compute on
            several GPUs, a process each ("cpu,cpu" does so on the CPU); vectors come in the same order.
        dtype: "float32" or "bfloat16"; default float32 on a CPU, bfloat16 on a GPU.
        quantize: 8-bit matmuls, faster at a small drift: "int8" on a CPU, "fp8" on a GPU; default none.
        revision, cache_dir, token, local_files_only: as huggingface-hub takes them.
        max_length: tokens a text may have, the end token included; default as sentence-transformers reads it.
        max_batch_tokens: tokens computed in one forward; a longer text is a batch of its own. By default what suits the
            device, on a GPU its free memory too; where memory runs out all the same, smaller batches follow for a
            while, with a warning.
        prompts: name -> prompt, beside the checkpoint's own and in place of those of the same name.
        truncate_dim: keep this many leading dimensions (renormalised).
        cuda_graphs: replay small batches on a GPU as CUDA graphs: the same vectors, sooner; each size of batch is
            recorded when it first comes. False saves that time and memory.
        show_progress_bar: of the weights as they load; default: on a terminal, when it takes over a second.
        tune_process: see above.
        open_checkpoint: opens the weights of a folder; benchmarks put random ones in their place.
        runner: computes batches in place of a model that is loaded here; tests and servers bring their own.

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
        tune_process: bool = True,
        open_checkpoint: Callable[[Path, ModelConfig], WeightsSource] = Checkpoint,
        runner: Runner | None = None,
    ) -> None:
        check_batch_tokens(max_batch_tokens)
        self.info = info = ModelInfo(
            model,
            device=device,
            dtype=dtype,
            quantize=quantize,
            max_length=max_length,
            prompts=prompts,
            truncate_dim=truncate_dim,
            open_checkpoint=open_checkpoint,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        load = ModelLoader(
            info.checkpoint, info.config, info.dtype, quantize, cuda_graphs, tune_process
        )
        runner = runner or _open_runner(info, load, show_progress_bar)
        self.loop = Loop(info.tokenizer, runner, max_batch_tokens)

    @property
    def max_batch_tokens(self) -> int:
        """Tokens computed in one forward; it may be set, to None for what suits the devices."""
        return self.loop.budget.limit

    @max_batch_tokens.setter
    def max_batch_tokens(self, max_batch_tokens: int | None) -> None:
        check_batch_tokens(max_batch_tokens)
        self.loop.budget.limit = max_batch_tokens or self.loop.runner.batch_tokens

    def close(self) -> None:
        """End the processes of several devices, if there are any; they end with the Embedder and with Python too."""
        self.loop.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Encoding.

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: Literal[False] = False,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: bool,
        convert_to_tensor: Literal[True],
        **kwargs: Unpack[EncodeKwargs],
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: Literal[True],
        convert_to_tensor: Literal[False] = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> "NDArray[Any]": ...

    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,  # noqa: ARG002  sentence-transformers' callers pass it
        convert_to_numpy: bool = False,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> "Tensor | NDArray[Any]":
        """Embed texts: one vector for a str, a matrix [N, dim] in the caller's order for a sequence.

        Args:
            texts: what to embed.
            prompt_name: which of `prompts` goes before every text.
            prompt: a prompt of your own; it wins over `prompt_name`.
            batch_size: accepted for sentence-transformers' callers, without effect: batches are cut by tokens.
            convert_to_numpy: return a NumPy array (where NumPy is installed).
            convert_to_tensor: return a tensor even so; it wins, as in sentence-transformers.
            kwargs: precision, truncate_dim, ranges, too_long, normalize_embeddings, report, show_progress_bar; see
                `lastword.options.EncodeKwargs`.

        Returns:
            torch.Tensor on the CPU, float32 or the precision's own dtype.

        Raises:
            InputError: names a text by its index.
            ConfigError: a setting.
        """
        listed: Sequence[str] = [texts] if isinstance(texts, str) else list(texts)
        options = self._options("encode", prompt_name, prompt, kwargs)
        report = kwargs.get("report") or Report()
        with progress_bar(len(listed), show=kwargs.get("show_progress_bar")) as advance:
            matrices = list(self.loop.matrices(listed, options, report, advance))
        wanted = options.format
        empty = quantize_vectors(torch.empty(0, wanted.dim), wanted.precision, wanted.ranges)
        vectors = torch.cat(matrices) if matrices else empty
        result = vectors[0] if isinstance(texts, str) else vectors
        return result.numpy() if convert_to_numpy and not convert_to_tensor else result

    @overload
    def encode_query(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: Literal[False] = False,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> Tensor: ...

    @overload
    def encode_query(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: bool,
        convert_to_tensor: Literal[True],
        **kwargs: Unpack[EncodeKwargs],
    ) -> Tensor: ...

    @overload
    def encode_query(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: Literal[True],
        convert_to_tensor: Literal[False] = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> "NDArray[Any]": ...

    def encode_query(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **kwargs: Any,
    ) -> "Tensor | NDArray[Any]":
        """Embed queries: `encode` with the prompt named "query", if there is one and no other is named."""
        resolved = self.resolve_prompt(prompt_name, prompt, "query")
        result: Tensor | NDArray[Any] = self.encode(texts, None, resolved, **kwargs)
        return result

    @overload
    def encode_document(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: Literal[False] = False,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> Tensor: ...

    @overload
    def encode_document(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: bool,
        convert_to_tensor: Literal[True],
        **kwargs: Unpack[EncodeKwargs],
    ) -> Tensor: ...

    @overload
    def encode_document(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: Literal[True],
        convert_to_tensor: Literal[False] = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> "NDArray[Any]": ...

    def encode_document(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **kwargs: Any,
    ) -> "Tensor | NDArray[Any]":
        """Embed documents: `encode` with the prompt named "document", if there is one and no other is named."""
        resolved = self.resolve_prompt(prompt_name, prompt, "document")
        result: Tensor | NDArray[Any] = self.encode(texts, None, resolved, **kwargs)
        return result

    def encode_stream(
        self,
        texts: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **kwargs: Unpack[EncodeKwargs],
    ) -> Iterator[Tensor]:
        """Yield one vector [dim] per text, in order and in constant memory.

        Args:
            texts: read some groups ahead; on a GPU or several devices in a thread of their own.
            prompt_name: as for `encode`.
            prompt: as for `encode`.
            kwargs: as for `encode`; counts are added to `report` as the work goes on.

        Raises:
            ConfigError: a setting, at once.
            InputError: names a text by its index, after the vectors of all groups before its own.
        """
        groups = self._matrices("encode_stream", texts, prompt_name, prompt, kwargs)
        return (vector for matrix in groups for vector in matrix)

    def encode_groups(
        self,
        texts: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **kwargs: Unpack[EncodeKwargs],
    ) -> Iterator[Tensor]:
        """Yield a matrix [n, dim] per group of up to 4,096 texts: `encode_stream` for those who write or compare many.

        On a GPU or several devices the next groups are computed while one is used.
        """
        return self._matrices("encode_groups", texts, prompt_name, prompt, kwargs)

    def plan(
        self, texts: Iterable[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> Report:
        """Count what embedding these texts would compute, without computing it."""
        return self.loop.plan(_several(texts), self._options("plan", prompt_name, prompt, {}))

    # Looking inside.

    def token_ids(
        self, texts: Sequence[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> list[list[int]]:
        """Give the token ids that `encode` computes for each text: prompt, text, end token, cut to max_length."""
        options = self._options("token_ids", prompt_name, prompt, {})
        groups = self.loop.groups(_several(texts), options)
        return [list(item.ids) for group in groups for item in group.items]

    def hidden_states(
        self,
        texts: Sequence[str],
        layers: Sequence[int] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Tensor:
        """Give the hidden state of each text's last token after the named layers.

        Args:
            texts: what to compute.
            layers: numbered as transformers numbers `hidden_states`: 0 the token's embedding, i the residual stream
                after layer i, L (or -1) after the final norm; default all of them, 0 … L.
            prompt_name: as for `encode`.
            prompt: as for `encode`.

        Returns:
            [N, len(layers), C] fp32 on the CPU, neither cut nor normalised.

        Raises:
            InputError: names a text by its index.
            ConfigError: a layer that is not there.
        """
        config = self.info.config
        task = StatesTask(layer_numbers(layers, config.num_hidden_layers))
        options = self._options("hidden_states", prompt_name, prompt, {})
        states = self.loop.matrices(_several(texts), options, Report(), lambda _: None, task=task)
        return torch.cat([torch.empty(0, len(task.layers), config.hidden_size), *states])

    # What the model says of itself, under the names that sentence-transformers' callers use.

    @property
    def name(self) -> str:
        """The hub id or folder that was opened."""
        return self.info.name

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about the model, a line each."""
        return self.info.notices

    @property
    def device(self) -> torch.device:
        """Where it computes, of several devices the first."""
        return self.info.device

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts by name."""
        return self.info.prompts

    @property
    def dim(self) -> int:
        """Width of the vectors that `encode` gives."""
        return self.info.dim

    def get_embedding_dimension(self) -> int:
        """Give `dim` under sentence-transformers' name."""
        return self.info.dim

    @property
    def max_length(self) -> int:
        """Tokens that a text may have, the end token included; it may be set, to None for the model's own."""
        return self.info.max_length

    @max_length.setter
    def max_length(self, max_length: int | None) -> None:
        self.info.max_length = max_length

    max_seq_length = max_length  # sentence-transformers' name

    @property
    def truncate_dim(self) -> int | None:
        """Leading dimensions that vectors keep, None for all; it may be set."""
        return self.info.truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, truncate_dim: int | None) -> None:
        self.info.truncate_dim = truncate_dim

    def resolve_prompt(
        self, prompt_name: str | None = None, prompt: str | None = None, kind: Kind | None = None
    ) -> str:
        """Find the prompt to put before every text, see `ModelInfo.resolve_prompt`."""
        return self.info.resolve_prompt(prompt_name, prompt, kind)

    def similarity(self, a: Vectors, b: Vectors) -> Tensor:
        """Compare every vector of a with every one of b by the model's own similarity: [N, M] fp32."""
        return self.info.similarity(a, b)

    def similarity_pairwise(self, a: Vectors, b: Vectors) -> Tensor:
        """Compare row i of a with row i of b by the model's own similarity: [N] fp32."""
        return self.info.similarity_pairwise(a, b)

    # One call's settings.

    def _options(
        self, function: str, prompt_name: str | None, prompt: str | None, kwargs: EncodeKwargs
    ) -> EncodeOptions:
        check_keywords(function, kwargs)
        wanted = self.info.vector_format(
            kwargs.get("truncate_dim"),
            normalize_embeddings=kwargs.get("normalize_embeddings", False),
            precision=kwargs.get("precision", "float32"),
            ranges=kwargs.get("ranges"),
        )
        resolved = self.resolve_prompt(prompt_name, prompt)
        return EncodeOptions(resolved, self.info.max_length, wanted, kwargs.get("too_long", "cut"))

    def _matrices(
        self,
        function: str,
        texts: Iterable[str],
        prompt_name: str | None,
        prompt: str | None,
        kwargs: EncodeKwargs,
    ) -> Iterator[Tensor]:
        """Check everything now, compute when the first matrix is asked for."""
        options = self._options(function, prompt_name, prompt, kwargs)
        report, several = kwargs.get("report") or Report(), _several(texts)

        def matrices() -> Iterator[Tensor]:
            with progress_bar(None, show=kwargs.get("show_progress_bar")) as advance:
                yield from self.loop.matrices(several, options, report, advance, ahead=True)

        return matrices()


def _open_runner(info: ModelInfo, load: ModelLoader, show: bool | None) -> Runner:  # noqa: FBT001
    """Load the model, on several devices in a process for each."""
    try:
        if len(info.devices) > 1:
            return Pool(replace(load, tune_process=True), info.devices)
        layers = info.config.num_hidden_layers
        with progress_bar(layers, show=show, unit=" layers", what="Loading") as loaded:
            return InProcess(load(info.device, loaded))
    except torch.OutOfMemoryError as error:
        names = ", ".join(map(str, info.devices))
        raise DeviceError(
            "device",
            "the model does not fit in the memory that is free",
            got=f"{names} and {dtype_name(info.dtype)} weights",
            expected="room for them",
            remedy="Use bfloat16, fp8 or another device, or free memory there.",
        ) from error


def _several(texts: Iterable[str]) -> Iterable[str]:
    """Refuse one str where several are expected: its items are its characters."""
    if isinstance(texts, str):
        raise InputError(
            "texts",
            "a single str, which is not taken here",
            got="str",
            expected="a list or an iterator of them",
            remedy="Put it in a list.",
        )
    return texts
