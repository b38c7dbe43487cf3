"""Ranges of rows by percentiles, their grids, and the columns that hold most outliers."""

import pytest
import torch

from harness.quantization import row_ranges
from harness.quantization.row_ranges import OF_INPUTS, outlying_columns, row_values


def test_the_percentile_of_least_error_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(5, 400, generator=torch.Generator().manual_seed(0)) + 1
    rows[0, 0] = 100.0
    low, high = row_ranges.row_ranges(rows, 3, (0.97, 1.0))
    assert float(high[0]) == pytest.approx(float(torch.quantile(rows[0], 0.97)), rel=1e-5) or float(high[0]) == 100
    for row in range(5):
        errors = []
        for percentile in (0.97, 1.0):
            ends = torch.quantile(rows[row], torch.tensor([1 - percentile, percentile]))
            step = (ends[1] - ends[0]) / 7
            rounded = ends[0] + step * ((rows[row] - ends[0]) / step).round().clamp(0, 7)
            errors.append((float((rounded - rows[row]).square().sum()), ends))
        best = min(errors, key=lambda each: each[0])[1]
        torch.testing.assert_close(torch.cat([low[row], high[row]]), best)
    monkeypatch.setattr(row_ranges, "_MOST", 400)
    parts = row_ranges.row_ranges(rows, 3, (0.97, 1.0))
    assert torch.equal(torch.cat(parts), torch.cat([low, high])), "row by row"
    monkeypatch.setattr(row_ranges, "_MOST", 100)
    sampled = row_ranges.row_ranges(rows, 3, OF_INPUTS)
    assert torch.equal(sampled[1], row_ranges.row_ranges(rows[:, ::4], 3, OF_INPUTS)[1])


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_values_of_rows(bits: int) -> None:
    rows = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    rows[0], rows[1] = rows[0].abs(), 0
    values = row_values(rows, bits)
    assert values.shape == (6, 2**bits)
    assert bool((values == 0).any(dim=1).all())
    assert bool((values[:, 1:] >= values[:, :-1]).all())
    assert bool((values[0] >= 0).all()), "asymmetric"
    assert not values[1].any()


def test_columns_with_most_outliers() -> None:
    rows = 0.1 * torch.randn(60, 40, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    rows[:, [7, 21]] = 5 * rows[:, [7, 21]].sign()
    rows[:30, 33] = -9.0
    assert outlying_columns(rows).nonzero()[:, 0].tolist() == [7, 21, 33], "60 / 20 of them"
    assert outlying_columns(rows[:40])[[7, 33]].sum() >= 1
    assert not outlying_columns(rows[:19]).any()
    assert not outlying_columns(torch.zeros(40, 5)).any()
