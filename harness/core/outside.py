"""Components from outside this package: a Python file, or a module of an installed package.

A sweep or run file names one by a reference: `nets/small_cnn.py`, `nets/small_cnn.py:SmallCNN`, `my_package.nets` or
`my_package.nets:SmallCNN`. Its name, in configurations and records, is by content and holds no path:
`small_cnn@0123456789ab`, the stem and the first digits of the file's SHA-256; of a module `my_package.nets:Net@...`.
Loading it by this name gives that content or an error. Files are kept beside a sweep or run, in `components/`, with
those in their folder that they import (siblings.py), which count for the digest; modules are not copied.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, nearest, printable
from harness.core.importing import FILES, executed, why
from harness.core.siblings import Sources, kept, siblings

#: The group of entry points by which packages register components, as `model.small_cnn = "my_package.nets:SmallCNN"`.
GROUP = "harness.components"
DIGITS = 12
#: The folder of kept files.
KEPT = "components"
_WORD = r"[A-Za-z_]\w*"
_DIGEST = rf"(@(?P<digest>[0-9a-f]{{{DIGITS}}}))?"
_REFERENCE = re.compile(rf"(?P<module>{_WORD}(\.{_WORD})*)(:(?P<attribute>{_WORD}))?{_DIGEST}")
_FILE = re.compile(rf"(?P<path>.+\.py)(:(?P<attribute>{_WORD}))?", re.DOTALL)


@dataclass(frozen=True)
class Outside:
    """One component. module: the file's stem, or a module's dotted name. installed: whether it is such a module.

    beside: the modules in its folder that it imports.
    """

    module: str
    attribute: str | None
    path: Path
    source: bytes
    installed: bool
    beside: Sources = ()

    @property
    def name(self) -> str:
        """By content; see above."""
        return f"{self.module}{f':{self.attribute}' if self.attribute else ''}@{self.sha256[:DIGITS]}"

    @property
    def sha256(self) -> str:
        """Of the file, then the name and content of each one beside it, in hexadecimal."""
        digest = hashlib.sha256(self.source)
        for name, source in self.beside:
            digest.update(f"\0{name}\0".encode() + source)
        return digest.hexdigest()

    @property
    def file(self) -> str:
        """The name of the file's kept copy."""
        return f"{self.module}@{self.sha256[:DIGITS]}.py"

    @property
    def files(self) -> dict[str, bytes]:
        """All that is kept: `small_cnn@0123456789ab.py`, `small_cnn@0123456789ab.helper.py`."""
        stem = self.file.removesuffix("py")
        return {self.file: self.source, **{f"{stem}{name}.py": source for name, source in self.beside}}


class AbsentError(UserError):
    """There is no such module."""


_known: dict[str, Outside] = {}
_folders: list[Path] = []


def is_name(text: str) -> bool:
    """Whether a text is a name by content."""
    return "@" in text and bool((found := _REFERENCE.fullmatch(text)) and found["digest"])


def is_reference(text: str) -> bool:
    """Whether a text can only name a component from outside: a file, a module with a dot or attribute, a name."""
    module = _REFERENCE.fullmatch(text)
    return (
        bool(_FILE.fullmatch(text))
        or bool(module and ("." in module["module"] or module["attribute"]))
        or is_name(text)
    )


def shown(name: str) -> str:
    """A name as cells, dotted keys and tables have it: the attribute, else the module's last part. Others stay."""
    if not is_name(name):
        return name
    return name.partition("@")[0].rpartition(":")[2].rpartition(".")[2]


def resolve(kind: str, reference: str, base: Path) -> str:
    """The name by content of what a reference names; names stay as they are. base: of relative paths.

    Raises UserError for a file or module that is not there.
    """
    if is_name(reference):
        return get(kind, reference).name
    if found := _FILE.fullmatch(reference):
        one = _of_file(kind, base / Path(found["path"]).expanduser(), found["attribute"])
    else:
        parts = _REFERENCE.fullmatch(reference)
        assert parts is not None, "is_reference"
        one = _of_module(kind, parts["module"], parts["attribute"])
    _known[one.name] = one
    return one.name


def get(kind: str, name: str) -> Outside:
    """The component of a name by content. Raises UserError where that content is not here."""
    if (one := find(name)) is not None:
        return one
    parts = _REFERENCE.fullmatch(name)
    assert parts is not None, "is_name"
    looked = ", ".join(map(str, _folders)) or "nowhere"
    try:
        one = _of_module(kind, parts["module"], parts["attribute"])
    except UserError:
        raise UserError(f"{kind} {name!r}: its file {_file_of(parts)} is not kept here (looked in: {looked})") from None
    if one.name != name:
        raise UserError(f"{kind} {name!r}: module {one.module} is another one here ({one.name}, {one.path})")
    _known[name] = one
    return one


