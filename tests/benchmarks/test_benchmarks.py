"""The benchmarks' table, verdicts, files and exit status, on made-up parts; one real part. No time is asserted."""

import json
import platform
from pathlib import Path
from typing import Any

import bench
import bench_common
import peak_cost
import pytest
import worker_scaling
from bench_report import Row, figure, verdict


def row(measured: float, goal: float | None = 1.05, compare: str = "<=", **detail: Any) -> Row:
    return figure("a thing", "another", measured, goal=goal, compare=compare, seconds=2.0, **detail)


def broken() -> list[Row]:
    raise RuntimeError("exit status 1\nTraceback ...\nValueError: no such layer\n")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("measured", "goal", "compare", "expected"),
    [
        (1.05, 1.05, "<=", "met"),
        (1.06, 1.05, "<=", "missed"),
        (4.0, 4.0, ">=", "met"),
        (3.9, 4.0, ">=", "missed"),
        (9.9, None, "<=", "reported"),
    ],
)
def test_verdicts(measured: float, goal: float | None, compare: str, expected: str) -> None:
    assert verdict(row(measured, goal, compare)) == expected


def test_the_table_says_goal_figure_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([], {"one": lambda: [row(1.02), row(1.5)], "two": lambda: [row(5.0, 4.0, ">=")]}) == 0
    lines = [line.split() for line in said(capsys).splitlines() if line.startswith("a thing")]
    assert [line[3:] for line in lines] == [
        ["<=", "1.05x", "1.020x", "met", "2"],
        ["<=", "1.05x", "1.500x", "missed", "2"],
        [">=", "4x", "5.000x", "met", "2"],
    ]


def test_a_part_that_fails_is_a_row_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert bench.main(["--json", str(file)], {"bad": broken, "good": lambda: [row(1.0)]}) == 1
    captured = capsys.readouterr()
    assert "ValueError: no such layer  FAILED" in captured.out
    assert "bad failed:\nexit status 1\nTraceback" in captured.err
    bad, good = json.loads(file.read_text())["rows"]
    assert (bad["verdict"], good["verdict"]) == ("FAILED", "met")
    assert bad["error"].startswith("exit status 1\n")


def test_only_chooses_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--only", "g*"], {"bad": broken, "good": lambda: [row(1.0)]}) == 0
    assert bench.main(["--only", "x"], {"bad": broken}) == 2
    assert "there are: bad" in capsys.readouterr().err


def test_json_holds_details_and_the_machine_but_no_names_and_paths(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    bench.main(["--json", str(file)], {"one": lambda: [row(1.0, rounds=7)]})
    written = json.loads(file.read_text())
    assert written["rows"][0]["detail"] == {"rounds": 7}
    assert {"cpu", "cores", "threads", "amx", "torch", "commit"} <= written["machine"].keys()
    assert str(Path.home()) not in file.read_text()
    assert platform.node() not in written["machine"].values()


def test_markdown_holds_the_table_and_the_small_ones(tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    table = [{"width": 16, "ms": 1.5}, {"width": 32, "ms": 3.25}]
    bench.main(["--markdown", str(file)], {"one": lambda: [row(1.0, None, table=table)]})
    lines = file.read_text().splitlines()
    assert "| a thing | another |  | 1.000x | reported | 2 |" in lines
    assert "| 32 | 3.250 |" in lines


def test_a_part_without_times_of_its_own_gets_the_whole_at_its_first_row() -> None:
    plain = row(1.0)
    del plain["seconds"]
    rows = bench.carry_out({"one": lambda: [plain.copy(), plain.copy()]})
    assert ["seconds" in each for each in rows] == [True, False]


def test_another_machine_is_laid_beside(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    there, here = tmp_path / "there.json", tmp_path / "here.json"
    bench.main(["--json", str(there)], {"one": lambda: [row(1.0, ms=30.0), figure("gone", "x", 1.0, seconds=1.0)]})
    new = figure("new", "x", 3.0, seconds=1.0)
    bench.main(["--json", str(here), "--against", str(there)], {"one": lambda: [row(1.5, ms=10.0), new]})
    said(capsys)
    assert bench.main(["--show", str(here), "--against", str(there)]) == 0
    lines = said(capsys).splitlines()
    assert any(line.startswith("there: ") and "commit" in line for line in lines)
    assert [line.split() for line in lines if line.startswith("a thing")] == [
        ["a", "thing", "another", "<=", "1.05x", "1.500x", "missed", "2", "1.000x", "3.00"]
    ]
    assert [line.split() for line in lines if line.startswith("new")] == [["new", "x", "3.000x", "reported", "1"]]
    assert not any(line.startswith("gone") for line in lines)


@pytest.mark.parametrize("content", [None, "{", '{"rows": [{"what": 1}], "machine": {}}'])
def test_a_file_that_is_no_table_is_refused_before_anything_is_measured(
    content: str | None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "there.json"
    if content is not None:
        file.write_text(content)
    assert bench.main(["--against", str(file)], {"bad": broken}) == 2
    assert f"{file} is no JSON file of make bench" in capsys.readouterr().err


def test_a_short_benchmark_makes_a_third_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    works = {"a": lambda: None}
    monkeypatch.setattr(bench_common, "ROUNDS_SHARE", 1 / 3)
    assert [len(bench_common.in_turn(works, rounds)["a"]) for rounds in (1, 3, 12, 60)] == [1, 2, 4, 20]


def test_what_two_workers_bring_is_beside_what_two_bare_loops_do() -> None:
    leg = {"wall_s": 30.0, "runs_s": 24.0, "threads": 2, "load_before": 0.1}
    measured = worker_scaling.rows(dict.fromkeys(worker_scaling.LEGS, leg))
    bounds = worker_scaling.bounds({"one worker": 10.0, "two workers": 15.0, "one worker of one thread": 7.5})
    assert [row["measured"] for row in bounds] == [1.5, 2.0]
    for row, bound in zip(measured, bounds, strict=True):
        assert bound["what"].startswith(f"bound of {row['what']}")
        assert (bound["reference"], bound["goal"]) == (row["reference"], None)


@pytest.mark.slow
def test_a_real_part_in_a_process_of_its_own() -> None:
    rows = bench.in_its_own_process("input_cost", "cpu", tiny=True)
    assert [row["unit"] for row in rows] == ["%", "x", "%"]
    assert all(verdict(row) in ("met", "missed") for row in rows)
    assert rows[1]["detail"]["bytes"] > 0


@pytest.mark.slow
def test_operations_of_a_step_are_counted_and_compared_with_a_product() -> None:
    assert peak_cost.operations(peak_cost.product(16, "cpu")) == 2 * 16**3
    share, reached, *launches = peak_cost.case("resnet18", "cpu", tiny=True)
    assert share["measured"] > 0  # type: ignore[operator]
    assert reached["measured"] == share["detail"]["tflops"]
    assert [row["measured"] for row in launches] == [0, 0]  # a CPU launches no kernels


def test_a_part_that_dies_says_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PARTS", {"cpu": ("absent",)})
    assert bench.parts("cpu", tiny=True) == {}
    with pytest.raises(RuntimeError, match="No module named 'absent'"):
        bench.in_its_own_process("absent", "cpu", tiny=True)
