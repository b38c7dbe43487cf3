"""Sort the finals of a sweep into groups (one model on one data set) and series (one line of a figure)."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import pandas as pd

from analysis.protocol import refuse_mixed_protocols, refuse_unequal_seeds, resolved_notes
from analysis.statistics import t_interval
from analysis.sweep import Cell, Final, Missing, Sweep, Trial
from harness.core.bits import FLOAT
from harness.records.schema import watched_at

#: Grid keys that split a sweep into groups rather than into series.
_GROUPING = re.compile(r"(model|data)(\.|$)")


@dataclass(frozen=True)
class Series:
    """The finals of a cell under one way of deployment."""

    method: str
    target: int | None
    cell: Cell
    finals: tuple[Final, ...]
    deploy: str
    scale: str
    suffix: str = ""
    deploy_suffix: str = ""
    #: False for all but the first way of deployment: they share their training.
    first: bool = True

    @property
    def watched(self) -> tuple[int, ...]:
        """The bit-widths at which its oscillations were counted, the run's own first."""
        config = self.finals[0].config
        own = config.get("watch_bit") or self.target
        return () if own is None else (own, *(config.get("also_watch") or ()))

    def metric(self, name: str, bits: int) -> str:
        """The name under which it reports an oscillation metric of a bit-width that it was watched at."""
        return name if bits == self.watched[0] else watched_at(name, bits)

    @property
    def training_label(self) -> str:
        """`oscillation@2`, `float`: what was trained."""
        at = "" if self.target is None else f"@{self.target}"
        return f"{self.method}{at}{self.suffix}"

    @property
    def label(self) -> str:
        """What was trained and, where a run was deployed in several ways, how."""
        return self.training_label + self.deploy_suffix

    @property
    def name(self) -> str:
        """The label less the target, for a panel that names the target itself."""
        return self.method + self.suffix + self.deploy_suffix


@dataclass(frozen=True)
class Group:
    """What one figure shows: all series of one model on one data set."""

    sweep: str
    model: str
    data: str
    series: tuple[Series, ...]
    missing: tuple[Missing, ...]
    corrupt: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    trials: tuple[Trial, ...] = field(default=(), repr=False)
    objective: tuple[str, ...] = ("target",)
    settings: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        """Model and data, and what the sweep file says beside them (`label`)."""
        label = (self.settings or {}).get("label")
        return f"{self.model} on {self.data}" + (f" ({label})" if label else "")

    @property
    def file_suffix(self) -> str:
        return "-" + re.sub(r"[^A-Za-z0-9._=]+", "-", f"{self.model}-{self.data}").strip("-")

    @property
    def finals(self) -> list[Final]:
        return list({final.run_id: final for one in self.series for final in one.finals}.values())

    def bits(self) -> list[str]:
        """Deployment bit-widths in order, float last."""
        found = {str(row["bits"]) for final in self.finals for row in _test_rows(final)}
        return sorted(found, key=lambda bits: (bits == FLOAT, bits.zfill(2)))

    def targets(self) -> list[int]:
        return sorted({one.target for one in self.series if one.target is not None})


def make_groups(sweep: Sweep) -> list[Group]:
    """The groups of a sweep, refusing to put unlike runs side by side."""
    refuse_unequal_seeds(sweep.cells)
    by_key: dict[tuple[str, str], list[Final]] = {}
    for final in sweep.finals:
        by_key.setdefault(_group_key(final), []).append(final)
    groups = []
    short = [_shortest(names) for names in zip(*by_key, strict=True)]
    for key, finals in by_key.items():
        model, data = (names[name] for names, name in zip(short, key, strict=True))
        data = _named_by_folder(data, finals)
        refuse_mixed_protocols(f"sweep {sweep.name!r}, {model} on {data}", finals, sweep.cells)
        notes = sweep.notes + resolved_notes(finals)
        series = _make_series(finals, notes)
        groups.append(
            Group(
                sweep.name, model, data, series, tuple(sweep.missing), tuple(sweep.corrupt), tuple(notes),
                trials=tuple(trial for trial in sweep.trials if _group_key(trial) == key),
                objective=sweep.objective, settings=sweep.settings,
            )
        )  # fmt: skip
    return groups


def summarize(group: Group) -> pd.DataFrame:
    """Mean test accuracy in % over seeds of each series at each bit-width; `n` 0 where there is none.

    An interval may reach past what is possible; `low` and `high`, which are drawn, stop at 0 and 100.
    """
    lines = []
    for one in group.series:
        for bits in group.bits():
            values = [100 * value for value in _accuracies(one, bits)]
            interval = t_interval(values)
            lines.append(
                {
                    "series": one.label, "method": one.name, "target_bit": one.target, "bits": bits,
                    "n": interval.n, "n_planned": len(one.cell.seeds), "mean": interval.mean,
                    "half_width": interval.half_width,
                    "low": max(interval.low, 0.0), "high": min(interval.high, 100.0),
                    "lowest": min(values, default=math.nan), "highest": max(values, default=math.nan),
                }
            )  # fmt: skip
    frame = pd.DataFrame(lines)
    frame[["low", "high"]] = frame[["low", "high"]].where(frame["n"] > 1)
    frame["target_bit"] = frame["target_bit"].astype("Int64")
    return frame


