"""A run's device and precision, chosen by capability, never by timing."""

import os
import platform
import warnings

import torch

from harness.core.errors import UserError
from harness.training.config import RuntimeConfig


def choose_device(runtime: RuntimeConfig) -> torch.device:
    """The device of a run; also sets threads and determinism. Raises UserError for a device that is not there."""
    wanted = runtime.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"runtime.device: {wanted!r}: torch sees no CUDA device here (legal: auto, cpu)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"runtime.device: {wanted!r}: there are {torch.cuda.device_count()} CUDA devices")
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if runtime.deterministic:  # cuBLAS reads this when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if runtime.deterministic != torch.are_deterministic_algorithms_enabled():  # the call alone imports for a second
        torch.use_deterministic_algorithms(runtime.deterministic)
    return device


def choose_precision(wanted: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the device has matrix units for it (capability, never timing)."""
    if wanted != "auto":
        if wanted == "bf16" and device.type == "cpu" and not _multiplies_bf16():
            warnings.warn(
                "train.precision: bf16 on a CPU without units for it takes tens of times as long as fp32; "
                "auto chooses by what the CPU has",
                stacklevel=2,
            )
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"


def _multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products in bf16. torch can tell for x86 only; else True."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
