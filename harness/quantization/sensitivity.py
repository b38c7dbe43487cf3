"""What the rounding of one layer does to a network: measured on masked parts of it, or by derivatives of the loss.

All functions take the network in float, with slots that are empty (`round_to_nearest(copy, "float")`), and leave it as
it was. images: (N, C, H, W). Layers go by name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.core.seeding import sub_seed
from harness.quantization.layer_inputs import BATCH
from harness.quantization.layers import QuantLayer

#: A number for each layer and bit-width.
ByBits = dict[tuple[str, int], float]
#: Of outputs and of the float network's outputs, as `Task.divergence`; of outputs and targets, as `Task.loss`.
Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Sequence[tuple[Tensor, Tensor]]


class MaskedSensitivity:
    """The divergence from the float network when a random part of one layer is rounded, over the size of the part.

        Omega = 1 / (R rho) sum_r mean_x D( f(x; part r rounded) || f(x) )

    mask: rho, the part. draws: R. A layer's draws are the same for all bit-widths, and each time.
    """

    def __init__(
        self, network: nn.Module, images: Tensor, divergence: Loss, mask: float = 0.25, draws: int = 4, seed: int = 0
    ) -> None:
        self.network, self.images, self.divergence = network, images, divergence
        self.mask, self.draws, self.seed = mask, draws, seed
        with torch.no_grad():
            self._float = [network(batch).float() for batch in images.split(BATCH)]

    @torch.no_grad()
    def of_weight(self, name: str, rounded: Tensor) -> float:
        """Of a layer's weight. rounded: the whole of it, in its shape."""
        layer = self._layer(name)
        held = layer.weight

        def put(part: Tensor) -> None:
            layer.weight = nn.Parameter(torch.where(part, rounded, held), requires_grad=False)

        try:
            return self._mean(name, held.shape, put)
        finally:
            layer.weight = held

    @torch.no_grad()
    def of_input(self, name: str, quantizer: nn.Module) -> float:
        """Of a layer's input, which the quantizer rounds; the part is the same for all images of a draw."""
        layer, held = self._layer(name), self._layer(name).input_quantizer
        shapes: list[torch.Size] = []
        handle = layer.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[1:]))
        self.network(self.images[:1])
        handle.remove()

        def put(part: Tensor) -> None:
            layer.input_quantizer = _InPart(quantizer, part)

        try:
            return self._mean(f"{name}/input", shapes[0], put)
        finally:
            layer.input_quantizer = held

    def _layer(self, name: str) -> QuantLayer:
        layer = self.network.get_submodule(name)
        assert isinstance(layer, QuantLayer)
        return layer

    def _mean(self, what: str, shape: torch.Size, put: Callable[[Tensor], None]) -> float:
        total = 0.0
        for draw in range(self.draws):
            part = _part(shape, self.mask, sub_seed(self.seed, "mask", what, draw)).to(self.images.device)
            put(part)
            total += self._diverges() / float(part.double().mean())
        return total / self.draws

    def _diverges(self) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self.images.device)
        for batch, outputs in zip(self.images.split(BATCH), self._float, strict=True):
            total += self.divergence(self.network(batch).float(), outputs).double() * len(batch)
        return float(total) / len(self.images)


def _part(shape: torch.Size, mask: float, seed: int) -> Tensor:
    """A random part, bool; at least one of all places."""
    part = torch.zeros(shape.numel(), dtype=torch.bool)
    order = torch.randperm(shape.numel(), generator=torch.Generator().manual_seed(seed))
    part[order[: max(1, round(mask * shape.numel()))]] = True
    return part.view(shape)


class _InPart(nn.Module):
    """Fills an input slot: rounds a part of each image. A layer's calls with inputs of another shape stay in float."""

    def __init__(self, quantizer: nn.Module, part: Tensor) -> None:
        super().__init__()
        self.quantizer, self.part = quantizer, part

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.part, self.quantizer(x), x) if x.shape[1:] == self.part.shape else x


