"""What the training images of a network look like, so that others can be compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from nbhelpers.core.columns import column_scale
from nbhelpers.core.errors import InputError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.intervals import FEWEST_GROUPS, likeness_effect, mean_squares
from nbhelpers.inference.new_images import OutOfDistribution, look_of
from nbhelpers.training.transform import EvaluationTransform

FEWEST = 20  # training images from which one can tell what is usual; of FEWEST_GROUPS groups
AXES = 24
AT_ONCE = 32
MOST = 2000  # training images to compare with
PARTS = 20  # groups are left out in so many parts at most
RATE = 0.01  # of images like the training ones that are flagged all the same


def fit_reference(*tables: np.ndarray, groups: Sequence[str] | None = None) -> OutOfDistribution:
    """From one or more tables of features of the training images, (n, d) each, which count
    alike however wide they are; and from the groups of the images, by default each its own.

    A rate of 1 in 100 is promised from 100 images on, where these say as much as 50 independent
    ones (images of a group resemble each other); else a higher one. Raises InputError with
    fewer than 20 images or 3 groups.
    """
    size = len(tables[0])
    own = np.arange(size) if groups is None else groups
    names, group = np.unique(own, return_inverse=True)
    if not can_judge(own):
        raise InputError(
            "training images",
            f"there are only {size} of {len(names)} groups, too few to know what is usual.",
            f"At least {FEWEST} of {FEWEST_GROUPS} groups are needed.",
        )
    features = np.concatenate(tables, axis=1, dtype=np.float64)
    widths = [table.shape[1] for table in tables]
    weight = np.float32(1 / np.sqrt(np.repeat(widths, widths)))
    part = group % PARTS
    fewest = size - np.bincount(part).max()
    axes = max(1, min(AXES, len(weight), fewest // 4))
    distances = np.zeros(size)
    for number in range(part.max() + 1):
        out = part == number
        distances[out] = span(features[~out], weight, axes).distances(features[out])
    rate = max(RATE, 1 / (size + 1), 0.5 / effective_size(np.cbrt(distances), group))
    limit = np.quantile(distances, 1 - rate, method="hazen")
    return replace(span(features, weight, axes), limit=float(limit), rate=rate)


def span(features: np.ndarray, weight: np.ndarray, axes: int) -> OutOfDistribution:
    """The space of (n, d) features, without a limit."""
    from sklearn.decomposition import PCA

    nothing = np.zeros((len(weight), 0))
    mean, scale = np.float32([features.mean(0), column_scale(features)])
    found = OutOfDistribution(mean, scale, weight, nothing, nothing)
    main = PCA(axes, random_state=0).fit(found.standardised(features)).components_.T
    found = replace(found, axes=np.float32(main))
    return replace(found, reference=np.float32(found.place(features)))


def reference_tensors(
    network: nn.Module, images: ImageSet, ids: Sequence[str], transform: EvaluationTransform
) -> dict[str, torch.Tensor] | None:
    """What a checkpoint keeps, ``beside`` its weights, of the images that a network was trained on,
    which have these ``ids``; None where they are too few to tell what is unlike them.

    Of more than 2000, so many are drawn at random. Pixels are read batch by batch.
    """
    rows = np.random.default_rng(0).permutation(images.positions(ids))[:MOST]
    groups = images.groups[rows]
    if not can_judge(groups):
        return None
    batches = np.array_split(rows, len(rows) // AT_ONCE + 1)
    looks = [look_of(network, images.pixels[some], transform) for some in batches]
    seen, statistics = (np.concatenate(parts) for parts in zip(*looks, strict=True))
    return fit_reference(seen, statistics, groups=groups).tensors()


def can_judge(groups: Sequence[str]) -> bool:
    """Whether training images of these groups, one for each, are enough to tell what is unlike
    them.
    """
    return len(groups) >= FEWEST and len(set(groups)) >= FEWEST_GROUPS


def effective_size(values: np.ndarray, group: np.ndarray) -> float:
    """How many independent values say as much as these, (n,), of which those of a ``group``, (n,)
    int from 0, resemble each other: n over the design effect (Kish 1965), with the correlation
    within groups from an analysis of variance.
    """
    count = np.bincount(group)
    total = len(values)
    if len(count) == total:
        return float(total)
    mean_square, within, usual = mean_squares(values, group)
    between = max(0.0, (mean_square - within) / usual)
    likeness = between / (between + within) if between else 0.0
    return total / likeness_effect(count, likeness)
