"""Points by layer: how they are written, named, printed and ordered."""

import itertools
import json
from typing import Any

import pytest

from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.core.layer_points import LayerPoints, in_words, point_of
from harness.records import schema
from harness.tasks.classification import ACCURACY

LAYERS = {"*": "w4", "head": "w8", "layer1.*": "float"}
HEAD8 = {"name": "head8", "layers": LAYERS}


def test_the_two_forms() -> None:
    named, bare = LayerPoints.of(HEAD8), LayerPoints.of(LAYERS)
    assert named.plain == {"name": "head8", "layers": {"*": 4, "head": 8, "layer1.*": "float"}}
    assert (str(named), named.key, named.in_row) == ("head8",) * 3
    assert bare.name == "w4-head_w8-layer1_float"
    assert bare.layers == named.layers == (("*", BitWidths(4)), ("head", BitWidths(8)), ("layer1.*", BitWidths()))
    for point in (named, bare):
        assert point_of(point) is point
        assert point_of(json.loads(json.dumps(point.plain))) == point
        assert {point: 1}[point_of(point.plain)] == 1
    assert (named.is_float, named.weights_only) == (False, True)
    assert not LayerPoints.of({"*": 4, "head": "w8a8"}).weights_only
    assert in_words(named) == "at head8"


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ({"*": 4}, "all_w4"),
        ({"blocks.*.fc?": "w4a8", "*": 3}, "blocks_fc_w4a8-w3"),
        ({"layer1": 2}, "layer1_w2"),
        ({f"layer{place}.conv": 4 for place in range(9)}, "layer0_conv_w4-layer1_conv_w4-layer2_con-d5aab0"),
    ],
)
def test_a_readable_name_is_derived(layers: dict[str, Any], name: str) -> None:
    assert LayerPoints.of(layers).name == name
    assert LayerPoints.of({"name": name, "layers": layers}) == LayerPoints.of(layers)


def test_a_name_with_a_dot_has_none_in_metrics() -> None:
    point = {"name": "a.b-1", "layers": {"*": 4}}
    assert schema.score(ACCURACY, "val", point) == "val/acc_a_b-1"
    assert schema.loss("test", HEAD8) == "test/loss_head8"


def test_order_is_before_float_and_after_all_else() -> None:
    ordered = [point_of(each) for each in (2, "w4a4", "w8a8", 8, {"b": 2, "*": 3}, HEAD8, "float")]
    for shuffled in itertools.islice(itertools.permutations(ordered), 0, 5000, 97):
        assert sorted(shuffled) == ordered
    assert ordered[-2] < ordered[-1]
    assert ordered[-2] > ordered[0]
    assert max(ordered[:-1]) == ordered[-2]


NO_BITS = r"no bit-width.*legal: 2 to 8"
REFUSED = {
    "point": ({"*": 4, "head": "w9"}, rf"layers: head: 'w9': {NO_BITS}"),
    "point of a named one": ({"name": "x", "layers": {"head": "w4a"}}, r"did you mean 'w4a\d'\?"),
    "nothing": ({}, r"layers: \{\}: name at least one layer"),
    "no layers": ({"name": "x", "layers": {}}, r"layers: \{\}: name at least one layer"),
    "float": ({"*": "float", "head": "float"}, "every layer would be float, which is evaluated anyway"),
    "key": ({"name": "x", "layer": {"*": 4}}, r"layer: unknown key; did you mean 'layers'\? \(legal: layers, name\)"),
    "number for a layer": ({4: 4}, r"layers: 4 is no name or glob"),
    **{
        f"name {name}": ({"name": name, "layers": {"*": 4}}, said)
        for name, said in [
            ("head 8", r"name: 'head 8' is no name of a point \(legal: up to 60 letters, digits, and _ - \.\)"),
            ("a/b", "'a/b' is no name"),
            ("", "'' is no name"),
            ("x" * 61, "is no name"),
            (8, "8 is no name"),
            ("w4", "'w4' means something else already; choose another, such as mixed-w4"),
            ("W4A8", "'W4A8' means something else"),
            ("w9", "'w9' means something else"),
            ("4", "'4' means something else"),
            ("float", "'float' means something else"),
            ("worst", "'worst' means something else"),
            ("w2_after_bn_reestimation", "means something else"),
        ]
    },
}


@pytest.mark.parametrize(("written", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_none_is_refused(written: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        point_of(written)


def test_rows_there_and_back() -> None:
    for written in (3, "w4a8", "float", HEAD8, LAYERS):
        point = point_of(written)
        row = {"bits": point.in_row, **schema.fields_of(point)}
        assert schema.point(json.loads(json.dumps(row))) == point
    assert schema.fields_of(point_of(HEAD8)) == {"layers": {"*": 4, "head": 8, "layer1.*": "float"}}
