"""Everything that is made of a sweep: tables, claims, figures with their points and provenance, and the report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from analysis import chosen, claims, comparisons, controls, frames, measure, provenance, ranking, tables
from analysis.claim import Claim
from analysis.figures import FigureModule, NothingToDraw, Scope, find_figures
from analysis.output import Output
from analysis.results import SweepResults
from analysis.series import Group
from harness.core.errors import UserError, unknown

#: What figures that are about several groups are about.
OVERALL = (Scope.ROOT, Scope.SWEEPS)


@dataclass(frozen=True)
class Picture:
    """A figure that was drawn."""

    module: FigureModule
    stem: str
    notes: tuple[str, ...]
    #: In the words of what is measured.
    title: str
    caption: str


@dataclass
class Section:
    """What the report shows of one group, or beside the groups."""

    title: str
    table: tables.Table | None = None
    claims: list[Claim] = field(default_factory=list)
    compared: comparisons.Comparisons | None = None
    controlled: comparisons.Comparisons | None = None
    pictures: list[Picture] = field(default_factory=list)
    #: Name of a figure -> why it was not drawn.
    undrawn: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    #: Where a page that shows several sweeps leads to for more.
    link: str | None = None
    standings: ranking.Ranking | None = None
    #: The end of the names of its files, before the dot.
    suffix: str = ""


def chosen_figures(names: Sequence[str]) -> list[FigureModule]:
    """The figures of these names, all for none. Raises UserError for an unknown one."""
    found = find_figures()
    legal = [module.name for module in found]
    for name in names:
        if name not in legal:
            raise unknown("figure", name, legal)
    return [module for module in found if not names or module.name in names]


def draw_sweep(
    groups: Sequence[Group], made: Output, command: str, modules: Sequence[FigureModule], tabulate: bool
) -> list[Section]:
    """Draw the figures of a sweep, and its tables and claims where `tabulate`, a section for each group."""
    general, sections = Section("Theory"), []
    for group in groups:
        suffix = group.file_suffix if len(groups) > 1 else ""
        section = Section(group.title, notes=group.notes, suffix=suffix)
        if tabulate:
            _tabulate(group, suffix, made, command, section)
        for module in modules:
            if module.scope is Scope.GROUP:
                _draw(module, (group,), (group,), suffix, made, command, section)
        sections.append(section)
    if tabulate:
        _rank(groups, made, command, sections)
    for module in modules:
        if module.scope is Scope.THEORY:
            _draw(module, (), (), "", made, command, general)
    # What compares sweeps is for a root; asked for here by name, it says so.
    overall = draw_root(groups, made, command, [m for m in modules if not tabulate or m.scope is not Scope.SWEEPS])
    if len(groups) == 1 and tabulate:
        overall.undrawn.clear()  # nobody expects a comparison of groups from one
    return [*sections, *(section for section in (overall, general) if section.pictures or section.undrawn)]


def draw_root(groups: Sequence[Group], made: Output, command: str, modules: Sequence[FigureModule]) -> Section:
    """Draw the figures that are about all sweeps of a root."""
    section = Section("all models and data sets")
    for module in modules:
        if module.scope in OVERALL:
            _draw(module, (groups,), groups, "", made, command, section)
    return section


def write_frames(sweep: SweepResults, groups: Sequence[Group], made: Output, tuned: SweepResults | None = None) -> None:
    """rows.csv and trials.csv: everything the figures are made of; chosen_settings.csv, of `tuned` if that is given."""
    made.csv("rows.csv", frames.rows_frame(sweep))
    if len(settings := chosen.frame(tuned or sweep)):
        made.csv(f"{chosen.NAME}.csv", settings)
    if len(trials := frames.trials_of_sweep(sweep, groups)):
        made.csv("trials.csv", trials)


def _draw(
    module: FigureModule,
    arguments: Iterable[Any],
    groups: Sequence[Group],
    suffix: str,
    made: Output,
    command: str,
    section: Section,
) -> None:
    try:
        drawing = module.draw(*arguments)
    except NothingToDraw as reason:
        section.undrawn[module.name] = str(reason)
        return
    stem = module.name + suffix
    about = drawing.groups or groups
    metrics = [group.metric for group in about]
    content = provenance.describe(about, command, drawing.frame, drawing.notes)
    made.figure(stem, drawing.figure, f"points sha256 {content['points_sha256']}")
    plt.close(drawing.figure)
    made.csv(f"{stem}.csv", drawing.frame)
    made.json(f"{stem}.json", content)
    words = [measure.worded(text, metrics) for text in (module.title, module.caption)]
    section.pictures.append(Picture(module, stem, drawing.notes, *words))


def _tabulate(group: Group, suffix: str, made: Output, command: str, section: Section) -> None:
    table, tested = tables.make_table(group), claims.make_claims(group)
    texts = tables.to_markdown(table), tables.to_latex(table)
    _write_table(tables.NAME + suffix, table.frame, *texts, [group], made, command)
    texts = claims.to_markdown(tested), claims.to_latex(tested)
    _write_table(claims.NAME + suffix, claims.to_frame(tested), *texts, [group], made, command)
    section.table, section.claims = table, tested
    section.compared, section.controlled = comparisons.of_group(group), controls.of_group(group)
    for name, found in ((comparisons.NAME, section.compared), (controls.NAME, section.controlled)):
        if found:
            texts = comparisons.to_markdown(found), comparisons.to_latex(found)
            frame = comparisons.to_frame(found.rows, group.metric)
            _write_table(name + suffix, frame, *texts, [group], made, command)


def _rank(groups: Sequence[Group], made: Output, command: str, sections: Sequence[Section]) -> None:
    """The ranking of the methods on all models and data sets of the sweep, as one table."""
    for group, section in zip(groups, sections, strict=True):
        section.standings = ranking.make_ranking(group)
    found = [section.standings for section in sections if section.standings]
    if found:
        frame = pd.concat([one.frame() for one in found], ignore_index=True)
        texts = ranking.to_markdown(found), ranking.to_latex(found)
        _write_table(ranking.NAME, frame, *texts, groups, made, command)


def _write_table(
    stem: str, frame: pd.DataFrame, markdown: str, latex: str, groups: Sequence[Group], made: Output, command: str
) -> None:
    made.csv(f"{stem}.csv", frame)
    made.text(f"{stem}.md", markdown)
    made.text(f"{stem}.tex", latex)
    made.json(f"{stem}.json", provenance.describe(groups, command, frame, ()))


def refuse_undrawn(asked: Sequence[str], sections: Sequence[Section]) -> None:
    """Raise UserError for a figure that was asked for by name and that nothing could be drawn of."""
    for name in asked:
        drawn = any(picture.module.name == name for section in sections for picture in section.pictures)
        reasons = {section.undrawn[name]: None for section in sections if name in section.undrawn}
        if not drawn:
            raise UserError(f"--figure {name}: {'; '.join(reasons)}")


def gaps(sweep: SweepResults) -> list[str]:
    """What a sweep lacks, in lines: finals that are not there, records that cannot be used, runs that failed."""
    absent: dict[tuple[str, str], list[int]] = {}
    for missing in sweep.missing:
        absent.setdefault((missing.cell, missing.reason), []).append(missing.seed)
    lines = []
    if absent:
        lines.append(f"missing ({len(sweep.missing)} of {sum(len(cell.seeds) for cell in sweep.cells)} finals):")
    for (cell, reason), seeds in absent.items():
        which = ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(str(seed) for seed in seeds)
        lines.append(f"  {cell}: {which}: {reason}")
    if sweep.corrupt:
        lines += [f"skipped corrupt records: {len(sweep.corrupt)}", *(f"  {line}" for line in sweep.corrupt)]
    if sweep.incomplete:
        lines.append(f"finals without all of their epochs (no mean over epochs counts them): {len(sweep.incomplete)}")
        lines += [f"  {line}" for line in sweep.incomplete]
    lines += _missing_trials(sweep)
    if sweep.failures:
        lines.append(f"failed runs: {len(sweep.failures)}")
        lines += [f"  {one.run_id} ({'; '.join(one.cells)}): {one.reason}" for one in sweep.failures]
    return lines


def _missing_trials(sweep: SweepResults) -> list[str]:
    """Tuning trials without a record that were not pruned: not finished, failed, or gone."""
    lines = []
    for cell in sweep.cells:
        found = [trial for trial in sweep.trials if trial.cell.id == cell.id]
        absent = (cell.planned_trials or 0) - len(found) - sum(each.cell == cell.id for each in sweep.pruned)
        if absent > 0:
            chosen = " (the chosen one among them)" if cell.chosen and not any(t.chosen for t in found) else ""
            lines.append(f"  {cell.id}: {absent} of {cell.planned_trials}{chosen}")
    return ["tuning trials without a record:", *lines] if lines else []
