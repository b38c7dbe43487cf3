"""`load_dataset` as a whole, on scikit-learn's digits."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from harness.core.errors import UserError
from harness.data import DataConfig, Dataset, Split, digits, load_dataset, order, prepare
from harness.data._split import channel_statistics
from harness.data.digits import Config

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")),
]


def rows(split: object) -> list[bytes]:
    return [image.numpy().tobytes() for image in split.images]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(Config(), seed=0, device="cpu")


def test_sizes_shapes_and_types(data: Dataset) -> None:
    assert (len(data.train), len(data.val), len(data.test)) == (1200, 200, 397)
    assert data.input_shape == (1, 8, 8)
    assert data.num_classes == 10
    assert data.class_names == tuple("0123456789")
    assert data.max_value == 16
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert int(data.train.images.max()) == 16


def test_splits_are_disjoint_and_together_everything(data: Dataset) -> None:
    from sklearn.datasets import load_digits

    # Some digits were scanned to the same 64 pixels, so multisets are compared.
    everything = sorted(image.astype("uint8").tobytes() for image in load_digits().images)
    assert sorted(rows(data.train) + rows(data.val) + rows(data.test)) == everything


@pytest.mark.parametrize("moved", [False, True], ids=["file", "elsewhere"])
def test_the_table_is_scikit_learns(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    monkeypatch.setattr(digits, "find_spec", (lambda name: None) if moved else digits.find_spec)
    wanted, found = load_digits(), digits._table()
    assert (found[:, :-1] == wanted.data).all()
    assert (found[:, -1] == wanted.target).all()


def test_the_file_is_parsed_once_and_nobody_writes_to_what_others_get(monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(Config())
    wanted = first.train.images.clone()
    monkeypatch.setattr(digits, "_table", lambda: pytest.fail("parsed again"))
    for split in (first.train, first.test):
        split.images.zero_()
        split.labels.zero_()
    again = prepare(Config())
    assert torch.equal(again.train.images, wanted)
    assert len(again.test.labels.unique()) == 10


def test_all_splits_keep_the_classes_shares(data: Dataset) -> None:
    whole = prepare(Config()).train.labels.bincount()
    assert ((data.val.labels.bincount() - whole * 200 / 1400).abs() < 1).all()


def test_the_same_seed_gives_the_same_data(data: Dataset) -> None:
    again = load_dataset(Config(), seed=0, device="cpu")
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(data, split).images, getattr(again, split).images)
        assert torch.equal(getattr(data, split).labels, getattr(again, split).labels)


def test_another_seed_changes_val_but_never_test_nor_digest(data: Dataset) -> None:
    other = load_dataset(Config(), seed=1, device="cpu")
    assert not torch.equal(data.val.images, other.val.images)
    assert torch.equal(data.test.images, other.test.images)
    assert torch.equal(data.test.labels, other.test.labels)
    assert data.digest == other.digest


def test_the_files_of_the_release_decode_to_known_pixels(data: Dataset) -> None:
    assert data.digest == "786316958dd63c92"  # golden: moves only if the test split or the images do


def test_unit_scaling_is_exact(data: Dataset) -> None:
    inputs, labels = data.batch(data.test, slice(0, 5))
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, data.test.images[:5].float() / 16)
    assert torch.equal(labels, data.test.labels[:5])
    assert data.mean.tolist() == [0]
    assert data.std.tolist() == [1]


def test_standardizing_uses_the_train_split_alone() -> None:
    data = load_dataset(Config(normalize="standardize"), seed=0, device="cpu")
    mean, std = channel_statistics(data.train, 16)
    assert torch.equal(data.mean, mean)
    assert torch.equal(data.std, std)
    inputs, _ = data.batch(data.train, slice(None))
    assert inputs.mean().item() == pytest.approx(0, abs=1e-5)  # float32 sums over 76800 values
    assert inputs.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    with_val, _ = channel_statistics(Split(torch.cat([data.train.images, data.val.images]), torch.zeros(1)), 16)
    assert not torch.equal(data.mean, with_val)


def test_train_fraction_keeps_val_and_every_class(data: Dataset) -> None:
    small = load_dataset(Config(train_fraction=0.1), seed=0, device="cpu")
    assert len(small.train) == 120
    assert torch.equal(small.val.images, data.val.images)
    assert set(rows(small.train)) < set(rows(data.train))
    exact = data.train.labels.bincount() * 0.1
    assert ((small.train.labels.bincount() - exact).abs() < 1).all()
    least = load_dataset(Config(train_fraction=0.001), seed=0, device="cpu")
    assert least.train.labels.bincount().tolist() == [1] * 10


def test_batches_follow_indices(data: Dataset) -> None:
    indices = torch.tensor([5, 3, 5])
    inputs, labels = data.train_batch(indices)
    assert torch.equal(inputs, data.train.images[indices].float() / 16)
    assert torch.equal(labels, data.train.labels[indices])


@pytest.mark.parametrize("device", DEVICES)
def test_augmentation_depends_on_the_generator_alone(device: str) -> None:
    config = Config(augment={"crop_padding": 1, "flip": True})
    data = load_dataset(config, seed=0, device=device)
    indices = torch.arange(64, device=device)

    def drawn(seed: int) -> torch.Tensor:
        return data.train_batch(indices, torch.Generator(device).manual_seed(seed))[0]

    first = drawn(3)
    torch.manual_seed(1)
    assert first.device.type == device
    assert torch.equal(first, drawn(3))
    assert not torch.equal(first, drawn(4))
    plain, _ = data.train_batch(indices)
    assert not torch.equal(first, plain)
    assert torch.equal(plain, data.normalized(data.train.images[:64]))


def test_padding_is_black_whatever_the_normalization() -> None:
    config = Config(normalize="standardize", augment={"crop_padding": 7})
    data = load_dataset(config, seed=0, device="cpu")
    inputs, _ = data.train_batch(torch.arange(200), torch.Generator().manual_seed(0))
    black = (torch.zeros(1).div_(16) - data.mean) / data.std
    assert torch.equal(inputs.min(), black[0])


def test_a_generator_is_untouched_where_augmentation_is_off(data: Dataset) -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    data.train_batch(torch.arange(4), generator)
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize("device", DEVICES)
def test_the_order_of_an_epoch(device: str) -> None:
    first = order(50, seed=1, epoch=0, device=device)
    assert first.device.type == device
    assert torch.equal(first.sort().values.cpu(), torch.arange(50))
    assert torch.equal(first.cpu(), order(50, seed=1, epoch=0, device="cpu"))
    assert not torch.equal(first, order(50, seed=1, epoch=1, device=device))
    assert not torch.equal(first, order(50, seed=2, epoch=0, device=device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_holds_the_same_data() -> None:
    config = Config(normalize="standardize")
    here, there = (load_dataset(config, seed=0, device=device) for device in ("cpu", "cuda"))
    assert there.device.type == "cuda"
    assert torch.equal(here.train.images, there.train.images.cpu())
    assert torch.equal(here.mean, there.mean.cpu())
    assert torch.equal(here.std, there.std.cpu())


def test_resize() -> None:
    data = load_dataset(Config(resize=12), seed=0, device="cpu")
    assert data.input_shape == (1, 12, 12)
    assert int(data.train.images.max()) == 16
    original = prepare(Config()).test.images[0, 0].numpy()
    expected = np.array(Image.fromarray(original).resize((12, 12), Image.Resampling.BILINEAR))
    assert np.array_equal(data.test.images[0, 0].numpy(), expected)


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"val_fraction": 0.0001}, "data.val_fraction"), ({"augment": {"crop_padding": 8}}, "crop_padding")],
)
def test_settings_that_do_not_fit_the_data_are_refused(settings: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=key):
        prepare(Config(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"val_fraction": 0.5},
        {"val_fraction": 0.0},
        {"train_fraction": 0.0},
        {"train_fraction": 1.1},
        {"resize": 0},
        {"normalize": "zscore"},
        {"augment": {"crop_padding": -1}},
        {"augment": {"rotate": True}},
        {"name": None},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    for section in (Config, DataConfig):  # digits has defaults, and so bounds, of its own
        with pytest.raises(ValidationError):
            section(**{"name": "digits", **settings})


def test_paths_and_downloads_do_not_name_a_run() -> None:
    assert Config(root="/somewhere", download=True).identity() == Config().identity()
    assert Config().identity()["augment"] == {"crop_padding": 0, "flip": False}


def test_checking_costs_no_torch() -> None:
    code = (
        "import sys; from harness import data; from harness.core import registry;"
        "[registry.load('data set', name).Config() for name in registry.names('data set')];"
        "data.check(registry.load('data set', 'digits').Config());"
        "assert not {'torch', 'torchvision', 'sklearn', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
