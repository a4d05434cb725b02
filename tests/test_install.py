"""The wheel holds the tree, installs and runs, also where NumPy is absent."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.project import LEFT_OUT, ROOT, TOP_FOLDERS, run

import lastword


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


def packaged_files(tree: Path) -> dict[str, bytes]:
    """Installed path -> content, as the tree says it should be."""
    inner = {tree / folder for folder in TOP_FOLDERS.values()} - {tree / "engine"}
    left_out = tree / LEFT_OUT.relative_to(ROOT)
    wanted = {}
    for package, folder in TOP_FOLDERS.items():
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
    assert sorted(held) == sorted(packaged_files(copy))
    assert held == packaged_files(copy)


IMPORT_ALL = """
import lastword, lastword.bench.models.flops, lastword.cli.main, lastword.kernels, lastword.weights
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


def install_hint(python: Path, tree: Path, *mode: str) -> None:
    options = ["--no-deps", "--no-build-isolation", *mode]
    pip("--python", str(python), "install", *options, str(tree), cwd=python.parent)


@pytest.mark.parametrize("how", ["wheel", "editable"])
def test_installs_and_imports(how: str, copy: Path, tmp_path: Path) -> None:
    python = environment(tmp_path)
    install_hint(python, copy, *(["--editable"] if how == "editable" else []))
    place = Path(run(IMPORT_ALL, tmp_path, python=python).stdout.strip())
    assert place.is_relative_to(copy if how == "editable" else tmp_path / "venv")
    command = [python.with_name("lastword"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"lastword {lastword.__version__}"


@pytest.fixture(scope="module")
def no_numpy(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `lastword` command of an environment in which numpy is not installed."""
    folder = tmp_path_factory.mktemp("bare")
    python = environment(folder, without=("numpy", "scipy", "sklearn", "transformers"))
    install_hint(python, copy)
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
