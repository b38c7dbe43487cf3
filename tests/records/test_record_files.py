"""The run directory: whole files only, and who is alive."""

import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from record_common import Crash
from torch import nn

import harness
from harness.records.files import read_json, write_json, written_aside
from harness.records.run_directory import RunDirectory
from harness.training.checkpoint import save_weights


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_json_there_and_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "b": {"ü": "x"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert names(tmp_path) == {"x.json"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_files_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "x.json", 1)
        save_weights(tmp_path / "x.safetensors", {"x": torch.zeros(2)})
        network = harness.export(nn.Sequential(nn.Linear(4, 4)), 4, tmp_path / "packed.safetensors").path
        assert {path.stat().st_mode & 0o777 for path in (network, *tmp_path.iterdir())} == {mode}
    finally:
        os.umask(before)


def _write_half(path: Path) -> None:
    with written_aside(path) as aside:
        aside.write_text('{"new": ')
        raise Crash


def test_a_crash_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(Crash):
        _write_half(path)
    assert read_json(path) == {"old": 1}
    assert names(tmp_path) == {"x.json"}


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, "old")
    with written_aside(path) as aside:
        aside.write_text('"new"')
        assert aside.parent == path.parent  # a rename within one file system is atomic
        assert read_json(path) == "old"
    assert read_json(path) == "new"


def test_a_failed_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, "old")

    def fail(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, "new")
    assert read_json(path) == "old"
    assert names(tmp_path) == {"x.json"}


def test_what_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("replace"), replace(*paths)))
    write_json(tmp_path / "x.json", 1)
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("value", [math.nan, math.inf, {"x": [-math.inf]}])
def test_a_figure_that_json_has_no_word_for_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", value)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b'{"a": "\xff', b"\x80"])
def test_a_file_that_is_not_whole_reads_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert read_json(tmp_path / "x.json") is None


def test_a_missing_file_reads_as_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_json(tmp_path / "x.json") is None
    assert read_json(tmp_path / "none" / "x.json") is None
    assert read_json(tmp_path / "file" / "x.json") is None


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path, over = tmp_path / "x.json", threading.Event()
    write_json(path, ["a"] * 2000)

    def write(letter: str) -> None:
        while not over.is_set():
            write_json(path, [letter] * 2000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    try:
        seen = [read_json(path) for _ in range(300)]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert all(value in (["a"] * 2000, ["b"] * 2000) for value in seen)


# metrics.jsonl


def directory(tmp_path: Path, *lines: dict[str, Any]) -> RunDirectory:
    files = RunDirectory(tmp_path)
    for line in lines:
        files.append_metrics(line)
    return files


def test_metrics_in_the_order_of_epochs_the_last_of_two_counts(tmp_path: Path) -> None:
    files = directory(tmp_path, {"epoch": 1, "x": 1}, {"epoch": 2, "x": 2}, {"epoch": 2, "x": 3}, {"epoch": 1, "x": 4})
    assert files.read_metrics() == [{"epoch": 1, "x": 4}, {"epoch": 2, "x": 3}]


@pytest.mark.parametrize("torn", ['{"epoch": 3, "x"', '{"epoch": 3', "{", '{"epoch": 3, "x": 1e'])
def test_a_torn_line_does_not_count(tmp_path: Path, torn: str) -> None:
    files = directory(tmp_path, {"epoch": 1}, {"epoch": 2})
    with open(files.metrics, "a") as file:
        file.write(torn)
    assert files.read_metrics() == [{"epoch": 1}, {"epoch": 2}]
    files.keep_metrics_until(2)
    files.append_metrics({"epoch": 3, "x": 1})
    assert files.read_metrics() == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3, "x": 1}]


@pytest.mark.parametrize("torn", ["1", "null", "{}"])
def test_a_line_that_is_json_by_accident_does_not_count(tmp_path: Path, torn: str) -> None:
    files = directory(tmp_path, {"epoch": 1})
    with open(files.metrics, "a") as file:
        file.write(torn)
    assert files.read_metrics() == [{"epoch": 1}]


def test_a_figure_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    files = directory(tmp_path, {"epoch": 1, "nan": math.nan, "inf": math.inf, "minus": -math.inf, "big": 1e200})
    assert files.read_metrics() == [{"epoch": 1, "big": 1e200}]
    assert json.loads(files.metrics.read_text()) == {"epoch": 1, "big": 1e200}


@pytest.mark.parametrize("until", [0, 1, 2, 3, 9])
def test_epochs_that_will_be_repeated_are_dropped(tmp_path: Path, until: int) -> None:
    files = directory(tmp_path, *({"epoch": epoch} for epoch in (1, 2, 3)))
    files.keep_metrics_until(until)
    assert files.read_metrics() == [{"epoch": epoch} for epoch in (1, 2, 3) if epoch <= until]


def test_without_metrics_there_is_nothing_to_drop(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    files.keep_metrics_until(3)
    assert files.read_metrics() == []
    assert names(tmp_path) == set()
