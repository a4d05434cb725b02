"""What an `Embedder` is told about its progress bar while it loads."""

from types import ModuleType

import pytest

from lastword import Embedder


def bars_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[bool | None]:
    """Give the list that every `Embedder` which `module` loads adds its `show_progress_bar` to."""
    shown: list[bool | None] = []

    class Loaded(Embedder):
        def __init__(self, *args, show_progress_bar: bool | None = None, **options) -> None:
            shown.append(show_progress_bar)
            super().__init__(*args, **options)

    monkeypatch.setattr(module, "Embedder", Loaded)
    return shown
