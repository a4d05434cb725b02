"""The house rules that a machine can hold: arrows, packages, what an import loads."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.project import LEFT_OUT, ROOMS, ROOT, run

import lastword

# What each room may import of ours at module level; inside functions `ANYWHERE` is added.
ALLOWED = {
    "lastword": ("lastword",),
    "lastword.cli": ("lastword.cli", "lastword.errors", "lastword.report", "lastword"),
    "lastword.evaluate": tuple(
        f"lastword.{name}" for name in ("cards", "embedder", "errors", "evaluate", "progress")
    ),
    "lastword.interop": tuple(f"lastword.{name}" for name in ("embedder", "errors", "interop")),
    "lastword.kernels": ("lastword.kernels", "lastword.errors"),
    "lastword.verify": ("lastword",),
    "lastword.weights": ("lastword.weights", "lastword.errors"),
}
CLI_WHEN_RUN = tuple(
    f"lastword.{name}"
    for name in ("bench", "embedder", "evaluate", "opened", "progress", "verify", "weights")
)
# Packages of an extra, imported when the feature is used; an adapter's own file is imported only then.
ADAPTERS = ("encoder.py", "langchain.py", "llama_index.py")
EXTRAS = {
    "lastword.evaluate": {"datasets", "mteb"},
    "lastword.interop": {"langchain_core", "llama_index"},
    "lastword.verify": {"transformers"},
    "lastword.weights": {"yaml"},
}
RUN_TIME = {"torch", "triton", "safetensors", "tokenizers", "huggingface_hub", "tqdm"}


def sources(folder: str) -> list[Path]:
    """The Python files of one room, its sub-rooms left out."""
    inner = {ROOT / room for room in ROOMS.values() if room != folder}
    files = (ROOT / folder).rglob("*.py")
    return sorted(file for file in files if not (inner - {ROOT / folder}) & set(file.parents))


def imports(tree: ast.AST) -> list[tuple[str, bool]]:
    """(module, inside a function or under TYPE_CHECKING) of every import."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append((node.module or "", late))
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inner = late or guarded or isinstance(node, ast.FunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(tree, False)
    return found


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in packages)


CASES = [
    pytest.param(package, file, id=str(file.relative_to(ROOT)))
    for package, folder in ROOMS.items()
    if package != "lastword.bench"
    for file in sources(folder)
]


@pytest.mark.parametrize(("package", "file"), CASES)
def test_arrows(package: str, file: Path) -> None:
    for module, late in imports(ast.parse(file.read_text(encoding="utf-8"))):
        first = module.split(".")[0]
        if first != "lastword":
            known = first in sys.stdlib_module_names or first in RUN_TIME
            late = late or file.name in ADAPTERS
            extra = late and first in {"numpy", *EXTRAS.get(package, ())}
            assert known or extra, f"{file}: imports {module}"
        elif package == "lastword.cli":
            plain = module == "lastword" or within(module, ALLOWED[package][:3])
            assert plain or (late and within(module, CLI_WHEN_RUN)), f"{file}: imports {module}"
        else:
            assert within(module, ALLOWED[package]), f"{file}: imports {module}"
            behind = within(module, ("lastword.cli", "lastword.bench"))
            assert not behind, f"{file}: the engine imports a door, {module}"


def test_errors_imports_nothing_of_ours() -> None:
    tree = ast.parse((ROOT / "engine/errors.py").read_text(encoding="utf-8"))
    assert not [module for module, _ in imports(tree) if within(module, ("lastword",))]


@pytest.mark.parametrize(
    ("source", "module", "late"),
    [
        ("import torch", "torch", False),
        ("def f():\n    from numpy import array", "numpy", True),
        ("if TYPE_CHECKING:\n    import lastword.cli.main", "lastword.cli.main", True),
        ("try:\n    import numpy\nexcept ImportError: pass", "numpy", False),
    ],
)
def test_import_finder_sees_every_form(source: str, module: str, late: bool) -> None:
    assert (module, late) in imports(ast.parse(source))


def test_public_names() -> None:
    names = [
        "ConfigError",
        "DeviceError",
        "Embedder",
        "InputError",
        "LastwordError",
        "WeightsError",
    ]
    assert lastword.__all__ == names
    assert all(isinstance(getattr(lastword, name), type) for name in names)
    assert set(names) <= set(dir(lastword))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = lastword.Nothing


def test_packages_are_listed_explicitly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tool = project["tool"]["setuptools"]
    files = {path for room in ROOMS.values() for path in (ROOT / room).rglob("*.py")}
    folders = {path.parent for path in files} - {LEFT_OUT}
    mapped = {ROOT / folder for folder in tool["package-dir"].values()}
    assert sorted(tool["packages"]) == sorted(tool["package-dir"])
    assert folders == mapped, "every folder with Python in it is a listed package"
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_import_is_quick_and_light(tmp_path: Path) -> None:
    code = """
import sys, time
start = time.perf_counter()
import lastword
taken = time.perf_counter() - start
heavy = {"torch", "numpy", "transformers", "triton", "tokenizers", "huggingface_hub"}
print(taken, sorted(heavy & set(sys.modules)))
"""
    taken, heavy = run(code, tmp_path).stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(taken) < 0.3


def test_embedder_adds_no_numpy_and_no_transformers(tmp_path: Path) -> None:
    code = """
import sys, torch
before = set(sys.modules)
import lastword.embedder
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"numpy", "transformers", "sentence_transformers", "pandas", "scipy"}))
"""
    assert run(code, tmp_path).stdout.strip() == "[]"
