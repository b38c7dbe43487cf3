"""What a terminal shows of a sweep: tables, verdicts, what is lacking, which files were written."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis import claims, comparisons, ranking, summary, tables
from analysis.render import Section, gaps
from analysis.results import SweepResults

#: Characters of a line of file names.
_WIDTH = 120


def print_sections(sections: Iterable[Section]) -> None:
    """Tables, claims and what was not drawn."""
    for section in sections:
        if section.table:
            print(tables.to_text(section.table), end="\n\n")
        if section.compared:
            print(comparisons.to_text(section.compared), end="\n\n")
            if short := summary.sentences(section.compared):
                print(*short, sep="\n", end="\n\n")
        if section.claims:
            print(claims.to_text(section.claims), end="\n\n")
        if section.standings:
            print(ranking.to_text(section.standings), end="\n\n")
        if section.undrawn:
            print(f"not drawn ({section.title}):")
            print(*(f"  {figure}: {reason}" for figure, reason in section.undrawn.items()), sep="\n", end="\n\n")


def print_gaps(sweep: SweepResults, notes: Sequence[str]) -> None:
    """Say what the figures lack."""
    for line in gaps(sweep):
        print(line)
    for note in dict.fromkeys(notes):
        print(f"note: {note}")
    if gaps(sweep) or notes:
        print()


def print_files(folder: Path, names: Iterable[str]) -> None:
    """What was written: a line for all files that come in the same formats."""
    suffixes: dict[str, list[str]] = {}
    for name in names:
        stem, _, suffix = name.rpartition(".")
        suffixes.setdefault(stem, []).append(suffix)
    alike: dict[str, list[str]] = {}
    for stem, found in suffixes.items():
        alike.setdefault(found[0] if len(found) == 1 else f"{{{','.join(found)}}}", []).append(stem)
    print(f"written to {folder}:")
    for formats, stems in alike.items():
        told = f".{formats}: {', '.join(stems)}"
        print(textwrap.fill(told, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))
    if "report" in suffixes:
        print(f"all of it in one page: {folder / 'report.html'}")
