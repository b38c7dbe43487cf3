"""The blocks of a decoder, each run by itself on what it gets: for methods that deploy it block by block."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.quantization.key_value_points import key_value_slots

#: Arguments of a block that hold a cache, which runs of a block by itself must not add to.
_CACHES = ("cache", "past_key_values", "past_key_value", "layer_past")


def decoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks by name, in order: members of a list, each with one attention that has slots for keys and values.

    Raises UserError for a network that is built otherwise.
    """
    attentions = list(key_value_slots(model))
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            blocks = {f"{name}.{place}".removeprefix("."): block for place, block in enumerate(module)}
            inside = [sum(each.startswith(f"{block}.") for each in attentions) for block in blocks]
            if attentions and all(count == 1 for count in inside) and sum(inside) == len(attentions):
                return blocks
    raise UserError("this network has no list of blocks with one attention each, whose keys and values have slots")


class BlockInputs:
    """What the blocks of a decoder get on some sequences, batch by batch.

    first: inputs of the first block, (N, T, C) each. `run` calls a block and adds the other arguments that it got in
    the network (masks, positions).
    """

    def __init__(self, model: nn.Module, sequences: Tensor, batch: int) -> None:
        self.first: list[Tensor] = []
        self._more: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
        blocks = decoder_blocks(model)
        handles = [
            block.register_forward_pre_hook(self._recorder(name, first=not place), with_kwargs=True)
            for place, (name, block) in enumerate(blocks.items())
        ]
        try:
            with torch.no_grad():
                for part in sequences.split(batch):
                    model(part)
        finally:
            for handle in handles:
                handle.remove()

    def __len__(self) -> int:
        return len(self.first)

    def _recorder(self, name: str, first: bool) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            x = args[0] if args else named.pop("hidden_states")
            if first:
                self.first.append(x.detach())
            named |= {key: None for key in _CACHES if key in named}
            named |= {"use_cache": False} if "use_cache" in named else {}
            self._more.setdefault(name, []).append((args[1:], named))

        return record

    def run(
        self, name: str, block: nn.Module, x: Tensor, batch: int, state: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The output (N, T, C) of a block for x, as a member of a batch. state: in place of parameters of the block."""
        args, named = self._more[name][batch]
        inputs = (x, *args)
        found = torch.func.functional_call(block, dict(state or {}), inputs, named)
        output: Tensor = found[0] if isinstance(found, tuple) else found
        return output
