"""Predictions for images without a label: one table, with the doubtful ones flagged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core.errors import CheckpointError
from nbhelpers.core.predictions import PROBABILITY_PREFIX
from nbhelpers.training.checkpoints import BESIDE, read_tensors
from nbhelpers.training.forward import head_features, images_at_once
from nbhelpers.training.transform import EvaluationTransform

if TYPE_CHECKING:
    from nbhelpers.core.imageset import ImageSet

NEIGHBOURS = 5
FARTHEST = 10.0  # standard deviations that a feature counts at most
ROUNDING = 1 / 255


def image_statistics(pixels: np.ndarray) -> np.ndarray:
    """How images look, whatever a network makes of them: (n, c, y, x) unsigned integers to
    (n, 8 c) float64.

    Of the mean of the channels, and of each channel minus the next, averaged by 2 pixels (what is
    finer depends on the file format): mean, logarithm of the spread, both again for the middle
    (half of height and width) minus those of the whole, what of the spread is left when averaged
    by 4, 8 and 16, and skewness.
    """
    rows = []
    for image in pixels:
        values = np.asarray(image, np.float32) / np.iinfo(pixels.dtype).max
        planes = _halved(np.concatenate([values.mean(0, keepdims=True), values[:-1] - values[1:]]))
        height, width = planes.shape[1:]
        middle = planes[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
        mean = planes.mean((1, 2))
        spread = _log_spread(planes)
        found = [mean, spread, middle.mean((1, 2)) - mean, _log_spread(middle) - spread]
        coarse = planes
        for _ in range(3):
            finer = _log_spread(coarse)
            coarse = _halved(coarse)
            found.append(_log_spread(coarse) - finer)
        cubes = (planes - mean[:, None, None]) ** 3
        rows.append(np.concatenate([*found, cubes.mean((1, 2)) / np.exp(3 * spread)]))
    return np.array(rows, np.float64)


def _halved(planes: np.ndarray) -> np.ndarray:
    height, width = (side // 2 for side in planes.shape[1:])
    blocks = planes[:, : 2 * height, : 2 * width].reshape(len(planes), height, 2, width, 2)
    return blocks.mean((2, 4))


def _log_spread(planes: np.ndarray) -> np.ndarray:
    return np.log(planes.std((1, 2)) + ROUNDING)


@dataclass(frozen=True)
class OutOfDistribution:
    """How far an image lies from the training images, in a space of features.

    The space are the main axes of the standardised training features and the distance from these.
    Distance is the mean distance to the five nearest training images. ``limit`` was found on groups
    (neurons, slides) that were left out of all that in turn: of new images from new groups that are
    otherwise like the training ones, about the share ``rate`` lies beyond it. Arrays are float32,
    so that a checkpoint grows by little: what is kept in one says the same as what was fitted.
    """

    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,)
    weight: np.ndarray  # (d,)
    axes: np.ndarray  # (d, k)
    reference: np.ndarray  # (n, k + 1)
    limit: float = np.inf
    rate: float = 0.0
    source: str | Path = "the training images"  # the file that it was read from

    @classmethod
    def of_checkpoint(cls, path: str | Path) -> OutOfDistribution | None:
        """What a checkpoint keeps of its training images; None where these were too few, or it was
        written before any was kept. Raises CheckpointError as ``read_tensors``, and where what it
        keeps does not fit together, is not finite, or is no sensible rate or limit.
        """
        stored = {
            name.removeprefix(BESIDE): value
            for name, value in read_tensors(path).items()
            if name.startswith(BESIDE)
        }
        if not any(value.numel() for value in stored.values()):
            return None
        (rows, _), (width, axes) = (
            (*stored.get(name, torch.zeros(0)).shape, 0, 0)[:2] for name in ("reference", "axes")
        )
        shapes = {name: (width,) for name in ("mean", "scale", "weight")}
        shapes |= {"axes": (width, axes), "reference": (rows, axes + 1), "limit": (), "rate": ()}
        fits = rows > 0 and {name: value.shape for name, value in stored.items()} == shapes
        fits &= {value.dtype for value in stored.values()} <= {torch.float32, torch.float64}
        # a feature that never varies has an infinite scale
        finite = [value.isfinite().all() for name, value in stored.items() if name != "scale"]
        sane = fits and (stored["scale"] > 0).all() and 0 < stored["rate"] < 1
        if not sane or not all(finite) or not stored["limit"] > 0:
            raise CheckpointError(
                path,
                "what it keeps of its training images, by which others are out of distribution, is "
                "damaged.",
                "Copy it again, or run its notebook again.",
            )
        found = {name: value.numpy() for name, value in stored.items()}
        scalars = {name: found[name].item() for name in ("limit", "rate")}
        return cls(**found | scalars, source=path)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored ``beside`` the weights of a network, by ``save_checkpoint``."""
        kept = {name: value for name, value in vars(self).items() if name != "source"}
        return {BESIDE + name: torch.as_tensor(np.asarray(kept[name])) for name in kept}

    def standardised(self, features: np.ndarray) -> np.ndarray:
        """A filter that fires on one slide alone would outweigh all others there: hence the cut."""
        return np.clip((features - self.mean) / self.scale, -FARTHEST, FARTHEST) * self.weight

    def place(self, features: np.ndarray) -> np.ndarray:
        standardised = self.standardised(features)
        along = standardised @ self.axes
        beside = np.linalg.norm(standardised - along @ self.axes.T, axis=1)
        return np.column_stack([along, beside])

    def distances(self, *tables: np.ndarray) -> np.ndarray:
        """(m,) float64 distances of (m, d) features, in one or more tables. Raises CheckpointError
        for features of another network.
        """
        from sklearn.neighbors import NearestNeighbors

        features = np.concatenate(tables, axis=1, dtype=np.float64)
        if features.shape[1] != len(self.mean):
            raise CheckpointError(
                self.source,
                f"what it keeps of its training images has {len(self.mean)} features, those of "
                f"the network are {features.shape[1]}.",
                "Give the file that the notebook wrote with this network.",
            )
        near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(self.reference)))
        near.fit(np.float64(self.reference))
        return near.kneighbors(self.place(features))[0].mean(1)

    def unlike(self, *tables: np.ndarray) -> np.ndarray:
        """(m,) bool: farther from the training images than nearly all images of new groups."""
        return self.distances(*tables) > self.limit


