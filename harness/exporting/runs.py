"""A finished run's network, deployed at a point of its record and written to a file that is checked against it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.core import outside, yaml_file
from harness.core.bits import FLOAT
from harness.core.errors import UserError, nearest
from harness.core.layer_points import AnyPoint, in_words, point_of
from harness.core.metric import Metric
from harness.data.base import Dataset
from harness.exporting import onnx_file, packed
from harness.exporting.api import SUFFIXES
from harness.exporting.network import Network, taken
from harness.quantization.deploy import weight_bits
from harness.quantization.integer_codes import codes_digest
from harness.records import schema
from harness.records.files import make_folder_of
from harness.records.run_directory import RunDirectory
from harness.records.weights import no_weights
from harness.training.evaluator import Deployment
from harness.training.recorded import session_of
from harness.training.session import Session

#: Largest difference between a metric of the file and that of the record, by its key, where it is not that between
#: devices.
TOLERANCES = {"acc": 0.001, "bpc": 0.01}


def export_run(folder: Path, bits: Any, deploy: str = "rtn", kind: str = "packed", to: Path | None = None) -> list[str]:
    """Write a run's network as deployed at a point of its record, by default beside the run's files.

    bits: as a user writes them, or the name of a point by layer. Returns what was written, as lines for a terminal.
    Raises UserError for a run without record or weights, a point that was not evaluated, a network that the format
    cannot hold, and a file that does not reproduce the record.
    """
    files = RunDirectory(folder)
    outside.look_near(folder)
    record = files.finished()
    row = recorded_row(record, bits, deploy)
    if not files.best.exists():
        raise no_weights(folder, "the run kept no weights")
    session = session_of(record, files.best, "cpu")
    (deployment,) = session.evaluator.deployments(session.model, [(deploy, schema.point(row))])
    network = _parts(session, deployment.model, deployment.allocated or schema.point(row))
    metric = session.config.task.metric
    _compare("the network here", _score(session, deployment, row), row, metric, metric.tolerance)
    path = (to or folder) / f"{record['run_id']}-{schema.point(row).key}-{outside.shown(deploy)}{SUFFIXES[kind]}"
    make_folder_of(path)
    kept = [] if to is None else _kept(to / outside.KEPT, record["config"], kind)  # else it is beside them
    written = _write(path, kind, session, deployment.model, network, _about(record, session, row))
    try:
        found = _score(session, replace(deployment, model=written), row)
        _compare(path.name, found, row, metric, _tolerance(metric, row["n"]))
    except UserError:
        path.unlink()
        raise
    compared = f"{metric.shown(found)}, {metric.shown(schema.score_of(row))} in the record"
    score = f"{row['split']} {metric.name} {compared}"
    return [str(path), *kept, *sizes(path, network), *_compared_codes(network, record, row), score]


def _kept(folder: Path, config: Any, kind: str) -> list[str]:
    """Copy the user's own files that a configuration names; returns a line that says so, or none without such files."""
    if not outside.keep(folder, config):
        return []
    use = "onnxruntime needs none" if kind == "onnx" else "harness.load_packed(path) needs them beside the file"
    return [f"{folder}{os.sep}: copies of your own files that the run names; {use}"]


