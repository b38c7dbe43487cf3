"""A deployment point as a budget, for methods that allocate bits: their mean over layers is that of the point."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.methods.base import Calibration, Context, observed_inputs
from harness.quantization import Observed, observe
from harness.quantization.allocation import Program
from harness.quantization.deploy import choices, round_rest
from harness.quantization.inputs import quantize_inputs, site_bits
from harness.quantization.layer_sizes import LayerSize, layer_sizes
from harness.quantization.sensitivity import ByBits

#: Bits that a layer may get, by default. A point's own are always among them.
BITS = (2, 3, 4, 5, 6, 8)
_PROBE = 2


@dataclass(frozen=True)
class Budget:
    """The layers of a network, a copy that is being deployed, that get bits of their own at a point.

    Those are the linear and convolution layers that the network calls. Weights: their mean bits, over all weights, are
    at most those of the point. Inputs, where the point has bits for activations: likewise, over all numbers that come
    to layers for one image; those of the first and last layer keep what `activations.first_last` says and do not
    count. All else (operands of attention, norm layers, layers never called) has the point's bits.
    """

    model: nn.Module
    point: BitWidths
    context: Context
    calibration: Calibration
    bits: tuple[int, ...] = BITS

    @cached_property
    def sizes(self) -> dict[str, LayerSize]:
        """By layer, in calling order."""
        context = self.context
        found = choices(self.model, self.point, context.scale, context.quantizer, context.exclude)
        layers = {name: choice.layer for name, choice in found.items()}
        return layer_sizes(self.model, layers, self.calibration.images(1))

    @cached_property
    def float_network(self) -> nn.Module:
        """A copy with effective weights, and with empty slots."""
        return round_rest(deepcopy(self.model), "float", exclude=self.context.exclude)

    @cached_property
    def observed(self) -> Mapping[str, Observed]:
        """What comes to layers on the run's calibration batches, and to attention where activations are rounded."""
        if self.point.has_activations:
            return observed_inputs(self.model, self.calibration, self.context)
        batches = self.calibration.inputs(self.context.activations.calibration_batches)
        return observe(self.model, batches, self.context.exclude, attention=False)

    @cached_property
    def candidates(self) -> tuple[int, ...]:
        """Bits of weights, ascending."""
        assert self.point.weights is not None, "a budget has bits for weights"
        return tuple(sorted({*self.bits, self.point.weights}))

    @cached_property
    def input_candidates(self) -> dict[str, tuple[int | None, ...]]:
        """Bits of the input of each layer, ascending; a single one where there is no choice; None: float."""
        own = self.point.activations
        if own is None:
            return dict.fromkeys(self.sizes, (None,))
        config, exclude = self.context.activations, self.context.exclude
        at_probe = site_bits(self.model, _PROBE, config, self.observed, exclude)
        found: dict[str, tuple[int | None, ...]] = {}
        for name in self.sizes:
            site = at_probe.get(f"{name}.input_quantizer")
            free = site is not None and site[1] == _PROBE
            found[name] = tuple(sorted({*self.bits, own})) if free else (site[1] if site else None,)
        return found

    @cached_property
    def options(self) -> dict[str, list[BitWidths]]:
        """The points that each layer may get."""
        return {
            name: [BitWidths(w, a, self.point.kv) for w in self.candidates for a in self.input_candidates[name]]
            for name in self.sizes
        }

    @property
    def uniform(self) -> list[int]:
        """The place, among its options, of what each layer gets by round-to-nearest."""
        weights = self.point.weights
        assert weights is not None, "a budget has bits for weights"
        return [self.place(name, weights, self.point.activations) for name in self.sizes]

    def place(self, name: str, weights: int, inputs: int | None) -> int:
        """The place of some bits among the options of a layer; of an input without a choice any number."""
        among = self.input_candidates[name]
        return self.options[name].index(BitWidths(weights, inputs if len(among) > 1 else among[0], self.point.kv))

    @property
    def free_candidates(self) -> tuple[int, ...]:
        """Bits of inputs that have a choice, ascending; () where none has."""
        own = self.point.activations
        return tuple(sorted({*self.bits, own})) if own is not None and self.free_inputs else ()

    @cached_property
    def free_inputs(self) -> list[str]:
        """The layers whose input has a choice."""
        return [name for name, among in self.input_candidates.items() if len(among) > 1]

    def program(self, weights: ByBits, inputs: ByBits) -> Program:
        """The program whose scores are a layer's at the bits of its weight, plus that at the bits of its input.

        inputs: needed for layers whose input has a choice.
        """
        scores, uses = [], []
        for name, options in self.options.items():
            free = name in self.free_inputs
            scores.append(
                np.array(
                    [
                        weights[name, each.weights] + (inputs[name, each.activations] if free else 0.0)  # type: ignore[index]
                        for each in options
                    ]
                )
            )
            size = self.sizes[name]
            uses.append(
                np.array(
                    [
                        [float(size.weights * (each.weights or 0)) for each in options],
                        [float(size.inputs * (each.activations or 0) * free) for each in options],
                    ]
                )
            )
        limits = np.sum([use[:, place] for use, place in zip(uses, self.uniform, strict=True)], axis=0)
        return Program(scores, uses, limits)

    def points(self, chosen: Sequence[int]) -> dict[str, BitWidths]:
        """What `Method.deploy` returns for one option of each layer."""
        own = {name: options[place] for (name, options), place in zip(self.options.items(), chosen, strict=True)}
        return {**own, "*": self.point}

    def means(self, chosen: Sequence[int]) -> dict[str, float]:
        """Mean bits of weights and, where they have a choice, of inputs."""
        given = list(zip(self.options, self.points(chosen).values(), strict=False))
        free = [(name, point) for name, point in given if name in self.free_inputs]
        found = {"weight_bits": _mean([(self.sizes[name].weights, point.weights) for name, point in given])}
        if free:
            found["activation_bits"] = _mean([(self.sizes[name].inputs, point.activations) for name, point in free])
        return found

    def rounded_weights(self) -> Iterator[tuple[tuple[str, int], Tensor]]:
        """The weight of each layer at all its bits, as round-to-nearest would have it: name and bits, weight."""
        context = self.context
        for bits in self.candidates:
            at = choices(self.model, BitWidths(bits), context.scale, context.quantizer, context.exclude)
            yield from (((name, bits), at[name].rounded()) for name in self.sizes)

    def input_quantizers(self, bits: Sequence[int]) -> dict[int, dict[str, nn.Module]]:
        """The quantizer of each layer's input at some bits, as round-to-nearest would have it."""
        context = self.context
        keep = None if context.scale == "recalibrate" else context.scale
        found: dict[int, dict[str, nn.Module]] = {}
        for each in bits:
            copy = deepcopy(self.model)
            quantize_inputs(copy, lambda *_, b=each: b, context.activations, self.observed, keep, context.exclude)
            # By the layer: what is left of a learned quantizer in float may be a part of the network, and no free site.
            layers = {name: copy.get_submodule(name) for name in self.sizes}
            found[each] = {name: layer.get_submodule("input_quantizer").eval() for name, layer in layers.items()}
        return found

    def batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """The first `count` images of calibration with their targets, or all there are."""
        found, different = [], self.calibration.different
        for index in range(count if different is None else min(count, different)):
            inputs, targets = (each[:count] for each in self.calibration.draw(index))
            found.append((inputs, targets))
            count -= len(inputs)
            if count <= 0:
                break
        return found

    @torch.no_grad()
    def loss(self, chosen: Sequence[int], batches: Sequence[tuple[Tensor, Tensor]]) -> float:
        """The task's mean loss of the network as deployed with one option for each layer."""
        context = self.context
        how = (context.scale, context.quantizer, context.exclude, context.activations)
        points = {name: point.plain for name, point in self.points(chosen).items()}
        network = round_rest(deepcopy(self.model), points, *how, calibration=self.observed)
        losses = [float(context.task.loss(network(x).float(), y)) * len(x) for x, y in batches]
        return sum(losses) / sum(len(x) for x, _ in batches)


def _mean(weighted: Sequence[tuple[int, int | None]]) -> float:
    """Of numbers with weights."""
    return sum(weight * (value or 0) for weight, value in weighted) / max(1, sum(weight for weight, _ in weighted))
