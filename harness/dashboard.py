"""`python -m harness.dashboard SWEEP.yaml [--report]`: a saved view of a sweep's runs on Weights & Biases.

With --report, the tables of its finals as a report: one per sweep, which the same command brings up to date.

Every key comes from harness/records/schema.py. Panels that compare methods group runs by `model/method/w<bit>`. The
view's own list of runs stays ungrouped: scatter plots follow it, and would show only a group's mean.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli import wandb_report, wandb_service
from harness.cli.find import sweep_folder
from harness.core.command import run_command
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint
from harness.core.metric import Metric
from harness.records import schema
from harness.records.sweep_directory import SweepDirectory
from harness.records.wandb_names import check_project, tag_of

if TYPE_CHECKING:  # imported on use: `--help` answers without them
    from harness.sweep.cells import Cell
    from harness.sweep.config import SweepConfig
    from harness.sweep.search_space import Choices, Range

#: Panels side by side, and runs that one shows at most. (W&B's own 10 would be a part of a group, and of its mean.)
COLUMNS, MOST_RUNS = 3, 1000


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.dashboard", description="Save a view of a sweep on W&B.")
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="launched or not; or its folder or name")
    parser.add_argument("--entity", metavar="E", help="user or team on W&B; default: that of the key")
    parser.add_argument("--project", metavar="P", help="default: the sweep's runtime.wandb_project")
    parser.add_argument("--phase", choices=("tune", "final"), help="only these runs, e.g. for means over final seeds")
    parser.add_argument("--report", action="store_true", help="the tables of its finals, as a report")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="of results; default: runs")
    parser.add_argument("--print", action="store_true", help="print what would be sent; needs no network and no key")
    options = parser.parse_args(arguments)
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        raise UserError(
            "the package wandb-workspaces is not there; install it with "
            "pip install 'oscillation-harness[dashboards]', in a clone: pip install -e .[dashboards]"
        ) from None
    facts = _facts(*_read(options.sweep, options.root))
    project = options.project or facts.project
    check_project(project, "--project" if options.project else "runtime.wandb_project")
    entity = (options.entity or "") if options.print else wandb_service.prepare(options.entity, project)
    if options.report:
        shown: Any = wandb_report.results_report(sweep_folder(options.sweep, options.root), entity, project)
    else:
        shown = _workspace(facts, entity, project, options.phase)
    if options.print:
        print(json.dumps(wandb_report.payload(shown) if options.report else payload(shown), indent=1))
        return 0
    try:
        print(wandb_report.save(shown) if options.report else shown.save().url)
    except Exception as error:  # a service may fail in any way
        raise wandb_service.unanswered(error) from None
    return 0


def _read(named: Path, root: Path) -> "tuple[SweepConfig, Sequence[Cell]]":
    """A sweep as it was launched, or as in its file. Raises UserError where launching the file would."""
    from harness.cli import builds
    from harness.sweep.cells import expand
    from harness.sweep.config import read_sweep
    from harness.sweep.queue import load_sweep
    from harness.sweep.samplers import check_algorithms

    if named.is_file() or not (named.is_dir() or SweepDirectory(root / named).sweep.exists()):
        spec = read_sweep(named)
        cells = expand(spec)
        check_algorithms(spec)
        builds.check_builds(spec, cells)
        if not SweepDirectory(root / spec.name).sweep.exists():
            return spec, cells
    launched = load_sweep(sweep_folder(named, root))  # its sweep.json includes what --set replaced
    return launched.spec, launched.cells


@dataclass(frozen=True)
class Facts:
    """What a view depends on. points: deployment points, ascending, then float; epochs: those of each epoch.

    parameters: x of the scatter plots. The strengths of methods among what is searched, else all numbers.
    """

    name: str
    project: str
    points: tuple[AnyPoint, ...]
    epochs: tuple[AnyPoint, ...]
    parameters: "Mapping[str, Choices | Range]"
    runs: int
    metric: Metric

    @property
    def at_target(self) -> str:
        """The summary key of a run's best validation score at its target (float for `none`).

        wandb_mirror.py asks for the maximum or minimum. Other keys have no suffix: once a run has ended, they hold the
        values of its best epoch.
        """
        return f"{schema.MONITOR}.{'max' if self.metric.higher_is_better else 'min'}"


def _facts(spec: "SweepConfig", cells: "Sequence[Cell]") -> Facts:
    from harness.sweep.search_space import corners
    from harness.training.config import parse

    configs = [cell.config(point, spec.tune.seed, "tune", parse) for cell in cells for point in corners(cell.search)]
    points, epochs = (
        list({point.key: point for point in sorted({point for each in found for point in each})}.values())
        for found in ([config.evaluated_points for config in configs], [config.epoch_points for config in configs])
    )
    runs = len(cells) * (spec.tune.trials + len(spec.final.seeds))
    searched = {name: space for cell in cells for name, space in cell.search.items()}
    numeric = {name: space for name, space in searched.items() if {*map(type, space.points())} <= {int, float}}
    parameters = {name: space for name, space in numeric.items() if name.endswith(".strength")} or numeric
    return Facts(
        spec.name, configs[0].runtime.wandb_project, tuple(points), tuple(epochs), parameters, runs, spec.metric
    )


def _workspace(facts: Facts, entity: str, project: str, phase: str | None) -> Any:
    import wandb_workspaces.workspaces as ws

    # By its tag, which every run has. (This package turns the configuration's key "sweep" into W&B's own "Sweep".)
    wanted = [ws.Tags().isin([tag_of(facts.name)]), *([ws.Metric("JobType") == phase] if phase else [])]
    most = min(max(facts.runs, 10), MOST_RUNS)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"oscillation-harness: {facts.name}" + (f" ({phase} runs)" if phase else ""),
        sections=[_section(name, panels) for name, panels in _panels(facts, most).items() if panels],
        settings=ws.WorkspaceSettings(x_axis=schema.EPOCH, max_runs=most),
        runset_settings=ws.RunsetSettings(filters=ws.And(*wanted)),
    )


def _section(name: str, panels: list[Any]) -> Any:
    """A section that is open, and large enough to show its panels on one page."""
    import wandb_workspaces.workspaces as ws

    layout = ws.SectionLayoutSettings(columns=COLUMNS, rows=-(-len(panels) // COLUMNS))
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout)


def _panels(facts: Facts, most: int) -> dict[str, list[Any]]:
    import wandb_workspaces.reports.v2 as wr

    # Means over the runs of a group, and the range from least to greatest.
    grouped: dict[str, Any] = {"groupby": wr.Metric("Group"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    grouped["max_runs_to_show"] = most

    def curve(title: str, key: str) -> Any:
        return wr.LinePlot(title=title, x=schema.EPOCH, y=[key], **grouped)

    metric, name = facts.metric, facts.metric.name
    tests: list[Any] = [schema.score(metric, "test", point) for point in facts.points]
    worst = schema.worst(metric, "val")
    return {
        "Oscillations over training": [
            curve(key, key) for key in (schema.FREQUENCY, schema.OSCILLATING_FRACTION, schema.FLIPS_PER_WEIGHT)
        ],
        "Layers": _layers(grouped),
        f"{name[0].upper()}{name[1:]} at each bit-width": [
            *(curve(f"validation {name}, deployed at: {at}", schema.score(metric, "val", at)) for at in facts.epochs),
            wr.BarPlot(title=f"test {name} (final runs)", metrics=tests, max_bars_to_show=most, **grouped),
        ],
        f"Strength and {name}": _strengths(facts),
        "Across bit-widths": [
            curve(f"validation {name} at the worst bit-width", worst),
            curve(f"validation {name}, best less worst bit-width", schema.spread(metric, "val")),
            wr.ScatterPlot(
                title=f"validation {name} at the target and at the worst bit-width",
                x=wr.SummaryMetric(facts.at_target),
                y=wr.SummaryMetric(worst),
            ),
        ],
    }


def _layers(grouped: Mapping[str, Any]) -> list[Any]:
    """Heat maps and lines. W&B draws a heat map as a line plot of one run; its media panels cannot."""
    import wandb_workspaces.reports.v2 as wr

    any_layer = re.escape(schema.LAYER_PREFIX) + ".*"
    profile, distances = "oscillation frequency by layer", "weights by distance to their threshold, in steps"
    return [
        wr.LinePlot(title=f"{profile} (one run)", x=schema.EPOCH, y=[schema.LAYER_PROFILE]),
        wr.LinePlot(title="oscillation frequency of each layer", x=schema.EPOCH, metric_regex=any_layer, **grouped),
        wr.LinePlot(title=f"{distances} (one run)", x=schema.EPOCH, y=[schema.THRESHOLD_HISTOGRAM]),
    ]


def _strengths(facts: Facts) -> list[Any]:
    """Two scatter plots per parameter: the metric at the target bit-width, and at the worst one."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.ScatterPlot(
            title=f"{parameter} and validation {facts.metric.name} at the {at} bit-width",
            x=wr.Config(schema.config_key(parameter)),
            y=wr.SummaryMetric(key),
            log_x=getattr(space, "log", None),
        )
        for parameter, space in facts.parameters.items()
        for at, key in (("target", facts.at_target), ("worst", schema.worst(facts.metric, "val")))
    ]


def payload(workspace: Any) -> dict[str, Any]:
    """What saving sends, except for the view's id on W&B, which is drawn at random then."""
    view = workspace._to_model()  # there is no public way
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"entityName": view.entity, "projectName": view.project, "displayName": view.display_name, "spec": spec}


if __name__ == "__main__":
    run_command(main)
