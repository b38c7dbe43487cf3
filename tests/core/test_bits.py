"""Deployment points: how they are written, printed and ordered."""

import itertools

import pytest

from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.core.layer_points import in_words

FORMS = [
    (4, 4, "w4", BitWidths(4)),
    ("w4", 4, "w4", BitWidths(4)),
    ("W4", 4, "w4", BitWidths(4)),
    ("w4a8", "w4a8", "w4a8", BitWidths(4, 8)),
    (" W4A4 ", "w4a4", "w4a4", BitWidths(4, 4)),
    ("w4kv4", "w4kv4", "w4kv4", BitWidths(4, None, 4)),
    ("w4a8kv2", "w4a8kv2", "w4a8kv2", BitWidths(4, 8, 2)),
    ("float", "float", "float", BitWidths()),
    (BitWidths(3, 3), "w3a3", "w3a3", BitWidths(3, 3)),
]


@pytest.mark.parametrize(("written", "plain", "key", "point"), FORMS)
def test_forms(written: object, plain: object, key: str, point: BitWidths) -> None:
    assert BitWidths.of(written) == point
    assert (point.plain, point.key) == (plain, key)
    assert type(point.plain) is type(plain)
    assert BitWidths.of(point.plain) == BitWidths.of(point.key) == point


@pytest.mark.parametrize(
    "written", [1, 9, True, 4.0, "4", None, "a4", "w4a", "w4a1", "w1", "w9a8", "w4a4a4", "w4kv", "a4w4", ""]
)
def test_anything_else_is_refused_with_the_legal_forms(written: object) -> None:
    with pytest.raises(UserError, match=r"no bit-width.*\(legal: 2 to 8 or w2 to w8 .* w4a8 .* float\)"):
        BitWidths.of(written)


def test_the_nearest_spelling_is_offered() -> None:
    with pytest.raises(UserError, match=r"'w4a': no bit-width; did you mean 'w4a\d'\?"):
        BitWidths.of("w4a")


@pytest.mark.parametrize("parts", [(None, 4), (None, None, 4), (1,), (4, 9), (4, True), (4.0,)])
def test_impossible_parts_are_refused(parts: tuple[object, ...]) -> None:
    with pytest.raises(UserError):
        BitWidths(*parts)  # type: ignore[arg-type]


def test_order_is_by_weights_then_activations_with_float_last() -> None:
    ordered = ["w2a8", 2, "w4a4", "w4a8kv4", "w4a8", "w4kv4", 4, "w8a8", 8, "float"]
    points = [BitWidths.of(each) for each in ordered]
    for shuffled in itertools.islice(itertools.permutations(points), 0, 5000, 97):
        assert [each.plain for each in sorted(shuffled)] == ordered


def test_points_in_words() -> None:
    assert [in_words(each) for each in (4, "w4a8", "float")] == ["at 4 bits", "at w4a8", "in float"]
