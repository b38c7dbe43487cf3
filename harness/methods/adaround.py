"""AdaRound: adaptive rounding. Nagel, Amjad, van Baalen, Louizos, Blankevoort, ICML 2020 (arXiv 2004.10568).

Post-training rounding: each weight goes up or down, whichever reconstructs the layer's output better. It trains no
weight.

Equations. A layer has the weight W (O, I). D and U, (O, I), are the values of its grid below and above each weight.
While V (O, I) is optimized the rounding is soft, W(V); in the end it is hard, W':

    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)        W(V) = D + h(V) (U - D)        W' = U where h >= 1/2, else D

    loss = mean_t || W(V) x'_t - W x_t ||^2 + lambda * sum_oi ( 1 - |2 h - 1|^beta )

V starts where W(V) = W. x (I,) are the layer's inputs in the float network, x' those in the network whose earlier
layers are rounded already: the asymmetric reconstruction of the paper. The mean is over calibration images and, for a
convolution, places. For the first 20 % of the iterations there is no regularization. Then beta falls from 20 to 2 by
half a cosine: at first only h near 0 or 1 is pulled there, in the end every h. With `regularization_unit: error`,
lambda is `regularization` times the layer's mean error of rounding to nearest, ||N x' - W x'||^2 / (O I), so that the
inputs' scale has no say; with `absolute` it is `regularization` itself.

The first term needs only second moments of the inputs, A = mean x' x'^T and C = mean x' x^T, (I, I) each:

    d/dW(V) = 2 ( W(V) A - W C^T )

so an iteration costs one product of (O, I) by (I, I), whatever the number of images, and each one sees all of them.

Layers, their order and their grid are those of `gptq`: linear layers, and convolutions by their unfolded inputs with
moments for each group; in the order of the network's calls; the values of round-to-nearest at the point's bits, so that
only the choice among them differs. A weight beyond the outermost value becomes that value. The float network is that of
the `float` row: of a network trained through a quantizer, the latent weights. Biases stay. Activations are rounded
afterwards where the point has bits for them. A layer that the network does not call is rounded to nearest.

Use: `deploy.methods: [rtn, adaround]`, or `--deploy adaround` of harness.evaluate. In a stack it would act at every
evaluation of every epoch. It deploys at every point but float. Without random draws; a network is always rounded alike.

Settings: the paper's are 1024 images, 10,000 iterations of Adam at its default rate 1e-3, lambda 0.01 (`absolute`) and
beta from 20 to 2. The default of 250 iterations keeps the product of iterations and rate, 10, which is how far V can
move: on digits, an MLP and a small ViT at 2 and 3 bits came out alike with 250 to 3000 iterations. With lambda 0.01 up
to 45 % of a layer's h were between 0.01 and 0.99 at the end there, and hard rounding undid what had been found; with
10 errors up to 11 % were, and the error on the calibration images was 10 to 30 % lower.

Sources: Qualcomm's own code (quic/aimet, adaround_optimizer.py, adaround_loss.py, adaround_tensor_quantizer.py) for all
formulas, the first 20 % and the shape of beta's fall. The paper itself could not be read; its settings are from memory.

Deviations: lambda relative to the error (above); all images in each iteration (theirs: 32 at random). The output is
compared before the activation function that follows the layer (theirs: behind it), since a network's code does not tell
which one that is.
"""

import math
from copy import deepcopy
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.core.layer_points import AnyPoint
from harness.methods._in_turn import in_turn
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.deploy import round_rest, set_deployed
from harness.quantization.layer_inputs import as_weight, moments, weight_rows
from harness.quantization.layers import QuantLayer
from harness.quantization.value_grid import ValueGrid

#: The ends that the sigmoid is stretched to before it is clipped to [0, 1].
LOW, HIGH = -0.1, 1.1
#: How far V can move: iterations times learning rate.
REACH = 10.0


