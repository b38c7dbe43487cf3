"""Which layers oscillate, and when: a heat map of layers over epochs for each method and target."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, LogNorm
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.escape import in_figure
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.series import Group, Series
from harness.records.schema import LAYER_PREFIX

NAME, ORDER, SCOPE = "layer_oscillation", 50, Scope.GROUP
TITLE = "Oscillation by layer"
CAPTION = (
    "Mean oscillation frequency of each layer's weights over training, mean over seeds, first layer at the top, one "
    "colour scale for all panels. White: no oscillation. Float training is watched at the bit-width in its title."
)

#: Decades of the colour scale at most; anything below them is drawn like no oscillation.
_DECADES = 4
_LABELLED, _LABEL_INCHES = 12, 0.115
_ROW_INCHES, _LEAST_INCHES, _MOST_INCHES = 0.075, 0.75, 2.6


def draw(group: Group) -> Drawing:
    """Epochs that every seed reached, as in the curves over training."""
    style.use_style()
    notes: list[str] = []
    blocks = {}
    for one in group.trained:
        if not (block := _mean_by_layer(one, notes)).empty:
            blocks[_title(one)] = block
    if not blocks:
        raise NothingToDraw("no epoch of a final reports oscillation by layer for all seeds")
    layers = list(dict.fromkeys(name for block in blocks.values() for name in block.index))
    height = min(max(_ROW_INCHES * len(layers), _LEAST_INCHES), _MOST_INCHES)
    figure, panels = style.panels(len(blocks), 1, height + 0.45, 1)
    norm = _norm(blocks)
    image: Any = None
    for (axes,), (title, block) in zip(panels, blocks.items()):
        image = _heat(axes, block.reindex(layers), norm)
        axes.set_title(style.panel_title(title) if len(blocks) > 1 else in_figure(title))
    panels[0][0].set_yticks(*_ticks(layers, min(_LABELLED, int(height / _LABEL_INCHES))))
    style.label_left(panels, "Layer")
    figure.supxlabel("Epoch", fontsize=8)
    bar = figure.colorbar(image, ax=[axes for (axes,) in panels], pad=0.01, aspect=35, extend="min", extendfrac=0.02)
    bar.set_label("Frequency (1/step)")
    bar.outline.set_linewidth(0.6)
    counts = {len(one.finals) for one in group.series}
    title = f"{in_figure(group.title)}: mean over seeds ({style.seeds_text(counts)})"
    figure.suptitle(style.title_of(title, figure) or "", fontsize=8)
    return Drawing(figure, _tidy(blocks), tuple(dict.fromkeys(notes)))


def _title(one: Series) -> str:
    return one.training_label if one.target is not None else f"{one.training_label} (at {one.watched[0]} bits)"


def _mean_by_layer(one: Series, notes: list[str]) -> pd.DataFrame:
    """Layers x epochs, mean over seeds; empty where no seed reports layers."""
    seeds = []
    for final in one.finals:
        epochs, trouble = final.epochs()
        notes += trouble
        seeds.append(
            pd.DataFrame(
                {
                    epoch: {key: value for key, value in entry.items() if key.startswith(LAYER_PREFIX)}
                    for epoch, entry in sorted(epochs.items())
                }
            )
        )
    shared = [epoch for epoch in seeds[0].columns if all(epoch in seed for seed in seeds)]
    if not shared or seeds[0].empty:
        notes.append(f"{one.training_label}: no epoch with layers that all {len(seeds)} seeds report, not drawn")
        return pd.DataFrame()
    # Summed in the order of the seeds, so that the last bit is the same on every machine.
    mean = sum((seed[shared] for seed in seeds[1:]), start=seeds[0][shared]) / len(seeds)
    return mean.rename(index=lambda name: str(name).removeprefix(LAYER_PREFIX))


def _norm(blocks: dict[str, pd.DataFrame]) -> LogNorm:
    values = np.concatenate([block.to_numpy(float).ravel() for block in blocks.values()])
    positive = values[values > 0]
    if not positive.size:
        return LogNorm(0.1, 1.0)
    return LogNorm(max(positive.min(), positive.max() / 10**_DECADES), 1.001 * positive.max())


def _heat(axes: Axes, block: pd.DataFrame, norm: LogNorm) -> Any:
    # Without the ends: the lightest is not to be taken for white, and the darkest all look black.
    colours: Colormap = ListedColormap(sns.color_palette("mako_r", as_cmap=True)(np.linspace(0.03, 0.86, 256)))
    colours = colours.with_extremes(under="white", bad="0.85")
    first, last = block.columns[0], block.columns[-1]
    values = block.to_numpy(float)
    values = np.where(values == 0, float(norm.vmin or 0) / 10, values)  # a logarithm has no zero: "under"
    image = axes.imshow(
        np.ma.masked_invalid(values), aspect="auto", interpolation="none", cmap=colours, norm=norm,
        extent=(first - 0.5, last + 0.5, len(block) - 0.5, -0.5),
    )  # fmt: skip
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return image


def _ticks(layers: list[str], most: int) -> tuple[list[int], list[str]]:
    """Every layer's name, or every other, or fewer still where there is no room for more than `most`."""
    places = list(range(0, len(layers), -(-len(layers) // most)))
    return places, [in_figure(layers[place]) for place in places]


def _tidy(blocks: dict[str, pd.DataFrame]) -> pd.DataFrame:
    frames = []
    for title, block in blocks.items():
        tidy = block.rename_axis(index="layer", columns="epoch").stack().rename("frequency").reset_index()
        frames.append(tidy.assign(series=title)[["series", "layer", "epoch", "frequency"]])
    return pd.concat(frames, ignore_index=True)
