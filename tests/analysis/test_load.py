"""What is read, what is listed as missing, and what is refused."""

import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from synthetic_sweep import MEASURED, SweepWriter, only_group, quickstart

from analysis.disk_source import load_results, read_metrics, sweep_names
from analysis.grouping import make_groups
from analysis.series import Group, summarize
from harness.core.errors import UserError


def test_labels_targets_and_means(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    sweep.add("none", 3)
    sweep.write()
    group = only_group(tmp_path)
    labels = [one.label for one in group.series]
    assert labels == ["float", "ste@2", "oscillation@2", "ste@3", "oscillation@3", "none@3"]
    assert group.points() == [2, 3, 4, 8, "float"]
    frame = summarize(group).set_index(["series", "bits"])
    runs = [sweep.run_of("ste-target_bit=2", seed) for seed in (0, 1, 2)]
    values = [row["accuracy"] for run in runs for row in run["rows"] if (row["split"], row["bits"]) == ("test", 3)]
    assert frame.loc[("ste@2", "3"), "mean"] == pytest.approx(100 * sum(values) / 3)
    assert frame.loc[("ste@2", "3"), "n"] == 3
    assert frame["high"].max() <= 100
    assert frame["low"].min() >= 0


def test_image_folders_go_by_the_name_of_their_folder(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    for record in sweep.records.values():
        record["config"]["data"] = {"name": "image_folder", "root": "data/birds"}
    sweep.write()
    assert only_group(tmp_path).title == "mlp5 on birds images"
    sweep.run_of("ste-target_bit=2", 0)["config"]["data"]["root"] = "/scratch/birds"
    sweep.run_of("ste-target_bit=2", 1)["config"]["data"]["root"] = "/scratch/fish"
    sweep.write()
    with pytest.raises(UserError, match="mlp5 on image_folder: finals of different protocols"):
        only_group(tmp_path)


def test_stacked_methods_and_a_tuned_target_are_named_by_the_record(tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path)
    sweep.add("lsq", 4, grid={}, methods=[{"name": "oscillation"}, {"name": "lsq"}])
    sweep.write()
    assert [one.label for one in only_group(tmp_path).series] == ["oscillation+lsq@4"]


def test_superseded_runs_and_validation_rows_are_not_used(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    for record in sweep.records.values():
        for row in record["rows"]:
            if row["split"] == "val":
                row["accuracy"] = 0.001
    stray = json.loads(json.dumps(sweep.run_of("ste-target_bit=2", 0)))
    sweep.write()
    folder = tmp_path / "quickstart" / "runs" / "superseded"
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps({**stray, "run_id": "superseded"}))
    group = only_group(tmp_path)
    assert "superseded" not in {final.run_id for final in group.finals}
    assert summarize(group)["mean"].min() > 1


def test_missing_finals_are_listed_and_the_rest_is_drawn(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    del sweep.cells["ste-target_bit=2"]["finals"]["1"]
    sweep.cells["oscillation-target_bit=3"].update(chosen=None, finals={})
    sweep.cells["ste-target_bit=3"]["finals"]["2"] = "running"
    failed = sweep.cells["none-target_bit=None"]["finals"].pop("0")
    sweep.cells["none-target_bit=None"]["failed"] = [failed, 0]
    sweep.write()
    loaded = load_results(tmp_path, "quickstart")
    assert {(m.cell, m.seed, m.reason) for m in loaded.missing} == {
        ("ste-target_bit=2", 1, "no final yet"),
        *(("oscillation-target_bit=3", seed, "tuning not finished") for seed in (0, 1, 2)),
        ("ste-target_bit=3", 2, "final not finished"),
        ("none-target_bit=None", 0, "failed"),
    }
    (group,) = make_groups(loaded)
    counts = summarize(group).groupby("series")["n"].max().to_dict()
    assert counts == {"float": 2, "ste@2": 2, "oscillation@2": 3, "ste@3": 2}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: text[:100], "unreadable"),
        (lambda text: "[]", "not an object"),
        (lambda text: text.replace('"rows"', '"raws"'), "rows is not list"),
        (lambda text: text.replace('"seed": 1', '"seed": 7'), "with seed 7"),
        (lambda text: text.replace('"phase": "final", "epochs"', '"phase": "tune", "epochs"'), "tune run"),
        (lambda text: text.replace('"accuracy": 0.9', '"accuracy": 9.9', 1), "not in [0, 1]"),
        (lambda text: text.replace('"bits": 3', '"bits": 4'), "two rows for"),
        (lambda text: text.replace('"split": "test"', '"split": "val2"'), "no row of the test split"),
    ],
)
def test_a_corrupt_record_is_named_skipped_and_counted(tmp_path: Path, spoil: Any, reason: str) -> None:
    sweep = quickstart(tmp_path).write()
    path = tmp_path / "quickstart/runs" / sweep.cells["ste-target_bit=2"]["finals"]["1"] / "record.json"
    path.write_text(spoil(path.read_text()))
    loaded = load_results(tmp_path, "quickstart")
    (line,) = loaded.corrupt
    assert str(path) in line
    assert reason in line
    assert [(m.cell, m.seed, m.reason) for m in loaded.missing] == [("ste-target_bit=2", 1, "corrupt record")]
    assert len(loaded.finals) == 14


