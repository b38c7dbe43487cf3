"""Data sets from outside: a file as those in this folder, or a callable that gives `Raw`."""

from functools import cache
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.core import outside, registry
from harness.core.errors import UserError
from harness.core.signature import from_signature, named, settings_of, takes
from harness.data._config import DataConfig, TaskDataConfig

if TYPE_CHECKING:
    from harness.data.base import Raw

#: The parameter that gets the folder `data.root`.
ROOT = "root"


@cache
def data_set(name: str) -> Any:
    """What a data set's file defines, as `Config`, `check`, `read` or `load`, and `shape` if it has one.

    Raises UserError for what is neither of the two forms.
    """
    found, path = registry.load("data set", name), outside.get("data set", name).path
    where = f"data set {registry.shown(name)!r} ({path})"
    if not isinstance(found, ModuleType):
        return _of_callable(found, name, where)
    if not (hasattr(found, "read") or hasattr(found, "load")):
        raise UserError(f"{where}: defines no read(...); write one, or name a function of it: {path.name}:rings")
    if not hasattr(found, "Config"):
        return _of_callable(getattr(found, "read", None), name, where)
    if not (isinstance(found.Config, type) and issubclass(found.Config, TaskDataConfig)):
        raise UserError(f"{where}: its Config is no subclass of harness.data.DataConfig")
    own = {each: getattr(found, each) for each in ("check", "read", "load", "shape") if hasattr(found, each)}
    return SimpleNamespace(**{"check": _nothing_to_check, **own, "Config": named(found.Config, name)})


def _nothing_to_check(config: TaskDataConfig) -> None:
    pass


def _of_callable(target: Any, name: str, where: str) -> Any:
    if not callable(target):
        raise UserError(f"{where}: {target!r} is no function, and load(config, seed, device) wants a Config")

    def read(config: Any) -> "Raw":
        return _read(target, where, config)

    @cache  # all of it is read for this
    def shape_as(settings: str) -> tuple[tuple[int, ...], int]:
        raw = read(wanted.model_validate_json(settings))
        return tuple(raw.train.images.shape[1:]), len(raw.class_names)

    def shape(config: Any) -> tuple[tuple[int, ...], int]:
        return shape_as(config.model_dump_json())

    wanted = from_signature(target, DataConfig, name, where, ROOT)
    return SimpleNamespace(Config=wanted, check=_nothing_to_check, read=read, shape=shape)


def _read(target: Any, where: str, config: Any) -> "Raw":
    from harness.data._images import resized
    from harness.data.base import Raw, Split

    settings = {each.name: getattr(config, each.name) for each in settings_of(target, ROOT)}
    raw = target(**({ROOT: config.root} if takes(target, ROOT) else {}), **settings)
    if not isinstance(raw, Raw):
        raise UserError(f"{where}: gave {type(raw).__name__}, not a harness.data.Raw")
    if config.resize is None:
        return raw
    train, test, val = (
        None if each is None else Split(resized(each.images, config.resize), each.labels)
        for each in (raw.train, raw.test, raw.val)
    )
    assert train is not None, "Raw has both"
    assert test is not None, "Raw has both"
    return Raw(train, test, val, raw.class_names, raw.max_value)
