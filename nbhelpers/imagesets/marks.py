"""What was drawn onto an image: arrows, scale bars, letters, outlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nbhelpers.imagesets.from_files import FileImages

FEWEST_PX = 20  # of all marks of an image
SATURATED = 180  # between the lowest and the highest channel; no published glomerulus has over 168
STEP = 56  # by which it falls beside a mark


def drawn_on(pixels: np.ndarray) -> tuple[slice, slice] | None:
    """Where something was drawn onto an image, (channel, y, x) uint8: the rows and columns of all
    marks; None where nothing was.

    Marks are arrows, scale bars, letters and outlines in a saturated colour, or in flat white or
    black with sharp edges; not what touches the border of the image. None is found in 484 published
    glomeruli, as they are or as JPEG, in 1,280 patches of EM, or in the phantoms of both, and one
    in 427 patches of EM of which 2 % are made white and 2 % black. Thin lines are lost where an
    image was made smaller, white and black marks also by JPEG.
    """
    from scipy import ndimage

    high = pixels.max(0)
    low = pixels.min(0)
    marks = np.zeros(high.shape, int)
    # colours are smeared by JPEG, so what is beside them begins one pixel further out
    for values, least, gap in ((high - low, SATURATED, 1), (low, 255, 0), (255 - high, 255, 0)):
        inside = values >= least
        if np.count_nonzero(inside) < FEWEST_PX:
            continue
        parts, count = ndimage.label(inside, np.ones((3, 3)))
        near = ndimage.maximum_filter(parts, 1 + 2 * gap)
        beside = np.where(near > 0, 0, ndimage.maximum_filter(parts, 3 + 2 * gap)).ravel()
        around = np.bincount(beside, minlength=count + 1)
        sharp = np.bincount(beside, values.ravel() < least - STEP, count + 1)
        mark = (np.bincount(parts.ravel()) >= 6) & (sharp > 0.6 * around)
        mark[0] = False
        mark[parts[[0, -1]]] = False
        mark[parts[:, [0, -1]]] = False
        marks |= mark[parts]
    if marks.sum() < FEWEST_PX:
        return None
    return ndimage.find_objects(marks)[0]


def with_marks(found: FileImages, sides: Sequence[Sequence[float]] | None = None) -> FileImages:
    """The images with ``drawn_on``, where something was drawn onto each ("y 200 to 210, x 10 to
    60", "" for none), and ``marked``, whether; and a note that names them.

    Places are in pixels of the file where its ``sides``, (n, 2) height and width, are given: it was
    continued to a square, and that resized; else in pixels of the image.
    """
    places = []
    size = found.pixels.shape[-1]
    for number, image in enumerate(found.pixels):
        height, width = (size, size) if sides is None else sides[number]
        scale = max(height, width) / size
        top, left = ((size - round(side / scale)) // 2 for side in (height, width))
        inside = image[:, top : size - top, left : size - left]  # else its mirror is a mark too
        ends = []
        for axis, name in zip(drawn_on(inside) or (), "yx", strict=False):
            ends.append(f"{name} {axis.start * scale:.0f} to {axis.stop * scale:.0f}")
        places.append(", ".join(ends))
    table = found.table.assign(drawn_on=places, marked=[place != "" for place in places])
    notes = found.notes
    if table["marked"].any():
        marked = table[table["marked"]]
        first = ", ".join(marked["id"].head() + " at " + marked["drawn_on"].head())
        notes += (f"drawn marks may give the class away in {len(marked)}: {first}",)
    return replace(found, table=table, notes=notes)
