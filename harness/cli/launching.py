"""Carrying a sweep out: what is checked, the workers that are started, and how they are followed."""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.cli import dry_run, estimate, idle_settings, preflight, progress, unwatched
from harness.cli.stopping import still_stopping, stopped
from harness.cli.there import look
from harness.cluster.nodes import check_fits
from harness.cluster.pool import WorkerPool
from harness.cluster.profile import Profile, read_profile
from harness.cluster.slots import busy_note, cores, local_slots, visible_gpus
from harness.cluster.slurm import check_root, check_slurm, launch_notes
from harness.cluster.waiting import waiting, waiting_notes
from harness.cluster.worker_info import list_workers
from harness.core.errors import UserError
from harness.core.wording import counted
from harness.records import code_version
from harness.records.sweep_directory import SweepDirectory
from harness.sweep import plan
from harness.sweep.cells import Cell, check_methods
from harness.sweep.config import SweepConfig
from harness.sweep.queue import OpenSweep, open_sweep
from harness.sweep.samplers import check_algorithms
from harness.training import wandb_mirror
from harness.training.wandb_environment import say_ignored


def carry_out(spec: SweepConfig, cells: Sequence[Cell], options: argparse.Namespace) -> int:
    """Launch a sweep, all checked but its methods, with the options of `harness.launch`; returns the exit status.

    Raises UserError for what a run would be refused for, before anything is queued.
    """
    profile = read_profile(options.profile)
    check_algorithms(spec)
    slots = local_slots(options.gpus, spec.runs_per_gpu)
    runs = len(cells) * (spec.tune.trials + len(spec.final.seeds))
    workers = _workers(options, spec, slots, min(runs, profile.workers_at_once(spec.runs_per_gpu)))
    if options.cluster == "slurm":
        check_root(options.root)
    check_methods(spec, cells)  # imports torch, so it comes after all checks that do not
    preflight.check_wandb(spec, cells)
    busy = _load_note(cells, workers) if options.cluster == "local" else None  # before networks are built
    if options.dry_run:
        return _dry_run(spec, cells, options, workers, profile, slots, busy)
    preflight.check_data(spec, cells)
    if options.cluster == "slurm":
        check_slurm(profile)
        check_fits(profile, spec.runs_per_gpu)
        notes = launch_notes(spec, profile, options.root)
        print("\n".join([*notes, *_waiting_notes(spec, options.root, profile)]))
    folder = options.root / spec.name
    for note in (*idle_settings.notes(spec, cells), *unwatched.of_sweep(spec, cells, folder)):
        print(note, flush=True)
    if SweepDirectory(folder).sweep.exists():
        print(f"{folder}: launched before, which checked its networks; reading its queue", file=sys.stderr, flush=True)
    else:
        dry_run.show_builds(spec, cells, checked=True)
    preflight.prepare_data(spec, cells, folder)
    opened = open_sweep(spec, options.root)
    code_version.note_launch(opened.files.code)
    _say(busy)
    return _start(opened, options, WorkerPool(opened, options.cluster, workers, profile, slots))


