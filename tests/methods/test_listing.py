"""`python -m harness.methods`: what it says, and that the methods' page says the same."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pages import METHOD

from harness.core import registry
from harness.core.errors import UserError
from harness.methods.__main__ import entries, main, markdown, read_costs

ROOT = Path(__file__).resolve().parents[2]
PAGE, COSTS = ROOT / "harness/methods/README.md", ROOT / "tests/benchmarks/results/method_cost.json"


def test_every_method_is_listed_with_what_its_file_says() -> None:
    found = {one.name: one for one in entries()}
    assert sorted(found) == registry.names("method")
    assert found["lsq"].what == "Learned step size quantization"
    assert found["lsq"].source.startswith("Esser, McKinstry")
    assert found["lsq"].source.endswith("(arXiv 1902.08153)")
    assert found["lsq"].settings == ("levels=symmetric", "step_learning_rate=1.0")
    assert (found["none"].source, found["none"].settings) == ("", ())


def test_the_page_has_the_table_of_today() -> None:
    assert f"\n{markdown(read_costs(COSTS))}\n" in PAGE.read_text(encoding="utf-8")


#: Methods that are newer than the committed measurement (bench.py --only method_cost).
NOT_MEASURED: set[str] = set()


def test_every_method_that_can_be_was_measured() -> None:
    assert set(registry.names("method")) - set(read_costs(COSTS)) - NOT_MEASURED == {"none"}


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--markdown"]) == 0
    assert capsys.readouterr().out == markdown() + "\n"
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in registry.names("method"))


@pytest.mark.parametrize("columns", ["60", "130"])
def test_a_single_method_has_the_width_of_the_terminal(
    columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = METHOD.replace('"""', '"""' + "A long first sentence about what it does. " * 8 + "\n\n", 1)
    (tmp_path / "noisy.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    assert main(["noisy.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "noisy"
    assert int(columns) - 12 < max(map(len, lines)) <= int(columns)
    assert "kind: noise" in lines
    assert any(line.startswith("settings: ") for line in lines)
    assert not any("lsq" in line or "│" in line for line in lines), "the method alone, in no table"


def measured(folder: Path, rows: Any = None) -> str:
    """A file of benchmarks with two figures of a method and one that is about none."""
    default = [
        {"what": "x", "measured": 1.3149, "detail": {"method": "lsq", "network": "mlp5"}},
        {"what": "y", "measured": 1.1, "detail": {"rounds": 3}},
        {"what": "z", "measured": 2.0, "detail": {"method": "lsq", "network": "resnet18, width 16"}},
    ]
    path = folder / "costs.json"
    path.write_text(json.dumps({"rows": default if rows is None else rows}))
    return str(path)


def test_measured_costs_are_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--markdown", "--cost", measured(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| source | cost of a step |")
    assert {line.count(" | ") for line in lines if "---" not in line} == {7}
    (lsq,) = (line for line in lines if line.startswith("| `lsq` |"))
    assert lsq.endswith("| 1.31x mlp5; 2.00x resnet18, width 16 |")
    (none,) = (line for line in lines if line.startswith("| `none` |"))
    assert none.endswith("|  |")
    assert main(["--cost", measured(tmp_path)]) == 0
    assert "1.31x mlp5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "said"),
    [([], "holds no cost of a method"), (None, "no such file"), ("text", "no table of the benchmarks (TypeError")],
)
def test_a_file_without_costs_is_refused(rows: Any, said: str, tmp_path: Path) -> None:
    path = str(tmp_path / "absent.json") if rows is None else measured(tmp_path, rows)
    with pytest.raises(UserError) as refused:
        main(["--cost", path])
    assert said.lower() in str(refused.value).lower()
    assert path in str(refused.value)


def names_in_code(path: Path) -> set[str]:
    """The words of a file's strings, docstrings not among them, and the methods whose files it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    docstrings = {id(value) for value in statements if isinstance(value, ast.Constant)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    words = {word for node in constants if isinstance(node.value, str) for word in re.findall(r"\w+", node.value)}
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return words | {module.removeprefix("harness.methods.") for module in imported if "harness.methods." in module}


def test_no_code_of_the_harness_names_a_method_but_its_own_file() -> None:
    # What is a word besides: no pruner, the metric and the package's own name.
    methods = set(registry.names("method")) - {"none", "oscillation"}
    for path in sorted((ROOT / "harness").rglob("*.py")):
        named = names_in_code(path) & methods
        own = methods & {path.stem} if path.parent.name == "methods" else set()
        assert named == own, path
