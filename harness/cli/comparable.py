"""Whether runs of a bench will be comparable with the records of others: checked before a run is made."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness import NUMERICS_VERSION
from harness.core.dotted import flatten
from harness.core.outside import shown
from harness.records.schema import fields_of, scored
from harness.sweep.cells import Cell
from harness.sweep.config import SweepConfig
from harness.training.config import RunConfig, complete_but_methods, component

if TYPE_CHECKING:  # `analysis` reads records by way of this package
    from analysis.results import Final, SweepResults
    from analysis.series import Group

#: What stands for the id of a run in the messages of a refusal.
_NO_RUN = "to be made"


def groups_of(against: Path) -> "list[Group]":
    """The groups of the records. against: their folder. Raises UserError where there is nothing to compare with."""
    from analysis.disk_source import load_results
    from analysis.grouping import make_groups

    return make_groups(load_results(against.absolute().parent, against.absolute().name))


def ahead(against: Path, groups: "Sequence[Group]", spec: SweepConfig, cells: Sequence[Cell], read: bool) -> str:
    """A line that says that the runs will be comparable. Raises UserError that says what differs.

    groups: of the records. read: whether to read the data too, which a dry run does not.
    """
    from analysis.grouping import make_groups
    from harness.cli.beside import paired, refuse_unlike

    for one, other in paired(make_groups(_planned(spec, cells, _digest_of if read else None)), groups, against):
        if not read:
            digest = other.finals[0].record["provenance"].get("data_digest")
            for final in one.finals:
                final.record["provenance"]["data_digest"] = digest
        refuse_unlike(one, other)
    what = "settings and data" if read else "settings"
    later = "" if read else "; data are compared once the bench starts"
    return f"comparable with the records in {against}: the same {what}{later}{_numerics(groups)}"


def _numerics(groups: "Sequence[Group]") -> str:
    found = {str(final.record["provenance"].get("numerics_version")) for group in groups for final in group.finals}
    if found == {str(NUMERICS_VERSION)}:
        return ""
    return (
        f"; the records have numerics version {', '.join(sorted(found))}, runs from now on {NUMERICS_VERSION}: "
        "compared all the same, and the output says so"
    )


def _planned(spec: SweepConfig, cells: Sequence[Cell], digest_of: Callable[[RunConfig], str] | None) -> "SweepResults":
    """The sweep as if one final of each cell were there, of which only the settings mean something."""
    from analysis.results import SweepResults

    finals = [_final(spec, cell, digest_of) for cell in cells]
    return SweepResults(spec.name, [final.cell for final in finals], finals=finals)


def _final(spec: SweepConfig, cell: Cell, digest_of: Callable[[RunConfig], str] | None) -> "Final":
    from analysis import results

    seeds = tuple(spec.final.seeds)
    params = {name: next(iter(space.points())) for name, space in cell.search.items()}
    config = cell.config(params, seeds[0], "final", complete_but_methods)
    rows = [
        {"split": "test", "deploy": "rtn", "scale": config.deploy.scale, "bits": point.in_row, **fields_of(point)}
        | scored(config.task.metric, 0.0)
        for point in config.evaluated_points
    ]
    provenance = {"data_digest": digest_of and digest_of(config), "numerics_version": NUMERICS_VERSION}
    record = {"config": config.model_dump(mode="json"), "provenance": provenance, "rows": rows}
    methods = tuple(shown(entry["name"]) for entry in cell.raw["methods"])
    grid = dict(flatten(dict(cell.grid)))
    planned = results.Cell(cell.id, methods, grid, seeds, {"params": params}, {}, (), spec.tune.trials)
    return results.Final(planned, seeds[0], _NO_RUN, record, lambda: ({}, []))


def _digest_of(config: RunConfig) -> str:
    from harness import data

    return str(data.prepare(component("data set", config.data)).digest)
