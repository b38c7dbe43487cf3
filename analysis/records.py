"""Records that analysis can rely on: what is wrong with one is said, not guessed around."""

import json
import math
from importlib.resources.abc import Traversable
from typing import Any

from analysis.measure import metric_of
from harness.core.bits import FLOAT, MAX_BITS, MIN_BITS, BitWidths
from harness.core.errors import UserError
from harness.core.metric import Metric
from harness.records.schema import LAYERS, ROW, ROW_WHERE_QUANTIZED, SCORED_ROW, point, row_key, scored

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
    try:
        _ = config.get("target_bit") is None or BitWidths.of(config["target_bit"])
    except UserError as error:
        return f"config.target_bit: {error}"
    return _rows_problem(record["rows"], "test" if phase == "final" else "val", metric_of(config))


def _rows_problem(rows: list[Any], split: str, metric: Metric) -> str:
    seen = set()
    fields = ROW if "accuracy" in scored(metric, 0.0) else SCORED_ROW
    for row in rows:
        if not isinstance(row, dict) or not set(fields) <= set(row):
            return f"a row lacks some of {', '.join(fields)}"
        if row.get("metric", metric.key) != metric.key:
            return f"metric {row['metric']!r} is not {metric.key!r}, that of its data"
        value = row["accuracy"] if fields is ROW else row["score"]
        if not isinstance(value, int | float) or not (math.isfinite(value) and metric.low <= value <= metric.high):
            return f"{metric.name} {value!r} is not in [{metric.low:g}, {metric.high:g}]"
        if problem := _point_problem(row):
            return problem
        if (key := row_key(row)) in seen:
            return f"two rows for {' '.join(map(str, key))}"
        seen.add(key)
    return "" if any(row["split"] == split for row in rows) else f"no row of the {split} split"


def _point_problem(row: dict[str, Any]) -> str:
    """What is wrong with the bits of a row: of its weights, and of what else it says that it rounds."""
    if LAYERS in row:
        try:
            point(row)
        except UserError as error:
            return f"bits {row['bits']!r}, {LAYERS}: {error}"
        return ""
    legal = f"a whole number from {MIN_BITS} to {MAX_BITS}"
    if row["bits"] != FLOAT and not _is_width(row["bits"]):
        return f"bits {row['bits']!r} is neither {legal} nor {FLOAT!r}"
    for name in ROW_WHERE_QUANTIZED:
        if name in row and not _is_width(row[name]):
            return f"{name} {row[name]!r} is not {legal}"
        if name in row and row["bits"] == FLOAT:
            return f"{name} {row[name]!r} in a row whose bits are {FLOAT!r}"
    return ""


def _is_width(value: Any) -> bool:
    return type(value) is int and MIN_BITS <= value <= MAX_BITS
