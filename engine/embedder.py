"""The public surface: one object that opens a checkpoint, resolves prompts and settings, and embeds.

The work is done by `runtime/loop.py`; what callers may set, and what holds where they do not, is decided here and in
`model_info.py`.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Never, Self, Unpack, overload

import torch
from torch import Tensor

from lastword.model.hidden_states import layer_numbers
from lastword.model.postprocess import quantize
from lastword.model_info import FromInfo, ModelInfo, ModelKwargs
from lastword.options import EncodeKwargs, check_batch_tokens, check_keywords
from lastword.progress import progress_bar
from lastword.report import Report
from lastword.runtime.loop import Loop
from lastword.runtime.pool import open_runner
from lastword.runtime.runner import ModelLoader, Runner, StatesTask
from lastword.similarity import Vectors
from lastword.text.groups import several
from lastword.text.prompts import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Embedder:
    """A Qwen3-family embedding model, loaded and ready.

    `info` says what the model is (`ModelInfo`), `loop` is what computes (`runtime.loop.Loop`).

    Loading a CPU model changes the process it is in: the C library keeps freed memory for the next batch, and the
    variables ONEDNN_PRIMITIVE_CACHE_CAPACITY and LRU_CACHE_CAPACITY are set where they are not (without effect where
    torch has multiplied matrices before). `tune_process=False` leaves both out.

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
        max_batch_tokens: int | None = None,
        cuda_graphs: bool = True,
        show_progress_bar: bool | None = None,
        tune_process: bool = True,
        runner: Runner | None = None,
        **kwargs: Unpack[ModelKwargs],
    ) -> None:
        check_keywords("Embedder", kwargs, ModelKwargs)
        check_batch_tokens(max_batch_tokens)
        self.info = info = ModelInfo(model, **kwargs)
        if runner is None:
            parts = (info.checkpoint, info.config, info.dtype, info.quantize)
            load = ModelLoader(*parts, cuda_graphs=cuda_graphs, tune_process=tune_process)
            runner = open_runner(load, info.devices, show=show_progress_bar)
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

    @overload
    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: bool,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> "Tensor | NDArray[Any]": ...

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
        options = self.info.encode_options("encode", prompt_name, prompt, kwargs)
        report = kwargs.get("report") or Report()
        with progress_bar(len(listed), show=kwargs.get("show_progress_bar")) as advance:
            matrices = list(self.loop.matrices(listed, options, report, advance))
        if not matrices:
            wanted = options.format
            matrices = [quantize(torch.empty(0, wanted.dim), wanted.precision, wanted.ranges)]
        vectors = torch.cat(matrices)
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

    @overload
    def encode_query(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: bool,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> "Tensor | NDArray[Any]": ...

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

    @overload
    def encode_document(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: bool,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> "Tensor | NDArray[Any]": ...

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

        On a GPU or several devices the next vectors are computed, in a thread of their own, while one is used. Do not
        wait for the whole device (`torch.cuda.synchronize`) meanwhile: it breaks the recording of CUDA graphs off.

        Args:
            texts: read some groups ahead, by the thread that takes the vectors.
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

        On a GPU or several devices the next groups are computed, in a thread of their own, while one is used.
        """
        return self._matrices("encode_groups", texts, prompt_name, prompt, kwargs)

    def plan(
        self, texts: Iterable[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> Report:
        """Count what embedding these texts would compute, without computing it."""
        return self.loop.plan(
            several(texts), self.info.encode_options("plan", prompt_name, prompt, {})
        )

    # Looking inside.

    def token_ids(
        self, texts: Sequence[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> list[list[int]]:
        """Give the token ids that `encode` computes for each text: prompt, text, end token, cut to max_length."""
        options = self.info.encode_options("token_ids", prompt_name, prompt, {})
        return list(self.loop.token_ids(several(texts), options))

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
        options = self.info.encode_options("hidden_states", prompt_name, prompt, {})
        listed, done = list(several(texts)), 0
        states = torch.empty(len(listed), len(task.layers), config.hidden_size)
        for found in self.loop.matrices(listed, options, Report(), lambda _: None, task=task):
            states[done : done + len(found)] = found
            done += len(found)
        return states

    # What the model says of itself, under the names that sentence-transformers' callers use.

    name = FromInfo[str, Never]("name", "The hub id or folder that was opened.")
    notices = FromInfo[tuple[str, ...], Never]("notices", "What the user should know, a line each.")
    device = FromInfo[torch.device, Never]("device", "Where it computes, of several the first.")
    dtype = FromInfo[torch.dtype, Never]("dtype", "What it computes in.")
    dim = FromInfo[int, Never]("dim", "Width of the vectors that `encode` gives.")
    max_length = FromInfo[int, int | None](
        "max_length",
        "Tokens that a text may have, the end token included; None sets the model's own.",
    )
    max_seq_length = FromInfo[int, int | None]("max_length", "sentence-transformers' name for it.")
    truncate_dim = FromInfo[int | None, int | None](
        "truncate_dim", "Leading dimensions that vectors keep, None for all."
    )
    prompts = FromInfo[dict[str, str], Mapping[str, str]]("prompts", "The prompts by name.")
    default_prompt_name = FromInfo[str | None, str | None](
        "default_prompt_name", "The prompt where none is named, if any."
    )

    def get_embedding_dimension(self) -> int:
        """Give `dim` under sentence-transformers' name."""
        return self.dim

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

    def _matrices(
        self,
        function: str,
        texts: Iterable[str],
        prompt_name: str | None,
        prompt: str | None,
        kwargs: EncodeKwargs,
    ) -> Iterator[Tensor]:
        """Check everything now, compute when the first matrix is asked for."""
        options = self.info.encode_options(function, prompt_name, prompt, kwargs)
        report, many = kwargs.get("report") or Report(), several(texts)

        def matrices() -> Iterator[Tensor]:
            with progress_bar(None, show=kwargs.get("show_progress_bar")) as advance:
                yield from self.loop.matrices(many, options, report, advance, ahead=True)

        return matrices()
