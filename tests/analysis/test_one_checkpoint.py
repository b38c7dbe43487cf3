"""One network for every bit-width against a network for each: what is compared, paired how, and drawn where."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from synthetic_sweep import SweepWriter, add_exactly, near

from analysis.disk_source import load_results
from analysis.figures import NothingToDraw, one_checkpoint
from analysis.grouping import make_groups
from analysis.make_figures import main
from analysis.series import Group

SEEDS = (0, 1, 2)


def write(root: Path, numbers: tuple[float, ...] = (80, 90, 91, 92, 92)) -> None:
    """Accuracies at 2, 3, 4, 8 and float bits: QAT for 2, 3 and 4 bits, and two networks for all."""
    each = SweepWriter(root, "each", seeds=SEEDS)
    add_exactly(each, "ste", 2, near(95, 60, 61, 62, 62, seeds=SEEDS))
    add_exactly(each, "ste", 3, near(50, 96, 70, 71, 71, seeds=SEEDS))
    add_exactly(each, "ste", 4, near(10, 80, 97, 94, 94, seeds=SEEDS))
    add_exactly(each, "oscillation", 2, near(99, 99, 99, 99, 99, seeds=SEEDS))
    each.write()
    single = SweepWriter(root, "single", seeds=SEEDS)
    single.objective = ["worst"]
    add_exactly(single, "oscillation", 2, near(*numbers, seeds=SEEDS, sign=-1))
    add_exactly(single, "kure", 3, near(50, 92, 93, 94, 94, seeds=SEEDS))
    single.write()


def groups_of(root: Path) -> list[Group]:
    return [group for name in ("each", "single") for group in make_groups(load_results(root, name))]


def test_each_bit_width_has_the_network_that_was_trained_for_it_and_costs_are_paired(tmp_path: Path) -> None:
    write(tmp_path)
    drawing = one_checkpoint.draw(groups_of(tmp_path))
    plt.close(drawing.figure)
    frame = drawing.frame.set_index(["series", "bits"])
    reference = frame.loc["ste, a network each"]
    assert list(reference["network"]) == ["ste@2", "ste@3", "ste@4", "ste@4", "ste@2/ste@3/ste@4"]
    assert list(reference["mean"].round(3)) == [95, 96, 97, 94, 94], "the worst of 95, 96, 97 and 94"
    assert set(reference["cost"]) == {0}
    own = frame.loc["oscillation@2"]
    assert list(own["cost"].round(3)) == [15, 6, 6, 2, 14]
    assert list(frame.loc["kure@3", "mean"].round(3)) == [50, 92, 93, 94, 50]
    # Seeds move the two by as much in opposite directions: differences of 0.2, -0.2 and 0 around 15.
    spread = 4.3026527 * 0.2 / 3**0.5
    assert own.loc["2", "cost_high"] - own.loc["2", "cost"] == pytest.approx(spread, rel=1e-6)
    assert len(drawing.frame) == 3 * 5


def test_the_worst_is_that_of_each_seed(tmp_path: Path) -> None:
    write(tmp_path, (90, 90, 99, 99, 99))
    sweep = SweepWriter(tmp_path, "single", seeds=SEEDS)
    sweep.objective = ["worst"]
    add_exactly(sweep, "oscillation", 2, {0: [90, 80, 99, 99, 99], 1: [70, 80, 99, 99, 99], 2: [90, 90, 99, 99, 99]})
    sweep.write()
    drawing = one_checkpoint.draw(groups_of(tmp_path))
    plt.close(drawing.figure)
    frame = drawing.frame.set_index(["series", "bits"])
    assert frame.loc[("oscillation@2", "worst"), "mean"] == pytest.approx((80 + 70 + 90) / 3)


def test_it_takes_both_kinds_of_sweep(tmp_path: Path) -> None:
    write(tmp_path)
    for groups in ([], groups_of(tmp_path)[:1]):
        with pytest.raises(NothingToDraw, match="objective: worst"):
            one_checkpoint.draw(groups)
    with pytest.raises(NothingToDraw, match=r"single: it takes one tuned for each target \(objective: target\)"):
        one_checkpoint.draw(groups_of(tmp_path)[1:])


def test_sweeps_of_other_protocols_are_no_measure(tmp_path: Path) -> None:
    write(tmp_path)
    tuned = SweepWriter(tmp_path, "finetuned", seeds=SEEDS)
    add_exactly(tuned, "ste", 2, near(1, 1, 1, 1, 1, seeds=SEEDS), pretrain={"epochs": 3})
    tuned.write()
    groups = [*groups_of(tmp_path), *make_groups(load_results(tmp_path, "finetuned"))]
    drawing = one_checkpoint.draw(groups)
    plt.close(drawing.figure)
    assert drawing.frame["mean"].iloc[0] == pytest.approx(95), "not the one that was made otherwise"
    twin = SweepWriter(tmp_path, "twin", seeds=SEEDS)
    add_exactly(twin, "ste", 2, near(1, 1, 1, 1, 1, seeds=SEEDS))
    twin.write()
    with pytest.raises(NothingToDraw, match=r"same protocol \(here: each, twin\)"):
        one_checkpoint.draw([*groups, *make_groups(load_results(tmp_path, "twin"))])


def test_two_sweeps_for_the_worst_have_a_panel_each(tmp_path: Path) -> None:
    write(tmp_path)
    again = SweepWriter(tmp_path, "again", seeds=SEEDS)
    again.objective = ["worst", "target"]
    add_exactly(again, "oscillation", 2, near(70, 70, 70, 70, 70, seeds=SEEDS))
    again.write()
    drawing = one_checkpoint.draw([*groups_of(tmp_path), *make_groups(load_results(tmp_path, "again"))])
    plt.close(drawing.figure)
    assert set(drawing.frame["group"]) == {"single: mlp5 on digits", "again: mlp5 on digits"}
    assert len(drawing.figure.axes) == 2


def test_no_network_for_a_bit_width_that_all_were_deployed_at(tmp_path: Path) -> None:
    write(tmp_path)
    sweep = SweepWriter(tmp_path, "each", seeds=SEEDS)
    add_exactly(sweep, "ste", 5, near(1, 1, 1, 1, 1, seeds=SEEDS))
    sweep.write()
    with pytest.raises(NothingToDraw, match="single: no network of ste"):
        one_checkpoint.draw(groups_of(tmp_path))


@pytest.mark.slow
def test_it_is_drawn_for_a_root_and_for_no_single_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert main(["--root", str(tmp_path)]) == 0
    assert (tmp_path / "figures/one_checkpoint.png").exists()
    assert "one_checkpoint not drawn" not in capsys.readouterr().out
    assert not list(tmp_path.glob("*/figures/one_checkpoint*")), "which are the sweeps' own folders"
    assert one_checkpoint.TITLE in (tmp_path / "figures/report.html").read_text()
