"""OHQ: on-chip hardware-aware quantization. Huang, Qin, Y. Liu, Liang, Zhang, Y. Li, X. Liu 2023 (arXiv 2309.01945).

Bits for each layer under a budget: how much a network suffers from few bits in a layer is measured on masked parts of
it, what the bits cost is modelled or timed, and an integer program chooses. Nothing is trained, and weights are rounded
to nearest.

Equations. Layer l may get b bits for its weight and, where activations are rounded, a bits for its input. Its
sensitivity is the divergence of the network's outputs when a random part of the layer is rounded (a part rho of the
weights, or of the numbers of an input), over R parts r, of outputs f for images x:

    Omega_lb = 1 / (R rho) sum_r mean_x KL( f(x) || f(x; part r of layer l at b bits) )

KL is the task's own divergence (mean absolute difference of images in super-resolution). With one z_lba = 1 for each
layer, the program is

    min  sum_lba z_lba (Omega_lb + Omega_la + mu C_lba)
    with  sum z_lba b n_l <= b0 sum n_l,   sum z_lba a m_l <= a0 sum m_l,   sum z_lba C_lba <= limit C(uniform)

where n_l (m_l) counts the numbers of the weight (of the inputs of an image), and C is the cost. With mu > 0, Omega and
C are first divided by their largest values.

A point is a budget: at w4 weights have 4 bits in the mean over all weights, at w4a4 inputs have 4, too, in the mean
over all numbers that come to layers for an image. Layers: linear ones and convolutions that are called. Inputs of the
first and the last keep what `activations.first_last` says and do not count. Operands of attention and norm layers have
the point's own bits. A layer's candidates are `bits` and the point's own, so that the uniform allocation always fits.

Costs of one image: `bitops`, multiplications times bits of the weight times bits of the input (32 where that is float);
`bytes` of weights and inputs; `measured`, seconds of the layer's product, a convolution unfolded, from the file
`table`. If there is none, products are timed in fp32 and int8 on the device at hand and written there, so that a run
repeats; `deployments` of the record has its digest. Processors here have no kernels of 2 to 7 bits: the time of int8
is scaled with bit operations, and that of fp32 with bits of weights where inputs are float. So a table tells how well
a layer's shape suits the device, not what fewer bits bring.

Images: of calibration (training images without augmentation), or made from the statistics of batch norms
(`images_from: batch_norm`, for networks that have such norms): see harness/quantization/synthetic_images.py.

Use: `deploy.methods: [rtn, ohq]`, or `--deploy ohq` of harness.evaluate, at points that are the same for all layers. In
a stack it would act at every evaluation of every epoch. Masks and synthetic images are drawn from the run's seed. Rows
have the choice as `allocated`, and `deployments` has mean bits, the cost model, and the cost over that of the uniform
allocation.

Sources: the abstract, and a summary that names synthetic data, masks, KL divergence and an integer program; there is no
code. rho = 0.25 and R = 4 are guesses, as is the objective's form; its coefficients are not known (`cost_weight`).

Deviations. The paper measures time and energy of IP cores on the chip that is deployed to (an FPGA); that cannot be
done here, and energy is left out. Sensitivities of a weight and an input add up; the paper's may be of both at once. In
place of unknown coefficients, cost is a limit: no more than the uniform allocation costs.
"""

from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.core.config_base import NOT_IDENTITY, WeightBits
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint
from harness.core.seeding import sub_seed
from harness.methods._budget import BITS, Budget
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.allocation import Program
from harness.quantization.kernel_times import kernel_times
from harness.quantization.sensitivity import ByBits, MaskedSensitivity
from harness.quantization.synthetic_images import batch_norms, synthetic_images


