"""The ranking of methods, against numbers worked out by hand."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from blank_pictures import blank_pictures
from synthetic_sweep import BITS, SweepWriter, add_exactly, keep_bits

from analysis import make_figures, ranking
from analysis.costs import NOISY
from analysis.disk_source import load_results
from analysis.grouping import make_groups
from analysis.ranking import Ranking, make_ranking

SEEDS = (0, 1)
#: Student's t, 0.975, 1 degree of freedom, from a printed table.
T1 = 12.7062


def alike(*accuracies: float, spread: float = 0.0) -> dict[int, list[float]]:
    """Accuracies at BITS; those of seed 1 are higher by `spread`."""
    return {seed: [value + spread * seed for value in accuracies] for seed in SEEDS}


def small(root: Path) -> SweepWriter:
    """Three methods at targets 2 and 3, on 2, 3, 4 and 8 bits and float; not yet written."""
    sweep = SweepWriter(root, seeds=SEEDS)
    add_exactly(sweep, "none", None, alike(20, 80, 90, 94, 100), 1e-4, watch_bit=2)
    add_exactly(sweep, "ste", 2, alike(90, 60, 62, 64, 1), 8e-3)
    add_exactly(sweep, "ste", 3, alike(30, 96, 90, 93, 1, spread=2), 6e-3)
    add_exactly(sweep, "a_b", 2, alike(70, 90, 92, 94, 1), 2e-3)
    add_exactly(sweep, "a_b", 3, alike(50, 92, 94, 96, 1), 4e-3)
    for method, target, ms in (
        ("none", None, 2.0),
        ("ste", 2, 3.0),
        ("ste", 3, 3.0),
        ("a_b", 2, 2.5),
        ("a_b", 3, 99.0),
    ):
        for record in sweep.records.values():
            if record["run_id"].startswith(f"{method}-{target}-"):
                record["provenance"]["step_ms"] = ms
    return sweep


def ranking_of(sweep: SweepWriter) -> Ranking | None:
    sweep.write()
    (group,) = make_groups(load_results(sweep.folder.parent, sweep.folder.name))
    return make_ranking(group)


def found(sweep: SweepWriter) -> dict[str, ranking.Standing]:
    made = ranking_of(sweep)
    assert made is not None
    return {one.method: one for one in made.standings}


def test_order_and_numbers(tmp_path: Path) -> None:
    made = ranking_of(small(tmp_path))
    assert made is not None
    assert made.targets == (2, 3)
    assert [(one.rank, one.method, one.seeds) for one in made.standings] == [
        (1, "ste", "2"), (2, "a_b", "2"), (3, "float", "2"),
    ]  # fmt: skip
    ste, other, floating = made.standings
    # seeds: (90 + 96) / 2 = 93 and (90 + 2 * 0 + 98) / 2 = 94, wider by the t of one degree of freedom
    assert ste.at == {2: pytest.approx(90), 3: pytest.approx(97)}
    assert ste.at_target.mean == pytest.approx(93.5)
    assert ste.at_target.half_width == pytest.approx(T1 * 0.5, rel=1e-4)
    # other bits: 2 -> mean(60, 62, 64) = 62; 3 -> mean(30, 90, 93) = 71, then 73 for seed 1
    assert ste.others.mean == pytest.approx((62 + 71 + 62 + 73) / 4)
    assert other.at_target.mean == pytest.approx((70 + 92) / 2)
    assert other.others.mean == pytest.approx((92 + 80) / 2)
    assert floating.at_target.mean == pytest.approx((20 + 80) / 2)
    assert floating.others.mean == pytest.approx((88 + (20 + 90 + 94) / 3) / 2)


def test_oscillation_is_the_mean_over_targets_and_unknown_where_one_was_not_watched(tmp_path: Path) -> None:
    standings = found(small(tmp_path))
    assert standings["ste"].frequency == pytest.approx((8e-3 + 6e-3) / 2 * 1.01)  # seed 1 has 1 + 1/50 times as much
    assert standings["a_b"].frequency == pytest.approx((2e-3 + 4e-3) / 2 * 1.01)
    assert math.isnan(standings["float"].frequency)


def test_cost_is_the_ratio_of_medians_of_a_step(tmp_path: Path) -> None:
    standings = found(small(tmp_path))
    assert standings["float"].cost == 1
    assert standings["ste"].cost == pytest.approx(1.5)
    assert standings["a_b"].cost == pytest.approx((2.5 + 99) / 2 / 2)


def test_cost_is_unknown_where_a_record_tells_none_and_without_float_training(tmp_path: Path) -> None:
    sweep = small(tmp_path / "old")
    del sweep.run_of("ste-target_bit=2", 1)["provenance"]["step_ms"]
    assert math.isnan(found(sweep)["ste"].cost)
    sweep = small(tmp_path / "no float")
    del sweep.cells["none-target_bit=None"]
    assert all(math.isnan(one.cost) for one in found(sweep).values())


def test_a_cost_that_seeds_do_not_agree_on_is_noise(tmp_path: Path) -> None:
    def of(cell: str, ms: float, seed: int = 1) -> Ranking:
        sweep = small(tmp_path / f"{cell}-{ms}")
        sweep.run_of(cell, seed)["provenance"]["step_ms"] = ms
        made = ranking_of(sweep)
        assert made is not None
        return made

    def costs(made: Ranking) -> dict[str, str]:
        return {one.method: ranking.cells(made, one)[-1] for one in made.standings}

    agreed = of("ste-target_bit=2", 3.6)  # beside 3.0: 18 % of their mean
    assert costs(agreed)["ste"] == "1.50x"
    assert NOISY not in ranking.legend([agreed])
    noisy = of("ste-target_bit=2", 3.8)  # 24 %
    assert costs(noisy) == {"ste": "—", "a_b": "25.38x", "float": "1.00x"}
    assert math.isnan({one.method: one.cost for one in noisy.standings}["ste"])
    for text in (ranking.legend([noisy, noisy]), ranking.to_markdown([noisy, agreed])):
        assert text.count(NOISY) == 1
    none = of("none-target_bit=None", 3.0)
    assert all(math.isnan(one.cost) for one in none.standings), "all are ratios to float training"
    assert "cost" not in ranking.header(none), "an empty column tells nothing"
    assert len(ranking.cells(none, none.standings[0])) == len(ranking.header(none))
    assert "Cost:" not in ranking.legend([none])
    assert NOISY in ranking.legend([none])
    assert "Cost" not in ranking.to_latex([none])


def test_an_oscillation_that_was_not_counted_at_each_target_is_explained(tmp_path: Path) -> None:
    made = ranking_of(small(tmp_path))
    assert made
    assert {one.method for one in made.standings if math.isnan(one.frequency)} == {"float"}, "it was not watched"
    assert "Oscillation —: not counted at each target (`also_watch`" in ranking.legend([made])
    counted = replace(made, standings=tuple(replace(one, frequency=0.1) for one in made.standings))
    assert "Oscillation —" not in ranking.legend([counted])


def test_one_run_gives_no_cost(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    del sweep.cells["a_b-target_bit=2"]["finals"]["1"]
    made = ranking_of(sweep)
    assert made is not None
    assert {one.method for one in made.standings if math.isnan(one.cost)} == {"a_b"}
    assert NOISY in ranking.legend([made])


def test_equal_means_share_a_rank(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    add_exactly(sweep, "twin", 2, alike(92, 9, 9, 9, 9), 1e-3)
    add_exactly(sweep, "twin", 3, alike(9, 95, 9, 9, 9), 1e-3)
    ranks = {name: one.rank for name, one in found(sweep).items()}
    assert ranks == {"ste": 1, "twin": 1, "a_b": 3, "float": 4}


def test_a_method_without_a_target_of_the_others_stands_last_and_has_no_rank(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    del sweep.cells["ste-target_bit=2"]
    made = ranking_of(sweep)
    assert made is not None
    assert [(one.rank, one.method) for one in made.standings] == [(1, "a_b"), (2, "float"), (None, "ste")]
    last = made.standings[-1]
    assert last.at == {3: pytest.approx(97)}
    assert (last.at_target.n, last.others.n) == (0, 0)
    assert ranking.cells(made, last)[:6] == ["—", "ste", "2", "—", "97.0", "—"]


def test_seeds_without_all_targets_do_not_count(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    del sweep.cells["ste-target_bit=3"]["finals"]["1"]
    ste = found(sweep)["ste"]
    assert (ste.seeds, ste.at_target.n) == ("1/2", 1)
    assert ste.at_target.mean == pytest.approx(93)


def test_no_other_bits(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    for bits in (2, 3):
        keep_bits(f"ste-target_bit={bits}", bits, "float")(sweep)
    ste = found(sweep)["ste"]
    assert ste.at_target.n == 2
    assert ste.others.n == 0


def test_no_test_at_the_target_itself(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    keep_bits("ste-target_bit=2", 3, "float")(sweep)
    ste = found(sweep)["ste"]
    assert ste.at == {3: pytest.approx(97)}
    assert (ste.rank, ste.at_target.n, ste.seeds) == (None, 0, "0/2")


def test_a_best_is_marked_only_where_intervals_separate(tmp_path: Path) -> None:
    made = ranking_of(small(tmp_path))
    assert made is not None
    # at the targets 93.5 ± 6.4 reaches the others' 81; elsewhere three intervals without a width but ste's 67 ± 6.4
    assert [one.best for one in made.standings] == [(True, False), (False, True), (False, False)]
    lines = ranking.to_markdown([made]).splitlines()
    assert lines[2] == "| rank | method | seeds | 2 bits | 3 bits | at target | other bits | oscillation | cost |"
    assert lines[4] == "| 1 | ste | 2 | 90.0 | 97.0 | **93.5 (93.0, 94.0)** | 67.0 (66.5, 67.5) | 0.00707 | 1.50x |"
    assert lines[5].startswith("| 2 | a_b | 2 | 70.0 | 92.0 | 81.0 (81.0, 81.0) | **86.0 (86.0, 86.0)** | 0.00303 |")
    assert "93.5 (93.0, 94.0)*" in ranking.to_text(made)


def test_latex_is_escaped_and_regular(tmp_path: Path) -> None:
    made = ranking_of(small(tmp_path))
    assert made is not None
    text = ranking.to_latex([made, made])
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(rows) == 8
    assert {row.count(" & ") for row in rows} == {8}
    assert r"a\_b" in text
    assert r"\textbf{93.5 (93.0, 94.0)}" in text
    assert r"1.50$\times$" in text
    assert text.count("multicolumn{9}") == 2


@pytest.mark.parametrize("kept", [["none-target_bit=None"], ["ste-target_bit=2", "ste-target_bit=3"]])
def test_nothing_to_rank(kept: list[str], tmp_path: Path) -> None:
    sweep = small(tmp_path)
    for cell in set(sweep.cells) - set(kept):
        del sweep.cells[cell]
    assert ranking_of(sweep) is None


@pytest.mark.slow
def test_the_script_writes_one_table_of_all_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blank_pictures(monkeypatch)
    sweep = small(tmp_path)
    for method, target in (("none", None), ("ste", 2), ("a_b", 2)):
        grid = {"model.name": "vit_tiny", "target_bit": target}
        numbers = alike(*(50 + bits for bits in range(len(BITS))))
        add_exactly(sweep, method, target, numbers, grid=grid, model={"name": "vit_tiny"}, watch_bit=2)
    sweep.write()
    make_figures.main(["--root", str(tmp_path)])
    folder = tmp_path / "quickstart/figures"
    said = capsys.readouterr().out
    assert re.search(r"^  \.\{csv,md,tex,json\}: (.*\n   )*.* ranking$", said, re.MULTILINE)
    assert "quickstart: mlp5 on digits - ranking by test accuracy (%) at the target bit-widths" in said
    assert "quickstart: vit_tiny on digits - ranking by test accuracy (%) at the target bit-widths" in said
    lines = (folder / "ranking.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [
        ["quickstart: mlp5 on digits", "1", "ste"],
        ["quickstart: mlp5 on digits", "2", "a_b"],
        ["quickstart: mlp5 on digits", "3", "float"],
        *(["quickstart: vit_tiny on digits", "1", name] for name in ("float", "ste", "a_b")),
    ]
    about = json.loads((folder / "ranking.json").read_text())
    assert [group["model"] for group in about["groups"]] == ["mlp5", "vit_tiny"]
    page = (folder / "report.html").read_text()
    assert page.count("<h3>Ranking of the methods</h3>") == 2
    assert "<b>93.5 (93.0, 94.0)</b>" in page
