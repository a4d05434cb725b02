"""Choose the device, the compute dtype and the batch size. This module knows nothing about models."""

from contextlib import suppress

import torch

from lastword.arguments import is_one_of, short_repr
from lastword.errors import ConfigError, DeviceError
from lastword.kernels import activation_levels, check_fp8, check_int8, fp8_format
from lastword.weights import dtype_name

# Rows of one forward per CPU thread: matmuls are at their peak speed, and more rows only take memory (bench/LOG.md).
CPU_BATCH_TOKENS_PER_THREAD = 1024
CPU_BATCH_TOKENS_MOST = 8192
# Least and most rows on a GPU: with fewer, matmuls wait for weights to be read; more bring no gain.
GPU_BATCH_TOKENS_LIMITS = (1024, 16_384)
# Share of the memory that is left after the weights and the CUDA graphs; the rest is for libraries, other processes.
GPU_FREE_SHARE = 0.8
# The remedy for other kinds of PyTorch devices, such as mps and xpu.
_SUPPORTED = "Use 'cpu', which works on every machine, including Apple's; 'cuda' is for the GPUs of NVIDIA and AMD."
_DEVICES = "'cpu', 'cuda', 'cuda:N', 'cuda:0,1' or 'cuda:all'"


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the requested device; by default a GPU, or the CPU if there is none.

    "cuda" means this thread's current GPU. A GPU is returned with its number, because each thread has a current GPU of
    its own.

    Raises:
        DeviceError: the device is unknown, missing or of a kind that lastword does not compute on.
    """
    return _one_device(device, "'cpu', 'cuda' or 'cuda:N'")


def _one_device(device: str | torch.device | None, expected: str) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen: torch.device | None = None
    name = str(device)
    with suppress(RuntimeError):
        chosen = torch.device(device)
    if chosen is None:
        raise DeviceError("device", "unknown", got=short_repr(device), expected=expected)
    if chosen.type not in ("cpu", "cuda"):
        what = "of a kind that is not supported"
        raise DeviceError("device", what, got=repr(name), expected=expected, remedy=_SUPPORTED)
    # PyTorch stores the number in 8 bits: cuda:256 would become cuda:0
    if str(chosen) != name or not _is_there(chosen):
        raise DeviceError(
            "device", "not there", got=repr(name), expected=_device_names(chosen.type)
        )
    if chosen.type == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", chosen.index if "cuda:" in name else _current_gpu())


def _is_there(device: torch.device) -> bool:
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    return 0 <= (device.index or 0) < count


def _device_names(kind: str) -> str:
    if kind == "cpu":
        return "'cpu', which has no number"
    gpus = torch.cuda.device_count()
    return ("'cpu': PyTorch finds no GPU", "'cuda:0'", f"'cuda:0' to 'cuda:{gpus - 1}'")[
        min(gpus, 2)
    ]


def _current_gpu() -> int:
    """Return the number of this thread's current GPU. If CUDA is not initialised, return 0 and do not initialise it."""
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.current_device() if started else 0


