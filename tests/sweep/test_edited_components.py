"""Launching after an edit of a component is refused by the file that was edited, not by the key that names it."""

from pathlib import Path

import pytest
from own_components import SHORT, edit, write_study

from harness.core.errors import UserError
from harness.sweep.changes import check_change
from harness.sweep.config import read_sweep
from harness.sweep.queue import open_sweep

SCORE = "def balance(metrics):\n    return metrics['val/acc_w2']\n"
EDITS = {
    "network": ("nets/small_cnn.py", "nn.ReLU()", "nn.GELU()"),
    "data set": ("data/rings.py", "0.3", "0.4"),
    "method": ("methods/pull.py", "10.0", "11.0"),
    "objective": ("score.py", "w2", "w3"),
}


@pytest.fixture
def launched(tmp_path: Path) -> Path:
    """The study with an objective and a file beside its network, and the sweep that was launched."""
    write_study(tmp_path)
    edit(tmp_path / "nets/small_cnn.py", "from torch import nn\n", "from torch import nn\nimport sizes\n")
    (tmp_path / "nets/sizes.py").write_text("SIDE = 3\n")
    (tmp_path / "score.py").write_text(SCORE)
    edit(tmp_path / "rings.yaml", "tune:", "objective: {name: score.py:balance, direction: maximize}\ntune:")
    return open_sweep(read_sweep(tmp_path / "rings.yaml", SHORT), tmp_path / "runs").folder


def refusal(folder: Path, *overrides: str) -> str:
    """What the sweep file is refused for as it is now."""
    with pytest.raises(UserError) as refused:
        check_change(folder, read_sweep(folder.parents[1] / "rings.yaml", [*SHORT, *overrides]))
    return str(refused.value)


@pytest.mark.parametrize(("file", "old", "new"), EDITS.values(), ids=EDITS)
def test_the_edited_file_is_named(launched: Path, tmp_path: Path, file: str, old: str, new: str) -> None:
    edit(tmp_path / file, old, new)
    said = refusal(launched)
    assert said.startswith(f"{launched}: {tmp_path / file} was edited since the launch. Give the edited sweep a name")
    assert said.endswith(f"or put back what was launched, which {launched / 'components'} keeps")


def test_the_file_beside_it_is_named_and_other_changes_too(launched: Path, tmp_path: Path) -> None:
    edit(tmp_path / "nets/sizes.py", "3", "5")
    said = refusal(launched, "train.epochs=7")
    beside = f"sizes.py, which {tmp_path / 'nets/small_cnn.py'} imports, was edited since the launch"
    assert f"{launched}: {beside}; it also differs in: base.train.epochs. Give" in said


def test_a_sweep_that_also_grew_names_all_edited_files_once(launched: Path, tmp_path: Path) -> None:
    for file in ("network", "method"):
        edit(tmp_path / EDITS[file][0], *EDITS[file][1:])
    said = refusal(launched, "tune.trials=4")
    files = [tmp_path / EDITS[file][0] for file in ("network", "method")]
    assert f"{launched}: {files[0]} and {files[1]} were edited since the launch. Give" in said
