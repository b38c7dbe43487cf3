"""Figures, tables and claims from what a sweep left on disk, or on W&B. No torch; Optuna for one figure alone.

In Python: `from analysis import load, compare`, then `load("runs", "mine")` (analysis/README.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.library import Results, compare, load

__all__ = ["Results", "compare", "load"]


def __getattr__(name: str) -> Any:
    # On use: a module of this package may be imported without all of the others.
    if name in __all__:
        from analysis import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