def _accuracies(one: Series, bits: str) -> list[float]:
    return [
        row["accuracy"]
        for final in one.finals
        for row in _test_rows(final)
        if (str(row["bits"]), row["deploy"], row["scale"]) == (bits, one.deploy, one.scale)
    ]


def _test_rows(final: Final) -> list[dict[str, Any]]:
    return [row for row in final.record["rows"] if row["split"] == "test"]


def _group_key(run: Final | Trial) -> tuple[str, str]:
    def name(section: str) -> str:
        extras = [
            f" {key.removeprefix(section + '.')}={value}"
            for key, value in run.cell.grid.items()
            if key.startswith(f"{section}.") and key != f"{section}.name"
        ]
        return str(run.config[section]["name"]) + "".join(extras)

    return name("model"), name("data")


def _named_by_folder(data: str, finals: Sequence[Final]) -> str:
    """`cifar10 images` for class folders of images that all runs read from a folder of that name."""
    folders = {PurePath(final.config["data"].get("root") or "").name for final in finals}
    (folder, *others) = sorted(folders)
    return data.replace("image_folder", f"{folder} images", 1) if folder and not others else data


def _shortest(names: Sequence[str]) -> dict[str, str]:
    """`mlp5 width=128` is `mlp5` where the sweep has no other mlp5."""
    bare = {name: name.partition(" ")[0] for name in names}
    alike = Counter(bare.values())
    return {name: short if alike[short] == 1 else name for name, short in bare.items()}


def _make_series(finals: Sequence[Final], notes: list[str]) -> tuple[Series, ...]:
    by_cell: dict[str, list[Final]] = {}
    for final in finals:
        by_cell.setdefault(final.cell.id, []).append(final)
    trained: list[Series] = []
    for own in by_cell.values():
        one = _trained(own)
        twin = next((i for i, other in enumerate(trained) if _share_runs(one, other)), None)
        if twin is None:
            trained.append(one)
        else:  # counting a run once for each cell that resolves to it would narrow the interval
            notes.append(f"cell {one.cell.id} shares its runs with {trained[twin].cell.id}; drawn once")
            trained[twin] = _merged(trained[twin], one)
    return tuple(variant for one in _distinguished(trained) for variant in _deployed(one))


def _trained(finals: Sequence[Final]) -> Series:
    config = finals[0].config
    return Series(method_of(config), config.get("target_bit"), finals[0].cell, tuple(finals), "", "")


def method_of(config: dict[str, Any]) -> str:
    """`float`, `ste`, `lsq+oscillation`: the methods of a run as one word."""
    names = [method["name"] for method in config["methods"]] or ["none"]
    return FLOAT if names == ["none"] and config.get("target_bit") is None else "+".join(names)


def _share_runs(one: Series, other: Series) -> bool:
    return bool({final.run_id for final in one.finals} & {final.run_id for final in other.finals})


def _merged(one: Series, other: Series) -> Series:
    by_seed = {final.seed: final for final in (*other.finals, *one.finals)}
    return replace(one, finals=tuple(by_seed[seed] for seed in sorted(by_seed)))


def _distinguished(trained: list[Series]) -> list[Series]:
    """Cells with one label that are not the same runs get what tells them apart in the grid, or their id."""
    result = []
    for one in trained:
        alike = [other.cell.grid for other in trained if other.training_label == one.training_label]
        if len(alike) > 1:
            keys = dict.fromkeys(key for grid in alike for key in grid if not _GROUPING.match(key))
            varying = [key for key in keys if len({repr(grid.get(key)) for grid in alike}) > 1]
            unique = len({repr([grid.get(key) for key in varying]) for grid in alike}) == len(alike)
            told = [f"{key.rpartition('.')[2]}={one.cell.grid.get(key)}" for key in varying]
            one = replace(one, suffix=f" ({', '.join(told) if unique else one.cell.id})")
        result.append(one)
    return result


def _deployed(one: Series) -> list[Series]:
    """One series for each way in which the runs were deployed."""
    ways = list(dict.fromkeys((r["deploy"], r["scale"]) for f in one.finals for r in _test_rows(f)))
    varying = [len({way[i] for way in ways}) > 1 for i in (0, 1)]
    return [
        replace(
            one,
            deploy=deploy,
            scale=scale,
            deploy_suffix="".join(f", {part}" for part, vary in zip(way, varying) if vary),
            first=way == ways[0],
        )
        for way in ways
        for deploy, scale in [way]
    ]
