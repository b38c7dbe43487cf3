"""Runs a Python file as a module, from its content, and says in a line why an import failed."""

import sys
import traceback
from pathlib import Path
from types import ModuleType


def executed(name: str, path: Path, source: bytes) -> ModuleType:
    """The module of a source text, which is run once for a name. path: where it is from, for messages.

    Raises what the code raises.
    """
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and annotations in it are looked up there
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def why(error: BaseException) -> str:
    """The last line of an error's traceback, and the file and line that it comes from."""
    line = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{line} ({error.filename}, line {error.lineno})"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<frozen")]
    return f"{line} ({frames[-1].filename}, line {frames[-1].lineno})"
