"""outcomes.json of a final run: which samples of the test split each deployed network got right.

It allows to compare two methods sample by sample within a seed. One entry for each row of the record's test split, with
the fields that tell the row from others, `n`, and `right`: one bit per sample in the order of the split, the first one
highest, filled up with zeros to whole bytes, in hexadecimal. Tasks whose outcomes are not right or wrong have no such
file.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.records import schema
from harness.records.files import read_json, write_json
from harness.records.run_directory import RunDirectory

#: What an entry has of its row, beside the fields of its point.
_OF_ROW = ("split", "deploy", "scale", "bits")


def entry(row: Mapping[str, Any], right: Sequence[bool]) -> dict[str, Any]:
    """The entry of a row. right: one value for each of its samples."""
    size = -(-len(right) // 8)
    bits = "".join("1" if each else "0" for each in right).ljust(8 * size, "0")
    packed = int(bits or "0", 2).to_bytes(size, "big").hex()
    point = schema.fields_of(schema.point(row))
    return {**{name: row[name] for name in _OF_ROW}, **point, "n": len(right), "right": packed}


def right_of(entry: Mapping[str, Any]) -> list[bool]:
    """One value for each sample of an entry."""
    packed = bytes.fromhex(entry["right"])
    bits = format(int.from_bytes(packed, "big"), f"0{8 * len(packed)}b")
    return [bit == "1" for bit in bits[: entry["n"]]]


def add(files: RunDirectory, entries: Iterable[Mapping[str, Any]]) -> None:
    """Add entries to a run's file; one that is there is replaced. Without any, nothing is written."""
    there = {schema.row_key(each): each for each in read_json(files.outcomes) or ()}
    found = {**there, **{schema.row_key(each): each for each in entries}}
    if found != there:
        write_json(files.outcomes, list(found.values()))
