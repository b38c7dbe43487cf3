"""Batches by the native pass: to the last bit those of plain operations, for any rows, channels and threads."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from harness.data.base import Augment, Dataset, Split
from harness.kernels import cpu, dispatch, library

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


def dataset(channels: int, max_value: int, side: int = 32, count: int = 90, **augment: int) -> Dataset:
    generator = torch.Generator().manual_seed(channels)
    shape = (count, channels, side, side + 1)
    images = torch.randint(0, max_value + 1, shape, generator=generator).to(torch.uint8)
    split = Split(images, torch.arange(count))
    mean, std = torch.rand(2, channels, generator=generator)
    changes = Augment.model_validate(augment)
    return Dataset(split, split, split, ("a", "b"), max_value, mean, std + 0.1, changes, "digest")


def plain(data: Dataset, images: Tensor) -> Tensor:
    """torchvision's order: ToTensor, then Normalize."""
    scaled = images.float() / data.max_value
    return (scaled - data.mean[None, :, None, None]) / data.std[None, :, None, None]


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("channels", "max_value"), [(1, 16), (3, 255), (2, 200)])
def test_batches_are_those_of_plain_operations(channels: int, max_value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(channels, max_value)
    rows = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    for indices in (rows[:64], rows[1::2], rows[:0], slice(5, 70), torch.tensor([0, 0, 89])):
        inputs, labels = data.batch(data.train, indices)
        assert torch.equal(inputs, plain(data, data.train.images[indices]))
        assert torch.equal(labels, data.train.labels[indices])
    assert torch.equal(data.train_batch(rows)[0], plain(data, data.train.images[rows]))
    monkeypatch.setattr(cpu, "image_batch", lambda *_: pytest.fail("no contiguous images"))
    turned = data.train.images.transpose(2, 3)
    assert torch.equal(data.normalized(turned), plain(data, turned))
    monkeypatch.setattr(library, "library", lambda: None)
    assert torch.equal(data.batch(data.train, rows)[0], plain(data, data.train.images[rows]))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("side", "augment"),
    [
        (32, {"crop_padding": 4, "flip": True}),
        (32, {"flip": True}),
        (9, {"crop_padding": 1}),
        (5, {"crop_padding": 7, "flip": True}),  # some crops see nothing of their image
        (1, {"crop_padding": 2, "flip": True}),
        (120, {"crop_padding": 3, "flip": True}),  # moved in two parts
        (90, {"crop_padding": 64, "flip": True}),  # edges wider than a mask; a part may be all black
    ],
)
def test_augmented_batches_are_those_of_plain_operations(
    side: int, augment: dict[str, int], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(channels, 255, side, **augment)
    rows = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    for indices in (rows, rows[1::2], rows[:0], torch.tensor([0, 0, 89])):
        found, labels = data.train_batch(indices, torch.Generator().manual_seed(3))
        with monkeypatch.context() as patch:
            patch.setattr(library, "library", lambda: None)
            wanted, _ = data.train_batch(indices, torch.Generator().manual_seed(3))
        assert torch.equal(found, wanted)
        assert found.stride() == wanted.stride()
        assert torch.equal(labels, data.train.labels[indices])
    assert not torch.equal(data.train_batch(rows, torch.Generator())[0], data.train_batch(rows)[0])


def test_rows_too_wide_for_the_pass_are_left_to_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (2, 1, 2, dispatch.WIDEST + 1), dtype=torch.uint8)
    split, one = Split(images, torch.arange(2)), torch.ones(1)
    data = Dataset(split, split, split, ("a", "b"), 255, one, one, Augment(crop_padding=1, flip=True), "digest")
    assert not dispatch.serves_images(images)
    assert dispatch.serves_images(images[..., 1:].contiguous())
    monkeypatch.setattr(cpu, "image_batch", lambda *_: pytest.fail("a row that does not fit"))
    assert data.train_batch(torch.arange(2), torch.Generator())[0].shape == images.shape
    assert torch.equal(data.batch(data.train, torch.arange(2))[0], plain(data, images))


def test_values_that_no_formula_gives_are_looked_up() -> None:
    data, rows = dataset(3, 255), torch.arange(64)
    table = data._table.clone()
    table[:, 77] = 5.0
    data.__dict__["_table"] = table  # as if computing were off at one value
    images = data.train.images[rows].long()
    expected = torch.stack([table[channel][images[:, channel]] for channel in range(3)], dim=1)
    assert torch.equal(data.batch(data.train, rows)[0], expected)


def test_augmented_batches_are_normalized_alike() -> None:
    data = dataset(3, 255, side=8, flip=True)
    rows = torch.arange(40)
    inputs, _ = data.train_batch(rows, torch.Generator().manual_seed(1))
    whole = plain(data, data.train.images[rows])
    flipped = plain(data, data.train.images[rows].flip(3))
    alike = [torch.equal(one, same) or torch.equal(one, other) for one, same, other in zip(inputs, whole, flipped)]
    assert all(alike)
    assert not torch.equal(inputs, whole)


def test_the_native_pass_is_the_one_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    data, called = dataset(3, 255), []
    known = cpu.image_batch
    monkeypatch.setattr(cpu, "image_batch", lambda *given: called.append(given) or known(*given))
    data.batch(data.train, torch.arange(3))
    data.batch(data.train, slice(0, 3))
    data = dataset(3, 255, crop_padding=1)
    data.train_batch(torch.arange(3), torch.Generator())
    assert len(called) == 3


@pytest.mark.parametrize("native_passes", [True, False])
def test_images_of_one_channel_are_said_to_be_channels_last(
    native_passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in either order; strides decide which convolution runs, and so the last bits of all that follows."""
    if not native_passes:
        monkeypatch.setattr(library, "library", lambda: None)
    data = dataset(1, 16, flip=True)
    rows, generator = torch.arange(5), torch.Generator().manual_seed(0)
    for inputs, _ in (
        data.batch(data.train, rows),
        data.batch(data.train, slice(0, 5)),
        data.train_batch(rows),
        data.train_batch(rows, generator),
    ):
        assert inputs.shape == (5, 1, 32, 33)
        assert inputs.stride() == (32 * 33, 1, 33, 1)
    colour = dataset(3, 255)
    assert colour.batch(colour.train, rows)[0].is_contiguous()


@pytest.mark.parametrize("rows", [[0, 90], [-1, 3]])
def test_a_row_that_is_not_there_is_refused(rows: list[int]) -> None:
    data = dataset(1, 16, crop_padding=2)
    with pytest.raises(IndexError, match="90"):
        data.batch(data.train, torch.tensor(rows))
    with pytest.raises(IndexError, match="90"):
        data.train_batch(torch.tensor(rows), torch.Generator())
