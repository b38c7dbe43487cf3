"""Colour, marker and dash of each method: its own in every figure, whichever other methods are there."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple
from zlib import crc32

import seaborn as sns
from matplotlib.colors import to_rgb

from harness.core.bits import FLOAT

# Seaborn's colour-blind palette, light tones late. Its grey is left out (float training is dark grey); its
# yellow and pink, too faint for a line on white, are darkened; a dark purple makes ten.
_COLOURS: list[Any] = [sns.color_palette("colorblind")[i] for i in (0, 1, 2, 4, 3, 5, 9)]
_COLOURS += ["#b3a800", "#49006a", "#c2185b"]
_MARKERS = "os^DvPX<>p"
_DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (7, 2))]
_DASHES += [(0, (2.5, 1.2)), (0, (4, 1, 1, 1, 1, 1)), (0, (8, 1.5, 2, 1.5))]
#: Of further ways to deploy a method: their tints differ little, and none is so faint that it is lost on white.
_FURTHER_DASHES: list[Any] = [(0, (1, 1)), (0, (3, 1)), (0, (1, 1, 4, 1)), (0, (6, 1, 1, 1)), (0, (1, 3))]
_FAINTEST = 0.35
#: As many pairs of a colour and a marker differ.
_PLACES = len(_COLOURS) * len(_MARKERS)
#: The place of each method and stack of the harness: the first ten have colours of their own. Only ever append.
_FIXED = (
    *("ste", "oscillation", "lsq", "lsq+dampening", "lsq+freezing", "kure", "lcq", "statsq", "aoq", "any_precision"),
    *("statsq+cga", "qkr+ste", "qkr+statsq+cga", "symreg", "satnl", "gradient_l1", "cga", "dampening", "freezing"),
    *("qkr", "bn_reestimation", "lsq+oscillation", "ste+oscillation", "none"),
)
#: The end of a name that tells in which way a method was deployed.
_WAY = re.compile(r"(, \w+)+$")


class Mark(NamedTuple):
    """How a method is drawn, the same in every panel and figure."""

    color: Any
    marker: str
    linestyle: Any


def marks_of(methods: Iterable[str]) -> dict[str, Mark]:
    """A mark for each method; a hundred differ.

    Methods of the harness have places of their own. The place of any other comes from its name, and is the next free
    one only where two such names fall on the same place.
    Further ways to deploy one method (`ste, rtn` and `ste, bn_reestimation`) are lighter, with short dashes.
    """
    ways: dict[str, list[str]] = {}
    for method in dict.fromkeys(methods):
        ways.setdefault(_WAY.sub("", method), []).append(method)
    own = {FLOAT: Mark("0.25", "h", (0, (1, 1)))}
    own |= {method: _mark(place) for method, place in _places(set(ways) - {FLOAT}).items()}
    further = {method: [name for name in names if name != method] for method, names in ways.items()}
    return own | {name: _lighter(own[method], i) for method, names in further.items() for i, name in enumerate(names)}


def colours_of(names: Iterable[str]) -> dict[str, Any]:
    """Colours for what is no method, in the order given; they come again after ten."""
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


def marks_in_order(names: Iterable[str]) -> dict[str, Mark]:
    """Marks for what is no method, in the order given; the first ten differ in colour, a hundred in some way."""
    return {name: _mark(i % _PLACES) for i, name in enumerate(dict.fromkeys(names))}


def _places(methods: set[str]) -> dict[str, int]:
    places = {method: _FIXED.index(method) for method in methods if method in _FIXED}
    free = list(range(len(_FIXED), _PLACES))
    free += [place for place in range(len(_FIXED)) if place not in places.values()]  # where there are very many
    for method in sorted(methods - places.keys()):
        first = crc32(method.encode()) % (_PLACES - len(_FIXED))
        taken = set(places.values())
        wanted = (free[(first + step) % len(free)] for step in range(len(free)))
        places[method] = next((place for place in wanted if place not in taken), free[first])
    return places


def _mark(place: int) -> Mark:
    turn = 3 * (place // len(_COLOURS))  # so that a colour that comes again has another marker
    marker = _MARKERS[(place + turn) % len(_MARKERS)]
    return Mark(_COLOURS[place % len(_COLOURS)], marker, _DASHES[(place + turn) % len(_DASHES)])


def _lighter(mark: Mark, times: int) -> Mark:
    if times == 0:
        return mark
    share = max(_FAINTEST, 0.55 + 0.08 * (1 - times))
    color = tuple(1 - share * (1 - part) for part in to_rgb(mark.color))
    marker = _MARKERS[(_MARKERS.find(mark.marker) + 5 * times) % len(_MARKERS)]
    return Mark(color, marker, _FURTHER_DASHES[(times - 1) % len(_FURTHER_DASHES)])
