"""Jobs larger than every node of their partition are refused before they are submitted; sinfo is a stand-in."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from cli_sweep import BASE, Cli

from harness.cluster.nodes import check_fits
from harness.cluster.profile import Profile
from harness.core.errors import UserError

#: As a cluster's `sinfo --exact` prints partitions, CPUs, memory in MB and generic resources.
SINFO = """\
short*|64|257000|(null)
short*|128|515000|gpu:a100:4(S:0-1),shard:a100:16(S:0-1)
gpu|96|1031000+|gpu:h200:8(S:0-3)
gpu|96+|515000|gpu:a100:2,gpu:a100_1g.5gb:14
old|16|1|gpu:2
"""
SMALL = {"gpus": 0, "cpus": 1, "memory_gb": 1}


@pytest.fixture
def sinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What sinfo prints of nodes, in a file; of partitions it prints their names."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = 'case "$*" in *%R*) echo short gpu old ;; *) cat $0.txt ;; esac'
    for name, line in {"sinfo": script, "sbatch": "exit 1", "srun": "true", "squeue": "true"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    (folder / "sinfo.txt").write_text(SINFO)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    return folder / "sinfo.txt"


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"memory_gb": 600}, "memory_gb: 600: the largest node of partition short has 502 (legal: 1 to 502, null)"),
        ({"cpus": 200}, "cpus: 200: the largest node of partition short has 128 (legal: 1 to 128)"),
        ({"gpus": 5}, "gpus: 5: no node of partition short has more than 4 (legal: 0 to 4)"),
        (
            {"gpus": 4, "cpus": 40},
            "cpus: 40, 160 for the 4 workers of a job: the largest node of partition short has 128",
        ),
        ({"partition": "gpu", "gpus": 4, "gpu_type": "a100"}, "no node of partition gpu has more than 2 of type a100"),
        ({"partition": "gpu", "gpus": 1, "gpu_type": "v100"}, "more than 0 of type v100 (legal: 0 to 0)"),
        ({"partition": "old", "gpus": 3, "cpus": 1}, "no node of partition old has more than 2"),
        ({"partition": None, "sbatch": {"partition": "old"}, "cpus": 17}, "the largest node of partition old has 16"),
        ({"partition": "gpu,short", "cpus": 129}, "the largest node of partition gpu, short has 128"),
        ({"cpus": 200, "memory_gb": 600}, "has 128 (legal: 1 to 128); memory_gb: 600"),
        ({"gpus": 2, "runs_per_gpu": 64, "cpus": 2}, "cpus: 2, 256 for the 128 workers of a job"),
    ],
    ids=str,
)
def test_a_job_larger_than_every_node_is_refused(sinfo: Path, profile: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^--cluster slurm: no node can take the job: .*{re.escape(said)}"):
        check_fits(Profile(**{**SMALL, **profile}), 1)


@pytest.mark.parametrize(
    ("profile", "printed"),
    [
        ({"cpus": 128, "memory_gb": 502, "gpus": 1}, SINFO),
        ({"partition": "gpu", "gpus": 8, "cpus": 12, "memory_gb": 1000}, SINFO),
        (
            {"partition": "old", "gpus": 2, "gpu_type": "v100", "memory_gb": 64},
            SINFO,
        ),  # neither type nor memory is told
        ({"memory_gb": None}, SINFO),
        ({"cpus": 1000}, "low\n"),
        ({"cpus": 1000}, ""),
        ({"cpus": 1000, "sbatch": {"clusters": "other"}}, SINFO),
        ({"partition": "hidden", "cpus": 1000}, SINFO),
    ],
    ids=str,
)
def test_what_fits_or_is_not_told_is_let_through(sinfo: Path, profile: dict[str, Any], printed: str) -> None:
    sinfo.write_text(printed)
    check_fits(Profile(**{**SMALL, **profile}), 1)


def test_a_launch_asks_before_it_submits(sinfo: Path, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    profile = cli.file("gpus: 0\ncpus: 1\nmemory_gb: 900\n", "p.yaml")
    said = cli.refusal(cli.file(BASE), "--cluster", "slurm", "--profile", profile)
    assert "memory_gb: 900: the largest node of partition short has 502" in said
