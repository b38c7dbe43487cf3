"""Distribution-aware quantization (DAQ). Hong, Kim, Baik, Oh, Lee, WACV 2022 (arXiv 2012.11230, "DAQ: Channel-Wise
Distribution-Aware Quantization for Deep Image Super-Resolution Networks").

Quantization of weights and activations for networks without batch norm, whose channels differ much in mean and spread,
and differ from image to image: each channel of each image has a grid of its own, found at run time. It can be trained
through, and it needs no training.

Equations. A convolution's input has the channels x (H, W) of each image, with mean m and standard deviation s (n - 1).
D_b is the step of the uniform quantizer of 2^b levels with the least squared error on N(0, 1) (`STEPS`):

    signed inputs:        q(x) = m + s D_b (clip(floor((x - m) / (s D_b)), -2^(b-1), 2^(b-1) - 1) + 1/2)
    inputs after a ReLU:  q(x) = s D_b clip(round(x / (s D_b)), 0, 2^b - 1),   s of the positive values

after a ReLU with n = 1 + the number of positive values and s^2 = sum x^2 / n - (sum x / n)^2, as released. The
deviations s of an image's channels are themselves put on such a signed grid of `sigma_bits` bits, with their mean and
deviation over the channels; means stay float. A channel with s = 0 becomes m, or 0. Weights, (O, I) or (O, I, kh, kw):
the signed grid of the whole tensor, with the mean taken as 0. All gradients of rounding are 1, clipped values' too, and
the statistics have none.

Where it acts: linear and convolution layers, each with its bits (`activations.first_last`). Statistics in linear layers
are over the tokens of an image, (N, T, C); where a channel has a single value in an image, (N, C) or 1x1 pixels, they
are over the image's channels, since a grid of one value would leave it in float. Whether a site is after a ReLU is
taken from calibration: it is, if no value is below 0. The paper leaves the head, the layer after the blocks, upsampler
and tail of a network in float: `exclude`, with `first_last: same`. Operands of attention's products have ranges per
tensor (in training moving ones): the method is about the inputs of layers. Norms stay float.

Use. Without training: `deploy.methods: [rtn, daq]`, or `--deploy daq --bits w4a4` of harness.evaluate, at points with
activations; others give no row. It takes the effective weights of a network, however that was trained. Trained:
`methods: daq` with a target such as w4a4 (w4: weights alone). `rtn` then deploys the trained quantizers at the target;
at other points `deploy.scale` decides, where `daq` in `deploy.methods` keeps to DAQ. A stack may hold regularizers.

Settings: `sigma_bits` 8, for which the released fine-tuning has its step (4 is the other value in use). `weights: run`
leaves weights to the run's quantizer, so that activations are compared alone. Released: L1 loss, Adam, 5e-5, halved
after 150 of 300 epochs.

Cost: two statistics of every input of every layer at run time, which static ranges do not have. They need all of an
image's channel before its first value can be rounded.

Sources: the released code (Cheeun/DAQ-pytorch: quantize.py, common.py, edsr.py, option.py), as described in notes on
it. The paper could not be read.

Deviations. The released code takes D_(b-1) for D_b, for s too; with training it takes D_1 and, for s, D_7 whatever the
bits are; after a ReLU it does not clip, so that there are more than 2^b levels; a deviation rounded to 0 or less
switches its channel off. `official_quirks` has these four. Here the level of the bin that 0 is in is the middle of its
positive part. The released code tells inputs after a ReLU by the least value of a batch being 0, so that images of a
batch change each other's grids; here that is a property of the site. Bits of channels by their sensitivity, of a later
version of the paper, are not in the released code.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from harness.core.layer_points import AnyPoint
from harness.methods._inputs import quantize_in_training
from harness.methods.base import Calibration, Method, MethodConfig, default_quantizer, observed_inputs
from harness.quantization import WeightQuantizer
from harness.quantization.activations import ActivationQuantizer
from harness.quantization.deploy import choices, round_inputs, set_deployed
from harness.quantization.gaussian_steps import DynamicGaussianQuantizer, GaussianQuantizer, Quirk
from harness.quantization.layers import QuantLayer, attach
from harness.quantization.learned_activations import MovingRangeQuantizer
from harness.quantization.observed import Observed
from harness.quantization.observing import Site, input_sites


class Daq(Method):
    """A Gaussian's grid for each channel of each image, and one for each weight."""

    kind, acts_on = "QAT", "inputs, weights"
    activations = "dynamic, per channel"
    changes_activations = True  # its own observation serves, so that none of the network itself is needed
    _trained = False

    class Config(MethodConfig):
        name: Literal["daq"] = "daq"
        sigma_bits: int | None = Field(
            8, ge=2, le=8, description="of the deviations of an image's channels (released: 8 or 4); null: float"
        )
        weights: Literal["gaussian", "run"] = Field(
            "gaussian", description="grid of weights: a Gaussian's, as released; run: that of the run's quantizer"
        )
        official_quirks: bool = Field(
            False, description="the released steps of one bit less, no clipping after a ReLU, channels switched off"
        )

    config: Config

    @classmethod
    def serves(cls, point: AnyPoint) -> bool:
        return point.has_activations

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        quirk: Quirk = "constant" if self.config.official_quirks else "none"

        def of_weight(layer: QuantLayer) -> WeightQuantizer:
            if self.config.weights == "run":
                return default_quantizer(layer, self.context)
            return GaussianQuantizer(self.context.bits(), quirk=quirk)

        def of_input(bits: int, seen: Observed, site: Site) -> ActivationQuantizer:
            return self._of_input(bits, seen, site, quirk) if site.is_layer else MovingRangeQuantizer(bits).fit(seen)

        attach(model, self.context.exclude, weight_quantizer=of_weight)
        quantize_in_training(model, self.context, calibration, of_input)
        self._trained = True

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> None:
        """Nothing where it is what was trained: the trained quantizers are then in their slots."""
        if self._trained or not self.serves(point):
            return
        context = self.context
        quirk: Quirk = "index" if self.config.official_quirks else "none"
        seen = observed_inputs(model, calibration, context)
        before = {name: site.held for name, site in input_sites(model, context.exclude).items()}
        how = (context.scale, context.quantizer, context.exclude)
        round_inputs(model, point, *how, context.activations, seen)
        for name, site in input_sites(model, context.exclude).items():
            held = site.held
            if isinstance(site.owner, QuantLayer) and isinstance(held, ActivationQuantizer):
                new = self._of_input(held.bits, seen[name], site, quirk).to(site.owner.weight.device)
                own = before.get(name)
                new = own.recalibrated(new) if isinstance(own, ActivationQuantizer) else new
                site.put(new.train(site.owner.training))
        if self.config.weights == "run":
            return
        for choice in choices(model, point, *how).values():
            with torch.no_grad():
                weight = choice.layer.effective_weight()
                set_deployed(choice.layer, GaussianQuantizer(choice.bits, quirk=quirk)(weight))

    def _of_input(self, bits: int, seen: Observed, site: Site, quirk: Quirk) -> ActivationQuantizer:
        return DynamicGaussianQuantizer(bits, site.rows, self.config.sigma_bits, quirk).fit(seen)
