"""The public object for reranking: it opens a reranker and scores how relevant documents are to a query.

`runtime/loop.py`, which turns texts into vectors, also turns pairs of a query and a document into scores:
pair ─ `text/rerank_template.py` ─► text ─► token ids ─► forest ─► final hidden state of the last token ─► dot product
with the score row (`weights/reranker_spec.py`). The texts for one query begin with the same tokens, which the forest
computes once per batch.
"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex, TypedDict, Unpack

import torch
from torch import Tensor

from lastword.arguments import as_integer, as_switch, short_repr
from lastword.base.opening import Opening
from lastword.base.properties import FromInfo, ModelProperties
from lastword.base.reopen import Reopenable
from lastword.encode_options import (
    EncodeOptions,
    PredictKwargs,
    known_keywords,
    takes_inputs,
    wants_numpy,
)
from lastword.errors import InputError, count
from lastword.model_info import OpenKwargs
from lastword.progress import progress_bar
from lastword.report import Report
from lastword.reranker_info import Activation, RerankerInfo, activate
from lastword.runtime.results import ItemQueue
from lastword.runtime.runner import Runner, ScoreTask, states_task
from lastword.text.groups import list_texts
from lastword.text.pairs import Pair, list_pairs, name_pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

# One byte of text gives fewer tokens than this, even if the tokenizer normalises it first.
_TOKENS_PER_BYTE = 8


class _Ranked(TypedDict):
    corpus_id: int
    score: float


class Ranked(_Ranked, total=False):
    """A result of `rank`: a document's index in the caller's list (`corpus_id`), its score and, if requested, text."""

    text: str


class Reranker(ModelProperties, Reopenable):
    """A Qwen3-family reranker, loaded and ready.

    The attribute `info` describes the model (`RerankerInfo`); `loop` computes the scores (`runtime.loop.Loop`). A
    Reranker can be used from several threads at once. It can be copied and pickled (see `base/reopen.py`). A forked
    process must open a Reranker of its own.

    Args:
        model: Hugging Face id or folder of a causal reranker such as Qwen3-Reranker, or of a sequence classification
            model with one label.
        instruction: tells the model what makes a document relevant; by default the checkpoint's instruction.
        activation_fn: turns log-odds, a tensor [N, 1], into scores, for example `torch.nn.Identity()`. The default is
            the checkpoint's activation, usually the sigmoid, which gives probabilities.
        device, dtype, quantize, revision, cache_dir, token, local_files_only, max_batch_tokens, cuda_graphs,
            show_progress_bar, tune_process, runner: as for `Embedder`.
        max_length: maximum tokens per pair, template and instruction included. In a longer pair the document is cut,
            never the query or the instruction. The default is 8,192, or less if the checkpoint says so.
        prompts: instructions by name, added to those of the checkpoint.

    Raises:
        ConfigError: a setting is not accepted, or the model is not a reranker.
        WeightsError: the checkpoint is incomplete, damaged or inconsistent.
        DeviceError: the device is missing or cannot compute as requested.
    """

    info: RerankerInfo
    _settings = ("max_length", "prompts", "default_prompt_name", "instruction", "activation_fn")

    instruction = FromInfo[str | None, str | None](
        "instruction",
        "The instruction for calls that give none; None selects the checkpoint's instruction.",
    )
    activation_fn = FromInfo[Activation, Activation | None](
        "activation_fn",
        "Turns log-odds [N, 1] into scores; None selects the checkpoint's activation.",
    )

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        instruction: str | None = None,
        activation_fn: Activation | None = None,
        max_batch_tokens: SupportsIndex | None = None,
        cuda_graphs: bool = True,
        show_progress_bar: bool | None = None,
        tune_process: bool = True,
        runner: Runner | None = None,
        **kwargs: Unpack[OpenKwargs],
    ) -> None:
        how = Opening(max_batch_tokens, cuda_graphs, show_progress_bar, tune_process, runner)
        known = known_keywords("Reranker", kwargs, OpenKwargs)
        self.info = RerankerInfo(
            model, instruction=instruction, activation_fn=activation_fn, **known
        )
        self._share(how, kwargs)
        self.loop = how.open_loop(self.info, self.info.score_row)

    @takes_inputs("pairs")
    def predict(
        self,
        pairs: Pair | Iterable[Pair],
        *,
        convert_to_numpy: bool = False,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[PredictKwargs],
    ) -> "Tensor | NDArray[Any]":
        """Score pairs of a query and a document.

        Keep pairs with the same query together: the query's tokens are then computed once per batch, not once per pair.

        Args:
            pairs: pairs (query, document), or a single pair; the keywords `inputs` and `sentences` of
                sentence-transformers are accepted too.
            convert_to_numpy: return a NumPy array; needs NumPy.
            convert_to_tensor: return a tensor; takes precedence over `convert_to_numpy`, as in sentence-transformers.
            kwargs: see `lastword.encode_options.PredictKwargs`.

        Returns:
            The scores [N], fp32, on the CPU, in the caller's order; a scalar for a single pair.

        Raises:
            InputError: a pair cannot be scored; the error gives its index.
            ConfigError: a setting is not accepted.
        """
        numpy = wants_numpy(
            kwargs.get("batch_size"),
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
        )
        listed, single = list_pairs(pairs)
        scores = self._scores("predict", listed, kwargs, "pair")
        result = scores[0] if single else scores
        return result.numpy() if numpy else result

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: SupportsIndex | None = None,
        *,
        return_documents: bool = False,
        **kwargs: Unpack[PredictKwargs],
    ) -> list[Ranked]:
        """Score documents for a query, and sort them, the most relevant first.

        Args:
            query: the query.
            documents: the documents.
            top_k: number of documents to return; by default all.
            return_documents: whether to return the texts too.
            kwargs: see `lastword.encode_options.PredictKwargs`.

        Returns:
            For each document, its index in `documents` (`corpus_id`), its `score` as a float and, with
            `return_documents`, its `text`. Documents with equal scores keep their order.

        Raises:
            InputError: a document cannot be scored; the error gives its index.
            ConfigError: a setting is not accepted.
        """
        if top_k is not None:
            top_k = as_integer(top_k, "top_k", 1, expected="1 or more")
        if not isinstance(query, str):
            raise InputError("query", "not a string", got=short_repr(query), expected="str")
        wanted = as_switch(return_documents, "return_documents")
        listed = list_texts(documents)
        scores = self._scores("rank", [(query, each) for each in listed], kwargs, "document")
        order = scores.argsort(descending=True, stable=True).tolist()[:top_k]
        values = scores.tolist()
        ranked = [Ranked(corpus_id=index, score=values[index]) for index in order]
        if wanted:
            for each in ranked:
                each["text"] = listed[each["corpus_id"]]
        return ranked

    def plan(self, pairs: Iterable[Pair], **kwargs: Unpack[PredictKwargs]) -> Report:
        """Count the pairs, tokens and batches that `predict` would compute, without computing them."""
        options = self._options("plan", kwargs)
        return self.loop.plan(self.pair_texts(list_pairs(pairs)[0], options, "pair"), options)

    def token_ids(self, pairs: Iterable[Pair], **kwargs: Unpack[PredictKwargs]) -> list[list[int]]:
        """Return the token ids that `predict` uses for each pair."""
        options = self._options("token_ids", kwargs)
        texts = self.pair_texts(list_pairs(pairs)[0], options, "pair")
        return list(self.loop.token_ids(texts, options))

    def hidden_states(
        self,
        pairs: Iterable[Pair],
        layers: Iterable[SupportsIndex] | None = None,
        **kwargs: Unpack[PredictKwargs],
    ) -> Tensor:
        """Return the hidden state of each pair's last token after the given layers: [N, len(layers), C], fp32.

        Args:
            pairs: pairs (query, document).
            layers: as for `Embedder.hidden_states`.
            kwargs: see `lastword.encode_options.PredictKwargs`.
        """
        options = self._options("hidden_states", kwargs)
        texts = list(self.pair_texts(list_pairs(pairs)[0], options, "pair"))
        task, nothing = states_task(layers, self.info.config)
        return self.loop.gather(nothing, texts, options, Report(), lambda _: None, task=task)

    def text_before_document(self, query: str, **kwargs: Unpack[PredictKwargs]) -> str:
        """Return the text before each document of a query: instruction and query, without the template's prefix.

        Raises:
            InputError: the text leaves no room for a document within `max_length`.
        """
        options = self._options("text_before_document", kwargs)
        text = self._text_before_document(query, options)
        self._check_room(text, options)
        return text

    def results(
        self, queue: ItemQueue, report: Report | None = None
    ) -> Iterator[tuple[object, Tensor | Exception]]:
        """Yield (tag, log-odds or error) for each item from a queue, as `Loop.results` does.

        Args:
            queue: gives the items; each has the token ids of a pair, and the `format` of the options that
                `RerankerInfo.predict_options` returns.
            report: the call adds its counts to this report.
        """
        return self.loop.results(queue, report, ScoreTask())

    def warm_up(self) -> None:
        """Do the work that the first calls would do otherwise, then score a few pairs; as `Embedder.warm_up`."""
        self.loop.warm_up()
        self.predict([("one short query", f"{n}: {'some words ' * 16}") for n in range(8)])

    def _options(self, function: str, kwargs: PredictKwargs) -> EncodeOptions:
        return self.info.predict_options(known_keywords(function, kwargs, PredictKwargs))

    def _scores(
        self, function: str, pairs: list[tuple[str, str]], kwargs: PredictKwargs, noun: str
    ) -> Tensor:
        """Return the scores of pairs: [N], fp32. An error names its pair by `noun` and index."""
        options = self._options(function, kwargs)
        texts = list(self.pair_texts(pairs, options, noun))
        report, nothing = (
            kwargs.get("report") or Report(),
            torch.empty(0, dtype=torch.float32, device="cpu"),
        )
        show = kwargs.get("show_progress_bar")
        try:
            with progress_bar(len(pairs), show=show, unit=" pairs", what="Reranking") as advance:
                scores = self.loop.gather(
                    nothing, texts, options, report, advance, task=ScoreTask()
                )
        except InputError as error:
            raise name_pair(error, pairs, noun) from None
        return activate(kwargs.get("activation_fn") or self.activation_fn, scores)

    def pair_texts(
        self, pairs: list[tuple[str, str]], options: EncodeOptions, noun: str
    ) -> Iterator[str]:
        """Yield for each pair the text that follows the prompt: from the query to the end of the document.

        Args:
            pairs: pairs (query, document).
            options: the settings of the call, from `RerankerInfo.predict_options`.
            noun: word for a pair in errors, such as "document"; the index of the pair follows this word.

        Raises:
            InputError: a query leaves no room for a document within `max_length`.
        """
        fitting: set[str] = set()
        for index, (query, document) in enumerate(pairs):
            if query not in fitting:
                try:
                    self._check_room(self._text_before_document(query, options), options)
                except InputError as error:
                    error.where, error.index = f"{noun} {index}: its query", index
                    raise
                fitting.add(query)
            yield self.info.template.text(query, document)

    def _text_before_document(self, query: str, options: EncodeOptions) -> str:
        return options.prompt + self.info.template.text(query, "")

    def _check_room(self, text: str, options: EncodeOptions) -> None:
        """Raise InputError if the text before a document leaves no room for the document."""
        tokenizer = self.info.tokenizer
        room = options.max_length - tokenizer.num_template_tokens
        size = len(text.encode(errors="replace")) * _TOKENS_PER_BYTE
        if size >= room and (size := tokenizer.count(text)) >= room:
            raise InputError(
                "query",
                "leaves no room for a document",
                got=count(size + tokenizer.num_template_tokens, "token"),
                expected=f"fewer than max_length, which is {options.max_length}, instruction and template included",
                remedy="Shorten the query or the instruction, or raise max_length.",
            )
