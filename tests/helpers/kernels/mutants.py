"""Load a kernel's file with part of its source replaced, to test that comparisons find a fault in a kernel."""

import importlib.util
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

_NUMBERS = count()


def mutant_of(module: ModuleType, old: str, new: str, folder: Path) -> Any:
    """Return a copy of a module in which every `old` in its source is replaced by `new`.

    Args:
        module: a module of `lastword.kernels.gpu`.
        old: part of its source.
        new: the text in its place.
        folder: where the copy is written: Triton reads the source of its kernels from a file.
    """
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert old in source, f"{module.__name__} has no {old!r}"
    name = f"mutant_{next(_NUMBERS)}"
    path = folder / f"{name}.py"
    path.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
