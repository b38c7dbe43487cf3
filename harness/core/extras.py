"""Packages that come with an extra of this one."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from harness.core.errors import UserError


def check_extra(package: str, extra: str, where: str) -> None:
    """Raise UserError where a package is missing, without importing it. where: the setting that needs it."""
    if find_spec(package) is None:
        raise UserError(
            f"{where} needs {package}: pip install 'oscillation-harness[{extra}]', in a clone: "
            f"pip install -e '.[{extra}]'"
        )


def from_extra(package: str, extra: str, where: str) -> Any:
    """The package itself. Raises UserError like `check_extra`."""
    check_extra(package, extra, where)
    return import_module(package)
