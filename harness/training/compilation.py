"""torch.compile where it pays: the whole network, on long runs.

A compiled network's results differ from the plain one's in the last bits (order of sums, fused multiply-add). So the
choice depends on the configuration and the machine's capabilities, never on timing.
"""

import shutil
import warnings
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from harness.kernels import dispatch

#: off: plain operations only. kernels: the native passes over the weights. full: these, and the network compiled.
Compiled = Literal["off", "kernels", "full"]

#: Compiling costs 10 to 40 s, once a network and process (3 s where torch's cache on disk has it); a compiled step of
#: ResNet-18 saves 0.1 s on a CPU with bf16 units. For an H200 it costs 28 s where nothing else compiles,
#: minutes where other runs start beside it, and a step saves milliseconds.
MIN_STEPS = {"cpu": 1000, "cuda": 20_000}
#: Smaller networks gain nothing: an MLP of 1 M weights was slower compiled.
MIN_WEIGHTS = 2_000_000


def choose(wanted: str, device: torch.device, model: nn.Module, total_steps: int, twice: bool) -> Compiled:
    """Resolve `runtime.compile`. twice: a method differentiates twice, which compiled code cannot."""
    if wanted == "off":
        return "off"
    weights = sum(parameter.numel() for parameter in model.parameters())
    pays = total_steps >= MIN_STEPS[device.type] and (weights >= MIN_WEIGHTS or device.type == "cuda")
    if twice or not (pays or wanted == "on") or not has_compiler(device):
        return "kernels"
    return "full"


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can make code for a device here: a C++ compiler, and Triton for a GPU."""
    if device.type == "cuda":
        return dispatch.on_gpu(device)
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


class CompiledNetwork:
    """A network to call in place of the model whose parameters it shares; the model itself where compiling fails.

    Resets torch's compiler: after a few networks in one process torch stops compiling, and a run's last bits would
    depend on the runs that its worker did before.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        torch.compiler.reset()
        # On CPUs the patterns would bring back fused attention, whose backward pass takes half a ViT's step there.
        options: dict[str, Any] | None = {"pattern_matcher": False} if device.type == "cpu" else None
        self._model, self._compiled = model, torch.compile(model, dynamic=False, options=options)
        self._proven = self.failed = False

    def __call__(self, inputs: Tensor) -> Tensor:
        if self.failed:
            return cast(Tensor, self._model(inputs))
        try:
            logits = cast(Tensor, self._compiled(inputs))
        except Exception as error:  # of many types, by torch version; the model's own errors come up again below
            if self._proven:
                raise
            self.failed = True
            first = str(error).strip().partition("\n")[0][:300]
            warnings.warn(f"the network could not be compiled and runs plainly, slower: {first}", stacklevel=2)
            return cast(Tensor, self._model(inputs))
        self._proven = True
        return logits
