"""Keys of a run's file that depend on the component that is chosen there, such as data.val."""

from harness.core import registry
from harness.core.errors import UserError, unknown
from harness.training.config import config_class

#: Keys of a run whose own keys are those of a component, and its kind.
CHOSEN = {"data": "data set", "model": "model", "methods": "method"}


def depends(name: str, section: str, key: str) -> UserError:
    """What to say of a key of `section`, one of CHOSEN: which components have it. name: as the user wrote it."""
    kind = CHOSEN[section]
    keys = {each: config_class(kind, each).model_fields for each in registry.names(kind)}
    having = sorted(each for each, fields in keys.items() if key in fields)
    if not having:
        return unknown(f"key of any {kind}", key, {each for fields in keys.values() for each in fields})
    those = f"it is a key of: {', '.join(having)}"
    return UserError(f"{name} depends on the {kind}: python -m harness.config {having[0]}.{key} ({those})")
