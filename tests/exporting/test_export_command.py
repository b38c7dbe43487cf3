"""`python -m harness.export`: a run's network in a file that gives the record's accuracy."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_here

import harness
from harness.core.bits import BitWidths
from harness.exporting import onnx_file, packed, runs
from harness.quantization import MaxAbsQuantizer
from harness.repeat import differences
from harness.training.build import build
from harness.training.config import complete
from harness.training.recorded import session_of
from harness.training.run import run

RAW: dict[str, Any] = {
    "methods": "lsq",
    "target_bit": 4,
    "model": {"name": "mlp5", "hidden": [24]},
    "data": {"name": "digits"},
    "train": {"epochs": 0},
    "deploy": {"bits": [2, 4, "w4a8"], "scale": "keep_range"},
    "activations": {"calibration_batches": 1},
    "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
}


def export(*arguments: object) -> Any:
    return run_here("harness.export", *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(complete(RAW), folder)
    return folder


@pytest.mark.parametrize("bits", ["w4", "2", "w4a8"])
def test_a_packed_file_is_the_recorded_network(bits: str, finished: Path, tmp_path: Path) -> None:
    ended = export(finished, "--bits", bits, "--to", tmp_path / "new")
    assert (ended.returncode, ended.stderr) == (0, "")
    record = json.loads((finished / "record.json").read_text())
    named, size, codes, accuracy = ended.stdout.splitlines()
    point = {"2": "w2"}.get(bits, bits)
    path = tmp_path / "new" / f"{record['run_id']}-{point}-rtn.safetensors"
    assert named == str(path)
    here, full = path.stat().st_size, 4 * (64 * 24 + 24 + 240 + 10)
    assert size.startswith(f"{here:,} bytes, {here / full:.2f} times fp32's {full:,}; ")
    assert size.endswith(f"codes alone, sum n b / 8: {(64 * 24 + 240) * (2 if bits == '2' else 4) // 8:,}")
    (row,) = (each for each in record["rows"] if runs.schema.point(each).key == point and each["split"] == "test")
    assert codes == f"codes {row[runs.schema.CODES]}, as in the record"
    assert packed.read(path)[1][runs.schema.CODES] == row[runs.schema.CODES]
    assert accuracy == f"test accuracy {100 * row['accuracy']:.2f} %, {100 * row['accuracy']:.2f} % in the record"
    session = session_of(record, finished / "best.safetensors")
    inputs = torch.rand(5, *session.dataset.input_shape)
    assert torch.equal(
        harness.load_packed(path)(inputs), session.evaluator.deployed(session.model, bits_of(bits))(inputs)
    )


def bits_of(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def test_the_file_says_what_it_is(finished: Path, tmp_path: Path) -> None:
    export(finished, "--bits", "w4", "--to", tmp_path)
    _, about = packed.read(next(tmp_path.iterdir()))
    assert (about["point"], about["deploy"], about["input"]["shape"]) == (4, "rtn", [1, 8, 8])
    assert about["run_id"] == complete(about["config"]).run_id()
    assert "root" not in about["config"]["data"]


def mistakes(finished: Path, folder: Path) -> dict[str, tuple[list[object], str]]:
    bare = folder / "bare"
    shutil.copytree(finished, bare)
    (bare / "best.safetensors").unlink()
    other = folder / "other"
    shutil.copytree(finished, other)
    record = json.loads((other / "record.json").read_text())
    record["rows"] = [{**row, "accuracy": 0.9} for row in record["rows"]]
    (other / "record.json").write_text(json.dumps(record))
    return {
        "point": ([finished, "--bits", "w3"], "--bits w3: the run was not evaluated there by rtn"),
        "deploy": ([finished, "--bits", "4", "--deploy", "gptq"], "--bits w4 --deploy gptq"),
        "float": ([finished, "--bits", "float"], "--bits float: the network in float has no codes"),
        "format": ([finished, "--bits", "4", "--format", "onxx"], "format 'onxx'; did you mean 'onnx'"),
        "file": ([finished, "--bits", "4", "--to", folder / "a.onnx"], "a.onnx: name a folder"),
        "method": ([finished, "--bits", "4", "--deploy", "gptk"], "deploy method 'gptk'; did you mean 'gptq'"),
        "no weights": ([bare, "--bits", "4"], "the run kept no weights"),
        "no run": ([folder, "--bits", "4"], "no finished run"),
        "no id": (["abc", "--bits", "4", "--root", folder], "run 'abc' is not under"),
        "other network": ([other, "--bits", "4"], "90.00 % in the record"),
    }


NAMES = ["point", "deploy", "float", "format", "file", "method", "no weights", "no run", "no id", "other network"]


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_end_with_2_and_one_message(name: str, finished: Path, tmp_path: Path) -> None:
    arguments, said = mistakes(finished, tmp_path)[name]
    ended = export(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*-rtn.*"))


def test_only_points_of_the_deploy_method_are_suggested(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    assert "by gptq (its record has: " in export(folder, "--bits", "w4", "--deploy", "gptq").stderr
    record = json.loads((folder / "record.json").read_text())
    rows = [{**row, "deploy": "gptq"} for row in record["rows"] if runs.schema.point(row).key == "w4a8"]
    (folder / "record.json").write_text(json.dumps({**record, "rows": [*record["rows"], *rows]}))
    assert "by gptq; did you mean 'w4a8'? (" in export(folder, "--bits", "w4", "--deploy", "gptq").stderr
    assert "by rtn; did you mean 'w4a8'? (" in export(folder, "--bits", "w4a4").stderr


def test_what_onnxruntime_cannot_run_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "_graph", lambda *given: b"no graph")
    ended = export(finished, "--bits", "4", "--format", "onnx", "--to", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: onnxruntime cannot run this network: InvalidProtobuf")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    ended = export(finished, "--bits", "4", "--format", "onnx", "--to", tmp_path)
    assert ended.returncode == 2
    assert "pip install 'oscillation-harness[export]'" in ended.stderr


def test_points_by_layer_have_names(tmp_path: Path) -> None:
    points = {"name": "head8", "layers": {"*": 4, "layer2": 8}}
    run(complete({**RAW, "deploy": {**RAW["deploy"], "bits": [points]}}), tmp_path)
    ended = export(tmp_path, "--bits", "head8")
    assert (ended.returncode, ended.stderr) == (0, "")
    network, _ = packed.read(next(tmp_path.glob("*-head8-rtn.safetensors")))
    assert {name: codes.bits for name, codes in network.layers.items()} == {"layer1": 4, "layer2": 8}


def test_a_deploy_method_is_named_as_its_rows_are(tmp_path: Path) -> None:
    entry = {"name": "gptq", "as": "gptq_few", "images": 8}
    deploy = {"bits": [2], "scale": "keep_range", "methods": ["rtn", entry]}
    run(complete({**RAW, "deploy": deploy}), tmp_path)
    ended = export(tmp_path, "--bits", "w2", "--deploy", "gptq_few")
    assert (ended.returncode, ended.stderr) == (0, "")
    _, about = packed.read(next(tmp_path.glob("*-w2-gptq_few.safetensors")))
    assert (about["deploy"], about["row"]["deploy"]) == ("gptq_few", "gptq_few")
    assert "did you mean 'gptq_few'" in export(tmp_path, "--bits", "w2", "--deploy", "gptq_fwe").stderr
    added = run_here("harness.evaluate", tmp_path, "--bits", "w3", "--deploy", "gptq_few")
    assert added.returncode == 0
    assert ": 4 rows added\n" in added.stdout  # by rtn and by it, on two splits
    assert added.stdout.count("\n  test ") == 2, "what they say is told"


def test_deployed_rows_have_a_digest_of_their_codes(finished: Path) -> None:
    rows = json.loads((finished / "record.json").read_text())["rows"]
    digests = {(row["split"], runs.schema.point(row).key): row.get(runs.schema.CODES) for row in rows}
    assert digests["val", "float"] is digests["test", "float"] is None
    assert digests["val", "w4"] == digests["test", "w4"] == digests["val", "w4a8"]  # codes are those of weights
    assert digests["val", "w4"] != digests["val", "w2"]
    assert len(str(digests["val", "w2"])) == 64


def test_a_weight_without_codes_has_no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaxAbsQuantizer, "forward", lambda self, weight: weight + 0.1)  # on no grid
    raw = {**RAW, "methods": "none", "target_bit": None, "watch_bit": 4}
    session = build(complete(raw))
    (one,) = session.evaluator.deployments(session.model, [("rtn", BitWidths.of(2))], measure=True)
    assert one.codes is None
    assert runs.schema.CODES not in session.evaluator.rows_of([one], "final", "val")[0]


def test_other_codes_and_none_are_said(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((folder / "record.json").read_text())
    record["provenance"]["device"] = "another"
    for row in record["rows"]:
        row[runs.schema.CODES] = "abc"
    (folder / "record.json").write_text(json.dumps(record))
    assert "others than in the record, which is of another" in export(folder, "--bits", "4").stdout
    for row in record["rows"]:  # as earlier versions wrote them
        del row[runs.schema.CODES]
    (folder / "record.json").write_text(json.dumps(record))
    assert len(export(folder, "--bits", "4").stdout.splitlines()) == 3


def test_other_codes_are_a_difference(finished: Path) -> None:
    record = json.loads((finished / "record.json").read_text())
    rows = [{**row, runs.schema.CODES: "abc"} if row["bits"] == 2 else row for row in record["rows"]]
    lines = differences({**record, "rows": rows}, record)
    assert lines == [
        f"{split} rtn keep_range {BitWidths.of(2)}: the same accuracy and loss, from other integer codes"
        for split in ("val", "test")
    ]
    earlier = [{key: each for key, each in row.items() if key != runs.schema.CODES} for row in record["rows"]]
    assert differences({**record, "rows": earlier}, record) == []
