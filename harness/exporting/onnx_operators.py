"""Modules that compute by operators of ONNX: in the copy of a deployed network from which the graph is drawn."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.exporting.inputs import GridInput
from harness.exporting.stairs import stairs
from harness.quantization.integer_codes import Codes
from harness.quantization.shaped_activations import MagnitudeQuantizer

OPSET = 21
#: The name of a weight's codes in its module.
CODES = "codes"


def expressed(held: nn.Module) -> nn.Module:
    """What rounds an input, `Network.inputs`, by operators of ONNX."""
    if isinstance(held, GridInput):
        return Input(held)
    if isinstance(held, MagnitudeQuantizer):
        return Stairs(held)
    return deepcopy(held)  # a shift, or ranges of rows, which are found at run time: arithmetic in float


class Weight(nn.Module):
    """In a layer's weight_quantizer: its weight by DequantizeLinear, whatever is given to it."""

    def __init__(self, codes: Codes) -> None:
        super().__init__()
        self.axis = 0 if codes.per_channel else None
        table, half = codes.levels is not None, 2 ** (codes.bits - 1)
        self.codes = nn.Buffer(codes.codes.clone() if table else (codes.codes.short() - half).to(torch.int8))
        scale = torch.ones(1) if codes.scale is None else codes.scale
        self.scale = nn.Buffer(scale.clone() if self.axis == 0 and not table else scale[0].clone())
        # Levels k + 1/2: half a step is added to those of the operator, which have whole zero points.
        halves = not table and codes.zero != half
        shape = [-1, *[1] * (codes.codes.dim() - 1)] if self.axis == 0 else []
        self.offset = nn.Buffer((half - codes.zero) * self.scale.view(shape)) if halves else None

    def forward(self, weight: Tensor) -> Tensor:
        given = {} if self.axis is None else {"axis": self.axis}
        value = _operator("DequantizeLinear", (self.codes, self.scale), torch.float32, self.codes.shape, given)
        return value if self.offset is None else value + self.offset


class Input(nn.Module):
    """In a slot for activations: `GridInput` by QuantizeLinear and DequantizeLinear, with codes from 0."""

    def __init__(self, grid: GridInput) -> None:
        super().__init__()
        self.grid, self.step = grid, nn.Buffer(grid.step.clone())
        self.zero = nn.Buffer(torch.tensor(-grid.low, dtype=torch.uint8))
        self.ends = float(grid.low * grid.step), float(grid.high * grid.step)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid
        x = x if grid.before is None else x + grid.before
        if self.ends[0] < self.ends[1]:
            if grid.high - grid.low < 255:  # the operator itself clips to 8 bits
                x = x.clamp(*self.ends)
            codes = _operator("QuantizeLinear", (x, self.step, self.zero), torch.uint8, x.shape)
            x = _operator("DequantizeLinear", (codes, self.step, self.zero), torch.float32, x.shape)
        else:
            x = x * 0
        return x if grid.after is None else x + grid.after


class Stairs(nn.Module):
    """In a slot for activations: levels or thresholds that are not evenly spaced, by a table of each.

    ONNX has no operator that finds the interval of a value, so this is a binary search: for each bit of the code one
    Gather, GreaterOrEqual and Where. Equal to the quantizer to the last bit.
    """

    def __init__(self, quantizer: MagnitudeQuantizer) -> None:
        super().__init__()
        starts, levels = stairs(quantizer)
        self.signed, self.rounds = quantizer.signed, len(starts).bit_length()
        lacking = 2**self.rounds - len(levels)  # the search is over a power of two less one
        self.starts = nn.Buffer(functional.pad(starts, (0, lacking), value=torch.inf).unsqueeze(1))
        self.levels = nn.Buffer(torch.cat([levels, levels[-1:].expand(lacking)]).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        magnitude = x.abs() if self.signed else x
        code = torch.zeros_like(x, dtype=torch.int64)
        for place in reversed(range(self.rounds)):
            ahead = code + 2**place
            reached = magnitude >= functional.embedding(ahead - 1, self.starts).squeeze(-1)
            code = torch.where(reached, ahead, code)
        level = functional.embedding(code, self.levels).squeeze(-1)
        return torch.where(x < 0, -level, level) if self.signed else level


def _operator(
    name: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, shape: Any, attributes: dict[str, Any] | None = None
) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, attributes or {}, dtype=dtype, shape=shape, version=OPSET)
