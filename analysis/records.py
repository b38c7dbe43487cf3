"""Records that analysis can rely on: what is wrong with one is said, not guessed around."""

import json
import math
from importlib.resources.abc import Traversable
from typing import Any

from harness.core.bits import FLOAT
from harness.records.schema import ROW

_RECORD = {"run_id": str, "phase": str, "config": dict, "provenance": dict, "rows": list}
_CONFIG = {"seed": int, "methods": list, "model": dict, "data": dict, "train": dict, "deploy": dict}


def read_record(
    path: Traversable, run_id: str, phase: str, seed: int | None = None
) -> tuple[dict[str, Any] | None, str]:
    """A run's record, or None and what is wrong with it. seed: the one it must have, where that is known."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return None, f"unreadable ({error})"
    problem = problem_of(record, run_id, phase, seed)
    return (None, problem) if problem else (record, "")


def problem_of(record: Any, run_id: str, phase: str, seed: int | None = None) -> str:
    """What is wrong with a record, or nothing."""
    if not isinstance(record, dict):
        return "not an object"
    for fields, part, where in ((_RECORD, record, ""), (_CONFIG, record.get("config"), "config.")):
        for name, kind in fields.items():
            if not isinstance(part, dict) or not isinstance(part.get(name), kind):
                return f"{where}{name} is not {kind.__name__}"
    config = record["config"]
    wanted = (run_id, phase, config["seed"] if seed is None else seed)
    if (record["run_id"], record["phase"], config["seed"]) != wanted:
        found = f"{record['phase']} run {record['run_id']} with seed {config['seed']}"
        return f"holds {found}, where {phase} run {run_id} with seed {wanted[2]} belongs"
    if "name" not in config["model"] or "name" not in config["data"]:
        return "config.model or config.data has no name"
    if not all(isinstance(method, dict) and "name" in method for method in config["methods"]):
        return "config.methods holds an entry without a name"
    return _rows_problem(record["rows"], "test" if phase == "final" else "val")


def _rows_problem(rows: list[Any], split: str) -> str:
    seen = set()
    for row in rows:
        if not isinstance(row, dict) or not set(ROW) <= set(row):
            return f"a row lacks some of {', '.join(ROW)}"
        value = row["accuracy"]
        if not isinstance(value, int | float) or not (math.isfinite(value) and 0 <= value <= 1):
            return f"accuracy {value!r} is not in [0, 1]"
        if row["bits"] != FLOAT and not isinstance(row["bits"], int):
            return f"bits {row['bits']!r} is neither an integer nor {FLOAT!r}"
        key = tuple(str(row[name]) for name in ("split", "deploy", "scale", "bits"))
        if key in seen:
            return f"two rows for {' '.join(key)}"
        seen.add(key)
    return "" if any(row["split"] == split for row in rows) else f"no row of the {split} split"
