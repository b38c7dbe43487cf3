"""The saved view of a sweep: what W&B gets of it, that every key in it is logged, and what is refused."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb_common import config, fresh_server
from wandb_server import ENTITY, WandbServer

from harness import launch
from harness.cli import wandb_service
from harness.core.bits import FLOAT
from harness.core.errors import UserError
from harness.dashboard import main
from harness.records import schema
from harness.tasks.classification import ACCURACY
from harness.training.run import RunContext, run

LEARNING_RATE = {"train.learning_rate": {"low": 1e-4, "high": 1e-2}}
SWEEP = {
    "name": "mine",
    "base": {
        "data": {"name": "digits", "train_fraction": 0.1},
        "model": {"name": "mlp5", "width": 8},
        "train": {"epochs": 1},
        "deploy": {"bits": [2, 8], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb_project": "my-project"},
    },
    "cells": [
        {"methods": "none", "set": {"watch_bit": 3}, "search": LEARNING_RATE},
        {
            "methods": "oscillation",
            "grid": {"target_bit": [3]},
            "search": {"oscillation.strength": {"low": 1, "high": 10, "log": True}},
        },
    ],
    "tune": {"trials": 1},
    "final": {"seeds": [0]},
    "sampler": "random",
}
Output = pytest.CaptureFixture[str]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with fresh_server(tmp_path, monkeypatch) as server:
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return written(tmp_path, SWEEP)


def written(folder: Path, content: dict[str, Any] | str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def printed(capsys: Output, *arguments: object) -> dict[str, Any]:
    """What `--print` prints; nothing else is said."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--print"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    payload: dict[str, Any] = json.loads(said.out)
    return payload


def without_ids(value: Any) -> Any:
    """A payload but for what is drawn anew each time: the names of panels."""
    if isinstance(value, dict):
        return {key: without_ids(inner) for key, inner in value.items() if key != "__id__"}
    return [without_ids(inner) for inner in value] if isinstance(value, list) else value


