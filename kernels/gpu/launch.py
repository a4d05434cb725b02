"""The only place that launches Triton kernels; it sets the compiler's options and explains a failed build."""

import os
import shutil
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from lastword.errors import DeviceError

# Triton builds and loads, at the first launch, the C module that launches kernels: its module which does that, and its
# functions that look for the driver's library.
_BUILD = "triton.runtime.build"
_BUILDING = frozenset({"library_dirs", "_get_path_to_hip_runtime_dylib"})


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the current device.

    Args:
        kernel: a function decorated with `triton.jit`.
        grid: number of programs per dimension.
        arguments: the kernel's arguments by position.
        constants: the kernel's `tl.constexpr` arguments by name, and the options `num_warps` and `num_stages`.

    Numerics:
        A multiplication and the addition that follows it are fused (one rounding instead of two). Fusion is requested
        explicitly, because Triton 3.9 warns if it is not, and a later release will change the default.

    Raises:
        DeviceError: Triton cannot build the C module that launches kernels.
    """
    try:
        kernel[grid](*arguments, enable_fp_fusion=True, **constants)
    except Exception as error:
        if not _is_failed_build(error):
            raise
        raise _failed_build(error) from error


def _is_failed_build(error: Exception) -> bool:
    """Return whether Triton raised the error while it built its C module.

    Not part of `launch`: a list of frames would keep its frame, and so the batch's tensors, until the garbage collector
    comes.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = {frame.f_code.co_name for frame in frames}
    return bool(names & _BUILDING) or _BUILD in {f.f_globals.get("__name__") for f in frames}


def _failed_build(error: Exception) -> DeviceError:
    """Create the error that says why Triton's build failed: no compiler, no Python headers, or the text of `error`."""
    prefix = "Install "
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        what, got = "no C compiler", "no gcc or clang on PATH and CC unset"
        expected, package = "a C compiler", "gcc"
    elif not (header := _header()).exists():
        what, got, expected = "Python's headers are missing", f"no {header}", "that file"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        package = f"python{version}-dev (Debian, Ubuntu) or python3-devel (Fedora)"
    else:
        what, got = "its launcher cannot be built", str(error).partition("\n")[0]
        expected = "a working C compiler and the GPU driver's library"
        prefix, package = "The compiler's output above may say more. Install ", "gcc and libc6-dev"
    remedy = f"{prefix}{package}, or pass device='cpu'."
    return DeviceError("triton", what, got=got, expected=expected, remedy=remedy)


def _header() -> Path:
    """Return the path where Triton expects Python.h; on Debian this is not the path of Python's default scheme."""
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_path("include", scheme), "Python.h")
