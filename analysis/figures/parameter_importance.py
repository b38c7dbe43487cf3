"""Which searched parameter decides: PED-ANOVA importances of each cell, on a study rebuilt from the records."""

from typing import Any

import pandas as pd

from analysis import style
from analysis.chosen import search_spaces
from analysis.escape import in_figure
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.frames import objective_value
from analysis.marks import colours_of
from analysis.results import Trial
from analysis.series import Group
from harness.sweep import objective

NAME, ORDER, SCOPE = "parameter_importance", 90, Scope.GROUP
TITLE = "Importance of the searched parameters"
CAPTION = (
    "How much of what separates a cell's best tuning trials from the others each parameter explains: PED-ANOVA "
    "(Watanabe et al. 2023) as in Optuna, on all trials of the cell. A cell's importances add up to 1."
)

#: Fewer trials than this leave PED-ANOVA's best tenth without a single one.
_LEAST_TRIALS = 10
#: Bars have no marker to tell them apart without colour.
_HATCHES = ("", "////", "....", "xxxx", "----")


def draw(group: Group) -> Drawing:
    """A bar for each cell and parameter; cells with one parameter, or with few trials, are left out and noted."""
    style.use_style()
    frame, notes = _importances(group)
    if frame.empty:
        raise NothingToDraw("; ".join(notes) or "no tuning trials")
    labels = list(dict.fromkeys(frame["cell"]))
    parameters = list(dict.fromkeys(frame["parameter"]))
    figure, ((axes,),) = style.panels(1, 1, 0.35 + 0.17 * len(frame), len(parameters))
    colours = colours_of(parameters)
    handles = {}
    place = 0.0
    ticks = []
    for label in labels:
        own = frame[frame["cell"] == label]
        ticks.append(place + (len(own) - 1) / 2)
        for _, line in own.iterrows():
            name = line["parameter"]
            handles[name] = axes.barh(
                place,
                line["importance"],
                0.8,
                color=colours[name],
                edgecolor="black",
                linewidth=0.4,
                hatch=_HATCHES[parameters.index(name) % len(_HATCHES)],
            )
            place += 1
        place += 0.7
    axes.set_yticks(ticks, list(map(in_figure, labels)))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(axis="x")
    axes.grid(False, axis="y")
    axes.set_xlabel("Importance (share, PED-ANOVA)")
    trials = " to ".join(str(n) for n in sorted({frame["trials"].min(), frame["trials"].max()}))
    title = f"{group.title}: {trials} trials a cell"
    style.legend_of(figure, [handles[name] for name in parameters], parameters, title)
    return Drawing(figure, frame, tuple(notes))


def _importances(group: Group) -> tuple[pd.DataFrame, list[str]]:
    by_cell: dict[str, list[Trial]] = {}
    for trial in group.trials:
        by_cell.setdefault(trial.cell.id, []).append(trial)
    spaces = search_spaces(group.settings)
    lines, alone, few, unknown, untold = [], 0, 0, 0, 0
    for cell, trials in by_cell.items():
        if len(trials[0].params) < 2:
            alone += 1
        elif len(trials) < _LEAST_TRIALS:
            few += 1
        elif cell not in spaces or set(spaces[cell]) != set(trials[0].params):
            unknown += 1
        elif objective_value(trials[0], group.objective[0]) is None:
            untold += 1
        else:
            for parameter, importance in _ped_anova(trials, spaces[cell], group.objective[0]).items():
                lines.append({"cell": cell, "trials": len(trials), "parameter": parameter, "importance": importance})
    why = {
        "with one searched parameter, whose importance is 1 by definition": alone,
        f"with fewer than {_LEAST_TRIALS} finished trials": few,
        "whose search space is not in sweep.json": unknown,
        "whose objective is in no row": untold,
    }
    notes = [f"left out: {n} {'cell' if n == 1 else 'cells'} {reason}" for reason, n in why.items() if n]
    return pd.DataFrame(lines), notes


def _ped_anova(trials: list[Trial], space: Any, name: str) -> dict[str, float]:
    """Importances of the first objective. Raises no more than Optuna does."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    from analysis.measure import metric_of
    from harness.sweep.samplers import distribution

    distributions = {parameter: distribution(dimension) for parameter, dimension in space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=objective.direction(name, metric_of(trials[0].config)))
    for trial in trials:
        value = objective_value(trial, name)
        assert value is not None, "the caller leaves such cells out"
        study.add_trial(optuna.trial.create_trial(values=[value], params=trial.params, distributions=distributions))
    return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
