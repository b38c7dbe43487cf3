"""Bad input is refused before anything starts: field, value, what is legal, and the nearest spelling.

The last section carries out a dozen whole commands in this process, and types two of them at the command line.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from cli_bad_input_common import Edits
from cli_sweep import BASE, SEARCH, Cli, edited

from harness import NUMERICS_VERSION
from harness.core.errors import UserError
from harness.launch import main
from harness.sweep import queue
from harness.sweep.config import read_sweep


def test_a_missing_profile_is_refused(cli: Cli) -> None:
    message = cli.refusal(cli.file(BASE), "--cluster", "slurm", "--profile", cli.folder / "none.yaml")
    assert "none.yaml: no such file" in message


def test_slurm_without_sbatch_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cli.folder))
    assert "--cluster slurm: sbatch is not on this machine" in cli.refusal(cli.file(BASE), "--cluster", "slurm")


@pytest.mark.parametrize("workers", ["0", "-1", "x"])
def test_workers_are_counted_from_one(cli: Cli, workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(cli.file(BASE)), "--workers", workers, "--root", str(cli.root)])
    assert ended.value.code == 2
    assert "argument --workers:" in capsys.readouterr().err
    assert not cli.root.exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_unusable_root_is_refused(cli: Cli, below: str) -> None:
    (cli.folder / "file").touch()  # also root, who may write anywhere, cannot make a folder of a file
    root = cli.folder / "file" / below
    with pytest.raises(UserError, match=r"^--root '.*file.*': cannot write there: "):
        main([str(cli.file(BASE)), "--cluster", "debug", "--root", str(root)])
    assert (cli.folder / "file").is_file()


# A sweep edited after it ran


CHANGES = {
    "base.train.epochs": {"base/train/epochs": 2},
    "base.deploy.bits": {"base/deploy/bits": [2, 4, 8]},
    "cells.0.search.train.learning_rate.high": {
        SEARCH: {"train.learning_rate": {"low": 0.0001, "high": 0.1, "log": True}}
    },
    "sampler.name": {"sampler": "qmc"},
    "objective": {"objective": "mean"},
    "tune.seed": {"tune/seed": 1001},
}


@pytest.mark.parametrize(("key", "edits"), CHANGES.items(), ids=CHANGES)
def test_a_sweep_edited_after_it_ran_is_refused_and_the_key_named(cli: Cli, key: str, edits: Edits) -> None:
    queue.open_sweep(read_sweep(cli.file(BASE)), cli.root)
    before = {path: path.read_bytes() for path in cli.root.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"differs in: {key}\. Only tune\.trials and final\.seeds may grow"):
        main([str(cli.file(edited(edits))), "--cluster", "debug", "--root", str(cli.root)])
    assert {path: path.read_bytes() for path in cli.root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("edits", [{"tune/trials": 1}, {"final/seeds": [1]}], ids=["trials", "seeds"])
def test_a_sweep_that_would_shrink_is_told_its_size(cli: Cli, edits: Edits) -> None:
    queue.open_sweep(read_sweep(cli.file(BASE)), cli.root)
    with pytest.raises(UserError, match=r"has grown to tune\.trials \d+ and final\.seeds \[.*a sweep cannot shrink"):
        main([str(cli.file(edited(edits))), "--cluster", "debug", "--root", str(cli.root)])


def test_further_points_of_finished_runs_need_no_other_sweep(cli: Cli) -> None:
    queue.open_sweep(read_sweep(cli.file(BASE)), cli.root)
    for edits, told in (({}, True), ({"tune/seed": 7}, False)):
        with pytest.raises(UserError, match=r"base\.deploy\.bits") as raised:
            main([str(cli.file(edited({"base/deploy/bits": [2, 4, 8], **edits}))), "--root", str(cli.root)])
        assert ("python -m harness.evaluate" in str(raised.value)) == told


def test_all_changed_keys_are_named(cli: Cli) -> None:
    queue.open_sweep(read_sweep(cli.file(BASE)), cli.root)
    edits = {"base/train/epochs": 2, "tune/seed": 7}
    with pytest.raises(UserError, match=r"differs in: base\.train\.epochs, tune\.seed\."):
        main([str(cli.file(edited(edits))), "--cluster", "debug", "--root", str(cli.root)])


@pytest.mark.parametrize(
    "edits",
    [
        {"tune/trials": 3},
        {"final/seeds": [0, 1]},
        {"final/seeds": [5, 0]},
        {"workers": 3},
        {"max_retries": 4},
        {"base/runtime": {"device": "cpu", "threads": 1}},
        {"base/data/root": "/elsewhere"},
        {"tune/trials": 3, "final/seeds": [0, 1, 2], "workers": 1},
    ],
    ids=str,
)
def test_a_sweep_may_grow(cli: Cli, edits: Edits) -> None:
    queue.open_sweep(read_sweep(cli.file(BASE)), cli.root)
    grown = queue.open_sweep(read_sweep(cli.file(edited(edits))), cli.root)
    assert queue.load_sweep(grown.folder).spec == grown.spec


# Files that a sweep names


def images(root: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """An image folder of 10 training images and 1 test image a class."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for split, count in (("train", 10), ("test", 1)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def image_sweep(root: Path | None) -> dict[str, Any]:
    return edited({"base/data": {"name": "image_folder", **({"root": str(root)} if root else {})}})


