"""Draw the figures and tables of a sweep: `python analysis/make_figures.py [--root runs] [--sweep NAME]`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The script's own folder holds a statistics.py, which would hide the standard library's.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import io
import shlex
from typing import TYPE_CHECKING

from harness.errors import UserError, run_command

if TYPE_CHECKING:
    from analysis.load import Sweep
    from analysis.series import Group


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make_figures.py", description=(__doc__ or "").split(":")[0] + ".")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where sweeps are (default: runs)")
    parser.add_argument("--sweep", help="name of one sweep (default: every sweep in the root)")
    parser.add_argument(
        "--out", type=Path, help="where to write (default: ROOT/SWEEP/figures; of several sweeps: OUT/SWEEP)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Draw everything; a sweep that cannot be drawn does not keep the others from it."""
    options = parse(arguments)
    from analysis.load import load_sweep, sweep_names

    names = [options.sweep] if options.sweep else sweep_names(options.root)
    errors = []
    for name in names:
        out = options.root / name / "figures"
        if options.out:
            out = options.out / name if len(names) > 1 else options.out
        try:
            draw_sweep(load_sweep(options.root, name), out, _command(options, name))
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\nerror: ".join(errors))
    return 0


def _command(options: argparse.Namespace, name: str) -> str:
    """The command that draws this sweep again."""
    words = ["python", "analysis/make_figures.py", "--root", str(options.root), "--sweep", name]
    return shlex.join(words + (["--out", str(options.out)] if options.out else []))


def draw_sweep(sweep: "Sweep", out: Path, command: str) -> None:
    """Write all tables and figures of a sweep into `out` and print the tables and the paths."""
    from analysis.series import make_groups

    groups = make_groups(sweep)
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for group in groups:
        suffix = group.file_suffix if len(groups) > 1 else ""
        paths += write_table(group, out, suffix, command)
        paths += write_figures(group, out, suffix, command)
    print_gaps(sweep, [note for group in groups for note in group.notes])
    print("written:")
    for path in paths:
        print(f"  {path}")


def write_table(group: "Group", out: Path, suffix: str, command: str) -> list[Path]:
    """The cross-bit table in three forms, with its provenance; printed too."""
    from analysis import provenance, tables

    table = tables.make_table(group)
    print(tables.to_text(table), end="\n\n")
    stem = f"{tables.NAME}{suffix}"
    return [
        provenance.write_csv(out / f"{stem}.csv", table.frame),
        provenance.write_text(out / f"{stem}.md", tables.to_markdown(table)),
        provenance.write_text(out / f"{stem}.tex", tables.to_latex(table)),
        provenance.write_json(out / f"{stem}.json", provenance.describe(group, command, table.frame, ())),
    ]


def write_figures(group: "Group", out: Path, suffix: str, command: str) -> list[Path]:
    """Every figure found in analysis/figures, with its points and its provenance."""
    import matplotlib.pyplot as plt

    from analysis import provenance
    from analysis.figures import NothingToDraw, find_figures

    paths = []
    for name, draw in find_figures().items():
        try:
            drawing = draw(group)
        except NothingToDraw as reason:
            print(f"{name}{suffix} not drawn: {reason}\n")
            continue
        content = provenance.describe(group, command, drawing.frame, drawing.notes)
        subject = f"points sha256 {content['points_sha256']}"
        paths += provenance.write_figure(out / f"{name}{suffix}", drawing.figure, subject)
        plt.close(drawing.figure)
        paths.append(provenance.write_csv(out / f"{name}{suffix}.csv", drawing.frame))
        paths.append(provenance.write_json(out / f"{name}{suffix}.json", content))
    return paths


def print_gaps(sweep: "Sweep", notes: list[str]) -> None:
    """Say what the figures lack."""
    gaps: dict[tuple[str, str], list[int]] = {}
    for missing in sweep.missing:
        gaps.setdefault((missing.cell, missing.reason), []).append(missing.seed)
    if gaps:
        print(f"missing ({len(sweep.missing)} of {sum(len(cell.seeds) for cell in sweep.cells)} finals):")
        for (cell, reason), seeds in gaps.items():
            which = ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(str(seed) for seed in seeds)
            print(f"  {cell}: {which}: {reason}")
    if sweep.corrupt:
        print(f"skipped {len(sweep.corrupt)} corrupt records:")
        for line in sweep.corrupt:
            print(f"  {line}")
    for note in dict.fromkeys(notes):
        print(f"note: {note}")
    if gaps or sweep.corrupt or notes:
        print()


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ± shows ? instead of a traceback
    run_command(main)
