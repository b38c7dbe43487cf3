"""Decoded once: hits, misses, damage, races, and folders that cannot be written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from locked_folder import locked

from harness.data import _cache, _images, prepare
from harness.data.image_folder import Config


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of files each time images are decoded."""
    counts: list[int] = []
    decode = _images.decode

    def counting(source, names, resize):  # type: ignore[no-untyped-def]
        counts.append(len(names))
        return decode(source, names, resize)

    monkeypatch.setattr(_images, "decode", counting)
    return counts


def test_a_second_read_decodes_nothing(folder: Path, cache: Path, decoded: list[int]) -> None:
    first = prepare(Config(root=folder))
    second = prepare(Config(root=folder))
    assert decoded == [18]
    assert len(list(cache.iterdir())) == 1
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.labels, second.test.labels)
    assert (first.class_names, first.max_value, first.val) == (second.class_names, second.max_value, second.val)
    assert first.digest == second.digest


def test_a_given_val_split_is_cached_too(tmp_path: Path, make_folder: Callable[..., Path], decoded: list[int]) -> None:
    root = make_folder(tmp_path / "photos", train=4, val=2, test=2)
    first, second = prepare(Config(root=root)), prepare(Config(root=root))
    assert first.val is not None
    assert second.val is not None
    assert torch.equal(first.val.images, second.val.images)
    assert decoded == [24]


def test_a_copy_elsewhere_with_the_same_times_is_a_hit(folder: Path, decoded: list[int]) -> None:
    prepare(Config(root=folder))
    moved = folder.rename(folder.with_name("moved"))
    prepare(Config(root=moved))
    assert decoded == [18]


def test_changed_files_names_and_sizes_are_misses(
    folder: Path, decoded: list[int], make_image: Callable[..., np.ndarray]
) -> None:
    prepare(Config(root=folder))
    prepare(Config(root=folder, resize=4))
    assert len(decoded) == 2
    os.utime(folder / "train" / "cat" / "1.png", (1, 1))
    prepare(Config(root=folder))
    assert len(decoded) == 3
    make_image(folder / "train" / "cat" / "new.png", seed=3)
    prepare(Config(root=folder))
    (folder / "train" / "cat" / "new.png").unlink()
    (folder / "test" / "dog").rename(folder / "test" / "dot")
    (folder / "train" / "dog").rename(folder / "train" / "dot")
    assert prepare(Config(root=folder)).class_names == ("cat", "dot", "eel")
    assert len(decoded) == 5


def test_equal_names_sizes_and_times_are_not_enough(tmp_path: Path, decoded: list[int]) -> None:
    """Uncompressed images unpacked by a tool that drops times look alike but for their content."""
    for root, value in (("a", 10), ("b", 200)):
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                path = tmp_path / root / split / name / "0.ppm"
                path.parent.mkdir(parents=True)
                path.write_bytes(b"P6 2 2 255\n" + bytes([value] * 12))
                path.with_name("1.ppm").write_bytes(path.read_bytes())
                for file in path.parent.iterdir():
                    os.utime(file, (1, 1))
    digests = {prepare(Config(root=tmp_path / root, val_fraction=0.4)).digest for root in ("a", "b")}
    assert len(digests) == 2
    assert len(decoded) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_a_damaged_cache_file_is_made_again(folder: Path, cache: Path, decoded: list[int], damage: str) -> None:
    digest = prepare(Config(root=folder)).digest
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":  # one pixel, where the file's own structure shows nothing
        content[content.index(prepare(Config(root=folder)).train.images.numpy().tobytes())] ^= 1
    written = {"truncated": content[: len(content) // 2], "flipped": content, "empty": b"", "other": b"hello"}
    path.write_bytes(written[damage])
    assert prepare(Config(root=folder)).digest == digest
    assert decoded == [18, 18]
    prepare(Config(root=folder))
    assert decoded == [18, 18]


def test_a_cache_file_cannot_run_a_program(folder: Path, cache: Path, tmp_path: Path) -> None:
    prepare(Config(root=folder))
    (path,) = cache.iterdir()

    class Program:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"splits": Program()}, path)
    prepare(Config(root=folder))
    assert not (tmp_path / "ran").exists()


def test_an_unwritable_cache_is_said_and_done_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))  # root may write anywhere but here
    for _ in range(2):
        with pytest.warns(UserWarning, match="not cached"):
            assert len(prepare(Config(root=folder)).train) == 12
    assert decoded == [18, 18]


@pytest.mark.parametrize("where", ["x" * 300, "photos/train/cat/0.png"])
def test_an_unusable_cache_is_said_and_done_without(
    where: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / where))
    with pytest.warns(UserWarning, match="not cached"):
        prepare(Config(root=folder))
    assert decoded == [18]


def test_a_cache_folder_that_may_not_be_entered_is_said_and_done_without(folder: Path, cache: Path) -> None:
    raw = prepare(Config(root=folder))
    with locked(cache), pytest.warns(UserWarning, match="not cached, every run decodes them: .*Permission denied"):
        assert _cache.cached("any", "fingerprint", None, lambda: raw) is raw


def test_a_full_disk_leaves_no_half_file(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, file) -> None:  # type: ignore[no-untyped-def]
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="No space left"):
        prepare(Config(root=folder))
    assert list(cache.iterdir()) == []


def test_without_a_home_folder_nothing_is_cached(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    def homeless() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(UserWarning, match="not cached"):
        prepare(Config(root=folder))
    assert decoded == [18]


def test_a_damaged_image_leaves_nothing_in_the_cache(folder: Path, cache: Path) -> None:
    (folder / "train" / "eel" / "3.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"3\.png"):
        prepare(Config(root=folder))
    assert not cache.exists()


@pytest.mark.slow
def test_processes_that_race_leave_one_whole_file(folder: Path, cache: Path) -> None:
    code = (
        "import sys; from harness.data import prepare; from harness.data.image_folder import Config;"
        "import torch; sys.stdin.readline();"
        "print(prepare(Config(root=sys.argv[1])).digest)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = {racer.communicate("go\n", timeout=60)[0].strip() for racer in racers}
    assert digests == {prepare(Config(root=folder)).digest}
    assert [path.suffix for path in cache.iterdir()] == [".pt"]


@pytest.mark.filterwarnings("error")
def test_a_reader_never_sees_a_half_written_file(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    """While one process writes, another finds either nothing or everything."""
    save = torch.save

    def reading_meanwhile(stored: object, file: object) -> None:
        save(stored, file)
        monkeypatch.setattr(torch, "save", save)
        prepare(Config(root=folder))  # the other process: it decodes, and is first to rename

    monkeypatch.setattr(torch, "save", reading_meanwhile)
    prepare(Config(root=folder))
    assert decoded == [18, 18]
    prepare(Config(root=folder))
    assert decoded == [18, 18]
    assert len(list(cache.iterdir())) == 1