def test_a_corrupt_image_is_named_and_refused(cli: Cli) -> None:
    damaged = images(cli.folder / "photos") / "train" / "dog" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert f"cannot decode {damaged}" in cli.refusal(cli.file(image_sweep(cli.folder / "photos")))


def test_an_empty_class_folder_is_named_and_refused(cli: Cli) -> None:
    root = images(cli.folder / "photos")
    for file in (root / "train" / "cat").iterdir():
        file.unlink()
    assert f"{root / 'train' / 'cat'} holds no images" in cli.refusal(cli.file(image_sweep(root)))


def test_a_missing_data_root_says_what_belongs_there(cli: Cli) -> None:
    message = cli.refusal(cli.file(image_sweep(cli.folder / "nowhere")))
    assert f"data.root: nothing is at {cli.folder / 'nowhere'}: image_folder reads a folder with train/" in message
    message = cli.refusal(cli.file(image_sweep(None)))
    assert "data.root is not set" in message
    assert "--set data.root=PATH" in message


def test_cifar10_is_never_fetched_unasked(cli: Cli) -> None:
    data = {"name": "cifar10", "root": str(cli.folder)}
    message = cli.refusal(cli.file(edited({"base/data": data})))
    assert "cifar-10-batches-py" in message
    assert "download: true" in message


@pytest.mark.parametrize("init", ["checkpoint:/no/such.pt", "/no/such.pt"])
def test_a_missing_initial_checkpoint_is_refused(cli: Cli, init: str) -> None:
    assert "/no/such.pt" in cli.refusal(cli.file(edited({"base/model/init": init})))


# The whole command: what it prints, and its exit status

COMMANDS: dict[str, tuple[Edits | str, list[str], list[str]]] = {
    "unknown key": ({"sampller": "tpe"}, [], ["sampller", "did you mean 'sampler'"]),
    "duplicate key": ("name: a\nname: b\n", [], ["line 2", "'name' appears twice"]),
    "model": ({"base/model/name": "mlp"}, [], ["'mlp'", "did you mean 'mlp5'", "resnet18"]),
    "data set": ({"base/data/name": "digit"}, [], ["'digit'", "did you mean 'digits'", "cifar10"]),
    "objective": ({"objective": "taget"}, [], ["'taget'", "did you mean 'target'"]),
    "bits": ({"cells/0/grid/target_bit": [40]}, [], ["target_bit: 40", "2 to 8"]),
    "wrong type": ({"base/train/epochs": "many"}, [], ["train.epochs: 'many'"]),
    "no run": ({"cells/0/grid/target_bit": []}, [], ["leaves no run at all"]),
    "set": ({}, ["--set", "foo"], ["--set 'foo'"]),
    "profile": ({}, ["--profile", "p.yaml"], ["--profile is for --cluster slurm, not local"]),
    "setting": ({"cells/0/methods": [{"name": "lsq", "levls": "full"}]}, [], ["levls", "did you mean 'levels'"]),
    "data root": ({"base/data": {"name": "image_folder", "root": "nowhere"}}, [], ["nothing is at nowhere"]),
}


@pytest.mark.parametrize(("content", "arguments", "said"), COMMANDS.values(), ids=COMMANDS)
def test_the_command_exits_2_with_one_line(
    cli: Cli, content: Edits | str, arguments: list[str], said: list[str]
) -> None:
    file = cli.file(content if isinstance(content, str) else edited(content))
    ended = cli.run_here(file, *arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert all(part in ended.stderr for part in said), ended.stderr
    assert not cli.root.exists()


@pytest.mark.parametrize("case", ["unknown key", "profile"])
def test_a_process_of_its_own_says_the_same(cli: Cli, case: str) -> None:
    content, arguments, _ = COMMANDS[case]
    file = cli.file(content if isinstance(content, str) else edited(content))
    ended, here = cli.run(file, *arguments), cli.run_here(file, *arguments)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, here.stdout, here.stderr)


@pytest.mark.parametrize("version", [NUMERICS_VERSION, NUMERICS_VERSION - 1])
def test_records_of_other_numerics_are_told(cli: Cli, version: int, capsys: pytest.CaptureFixture[str]) -> None:
    spec = read_sweep(cli.file(BASE))
    run = queue.open_sweep(spec, cli.root).files.run("0123456789ab").path
    run.mkdir(parents=True)
    (run / "record.json").write_text(json.dumps({"provenance": {"numerics_version": version}}))
    queue.open_sweep(spec, cli.root)
    told = (
        f"have numerics version {version}, and runs from now on have {NUMERICS_VERSION}: figures refuse finals of both"
    )
    assert (told in capsys.readouterr().err) == (version != NUMERICS_VERSION)
