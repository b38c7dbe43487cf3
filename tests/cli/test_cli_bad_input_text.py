"""Bad input to language modelling: one message, exit status 2, before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from cli_sweep import Cli, edited

LLAMA: dict[str, Any] = {"name": "llama", "layers": 1, "width": 16, "heads": 2}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a model of another task": ({}, {"name": "mlp5"}, "model 'mlp5' serves classification, and the task of data set"),
    "an empty file": ({"root": "empty.txt"}, LLAMA, "data.root: empty.txt: empty, there is no text to read"),
    "not UTF-8": ({"root": "latin.txt"}, LLAMA, "data.root: latin.txt is not UTF-8: byte 0xe9 at 3; convert the file"),
    "context": ({"context": 400}, LLAMA, "data.context: 400: train has 379 characters, and one more than a window"),
    "no tokenizer there": ({"tokenizer": "hf:./none"}, LLAMA, "data.tokenizer: 'hf:./none': none is not there"),
    "no checkpoint there": ({}, {"name": "hf:./none"}, "name: 'hf:./none': none is not there"),
    "heads": ({}, {**LLAMA, "heads": 3}, "heads: 3: width / heads must be even, and width is 16"),
    "no transformers": ({}, LLAMA, "model 'llama' needs transformers: pip install 'oscillation-harness[language]'"),
}


@pytest.mark.parametrize(("data", "model", "said"), CASES.values(), ids=CASES)
def test_it_is_refused(
    data: dict[str, Any], model: dict[str, Any], said: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "transformers" in said:
        monkeypatch.setattr("harness.core.extras.find_spec", lambda package: None)
    (cli.folder / "text.txt").write_text("all is well\n" * 35)
    (cli.folder / "empty.txt").touch()
    (cli.folder / "latin.txt").write_bytes("café".encode("latin-1"))
    settings = {"name": "text", "root": "text.txt", "context": 8, **data}
    ended = cli.run_here(cli.file(edited({"base/data": settings, "base/model": model})))
    errors = [line for line in ended.stderr.splitlines() if not line.startswith("checking ")]
    assert (ended.returncode, len(errors)) == (2, 1), ended.stderr
    assert said in ended.stderr
    assert not cli.root.exists()


def test_a_dry_run_says_what_is_wrong_with_the_text(cli: Cli) -> None:
    Path(cli.folder / "latin.txt").write_bytes("café".encode("latin-1"))
    settings = {"name": "text", "root": "latin.txt", "context": 8}
    ended = cli.run_here(cli.file(edited({"base/data": settings, "base/model": LLAMA})), "--dry-run", "--runs")
    assert "not yet runnable: data.root: latin.txt is not UTF-8" in ended.stdout
    assert "would be refused: its data cannot be used" in ended.stdout
    assert ended.returncode == 2, "the data are there, so a launch would refuse them"


@pytest.mark.parametrize("wrong", [{"context": 400}, {"root": "latin.txt"}])
def test_no_network_is_built_for_text_that_is_refused(
    wrong: dict[str, Any], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cli.folder / "text.txt").write_text("all is well\n" * 35)
    (cli.folder / "latin.txt").write_bytes("café".encode("latin-1"))
    monkeypatch.setattr("harness.training.trial_build.try_build", lambda *given: pytest.fail("it may take minutes"))
    settings = {"name": "text", "root": "text.txt", "context": 8, **wrong}
    ended = cli.run_here(cli.file(edited({"base/data": settings, "base/model": LLAMA})), "--dry-run")
    assert "not checked: cell ste,target_bit=2: the data cannot be used, and its network needs it" in ended.stdout
    assert "not there" not in ended.stdout
    assert "would be refused: its data cannot be used" in ended.stdout
    assert ended.returncode == 2


def test_settings_of_data_that_are_searched_are_all_checked(cli: Cli) -> None:
    (cli.folder / "text.txt").write_text("all is well\n" * 35)
    settings = {"name": "text", "root": str(cli.folder / "text.txt")}
    edits = {"base/data": settings, "base/model": LLAMA, "cells/0/search": {"data.context": [8, 400]}}
    assert "data.context: 400: train has 379 characters" in cli.refusal(cli.file(edited(edits)))
