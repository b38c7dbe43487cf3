"""The weight layers of a model whose weights may be replaced, and to which layers may be added, during training."""

import warnings
from collections.abc import Iterable

from torch import nn

from harness.quantization.layers import WeightLayer, glob_patterns, weight_layers
from harness.quantization.refusals import check_weight


class ModelLayers:
    """A model's weight layers by name (`layers`), without those that `exclude` matches, as of the last `refresh`.

    norms: whether norm layers count; those that have slots always do.
    """

    def __init__(self, model: nn.Module, exclude: str | Iterable[str], norms: bool) -> None:
        self._model, self._exclude, self._norms = model, glob_patterns(exclude), norms
        self._modules = _modules(model)
        self.layers = weight_layers(model, self._exclude, norms)

    def refresh(self, consequence: str) -> None:
        """Find layers that were added since the last call, and warn about each. consequence: the end of the warning.

        Costs a walk over the modules. Raises UserError for a layer that cannot be quantized.
        """
        modules = _modules(self._model)
        if modules == self._modules:  # compared by identity, one by one
            return
        self._modules, before = modules, {id(layer) for layer in self.layers.values()}
        self.layers = weight_layers(self._model, self._exclude, self._norms)
        for name, layer in self.layers.items():
            if id(layer) not in before:
                warnings.warn(f"layer {name!r} was put into the model later: {consequence}", stacklevel=4)

    def trained(self) -> list[WeightLayer]:
        """The layers whose weights are trained now; of layers that share a weight the last.

        Raises UserError for a weight that is no longer a parameter of its layer.
        """
        found = {}
        for name, layer in self.layers.items():
            weight = layer._parameters.get("weight")
            if weight is None:
                check_weight(name, layer)
            elif weight.requires_grad:
                found[id(weight)] = layer
        return list(found.values())


def _modules(model: nn.Module) -> list[nn.Module]:
    """All modules; much faster than `model.modules()`, which names them."""
    found = [model]
    for module in found:
        found += [child for child in module._modules.values() if child is not None]
    return found
