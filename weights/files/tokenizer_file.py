"""tokenizer.json: read with a limit, and calls into the tokenizers library fenced.

For any fault the library raises a plain Exception, or, where its Rust code panics, a BaseException of its own, which no
`except Exception` catches. `fenced` turns both into an error of ours.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lastword.errors import LastwordError, WeightsError
from lastword.weights.files.reading import MAX_TOKENIZER_BYTES, read_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LONGEST_REASON = 200


@contextmanager
def fenced(problem: Callable[[str], LastwordError]) -> Iterator[None]:
    """Turn every fault of the tokenizers library in the `with` block into an error.

    Args:
        problem: makes the error from the library's reason, which is one line of bounded length.

    Raises:
        LastwordError: the error that `problem` made. KeyboardInterrupt, MemoryError and our own errors stay themselves.
    """
    try:
        yield
    except (LastwordError, MemoryError):
        raise
    except BaseException as error:
        # The type of a panic is in no module that can be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error)[:_LONGEST_REASON].split())
        raise problem(reason) from None


def read_tokenizer(path: Path) -> "tuple[Tokenizer, bytes]":
    """Load a tokenizer.json.

    Returns:
        The tokenizer, and the file's bytes.

    Raises:
        WeightsError: the file is missing, is not a regular file, is too large, or is not a tokenizer.
    """
    from tokenizers import Tokenizer

    data = read_bytes(
        path,
        WeightsError,
        remedy="lastword reads no other tokenizer file: save it with tokenizers or transformers.",
        limit=MAX_TOKENIZER_BYTES,
    )
    with fenced(
        lambda reason: WeightsError(
            str(path), f"not a tokenizer ({reason})", remedy="Fetch the file again."
        )
    ):
        return Tokenizer.from_buffer(data), data
