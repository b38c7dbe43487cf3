"""The analysis in Python: frames, comparisons of two methods, figures; and several sweeps as one."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from blank_pictures import blank_pictures
from matplotlib.figure import Figure
from pages import REPOSITORY, blocks
from synthetic_sweep import SweepWriter, add_exactly, near, paper, quickstart

import analysis
from analysis import comparisons, controls, make_figures, render
from analysis.figures import Drawing, FigureModule, Scope
from analysis.library import Results, compare, load
from analysis.series import Group, summarize
from analysis.t_tests import compare as t_test
from analysis.t_tests import holm
from harness.core.errors import UserError

SEEDS = (0, 1, 2)
POINTS = (2, 3, "float")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    quickstart(tmp_path).write()
    return load(str(tmp_path), "quickstart")


def test_frames_are_tidy(results: Results) -> None:
    assert len(results.rows) == 5 * 3 * 2 * 5
    assert results.epochs.groupby("run_id").size().to_list().count(40) == 5
    assert {"method", "target_bit", "seed", "epoch", "osc/frequency"} <= set(results.epochs)
    assert not results.epochs.duplicated(["run_id", "epoch"]).any()
    assert results.trials.empty
    assert results.names == ["float", "ste@2", "oscillation@2", "ste@3", "oscillation@3"]
    assert len(results.scores) == 5 * 5
    assert repr(results) == "<quickstart: mlp5 on digits; 15 finals, 0 trials>"
    assert repr(results["ste@2"]) == "<ste@2: seeds 0, 1, 2>"


def test_rows_say_their_point(tmp_path: Path) -> None:
    """4 bits of weights alone and w4a8 have `bits` in common."""
    sweep = quickstart(tmp_path)
    rows = sweep.run_of("ste-target_bit=2", 0)["rows"]
    four = next(row for row in rows if row["bits"] == 4)
    rows += [{**four, **further} for further in ({"activations": 8}, {"kv": 4}, {"activations": 4, "kv": 2})]
    sweep.write()
    own = load(str(tmp_path), "quickstart").rows
    assert set(own["point"]) == {"2", "3", "4", "8", "float", "w4a8", "w4kv4", "w4a4kv2"}
    assert own.loc[own["point"] == "4", "activations"].isna().all()


def test_a_sweep_is_found_by_its_root_or_its_folder(results: Results, tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    assert [load(where).sweep.name for where in (tmp_path, str(folder))] == ["quickstart"] * 2
    quickstart(tmp_path, "other").write()
    with pytest.raises(UserError, match=r"several sweeps; name one.*other, quickstart"):
        load(tmp_path)
    with pytest.raises(UserError, match="did you mean 'other'"):
        load(tmp_path, "othr")
    assert analysis.load is load


def test_two_methods_are_compared_by_seed_at_each_point(results: Results) -> None:
    a, b = results["oscillation@3"], results["ste@3"]
    found = compare(a, b, at=POINTS)
    assert found["at"].to_list() == ["2", "3", "float"]
    shown = ["at", "method", "against", "difference", "low", "high", "p_holm", "better"]
    assert list(found.columns[: len(shown)]) == shown, "what a narrow terminal has room for"
    values = [[{seed: own[at] for seed, own in one.shown_by_seed().items()} for one in (a, b)] for at in POINTS]
    wanted = [t_test(*pair, 0.0) for pair in values]
    assert found["difference"].to_list() == [each.effect for each in wanted]
    assert found["p_holm"].to_list() == holm([each.p for each in wanted])
    assert set(found["test"]) == {"paired t"}
    assert set(found["unit"]) == {"points"}
    assert results.compare("oscillation@3", "ste@3", 3)["difference"].item() == found["difference"][1]
    assert compare(a, b)["at"].to_list() == ["2", "3", "4", "8", "float"]
    with pytest.raises(UserError, match=r"point '5' .*legal: 2, 3, 4, 8, float"):
        compare(a, b, at=5)
    with pytest.raises(UserError, match="did you mean 'ste@3'"):
        results["ste3"]


@pytest.mark.parametrize("name", ["none", "none@2", "none, rtn"])
def test_float_training_is_named_where_it_is_asked_for_by_its_method(name: str, results: Results) -> None:
    for ask in (results.__getitem__, lambda name: results.compare("ste@2", name, 2)):
        with pytest.raises(UserError, match=f"unknown series '{name}'; did you mean 'float'"):
            ask(name)


def test_the_float_training_of_the_group_that_was_asked_for(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    for method, target in (("none", None), ("none", 2)):
        grid = {"model.name": "vit_tiny", "target_bit": target}
        sweep.add(method, target, grid=grid, model={"name": "vit_tiny"})
    sweep.write()
    several = load(tmp_path)
    with pytest.raises(UserError, match="did you mean 'vit_tiny on digits: float'"):
        several["vit_tiny on digits: none"]
    with pytest.raises(UserError, match="did you mean 'mlp5 on digits: float'"):
        several["none"]
    assert several["vit_tiny on digits: none@2"].target == 2, "a control has its own name"


def test_runs_that_were_not_made_alike_are_not_compared(tmp_path: Path) -> None:
    for name, epochs in (("a", 40), ("b", 20)):
        sweep = SweepWriter(tmp_path, name)
        sweep.add("ste", 2, train={"epochs": epochs, "learning_rate": 1e-3})
        sweep.add("oscillation", 2, train={"epochs": epochs, "learning_rate": 1e-3})
        sweep.write()
    a, b = (load(tmp_path, name) for name in ("a", "b"))
    with pytest.raises(UserError, match=r"epochs is 40 in run .* but 20"):
        compare(a["ste@2"], b["oscillation@2"])
    with pytest.raises(UserError, match=r"mlp5 on digits: finals of different.*epochs is 40"):
        load(tmp_path, "a", "b")


def test_a_setting_that_an_earlier_version_did_not_write_has_its_default(tmp_path: Path) -> None:
    for name, further in (("a", {}), ("b", {"head": "keep"}), ("c", {"head": "keep", "depth": 4})):
        sweep = SweepWriter(tmp_path, name)
        sweep.add("none", None, model={"name": "mlp5", "width": 256, **further})
        sweep.add("ste", 2, model={"name": "mlp5", "width": 256, **further})
        sweep.write()
    a, b, c = (load(tmp_path, name) for name in "abc")
    assert compare(a["ste@2"], b["ste@2"])["difference"].to_list() == [0, 0, 0, 0, 0]
    assert load(tmp_path, "a", "b").sweep.name == "a+b"
    with pytest.raises(UserError, match=r"cannot be compared: model\.depth is 5 in run [^;]* but 4 in run [^;]*$"):
        compare(a["ste@2"], c["ste@2"])
    with pytest.raises(UserError, match=r"model\.depth is 5"):
        load(tmp_path, "a", "c")


def test_figures_are_returned_and_not_kept(results: Results) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()  # other tests leave some
    assert isinstance(results.plot("oscillation_over_training"), Figure)
    assert plt.get_fignums() == before
    with pytest.raises(UserError, match="pareto: no tuning trial"):
        results.plot("pareto")
    with pytest.raises(UserError, match="unknown figure 'accuracy'; did you mean"):
        results.plot("accuracy")


def test_what_is_compared_in_a_report(tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path, seeds=SEEDS)
    add_exactly(sweep, "none", None, near(20, 90, 97, 98, 98, seeds=SEEDS))
    add_exactly(sweep, "lsq", 3, near(60, 97, 95, 95, 95, seeds=SEEDS))
    add_exactly(sweep, "ste", 3, near(60, 95, 95, 95, 95, seeds=SEEDS, sign=-1))
    add_exactly(sweep, "kure", 2, near(30, 95, 95, 95, 95, seeds=SEEDS, sign=-1))
    for record in sweep.records.values():
        record["rows"] += [{**row, "deploy": "gptq", "accuracy": row["accuracy"] / 2} for row in record["rows"]]
    sweep.write()
    results = load(tmp_path)
    found = comparisons.of_group(results.groups[0])
    assert found
    pairs = [(one.at, one.first.label, one.second.label) for one in found.rows]
    assert pairs[:3] == [
        (2, "kure@2, rtn", "float, rtn"), (3, "float, rtn", "ste@3, rtn"), (3, "lsq@3, rtn", "ste@3, rtn")
    ]  # fmt: skip
    assert pairs[3:] == [
        (2, "float, gptq", "float, rtn"), (3, "float, gptq", "float, rtn"), (3, "lsq@3, gptq", "lsq@3, rtn"),
        (3, "ste@3, gptq", "ste@3, rtn"), (2, "kure@2, gptq", "kure@2, rtn"),
    ]  # fmt: skip
    third = found.rows[2]
    assert (third.better, round(third.result.effect, 6)) == ("lsq@3, rtn", 2)
    assert {one.better for one in found.rows[3:]} <= {"float, rtn", "lsq@3, rtn", "ste@3, rtn", "kure@2, rtn"}
    assert "by Holm over all 8 tests" in found.legend
    assert "| 3 bits | lsq@3, rtn | ste@3, rtn | +2.00 |" in comparisons.to_markdown(found)
    assert "lsq@3, rtn &" in comparisons.to_latex(found)


def test_what_is_compared_with_the_control(tmp_path: Path) -> None:
    sweep = SweepWriter(tmp_path, seeds=SEEDS)
    add_exactly(sweep, "none", None, near(20, 90, 97, 98, 98, seeds=SEEDS))
    add_exactly(sweep, "none", 2, near(40, 90, 95, 95, 95, seeds=SEEDS))
    add_exactly(sweep, "ste", 2, near(60, 80, 80, 80, 80, seeds=SEEDS, sign=-1))
    add_exactly(sweep, "ste", 3, near(60, 95, 80, 80, 80, seeds=SEEDS, sign=-1))
    sweep.write()
    found = controls.of_group(load(tmp_path).groups[0])
    assert found
    assert {(one.first.label, one.second.label) for one in found.rows} == {("ste@2", "none@2")}, "the others have none"
    assert [(one.at, round(one.result.effect)) for one in found.rows] == [(2, 20), (3, -10), (4, -15), (8, -15)]
    assert "by Holm over all 4 tests" in found.legend
    without = SweepWriter(tmp_path, "without", seeds=SEEDS)
    add_exactly(without, "ste", 2, near(60, 80, 80, 80, 80, seeds=SEEDS))
    without.write()
    assert controls.of_group(load(tmp_path, "without").groups[0]) is None


def two(root: Path, trials: int = 6) -> None:
    """Two sweeps that share float training, and both of which have ste@2."""
    for name, method in (("a", "oscillation"), ("b", "lsq")):
        sweep = SweepWriter(root, name, seeds=SEEDS)
        sweep.add("none", None)
        sweep.add("ste", 2, tag=f"-{name}")
        sweep.add(method, 2)
        for cell in sweep.cells.values():
            cell["trials"] = trials if name == "b" else 6
        sweep.write()


def test_several_sweeps_are_one(tmp_path: Path) -> None:
    two(tmp_path)
    results = load(tmp_path, "a", "b")
    assert results.names == ["float", "ste@2 (sweep=a)", "oscillation@2", "ste@2 (sweep=b)", "lsq@2"]
    assert len(results["float"].finals) == 3
    assert set(results.rows["sweep"]) == {"a+b"}
    assert not math.isnan(results.compare("lsq@2", "oscillation@2", 2)["difference"].item())


def test_sweeps_named_together_are_drawn_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(group: Group) -> Drawing:
        return Drawing(Figure(), summarize(group))

    blank = FigureModule("blank", 1, Scope.GROUP, "Blank", "Nothing.", draw)
    monkeypatch.setattr(render, "find_figures", lambda: [blank])
    two(tmp_path)
    figures = ["--figure", "blank"]
    wanted = ["--root", str(tmp_path), "--sweep", "a", "--sweep", "b"]
    assert make_figures.main([*wanted, *figures]) == 0
    assert (tmp_path / "a+b/figures/blank.json").read_text().count("--sweep a --sweep b") == 1
    two(tmp_path, trials=12)
    capsys.readouterr()
    assert make_figures.main([*wanted, *figures]) == 0
    said = capsys.readouterr().out
    assert (
        "no joint figures: mlp5 on digits (a+b): not compared: trials a cell is [6] in sweep a but [12] in b"
        in said.splitlines()[0]
    )  # before what takes long


@pytest.mark.slow
def test_the_joint_tables_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank_pictures(monkeypatch)
    two(tmp_path)
    assert make_figures.main(["--root", str(tmp_path), "--sweep", "a", "--sweep", "b"]) == 0
    folder = tmp_path / "a+b/figures"
    table = pd.read_csv(folder / "cross_bit_table.csv")
    assert {"ste@2 (sweep=a)", "ste@2 (sweep=b)", "oscillation@2", "lsq@2", "float"} == set(table["series"])
    assert (folder / "report.html").exists()
    compared = pd.read_csv(folder / "comparisons.csv")
    assert len(compared) == 4


def test_the_example_of_the_page_runs_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper(tmp_path / "runs", seeds=SEEDS).write()
    monkeypatch.chdir(tmp_path)
    (example,) = [block for block in blocks(REPOSITORY / "analysis/README.md", "python") if "load(" in block]
    found: dict[str, Any] = {}
    exec(example, found)
    assert found["figure"].axes
    assert (tmp_path / "accuracy.pdf").stat().st_size > 1000
