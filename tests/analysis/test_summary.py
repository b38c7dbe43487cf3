"""What comparisons come to, in sentences."""

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_sweep import SweepWriter, add_exactly, near

from analysis import comparisons, summary
from analysis.library import load

SEEDS = (0, 1, 2)


def test_what_comparisons_come_to(tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path, seeds=SEEDS)
    add_exactly(sweep, "none", None, near(20, 90, 97, 98, 98, seeds=SEEDS, sign=-1))
    add_exactly(sweep, "lsq", 2, near(60, 95, 95, 95, 95, seeds=SEEDS, sign=-1))
    add_exactly(sweep, "ste", 2, near(55, 95, 95, 95, 95, seeds=SEEDS))
    add_exactly(sweep, "kure", 2, {seed: [56 + 3 * (seed - 1), 95, 95, 95, 95] for seed in SEEDS})
    for record in sweep.records.values():
        record["rows"] += [{**row, "deploy": "gptq"} for row in record["rows"]]
    sweep.write()
    found = comparisons.of_group(load(tmp_path).groups[0])
    assert found
    (only,) = summary.sentences(found)  # ways of deployment of one training have none
    assert only == (
        "At 2 bits lsq@2, rtn has 60.0 %, better than ste@2, rtn (+5.0). Others against ste@2, rtn: "
        "worse: float, rtn (-35.0); not decided by 3 seeds: kure@2, rtn (+1.0)."
    )


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            {("lsq", 2): 60, ("kure", 2): 30},
            "At 2 bits lsq@2 has 60.0 %, better than float (+40.0). Others against float: better: kure@2 (+10.0).",
        ),
        ({("lsq", 2): 15}, "At 2 bits lsq@2 has 15.0 %, worse than float (-5.0)."),
        (
            {("ste", 2): 60, ("lsq", 2): 55},
            "At 2 bits ste@2 has 60.0 %; worse: float (-40.0); not decided by 3 seeds: lsq@2 (-5.0).",
        ),
        ({("ste", 2): 60}, "At 2 bits ste@2 has 60.0 %; worse: float (-40.0)."),
    ],
)
def test_the_best_trained_method_comes_first(cells: dict[tuple[str, int], float], said: str, tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path, seeds=SEEDS)
    add_exactly(sweep, "none", None, near(20, 90, 97, 98, 98, seeds=SEEDS))
    for (method, target), score in cells.items():
        add_exactly(sweep, method, target, near(score, 95, 95, 95, 95, seeds=SEEDS, sign=-1))
    sweep.write()
    found = comparisons.of_group(load(tmp_path).groups[0])
    assert found
    assert summary.sentences(found) == [said]


@pytest.mark.parametrize("qat", [50, 70])
def test_a_better_mean_of_float_training_is_not_left_out(tmp_path: Path, qat: float) -> None:
    sweep = SweepWriter(tmp_path, seeds=SEEDS)
    add_exactly(sweep, "none", None, {seed: [80 + 9 * (seed - 1), 90, 97, 98, 98] for seed in SEEDS})
    add_exactly(sweep, "ste", 2, near(qat, 95, 95, 95, 95, seeds=SEEDS))
    add_exactly(sweep, "lsq", 2, near(60, 95, 95, 95, 95, seeds=SEEDS, sign=-1))
    sweep.write()
    found = comparisons.of_group(load(tmp_path).groups[0])
    assert found
    (text,) = summary.sentences(found)
    assert text.startswith(f"At 2 bits {'lsq@2 has 60.0' if qat < 60 else 'ste@2 has 70.0'} %")
    assert text.endswith(" The best mean is that of float, 80.0 %.")


def test_what_is_compared_with_several_has_the_signs_of_its_table(tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path, seeds=SEEDS)
    for method, score in (("none", 20), ("ste", 55), ("lsq", 60), ("kure", 57), ("aoq", 15)):
        shown = near(score, 95, 95, 95, 95, seeds=SEEDS, sign=-1 if method in ("kure", "aoq") else 1)
        add_exactly(sweep, method, None if method == "none" else 2, shown)
    sweep.write()
    group = load(tmp_path).groups[0]
    found = comparisons.of_group(group)
    assert found
    by_name = {series.name: series for series in group.series}
    pairs = [(by_name[own], by_name[name], 2) for own in ("kure", "aoq") for name in ("float", "ste", "lsq")]
    rows = tuple(comparisons.between(group.metric, pairs))
    assert summary.sentences(replace(found, rows=rows)) == [
        "At 2 bits kure@2 has 57.0 %; behind: lsq@2 (-3.0); ahead of: ste@2 (+2.0), float (+37.0).",
        "At 2 bits aoq@2 has 15.0 %; behind: lsq@2 (-45.0), ste@2 (-40.0), float (-5.0).",
    ]
