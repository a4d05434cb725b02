"""Every launch states the compiler's options, and a launcher that cannot be built is explained in one line."""

import ast
import gc
import sysconfig
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import triton
from helpers.messages import refusal
from helpers.sources import MODULES, imports
from triton.backends.amd import driver as amd
from triton.backends.nvidia import driver as nvidia
from triton.runtime import build

from lastword import DeviceError
from lastword.bench.kernels.compile import compile_kernel
from lastword.bench.kernels.launches import all_launches
from lastword.kernels.gpu.launch import launch

LAUNCH = "lastword.kernels.gpu.launch"


def launches(source: str) -> list[ast.Call]:
    """Every call of the form `kernel[grid](...)`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Subscript)]


def test_one_function_launches_and_states_the_options() -> None:
    with_triton = {
        name: file.read_text(encoding="utf-8")
        for name, file in MODULES.items()
        if any(each.module.startswith("triton") for each in imports(file.read_text("utf-8")))
    }
    assert len(with_triton) > 6
    assert [name for name, source in with_triton.items() if launches(source)] == []
    (call,) = launches(MODULES[LAUNCH].read_text(encoding="utf-8"))
    stated = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
    assert stated == {"enable_fp_fusion": "True"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_compiled_ahead_of_time_is_what_is_launched(dtype: torch.dtype) -> None:
    found = all_launches("0.6B", dtype, "sm_90")
    assert {dict(each.options)["enable_fp_fusion"] for each in found.values()} == {True}
    compiled = compile_kernel(found["rms_norm"], "sm_90")
    assert compiled.metadata.enable_fp_fusion is True


class Kernel:
    """Does at its first launch what Triton does there: build a module, for a driver or from source."""

    def __init__(self, build) -> None:
        self._build = build

    def __getitem__(self, grid):
        assert grid == (3,)

        def run(*arguments, enable_fp_fusion: bool, num_warps: int) -> None:
            assert (arguments, enable_fp_fusion, num_warps) == ((1, 2), True, 4)
            self._build()

        return run


BUILDS = {
    "source": lambda: build.compile_module_from_src("int x;", "some_launcher"),
    "nvidia": lambda: nvidia.CudaUtils.__init__(object.__new__(nvidia.CudaUtils)),
}


@pytest.fixture(params=BUILDS)
def kernel(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Kernel:
    """A kernel whose launcher is in no cache, on a machine with the GPU driver's library."""
    find_compiler = getattr(build, "_find_compiler", None)  # from 3.9 on it finds a compiler once
    if find_compiler is not None:
        find_compiler.cache_clear()
    (tmp_path / "libcuda.so.1").touch()
    monkeypatch.setattr(nvidia, "libcuda_dirs", lambda: [str(tmp_path)])
    nvidia.library_dirs.cache_clear()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "false")  # a program that fails
    return Kernel(BUILDS[request.param])


def test_no_compiler(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "/nonexistent")
    parts = {"what": "no C compiler", "got": "no gcc or clang on PATH and CC unset"}
    with refusal(DeviceError, where="triton", **parts, remedy="Install gcc, or pass device='cpu'."):
        launch(kernel, (3,), 1, 2, num_warps=4)


def test_no_headers(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    with refusal(DeviceError, where="triton", what="Python's headers are missing") as _:
        launch(kernel, (3,), 1, 2, num_warps=4)
    with pytest.raises(DeviceError, match=r"python3\.\d+-dev \(Debian, Ubuntu\)") as caught:
        launch(kernel, (3,), 1, 2, num_warps=4)
    assert caught.value.got == f"no {tmp_path / 'Python.h'}"


@pytest.mark.parametrize("compiler", ["false", "/nonexistent/cc"])
def test_a_compiler_that_fails(
    kernel: Kernel, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(Path(__file__).parent))
    monkeypatch.setattr("lastword.kernels.gpu.launch._header", lambda: Path(__file__))
    with pytest.raises(DeviceError) as caught:
        launch(kernel, (3,), 1, 2, num_warps=4)
    assert caught.value.what == "its launcher cannot be built"
    assert compiler in caught.value.got
    assert "\n" not in str(caught.value)


def test_no_driver_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton looks for it with `ldconfig`, which is not where PyTorch finds it on every system."""

    def none() -> list[str]:
        raise AssertionError("libcuda.so cannot found!\nPlease")

    monkeypatch.setattr(nvidia, "libcuda_dirs", none)
    nvidia.library_dirs.cache_clear()
    monkeypatch.setattr("lastword.kernels.gpu.launch._header", lambda: Path(__file__))
    with refusal(DeviceError, what="its launcher cannot be built", got="libcuda.so cannot found!"):
        launch(Kernel(BUILDS["nvidia"]), (3,), 1, 2, num_warps=4)
    nvidia.library_dirs.cache_clear()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("a launch")])
def test_other_errors_stay(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    def build() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        launch(Kernel(build), (3,), 1, 2, num_warps=4)
    assert caught.value is error


def test_a_failed_launch_keeps_no_tensor() -> None:
    """Reference counting frees a batch whose launch failed; the garbage collector may come much later."""

    class Failing:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            def run(*_: object, **__: object) -> None:
                raise RuntimeError("Triton Error [CUDA]: out of memory")

            return run

    def batch() -> weakref.ref[torch.Tensor]:
        tensor = torch.empty(4)
        with suppress(RuntimeError):
            launch(Failing(), (1,), tensor)
        return weakref.ref(tensor)

    gc.disable()
    try:
        assert batch()() is None
    finally:
        gc.enable()


def test_the_places_of_the_build_are_triton_s_own() -> None:
    """The names by which a failed build is recognised, in the release that is installed."""
    assert callable(nvidia.library_dirs)
    assert callable(amd._get_path_to_hip_runtime_dylib)
    for driver in (nvidia, amd):
        modules = {getattr(value, "__module__", None) for value in vars(driver).values()}
        assert "triton.runtime.build" in modules
    assert hasattr(triton.knobs.language, "default_fp_fusion")
