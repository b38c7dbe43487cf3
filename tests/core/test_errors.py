"""Messages of errors can be printed and stored, whatever the bytes of a path are."""

import os

import pytest

from harness.core.errors import UserError, printable


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
