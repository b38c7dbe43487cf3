"""Slots of one machine: never more workers alive than slots, each with its own GPU, whichever launch started them."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import here, records, start, write_sweep

from harness.cli.status_report import status_report
from harness.cluster import slots
from harness.cluster.pool import WorkerPool
from harness.cluster.profile import Profile
from harness.cluster.slots import local_slots, take_slot
from harness.cluster.worker_info import list_workers, present_on
from harness.launch import main
from harness.records.files import write_json
from harness.records.heartbeat import process_identity
from harness.records.run_directory import RunDirectory
from harness.sweep import plan, queue
from harness.sweep.config import read_sweep
from harness.sweep.queue import load_sweep


def alive(sweep: Path) -> list[dict[str, Any]]:
    """The statuses of the workers that run now."""
    found = []
    for path in sweep.glob("workers/*/status.json"):
        status = json.loads(path.read_text())
        if status["state"] == "running" and Path(f"/proc/{status['pid']}").exists():
            found.append(status)
    return found


@pytest.mark.slow
def test_eight_workers_on_two_gpus_are_two_at_a_time_each_on_its_own(tmp_path: Path) -> None:
    # The devices do not exist here: the runs fall back to the CPU, the binding is the same.
    sweep, folder = write_sweep(tmp_path, 1), tmp_path / "runs/tiny"
    process = start(sweep, tmp_path / "runs", "--workers", "8", "--gpus", "5,7", env={"CUDA_VISIBLE_DEVICES": ""})
    most, bindings, shown = 0, set(), set()
    while process.poll() is None:
        workers = alive(folder)
        most = max(most, len(workers))
        bindings.add(tuple(sorted(worker["gpu"] for worker in workers if worker.get("gpu"))))
        if len(workers) == 2 and not shown:
            shown = {worker["gpu"] for worker in status_report(load_sweep(folder))["workers"]}
        time.sleep(0.05)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "8 workers asked for, 2 slots here (gpu5.0, gpu7.0): 2 at a time" in output
    assert most == 2
    assert ("5", "7") in bindings
    assert all(len(set(binding)) == len(binding) for binding in bindings), bindings
    assert shown == {"5", "7"}


def _hold(folder: str, slots: tuple[str, ...], taken: Any) -> None:
    with take_slot(Path(folder), slots, 1) as where:
        taken.put((where.free, where.slot, where.gpu, os.environ.get("CUDA_VISIBLE_DEVICES")))
        time.sleep(60)


def test_a_slot_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    slots = local_slots(["0", "3"], 2)
    assert slots == ("gpu0.0", "gpu3.0", "gpu0.1", "gpu3.1")  # one of each GPU before a second of any

    def begin(count: int, taken: Any) -> list[Any]:
        arguments = (str(tmp_path), slots[:3], taken)
        processes = [context.Process(target=_hold, args=arguments, daemon=True) for _ in range(count)]
        for process in processes:
            process.start()
        return processes

    taken = context.Queue()
    processes = begin(4, taken)
    found = sorted((taken.get(timeout=30) for _ in processes), key=str)
    assert found == [
        (False, None, None, os.environ.get("CUDA_VISIBLE_DEVICES")),
        (True, "gpu0.0", "0", "0"),
        (True, "gpu0.1", "0", "0"),
        (True, "gpu3.0", "3", "3"),
    ]
    for process in processes:
        process.kill()
        process.join()
    taken = context.Queue()  # a killed process may have taken the other's lock with it
    (last,) = begin(1, taken)
    assert taken.get(timeout=30)[0] is True
    last.kill()


def test_the_cores_are_the_slots_where_no_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(slots, "cores", lambda: 3)
    assert local_slots(None, 4) == ("cpu0", "cpu1", "cpu2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    assert local_slots(None, 1) == ("gpu4.0", "gpu6.0")
    assert local_slots(["1"], 2) == ("gpu1.0", "gpu1.1")


@pytest.mark.slow
def test_two_local_launches_at_once_share_one_set_of_workers(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, 1)
    both = [start(sweep, tmp_path / "runs", "--workers", "2", "--gpus", "0,1") for _ in range(2)]
    printed = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    workers = status_report(load_sweep(tmp_path / "runs/tiny"))["workers"]
    assert len(workers) == 2, workers
    assert len(records(tmp_path / "runs")) == 8


@pytest.mark.parametrize("devices", ["", "0,,1", "0,0"])
def test_devices_that_are_no_list(devices: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(write_sweep(tmp_path)), "--gpus", devices])
    assert ended.value.code == 2
    assert "no list of different CUDA devices" in capsys.readouterr().err


def test_gpus_are_for_local_launches(tmp_path: Path) -> None:
    ended, output = here(write_sweep(tmp_path), tmp_path / "runs", "--gpus", "0", "--cluster", "slurm")
    assert ended == 2
    assert "--gpus is for --cluster local, not slurm" in output


def test_workers_of_another_machine_take_none_of_the_slots_here(tmp_path: Path) -> None:
    # Two workstations that share a folder: launching on the second adds its own workers.
    sweep = queue.open_sweep(read_sweep(write_sweep(tmp_path)), tmp_path / "runs")
    plan.top_up(sweep)
    far = RunDirectory(sweep.folder / "workers" / "far")
    far.path.mkdir(parents=True)
    write_json(far.status, {"state": "running", "machine": "elsewhere", "host": "node9"})
    sweep.files.worker("near").note_submitted(cluster="local", by=process_identity())
    sweep.files.worker("queued").note_submitted(cluster="slurm", job_id="1", by=process_identity())
    workers = list_workers(sweep.folder)
    assert present_on(workers, "local") == 1


class _Deaf:
    """A process that does not end."""

    def poll(self) -> None:
        return None

    def terminate(self) -> None:
        pass


@pytest.mark.parametrize(("state", "ended"), [("running", 0), ("cancelled", 1)])
def test_an_interrupted_pool_names_its_workers_that_still_run(tmp_path: Path, state: str, ended: int) -> None:
    opened = queue.open_sweep(read_sweep(write_sweep(tmp_path)), tmp_path)
    pool = WorkerPool(opened, "local", 1, Profile())
    pool._jobs, pool._mine = [_Deaf()], {"mine"}
    for name in ("mine", "of_another_launch"):
        files = RunDirectory(opened.folder / "workers" / name)
        files.path.mkdir(parents=True)
        write_json(files.status, {**process_identity(), "state": "running" if name != "mine" else state})
    stopped, running = pool.stop(patience_s=0.0)
    assert stopped == ended
    assert [worker.name for worker in running] == ["mine"][ended:]
