"""The caller's settings and their checks: an unknown or out-of-range value raises a ConfigError that names the setting.

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
    Protocol,
    SupportsIndex,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    get_args,
    overload,
)

from lastword.arguments import Numbers, as_integer, as_switch, is_one_of, shown
from lastword.errors import ConfigError, InputError, MissingPackageError
from lastword.report import Report

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from lastword.model.postprocess import VectorFormat

TooLong = Literal["cut", "error"]
Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Keywords = TypeVar("Keywords", bound=Mapping[str, object])


class EncodeKwargs(TypedDict, total=False):
    """Keyword arguments of `encode` and its variants, apart from texts and prompt.

    Args:
        precision: float32 (default), float16, int8, uint8, binary or ubinary; see `model.postprocess.to_precision`.
        truncate_dim: number of leading dimensions to keep, by default the Embedder's `truncate_dim`; truncated vectors
            are normalised.
        ranges: [2, dim], the lower and upper bound of each dimension, for int8 (optional) and uint8 (required); a
            tensor, an array or two lists of numbers.
        too_long: "cut" (default) keeps max_length tokens including the end token; "error" rejects the text.
        normalize_embeddings: scale vectors to length 1 even if the checkpoint does not normalise.
        report: a `lastword.report.Report`, to which the call adds its counts, such as texts cut and tokens computed.
        show_progress_bar: whether to show a bar; by default only on a terminal and for more than one text. For fewer
            than 256 texts that bar appears after one second.
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
        on_error: called with the InputError of each text that cannot be embedded, instead of raising it; the error
            gives the text's index. The call comes before the matrix of the text's group. That matrix has no row for
            the text, and its other rows are the same as without it. Every other error is still raised: one of the
            device, of the iterator, or for an element that is not a str.
        on_done: called with the number of texts of each finished batch, to drive the caller's own progress bar; the
            built-in bar then does not advance. A background thread may make the call.
    """

    on_error: Callable[[InputError], None] | None
    on_done: Callable[[int], None] | None


class PredictKwargs(TypedDict, total=False):
    """Keyword arguments of `predict`, `rank` and `plan` of a `Reranker`, apart from what they score.

    Args:
        instruction: what makes a document relevant; by default that of the `Reranker`.
        prompt_name: name of the entry of `prompts` to use as the instruction.
        prompt: the instruction, under its name in sentence-transformers.
        activation_fn: turns the log-odds, a tensor [N, 1], into scores; by default that of the `Reranker`.
        too_long: "cut" (default) keeps as much of the document as max_length allows; "error" rejects the pair.
        batch_size: not used, because batches are cut by tokens; accepted for compatibility with sentence-transformers.
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
class Elsewhere:
    """A keyword of sentence-transformers that lastword does not have.

    Args:
        remedy: what to do instead; None for a keyword that changes no vector, of which every value is ignored.
        nothing: the values that ask for nothing, which are ignored too.
    """

    remedy: str | None
    nothing: tuple[object, ...] = (None, {})

    def check(self, name: str, value: object) -> None:
        """Raise ConfigError if the value asks for something that lastword does not do."""
        nothing = any(type(value) is type(each) and value == each for each in self.nothing)
        if self.remedy is not None and not nothing:
            what = "a keyword of sentence-transformers that lastword does not have"
            raise ConfigError(name, what, got=shown(value), remedy=self.remedy)


_ENCODE_ELSEWHERE = {
    "output_value": Elsewhere("Leave it out, or call hidden_states.", ("sentence_embedding",)),
    "device": Elsewhere("Give the device where the model is opened."),
    "pool": Elsewhere("Open the model on several devices, with device='cuda:all'."),
    "chunk_size": Elsewhere(None),  # how many texts a process gets at once
    "task": Elsewhere("Call encode_query or encode_document, or give prompt_name."),
    "processing_kwargs": Elsewhere("Set max_length; nothing else about tokens can be set."),
    "apply_softmax": Elsewhere("Leave it out: there is one score per pair.", (None, False)),
}
_MODEL_ELSEWHERE = {
    "model_name_or_path": Elsewhere("Give the name or folder as model."),
    "modules": Elsewhere("Save the model, and give its folder as model."),
    "default_prompt_name": Elsewhere("Set default_prompt_name once the model is open."),
    "cache_folder": Elsewhere("Give the folder as cache_dir."),
    "use_auth_token": Elsewhere("Give it as token."),
    "trust_remote_code": Elsewhere(None),  # a model that needs code of its own is refused
    "model_kwargs": Elsewhere("Give dtype and device by these names, and leave out the rest."),
    "processor_kwargs": Elsewhere("Set max_length; nothing else about tokens can be set."),
    "tokenizer_kwargs": Elsewhere("Set max_length; nothing else about tokens can be set."),
    "config_kwargs": Elsewhere("Change the model's config.json."),
    "model_card_data": Elsewhere(None),  # for the model card of a model that is saved
    "backend": Elsewhere("Leave it out: lastword computes with PyTorch.", ("torch",)),
    "similarity_fn_name": Elsewhere("Leave it out, or call lastword.similarity.similarity."),
    "num_labels": Elsewhere("Leave it out: a reranker has one label.", (None, 1)),
    "keep_in_fp32_modules": Elsewhere(None),  # scores are always computed in fp32
}


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """The resolved settings of one call.

    Raises:
        ConfigError: `too_long` is unknown.
    """

    prompt: str
    max_length: int
    format: "VectorFormat"
    too_long: str = "cut"
    on_error: Callable[[InputError], None] | None = None
    on_done: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        if not is_one_of(self.too_long, get_args(TooLong)):
            got = shown(self.too_long)
            raise ConfigError("too_long", "unknown", got=got, expected="'cut' or 'error'")


