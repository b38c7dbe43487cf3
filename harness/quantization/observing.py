"""What reaches the slots for activations, seen by running a copy of a network in float on calibration batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import cache
from glob import escape
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.core.config_base import ActivationsConfig
from harness.core.errors import UserError
from harness.quantization.activations import ActivationQuantizer, Rows
from harness.quantization.attention import expose_attention_products
from harness.quantization.batches import call, check_batches
from harness.quantization.layers import (
    QuantConv2d,
    QuantLayer,
    QuantMatMul,
    excluded_by_attach,
    give_slots,
    glob_patterns,
    weight_layers,
)
from harness.quantization.observed import Observed, Recorder
from harness.quantization.slots import Slotted, Unfilled, copy_of
from harness.quantization.watching import products, tensors


class NotANumberError(UserError):
    """Calibration met NaN."""


class Site(NamedTuple):
    """A slot for a quantizer of activations. rows: what shares a range there, see `TokenQuantizer`."""

    owner: Slotted
    slot: str
    rows: Rows

    @property
    def is_layer(self) -> bool:
        """Whether it is the input of a layer with weights, rather than an operand of a product."""
        return isinstance(self.owner, QuantLayer)

    @property
    def held(self) -> nn.Module:
        """What is in the slot."""
        module: nn.Module = getattr(self.owner, self.slot)
        return module

    def put(self, module: nn.Module) -> None:
        """Replace what is in the slot."""
        setattr(self.owner, self.slot, module)

    @property
    def free(self) -> bool:
        """Whether it is empty or holds an activation quantizer; any other module is part of the network."""
        return isinstance(self.held, Unfilled | ActivationQuantizer)


def input_sites(model: nn.Module, exclude: str | Iterable[str] = (), attention: bool = True) -> dict[str, Site]:
    """The slots for activations that may be filled, by name ("fc1.input_quantizer"), in the order of the modules.

    Those of layers that have slots and, with `attention`, of the products that are exposed, unless excluded by name.
    A slot that another module than an activation quantizer fills is none.
    """
    patterns = glob_patterns(exclude)
    found: dict[str, Site] = {}
    for name, module in model.named_modules():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if isinstance(module, QuantLayer) and "input_quantizer" in module.SLOTS:
            rows: Rows = "sample" if isinstance(module, QuantConv2d) else "last"
            found[f"{name}.input_quantizer".removeprefix(".")] = Site(module, "input_quantizer", rows)
        elif isinstance(module, QuantMatMul) and attention:
            found[f"{name}.input_quantizer".removeprefix(".")] = Site(module, "input_quantizer", "last")
            found[f"{name}.other_quantizer".removeprefix(".")] = Site(module, "other_quantizer", "column")
    return {name: site for name, site in found.items() if site.free}


def expose(model: nn.Module, exclude: str | Iterable[str] = ()) -> None:
    """Make the operands of attention products slots, in place. Raises UserError where that cannot be."""
    try:
        expose_attention_products(model, (*glob_patterns(exclude), *map(escape, excluded_by_attach(model))))
    except UserError as error:
        raise UserError(f"{error} (activations.attention: false leaves all of attention's products in float)") from None


def observe(
    model: nn.Module, batches: Iterable[Any], exclude: str | Iterable[str] = (), attention: bool = True
) -> dict[str, Observed]:
    """What each site sees on some batches, by its name, in order of the first call; sites never called are left out.

    A copy of the model runs in evaluation mode with weights and activations in float; what is deployed already stays
    as it is. batches: inputs as the model takes them (a tuple is several arguments, a mapping named ones), on its
    device. Raises UserError for no batches, for a single batch that is in no list, for one that the network does not
    take, for NaN, and for attention whose products cannot be exposed.
    """
    check_batches(batches)
    copied = copy_of(model).eval()
    left = (*glob_patterns(exclude), *map(escape, excluded_by_attach(copied)))
    layers = give_slots(copied, weight_layers(copied, left))
    if attention:
        expose(copied, exclude)
    with torch.no_grad():
        for layer in layers.values():
            layer.weight = nn.Parameter(layer.effective_weight(), requires_grad=False)
            layer.weight_transform, layer.weight_quantizer = Unfilled(), Unfilled()
    recorders: dict[str, Recorder] = {}
    sites = input_sites(copied, exclude, attention)
    watches = [_Watch(name, recorders, site.held) for name, site in sites.items()]
    for site, watch in zip(sites.values(), watches, strict=True):
        site.put(watch)
    with _plain_arithmetic(copied):
        number = 0
        for number, inputs in enumerate(batches, start=1):
            samples = next((len(each) for each in tensors(inputs) if each.dim()), 1)
            for watch in watches:
                watch.batch, watch.samples = number, samples
            if number > 1 or not attention:
                call(copied, inputs, "calibration")
                continue
            with products(copied, filter(_has_slots, copied.modules()), inputs) as found:
                call(copied, inputs, "calibration")
            _refuse_products(found, left)
    if not number:
        raise UserError("calibration: there is no batch of inputs to observe")
    return {name: recorder.observed() for name, recorder in recorders.items()}


def _refuse_products(found: set[str], exclude: Iterable[str]) -> None:
    """Raise UserError for modules that multiply two activations by themselves, unless they are excluded."""
    names = sorted(name for name in found if not any(fnmatchcase(name, pattern) for pattern in exclude))
    if names:
        what = f"module {names[0]!r}" if names[0] else "the network itself"
        raise UserError(
            f"{what} multiplies two activations, as attention does, where no quantizer can be put "
            "(activations.attention: false leaves all of these products in float)"
        )


def _has_slots(module: nn.Module) -> bool:
    return isinstance(module, QuantLayer | QuantMatMul)


class LazyObservations(Mapping[str, Observed]):
    """What `observe` gives, in an order that is known already: `look` is called when a value is first asked for."""

    def __init__(self, order: Iterable[str], look: Callable[[], Mapping[str, Observed]]) -> None:
        self._order, self._look = tuple(order), cache(look)

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, name: str) -> Observed:
        return self._look()[name]


class _Watch(nn.Module):
    """Fills a slot: records what comes and hands it on in float."""

    def __init__(self, name: str, recorders: dict[str, Recorder], held: nn.Module) -> None:
        super().__init__()
        self.name, self.recorders = name, recorders
        self.then = held.in_float() if isinstance(held, ActivationQuantizer) else held
        self.batch = self.samples = 1

    def forward(self, x: Tensor) -> Tensor:
        recorder = self.recorders.setdefault(self.name, Recorder())
        try:
            recorder.add(x, x.numel() // max(1, self.samples))
        except ValueError:
            raise NotANumberError(
                f"calibration: what comes to {self.name} in batch {self.batch} has NaN in it; look at the calibration "
                "data and at the weights"
            ) from None
        return self.then(x)


@contextmanager
def _plain_arithmetic(model: nn.Module) -> Iterator[None]:
    """Without gradients and without autocast."""
    kinds = {"cpu", *(parameter.device.type for parameter in model.parameters())} - {"meta"}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def observed_for(
    model: nn.Module,
    points: Iterable[BitWidths | None],
    config: ActivationsConfig,
    calibration: Iterable[Any] | Mapping[str, Observed] | None,
    exclude: str | Iterable[str],
) -> Mapping[str, Observed] | None:
    """What calibration saw; None where it is not needed, or not there."""
    if calibration is None or all(point is None or point.activations is None for point in points):
        return None
    if isinstance(calibration, Mapping):
        return calibration
    return observe(model, islice(calibration, config.calibration_batches), exclude, config.attention)


def is_observed(calibration: Any) -> bool:
    """Whether it is what `observe` saw, without looking at what is looked at when it is asked for."""
    if isinstance(calibration, LazyObservations):
        return True
    return isinstance(calibration, Mapping) and all(isinstance(each, Observed) for each in calibration.values())
