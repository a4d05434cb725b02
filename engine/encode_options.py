"""The settings of a call, and their checks: an unknown or out-of-range value is a ConfigError that names the setting.

This module knows nothing about models or devices.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    ParamSpec,
    Protocol,
    SupportsIndex,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    get_args,
    overload,
)

from lastword.arguments import Numbers, as_integer, as_switch, is_one_of, short_repr
from lastword.errors import ConfigError, InputError, MissingPackageError
from lastword.report import Report

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from lastword.model.postprocess import VectorFormat

TooLong = Literal["cut", "error"]
Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Keywords = TypeVar("Keywords", bound=Mapping[str, object])
P = ParamSpec("P")
R = TypeVar("R")


class EncodeKwargs(TypedDict, total=False):
    """Keyword arguments that `encode` and its variants share, apart from the texts and the prompt.

    Args:
        precision: float32 (default), float16, int8, uint8, binary or ubinary; see `model.postprocess.to_precision`.
        truncate_dim: number of leading dimensions to keep, by default the Embedder's `truncate_dim`; truncated vectors
            are scaled to length 1.
        ranges: [2, dim], the lower and upper bound of each dimension, as a tensor, an array or two lists of numbers;
            required for uint8, optional for int8.
        too_long: what to do with a text of more than max_length tokens: "cut" (default) keeps max_length tokens,
            counting the prompt and the end token; "error" raises an InputError.
        normalize_embeddings: scale vectors to length 1 even if the checkpoint's own settings do not.
        report: a `lastword.report.Report`, to which the call adds its counts, such as texts cut and tokens computed.
        show_progress_bar: whether to show a bar; by default only on a terminal and for more than one text, and for
            fewer than 256 texts only after one second.
    """

    precision: Precision
    truncate_dim: SupportsIndex | None
    ranges: Numbers | None
    too_long: TooLong
    normalize_embeddings: bool
    report: Report | None
    show_progress_bar: bool | None


class GroupKwargs(EncodeKwargs, total=False):
    """Keyword arguments of `encode_groups`.

    Args:
        on_error: called with the InputError of each text that cannot be embedded, instead of raising it; the error's
            `index` is the position of the text. The call comes before the matrix of the text's group. That matrix has
            no row for the text; the vectors of the other texts are unchanged. Every other error is still raised: an
            error of the device or of the iterator, or about an element that is not a str.
        on_done: called with the number of texts of each finished batch, perhaps from a background thread, to advance
            the caller's own progress bar; the built-in bar then does not advance.
        on_rows: called before each matrix with a list of (number of tokens, whether the text was cut), one per row.
    """

    on_error: Callable[[InputError], None] | None
    on_done: Callable[[int], None] | None
    on_rows: Callable[[list[tuple[int, bool]]], None] | None


class PredictKwargs(TypedDict, total=False):
    """Keyword arguments of the methods of a `Reranker` that take a query and documents, or pairs of these.

    Args:
        instruction: tells the model what makes a document relevant; by default the instruction of the `Reranker`.
        prompt_name: name of the entry of `prompts` to use as the instruction.
        prompt: the instruction, under the name that sentence-transformers uses.
        activation_fn: converts the log-odds, a tensor [N, 1], to scores; by default the function of the `Reranker`.
        too_long: what to do with a pair of more than max_length tokens: "cut" (default) keeps as much of the document
            as fits; "error" raises an InputError.
        batch_size: ignored, because a batch is limited by its tokens; accepted as in sentence-transformers.
        report: a `lastword.report.Report`, to which the call adds its counts, such as documents cut.
        show_progress_bar: whether to show a bar; by default as for `EncodeKwargs`.
    """

    instruction: str | None
    prompt_name: str | None
    prompt: str | None
    activation_fn: "Callable[[Tensor], Tensor] | None"
    too_long: TooLong
    batch_size: SupportsIndex | None
    report: Report | None
    show_progress_bar: bool | None


@dataclass(frozen=True, slots=True)
class MissingKeyword:
    """A keyword of sentence-transformers that lastword does not have.

    Args:
        remedy: what to do instead. None if the keyword changes no vector or score; then all its values are ignored.
        ignored: values that change nothing, such as the default of sentence-transformers. They are ignored; any other
            value is an error.
    """

    remedy: str | None
    ignored: tuple[object, ...] = (None, {})

    def check(self, name: str, value: object) -> None:
        """Raise ConfigError if `value` would change something, so cannot be ignored."""
        ignored = any(type(value) is type(each) and value == each for each in self.ignored)
        if self.remedy is not None and not ignored:
            what = "a keyword of sentence-transformers that lastword does not have"
            raise ConfigError(name, what, got=short_repr(value), remedy=self.remedy)


# Keywords of `encode`, `predict` and the like.
_MISSING_IN_CALLS = {
    "output_value": MissingKeyword("Leave it out, or call hidden_states.", ("sentence_embedding",)),
    "device": MissingKeyword("Give the device where the model is opened."),
    "pool": MissingKeyword("Open the model on several devices, with device='cuda:all'."),
    "chunk_size": MissingKeyword(None),  # the number of texts that a process gets at a time
    "task": MissingKeyword("Call encode_query or encode_document, or give prompt_name."),
    "processing_kwargs": MissingKeyword("Set max_length; nothing else about tokens can be set."),
    "apply_softmax": MissingKeyword("Leave it out: there is one score per pair.", (None, False)),
}
# Keywords of `SentenceTransformer` and `CrossEncoder`.
_MISSING_IN_MODELS = {
    "model_name_or_path": MissingKeyword("Give the name or folder as model."),
    "modules": MissingKeyword("Save the model, and give its folder as model."),
    "default_prompt_name": MissingKeyword("Set default_prompt_name once the model is open."),
    "cache_folder": MissingKeyword("Give the folder as cache_dir."),
    "use_auth_token": MissingKeyword("Give it as token."),
    "trust_remote_code": MissingKeyword(None),  # a model that needs code of its own is refused
    "model_kwargs": MissingKeyword("Give dtype and device by these names, and leave out the rest."),
    "processor_kwargs": MissingKeyword("Set max_length; nothing else about tokens can be set."),
    "tokenizer_kwargs": MissingKeyword("Set max_length; nothing else about tokens can be set."),
    "config_kwargs": MissingKeyword("Change the model's config.json."),
    "model_card_data": MissingKeyword(None),  # for the model card of a model that is saved
    "backend": MissingKeyword("Leave it out: lastword computes with PyTorch.", ("torch",)),
    "similarity_fn_name": MissingKeyword("Leave it out, or call lastword.similarity.similarity."),
    "num_labels": MissingKeyword("Leave it out: a reranker has one label.", (None, 1)),
    "keep_in_fp32_modules": MissingKeyword(None),  # scores are always computed in fp32
}


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """The settings of one call, with every default filled in.

    Args:
        prompt: the text to put before every text.
        max_length: maximum tokens per text.
        format: dimensions, normalisation and precision of the vectors.
        too_long: as for `EncodeKwargs`.
        on_error: as for `GroupKwargs`.
        on_done: as for `GroupKwargs`.
        on_rows: as for `GroupKwargs`.

    Raises:
        ConfigError: `too_long` is unknown.
    """

    prompt: str
    max_length: int
    format: "VectorFormat"
    too_long: str = "cut"
    on_error: Callable[[InputError], None] | None = None
    on_done: Callable[[int], None] | None = None
    on_rows: Callable[[list[tuple[int, bool]]], None] | None = None

    def __post_init__(self) -> None:
        if not is_one_of(self.too_long, get_args(TooLong)):
            got = short_repr(self.too_long)
            raise ConfigError("too_long", "unknown", got=got, expected="'cut' or 'error'")


def known_keywords(function: str, given: Keywords, known: type) -> Keywords:
    """Return the keywords of `given` that `known` defines; drop sentence-transformers keywords that change nothing.

    Args:
        function: name of the class or method that was called. It decides which keywords of sentence-transformers are
            recognised: those of opening a model ("Embedder", "Reranker"), or those of a call.
        given: the keyword arguments of the call.
        known: the TypedDict of the keywords that the function takes.

    Raises:
        TypeError: a keyword is unknown, as for any Python function.
        ConfigError: a keyword that only sentence-transformers has is given a value that would change something.
    """
    opens = function in ("Embedder", "Reranker")
    missing = _MISSING_IN_MODELS if opens else _MISSING_IN_CALLS
    for name, value in given.items():
        if name in known.__annotations__:
            continue
        if name not in missing:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        missing[name].check(name, value)
    taken = {name: given[name] for name in given if name in known.__annotations__}
    return cast("Keywords", taken)


def check_report(report: object) -> None:
    """Raise ConfigError if `report` is neither a Report nor None."""
    if report is not None and not isinstance(report, Report):
        got, expected = type(report).__name__, "a lastword.report.Report"
        raise ConfigError("report", "not a Report", got=got, expected=expected)


def check_functions(**functions: object) -> None:
    """Raise ConfigError for a named argument that is neither a function nor None."""
    for name, value in functions.items():
        if value is not None and not callable(value):
            got = type(value).__name__
            raise ConfigError(name, "not a function", got=got, expected="a function, or None")


def check_switches(**switches: object) -> None:
    """Raise ConfigError for a named argument that is neither True nor False; show_progress_bar may be None."""
    for name, value in switches.items():
        if value is not None or name != "show_progress_bar":
            as_switch(value, name)


def wants_numpy(
    batch_size: SupportsIndex | None, *, convert_to_numpy: bool, convert_to_tensor: bool
) -> bool:
    """Check batch_size, convert_to_numpy and convert_to_tensor; return whether the caller wants a NumPy array.

    Raises:
        ConfigError: an argument is of the wrong type or out of range.
        MissingPackageError: a NumPy array is wanted, but NumPy is not installed.
    """
    if batch_size is not None:
        as_integer(batch_size, "batch_size", 1, expected="1 or more")
    check_switches(convert_to_numpy=convert_to_numpy, convert_to_tensor=convert_to_tensor)
    wanted = bool(convert_to_numpy) and not convert_to_tensor
    if wanted and find_spec("numpy") is None:
        where, remedy = "convert_to_numpy", "Install it with: pip install numpy."
        raise MissingPackageError(where, "needs NumPy", remedy=remedy)
    return wanted


def check_max_length(
    max_length: SupportsIndex | None,
    *,
    default: int,
    least: int,
    limit: int,
    folder: Path,
    beyond: str | None = None,
) -> int:
    """Return the maximum number of tokens per text: the caller's value or the model's default, checked.

    Args:
        max_length: the caller's value, None for the default.
        default: the value from the model's files.
        least: smallest value allowed.
        limit: largest value allowed.
        folder: the model's folder, to be named in an error about the default.
        beyond: the error's remedy for a value above `limit`; None for no such remedy.

    Raises:
        ConfigError: the value is not an integer from `least` to `limit`.
    """
    expected = f"{least} to {limit} tokens"
    where, length, remedy = "max_length", default, None
    if max_length is not None:
        length = as_integer(max_length, where, least, expected=expected)
    elif not least <= default <= limit:
        where = f"{folder}: tokens per text, by sentence_bert_config.json or tokenizer_config.json"
        remedy = "Set max_length."
    if least <= length <= limit:
        return length
    remedy = beyond or remedy if length > limit else remedy
    raise ConfigError(
        where, "out of range", got=short_repr(length), expected=expected, remedy=remedy
    )


def check_batch_tokens(max_batch_tokens: SupportsIndex | None) -> int | None:
    """Return the maximum tokens per batch as an int, or None for the device's default.

    Raises:
        ConfigError: the value is neither None nor an integer of at least 1.
    """
    if max_batch_tokens is None:
        return None
    return as_integer(max_batch_tokens, "max_batch_tokens", 1, expected="1 or more")


def check_dim(truncate_dim: SupportsIndex | None, size: int) -> int:
    """Return the number of leading dimensions to keep: `truncate_dim`, or all (`size`) if it is None.

    Raises:
        ConfigError: the value is not an integer from 1 to `size`.
    """
    if truncate_dim is None:
        return size
    return as_integer(truncate_dim, "truncate_dim", 1, size, expected=f"1 to {size}")


# The type of `encode`, `encode_query` and `encode_document`: the `convert_to_…` keywords decide what they return.

Texts = str | Iterable[str]
_OTHER_NAMES = ("inputs", "sentences")


class NamedKwargs(EncodeKwargs, total=False):
    """`EncodeKwargs`, and the argument `texts` under the names that sentence-transformers uses."""

    inputs: Texts
    sentences: Texts


class Encode(Protocol):
    """The signature of `encode` and its variants, which return a tensor unless the caller asks for a NumPy array."""

    @overload
    def __call__(
        self,
        texts: Texts = ...,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: SupportsIndex | None = None,
        convert_to_numpy: Literal[False] = False,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[NamedKwargs],
    ) -> "Tensor": ...

    @overload
    def __call__(
        self,
        texts: Texts = ...,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: SupportsIndex | None = None,
        convert_to_numpy: bool,
        convert_to_tensor: Literal[True],
        **kwargs: Unpack[NamedKwargs],
    ) -> "Tensor": ...

    @overload
    def __call__(
        self,
        texts: Texts = ...,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: SupportsIndex | None = None,
        convert_to_numpy: Literal[True],
        convert_to_tensor: Literal[False] = False,
        **kwargs: Unpack[NamedKwargs],
    ) -> "NDArray[Any]": ...

    @overload
    def __call__(
        self,
        texts: Texts = ...,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: SupportsIndex | None = None,
        convert_to_numpy: bool,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[NamedKwargs],
    ) -> "Tensor | NDArray[Any]": ...


class EncodeMethod(Protocol):
    """A method whose type, when it is accessed on an object, is `Encode`."""

    def __get__(self, instance: object, owner: type | None = None, /) -> Encode: ...


def encode_method(function: Callable[..., Any]) -> EncodeMethod:
    """Decorate a method: give it the type `Encode`, and let callers pass `texts` as `inputs` or `sentences` too."""
    return cast("EncodeMethod", takes_inputs("texts")(function))


def takes_inputs(own: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that lets callers pass a method's first argument as `inputs` or `sentences` too.

    `inspect.signature` still shows the method's own signature. Passing the argument twice, or not at all, is a
    TypeError, as for any argument.

    Args:
        own: the name of the first argument in the method's own signature.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def with_other_names(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in _OTHER_NAMES:
                if name in kwargs:
                    if own in kwargs or len(args) > 1:  # the first argument is the object itself
                        raise TypeError(
                            f"{function.__name__}() got its {own} twice, once as {name!r}"
                        )
                    kwargs[own] = kwargs.pop(name)
            return function(*args, **kwargs)

        return with_other_names

    return decorate
