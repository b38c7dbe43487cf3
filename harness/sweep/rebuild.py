"""A study from its records, where the queue's journal or database is gone.

The trials.json of each run directory names its trials; the record holds their result. Samplers that draw
each trial from its number alone need none of this: they draw the same again, and find the records there.
"""

from typing import Any

from optuna.trial import TrialState, create_trial

from harness.core.errors import UserError
from harness.records.files import read_json, write_json
from harness.records.run_directory import RunDirectory
from harness.sweep.cells import Cell
from harness.sweep.queue import Claim, OpenSweep, values_of
from harness.sweep.samplers import distribution
from harness.sweep.search_space import STATIC_SAMPLERS
from harness.training.config import complete


def note_trial(files: RunDirectory, claim: Claim) -> None:
    """Add a claimed trial to those of its run directory: cells that resolve to the same run share it."""
    entry = {"cell": claim.cell.id, "phase": claim.phase, "trial": claim.trial.number, "params": dict(claim.params)}
    entries = read_json(files.trials) or []
    if entry not in entries:
        write_json(files.trials, [*entries, entry])


def rebuild(sweep: OpenSweep) -> int:
    """Fill a queue that holds no trial at all with the finished tuning trials of the records; returns how many.

    Hold the plan's lock. Trials that failed, were pruned or had not finished are drawn again.
    """
    if sweep.spec.sampler.name in STATIC_SAMPLERS or any(s.get_trials(deepcopy=False) for s in sweep.all_studies()):
        return 0
    cells = {cell.id: cell for cell in sweep.cells}
    found: list[tuple[int, Cell, dict[str, Any], dict[str, Any]]] = []
    for run in map(RunDirectory, sweep.files.runs_named()):
        entries = read_json(run.trials) or []
        record = read_json(run.record) if entries else None
        for entry in entries:
            cell = cells.get(entry["cell"])
            if record and cell and entry["phase"] == "tune" and set(entry["params"]) == set(cell.search):
                found.append((entry["trial"], cell, entry["params"], record))
    for _, cell, params, record in sorted(found, key=lambda item: (item[1].id, item[0])):
        try:
            values = values_of(sweep, complete(record["config"]), record["run_id"], record)
        except UserError:  # the trial failed, and is drawn again
            continue
        sweep.studies[cell.id].add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                values=values,
                params=params,
                distributions={name: distribution(dimension) for name, dimension in cell.search.items()},
                user_attrs={"run_id": record["run_id"], "rebuilt": True},
            )
        )
    return len(found)
