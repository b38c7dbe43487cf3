"""A method's own sweep beside the records of others: one table and one set of figures of both."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import UserError

if TYPE_CHECKING:  # `analysis` reads records by way of this package
    from analysis.comparisons import Comparisons
    from analysis.results import Final, SweepResults
    from analysis.series import Group

_NO_COST = (
    "Cost: — for your method. A ratio of step times means something on one machine in one go, and the records are from "
    "elsewhere."
)
_HOW = "Each of your trainings is compared with every other for its target, and with float training."
#: The name of the comparison's files.
NAME = "against"


def beside(own: Path, against: Path, folder: Path, command: str, so_far: bool = False) -> None:
    """Compare a finished sweep's trainings with those of others; prints tables, and writes all to a folder.

    Both are folders of sweeps, or archives. command: by which it is done, for the files. so_far: leave out cells of
    which finals are missing, and the targets that no other cell has. Raises UserError where runs were not made alike.
    """
    import matplotlib

    matplotlib.use("Agg")
    from analysis import chosen, comparisons, ranking, render, report, summary, terminal
    from analysis.disk_source import load_results
    from analysis.grouping import make_groups
    from analysis.output import output

    ours, theirs = (load_results(each.absolute().parent, each.absolute().name) for each in (own, against))
    ours.finals = [_untimed(final) for final in (_whole_cells(ours) if so_far else ours.finals)]
    pairs = paired(make_groups(ours), make_groups(theirs), against)
    if so_far:
        pairs = [(one, _at_targets_of(one, other)) for one, other in pairs]
    groups = [_joined(one, other) for one, other in pairs]
    compared = [_compared(one, other) for one, other in pairs]
    whole = _whole(ours, theirs, groups)
    ends = chosen.frame(ours)
    with output(folder, True) as made:
        sections = render.draw_sweep(groups, made, command, render.chosen_figures([]), True)
        render.write_frames(whole, groups, made, tuned=ours)
        for section, found, group in zip(sections, compared, groups, strict=False):
            stem = f"{NAME}{group.file_suffix}".removesuffix(section.suffix)
            section.compared = replace(found, stem=stem)
        for found, group in zip(compared, groups, strict=True):
            made.csv(f"{NAME}{group.file_suffix}.csv", comparisons.to_frame(found.rows, found.metric))
            made.text(f"{NAME}{group.file_suffix}.md", comparisons.to_markdown(found))
        made.text("report.html", report.report(whole, sections, command, made))
    for section, found in zip(sections, compared, strict=False):
        if section.standings:
            print(ranking.to_text(section.standings), f"\n{_NO_COST}\n", sep="\n")
        print(comparisons.to_text(found), f"\n{found.legend}\n", *summary.sentences(found), "", sep="\n")
    terminal.print_gaps(ours, [*(note for group in groups for note in group.notes), *chosen.note(ends)])
    terminal.print_files(folder, made.names)


def _whole_cells(sweep: "SweepResults") -> "list[Final]":
    """The finals of cells that have them all. Raises UserError where no cell does."""
    lacking = {missing.cell for missing in sweep.missing}
    found = [final for final in sweep.finals if final.cell.id not in lacking]
    if not found:
        planned = sum(len(cell.seeds) for cell in sweep.cells)
        raise UserError(
            f"nothing to compare yet: no cell of {sweep.name} has all of its finals "
            f"({len(sweep.finals)} of {planned} are there)"
        )
    return found


def _at_targets_of(one: "Group", other: "Group") -> "Group":
    """The other group without what was trained for targets that the one does not have."""
    targets = {None, *(series.target for series in one.series)}
    series = tuple(each for each in other.series if each.target in targets)
    cells = {each.cell.id for each in series}
    return replace(
        other,
        series=series,
        trials=tuple(trial for trial in other.trials if trial.cell.id in cells),
        pruned=tuple(each for each in other.pruned if each.cell in cells),
    )


def paired(ours: "Sequence[Group]", theirs: "Sequence[Group]", against: Path) -> "list[tuple[Group, Group]]":
    """Our groups, each with theirs of the same network and data. Raises UserError where there is none."""
    others = {group.title: group for group in theirs}
    pairs = [(group, others[group.title]) for group in ours if group.title in others]
    if not pairs:
        raise UserError(f"nothing in {against} is of {', '.join(group.title for group in ours)}")
    return pairs


def refuse_unlike(one: "Group", other: "Group") -> None:
    """Raise UserError, with what differs, unless the runs of both were made alike but for their numerics."""
    from analysis.protocol import refuse_mixed_protocols, refuse_unequal_seeds

    finals = [*one.finals, *other.finals]
    cells = list({id(final.cell): final.cell for final in finals}.values())
    refuse_unequal_seeds(cells)
    alike = [_of_no_numerics(final) for final in finals]
    refuse_mixed_protocols(f"{one.sweep} and {other.sweep}, {one.title}", alike, cells)


def _joined(one: "Group", other: "Group") -> "Group":
    """The series of both, once their runs are known to have been made alike."""
    refuse_unlike(one, other)
    versions = [sorted({str(_version(final)) for final in group.finals}) for group in (one, other)]
    notes = []
    if versions[0] != versions[1]:
        notes = [
            f"numerics version {', '.join(versions[0])} in {one.sweep}, {', '.join(versions[1])} in {other.sweep}: "
            "they differ in rounding, by which a run may come out differently (harness/__init__.py says what changed)"
        ]
    return replace(
        other,
        sweep=f"{one.sweep}+{other.sweep}",
        series=(*other.series, *one.series),
        missing=(*one.missing, *other.missing),
        corrupt=(*one.corrupt, *other.corrupt),
        cost_note=_NO_COST,
        notes=(*notes, *dict.fromkeys((*one.notes, *other.notes))),
        trials=(*other.trials, *one.trials),
        emphasized=frozenset(series.name for series in one.series),
        # One comparison has one p: over the tests of this file, not once more over all those of the others.
        compared_in={series.name: f"{NAME}{other.file_suffix}.md" for series in one.series},
    )


def _untimed(final: "Final") -> "Final":
    """A final without the time of its steps, which those of another machine cannot be compared with."""
    provenance = {**final.record["provenance"], "step_ms": None}
    return replace(final, record={**final.record, "provenance": provenance})


def _version(final: "Final") -> Any:
    return final.record["provenance"].get("numerics_version")


def _of_no_numerics(final: "Final") -> "Final":
    """A final as if no version of its numerics were known, for a check alone."""
    provenance = {**final.record["provenance"], "numerics_version": None}
    return replace(final, record={**final.record, "provenance": provenance})


def _compared(one: "Group", other: "Group") -> "Comparisons":
    """Each of our trainings against each of theirs for the same target, and against float training."""
    from analysis.comparisons import Comparisons, between
    from harness.cli.bench_tests import corrected, families, is_compared

    pairs = [
        (ours, theirs, ours.target)
        for ours in one.trained
        for theirs in other.trained
        if ours.target is not None and is_compared(theirs, ours.target)
    ]
    rows = tuple(row for family in families(pairs) for row in between(one.metric, family))
    doubt = one.doubt or other.doubt
    return Comparisons(f"{one.sweep}: {one.title}", one.metric, rows, corrected(), _HOW, NAME, doubt)


def _whole(ours: "SweepResults", theirs: "SweepResults", groups: "Sequence[Group]") -> "SweepResults":
    """What the report is about: our cells, and those of theirs that are in a group."""
    from analysis.results import SweepResults

    finals = [final for group in groups for final in group.finals]
    cells = list({id(final.cell): final.cell for final in finals}.values())
    whole = SweepResults(groups[0].sweep, cells, objective=ours.objective, parts=(ours.name, theirs.name))
    whole.finals, whole.trials = finals, [trial for group in groups for trial in group.trials]
    whole.missing, whole.corrupt = [*ours.missing], [*ours.corrupt, *theirs.corrupt]
    whole.incomplete, whole.failures = [*ours.incomplete, *theirs.incomplete], ours.failures
    whole.notes = list(dict.fromkeys(note for group in groups for note in group.notes))
    return whole
