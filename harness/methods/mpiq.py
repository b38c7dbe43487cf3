"""MPIQ: mixed-precision inference quantization. Cheng, Chen 2022 (arXiv 2207.10083).

Bits for each layer under a budget, by what rounding its inputs does to the loss to first order: the paper's claim is
that the loss depends on noise in layers' inputs most of all, and that rounding may even lower it. Nothing is trained,
and weights are rounded to nearest.

Equations. h is the input of layer l, W its weight, and loss(x) the task's loss of one sample of the float network. With
Q_b rounding to b bits, and means over calibration samples x:

    change of the loss ~ sum_l mean_x <d loss / d h, Q(h) - h> + sum_l <mean_x d loss / d W, Q(W) - W>

In a trained network the mean gradient of a weight is near 0, that of an input is not, sample by sample. So the score is

    s_lb = mean_x <d loss / d h, Q_b(h) - h>

and with b bits for the weight of layer l and a bits for its input the program is

    min  sum_l s_lb + s_la    with    sum_l b n_l <= b0 sum_l n_l,    sum_l a m_l <= a0 sum_l m_l

where n_l (m_l) counts the numbers of the weight (of the inputs of an image). Scores have signs: a layer may get few
bits because rounding its input lowers the loss. Weights have no score of their own, and take that of their layer's
input, whether it is rounded at that point or not.

`accept: measured` guards against the first order being wrong: from the uniform allocation on, layers are released from
the last one back; each time the program is solved with the others at the uniform bits, and its solution is kept only if
the loss on the calibration samples, of the network deployed so, is lower than any before. `accept: score` takes the
program's solution as it is.

Points are budgets, and layers and candidates are chosen, as by `ohq`.

`allocation` gives baselines with the same budget and candidates: `hessian` (HAWQ-V2: the mean of the diagonal of the
loss' Hessian in a weight, by Hutchinson's estimate, times ||Q(W) - W||^2, likewise of inputs; the same program),
`random` (random layers get more bits until the budget is used up), `uniform` (all layers the point's own bits, as
round-to-nearest).

Use: `deploy.methods: [rtn, mpiq, {name: mpiq, as: mpiq_random, allocation: random}]`, or `--deploy mpiq` of
harness.evaluate, at points that are the same for all layers. In a stack it would act at every evaluation of every
epoch. Random allocations and signs are drawn from the run's seed; the rest draws nothing. Rows have the choice as
`allocated`, and `deployments` has mean bits.

Sources: the abstract, and that of arXiv 2202.05137 by the same authors, which says that allocation by the error of
inputs beats that by the Hessian; a later submission maps it to a knapsack problem, solved by branch and bound. There is
no code. Neither paper's body could be read, so the program and what weights follow are a reconstruction.

Deviations. Inputs are rounded to nearest (a reconstruction of the first paper lets a layer choose among nearest, floor
and ceil). `accept: measured` is ours. What is known of the score: at 4 to 8 bits the second order is larger, and its
correlation with the measured change of the loss is low (0.3 or less on an MLP of three layers).
"""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.core.config_base import WeightBits
from harness.core.layer_points import AnyPoint
from harness.core.seeding import sub_seed
from harness.methods._budget import BITS, Budget
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.allocation import Program, random_bits
from harness.quantization.sensitivity import ByBits, first_order_scores, hessian_traces, input_errors


