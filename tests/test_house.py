"""The house rules that a machine can hold: arrows, what is installed, what an import loads."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import lastword

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "lastword": "engine",
    "lastword.bench": "bench",
    "lastword.cli": "engine/cli",
    "lastword.evaluate": "engine/evaluate",
    "lastword.interop": "engine/interop",
    "lastword.kernels": "kernels",
    "lastword.verify": "engine/verify",
    "lastword.weights": "weights",
}
# What each room may import of ours at module level; inside functions `ANYWHERE` is added.
ALLOWED = {
    "lastword": ("lastword",),
    "lastword.cli": ("lastword.cli", "lastword.errors", "lastword.report", "lastword"),
    "lastword.evaluate": tuple(
        f"lastword.{name}" for name in ("embedder", "errors", "evaluate", "progress")
    ),
    "lastword.interop": ("lastword.embedder", "lastword.errors", "lastword.interop"),
    "lastword.kernels": ("lastword.kernels", "lastword.errors"),
    "lastword.verify": ("lastword",),
    "lastword.weights": ("lastword.weights", "lastword.errors"),
}
CLI_WHEN_RUN = tuple(
    f"lastword.{name}"
    for name in ("bench", "embedder", "evaluate", "progress", "verify", "weights")
)
# Packages of an extra, imported when the feature is used; an adapter's own file is imported only then.
ADAPTERS = ("encoder.py", "langchain.py", "llama_index.py")
EXTRAS = {
    "lastword.evaluate": {"datasets", "mteb"},
    "lastword.interop": {"langchain_core", "llama_index"},
    "lastword.verify": {"transformers"},
    "lastword.weights": {"yaml"},
}
# Run from a checkout, not installed.
LEFT_OUT = ROOT / "bench/builtin"
RUN_TIME = {"torch", "triton", "safetensors", "tokenizers", "huggingface_hub", "tqdm"}


def run(
    code: str, cwd: Path, *, python: Path = Path(sys.executable)
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


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


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a build sees it, so that nothing is written into the checkout."""
    target = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for folder in ("engine", "kernels", "weights", "bench"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, target / folder, ignore=skip)
    return target


def pip(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def packaged(tree: Path) -> dict[str, bytes]:
    """Installed path -> content, as the tree says it should be."""
    inner = {tree / folder for folder in ROOMS.values()} - {tree / "engine"}
    left_out = tree / LEFT_OUT.relative_to(ROOT)
    wanted = {}
    for package, folder in ROOMS.items():
        for file in (tree / folder).rglob("*"):
            nested = folder == "engine" and inner & set(file.parents)
            skipped = nested or left_out in file.parents or "__pycache__" in file.parts
            if file.is_file() and not skipped:
                path = Path(*package.split("."), file.relative_to(tree / folder))
                wanted[path.as_posix()] = file.read_bytes()
    not_installed = (".md", ".sh", ".toml")  # read in the checkout alone
    card = "lastword/weights/builtin/README.md"
    return {
        path: content
        for path, content in wanted.items()
        if path == card or not path.endswith(not_installed)
    }


def test_wheel_holds_the_tree(copy: Path, tmp_path: Path) -> None:
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(copy), cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"lastword-{lastword.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        held = {name: archive.read(name) for name in names}
    assert sorted(held) == sorted(packaged(copy))
    assert held == packaged(copy)


IMPORT_ALL = """
import lastword, lastword.bench.flops, lastword.cli.main, lastword.kernels, lastword.weights
import lastword.embedder, lastword.verify
print(lastword.__file__)
"""


def environment(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """A fresh virtual environment that shares this one's packages, but neither lastword nor
    `without`; its Python."""
    venv.create(folder / "venv", symlinks=True)
    shared = folder / "shared"
    shared.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        name = entry.name.lower()
        left_out = name.startswith(("lastword", "__editable__", *without))
        if not left_out and entry.suffix != ".pth":
            (shared / entry.name).symlink_to(entry)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
    return folder / "venv/bin/python"


def install(python: Path, tree: Path, *mode: str) -> None:
    options = ["--no-deps", "--no-build-isolation", *mode]
    pip("--python", str(python), "install", *options, str(tree), cwd=python.parent)


@pytest.mark.parametrize("how", ["wheel", "editable"])
def test_installs_and_imports(how: str, copy: Path, tmp_path: Path) -> None:
    python = environment(tmp_path)
    install(python, copy, *(["--editable"] if how == "editable" else []))
    place = Path(run(IMPORT_ALL, tmp_path, python=python).stdout.strip())
    assert place.is_relative_to(copy if how == "editable" else tmp_path / "venv")
    command = [python.with_name("lastword"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"lastword {lastword.__version__}"


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


@pytest.fixture(scope="module")
def no_numpy(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `lastword` command of an environment in which numpy is not installed."""
    folder = tmp_path_factory.mktemp("bare")
    python = environment(folder, without=("numpy", "scipy", "sklearn", "transformers"))
    install(python, copy)
    probe = "import importlib.util as u; print([u.find_spec(n) for n in ('numpy', 'transformers')])"
    assert run(probe, folder, python=python).stdout.strip() == "[None, None]"
    return python.with_name("lastword")


@pytest.mark.parametrize("form", ["jsonl", "safetensors", "npy"])
def test_embed_runs_where_numpy_is_absent(
    form: str, no_numpy: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("first text\nsecond text\n", encoding="utf-8")
    out = tmp_path / f"vectors.{form}"
    words = ["embed", "texts.txt", "--model", tiny_checkpoint, "--format", form, "-o", out]
    done = subprocess.run(
        [no_numpy, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 0
    for trace in ("NumPy", "Warning", "Traceback"):
        assert trace not in done.stderr
