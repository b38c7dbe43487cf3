"""Components from outside that cannot be used are refused before anything starts: one message, exit status 2."""

from pathlib import Path
from unittest.mock import patch

import pytest
from own_components import write_study

from harness.core.errors import UserError
from harness.launch import main

NET, DATA, METHOD = "nets/small_cnn.py", "data/rings.py", "methods/pull.py"
TORCH = "from torch import nn\n"
#: File -> its new content (None: gone), further --set, and what is said.
CASES: dict[str, tuple[dict[str, str | None], list[str], list[str]]] = {
    "no such file": ({}, ["model.name=nets/smal_cnn.py"], ["no such file; did you mean 'small_cnn.py'?"]),
    "no such data": ({DATA: None}, [], ["data set '", "data/rings.py': there is no such file"]),
    "no such method": ({METHOD: None}, [], ["method '", "methods/pull.py': there is no such file"]),
    "no build": ({NET: "x = 1\n"}, [], ["small_cnn.py): defines no build(num_classes, ...)", "small_cnn.py:SmallCNN"]),
    "a class": ({NET: f"{TORCH}class Net(nn.Module): pass\n"}, [], ["name a class or function: small_cnn.py:Net"]),
    "no read": ({DATA: "x = 1\n"}, [], ["data set 'rings' (", "rings.py): defines no read(...)"]),
    "no method": ({METHOD: "x = 1\n"}, [], ["method 'pull' (", "must define one Method subclass, not 0"]),
    "no type": ({NET: "def build(n, width=3): pass\n"}, [], ["parameter 'width' has no type; write width: int"]),
    "kwargs": ({NET: "def build(n, **more: int): pass\n"}, [], ["**more: int says no names: write its settings"]),
    "type": ({NET: "def build(n, width: object = 3): pass\n"}, [], ["'width': no sweep file holds a <class 'object'>"]),
    "taken": ({NET: "def build(n, init: str = 'x'): pass\n"}, [], ["'init': that is a setting of every component"]),
    "setting": ({}, ["model.widht=3"], ["model 'small_cnn': widht: unknown key; did you mean 'width'?"]),
    "of data": ({}, ["data.cuont=3"], ["data set 'rings': cuont: unknown key; did you mean 'count'?"]),
    "value": ({}, ["model.width=wide"], ["model 'small_cnn': width: 'wide': Input should be a valid integer"]),
    "import": ({NET: "import no_such_thing\n"}, [], ["cannot be imported: ModuleNotFoundError: No module"]),
    "its line": ({NET: "import re\nimport no_such_thing\n"}, [], ["nets/small_cnn.py, line 2)"]),
    "syntax": ({NET: "def build(:\n"}, [], ["SyntaxError: ", "nets/small_cnn.py, line 1)"]),
    "of a method": ({METHOD: "1 / 0\n"}, [], ["pull.py cannot be imported: ZeroDivisionError: division by zero ("]),
    "collides": ({"nets/mlp5.py": ""}, ["model.name=nets/mlp5.py"], ["'mlp5' is the name of a model of the harness"]),
    "no name": ({"nets/my-net.py": ""}, ["model.name=nets/my-net.py"], ["'my-net' is no name of a Python module"]),
    "no module": ({}, ["model.name=timn:resnet34"], ["no module of this name", "did you mean 'timm'?", "FILE.py)"]),
    "no attribute": ({}, [f"model.name={NET}:biuld"], ["small_cnn.py has no 'biuld'; did you mean 'build'?"]),
    "same name": ({"b/pull.py": "y = 2\n"}, ["cells.0.methods=b/pull.py"], ["would both be called 'pull'; rename one"]),
    "no deployment": ({}, [f"monitor={{deploy: {METHOD}}}"], ["method 'pull' has no deployment of its own"]),
    "search": ({}, ["cells.1.search={pul.strength: [1.0]}"], ["unknown setting 'pul'; did you mean 'pull'?"]),
}  # fmt: skip


@pytest.mark.parametrize(("files", "replaced", "said"), CASES.values(), ids=CASES)
def test_it_is_refused(files: dict[str, str | None], replaced: list[str], said: list[str], tmp_path: Path) -> None:
    sweep = write_study(tmp_path)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text) if text is not None else path.unlink()
    options = [argument for each in replaced for argument in ("--set", each)]
    with patch("harness.cli.launching._start", return_value=0), pytest.raises(UserError) as refused:
        main([str(sweep), "--root", str(tmp_path / "root"), *options])
    message = str(refused.value)
    assert all(part in message for part in said), message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "root").exists()
