"""Refuse to compare what was not made alike."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from analysis.results import Cell, Final
from harness.core.config_base import NOT_IDENTITY
from harness.core.dotted import flatten
from harness.core.errors import UserError
from harness.data._config import DataConfig, FilesConfig
from harness.records.schema import LAYERS, point

_SHOWN = 5
#: Settings of data that change no number, such as where pixels are kept. The root names what folders of images show.
_NO_TRAIT = {
    f"data.{name}"
    for section in (DataConfig, FilesConfig)
    for name, field in section.model_fields.items()
    if field.json_schema_extra == NOT_IDENTITY and name != "root"
}


def refuse_unequal_seeds(cells: Sequence[Cell]) -> None:
    """Every cell must promise the same seeds; seeds that are merely not run yet are another matter."""
    usual = Counter(tuple(sorted(cell.seeds)) for cell in cells).most_common(1)[0][0]
    odd = [f"{cell.id} has {sorted(cell.seeds)}" for cell in cells if tuple(sorted(cell.seeds)) != usual]
    if odd:
        raise UserError(
            f"cells with different seeds cannot be compared: {'; '.join(odd[:_SHOWN])}; "
            f"the other cells have {list(usual)}"
        )


def refuse_mixed_protocols(title: str, finals: Sequence[Final], cells: Sequence[Cell]) -> None:
    """The finals of a figure must share model, data, training and numerics, but for what the sweep varies.

    A setting that the version of a record did not have counts as its default.
    """
    try:
        _refuse_mixed(title, finals, cells)
    except UserError:
        if (completed := _with_defaults(finals)) is None:
            raise
    else:
        return
    _refuse_mixed(title, completed, cells)


def _with_defaults(finals: Sequence[Final]) -> list[Final] | None:
    """The finals with the settings of this version, for a check alone; None where that is not known of all of them."""
    from harness.training.config import complete_but_methods

    found = []
    for final in finals:
        try:
            config = complete_but_methods(dict(final.config)).model_dump(mode="json")
        except UserError:  # of components or settings that are not here
            return None
        found.append(replace(final, record={**final.record, "config": {**config, "methods": final.config["methods"]}}))
    return found


def _refuse_mixed(title: str, finals: Sequence[Final], cells: Sequence[Cell]) -> None:
    searched = searched_keys(cells)
    _refuse(title, finals, lambda final: _between_cells(final, searched))
    for cell_id in dict.fromkeys(final.cell.id for final in finals):
        own = [final for final in finals if final.cell.id == cell_id]
        _refuse(f"{title}, cell {cell_id}", own, _within_cell)
    further = [final for final in finals if any(not point(row).weights_only for row in final.rows("test"))]
    _refuse(title, further, lambda final: _how_activations_are_rounded(final, searched))
    for name in dict.fromkeys(row["bits"] for final in finals for row in final.rows("test") if LAYERS in row):
        having = [final for final in finals if _layers(final, name)]
        _refuse(title, having, lambda final, name=name: {f"point {name}": _layers(final, name)})


def searched_keys(cells: Sequence[Cell]) -> set[str]:
    """What the sweep varies on purpose, so that one cell may tune a setting that another leaves alone."""
    keys: set[str] = set()
    for cell in cells:
        keys |= set(cell.grid) | set((cell.chosen or {}).get("params") or {})
    return keys | {f"train.{key}" for key in keys}


def resolved_notes(finals: Iterable[Final]) -> list[str]:
    """Differences that do not forbid a comparison but that a reader should know of."""
    values: dict[str, Counter[str]] = {}
    for final in finals:
        for key, value in flatten(final.record.get("resolved") or {}):
            values.setdefault(f"resolved.{key}", Counter())[json.dumps(value)] += 1
    return [
        f"{key} differs among the finals: "
        + ", ".join(f"{value} ({count} runs)" for value, count in sorted(counts.items()))
        for key, counts in sorted(values.items())
        if 1 < len(counts) <= _SHOWN
    ]


def _between_cells(final: Final, searched: set[str]) -> dict[str, Any]:
    config, provenance = final.config, final.record["provenance"]
    sections = {name: config[name] for name in ("train", "model", "data")}
    if config.get("pretrain"):
        sections["pretrain"] = config["pretrain"]
    settings = flatten({**sections, "deploy": {"scale": config["deploy"].get("scale")}})
    traits = {key: value for key, value in settings if key not in searched | _NO_TRAIT and not _is_parent(value)}
    traits["data digest"] = provenance.get("data_digest")
    traits["numerics version"] = provenance.get("numerics_version")
    return traits


def _within_cell(final: Final) -> dict[str, Any]:
    names = ("target_bit", "watch_bit", "methods", "train", "pretrain", "model", "data")
    settings = flatten({name: final.config.get(name) for name in names})
    return {key: value for key, value in settings if key not in _NO_TRAIT and not _is_parent(value)}


def _how_activations_are_rounded(final: Final, searched: set[str]) -> dict[str, Any]:
    """Of finals that have such rows alone: others, of earlier versions too, need not have the settings."""
    settings = flatten({"activations": final.config.get("activations") or {}})
    return {key: value for key, value in settings if key not in searched}


def _layers(final: Final, name: str) -> Any:
    """The points by layer that a final has under a name; None for none."""
    return next((row[LAYERS] for row in final.rows("test") if LAYERS in row and row["bits"] == name), None)


def _is_parent(value: Any) -> bool:
    """`run:<id>`, the run to start from, is another one for every seed by its nature."""
    return isinstance(value, str) and value.startswith("run:")


def _refuse(title: str, finals: Sequence[Final], traits_of: Any) -> None:
    if not finals:
        return
    first = finals[0]
    reference = traits_of(first)
    different: dict[str, tuple[Any, Any, Final]] = {}
    for final in finals[1:]:
        traits = traits_of(final)
        for key in reference.keys() | traits.keys():
            if key not in different and reference.get(key) != traits.get(key):
                different[key] = reference.get(key), traits.get(key), final
    if different:
        lines, named = [], None
        for key, (one, other, final) in sorted(different.items(), key=lambda item: item[0]):
            runs = (
                f" in run {each.run_id} ({each.cell.id})" if named != final.run_id else "" for each in (first, final)
            )
            lines.append(f"{key} is {one!r}{next(runs)} but {other!r}{next(runs)}")
            named = final.run_id
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        listed = "; ".join(lines[:_SHOWN]) + more
        raise UserError(f"{title}: finals of different protocols cannot be compared: {listed}")
