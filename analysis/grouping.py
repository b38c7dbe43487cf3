"""Sort the finals of a sweep into groups (one model on one data set) and series (one line of a figure)."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import PurePath
from statistics import fmean

from analysis import chosen
from analysis.measure import baseline_scores, shown, task_baseline
from analysis.protocol import refuse_mixed_protocols, refuse_unequal_seeds, resolved_notes
from analysis.results import Final, SweepResults, Trial
from analysis.series import Group, Series, method_of
from harness.core import outside
from harness.core.bits import FLOAT

#: Grid keys that split a sweep into groups rather than into series.
_GROUPING = re.compile(r"(model|data)(\.|$)")
#: The same where every cell has the key: each method is there with each value, and is to be compared under that one.
_IN_EVERY_CELL = "quantizer."


def make_groups(sweep: SweepResults) -> list[Group]:
    """The groups of a sweep, refusing to put unlike runs side by side."""
    refuse_unequal_seeds(sweep.cells)
    by_key: dict[tuple[str, str], list[Final]] = {}
    shared = _in_every_cell(sweep)
    for final in sweep.finals:
        by_key.setdefault(_group_key(final, shared), []).append(final)
    groups, doubts = [], chosen.doubts(sweep)
    short = [_shortest(names) for names in zip(*by_key, strict=True)]
    for key, finals in by_key.items():
        model, data = (names[name] for names, name in zip(short, key, strict=True))
        data = _named_by_folder(data, finals)
        refuse_mixed_protocols(f"sweep {sweep.name!r}, {model} on {data}", finals, sweep.cells)
        notes = sweep.notes + resolved_notes(finals)
        series = tuple(replace(one, doubts=doubts.get(one.cell.id, ())) for one in _make_series(finals, notes))
        trials = tuple(trial for trial in sweep.trials if _group_key(trial, shared) == key)
        cells = {final.cell.id for final in finals} | {trial.cell.id for trial in trials}
        group = Group(
            sweep.name, model, data, series, tuple(sweep.missing), tuple(sweep.corrupt), tuple(notes),
            trials=trials, pruned=tuple(each for each in sweep.pruned if each.cell in cells),
            objective=sweep.objective, settings=sweep.settings,
        )  # fmt: skip
        doubt = _behind_what_needs_no_training(group)
        groups.append(replace(group, doubt=doubt, notes=(*group.notes, *filter(None, [doubt]))))
    return groups


def _behind_what_needs_no_training(group: Group) -> str:
    """What is to be said where no training is better in float, with all seeds, than the task's baseline."""
    found, metric = baseline_scores(group.finals[0].record), group.metric
    if not found or FLOAT not in found[1]:
        return ""
    sign, (name, scores) = 1 if metric.higher_is_better else -1, found
    by_training = [[shown(metric, score) for score in own] for one in group.series if (own := one.scores(FLOAT))]
    if not by_training or any(all(sign * (one - scores[FLOAT]) > 0 for one in own) for own in by_training):
        return ""
    best = max(map(fmean, by_training), key=lambda mean: sign * mean)
    scored = f"{best:.{metric.digits}f} in the mean against {scores[FLOAT]:.{metric.digits}f} {metric.unit}".rstrip()
    text = f"no training of {group.title} is better in float with every seed than {name}, which needs no training"
    return f"{text} ({scored}): they are hardly trained, and what rounding costs them says little"


def _in_every_cell(sweep: SweepResults) -> set[str]:
    """The settings of the quantizer that multiply all cells of a sweep."""
    grids = [{key for key in cell.grid if key.startswith(_IN_EVERY_CELL)} for cell in sweep.cells]
    return set.intersection(*grids) if grids else set()


def _group_key(run: Final | Trial, shared: Collection[str]) -> tuple[str, str]:
    """Model, with the `shared` settings, and data set, as they are named."""

    def name(section: str) -> str:
        extras = [
            f" {key.partition('.')[2]}={value}"
            for key, value in run.cell.grid.items()
            if (key.startswith(f"{section}.") and key != f"{section}.name") or (section == "model" and key in shared)
        ]
        return outside.shown(str(run.config[section]["name"])) + "".join(extras)

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
        config, runs = own[0].config, {final.run_id for final in own}
        one = Series(method_of(config), config.get("target_bit"), own[0].cell, tuple(own), "", "")
        twin = next((i for i, other in enumerate(trained) if any(f.run_id in runs for f in other.finals)), None)
        if twin is None:
            trained.append(one)
        else:  # counting a run once for each cell that resolves to it would narrow the interval
            notes.append(f"cell {one.cell.id} shares its runs with {trained[twin].cell.id}; drawn once")
            trained[twin] = _merged(trained[twin], one)
    return tuple(variant for one in _distinguished(trained) for variant in _deployed(one))


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
            own = [key for key in varying if key in one.cell.grid]  # a cell without the key has the method's default
            told = ", ".join(f"{key.rpartition('.')[2]}={one.cell.grid[key]}" for key in own) if unique else one.cell.id
            one = replace(one, suffix=f" ({told})" if told else "")
        result.append(one)
    return result


def _deployed(one: Series) -> list[Series]:
    """One series for each way in which the runs were deployed."""
    baseline = task_baseline(one.finals[0].config)  # no way of deployment, though it has rows as if it were
    rows = [row for final in one.finals for row in final.rows("test") if row["deploy"] != baseline]
    ways = list(dict.fromkeys((row["deploy"], row["scale"]) for row in rows))
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