def _load_note(cells: Sequence[Cell], workers: int) -> str | None:
    """What to say where the machine is busy with other work."""
    share = max(1, cores() // workers)
    return busy_note(max(cell.raw.get("runtime", {}).get("threads") or share for cell in cells))


def _say(note: str | None) -> None:
    if note:
        print(note, file=sys.stderr, flush=True)


def _waiting_notes(spec: SweepConfig, root: Path, profile: Profile) -> list[str]:
    """What there is to say of workers that wait in Slurm's queue for what is left of a sweep. Raises UserError."""
    folder = root / spec.name
    if not waiting(list_workers(folder)):
        return []
    there = look(spec, root)
    return waiting_notes(there.workers, profile, folder) if there and there.left else []


def _dry_run(
    spec: SweepConfig,
    cells: Sequence[Cell],
    options: argparse.Namespace,
    workers: int,
    profile: Profile,
    slots: tuple[str, ...],
    busy: str | None,
) -> int:
    if options.runs:
        dry_run.show_runs(spec, cells, options.root)
    else:
        dry_run.show_builds(spec, cells)
    there, refused = None, None
    try:
        there = look(spec, options.root)
    except UserError as error:
        refused = error
    dry_run.show(spec, cells, options.cluster, workers, profile, options.root, there)
    usable = dry_run.show_data(spec, cells)
    if options.estimate:
        _say(busy)
        estimate.show(spec, cells, options.cluster, workers, slots, there)
    status = dry_run.show_status(options.root / spec.name, options.cluster, profile, there, refused)
    return max(usable, status)


def _workers(options: argparse.Namespace, spec: SweepConfig, slots: tuple[str, ...], on_slurm: int) -> int:
    """How many workers may be present at once. on_slurm: there, unless the user says a number.

    Raises UserError for more than the storage allows.
    """
    default = {"slurm": on_slurm, "debug": 1}.get(options.cluster, len(slots))
    wanted: int = options.workers or spec.workers or default
    if options.cluster == "local" and wanted > len(slots):
        here = f"{counted(len(slots), 'slot')} here ({', '.join(slots)})"
        print(f"{wanted} workers asked for, {here}: {len(slots)} at a time")
        wanted = len(slots)
    if spec.storage.startswith("sqlite") and wanted > 1:
        raise UserError(
            f"storage: {spec.storage!r} with {wanted} workers: SQLite gives one trial to two workers under load "
            "(23 of 100 in our measurement); use storage: journal, or a PostgreSQL or MySQL URL, or --workers 1"
        )
    if absent := set(options.gpus or ()) - set(visible_gpus()):
        names = ", ".join(sorted(absent))
        print(f"--gpus: no CUDA device {names} is seen here; runs bound to it use the CPU", file=sys.stderr)
    return wanted


def _start(opened: OpenSweep, options: argparse.Namespace, pool: WorkerPool) -> int:
    opened.files.stop.unlink(missing_ok=True)
    plan.top_up(opened)
    missing = plan.left(opened)
    if not missing:
        print(f"{opened.folder}: {plan.ending(opened)}")
        return progress.summary(opened)
    if options.detach and options.cluster == "local":
        return _detach(opened.files.launch_log)
    runtime = dict(opened.spec.base.get("runtime", {}))
    print(wandb_mirror.explain_mode(runtime.get("wandb", "auto")))
    if runtime.get("wandb") != "off":
        say_ignored()
    if options.cluster == "debug":
        pool.worker(keep_signals=True)()
        return progress.summary(opened)
    submitted = pool.submit_missing()
    if options.cluster == "local" and not submitted:
        print("the workers of another launch carry it out; this one follows them", flush=True)
    if options.cluster == "slurm":
        what = f"{counted(submitted, 'worker')} submitted" if submitted else "enough workers are there"
        print(f"{what}, {counted(missing, 'run')} to go; results come to {opened.folder}", flush=True)
        if not options.wait:
            return 0
    return _follow(opened, pool, options.cluster)


def _follow(opened: OpenSweep, pool: WorkerPool, cluster: str) -> int:
    """Show progress until the sweep is complete, replacing workers that die while work is left."""
    # Slurm's controller, or a database, is asked each time.
    look_every_s = 3.0 if cluster == "slurm" or opened.spec.storage != "journal" else 0.5
    try:
        with progress.Display() as display:
            while plan.left(opened):
                display.show(opened, plan.count(opened))
                if opened.files.stop.exists():
                    print("cancelled by harness.cancel; launch again to go on", file=sys.stderr)
                    return 130
                pool.replace_lost()
                time.sleep(look_every_s)
            display.show(opened, plan.count(opened))
    except KeyboardInterrupt:
        if cluster == "slurm":
            print("the workers go on; --wait follows again, python -m harness.cancel stops them", file=sys.stderr)
        else:
            _stop(opened, pool)
        return 130
    return progress.summary(opened)


def _stop(opened: OpenSweep, pool: WorkerPool) -> None:
    print("interrupted: workers write their checkpoints and stop; the same command continues", file=sys.stderr)
    ended, running = pool.stop()
    for worker in running:
        print(still_stopping(worker), file=sys.stderr)
    print(stopped(opened, ended, len(running)), file=sys.stderr)


def _detach(log: Path) -> int:
    """Continue the launch in a session of its own, which survives this terminal."""
    kept = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.launch", *kept],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    print(f"detached as process {process.pid}; log: {log}; python -m harness.status shows progress")
    return 0
