"""The precision of a run, chosen by what the device can do and how large the network's products are, never by timing.

`train.precision: auto` is bf16 on a GPU of compute capability 8.0 or higher. On a CPU it is bf16 where the CPU has
instructions for products in bf16 (AMX, avx512_bf16, or Arm's bf16) and both of these hold of the multiplications in
the network's linear and convolution layers:

* At least half are in layers of 64 inputs or more that do 2^26 of them or more in a training step. Smaller products
  gain less than the conversions to bf16 cost (tests/benchmarks/precision_cost.py).
* At most a quarter are in layers of fewer than 64 inputs: depthwise convolutions are slower in bf16.

Everywhere else it is fp32.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.quantization.slots import copy_of

#: Inputs of a layer: features, or a convolution's channels of a group times the area of its kernel.
WIDE = 64
#: Multiplications of a layer in a training step's forward pass, from which bf16 saves more than it costs.
LARGE = 2**26
#: Of all multiplications: the least in large wide layers, and the most in narrow ones.
LEAST_LARGE, MOST_NARROW = 0.5, 0.25


def choose_precision(wanted: str, device: torch.device, model: nn.Module, sample: Tensor, batch_size: int) -> str:
    """ "fp32" or "bf16", for training on batches of inputs such as `sample`, (1, ...); see above for "auto".

    Changes neither the model nor the random state.
    """
    if device.type == "cuda":
        capable = torch.cuda.get_device_capability(device) >= (8, 0)
        return ("bf16" if capable else "fp32") if wanted == "auto" else wanted
    if wanted == "bf16" and not multiplies_bf16():
        warnings.warn(
            "train.precision: bf16 on a CPU without instructions for it takes tens of times as long as fp32; "
            "auto chooses by what the CPU has",
            stacklevel=2,
        )
    if wanted != "auto":
        return wanted
    return "bf16" if multiplies_bf16() and gains_by_bf16(multiplications(model, sample), batch_size) else "fp32"


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products in bf16: AMX, avx512_bf16, or Arm's."""
    found = _capabilities()
    return any(found.get(name, False) for name in ("amx_tile", "avx512_bf16", "bf16"))


def _capabilities() -> Mapping[str, Any]:
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    # Older versions of torch report this for x86 only.
    return {"amx_tile": torch.cpu._is_amx_tile_supported(), "avx512_bf16": torch.cpu._is_avx512_bf16_supported()}


def gains_by_bf16(layers: list[tuple[int, int]], batch_size: int) -> bool:
    """Whether a network's products are large enough: layers as `multiplications` gives them, images of a step."""
    total = sum(count for _, count in layers)
    large = sum(count for inputs, count in layers if inputs >= WIDE and count * batch_size >= LARGE)
    narrow = sum(count for inputs, count in layers if inputs < WIDE)
    return total > 0 and large >= LEAST_LARGE * total and narrow <= MOST_NARROW * total


def multiplications(model: nn.Module, sample: Tensor) -> list[tuple[int, int]]:
    """Inputs, and multiplications for one sample, of each linear and convolution layer, once for each call.

    From a forward pass of a copy with one sample, (1, ...) on the model's device.
    """
    found: list[tuple[int, int]] = []

    def count(layer: nn.Module, _: Any, outputs: Tensor) -> None:
        assert isinstance(layer.weight, Tensor)
        inputs = layer.weight[0].numel()
        found.append((inputs, inputs * outputs.numel()))

    copy = copy_of(model).eval()
    for layer in copy.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        copy(sample)
    return found
