"""Cluster profiles: times, and what Submitit is asked for."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from harness.cluster.profile import Profile, read_profile
from harness.core.errors import UserError

TIMES = {
    "90": 90,
    "90:00": 90,
    "90:01": 91,
    "04:00:00": 240,
    "1:30:00": 90,
    "0:00:01": 1,
    "2-0": 2880,
    "2-12": 3600,
    "1-00:30": 1470,
    "1-02:03:04": 1564,
}


@pytest.mark.parametrize(("text", "minutes"), TIMES.items())
def test_times_in_minutes_rounded_up(text: str, minutes: int) -> None:
    assert Profile(time=text, signal_delay_s=1).submitit_parameters(1)["time"] == minutes


@pytest.mark.parametrize("text", ["", "four", "4h", "1:2:3:4", "-5", "1-", "1.5", "1-1-1", "04:00:00 "])
def test_other_times_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(f"time: '{text}'\n")
    with pytest.raises(UserError, match=r"p\.yaml: time: '.*': not a Slurm time \(legal: minutes, hours:minutes"):
        read_profile(tmp_path / "p.yaml")


@pytest.mark.parametrize("text", ["0", "00:00:00"])
def test_no_time_at_all_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        Profile(time=text)


def test_a_time_may_stand_without_quotes(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("time: 04:00:00\n")
    assert read_profile(tmp_path / "p.yaml").submitit_parameters(1)["time"] == 240


@pytest.mark.parametrize(("text", "minutes"), [("90", 90), ("12:30:00", 750)])
def test_a_time_that_yaml_takes_for_a_number(tmp_path: Path, text: str, minutes: int) -> None:
    (tmp_path / "p.yaml").write_text(f"time: {text}\n")
    assert read_profile(tmp_path / "p.yaml").submitit_parameters(1)["time"] == minutes


def test_without_a_file_the_defaults() -> None:
    assert read_profile(None) == Profile()


def test_what_submitit_is_asked_for(tmp_path: Path) -> None:
    text = "partition: gpu\ngpus: 2\ncpus: 4\nmemory_gb: 10\ntime: 1-00\nsetup: [module load x]\nsbatch: {nice: 3}\n"
    (tmp_path / "p.yaml").write_text(text)
    parameters = read_profile(tmp_path / "p.yaml").submitit_parameters(6)
    assert parameters == {
        "partition": "gpu",
        "time": 1440,
        "gpus_per_node": 2,
        "cpus_per_task": 4,
        "mem": "10GB",
        "nodes": 1,
        "ntasks_per_node": 1,
        "array_parallelism": 6,
        "signal_delay_s": 90,
        "setup": ["module load x"],
        "srun_args": ["--export=ALL"],
        "additional_parameters": {"requeue": True, "nice": 3},
    }


@pytest.mark.parametrize(
    ("profile", "written", "absent"),
    [
        ({"memory_gb": None}, [], ["mem"]),
        ({"memory_gb": None, "sbatch": {"mem_per_cpu": "4G"}}, ["mem-per-cpu=4G"], ["mem="]),
        ({"memory_gb": None, "sbatch": {"mem": 0}}, ["mem=0"], []),
        ({"gpus": 0}, ["mem=32GB"], ["gpus", "gres"]),
        ({"gpus": 0, "sbatch": {"gres": "gpu:a100:1"}}, ["gres=gpu:a100:1"], ["gpus"]),
        ({"sbatch": {"no_requeue": True}}, ["no-requeue"], ["requeue"]),
        ({"sbatch": {"wckey": "mine"}}, ["wckey=mine"], ["wckey=submitit"]),
        ({"gpu_type": "a100"}, ["gpus-per-node=a100:1"], []),
        ({"gpu_type": "nvidia_a100_3g.20gb", "gpus": 2}, ["gpus-per-node=nvidia_a100_3g.20gb:2"], []),
        ({"sbatch": {"exclusive": True, "hold": False, "nodelist": None}}, ["exclusive"], ["hold", "nodelist"]),
    ],
    ids=str,
)
def test_options_that_may_be_left_out(profile: dict[str, Any], written: list[str], absent: list[str]) -> None:
    from submitit.slurm.slurm import _make_sbatch_string

    text = _make_sbatch_string("true", "/logs", **Profile(**profile).submitit_parameters(1))
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert set(written) <= set(lines)
    assert not [line for line in lines if line.startswith(tuple(absent))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sbatch: {array: 0-3}", "sbatch: array: the harness sets this option itself; the profile's key is array_"),
        ("sbatch: {output: x}", "sbatch: output: the harness sets this option itself"),
        ("sbatch: {signal: USR1@9}", "sbatch: signal: the harness sets this option itself; the profile's key is sig"),
        ("sbatch: {open_mode: truncate}", "sbatch: open-mode: the harness sets this option itself"),
        ("sbatch: {cpus-per-task: 3}", "sbatch: cpus-per-task: the harness sets this option itself; the profile's key"),
        ("sbatch: {sig: USR1@9}", "sbatch: sig: the harness sets this option itself"),
        ("sbatch: {gres: 'gpu:a100:1'}", "sbatch: gres: the harness sets this option itself; the profile's key is gp"),
        ("sbatch: {requeue: false}", "requeue: the harness has its jobs requeued (legal: no-requeue: true"),
        ("sbatch: {wait: true}", "sbatch: wait: the harness sets this option itself"),
        ("sbatch: {mem-per-cpu: 4G}", "mem-per-cpu: memory_gb: 32 asks for it already; set memory_gb: null"),
        ("partition: a\nsbatch: {partition: b}", "partition: partition: a asks for it already"),
        ("sbatch: {--mem: 4G}", "'--mem' is no long option"),
        ("sbatch: {nodelist: [a, b]}", "nodelist: ['a', 'b'] is no value of an option"),
        ("gpus: 0\ngpu_type: a100", "gpu_type: 'a100' of no GPU, since gpus is 0"),
        ("gpu_type: 'a100:2'", "gpu_type: 'a100:2'"),
        ("memory_gb: 0", "memory_gb: 0"),
        ("time: 1\nsignal_delay_s: 60", "a warning 60 s before the end leaves nothing of time: 1 for work"),
        ("time: '00:01:00'", "signal_delay_s: a warning 90 s before the end leaves nothing of time: 00:01:00"),
        ("time: 1-0\nsignal_delay_s: 90000", "for work (legal: below 86400)"),
    ],
)
def test_what_contradicts_the_harness_or_itself_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.yaml").write_text(text + "\n")
    with pytest.raises(UserError) as refused:
        read_profile(tmp_path / "p.yaml")
    assert said in str(refused.value)


def test_other_options_are_written_as_they_are() -> None:
    own = {"exclude": "node13", "mail-type": "END", "gres": "scratch:10", "export": "NONE", "time-min": 10}
    assert Profile(sbatch=own).submitit_parameters(1)["additional_parameters"] == {"requeue": True, **own}


def test_submitit_knows_every_parameter() -> None:
    from submitit.slurm.slurm import _make_sbatch_string

    named = Profile(partition="p", account="a", qos="q", constraint="c").submitit_parameters(1)
    assert set(named) <= set(inspect.signature(_make_sbatch_string).parameters)


@pytest.mark.parametrize("workers", [1, 300])
def test_no_more_at_once_than_the_profile_or_the_launch_allows(workers: int) -> None:
    assert Profile().submitit_parameters(workers)["array_parallelism"] == min(workers, 256)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("memory", "memory_gb"), ("mem", "memory_gb"), ("gpus_per_node", "gpus"), ("cpus_per_task", "cpus")],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, meant: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"{key}: 3\n")
    with pytest.raises(UserError, match=rf"p\.yaml: {key}: unknown key; did you mean '{meant}'\?"):
        read_profile(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "slurm").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_profiles_that_come_along_are_legal(path: Path) -> None:
    assert read_profile(path).submitit_parameters(1)["time"] > 0
