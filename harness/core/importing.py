"""Runs a Python file as a module, from its content, and says in a line why an import failed."""

import builtins
import sys
import traceback
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

#: Of components, as tracebacks name them.
FILES: set[str] = set()


def executed(name: str, path: Path, source: bytes, beside: Iterable[tuple[str, bytes]] = ()) -> ModuleType:
    """The module of a source text, which is run once for a name. path: where it is from, for messages.

    beside: names and source texts of modules that it may import, whatever else has such a name.
    Raises what the code raises.
    """
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    FILES.add(str(path))
    if beside:  # an import statement, also one in a function, calls the __import__ of its module's builtins
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": partial(_imported, name, path, dict(beside))}
    sys.modules[name] = module  # dataclasses and annotations in it are looked up there
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(importer: str, path: Path, beside: dict[str, bytes], name: str, *given: Any, **named: Any) -> Any:
    """`__import__` of a module that has others beside it, which are run under a name of their own."""
    if name not in beside:
        return builtins.__import__(name, *given, **named)
    place = f"{importer.rpartition('.')[0]}.{name}"
    return executed(place, path.with_name(f"{name}.py"), beside[name], beside.items())


def why(error: BaseException) -> str:
    """The last line of an error's traceback, and the last file and line of a component in it; else of any code."""
    line = traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
    if isinstance(error, SyntaxError):
        return f"{line} ({error.filename}, line {error.lineno})"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<frozen")]
    last = ([each for each in frames if each.filename in FILES] or frames)[-1]
    return f"{line} ({last.filename}, line {last.lineno})"
