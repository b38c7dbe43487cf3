"""ERQ: error reduction for post-training quantization. Zhong et al. 2024 (arXiv 2407.06794).

Post-training quantization of weights and activations in closed form: each layer's weights are first changed to make up
for the rounding of its inputs (Aqer), and then rounded half by half, each half's error made up for by the rest (Wqer).

Equations. A layer has the weights W (O, I + 1), the bias last, and its inputs are x (I + 1), with a last 1; x' are the
rounded ones. Means are over calibration images and tokens or, for a convolution, places (its inputs are unfolded).

    Aqer:  W <- W + D,   D^T = (G + lambda)^-1 (C - G) W^T,   G = mean x' x'^T,   C = mean x' x^T

which is ridge regression of the error W x - W x'. Then the values that weights may become are fitted to the new W. Of
the columns that are left, the bias included, Wqer takes the first half S, the others being R, until only the bias is:

    e = rounded(W_S) - W_S,   W_R <- W_R - ((G_RR + lambda)^-1 G_RS e^T)^T

and rounded() starts with the nearest values and then flips weights to their other neighbour, to lower J = e^T G_SS e of
each row. With the slope g = 2 G_SS e, a flip of e_j against its slope by a step s gains s (|g_j| - s G_jj); each round
makes the flip of each row that gains most, until none does, at most `flips` times. Before all that:

    layer norms: ranges of channels are made alike, the scales moving into the next layers (`norm_folding`, RepQ-ViT);
    attention's scores: q(x) = delta 2^(-k / 2) (`log_sqrt2`); all other inputs as the run's `activations` say.

lambda is `ridge_inputs` or `ridge_weights` times the mean of x_j^2, and 0 for the bias: neither the number of images
nor the inputs' scale has a say. The released code adds 0.1 coe, coe 10000 to 20000, to sums over 32 images of 197
tokens: 0.16 to 0.32 for each token, of inputs around 1 in size.

Layers: linear ones, and convolutions, in groups too. `inputs: float` is the released order: x comes from the float
network, so that no layer knows of the errors of earlier ones; `deployed` takes x' from the network as deployed so far,
as `gptq` and `adaround` do. A convolution that is called first and cuts patches (kernel = stride) is not fitted to its
rounded inputs, and has 10 times the lambda (released). A layer that is not called is rounded to nearest.

The grid is that of round-to-nearest, fitted to the changed weights, or the one that a layer was trained with
(`deploy.scale`); `grid: channel` is the released one: 2^b levels for each output channel, asymmetric, clipped at the
percentile of least error. `dual`: in qkv and fc1 the O / 20 input columns that most often hold outliers (beyond 99 % of
their row's positive or negative weights) get a second one. A network trained through a quantizer is taken as its latent
weights; quantizers of inputs that were trained for the point stay, and layers with a trained grid keep their norm.

Use: `deploy.methods: [rtn, erq]`, or `--deploy erq` of harness.evaluate, at points with activations; others give no
row. In a stack it would act at every evaluation of every epoch. Without random draws; it always gives the same.

Settings, on digits (small ViT trained in float, 8 seeds, test accuracy): `inputs: deployed` took w2a4 from 73 to 89 %
(gptq 79, adaround 91), w3a3 from 91.8 to 92.6, w3a4 from 93.0 to 93.7 (gptq 93.1, adaround 93.7), so what is missing
there is mostly the error that earlier layers hand on. `grid: channel` gave 93.7 at w3a4. Either lambda from 0.001 to 1,
and 32 to 1024 images, moved that by 0.7 points at most, without a trend; without either regression it was 92.3.

Sources: the released code (zysxmu/ERQ). The paper could not be read. `grid: dual` is from the TPAMI version's code.

Deviations. Exact flips: the released code flips the weight of the largest slope to the value nearer to e_j - g_j, which
takes G_jj for 1/2: with small inputs it flips nothing (`official_quirks`). Scores have 2^b levels with 0, there 2^b + 1
(`official_quirks`). G in place of mu mu^T + the covariance over n - 1. Logarithmic scores up to 6 bits: more bits add
levels near 0 and no finer ones. One lambda for all layers (released: 0.1 in all for Aqer where the input has two
dimensions), none for the bias. The first layer's inputs follow `activations.first_last` (released: float). Without a
bias the last column is rounded as the others (released: at the end, its error unseen). Ranges of inputs are the run's
(released: percentiles of 32 images).
"""

from collections.abc import Mapping
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.layer_points import AnyPoint
from harness.methods._in_turn import Turn, in_turn
from harness.methods.base import Calibration, Method, MethodConfig, observed_inputs
from harness.quantization.activations import StaticQuantizer, TokenQuantizer
from harness.quantization.deploy import round_inputs, round_rest, set_deployed
from harness.quantization.error_reduction import (
    ColumnGrids,
    against_activation_error,
    against_weight_error,
    ridge_of,
)
from harness.quantization.layer_inputs import as_weight, moments, weight_rows
from harness.quantization.layers import QuantConv2d, QuantLayer, QuantLinear
from harness.quantization.log_sqrt2 import LogSqrt2Quantizer
from harness.quantization.norm_folding import fold_norms
from harness.quantization.observed import Observed
from harness.quantization.observing import input_sites
from harness.quantization.row_ranges import outlying_columns, row_values

#: How much larger lambda is for the patch embedding than for other layers in the released code.
_PATCH_EMBEDDING = 10.0


