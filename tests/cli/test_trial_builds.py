"""Each distinct network of a sweep is built once before anything is queued: what a run would be refused for is said."""

from typing import Any

import pytest
import torch
from cli_bad_input_common import Edits
from cli_sweep import BASE, SEARCH, Cli, edited

from harness import launch
from harness.cli import launching
from harness.sweep.cells import expand
from harness.sweep.config import SweepConfig
from harness.training import trial_build
from harness.training.config import RunConfig, complete

LAYER9 = "unknown layer in exclude 'layer9'; did you mean 'layer5'?"
NOT_THERE = {"name": "image_folder", "root": "nowhere"}
REFUSED = {
    "exclude": ({"base/exclude": ["layer9"]}, f"{LAYER9} (legal: layer1, layer2,"),
    "exclude in a grid": ({"cells/0/grid/exclude": [[], ["head"]]}, "unknown layer in exclude 'head' (legal: layer1,"),
    "exclude of a later cell": (
        {"cells/1": {**BASE["cells"][0], "methods": "lsq", "set": {"exclude": ["layer1", "layr2"]}}},
        "unknown layer in exclude 'layr2'; did you mean 'layer2'?",
    ),
    "exclude without data": ({"base/exclude": ["layer9"], "base/data": NOT_THERE}, LAYER9),
    "layers of a method": (
        {"cells/0/methods": [{"name": "cga", "layers": ["layer9"]}]},
        "unknown layer in methods.cga.layers 'layer9'; did you mean 'layer5'?",
    ),
    "an objective that a cell does not report": (
        {"objective": {"name": "kure/kurtosis", "direction": "minimize"}},
        "objective 'kure/kurtosis': its runs do not report that (reported: osc/frequency,",
    ),
    "an objective of a method, misspelt": (
        {"cells/0/methods": "kure", "objective": {"name": "kure/kurtosi", "direction": "minimize"}},
        "did you mean 'kure/kurtosis'?",
    ),
    "nothing left": ({"base/exclude": ["layer*"]}, "finds no linear or convolution layer in this model"),
    "weights that no quantizer reaches": (
        {"base/model": {"name": "timm:test_nfnet", "image_side": 32}},
        "ScaledStdConv2d computes its own forward or weight",
    ),
    "activations of one layer": (
        {"base/exclude": ["layer[1-4]"], "base/deploy/bits": [2, "w4a4"]},
        "activations.first_last: 8: 'layer5' is the only quantized layer, both the first and the last; set "
        "activations.first_last: same",
    ),
    "activations of one layer in a later cell": (
        {
            "cells/1": {
                **BASE["cells"][0],
                "methods": "lsq",
                "grid": {"target_bit": ["w3a3"]},
                "set": {"exclude": ["layer[1-4]"]},
            }
        },
        "activations.first_last: 8: 'layer5' is the only quantized layer",
    ),
    "activations of attention out of reach": (
        {"base/model": {"name": "timm:pvt_v2_b0", "image_side": 32}, "base/deploy/bits": ["w8a8"]},
        "module 'stages.0.blocks.0.attn': the products inside timm.models.pvt_v2.Attention cannot be quantized",
    ),
    "patches": ({"base/model": {"name": "vit_tiny", "patch": 3}}, "patch"),
    "patches searched": (
        {"base/model": {"name": "vit_tiny", "width": 8, "heads": 1, "depth": 1}, SEARCH: {"model.patch": [2, 4, 3]}},
        "patch",
    ),
}


@pytest.mark.parametrize(("edits", "said"), REFUSED.values(), ids=REFUSED)
def test_what_only_building_can_find_is_refused_before_anything_is_queued(cli: Cli, edits: Edits, said: str) -> None:
    message = cli.refusal(cli.file(edited(edits)), "--dry-run")
    assert message.startswith("cell ")
    assert said in message
    assert len(message.splitlines()) == 1


def test_a_network_of_timm_with_plain_subclasses_of_layers_is_accepted(cli: Cli) -> None:
    cli.accepted(cli.file(edited({"base/model": {"name": "timm:mobilenetv3_small_050", "image_side": 32}})))


@pytest.mark.parametrize(
    "settings",
    [
        {"base/exclude": ["layer[1-4]"], "base/activations": {"first_last": "same"}},
        {"base/model": {"name": "timm:pvt_v2_b0", "image_side": 32}, "base/activations": {"attention": False}},
    ],
)
def test_points_with_activations_are_accepted_with_the_settings_that_errors_name(cli: Cli, settings: Edits) -> None:
    cli.accepted(cli.file(edited({**settings, "base/deploy/bits": ["w4a4"]})))


def test_a_launch_refuses_it_as_well(cli: Cli) -> None:
    assert LAYER9 in cli.refusal(cli.file(edited({"base/exclude": ["layer9"]})))


