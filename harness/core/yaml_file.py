"""Strict YAML: `1e-4` is a number, a duplicate key is an error, `yes` and `no` are text."""

import re
from pathlib import Path
from typing import Any

import yaml

from harness.core.errors import UserError


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats, without duplicate keys, and without `yes` and `no` as booleans."""


#: What a scalar looks like, by its tag, and the characters that it may begin with.
_SCALARS = {
    "tag:yaml.org,2002:float": (
        r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
        r"|\.inf|\.Inf|\.INF)$|^\.(?:nan|NaN|NAN)$",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:int": (r"^[-+]?(?:\d[\d_]*|0x[0-9a-fA-F_]+)$", "-+0123456789"),
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
}
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in _SCALARS]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 16 if "x" in text else 10)


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`: its keys may be overridden, and often are
            continue
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise UserError(f"line {line}: key {key!r} is not text; quote it")
        if key in seen:
            raise UserError(f"line {line}: key {key!r} appears twice in the same section")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse(text: str) -> Any:
    """The value of a YAML text. Raises UserError with the line of a mistake."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        hint = (
            "; is it indented as the lines that belong with it?" if "expected <block end>" in str(error.problem) else ""
        )
        raise UserError(f"{line}not YAML: {error.problem}{hint}") from None


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError naming the file."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        listing = f" (there: {', '.join(other.name for other in near)})" if near else ""
        raise UserError(f"{path}: no such file{listing}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values, found {type(value).__name__}")
    return value
