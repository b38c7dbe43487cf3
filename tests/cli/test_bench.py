"""`python -m harness.bench`: a method of one's own on a suite of records, and what it is compared with."""

import csv
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import run_here
from own_components import edit, forget, write_study

from analysis import render
from analysis.t_tests import ALPHA, holm, paired_t
from harness import bench
from harness.cli import bench_tests
from harness.records import archive

SEARCH = ("--search", "pull.strength={low: 0.1, high: 10, log: true}")
RECORDS = """
name: tiny
base:
  data: {name: digits, train_fraction: 0.1}
  train: {epochs: 1, batch_size: 50, precision: fp32}
  deploy: {bits: [2, 4], scale: recalibrate}
  runtime: {device: cpu, threads: 1, wandb: "off"}
grid: {model: [{name: mlp5, width: 8}]}
cells:
  - methods: none
    set: {watch_bit: 2}
    search: &rate {train.learning_rate: {low: 1e-3, high: 1e-2, log: true}}
  - methods: ste
    grid: {target_bit: [2]}
    search: *rate
tune: {trials: 1}
final: {seeds: [0, 1, 2]}
sampler: qmc
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    write_study(tmp_path)
    return tmp_path


def run(here: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return run_here("harness.bench", "methods/pull.py", *arguments, cwd=here)


def test_a_dry_run_says_what_would_run(here: Path) -> None:
    ended = run(here, *SEARCH, "--model", "mlp5", "--dry-run")
    assert (ended.returncode, ended.stderr) == (0, "checking 1 network\n")
    assert "3 cells, 12 trials, 9 finals: 21 runs" in ended.stdout
    assert "searching pull.strength in [0.1, 10] (log); 3 seeds" in ended.stdout
    (told,) = [line for line in ended.stdout.splitlines() if line.startswith("comparable with the records in ")]
    assert bench.SUITE in told
    assert "numerics version 2, runs from now on 5: compared all the same, and the output says so" in told
    assert (
        "mlp5 on digits: 42 tests with 3 seeds, p by Holm over the tests against float, ste, oscillation"
        in ended.stdout
    )
    least = "exceeds their standard deviation 4.4 times where 3 tests count together, 14.8 times where 33 tests count"
    assert least in ended.stdout
    assert "vit_tiny on digits" not in ended.stdout
    assert not (here / "runs").exists()


def test_what_would_be_refused_at_the_end_is_refused_first(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bench._committed(), here / "suite", ignore=shutil.ignore_patterns("figures"))
    edit(here / "suite/sweep.json", '"cosine"', '"constant"')
    monkeypatch.chdir(here)
    forget(monkeypatch)
    arguments = ["methods/pull.py", *SEARCH, "--model", "mlp5", "--against", "suite"]
    assert bench.main([*arguments, "--dry-run"]) == 2
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("would be refused: ")]
    assert "train.schedule is 'constant' in run to be made (pull,model=mlp5" in told
    assert "but 'cosine' in run" in told
    assert told.count(" is ") == 1, "no setting that the records merely do not have"
    with pytest.raises(bench.UserError, match=r"train\.schedule is 'constant'"):
        bench.main(arguments)
    edit(here / "suite/sweep.json", '"constant"', '"cosine"')
    monkeypatch.setattr("harness.cli.comparable._digest_of", lambda config: "other")
    with pytest.raises(bench.UserError, match="data digest is 'other' in run to be made"):
        bench.main(arguments)
    assert not (here / "runs").exists()


def test_tests_against_the_references_of_a_target_are_a_family() -> None:
    names = ("float", "lsq", "ste", "oscillation", "kure")
    pairs = [(None, SimpleNamespace(method=name), target) for target in (2, "w4a8") for name in names]
    found = [[(pair[1].method, pair[2]) for pair in family] for family in bench_tests.families(pairs)]
    assert found[:2] == [[(name, target) for name in bench_tests.references()] for target in (2, "w4a8")]
    assert found[2:] == [[(name, target) for target in (2, "w4a8") for name in ("lsq", "kure")]]
    assert bench_tests.families([]) == []


def test_what_is_said_to_be_decided_is_what_is() -> None:
    for tests, seeds in ((1, 3), (3, 3), (33, 5)):
        spread = [-1.0, 1.0, *([0.0] * (seeds - 2))]
        deviation = statistics.stdev(spread)
        for factor, decided in ((0.99, False), (1.01, True)):
            mean = factor * bench_tests.least(tests, seeds) * deviation
            p = paired_t([mean + each for each in spread], 0.0).p
            assert (holm([p, *([1.0] * (tests - 1))])[0] < ALPHA) == decided


def test_an_estimate_is_of_its_own_cells(here: Path) -> None:
    ended = run(here, *SEARCH, "--model", "mlp5", "--dry-run", "--estimate")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("all 7 runs") == 3
    refused = run(here, *SEARCH, "--estimate")
    assert (refused.returncode, "--estimate is for --dry-run" in refused.stderr) == (2, True)


def test_it_tunes_the_learning_rate_unless_told_otherwise(here: Path) -> None:
    ended = run(here, "--on", "lsq", "--against", _written(here), "--dry-run")
    assert "train.learning_rate in [0.001, 0.01] (log)" in ended.stdout, ended.stderr
    assert "lsq+pull," in ended.stdout
    assert "1 cell, 1 trial, 3 finals" in ended.stdout, "of the target in the cells' own grids"


def _records(here: Path) -> Path:
    (here / "tiny.yaml").write_text(RECORDS)
    return here / "tiny.yaml"


def _written(here: Path) -> Path:
    """A finished sweep as far as its plan."""
    from harness.sweep.config import plain, read_sweep

    (here / "tiny").mkdir()
    (here / "tiny/sweep.json").write_text(json.dumps(plain(read_sweep(_records(here)))))
    (here / "tiny/cells.json").write_text("{}")
    return here / "tiny"


MISTAKES: dict[str, tuple[list[str], str]] = {
    "model": (["--model", "mlp"], "unknown model of the suite 'mlp'; did you mean 'mlp5'?"),
    "search": (["--search", "pull.strength"], "write key=range"),
    "range": (["--search", "pull.strength={low: 3}"], "methods/pull.py, as in"),
    "key": (["--search", "pull.strenth={low: 1, high: 3}"], "did you mean 'strength'"),
    "below": (["--on", "lsk"], "unknown method 'lsk'; did you mean 'lsq'"),
    "records": (["--against", "data"], "--against 'data': no sweep was finished there"),
}


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_with_2_and_one_message(arguments: list[str], said: str, here: Path) -> None:
    ended = run(here, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert not (here / "runs").exists()


def test_a_method_of_the_harness_and_records_that_are_not_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the suite has it" in run_here("harness.bench", "lsq", cwd=here).stderr
    monkeypatch.setattr(bench, "SUITE", "no/such/folder")
    with pytest.raises(bench.UserError, match="an installed package has none"):
        bench.main(["methods/pull.py"])


@pytest.mark.slow
def test_it_lies_beside_all_others_paired_by_seed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = render.chosen_figures
    monkeypatch.setattr(render, "chosen_figures", lambda names: chosen(names or ["accuracy_over_bits"]))  # for all
    assert run_here("harness.launch", _records(here), "--cluster", "debug", cwd=here).returncode == 0
    packed = archive.pack(here / "runs/tiny", here / "packed")
    arguments = (*SEARCH, "--against", packed, "--cluster", "debug")
    ended = run(here, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (sweep,) = here.glob("runs/bench-pull-*")
    with (sweep / "figures-tiny/against-mlp5-digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["at"], row["method"], row["against"]) for row in rows} == {
        ("2", "pull@2", "float"),
        ("2", "pull@2", "ste@2"),
    }
    assert {(row["n"], row["test"].split()[0]) for row in rows} == {("3", "paired")}
    for said in ("pull@2", "ste@2", "ranking by", "report.html", ".{png,pdf,csv,json}: accuracy_over_bits"):
        assert said in ended.stdout
    assert "note: numerics" not in ended.stdout
    with (sweep / "figures-tiny/ranking.csv").open() as file:
        costs = {row["method"]: row["cost"] for row in csv.DictReader(file)}
    assert costs["pull"] == "", "no cost, which would be the ratio of two machines"
    for said in (ended.stdout, (sweep / "figures-tiny/ranking.md").read_text()):
        assert "Cost: — for your method" in said
    (row,) = [line for line in ended.stdout.splitlines() if line.split()[:4] == ["2", "bits", "pull@2", "ste@2"]]
    winner = row.partition("paired t")[2].strip()
    assert winner.startswith(("undecided: ", "pull@2", "ste@2")), row
    page = (sweep / "figures-tiny/report.html").read_text()
    assert "Each of your trainings is compared with every other" in page
    assert 'href="against-mlp5-digits.csv"' in page
    assert "At 2 bits pull@2 has" in page  # of the tests that the terminal has, its method is the subject
    assert (sweep / "figures-tiny/chosen_settings.csv").is_file()
    made = sorted(path.name for path in (sweep / "runs").iterdir())
    _as_of_an_earlier_version(here / "runs/tiny")
    again = run(here, *SEARCH, "--against", here / "runs/tiny", "--cluster", "debug")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "note: numerics version 5 in bench-pull-" in again.stdout
    assert sorted(path.name for path in (sweep / "runs").iterdir()) == made
    _as_of_an_earlier_version(here / "runs/tiny", epochs=2)
    refused = run(here, *SEARCH, "--against", here / "runs/tiny", "--cluster", "debug")
    assert refused.returncode == 2
    assert "train.epochs is 1 in run" in refused.stderr


def _as_of_an_earlier_version(sweep: Path, **train: int) -> None:
    for path in sweep.glob("runs/*/record.json"):
        record = json.loads(path.read_text())
        record["provenance"]["numerics_version"] = 2
        record["config"]["model"].pop("head", None)
        record["config"]["train"] |= train
        path.write_text(json.dumps(record))
