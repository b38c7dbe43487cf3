"""`python -m harness.conform`: a line for each check, and exit status 1 where one fails."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from commands import run_here
from own_components import edit, write_study
from test_state_and_pickup import NEW_METHOD

from harness.cli.component import kind_and_name
from harness.conformance import training
from harness.conformance.common import Case, CheckFailed
from harness.core import registry
from harness.core.errors import UserError


def test_components_that_do_what_they_must(tmp_path: Path) -> None:
    write_study(tmp_path)
    for name, count in (("data/rings.py", 4), ("classification", 3)):
        ended = run_here("harness.conform", name, cwd=tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ended.stdout.count("ok    ") == count
        assert ended.stdout.endswith(f"{count} of {count} checks passed\n")


@pytest.mark.parametrize("check", [kind_and_name, partial(registry.check, "method")], ids=["any", "a method"])
def test_a_sweep_file_is_told_who_checks_it(check: Callable[[str], object]) -> None:
    with pytest.raises(
        UserError, match=r"'sr/sr\.yml' is no (component|method): .* a file \.py, .*launch sr/sr\.yml --dry-run"
    ):
        check("sr/sr.yml")


BROKEN = {
    "another seed each time": (
        "data/rings.py",
        "torch.Generator().manual_seed(0)",
        "None",
        "it is read the same each time: read again",
    ),
    "labels": (
        "data/rings.py",
        '("disc", "ring", "hole")',
        '("disc", "ring")',
        "labels must be 0 to 1; found 0 to 2",
    ),
    "type": (
        "data/rings.py",
        "everything = Split(pixels, labels)",
        "everything = Split(pixels.float(), labels)",
        "train: images must be uint8 (N, C, H, W); found torch.float32 (45, 1, 12, 12)",
    ),
    "pixels": ("data/rings.py", "max_value=255", "max_value=254", "pixels must be 0 to 254, max_value; found 255"),
    "classes": (
        "data/rings.py",
        '("disc", "ring", "hole")',
        '("disc", "ring", "hole", "none")',
        "train: each of the 4 classes must have images; 3 have some",
    ),
}


@pytest.mark.parametrize(("name", "old", "new", "said"), BROKEN.values(), ids=BROKEN)
def test_a_data_set_that_does_not_is_found(name: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    write_study(tmp_path)
    edit(tmp_path / name, old, new)
    ended = run_here("harness.conform", name, "--set", "count=60", cwd=tmp_path)
    assert ended.returncode == 1
    assert said in ended.stdout


ONE_CAUSE = {
    "float pixels": (
        "data/rings.py",
        "everything = Split(pixels, labels)",
        "everything = Split(pixels.float(), labels)",
        "train: images must be uint8 (N, C, H, W); found torch.float32 (45, 1, 12, 12)",
        2,
    ),
    "no channels": (
        "data/rings.py",
        "everything = Split(pixels, labels)",
        "everything = Split(pixels[:, 0], labels)",
        "train: images must be uint8 (N, C, H, W); found torch.uint8 (45, 12, 12)",
        2,
    ),
    "an array": (
        "data/rings.py",
        "everything = Split(pixels, labels)",
        "everything = Split(pixels, labels.float())",
        "train: labels must be int64 (N,), one an image; found torch.float32 (45,) for 45 images",
        2,
    ),
    "a setting of data": ("data/rings.py", "count: int", "count", "parameter 'count' has no type", 3),
    "a setting of a network": ("nets/small_cnn.py", "width: int", "width", "parameter 'width' has no type", 4),
}


@pytest.mark.parametrize(("name", "old", "new", "said", "left"), ONE_CAUSE.values(), ids=ONE_CAUSE)
def test_one_cause_is_said_once_and_first(name: str, old: str, new: str, said: str, left: int, tmp_path: Path) -> None:
    write_study(tmp_path)
    edit(tmp_path / name, old, new)
    given = ("--set", "count=60") if name == "data/rings.py" and left == 2 else ()
    ended = run_here("harness.conform", name, *given, cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    (failed,) = [line for line in ended.stdout.splitlines() if line.startswith("FAIL")]
    assert said in failed
    assert ended.stdout.count("\nleft  ") == left
    passed = int(left == 2)  # the settings, where it is the data that are illegal
    assert ended.stdout.endswith(f"{passed} of {passed + 1 + left} checks passed\n")


def test_a_penalty_that_is_not_finite_is_named(tmp_path: Path) -> None:
    (tmp_path / "nan.py").write_text(NEW_METHOD.replace("return 0.0", "return float('nan')"))
    name = registry.check("method", str(tmp_path / "nan.py"))
    case = Case(name, "mlp5", folder=tmp_path)
    with pytest.raises(CheckFailed, match="its penalty must be finite; found \\[nan, nan\\]"):
        training.it_trains_to_finite_values(case)
    training.the_whole_state_is_resumed(case)  # it is, whatever the penalty


def test_settings_and_names_are_checked(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "nothing.py").write_text("x = 1\n")
    network = (
        "from torch import nn\nfrom torch.nn import Linear\nclass Block(nn.Module): pass\nclass Net(Block): pass\n"
    )
    (tmp_path / "two.py").write_text(network)
    for arguments, said in (
        (("nothing.py",), "nothing.py: no component: it defines no Method, no Task, no build"),
        (("two.py",), "(a data set); did you mean two.py:Block or two.py:Net?"),
        (("digit",), "unknown component 'digit'; did you mean 'digits'?"),
        (("methods/pull.py", "--set", "strength=1"), "--set is for models and data sets"),
    ):
        ended = run_here("harness.conform", *arguments, cwd=tmp_path)
        assert ended.returncode == 2
        assert said in ended.stderr


@pytest.mark.slow
def test_a_network_and_methods(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "dropped_in.py").write_text(NEW_METHOD)
    # a step counter that no checkpoint holds
    unruly = NEW_METHOD.replace("+ step.index", "+ self.calls()")
    unruly += "\n    def calls(self):\n        self.n = getattr(self, 'n', 0) + 1\n        return self.n\n"
    (tmp_path / "dropped_bad.py").write_text(unruly)
    for name in ("nets/small_cnn.py", "dropped_in.py"):
        ended = run_here("harness.conform", name, cwd=tmp_path)
        assert ended.returncode == 0, ended.stdout
    ended = run_here("harness.conform", "dropped_bad.py", cwd=tmp_path)
    assert ended.returncode == 1
    failed = [line for line in ended.stdout.splitlines() if line.startswith("FAIL")]
    assert failed
    assert all("resumed" in line for line in failed), ended.stdout
