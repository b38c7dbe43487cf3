"""What a launch checks before anything starts, and what `--dry-run` shows of it."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import data
from harness.archive import is_archive, runs_of
from harness.config import RunConfig, component
from harness.errors import UserError
from harness.profile import Profile
from harness.record import read_json
from harness.search import Choices, Range
from harness.sweep import Cell, SweepSpec

if TYPE_CHECKING:
    from torch import nn


def _data_configs(spec: SweepSpec, cells: Sequence[Cell]) -> list[object]:
    """The data sets of a sweep, each once."""
    seen: dict[str, object] = {}
    for cell in cells:
        knobs = cell.config(_first(cell), spec.tune.seed, "tune").data
        seen[repr(sorted(knobs.items()))] = component("data set", knobs)
    return list(seen.values())


def _first(cell: Cell) -> dict[str, object]:
    return {name: next(iter(dimension.points())) for name, dimension in cell.search.items()}


def check_data(spec: SweepSpec, cells: Sequence[Cell]) -> None:
    """Refuse data sets whose files are not where they should be. Raises UserError."""
    for config in _data_configs(spec, cells):
        data.check(config)  # type: ignore[arg-type]


def check_stacks(cells: Sequence[Cell], seed: int) -> None:
    """Refuse methods on models that lack what they require, and stacks whose methods want the same slot.

    Imports torch where there is a stack or a requirement. Raises UserError.
    """
    from harness.methods import find

    for cell in cells:
        names = [entry["name"] for entry in cell.raw["methods"]]
        required = {name: found for name in names if (found := find(name).requires)}
        if len(names) > 1 or required:
            config = cell.config(_first(cell), seed, "tune")
            _check_stack(cell.id, config, _model_for(cell.id, config, required) if required else None)


#: Images (C, H, W) and classes of a model that is built for a look at its layers.
_ANY_IMAGES, _ANY_CLASSES = (3, 64, 64), 10


def _model_for(cell_id: str, config: RunConfig, required: dict[str, tuple[str, ...]]) -> "nn.Module | None":
    """The cell's model, with random weights and for images of any size; None where it cannot be built so.

    Raises UserError when it lacks what methods require.
    """
    from harness.features import check_requirements
    from harness.models import build_model

    knobs = component("model", {**config.model, "init": "scratch"})
    try:
        model = build_model(knobs, _ANY_IMAGES, _ANY_CLASSES, config.seed)
    except UserError:  # it may want its own images, and is looked at when a run builds it
        return None
    try:
        check_requirements(model, knobs.name, required)
    except UserError as error:
        raise UserError(f"cell {cell_id}: {error}") from None
    return model


def _check_stack(cell_id: str, config: RunConfig, model: "nn.Module | None") -> None:
    """Let the methods of a stack prepare the model, or one linear layer, in turn."""
    import torch

    from harness.calibration import Calibration
    from harness.layers import SlotTakenError
    from harness.methods import build_stack
    from harness.methods.base import Context

    shape = _ANY_IMAGES if model else (4,)
    model = model or torch.nn.Sequential(torch.nn.Linear(4, 4))
    batch = (torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64))
    try:
        methods = build_stack(config.methods, Context(target_bit=config.target_bit or 2))
        for method in methods:
            method.prepare(model, Calibration(lambda index: batch))
        for method in methods:
            method.prepared(model)
    except SlotTakenError as error:
        names = [entry["name"] for entry in config.methods]
        raise UserError(f"cell {cell_id}: methods {names}: {error}") from None
    except Exception:  # (a method may well want more than a layer; only clashes are looked for)
        return


def prepare_data(spec: SweepSpec, cells: Sequence[Cell]) -> None:
    """Decode and cache every data set once, before any worker starts. Raises UserError for a damaged image."""
    for config in _data_configs(spec, cells):
        data.prepare(config)  # type: ignore[arg-type]


def show(spec: SweepSpec, cells: Sequence[Cell], cluster: str, workers: int, profile: Profile, root: Path) -> None:
    """Print cells, trials, finals, workers and the job that would be submitted."""
    trials, finals = spec.tune.trials * len(cells), len(spec.final.seeds) * len(cells)
    print(f"sweep {spec.name} -> {root / spec.name}")
    print(f"objective {', '.join(spec.objective)}; sampler {spec.sampler.name}; pruner {spec.pruner.name}")
    width = max(len(cell.id) for cell in cells)
    for cell in cells:
        searched = "; ".join(f"{name} in {_shown(space)}" for name, space in cell.search.items()) or "nothing"
        print(f"  {cell.id:<{width}}  {spec.tune.trials} trials, searching {searched}; {len(spec.final.seeds)} seeds")
    print(f"{len(cells)} cells, {trials} trials, {finals} finals: {trials + finals} runs")
    count = min(workers, trials + finals)
    print(f"{count} workers, cluster {cluster}, storage {spec.storage}")
    if cluster == "slurm":
        print("job array that would be submitted:\n")
        print(sbatch_text(spec, profile, count, root))
    try:
        check_data(spec, cells)
    except UserError as error:
        print(f"not yet runnable: {error}")


def show_standing(spec: SweepSpec, root: Path) -> int:
    """Print what is there already of a sweep; returns 2 when launching it would be refused."""
    from harness import plan, roster, study

    folder = root / spec.name
    if not (folder / "sweep.json").exists():
        return 0
    if is_archive(folder):
        print(f"{folder}: an archive, to be read only")
        return 0
    try:
        study.check_change(folder, spec)
    except UserError as error:
        print(f"would be refused: {error}")
        return 2
    there = study.load_sweep(folder)
    left = plan.left(dataclasses.replace(there, spec=spec))
    workers = len(roster.living(folder))
    print(f"{folder}: {left} runs left, {workers} workers at it" if left else f"{folder}: complete, nothing to do")
    return 0


def show_runs(spec: SweepSpec, cells: Sequence[Cell], root: Path) -> None:
    """Print each run's id, which names its directory, and what it is, as far as that can be told.

    Ids are made anew from the sweep file; of what is there already (or in an archive) come the trials that an adaptive
    sampler drew, and the chosen ones.
    """
    from harness.plan import known_params

    folder = root / spec.name
    entries = {entry["id"]: entry for entry in (read_json(folder / "cells.json") or {"cells": []})["cells"]}
    drawn = _drawn(runs_of(folder))
    for cell in cells:
        for number in range(spec.tune.trials):
            params = known_params(spec, cell, number) or drawn.get((cell.id, number))
            _show_run(cell, params, spec.tune.seed, "tune", f"trial {number}")
        chosen = entries.get(cell.id, {}).get("chosen") or (None if spec.tune.trials else {"params": {}})
        for seed in spec.final.seeds:
            _show_run(cell, chosen and chosen["params"], seed, "final", f"seed {seed}")


def _drawn(runs: Traversable) -> dict[tuple[str, int], dict[str, Any]]:
    """The parameters of the trials in a folder of runs, by cell and number."""
    found = {}
    for run in runs.iterdir() if runs.is_dir() else ():
        try:
            entries = json.loads((run / "trials.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or not whole
            continue
        for entry in entries:
            if entry["phase"] == "tune":
                found[entry["cell"], entry["trial"]] = entry["params"]
    return found


def _show_run(cell: Cell, params: Mapping[str, Any] | None, seed: int, phase: str, which: str) -> None:
    try:
        name = "not drawn yet" if params is None else cell.config(params, seed, phase).run_id()
    except UserError as error:  # it may start from a checkpoint that is not here
        name = f"not known ({error})"
    values = ", ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in (params or {}).items()
    )
    print(f"{name}  {phase:<5}  {cell.id}  {which}  {values}".rstrip())


def sbatch_text(spec: SweepSpec, profile: Profile, workers: int, root: Path) -> str:
    """The sbatch file, as Submitit would write it; needs no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = root.resolve() / spec.name / "logs"
    command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)])
    tasks = profile.workers_a_job(spec.runs_per_gpu)
    jobs = -(-workers // tasks)
    parameters = profile.submitit_parameters(jobs, tasks)
    return _make_sbatch_string(command, folder, job_name=spec.name, map_count=jobs, **parameters)


def _shown(dimension: Choices | Range) -> str:
    if isinstance(dimension, Choices):
        return "{" + ", ".join(str(choice) for choice in dimension.choices) + "}"
    notes = [word for word, said in (("log", dimension.log), ("int", dimension.kind == "int")) if said]
    return f"[{dimension.low:g}, {dimension.high:g}]" + (f" ({', '.join(notes)})" if notes else "")