def test_one_run_shared_by_two_cells_counts_once(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    twin = json.loads(json.dumps(sweep.cells["none-target_bit=None"]))
    sweep.cells["twin"] = {**twin, "id": "twin", "grid": {"target_bit": 3}}
    sweep.write()
    group = only_group(tmp_path)
    assert [one.label for one in group.series].count("float") == 1
    assert summarize(group)["n"].max() == 3
    assert any("twin shares its runs" in note for note in group.notes)


def test_cells_with_one_label_are_told_apart_and_never_pooled(tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path)
    for strength in (None, 1, 3):
        own_key = {"oscillation.strength": strength} if strength else {}
        cell = sweep.add("oscillation", 2, grid={"target_bit": 2, **own_key})
        for seed, run_id in list(sweep.cells[cell]["finals"].items()):
            own = f"{run_id}-{strength}"
            sweep.records[own] = {**sweep.records.pop(run_id), "run_id": own}
            sweep.metrics[own] = sweep.metrics.pop(run_id)
            sweep.cells[cell]["finals"][seed] = own
    sweep.write()
    labels = [one.label for one in only_group(tmp_path).series]
    assert labels == ["oscillation@2", "oscillation@2 (strength=1)", "oscillation@2 (strength=3)"]


def test_several_ways_of_deployment_are_several_series(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    for seed in (0, 1, 2):
        rows = sweep.run_of("ste-target_bit=2", seed)["rows"]
        rows += [{**row, "deploy": "erq", "accuracy": 0.5} for row in rows]
    sweep.write()
    frame = summarize(only_group(tmp_path))
    assert {"ste@2, rtn", "ste@2, erq"} <= set(frame["series"])
    assert set(frame.loc[frame["series"] == "ste@2, erq", "mean"]) == {50.0}
    assert frame["n"].max() == 3


def test_a_group_for_each_model(tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path)
    for name in ("mlp5", "resnet18"):
        sweep.add("ste", 2, grid={"target_bit": 2, "model": name}, model={"name": name})
    sweep.write()
    groups = make_groups(load_results(tmp_path, "quickstart"))
    assert [group.file_suffix for group in groups] == ["-mlp5-digits", "-resnet18-digits"]
    assert [len(group.finals) for group in groups] == [3, 3]


def test_a_group_is_named_by_its_models_settings_only_where_the_name_is_not_enough(tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path)
    for model in ({"name": "mlp5", "width": 64}, {"name": "mlp5", "width": 128}, {"name": "vit_tiny", "width": 32}):
        sweep.add("ste", 2, grid={"target_bit": 2, "model": model}, model=model, tag=str(model["width"]))
    sweep.write()
    groups = make_groups(load_results(tmp_path, "quickstart"))
    assert [group.model for group in groups] == ["mlp5 width=64", "mlp5 width=128", "vit_tiny"]
    assert [len(group.series) for group in groups] == [1, 1, 1]


def test_a_group_for_each_setting_of_the_quantizer_that_every_cell_has(tmp_path: Path) -> None:
    def groups_of(root: Path, methods: tuple[str, ...]) -> list[Group]:
        sweep = SweepWriter(root)
        if "none" not in methods:
            sweep.add("none", None)
        for method, norms in product(methods, ("float", "quantized")):
            sweep.add(method, 2, grid={"target_bit": 2, "quantizer.norms": norms}, tag=f"{method}{norms}")
        sweep.write()
        return make_groups(load_results(root, "quickstart"))

    groups = groups_of(tmp_path / "every", ("none", "ste"))
    assert [group.model for group in groups] == ["mlp5 norms=float", "mlp5 norms=quantized"]
    assert [group.file_suffix for group in groups] == ["-mlp5-norms=float-digits", "-mlp5-norms=quantized-digits"]
    assert [[one.label for one in group.series] for group in groups] == [["none@2", "ste@2"]] * 2
    (group,) = groups_of(tmp_path / "some", ("ste",))
    assert [one.label for one in group.series] == ["float", "ste@2 (norms=float)", "ste@2 (norms=quantized)"]


def test_unequal_seed_sets_are_refused(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    sweep.cells["ste-target_bit=2"]["seeds"] = [0, 1, 2, 3]
    sweep.write()
    with pytest.raises(UserError, match=r"ste-target_bit=2 has \[0, 1, 2, 3\]; the other cells have \[0, 1, 2\]"):
        make_groups(load_results(tmp_path, "quickstart"))


def _change(record: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        record = record[name]
    record[last] = value


def test_where_pixels_are_kept_is_no_protocol(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    for seed in (0, 1, 2):
        _change(sweep.run_of("oscillation-target_bit=3", seed), "config/data/residency", "host")
    _change(sweep.run_of("ste-target_bit=2", 0), "config/data/download", True)
    sweep.write()
    assert only_group(tmp_path).series


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("config/train/epochs", 20, "train.epochs is 40"),
        ("config/train/schedule", {"name": "cosine"}, "train.schedule.name is None"),
        ("config/model/width", 512, "model.width is 256"),
        ("config/data/augment", True, "data.augment is None"),
        ("config/deploy/scale", "keep_step", "deploy.scale is 'recalibrate'"),
        ("config/pretrain", {"epochs": 9}, "pretrain.epochs is None"),
        ("provenance/data_digest", "d2", "data digest is 'd1'"),
        ("provenance/numerics_version", 2, "numerics version is 1"),
    ],
)
def test_mixed_protocols_are_refused(tmp_path: Path, path: str, value: Any, words: str) -> None:
    sweep = quickstart(tmp_path)
    for seed in (0, 1, 2):
        _change(sweep.run_of("oscillation-target_bit=3", seed), path, value)
    sweep.write()
    with pytest.raises(UserError, match="different protocols") as caught:
        only_group(tmp_path)
    assert words in str(caught.value)
    assert f"but {next(iter(value.values())) if isinstance(value, dict) else value!r}".replace("'", "") in str(
        caught.value
    ).replace("'", "")
    assert "oscillation-target_bit=3" in str(caught.value)


def test_what_the_sweep_searches_may_differ_between_cells_but_not_within_one(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    sweep.cells["ste-target_bit=2"]["chosen"]["params"] = {"train.learning_rate": 0.01}
    for seed in (0, 1, 2):
        sweep.run_of("ste-target_bit=2", seed)["config"]["train"]["learning_rate"] = 0.01
    sweep.write()
    assert len(only_group(tmp_path).finals) == 15
    sweep.run_of("ste-target_bit=2", 1)["config"]["train"]["learning_rate"] = 0.02
    sweep.write()
    with pytest.raises(UserError, match=r"cell ste-target_bit=2: .*train\.learning_rate is 0\.01"):
        only_group(tmp_path)


def test_duplicate_epochs_keep_the_last_and_a_truncated_line_is_noted(tmp_path: Path) -> None:
    lines = ['{"epoch": 1, "a": 1}', '{"epoch": 2, "a": 2}', '{"epoch": 2, "a": 5}', '{"epoch": 3, "a"']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    epochs, notes = read_metrics(tmp_path)
    assert {epoch: entry["a"] for epoch, entry in epochs.items()} == {1: 1, 2: 5}
    assert notes == [f"{tmp_path / 'metrics.jsonl'}: truncated last line ignored"]
    assert read_metrics(tmp_path / "none")[0] == {}


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        sweep_names(tmp_path / "runs")
    with pytest.raises(UserError, match=r"no folder in it holds a cells\.json"):
        sweep_names(tmp_path)
    sweep = quickstart(tmp_path).write()
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_results(tmp_path, "quikstart")
    for cell in sweep.cells.values():
        cell["finals"] = {}
    sweep.write()
    with pytest.raises(UserError, match=r"no finished finals yet \(5 of 5 cells tuned\)"):
        load_results(tmp_path, "quickstart")
    (tmp_path / "quickstart" / "cells.json").write_text('{"cells": [')
    with pytest.raises(UserError, match=r"cannot read .*cells\.json"):
        load_results(tmp_path, "quickstart")


def test_five_hundred_records_are_read_in_seconds(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path, seeds=tuple(range(500 // len(MEASURED)))).write()
    assert len(sweep.records) == 500
    start = time.perf_counter()
    group = only_group(tmp_path)
    assert summarize(group)["n"].min() == 100
    assert time.perf_counter() - start < 5  # 0.2 s alone; the rest is for a busy machine
