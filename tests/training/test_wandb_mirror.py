"""The W&B mirror: where it goes, and that it never stops a run. Nothing here connects to anything."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.bits import FLOAT
from harness.records import schema
from harness.tasks.classification import ACCURACY
from harness.training.config import complete
from harness.training.wandb_mirror import Mirror, explain_mode, group_of, wandb_mode

RAW: dict[str, Any] = {
    "seed": 3,
    "target_bit": 2,
    "methods": ["ste"],
    "model": {"name": "mlp5", "width": 8},
    "data": {"name": "digits"},
    "deploy": {"scale": "recalibrate"},
}


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account and no settings of the user who runs the tests."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": ""}, "offline"),
        ({"WANDB_API_KEY": "0" * 40}, "online"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "0" * 40}, "offline"),
        ({"WANDB_MODE": "dryrun", "WANDB_API_KEY": "0" * 40}, "offline"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "0" * 40}, "off"),
        ({"WANDB_MODE": "nonsense"}, "offline"),
    ],
    ids=str,
)
def test_auto(environment: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode("auto") == mode


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("machine api.wandb.ai\n  login user\n  password x\n", "online"),
        ("machine wandb.example.org login user password x\n", "online"),
        ("machine github.com login user password x\n", "offline"),
        ("machine api.wandb.ai\n  rubbish x\n", "offline"),
        ("", "offline"),
    ],
)
def test_auto_looks_for_a_key_in_netrc(text: str, mode: str, tmp_path: Path) -> None:
    (tmp_path / "home" / ".netrc").write_text(text)
    (tmp_path / "home" / ".netrc").chmod(0o600)
    assert wandb_mode("auto") == mode


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize(
    "text", [b"# caf\xe9\nmachine api.wandb.ai login user password x\n", b"machine x login \xff password y\n"]
)
def test_a_netrc_that_is_not_utf8_is_said_and_not_read(
    text: bytes, variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys" if variable else tmp_path / "home" / ".netrc"
    path.write_bytes(text)
    path.chmod(0o600)
    if variable:
        monkeypatch.setenv("NETRC", str(path))
    assert wandb_mode("auto") == "offline"
    assert "is not UTF-8" in capsys.readouterr().err


def test_auto_looks_where_netrc_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / "keys").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "keys"))
    assert wandb_mode("auto") == "online"


@pytest.mark.parametrize("wanted", ["online", "offline", "off"])
def test_what_the_configuration_says_wins(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(wanted) == wanted


@pytest.mark.parametrize("wanted", ["auto", "online", "offline", "off"])
def test_without_the_package_it_is_off(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert wandb_mode(wanted) == "off"
    Mirror(complete({**RAW, "runtime": {"wandb": wanted}}), "0" * 12, Path("/nowhere")).log({"epoch": 1})


def test_each_mode_is_explained() -> None:
    assert "wandb sync" in explain_mode("offline")
    assert all(explain_mode(mode).startswith("W&B: ") for mode in ("auto", "online", "offline", "off"))
    assert "no key found" in explain_mode("auto")


@pytest.mark.parametrize(("wanted", "mode"), [("offline", None), ("auto", "offline"), ("auto", "dryrun")])
def test_no_key_is_missed_where_offline_was_asked_for(
    wanted: str, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    assert explain_mode(wanted).startswith("W&B: runs are mirrored offline (later: wandb sync")


@pytest.mark.parametrize(
    ("changes", "group"),
    [
        ({}, "mlp5/ste/w2"),
        ({"methods": ["ste", "oscillation"], "target_bit": 4}, "mlp5/ste+oscillation/w4"),
        ({"methods": ["none"], "target_bit": None, "watch_bit": 2}, "mlp5/none/float"),
    ],
)
def test_groups(changes: dict[str, Any], group: str) -> None:
    assert group_of(complete({**RAW, **changes})) == group


METRICS = {
    schema.EPOCH: 1,
    schema.TRAIN_LOSS: 2.25,
    schema.TRAIN_PENALTY: 0.5,
    schema.MONITOR: 0.5,
    schema.score(ACCURACY, "val", 2): 0.5,
    schema.score(ACCURACY, "val", FLOAT): 0.75,
    schema.FREQUENCY: 0.125,
    schema.FLIPS_PER_WEIGHT: 0.0625,
    schema.OSCILLATING_FRACTION: 0.25,
    schema.layer_frequency("net.0"): 0.375,
}
SUMMARY = {schema.score(ACCURACY, "test", 2): 0.625, "best_epoch": 1}


def inspected(directory: Path) -> list[dict[str, Any]]:
    """The records of an offline run, by W&B's own reader; skips where the installed version has none."""
    wandb = shutil.which("wandb", path=str(Path(sys.executable).parent)) or shutil.which("wandb")
    (file,) = directory.rglob("*.wandb")
    assert file.stat().st_size > 0
    if wandb is None:
        pytest.skip("no wandb command")
    command = [wandb, "leet", "inspect", "--json", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if ended.returncode != 0:
        pytest.skip(f"this wandb cannot inspect a run: {ended.stderr[-200:]}")
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


def test_an_offline_run_holds_every_metric(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = complete({**RAW, "runtime": {"wandb": "offline"}})
    mirror = Mirror(config, config.run_id(), tmp_path, ("sweep",))
    mirror.log(METRICS)
    mirror.log({**METRICS, schema.EPOCH: 2})
    mirror.finish(SUMMARY, {}, tmp_path / "best")
    assert capfd.readouterr().err == ""
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert folder.name.endswith(config.run_id())
    text = json.dumps(inspected(tmp_path))
    for name in (*METRICS, *SUMMARY):
        assert name in text or name.replace("/", "\\/") in text, name
    assert "mlp5/ste/w2" in text
    assert "0.375" in text
    assert "0.625" in text


class Broken:
    """A run of which one thing fails."""

    resumed, dir = False, "/nowhere/files"

    def __init__(self, what: str) -> None:
        self.what, self.calls = what, []  # type: tuple[str, list[str]]
        self.summary = SimpleNamespace(update=lambda values: self._do("summary"))

    def _do(self, what: str) -> None:
        self.calls.append(what)
        if what == self.what:
            raise ConnectionError("no route to host")

    def define_metric(self, *given: Any, **named: Any) -> None:
        self._do("define")

    def log(self, metrics: dict[str, Any]) -> None:
        self._do("log")

    def finish(self, exit_code: int) -> None:
        self._do("finish")


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("what", ["init", "define", "log", "summary", "finish", "nothing"])
def test_a_mirror_never_raises(
    what: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    run = Broken(what)

    def init(**given: Any) -> Broken:
        run._do("init")
        return run

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(Mirror, "_ask_again", 0.0)
    mirror = Mirror(complete({**RAW, "runtime": {"wandb": mode}}), "0" * 12, tmp_path)
    for epoch in (1, 2):
        mirror.log({schema.EPOCH: epoch})
    mirror.finish({"best_epoch": 1}, {}, tmp_path / "best")
    said = capsys.readouterr().err
    assert said.count("W&B: ") == (what != "nothing")  # once, or not at all
    assert ("no route to host" in said) == (what != "nothing")
    assert run.calls.count("log") == {"init": 0, "define": 0, "log": 1}.get(what, 2)


def test_what_wandb_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    told: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **given: told.update(given) or Broken("nothing"))
    config = complete({**RAW, "runtime": {"wandb": "online", "wandb_project": "p"}})
    Mirror(config, config.run_id(), tmp_path, ("sweep",), labels={schema.SWEEP: "mine", schema.CELL: "ste"})
    assert (told["id"], told["resume"], told["mode"], told["project"]) == (config.run_id(), "allow", "online", "p")
    assert (told["group"], told["name"], told["job_type"]) == ("mlp5/ste/w2", "mlp5/ste/w2/s3", "final")
    assert told["tags"] == ["sweep", "final"]
    settings = {"scale_gradient": "graph", "activation_momentum": 0.1}
    own = {"method": "ste", "knobs": {"ste": settings}, "sweep": "mine", "cell": "ste"}
    assert told["config"] == {**config.model_dump(mode="json"), **own}
    assert told["settings"].console == "off"  # nothing that a program prints is sent anywhere
