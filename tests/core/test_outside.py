"""Components from outside: what names them, by what a run is named, and which copy is loaded."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import scratch_task
from own_components import SHORT, edit, forget, write_study

from harness.core import outside, registry
from harness.core.errors import UserError
from harness.sweep.cells import expand
from harness.sweep.config import plain, read_sweep
from harness.training.config import complete, component
from harness.training.run import RunContext, run


def run_ids(sweep: Path) -> dict[str, str]:
    """The id of each cell's first final run, with something for what is searched."""
    cells = expand(read_sweep(sweep, SHORT), checked=False)
    return {cell.id: cell.config(dict.fromkeys(cell.search, 1.0), 0, "final").run_id() for cell in cells}


def test_a_run_is_named_by_what_is_in_the_files_and_not_by_where_they_are(tmp_path: Path) -> None:
    here = write_study(tmp_path / "here")
    there = write_study(tmp_path / "there/below")
    first = run_ids(here)
    assert set(first) == {"none,watch_bit=3", "pull,target_bit=3"}
    assert run_ids(there) == first
    edit(tmp_path / "here/methods/pull.py", ".square()", ".abs()")
    pulled = run_ids(here)
    assert pulled["none,watch_bit=3"] == first["none,watch_bit=3"], "it has nothing to do with that file"
    assert pulled["pull,target_bit=3"] != first["pull,target_bit=3"]
    edit(tmp_path / "here/nets/small_cnn.py", "nn.ReLU()", "nn.GELU()")
    assert not set(run_ids(here).values()) & set(pulled.values())
    assert str(tmp_path) not in str(plain(read_sweep(here)))


def test_the_kept_copy_is_what_a_later_process_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, kept = write_study(tmp_path), tmp_path / "elsewhere/components"
    content = plain(read_sweep(sweep, SHORT))
    edit(tmp_path / "nets/small_cnn.py", "nn.ReLU()", "nn.Tanh()")
    outside.keep(kept, content)
    assert sorted(path.name.partition("@")[0] for path in kept.iterdir()) == ["pull", "rings", "small_cnn"]
    forget(monkeypatch)
    name = content["base"]["model"]["name"]
    with pytest.raises(UserError, match=r"its file small_cnn@\w{12}.py is not kept here \(looked in: nowhere\)"):
        outside.get("model", name)
    outside.look_in(kept)
    assert b"ReLU" in outside.get("model", name).source
    edit(kept / f"{name}.py", "nn.ReLU()", "nn.Tanh()")
    forget(monkeypatch)
    outside.look_in(kept)
    with pytest.raises(UserError, match="was changed: its content is that of small_cnn@"):
        outside.get("model", name)


def test_a_record_says_what_was_run(tmp_path: Path) -> None:
    content = plain(read_sweep(write_study(tmp_path)))
    name = content["base"]["model"]["name"]
    found = outside.described(content)
    assert [each["file"] for each in found.values()] == ["rings.py", "small_cnn.py", "pull.py"]
    assert found[name]["sha256"][:12] == name.partition("@")[2]  # type: ignore[index]


BLOCKS = (
    "from torch import nn\n\ndef block(a, b):\n    import sizes\n    return nn.Conv2d(a, b, sizes.SIDE, padding=1)\n"
)


@pytest.fixture
def with_blocks(tmp_path: Path) -> Path:
    """The study, whose network imports a file beside it, which imports another one when it is called."""
    sweep = write_study(tmp_path)
    edit(tmp_path / "nets/small_cnn.py", "from torch import nn\n", "from torch import nn\nfrom blocks import block\n")
    edit(tmp_path / "nets/small_cnn.py", "nn.Conv2d(channels, width, 3, padding=1)", "block(channels, width)")
    (tmp_path / "nets/blocks.py").write_text(BLOCKS)
    (tmp_path / "nets/sizes.py").write_text("SIDE = 3\n")
    return sweep


