"""Where in a sweep file a key belongs that was written elsewhere: `sampler` below `tune`, `epochs` in `base`."""

import re
from functools import cache

from harness.core.config_base import StrictConfig
from harness.core.errors import UserError, unknown
from harness.sweep.config import CellConfig, Final, SweepConfig, Tune
from harness.sweep.content import NOT_SET
from harness.training.config import RunConfig

#: `tune.sampler: unknown key; did you mean 'trials'?`, as harness/core/validation.py says it.
_UNKNOWN = re.compile(r"^((?:.*: )?)([\w.]+): unknown key(?:; did you mean '(\w+)'\?)?(?= \(legal: )")
_NO_SETTING = re.compile(r"^base: unknown setting '(\w+)'(?:; did you mean '\w+'\?)?(?= \(legal: )")
_ITSELF = "the sweep file itself"
#: Keys that several levels have for different things.
_NO_HINT = ("name",)


def place_of(key: str, beside: str = "") -> str:
    """`` `sampler` is a key of the sweep file itself, beside `tune` ``; nothing for a key of no level.

    beside: the level of the file at which the key was written.
    """
    levels = [] if key in _NO_HINT else [name for name, keys in _levels().items() if key in keys]
    if not levels:
        return ""
    if levels[0] == _ITSELF and beside:
        levels[0] += f", beside `{beside}`"
    return f"`{key}` is a key of {' and '.join(levels)}"


def hinted(message: str) -> str:
    """A message, of lines, that says of unknown keys which are legal at another level where that is."""
    return "\n".join(map(_hinted, message.split("\n")))


def _hinted(line: str) -> str:
    if found := _NO_SETTING.match(line):
        place = place_of(found[1], "base")
        return f"base: unknown setting {found[1]!r}; {place}{line[found.end() :]}" if place else line
    if not (found := _UNKNOWN.match(line)):
        return line
    before, dotted, near = found.groups()
    *above, key = dotted.split(".")
    place = place_of(key, above[0] if above and not before else "")
    if not place or near == f"{key}s":  # `seed` for `seeds`
        return line
    return f"{before}{dotted}: unknown key; {place}{line[found.end() :]}"


def unknown_setting(key: str, legal: list[str]) -> UserError:
    """The error for a dotted key of a cell whose first part is neither a run setting nor a method."""
    names = ", ".join(sorted(legal))
    sections = [name[6:-1] for name, keys in _levels().items() if name.startswith("`base.") and key in keys]
    if sections and key not in _NO_HINT:
        meant = " or ".join(f"'{section}.{key}'" for section in sections)
        return UserError(f"unknown setting {key!r}; did you mean {meant}? (legal: {names})")
    if place := place_of(key):
        return UserError(f"unknown setting {key!r}; {place} (legal: {names})")
    return unknown("setting", key, legal)


@cache
def _levels() -> dict[str, set[str]]:
    """The keys of every level, by what it is called in a message."""
    sections = {
        name: field.annotation
        for name, field in RunConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, StrictConfig)
    }
    return {
        _ITSELF: {*SweepConfig.model_fields},
        "`tune`": {*Tune.model_fields},
        "`final`": {*Final.model_fields},
        "an entry of `cells`": {*CellConfig.model_fields} - {*SweepConfig.model_fields},
        "`base`": {*RunConfig.model_fields} - {*NOT_SET},
        **{f"`base.{name}`": {*kind.model_fields} for name, kind in sections.items()},
    }
