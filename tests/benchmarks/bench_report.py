"""What a benchmark tells: rows with goal and verdict, tables of them, and facts about the machine. Free of torch."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

HEADINGS = ("what", "reference", "goal", "measured", "verdict", "seconds")
#: Added where another machine's rows are laid beside: its figure, and its milliseconds over those measured here.
BESIDE = ("there", "ms there / here")


class Row(TypedDict):
    """One figure. goal: None for what is only reported. seconds: what it took to measure, where the part knows.

    part: the benchmark that measured it.
    """

    what: str
    reference: str
    goal: float | None
    compare: str
    measured: float | None
    unit: str
    detail: dict[str, Any]
    seconds: NotRequired[float]
    error: NotRequired[str]
    part: NotRequired[str]


#: Rows, and the machine that they were measured on.
Measured = tuple[list[Row], Mapping[str, Any]]


class Clock:
    """Seconds since it was made, or since the last lap."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def lap(self) -> float:
        """Seconds of the lap that ends here."""
        now = time.perf_counter()
        seconds, self._begun = now - self._begun, now
        return seconds


def figure(
    what: str,
    reference: str,
    measured: float,
    *,
    goal: float | None = None,
    compare: str = "<=",
    unit: str = "x",
    seconds: float,
    **detail: Any,
) -> Row:
    """A measured row."""
    return {
        "what": what,
        "reference": reference,
        "goal": goal,
        "compare": compare,
        "measured": measured,
        "unit": unit,
        "detail": detail,
        "seconds": seconds,
    }


def failure(what: str, error: str, seconds: float) -> Row:
    """The row of a part that failed: its last words stand in the table, all of them in the JSON."""
    return {
        "what": what,
        "reference": "",
        "goal": None,
        "compare": "<=",
        "measured": None,
        "unit": "",
        "detail": {},
        "seconds": seconds,
        "error": error,
    }


def verdict(row: Row) -> str:
    """met, missed, reported (no goal) or FAILED."""
    if "error" in row or row["measured"] is None:
        return "FAILED"
    if row["goal"] is None:
        return "reported"
    if row["compare"] == ">=":
        return "met" if row["measured"] >= row["goal"] else "missed"
    return "met" if row["measured"] <= row["goal"] else "missed"


def shown(value: float, unit: str) -> str:
    """A figure as the tables show it: three digits of what is small, no decimals of what is large."""
    digits = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    text = f"{value:.{digits}f}"
    return text + unit if unit in ("x", "%", "") else f"{text} {unit}"


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table's text, a tuple a row."""
    return [
        (
            row["what"],
            row["reference"],
            "" if row["goal"] is None else f"{row['compare']} {row['goal']:g}{row['unit']}",
            last_line(row["error"])
            if "error" in row
            else ""
            if row["measured"] is None
            else shown(row["measured"], row["unit"]),
            verdict(row),
            f"{row['seconds']:.0f}" if "seconds" in row else "",
        )
        for row in rows
    ]


def last_line(text: str) -> str:
    """The last line that says something, cut short."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:120] if lines else "?"


def plain_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns of even width, for a terminal."""
    widths = [max(len(text) for text in column) for column in zip(headings, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in (headings, rule, *lines)
    )


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The same for a page."""
    kept = [[text.replace("|", "\\|") for text in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *kept))


def small_tables(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, headings, lines) of each row that brings a table of its own: `detail["table"]`, a list of mappings."""
    found = []
    for row in rows:
        table: list[Mapping[str, Any]] = row["detail"].get("table", [])
        if table:
            headings = list(table[0])
            lines = [[_cell(line.get(heading)) for heading in headings] for line in table]
            found.append((row["what"], headings, lines))
    return found


def _cell(value: object) -> str:
    return shown(value, "") if isinstance(value, float) else str(value)


def main_table(rows: Sequence[Row], there: Measured | None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and lines; with the figures of another machine where there are any."""
    if there is None:
        return HEADINGS, cells(rows)
    others = {(row["what"], row["reference"]): row for row in there[0]}
    beside = [_beside(row, others.get((row["what"], row["reference"]))) for row in rows]
    return (*HEADINGS, *BESIDE), [(*line, *more) for line, more in zip(cells(rows), beside, strict=True)]


def _beside(row: Row, other: Row | None) -> tuple[str, str]:
    if other is None or other["measured"] is None:
        return "", ""
    here, there = row["detail"].get("ms"), other["detail"].get("ms")
    return shown(other["measured"], other["unit"]), f"{there / here:.2f}" if here and there else ""


def as_text(rows: Sequence[Row], there: Measured | None = None) -> str:
    """The table, then the small tables, for a terminal. there: what was measured on another machine."""
    parts = [f"there: {sentence(there[1])}"] if there else []
    parts += [plain_table(*main_table(rows, there))]
    parts += [f"{title}\n{plain_table(headings, lines)}" for title, headings, lines in small_tables(rows)]
    return "\n\n".join(parts)


def as_markdown(rows: Sequence[Row], facts: Mapping[str, Any], there: Measured | None = None) -> str:
    """The same for tests/README.md, with the machine above it."""
    parts = [sentence(facts), *([f"There: {sentence(there[1])}"] if there else [])]
    parts += [markdown_table(*main_table(rows, there))]
    parts += [f"**{title}**\n\n{markdown_table(headings, lines)}" for title, headings, lines in small_tables(rows)]
    return "\n\n".join(parts) + "\n"


def sentence(facts: Mapping[str, Any]) -> str:
    """The machine in a line."""
    known = (f"{facts['cpu']}, {facts['cores']} cores", facts.get("gpu"))
    has = "with bf16 matrix units (AMX)" if facts.get("amx") else "with instructions for bf16"
    units = has if facts.get("bf16", facts.get("amx")) else "without instructions for bf16"
    what = "; ".join(text for text in known if text)
    return f"{what} ({units}); torch {facts.get('torch')}, {facts.get('threads')} threads; commit {facts['commit']}."


def machine() -> dict[str, Any]:
    """What a reader must know to judge the figures. No name of the machine and no path."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "system": platform.system(),
        "commit": commit(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The commit, short, with `+` where tracked files were changed; `unknown` outside of git."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*command, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changes = ["status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run([*command, *changes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def write_json(path: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """All rows with their verdicts and details, and the machine."""
    judged = [{**row, "verdict": verdict(row)} for row in rows]
    path.write_text(json.dumps({"machine": dict(facts), "rows": judged}, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Measured:
    """What `write_json` wrote. Raises ValueError for a file that is not there, or not of `make bench`."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        rows, facts = written["rows"], {"total_s": 0, "tiny": False, **written["machine"]}
        sentence(facts), main_table(rows, None)  # what cannot be shown is refused here
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no JSON file of make bench: {type(error).__name__}: {error}") from None
    return rows, facts
