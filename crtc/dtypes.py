"""Which float type a model runs in: the one that is fast on the machine, unless another is asked for."""

import time
from functools import cache
from typing import Literal, get_args

import torch

Name = Literal["auto", "float32", "bfloat16", "float16"]
NAMES: tuple[str, ...] = get_args(Name)
GAIN = 1.3
"""How many times faster than float32 a CPU must be in bfloat16: less is noise, or lost to what is not a product."""
_ROWS, _WIDTH, _HIDDEN = 192, 192, 768
_REPEATS, _BUDGET = 9, 0.02


def resolve(name: str, device: str | torch.device = "auto") -> torch.dtype:
    """The float type of a name.

    Args:
        name: "auto" is the type that is fast on the device.
        device: to run on; "auto" is the GPU if there is one.

    Raises:
        ValueError: if there is no such type, or the device cannot be used.
    """
    if name not in NAMES:
        raise ValueError(f"dtype is {name!r}, expected one of {', '.join(NAMES)}")
    if name == "auto":
        return fast_dtype(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def fast_dtype(device: str | torch.device = "auto") -> torch.dtype:
    """The float type in which a device is fast, with the range of float32 where that costs nothing.

    A GPU has bfloat16, or float16 where only that has units of its own. A CPU is measured, once per process: its flags
    do not tell what the libraries make of them, nor which they were told to leave alone (`ONEDNN_MAX_CPU_ISA`).
    Everything else runs in float32.

    Args:
        device: to run on; "auto" is the GPU if there is one.

    Raises:
        ValueError: if the device cannot be used.
    """
    device = _device(device)
    if device.type == "cuda":
        return _fast_on_gpu(device)
    if device.type == "cpu" and seconds(torch.float32) >= GAIN * seconds(torch.bfloat16):
        return torch.bfloat16
    return torch.float32


def told(device: str | torch.device = "auto") -> str:
    """What `fast_dtype` gives for a device and why, for whoever asked for "auto".

    Raises:
        ValueError: if the device cannot be used.
    """
    device, dtype = _device(device), fast_dtype(device)
    name = str(dtype).removeprefix("torch.")
    if device.type == "cpu":
        why = "is not faster" if dtype == torch.float32 else "is faster than float32"
        return f"{name} on this CPU, where bfloat16 {why}"
    if device.type == "cuda":
        lacks = "" if dtype == torch.bfloat16 else ", which has no units for bfloat16"
        return f"{name} on {torch.cuda.get_device_name(device)}{lacks}"
    return f"{name} on {device}"


@cache
def seconds(dtype: torch.dtype) -> float:
    """How long a product of a usual size takes on the CPU: the best of several, fewer where a single one is slow."""
    with torch.inference_mode():
        rows, weight = (torch.ones(size, _WIDTH, dtype=dtype) for size in (_ROWS, _HIDDEN))
        torch.nn.functional.linear(rows, weight)  # libraries prepare themselves at the first
        spent: list[float] = []
        while len(spent) < 2 or (len(spent) < _REPEATS and sum(spent) < _BUDGET):
            begun = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            spent.append(time.perf_counter() - begun)
    return min(spent)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise _unusable(device, error) from error


def _fast_on_gpu(device: torch.device) -> torch.dtype:
    try:
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16
        # The cards between have float16, but some multiply it many times slower than float32.
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32
    except (RuntimeError, AssertionError) as error:
        raise _unusable(device, error) from error


def _unusable(device: str | torch.device, error: Exception) -> ValueError:
    return ValueError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}")
