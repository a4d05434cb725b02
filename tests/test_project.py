"""The rules of the layout that a machine can hold, the packages, the public names, what an import loads."""

import runpy
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.project import LEFT_OUT, ROOT, TOP_FOLDERS, run
from helpers.sources import MODULES, code_lines, long_functions

import lastword

SIDE_BY_SIDE = 12  # Python files in one folder
FUNCTION_LINES = 60
THE_FLOW = ("engine/embedder.py", "engine/runtime/loop.py")
FLOW_LINES = 350  # of code, both files together

FILES = sorted(
    file.relative_to(ROOT) for top in (*TOP_FOLDERS.values(), "tests") for file in (ROOT / top).rglob("*.py")
)  # fmt: skip


def source(file: Path | str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def crowded_folders(files: Iterable[Path]) -> list[str]:
    counts = Counter(file.parent for file in files)
    return [f"{folder}: {count} files" for folder, count in counts.items() if count > SIDE_BY_SIDE]


def test_no_folder_is_crowded() -> None:
    assert crowded_folders(FILES) == []


def test_a_crowded_folder_is_found() -> None:
    names = [Path(f"engine/inner/{i}.py") for i in range(13)]
    assert crowded_folders([*names[:12], Path("engine/embedder.py")]) == []
    assert crowded_folders(names) == ["engine/inner: 13 files"]


def test_functions_are_short() -> None:
    found = [f"{file}: {each}" for file in FILES for each in long_functions(source(file), FUNCTION_LINES)]  # fmt: skip
    assert found == []


def test_a_long_function_is_found() -> None:
    inner = "class A:\n    async def f(\n        self,\n    ):\n" + "        x = 1\n" * 58
    assert list(long_functions(inner, 60)) == ["f: 61 lines"]
    assert list(long_functions(inner, 61)) == []
    for decorator in ("@triton.jit", "@triton.jit(do_not_specialize=['N'])"):
        assert list(long_functions(f"{decorator}\ndef g():\n" + "    x = 1\n" * 60, 60)) == []
    assert list(long_functions("@cache\ndef g():\n" + "    x = 1\n" * 60, 60)) == ["g: 61 lines"]


def test_the_flow_is_read_in_one_sitting() -> None:
    lines = {file: code_lines(source(file)) for file in THE_FLOW}
    assert sum(lines.values()) <= FLOW_LINES, lines


COUNTED = '''"""A module of

two paragraphs."""

# why
import os  # 1


class A:  # 2
    """One line."""

    x = """a text  # 3

    is code"""  # 5

    @overload
    def f(
        self,
    ) -> int: ...
    @overload
    def f(self, y: int) -> str:
        """Signatures alone."""

    @property  # 6
    def f(  # 7
        self, y=None  # 8
    ):  # 9
        """Several

        lines."""
        # why
        return (  # 10
            y

        )  # 12, with the line of y
'''


def test_lines_of_code_are_counted() -> None:
    assert code_lines(COUNTED) == 12
    assert code_lines(COUNTED + "\n\n# nothing\n") == 12
    assert code_lines(COUNTED + "z = 1\n") == 13
    assert code_lines("") == 0


def test_public_names() -> None:
    names = [
        "ConfigError",
        "DeviceError",
        "Embedder",
        "InputError",
        "LastwordError",
        "Reranker",
        "WeightsError",
    ]
    assert lastword.__all__ == names
    assert all(isinstance(getattr(lastword, name), type) for name in names)
    assert set(names) <= set(dir(lastword))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = lastword.Nothing


def wrong_packages(setuptools: dict[str, Any], files: Iterable[Path]) -> list[str]:
    """What the listed packages and the folders with Python in them, by relative path, do not have in common."""
    tops = setuptools["package-dir"]
    listed = set()
    for package in setuptools["packages"]:
        top = max((p for p in tops if f"{package}.".startswith(f"{p}.")), key=len)
        listed.add(Path(tops[top], *package[len(top) :].split(".")))
    files = set(files)
    folders = {file.parent for file in files} - {LEFT_OUT.relative_to(ROOT)}
    return sorted(
        [f"{folder}: no listed package" for folder in folders - listed]
        + [f"{folder}: listed, no folder" for folder in listed - folders]
        + [f"{folder}: no __init__.py" for folder in folders if folder / "__init__.py" not in files]
    )


def test_packages_are_the_folders() -> None:
    tool = tomllib.loads(source("pyproject.toml"))["tool"]["setuptools"]
    assert tool["package-dir"] == TOP_FOLDERS
    assert tool["packages"] == sorted(set(tool["packages"]))
    assert wrong_packages(tool, [file for file in FILES if file.parts[0] != "tests"]) == []


def test_a_package_that_is_not_listed_is_found() -> None:
    tool = {
        "package-dir": TOP_FOLDERS,
        "packages": ["lastword", "lastword.bench.a", "lastword.cli"],
    }
    names = (
        "engine/__init__",
        "engine/cli/main",
        "bench/a/__init__",
        "bench/builtin/x",
        "kernels/b",
    )
    assert wrong_packages(tool, [Path(f"{name}.py") for name in names]) == [
        "engine/cli: no __init__.py",
        "kernels: no __init__.py",
        "kernels: no listed package",
    ]
    assert "engine/cli: listed, no folder" in wrong_packages(tool, [Path("engine/__init__.py")])


def test_settings_of_mypy_are_for_modules_that_there_are() -> None:
    overrides = tomllib.loads(source("pyproject.toml"))["tool"]["mypy"]["overrides"]
    ours = {name for each in overrides for name in each["module"] if name.startswith("lastword")}
    assert ours
    assert ours - set(MODULES) == set()


@pytest.mark.parametrize(
    ("folder", "file", "marked"),
    [
        ("gpu", "tests/gpu/test_kernels.py", True),
        ("gpu", "tests/kernels/gpu/test_compile.py", False),
        ("interpreter", "tests/interpreter/test_row_kernels.py", True),
        ("interpreter", "tests/kernels/test_cpu.py", False),
    ],
)
def test_what_a_folder_asks_for_is_asked_of_its_own_tests(
    folder: str, file: str, marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's conftest is shown the tests of all: `gpu` skipped those of kernels/gpu, too, once."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    conftest = runpy.run_path(str(ROOT / "tests" / folder / "conftest.py"))
    marks: list[Any] = []
    item = SimpleNamespace(path=ROOT / file, add_marker=marks.append)
    conftest["pytest_collection_modifyitems"]([item])
    assert item.path.exists()
    assert bool(marks) is marked


def test_import_is_light(tmp_path: Path) -> None:
    code = """
import sys
import lastword
heavy = {"torch", "numpy", "transformers", "triton", "tokenizers", "huggingface_hub"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run(code, tmp_path).stdout.strip() == "[]"


@pytest.mark.timing
def test_import_is_quick(tmp_path: Path) -> None:
    code = """
import time
start = time.perf_counter()
import lastword
print(time.perf_counter() - start)
"""
    assert float(run(code, tmp_path).stdout) < 0.3


def test_embedder_adds_no_numpy_and_no_transformers(tmp_path: Path) -> None:
    code = """
import sys, torch
before = set(sys.modules)
import lastword.embedder
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"numpy", "transformers", "sentence_transformers", "pandas", "scipy"}))
"""
    assert run(code, tmp_path).stdout.strip() == "[]"
