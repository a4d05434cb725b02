"""The public object for reranking: it opens a reranker and scores how relevant documents are to a query.

A pair of a query and a document becomes a score in `runtime/loop.py`, as a text becomes a vector:
pair ─ `text/rerank_template.py` ─► text ─► token ids ─► forest ─► final hidden state of the last token ─► dot product
with the score row (`weights/reranker_spec.py`). The texts for one query begin with the same tokens, which the forest
computes once per batch.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, TypedDict, Unpack

import torch
from torch import Tensor

from lastword.arguments import as_integer, as_switch, shown
from lastword.encode_options import (
    EncodeOptions,
    PredictKwargs,
    check_batch_tokens,
    check_functions,
    check_report,
    check_switches,
    known_keywords,
    wants_numpy,
)
from lastword.errors import (
    ConfigError,
    InputError,
    LastwordError,
    WeightsError,
    count,
    not_unicode,
)
from lastword.model.postprocess import VectorFormat
from lastword.model_info import OpenedModel, OpenKwargs
from lastword.progress import progress_bar
from lastword.properties import FromInfo, ModelProperties
from lastword.report import Report
from lastword.runtime.loop import Loop
from lastword.runtime.pool import open_runner
from lastword.runtime.results import ItemQueue
from lastword.runtime.runner import ModelLoader, Runner, ScoreTask, states_task
from lastword.text.groups import list_texts
from lastword.text.prompts import check_choice, check_prompt, choose_prompt
from lastword.text.rerank_template import QWEN3_RERANKER, parse_template
from lastword.text.tokenizer import TextTokenizer
from lastword.weights import (
    CHAT_TEMPLATE,
    Checkpoint,
    ModelConfig,
    RerankerSpec,
    ScoreTokens,
    read_config,
    read_reranker_spec,
    read_score_row,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Activation = Callable[[Tensor], Tensor]
Pair = Sequence[str]

# One byte of text gives fewer tokens than this, even if the tokenizer normalises it first.
_TOKENS_PER_BYTE = 8
_NOTICE = (
    "{folder}: has no chat template for pairs, and its name does not say that it is a reranker; "
    "using the template of Qwen3-Reranker"
)


class _Ranked(TypedDict):
    corpus_id: int
    score: float


class Ranked(_Ranked, total=False):
    """One result of `rank`: a document's index in the caller's list (`corpus_id`), its score, perhaps its text."""

    text: str


class RerankerInfo(OpenedModel):
    """A reranker's files and the caller's settings, checked against each other. The arguments are as for `Reranker`.

    Raises:
        ConfigError: a setting is not accepted, or the model is not a reranker.
        WeightsError: the checkpoint is incomplete, damaged or inconsistent.
        DeviceError: the device is missing or cannot compute as requested.
    """

    spec: RerankerSpec
    _also = (CHAT_TEMPLATE,)

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        instruction: str | None = None,
        **kwargs: Unpack[OpenKwargs],
    ) -> None:
        super().__init__(model, **kwargs)
        self.instruction = instruction
        self.checkpoint = Checkpoint(self.files.folder, self.config, reranker=True)
        self.score_row = read_score_row(self.checkpoint, self.spec, self._score_tokens())

    def _read_settings(self, folder: Path) -> tuple[ModelConfig, RerankerSpec]:
        config = read_config(folder, reranker=True)
        spec = read_reranker_spec(folder, config)
        own = parse_template(spec.chat_template, f"{folder}: chat template")
        self.template = QWEN3_RERANKER if own is None else own
        known = own is not None or _is_named_reranker(folder, self.name)
        self.notices = () if known else (_NOTICE.format(folder=folder),)
        return config, spec

    def _open_tokenizer(self) -> TextTokenizer:
        frame = self.template.prefix, self.template.suffix
        folder, size = self.files.folder, self.config.vocab_size
        return TextTokenizer(folder, size, truncation_side="right", frame=frame)

    def _score_tokens(self) -> ScoreTokens:
        """Return the tokens whose logits make the score: those that the checkpoint names, else "yes" and "no"."""
        if self.spec.classifier:
            return ScoreTokens(0, None)
        yes, no = (self.tokenizer.token_id(word) for word in ("yes", "no"))
        tokens = self.spec.tokens
        if tokens is not None:
            if self.template is QWEN3_RERANKER and (tokens.true, tokens.false) != (yes, no):
                raise ConfigError(
                    f"{self.files.folder}: chat template",
                    "is not one for pairs, although LogitScore names its own tokens",
                    got=f"true {tokens.true}, false {tokens.false}",
                    expected=f'the tokens "yes" and "no", {yes} and {no}, or a template for pairs',
                    remedy="The text that this model needs for a pair is not known. Name another model.",
                )
            return tokens
        if yes is None or no is None:
            missing = "yes" if yes is None else "no"
            raise WeightsError(
                str(self.tokenizer.path),
                f'has no token "{missing}"',
                expected='the tokens "yes" and "no", whose logits make the score',
                remedy="Name a reranker.",
            )
        return ScoreTokens(yes, no)

    @property
    def instruction(self) -> str | None:
        """The instruction for calls that give none. It can be set; None selects the checkpoint's instruction."""
        return self._instruction

    @instruction.setter
    def instruction(self, instruction: str | None) -> None:
        self._instruction = None if instruction is None else _check_instruction(instruction)

    def resolve_instruction(self, kwargs: PredictKwargs) -> str:
        """Return the instruction for one call.

        The first of these that is given: the call's `instruction`, its `prompt`, the one called `prompt_name`, the
        model's `instruction`, the checkpoint's default, the instruction of its template.

        Raises:
            ConfigError: `prompt_name` is unknown, or the instruction is not valid text.
        """
        name, given = kwargs.get("prompt_name"), kwargs.get("instruction")
        check_choice(name, None)
        given = kwargs.get("prompt") if given is None else given
        if given is not None:
            return _check_instruction(given)
        if name is None and self.instruction is not None:
            return self.instruction
        if name is None and self.default_prompt_name is None:
            return self.template.instruction
        return _check_instruction(choose_prompt(self.prompts, name, self.default_prompt_name, None))

    def predict_options(self, kwargs: PredictKwargs) -> EncodeOptions:
        """Check and complete the settings of one call.

        Raises:
            ConfigError: a setting is not accepted.
        """
        check_report(kwargs.get("report"))
        check_switches(show_progress_bar=kwargs.get("show_progress_bar"))
        check_functions(activation_fn=kwargs.get("activation_fn"))
        prompt = self.template.prompt(self.resolve_instruction(kwargs))
        one = VectorFormat(1, normalize=False)
        return EncodeOptions(prompt, self.max_length, one, kwargs.get("too_long", "cut"))


