"""When passes in C or Triton take the place of plain tensor operations: the one place that decides it for tensors.

A run or a method may want none at all: `Context.fused`, set in harness/training/build.py.
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from harness.kernels import cpu, library

#: Pixels in a row of an image that a pass in C takes, at most; as in harness/kernels/csrc/images.c.
WIDEST = 8192
_PLAIN = (Tensor, nn.Parameter)


def on_gpu(device: torch.device) -> bool:
    """Whether a device is a GPU that Triton makes code for."""
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())


def transformed(x: object) -> bool:
    """Whether what is computed from `x` is recorded or transformed by other means than autograd's backward pass.

    That is torch.jit.trace and the ONNX exporter on it, fx (whose proxies are no tensors), torch.func (vmap, grad,
    jvp, ...), gradients in batches and forward-mode AD. They do not see into an autograd.Function.
    """
    return not isinstance(x, Tensor) or _recording() or torch._C._functorch.is_legacy_batchedtensor(x)


def _recording() -> bool:
    """Of `transformed` what does not depend on the tensor."""
    # The last is undocumented; torch's own autograd.Function asks it.
    return torch.jit.is_tracing() or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def eager(*tensors: Tensor) -> bool:
    """Whether a pass may read the memory of tensors, and nothing would miss that it did.

    Not within torch.compile and torch.export, which make code of their own from plain operations; not where
    `transformed` says so, nor under a dispatch mode (make_fx, FakeTensorMode, counters of operations); not for fake
    tensors and other subclasses.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or _recording():
        return False
    for each in tensors:  # noqa: SIM110  asked some ten times a step: a generator takes twice as long
        if type(each) not in _PLAIN or torch._C._functorch.is_legacy_batchedtensor(each):
            return False
    return True


def serves(*weights: Tensor, like: tuple[Tensor, ...] = ()) -> bool:
    """Whether the passes in C serve tensors on the CPU, dense, all of one shape and order in memory.

    weights: fp32. like: what belongs to a weight, of other types: codes, frequencies. All as `eager` says.
    """
    both = weights + like
    if not eager(*both):
        return False
    return _fp32(weights) and all(each.is_cpu for each in both) and alike_in_memory(*both) and _has_library()


def serves_images(images: Tensor) -> bool:
    """Whether the pass in C makes batches of images, uint8 (N, C, H, W)."""
    fits = images.shape[-1] <= WIDEST
    return fits and eager(images) and images.is_cpu and images.is_contiguous() and _has_library()


def serves_on_gpu(*weights: Tensor, per_channel: bool, like: tuple[Tensor, ...] = ()) -> bool:
    """Whether the passes in Triton serve, which know per-tensor steps alone; otherwise as `serves`."""
    if per_channel or not eager(*weights, *like):
        return False
    return on_gpu(weights[0].device) and _fp32(weights) and alike_in_memory(*weights, *like)


def fake_quantization(weight: Tensor, per_channel: bool) -> bool:
    """Whether the fake quantization of `passes_on` serves a max-abs quantizer's weight."""
    if not eager(weight):
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


def alike(gradient: Tensor, weight: Tensor, bf16: bool = False) -> Tensor:
    """A gradient as the passes take it: fp32, or bf16 where they take that, in the weight's order in memory."""
    if not (bf16 and gradient.dtype == torch.bfloat16):
        gradient = gradient.float()
    if alike_in_memory(weight, gradient):
        return gradient
    return torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)


def multiplied_in_bf16(weight: Tensor) -> bool:
    """Whether autocast would cast a weight on the CPU to bf16 where it is multiplied, and a pass may do so at once."""
    if torch.compiler.is_compiling() or not isinstance(weight, Tensor) or weight.device.type != "cpu":
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


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
