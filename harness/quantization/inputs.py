"""Which input gets how many bits, and quantizers of activations put into their slots."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from harness.core.config_base import ActivationsConfig
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint, LayerPoints
from harness.quantization.activations import ActivationQuantizer, make_activation_quantizer
from harness.quantization.matching import deciding
from harness.quantization.observed import Observed
from harness.quantization.observing import Site, expose, input_sites
from harness.quantization.quantizer import KeepScale

#: Bits of the first and last layer's inputs with `first_last: 8`.
_OUTER_BITS = 8
#: The bits of one input: from the name of its layer or product, and what is in the slot now. None: float.
BitsOf = Callable[[str, nn.Module], int | None]


def site_bits(
    model: nn.Module,
    bits: int | BitsOf,
    config: ActivationsConfig,
    observed: Mapping[str, Observed] | None = None,
    exclude: str | Iterable[str] = (),
) -> dict[str, tuple[Site, int]]:
    """The sites that are rounded, and the bits of each, in calling order.

    bits: the activations' bits of a point; or a function, and then `first_last` has no effect. observed: of this model;
    its order says which layers are first and last, and what is never called has no range and is left out. Without it,
    the order of the modules counts. The products of attention are sites once exposed. Raises UserError where first and
    last layer are the same and `first_last` is not `same`.
    """
    sites = input_sites(model, exclude, config.attention)
    order = [name for name in (sites if observed is None else observed) if name in sites]
    if observed and not order:
        raise UserError(
            f"calibration: what was observed is of another network (its first input: {next(iter(observed))})"
        )
    if not isinstance(bits, int):
        wanted = {name: bits(name.rpartition(".")[0], sites[name].held) for name in order}
    else:
        outer = _outer([name for name in order if sites[name].is_layer], bits, config)
        wanted = {name: outer.get(name, bits) for name in order}
    return {name: (sites[name], each) for name, each in wanted.items() if each is not None}


def _outer(layers: list[str], bits: int, config: ActivationsConfig) -> dict[str, int | None]:
    """The bits of the first and the last of some sites."""
    if len(layers) == 1 and config.first_last != "same":
        raise UserError(
            f"activations.first_last: {config.first_last}: {layers[0].rpartition('.')[0]!r} is the only quantized "
            "layer, both the first and the last; set activations.first_last: same"
        )
    each = {"same": bits, "float": None}.get(str(config.first_last), _OUTER_BITS)
    return dict.fromkeys((*layers[:1], *layers[-1:]), each)


def fill_inputs(
    model: nn.Module,
    bits: int,
    config: ActivationsConfig,
    observed: Mapping[str, Observed],
    build: Callable[[int, Observed, Site], ActivationQuantizer],
    exclude: str | Iterable[str] = (),
) -> dict[str, ActivationQuantizer]:
    """Fill the sites of a model, in place: for `Method.prepare` when the target has bits for activations.

    build: gives the fitted quantizer of a site, from its bits, what calibration saw of it, and the site, such as
    `lambda bits, seen, site: LearnedStepQuantizer(bits).fit(seen)`. First and last layer and attention count as at
    deployment. Returns the quantizers by site. Raises UserError as `site_bits` and `observe` do, and SlotTakenError.
    """
    if config.attention:
        expose(model, exclude)
    found = {}
    for name, (site, each) in site_bits(model, bits, config, observed, exclude).items():
        quantizer = build(each, observed[name], site)
        site.owner.fill(site.slot, quantizer.to(_device(model)))
        found[name] = quantizer
    return found


def quantize_inputs(
    model: nn.Module,
    bits: int | BitsOf | None,
    config: ActivationsConfig,
    observed: Mapping[str, Observed] | None = None,
    keep: KeepScale | None = None,
    exclude: str | Iterable[str] = (),
) -> nn.Module:
    """Quantize the activations of a model, a copy that is being deployed, in place. Returns the model.

    bits: as for `site_bits` (with a function, attention stays as it is); None empties all sites. A site that was filled
    in training keeps its quantizer at its own bits; at others, with `keep`, the quantizer's step or range. All other
    sites get the default quantizer, from `observed`, which is not needed for ranges per token. Raises UserError as
    `site_bits` and `expose` do, before any slot changes.
    """
    if isinstance(bits, int) and config.attention:
        expose(model, exclude)
    wanted = {} if bits is None else site_bits(model, bits, config, observed, exclude)
    new = {name: _deployed(name, site, each, config, observed, keep) for name, (site, each) in wanted.items()}
    for name, site in input_sites(model, exclude).items():
        if name in new:
            site.put(new[name].to(_device(model)).train(site.owner.training))
        elif isinstance(site.held, ActivationQuantizer):
            site.put(site.held.in_float())
    return model


def float_inputs(model: nn.Module, point: AnyPoint, exclude: str | Iterable[str] = ()) -> None:
    """Take quantizers out of the sites of a copy that is being deployed, where the point has activations in float."""
    layers = point.mapping if isinstance(point, LayerPoints) else {"*": point}
    for name, site in input_sites(model, exclude).items():
        key = deciding(layers, name.rpartition(".")[0])
        if key is not None and layers[key].activations is None and isinstance(site.held, ActivationQuantizer):
            site.put(site.held.in_float())


def _deployed(
    name: str,
    site: Site,
    bits: int,
    config: ActivationsConfig,
    observed: Mapping[str, Observed] | None,
    keep: KeepScale | None,
) -> ActivationQuantizer:
    own = site.held
    if isinstance(own, ActivationQuantizer) and (keep or bits == own.bits or own.keeps_range):
        return own.at_bits(bits, keep or "keep_range")
    needed = config.granularity != "token"
    if observed is None and needed:
        raise UserError(
            "calibration: the ranges of activations are taken from batches of inputs, and there are none; give "
            "calibration=[x, ...], or activations={'granularity': 'token', 'range': 'max'}, which needs none"
        )
    seen = observed[name] if observed is not None and needed else None  # asked only now: it may still have to be seen
    default = make_activation_quantizer(config, bits, seen, site.rows)
    return own.recalibrated(default) if isinstance(own, ActivationQuantizer) else default


def _device(model: nn.Module) -> torch.device:
    return next((each.device for each in model.parameters()), torch.device("cpu"))
