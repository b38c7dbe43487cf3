"""`python -m harness.methods`: what it says, and that the README says the same."""

from pathlib import Path

import pytest

from harness import registry
from harness.methods.__main__ import entries, main, markdown

README = Path(__file__).resolve().parents[2] / "README.md"


def test_every_method_is_listed_with_what_its_file_says() -> None:
    found = {one.name: one for one in entries()}
    assert sorted(found) == registry.names("method")
    assert found["lsq"].what == "Learned step size quantization"
    assert found["lsq"].source.startswith("Esser, McKinstry")
    assert found["lsq"].source.endswith("(arXiv 1902.08153)")
    assert found["lsq"].knobs == ("levels=symmetric", "step_learning_rate=1.0")
    assert (found["none"].source, found["none"].knobs) == ("", ())


def test_the_readme_has_the_table_of_today() -> None:
    assert f"\n{markdown()}\n" in README.read_text(encoding="utf-8")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--markdown"]) == 0
    assert capsys.readouterr().out == markdown() + "\n"
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in registry.names("method"))
