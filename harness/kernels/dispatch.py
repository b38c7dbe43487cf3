"""When the passes in C or Triton take the place of plain tensor operations."""

from functools import cache

import torch
from torch import Tensor

from harness.kernels import cpu


def on_gpu(device: torch.device) -> bool:
    """Whether a device is a GPU that Triton makes code for: Triton passes then serve."""
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())


def serves(*tensors: Tensor) -> bool:
    """Whether the passes can run on these: on the CPU, dense, all of one shape and order in memory."""
    here = all(tensor.device.type == "cpu" for tensor in tensors)
    return here and alike_in_memory(*tensors) and cpu.library() is not None


def alike_in_memory(*tensors: Tensor) -> bool:
    """Whether tensors are dense, and all of one shape and order in memory."""
    first = tensors[0]
    dense = first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))
    return dense and all(_order(tensor) == _order(first) for tensor in tensors[1:])


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    """Sizes and strides, but for dimensions of size 1, whose stride means nothing."""
    return [pair for pair in zip(tensor.shape, tensor.stride(), strict=True) if pair[0] != 1]
