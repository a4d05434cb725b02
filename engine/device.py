"""Where to compute, in what dtype, and how much at once.

Knows devices, not models.
"""

import torch

from lastword.errors import ConfigError, DeviceError
from lastword.kernels import activation_levels, check_fp8, check_int8, fp8_format

# Rows of one forward for each CPU thread: products are at their peak, and activations stay near the caches.
CPU_BATCH_TOKENS_PER_THREAD = 512
CPU_BATCH_TOKENS_LIMITS = (1024, 8192)
GPU_BATCH_TOKENS = 16_384


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for, else the first GPU, else the CPU.

    Raises:   DeviceError for a device that is unknown or not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise DeviceError(
            f"device: unknown; got {str(device)!r}, expected 'cpu', 'cuda' or 'cuda:N'."
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise DeviceError(
            f"device: not there; got {str(device)!r}, found {found} GPUs. Use device 'cpu'."
        )
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the compute dtype asked for, else float32 on a CPU and bfloat16 on a GPU.

    Raises:   ConfigError for any other: float16 overflows in this family and is never computed in.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise ConfigError(
            f"dtype: cannot be computed in; got {name!r}, expected 'float32' or 'bfloat16'."
        )
    return known[name]


def check_quantize(quantize: str | None, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return how matrix products are quantised: None, "int8" on a CPU in float32, or "fp8" on a GPU in bfloat16.

    Raises:   ConfigError for any other name, device or dtype, or on a CPU without a kernel for it; DeviceError for a
              GPU without fp8.
    """
    if quantize is None:
        return None
    rest = {"int8": torch.float32, "fp8": torch.bfloat16}
    if quantize not in rest:
        raise ConfigError(
            f"quantize: unknown; got {quantize!r}, expected None, 'int8' on a CPU or 'fp8' on a GPU."
        )
    if quantize == "int8" and device.type != "cpu":
        raise ConfigError(
            f"quantize: int8 is for CPUs; got device {str(device)!r}, expected 'cpu'. Use device 'cpu', quantize "
            "'fp8' on this one, or leave quantize out."
        )
    if quantize == "fp8":
        check_fp8(device)
    if dtype != rest[quantize]:
        names = [str(each).removeprefix("torch.") for each in (rest[quantize], dtype)]
        raise ConfigError(
            f"quantize: {quantize} computes the rest in {names[0]}; got dtype {names[1]!r}. Leave dtype out."
        )
    if quantize == "int8":
        check_int8()
    return quantize


def quantize_identity(quantize: str | None, device: torch.device) -> list[object] | None:
    """Name a mode with what its codes depend on: the levels of this CPU, or the fp8 format of this GPU."""
    if quantize == "int8":
        return [quantize, activation_levels()]
    return None if quantize is None else [quantize, str(fp8_format(device))]


def default_batch_tokens(device: torch.device) -> int:
    """Tokens computed in one forward where the caller does not say."""
    if device.type != "cpu":
        return GPU_BATCH_TOKENS
    low, high = CPU_BATCH_TOKENS_LIMITS
    return min(max(CPU_BATCH_TOKENS_PER_THREAD * torch.get_num_threads(), low), high)