def known_keywords(function: str, given: Keywords, known: type) -> Keywords:
    """Return the given keywords that `known` defines; drop those of sentence-transformers that ask for nothing.

    Args:
        function: name of the function that was called; "Embedder" has its own list of dropped keywords.
        given: the keyword arguments of the call.
        known: the TypedDict of the keywords that the function takes.

    Raises:
        TypeError: a keyword is unknown, as in any Python function.
        ConfigError: a keyword of sentence-transformers asks for something that lastword does not do.
    """
    opens = function in ("Embedder", "Reranker")
    elsewhere = _MODEL_ELSEWHERE if opens else _ENCODE_ELSEWHERE
    for name, value in given.items():
        if name in known.__annotations__:
            continue
        if name not in elsewhere:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        elsewhere[name].check(name, value)
    taken = {name: given[name] for name in given if name in known.__annotations__}
    return cast("Keywords", taken)


def check_report(report: object) -> None:
    """Raise ConfigError if `report` is neither a Report nor None."""
    if report is not None and not isinstance(report, Report):
        got, expected = type(report).__name__, "a lastword.report.Report"
        raise ConfigError("report", "not a Report", got=got, expected=expected)


def check_functions(**functions: object) -> None:
    """Raise ConfigError for a value that is neither a function nor None."""
    for name, value in functions.items():
        if value is not None and not callable(value):
            got = type(value).__name__
            raise ConfigError(name, "not a function", got=got, expected="a function, or None")


def check_switches(**switches: object) -> None:
    """Raise ConfigError for a switch that is neither True nor False; show_progress_bar may be None."""
    for name, value in switches.items():
        if value is not None or name != "show_progress_bar":
            as_switch(value, name)


def wants_numpy(
    batch_size: SupportsIndex | None, *, convert_to_numpy: bool, convert_to_tensor: bool
) -> bool:
    """Check batch_size, convert_to_numpy and convert_to_tensor; return whether the caller wants a NumPy array."""
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
        folder: the model's folder, named in an error about the default.
        beyond: the remedy named in the error for a value above the limit; None for no remedy.

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
    raise ConfigError(where, "out of range", got=shown(length), expected=expected, remedy=remedy)


def check_batch_tokens(max_batch_tokens: SupportsIndex | None) -> int | None:
    """Return the tokens per batch as an int, or None for the device's default; ConfigError unless 1 or more."""
    if max_batch_tokens is None:
        return None
    return as_integer(max_batch_tokens, "max_batch_tokens", 1, expected="1 or more")


def check_dim(truncate_dim: SupportsIndex | None, size: int) -> int:
    """Return the number of leading dimensions to keep, by default all `size`; ConfigError if out of range."""
    if truncate_dim is None:
        return size
    return as_integer(truncate_dim, "truncate_dim", 1, size, expected=f"1 to {size}")


# The type of `encode`, `encode_query` and `encode_document`: the `convert_to_…` keywords decide what is returned.

Texts = str | Iterable[str]
_OTHER_NAMES = ("inputs", "sentences")


class NamedKwargs(EncodeKwargs, total=False):
    """`EncodeKwargs`, and the texts under the names that sentence-transformers uses."""

    inputs: Texts
    sentences: Texts


class Encode(Protocol):
    """The signature of the three methods: they return a tensor, unless a NumPy array is requested."""

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
    """A method which, taken from its object, has the type `Encode`."""

    def __get__(self, instance: object, owner: type | None = None, /) -> Encode: ...


def encode_method(function: Callable[..., Any]) -> EncodeMethod:
    """Give a method the type `Encode`, and let it take its texts as `inputs` or `sentences` too.

    The method's signature does not change. Giving the texts twice, or not at all, is a TypeError, as for any argument.
    """

    @wraps(function)
    def named(*args: Any, **kwargs: Any) -> Any:
        for name in _OTHER_NAMES:
            if name in kwargs:
                if "texts" in kwargs or len(args) > 1:  # the first argument is the object itself
                    raise TypeError(f"{function.__name__}() got its texts twice, once as {name!r}")
                kwargs["texts"] = kwargs.pop(name)
        return function(*args, **kwargs)

    return cast("EncodeMethod", named)
