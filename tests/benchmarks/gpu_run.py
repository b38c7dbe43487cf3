"""For a GPU that is there for a short while: `make gpu-run MINUTES=9 OUT=DIR`. Offline; running it again goes on.

1. tests   those that need a GPU (gpu_tests.py), at most a third of the time
2. bench   the rows of `make bench-gpu` with a third of their rounds, at most a third of the time
3. sweeps  sweeps/resnet18.yaml, then sweeps/tiny_vit.yaml, for the rest of the time

What is over (for this code and this GPU) is not done again. A part that is out of time is ended with all that it
started, and what it finished is kept. OUT holds at most 8 files and 60 MiB: report.md, log.txt, tests.jsonl,
bench.json, bench.md and an archive of each sweep, with its queue. A run that was not over goes on from its checkpoint
where --root is still there; checkpoints are too large for OUT, so on a fresh machine it begins anew.
`--merge` only adds what OUT holds to the sweeps in --root.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # the package need not be installed

import bench  # noqa: E402
import bench_report  # noqa: E402
import gpu_tests  # noqa: E402
from gpu_limits import CLOSING_S, OUT_OF_TIME, WhenMore, in_order, limit_s, run_limited  # noqa: E402

from harness.core.errors import UserError  # noqa: E402
from harness.records.code_version import code_version  # noqa: E402
from harness.records.files import write_bytes  # noqa: E402

SWEEPS = ("resnet18", "tiny_vit")
FOLDERS = ("conformance", "data", "kernels", "models", "quantization", "training")
MAX_BYTES = 60 * 2**20
#: To see that all parts run: the same files with next to nothing in them.
TINY = (
    *("data={name: digits, train_fraction: 0.1}", "model={name: mlp5, width: 8}", "train={epochs: 1}"),
    *("deploy={bits: [2, 4], scale: recalibrate}", "runtime.threads=1", "tune.trials=1", "final.seeds=[0]"),
    "cells=[{methods: oscillation, set: {target_bit: 2}, search: {oscillation.strength: {low: 1, high: 9}}}]",
)


class GpuRun:
    """One occasion. Each part returns what the report says of it; failed: whether something is wrong."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out, self.root = options.out.resolve(), options.root.resolve()
        self.options, self.device, self.tiny = options, options.device, options.tiny
        self.total_s, self.begun = 60 * options.minutes, time.monotonic()
        self.failed = False
        self.log = self.out / "log.txt"
        self.machine = {**bench.facts(self.device), "tiny": self.tiny, "code": code_version()["source"]}

    def left_s(self) -> float:
        """Seconds until the time is over."""
        return self.begun + self.total_s - time.monotonic()

    def limit_s(self, part: str) -> float:
        """Seconds that a part may take now."""
        return limit_s(part, self.total_s, self.left_s())

    def is_of_this(self, facts: dict[str, Any]) -> bool:
        """Whether results are of this code on such a machine."""
        return all(facts.get(key) == self.machine.get(key) for key in ("code", "gpu", "tiny"))

    def tests(self) -> str:
        """The tests that need a GPU."""
        results = self.out / "tests.jsonl"
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
        if not lines or not self.is_of_this(json.loads(lines[0])):
            lines = []
            results.write_text(json.dumps(self.machine) + "\n", encoding="utf-8")
        if lines and json.loads(lines[-1]).get(
            "complete"
        ):  # collecting them to find that nothing is left takes a while
            return self.said_of_tests(results, 0)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_tests", "-p", "no:cacheprovider"]
        command += ["--results", str(results), "-m", "not slurm"]
        if self.tiny:
            command += ["--named", r"bit_for_bit.*cpu", "tests/quantization/test_quantizers_grid.py"]
        else:
            command += [f"tests/{name}" for name in FOLDERS]
        if not self.tiny and importlib.util.find_spec("xdist"):
            command += ["-n", str(min(4, os.cpu_count() or 1))]
        status = run_limited(command, self.limit_s("tests"), self.log)
        if status in (0, 5):  # 5: none was left to run
            with open(results, "a", encoding="utf-8") as file:
                file.write('{"complete": true}\n')
        return self.said_of_tests(results, status)

    def said_of_tests(self, results: Path, status: int | None) -> str:
        """The results so far; status: of the tests that were run now."""
        found = gpu_tests.read(results)
        counts = Counter(result["outcome"] for result in found)
        self.failed |= bool(counts["failed"]) or status not in (None, 0, 5)
        said = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "none"
        broken = "".join(f"\n  * {result['test']}" for result in found if result["outcome"] == "failed")
        ending = {None: f"; {OUT_OF_TIME}, the others next time", 0: "", 1: "", 5: ""}
        return said + ending.get(status, f"; pytest ended with {status}, see log.txt") + broken

    def bench(self) -> str:
        """The benchmarks, one part after another; the table is written after each."""
        path, end = self.out / "bench.json", time.monotonic() + self.limit_s("bench")
        rows, facts = bench_report.read_json(path) if path.exists() else ([], {})
        if not self.is_of_this(dict(facts)):
            rows = []
        names = [name for name in bench.PARTS["cuda"] if name in (self.options.only or name)]
        for name in in_order(names, rows):
            seconds = end - time.monotonic()
            if seconds < 1:
                break
            found = bench.carry_out({name: partial(self.one_part, name, seconds)})
            rows = [row for row in rows if row.get("part") != name] + found
            facts = {**self.machine, "total_s": round(sum(row.get("seconds", 0) for row in rows))}
            bench_report.write_json(path, rows, facts)
            (self.out / "bench.md").write_text(bench_report.as_markdown(rows, facts), encoding="utf-8")
        wrong = sorted({row["part"] for row in rows if "error" in row and not row["error"].startswith(OUT_OF_TIME)})
        self.failed |= bool(wrong)
        left = in_order(names, rows)
        said = f"{len(names) - len(left)} of {len(names)} parts, {len(rows)} rows in bench.md"
        return (
            said + (f"; left: {', '.join(left)}" if left else "") + (f"; failed: {', '.join(wrong)}" if wrong else "")
        )

    def one_part(self, name: str, seconds: float) -> list[bench_report.Row]:
        """A benchmark's rows."""
        try:
            return bench.in_its_own_process(name, self.device, self.tiny, short=True, limit_s=seconds)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{OUT_OF_TIME} after {seconds:.0f} s") from None

    def sweeps(self) -> str:
        """Merge what OUT holds, then go on with each sweep."""
        self.merge()
        said = []
        for name in SWEEPS:
            seconds = self.limit_s("sweeps")
            over, total = self.progress(name)
            if seconds >= 1 and (over < total or not total):
                said += self.one_sweep(name, seconds)
            over, total = self.progress(name)
            said.append(f"{name}: {over} of {total} runs are over" if total else f"{name}: not begun")
        return "; ".join(said)

    def one_sweep(self, name: str, seconds: float) -> list[str]:
        """Launch a sweep for so long; returns what went wrong."""
        command = [sys.executable, "-m", "harness.launch", f"sweeps/{name}.yaml", "--cluster", "local"]
        overrides = [*(TINY if self.tiny else ()), f"runs_per_gpu={self.options.at_once}", "max_lost=1000"]
        overrides += [f"runtime.device={self.device}", "runtime.wandb=off"]
        if self.options.data:
            overrides.append(f"data.root={os.path.relpath(self.options.data, REPOSITORY)}")  # records go to others
        command += ["--root", str(self.root), *(word for override in overrides for word in ("--set", override))]
        kept = WhenMore(lambda: self.keep(name), self.root / name / "runs")
        status = run_limited(command, seconds, self.log, kept, grace_s=0.75 * CLOSING_S)
        self.keep(name)
        if status in (None, 0):
            return []
        self.failed = True
        words = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return [f"the launch of {name} ended with {status}: {words[-1]}"]

    def keep(self, name: str) -> None:
        """Write a sweep's archive to OUT, unless that would be too large."""
        from harness.records.archive import pack

        with tempfile.TemporaryDirectory() as folder, suppress(UserError):  # nothing is there in its first seconds
            pack(self.root / name, Path(folder), unfinished=True)
            content = Path(shutil.make_archive(f"{folder}/whole", "zip", folder, name)).read_bytes()
            others = sum(path.stat().st_size for path in self.out.iterdir() if path.name != f"{name}.zip")
            if others + len(content) <= MAX_BYTES:
                write_bytes(self.out / f"{name}.zip", content)
            else:
                print(f"{name}: its archive of {len(content) >> 20} MiB has no room in {self.out}", file=sys.stderr)

    def merge(self) -> None:
        """Add what OUT holds to the sweeps in the root."""
        from harness.sweep.merge import merge

        self.root.mkdir(parents=True, exist_ok=True)
        for name in SWEEPS:
            if (self.out / f"{name}.zip").exists():
                with tempfile.TemporaryDirectory() as folder:
                    shutil.unpack_archive(self.out / f"{name}.zip", folder)
                    print(f"{name}: {merge(Path(folder) / name, self.root)} runs added from {self.out}", flush=True)

    def progress(self, name: str) -> tuple[int, int]:
        """Runs that are over, and all; (0, 0) before a sweep has begun."""
        from harness.sweep import plan, queue

        try:
            counts = plan.count(queue.load_sweep(self.root / name)).values()
        except UserError:
            return 0, 0
        return sum(phase.total - phase.left for phase in counts), sum(phase.total for phase in counts)


