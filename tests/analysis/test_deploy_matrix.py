"""The figure of trainings under deploy methods: which cells it has, what is in them, and what deployments took."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from synthetic_sweep import SweepWriter, only_group

from analysis import ranking
from analysis.figures import Drawing, NothingToDraw, deploy_matrix

#: Points that the second deploy method serves.
SERVED = (2, 3)


def sweep(root: Path, seeds: tuple[int, ...], costs: bool) -> SweepWriter:
    """Two trainings, each rounded to nearest, and by gptq one point higher than that at `SERVED`."""
    written = SweepWriter(root, seeds=seeds)
    for method, target in (("none", None), ("ste", 2)):
        written.add(method, target, [(60, 1), (70, 1), (80, 1), (90, 1), (91, 1)])
    for record in written.records.values():
        added = [{**row, "deploy": "gptq"} for row in record["rows"] if row["bits"] in SERVED]
        for row in added:
            row["accuracy"] += 0.01
        record["rows"] += added
        if costs:
            record["deployments"] = [
                {"deploy": deploy, "bits": bits, "deploy_s": seconds, "deploy_peak_bytes": 3 * 2**20}
                for deploy, seconds in (("rtn", 0.01), ("gptq", 1.5))
                for bits in SERVED
            ]
    return written.write()


def drawn(root: Path, seeds: tuple[int, ...] = (0, 1, 2), costs: bool = True) -> Drawing:
    sweep(root, seeds, costs)
    drawing = deploy_matrix.draw(only_group(root))
    plt.close(drawing.figure)
    return drawing


def texts(drawing: Drawing) -> list[str]:
    return [text.get_text() for axes in drawing.figure.axes for text in axes.texts]


def test_points_that_two_deploy_methods_serve_have_a_panel(tmp_path: Path) -> None:
    drawing = drawn(tmp_path)
    assert [axes.get_title() for axes in drawing.figure.axes if axes.texts] == ["2 bits", "3 bits"]
    frame = drawing.frame.set_index(["bits", "training", "deploy"])
    assert len(frame) == 2 * 2 * 2
    gain = frame["mean"].unstack()
    assert (gain["gptq"] - gain["rtn"]).tolist() == pytest.approx([1.0] * 4)
    assert drawing.notes == ()


def test_a_cell_has_mean_and_interval_and_a_column_its_cost(tmp_path: Path) -> None:
    drawing = drawn(tmp_path)
    first = drawing.frame.iloc[0]
    assert texts(drawing)[0] == f"{first['mean']:.1f}\n±{first['half_width']:.1f}"
    heads = [label.get_text() for label in drawing.figure.axes[0].get_xticklabels()]
    assert heads == ["rtn\n0.01 s\n3 MiB", "gptq\n1.5 s\n3 MiB"]


def test_two_seeds_have_a_range_and_one_has_neither(tmp_path: Path) -> None:
    two, one = drawn(tmp_path / "two", (0, 1)), drawn(tmp_path / "one", (0,))
    first = two.frame.iloc[0]
    assert texts(two)[0] == f"{first['mean']:.1f}\n{first['lowest']:.1f} to {first['highest']:.1f}"
    assert texts(one)[0] == f"{one.frame.iloc[0]['mean']:.1f}"


def test_records_without_costs_say_so(tmp_path: Path) -> None:
    drawing = drawn(tmp_path, costs=False)
    assert drawing.notes == ("the records do not say what a deployment took",)
    assert drawing.frame["deploy_s"].isna().all()


def test_one_deploy_method_is_nothing_to_draw(tmp_path: Path) -> None:
    written: Any = SweepWriter(tmp_path)
    written.add("ste", 2)
    written.write()
    with pytest.raises(NothingToDraw, match=r"deploy\.methods"):
        deploy_matrix.draw(only_group(tmp_path))


def test_the_ranking_says_what_each_deployment_takes(tmp_path: Path) -> None:
    sweep(tmp_path, (0, 1, 2), costs=True)
    found = ranking.make_ranking(only_group(tmp_path))
    assert found is not None
    assert ranking.header(found)[-2:] == ["deployment (s)", "MiB"]
    texts = {one.method: ranking.cells(found, one)[-2:] for one in found.standings}
    assert (texts["ste, rtn"], texts["ste, gptq"]) == (["0.01", "3"], ["1.5", "3"])
    assert found.frame().set_index("method").loc["ste, gptq", ["deploy_s", "deploy_peak_mib"]].tolist() == [1.5, 3]
    assert "Deployment: median time" in ranking.to_markdown([found])
    assert r"& 0.01 & 3 \\" in ranking.to_latex([found])


def test_a_ranking_without_such_costs_is_as_it_was(tmp_path: Path) -> None:
    sweep(tmp_path, (0, 1, 2), costs=False)
    found = ranking.make_ranking(only_group(tmp_path))
    assert found is not None
    assert ranking.header(found)[-1] == "oscillation", "neither deployment nor cost"
    assert "deploy_s" not in found.frame()
