"""Fine-tuning: a run that begins with a float network which the harness trains first, once for all that share it."""

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from training_details_common import config

from harness import data
from harness.core.errors import Stopped, UserError
from harness.records.files import read_json
from harness.training.config import RunConfig, component
from harness.training.pretrain import drop_half_done, parent_of, starting_weights
from harness.training.run import RunContext, run

FLOAT = {"epochs": 3, "batch_size": 40, "precision": "fp32", "learning_rate": 3e-3}


def tuned(**changes: Any) -> RunConfig:
    return config(**{"pretrain": FLOAT, **changes})


def rows(record: dict[str, Any], split: str = "val") -> dict[Any, tuple[float, float]]:
    return {row["bits"]: (row["accuracy"], row["loss"]) for row in record["rows"] if row["split"] == split}


def test_it_starts_from_the_best_epoch_of_the_float_network(tmp_path: Path) -> None:
    fine = tuned(train__epochs=0)
    record = run(fine, tmp_path / "run")
    (folder,) = (tmp_path / "run/pretrained").iterdir()
    parent = read_json(folder / "record.json")
    assert rows(record)["float"] == rows(parent)["float"], "no step: the float network as it is"
    assert rows(record)[2] == rows(parent)[2]
    assert rows(record) != rows(run(config(train__epochs=0), tmp_path / "scratch"))
    told, made = record["provenance"]["pretrained"], parent["provenance"]
    assert (told["run_id"], told["best_epoch"], told["monitor"]) == (
        folder.name, parent["best_epoch"], parent["monitor"],
    )  # fmt: skip
    assert (told["git"], told["numerics_version"]) == (made["git"], made["numerics_version"])
    assert told["precision"] == parent["resolved"]["precision"]
    assert parent["epochs"] == 3


def test_the_float_run_sees_the_same_split_and_never_the_test_images(tmp_path: Path) -> None:
    fine = tuned(seed=7, data__val_fraction=0.2)
    parent = parent_of(fine)
    assert (parent.seed, parent.data, parent.model, parent.phase) == (7, fine.data, fine.model, "tune")
    assert (parent.train.learning_rate, parent.pretrain, parent.target_bit) == (3e-3, None, None)
    record = run(fine, tmp_path / "run")
    (folder,) = (tmp_path / "run/pretrained").iterdir()
    assert {row["split"] for row in read_json(folder / "record.json")["rows"]} == {"val"}
    assert {row["split"] for row in record["rows"]} == {"val", "test"}
    one, other = (data.load_dataset(component("data set", each.data), each.seed, "cpu") for each in (fine, parent))
    assert one.val.images.equal(other.val.images)


def test_the_network_names_the_run() -> None:
    plain = config()
    assert plain.pretrain is None
    assert tuned().run_id() != plain.run_id()
    assert tuned(pretrain={**FLOAT, "epochs": 4}).run_id() != tuned().run_id()
    assert parent_of(tuned(target_bit=2)).run_id() == parent_of(tuned(target_bit=4, methods="lsq")).run_id()
    unlike = tuned(quantizer={"granularity": "channel"}, deploy__methods=["rtn", "bn_reestimation"])
    assert parent_of(unlike).run_id() == parent_of(tuned()).run_id(), "nothing that float training uses"
    assert parent_of(unlike).deploy.methods == ("rtn",)
    assert parent_of(tuned(seed=1)).run_id() != parent_of(tuned(seed=2)).run_id()


def test_runs_that_share_it_train_it_once(tmp_path: Path) -> None:
    context = RunContext(pretrained=tmp_path / "shared")
    first = run(tuned(), tmp_path / "one", context=context)
    (folder,) = (tmp_path / "shared").iterdir()
    stamp = (folder / "best.safetensors").stat().st_mtime_ns
    second = run(tuned(methods="lsq"), tmp_path / "two", context=context)
    assert [path.name for path in (tmp_path / "shared").iterdir()] == [folder.name]
    assert (folder / "best.safetensors").stat().st_mtime_ns == stamp
    assert first["provenance"]["pretrained"] == second["provenance"]["pretrained"]
    (folder / "best.safetensors").unlink()  # (and its record says that it is there)
    third = run(tuned(methods="dampening"), tmp_path / "three", context=context)
    assert (folder / "best.safetensors").exists()
    assert third["provenance"]["pretrained"] == first["provenance"]["pretrained"]


def test_killed_before_its_record_was_written_it_is_finished(tmp_path: Path) -> None:
    context = RunContext(pretrained=tmp_path / "shared")
    first = run(tuned(), tmp_path / "one", context=context)
    (folder,) = (tmp_path / "shared").iterdir()
    (folder / "record.json").unlink()
    second = run(tuned(methods="lsq"), tmp_path / "two", context=context)
    assert second["provenance"]["pretrained"]["monitor"] == first["provenance"]["pretrained"]["monitor"]
    assert (folder / "record.json").exists()


def test_what_other_code_left_half_done_can_be_dropped(tmp_path: Path) -> None:
    checkpoint = tmp_path / parent_of(tuned()).run_id() / "checkpoint.pt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    drop_half_done(config(), tmp_path)
    assert checkpoint.exists()
    drop_half_done(tuned(), tmp_path)
    assert not checkpoint.exists()


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_stopped_within_either_training_it_goes_on_as_if_nothing_had_been(tmp_path: Path, steps: int) -> None:
    expected = run(tuned(), tmp_path / "quiet")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > steps

    with pytest.raises(Stopped):
        run(tuned(), tmp_path / "stopped", RunContext(should_stop=stop))
    record = run(tuned(), tmp_path / "stopped")
    assert rows(record, "test") == rows(expected, "test")
    assert record["provenance"]["pretrained"] == expected["provenance"]["pretrained"]


def test_whoever_waits_for_another_process_can_be_stopped(tmp_path: Path) -> None:
    fine = tuned()
    folder = tmp_path / parent_of(fine).run_id()
    folder.mkdir()
    looks = iter([False, True])
    with FileLock(folder / "run.lock"), pytest.raises(Stopped):
        starting_weights(fine, tmp_path, lambda *_: pytest.fail("it is not ours to train"), lambda: next(looks))


def test_a_float_training_that_fails_is_the_runs_failure(tmp_path: Path) -> None:
    broken = tuned(pretrain={**FLOAT, "optimizer": "sgd", "learning_rate": 1e3})
    with pytest.raises(Exception, match=r"loss .*became"):
        run(broken, tmp_path / "run")
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "failed"
    assert "became" in status["reason"]


def test_a_slip_in_the_section_is_named() -> None:
    with pytest.raises(UserError, match=r"pretrain\.epoch\b.*did you mean 'epochs'"):
        tuned(pretrain={"epoch": 3})


def test_the_float_network_is_float_trained(tmp_path: Path) -> None:
    """The same run by hand, without `pretrain`, gives the same network."""
    fine = tuned()
    run(config("none", target_bit=None, watch_bit=2, phase="tune", train=FLOAT), tmp_path / "hand")
    run(fine, tmp_path / "run")
    (folder,) = (tmp_path / "run/pretrained").iterdir()
    assert (folder / "best.safetensors").read_bytes() == (tmp_path / "hand/best.safetensors").read_bytes()
