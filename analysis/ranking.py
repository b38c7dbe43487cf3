"""The ranking: every method of a sweep by its score at the target bit-widths, with what it costs elsewhere."""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from analysis import deployment, measure
from analysis.costs import NOISY, cost, deployment_of
from analysis.escape import in_latex, in_markdown
from analysis.intervals import Interval, separate_best, t_interval
from analysis.paired import Lacking, frequencies
from analysis.series import Group, Series
from analysis.table_text import LATEX, MARKDOWN, latex, latex_row, latex_table, latex_title, markdown, ruled
from analysis.tables import interval_text, of_two_seeds
from harness.core.bits import FLOAT, PlainPoint

NAME = "ranking"
_LEGEND = (
    "{what}. At target: at the bit-width that a network was trained for, and the mean over these, by which "
    "methods are ranked; other bits: mean over the integer bit-widths but the target{further}, then over targets; both "
    "with the half-width of the 95% t interval over seeds, {best} where it is separate from the second best's. Float "
    "training has no target and counts at each. Oscillation: frequency of the codes of each method's own "
    "quantizer (1/step), mean over epochs, seeds and targets.{cost}{deployed}"
)
_COST = " Cost: time of a training step, without counting oscillations, over float training's, medians of these runs."
_UNCOUNTED = " Oscillation —: not counted at each target (`also_watch` in the sweep file counts at further bit-widths)."
_DEPLOYED = (
    " Deployment: median time of rounding one network at the target, and the most memory beyond what was in use (MiB)."
)


@dataclass(frozen=True)
class Standing:
    """One method on one model and data set. Scores as shown; what is not known is nan, or an Interval with n = 0."""

    method: str
    seeds: str
    at: Mapping[PlainPoint, float]
    at_target: Interval
    others: Interval
    frequency: float
    cost: float
    #: Of deploying a network at the target: seconds and MiB.
    deployment: tuple[float, float] = (math.nan, math.nan)
    rank: int | None = None
    #: Whether an interval is separate from the second best's: at the targets, at the other bits.
    best: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class Ranking:
    """The standings of a group, the best first; those without a value at every target come last, unranked."""

    title: str
    targets: tuple[PlainPoint, ...]
    standings: tuple[Standing, ...] = field(default=())
    #: Whether networks were deployed in several ways, so that it matters what each took.
    compares_deployments: bool = False
    #: What the numbers are, and their decimals.
    label: str = "Test accuracy (%)"
    decimals: int = 1
    #: What leaves all of it in doubt, and of costs that cannot be told; follows the legend.
    note: str = ""

    @property
    def compares_costs(self) -> bool:
        """Whether the cost of more than float training is known."""
        return sum(not math.isnan(one.cost) for one in self.standings) > 1

    def frame(self) -> pd.DataFrame:
        """One line per method."""
        lines = []
        for one in self.standings:
            lines.append(
                {
                    "group": self.title, "rank": one.rank, "method": one.method, "seeds": one.seeds,
                    **{f"at_{deployment.key(target)}": one.at.get(target, math.nan) for target in self.targets},
                    "at_target": one.at_target.mean, "at_target_half_width": one.at_target.half_width,
                    "other_bits": one.others.mean, "other_bits_half_width": one.others.half_width,
                    "n": one.at_target.n, "frequency": one.frequency, "cost": one.cost,
                    **(dict(zip(("deploy_s", "deploy_peak_mib"), one.deployment)) if self.compares_deployments else {}),
                }
            )  # fmt: skip
        return pd.DataFrame(lines).astype({"rank": "Int64"})


