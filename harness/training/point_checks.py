"""Whether a run's model has what its deployment points quantize. Free of torch."""

from typing import TYPE_CHECKING

from harness.core import registry
from harness.core.errors import UserError
from harness.models.base import TaskModelConfig

if TYPE_CHECKING:
    from harness.training.config import RunConfig


def check_points(config: "RunConfig", model: TaskModelConfig) -> None:
    """Refuse bits for keys and values (kv) of a model without a cache. Raises UserError."""
    if model.keeps_cache:
        return
    for field, points in (("target_bit", [config.target]), ("deploy.bits", config.deploy.points)):
        for point in points:
            if point is not None and point.has_kv:
                able = [each for each in registry.names("model") if registry.load("model", each).Config.keeps_cache]
                raise UserError(
                    f"{field}: {point}: model {model.name!r} keeps no cache of keys and values (kv) (models that do: "
                    f"{', '.join(able) or 'none'})"
                )