def is_reranker(folder: Path, name: str) -> bool:
    """Return whether a model's files say that it is a reranker, or else its name.

    Args:
        folder: the model's folder.
        name: the Hugging Face id or the folder, as the caller gave it.
    """
    try:
        spec = read_reranker_spec(folder, read_config(folder, reranker=True))
        own = parse_template(spec.chat_template, f"{folder}: chat template")
    except LastwordError:  # for example, the modules of an embedding model
        return False
    known = spec.classifier or spec.tokens is not None or own is not None
    return known or _is_named_reranker(folder, name)


def _is_named_reranker(folder: Path, name: str) -> bool:
    return "rerank" in f"{name} {folder.name}".lower()


class Reranker(ModelProperties):
    """A Qwen3-family reranker, loaded and ready.

    `info` describes the model (`RerankerInfo`); `loop` computes the scores (`runtime.loop.Loop`). Several threads may
    use a `Reranker` at once. After a fork, open it again.

    Args:
        model: Hugging Face id or folder of a causal reranker such as Qwen3-Reranker, or of a sequence classification
            model with one label.
        instruction: says what makes a document relevant; by default the checkpoint's instruction.
        activation_fn: turns log-odds, a tensor [N, 1], into scores, for example `torch.nn.Identity()`. The default is
            the checkpoint's activation, usually the sigmoid, which gives probabilities.
        device, dtype, quantize, revision, cache_dir, token, local_files_only, max_batch_tokens, cuda_graphs,
            show_progress_bar, tune_process, runner: as for `Embedder`.
        max_length: maximum tokens per pair, template and instruction included; a document that exceeds it is cut, a
            query or an instruction never is. The default is 8,192, or less if the checkpoint says so.
        prompts: instructions by name, added to those of the checkpoint.

    Raises:
        ConfigError: a setting is not accepted, or the model is not a reranker.
        WeightsError: the checkpoint is incomplete, damaged or inconsistent.
        DeviceError: the device is missing or cannot compute as requested.
    """

    info: RerankerInfo

    instruction = FromInfo[str | None, str | None](
        "instruction",
        "The instruction for calls that give none; None selects the checkpoint's instruction.",
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
        tokens = check_batch_tokens(max_batch_tokens)
        check_switches(cuda_graphs=cuda_graphs, tune_process=tune_process)
        check_switches(show_progress_bar=show_progress_bar)
        check_functions(activation_fn=activation_fn)
        known = known_keywords("Reranker", kwargs, OpenKwargs)
        self.info = info = RerankerInfo(model, instruction=instruction, **known)
        own: Activation = torch.sigmoid if info.spec.sigmoid else _identity
        self.activation_fn = own if activation_fn is None else activation_fn
        if runner is None:
            parts = (info.checkpoint, info.config, info.dtype, info.quantize)
            load = ModelLoader(*parts, cuda_graphs, tune_process, info.score_row)
            runner = open_runner(load, info.devices, show=show_progress_bar)
        self.loop = Loop(info.tokenizer, runner, tokens)

    def predict(
        self,
        pairs: Pair | Iterable[Pair],
        *,
        convert_to_numpy: bool = False,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[PredictKwargs],
    ) -> "Tensor | NDArray[Any]":
        """Score pairs of a query and a document.

        Keep pairs with the same query together: the query is then computed once per batch, not once per pair.

        Args:
            pairs: pairs (query, document), or a single pair.
            convert_to_numpy: return a NumPy array; needs NumPy.
            convert_to_tensor: return a tensor; takes precedence over `convert_to_numpy`, as in sentence-transformers.
            kwargs: see `lastword.encode_options.PredictKwargs`.

        Returns:
            [N], fp32, on the CPU, in the caller's order; a scalar for a single pair.

        Raises:
            InputError: a pair cannot be scored; the error gives its index.
            ConfigError: a setting is not accepted.
        """
        numpy = wants_numpy(
            kwargs.get("batch_size"),
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
        )
        listed, single = _list_pairs(pairs)
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
            raise InputError("query", "not a string", got=shown(query), expected="str")
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
        return self.loop.plan(self.pair_texts(_list_pairs(pairs)[0], options, "pair"), options)

    def token_ids(self, pairs: Iterable[Pair], **kwargs: Unpack[PredictKwargs]) -> list[list[int]]:
        """Return the token ids that `predict` uses for each pair."""
        options = self._options("token_ids", kwargs)
        texts = self.pair_texts(_list_pairs(pairs)[0], options, "pair")
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
        texts = list(self.pair_texts(_list_pairs(pairs)[0], options, "pair"))
        task, nothing = states_task(layers, self.info.config)
        return self.loop.gather(nothing, texts, options, Report(), lambda _: None, task=task)

    def text_before_document(self, query: str, **kwargs: Unpack[PredictKwargs]) -> str:
        """Return the text that the model reads before each document of a query, without the template's opening words.

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
            queue: gives the items: a pair's token ids, with the `format` that `RerankerInfo.predict_options` returns.
            report: receives the counts.
        """
        return self.loop.results(queue, report, ScoreTask())

    def warm_up(self) -> None:
        """Score a few pairs, so that a server's first call is as fast as later ones."""
        self.predict([("one short query", f"{n}: {'some words ' * 16}") for n in range(8)])

    def close(self) -> None:
        """Free the model and end its worker processes, if any. Calls that score pairs then raise DeviceError."""
        self.loop.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to pickle the object.

        Raises:
            ConfigError: always.
        """
        what, remedy = (
            "cannot be sent to another process",
            "Open the model in the other process instead.",
        )
        raise ConfigError("Reranker", what, remedy=remedy)

    def _options(self, function: str, kwargs: PredictKwargs) -> EncodeOptions:
        return self.info.predict_options(known_keywords(function, kwargs, PredictKwargs))

    def _scores(
        self, function: str, pairs: list[tuple[str, str]], kwargs: PredictKwargs, noun: str
    ) -> Tensor:
        """Return the scores of pairs: [N], fp32. An error names a pair by `noun` and its index."""
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
            raise _name_pair(error, pairs, noun) from None
        return activate(kwargs.get("activation_fn") or self.activation_fn, scores)

    def pair_texts(
        self, pairs: list[tuple[str, str]], options: EncodeOptions, noun: str
    ) -> Iterator[str]:
        """Yield the text of each pair: what follows the prompt, up to the end of the document.

        Args:
            pairs: pairs (query, document).
            options: the settings of the call, from `RerankerInfo.predict_options`.
            noun: word for a pair in errors; its index follows.

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


def _identity(scores: Tensor) -> Tensor:
    return scores


def _check_instruction(instruction: object) -> str:
    if not isinstance(instruction, str):
        raise ConfigError("instruction", "not a string", got=shown(instruction), expected="str")
    return check_prompt(instruction)


def _list_pairs(pairs: object) -> tuple[list[tuple[str, str]], bool]:
    """Return pairs as tuples, and whether the caller gave a single pair instead of a list.

    Raises:
        InputError: an element is not a query and a document.
    """
    if hasattr(pairs, "tolist"):  # an array or a tensor
        pairs = pairs.tolist()
    if isinstance(pairs, str | Mapping | AbstractSet) or not isinstance(pairs, Iterable):
        expected = "a list of pairs (query, document), or one pair"
        raise InputError(
            "pairs", "not a list of pairs", got=type(pairs).__name__, expected=expected
        )
    listed = list(pairs)
    single = isinstance(pairs, Sequence) and bool(listed) and isinstance(listed[0], str)
    checked = []
    for index, pair in enumerate([listed] if single else listed):
        parts = pair.tolist() if hasattr(pair, "tolist") else pair
        if not isinstance(parts, list | tuple) or list(map(_is_text, parts)) != [True, True]:
            got, expected = shown(pair), "a query and a document, both str"
            raise InputError(f"pair {index}", "not a pair", got=got, expected=expected, index=index)
        checked.append((parts[0], parts[1]))
    return checked, single


def _is_text(part: object) -> bool:
    return isinstance(part, str)


def _name_pair(error: InputError, pairs: list[tuple[str, str]], noun: str) -> InputError:
    """Let an error of the loop name the pair by `noun` and, for a bad character, the query or the document."""
    if error.index is None:
        return error
    error.where = f"{noun} {error.index}"
    for part, text in zip(("query", "document"), pairs[error.index], strict=True):
        problem = not_unicode(InputError, f"{error.where}: its {part}", text)
        if isinstance(problem, InputError):
            problem.index = error.index
            return problem
    return error


def activate(activation: Activation, scores: Tensor) -> Tensor:
    """Apply an activation to log-odds [N]; it is given them as [N, 1], as in sentence-transformers.

    Raises:
        ConfigError: the activation does not return N numbers.
    """
    result: object = activation(scores[:, None])
    if not isinstance(result, Tensor) or result.numel() != len(scores):
        got = shown(result) if not isinstance(result, Tensor) else str(list(result.shape))
        expected = f"a tensor of {count(len(scores), 'number')}"
        raise ConfigError("activation_fn", "returns something else", got=got, expected=expected)
    return result.reshape(len(scores)).float()
