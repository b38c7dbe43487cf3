"""GPTQ. Frantar, Ashkboos, Hoefler, Alistarh, ICLR 2023 (arXiv 2210.17323).

Post-training rounding that makes up for the error of each rounded weight by changing the weights that are still to be
rounded, so that a layer's output on calibration images changes least. It trains nothing.

Equations. A layer has the weight W (O, I), and X (I, T) are the inputs of its rows on the calibration images. The error
||(W - W') X||^2 is quadratic with the Hessian H = 2 X X^T, (I, I), the same for each row. With U the upper Cholesky
factor of the inverse, U^T U = (H + d 1)^-1, d = damping * mean(diag H), and columns j = 1 .. I in order:

    Q_j = nearest(W_j)        E_j = (W_j - Q_j) / U_jj        W_k <- W_k - E_j U_jk   for k > j

W_j is the column as changed so far, and nearest() takes the nearest value of the layer's grid, which stays as it was
fitted to W. The updates of columns beyond a block of columns are made once per block; this changes no result but for
rounding errors. `act_order` takes the columns by falling diag(H): the most important ones are rounded first, when there
are most columns left to make up for them.

Layers: linear ones, and convolutions by their unfolded inputs, with stride, dilation, padding and one Hessian for each
group. They are rounded one after the other in the order in which the network calls them, each with the inputs that it
gets in the network whose earlier layers are rounded already. Biases and all else stay as they are. A layer that
the network does not call is rounded to nearest.

The grid of a layer is that of round-to-nearest at the point's bits: the quantizer that the layer was trained with, at
its own bits or as `deploy.scale` says, else the run's default quantizer, fitted to the effective weights. So rows of
both differ only in which value of one grid each weight becomes. A network trained through a quantizer is rounded from
its latent weights, whose output is what is reconstructed. Activations are rounded afterwards where the point has bits
for them; they are not seen here.

Use: `deploy.methods: [rtn, gptq]`, or `--deploy gptq` of harness.evaluate. In a stack it would act at every evaluation
of every epoch. It deploys at every point but float. Without random draws; a network is always rounded alike.

Settings: damping 0.01, blocks of 128 columns and act_order off are the released code's defaults; it takes 128 texts of
2048 tokens. With 64 to 1024 images the digits came out alike; more inputs than I are needed for an H of full rank.

Sources: the released code (IST-DASLab/gptq: gptq.py, llama.py). The paper itself could not be read.

Deviations: an input that is always 0 has no say in the error, and its weights are rounded to nearest (the released code
sets them to 0: `dead_inputs: zero`); the mean in d leaves such inputs out. The released code collects the inputs of all
layers of a transformer block before it rounds any of them, unless `--true-sequential`; here each layer sees all earlier
ones rounded. It has one grid per output channel, fitted to the weights as changed so far; here as the run's quantizer
says. Sums are in double precision.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.layer_points import AnyPoint
from harness.methods._in_turn import in_turn
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.deploy import set_deployed
from harness.quantization.layer_inputs import as_weight, moments, weight_rows
from harness.quantization.value_grid import ValueGrid


class Gptq(Method):
    """Rounding of one column after the other, the error of each made up for by the rest."""

    kind, acts_on = "deployment", "weights"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["gptq"] = "gptq"
        images: int = Field(256, ge=1, le=1_000_000, description="calibration images (paper: 128 texts of 2048 tokens)")
        damping: float = Field(
            0.01, gt=0, le=10, description="added to the diagonal of H, as a part of its mean (released code)"
        )
        block: int = Field(128, ge=1, le=65536, description="columns between updates of all the rest (released code)")
        act_order: bool = Field(False, description="columns by falling diag(H), not in their order (released: off)")
        dead_inputs: Literal["nearest", "zero"] = Field(
            "nearest", description="what weights of inputs that are always 0 become (released code: zero)"
        )

    config: Config
    needs_target_bit: ClassVar[bool] = False

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(images=20)

    @classmethod
    def serves(cls, point: AnyPoint) -> bool:
        return not point.is_float

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> None:
        for turn in in_turn(model, point, self.context, calibration, self.config.images):
            (hessian,) = moments(turn.layer, turn.inputs(model))
            weight = turn.weight()
            grid = ValueGrid(turn.choice.values(weight).double())
            set_deployed(turn.layer, as_weight(self.rounded(weight_rows(turn.layer, weight), hessian, grid), weight))

    def rounded(self, weight: Tensor, hessian: Tensor, grid: ValueGrid) -> Tensor:
        """The rounded weight, float64 (G, R, I), of a weight of this shape with G groups of R rows.

        hessian: of each group, float64 (G, I, I), up to a factor. grid: in float64, for all rows or for each of G R.
        """
        weight = weight.detach().double()
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        alive = diagonal > 0
        if self.config.dead_inputs == "zero":
            weight = weight * alive[:, None]
        order = torch.arange(weight.shape[2], device=weight.device).expand_as(diagonal)
        if self.config.act_order:
            order = diagonal.argsort(dim=1, descending=True, stable=True)
        factor = self._factor(_permuted(hessian, order), alive.gather(1, order))
        columns = order[:, None].expand_as(weight)
        found = _by_columns(weight.gather(2, columns), factor, grid, self.config.block)
        return torch.empty_like(found).scatter_(2, columns, found)

    def _factor(self, hessian: Tensor, alive: Tensor) -> Tensor:
        """U, float64 (G, I, I). Dead inputs, which no other one is correlated with, get 1 on the diagonal."""
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        damp = self.config.damping * diagonal.sum(1) / alive.sum(1)
        damped = hessian + torch.diag_embed(torch.where(alive, damp[:, None], 1.0))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True)


def _permuted(hessian: Tensor, order: Tensor) -> Tensor:
    """Rows and columns of each matrix, (G, I, I), in an order, int64 (G, I)."""
    rows = hessian.gather(1, order[:, :, None].expand_as(hessian))
    return rows.gather(2, order[:, None].expand_as(hessian))


def _by_columns(weight: Tensor, factor: Tensor, grid: ValueGrid, block: int) -> Tensor:
    """The columns rounded in turn, (G, R, I); `weight` (G, R, I) is used up. factor: U, (G, I, I)."""
    found = torch.empty_like(weight)
    count = weight.shape[2]
    for start in range(0, count, block):
        stop = min(start + block, count)
        errors = torch.empty_like(weight[:, :, start:stop])
        for j in range(start, stop):
            column = weight[:, :, j]
            found[:, :, j] = grid.nearest(column.reshape(-1, 1)).view_as(column)
            error = (column - found[:, :, j]) / factor[:, j, j, None]
            weight[:, :, j:stop] -= error[:, :, None] * factor[:, None, j, j:stop]
            errors[:, :, j - start] = error
        weight[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return found