class AdaRound(Method):
    """Rounding up or down, chosen for each weight by reconstruction of the layer's output."""

    kind, acts_on = "deployment", "weights"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["adaround"] = "adaround"
        images: int = Field(256, ge=1, le=1_000_000, description="calibration images (paper: 1024)")
        iterations: int = Field(250, ge=1, le=1_000_000, description="of Adam for each layer (paper: 10,000)")
        learning_rate: float | None = Field(
            None, gt=0, le=100, description="of Adam; null: 10 / iterations (paper: 1e-3, which is that for 10,000)"
        )
        regularization: float = Field(10.0, ge=0, le=1e6, description="of h away from 0 and 1 (paper: 0.01, absolute)")
        regularization_unit: Literal["error", "absolute"] = Field(
            "error", description="error: of rounding to nearest, a layer's mean for each weight; absolute (paper)"
        )
        warm_start: float = Field(
            0.2, ge=0, lt=1, description="fraction of the iterations without regularization (authors' code)"
        )
        beta_start: float = Field(20.0, ge=1, le=1000, description="exponent at first (paper: 20)")
        beta_end: float = Field(2.0, ge=1, le=1000, description="exponent at the end (paper: 2)")

        @model_validator(mode="after")
        def _beta_falls(self) -> Self:
            if self.beta_end > self.beta_start:
                raise ValueError(f"beta_end ({self.beta_end:g}) must not exceed beta_start ({self.beta_start:g})")
            return self

    config: Config
    needs_target_bit: ClassVar[bool] = False

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(images=20, iterations=5)

    @classmethod
    def serves(cls, point: AnyPoint) -> bool:
        return not point.is_float

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> None:
        reference = round_rest(deepcopy(model), "float", exclude=self.context.exclude)
        for turn in in_turn(model, point, self.context, calibration, self.config.images):
            layer, source = turn.layer, reference.get_submodule(turn.name)
            assert isinstance(source, QuantLayer)
            both = turn.inputs(model), turn.inputs(reference, source)
            gram, cross = (each.float() for each in moments(layer, *both))
            rows = weight_rows(layer, source.weight)
            grid = ValueGrid(turn.choice.values(turn.weight()))
            lower, upper = (each.view_as(rows) for each in grid.neighbours(rows.flatten(0, 1)))
            up = self.choose(rows, (lower, upper), gram, rows @ cross.transpose(1, 2)) >= 0.5
            set_deployed(layer, as_weight(torch.where(up, upper, lower), source.weight))

    def choose(self, weight: Tensor, ends: tuple[Tensor, Tensor], gram: Tensor, wanted: Tensor) -> Tensor:
        """h after the last iteration, in [0, 1]; all four (G, R, I) with G groups of R rows.

        ends: the values below and above each weight. gram: A, (G, I, I). wanted: W C^T.
        """
        config, (lower, upper) = self.config, ends
        gap = upper - lower
        start = ((weight - lower) / torch.where(gap > 0, gap, 1.0)).clamp(0, 1)
        strength: Tensor | float = config.regularization
        if config.regularization_unit == "error":
            error = gap * torch.where(start < 0.5, -start, 1 - start)
            strength = strength * (error @ gram * error).sum() / error.numel()
        v = nn.Parameter(torch.logit((start - LOW) / (HIGH - LOW)))
        optimizer = torch.optim.Adam([v], lr=config.learning_rate or REACH / config.iterations)
        for index in range(config.iterations):
            with torch.no_grad():
                share = v.sigmoid()
                h = _stretched(share)
                slope = (HIGH - LOW) * share * (1 - share) * ((h > 0) & (h < 1))
                of_h = 2 * gap * ((lower + gap * h) @ gram - wanted) + strength * self._pull(h, index)
                v.grad = of_h * slope
            optimizer.step()
        return _stretched(v.detach().sigmoid())

    def _pull(self, h: Tensor, index: int) -> Tensor | float:
        """The gradient of the regularization for lambda = 1 at an iteration, in the shape of h."""
        config = self.config
        first = config.warm_start * config.iterations
        if index < first:
            return 0.0
        done = (index - first) / (config.iterations - first)
        beta = config.beta_end + 0.5 * (config.beta_start - config.beta_end) * (1 + math.cos(math.pi * done))
        away = 2 * h - 1
        return -2 * beta * away.abs().pow_(beta - 1).copysign_(away)


def _stretched(share: Tensor) -> Tensor:
    return (share * (HIGH - LOW) + LOW).clamp_(0, 1)