def make_ranking(group: Group) -> Ranking | None:
    """The ranking of a group; None where there is no target, or only one method."""
    targets = tuple(group.targets())
    by_method: dict[str, list[Series]] = {}
    for one in group.series:
        by_method.setdefault(one.name, []).append(one)
    if not targets or len(by_method) < 2:
        return None
    reference = [one for one in group.series if one.target is None and one.method == FLOAT]
    found = [_standing(method, series, targets, reference) for method, series in by_method.items()]
    sign = 1 if (higher := group.metric.higher_is_better) else -1
    label, decimals = measure.full_label(group.metric), measure.decimals(group.metric)
    ranked = sorted((one for one in found if one.at_target.n), key=lambda one: -sign * one.at_target.mean)
    best = [separate_best(column, higher) for column in zip(*((one.at_target, one.others) for one in ranked))]
    placed = []
    for place, standing in enumerate(ranked):
        # Those that are equal share a rank; scores are means over a split, so equal is exact but for rounding.
        rank = 1 + sum(sign * other.at_target.mean > sign * standing.at_target.mean + 1e-9 for other in ranked)
        placed.append(replace(standing, rank=rank, best=(place == best[0], place == best[1])))
    every = (*placed, *(one for one in found if not one.at_target.n))
    timed = len({one.deploy for one in group.series}) > 1 and any(not math.isnan(one.deployment[0]) for one in every)
    noisy = any(cost(series, reference)[1] for series in by_method.values())
    note = " ".join(filter(None, (measure.sentence(group.doubt), group.cost_note, NOISY if noisy else "")))
    return Ranking(f"{group.sweep}: {group.title}", targets, every, timed, label, decimals, note)


def _standing(
    method: str, series: Sequence[Series], targets: Sequence[PlainPoint], reference: Sequence[Series]
) -> Standing:
    """A method from its series: one for each target, or one without a target for all of them."""
    by_target = {bits: one for one in series for bits in ([one.target] if one.target else targets)}
    at = {bits: _by_seed(one, bits, own=True) for bits, one in by_target.items()}
    others = [_by_seed(one, bits, own=False) for bits, one in by_target.items()]
    complete = len(by_target) == len(targets)
    at_target = t_interval(_means(list(at.values())) if complete else [])
    planned = max(len(one.cell.seeds) for one in series)
    n = at_target.n or min((len(values) for values in at.values()), default=0)
    return Standing(
        method,
        str(n) if n == planned else f"{n}/{planned}",
        {bits: statistics.mean(values.values()) for bits, values in at.items() if values},
        at_target,
        t_interval(_means(others) if complete else []),
        _frequency(by_target) if complete else math.nan,
        cost(series, reference)[0],
        deployment_of(by_target),
    )


def _by_seed(one: Series, target: PlainPoint, own: bool) -> dict[int, float]:
    """Seed -> score at the target, or the mean over the other points that round what the target rounds."""
    values = {}
    for seed, found in one.shown_by_seed().items():
        wanted = {target} & found.keys() if own else deployment.others(found, target)
        if wanted:
            values[seed] = statistics.mean(found[point] for point in wanted)
    return values


def _means(columns: Sequence[dict[int, float]]) -> list[float]:
    """Mean over the targets, one column each, of every seed that has a value at all of them."""
    common = sorted(set.intersection(*(set(column) for column in columns))) if columns else []
    return [statistics.mean(column[seed] for column in columns) for seed in common]


def _frequency(by_target: Mapping[PlainPoint, Series]) -> float:
    """Mean frequency over targets and seeds; nan where one was not watched at the weights' bits of a target."""
    means = []
    for target, one in by_target.items():
        if (bits := deployment.weights(target)) is None or bits not in one.watched:
            return math.nan
        try:
            means.append(statistics.mean(frequencies(one, bits)[0].values()))
        except Lacking:
            return math.nan
    return statistics.mean(means)


def header(ranking: Ranking) -> list[str]:
    """The columns of a ranking as text."""
    return [
        *("rank", "method", "seeds"),
        *map(deployment.title, ranking.targets),
        *("at target", "other bits", "oscillation"),
        *(("cost",) if ranking.compares_costs else ()),
        *(("deployment (s)", "MiB") if ranking.compares_deployments else ()),
    ]


