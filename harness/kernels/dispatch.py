"""When passes in C or Triton take the place of plain tensor operations: the one place that decides it."""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from harness.kernels import cpu, library


def on_gpu(device: torch.device) -> bool:
    """Whether a device is a GPU that Triton makes code for."""
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())


def serves(*weights: Tensor, like: tuple[Tensor, ...] = ()) -> bool:
    """Whether the passes in C serve tensors on the CPU, dense, all of one shape and order in memory.

    weights: fp32. like: what belongs to a weight, of other types: codes, frequencies. Within torch.compile no pass
    serves: it makes code of its own from plain operations.
    """
    if torch.compiler.is_compiling():
        return False
    both = weights + like
    return _fp32(weights) and all(each.is_cpu for each in both) and alike_in_memory(*both) and _has_library()


def serves_images(images: Tensor) -> bool:
    """Whether the pass in C makes batches of images, uint8 (N, C, H, W)."""
    return images.is_cpu and images.is_contiguous() and _has_library()


def serves_on_gpu(*weights: Tensor, per_channel: bool, like: tuple[Tensor, ...] = ()) -> bool:
    """Whether the passes in Triton serve, which know per-tensor steps alone; otherwise as `serves`."""
    if torch.compiler.is_compiling() or per_channel:
        return False
    return on_gpu(weights[0].device) and _fp32(weights) and alike_in_memory(*weights, *like)


def fake_quantization(weight: Tensor, per_channel: bool) -> bool:
    """Whether the fake quantization of `passes_on` serves a max-abs quantizer's weight."""
    if torch.compiler.is_compiling():
        return False
    return serves_on_gpu(weight, per_channel=per_channel) if on_gpu(weight.device) else serves(weight)


def passes_on(device: torch.device) -> ModuleType:
    """The module that has `peaks`, `quantize` and `quantize_backward` for weights on a device."""
    if not on_gpu(device):
        return cpu
    from harness.kernels import triton_quantize  # needs Triton

    return triton_quantize


def alike_in_memory(first: Tensor, *others: Tensor) -> bool:
    """Whether tensors are dense, and all of one shape and order in memory."""
    dense = first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))
    return dense and all(_same_order(first, other) for other in others)


def alike(gradient: Tensor, weight: Tensor) -> Tensor:
    """A gradient as the passes take it: fp32, in the weight's order in memory."""
    gradient = gradient.float()
    if alike_in_memory(weight, gradient):
        return gradient
    return torch.empty_like(weight, dtype=torch.float32).copy_(gradient)


def _same_order(first: Tensor, other: Tensor) -> bool:
    """The same sizes and strides, but for dimensions of size 1, whose stride means nothing."""
    if first.shape != other.shape:
        return False
    if first.stride() == other.stride():
        return True
    triples = zip(first.shape, first.stride(), other.stride(), strict=True)
    return all(one == another for size, one, another in triples if size != 1)


def _fp32(weights: tuple[Tensor, ...]) -> bool:
    return all(weight.dtype == torch.float32 for weight in weights)


def _has_library() -> bool:
    return library.library() is not None
