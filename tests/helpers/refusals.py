"""What a refusal must say: its type and its parts."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lastword.errors import LastwordError

PARTS = ("where", "what", "got", "expected", "remedy", "index")


@contextmanager
def refused(kind: type[LastwordError], **parts: object) -> Iterator[None]:
    """Expect an error of this type whose named parts are these."""
    assert parts.keys() <= set(PARTS)
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert {name: getattr(caught.value, name) for name in parts} == parts