def choose_devices(device: str | torch.device | None) -> tuple[torch.device, ...]:
    """Return the requested devices: one, as `choose_device` does, or several of the same kind.

    "cuda:0,1" (or "cuda:0,cuda:1") and "cuda:all" mean several GPUs; "cpu,cpu" means two processes that share the CPU's
    threads.

    Raises:
        DeviceError: a device is unknown or missing, a GPU is named twice, or GPUs and CPUs are mixed.
    """
    if device is not None and not isinstance(device, str | torch.device):
        raise DeviceError("device", "unknown", got=short_repr(device), expected=_DEVICES)
    asked = str(device)
    if asked == "cuda:all":
        choose_device("cuda")  # raises if there is no GPU
        return tuple(torch.device("cuda", i) for i in range(torch.cuda.device_count()))
    names = [name.strip() for name in asked.split(",")]
    if len(names) == 1:
        return (_one_device(device, _DEVICES),)
    gpus = names[0].startswith("cuda:")
    names = [f"cuda:{name}" if gpus and name.isdecimal() else name for name in names]
    chosen = tuple(_one_device(name, _DEVICES) for name in names)
    if len({each.type for each in chosen}) > 1:
        expected = "only GPUs or only CPUs, as in 'cuda:0,1' or 'cpu,cpu'"
        raise DeviceError("device", "mixes GPUs and CPUs", got=repr(asked), expected=expected)
    if "cuda" in names:
        what = "one of several GPUs has no number"
        raise DeviceError("device", what, got=repr(asked), expected="numbers, as in 'cuda:0,1'")
    if chosen[0].type == "cuda" and len(set(chosen)) < len(chosen):
        raise DeviceError("device", "a GPU is named twice", got=repr(asked), expected="each once")
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the requested compute dtype; by default float32 on a CPU and bfloat16 on a GPU.

    Raises:
        ConfigError: another dtype is requested. float16 overflows in this model family, so it is never a compute dtype.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    name = dtype_name(dtype) if isinstance(dtype, torch.dtype) else dtype
    known |= {f"torch.{each}": found for each, found in known.items()}
    if not is_one_of(name, known):
        expected = "'float32' or 'bfloat16'"
        raise ConfigError("dtype", "not a compute dtype", got=short_repr(name), expected=expected)
    return known[name]


def check_quantize(quantize: str | None, device: torch.device, dtype: torch.dtype) -> str | None:
    """Check and return the quantisation mode of matmuls: None, "int8" (CPU, float32) or "fp8" (GPU, bfloat16).

    Raises:
        ConfigError: the mode is unknown, does not fit the device or dtype, or this CPU has no kernel for it.
        DeviceError: the GPU has no fp8.
    """
    if quantize is None:
        return None
    rest = {"int8": torch.float32, "fp8": torch.bfloat16}
    if not is_one_of(quantize, rest):
        expected = "None, 'int8' on a CPU or 'fp8' on a GPU"
        raise ConfigError("quantize", "unknown", got=short_repr(quantize), expected=expected)
    if quantize == "int8" and device.type != "cpu":
        raise ConfigError(
            "quantize",
            "int8 is for CPUs",
            got=f"device {str(device)!r}",
            expected="'cpu'",
            remedy="Pass device='cpu', or quantize='fp8' on this device, or leave it out.",
        )
    if quantize == "fp8":
        check_fp8(device)
    if dtype != rest[quantize]:
        what = f"{quantize} needs dtype {dtype_name(rest[quantize])}"
        got = f"dtype {dtype_name(dtype)!r}"
        raise ConfigError("quantize", what, got=got, remedy="Leave dtype out.")
    if quantize == "int8":
        check_int8()
    return quantize


def check_quantized_layers(quantize: str | None, layers: int) -> None:
    """Raise ConfigError if the mode would quantise none of a model's layers."""
    if quantize == "fp8" and layers < 3:
        raise ConfigError(
            "quantize",
            "fp8 leaves the first and the last layer as they are, so nothing would be quantised",
            got=f"a model with {layers} layers",
            expected="at least 3",
            remedy="Leave it out.",
        )


def quantize_identity(quantize: str | None, device: torch.device) -> list[object] | None:
    """Return what a fingerprint says about quantisation: the mode, and what rounding depends on; None for no mode."""
    if quantize == "int8":
        return [quantize, activation_levels(), "smoothed"]
    return None if quantize is None else [quantize, str(fp8_format(device))]


def default_batch_tokens(device: torch.device, token_bytes: int, *, reserved: int = 0) -> int:
    """Return the default for the maximum tokens computed in one forward.

    Call this after the weights are loaded, since on a GPU the default depends on the free memory.

    Args:
        device: the device.
        token_bytes: bytes of activations per token.
        reserved: bytes of the device's memory that will be taken later, for CUDA graphs.
    """
    if device.type != "cpu":
        low, high = GPU_BATCH_TOKENS_LIMITS
        free = max(0, _free_bytes(device) - reserved)
        return min(max(int(free * GPU_FREE_SHARE) // token_bytes, low), high)
    return min(CPU_BATCH_TOKENS_PER_THREAD * torch.get_num_threads(), CPU_BATCH_TOKENS_MOST)


def _free_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a GPU, plus those that PyTorch has reserved but does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
