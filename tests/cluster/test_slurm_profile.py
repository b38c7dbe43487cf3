"""Cluster profiles: times, and what Submitit is asked for."""

import inspect
from pathlib import Path

import pytest

from harness.cluster.slurm import Profile, read_profile
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
    assert Profile(time=text).submitit_parameters(1)["time"] == minutes


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
        "additional_parameters": {"requeue": True, "nice": 3},
    }


def test_submitit_knows_every_parameter() -> None:
    from submitit.slurm.slurm import _make_sbatch_string

    named = Profile(partition="p", account="a", qos="q", constraint="c").submitit_parameters(1)
    assert set(named) <= set(inspect.signature(_make_sbatch_string).parameters)


@pytest.mark.parametrize("workers", [1, 300])
def test_no_more_at_once_than_the_profile_or_the_launch_allows(workers: int) -> None:
    assert Profile().submitit_parameters(workers)["array_parallelism"] == min(workers, 256)


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("memory: 3\n")
    with pytest.raises(UserError, match=r"p\.yaml: memory: unknown key; did you mean 'memory_gb'\?"):
        read_profile(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "slurm").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_profiles_that_come_along_are_legal(path: Path) -> None:
    assert read_profile(path).submitit_parameters(1)["time"] > 0
