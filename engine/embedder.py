"""`Embedder`, the main public class: it opens a checkpoint, checks the settings of each call, and embeds texts.

How a text becomes a vector, driven by `runtime/loop.py`:

    text ─ `text/groups.py` ─► group ─ `text/tokenizer.py` ─► token ids ─ `batching/forest.py` ─► forest
    forest ─ `EmbedTask` in `runtime/runner.py` ─► one vector per distinct text ─ `runtime/results.py` ─► one per text

`EmbedTask` runs the forward of `model/qwen3.py`, which returns the final hidden state of each text's last token. Then
`postprocess` of `model/postprocess.py` truncates and normalises these vectors. `results.py` converts them to the
requested precision, and the loop puts them in the caller's order. This module and `model_info.py` define the settings
and their defaults.
"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex, Unpack

import torch
from torch import Tensor

from lastword.base.opening import Opening
from lastword.base.properties import EmbedderProperties
from lastword.base.reopen import Reopenable
from lastword.encode_options import (
    EncodeKwargs,
    GroupKwargs,
    Texts,
    encode_method,
    known_keywords,
    wants_numpy,
)
from lastword.model.postprocess import to_precision
from lastword.model_info import ModelInfo, ModelKwargs
from lastword.progress import progress_bar
from lastword.report import Report
from lastword.runtime.runner import Runner, states_task
from lastword.text.groups import list_texts, require_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Embedder(EmbedderProperties, Reopenable):
    """A Qwen3-family embedding model, loaded and ready to use.

    The attribute `info` describes the model (`ModelInfo`); `loop` computes the vectors (`runtime.loop.Loop`).

    An Embedder can be used from several threads at once; each call uses the settings as they were when it began. It
    can be copied and pickled (see `base/reopen.py`). A forked process must open an Embedder of its own.

    Loading a model on the CPU changes settings of the whole process. The C library keeps freed memory for the next
    batch. The environment variables ONEDNN_PRIMITIVE_CACHE_CAPACITY and LRU_CACHE_CAPACITY are set to 64, and
    THP_MEM_ALLOC_ENABLE to 1, unless they are already set; torch reads them once, at its first matmul or tensor.
    `tune_process=False` prevents all of this.

    If torch is not imported yet, `from lastword import Embedder` also sets GOMP_SPINCOUNT to 10000, unless the user has
    set it or OMP_WAIT_POLICY. Waiting threads then sleep sooner, so embedding slows down less on a busy machine.

    Args:
        model: Hugging Face id or folder; None loads the small built-in model, which is for trials only.
        device: "cpu", "cuda" or "cuda:1"; by default the first GPU, or the CPU if there is no GPU. "cuda:0,1" and
            "cuda:all" compute on several GPUs with one process per GPU, and "cpu,cpu" on the CPU with two processes;
            the vectors still come in the order of the texts.
        dtype: compute dtype, "float32" or "bfloat16"; by default float32 on a CPU and bfloat16 on a GPU.
        quantize: "int8" on a CPU or "fp8" on a GPU computes matmuls in 8 bits, faster but with a small quantisation
            error; by default matmuls are not quantised.
        revision, cache_dir, token, local_files_only: passed to huggingface-hub. A folder has no revisions, so
            `revision` together with a folder is an error.
        max_length: maximum tokens per text, including its prompt and end token; by default the limit that
            sentence-transformers would read from the checkpoint.
        max_batch_tokens: maximum tokens computed in one forward; a longer text is a batch of its own. The default
            depends on the device and, on a GPU, on its free memory. If memory still runs out, batches are smaller for
            a while, with a warning.
        prompts: prompts by name, added to those of the checkpoint; a prompt of the same name replaces the checkpoint's.
        truncate_dim: number of leading dimensions to keep; the vectors are then scaled to length 1. By default the
            number that the checkpoint sets, or all.
        cuda_graphs: whether `warm_up` records CUDA graphs on a GPU, as which small batches then run: the same vectors
            in less time. Without a call of `warm_up` nothing is recorded. False saves the time and memory of the
            recordings.
        show_progress_bar: whether to show a bar while the weights load; by default on a terminal, if loading takes more
            than a second.
        tune_process: whether to change the process as described above.
        open_checkpoint: function that opens the weights: `open_checkpoint(folder, config)` returns a `WeightsSource`.
            Benchmarks pass a function that returns random weights.
        runner: a `runtime.runner.Runner`, which computes the batches; no model is then loaded. For tests.

    Raises:
        ConfigError: a setting is not accepted.
        WeightsError: the checkpoint is incomplete, damaged or inconsistent.
        DeviceError: the device is missing or cannot compute as requested.
    """

    info: ModelInfo
    _settings = ("max_length", "truncate_dim", "prompts", "default_prompt_name")

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        max_batch_tokens: SupportsIndex | None = None,
        cuda_graphs: bool = True,
        show_progress_bar: bool | None = None,
        tune_process: bool = True,
        runner: Runner | None = None,
        **kwargs: Unpack[ModelKwargs],
    ) -> None:
        how = Opening(max_batch_tokens, cuda_graphs, show_progress_bar, tune_process, runner)
        self.info = ModelInfo(model, **known_keywords("Embedder", kwargs, ModelKwargs))
        self._share(how, kwargs)
        self.loop = how.open_loop(self.info)

    # Encoding.

    @encode_method
    def encode(
        self,
        texts: Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: SupportsIndex | None = None,
        convert_to_numpy: bool = False,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> "Tensor | NDArray[Any]":
        """Embed texts: return a vector [dim] for a single str, or a matrix [N, dim] in the caller's order for several.

        Args:
            texts: one str, or a list, an iterator, an array or a column of str. The names `inputs` and `sentences` of
                sentence-transformers are accepted too.
            prompt_name: name of the entry of `prompts` to put before every text; by default `default_prompt_name`.
            prompt: the text of the prompt; it takes precedence over `prompt_name`.
            batch_size: ignored, because a batch is limited by its tokens; accepted as in sentence-transformers.
            convert_to_numpy: whether to return a NumPy array; needs NumPy.
            convert_to_tensor: whether to return a tensor; takes precedence over `convert_to_numpy`, as in
                sentence-transformers.
            kwargs: precision, truncate_dim, ranges, too_long, normalize_embeddings, report, show_progress_bar; see
                `lastword.encode_options.EncodeKwargs`.

        Returns:
            A tensor on the CPU, or a NumPy array with `convert_to_numpy`; float32, unless `precision` asks for another
            dtype. Vectors in binary and ubinary have dim/8 elements.

        Raises:
            InputError: a text cannot be embedded; the error's `index` is the position of the text.
            ConfigError: a setting is not accepted.
        """
        numpy = wants_numpy(
            batch_size, convert_to_numpy=convert_to_numpy, convert_to_tensor=convert_to_tensor
        )
        options = self.info.encode_options("encode", prompt_name, prompt, kwargs)
        listed = [texts] if isinstance(texts, str) else list_texts(texts)
        report, wanted = kwargs.get("report") or Report(), options.format
        nothing = torch.empty(0, wanted.dim, dtype=torch.float32, device="cpu")
        nothing = to_precision(nothing, wanted.precision, wanted.ranges)
        with progress_bar(len(listed), show=kwargs.get("show_progress_bar")) as advance:
            vectors = self.loop.gather(nothing, listed, options, report, advance)
        result = vectors[0] if isinstance(texts, str) else vectors
        return result.numpy() if numpy else result

    @encode_method
    def encode_query(
        self,
        texts: Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **kwargs: Any,
    ) -> "Tensor | NDArray[Any]":
        """Embed queries like `encode`, but by default with the prompt "query" or, if there is none, no prompt."""
        resolved = self.resolve_prompt(prompt_name, prompt, "query")
        result: Tensor | NDArray[Any] = self.encode(texts, None, resolved, **kwargs)
        return result

    @encode_method
    def encode_document(
        self,
        texts: Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **kwargs: Any,
    ) -> "Tensor | NDArray[Any]":
        """Embed documents like `encode`, but by default with the prompt "document" or, if there is none, no prompt."""
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

        On a GPU or on several devices, a background thread computes the next vectors while the caller uses one.

        Args:
            texts: an iterable of str. The thread that consumes the vectors also reads the texts, up to 16 groups ahead.
                A group has up to 4,096 texts.
            prompt_name: as for `encode`.
            prompt: as for `encode`.
            kwargs: as for `encode`; the counts of `report` grow as the vectors are consumed.

        Raises:
            ConfigError: a setting is not accepted; raised by this call, before any text is read.
            InputError: a text cannot be embedded; raised after the vectors of all earlier groups. The error's `index`
                is the position of the text.
        """
        groups = self._matrices("encode_stream", texts, prompt_name, prompt, kwargs)
        return (vector for matrix in groups for vector in matrix)

    def encode_groups(
        self,
        texts: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **kwargs: Unpack[GroupKwargs],
    ) -> Iterator[Tensor]:
        """Do the same as `encode_stream`, but yield one matrix [n, dim] per group of up to 4,096 texts.

        The arguments are those of `encode_stream`, plus `on_error`, `on_done` and `on_rows` (see
        `lastword.encode_options.GroupKwargs`). With `on_error`, a text that cannot be embedded does not end the run.
        """
        return self._matrices("encode_groups", texts, prompt_name, prompt, kwargs)

    def plan(
        self, texts: Iterable[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> Report:
        """Count the tokens and batches that `encode` would compute for these texts; only the tokenizer runs."""
        return self.loop.plan(
            require_texts(texts), self.info.encode_options("plan", prompt_name, prompt, {})
        )

    def warm_up(self) -> None:
        """Do the work that the first calls would do otherwise, so that a server answers all requests equally fast.

        This compiles kernels, embeds a query and a few documents, which starts threads, and computes the keys and
        values of the query prompt. On GPUs it also records CUDA graphs for small batches, which are launched kernel by
        kernel before; meanwhile do not call `torch.cuda.synchronize`, which would abort a recording.

        Raises:
            Exception: what a GPU kernel raises. A graph that cannot be recorded is a warning.
        """
        self.loop.warm_up()
        self.encode_query("one short query")
        self.encode_document([f"{number}: {'some words ' * 16}" for number in range(8)])

    # Looking inside.

    def token_ids(
        self, texts: Iterable[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> list[list[int]]:
        """Return the token ids that `encode` uses for each text: prompt, text and end token, cut to max_length."""
        options = self.info.encode_options("token_ids", prompt_name, prompt, {})
        return list(self.loop.token_ids(require_texts(texts), options))

    def hidden_states(
        self,
        texts: Iterable[str],
        layers: Iterable[SupportsIndex] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Tensor:
        """Return the hidden state of each text's last token after the given layers.

        Args:
            texts: the texts.
            layers: layer numbers as in transformers' `hidden_states`: 0 for the token's embedding, i for the residual
                stream after layer i, L (or -1) for the state after the final norm; by default all of them, 0 … L.
            prompt_name: as for `encode`.
            prompt: as for `encode`.

        Returns:
            [N, len(layers), C] fp32 on the CPU, neither truncated nor normalised.

        Raises:
            InputError: a text cannot be embedded; the error's `index` is the position of the text.
            ConfigError: a layer does not exist.
        """
        task, nothing = states_task(layers, self.info.config)
        options = self.info.encode_options("hidden_states", prompt_name, prompt, {})
        quiet = Report(), lambda _: None
        return self.loop.gather(nothing, list_texts(texts), options, *quiet, task=task)

    def _matrices(
        self,
        function: str,
        texts: Iterable[str],
        prompt_name: str | None,
        prompt: str | None,
        kwargs: GroupKwargs | EncodeKwargs,
    ) -> Iterator[Tensor]:
        """Check all settings now, and return an iterator that starts to compute when its first matrix is requested."""
        options = self.info.encode_options(function, prompt_name, prompt, kwargs)
        report, many = kwargs.get("report") or Report(), require_texts(texts)

        def matrices() -> Iterator[Tensor]:
            with progress_bar(None, show=kwargs.get("show_progress_bar")) as advance:
                done = options.on_done or advance
                yield from self.loop.matrices(many, options, report, done, ahead=True)

        return matrices()