class Ohq(Method):
    """Bits for each layer by masked sensitivity, cost and an integer program."""

    kind, acts_on = "deployment", "bits of layers"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["ohq"] = "ohq"
        bits: tuple[WeightBits, ...] = Field(
            BITS, description="that a layer may get, beside the point's own (paper: not known)"
        )
        images: int = Field(
            128, ge=1, le=1_000_000, description="that sensitivities are measured on (paper: not known)"
        )
        images_from: Literal["calibration", "batch_norm"] = Field(
            "calibration", description="training images, or images made from batch norm statistics (ZeroQ's recipe)"
        )
        synthetic_steps: int = Field(500, ge=1, le=100_000, description="of Adam, for such images (ZeroQ: 500)")
        mask: float = Field(0.25, gt=0, le=1, description="rho: the part of a layer that is rounded at a time; 1: all")
        draws: int = Field(4, ge=1, le=10_000, description="R: parts that are drawn for a layer")
        cost: Literal["bitops", "bytes", "measured"] = Field(
            "bitops", description="bit operations; bytes of weights and inputs; seconds of kernels, from `table`"
        )
        cost_limit: float | None = Field(
            1.0, gt=0, le=100, description="over the cost of the uniform allocation; null: none"
        )
        cost_weight: float = Field(0.0, ge=0, le=1000, description="mu: of the cost in what is minimised")
        table: Path | None = Field(
            None,
            description="of cost: measured: a JSON file of times; measured and written where it is not there",
            json_schema_extra=NOT_IDENTITY,
        )

        @model_validator(mode="after")
        def _table_where_it_is_read(self) -> Self:
            if (self.cost == "measured") != (self.table is not None):
                raise ValueError(f"cost: {self.cost}: table names a file if, and only if, cost is measured")
            return self

    config: Config
    needs_target_bit: ClassVar[bool] = False

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(images=20, draws=1, bits=(2, 4))

    @classmethod
    def serves(cls, point: AnyPoint) -> bool:
        return isinstance(point, BitWidths) and not point.is_float

    def check(self, model: nn.Module) -> None:
        if self.config.images_from == "batch_norm" and not batch_norms(model):
            raise UserError(
                "ohq.images_from: 'batch_norm' needs 2-d batch norms with running statistics, and the network has none "
                "(legal here: calibration)"
            )

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> dict[str, BitWidths] | None:
        self.notes = {}
        if not (isinstance(point, BitWidths) and self.serves(point)):
            return None
        self.check(model)
        budget = Budget(model, point, self.context, calibration, self.config.bits)
        if not budget.sizes:
            return None
        program, costs = self._with_cost(budget, budget.program(*self._sensitivities(budget)))
        try:
            chosen = program.solved()
        except UserError as error:  # without a limit on the cost the uniform allocation fits
            raise UserError(f"ohq.cost_limit: {self.config.cost_limit}: {error}") from None
        relative = sum(cost[place] for cost, place in zip(costs, chosen, strict=True)) / sum(
            cost[place] for cost, place in zip(costs, budget.uniform, strict=True)
        )
        self.notes = {**budget.means(chosen), **self.notes, "cost_model": self.config.cost, "cost": float(relative)}
        return budget.points(chosen)

    def _images(self, budget: Budget) -> Tensor:
        config = self.config
        if config.images_from == "calibration":
            return budget.calibration.images(config.images)
        shape = tuple(budget.calibration.images(1).shape[1:])
        seed = sub_seed(self.context.seed, "synthetic images")
        return synthetic_images(budget.float_network, shape, config.images, config.synthetic_steps, seed)

    def _sensitivities(self, budget: Budget) -> tuple[ByBits, ByBits]:
        """Omega of the weight and of the input, by layer and bits."""
        config, divergence = self.config, self.context.task.divergence
        measured = MaskedSensitivity(
            budget.float_network, self._images(budget), divergence, config.mask, config.draws, self.context.seed
        )
        weights = {key: measured.of_weight(key[0], rounded) for key, rounded in budget.rounded_weights()}
        inputs: ByBits = {}
        for bits, quantizers in budget.input_quantizers(budget.free_candidates).items():
            inputs |= {(name, bits): measured.of_input(name, quantizers[name]) for name in budget.free_inputs}
        return weights, inputs

    def _with_cost(self, budget: Budget, program: Program) -> tuple[Program, list[np.ndarray]]:
        """The program with what options cost, and the costs, (K_l,) of each layer."""
        config, costs = self.config, self._costs(budget)
        uses, limits = program.uses, program.limits
        if config.cost_limit is not None:
            uniform = sum(cost[place] for cost, place in zip(costs, budget.uniform, strict=True))
            uses = [np.vstack([use, cost]) for use, cost in zip(uses, costs, strict=True)]
            limits = np.append(limits, config.cost_limit * uniform)
        scores = program.scores
        if config.cost_weight:
            highest = [max(max(map(np.max, each)), 1e-30) for each in (scores, costs)]
            pairs = zip(scores, costs, strict=True)
            scores = [score / highest[0] + config.cost_weight * cost / highest[1] for score, cost in pairs]
        return Program(scores, uses, limits), costs

    def _costs(self, budget: Budget) -> list[np.ndarray]:
        sizes = budget.sizes
        if self.config.table is not None:
            times = kernel_times(self.config.table, sizes.values(), next(budget.model.parameters()).device)
            self.notes = {"table_sha256": times.digest}
            return [np.array([times.of(sizes[name], each) for each in own]) for name, own in budget.options.items()]
        by_bits = self.config.cost == "bitops"
        return [
            np.array([sizes[name].bit_operations(each) if by_bits else sizes[name].bytes(each) for each in own])
            for name, own in budget.options.items()
        ]