class Mpiq(Method):
    """Bits for each layer by the first-order effect of rounding its input, and an integer program."""

    kind, acts_on = "deployment", "bits of layers"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["mpiq"] = "mpiq"
        bits: tuple[WeightBits, ...] = Field(
            BITS, description="that a layer may get, beside the point's own (paper: not known)"
        )
        images: int = Field(512, ge=1, le=1_000_000, description="calibration images (paper: not known)")
        allocation: Literal["inputs", "hessian", "random", "uniform"] = Field(
            "inputs", description="by the score of inputs, or a baseline with the same budget"
        )
        accept: Literal["score", "measured"] = Field(
            "score", description="measured: only what lowers the loss on the calibration images"
        )
        draws: int = Field(
            8, ge=1, le=100_000, description="of signs for each batch, with allocation: hessian (HAWQ-V2: 50 in all)"
        )

        @model_validator(mode="after")
        def _something_to_accept(self) -> Self:
            if self.accept == "measured" and self.allocation in ("random", "uniform"):
                raise ValueError(f"accept: measured has no meaning with allocation: {self.allocation} (legal: score)")
            return self

    config: Config
    needs_target_bit: ClassVar[bool] = False

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(images=40, bits=(2, 4))

    @classmethod
    def serves(cls, point: AnyPoint) -> bool:
        return isinstance(point, BitWidths) and not point.is_float

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> dict[str, BitWidths] | None:
        self.notes = {}
        if not (isinstance(point, BitWidths) and self.serves(point)):
            return None
        budget = Budget(model, point, self.context, calibration, self.config.bits)
        if not budget.sizes:
            return None
        chosen = self._chosen(budget)
        self.notes = {**budget.means(chosen), **self.notes}
        return budget.points(chosen)

    def _chosen(self, budget: Budget) -> list[int]:
        """The place of each layer's bits among its options."""
        config = self.config
        if config.allocation == "uniform":
            return budget.uniform
        if config.allocation == "random":
            return self._at_random(budget)
        batches = budget.batches(config.images)
        scores = self._by_curvature if config.allocation == "hessian" else self._by_inputs
        program = budget.program(*scores(budget, batches))
        return program.solved() if config.accept == "score" else self._accepted(budget, program, batches)

    def _by_inputs(self, budget: Budget, batches: list[tuple[Tensor, Tensor]]) -> tuple[ByBits, ByBits]:
        """The scores of weights and of inputs: one and the same."""
        every = sorted({*budget.candidates, *budget.free_candidates})
        quantizers = budget.input_quantizers(every)
        scores = first_order_scores(budget.float_network, quantizers, batches, self.context.task.loss)
        return scores, scores

    def _by_curvature(self, budget: Budget, batches: list[tuple[Tensor, Tensor]]) -> tuple[ByBits, ByBits]:
        """The same of the baseline by the Hessian's trace. A negative trace counts as 0."""
        network, names, loss = budget.float_network, list(budget.sizes), self.context.task.loss
        seed = sub_seed(self.context.seed, "signs")
        of_weights, of_inputs = hessian_traces(network, names, batches, loss, self.config.draws, seed)
        weights: ByBits = {}
        for (name, bits), rounded in budget.rounded_weights():
            weight = network.get_submodule(name).weight
            error = float((rounded - weight).double().square().sum())  # type: ignore[operator]
            weights[name, bits] = max(of_weights[name], 0.0) / rounded.numel() * error
        if not budget.free_inputs:
            return weights, {}
        errors, sizes = input_errors(network, budget.input_quantizers(budget.free_candidates), batches)
        return weights, {key: max(of_inputs[key[0]], 0.0) / sizes[key[0]] * error for key, error in errors.items()}

    def _at_random(self, budget: Budget) -> list[int]:
        generator = torch.Generator().manual_seed(sub_seed(self.context.seed, "random allocation"))
        names, point, free = list(budget.sizes), budget.point, budget.free_inputs
        assert point.weights is not None
        weights = random_bits(
            [budget.sizes[name].weights for name in names], budget.candidates, point.weights, generator
        )
        drawn: list[int] = []
        if free and point.activations is not None:
            sizes = [budget.sizes[name].inputs for name in free]
            drawn = random_bits(sizes, budget.free_candidates, point.activations, generator)
        inputs = dict(zip(free, drawn, strict=True))
        return [budget.place(name, bits, inputs.get(name)) for name, bits in zip(names, weights, strict=True)]

    def _accepted(self, budget: Budget, program: Program, batches: list[tuple[Tensor, Tensor]]) -> list[int]:
        """The measured search; see above."""
        uniform = budget.uniform
        best, least = uniform, budget.loss(uniform, batches)
        self.notes = {"uniform_calibration_loss": least}
        for fixed in reversed(range(len(uniform))):
            found = program.solved(dict(enumerate(uniform[:fixed])))
            if found != uniform and (loss := budget.loss(found, batches)) < least:
                best, least = found, loss
        self.notes = {**self.notes, "calibration_loss": least}
        return best
