"""The copy of a run on Weights & Biases. The run directory is the truth; no failure here stops a run.

Without an account, or if W&B does not answer, the copy is written to offline files in the run directory, for a later
`wandb sync`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.core.errors import masked
from harness.core.outside import shown
from harness.records import schema
from harness.records.wandb_names import MOST_OF_NAME, shortened, tag_of
from harness.training.config import RunConfig
from harness.training.wandb_environment import environment_of_runs, has_key, malformed_url, say_ignored

#: How long a run waits for W&B's answer at its start, and at its end.
START_PATIENCE_S, FINISH_PATIENCE_S = 30.0, 60.0
#: After a start without an answer, runs of this process start offline for this long.
ASK_AGAIN_AFTER_S = 600.0


def wandb_mode(wanted: str) -> str:
    """Resolve "auto": "off" without the package, "offline" without a key. Never prompts."""
    if wanted == "off":
        return "off"
    try:
        import wandb  # noqa: F401
    except ImportError:
        return "off"
    if wanted != "auto":
        return wanted
    chosen = os.environ.get("WANDB_MODE", "")
    if chosen in ("online", "offline"):
        return chosen
    if chosen in ("disabled", "dryrun"):
        return "off" if chosen == "disabled" else "offline"
    return "online" if has_key() and not malformed_url(os.environ) else "offline"


def explain_mode(wanted: str) -> str:
    """One sentence for the user: where the W&B copy of the runs goes, and why. wanted: runtime.wandb."""
    mode = wandb_mode(wanted)
    if mode != "offline":
        where = {"online": "runs are mirrored online", "off": "off (results are in the run directories all the same)"}
        return f"W&B: {where[mode]}"
    asked = wanted == "offline" or os.environ.get("WANDB_MODE") in ("offline", "dryrun")
    why = "" if asked else "no key found, so "
    if not asked and (url := malformed_url(os.environ)) is not None and has_key():
        why = f"WANDB_BASE_URL is no address ({masked(url)!r}), so "
    return f"W&B: {why}runs are mirrored offline (later: wandb sync DIR/wandb/offline-run-*)"


def group_of(config: RunConfig) -> str:
    """`mlp5/oscillation/w2`: the W&B group of all seeds of a cell."""
    methods = "+".join(shown(entry["name"]) for entry in config.methods)
    group = "/".join((shown(config.model["name"]), methods, config.monitored_point.key))
    return shortened(group, MOST_OF_NAME)


class Mirror:
    """One run on W&B. An error of W&B is printed once and then ignored.

    W&B has each epoch exactly once, however often a run is interrupted. An epoch is a row. An online run asks the
    server which epochs it has and sends the others. An offline run holds all epochs from the first, so that a sync
    replaces the earlier copy. history: the rows of metrics.jsonl for epochs that will not be repeated. lost: called
    with the reason when the run continues without its copy.
    """

    _ask_again = 0.0  # a time.monotonic(), shared by all runs of the process
    _last_mode: str | None = None  # of the last start in this process

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        directory: Path,
        tags: tuple[str, ...] = (),
        history: Sequence[Mapping[str, Any]] = (),
        labels: Mapping[str, Any] = MappingProxyType({}),
        lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._run: Any = None
        self._lost = lost
        self._config, self._run_id, self._directory = config, run_id, directory
        self._tags, self._labels = tags, labels
        #: The last epoch that the server had when the run began; rows have the steps 0, 1, ...
        self._had_until = 0
        mode = wandb_mode(config.runtime.wandb)
        if mode != "off":
            say_ignored()
        if mode == "online":
            self._start_online(history)
        elif mode == "offline":
            self._try("start", lambda: self._start("offline", history))

    def _start_online(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Start online, or offline when W&B does not answer or refuses."""
        away = time.monotonic() < Mirror._ask_again
        try:
            if away:
                raise ConnectionError("it did not answer a few minutes ago")
            self._start("online", history)
        except Exception as error:
            if not away:
                Mirror._ask_again = time.monotonic() + ASK_AGAIN_AFTER_S
            self._try("start", lambda: self._start("offline", history, again=True))
            if self._run is not None:
                later = f"wandb sync {self._directory}/wandb/offline-run-*"
                _say(f"start failed ({_in_words(error)}); the run is mirrored offline (later: {later})")

    def _start(self, mode: str, history: Sequence[Mapping[str, Any]], again: bool = False) -> None:
        with environment_of_runs(online=mode == "online"):
            changed, Mirror._last_mode = Mirror._last_mode not in (None, mode), mode
            self._run = self._init(mode, again or changed)
        self._run.define_metric(schema.EPOCH)
        best = "max" if self._config.task.metric.higher_is_better else "min"
        self._run.define_metric("val/*", step_metric=schema.EPOCH, summary=best)
        for names in ("osc/*", "osc_w*", schema.LAYER_PREFIX + "*"):
            self._run.define_metric(names, step_metric=schema.EPOCH, summary="last")
        self._run.define_metric("train/*", step_metric=schema.EPOCH)
        # W&B's own step: the epoch in its summary may be ahead of the rows that were sent.
        self._had_until = 1 + int(self._run.summary.get("_step", -1)) if self._run.resumed else 0
        for metrics in history:
            self._log(metrics)

    def _init(self, mode: str, again: bool) -> Any:
        import wandb

        if again and wandb.run is None:
            # After a failed start the run's name is still in use. And W&B reads its variables once in a process:
            # offline they lack the server's address.
            wandb.teardown()
        config, group = self._config, group_of(self._config)
        labels = {name: self._labels[name] for name in schema.LABELS if name in self._labels}
        return wandb.init(
            project=config.runtime.wandb_project,
            id=self._run_id,
            resume="allow" if mode == "online" else None,  # offline: a sync replaces the earlier copy
            name=shortened(f"{group}/s{config.seed}", MOST_OF_NAME),
            group=group,
            job_type=config.phase,
            tags=[*map(tag_of, self._tags), config.phase],
            config={**config.model_dump(mode="json"), **_described(config), **labels},
            dir=self._directory,
            mode=mode,  # type: ignore[arg-type]
            settings=_settings(),
        )

    def _log(self, metrics: Mapping[str, Any]) -> None:
        if metrics[schema.EPOCH] > self._had_until:  # the server has the earlier epochs, with equal numbers
            self._run.log(_with_histograms(metrics))

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Send the metrics of an epoch."""
        if self._run is not None:
            self._try("log", lambda: self._log(metrics))

    def finish(self, summary: Mapping[str, Any], record: Mapping[str, Any], best: Path) -> None:
        """Send final figures (`test/acc_w2`, `best_epoch`), the record, the weights when asked, and close the run."""
        run = self._run  # closed even if the summary fails: logged rows must reach the disk
        if run is not None:
            # As text: W&B would split keys with dots (packages, layers) into levels.
            text = json.dumps({**{k: v for k, v in record.items() if k != "config"}, "labels": dict(self._labels)})
            self._try("summary", lambda: run.summary.update({**summary, schema.RECORD: text}))
            if self._config.runtime.wandb_artifact and best.exists():
                self._try("artifact", lambda: self._keep(run, best))
            self._try("finish", lambda: self._close(run, exit_code=0))

    def break_off(self, stopped: bool) -> None:
        """Close a run that failed, or that was stopped and will continue later."""
        run = self._run
        if run is not None:
            if stopped:  # with a non-zero exit code, W&B shows it as preempted
                self._try("mark", run.mark_preempting)
            self._try("finish", lambda: self._close(run, exit_code=1))

    def _keep(self, run: Any, best: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"best-{self._run_id}", "model", metadata={schema.METHOD: group_of(self._config)})
        # skip_cache: W&B would copy it into this user's home, where other users cannot sync it.
        artifact.add_file(str(best), name=best.name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["best"])

    def _close(self, run: Any, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            Mirror._ask_again = time.monotonic() + ASK_AGAIN_AFTER_S
            later = f"wandb sync --include-online {Path(run.dir).parent}"
            _say(f"did not take the end of the run within {FINISH_PATIENCE_S:.0f} s (later: {later})")
        else:
            self._mark_earlier_copies(Path(run.dir).parent)

    def _mark_earlier_copies(self, own: Path) -> None:
        """Mark copies of earlier starts as synced, so that `wandb sync` does not overwrite this complete one."""
        for copy in self._directory.glob("wandb/*run-*/*.wandb"):
            if copy.parent.name != own.name:
                copy.with_suffix(".wandb.synced").touch()

    def _try(self, what: str, action: Any) -> None:
        try:
            action()
        except Exception as error:  # no error of a service may stop the run
            _say(f"{what} failed ({_in_words(error)}); the run goes on without")
            self._run = None
            self._lost(f"{what} failed ({_in_words(error)})")


def _described(config: RunConfig) -> dict[str, Any]:
    """Methods and their settings in a form that W&B can sort and filter, which it cannot do within lists."""
    settings = {shown(entry["name"]): {k: v for k, v in entry.items() if k != "name"} for entry in config.methods}
    return {schema.METHOD: "+".join(settings), schema.KNOBS: {name: own for name, own in settings.items() if own}}


def _with_histograms(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of an epoch for W&B: histograms as counts and edges, never the weights."""
    import numpy as np
    import wandb

    logged = dict(metrics)
    if schema.THRESHOLD_HISTOGRAM in logged:
        counts = np.asarray(logged[schema.THRESHOLD_HISTOGRAM])
        logged[schema.THRESHOLD_HISTOGRAM] = wandb.Histogram(np_histogram=(counts, np.asarray(schema.THRESHOLD_EDGES)))
    layers = [value for name, value in metrics.items() if name.startswith(schema.LAYER_PREFIX)]
    if 0 < len(layers) <= wandb.Histogram.MAX_LENGTH:
        logged[schema.LAYER_PROFILE] = wandb.Histogram(np_histogram=(np.asarray(layers), np.arange(len(layers) + 1)))
    return logged


def _settings() -> Any:
    import wandb

    wanted: dict[str, Any] = {"console": "off", "silent": True, "x_disable_stats": True, "disable_git": True}
    wanted["sagemaker_disable"] = True  # it would name the run after its own job
    wanted |= {"init_timeout": START_PATIENCE_S, "finish_timeout": FINISH_PATIENCE_S, "finish_timeout_raises": True}
    known = wandb.Settings.model_fields  # older versions cannot bound the end of a run
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def _say(what: str) -> None:
    print(f"W&B: {what}", file=sys.stderr)


def _in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
