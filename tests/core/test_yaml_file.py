"""YAML as its authors mean it."""

import math
import re
from pathlib import Path

import pytest

from harness.core import yaml_file
from harness.core.errors import UserError

FLOATS = {
    "1e-4": 1e-4,
    "1E-4": 1e-4,
    "1e4": 1e4,
    "1e+4": 1e4,
    "+1e-4": 1e-4,
    "-1e-4": -1e-4,
    "3.e2": 300.0,
    ".5": 0.5,
    ".5e1": 5.0,
    "-.5": -0.5,
    "0.1": 0.1,
    "1.": 1.0,
    "1_000.5": 1000.5,
    ".inf": math.inf,
    "-.inf": -math.inf,
}
TEXTS = ["1e", "e4", "1e-", "1.2.3", "e-4", ".", "-", "1e4x", "0x1p3", "inf", "nan", "1:30.5", "no", "yes", "on", "off"]


@pytest.mark.parametrize(("text", "value"), FLOATS.items())
def test_a_float_is_a_float(text: str, value: float) -> None:
    parsed = yaml_file.parse(f"x: {text}")["x"]
    assert type(parsed) is float
    assert parsed == value


def test_nan_is_a_float() -> None:
    assert math.isnan(yaml_file.parse("x: .nan")["x"])


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_a_text(text: str) -> None:
    assert yaml_file.parse(f"x: {text if text != '-' else chr(34) + '-' + chr(34)}") == {"x": text}


@pytest.mark.parametrize("text", ["1e-4", "true", "3"])
def test_what_is_quoted_is_text(text: str) -> None:
    assert yaml_file.parse(f"x: '{text}'") == {"x": text}


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("-3", -3), ("0", 0), ("0x10", 16), ("1_000", 1000)])
def test_a_whole_number_is_an_int(text: str, value: int) -> None:
    parsed = yaml_file.parse(text)
    assert type(parsed) is int
    assert parsed == value


@pytest.mark.parametrize(("text", "value"), [("1:30", "1:30"), ("12:30:00", "12:30:00"), ("010", 10)])
def test_an_integer_is_decimal(text: str, value: object) -> None:
    assert yaml_file.parse(text) == value


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("TRUE", True), ("null", None)])
def test_booleans_and_null(text: str, value: bool | None) -> None:
    assert yaml_file.parse(text) is value


def test_a_key_that_yaml_1_1_reads_as_a_boolean_is_text() -> None:
    assert yaml_file.parse("on: 1\nno: 2\ny: 3") == {"on": 1, "no": 2, "y": 3}


def test_nested_sections_and_flow_style() -> None:
    text = "a: {low: 1e-4, high: 3e-3, log: true}\nb:\n  - {x: [2, 3]}\n"
    assert yaml_file.parse(text) == {"a": {"low": 1e-4, "high": 3e-3, "log": True}, "b": [{"x": [2, 3]}]}


def test_anchors() -> None:
    assert yaml_file.parse("a: &a {x: 1}\nb: *a\n") == {"a": {"x": 1}, "b": {"x": 1}}


def test_merges() -> None:
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n"
    assert yaml_file.parse(text)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4, "b"),
        ("x:\n- a: 1\n  a: 2\n", 3, "a"),
        ("x: {a: 1, a: 2}\n", 1, "a"),
        ("a: 1\n'a': 2\n", 2, "a"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str, line: int, key: str) -> None:
    with pytest.raises(UserError, match=rf"^line {line}: key '{key}' appears twice in the same section$"):
        yaml_file.parse(text)


def test_equal_keys_of_different_sections_are_fine() -> None:
    assert yaml_file.parse("a: {x: 1}\nb: {x: 2}") == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("text", "shown"), [("3: a", "3"), ("1.5: a", "1.5"), ("true: a", "True"), ("null: a", "None")]
)
def test_a_key_that_is_no_text_is_refused(text: str, shown: str) -> None:
    with pytest.raises(UserError, match=rf"^line 2: key {re.escape(shown)} is not text; quote it$"):
        yaml_file.parse(f"ok: 1\n{text}")


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "a:\n\tb: 1", "a: *nowhere", "a: !!python/object:os.system {}"])
def test_a_mistake_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^line \d: not YAML: "):
        yaml_file.parse(text)


@pytest.mark.parametrize(("text", "kind"), [("- 1", "list"), ("3", "int"), ("", "NoneType"), ("hello", "str")])
def test_a_file_holds_keys_and_values(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"x\.yaml: expected keys and values, found {kind}$"):
        yaml_file.read(tmp_path / "x.yaml")


def test_a_mistake_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/x\.yaml: line 2: "):
        yaml_file.read(tmp_path / "x.yaml")


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yaml", "c.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"x\.yaml: no such file \(there: a\.yaml, b\.yaml\)$"):
        yaml_file.read(tmp_path / "x.yaml")
    with pytest.raises(UserError, match=r"x\.yaml: no such file$"):
        yaml_file.read(tmp_path / "none" / "x.yaml")


def test_a_folder_and_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x80")
    for path in (tmp_path, tmp_path / "x.yaml"):
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: cannot be read: "):
            yaml_file.read(path)