class _Tap(nn.Module):
    """Fills an input slot: keeps what comes, and adds a zero whose gradient is that of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(x, requires_grad=True)
        self.seen.append((x.detach(), zero))
        return x + zero


@contextmanager
def _tapped(network: nn.Module, names: Iterable[str]) -> Iterator[dict[str, _Tap]]:
    """A tap in the input slot of each layer."""
    layers: dict[str, QuantLayer] = {}
    for name in names:
        layer = network.get_submodule(name)
        assert isinstance(layer, QuantLayer)
        layers[name] = layer
    held = {name: layer.input_quantizer for name, layer in layers.items()}
    taps = {name: _Tap() for name in layers}
    try:
        for name, layer in layers.items():
            layer.input_quantizer = taps[name]
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield taps
    finally:
        for name, layer in layers.items():
            layer.input_quantizer = held[name]


def first_order_scores(
    network: nn.Module, quantizers: Mapping[int, Mapping[str, nn.Module]], batches: Batches, loss: Loss
) -> ByBits:
    """The mean over samples of <d loss / d h, Q(h) - h>, h being a layer's input and Q its quantizer at some bits.

    quantizers: by bits and layer. batches: inputs and targets; the loss is a mean over a batch.
    """
    names = list(next(iter(quantizers.values())))
    found: ByBits = {(name, bits): 0.0 for bits in quantizers for name in names}
    samples = sum(len(inputs) for inputs, _ in batches)
    for inputs, targets in batches:
        with _tapped(network, names) as taps:
            value = loss(network(inputs).float(), targets)
            zeros = [zero for tap in taps.values() for _, zero in tap.seen]
            slopes = iter(torch.autograd.grad(value, zeros, materialize_grads=True))
        with torch.no_grad():
            for name, tap in taps.items():
                for (x, _), slope in zip(tap.seen, slopes, strict=False):
                    for bits, each in quantizers.items():
                        error = each[name](x.float()) - x
                        found[name, bits] += float((slope * error).double().sum()) * len(inputs) / samples
    return found


def input_errors(
    network: nn.Module, quantizers: Mapping[int, Mapping[str, nn.Module]], batches: Batches
) -> tuple[ByBits, dict[str, int]]:
    """The mean over samples of ||Q(h) - h||^2, and how many numbers h has, with h and Q as in `first_order_scores`."""
    names = list(next(iter(quantizers.values())))
    found: ByBits = {(name, bits): 0.0 for bits in quantizers for name in names}
    sizes: dict[str, int] = {}
    samples = sum(len(inputs) for inputs, _ in batches)
    for inputs, _ in batches:
        with _tapped(network, names) as taps, torch.no_grad():
            network(inputs)
            for name, tap in taps.items():
                sizes[name] = sum(x[0].numel() for x, _ in tap.seen)
                for bits, each in quantizers.items():
                    errors = sum(float((each[name](x.float()) - x).double().square().sum()) for x, _ in tap.seen)
                    found[name, bits] += errors / samples
    return found, sizes


def hessian_traces(
    network: nn.Module, names: Sequence[str], batches: Batches, loss: Loss, draws: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Traces of the Hessian of the loss in each layer's weight, and in its input (a mean over samples).

    By Hutchinson's estimate E v^T H v, v of random signs; `draws` for each batch. The loss is a mean over a batch.
    """
    of_weights, of_inputs = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    generator = torch.Generator().manual_seed(seed)
    samples = sum(len(inputs) for inputs, _ in batches)
    parameters = {name: network.get_submodule(name).weight for name in names}
    for inputs, targets in batches:
        with _tapped(network, names) as taps:
            for parameter in parameters.values():
                parameter.requires_grad_()
            value = loss(network(inputs).float(), targets)
            zeros = [(name, zero) for name, tap in taps.items() for _, zero in tap.seen]
            for found, blocks in ((of_weights, list(parameters.items())), (of_inputs, zeros)):
                for name, trace in _traces(value, blocks, draws, generator):  # type: ignore[arg-type]
                    found[name] += trace * len(inputs) / samples
            for parameter in parameters.values():
                parameter.requires_grad_(False)
    return of_weights, of_inputs


def _traces(
    value: Tensor, blocks: Sequence[tuple[str, Tensor]], draws: int, generator: torch.Generator
) -> Iterator[tuple[str, float]]:
    """The estimate for each block of the Hessian's diagonal, with the block's name."""
    tensors = [tensor for _, tensor in blocks]
    slopes = torch.autograd.grad(value, tensors, create_graph=True, materialize_grads=True)
    for _ in range(draws):
        signs = [torch.randint(2, each.shape, generator=generator).to(each) * 2 - 1 for each in slopes]
        product = torch.stack([(slope * sign).sum() for slope, sign in zip(slopes, signs, strict=True)]).sum()
        if not product.requires_grad:  # the loss is linear in these
            return
        curved = torch.autograd.grad(product, tensors, retain_graph=True, materialize_grads=True)
        for (name, _), sign, each in zip(blocks, signs, curved, strict=True):
            yield name, float((sign * each).double().sum()) / draws
