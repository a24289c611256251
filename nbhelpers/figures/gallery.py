"""Gallery of predicted images without labels: what was said of each, and what was doubtful."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import PROBABILITY_PREFIX
from nbhelpers.figures.images import show_picture
from nbhelpers.figures.style import (
    FAINT,
    SMALL,
    WIDTH,
    WRONG,
    class_colours,
    new_figure,
    shortened,
    styled,
)

PER_ROW = 6
MOST = 18


@styled
def prediction_gallery(images: ImageSet, table: pd.DataFrame) -> Figure:
    """New images with the predicted class over them in a frame of its colour, the doubtful ones
    first.

    ``table`` has name (the ids of ``images``), predicted, ``probability <class>``, low_confidence
    and out_of_distribution. A dashed frame marks a low probability, the word "unlike" an image out
    of distribution.
    """
    unlike = table["out_of_distribution"].astype(str) == "True"
    doubt = table["low_confidence"].astype(int) + 2 * unlike
    order = doubt.sort_values(ascending=False, kind="stable").index[:MOST]
    lines = max(1, -(-len(order) // PER_ROW))
    size = WIDTH / PER_ROW
    figure = new_figure(WIDTH, lines * (size + 0.36) + 0.1)
    colours = class_colours(images.classes)
    axes = figure.subplots(lines, PER_ROW, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    positions = images.positions(table["name"].loc[order])
    for axis, index, position in zip(axes, order, positions, strict=False):
        row = table.loc[index]
        show_picture(axis, images, position)
        axis.set(xticks=[], yticks=[])
        axis.set_axis_on()
        for spine in axis.spines.values():
            spine.set(
                visible=True,
                color=colours.get(row["predicted"], FAINT),
                linewidth=3,
                capstyle="butt",  # other ends would fill the gaps
                linestyle=(0, (2, 1)) if row["low_confidence"] else "-",
            )
        probability = row[PROBABILITY_PREFIX + row["predicted"]]
        sure = "" if pd.isna(probability) else f" {probability:.2f}"
        if unlike[index]:
            sure += ", unlike"
        text = shortened(row["predicted"], 18 - len(sure)) + sure
        axis.set_title(
            f"{shortened(row['name'].rsplit('/', 1)[-1], 18)}\n{text}",
            fontsize=SMALL,
            pad=3,
            color=WRONG if doubt[index] else "black",
        )
    return figure
