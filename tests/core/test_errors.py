"""Messages of errors can be printed and stored, whatever the bytes of a path are."""

import os

import pytest

from harness.core.errors import UserError, printable, unknown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        (os.fsdecode("café.png".encode()), "café.png"),
        ("\ud83d alone", r"\ud83d alone"),
        (os.fsdecode(b"\xff\xfe/\xc3"), r"\xff\xfe/\xc3"),
    ],
)
def test_bytes_that_are_not_utf8_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(UserError(f"no file {text}")) == f"no file {shown}"
    shown.encode()


def test_of_many_names_that_are_to_be_had_elsewhere_the_nearest_are_listed() -> None:
    names = [f"net on digits: {method}@{bits}" for method in ("lsq", "ste", "kure", "symreg") for bits in range(2, 9)]
    told = str(unknown("series", "net on digits: lsk@2", names, elsewhere="results.names"))
    listed = told.partition("(legal: ")[2].split(", ")
    assert listed[0] == "net on digits: lsq@2"
    assert len(listed) == 11
    assert listed[10] == "and 18 more; results.names has all)"
    told = str(unknown("series", "symreg", names, "net on digits: symreg@8", elsewhere="results.names"))
    assert "(legal: net on digits: symreg@8, " in told
    assert told.count("net on digits: symreg@8") == 2
    assert "more" not in str(unknown("series", "lsq", names[:10], elsewhere="results.names"))
    assert "more" not in str(unknown("method", "lsq", names))
