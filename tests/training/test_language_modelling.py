"""Language modelling: figures are those of a plain loop, over batches of any size; runs, and what they refuse."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import data, repeat
from harness.core.errors import UserError
from harness.tasks.base import find
from harness.training.build import build
from harness.training.config import complete, component
from harness.training.run import run

TASK = find("language_modelling")
RAW: dict[str, Any] = {
    "seed": 3,
    "target_bit": 3,
    "methods": ["ste"],
    "model": {"name": "llama", "layers": 1, "width": 16, "heads": 2, "kv_heads": 1},
    "data": {"name": "text", "context": 8, "windows": 8},
    "train": {"epochs": 1, "batch_size": 4, "optimizer": "adamw", "learning_rate": 1e-2, "schedule": "cosine"},
    "deploy": {"bits": [3], "scale": "recalibrate"},
    "runtime": {"wandb": "off", "device": "cpu", "threads": 1},
}


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "text.txt").write_text("".join(f"{number} squared is {number**2}\n" for number in range(60)))
    return {**RAW, "data": {**RAW["data"], "root": str(tmp_path / "text.txt")}}


def plain_bits(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Bits per token, one token after another."""
    found = []
    for row, target in zip(logits.flatten(0, 1).double(), targets.flatten().tolist(), strict=True):
        found.append(-math.log2(row.exp()[target] / row.exp().sum()))
    return sum(found) / len(found)


def test_figures_are_those_of_a_plain_loop_however_a_split_is_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 5, 9, generator=generator), torch.randint(0, 9, (7, 5), generator=generator)
    cuts = [(7,), (1, 6), (3, 3, 1)]
    for cut in cuts:
        parts = list(zip(logits.split(cut), targets.split(cut), strict=True))
        sums = sum(TASK.summed(one, other, other) for one, other in parts).tolist()  # type: ignore[union-attr]
        n = sum(TASK.counted(other) for _, other in parts)
        bits, nats, perplexity = TASK.results(sums, n)
        assert n == 35
        assert bits == pytest.approx(plain_bits(logits, targets), rel=1e-6)
        assert nats == pytest.approx(float(TASK.loss(logits, targets)), rel=1e-6)
        assert (bits, perplexity) == (pytest.approx(nats / math.log(2)), pytest.approx(2**bits))


def test_the_largest_perplexity_is_a_number() -> None:
    assert math.isfinite(TASK.results([1e6], 1)[2])
    assert TASK.metric.shown(2.34567) == "2.346"
    assert TASK.metric.worst([1.0, 2.0]) == 2.0


