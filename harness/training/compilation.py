"""torch.compile for the whole network, where it saves time: on long runs.

The results of a compiled network differ in the last bits (order of sums, fused multiply-add). So the choice depends on
the configuration and the capabilities of the machine, never on timing.
"""

import shutil
import warnings
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from harness.kernels import dispatch

#: off: plain operations only. kernels: the native passes over the weights. full: native passes and a compiled network.
Compiled = Literal["off", "kernels", "full"]

#: Compiling costs 10 to 40 s per network and process (3 s from torch's cache on disk); a compiled step of ResNet-18
#: saves 0.1 s on a CPU with bf16 units. On an H200 it costs 28 s if nothing else compiles, minutes if other runs start
#: at the same time, and a step saves milliseconds.
MIN_STEPS = {"cpu": 1000, "cuda": 20_000}
#: Smaller networks gain nothing: an MLP of 1 M weights was slower compiled.
MIN_WEIGHTS = 2_000_000


def choose(wanted: str, device: torch.device, model: nn.Module, total_steps: int, twice: bool) -> Compiled:
    """Resolve `runtime.compile`. twice: a method needs double backward, which compiled code does not support."""
    if wanted == "off":
        return "off"
    weights = sum(parameter.numel() for parameter in model.parameters())
    pays = total_steps >= MIN_STEPS[device.type] and (weights >= MIN_WEIGHTS or device.type == "cuda")
    if twice or not (pays or wanted == "on") or not has_compiler(device):
        return "kernels"
    return "full"


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile works for a device here; it needs a C++ compiler for a CPU, Triton for a GPU."""
    if device.type == "cuda":
        return dispatch.on_gpu(device)
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


class CompiledNetwork:
    """The compiled version of a model, with shared parameters; calls the model itself if compiling fails.

    Resets torch's compiler: torch stops compiling after a few networks in one process, so the last bits of a run would
    depend on the worker's earlier runs.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        torch.compiler.reset()
        # On CPUs the pattern matcher restores fused attention, whose backward pass takes half of a ViT's step there.
        options: dict[str, Any] | None = {"pattern_matcher": False} if device.type == "cpu" else None
        self._model, self._compiled = model, torch.compile(model, dynamic=False, options=options)
        self._proven = self.failed = False

    def __call__(self, inputs: Tensor) -> Tensor:
        if self.failed:
            return cast(Tensor, self._model(inputs))
        try:
            logits = cast(Tensor, self._compiled(inputs))
        except Exception as error:  # type depends on torch's version; errors of the model itself recur below
            if self._proven:
                raise
            self.failed = True
            first = str(error).strip().partition("\n")[0][:300]
            warnings.warn(f"the network could not be compiled and runs plainly, slower: {first}", stacklevel=2)
            return cast(Tensor, self._model(inputs))
        self._proven = True
        return logits
