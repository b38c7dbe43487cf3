"""Panels of what trackers watched: one for each bit-width, and one more for each target with activations."""

from typing import NamedTuple

import pandas as pd

from analysis import deployment
from analysis.series import Group


class Panel(NamedTuple):
    """What a panel shows: its title, and the lines of the frame that are in it."""

    title: str
    points: pd.DataFrame


def panels(group: Group, frame: pd.DataFrame) -> list[Panel]:
    """Panels of a frame with the columns `series` (what was trained) and `bits` (watched), in order.

    Trackers watch weights: `lsq@4` and `lsq@w4a4` are both watched at 4 bits, and would be one line in one panel. What
    was trained without a target is in every panel of its bit-width.
    """
    targets = {one.training_label: one.target for one in group.trained}
    found = []
    for bits in sorted(frame["bits"].unique()):
        own = frame[frame["bits"] == bits]
        trained = deployment.in_order(target for label in set(own["series"]) if (target := targets[label]))
        further = [target for target in trained if not deployment.weights_only(target)]
        title = f"Watched at {bits} bits"
        for target in further:
            found.append(
                Panel(f"{title} ({target})", own[[targets[label] in (None, target) for label in own["series"]]])
            )
        if trained != further or not further:
            found.append(Panel(title, own[[targets[label] not in further for label in own["series"]]]))
    return found


def notes(group: Group) -> list[str]:
    """What a reader has to know of the panels: nothing where every target is of weights alone."""
    further = [target for target in group.targets() if not deployment.weights_only(target)]
    return ["targets with activations have panels of their own: of them, too, weights are watched"] if further else []