def cells(ranking: Ranking, one: Standing) -> list[str]:
    """A standing as text, in the order of `header`."""
    return [
        "—" if one.rank is None else str(one.rank),
        one.method,
        one.seeds,
        *(f"{one.at[bits]:.{ranking.decimals}f}" if bits in one.at else "—" for bits in ranking.targets),
        *(interval_text(each, ranking.decimals) for each in (one.at_target, one.others)),
        "—" if math.isnan(one.frequency) else f"{one.frequency:.5f}",
        *(["—" if math.isnan(one.cost) else f"{one.cost:.2f}x"] if ranking.compares_costs else ()),
        *(_deployment_texts(one) if ranking.compares_deployments else ()),
    ]


def _deployment_texts(one: Standing) -> tuple[str, str]:
    seconds, mebibytes = one.deployment
    return ("—" if math.isnan(seconds) else f"{seconds:.2g}", "—" if math.isnan(mebibytes) else f"{mebibytes:.0f}")


def legend(rankings: Sequence[Ranking]) -> str:
    """How to read the columns; of targets with activations only where there is one."""
    mixed = [target for one in rankings for target in one.targets if not deployment.weights_only(target)]
    further = f" (for targets such as {mixed[0]}: over the other points with activations)" if mixed else ""
    what = " / ".join(dict.fromkeys(one.label for one in rankings))
    every = [standing for one in rankings for standing in one.standings if standing.at_target.n]
    deployed = _DEPLOYED if any(one.compares_deployments for one in rankings) else ""
    deployed += of_two_seeds(each for it in every for each in (it.at_target, it.others))
    cost = _UNCOUNTED if any(math.isnan(one.frequency) for one in every) else ""
    cost += _COST if any(one.compares_costs for one in rankings) else ""
    text = _LEGEND.format(what=what, best="bold", further=further, cost=cost, deployed=deployed)
    return " ".join(dict.fromkeys((text, *(one.note for one in rankings if one.note))))


def _marked(ranking: Ranking, one: Standing, texts: list[str], mark: str) -> list[str]:
    """The texts of a standing with the best two intervals marked."""
    first = 3 + len(ranking.targets)
    best = {first + place for place, best in enumerate(one.best) if best}
    return [mark.format(text) if i in best else text for i, text in enumerate(texts)]


def _rows(ranking: Ranking, mark: str, escaped: Callable[[str], str] = str) -> list[list[str]]:
    rows = [cells(ranking, replace(one, method=escaped(one.method))) for one in ranking.standings]
    return [header(ranking), *(_marked(ranking, *pair, mark) for pair in zip(ranking.standings, rows, strict=True))]


def to_text(ranking: Ranking) -> str:
    """Aligned plain text for a terminal."""
    title = f"{ranking.title} - ranking by {ranking.label[0].lower()}{ranking.label[1:]} at the target bit-widths"
    return "\n".join([title, "", *ruled(_rows(ranking, "{}*"), left=1)])


def to_markdown(rankings: Sequence[Ranking]) -> str:
    """A GitHub table for each group, one legend below all."""
    lines = []
    for ranking in rankings:
        rows = _rows(ranking, MARKDOWN.best, in_markdown)
        lines += [f"**{in_markdown(ranking.title)}**", "", *markdown(rows, _columns(ranking)), ""]
    return "\n".join([*lines, legend(rankings), ""])


def to_latex(rankings: Sequence[Ranking]) -> str:
    """One booktabs `tabular`, a part for each group."""
    columns = max(map(_columns, rankings), key=len)
    lines = []
    for number, ranking in enumerate(rankings):
        lines += [r"\midrule"] * bool(number)
        lines += [latex_title(in_latex(ranking.title), len(columns)), r"\midrule"]
        own = set(map(deployment.title, ranking.targets))
        head = [text if text in own else text.capitalize() for text in header(ranking)]
        lines += [latex_row(head), r"\midrule"]
        for one in ranking.standings:
            rank, method, *texts = cells(ranking, one)
            texts = [re.sub(r"^([\d.]+)x$", r"\1$\\times$", latex(text)) for text in texts]
            texts = [latex(rank), in_latex(method), *texts]
            lines.append(latex_row(_marked(ranking, one, texts, LATEX.best)))
    return latex_table(columns, [legend(rankings)], lines)


def _columns(ranking: Ranking) -> str:
    return "rl" + "r" * (len(header(ranking)) - 2)