def _compared_codes(network: Network, record: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Whether the codes are those of the record, as a line; nothing where it holds no digest of them."""
    if schema.CODES not in row:
        return []
    digest, device = codes_digest(network.layers), record["provenance"].get("device")
    same = "as in the record" if digest == row[schema.CODES] else f"others than in the record, which is of {device}"
    return [f"codes {digest}, {same}"]


def _write(
    path: Path, kind: str, session: Session, deployed: nn.Module, network: Network, about: dict[str, Any]
) -> nn.Module:
    """Write the file; returns a network that computes as it says."""
    if kind == "packed":
        packed.save(path, network, about)
        return _checked(path, session, deployed)
    onnx_file.write(path, deployed, network, _inputs(session), about, session.config.task.free_dimensions)
    return onnx_file.Runner(path)


def recorded_row(record: Mapping[str, Any], bits: Any, deploy: str) -> dict[str, Any]:
    """The row of a point and deploy method, of the test split where it has one. Raises UserError for none.

    bits: a point, as a user writes it, or the name of one by layer.
    """
    key = _key(bits)
    if key == FLOAT:
        raise UserError("--bits float: the network in float has no codes; best.safetensors holds its weights")
    rows = [row for row in record["rows"] if not schema.point(row).is_float]
    chosen = [row for row in rows if row["deploy"] == deploy and key in (schema.point(row).key, row["bits"])]
    if not chosen:
        there = sorted({f"{schema.point(row).key} ({row['deploy']})" for row in rows})
        near = nearest(key, {schema.point(row).key for row in rows if row["deploy"] == deploy})
        by = "" if deploy == "rtn" else f" --deploy {deploy}"
        raise UserError(
            f"--bits {key}: the run was not evaluated there by {deploy}{near} (its record has: {', '.join(there)}); "
            f"python -m harness.evaluate adds rows: --bits {key}{by}"
        )
    return max(chosen, key=lambda row: bool(row["split"] == "test"))


def _key(bits: Any) -> str:
    try:
        return point_of(yaml_file.parse(bits) if isinstance(bits, str) else bits).key
    except UserError:
        return str(bits)


def sizes(path: Path, network: Network) -> list[str]:
    """The size of a file beside that of the network in fp32, and beside its codes alone."""
    size = path.stat().st_size
    return [
        f"{size:,} bytes, {size / network.float_bytes:.2f} times fp32's {network.float_bytes:,}; "
        f"codes alone, sum n b / 8: {network.code_bytes:,}"
    ]


def _parts(session: Session, deployed: nn.Module, point: AnyPoint) -> Network:
    config = session.config
    return taken(deployed, weight_bits(session.model, point, config.exclude, config.quantizer.quantizes_norms))


def _about(record: Mapping[str, Any], session: Session, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its origin, and what is needed to build the network and to prepare its inputs."""
    data, config = session.dataset, dict(record["config"])
    config["data"] = {key: value for key, value in config["data"].items() if key != "root"}  # a path says nothing
    inputs: dict[str, Any] = {"shape": list(data.input_shape), "outputs": data.outputs}
    if isinstance(data, Dataset):  # how images become inputs: (x / max_value - mean) / std
        inputs |= {"max_value": data.max_value, "mean": data.mean.tolist(), "std": data.std.tolist()}
        inputs["classes"] = list(data.class_names)
    return {
        "content": "a deployed network in integer codes: harness.load_packed reads it",
        "run_id": record["run_id"],
        "config": config,
        "point": schema.point(row).plain,
        "deploy": row["deploy"],
        "row": dict(row),
        "input": inputs,
    }


def _inputs(session: Session) -> Tensor:
    """Two training inputs, without augmentation."""
    return session.dataset.train_batch(torch.arange(2))[0]


def _score(session: Session, deployment: Deployment, row: Mapping[str, Any]) -> float:
    (found,) = session.evaluator.rows_of([deployment], row["phase"], row["split"])
    return schema.score_of(found)


def _tolerance(metric: Metric, n: int) -> float:
    """How far a file's metric may be from the record's: of accuracy at least one image of `n`."""
    fixed = TOLERANCES.get(metric.key, metric.tolerance)
    return max(fixed, 1.5 / n) if metric.unit == "%" else fixed


def _compare(what: str, score: float, row: Mapping[str, Any], metric: Metric, tolerance: float) -> None:
    recorded = schema.score_of(row)
    if not abs(score - recorded) <= tolerance:  # NaN is refused, too
        at, shown = in_words(schema.point(row)), metric.shown(recorded)
        raise UserError(f"{what}: {row['split']} {metric.name} {metric.shown(score)} {at}, but {shown} in the record")


def _checked(path: Path, session: Session, deployed: nn.Module) -> nn.Module:
    """The network that a file gives. Raises UserError where a bit of its outputs is another."""
    loaded, inputs = packed.load_packed(path), _inputs(session)
    with torch.inference_mode():
        same = torch.equal(loaded(inputs), deployed(inputs))
    if not same:
        path.unlink()
        raise UserError(f"{path.name}: the network cannot be rebuilt from it with the same outputs")
    return loaded
