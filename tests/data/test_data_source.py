"""Folders and zip files name the same files."""

import shutil
from pathlib import Path

from harness.data._source import Archive, Folder


def test_only_files_below_the_folder_are_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("a/2.png", "a/deep/1.JPG", "a/.hidden.png", "a/.cache/3.png", "a/notes.txt", "ab/4.png", "a-b/5.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    archive = Archive(Path(shutil.make_archive(str(root), "zip", tmp_path, "set")), "set")
    for source in (Folder(root), archive):
        assert source.names("a") == ["a/2.png", "a/deep/1.JPG"]
        assert source.names("absent") == []
        assert source.read("a/2.png") == b"a/2.png"
        assert source.show("a/2.png").endswith("set/a/2.png")
