"""Networks from outside: a file with `Config` and `build`, or a callable that takes the number of classes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness.core import outside, registry
from harness.core.errors import UserError
from harness.core.signature import from_signature, named, settings_of, takes
from harness.models.base import ModelConfig, TaskModelConfig

if TYPE_CHECKING:
    from torch import nn

#: The parameter that gets (C, H, W) of the data.
SHAPE = "input_shape"


@dataclass(frozen=True)
class Model:
    """What a model's file defines, as those in this folder do."""

    Config: type[TaskModelConfig]
    build: Callable[..., "nn.Module"]


@cache
def model(name: str) -> Model:
    """A model from outside by its name. Raises UserError for what is neither of the two forms."""
    found, path = registry.load("model", name), outside.get("model", name).path
    where = f"model {registry.shown(name)!r} ({path})"
    if not isinstance(found, ModuleType):
        return _of_callable(found, name, where)
    if not hasattr(found, "build"):
        there = networks_in(found)
        names = " or ".join(f"{path.name}:{each}" for each in there) or f"{path.name}:SmallCNN"
        raise UserError(f"{where}: defines no build(num_classes, ...); write one, or name a class or function: {names}")
    if not hasattr(found, "Config"):
        return _of_callable(found.build, name, where)
    if not (isinstance(found.Config, type) and issubclass(found.Config, TaskModelConfig)):
        raise UserError(f"{where}: its Config is no subclass of harness.models.ModelConfig")
    return Model(named(found.Config, name), found.build)


def networks_in(module: ModuleType) -> list[str]:
    """The networks that a file defines as classes, by name."""
    from torch import nn

    own = {name: each for name, each in vars(module).items() if isinstance(each, type)}
    return [name for name, each in own.items() if issubclass(each, nn.Module) and each.__module__ == module.__name__]


def _of_callable(target: Any, name: str, where: str) -> Model:
    if not callable(target):
        raise UserError(f"{where}: {target!r} is no class or function")
    config = from_signature(target, ModelConfig, name, where, SHAPE, given=1)
    return Model(config, partial(_built, target, where))


def _built(
    target: Callable[..., Any], where: str, config: Any, input_shape: tuple[int, ...], outputs: int
) -> "nn.Module":
    from torch import nn

    if config.pretrained:
        raise UserError(f"{where}: init: it has no pretrained weights (legal: scratch, checkpoint:<path>)")
    settings = {each.name: getattr(config, each.name) for each in settings_of(target, SHAPE, given=1)}
    filled = {SHAPE: input_shape} if takes(target, SHAPE) else {}
    network = target(outputs, **filled, **settings)
    if not isinstance(network, nn.Module):
        raise UserError(f"{where}: gave {type(network).__name__}, not an nn.Module")
    return network
