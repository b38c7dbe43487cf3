"""A component of the user's own whose code fails where no data has a part in it is refused: its file and line."""

from pathlib import Path

import pytest
from cli_bad_input_common import Edits
from cli_sweep import Cli, edited

NET = "class Net(nn.Module):\n    def __init__(self, classes: int) -> None:\n        super().__init__()\n"
FORWARD = (
    "        self.layer = nn.Linear(60, classes)\n    def forward(self, x):\n        return self.layer(x.flatten(1))\n"
)
TORCH = "from torch import nn\n"
#: A network's text, and what is said of it.
NETWORKS = {
    "a name": (TORCH + NET + "        undefined_name\n", "NameError: name 'undefined_name' is not defined (", 5),
    "a shape": (TORCH + NET + FORWARD, "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x64 and 60x10) (", 7),
    "a function": ("def build(n: int):\n    return [1][n]\n", "IndexError: list index out of range (", 2),
    "a Config": (
        "from harness.models import ModelConfig as Config\n\ndef build(config, shape, n):\n    return shape.side\n",
        "AttributeError: 'tuple' object has no attribute 'side' (",
        4,
    ),
}
METHOD = """from harness.methods import Method

class Own(Method):
    kind, acts_on = "regularizer", "weights"

    def prepare(self, model, calibration):
        """
NOT_THERE = {"name": "image_folder", "root": "nowhere"}


def own(cli: Cli, text: str, name: str) -> str:
    (cli.folder / name).write_text(text)
    return name


@pytest.mark.parametrize(("text", "said", "line"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_is_refused_by_its_file_and_line(cli: Cli, text: str, said: str, line: int) -> None:
    own(cli, text, "bad.py")
    name = "bad.py:Net" if "Net" in text else "bad.py"
    for options in ((), ("--dry-run",)):
        message = cli.refusal(cli.file(edited({"base/model": {"name": name}})), *options)
        assert message.startswith("cell ste,target_bit=2: "), message
        assert message.endswith(f"{said}{cli.folder / 'bad.py'}, line {line})"), message


def test_without_data_errors_that_may_depend_on_the_shape_are_no_refusal(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: Edits = {"base/data": NOT_THERE, "base/model": {"name": "bad.py:Net"}}
    own(cli, NETWORKS["a name"][0], "bad.py")
    assert "undefined_name" in cli.refusal(cli.file(edited(settings)), "--dry-run")
    # Not the file of another test, which would be known from there, and by its place.
    own(cli, NETWORKS["a shape"][0] + "\n# without data\n", "bad.py")
    cli.accepted(cli.file(edited(settings)))
    said = "not checked: cell ste,target_bit=2: the data is not there, and for 3x64x64 images: RuntimeError: mat1 and"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        ("1 / 0", True),
        ("calibration.images(1); raise ArithmeticError('no such quantile\\nof these')", False),
        ("calibration.images(1); undefined_name", True),
    ],
    ids=["before it reads samples", "after", "a name"],
)
def test_a_method_is_refused_unless_random_samples_may_be_why(
    cli: Cli, body: str, is_refused: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    own(cli, METHOD + body + "\n", "own.py")
    sweep = cli.file(edited({"cells/0/methods": "own.py"}))
    if is_refused:
        assert f"({cli.folder / 'own.py'}, line 7)" in cli.refusal(sweep, "--dry-run")
        return
    cli.accepted(sweep)
    said = "with two random samples in place of the data: ArithmeticError: no such quantile ("
    assert f"not checked: cell own,target_bit=2: {said}" in capsys.readouterr().out


@pytest.mark.parametrize("hook", ["penalty", "on_step_start", "after_backward", "after_step", "metrics"])
def test_a_method_whose_step_fails_is_refused(cli: Cli, hook: str) -> None:
    arguments = "self" if hook == "metrics" else "self, step"
    text = f"{METHOD}pass\n\n    def {hook}({arguments}):\n        return undefined_name\n"
    own(cli, text, "own.py")
    sweep = cli.file(edited({"cells/0/methods": "own.py"}))
    message = cli.refusal(sweep, "--dry-run")
    assert message.endswith(f"NameError: name 'undefined_name' is not defined ({cli.folder / 'own.py'}, line 10)")


def test_a_step_that_random_samples_may_fail_is_no_refusal(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    for number, body in enumerate(("return step.task_loss / 0", "raise ArithmeticError('too few samples')")):
        own(cli, f"{METHOD}pass\n\n    def penalty(self, step):\n        {body}\n", f"own{number}.py")
        cli.accepted(cli.file(edited({"cells/0/methods": f"own{number}.py"})))
        said = "too few samples" in capsys.readouterr().out
        assert said == bool(number)  # an infinite loss is for training to say


@pytest.mark.parametrize("error", ["RuntimeError('no CUDA here')", "OSError('no such file')", "MemoryError()"])
def test_errors_that_may_depend_on_the_machine_are_no_refusal(
    cli: Cli, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own(cli, f"def build(n: int):\n    raise {error}\n", "far.py")
    cli.accepted(cli.file(edited({"base/model": {"name": "far.py"}})))
    assert "not checked: cell ste,target_bit=2: " in capsys.readouterr().out


DATA = "from harness.data import DataConfig as Config\n\ndef read(config):\n    "
DATA_SETS = {
    "a function": ("def read(count: int = 8):\n    return count + nothing\n", "NameError: name 'nothing'", 2),
    "a Config": (DATA + "return 1 / 0\n", "ZeroDivisionError: division by zero", 4),
}


@pytest.mark.parametrize(("text", "said", "line"), DATA_SETS.values(), ids=DATA_SETS)
def test_a_data_set_is_refused_by_its_file_and_line(cli: Cli, text: str, said: str, line: int) -> None:
    path: Path = cli.folder / own(cli, text, "rows.py")
    for options in ((), ("--dry-run",)):
        message = cli.refusal(cli.file(edited({"base/data": {"name": "rows.py"}})), *options)
        assert message.startswith(f"data set 'rows' ({path}): {said}"), message
        assert message.endswith(f"({path}, line {line})"), message


def test_a_data_set_whose_files_are_not_there_is_not_yet_runnable(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    own(cli, DATA + "open('nowhere')\n", "rows.py")
    sweep = cli.file(edited({"base/data": {"name": "rows.py"}, "base/model": {"name": "vit_tiny", "patch": 7}}))
    cli.accepted(sweep)
    assert "not checked: cell ste,target_bit=2: the data is not there, and for 3x64x64" in capsys.readouterr().out
    assert "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere' (" in cli.refusal(sweep)


def test_labels_outside_the_classes_are_refused_before_a_launch(cli: Cli) -> None:
    own(
        cli,
        "import torch\nfrom harness.data import Raw, Split\n\ndef read() -> Raw:\n"
        "    split = Split(torch.zeros(40, 1, 8, 8).byte(), torch.arange(40) % 4 + 1)\n"
        "    return Raw(split, split, None, tuple('abcd'), 255)\n",
        "off.py",
    )
    for options in ((), ("--dry-run",)):
        message = cli.refusal(cli.file(edited({"base/data": {"name": "off.py"}})), *options)
        assert message.endswith("data set 'off': train: labels must be 0 to 3; found 1 to 4"), message
