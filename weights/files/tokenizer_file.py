"""Read tokenizer.json with a size limit, and turn faults of the tokenizers library into lastword's errors.

For most faults the library raises a plain Exception. But if its Rust code panics, the library raises its own subclass
of BaseException, which `except Exception` does not catch. `translate_faults` turns both into one of lastword's errors.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lastword.errors import LastwordError, WeightsError
from lastword.weights.files.reading import MAX_TOKENIZER_BYTES, read_bytes
from lastword.weights.json_fields import parse_object, show_value

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LONGEST_REASON = 200
# Matches a continuing_subword_prefix that is not empty, or an escaped ASCII character, which could hide the name of
# that key. Only a file that matches is parsed, because parsing the JSON of a large vocabulary takes 0.25 seconds.
_MAY_HAVE_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]|\\u00[2-7]')


@contextmanager
def translate_faults(problem: Callable[[str], LastwordError]) -> Iterator[None]:
    """Turn every fault of the tokenizers library in the `with` block into one of lastword's errors.

    KeyboardInterrupt, MemoryError and lastword's own errors are passed on unchanged.

    Args:
        problem: takes the library's message, as one line of bounded length, and returns the error to raise.

    Raises:
        LastwordError: the error that `problem` created.
    """
    try:
        yield
    except (LastwordError, MemoryError):
        raise
    except BaseException as error:
        # The type of a panic cannot be imported from any module.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error)[:_LONGEST_REASON].split())
        raise problem(reason) from None


def read_tokenizer(path: Path) -> "tuple[Tokenizer, bytes]":
    """Load a tokenizer.json of any kind that the tokenizers library reads, except BPE with a subword prefix.

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
    _refuse_prefix(data, path)
    with translate_faults(
        lambda reason: WeightsError(
            str(path), f"not a tokenizer ({reason})", remedy="Fetch the file again."
        )
    ):
        return Tokenizer.from_buffer(data), data


def _refuse_prefix(data: bytes, path: Path) -> None:
    """Refuse BPE with a continuing-subword prefix: if a token lacks the prefix, the library may abort the process."""
    if not _MAY_HAVE_PREFIX.search(data):
        return
    model = parse_object(data, str(path), WeightsError).get("model")
    if not isinstance(model, dict) or "merges" not in model:
        return
    if prefix := model.get("continuing_subword_prefix"):
        raise WeightsError(
            f"{path}: continuing_subword_prefix",
            "not supported in BPE",
            got=show_value(prefix),
            expected="null",
            remedy="Use the tokenizer that belongs to these weights.",
        )
