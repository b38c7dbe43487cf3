"""Draw the figures, tables, claims and report of a sweep: `python analysis/make_figures.py [--root runs]`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The repository root instead of this script's folder: `analysis` is imported from there.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import io
import os
import shlex
from typing import TYPE_CHECKING

from harness.core.command import run_command
from harness.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from analysis.figures import FigureModule
    from analysis.render import Section
    from analysis.results import SweepResults
    from analysis.series import Group

#: Folder in the root for what is about all of its sweeps.
OVERALL = "figures"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make_figures.py", description=(__doc__ or "").split(":")[0] + ".")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where sweeps are (default: runs)")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="NAME",
        help="draw this sweep only, may be repeated (default: every sweep in the root)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, help="where to write (default: ROOT/SWEEP/figures; of several sweeps: OUT/SWEEP)"
    )
    parser.add_argument(
        "--figure", action="append", default=[], metavar="NAME",
        help="draw this figure only, may be repeated (default: all figures, tables, claims and the report)",
    )  # fmt: skip
    parser.add_argument(
        "--venue",
        help="draw at a venue's widths (tueplots), such as neurips2024; an unknown one is refused with all there are "
        "(default: tmlr2023)",
    )
    parser.add_argument("--no-titles", action="store_true", help="no title over a figure's legend: a caption says it")
    parser.add_argument("--source", choices=("disk", "wandb"), default="disk", help="where to read (default: disk)")
    parser.add_argument("--project", default="oscillation-harness", help="of W&B (default: oscillation-harness)")
    parser.add_argument("--entity", help="of W&B (default: your own)")
    options = parser.parse_args(arguments)
    if options.source == "wandb" and not options.sweep:
        parser.error("--source wandb needs --sweep NAME")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Draw everything; a sweep that cannot be drawn does not keep the others from it."""
    options = parse(arguments)
    import matplotlib

    matplotlib.use("Agg")  # files only, whatever a session shows its figures with
    from analysis import render, style
    from analysis.disk_source import sweep_names
    from analysis.grouping import make_groups

    modules = render.chosen_figures(options.figure)
    if options.venue:
        style.use_venue(options.venue)
    style.use_titles(not options.no_titles)
    names = list(dict.fromkeys(options.sweep)) or sweep_names(options.root)
    sweeps, groups, errors = _load_all(options, names)
    sections: list[Section] = []
    whole = _joined(sweeps, groups) if options.sweep and len(sweeps) > 1 else None
    drawn: list[Group] = []
    for sweep in sweeps:
        try:
            sections += draw_sweep(options, sweep, groups[sweep.name], modules, several=len(names) > 1)
            drawn += groups[sweep.name]
        except UserError as error:
            errors.append(str(error))
    if len(names) > 1 and drawn:
        try:
            draw_root(options, drawn, modules, sections)
        except UserError as error:
            errors.append(str(error))
    if whole and (own := [module for module in modules if module.scope not in render.OVERALL]):
        draw_sweep(options, whole, make_groups(whole), own, several=True)
    if errors:
        raise UserError("\nerror: ".join(errors))
    return 0


def _load_all(
    options: argparse.Namespace, names: "Sequence[str]"
) -> "tuple[list[SweepResults], dict[str, list[Group]], list[str]]":
    """The sweeps that can be drawn, their groups by name, and why the others cannot."""
    from analysis.grouping import make_groups

    sweeps, groups, errors = [], {}, []
    for name in names:
        try:
            sweep = _load(options, name)
            groups[name] = make_groups(sweep)
            sweeps.append(sweep)
        except UserError as error:
            errors.append(str(error))
    return sweeps, groups, errors


def _load(options: argparse.Namespace, name: str) -> "SweepResults":
    if options.source == "wandb":
        from analysis.wandb_source import load_results as load_from_wandb

        return load_from_wandb(options.entity, options.project, name)
    from analysis.disk_source import load_results

    return load_results(options.root, name)


def _joined(sweeps: "Sequence[SweepResults]", groups: "Mapping[str, Sequence[Group]]") -> "SweepResults | None":
    """Sweeps that were named together as one: each model and data set that several of them have.

    Where their runs were not made alike, say what differs, before minutes of drawing.
    """
    from analysis.joint import joint

    whole, reasons = joint(sweeps, groups)
    for reason in reasons:
        print(f"no joint figures: {reason}", flush=True)
    return whole


def _command(options: argparse.Namespace, names: "Sequence[str]") -> str:
    """The command that draws this again. names: of sweeps, none for all."""
    words = ["python", "analysis/make_figures.py", "--root", str(options.root)]
    for name in names:
        words += ["--sweep", name]
    for figure in options.figure:
        words += ["--figure", figure]
    for option in ("out", "venue", "entity"):
        value = getattr(options, option)
        words += [f"--{option}", str(value)] if value else []
    words += ["--no-titles"] if options.no_titles else []
    if options.source == "wandb":
        words += ["--source", "wandb", "--project", options.project]
    return shlex.join(words)


def draw_sweep(
    options: argparse.Namespace,
    sweep: "SweepResults",
    groups: "Sequence[Group]",
    modules: "Sequence[FigureModule]",
    several: bool,
) -> "list[Section]":
    """Make everything of one sweep in its folder, and print its tables, its gaps and what was written.

    several: whether it is one of several sweeps, so that figures about all of them are made elsewhere. Returns what
    a page about all of them shows of this one.
    """
    from analysis import chosen, render, report, terminal
    from analysis.output import output

    modules = [module for module in modules if module.scope not in render.OVERALL or not several]
    if not modules:
        return []
    folder = options.root / sweep.name / "figures"
    if options.out:
        folder = options.out / sweep.name if several else options.out
    complete, command = not options.figure, _command(options, sweep.parts or [sweep.name])
    with output(folder, complete) as made:
        sections = render.draw_sweep(groups, made, command, modules, complete)
        render.refuse_undrawn([module.name for module in modules if options.figure], sections)
        if complete:
            render.write_frames(sweep, groups, made)
            made.text("report.html", report.report(sweep, sections, command, made))
    terminal.print_sections(sections)
    notes = [note for group in groups for note in group.notes]
    terminal.print_gaps(sweep, [*notes, *(chosen.note(chosen.frame(sweep)) if complete else ())])
    terminal.print_files(folder, made.names)
    if not complete and (folder / "report.html").exists():
        print("report.html there still shows the pictures of the last complete set")
    page = os.path.relpath(folder / "report.html", (options.out or options.root) / OVERALL)
    return [
        render.Section(f"{sweep.name}: {one.title}", one.table, one.claims, link=Path(page).as_posix())
        for one in sections
        if one.table
    ]


def draw_root(
    options: argparse.Namespace,
    groups: "Sequence[Group]",
    modules: "Sequence[FigureModule]",
    sections: "Sequence[Section]",
) -> None:
    """Make what is about all sweeps of the root. sections: what each of them adds to the page."""
    from analysis import render, report, terminal
    from analysis.output import output

    modules = [module for module in modules if module.scope in render.OVERALL]
    if not modules:
        return
    folder = (options.out or options.root) / OVERALL
    command = _command(options, list(dict.fromkeys(options.sweep)))
    with output(folder, not options.figure) as made:
        section = render.draw_root(groups, made, command, modules)
        render.refuse_undrawn([module.name for module in modules if options.figure], [section])
        if not options.figure:
            pages = [section, *sections] if section.pictures else sections
            made.text("report.html", report.overview(pages, command, made))
    terminal.print_sections([section])
    terminal.print_files(folder, made.names)


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ± shows ? instead of a traceback
    run_command(main)
