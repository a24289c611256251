"""The user's own masks of dendritic spines, labelled or to be predicted, and examples of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets.folder import read_labelled, read_unlabelled
from nbhelpers.imagesets.from_files import write_examples
from nbhelpers.imagesets.masks import from_files
from nbhelpers.imagesets.windows import FRAME_PX
from nbhelpers.phantoms.spine import load_phantom_spines


def load_own_spines(path: str | Path, data_folder: str | Path) -> ImageSet:
    """The user's masks: a folder with one folder per class, or a CSV with path, label and perhaps
    group.
    """
    listed = read_labelled(path)
    classes = tuple(sorted(listed.table["label"].unique()))
    return from_files(
        listed, data_folder, name="your spines", source="your own images", classes=classes
    )


def load_unlabelled_spines(
    path: str | Path, data_folder: str | Path, classes: tuple[str, ...]
) -> ImageSet:
    """Every mask below a folder, or of a CSV with the column path, for prediction. Unreadable ones
    are listed in ``failures``; when none can be used, the set is empty and lists them all.

    Raises InputError for a folder without images.
    """
    listed = read_unlabelled(path)
    return from_files(
        listed, data_folder, name="images to predict", source="your own images", classes=classes
    )


def write_example_masks(path: str | Path, count: int, seed: int) -> Path:
    """Write ``count`` fresh phantom masks as PNG, and two files that cannot be used, to try a
    prediction on.
    """
    masks = load_phantom_spines(count, seed).pixels[:, 0]
    unusable = {"all_black": np.zeros((FRAME_PX, FRAME_PX), np.uint8)}
    return write_examples(path, "spine", masks, unusable)