class Erq(Method):
    """Weights that make up for rounded inputs, and are then rounded half by half, each half made up for by the rest."""

    kind, acts_on = "deployment", "weights given rounded inputs"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["erq"] = "erq"
        images: int = Field(256, ge=1, le=1_000_000, description="calibration images (released code: 32)")
        ridge_inputs: float = Field(
            0.1, ge=1e-4, le=1e4, description="lambda against the error of activations, as a part of the mean of x^2"
        )
        ridge_weights: float = Field(
            0.1, ge=1e-4, le=1e4, description="lambda against the error of weights, as a part of the mean of x^2"
        )
        flips: int = Field(
            100, ge=0, le=100_000, description="of each row and half, at most; 0: nearest (released: 100)"
        )
        grid: Literal["run", "channel", "dual"] = Field(
            "run",
            description="of weights. run: that of round-to-nearest; channel: asymmetric, clipped, one for each output "
            "channel (released code); dual: and one more for the input columns with most outliers (TPAMI version)",
        )
        dual_layers: tuple[str, ...] = Field(
            ("*qkv", "*fc1"), description="globs of layers that have two grids with grid: dual (released code)"
        )
        norms: Literal["folded", "kept"] = Field(
            "folded", description="layer norms; folded: scales of channels move into the next layers, as released"
        )
        log_scores_up_to: int = Field(
            6,
            ge=0,
            le=8,
            description="bits up to which attention's scores get logarithmic levels (released: all; 0: none)",
        )
        inputs: Literal["float", "deployed"] = Field(
            "float",
            description="inputs of a layer: of the float network, then rounded (released), or as deployed so far",
        )
        official_quirks: bool = Field(
            False, description="the released flips, which depend on the inputs' scale, and its 2^b + 1 levels of scores"
        )

    config: Config
    needs_target_bit: ClassVar[bool] = False
    changes_activations = True

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(images=20)

    @classmethod
    def serves(cls, point: AnyPoint) -> bool:
        return point.has_activations

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> None:
        if not self.serves(point):
            return
        context, config = self.context, self.config
        seen = observed_inputs(model, calibration, context)
        how = (context.scale, context.quantizer, context.exclude, context.activations)
        round_inputs(model, point, *how, seen)
        self._score_by_logarithm(model, seen)
        reference = round_rest(deepcopy(model), "float", exclude=context.exclude)
        if config.norms == "folded" and not context.quantizer.quantizes_norms:
            fold_norms(model, reference, calibration.images(config.images))
        for place, turn in enumerate(in_turn(model, point, context, calibration, config.images)):
            source = reference.get_submodule(turn.name)
            assert isinstance(source, QuantLayer)
            self._round(turn, model, reference, source, place == 0 and _cuts_patches(turn.layer))

    def _score_by_logarithm(self, model: nn.Module, seen: Mapping[str, Observed]) -> None:
        """Replace the quantizers of attention's scores that calibration gave."""
        for name, site in input_sites(model, self.context.exclude).items():
            held = site.held
            if not (name.endswith("av_matmul.input_quantizer") and isinstance(held, StaticQuantizer | TokenQuantizer)):
                continue
            if held.bits <= self.config.log_scores_up_to:
                site.put(LogSqrt2Quantizer(held.bits, self.config.official_quirks).fit(seen[name]))

    def _round(self, turn: Turn, model: nn.Module, reference: nn.Module, source: QuantLayer, patches: bool) -> None:
        """Round one layer, in place. source: the same in the float network; patches: whether it embeds patches."""
        config, layer = self.config, turn.layer
        assert isinstance(layer, QuantLinear | QuantConv2d)
        through = turn.inputs(reference, source, layer.input_quantizer)
        rounded = through if config.inputs == "float" else turn.inputs(model)
        bias: Tensor | None = layer.bias
        gram, cross = moments(layer, rounded, turn.inputs(reference, source), constant=bias is not None)
        weight = weight_rows(layer, turn.weight()).double()
        inputs = weight.shape[2]
        if bias is not None:
            weight = torch.cat([weight, bias.detach().double().view(*weight.shape[:2], 1)], dim=2)
        if not patches:
            weight = against_activation_error(weight, gram, cross, ridge_of(gram, inputs, config.ridge_inputs))
        ridge = ridge_of(gram, inputs, config.ridge_weights * (_PATCH_EMBEDDING if patches else 1.0))
        grids = self._grids(turn, weight[:, :, :inputs])
        found = against_weight_error(weight, gram, grids, inputs, ridge, config.flips, config.official_quirks)
        set_deployed(layer, as_weight(found[:, :, :inputs], source.weight))
        if bias is not None:
            layer.bias = nn.Parameter(found[:, :, inputs].reshape(-1).to(bias), requires_grad=False)

    def _grids(self, turn: Turn, rows: Tensor) -> ColumnGrids:
        """The values that the weights (G, R, I) of a layer may become."""
        weight = as_weight(rows, turn.weight())
        matrix = weight.flatten(1)
        every = torch.ones(matrix.shape[1], dtype=torch.bool, device=matrix.device)
        if self.config.grid == "run":
            return ColumnGrids((every, turn.choice.values(weight)))
        bits = turn.choice.bits
        if self.config.grid == "dual" and any(fnmatchcase(turn.name, glob) for glob in self.config.dual_layers):
            first = outlying_columns(matrix)
            parts = [(columns, row_values(matrix[:, columns], bits)) for columns in (first, ~first) if columns.any()]
            return ColumnGrids(*parts)
        return ColumnGrids((every, row_values(matrix, bits)))


def _cuts_patches(layer: QuantLayer) -> bool:
    return isinstance(layer, QuantConv2d) and tuple(layer.kernel_size) == tuple(layer.stride)
