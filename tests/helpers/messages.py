"""What users are told: an error's parts, a command's one line, the bar of a model that loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from lastword import Embedder
from lastword.errors import LastwordError

PARTS = ("where", "what", "got", "expected", "remedy", "index")

# For the commands on a real, tiny model.
TEXTS = ["the cat sat", "the cat sat on the mat", "", "the cat sat", "another text € entirely"]


@contextmanager
def refusal(kind: type[LastwordError], **parts: object) -> Iterator[None]:
    """Expect an error of this type whose named parts are these."""
    assert parts.keys() <= set(PARTS)
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert {name: getattr(caught.value, name) for name in parts} == parts


def one_line(result, *expected, status=2):
    """Check that a command ended with a status and one line, with these parts in it."""
    code, _, err = result
    assert code == status, err
    assert err.count("\n") == 1, err
    for part in ("lastword: ", *expected):
        assert part in err


def bars_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[bool | None]:
    """Give the list that every `Embedder` which `module` loads adds its `show_progress_bar` to."""
    shown: list[bool | None] = []

    class Loaded(Embedder):
        def __init__(self, *args, show_progress_bar: bool | None = None, **options) -> None:
            shown.append(show_progress_bar)
            super().__init__(*args, **options)

    monkeypatch.setattr(module, "Embedder", Loaded)
    return shown
