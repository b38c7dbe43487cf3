"""report.html: a sweep's figures, tables, claims, settings, failures and provenance in one file, to be read offline."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from analysis import (
    chosen,
    claims,
    comparisons,
    controls,
    deployment,
    frames,
    provenance,
    ranking,
    render,
    summary,
    tables,
)
from analysis.output import Output
from analysis.results import Cell, SweepResults, Trial

#: What a sweep's `tie_break` says; sweeps of a version without the key chose the first.
_TIES = {
    "loss": "the one with the lowest validation loss was chosen, then the lowest number (tie_break: loss)",
    "first": "the one with the lowest number was chosen (tie_break: first)",
}
_TEMPLATE = Path(__file__).with_name("report.html.j2")


def report(sweep: SweepResults, sections: Sequence[render.Section], command: str, made: Output) -> str:
    """The page of a sweep, from what was made of it. The same records give the same page: it holds no date."""
    return _rendered(
        sections,
        command,
        made,
        sweep=sweep,
        planned=sum(len(cell.seeds) for cell in sweep.cells),
        gaps=render.gaps(sweep),
        cells=_cells(sweep),
        in_ranges=len(chosen.frame(sweep)) > 0,
        tie_break=_TIES[sweep.settings.get("tie_break", "first")] if sweep.settings else None,
        settings=yaml.safe_dump(sweep.settings, sort_keys=False) if sweep.settings else None,
        origins=_origins(sweep),
        runs=[(f"{final.cell.id}, seed {final.seed}", final.run_id) for final in sweep.finals],
    )


def overview(sections: Sequence[render.Section], command: str, made: Output) -> str:
    """The page of all sweeps of a root: claims and tables of each, and the figures that are about all of them."""
    return _rendered(sections, command, made, sweep=None)


def _rendered(sections: Sequence[render.Section], command: str, made: Output, **about: Any) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(
        claims=claims,
        comparisons=comparisons,
        controls=controls,
        tables=tables,
        ranking=ranking,
        deployment=deployment,
        summary=summary,
    )
    environment.filters["png"] = lambda stem: base64.b64encode(made.read(f"{stem}.png")).decode()
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(sections=sections, command=command, **about)


def _text(value: Any) -> str:
    """A number in four figures; nothing for what is not there."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return "" if value is None or str(value) in ("<NA>", "nan") else str(value)


def _cells(sweep: SweepResults) -> list[list[str]]:
    """Each cell: its trials, the chosen parameters and value, how many trials were as good, and its finals."""
    told = {(one.cell, one.setting): chosen.told(one) for one in chosen.frame(sweep).itertuples()}
    lines = []
    for cell in sweep.cells:
        trials = [trial for trial in sweep.trials if trial.cell.id == cell.id]
        finals = sum(final.cell.id == cell.id for final in sweep.finals)
        params = (cell.chosen or {}).get("params") or {}
        tuned = [f"{name} = {_text(value)}{told.get((cell.id, name), '')}" for name, value in params.items()]
        values = {trial.number: frames.objective_value(trial, sweep.objective[0]) for trial in trials}
        best = next((values[trial.number] for trial in trials if trial.chosen), None)
        if None in values.values():  # rows do not tell it
            best = _first((cell.chosen or {}).get("value"))
        ties = sum(value == best for value in values.values()) - 1
        others = f" ({ties} other trial{'s' * (ties > 1)} equal)" if ties > 0 else ""
        value = "" if best is None else _text(best) + others
        how = ", ".join(tuned) or "nothing tuned"
        lines.append([cell.id, _of_trials(sweep, cell, trials), how, value, f"{finals}/{len(cell.seeds)}"])
    return lines


def _of_trials(sweep: SweepResults, cell: Cell, trials: Sequence[Trial]) -> str:
    """`6`; of which some were pruned: `4, 2 pruned`."""
    pruned = sum(each.cell == cell.id for each in sweep.pruned)
    return f"{len(trials)}, {pruned} pruned" if pruned else str(len(trials))


def _first(values: Any) -> Any:
    """The first of several objectives, or the only one."""
    return values[0] if isinstance(values, list) else values


def _origins(sweep: SweepResults) -> list[tuple[str, str]]:
    """What the records say of where they come from."""
    found = provenance.of_records([final.record for final in sweep.finals])
    devices = sorted({str(final.record["provenance"].get("device")) for final in sweep.finals})
    return [
        ("code of the runs", "; ".join(_commit(commit) for commit in found["git"])),
        ("code of the analysis", f"files with digest {provenance.code_digest()}"),
        ("numerics version", ", ".join(found["numerics_versions"])),
        ("data digest", ", ".join(found["data_digests"])),
        ("devices", ", ".join(devices)),
        ("packages of the runs", _packages(found["packages_of_the_runs"])),
        ("packages of the analysis", _packages({name: [it] for name, it in provenance.packages().items()})),
    ]


def _commit(commit: dict[str, Any] | None) -> str:
    if not commit:
        return "not under git"
    return f"commit {commit.get('sha')}" + (" with changes of its own" if commit.get("dirty") else "")


def _packages(found: dict[str, list[str]]) -> str:
    return ", ".join(f"{name} {' and '.join(numbers)}" for name, numbers in found.items())
