"""Images in memory, or mapped from a file of the cache: what is kept where, what comes of it, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.errors import UserError
from harness.data import Dataset, _decoder, _mapped, _residency, digits, load_dataset, prepare, tiny_imagenet
from harness.data._ahead import Ahead, ahead
from harness.data.image_folder import Config
from harness.training.components import component

Settings = dict[str, Any]


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of the first image of each chunk that is decoded, of 4 images each, in this process."""
    started: list[int] = []
    own = _decoder.decode_chunk

    def decode_chunk(work: _decoder.Work, names: list[str], start: int) -> str:
        started.append(start)
        return own(work, names, start)

    class Here:
        def __init__(self, work: _decoder.Work) -> None:
            self.work = work

        def decode(self, names: list[str], start: int) -> str:
            return decode_chunk(self.work, names, start)

        def close(self) -> None:
            pass

    monkeypatch.setattr(_mapped, "CHUNK", 4)
    monkeypatch.setattr(_mapped, "Decoder", Here)
    monkeypatch.setattr(_mapped, "decode_chunk", decode_chunk)
    return started


def pixels_file(cache: Path) -> Path:
    (file,) = cache.glob("*.u8")
    return file


def batches(data: Dataset) -> list[torch.Tensor]:
    """Batches of each kind, each split."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(3)).split(3)
    drawn = [data.train_batch(rows, torch.Generator().manual_seed(1)) for rows in order]
    plain = [data.batch(data.train, order[0]), data.batch(data.val, slice(0, 2))]
    every = [batch for split in (data.val, data.test, data.first(data.test, 3)) for batch in data.batches(split, 2)]
    return [each for batch in (*drawn, *plain, *every) for each in batch] + [data.mean, data.std]


@pytest.mark.parametrize("residency", ["host", "disk"])
@pytest.mark.parametrize("augment", [{}, {"crop_padding": 1, "flip": True}])
def test_batches_are_the_same_wherever_images_are(folder: Path, residency: str, augment: Settings) -> None:
    settings: Settings = {"root": folder, "augment": augment, "train_fraction": 0.8, "val_fraction": 0.25}
    here, there = (load_dataset(Config(**settings, residency=each), 0, "cpu") for each in ("device", residency))
    assert here.train.rows is None
    assert there.train.rows is not None
    assert here.digest == there.digest
    assert (here.input_shape, there.device) == (there.input_shape, here.device)
    assert all(map(torch.equal, batches(here), batches(there)))


def test_batches_that_are_expected_are_gathered_ahead_and_others_now(folder: Path) -> None:
    data = load_dataset(Config(root=folder, residency="disk"), 0, "cpu")
    order = torch.randperm(len(data.train)).split(2)
    wanted = [data.batch(data.train, rows)[0] for rows in order]
    asked: list[list[int]] = []
    own = Ahead(lambda rows: asked.append(rows.tolist()) or data.train.pixels(rows))  # type: ignore[func-returns-value]
    data.__dict__["ahead"] = own
    with own.expecting(order):
        for rows, inputs in zip(order, wanted, strict=True):
            assert torch.equal(data.batch(data.train, rows)[0], inputs)
            assert torch.equal(data.batch(data.train, order[0].clone())[0], wanted[0])  # as calibration does
    assert len(asked) == 2 * len(order)  # each once ahead, and once for the other
    assert torch.equal(data.batch(data.train, order[1])[0], wanted[1])


def test_work_is_done_ahead_in_order_until_it_is_closed() -> None:
    done: list[int] = []
    coming = ahead(lambda item: done.append(item) or item, range(100), depth=2)  # type: ignore[func-returns-value]
    assert [next(coming), next(coming)] == [0, 1]
    coming.close()
    assert done == list(range(len(done)))
    assert 2 <= len(done) <= 4
    failing = ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(failing) == 1
    with pytest.raises(ZeroDivisionError):
        next(failing)


def test_a_set_that_fits_stays_in_memory_without_a_word(folder: Path, cache: Path, recwarn: Any) -> None:
    data = load_dataset(Config(root=folder), 0, "cpu")
    assert data.train.rows is None
    assert not list(cache.glob("*.u8"))
    assert not recwarn.list


def test_a_set_that_does_not_fit_stays_on_disk_and_that_is_said(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 18 * 3 * 8 * 8
    monkeypatch.setattr(_residency, "free_host_memory", lambda: 4 * size - 1)
    monkeypatch.setattr(_residency, "_said", set())
    with pytest.warns(UserWarning, match=r"auto keeps images on disk: they take 0.0 MiB, and .* are free on cpu"):
        data = load_dataset(Config(root=folder), 0, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(_residency, "free_host_memory", lambda: 4 * size - 2)
        assert load_dataset(Config(root=folder), 0, "cpu").train.rows is not None
    assert data.train.rows is not None
    assert pixels_file(cache).stat().st_size == size
    assert load_dataset(Config(root=folder, residency="device"), 0, "cpu").train.rows is None
    monkeypatch.setattr(_residency, "free_host_memory", lambda: 4 * size)
    assert load_dataset(Config(root=folder), 0, "cpu").train.rows is None


def test_free_memory_is_what_linux_and_control_groups_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = _residency.free_host_memory()
    assert 0 < free < 2**62
    for name, text in {"memory.max": "5000", "memory.current": "4000", "other": "max"}.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert _residency._left(tmp_path, "memory.max", "memory.current") == 1000
    assert _residency._left(tmp_path, "other", "memory.current") is None
    monkeypatch.setattr(_residency, "_left_to_groups", lambda: [1000])
    assert _residency.free_host_memory() == 1000


def test_other_sets_have_no_disk_and_an_identity_without_residency(folder: Path) -> None:
    with pytest.raises(UserError, match=r"residency: 'disk': .*legal: auto, device, host"):
        component("data set", {"name": "digits", "residency": "disk"})
    assert "residency" not in Config(root=folder, residency="disk").identity()
    assert load_dataset(digits.Config(residency="host"), 0, "cpu").train.rows is not None


def test_images_are_decoded_once(folder: Path, cache: Path, chunks: list[int]) -> None:
    config = Config(root=folder, residency="disk")
    first = prepare(config)
    assert sorted(chunks) == [0, 4, 8, 12, 16]
    assert torch.equal(prepare(config).train.images, first.train.images)
    assert len(chunks) == 5
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".lock", ".u8"]
    assert prepare(Config(root=folder)).digest == first.digest


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no description"])
def test_a_damaged_file_is_made_again(folder: Path, cache: Path, chunks: list[int], damage: str) -> None:
    config = Config(root=folder, residency="disk")
    digest = prepare(config).digest
    file = pixels_file(cache)
    content = bytearray(file.read_bytes())
    content[700] ^= 1
    if damage == "flipped":
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[:-1])
    else:
        file.with_suffix(".json").write_text("{")
    chunks.clear()
    again = prepare(config)
    assert len(chunks) == 5
    assert again.digest == digest
    assert again.train.images.numpy().tobytes()[700] == content[700] ^ 1


def test_decoding_goes_on_with_what_is_whole(
    folder: Path, cache: Path, chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.data._source.SAMPLED_FILES", 1)  # so that the file below may change
    config, image = Config(root=folder, residency="disk"), folder / "test/eel/0.png"  # in the last chunk
    content, times = image.read_bytes(), (image.stat().st_atime_ns, image.stat().st_mtime_ns)
    image.write_bytes(b"damaged".ljust(len(content)))
    os.utime(image, ns=times)
    with pytest.raises(UserError, match=r"cannot decode .*eel/0\.png"):
        prepare(config)
    assert not list(cache.glob("*.u8"))
    (part,) = cache.glob("*.part")
    pixels = bytearray(part.read_bytes())
    pixels[5 * 3 * 64] ^= 1  # in the second chunk
    part.write_bytes(pixels)
    image.write_bytes(content)
    os.utime(image, ns=times)
    chunks.clear()
    assert prepare(config).digest == prepare(Config(root=folder)).digest
    assert sorted(chunks) == [4, 16]


def test_a_disk_that_is_too_small_is_said_before_anything_is_decoded(
    folder: Path, cache: Path, chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=_mapped.MARGIN + 3000))
    with pytest.raises(
        UserError,
        match=rf"take 0\.0 MiB, besides 64\.0 MiB that stay free, and {cache} has 64\.0 MiB free; set HARNESS_CACHE",
    ):
        prepare(Config(root=folder, residency="disk"))
    assert not chunks


def test_a_cache_folder_that_cannot_be_used_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cache folder, which cannot be used"):
        prepare(Config(root=folder, residency="disk"))


def test_a_file_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    """Linux refuses one's own writable mapping of such a file."""
    rows = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    with open(tmp_path / "large.u8", "wb") as file:
        os.truncate(file.fileno(), rows * 2**20)
    images = _mapped.open_mapped(tmp_path / "large.u8", (rows, 1, 1024, 1024))
    assert images[rows - 1, 0, 0, 0] == 0


