"""Everything that is measured, in one table: `python tests/benchmarks/bench.py` (make bench).

    --device cuda            the rows for a GPU (make bench-gpu)
    --only PATTERN           only the parts whose name matches, such as 'step*'
    --json FILE              all rows with their details, and the machine
    --markdown FILE          the table for tests/README.md
    --against FILE           the rows of such a JSON file, of another machine or commit, beside those measured now
    --show FILE              measure nothing: the rows of a JSON file
    --short                  a third of the rounds
    --tiny                   sizes whose figures mean nothing, to see that all parts run

Each part runs in a process of its own. One that fails is a row that says so; then the exit status is 1. A goal that
is missed changes no exit status: times are reported, not asserted.
"""

import argparse
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import bench_report
from bench_report import Measured, Row

HERE = Path(__file__).resolve().parent
#: In the order in which they run; those whose file is not there are passed over.
PARTS = {
    "cpu": (
        *("step_cost", "paper_loop", "eval_cost", "input_cost", "run_cost", "command_cost", "worker_scaling"),
        *("growth_cost", "table_cost", "table_levers", "method_cost", "precision_cost", "activation_cost"),
        "large_images",
    ),
    "cuda": (
        *("peak_cost", "gpu_cost", "table_cost", "step_cost", "eval_cost"),
        *("input_cost", "growth_cost", "method_cost", "activation_cost"),
    ),
}
#: A part that hangs must not take the rest with it.
LIMIT_S = 600
Part = Callable[[], list[Row]]


def kind(device: str) -> str:
    """`cpu` or `cuda`."""
    return device.partition(":")[0]


def parts(device: str, tiny: bool, short: bool = False) -> dict[str, Part]:
    """The parts there are for a device, by name."""
    present = [name for name in PARTS[kind(device)] if (HERE / f"{name}.py").exists()]
    return {name: partial(in_its_own_process, name, device, tiny, short) for name in present}


def in_its_own_process(name: str, device: str, tiny: bool, short: bool = False, limit_s: float = LIMIT_S) -> list[Row]:
    """The rows of a part. Raises RuntimeError with what it said when it fails, TimeoutExpired past its limit."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.json"
        command = [sys.executable, str(HERE / "bench.py"), "--part", name, "--device", device, "--json", str(answer)]
        command += [flag for flag, given in (("--tiny", tiny), ("--short", short)) if given]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            output, _ = process.communicate(timeout=limit_s)
        finally:
            with suppress(ProcessLookupError):  # what the part itself started must not go on beside the next part
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode != 0 or not answer.exists():
            raise RuntimeError(f"exit status {process.returncode}\n{output[-4000:]}")
        rows: list[Row] = json.loads(answer.read_text(encoding="utf-8"))
        return rows


def measured(name: str, device: str, tiny: bool, short: bool = False) -> list[Row]:
    """The rows of a part, measured in this process."""
    import bench_common

    measure: Any = import_module(name).measure
    bench_common.ROUNDS_SHARE = 1 / 3 if short else 1.0
    options = {"device": device, "tiny": tiny}
    rows: list[Row] = measure(**{key: value for key, value in options.items() if bench_common.accepts(measure, key)})
    return rows


def carry_out(chosen: Mapping[str, Part]) -> list[Row]:
    """All rows of all parts; a part that fails is one row. Says on standard error how far it is."""
    rows: list[Row] = []
    for name, part in chosen.items():
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        try:
            found = part()
        except Exception as error:
            text = str(error) if isinstance(error, RuntimeError) else traceback.format_exc()
            found = [bench_report.failure(name, text, time.perf_counter() - begun)]
        seconds = time.perf_counter() - begun
        if found and not any("seconds" in row for row in found):
            found[0]["seconds"] = seconds  # the part timed no row by itself: all of it stands at its first one
        rows += [{**row, "part": name} for row in found]
        print(f"{seconds:.0f} s", file=sys.stderr, flush=True)
    return rows


def facts(device: str) -> dict[str, Any]:
    """The machine, torch's view of it included."""
    from bench_common import torch_facts

    return {**bench_report.machine(), **torch_facts(device)}


def run_alone(name: str) -> None:
    """A part as a command of its own: its table, after the machine."""
    options = _parser().parse_args()
    print(bench_report.sentence(facts(options.device)) + "\n")
    print(bench_report.as_text(measured(name, options.device, options.tiny, options.short)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure everything, in one table.")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="parts to run, as a file name pattern")
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--markdown", metavar="FILE", type=Path)
    parser.add_argument("--against", metavar="FILE", type=Path, help="JSON of another machine, to lay beside")
    parser.add_argument("--show", metavar="FILE", type=Path, help="measure nothing: the rows of a JSON file")
    parser.add_argument("--short", action="store_true", help="a third of the rounds")
    parser.add_argument("--tiny", action="store_true", help="sizes whose figures mean nothing")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None, known: Mapping[str, Part] | None = None) -> int:
    """Carry out the command; returns the exit status. known: the parts, for tests."""
    options = _parser().parse_args(arguments)
    if options.part:
        rows = measured(options.part, options.device, options.tiny, options.short)
        options.json.write_text(json.dumps(rows), encoding="utf-8")
        return 0
    try:  # before anything is measured, which takes minutes
        there = bench_report.read_json(options.against) if options.against else None
        if options.show:
            return _report(*bench_report.read_json(options.show), there, options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    everything = parts(options.device, options.tiny, options.short) if known is None else known
    chosen = {name: part for name, part in everything.items() if fnmatch.fnmatch(name, options.only)}
    if not chosen:
        print(f"--only {options.only}: no such part (there are: {', '.join(everything)})", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # parts end with this process
    machine = facts(options.device)
    begun = time.perf_counter()
    rows = carry_out(chosen)
    machine["total_s"] = round(time.perf_counter() - begun)
    return _report(rows, machine | {"tiny": options.tiny}, there, options)


def _report(rows: list[Row], machine: Mapping[str, Any], there: Measured | None, options: argparse.Namespace) -> int:
    """Print the table and write the files; returns the exit status."""
    print(f"{bench_report.sentence(machine)}\n\n{bench_report.as_text(rows, there)}\n\n{machine['total_s']} s in all")
    if machine["tiny"]:
        print("tiny sizes: these figures mean nothing")
    for path in (options.json, options.markdown):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    if options.json:
        bench_report.write_json(options.json, rows, machine)
    if options.markdown:
        options.markdown.write_text(bench_report.as_markdown(rows, machine, there), encoding="utf-8")
    failed = [row for row in rows if "error" in row]
    for row in failed:
        print(f"\n{row['what']} failed:\n{row['error']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
