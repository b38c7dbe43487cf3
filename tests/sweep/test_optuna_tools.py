"""Optuna's own tools read a sweep's queue as a page shows it, and leave it as it is."""

import json
import shutil
import warnings
from pathlib import Path

import optuna
import pytest
from pages import REPOSITORY, blocks

FINISHED = REPOSITORY / "tests/cluster/previous_version/small"
(SHOWN,) = [each for each in blocks(REPOSITORY / "analysis/README.md", "python") if "load_study" in each]


def test_a_study_is_loaded_from_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FINISHED, tmp_path / "runs/quickstart")
    monkeypatch.chdir(tmp_path)
    journal = (tmp_path / "runs/quickstart/study.log").read_bytes()
    found: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        exec(SHOWN, found)
    study = found["study"]
    assert isinstance(study, optuna.Study)
    entries = json.loads((FINISHED / "cells.json").read_text())["cells"]
    (chosen,) = (each["chosen"] for each in entries if each["id"] == study.study_name)
    assert (study.best_trial.number, study.best_params) == (chosen["trial"], chosen["params"])
    assert study.best_trial.user_attrs["run_id"] == chosen["run_id"]
    names = optuna.get_all_study_names(study._storage)
    assert sorted(names) == sorted([*(each["id"] for each in entries), "finals"])
    assert (tmp_path / "runs/quickstart/study.log").read_bytes() == journal