def find(name: str) -> Outside | None:
    """The component of a name by content that was resolved in this process or is kept in a folder it looks in."""
    if name in _known:
        return _known[name]
    parts = _REFERENCE.fullmatch(name)
    for folder in _folders if parts and parts["digest"] else ():
        path = folder / _file_of(parts)  # type: ignore[arg-type]
        if path.is_file():
            one = Outside(parts["module"], parts["attribute"], path, path.read_bytes(), False, kept(path))  # type: ignore[index]
            if one.name != name:
                raise UserError(f"{path}: was changed: its content is that of {one.file}")
            _known[name] = one
            return one
    return None


def _file_of(parts: re.Match[str]) -> str:
    return f"{parts['module']}@{parts['digest']}.py"


def _of_file(kind: str, path: Path, attribute: str | None) -> Outside:
    if not re.fullmatch(_WORD, path.stem):
        raise UserError(f"{kind} {str(path)!r}: {path.stem!r} is no name of a Python module; rename the file")
    try:
        source = path.read_bytes()
        return Outside(path.stem, attribute, path, source, False, siblings(kind, path, source))
    except FileNotFoundError:
        there = sorted(each.name for each in path.parent.glob("*.py")) if path.parent.is_dir() else []
        near = nearest(path.name, there) + (f" (there: {', '.join(there)})" if there else "")
        raise UserError(f"{kind} {str(path)!r}: there is no such file{near}") from None
    except OSError as error:
        raise UserError(f"{kind} {str(path)!r}: cannot be read: {error.strerror}") from None


def _of_module(kind: str, module: str, attribute: str | None) -> Outside:
    try:
        spec = find_spec(module)  # imports the packages around it
    except (ModuleNotFoundError, ValueError):
        spec = None
    except Exception as error:
        raise UserError(f"{kind} {module!r}: cannot be imported: {why(error)}") from None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise AbsentError(f"{kind} {module!r}: there is no module of this name that can be imported")
    return Outside(module, attribute, Path(spec.origin), Path(spec.origin).read_bytes(), True)


def load(kind: str, name: str) -> Any:
    """The module of a component, or what its attribute names there. Raises UserError where it cannot be imported."""
    return _loaded(kind, get(kind, name).name)


@cache
def _loaded(kind: str, name: str) -> Any:
    one = get(kind, name)
    FILES.add(str(one.path))
    try:
        place = f"harness_components.d{one.sha256[:DIGITS]}.{one.module}"
        # From what was read when it was resolved, whatever the file has become since.
        module = import_module(one.module) if one.installed else executed(place, one.path, one.source, one.beside)
    except (Exception, SystemExit) as error:
        raise UserError(f"{kind} {shown(name)!r}: {one.path} cannot be imported: {why(error)}") from None
    if one.attribute is None:
        return module
    if not hasattr(module, one.attribute):
        there = [each for each in vars(module) if not each.startswith("_")]
        raise UserError(f"{kind}: {one.path} has no {one.attribute!r}{nearest(one.attribute, there)}")
    return getattr(module, one.attribute)


@cache
def registered(kind: str) -> Mapping[str, str]:
    """What installed packages register for a kind: name -> reference. Imports none of them."""
    found = ((*each.name.partition("."), each.value) for each in metadata.entry_points(group=GROUP))
    return {name: reference for prefix, _, name, reference in found if prefix == kind.split()[0]}


def look_in(*folders: Path) -> None:
    """Find kept files in these folders, too."""
    _folders.extend(each for each in map(Path.absolute, folders) if each not in _folders)


def look_near(run: Path) -> None:
    """Find files kept beside a run: in its directory, or in the folder of its sweep."""
    look_in(*(folder / KEPT for folder in (run, run.absolute().parent.parent)))


def names_in(value: Any) -> list[str]:
    """The names by content anywhere in plain values, such as those of a configuration, each once."""
    if isinstance(value, str):
        return [value] if is_name(value) else []
    if isinstance(value, Mapping):
        value = list(value.values())
    items = value if isinstance(value, list | tuple) else ()
    return list(dict.fromkeys(name for item in items for name in names_in(item)))


def keep(folder: Path, value: Any) -> bool:
    """Copy the files of all components that plain values name to a folder; returns whether there is one."""
    found = [one for name in names_in(value) if (one := find(name)) is not None and not one.installed]
    for name, source in ((name, source) for one in found for name, source in reversed(one.files.items())):
        if not (copy := folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            aside = copy.with_name(f".{copy.name}.{os.getpid()}")
            aside.write_bytes(source)
            aside.replace(copy)
    return bool(found)


def described(value: Any) -> dict[str, dict[str, str | None]]:
    """For a record: where the components that plain values name come from, by name."""
    return {name: _described(one) for name in names_in(value) if (one := find(name)) is not None}


def _described(one: Outside) -> dict[str, str | None]:
    if not one.installed:
        beside = {"beside": printable(", ".join(f"{name}.py" for name, _ in one.beside))} if one.beside else {}
        return {"file": printable(f"{one.module}.py"), **beside, "sha256": one.sha256}
    top = one.module.partition(".")[0]
    owner = next(iter(metadata.packages_distributions().get(top, ())), None)
    version = metadata.version(owner) if owner else None
    return {"module": one.module, "distribution": owner, "version": version, "sha256": one.sha256}
