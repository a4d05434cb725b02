"""Check messages to users: an error's parts, a command's single line, whether loading a model shows a progress bar."""

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
    """Expect an error of exactly this type with these parts."""
    assert parts.keys() <= set(PARTS)
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert {name: getattr(caught.value, name) for name in parts} == parts


def one_line(result, *expected, status=2):
    """Check that a command ended with this status and wrote one line to stderr that contains these texts."""
    code, _, err = result
    assert code == status, err
    assert err.count("\n") == 1, err
    for part in ("lastword: ", *expected):
        assert part in err


def bars_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[bool | None]:
    """Return a list to which every `Embedder` that `module` opens from now on appends its `show_progress_bar`."""
    shown: list[bool | None] = []

    class Loaded(Embedder):
        def __init__(self, *args, show_progress_bar: bool | None = None, **options) -> None:
            shown.append(show_progress_bar)
            super().__init__(*args, **options)

    monkeypatch.setattr(module, "Embedder", Loaded)
    return shown
