"""The device of a run, with its threads and determinism."""

import os

import torch

from harness.core.errors import UserError
from harness.training.memory import keep_freed_memory
from harness.training.sections import RuntimeConfig


def choose_device(runtime: RuntimeConfig) -> torch.device:
    """The device of a run; also sets threads, memory and determinism. Raises UserError for one that is not there."""
    wanted = runtime.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"runtime.device: {wanted!r}: torch sees no CUDA device here (legal: auto, cpu)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"runtime.device: {wanted!r}: there are {torch.cuda.device_count()} CUDA devices")
    if device.type == "cpu":
        keep_freed_memory()
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if runtime.deterministic:  # cuBLAS reads this when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if runtime.deterministic != torch.are_deterministic_algorithms_enabled():  # the call takes a second of imports
        torch.use_deterministic_algorithms(runtime.deterministic)
    return device
