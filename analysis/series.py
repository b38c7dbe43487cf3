"""Series and groups: one line of a figure, and all lines of one model on one data set."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis import deployment
from analysis.intervals import t_interval
from analysis.measure import metric_of, range_of, shown
from analysis.results import Cell, Final, Missing, PrunedTrial, Trial
from harness.core import outside
from harness.core.bits import FLOAT, PlainPoint
from harness.core.metric import Metric
from harness.records.outcomes import right_of
from harness.records.schema import score_of, watched_at


@dataclass(frozen=True)
class Series:
    """The finals of a cell under one way of deployment."""

    method: str
    target: PlainPoint | None
    cell: Cell
    finals: tuple[Final, ...]
    deploy: str
    scale: str
    suffix: str = ""
    deploy_suffix: str = ""
    #: False for all but the first way of deployment: they share their training.
    first: bool = True
    #: What of its tuning leaves verdicts on it in doubt, in a few words each (`chosen.doubts`).
    doubts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<{self.label}: seeds {', '.join(str(final.seed) for final in self.finals)}>"

    @property
    def watched(self) -> tuple[int, ...]:
        """The bit-widths of weights at which its oscillations were counted, the run's own first."""
        config = self.finals[0].config
        own = config.get("watch_bit") or (None if self.target is None else deployment.weights(self.target))
        return () if own is None else (own, *(config.get("also_watch") or ()))

    def metric(self, name: str, bits: int) -> str:
        """The name under which it reports an oscillation metric of a bit-width that it was watched at."""
        return name if bits == self.watched[0] else watched_at(name, bits)

    @property
    def training_label(self) -> str:
        """`oscillation@2`, `lsq@w4a4`, `float`: what was trained."""
        at = "" if self.target is None else f"@{self.target}"
        return f"{self.method}{at}{self.suffix}"

    @property
    def label(self) -> str:
        """What was trained and, where a run was deployed in several ways, how."""
        return self.training_label + self.deploy_suffix

    @property
    def name(self) -> str:
        """The label less the target, for a panel that names the target itself."""
        return self.method + self.suffix + self.deploy_suffix

    def scores(self, point: PlainPoint) -> list[float]:
        """Test scores, of accuracies in [0, 1], at a deployment point, one for each seed that has it."""
        rows = [row for final in self.finals for row in self._rows(final)]
        return [score_of(row) for row in rows if deployment.of_row(row) == point]

    def shown_by_seed(self) -> dict[int, dict[PlainPoint, float]]:
        """Seed -> deployment point -> test score as it is shown: accuracy in %."""
        metric = metric_of(self.finals[0].config)
        return {
            final.seed: {deployment.of_row(row): shown(metric, score_of(row)) for row in self._rows(final)}
            for final in self.finals
        }

    def right(self, point: PlainPoint) -> dict[int, list[bool]]:
        """Seed -> whether each test sample was right at a deployment point, of finals that have kept it."""
        return {
            final.seed: right_of(entry)
            for final in self.finals
            for entry in final.outcomes()
            if self._is_own(entry) and deployment.of_row(entry) == point
        }

    def deployment_cost(self, points: Iterable[PlainPoint]) -> tuple[float, float]:
        """Of deploying one of its networks at one of these points: the median seconds, and the most MiB of memory
        beyond what was in use; nan where no record says so."""
        wanted = set(points)
        found = [
            entry
            for final in self.finals
            for entry in final.record.get("deployments", ())
            if entry["deploy"] == self.deploy and deployment.of_row(entry) in wanted
        ]
        peaks = [entry["deploy_peak_bytes"] for entry in found if entry["deploy_peak_bytes"] is not None]
        seconds = statistics.median(entry["deploy_s"] for entry in found) if found else math.nan
        return seconds, max(peaks, default=math.nan) / 2**20

    def _rows(self, final: Final) -> list[dict[str, Any]]:
        return [row for row in final.rows("test") if self._is_own(row)]

    def _is_own(self, row: dict[str, Any]) -> bool:
        return (row["deploy"], row["scale"]) == (self.deploy, self.scale)


