"""`make chaos`: a sweep on a real Slurm while workers are killed, cancelled and requeued and the controller dies.

The same sweep, undisturbed and on local workers, says what must come out. Prints what was done and what was checked;
exits with 1 when anything was lost, repeated or changed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "slurm" / "test_cluster.sh"
#: What slurmctld knows is on its disk within this time.
STATE_SAVED_S = 6.0
SWEEP = """
name: chaos
base:
  data: {name: digits}
  model: {name: mlp5, width: 32}
  train: {epochs: EPOCHS, batch_size: 50}
  deploy: {bits: [2, 3, 4], scale: recalibrate}
  runtime: {wandb: "off", checkpoint_every_s: 1}
cells:
  - methods: ste
    grid: {target_bit: [2, 3]}
    search: {train.learning_rate: {low: 1e-3, high: 1e-2, log: true}}
  - methods: oscillation
    grid: {target_bit: [2, 3]}
    search: {oscillation.strength: {low: 0.3, high: 30, log: true}}
tune: {trials: TRIALS}
final: {seeds: SEEDS}
sampler: random
max_lost: 100
"""


@dataclass
class Chaos:
    """One disturbed sweep and what happened to it."""

    folder: Path
    env: dict[str, str]
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    resumed: int = 0

    def launch(self, root: str, *options: str) -> subprocess.Popen[str]:
        """`harness.launch` of the sweep under a root of its own."""
        command = [sys.executable, "-m", "harness.launch", str(self.folder / "chaos.yaml")]
        return subprocess.Popen(
            [*command, "--root", str(self.folder / root), "--workers", "2", *options],
            cwd=REPOSITORY,
            env=self.env,
            stdout=open(self.folder / f"{root}.log", "w"),
            stderr=subprocess.STDOUT,
            text=True,
        )

    def disturb(self, events: list[str], every_s: float, launched: subprocess.Popen[str]) -> None:
        """Carry out the events in random order while the sweep runs."""
        draw = random.Random(self.seed)
        draw.shuffle(events)
        for event in events:
            end = time.monotonic() + draw.uniform(0.5, 1.5) * every_s
            while time.monotonic() < end and launched.poll() is None:
                time.sleep(0.1)
            if launched.poll() is not None:
                return
            getattr(self, event)(draw)

    def _workers(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.folder / "disturbed/chaos/workers").glob("*/status.json")):
            try:
                status = json.loads(path.read_text())
            except ValueError:
                continue
            if status["state"] == "running" and Path(f"/proc/{status['pid']}").exists():
                found.append(status)
        return found

    def _worker(self, draw: random.Random) -> dict[str, Any]:
        """One that runs; waits for one when all have just been hit."""
        end = time.monotonic() + 60
        while not (workers := self._workers()) and time.monotonic() < end:
            self.heal()
            time.sleep(0.3)
        return draw.choice(workers)

    def kill(self, draw: random.Random) -> None:
        """kill -9 of a worker."""
        os.kill(self._worker(draw)["pid"], signal.SIGKILL)
        self.done["killed"] += 1

    def scancel(self, draw: random.Random) -> None:
        """scancel of a worker's job."""
        self._slurm(draw, "cancelled", "scancel")

    def requeue(self, draw: random.Random) -> None:
        """scontrol requeue of a worker's job."""
        self._slurm(draw, "requeued", "scontrol", "requeue")

    def _slurm(self, draw: random.Random, name: str, *command: str) -> None:
        subprocess.run([*command, self._worker(draw)["job_id"]], env=self.env, capture_output=True, check=True)
        self.done[name] += 1

    def controller(self, draw: random.Random) -> None:
        """kill -9 of slurmctld; it comes back seconds later."""
        folder = Path(self.env["SLURM_CONF"]).parent
        time.sleep(STATE_SAVED_S)
        os.kill(int((folder / "slurmctld.pid").read_text()), signal.SIGKILL)
        time.sleep(3)
        cluster(self.env, "restart-controller")
        self.done["controller killed"] += 1

    def heal(self) -> None:
        """What an administrator does when a killed controller has forgotten that it had started a job.

        It starts the job again, the node refuses it ("Duplicate jobid") and is drained, and the job is held.
        """
        if "drain" in self._said("sinfo", "--noheader", "--format=%T"):
            node = self._said("sinfo", "--noheader", "--format=%N").split()[0]
            self._said("scontrol", "update", f"NodeName={node}", "State=RESUME")
            self.resumed += 1
        for line in self._said("squeue", "--noheader", "--array", "--format=%i %r").splitlines():
            job, _, reason = line.partition(" ")
            if "held" in reason:
                self._said("scontrol", "release", job)

    def _said(self, *command: str) -> str:
        """What a command of Slurm prints; nothing while the controller is away."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    def wait(self, launched: subprocess.Popen[str]) -> int:
        """The exit status of a launch, once it has ended."""
        while (status := launched.poll()) is None:
            self.heal()
            time.sleep(2)
        return status

    def faults(self) -> list[str]:
        """What differs from the quiet sweep, in words; nothing if all is well."""
        quiet, found = (records(self.folder / root / "chaos") for root in ("quiet", "disturbed"))
        faults = [f"run {run} has no record" for run in quiet.keys() - found.keys()]
        faults += [f"run {run} should not be" for run in found.keys() - quiet.keys()]
        for run in quiet.keys() & found.keys():
            if found[run]["rows"] != quiet[run]["rows"]:
                faults.append(f"run {run} differs from the quiet one")
            lines = (self.folder / "disturbed/chaos/runs" / run / "metrics.jsonl").read_text().splitlines()
            epochs = [json.loads(line)["epoch"] for line in lines]
            if epochs != list(range(1, found[run]["epochs"] + 1)):
                faults.append(f"run {run} wrote epochs {epochs}")
        return faults + self._queue_faults(len(quiet))

    def _queue_faults(self, runs: int) -> list[str]:
        command = [sys.executable, "-m", "harness.status", str(self.folder / "disturbed/chaos"), "--json"]
        status = json.loads(subprocess.run(command, env=self.env, capture_output=True, text=True, check=True).stdout)
        counts = {key: sum(cell[key] for cell in status["cells"]) for key in ("done", "running", "waiting", "failed")}
        expected = {"done": runs, "running": 0, "waiting": 0, "failed": 0}
        faults = [] if counts == expected else [f"the queue holds {counts}, not {expected}"]
        ends = {str(path.parent) for path in (self.folder / "disturbed").rglob("record.json")}
        return faults + ([] if len(ends) == runs else [f"{len(ends)} records for {runs} runs"])

    def attempts(self) -> int:
        """Attempts over all runs of the disturbed sweep."""
        paths = (self.folder / "disturbed/chaos/runs").glob("*/status.json")
        return sum(json.loads(path.read_text())["attempt"] for path in paths)


def records(sweep: Path) -> dict[str, dict[str, Any]]:
    """The records of a sweep, by run."""
    return {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("runs/*/record.json")}


def cluster(env: dict[str, str], *arguments: str) -> None:
    """`slurm/test_cluster.sh` on the cluster of an environment."""
    folder = str(Path(env["SLURM_CONF"]).parent)
    subprocess.run(
        ["bash", SCRIPT, *arguments], env={**env, "HARNESS_TEST_CLUSTER": folder}, check=True, stdout=subprocess.DEVNULL
    )


def carry_out(
    folder: Path, env: dict[str, str], sizes: dict[str, int], events: dict[str, int], every_s: float, seed: int
) -> list[str]:
    """Run both sweeps; prints what was done, returns the faults."""
    text = SWEEP.replace("EPOCHS", str(sizes["epochs"])).replace("TRIALS", str(sizes["trials"]))
    (folder / "chaos.yaml").write_text(text.replace("SEEDS", str(list(range(sizes["seeds"])))))
    chaos = Chaos(folder, env, seed)
    begun = time.monotonic()
    if chaos.launch("quiet").wait() != 0:
        return ["the quiet sweep failed", (folder / "quiet.log").read_text()]
    quiet_s = time.monotonic() - begun
    begun = time.monotonic()
    profile = str(REPOSITORY / "slurm" / "test_cluster.yaml")
    launched = chaos.launch("disturbed", "--cluster", "slurm", "--profile", profile, "--wait")
    chaos.disturb([name for name, times in events.items() for _ in range(times)], every_s, launched)
    status = chaos.wait(launched)
    faults = chaos.faults() if status == 0 else [f"launch --wait ended with {status}"]
    faults += [f"only {chaos.done} of {events} came to pass"] if sum(chaos.done.values()) < sum(events.values()) else []
    events_done = {**chaos.done, "node resumed": chaos.resumed}
    print(f"quiet {quiet_s:.0f} s, disturbed {time.monotonic() - begun:.0f} s; {events_done}")
    print(f"{len(records(folder / 'quiet/chaos'))} runs in {chaos.attempts()} attempts; faults: {faults or 'none'}")
    if faults:
        print((folder / "disturbed.log").read_text()[-4000:])
    return faults


def main() -> int:
    """The full form, on a cluster of its own."""
    parser = argparse.ArgumentParser(description="A sweep on a real Slurm under continuous faults.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harness-chaos-", dir="/tmp") as name:
        env = {**os.environ, "SLURM_CONF": f"{name}/slurm/slurm.conf", "WANDB_MODE": "offline"}
        cluster(env, "up")
        try:
            sizes = {"epochs": 40, "trials": 10, "seeds": 5}  # 4 cells: 60 runs
            events = {"kill": 20, "scancel": 5, "requeue": 5, "controller": 1}
            return 1 if carry_out(Path(name), env, sizes, events, 5.0, options.seed) else 0
        finally:
            cluster(env, "down")


if __name__ == "__main__":
    sys.exit(main())
