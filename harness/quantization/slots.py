"""Slots: places in a module that methods fill; Identity until then."""

from typing import Any, ClassVar

from torch import nn

from harness.core.errors import UserError, unknown


class SlotTakenError(UserError):
    """Two methods of a stack want the same slot of a layer, or one cannot work with what another put into it."""


class Unfilled(nn.Identity):
    """An empty slot. Has no state, so copies of a model share it: evaluation copies models often."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unfilled":
        return self

    def train(self, mode: bool = True) -> "Unfilled":
        """Without a mode, which a copy's `eval()` would change in the source."""
        return self


class Slotted(nn.Module):
    """A module with named slots that methods fill."""

    SLOTS: ClassVar[tuple[str, ...]] = ()

    def add_slots(self) -> None:
        """Give the module its slots, all empty (Identity)."""
        for slot in self.SLOTS:
            setattr(self, slot, Unfilled())

    def fill(self, slot: str, module: nn.Module) -> None:
        """Put a module into a slot. Raises UserError when the slot is unknown or taken."""
        if slot not in self.SLOTS:
            raise unknown("slot", slot, self.SLOTS)
        present = getattr(self, slot)
        if not isinstance(present, Unfilled):
            raise SlotTakenError(
                f"slot {slot} already holds {type(present).__name__}, so {type(module).__name__} cannot have it: "
                "two methods of a stack, or two calls of `attach`, clash"
            )
        setattr(self, slot, module)

    def __repr__(self) -> str:
        """Without the empty slots."""
        shown = object.__new__(type(self))
        modules = {name: module for name, module in self._modules.items() if not isinstance(module, Unfilled)}
        shown.__dict__ = {**self.__dict__, "_modules": modules}
        return super(Slotted, shown).__repr__()