def test_distillation_is_per_token() -> None:
    outputs, teacher = torch.randn(2, 3, 4, 5).unbind(0)
    target = teacher.softmax(-1)
    wanted = -(target * outputs.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(TASK.distillation(outputs, teacher), wanted)
    entropy = -(target * target.log()).sum(-1).mean()
    torch.testing.assert_close(TASK.divergence(outputs, teacher), wanted - entropy)
    assert float(TASK.divergence(outputs, outputs)) == pytest.approx(0, abs=1e-6)


def test_a_run_has_rows_of_bits_and_perplexity(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "s" / "runs" / (run_id := complete(raw).run_id())
    record = run(complete(raw), folder)
    dataset: Any = data.load_dataset(component("data set", raw["data"]), 3, "cpu")
    for row in record["rows"]:
        assert row["metric"] == "bpc"
        assert row["n"] == len(getattr(dataset, row["split"]).tokens) - 1
        assert row["score"] == pytest.approx(row["loss"] / math.log(2))
        assert row["ppl"] == pytest.approx(math.exp(row["loss"]))
    assert record["audit"]["quantized"] == 8, "all linear layers, the last one, too"
    assert record["provenance"]["data_digest"] == dataset.digest
    (line,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"val/bpc_w3", "val/ppl_w3", "val/loss_w3", "val/bpc_float", "val/bpc_worst"} <= set(line)
    record["provenance"] |= {"data_digest": "0123", "python": "3.10.1"}
    (folder / "record.json").write_text(json.dumps(record))
    (folder.parents[1] / "sweep.json").write_text("{}")
    assert repeat.main([run_id, "--root", str(tmp_path / "runs"), "--dir", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("the data are not those of the record (digest ")
    assert "here, 3.10.1 there): other numbers are to be expected" in said[0]
    assert said[1].startswith("epoch "), "that is said before it trains"
    assert said[-1] == f"run {run_id}: all 6 rows are the same"
    record["rows"] = [row for row in record["rows"] if row["deploy"] != "unigram"]  # as earlier versions wrote it
    (folder / "record.json").write_text(json.dumps(record))
    assert repeat.main([run_id, "--root", str(tmp_path / "runs"), "--dir", str(tmp_path / "and_again")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"run {run_id}: all 4 rows are the same"


def test_the_baseline_has_the_frequencies_of_the_training_text(raw: dict[str, Any], tmp_path: Path) -> None:
    record = run(complete({**raw, "phase": "final"}), tmp_path / "run")
    rows = {row["split"]: row for row in record["rows"] if row["deploy"] == TASK.baseline}
    dataset: Any = data.load_dataset(component("data set", raw["data"]), 3, "cpu")
    train, test = (getattr(dataset, split).tokens.tolist()[1:] for split in ("train", "test"))
    share = [(train.count(token) + 1) / (len(train) + dataset.outputs) for token in range(dataset.outputs)]
    assert rows.keys() == {"val", "test"}
    assert rows["test"]["score"] == pytest.approx(-sum(math.log2(share[token]) for token in test) / len(test))
    assert (rows["test"]["bits"], rows["test"]["n"]) == ("float", len(test))
    assert {each["deploy"] for each in record["deployments"]} == {"rtn"}


def test_no_other_rows_have_the_name_of_the_baseline(raw: dict[str, Any]) -> None:
    deploy = {**raw["deploy"], "methods": [{"name": "gptq", "as": "unigram"}]}
    with pytest.raises(UserError, match=r"as: 'unigram' is what the task language_modelling calls its baseline"):
        complete({**raw, "deploy": deploy})


def test_a_row_is_what_the_network_gives(raw: dict[str, Any]) -> None:
    session = build(complete({**raw, "data": {**raw["data"], "context": 7}}))
    tokens = session.dataset.val.tokens.long()  # type: ignore[attr-defined]
    (row,) = session.evaluator.rows(session.model, "final", "val", [("rtn", session.config.evaluated_points[-1])])
    network = session.evaluator.deployed(session.model, "float")
    with torch.no_grad():
        windows = [(tokens[at : at + 7], tokens[at + 1 : at + 8]) for at in range(0, len(tokens) - 1, 7)]
        parts = [(network(inputs[None, : len(targets)]), targets[None]) for inputs, targets in windows]
    wanted = sum(plain_bits(logits, targets) * targets.numel() for logits, targets in parts) / (len(tokens) - 1)
    assert row["score"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"name": "edsr"}}, "model 'edsr' serves super_resolution, and the task of data set 'text' is lang"),
        ({"data": {"name": "digits"}}, "model 'llama' serves language_modelling, and the task of data set 'digits' is"),
        ({"model": {"name": "llama", "init": "pretrained"}}, "init: there are no pretrained weights of llama"),
        ({"model": {"name": "llama", "heads": 3}}, "heads: 3: width / heads must be even, and width is 128"),
        ({"model": {"name": "llama", "kv_heads": 3}}, "kv_heads: 3 does not divide the 4 heads"),
        ({"model": {"name": "hf:"}}, "name: 'hf:': not of the form hf:<name or folder>"),
        ({"model": {"name": "hf:./none"}}, "name: 'hf:./none': none is not there"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str, raw: dict[str, Any]) -> None:
    with pytest.raises(UserError) as refused:
        complete({**raw, **changes})
    assert said in str(refused.value)
