"""The splits of the published protocols, rebuilt to be measured: each says how it leaks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nbhelpers.core.errors import SplitError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split, check_enough, fold_table


def published_spine_split(images: ImageSet) -> Split:
    """The split of the published TinyCNN benchmark, with its leak, to be measured and named (system
    A).

    Training images come from an unstratified split, test images from a stratified one, both with
    seed 42 and one fifth held out; and the checkpoint was picked on the test images, which
    therefore stand as validation too.
    """
    from sklearn.model_selection import train_test_split

    positions = np.arange(len(images))
    check_enough(images, 2, "the published split")
    train, _ = train_test_split(positions, test_size=0.2, random_state=42)
    _, test = train_test_split(positions, test_size=0.2, random_state=42, stratify=images.labels)
    shared = len(set(train) & set(test))
    rows = [
        fold_table(images, part, rows=chosen)
        for part, chosen in (("train", train), ("validation", test), ("test", test))
    ]
    leak = (
        f"{shared} of {len(test)} test images were trained on, and the checkpoint was picked by "
        "its score on the test images"
    )
    return Split(
        pd.concat(rows, ignore_index=True),
        "published: one split, seed 42, leaks",
        42,
        known_leak=leak,
    )


def split_by_image(images: ImageSet, *, seed: int) -> Split:
    """70 / 15 / 15 by image, stratified, as published: images of one slide stand on both sides, and
    the split says so.
    """
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(images))
    try:
        train, rest = train_test_split(
            rows, test_size=0.3, random_state=seed % 2**32, stratify=images.labels
        )
        validation, test = train_test_split(
            rest, test_size=0.5, random_state=seed % 2**32, stratify=images.labels[rest]
        )
    except ValueError as error:
        raise SplitError(
            images.name, f"it cannot be split 70/15/15 by image ({error}).", "Add images."
        ) from None
    part = np.full(len(images), "train", object)
    part[validation] = "validation"
    part[test] = "test"
    shared = np.isin(images.groups[test], images.groups[np.r_[train, validation]]).sum()
    leak = (
        f"{shared} of {len(test)} test images come from slides that were trained on"
        if shared
        else ""
    )
    table = fold_table(images, part)
    return Split(table, "published: 70/15/15 by image", seed, known_leak=leak)
