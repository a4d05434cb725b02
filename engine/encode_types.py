"""The type of `encode`, `encode_query` and `encode_document`: the `convert_to_…` keywords decide what is returned.

All three also take their texts by the keywords of sentence-transformers: `sentences`, which it has renamed `inputs`.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, Protocol, SupportsIndex, Unpack, cast, overload

from lastword.encode_options import EncodeKwargs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


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
