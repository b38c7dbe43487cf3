"""One run: build, resume, train, evaluate, record. Needs neither wandb nor optuna nor submitit."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import Pruned, Stopped, UserError
from harness.core.layer_points import in_words
from harness.records import outcomes, schema
from harness.records.code_version import code_version
from harness.records.files import read_json, write_json
from harness.records.heartbeat import Heartbeat
from harness.records.run_directory import RunDirectory
from harness.training.config import RunConfig
from harness.training.pretrain import describe_pretrained, starting_weights
from harness.training.wandb_mirror import Mirror

if TYPE_CHECKING:
    from harness.training.session import Session

#: The largest share of its time that a run may spend on writing checkpoints.
CHECKPOINT_SHARE = 0.05


@dataclass(frozen=True)
class RunContext:
    """Settings of a run that change none of its numbers.

    epoch_done: gets each epoch's metrics; may raise Pruned. should_stop: asked before every step.
    notes: for the record's provenance. labels: for W&B's copy of the configuration, by the names in
    harness/records/schema.py.
    pretrained: where float networks to start from are kept; None: in the run's own directory.
    no_mirror: told why when the run has to go on without its copy on W&B.
    data_read: gets the configuration and the digest of its data before training; may raise UserError.
    """

    epoch_done: Callable[[dict[str, Any]], None] = field(default=lambda metrics: None)
    should_stop: Callable[[], bool] = field(default=lambda: False)
    tags: tuple[str, ...] = ()
    keep_best: bool = True
    job_id: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    pretrained: Path | None = None
    no_mirror: Callable[[str], None] = field(default=lambda reason: None)
    data_read: Callable[[RunConfig, str], None] = field(default=lambda config, digest: None)


def run(config: RunConfig, directory: Path, context: RunContext = RunContext()) -> dict[str, Any]:
    """Carry out a run in its directory, or continue it, or return its record if it is there already.

    Raises Stopped once it should stop (with a checkpoint written), UserError for a directory that belongs to another
    run, and whatever training raises.
    """
    files, run_id = RunDirectory(directory), config.run_id()
    _claim(files, config, run_id)
    if (record := read_json(files.record)) is not None:
        return dict(record)
    with Heartbeat(files, context.job_id) as beat:
        notes = {**context.notes, "attempts": beat.fields["attempt"]}
        try:
            record = _carry_out(config, run_id, files, replace(context, notes=notes))
            beat.state = "done"
            return record
        except Stopped:
            beat.state = "cancelled"
            raise
        except Pruned:
            beat.state = "pruned"
            files.checkpoint.unlink(missing_ok=True)
            raise


def _claim(files: RunDirectory, config: RunConfig, run_id: str) -> None:
    try:
        files.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--dir {str(files.path)!r}: cannot be made: {error.strerror}") from None
    there = read_json(files.config)
    if there is not None and there.get("run_id") != run_id:
        raise UserError(
            f"{files.path} holds run {there.get('run_id')}, and this configuration is run {run_id}; "
            "give it a directory of its own"
        )
    if there is None:
        write_json(files.config, {"run_id": run_id, "config": config.model_dump(mode="json")})


def _carry_out(config: RunConfig, run_id: str, files: RunDirectory, context: RunContext) -> dict[str, Any]:
    from harness.training import checkpoint
    from harness.training.build import build
    from harness.training.provenance import describe

    code_version()  # cached now, when the code is imported: later edits of the files do not reach this run
    networks = context.pretrained or files.pretrained
    weights = starting_weights(config, networks, partial(_train_first, context), context.should_stop)
    started = time.time()
    session = build(config, weights)
    context.data_read(config, session.dataset.digest)
    resumed = checkpoint.restore(files.checkpoint, session)
    files.keep_metrics_until(session.progress.epoch if resumed else 0)
    copied = (context.tags, files.read_metrics(), context.labels, context.no_mirror)
    mirror = Mirror(config, run_id, files.path, *copied)
    saver = _Saver(config, session, files)
    try:
        _train(session, files, mirror, saver, context)
        notes = {**context.notes, **describe_pretrained(config, networks)}
        record, of_samples = _record(session, run_id, {**describe(session, started), **notes})
        if context.keep_best:
            checkpoint.save_weights(files.best, session.progress.best_state, checkpoint.about_weights(session))
        outcomes.add(files, of_samples)
        write_json(files.record, record)  # last: a run with a record is over
        files.checkpoint.unlink(missing_ok=True)
    except BaseException as error:
        stopped = isinstance(error, Stopped)
        if stopped:
            saver.save()
        mirror.break_off(stopped)
        raise
    mirror.finish(
        {**schema.as_metrics(record["rows"], config.task.metric), "best_epoch": record["best_epoch"]},
        record,
        files.best,
    )
    return record


def _train_first(context: RunContext, config: RunConfig, directory: Path) -> None:
    """Train the float network that a run starts from. Its tag on W&B is not the sweep's: it is no run of it."""
    own = RunContext(
        epoch_done=partial(print_epoch, config),
        should_stop=context.should_stop,
        tags=("pretrain",),
        job_id=context.job_id,
        data_read=context.data_read,
    )
    run(config, directory, own)


