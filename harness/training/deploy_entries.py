"""Entries of `deploy.methods` and `monitor.deploy`: a deploy method by name, or with settings. Free of torch."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from harness.core import outside, registry
from harness.core.errors import UserError, unknown

#: Key of an entry of `deploy.methods`: what its rows have as their deploy method.
AS = "as"
_NAME = re.compile(r"[A-Za-z0-9_]{1,40}")
#: A name, or a section with settings.
Entry = str | dict[str, Any]


def deployable(value: dict[str, Any]) -> dict[str, Any]:
    """Check the name, and that round-to-nearest has no settings; a method's own need its file (`complete`)."""
    name, settings = value.get("name"), sorted({*value} - {"name"})
    if name == "rtn" and settings:
        raise ValueError(f"rtn (round-to-nearest) has no settings, got {', '.join(settings)}")
    if not isinstance(name, str):
        raise unknown("deploy method", name, registry.deploy_methods())
    return {**value, "name": registry.check_deploy(name)}


def _known(name: Any) -> str:
    """The name of a method, or rtn. Raises UserError for any other."""
    ours = ["rtn", *registry.names("method")]
    if name not in ours and not (outside.is_reference(str(name)) or name in registry.known("method")):
        raise unknown("deploy method", name, ["rtn", *registry.known("method")])
    return name if name in ours else registry.check("method", str(name))


def _checked(value: Any) -> Any:
    legal = ["rtn", *registry.names("method")]
    if not isinstance(value, Mapping) or {*value} == {"name"}:
        return _known(value["name"] if isinstance(value, Mapping) else value)
    name = deployable(dict(value) if value.get("name") == "rtn" else settings_of(dict(value)))["name"]
    own = value.get(AS, name)
    if own != name and (not isinstance(own, str) or not _NAME.fullmatch(own) or own in legal):
        raise ValueError(
            f"{AS}: {own!r} is no name for rows of {registry.shown(name)} (legal: up to 40 letters, digits and _; no "
            "other method's name)"
        )
    return {**value, "name": name}


#: An entry of `deploy.methods`: `gptq`, or `{name: gptq, as: gptq_ordered, act_order: true}`.
DeployEntry = Annotated[Entry, BeforeValidator(_checked)]


def name_in_rows(entry: Entry) -> str:
    """What rows have for an entry as their deploy method."""
    return entry if isinstance(entry, str) else str(entry.get(AS, entry["name"]))


def settings_of(entry: Entry) -> dict[str, Any]:
    """The method's name, and the settings that are given."""
    return {"name": entry} if isinstance(entry, str) else {key: entry[key] for key in entry if key != AS}


def named_in(configs: Iterable[Mapping[str, Any]], name: str) -> str:
    """What rows have for a deploy method that a user names: a method, or the name of an entry (`as`) of a run.

    configs: plain configurations of runs, looked at only for what is no method. Raises UserError for other names.
    """
    try:
        return registry.check_deploy(name)
    except UserError:
        own = {name_in_rows(entry) for config in configs for entry in config["deploy"].get("methods", ())}
        if name in own:
            return name
        if outside.is_reference(name) or name in registry.known("method"):
            raise
    raise unknown("deploy method", name, {*registry.deploy_methods(), *own})


def method_of(config: Mapping[str, Any], deploy: str) -> str:
    """The method of rows of a run, by what they have as their deploy method."""
    entries = {name_in_rows(entry): entry for entry in config["deploy"].get("methods", ())}
    return str(settings_of(entries.get(deploy, deploy))["name"])


def refuse_equal_names(entries: Iterable[Entry]) -> None:
    """Raise ValueError where rows of different entries would have one name."""
    plain: list[Entry] = [*{each for each in entries if isinstance(each, str)}]
    different = [*plain, *(each for each in entries if isinstance(each, dict))]
    times = Counter(name_in_rows(each) for each in different)
    for name in (name for name, count in times.items() if count > 1):
        raise ValueError(
            f"several entries would have rows of the name {name}; give them names of their own ({AS}: ...)"
        )


def with_all_settings(
    entries: Iterable[Entry], complete: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> tuple[Entry, ...]:
    """The entries; those that give settings have all of them. complete: gives all of a method's, from some."""
    return tuple(
        each if isinstance(each, str) else {AS: name_in_rows(each), **complete(settings_of(each))} for each in entries
    )
