"""A finished run's network, deployed at a point of its record and written to a file that is checked against it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.core import yaml_file
from harness.core.bits import FLOAT
from harness.core.errors import UserError, nearest
from harness.core.layer_points import AnyPoint, in_words, point_of
from harness.exporting import onnx_file, packed
from harness.exporting.network import Network, taken
from harness.quantization.deploy import weight_bits
from harness.records import schema
from harness.records.files import read_json
from harness.records.run_directory import RunDirectory
from harness.training.evaluator import evaluate_all
from harness.training.recorded import ACCURACY_TOLERANCE, session_of
from harness.training.session import Session

_SUFFIX = {"packed": ".safetensors", "onnx": ".onnx"}
#: Largest difference between an accuracy in onnxruntime and that of the record: 0.1 points, or one image.
TOLERANCE = 0.001


def export_run(folder: Path, bits: Any, deploy: str = "rtn", kind: str = "packed", to: Path | None = None) -> list[str]:
    """Write a run's network as deployed at a point of its record, by default beside the run's files.

    bits: as a user writes them, or the name of a point by layer. Returns what was written, as lines for a terminal.
    Raises UserError for a run without record or weights, a point that was not evaluated, a network that the format
    cannot hold, and a file that does not reproduce the record.
    """
    files = RunDirectory(folder)
    record = read_json(files.record)
    if record is None:
        raise UserError(f"{folder}: no finished run (there is no record.json to read)")
    row = recorded_row(record, bits, deploy)
    if not files.best.exists():
        raise UserError(f"{folder}: the run kept no weights (best.safetensors; see keep_best in a sweep file)")
    session = session_of(record, files.best, "cpu")
    (deployment,) = session.evaluator.deployments(session.model, [(deploy, schema.point(row))])
    network = _parts(session, deployment.model, deployment.allocated or schema.point(row))
    accuracy = _accuracy(session, deployment.model, row["split"])
    if abs(accuracy - row["accuracy"]) > ACCURACY_TOLERANCE:
        raise UserError(_differs("the network here", accuracy, row))
    about = _about(record, session, row)
    path = (to or folder) / f"{record['run_id']}-{schema.point(row).key}-{deploy}{_SUFFIX[kind]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "packed":
        packed.save(path, network, about)
        found = _accuracy(session, _checked(path, session, deployment.model), row["split"])
    else:
        images = _images(session, row["split"], 2)
        onnx_file.write(path, deployment.model, network, images, about)
        found = _in_onnxruntime(path, session, row["split"])
        if abs(found - row["accuracy"]) > max(TOLERANCE, 1.5 / row["n"]):
            path.unlink()
            raise UserError(_differs(f"{path.name} in onnxruntime", found, row))
    return [str(path), *sizes(path, network), f"{row['split']} accuracy {100 * found:.2f} %, {_recorded(row)}"]


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
        near = nearest(key, {schema.point(row).key for row in rows} - {key})
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
        f"{size:,} bytes; in fp32 {network.float_bytes:,} ({network.float_bytes / size:.1f} times as many); "
        f"codes alone, sum n b / 8: {network.code_bytes:,}"
    ]


def _parts(session: Session, deployed: nn.Module, point: AnyPoint) -> Network:
    config = session.config
    return taken(deployed, weight_bits(session.model, point, config.exclude, config.quantizer.quantizes_norms))


def _about(record: Mapping[str, Any], session: Session, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its origin, and what is needed to build the network and to prepare its inputs."""
    data, config = session.dataset, dict(record["config"])
    config["data"] = {key: value for key, value in config["data"].items() if key != "root"}  # a path says nothing
    return {
        "content": "a deployed network in integer codes: harness.load_packed reads it",
        "run_id": record["run_id"],
        "config": config,
        "point": schema.point(row).plain,
        "deploy": row["deploy"],
        "row": {key: row[key] for key in ("split", "accuracy", "loss", "n")},
        "input": {
            "shape": list(data.input_shape),
            "max_value": data.max_value,
            "mean": data.mean.tolist(),
            "std": data.std.tolist(),
            "classes": list(data.class_names),
        },
    }


def _images(session: Session, split: str, count: int) -> torch.Tensor:
    return session.dataset.batch(getattr(session.dataset, split), slice(0, count))[0]


def _accuracy(session: Session, model: nn.Module, split: str) -> float:
    config = session.config
    how = (config.runtime.eval_batch_size, config.deploy.precision)
    ((accuracy, _, _),) = evaluate_all([model], session.dataset, getattr(session.dataset, split), *how)
    return accuracy


def _checked(path: Path, session: Session, deployed: nn.Module) -> nn.Module:
    """The network that a file gives. Raises UserError where a bit of its outputs is another."""
    loaded, images = packed.load_packed(path), _images(session, "val", 8)
    with torch.inference_mode():
        same = torch.equal(loaded(images), deployed(images))
    if not same:
        path.unlink()
        raise UserError(f"{path.name}: the network cannot be rebuilt from it with the same outputs")
    return loaded


def _in_onnxruntime(path: Path, session: Session, split: str) -> float:
    data, batch = getattr(session.dataset, split), session.config.runtime.eval_batch_size
    run, correct = onnx_file.runner(path), 0
    for start in range(0, len(data), batch):
        images, labels = session.dataset.batch(data, slice(start, start + batch))
        correct += int((run(images).argmax(1) == labels).sum())
    return correct / len(data)


def _recorded(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.2f} % in the record"


def _differs(what: str, accuracy: float, row: Mapping[str, Any]) -> str:
    at = in_words(schema.point(row))
    return f"{what} has {row['split']} accuracy {100 * accuracy:.2f} % {at}, but {_recorded(row)}"
