"""CIFAR-10 from small files in the official format."""

import pickle
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from harness.core.errors import UserError
from harness.data import check, load_dataset, prepare
from harness.data.cifar10 import Config

Writer = Callable[..., Path]
unofficial = pytest.mark.filterwarnings("ignore:.*not the official CIFAR-10")


@unofficial
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pixels_and_labels(tmp_path: Path, make_cifar10: Writer, protocol: int) -> None:
    folder = make_cifar10(tmp_path, protocol=protocol)
    raw = prepare(Config(root=tmp_path))
    assert raw.train.images.shape == (100, 3, 32, 32)
    assert raw.test.images.shape == (20, 3, 32, 32)
    assert raw.class_names == tuple(f"class{i}" for i in range(10))
    second = pickle.loads((folder / "data_batch_2").read_bytes())
    assert torch.equal(raw.train.images[20:40].flatten(1), torch.from_numpy(second["data"]))
    assert raw.train.labels.tolist() == [index % 10 for index in range(100)]
    assert raw.train.labels.dtype == torch.int64


@unofficial
def test_agrees_with_torchvision(tmp_path: Path, make_cifar10: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar10(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    theirs = CIFAR10(str(tmp_path), train=True)
    ours = prepare(Config(root=tmp_path)).train
    assert torch.equal(ours.images.permute(0, 2, 3, 1), torch.from_numpy(theirs.data))
    assert ours.labels.tolist() == theirs.targets


@unofficial
def test_root_may_be_the_folder_itself(tmp_path: Path, make_cifar10: Writer) -> None:
    folder = make_cifar10(tmp_path)
    assert prepare(Config(root=folder)).digest == prepare(Config(root=tmp_path)).digest


@unofficial
def test_loads_as_a_data_set_and_resizes(tmp_path: Path, make_cifar10: Writer) -> None:
    make_cifar10(tmp_path)
    data = load_dataset(Config(root=tmp_path, resize=16), seed=0, device="cpu")
    assert data.input_shape == (3, 16, 16)
    assert (len(data.train), len(data.val), len(data.test)) == (90, 10, 20)
    assert data.val.labels.bincount().tolist() == [1] * 10


def test_files_that_are_not_the_official_ones_are_said_so(tmp_path: Path, make_cifar10: Writer) -> None:
    make_cifar10(tmp_path)
    with pytest.warns(UserWarning, match=r"not the official CIFAR-10 \(data_batch_1, .*batches\.meta differ"):
        prepare(Config(root=tmp_path))


def test_missing_files_say_what_to_put_where(tmp_path: Path, make_cifar10: Writer) -> None:
    for config in (Config(), Config(root=tmp_path / "absent")):
        with pytest.raises(UserError, match=r"data\.root.*cifar-10-batches-py.*download: true"):
            check(config)
    with pytest.raises(UserError, match="data_batch_1, data_batch_2") as refused:
        check(Config(root=tmp_path))
    assert str(tmp_path / "cifar-10-batches-py" / "data_batch_1") in str(refused.value)
    assert "data.download: true" in str(refused.value)
    (make_cifar10(tmp_path) / "data_batch_4").unlink()
    with pytest.raises(UserError, match=r"cifar-10-batches-py lacks data_batch_4:"):
        prepare(Config(root=tmp_path))


def test_nothing_is_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        pytest.fail("a download was started")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    with pytest.raises(UserError):
        prepare(Config(root=tmp_path))


def test_a_failed_download_names_the_key_and_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    config = Config(root=tmp_path, download=True)
    check(config)
    with pytest.raises(UserError, match=r"data\.download: .*no network") as refused:
        prepare(config)
    assert str(tmp_path) in str(refused.value)
    with pytest.raises(UserError, match=r"data\.root is not set"):
        check(Config(download=True))


@unofficial
def test_a_download_is_read(tmp_path: Path, make_cifar10: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fetched:
        def __init__(self, root: str, download: bool) -> None:
            make_cifar10(Path(root))

        train_list, test_list, meta = CIFAR10.train_list, CIFAR10.test_list, CIFAR10.meta

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fetched)
    assert len(prepare(Config(root=tmp_path / "new", download=True)).train) == 100


class Program:
    """Pickles to a call of `touch`: what a hostile file would hold."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@unofficial
def test_a_pickle_that_runs_a_program_is_refused(tmp_path: Path, make_cifar10: Writer) -> None:
    folder = make_cifar10(tmp_path)
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": Program(tmp_path / "ran"), "labels": []}))
    with pytest.raises(UserError, match="no CIFAR file needs") as refused:
        prepare(Config(root=tmp_path))
    assert str(folder / "data_batch_3") in str(refused.value)
    assert not (tmp_path / "ran").exists()


GOOD = np.zeros((2, 3072), dtype=np.uint8)


@unofficial
@pytest.mark.parametrize(
    "content",
    [
        ["no dictionary"],
        {},
        {"data": GOOD, "labels": [0]},
        {"data": GOOD.astype(np.float32), "labels": [0, 1]},
        {"data": GOOD[:, :100], "labels": [0, 1]},
        {"data": GOOD, "labels": [0, 10]},
        {"data": GOOD, "labels": [-1, 0]},
        {"data": GOOD[:0], "labels": []},
        {"data": GOOD, "labels": ["a", "b"]},
    ],
)
def test_a_file_with_other_content_is_named(tmp_path: Path, make_cifar10: Writer, content: object) -> None:
    folder = make_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as refused:
        prepare(Config(root=tmp_path))
    assert str(folder / "test_batch") in str(refused.value)


@unofficial
@pytest.mark.parametrize("name", ["data_batch_5", "batches.meta"])
def test_a_truncated_file_is_named(tmp_path: Path, make_cifar10: Writer, name: str) -> None:
    folder = make_cifar10(tmp_path)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=f"cannot read {path}"):
        prepare(Config(root=tmp_path))