def test_files_beside_it_that_it_imports_are_kept_with_it(
    with_blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets/random.py").write_text("no Python")  # Python's own comes first, and nothing imports it
    first = run_ids(with_blocks)
    content = plain(read_sweep(with_blocks, SHORT))
    name = content["base"]["model"]["name"]
    assert outside.described([name])[name]["beside"] == "blocks.py, sizes.py"
    outside.keep(tmp_path / "kept", content["base"]["model"])
    stem = name.partition(":")[0]
    kept = [f"{stem}.blocks.py", f"{stem}.py", f"{stem}.sizes.py"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == kept
    for path in (tmp_path / "nets").iterdir():
        path.unlink()
    forget(monkeypatch)
    outside.look_in(tmp_path / "kept")
    network = registry.load("model", name).build(3, (1, 12, 12))
    assert network[0].kernel_size == (3, 3)
    assert "blocks" not in sys.modules
    edit(tmp_path / "kept" / kept[2], "3", "5")
    forget(monkeypatch)
    outside.look_in(tmp_path / "kept")
    with pytest.raises(UserError, match="was changed"):
        outside.get("model", name)
    write_study(tmp_path)
    assert not set(run_ids(with_blocks).values()) & set(first.values())


def test_an_edited_file_beside_it_is_another_run(with_blocks: Path, tmp_path: Path) -> None:
    first = run_ids(with_blocks)
    (tmp_path / "nets/others.py").write_text("SIDE = 3\n")
    assert run_ids(with_blocks) == first, "nothing imports that file"
    edit(tmp_path / "nets/sizes.py", "3", "5")
    assert not set(run_ids(with_blocks).values()) & set(first.values())


def test_an_import_with_a_dot_is_refused(with_blocks: Path, tmp_path: Path) -> None:
    edit(tmp_path / "nets/blocks.py", "import sizes", "from .sizes import SIDE")
    with pytest.raises(
        UserError, match=r"imports with a dot \(from .sizes import \.\.\.\), for which it would have to be"
    ):
        read_sweep(with_blocks)


def test_a_folder_beside_it_is_refused(with_blocks: Path, tmp_path: Path) -> None:
    (tmp_path / "nets/blocks.py").unlink()
    (tmp_path / "nets/blocks").mkdir()
    with pytest.raises(UserError, match="imports the folder 'blocks' beside it; files are kept with a sweep"):
        read_sweep(with_blocks)


NETS = '''
"""Networks."""
from typing import Annotated, Literal

from pydantic import Field
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, width: Annotated[int, Field(ge=1)] = 4, act: Literal["relu", "tanh"] = "relu"):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))

    def forward(self, images):
        return self.layers(images)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`my_nets.nets`, which can be imported."""
    folder = tmp_path / "installed/my_nets"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(folder.parent)
    for name in ("my_nets", "my_nets.nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    outside._loaded.cache_clear()
    return folder / "nets.py"


def test_a_class_of_a_package_has_its_signature_as_settings(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = component("model", {"name": "my_nets.nets:Net", "width": 8})
    assert registry.shown(config.name) == "Net"
    assert (config.width, config.act, config.init) == (8, "relu", "scratch")
    assert outside.described([config.name])[config.name]["module"] == "my_nets.nets"
    for wrong, said in (
        ({"widht": 8}, "model 'Net': widht: unknown key; did you mean 'width'?"),
        ({"width": 0}, "model 'Net': width: 0: Input should be greater than or equal to 1"),
        ({"act": "rleu"}, "model 'Net': act: 'rleu': unknown value; did you mean 'relu'? (legal: relu, tanh)"),
    ):
        with pytest.raises(UserError) as refused:
            component("model", {"name": "my_nets.nets:Net", **wrong})
        assert said in str(refused.value)
    package.write_text(NETS + "# newer\n")
    forget(monkeypatch)
    with pytest.raises(UserError, match=r"module my_nets.nets is another one here \(my_nets.nets:Net@"):
        component("model", {"name": config.name})


def test_a_package_may_register_a_name(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("model.wide", "my_nets.nets:Net", outside.GROUP)
    monkeypatch.setattr(outside.metadata, "entry_points", lambda group: [entry])
    outside.registered.cache_clear()
    try:
        assert registry.check("model", "wide").startswith("my_nets.nets:Net@")
        assert "wide" in registry.known("model")
        assert "wide" not in registry.known("method")
        with pytest.raises(UserError, match="unknown model 'wid'; did you mean 'wide'"):
            registry.check("model", "wid")
    finally:
        outside.registered.cache_clear()


def test_a_task_a_data_set_and_a_model_of_another_kind(tmp_path: Path) -> None:
    scratch_task.write(tmp_path)
    raw: dict[str, Any] = {**scratch_task.RAW, "target_bit": 3}
    raw |= {"data": {"name": str(tmp_path / "data/diabetes.py")}, "model": {"name": str(tmp_path / "models/rows.py")}}
    with pytest.raises(UserError, match=r"unknown task 'regression'.*name its file, too: base.tasks"):
        complete(raw)
    config = complete({**raw, "tasks": [str(tmp_path / "tasks/regression.py")]})
    assert config.task.name == "regression"
    record = run(config, tmp_path / "run", RunContext())
    assert {row["metric"] for row in record["rows"]} == {"mae"}
    assert [name.partition("@")[0] for name in record["provenance"]["components"]] == ["rows", "diabetes", "regression"]
    edit(tmp_path / "tasks/regression.py", "digits=2", "digits=3")
    assert complete({**raw, "tasks": [str(tmp_path / "tasks/regression.py")]}).run_id() != config.run_id()
