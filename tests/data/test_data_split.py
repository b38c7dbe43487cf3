"""Stratified draws and channel statistics."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness import data
from harness.core.errors import UserError
from harness.data import Raw, Split, _raw, _split, digits
from harness.data._split import carve, channel_statistics


def uneven_labels() -> torch.Tensor:
    sizes = torch.tensor([1, 2, 3, 50, 7, 11, 137])
    labels = torch.repeat_interleave(torch.arange(7), sizes)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(9))]


@pytest.mark.parametrize("count", [0, 1, 20, 21, 63, 105, 180])
def test_each_class_gives_its_share_to_within_one(count: int) -> None:
    labels = uneven_labels()
    taken, rest = carve(labels, count, seed=3)
    assert torch.equal(torch.cat([taken, rest]).sort().values, torch.arange(len(labels)))
    exact = labels.bincount() * count / len(labels)
    drawn = labels[taken].bincount(minlength=7)
    assert ((drawn - exact).abs() < 1).all()
    assert (labels[rest].bincount(minlength=7) > 0).all()


def test_the_count_is_met_where_classes_are_large_enough() -> None:
    labels = torch.arange(1000) % 7
    for count in (1, 100, 333, 499):
        assert len(carve(labels, count, seed=0)[0]) == count


def test_draws_follow_the_seed_and_are_ascending() -> None:
    labels = uneven_labels()
    taken, rest = carve(labels, 40, seed=3)
    again, _ = carve(labels, 40, seed=3)
    other, _ = carve(labels, 40, seed=4)
    assert torch.equal(taken, again)
    assert not torch.equal(taken, other)
    assert (taken.diff() > 0).all()
    assert (rest.diff() > 0).all()


@pytest.mark.parametrize(
    ("split", "change", "found"),
    [("train", lambda x: x + 1, "1 to 4"), ("val", lambda x: x - 2, "-2 to 1"), ("test", lambda x: 0 * x + 9, "9")],
)
def test_labels_outside_the_classes_are_refused(
    split: str, change: Callable[[Tensor], Tensor], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {name: Split(torch.zeros(8, 1, 4, 4).byte(), torch.arange(8) % 4) for name in ("train", "val", "test")}
    splits[split] = Split(splits[split].images, change(splits[split].labels))
    for val in [splits["val"]] if split == "val" else [splits["val"], None]:  # None: drawn from train
        raw = Raw(splits["train"], splits["test"], val, tuple("abcd"), max_value=255)
        monkeypatch.setattr(digits, "read", lambda config, raw=raw: raw)
        for read in (data.prepare, lambda config: data.load_dataset(config, 0, "cpu")):
            with pytest.raises(UserError) as refused:
                read(digits.Config(name="digits"))
            said = f"data set 'digits': {split}: labels must be 0 to 3; found {found}"
            assert str(refused.value) == said


def test_every_sample_can_be_drawn() -> None:
    labels = torch.arange(20) % 2
    seen = torch.cat([carve(labels, 4, seed)[0] for seed in range(100)]).bincount(minlength=20)
    assert (seen > 5).all()  # expected 20 times each, deviation 4


def labelled(images: Tensor) -> Split:
    return Split(images, torch.zeros(len(images), dtype=torch.int64))


def test_statistics_equal_those_of_float64_pixels() -> None:
    images = torch.randint(0, 200, (50, 3, 6, 5), dtype=torch.uint8)
    mean, std = channel_statistics(labelled(images), 255)
    values = images.double() / 255
    torch.testing.assert_close(mean.double(), values.mean((0, 2, 3)), rtol=1e-6, atol=0)  # float32 result
    torch.testing.assert_close(std.double(), values.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_statistics_are_the_same_in_parts_and_of_images_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    split = labelled(torch.randint(0, 200, (50, 3, 6, 5), dtype=torch.uint8))
    chosen = torch.randperm(50)[:41]
    whole = channel_statistics(split.take(chosen), 255)
    monkeypatch.setattr(_raw, "PART", 7 * 90)
    for each in (split.take(chosen), split.in_place().take(chosen)):
        assert all(map(torch.equal, channel_statistics(each, 255), whole))


def test_images_elsewhere_are_copied_onto_a_device_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_raw, "PART", 7 * 90)
    split = labelled(torch.randint(0, 200, (50, 3, 6, 5), dtype=torch.uint8))
    chosen = torch.randperm(50)[:41]
    for each in (split.take(chosen), split.in_place().take(chosen)):
        there = each.onto("cpu")
        assert there.rows is None
        assert torch.equal(there.images, split.images[chosen])
        assert torch.equal(there.labels, split.labels[chosen])


def test_counts_of_images_on_disk_are_kept_for_these_samples(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = labelled(torch.randint(0, 200, (50, 3, 6, 5), dtype=torch.uint8)).in_place()
    some, others = (split.take(torch.arange(at, at + 20)) for at in (0, 30))
    counts = _split._counts(some)
    assert counts.sum(1).tolist() == [20 * 30] * 3
    assert torch.equal(_split._kept_counts(some, "digest"), counts)
    with monkeypatch.context() as patch:
        patch.setattr(_split, "_counts", lambda split: pytest.fail("counted again"))
        assert torch.equal(_split._kept_counts(some, "digest"), counts)
    assert torch.equal(_split._kept_counts(others, "digest"), _split._counts(others))
    for path in cache.iterdir():
        path.write_text(path.read_text().replace("[0", "[1", 1))
    assert torch.equal(_split._kept_counts(some, "digest"), counts)


def test_a_channel_that_never_varies_is_not_divided_by_zero() -> None:
    images = torch.full((4, 2, 3, 3), 51, dtype=torch.uint8)
    mean, std = channel_statistics(labelled(images), 255)
    assert mean.tolist() == pytest.approx([0.2, 0.2])
    assert std.tolist() == [1, 1]
