"""Components are files: `methods/ste.py` is the method `ste`. Nothing is registered by hand.

Names come from the folder alone, so a misspelt name is refused without importing torch.
"""

import os
from importlib import import_module
from types import ModuleType

from harness.core.errors import UserError, unknown

_HARNESS = os.path.dirname(os.path.dirname(__file__))
KINDS = {"method": "methods", "model": "models", "data set": "data", "task": "tasks"}
#: Those that have settings: a `Config`, in a method's file inside of its class.
WITH_SETTINGS = ("method", "model", "data set")


def names(kind: str) -> list[str]:
    """The components of a kind ("method", "model", "data set" or "task"), sorted."""
    files = os.listdir(os.path.join(_HARNESS, KINDS[kind]))  # as text: a sweep asks thousands of times, pathlib is slow
    return sorted(file[:-3] for file in files if file.endswith(".py") and file != "base.py" and file[0] not in "_.")


def check(kind: str, name: str) -> str:
    """`name` itself. Raises UserError with the nearest legal spelling."""
    family = name.partition(":")[0] if kind == "model" else name  # `timm:resnet34`: models/timm.py builds a resnet34
    if family not in names(kind):
        raise unknown(kind, name, names(kind))
    return name


def deploy_methods() -> list[str]:
    """What a network can be deployed by: "rtn" (round-to-nearest), then the methods with a `deploy` of their own."""
    return ["rtn", *(name for name in names("method") if has_deploy(name))]


def has_deploy(method: str) -> bool:
    """Whether a method, which is there, has a `deploy` of its own."""
    # By its text, so that a name is refused without importing torch; tests/conformance compares it with the class.
    with open(os.path.join(_HARNESS, KINDS["method"], f"{method}.py"), encoding="utf-8") as file:
        return "\n    def deploy(" in file.read()


def load(kind: str, name: str) -> ModuleType:
    """Import the file of a component. Raises UserError for a name without a file."""
    family = check(kind, name).partition(":")[0]
    module = import_module(f"harness.{KINDS[kind]}.{family}")
    if not hasattr(module, "Config") and kind in WITH_SETTINGS[1:]:
        raise UserError(f"{kind} {name!r}: harness/{KINDS[kind]}/{family}.py defines no Config")
    return module
