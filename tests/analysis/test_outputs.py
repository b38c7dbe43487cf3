"""Tables, figures and the command line."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from analysis_cost import Shape, write_sweep
from blank_pictures import blank_pictures
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from synthetic_sweep import only_group, quickstart, steady

from analysis import make_figures
from analysis.disk_source import load_results
from analysis.figures import Drawing, NothingToDraw, find_figures
from analysis.output import Output, as_csv
from analysis.provenance import digest
from analysis.series import Group
from harness.archive import main as archive
from harness.core.errors import UserError
from harness.sweep.config import plain, read_sweep

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "analysis/make_figures.py"


def draw(name: str, group: Group) -> Drawing:
    """A figure of a group."""
    (module,) = [module for module in find_figures() if module.name == name]
    return module.draw(group)


@pytest.mark.slow
def test_what_a_sweep_is_labelled_stands_in_every_table_and_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank_pictures(monkeypatch)
    sweep = quickstart(tmp_path).write()
    spec = plain(read_sweep(ROOT / "sweeps/quickstart.yaml")) | {"label": "reduced: 5 epochs"}
    (sweep.folder / "sweep.json").write_text(json.dumps(spec))
    assert make_figures.main(["--root", str(tmp_path)]) == 0
    for name in ("cross_bit_table.md", "cross_bit_table.tex", "claims.md", "claims.tex", "ranking.md", "report.html"):
        assert "mlp5 on digits (reduced: 5 epochs)" in (sweep.folder / "figures" / name).read_text(), name


def test_a_new_figure_is_one_new_file() -> None:
    files = {path.stem for path in (ROOT / "analysis/figures").glob("*.py")} - {"__init__"}
    found = find_figures()
    assert {module.name for module in found} == files
    assert [module.order for module in found] == sorted({module.order for module in found})
    assert all(module.title and module.caption.endswith(".") for module in found)


def test_accuracy_figure_has_a_panel_a_target_and_float_in_each(tmp_path: Path) -> None:
    quickstart(tmp_path).write()
    figure, frame, notes, _ = draw("accuracy_over_bits", only_group(tmp_path))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["Target: 2 bits (shaded)", "Target: 3 bits (shaded)"]
    assert [len(axes.containers) for axes in figure.axes] == [3, 3]
    assert len(frame) == 25
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(texts) == {"ste", "oscillation", "float"}
    assert texts[-1] == "float"
    assert figure.get_figwidth() == 6.5
    assert "logarithmic" in notes[0]


def test_a_bit_width_that_was_not_measured_breaks_the_line(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    for seed in (0, 1, 2):
        rows = sweep.run_of("ste-target_bit=2", seed)["rows"]
        rows[:] = [row for row in rows if row["bits"] != 4]
    sweep.write()
    figure, frame, _, _ = draw("accuracy_over_bits", only_group(tmp_path))
    assert len(frame) == 24
    heights = [container[0].get_ydata() for container in figure.axes[0].containers]
    assert sum(pd.isna(height[2]) for height in heights) == 1


def test_oscillation_stops_where_the_first_seed_stops(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path).write()  # seeds train for 40, 37 and 34 epochs
    _, frame, notes, _ = draw("oscillation_over_training", only_group(tmp_path))
    assert set(frame.groupby("series")["epoch"].max()) == {34}
    assert set(frame["n"]) == {3}
    assert any(note.startswith("ste@2: osc/frequency not drawn at 6 epochs (35 to 40)") for note in notes)
    point = frame[(frame["series"] == "ste@2") & (frame["metric"] == "osc/frequency")].iloc[9]
    lines = [sweep.metrics[sweep.cells["ste-target_bit=2"]["finals"][str(seed)]][9] for seed in (0, 1, 2)]
    assert point["epoch"] == 10
    assert point["mean"] == pytest.approx(sum(line["osc/frequency"] for line in lines) / 3)


def test_a_run_without_metrics_is_noted_and_not_averaged_around(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path).write()
    folder = tmp_path / "quickstart/runs" / sweep.cells["ste-target_bit=2"]["finals"]["1"]
    (folder / "metrics.jsonl").unlink()
    _, frame, notes, _ = draw("oscillation_over_training", only_group(tmp_path))
    assert "ste@2" not in set(frame["series"])
    assert any("metrics.jsonl: not there, of a run of 37 epochs" in note for note in notes)


def test_a_cut_file_of_metrics_is_listed_and_counts_for_no_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = quickstart(tmp_path).write()
    path = tmp_path / "quickstart/runs" / sweep.cells["ste-target_bit=2"]["finals"]["1"] / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))
    _, frame, _, _ = draw("oscillation_over_training", only_group(tmp_path))
    assert "ste@2" not in set(frame["series"])
    make_figures.main(["--root", str(tmp_path), "--figure", "accuracy_over_bits"])
    said = capsys.readouterr().out
    assert "finals without all of their epochs (no mean over epochs counts them): 1\n" in said
    assert f"  {path}: 20 of 37 epochs\n" in said


def test_a_run_that_trained_for_no_epoch_lacks_none(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    for run_id in sweep.cells["ste-target_bit=2"]["finals"].values():
        sweep.metrics[run_id] = []
    sweep.write()
    for run_id in sweep.cells["ste-target_bit=2"]["finals"].values():
        (tmp_path / "quickstart/runs" / run_id / "metrics.jsonl").unlink()
    assert load_results(tmp_path, "quickstart").incomplete == []


def test_tuning_trials_without_a_record_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path, Shape(trials=3, seeds=2, epochs=1, layers=1))
    cells = json.loads((tmp_path / "large/cells.json").read_text())
    for cell in cells["cells"]:
        cell["trials"] = 3
    (tmp_path / "large/cells.json").write_text(json.dumps(cells))
    gone = cells["cells"][2]["chosen"]["run_id"]
    shutil.rmtree(tmp_path / "large/runs" / gone)
    make_figures.main(["--root", str(tmp_path), "--figure", "accuracy_over_bits"])
    said = capsys.readouterr().out
    assert "tuning trials without a record:\n  ste,target_bit=3: 1 of 3 (the chosen one among them)\n" in said


def test_pruned_trials_are_counted_and_not_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blank_pictures(monkeypatch)
    write_sweep(tmp_path / "runs", Shape(trials=3, seeds=2, epochs=1, layers=1))
    folder = tmp_path / "runs/large"
    cells = json.loads((folder / "cells.json").read_text())
    for cell in cells["cells"]:
        cell["trials"] = 3
    (folder / "cells.json").write_text(json.dumps(cells))
    trials = load_results(tmp_path / "runs", "large").trials
    for trial in trials:
        if trial.cell.id == "ste,target_bit=3" and not trial.chosen:
            (folder / "runs" / trial.run_id / "record.json").unlink()
            (folder / "runs" / trial.run_id / "status.json").write_text('{"state": "pruned", "host": "here"}')
    settings = {"tune": {"trials": 3}, "final": {"seeds": [0, 1]}}
    (folder / "sweep.json").write_text(json.dumps(settings))
    archive(["pack", str(folder), "--to", str(tmp_path / "kept")])
    archive(["unpack", str(tmp_path / "kept/large"), "--to", str(tmp_path / "again")])
    for root in ("runs", "kept", "again"):
        (tmp_path / root / "large/sweep.json").unlink()  # which these made-up settings are not
        make_figures.main(["--root", str(tmp_path / root)])
        assert "tuning trials without a record" not in capsys.readouterr().out
        page = (tmp_path / root / "large/figures/report.html").read_text()
        assert f"{len(trials)} tuning trials, 2 pruned, {len(cells['cells'])} cells" in page
        assert "<td>ste,target_bit=3</td><td>1, 2 pruned</td>" in page
        assert "<td>ste,target_bit=2</td><td>3</td>" in page


def test_zero_oscillation_everywhere_can_be_drawn_and_none_at_all_is_said(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    for lines in sweep.metrics.values():
        for line in lines:
            line.update({"osc/frequency": 0.0, "osc/oscillating_fraction": 0.0})
    sweep.write()
    drawing = draw("oscillation_over_training", only_group(tmp_path))
    drawing.figure.canvas.draw()
    assert set(drawing.frame["mean"]) == {0.0}
    for lines in sweep.metrics.values():
        lines[:] = [{"epoch": line["epoch"]} for line in lines]
    sweep.write()
    with pytest.raises(NothingToDraw, match="none of the finals reports any"):
        draw("oscillation_over_training", only_group(tmp_path))


@pytest.mark.slow
def test_the_script_twice_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = quickstart(tmp_path / "runs")
    del sweep.cells["ste-target_bit=2"]["finals"]["1"]
    sweep.write()
    arguments = ["--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    command = [sys.executable, SCRIPT, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "ste@2" in done.stdout
    assert "missing (1 of 15 finals):\n  ste-target_bit=2: seed 1: no final yet" in done.stdout
    stems = dict.fromkeys(("cross_bit_table", "claims", "comparisons", "ranking"), "csv,md,tex,json")
    stems |= dict.fromkeys(("accuracy_over_bits", "oscillation_over_training", "univariate_model"), "png,pdf,csv,json")
    for suffixes in dict.fromkeys(stems.values()):
        alike = ", ".join(stem for stem, ends in stems.items() if ends == suffixes)
        assert f"  .{{{suffixes}}}: {alike}\n" in done.stdout
    whole = {"rows.csv", "report.html", "made.json"}
    assert set(first) == whole | {f"{stem}.{suffix}" for stem, ends in stems.items() for suffix in ends.split(",")}

    monkeypatch.setenv("PYTHONHASHSEED", "7")
    make_figures.main(arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    pdf = first["accuracy_over_bits.pdf"]
    assert b"CreationDate" not in pdf
    assert b"/Type3" not in pdf.replace(b" ", b"")


def test_a_figure_is_laid_out_once_and_drawn_once_for_each_file_with_the_bytes_of_savefig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figure() -> Figure:
        found, axes = plt.subplots(1, 2, layout="constrained", figsize=(4, 2))
        for one in axes:
            one.plot([0.1, 3000], [2, 5], label="a line")
            one.set_xlabel("below")
        found.legend(loc="outside upper center")
        return found

    plain = figure()
    for suffix, metadata in ((".png", {"Description": "s"}), (".pdf", {"CreationDate": None, "Subject": "s"})):
        plain.savefig(tmp_path / f"plain{suffix}", format=suffix[1:], metadata=metadata)
        plain.set_layout_engine("none")  # laid out once, for both
    drawn, draw, layouts = [], Axes.draw, []
    execute = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda *own: layouts.append(own) or execute(*own))
    monkeypatch.setattr(Axes, "draw", lambda axes, renderer: drawn.append(axes) or draw(axes, renderer))
    own = figure()
    Output(tmp_path).figure("own", own, "s")
    assert (len(drawn), len(layouts)) == (2 * 2, 1)
    for suffix in (".pdf", ".png"):
        assert (tmp_path / f"own{suffix}").read_bytes() == (tmp_path / f"plain{suffix}").read_bytes()
    own.canvas.draw()
    assert len(drawn) == 3 * 2, "afterwards it is drawn as any other"
    for each in (plain, own):
        plt.close(each)


def test_the_last_digits_of_a_processor_are_not_written() -> None:
    """Vector units differ by an ulp in a logarithm: seen between two processors, with the same packages."""
    frame = pd.DataFrame({"x": [0.1322917193322376, 1.0], "n": [3, 4], "bits": ["2", "float"]})
    other = frame.assign(x=[math.nextafter(0.1322917193322376, 0), 1.0])
    assert as_csv(frame) == as_csv(other) == "x,n,bits\n0.132291719332,3,2\n1,4,float\n"
    assert digest(frame) == digest(other) != digest(frame.assign(x=[0.13229171934, 1.0]))


def test_where_the_numbers_come_from(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    del sweep.cells["ste-target_bit=2"]["finals"]["1"]
    sweep.write()
    make_figures.main(["--root", str(tmp_path), "--figure", "accuracy_over_bits"])
    about = json.loads((tmp_path / "quickstart/figures/accuracy_over_bits.json").read_text())
    assert about["missing"] == [{"cell": "ste-target_bit=2", "seed": 1, "reason": "no final yet"}]
    (group,) = about["groups"]
    assert (group["sweep"], group["model"], group["data"]) == ("quickstart", "mlp5", "digits")
    assert group["runs"]["ste@2"] == {"0": "ste-2-0-mlp5", "2": "ste-2-2-mlp5"}
    assert about["git"] == [{"dirty": False, "sha": "afff6f3"}]
    assert about["numerics_versions"] == ["1"]
    assert about["packages_of_the_runs"] == {"torch": ["2.11.0"]}
    assert about["command"].startswith("python analysis/make_figures.py --root")
    assert about["command"].endswith("--sweep quickstart --figure accuracy_over_bits")


def test_every_sweep_is_drawn_and_one_bad_sweep_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steady(tmp_path).write()
    (tmp_path / "quickstart").rename(tmp_path / "second")
    bad = quickstart(tmp_path, "bad")
    bad.cells["ste-target_bit=2"]["seeds"] = [5]
    bad.cells["ste-target_bit=2"]["finals"] = {}
    bad.write()
    with pytest.raises(UserError, match="different seeds"):
        make_figures.main(["--root", str(tmp_path)])
    assert (tmp_path / "second/figures/accuracy_over_bits.pdf").exists()
    assert not (tmp_path / "bad/figures").exists()
    assert "second: mlp5 on digits" in capsys.readouterr().out


def test_mistakes_exit_with_2_and_help_loads_nothing_heavy(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--root", str(tmp_path), "--sweep", "quickstart"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --root")
    assert done.stderr.count("\n") == 1
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, SCRIPT, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0
    assert not re.search(r"\| +(matplotlib|pandas|numpy|scipy|seaborn|torch)$", done.stderr, re.MULTILINE)


def test_analysis_imports_no_training_library() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from analysis import figures, tables, provenance;"
        "figures.find_figures(); print(sorted({'torch', 'optuna', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
