"""Modules beside a component's file that it imports: found in its text, kept with it, imported from what was kept."""

import ast
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from harness.core.errors import UserError

#: Modules by name, sorted: the sources of their files.
Sources = tuple[tuple[str, bytes], ...]


def siblings(kind: str, path: Path, source: bytes) -> Sources:
    """The modules in a file's folder that it imports, or that these import; not what is installed, nor Python's own.

    Raises UserError for a folder that it imports, which is not kept, and for imports with a dot.
    """
    found: dict[str, bytes] = {}
    todo = [source]
    while todo:
        for name in _imported(todo.pop()):
            if name.startswith("."):
                raise UserError(
                    f"{kind} {str(path)!r}: imports with a dot (from {name} import ...), for which it would have to be "
                    f"in a package; a file beside it is imported without one"
                )
            beside = path.parent / f"{name}.py"
            if name in found or name == path.stem or not _is_beside(name, path.parent):
                continue
            if not beside.is_file():
                raise UserError(
                    f"{kind} {str(path)!r}: imports the folder {name!r} beside it; files are kept with a sweep, "
                    f"folders are not: make it one file, {name}.py, or a package that is installed"
                )
            found[name] = beside.read_bytes()
            todo.append(found[name])
    return tuple(sorted(found.items()))


def kept(copy: Path) -> Sources:
    """The modules that were kept with a file's copy: `small_cnn@0123456789ab.helper.py` is `helper`."""
    files = sorted(copy.parent.glob(f"{copy.stem}.*.py"))
    return tuple((each.name.removeprefix(f"{copy.stem}.").removesuffix(".py"), each.read_bytes()) for each in files)


def _imported(source: bytes) -> Iterator[str]:
    """The first part of every import in a text, those in functions too; none where it is no Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # loading it says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "").partition(".")[0]


def _is_beside(name: str, folder: Path) -> bool:
    """Whether an import means what is in the folder: where nothing else has that name."""
    file = folder / f"{name}.py"
    if name in sys.stdlib_module_names or not (file.is_file() or (folder / name).is_dir()):
        return False
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    # Python also finds what is in the working directory: this file, or a folder that is no package.
    return spec is None or spec.origin is None or Path(spec.origin).absolute() == file.absolute()
