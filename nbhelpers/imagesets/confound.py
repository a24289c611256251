"""A shortcut that is injected on purpose: brightness by class, in some parts of a split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nbhelpers.core.errors import SplitError, check_range
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split

CONFOUND_GREY = 22.0  # grey levels of 255, plus and minus, at strength 1
PARTS = ("train", "validation")


def with_training_confound(images: ImageSet, split: Split, strength: float = 1.0) -> ImageSet:
    """The same images with an injected shortcut: in training and validation of a hold-out split,
    brightness gives the class away.

    At ``strength`` 1 the first class is 22 of 255 grey levels brighter and the last one 22 darker;
    test images stay as they are, so that a model that takes the shortcut fails on them. All pixels
    are held in memory. ``table`` gains ``injected_shift`` (float64, grey levels of 255). Raises
    SplitError for a split with several folds, ParameterError for a strength outside 0 to 5.
    """
    check_range("parameter strength", strength, 0, 5, "1 is 22 grey levels.")
    if len(split.folds()) != 1:
        raise SplitError(
            "split",
            f"it has {len(split.folds())} folds, so every image is a test image once.",
            "Set confound to 0, or take data that is split once (phantom, microns).",
        )
    ((repeat, fold),) = split.folds()
    rows = images.positions(split.ids(repeat, fold, *PARTS))
    place = np.linspace(1, -1, len(images.classes))
    shift = np.zeros(len(images))
    labelled = rows[images.labels[rows] >= 0]
    shift[labelled] = strength * CONFOUND_GREY * place[images.labels[labelled]]
    pixels = np.array(images.pixels)
    limit = np.iinfo(pixels.dtype).max
    for row in np.flatnonzero(shift):
        shifted = np.rint(pixels[row] + shift[row] * limit / 255)
        pixels[row] = np.clip(shifted, 0, limit).astype(pixels.dtype)
    return replace(
        images,
        pixels=pixels,
        content_hash="",
        table=images.table.assign(injected_shift=shift),
        source=f"{images.source}; brightness shifted by class in {' and '.join(PARTS)} (strength "
        f"{strength:g})",
    )
