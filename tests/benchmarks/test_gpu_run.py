"""`make gpu-run`: what it plans, what it does on machines without a GPU, and all its parts in a tiny size on a CPU."""

import json
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_run
import gpu_tests
import pytest
import torch
from bench_report import failure, figure
from gpu_limits import OUT_OF_TIME, in_order, limit_s, run_limited


@pytest.mark.parametrize(
    ("part", "minutes", "left_s", "seconds"),
    [
        ("tests", 9, 540, 180),
        ("bench", 9, 360, 180),
        ("sweeps", 9, 180, 140),  # workers need a while to write their checkpoints
        ("tests", 3, 180, 60),
        ("sweeps", 1, 60, 45),
        ("bench", 9, 100, 60),
        ("bench", 9, 30, 0),
        ("sweeps", 9, -5, 0),
    ],
)
def test_a_part_takes_its_share_of_the_time(part: str, minutes: float, left_s: float, seconds: float) -> None:
    assert limit_s(part, 60 * minutes, left_s) == seconds


def test_what_was_never_tried_comes_before_what_failed() -> None:
    done = {**figure("x", "y", 1.0, seconds=1.0), "part": "b"}
    late = {**failure("a", OUT_OF_TIME, 1.0), "part": "a"}
    assert in_order(["a", "b", "c"], [done, late]) == ["c", "a"]  # type: ignore[list-item]
    assert in_order(["a", "b"], []) == ["a", "b"]
    assert in_order(["b"], [done]) == []  # type: ignore[list-item]


def test_a_command_out_of_time_ends_with_all_that_it_started(tmp_path: Path) -> None:
    log, beat = tmp_path / "log.txt", tmp_path / "beat"
    child = (
        f"import time, pathlib\nwhile True: pathlib.Path({str(beat)!r}).write_text(str(time.time())); time.sleep(0.01)"
    )
    parent = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: print('stopping', flush=True))\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('begun', flush=True)\n"
        "while True: time.sleep(0.05)"
    )
    assert run_limited([sys.executable, "-c", parent], 1.2, log, grace_s=0.2) is None
    assert log.read_text().splitlines()[-2:] == ["begun", "stopping"]
    last = beat.read_text()
    time.sleep(0.1)
    assert beat.read_text() == last


def test_a_command_in_time_gives_its_status(tmp_path: Path) -> None:
    assert run_limited([sys.executable, "-c", "raise SystemExit(3)"], 30, tmp_path / "log.txt") == 3


def test_without_a_gpu_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_run.main(["--out", str(tmp_path / "out"), "--root", str(tmp_path)]) == 0
    assert "no GPU here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def selected(results: Path, names: list[str], slow: str = "") -> list[str]:
    """What the plugin leaves of some tests."""
    options = {"--results": str(results), "--named": gpu_tests.NAMED}
    hook = SimpleNamespace(pytest_deselected=lambda items: None)
    config: Any = SimpleNamespace(getoption=options.__getitem__, hook=hook)
    items: Any = [
        SimpleNamespace(nodeid=name, get_closest_marker=lambda mark, name=name: name == slow or None) for name in names
    ]
    gpu_tests.pytest_collection_modifyitems(config, items)
    return [item.nodeid for item in items]


def test_tests_that_passed_are_not_run_again(tmp_path: Path) -> None:
    results = tmp_path / "tests.jsonl"
    names = ["a[cuda]", "a[cpu]", "b_gpu", "c[cuda-2]", "d_never_waits_for_the_device[off]"]
    assert selected(results, names, slow="a[cuda]") == ["b_gpu", names[3], names[4], "a[cuda]"]
    lines = [{"gpu": "H200"}, {"test": "a[cuda]", "outcome": "passed"}, {"test": "b_gpu", "outcome": "failed"}]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"test": "c[cuda-2')
    assert selected(results, names) == ["b_gpu", names[3], names[4]]
    with open(results, "a") as file:
        file.write('\n{"test": "b_gpu", "outcome": "skipped"}\n')
    assert selected(results, names) == [names[3], names[4]]


@pytest.mark.slow
def test_all_parts_on_a_cpu_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, root = tmp_path / "out", tmp_path / "runs"
    tiny = ["--device", "cpu", "--tiny", "--minutes", "6", "--only", "input_cost", "--out", str(out)]
    assert gpu_run.main([*tiny, "--root", str(root)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("bench.json", "bench.md", "log.txt", "report.md", "resnet18.zip", "tests.jsonl", "tiny_vit.zip")
    ]
    tests, bench, sweeps = (out / "report.md").read_text().splitlines()[2:]
    assert " passed" in tests
    assert "1 of 1 parts, 3 rows" in bench
    assert "resnet18: 2 of 2 runs are over; tiny_vit: 2 of 2 runs are over" in sweeps
    assert any(name.endswith("study.log") for name in zipfile.ZipFile(out / "resnet18.zip").namelist())

    results, rows = (out / "tests.jsonl").read_text(), (out / "bench.json").read_text()
    capsys.readouterr()
    assert gpu_run.main([*tiny, "--root", str(tmp_path / "elsewhere")]) == 0
    assert "resnet18: 2 runs added" in capsys.readouterr().out
    assert (out / "tests.jsonl").read_text() == results
    assert (out / "bench.json").read_text() == rows
    assert len(list((tmp_path / "elsewhere/tiny_vit/runs").glob("*/record.json"))) == 2
