"""report.html: a sweep's figures, tables, claims, settings, failures and provenance in one file, to be read offline."""

import base64
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from analysis import claims, provenance, render, tables
from analysis.output import Output
from analysis.sweep import Sweep

#: Columns of a claim's tests, and their headings.
_COLUMNS = {
    "target_bit": "target", "method": "method", "n": "n", "test": "test", "effect": "effect", "low": "95% from",
    "high": "to", "p_holm": "p (Holm)", "verdict": "verdict",
}  # fmt: skip
_TEMPLATE = Path(__file__).with_name("report.html.j2")


def report(sweep: Sweep, sections: Sequence[render.Section], command: str, made: Output) -> str:
    """The page of a sweep, from what was made of it. The same records give the same page: it holds no date."""
    return _rendered(
        sections,
        command,
        made,
        sweep=sweep,
        planned=sum(len(cell.seeds) for cell in sweep.cells),
        gaps=render.gaps(sweep),
        cells=[_cell(cell) for cell in _cells(sweep)],
        settings=yaml.safe_dump(sweep.settings, sort_keys=False) if sweep.settings else None,
        origins=_origins(sweep),
        runs=[(f"{final.cell.id}, seed {final.seed}", final.run_id) for final in sweep.finals],
    )


def overview(sections: Sequence[render.Section], command: str, made: Output) -> str:
    """The page of all sweeps of a root: claims and tables of each, and the figures that are about all of them."""
    return _rendered(sections, command, made, sweep=None)


def _rendered(sections: Sequence[render.Section], command: str, made: Output, **about: Any) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(sections=[_section(section, made) for section in sections], command=command, **about)


def _section(section: render.Section, made: Output) -> dict[str, Any]:
    return {
        "title": section.title,
        "claims": [_claim(claim) for claim in section.claims],
        "table": _table(section.table) if section.table else None,
        "pictures": [_picture(picture, made) for picture in section.pictures],
        "undrawn": section.undrawn,
        "notes": section.notes,
        "link": section.link,
    }


def _picture(picture: render.Picture, made: Output) -> dict[str, Any]:
    image = base64.b64encode(made.read(f"{picture.stem}.png")).decode()
    return {
        "title": picture.module.title,
        "caption": picture.module.caption,
        "stem": picture.stem,
        "source": f"data:image/png;base64,{image}",
        "notes": picture.notes,
    }


def _claim(claim: claims.Claim) -> dict[str, Any]:
    frame = claims.to_frame([claim])
    columns = [*_COLUMNS, "reason"]
    return {
        "key": claim.key,
        "verdict": claim.verdict,
        "head": claim.head,
        "text": claim.text,
        "definition": claim.definition,
        "columns": [*_COLUMNS.values(), ""],
        "tests": [[_text(value) for value in line] for line in frame[columns].itertuples(index=False)],
    }


def _text(value: Any) -> str:
    """A number in four figures; nothing for what is not there."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return "" if value is None or str(value) in ("<NA>", "nan") else str(value)


def _table(table: tables.Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "bits": [tables.header(bits) for bits in table.bits],
        "rows": table.rows,
        "legend": tables.LEGEND.format(target="underlined", best="bold"),
    }


def _cells(sweep: Sweep) -> list[dict[str, Any]]:
    lines = []
    for cell in sweep.cells:
        chosen = cell.chosen or {}
        trials = sum(trial.cell.id == cell.id for trial in sweep.trials)
        finals = sum(final.cell.id == cell.id for final in sweep.finals)
        lines.append({"id": cell.id, "trials": trials, "finals": f"{finals}/{len(cell.seeds)}", **chosen})
    return lines


def _cell(line: dict[str, Any]) -> list[str]:
    parameters = ", ".join(f"{name} = {_text(value)}" for name, value in (line.get("params") or {}).items())
    return [line["id"], str(line["trials"]), parameters or "nothing tuned", _text(line.get("value")), line["finals"]]


def _origins(sweep: Sweep) -> list[tuple[str, str]]:
    """What the records say of where they come from."""
    found = provenance.of_records([final.record for final in sweep.finals])
    devices = sorted({str(final.record["provenance"].get("device")) for final in sweep.finals})
    return [
        ("code of the runs", "; ".join(json.dumps(commit) for commit in found["git"])),
        ("numerics version", ", ".join(found["numerics_versions"])),
        ("data digest", ", ".join(found["data_digests"])),
        ("devices", ", ".join(devices)),
        ("packages of the runs", _packages(found["packages_of_the_runs"])),
        ("packages of the analysis", _packages({name: [version(name)] for name in provenance.PACKAGES})),
    ]


def _packages(found: dict[str, list[str]]) -> str:
    return ", ".join(f"{name} {' and '.join(numbers)}" for name, numbers in found.items())