def look_of(
    network: nn.Module, pixels: np.ndarray, transform: EvaluationTransform
) -> tuple[np.ndarray, np.ndarray]:
    """What tells whether images, (n, c, y, x), or cubes, (n, c, z, y, x), are like others: what the
    head of the network sees of each, (n, d), and :func:`image_statistics`, for which the sections
    of a cube are channels.
    """
    seen = head_features(network, pixels, transform.evaluate, images_at_once(pixels, 32))
    return seen, image_statistics(pixels.reshape(len(pixels), -1, *pixels.shape[-2:]))


def flags(
    checkpoint: str | Path, network: nn.Module, new: ImageSet, transform: EvaluationTransform
) -> tuple[np.ndarray | None, float | None]:
    """Which images are out of distribution for the network of a checkpoint, (n,) bool, and the rate
    that is stated for images like its training ones; both None where it keeps nothing of these.
    """
    usual = OutOfDistribution.of_checkpoint(checkpoint)
    if usual is None or not len(new):
        return None, None
    return usual.unlike(*look_of(network, new.pixels, transform)), usual.rate


def evaluation_table(
    names: Sequence[str],
    probabilities: np.ndarray,
    classes: Sequence[str],
    unlike: np.ndarray | None,
    *,
    rate: float | None = None,
    confidence: float,
    failures: pd.DataFrame,
) -> pd.DataFrame:
    """The table of ``evaluation.csv``: one row per file, those that could not be read last, without
    a prediction.

    Columns: name, predicted class, ``probability <class>`` per class, low_confidence (the highest
    probability is below ``confidence``), out_of_distribution ("unknown" where ``unlike`` is None),
    flagged_by_chance (``rate``: the share of images like the training ones, but from new groups,
    that are out of distribution all the same), problem (why a file has no prediction; empty
    otherwise). Where most images are out of distribution, as :func:`warned` has it.
    """
    probabilities = np.asarray(probabilities, np.float64).reshape(len(names), len(classes))
    table = pd.DataFrame({"name": list(names)})
    table["predicted"] = [classes[index] for index in probabilities.argmax(1)]
    for index, label in enumerate(classes):
        table[f"probability {label}"] = probabilities[:, index].round(6)
    table["low_confidence"] = probabilities.max(1) < confidence
    table["out_of_distribution"] = "unknown" if unlike is None else np.asarray(unlike, bool)
    table["flagged_by_chance"] = rate
    table["problem"] = ""
    if len(failures):
        rows = pd.DataFrame(
            {"name": failures["file"], "problem": failures["why"] + " " + failures["fix"]}
        )
        table = pd.concat([table.astype(object), rows], ignore_index=True)
    return warned(table)


def out_of_distribution(table: pd.DataFrame) -> pd.Series:
    """(n,) bool: the rows that are out of distribution, as far as that is known."""
    return table["out_of_distribution"].astype(str) == "True"


def warning_for(flagged: int, predicted: int) -> str:
    """What must stand above predictions of which most are out of distribution; else ""."""
    if 2 * flagged <= predicted:
        return ""
    if predicted == 1:
        return "The new image is unlike the training images: the class given to it means nothing."
    return (
        f"{flagged} of {predicted} new images are unlike the training images: the classes given to "
        "them mean nothing."
    )


def warned(table: pd.DataFrame, warning: str | None = None) -> pd.DataFrame:
    """The table with a column ``warning``, where there is one to give (by default that for these
    rows); images that are out of distribution then have no probability, no set and low confidence.
    """
    if warning is None:
        warning = warning_for(out_of_distribution(table).sum(), table["predicted"].notna().sum())
    if not warning:
        return table
    table = table.assign(warning=warning)
    flagged = out_of_distribution(table)
    table.loc[flagged, table.columns.str.startswith(PROBABILITY_PREFIX)] = np.nan
    table.loc[flagged, "low_confidence"] = True
    if "set" in table:
        table.loc[flagged, "set"] = "unknown"
    return table