def test_a_checkpoint_of_another_network_is_refused(cli: Cli) -> None:
    torch.save({"layer1.weight": torch.zeros(3, 3)}, cli.folder / "other.pt")
    message = cli.refusal(cli.file(edited({"base/model/init": str(cli.folder / "other.pt")})))
    assert "does not fit the model" in message
    assert message.startswith("cell ste,target_bit=2: ")


def test_what_depends_on_data_that_is_not_there_is_said_not_to_be_checked(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.accepted(cli.file(edited({"base/data": NOT_THERE, "base/model": {"name": "vit_tiny", "patch": 7}})))
    printed = capsys.readouterr().out
    assert "not checked: cell ste,target_bit=2: the data is not there, and for 3x64x64 images: " in printed
    assert "not yet runnable: data.root" in printed
    cli.accepted(cli.file(edited({"base/data": NOT_THERE})))  # an MLP takes any images
    assert "not checked" not in capsys.readouterr().out


def test_without_its_text_no_language_model_is_built(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    text = {"base/data": {"name": "text", "root": "nowhere.txt", "context": 8}, "base/model": {"name": "llama"}}
    cli.accepted(cli.file(edited(text)))
    printed = capsys.readouterr().out
    assert "not checked: cell ste,target_bit=2: the data is not there, and its network needs it" in printed
    assert "not yet runnable: data.root: nothing is at nowhere.txt" in printed
    assert "warning: a launch here is refused until the data are there" in printed


def test_cells_that_are_not_checked_for_the_same_reason_are_told_in_one_line(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    text = {"base/data": {"name": "text", "root": "nowhere.txt", "context": 8}, "base/model": {"name": "llama"}}
    five = {"cells/0/grid": {"model.layers": [1, 2, 3, 4, 5]}, "cells/0/set": {"target_bit": 2}}
    cli.accepted(cli.file(edited({**text, **five, SEARCH: {"model.hidden": [8, 16]}})))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not checked" in line]
    named = "; ".join(f"ste,model.layers={layers},target_bit=2" for layers in (1, 2, 3))
    assert line == f"not checked: cells {named} and 2 more: the data is not there, and its network needs it"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, tuple[int, int, int], int]]:
    """What is built, in order; nothing is."""
    calls: list[tuple[RunConfig, tuple[int, int, int], int]] = []
    monkeypatch.setattr(trial_build, "try_build", lambda *arguments: calls.append(arguments))
    return calls


def test_each_distinct_network_is_built_once_with_its_methods(cli: Cli, built: list[Any]) -> None:
    cli.accepted(cli.file(edited({})))
    assert [(shape, classes) for _, shape, classes in built] == [((1, 8, 8), 10)]
    del built[:]
    second = {**BASE["cells"][0], "methods": "oscillation", "search": {"oscillation.strength": {"low": 1, "high": 9}}}
    cli.accepted(cli.file(edited({"cells/1": second, SEARCH: {"model.width": [4, 8]}, "base/data/resize": 4})))
    assert [(config.methods[0]["name"], config.model["width"]) for config, *_ in built] == [
        ("ste", 4),
        ("ste", 8),
        ("oscillation", 8),
    ]
    assert {shape for _, shape, _ in built} == {(1, 4, 4)}


def test_a_list_of_runs_builds_nothing(cli: Cli, built: list[Any]) -> None:
    assert launch.main([str(cli.file(BASE)), "--root", str(cli.root), "--dry-run", "--runs"]) == 0
    assert built == []


def test_a_sweep_that_was_launched_is_not_built_again(cli: Cli, built: list[Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(launching, "_start", lambda *arguments: 0)
    for _ in range(2):
        assert launch.main([str(cli.file(BASE)), "--root", str(cli.root)]) == 0
    assert len(built) == 1


def test_nothing_is_fetched_and_no_gpu_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[RunConfig] = []
    monkeypatch.setattr(trial_build, "build", lambda config, stand_in: given.append(config))
    raw = {**BASE["base"], "methods": "ste", "target_bit": 2, "runtime": {"device": "cuda:7"}}
    config = complete({**raw, "model": {"name": "resnet18", "init": "pretrained"}})
    trial_build.try_build(config, (3, 8, 8), 10)
    assert (given[0].model["init"], given[0].runtime.device) == ("scratch", "cpu")
    assert config.model["init"] == "pretrained"


def test_building_leaves_the_random_state_as_it_was() -> None:
    (cell, _) = expand(SweepConfig.model_validate(BASE))
    config = cell.config({"train.learning_rate": 1e-3}, 0, "tune")
    before = torch.get_rng_state()
    trial_build.try_build(config, (1, 8, 8), 10)
    assert torch.equal(torch.get_rng_state(), before)