def test_processes_decode_as_this_one_does(
    tmp_path: Path, make_tiny_imagenet: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a zip file, by the shorter side."""
    folder = make_tiny_imagenet(tmp_path / "files")
    archive = shutil.make_archive(str(tmp_path / folder.name), "zip", folder.parent, folder.name)
    settings: Settings = {"root": archive, "resize": {"shorter_side": 6, "crop": 4}}
    monkeypatch.setattr(_mapped, "CHUNK", 9)
    monkeypatch.setattr(_mapped, "cores", lambda: 2)
    monkeypatch.setattr(_mapped, "decode_chunk", None)  # of this process
    found = prepare(tiny_imagenet.Config(**settings, residency="disk"))
    assert found.digest == prepare(tiny_imagenet.Config(**settings)).digest
    assert found.train.images.shape == (12, 3, 6, 6)


@pytest.mark.usefixtures("chunks")
def test_unequal_sizes_name_two_files_and_the_key(folder: Path, make_image: Callable[..., np.ndarray]) -> None:
    make_image(folder / "test/eel/0.png", seed=0, height=9, width=12)
    with pytest.raises(UserError, match=rf"data\.resize must be set.*{folder}/train/cat/0\.png is 8x8.*is 12x9"):
        prepare(Config(root=folder, residency="disk"))


@pytest.mark.slow
def test_a_process_that_is_killed_loses_nothing_that_it_logged(folder: Path, cache: Path) -> None:
    code = (
        "import os, sys; from harness.data import _mapped, prepare; from harness.data.image_folder import Config\n"
        "_mapped.CHUNK = 4; _mapped.cores = lambda: 2; left = [2]\n"
        "class Killed:\n"
        "    def __enter__(self): return self.step\n"
        "    def __exit__(self, *_): pass\n"
        "    def step(self):\n"
        "        left[0] -= 1\n"
        "        left[0] or os.kill(os.getpid(), 9)\n"
        "if sys.argv[2:]: _mapped._progress = lambda *_: Killed()\n"
        "print(prepare(Config(root=sys.argv[1], residency='disk')).digest)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    assert subprocess.run([*command, "die"]).returncode == -9
    (log,) = cache.glob("*.part.log")
    assert len(log.read_text().splitlines()) == 2
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == prepare(Config(root=folder)).digest
    known = json.loads(pixels_file(cache).with_suffix(".json").read_text())
    assert len(known["chunks"]) == 5


_WATCHED = """
import sys, threading
import torch
from harness.data import load_dataset
from harness.data._ahead import drawn_ahead
from harness.data.image_folder import Config

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def use(residency, root, **further):
    data = load_dataset(Config(root=root, residency=residency, **further), 0, "cpu")
    batches = torch.randperm(len(data.train)).split(2)
    with drawn_ahead(data, batches):
        for rows in batches:
            data.train_batch(rows, torch.Generator().manual_seed(0))
    for _ in data.batches(data.test, 2):
        pass

def growth(residency):
    before, seen = anonymous(), []
    over = threading.Event()
    def watch():
        while not over.wait(0.01):
            seen.append(anonymous())
    watcher = threading.Thread(target=watch)
    watcher.start()
    use(residency, sys.argv[2], resize={"shorter_side": 256, "crop": 224}, augment=augment)
    over.set()
    watcher.join()
    return max(seen) - before

augment = {"random_resized_crop": {}, "flip": True}
# So that what is imported is not counted.
use("disk", sys.argv[1], resize={"shorter_side": 8, "crop": 6}, augment=augment)
print(growth("disk"), growth("host"))
"""


@pytest.mark.slow
def test_images_on_disk_take_little_memory(folder: Path, tmp_path: Path) -> None:
    """Decoding, statistics, training batches and an evaluation: below a quarter of the set, 94 MB of pixels."""
    pixels = np.random.default_rng(0).bytes(3 * 260 * 256)
    for split, count in (("train", 400), ("test", 80)):
        for index in range(count):
            path = tmp_path / "large" / split / "ab"[index % 2] / f"{index}.ppm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P6 260 256 255\n" + pixels)

    size = 480 * 3 * 256 * 256
    command = [sys.executable, "-c", _WATCHED, str(folder), str(tmp_path / "large")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    on_disk, in_memory = map(int, said.split())
    assert on_disk < size / 4
    assert in_memory > size  # so that the measure sees what it should
