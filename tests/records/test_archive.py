"""A finished sweep packed into one file: it draws the same figures, names the same runs, and can go on."""

import json
import re
import shutil
import socket
import zipfile
from pathlib import Path

import pytest
from tiny_sweep import RUNS, records, write_sweep

from analysis.disk_source import load_results
from harness.archive import main as archive
from harness.cancel import main as cancel
from harness.core.errors import UserError
from harness.evaluate import main as evaluate
from harness.export import main as export
from harness.launch import main as launch
from harness.records.archive import pack, runs_of
from harness.repeat import differences
from harness.repeat import main as repeat
from harness.sweep.merge import merge
from harness.sweep.queue import load_sweep

SHORT = ("--cluster", "debug", "--set", "data.train_fraction=0.2", "--set", "runtime.threads=1")
TPE = {"sampler: random": "sampler: {name: tpe, n_startup_trials: 1}"}


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml, its sweep in runs/ and the archive of it in kept/; not to be changed."""
    folder = tmp_path_factory.mktemp("archive")
    assert launch([str(write_sweep(folder, 2, **TPE)), "--root", str(folder / "runs"), *SHORT]) == 0
    assert archive(["pack", str(folder / "runs/tiny"), "--to", str(folder / "kept")]) == 0
    return folder


def test_the_archive_holds_what_figures_and_reruns_need_and_nothing_of_the_machine(carried_out: Path) -> None:
    with zipfile.ZipFile(carried_out / "kept/tiny/runs.zip") as packed:
        names = set(packed.namelist())
        everything = b"".join(packed.read(name) for name in names)
    finals = {run for cell in load_results(carried_out / "runs", "tiny").cells for run in cell.finals.values()}
    runs = set(records(carried_out / "runs"))
    assert len(runs) == RUNS
    expected = {f"{run}/{name}.json" for run in runs for name in ("config", "record", "trials")}
    assert names == expected | {f"{run}/{name}" for run in finals for name in ("metrics.jsonl", "outcomes.json")}
    for word in (socket.gethostname(), str(carried_out), "pid"):
        assert word.encode() not in everything


def test_packing_again_gives_the_same_bytes(carried_out: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(carried_out / "runs/tiny", tmp_path / "runs/tiny", copy_function=shutil.copyfile)
    made = pack(copied, tmp_path / "kept")
    for name in ("runs.zip", "cells.json", "sweep.json"):
        assert (made / name).read_bytes() == (carried_out / "kept/tiny" / name).read_bytes()


def test_the_analysis_reads_an_archive_as_it_reads_a_sweep(carried_out: Path) -> None:
    live, kept = (load_results(carried_out / root, "tiny") for root in ("runs", "kept"))
    assert [final.record for final in live.finals] == [final.record for final in kept.finals]
    assert [final.epochs() for final in live.finals] == [final.epochs() for final in kept.finals]
    assert [final.outcomes() for final in live.finals] == [final.outcomes() for final in kept.finals]
    assert all(final.outcomes() for final in kept.finals)
    assert [vars(trial) for trial in live.trials] == [vars(trial) for trial in kept.trials]
    assert len(kept.finals) == 4
    assert len(kept.trials) == 4
    assert (kept.missing, kept.corrupt, kept.incomplete) == ([], [], [])


@pytest.mark.parametrize("root", ["runs", "kept"])
def test_a_dry_run_names_every_run(carried_out: Path, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (carried_out / "kept").rglob("*")}
    command = [str(carried_out / "tiny.yaml"), "--root", str(carried_out / root), *SHORT, "--dry-run"]
    assert launch([*command, "--runs"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    named = {words[0]: words[1] for words in lines if len(words) > 1 and words[1] in ("tune", "final")}
    phases = {run: json.loads((carried_out / f"runs/tiny/runs/{run}/record.json").read_text())["phase"]
              for run in records(carried_out / "runs")}  # fmt: skip
    assert named == phases
    assert {path: path.stat().st_mtime_ns for path in (carried_out / "kept").rglob("*")} == before, "nothing is written"


def test_what_is_not_drawn_yet_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(write_sweep(tmp_path, 2, **TPE)), "--root", str(tmp_path / "runs"), "--dry-run", "--runs"]
    assert launch(command) == 0
    assert capsys.readouterr().out.count("not drawn yet") == RUNS
    static = [str(write_sweep(tmp_path, 2)), "--root", str(tmp_path / "runs"), "--dry-run", "--runs"]
    assert launch(static) == 0
    assert capsys.readouterr().out.count("not drawn yet") == 4, "the finals, whose trial is not chosen"


def test_runs_are_listed_of_a_dry_run_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--runs is for --dry-run"):
        launch([str(write_sweep(tmp_path)), "--root", str(tmp_path / "runs"), "--runs"])
    assert not (tmp_path / "runs").exists()


def test_an_unpacked_sweep_is_complete_and_can_grow(
    carried_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert archive(["unpack", str(carried_out / "kept/tiny"), "--to", str(tmp_path)]) == 0
    stamps = {run: (tmp_path / f"tiny/runs/{run}/record.json").stat().st_mtime_ns for run in records(tmp_path)}
    command = [str(carried_out / "tiny.yaml"), "--root", str(tmp_path), *SHORT]
    assert launch(command) == 0
    assert "rebuilt from the records" in capsys.readouterr().out
    for run, stamp in stamps.items():
        assert (tmp_path / f"tiny/runs/{run}/record.json").stat().st_mtime_ns == stamp, "nothing is trained again"
    assert launch([*command, "--set", "final.seeds=[0,1,2]"]) == 0
    assert set(records(tmp_path)) > set(stamps)
    with pytest.raises(UserError, match="is there already"):
        archive(["unpack", str(carried_out / "kept/tiny"), "--to", str(tmp_path)])


def test_nothing_is_launched_in_an_archive(carried_out: Path) -> None:
    with pytest.raises(UserError, match=r"is an archive .* harness\.archive unpack"):
        launch([str(carried_out / "tiny.yaml"), "--root", str(carried_out / "kept"), *SHORT])
    assert runs_of(carried_out / "kept/tiny").is_dir()
    assert not (carried_out / "kept/tiny/study.log").exists()


def test_a_failed_run_is_kept_with_its_reason(carried_out: Path, tmp_path: Path) -> None:
    sweep = shutil.copytree(carried_out / "runs/tiny", tmp_path / "runs/tiny")
    trial = next(run for run in sorted(records(tmp_path / "runs")) if phase_of(sweep, run) == "tune")
    (sweep / "runs" / trial / "record.json").unlink()
    reason = "OSError: no file '/home/somebody/data/x.png' and none at ~/cifar/x.png; 3/4 done"
    status = {"state": "failed", "reason": reason, "traceback": "/home", "host": "here"}
    (sweep / "runs" / trial / "status.json").write_text(json.dumps(status))
    pack(sweep, tmp_path / "kept")
    shown = "OSError: no file '.../x.png' and none at .../x.png; 3/4 done"
    for root, expected in (("runs", reason), ("kept", shown)):
        (failure,) = load_results(tmp_path / root, "tiny").failures
        assert (failure.run_id, failure.reason) == (trial, expected)
    with zipfile.ZipFile(tmp_path / "kept/tiny/runs.zip") as packed:
        assert b"/home" not in packed.read(f"{trial}/status.json")


def phase_of(sweep: Path, run: str) -> str:
    return str(json.loads((sweep / "runs" / run / "record.json").read_text())["phase"])


def test_a_failed_final_is_over(carried_out: Path, tmp_path: Path) -> None:
    sweep = shutil.copytree(carried_out / "runs/tiny", tmp_path / "runs/tiny")
    final = load_results(carried_out / "runs", "tiny").finals[0]
    (sweep / "runs" / final.run_id / "record.json").unlink()
    with pytest.raises(UserError, match=f"not complete: final run {final.run_id} is not over"):
        pack(sweep, tmp_path / "kept")
    (sweep / "runs" / final.run_id / "status.json").write_text('{"state": "failed", "reason": "nan"}')
    pack(sweep, tmp_path / "kept")
    kept = load_results(tmp_path / "kept", "tiny")
    assert [(one.cell, one.seed) for one in kept.missing] == [(final.cell.id, final.seed)]


def test_a_sweep_that_has_grown_is_not_complete(carried_out: Path, tmp_path: Path) -> None:
    sweep = shutil.copytree(carried_out / "runs/tiny", tmp_path / "runs/tiny")
    spec = json.loads((sweep / "sweep.json").read_text())
    for grown, words in (("tune", "has 2 of 3 trials"), ("final", "has no finals yet")):
        larger = {"tune": {**spec["tune"], "trials": 3}, "final": {"seeds": [0, 1, 2]}}[grown]
        (sweep / "sweep.json").write_text(json.dumps({**spec, grown: larger}))
        with pytest.raises(UserError, match=words):
            pack(sweep, tmp_path / "kept")


def test_a_database_is_not_named(carried_out: Path, tmp_path: Path) -> None:
    sweep = shutil.copytree(carried_out / "runs/tiny", tmp_path / "runs/tiny")
    spec = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps({**spec, "storage": "postgresql://me@here/db"}))
    assert json.loads((pack(sweep, tmp_path / "kept") / "sweep.json").read_text())["storage"] == "journal"


def test_what_is_refused(carried_out: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sweep"):
        pack(tmp_path, tmp_path / "kept")
    with pytest.raises(UserError, match="holds no archive"):
        archive(["unpack", str(carried_out / "runs/tiny"), "--to", str(tmp_path)])
    with pytest.raises(UserError, match="is an archive"):
        cancel([str(carried_out / "tiny.yaml"), "--root", str(carried_out / "kept")])
    sweep = shutil.copytree(carried_out / "runs/tiny", tmp_path / "runs/tiny")
    with pytest.raises(UserError, match="where the sweep itself is"):
        pack(sweep, tmp_path / "runs")
    path = sweep / "runs" / sorted(records(tmp_path / "runs"))[0] / "record.json"
    record = json.loads(path.read_text())
    record["config"]["data"]["root"] = "/home/somebody/data"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"data\.root is '/home/somebody/data', a path of this machine"):
        pack(sweep, tmp_path / "kept")


def test_a_damaged_archive_is_named(carried_out: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(carried_out / "kept/tiny", tmp_path / "kept/tiny")
    (kept / "runs.zip").write_bytes((kept / "runs.zip").read_bytes()[:1000])
    for reading in (
        lambda: load_results(tmp_path / "kept", "tiny"),
        lambda: archive(["unpack", str(kept), "--to", str(tmp_path / "again")]),
        lambda: repeat(["abc", "--root", str(tmp_path / "kept"), "--dir", str(tmp_path / "new")]),
    ):
        with pytest.raises(UserError, match=r"runs\.zip cannot be read"):
            reading()
    assert not list((tmp_path / "again").iterdir()), "nothing half unpacked is left"


def test_a_run_of_an_archive_is_repeated_to_the_last_digit(
    carried_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_results(carried_out / "kept", "tiny").finals[0].run_id
    assert repeat([run[:8], "--root", str(carried_out / "kept"), "--dir", str(tmp_path / "again")]) == 0
    assert f"run {run}: all 6 rows are the same" in capsys.readouterr().out
    assert json.loads((tmp_path / "again/record.json").read_text())["run_id"] == run
    with pytest.raises(UserError, match="holds a finished run"):
        repeat([run, "--root", str(carried_out / "kept"), "--dir", str(tmp_path / "again")])


def test_rows_that_were_added_later_are_repeated_too(
    carried_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = shutil.copytree(carried_out / "runs", tmp_path / "runs")
    final = load_results(runs, "tiny").finals[0].run_id
    assert evaluate([str(runs / "tiny/runs" / final), "--bits", "3"]) == 0
    assert repeat([final, "--root", str(runs), "--dir", str(tmp_path / "again")]) == 0
    assert "all 8 rows are the same" in capsys.readouterr().out


@pytest.mark.parametrize("here", ["bf16", "fp32"])
def test_a_run_is_repeated_in_the_precision_of_its_record(
    here: str, carried_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.training.precision.multiplies_bf16", lambda: True)
    monkeypatch.setattr("harness.training.precision.gains_by_bf16", lambda *_: here == "bf16")
    run = load_results(carried_out / "kept", "tiny").finals[0].run_id
    assert repeat([run, "--root", str(carried_out / "kept"), "--dir", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert ("auto was fp32 for the record and is bf16 here; the run is repeated in fp32" in said) == (here == "bf16")
    assert said.rstrip().endswith("all 6 rows are the same")
    record = json.loads((tmp_path / "again/record.json").read_text())
    assert record["resolved"]["precision"] == "fp32"
    assert (record["run_id"] == run) == (here == "fp32")


def test_another_precision_is_the_first_difference(carried_out: Path) -> None:
    record = load_results(carried_out / "runs", "tiny").finals[0].record
    other = {**record, "resolved": {**record["resolved"], "precision": "bf16"}, "rows": record["rows"][1:]}
    assert differences(record, other)[0] == "precision: fp32 in the record, bf16 now"
    assert differences(record, {**other, "rows": record["rows"]}) == ["precision: fp32 in the record, bf16 now"]


def test_a_number_that_differs_is_said(carried_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    final = load_results(carried_out / "runs", "tiny").finals[0]
    path = shutil.copytree(carried_out / "runs", tmp_path / "runs") / "tiny/runs" / final.run_id / "record.json"
    record = json.loads(path.read_text())
    record["rows"][-1]["accuracy"] += 0.01
    record["provenance"]["device"] = "another"
    path.write_text(json.dumps(record))
    assert repeat([final.run_id, "--root", str(tmp_path / "runs"), "--dir", str(tmp_path / "again")]) == 1
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said[0].startswith("test rtn recalibrate float: accuracy")
    assert said[1].startswith("device: another in the record")
    assert differences(final.record, {**final.record, "rows": final.record["rows"][1:]}) == [
        "val rtn recalibrate 2: not there any more"
    ]
    for name, what in (("zzz", "is not there"), ("", "could be any of")):
        with pytest.raises(UserError, match=what):
            repeat([name, "--root", str(tmp_path / "runs"), "--dir", str(tmp_path / "none")])


@pytest.mark.parametrize("where", ["again", "again/tiny", "again/tiny/runs/RUN", "kept", "kept/tiny"])
def test_weights_do_not_travel_and_are_made_again(carried_out: Path, tmp_path: Path, where: str) -> None:
    shutil.copytree(carried_out / "kept", tmp_path / "kept")
    archive(["unpack", str(tmp_path / "kept/tiny"), "--to", str(tmp_path / "again")])
    run = load_results(tmp_path / "kept", "tiny").finals[0].run_id
    folder = tmp_path / where.replace("RUN", run)
    named, root = run if "RUN" in where else "RUN", tmp_path / where.split("/")[0]
    again = re.escape(f"archives hold no weights: python -m harness.repeat {named} --root {root} --dir NEW trains")
    with pytest.raises(UserError, match=rf"no finished run there has kept its weights .*; {again}"):
        evaluate([str(folder), "--bits", "3"])
    if named == run:
        with pytest.raises(UserError, match=f"the run kept no weights .*; {again}"):
            export([str(folder), "--bits", "w4"])
        assert repeat([run, "--root", str(root), "--dir", str(tmp_path / "new")]) == 0
        assert evaluate([str(tmp_path / "new"), "--bits", "3"]) == 0


@pytest.mark.parametrize(("root", "said"), [("runs", "have theirs"), ("again", "have none here either")])
def test_a_trial_without_weights_is_told_that_finals_have_theirs(
    carried_out: Path, tmp_path: Path, root: str, said: str
) -> None:
    archive(["unpack", str(carried_out / "kept/tiny"), "--to", str(tmp_path / "again")])
    sweep = (carried_out if root == "runs" else tmp_path) / root / "tiny"
    folder = sweep / "runs" / load_results(carried_out / "kept", "tiny").trials[0].run_id
    said = rf"{folder}: a tuning trial, which kept no weights .*; finals {said}: python -m harness.logs {sweep} lists"
    for command, bits in ((export, "w4"), (evaluate, "3")):
        with pytest.raises(UserError, match=said):
            command([str(folder), "--bits", bits])


def test_help_says_what_is_for_pack_what_for_unpack_and_where_records_are_looked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {}
    for name, command in (("archive", archive), ("repeat", repeat)):
        with pytest.raises(SystemExit):
            command(["--help"])
        said[name] = capsys.readouterr().out
    pack_only, unpack_only = said["archive"].split("options of pack:")[1].split("options of unpack:")
    assert ("--unfinished" in pack_only, "--merge" in pack_only) == (True, False)
    assert ("--unfinished" in unpack_only, "--merge" in unpack_only) == (False, True)
    assert "of sweeps or their archives; default: runs" in " ".join(said["repeat"].split())


def test_options_may_stand_before_the_verb(carried_out: Path, tmp_path: Path) -> None:
    assert archive(["--to", str(tmp_path), "--merge", "unpack", str(carried_out / "kept/tiny")]) == 0
    assert len(finished(tmp_path)) == RUNS


def finished(root: Path) -> dict[str, Path]:
    """The records of the sweep in a folder, by run id."""
    return {path.parent.name: path for path in (root / "tiny/runs").glob("*/record.json")}


@pytest.fixture
def begun(carried_out: Path, tmp_path: Path) -> Path:
    """A copy of the sweep in here/, as it was when three trials were over."""
    sweep = shutil.copytree(carried_out / "runs/tiny", tmp_path / "here/tiny")
    lines = (sweep / "study.log").read_bytes().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines) if b'"state": 1' in line.replace(b'":1', b'": 1')]
    (sweep / "study.log").write_bytes(b"".join(lines[: ends[2] + 1]))
    done = load_sweep(sweep).all_studies()
    kept = {
        trial.user_attrs["run_id"] for study in done for trial in study.get_trials() if trial.state.name == "COMPLETE"
    }
    assert len(kept) == 3
    for path in (sweep / "runs").iterdir():
        if path.name not in kept:
            shutil.rmtree(path)
    cells = json.loads((sweep / "cells.json").read_text())
    for cell in cells["cells"]:
        cell |= {"chosen": None, "finals": {}, "trials": 0}
    (sweep / "cells.json").write_text(json.dumps(cells))
    return tmp_path


def test_an_unfinished_sweep_goes_on_elsewhere_and_comes_back(
    carried_out: Path, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there, kept = begun / "here", begun / "there", begun / "kept"
    with pytest.raises(UserError, match="is not complete"):
        archive(["pack", str(here / "tiny"), "--to", str(kept)])
    with open(here / "tiny/study.log", "ab") as journal:
        journal.write(b'{"torn')  # a worker is writing
    assert archive(["pack", str(here / "tiny"), "--to", str(kept), "--unfinished"]) == 0
    assert archive(["unpack", str(kept / "tiny"), "--to", str(there)]) == 0
    stamps = {run: path.stat().st_mtime_ns for run, path in finished(there).items()}
    assert len(stamps) == 3
    assert launch([str(carried_out / "tiny.yaml"), "--root", str(there), *SHORT]) == 0
    assert "rebuilt" not in capsys.readouterr().out, "the queue itself came along"
    assert {run: finished(there)[run].stat().st_mtime_ns for run in stamps} == stamps, "nothing is trained again"
    archive(["pack", str(there / "tiny"), "--to", str(kept), "--unfinished"])
    assert archive(["unpack", str(kept / "tiny"), "--to", str(here), "--merge"]) == 0
    assert f"{RUNS - 3} runs added" in capsys.readouterr().out
    assert launch([str(carried_out / "tiny.yaml"), "--root", str(here), *SHORT]) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    assert merge(kept / "tiny", here) == 0, "merging again adds nothing"


def test_a_sweep_in_which_nothing_is_over_can_move_too(carried_out: Path, begun: Path) -> None:
    for record in finished(begun / "here").values():
        record.unlink()
    kept = pack(begun / "here/tiny", begun / "kept", unfinished=True)
    assert merge(kept, begun / "there") == 0
    assert (begun / "there/tiny/study.log").read_bytes() == (begun / "here/tiny/study.log").read_bytes()
    assert merge(kept, begun / "here") == 0


def test_a_queue_that_went_on_by_itself_stays(carried_out: Path, begun: Path) -> None:
    whole = pack(carried_out / "runs/tiny", begun / "kept", unfinished=True)
    journal = begun / "here/tiny/study.log"
    with open(journal, "ab") as file:
        file.write(b'{"op_code": 8, "worker_id": "x", "trial_id": 0, "user_attr": {"own": 1}}\n')
    before = journal.read_bytes()
    assert merge(whole, begun / "here") == RUNS - 3
    assert journal.read_bytes() == before
    assert len(finished(begun / "here")) == RUNS


def test_what_is_not_merged(carried_out: Path, begun: Path) -> None:
    whole = pack(carried_out / "runs/tiny", begun / "kept", unfinished=True)
    spec = json.loads((whole / "sweep.json").read_text())
    (whole / "sweep.json").write_text(json.dumps({**spec, "pruner": {"name": "median"}}))
    with pytest.raises(UserError, match=r"another sweep than .* differ in pruner\.name"):
        merge(whole, begun / "here")
    for wrong in (["pack", "--merge"], ["unpack", "--unfinished"]):
        with pytest.raises(SystemExit):
            archive([wrong[0], str(whole), "--to", str(begun), wrong[1]])
