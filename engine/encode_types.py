"""The type of `Embedder.encode` and its two variants: what comes back depends on the `convert_to_…` keywords.

For type checkers and editors only; written once for the three methods.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Unpack, cast, overload

from lastword.encode_options import EncodeKwargs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class Encode(Protocol):
    """A call with texts and settings: a tensor, unless a NumPy array is requested."""

    @overload
    def __call__(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: Literal[False] = False,
        convert_to_tensor: bool = False,
        **kwargs: Unpack[EncodeKwargs],
    ) -> "Tensor": ...

    @overload
    def __call__(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        batch_size: int | None = None,
        convert_to_numpy: bool,
        convert_to_tensor: Literal[True],
        **kwargs: Unpack[EncodeKwargs],
    ) -> "Tensor": ...

    @overload
    def __call__(
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
    def __call__(
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


class EncodeMethod(Protocol):
    """A method that is an `Encode` once it is bound to its object."""

    def __get__(self, instance: object, owner: type | None = None, /) -> Encode: ...


def encode_method(function: Callable[..., Any]) -> EncodeMethod:
    """Declare that a method has the type `Encode`; return it unchanged."""
    return cast("EncodeMethod", function)
