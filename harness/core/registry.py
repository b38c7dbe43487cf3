"""Components are files: `methods/ste.py` is the method `ste`. Nothing is registered by hand.

Names come from the folder alone, so a misspelt name is refused without importing torch. A sweep may also name
components from outside this package, by file or module (harness/core/outside.py).
"""

import os
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.core import outside
from harness.core.errors import UserError, nearest, unknown
from harness.core.outside import shown

__all__ = ["KINDS", "WITH_SETTINGS", "check", "deploy_methods", "has_deploy", "known", "load", "names", "shown"]

_HARNESS = os.path.dirname(os.path.dirname(__file__))
KINDS = {"method": "methods", "model": "models", "data set": "data", "task": "tasks"}
#: Those that have settings: a `Config`, in a method's file inside of its class.
WITH_SETTINGS = ("method", "model", "data set")


def names(kind: str) -> list[str]:
    """The components of a kind ("method", "model", "data set" or "task") in this package, sorted."""
    folder = os.path.join(_HARNESS, KINDS[kind])
    return list(_modules(folder, os.stat(folder).st_mtime_ns))


@cache  # a sweep asks tens of thousands of times
def _modules(folder: str, changed_ns: int) -> tuple[str, ...]:
    """The modules of a folder that last changed at a time, sorted, but for `base` and private ones."""
    files = os.listdir(folder)
    return tuple(
        sorted(file[:-3] for file in files if file.endswith(".py") and file != "base.py" and file[0] not in "_.")
    )


def known(kind: str) -> list[str]:
    """These, and those that installed packages register."""
    return sorted({*names(kind), *outside.registered(kind)})


def check(kind: str, name: str, base: Path | None = None) -> str:
    """The name by which a component is loaded: of one from outside by its content, else `name` itself.

    base: what paths of files are relative to; None: the working directory. Raises UserError with the nearest legal
    spelling, for a file that is not there, and for one that has the name of a component of this package.
    """
    family = name.partition(":")[0] if kind == "model" else name  # `timm:resnet34`: models/timm.py builds a resnet34
    legal = names(kind)
    if family in legal:
        return name
    refuse_sweep_file(kind, name)
    reference = name if outside.is_reference(name) else outside.registered(kind).get(name)
    if reference is None:
        parts = name.split("+")
        stack = f"[{', '.join(parts)}]" if len(parts) > 1 and set(parts) <= {*known(kind)} else None  # as it is shown
        called = stack or _called(kind, name.lower())
        raise unknown(kind, name, known(kind), called, _what(kind, called, name) if called != stack else None)
    try:
        found = outside.resolve(kind, reference, base or Path())
    except outside.AbsentError as error:
        raise UserError(f"{error}{nearest(family, known(kind))} (legal: {', '.join(known(kind))}, FILE.py)") from None
    if shown(found) in legal:
        raise UserError(f"{kind} {reference!r}: {shown(found)!r} is the name of a {kind} of the harness; rename it")
    return found


def refuse_sweep_file(kind: str, name: str) -> None:
    """Raise UserError for a YAML file where a component belongs."""
    if name.lower().endswith((".yaml", ".yml")):
        raise UserError(
            f"{name!r} is no {kind}: that is a file .py, or a name; a sweep file is checked by "
            f"`python -m harness.launch {name} --dry-run`"
        )


def _called(kind: str, name: str) -> str | None:
    """The component whose file says that others call it so: `ALSO_CALLED = ("qat",)`."""
    for each in names(kind):
        found = re.search(r"^ALSO_CALLED = \((.*)\)$", _text(kind, each), re.MULTILINE)
        if found and f'"{name}"' in found[1]:
            return each
    return None


def _what(kind: str, component: str | None, name: str) -> str | None:
    """`float training`: what kind of method a component is, unless its usual name says just that."""
    found = re.search(r'^    kind, acts_on = "([^"]*)"', _text(kind, component), re.MULTILINE) if component else None
    return found[1] if found and found[1].lower() != name.lower() else None


def _text(kind: str, name: str) -> str:
    with open(os.path.join(_HARNESS, KINDS[kind], f"{name}.py"), encoding="utf-8") as file:
        return file.read()


def deploy_methods() -> list[str]:
    """What a network can be deployed by: "rtn" (round-to-nearest), then the methods with a `deploy` of their own."""
    return ["rtn", *(name for name in names("method") if has_deploy(name))]


def check_deploy(name: str, base: Path | None = None) -> str:
    """The same as `check` for a deploy method. Raises UserError for a method without a `deploy` of its own, too."""
    if name == "rtn":
        return name
    if name not in names("method") and not outside.is_reference(name) and name not in known("method"):
        raise unknown("deploy method", name, deploy_methods())
    found = check("method", name, base)
    if not has_deploy(found):
        legal = deploy_methods()
        why = f"method {shown(found)!r} has no deployment of its own{nearest(name, legal)}"
        raise UserError(f"{why} (legal: {', '.join(legal)})")
    return found


def has_deploy(method: str) -> bool:
    """Whether a method, which is there, has a `deploy` of its own."""
    # By its text, so that a name is refused without importing torch; tests/conformance compares it with the class.
    if outside.is_name(method):
        return b"\n    def deploy(" in outside.get("method", method).source
    return "\n    def deploy(" in _text("method", method)


def load(kind: str, name: str) -> Any:
    """Import a component: the module of its file or, from outside, perhaps what it names there.

    Raises UserError for a name without a file, and for a file that cannot be imported.
    """
    found = check(kind, name)
    if outside.is_name(found):
        return outside.load(kind, found)
    family = found.partition(":")[0]
    module = import_module(f"harness.{KINDS[kind]}.{family}")
    if not hasattr(module, "Config") and kind in WITH_SETTINGS[1:]:
        raise UserError(f"{kind} {name!r}: harness/{KINDS[kind]}/{family}.py defines no Config")
    return module
