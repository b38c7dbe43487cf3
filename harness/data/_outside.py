"""Data sets from outside: a file as those in this folder, or a callable that gives `Raw`."""

from collections.abc import Callable, Mapping
from functools import cache, wraps
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.core import outside, registry
from harness.core.errors import BrokenError, MissingDataError, UserError
from harness.core.importing import why
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
    there = [each for each in ("check", "read", "load", "shape") if hasattr(found, each)]
    own = {each: _guarded(getattr(found, each), where) for each in there}
    wanted = named(found.Config, name)
    shape = _shape_by_reading(own, wanted)
    return SimpleNamespace(**{"check": _nothing_to_check, "shape": shape, **own, "Config": wanted})


def _guarded(function: Callable[..., Any], where: str) -> Callable[..., Any]:
    """A function of the user's whose errors name its file and line. Raises BrokenError; MissingDataError for files."""

    @wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        try:
            return function(*given, **named)
        except UserError:
            raise
        except Exception as error:  # the user's code may fail in any way
            kind = MissingDataError if isinstance(error, OSError) else BrokenError
            raise kind(f"{where}: {why(error)}") from error

    return called


def _shape_by_reading(own: Mapping[str, Callable[..., Any]], wanted: type[TaskDataConfig]) -> Callable[..., Any]:
    """(C, H, W) and classes, or what a task's data says, of a data set that must be read for it."""

    @cache
    def shape_as(settings: str) -> tuple[tuple[int, ...], int]:
        config = wanted.model_validate_json(settings)
        if "check" in own:
            own["check"](config)
        if "load" in own:
            loaded = own["load"](config, 0, "cpu")
            return tuple(loaded.input_shape), loaded.outputs
        raw = own["read"](config)
        raw.check_labels(config.name)  # so that a launch, which asks for the shape, refuses them
        channels, height, width = raw.train.images.shape[1:]
        crop = config.evaluation_crop  # type: ignore[attr-defined]
        return (channels, crop or height, crop or width), len(raw.class_names)

    return lambda config: shape_as(config.model_dump_json())


def _nothing_to_check(config: TaskDataConfig) -> None:
    pass


def _of_callable(target: Any, name: str, where: str) -> Any:
    if not callable(target):
        raise UserError(f"{where}: {target!r} is no function, and load(config, seed, device) wants a Config")

    def read(config: Any) -> "Raw":
        return _read(target, where, config)

    wanted, guarded = from_signature(target, DataConfig, name, where, ROOT), _guarded(read, where)
    shape = _shape_by_reading({"read": guarded}, wanted)
    return SimpleNamespace(Config=wanted, check=_nothing_to_check, read=guarded, shape=shape)


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
