"""Whether the methods of a run fit its target, its deployment points and each other. Imports torch."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint, LayerPoints, in_words
from harness.core.outside import shown
from harness.methods import check_norms, find

if TYPE_CHECKING:
    from harness.training.config import RunConfig


def check_methods(config: "RunConfig", names: Sequence[str]) -> None:
    """Check the stack, methods by name in order, and the deploy methods. Raises UserError."""
    for name in names:
        if find(name).needs_target_bit and config.target_bit is None:
            raise UserError(f"methods: {shown(name)!r} prepares for a bit-width; set target_bit to 2 to 8")
        if not find(name).activations and config.target is not None and config.target.has_activations:
            raise UserError(
                f"methods: {shown(name)!r} cannot prepare for activations (target_bit: {config.target}); "
                f"set target_bit to {config.target.weights}"
            )
    for earlier, later in pairwise(names):
        if find(later).replaces_layers and not find(earlier).replaces_layers:
            last, first = shown(earlier), shown(later)
            raise UserError(f"methods: {first!r} replaces layers that {last!r} would hold on to; name {first!r} first")
    deploying = sorted({entry["name"] for entry in config.deploys.values()} - {"rtn"})
    check_norms([*names, *deploying], config.quantizer)
    if config.monitor.name != "rtn":
        _check_monitor(config)
    by_layer = [str(point) for point in config.deploy.points if isinstance(point, LayerPoints)]
    for name in (*names, *deploying):
        if by_layer and not find(name).takes_layer_points:
            why = "deploys a network at one point for all its layers"
            raise UserError(f"deploy.bits: {by_layer[0]}: {shown(name)!r} {why}")


def _check_monitor(config: "RunConfig") -> None:
    name, point = config.monitor.name, config.monitored_point
    if find(name).needs_target_bit and config.target_bit is None:
        raise UserError(f"monitor.deploy: {shown(name)!r} prepares for a bit-width; set target_bit to 2 to 8")
    check_serves("monitor.deploy", name, point, "set target_bit to")


def check_serves(field: str, name: str, point: AnyPoint, remedy: str) -> None:
    """Refuse a point at which a deploy method does nothing. remedy: how the message goes on, before a legal point."""
    if not find(name).serves(point):
        legal = (point for point in (BitWidths(4), BitWidths(4, 4), BitWidths(4, None, 4)) if find(name).serves(point))
        example = next(legal, None)
        served = "2 to 8" if example == BitWidths(4) else f"a point such as {example}"
        raise UserError(f"{field}: {shown(name)!r} does nothing {in_words(point)}; {remedy} {served}")
