"""Partial rank correlations against closed forms, and the figure that shows them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from synthetic_sweep import SweepWriter, add_exactly, near

from analysis import library
from analysis.figures import NothingToDraw, oscillation_and_score
from analysis.partial_ranks import partial_rank

METHODS = ("ste", "lsq", "lcq", "kure", "oscillation", "aoq", "satnl", "statsq")


def frame(count: int = 60) -> pd.DataFrame:
    """x and y have nothing in common but z; 12 clusters."""
    generator = np.random.default_rng(1)
    z = generator.normal(size=count)
    x, y = (np.exp(z + 0.5 * generator.normal(size=count)) for _ in range(2))
    return pd.DataFrame({"x": x, "y": y, "z": z, "cluster": np.arange(count) % 12})


def test_closed_forms() -> None:
    points = frame()
    xy, xz, yz = (spearmanr(points[a], points[b]).statistic for a, b in ("xy", "xz", "yz"))
    assert partial_rank(points, "x", "y", (), "cluster").rho == pytest.approx(xy, abs=1e-12)
    wanted = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    found = partial_rank(points, "x", "y", ("z",), "cluster")
    assert found.rho == pytest.approx(wanted, abs=1e-12)
    assert xy > 0.6 > 0.3 > abs(found.rho)
    assert found.low < 0 < found.high
    assert found.clusters == 12
    again = partial_rank(points.sample(frac=1, random_state=0), "x", "y", ("z",), "cluster")
    assert found == pytest.approx(again, abs=1e-9)


def test_runs_of_one_cluster_count_once() -> None:
    once = frame(12)
    five = pd.concat([once] * 5)
    one, many = (partial_rank(each, "x", "y", ("z",), "cluster") for each in (once, five))
    assert many.rho == pytest.approx(one.rho, abs=1e-12)
    assert many.high - many.low == pytest.approx(one.high - one.low, abs=0.02)


def test_what_is_held_fixed_may_leave_nothing() -> None:
    assert math.isnan(partial_rank(frame().assign(y=lambda own: own["z"]), "x", "y", ("z",), "cluster").rho)


def sweep(root: Path, methods: tuple[str, ...]) -> library.Results:
    writer = SweepWriter(root, seeds=(0, 1, 2))
    for place, method in enumerate(methods):
        numbers = near(40 + place, 80 + 2 * place, 97, 97 - place / 2, 97, seeds=(0, 1, 2))
        add_exactly(writer, method, 3, numbers, frequency=1e-3 * (place + 1))
    writer.write()
    return library.load(root)


def test_the_figure_has_each_final_below_at_and_above_its_target(tmp_path: Path) -> None:
    results = sweep(tmp_path, METHODS)
    drawn = oscillation_and_score.draw(results.groups[0])
    drawn.figure.canvas.draw()
    points = drawn.frame
    assert len(points) == 3 * len(METHODS) * 3
    own = points[(points["method"] == "lcq") & (points["seed"] == 0)].set_index("side")["score"]
    assert own.to_dict() == pytest.approx({"below": 42, "at": 84, "above": 96.5}, abs=1)
    at = points[points["side"] == "at"]
    assert at["frequency"].min() == pytest.approx(1e-3)
    wanted = partial_rank(at, "frequency", "score", ("learning_rate", "float"), "cell")
    assert at["rho"].unique().tolist() == [wanted.rho]
    assert at["rho"].iloc[0] > 0.9
    titles = [axes.get_title().split("\n")[0] for axes in drawn.figure.axes]
    assert titles == [f"{side} the target of 3 bits" for side in ("below", "at", "above")]


def test_few_trainings_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(NothingToDraw, match="no target has 8 trainings"):
        oscillation_and_score.draw(sweep(tmp_path, METHODS[:7]).groups[0])
