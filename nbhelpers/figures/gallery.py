"""Gallery of predicted images without labels: what was said of each, and what was doubtful."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from nbhelpers.core.predictions import PROBABILITY_PREFIX
from nbhelpers.figures.images import to_display
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nbhelpers.core.imageset import ImageSet


@styled
def prediction_gallery(
    images: ImageSet, table: pd.DataFrame, *, per_row: int = 6, rows: int = 3
) -> Figure:
    """New images with the predicted class over them in a frame of its colour, the doubtful ones
    first.

    ``table`` has name (the ids of ``images``), predicted, ``probability <class>``, low_confidence
    and out_of_distribution, as :meth:`nbhelpers.studies.glomeruli.Predictor.table` gives it. A dashed
    frame marks a low probability, the word "unlike" an image unlike the training images.
    """
    doubt = table["low_confidence"].astype(int) + 2 * (
        table["out_of_distribution"].astype(str) == "True"
    ).astype(int)
    shown = (
        table.assign(doubt=doubt)
        .sort_values("doubt", ascending=False, kind="stable")
        .head(per_row * rows)
    )
    lines = max(1, -(-len(shown) // per_row))
    size = WIDTH / per_row
    figure = new_figure(WIDTH, lines * (size + 0.36) + 0.1)
    colours = class_colours(images.classes)
    axes = figure.subplots(lines, per_row, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for axis, (_, row), position in zip(
        axes, shown.iterrows(), images.positions(shown["name"]), strict=False
    ):
        axis.imshow(
            to_display(images.pixels[position], images.channels), cmap="gray", vmin=0, vmax=1
        )
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(
                visible=True,
                color=colours.get(row["predicted"], FAINT),
                linewidth=3,
                capstyle="butt",
                linestyle=(0, (2, 1)) if row["low_confidence"] else "-",
            )  # other ends would fill the gaps
        unlike = str(row["out_of_distribution"]) == "True"
        sure = f" {row[PROBABILITY_PREFIX + row['predicted']]:.2f}" + (", unlike" if unlike else "")
        text = shortened(row["predicted"], 20 - len(sure)) + sure
        axis.set_title(
            f"{shortened(row['name'].rsplit('/', 1)[-1], 18)}\n{text}",
            fontsize=SMALL,
            pad=3,
            color=WRONG if row["doubt"] else "black",
        )
    return figure