def carry_out(run: GpuRun) -> None:
    """All parts in turn; the report is written after each."""
    if run.log.exists() and run.log.stat().st_size > 2**20:
        write_bytes(run.log, run.log.read_bytes()[-(2**19) :])
    lines = [bench_report.sentence(run.machine), ""]
    for name, part in (("tests", run.tests), ("bench", run.bench), ("sweeps", run.sweeps)):
        begun = time.monotonic()
        print(f"{name}: up to {run.limit_s(name):.0f} s", flush=True)
        try:
            said = part() if run.limit_s(name) >= 1 else "no time was left"
        except Exception as error:  # the other parts are worth having
            run.failed, said = True, f"failed: {type(error).__name__}: {error}"
        lines.append(f"* {name} ({time.monotonic() - begun:.0f} s): {said}")
        print(lines[-1], flush=True)
        (run.out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Tests, benchmarks and sweeps on a GPU that is there for minutes.")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole command; default: 9")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-run"), metavar="DIR", help="results, gone on with")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="of the sweeps")
    parser.add_argument("--data", type=Path, metavar="DIR", help="that holds cifar-10-batches-py; default: data")
    parser.add_argument("--at-once", type=int, default=3, metavar="N", help="runs that share the GPU; default: 3")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="benchmarks to run; default: all")
    parser.add_argument("--device", default="cuda", help="cuda (default); cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="sizes whose figures mean nothing")
    parser.add_argument("--merge", action="store_true", help="only add what OUT holds to the sweeps in --root")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it, and children inherit that
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # parts end with this process
    if not options.merge and options.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            print("gpu-run: torch sees no GPU here, so nothing is run")
            return 0
    options.out.mkdir(parents=True, exist_ok=True)
    run = GpuRun(options)
    if options.merge:
        run.merge()
        return 0
    carry_out(run)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