def _train(session: "Session", files: RunDirectory, mirror: Mirror, saver: "_Saver", context: RunContext) -> None:
    from harness.training.loop import train, validate

    def epoch_done(metrics: dict[str, Any]) -> None:
        files.append_metrics(metrics)
        mirror.log(metrics)
        saver.save_if_due()
        context.epoch_done(metrics)

    def should_stop() -> bool:
        saver.save_if_due()
        return context.should_stop()

    train(session, epoch_done, should_stop)
    if not session.progress.best_state:
        validate(session)  # no epoch was trained: record the initial network


class _Saver:
    """Writes checkpoints between steps, as often as configured, within CHECKPOINT_SHARE of the time."""

    def __init__(self, config: RunConfig, session: "Session", files: RunDirectory) -> None:
        self._session, self._files = session, files
        self._every_s = config.runtime.checkpoint_every_s
        self._due = time.monotonic() + self._every_s

    def save_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        from harness.training import checkpoint

        begun = time.monotonic()
        self._files.flush_metrics()
        checkpoint.save(self._files.checkpoint, self._session)
        ended = time.monotonic()
        self._due = ended + max(self._every_s, (ended - begun) / CHECKPOINT_SHARE)


def _record(session: "Session", run_id: str, provenance: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The contents of record.json and outcomes.json. The test split is read here, once, and for final runs only."""
    config, progress = session.config, session.progress
    session.model.load_state_dict(progress.best_state)
    deployments = session.evaluator.deployments(session.model, measure=True)
    measured = [*deployments, *session.evaluator.baseline()]
    rows = session.evaluator.rows_of(measured, config.phase, "val")
    of_samples: list[dict[str, Any]] = []
    if config.phase == "final":
        tested, of_samples = session.evaluator.measured(measured, config.phase, "test")
        rows += tested
    record = {
        "run_id": run_id,
        "phase": config.phase,
        "config": config.model_dump(mode="json"),
        "resolved": {"device": str(session.device), "precision": session.precision, "compiled": session.compiled},
        "provenance": provenance,
        "audit": session.audit,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "monitor": progress.best_value,
        "rows": rows,
        "deployments": [each.cost for each in deployments],
        "threshold_histograms": {  # after: of the weights that are deployed
            str(bits): {"before": progress.first_histograms.get(bits), "after": tracker.threshold_histogram()}
            for bits, tracker in session.trackers.items()
        },
    }
    return record, of_samples


def epoch_line(config: RunConfig, metrics: dict[str, Any]) -> str:
    """An epoch's loss, validation score where it is monitored, and oscillation frequency in one line of text."""
    after = "" if config.monitor.name == "rtn" else f" after {config.monitor.name}"
    return (
        f"epoch {metrics[schema.EPOCH]:4d}  loss {metrics[schema.TRAIN_LOSS]:.4f}  "
        f"val {config.task.metric.shown(metrics[schema.MONITOR])} {in_words(config.monitored_point)}{after}  "
        f"oscillation frequency {metrics[schema.FREQUENCY]:.5f}"
    )


def print_epoch(config: RunConfig, metrics: dict[str, Any]) -> None:
    """Print an epoch's line."""
    print(epoch_line(config, metrics), flush=True)