@dataclass(frozen=True)
class Group:
    """What one figure shows: all series of one model on one data set."""

    sweep: str
    model: str
    data: str
    series: tuple[Series, ...]
    missing: tuple[Missing, ...]
    corrupt: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    trials: tuple[Trial, ...] = field(default=(), repr=False)
    pruned: tuple[PrunedTrial, ...] = field(default=(), repr=False)
    objective: tuple[str, ...] = ("target",)
    settings: dict[str, Any] | None = field(default=None, repr=False)
    #: What leaves all verdicts on it in doubt (`grouping`), as a sentence without its end; one of the notes, too.
    doubt: str = ""
    #: What the ranking says of costs that cannot be told.
    cost_note: str = ""
    #: Names of series that figures draw more strongly than others; empty: all alike.
    emphasized: frozenset[str] = frozenset()
    #: By the name of a series the file that has its comparisons with others, where `comparisons` leaves them out.
    compared_in: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """What is measured: accuracy, or the metric of another task."""
        return metric_of(self.series[0].finals[0].config)

    @property
    def title(self) -> str:
        """Model and data, and what the sweep file says beside them (`label`)."""
        label = (self.settings or {}).get("label")
        return f"{self.model} on {self.data}" + (f" ({label})" if label else "")

    @property
    def file_suffix(self) -> str:
        return "-" + re.sub(r"[^A-Za-z0-9._=]+", "-", f"{self.model}-{self.data}").strip("-")

    @property
    def trained(self) -> list[Series]:
        """One series for each training: those under the first way of deployment."""
        return [one for one in self.series if one.first]

    @property
    def finals(self) -> list[Final]:
        return list({final.run_id: final for one in self.series for final in one.finals}.values())

    def points(self) -> list[PlainPoint]:
        """Deployment points in order, float last."""
        return deployment.in_order(deployment.of_row(row) for final in self.finals for row in final.rows("test"))

    def targets(self) -> list[PlainPoint]:
        """The points that networks were trained for, in order."""
        return deployment.in_order(one.target for one in self.series if one.target is not None)


def method_of(config: dict[str, Any]) -> str:
    """`float`, `ste`, `lsq+oscillation`: the methods of a run as one word."""
    names = [outside.shown(method["name"]) for method in config["methods"]] or ["none"]
    return FLOAT if names == ["none"] and config.get("target_bit") is None else "+".join(names)


def summarize(group: Group) -> pd.DataFrame:
    """Mean test score over seeds of each series at each point, accuracies in %; `n` 0 where there is none.

    An interval may reach past what is possible; `low` and `high`, which are drawn, stop there (0 and 100 %).
    """
    lines: list[dict[str, Any]] = []
    metric, points = group.metric, group.points()
    least, most = range_of(metric)
    for one in group.series:
        for point in points:
            values = [shown(metric, value) for value in one.scores(point)]
            interval = t_interval(values)
            lines.append(
                {
                    "series": one.label, "method": one.name, "target_bit": one.target, "bits": str(point),
                    "n": interval.n, "n_planned": len(one.cell.seeds), "mean": interval.mean,
                    "half_width": interval.half_width,
                    "low": max(interval.low, least), "high": min(interval.high, most),
                    "lowest": min(values, default=math.nan), "highest": max(values, default=math.nan),
                }
            )  # fmt: skip
    frame = pd.DataFrame(lines)
    frame[["low", "high"]] = frame[["low", "high"]].where(frame["n"] > 1)
    frame["target_bit"] = deployment.tidy(frame["target_bit"])
    return frame


def reading_order(group: Group, names: Iterable[str]) -> list[str]:
    """Names of series as every legend of a report has them: by mean test score, the best first, float last."""
    return best_first(group.metric, names, summarize(group).groupby("method")["mean"].mean())


def best_first(metric: Metric, names: Iterable[str], means: "pd.Series[float]") -> list[str]:
    """Each name once, by its mean; those of float training last."""
    sign = -1 if metric.higher_is_better else 1
    return sorted(set(names), key=lambda name: (name.startswith(FLOAT), sign * means.get(name, 0.0), name))
