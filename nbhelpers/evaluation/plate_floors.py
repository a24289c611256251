"""Floors of plates: what the stains say without any structure, what the place of a well says, and
the light behind the cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split
from nbhelpers.evaluation.floors import features_floor, levels, of_each

STAIN_PERCENTILES = (1, 25, 50, 75, 95, 99)
POSITION = "well position alone"
BACKGROUND = "background alone"
GAPS = 0.05  # of a field, its emptiest places: there the background is seen


def position_floors(images: ImageSet, split: Split) -> list[Predictions]:
    """What the place of a well says of the treatment, and what the light behind the cells says:
    logistic models, tested on the same plates as the network.
    """
    background = background_features(images)
    return [
        features_floor(position_features(images), images, split, POSITION),
        features_floor(background, images, split, BACKGROUND),
    ]


def stain_features(pixels: np.ndarray, stains: Sequence[str]) -> pd.DataFrame:
    """What each stain says without any structure: mean, spread and percentiles of its values, one
    row per field.

    ``pixels`` is (n, stain, y, x) uint8 or uint16; values are divided by the range of their type.
    """
    prefixes = [f"{stain} " for stain in stains]
    return of_each(lambda stain: levels(stain, STAIN_PERCENTILES), pixels, prefixes)


def background_features(images: ImageSet) -> pd.DataFrame:
    """The light where no cell is: the mean of every stain, in grey levels of 255, over the
    emptiest ``GAPS`` of the field.

    Empty is where all stains together, blurred over a 16th of the height, are darkest: far from any
    cell, and the same places for every stain. (A dark percentile of each stain alone is no
    background: the more of a field cells fill, the more of them is in it.) One row per image;
    unlabelled images, which take no part in a check, are 0. Where cells fill the image, as in crops
    of single cells, their own brightness is in it too.
    """
    from scipy.ndimage import gaussian_filter

    found = np.zeros((len(images), images.pixels.shape[1]), np.float64)
    for row in np.flatnonzero(images.labels >= 0):
        step = max(1, images.pixels.shape[2] // 128)  # a wide blur of a large field takes long
        field = np.asarray(images.pixels[row, :, ::step, ::step], np.float32)
        blurred = gaussian_filter(field, (0, field.shape[1] / 16, field.shape[1] / 16))
        blurred = blurred.reshape(len(field), -1)
        spread = np.maximum(blurred.std(axis=1), 1e-6)
        filled = (blurred / spread[:, None]).mean(axis=0)
        count = max(4, round(GAPS * filled.size))
        emptiest = np.argpartition(filled, count)[:count]
        found[row] = field.reshape(len(field), -1)[:, emptiest].mean(axis=1)
    scale = 255 / np.iinfo(images.pixels.dtype).max
    return pd.DataFrame(found * scale, columns=[f"{stain} background" for stain in images.channels])


def position_features(images: ImageSet) -> pd.DataFrame:
    """What is known of a field without looking at it: row, column, distance from the edge, and
    which well it is.

    Rows are counted by their letters in use. ``edge`` is the number of wells in use between it and
    the border; then one column (0 or 1) per row, column and well. One row per image.
    """
    table = images.table
    down = table["row"].rank(method="dense").to_numpy() - 1
    across = table["column"].rank(method="dense").to_numpy() - 1
    edge = np.minimum.reduce([down, down.max() - down, across, across.max() - across])
    found = pd.DataFrame({"row number": down, "column number": across, "edge": edge})
    places = table[["row", "column", "well"]].astype({"column": str}).reset_index(drop=True)
    return pd.concat([found, pd.get_dummies(places, dtype=float)], axis=1)