def sections(payload: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The configurations of the panels, by section."""
    found = payload["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in found}


def used(payload: dict[str, Any]) -> dict[str, set[str]]:
    """The keys that the panels use, by where W&B looks for them."""
    found: dict[str, set[str]] = {"history": set(), "regex": set(), "config": set(), "summary": set()}
    section = payload["spec"]["section"]
    found["history"].add(section["settings"]["xAxis"])
    for panels in sections(payload).values():
        for panel in panels:
            axes = [panel[axis] for axis in ("xAxis", "yAxis", "zAxis") if axis in panel]
            lines = [axis for axis in axes if not axis.startswith(("config:", "summary:"))] + panel.get("metrics", [])
            found["summary" if "barLimit" in panel else "history"] |= set(lines)
            found["regex"] |= {panel["metricRegex"]} if "metricRegex" in panel else set()
            for place in ("config", "summary"):
                found[place] |= {axis.partition(":")[2] for axis in axes if axis.startswith(f"{place}:")}
            assert panel.get("groupBy", "group") == "group"
    return found


def dotted(value: Any, name: str = "") -> set[str]:
    """The names of the values in a nested section, as W&B writes them."""
    if not isinstance(value, dict) or not value:
        return {name}
    return {path for key, inner in value.items() for path in dotted(inner, f"{name}.{key}" if name else key)}


def logged(server: WandbServer, directory: Path) -> dict[str, set[str]]:
    """The keys that a real run of the sweep's second cell leaves on W&B, by where W&B has them."""
    wanted = config()
    changed = {"methods": ({"name": "oscillation", "strength": 2.0, "scale_gradient": "graph"},)}
    run(wanted.model_copy(update=changed), directory, context=RunContext(tags=("mine",), labels={schema.SWEEP: "mine"}))
    (received,) = server.runs.values()
    config_names = {f"{key}.value" + rest for key, rest in map(_first_level, dotted(received.config))}
    return {
        "history": {key for row in received.history for key in row},
        "config": config_names,
        "summary": dotted(received.summary),
    }


def _first_level(name: str) -> tuple[str, str]:
    """W&B puts a level `value` below each key of a configuration: knobs.value.oscillation.strength."""
    key, dot, rest = name.partition(".")
    return key, dot + rest


def test_a_view_is_saved(server: WandbServer, sweep: Path, capsys: Output) -> None:
    assert main([str(sweep)]) == 0
    said = capsys.readouterr()
    (view,) = server.views.values()
    assert said.out == f"{server.url}/{ENTITY}/my-project?nw={view['name'].removeprefix('nw-').removesuffix('-v')}\n"
    assert said.err == ""
    assert (view["entityName"], view["projectName"], view["type"]) == (ENTITY, "my-project", "project-view")
    assert view["displayName"] == "oscillation-harness: mine"
    assert server.projects == {"my-project"}
    dry = printed(capsys, sweep, "--entity", ENTITY)
    assert without_ids({key: view[key] for key in dry if key != "spec"} | {"spec": json.loads(view["spec"])}) == (
        without_ids(dry)
    )


def test_every_key_is_logged(server: WandbServer, sweep: Path, tmp_path: Path, capsys: Output) -> None:
    keys, there = used(printed(capsys, sweep)), logged(server, tmp_path / "run")
    for place in ("history", "config", "summary"):
        assert keys[place], place
        assert keys[place] <= there[place], place
    (layers,) = keys["regex"]
    found = {key for key in there["history"] if re.fullmatch(layers, key)}
    assert found == {schema.layer_frequency(f"layer{number}") for number in range(1, 6)}


def test_what_the_panels_show(sweep: Path, capsys: Output) -> None:
    payload = printed(capsys, sweep)
    found = sections(payload)
    oscillations = [panel["metrics"] for panel in found["Oscillations over training"]]
    assert oscillations == [[schema.FREQUENCY], [schema.OSCILLATING_FRACTION], [schema.FLIPS_PER_WEIGHT]]
    profile, _, distances = found["Layers"]
    assert (profile["metrics"], distances["metrics"]) == ([schema.LAYER_PROFILE], [schema.THRESHOLD_HISTOGRAM])
    assert "groupBy" not in profile  # W&B shows the histogram of a run, not of a group
    bits = (2, 3, 8, FLOAT)  # the target of the second cell is among them
    *accuracies, tests = found["Accuracy at each bit-width"]
    assert [panel["metrics"] for panel in accuracies] == [[schema.score(ACCURACY, "val", b)] for b in bits]
    assert tests["metrics"] == [schema.score(ACCURACY, "test", b) for b in bits]
    strengths = found["Strength and accuracy"]
    assert {panel["xAxis"] for panel in strengths} == {"config:knobs.value.oscillation.strength"}
    assert [panel["yAxis"] for panel in strengths] == ["summary:val/monitor.max", "summary:val/acc_worst"]
    assert all(panel["xAxisLogScale"] for panel in strengths)
    worst, spread, both = found["Across bit-widths"]
    assert (worst["metrics"], spread["metrics"]) == ([schema.worst(ACCURACY, "val")], [schema.spread(ACCURACY, "val")])
    assert (both["xAxis"], both["yAxis"]) == ("summary:val/monitor.max", "summary:val/acc_worst")
    assert {panel["groupAgg"] for panel in (worst, spread, tests, *accuracies)} == {"mean"}
    assert {panel["groupArea"] for panel in (worst, spread, tests, *accuracies)} == {"minmax"}


def test_points_with_activations(tmp_path: Path, capsys: Output) -> None:
    """In order; each epoch is evaluated at the target and at the points of weights alone."""
    base = SWEEP["base"] | {"deploy": {"bits": ["w8a8", 2], "scale": "recalibrate"}}
    cells = [{"methods": "oscillation", "grid": {"target_bit": [3, "w3a4"]}}]
    path = written(tmp_path, SWEEP | {"base": base, "cells": cells, "tune": {"trials": 0}})
    *accuracies, tests = sections(printed(capsys, path))["Accuracy at each bit-width"]
    assert [panel["metrics"] for panel in accuracies] == [[f"val/acc_{at}"] for at in ("w2", "w3a4", "w3", "float")]
    titles = [panel["chartTitle"].rpartition(": ")[2] for panel in accuracies]
    assert titles == ["2", "w3a4", "3", "float"]
    assert tests["metrics"] == [f"test/acc_{at}" for at in ("w2", "w3a4", "w3", "w8a8", "float")]


def test_everything_is_open_and_on_one_page(sweep: Path, capsys: Output) -> None:
    for section in printed(capsys, sweep)["spec"]["section"]["panelBankConfig"]["sections"]:
        layout = section["flowConfig"]
        assert section["isOpen"]
        assert layout["columnsPerPage"] * layout["rowsPerPage"] >= len(section["panels"])


@pytest.mark.parametrize("phase", [None, "tune", "final"])
def test_the_runs_are_those_of_the_sweep(phase: str | None, sweep: Path, capsys: Output) -> None:
    payload = printed(capsys, sweep, *(["--phase", phase] if phase else []))
    (runs,) = payload["spec"]["section"]["runSets"]
    tags, *others = runs["filters"]["filters"]
    assert (tags["key"], tags["op"], tags["value"]) == ({"section": "run", "name": "tags"}, "IN", ["mine"])
    assert [(one["key"]["name"], one["value"]) for one in others] == ([("jobType", phase)] if phase else [])
    assert runs["grouping"] == []  # scatter plots would show a point a group
    assert payload["displayName"] == "oscillation-harness: mine" + (f" ({phase} runs)" if phase else "")


def test_without_a_strength_every_searched_number_is_shown(tmp_path: Path, capsys: Output) -> None:
    search = {**LEARNING_RATE, "train.optimizer": ["adam", "sgd"]}
    path = written(tmp_path, SWEEP | {"cells": [{"methods": "ste", "set": {"target_bit": 2}, "search": search}]})
    shown = sections(printed(capsys, path))["Strength and accuracy"]
    assert {panel["xAxis"] for panel in shown} == {"config:train.value.learning_rate"}


def test_without_a_search_there_is_no_such_section(tmp_path: Path, capsys: Output) -> None:
    cells = [{"methods": "ste", "set": {"target_bit": 2}}]
    path = written(tmp_path, SWEEP | {"cells": cells, "tune": {"trials": 0}})
    assert "Strength and accuracy" not in sections(printed(capsys, path))


def test_entity_and_project_may_be_named(server: WandbServer, sweep: Path, capsys: Output) -> None:
    server.projects.add("theirs")
    assert main([str(sweep), "--entity", "team", "--project", "theirs"]) == 0
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"]) == ("team", "theirs")
    assert "CreateProject" not in server.operations
    assert f"{server.url}/team/theirs?nw=" in capsys.readouterr().out


def test_the_entity_is_the_one_that_runs_go_to(
    server: WandbServer, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_ENTITY", "team")
    monkeypatch.setenv("WANDB_MODE", "offline")  # of runs; a view has no other way
    assert main([str(sweep)]) == 0
    (view,) = server.views.values()
    assert view["entityName"] == "team"


@pytest.mark.parametrize("named", ["the file", "the folder", "the name"])
def test_a_launched_sweep_is_shown_as_it_was_launched(named: str, sweep: Path, tmp_path: Path, capsys: Output) -> None:
    root = tmp_path / "runs"
    changes = ["--set", "deploy.bits=[4]", "--set", "runtime.wandb=off", "--set", "runtime.wandb_project=other"]
    assert launch.main([str(sweep), "--cluster", "debug", "--root", str(root), *changes]) == 0
    given: dict[str, list[object]] = {"the file": [sweep, "--root", root], "the folder": [root / "mine"]}
    payload = printed(capsys, *given.get(named, ["mine", "--root", root]))
    assert payload["projectName"] == "other"
    shown = [panel["metrics"] for panel in sections(payload)["Accuracy at each bit-width"]]
    assert shown[:-1] == [[schema.score(ACCURACY, "val", bits)] for bits in (3, 4, FLOAT)]


BAD = {
    "no file": None,
    "not YAML": "name: [a\n",
    "an unknown key": SWEEP | {"sampller": "tpe"},
    "an unknown method": SWEEP | {"cells": [{"methods": "sta"}]},
    "a bad range": SWEEP | {"cells": [{"methods": "none", "search": {"train.learning_rate": {"low": 2, "high": 1}}}]},
    "nothing to search": SWEEP | {"tune": {"trials": 2}, "cells": [{"methods": "none", "set": {"watch_bit": 2}}]},
    "no target": SWEEP | {"cells": [{"methods": "ste", "search": {"train.learning_rate": [1e-3, 1e-2]}}]},
    "sampler options": SWEEP | {"sampler": {"name": "tpe", "no_such_option": 1}},
    "a clash": SWEEP | {"cells": [{"methods": ["ste", "lsq"], "set": {"target_bit": 2}, "search": LEARNING_RATE}]},
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_as_by_launch(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml" if content is None else written(tmp_path, content)
    with pytest.raises(UserError) as ours:
        main([str(path), "--print"])
    with pytest.raises(UserError) as theirs:
        launch.main([str(path), "--dry-run"])
    assert str(ours.value) == str(theirs.value)


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sweep was launched there"):
        main([str(tmp_path), "--print"])


def test_the_package_may_be_missing(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=re.escape("pip install -e .[dashboards]")):
        main([str(sweep), "--print"])


@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_server_that_is_away(
    silent: bool, server: WandbServer, sweep: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_service, "TIMEOUT_S", 2.0)
    server.pause(silent)
    # Whichever of the two clocks of the client runs out first words the message.
    why = "(Client.Timeout|context deadline) exceeded" if silent else "HTTP 503"
    with pytest.raises(UserError, match=f"W&B did not take the view .*{re.escape(server.url)}.*{why}.*--print"):
        main([str(sweep)])
    assert server.refused > 0
    assert printed(capsys, sweep)["displayName"] == "oscillation-harness: mine"


def test_a_server_that_goes_away(server: WandbServer, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    create = wandb.Api.create_project
    monkeypatch.setattr(wandb.Api, "create_project", lambda *given: (create(*given), server.pause()))
    with pytest.raises(UserError, match="W&B did not take the view"):
        main([str(sweep)])
    assert server.views == {}


FINISHED = Path(__file__).parents[1] / "cluster/previous_version/small"


def test_the_results_of_a_sweep_are_one_report(server: WandbServer, capsys: Output) -> None:
    payload = printed(capsys, FINISHED, "--report", "--project", "p")
    texts = [block["content"] for block in payload["spec"]["blocks"] if block["type"] == "markdown-block"]
    assert "| rank | method | seeds | 2 bits |" in texts[0]
    assert "| ste@2 |" in texts[1]
    addresses = []
    for _ in range(2):
        assert main([str(FINISHED), "--report", "--project", "p"]) == 0
        addresses.append(capsys.readouterr().out)
    assert addresses[0] == addresses[1]
    assert addresses[0].startswith(f"{server.url}/{ENTITY}/p/reports/oscillation-harness:-small,-results--")
    (report,) = server.reports.values()
    assert json.loads(report["spec"])["blocks"] == payload["spec"]["blocks"]
    assert server.operations["upsertView"] == 2


def test_a_sweep_without_results_has_no_report(server: WandbServer, sweep: Path) -> None:
    with pytest.raises(UserError, match="no sweep was launched there"):
        main([str(sweep), "--report", "--print"])


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, with nobody's key but the one given."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") or name in environment}
    return subprocess.run(
        [sys.executable, "-m", "harness.dashboard", *map(str, arguments)],
        env=bare | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_the_command_saves_a_view(server: WandbServer, sweep: Path) -> None:
    ended = command(sweep, **server.environment())
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(re.escape(f"{server.url}/{ENTITY}/my-project?nw=") + r"\w+\n", ended.stdout)
    assert len(server.views) == 1
    assert sorted(path.name for path in sweep.parent.iterdir()) == ["home", sweep.name]


@pytest.mark.slow
def test_the_command_waits_for_nobody(server: WandbServer, sweep: Path) -> None:
    server.pause()
    ended = command(sweep, **server.environment())
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: W&B did not take the view (")
    assert len(ended.stderr.splitlines()) == 1


def test_without_a_key_the_command_says_what_to_do(tmp_path: Path, server: WandbServer, sweep: Path) -> None:
    ended = command(sweep, WANDB_BASE_URL=server.url, HOME=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: no W&B key was found: `wandb login`")
    assert "WANDB_API_KEY" in ended.stderr
    assert "--print" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert server.operations == {}


def test_without_a_key_a_terminal_is_not_asked_for_one(
    server: WandbServer, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setattr("wandb.errors.term._sys_stdin_isatty", lambda: True)
    monkeypatch.setattr("wandb.errors.term._sys_stderr_isatty", lambda: True)
    with pytest.raises(UserError, match="no W&B key was found"):
        main([str(sweep)])


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from harness.dashboard import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += (
        "print([name for name in ('wandb', 'wandb_workspaces', 'torch', 'optuna', 'pydantic') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
