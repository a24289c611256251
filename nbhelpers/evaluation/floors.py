"""Floors: what a score must beat before it says anything. The commonest class, photometry (what an
image says without any structure), and every table of features that serves as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from nbhelpers.core.columns import column_scale
from nbhelpers.core.errors import PredictionsError, SplitError
from nbhelpers.core.folds import Fold, predict_folds
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split

GREY_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
GREY = "grey-level baseline"
RINGS = 8  # of a radial profile
BANDS = 16  # of a power spectrum
NEIGHBOURS = "neighbouring sections"
TOGETHER = "photometric together"


def majority_class(images: ImageSet, split: Split) -> Predictions:
    """Predict the commonest class of the training and validation parts for every test image of
    every fold.

    The probabilities are the class shares of those parts, each count plus one so that the log-loss
    stays finite. Ties go to the class that stands first.
    """

    def fit(fitted: np.ndarray, tested: np.ndarray) -> np.ndarray:
        counts = np.bincount(images.labels[fitted], minlength=len(images.classes)) + 1.0
        return np.tile(counts / counts.sum(), (len(tested), 1))

    return _predict_test(fit, images, split, "majority class")


def features_floor(
    features: np.ndarray | pd.DataFrame,
    images: ImageSet,
    split: Split,
    name: str,
    classifier: str = "logistic",
    *,
    regularisation: float | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> Predictions:
    """Classify ready-made features with a classical model, fitted anew in each fold.

    Parameters
    ----------
    features : (n, d) numbers, row i belongs to image i of the set. Metadata columns serve as well.
    name : of the model in the predictions, e.g. "shape features + SVM".
    classifier : "logistic" (standardised, logistic regression) or "svm" (standardised, RBF kernel,
        probabilities by Platt's sigmoid on inner folds).
    regularisation : the inverse strength C; 1 for "logistic" and 3 for "svm" unless given.
    balanced : divide the probabilities by the shares of the classes, for scores that weight all
        classes alike: else the floor of a rare class is far too low.

    Fitted on the training and validation parts, predicts the test part. Raises PredictionsError
    when features and images differ in number or a feature is not finite, SplitError when a class
    has too few images to fit.
    """
    table = pd.DataFrame(features)
    try:
        values = table.to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise PredictionsError(
            name,
            f"the features are not all numbers ({error}).",
            "Leave text columns out, or turn them into numbers.",
        ) from None
    if len(values) != len(images) or values.shape[1] == 0:
        raise PredictionsError(
            name,
            f"the features have the shape {values.shape} for {len(images)} images.",
            "Give one row per image, in the order of the set.",
        )
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise PredictionsError(
            f"{name}, image {images.ids[row]}",
            f"feature {table.columns[column]} is not a finite number ({len(bad)} such values).",
            "Fill or leave out what is missing before fitting.",
        )

    def fit(fitted: np.ndarray, tested: np.ndarray) -> np.ndarray:
        labels = images.labels[fitted]
        counts = np.bincount(labels, minlength=len(images.classes))
        needed = 2 if classifier == "svm" else 1
        if counts.min() < needed:
            scarce = images.classes[int(counts.argmin())]
            raise SplitError(
                f"{name}, class {scarce}",
                f"{counts.min()} images to fit on in one of the folds.",
                f"It needs {needed} or more: use fewer folds or more images.",
            )
        inner_folds = int(min(5, counts.min()))
        model = make_classifier(classifier, regularisation, seed, inner_folds)
        found = model.fit(values[fitted], labels).predict_proba(values[tested])
        if balanced:
            found = found / counts
            found /= found.sum(axis=1, keepdims=True)
        return found

    return _predict_test(fit, images, split, name)


def _make_scaler():
    """As scikit-learn's, but a column that is next to constant, as random networks have them, has
    no weight instead of a very large one for the next image.
    """
    from sklearn.preprocessing import StandardScaler

    class Scaler(StandardScaler):
        def fit(self, X, y=None, sample_weight=None):
            super().fit(X, y, sample_weight)
            self.scale_ = column_scale(X)
            return self

    return Scaler()


def make_classifier(kind: str, regularisation: float | None, seed: int, inner_folds: int):
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    if kind == "logistic":
        logistic = LogisticRegression(C=regularisation or 1.0, max_iter=2000)
        return make_pipeline(_make_scaler(), logistic)
    machine = SVC(C=regularisation or 3.0, decision_function_shape="ovr")
    inner = StratifiedKFold(inner_folds, shuffle=True, random_state=seed)
    return CalibratedClassifierCV(make_pipeline(_make_scaler(), machine), ensemble=False, cv=inner)


def _predict_test(fit, images: ImageSet, split: Split, model: str) -> Predictions:
    """Call ``fit(fitted rows, tested rows) -> (n, classes)`` for each fold; unlabelled images are
    left out.
    """
    labelled = images.labels >= 0

    def predict(fold: Fold) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        # a published split may leak; a floor never does
        fitted = fold.fitted[~np.isin(fold.fitted, fold.test)]
        fitted = fitted[labelled[fitted]]
        tested = fold.test[labelled[fold.test]]
        if len(fitted) == 0 or len(tested) == 0:
            raise SplitError(
                f"{model}, repeat {fold.repeat}, fold {fold.fold}",
                f"{len(fitted)} labelled images to fit on and {len(tested)} to test.",
                "Each fold needs both.",
            )
        return {"test": (tested, fit(fitted, tested))}

    return predict_folds(predict, images, split, model=model)


def photometric_floors(
    images: ImageSet, split: Split, *, balanced: bool = False
) -> list[Predictions]:
    """What images say of the class without any structure, by logistic regression on the test parts
    of ``split``: one floor for each of :func:`photometric_features`, and one for all of them
    together, but for the neighbouring sections of cubes, which see the order of the sections.
    ``balanced`` as in :func:`features_floor`.
    """
    measured = photometric_features(images.pixels)
    single = {name: values for name, values in measured.items() if name != NEIGHBOURS}
    measured[TOGETHER] = pd.concat(single, axis=1)
    # as each image has more numbers together, each number counts for less
    strengths = {TOGETHER: 0.1}
    return [
        features_floor(
            features,
            images,
            split,
            name,
            regularisation=strengths.get(name),
            balanced=balanced,
        )
        for name, features in measured.items()
    ]


# Features


def photometric_features(pixels: np.ndarray) -> dict[str, pd.DataFrame]:
    """By name, the photometric features that images of this kind have; one row per image.

    ``pixels`` is (n, channel, y, x) or (n, channel, z, y, x) uint8 or uint16; values are divided by
    the range of their type, and sections count alike: a cube is seen as its sections on top of one
    another. Colour means need two channels, the correlation of neighbouring sections two sections.
    """
    measures = {
        GREY: _grey_levels,
        "colour means": _colour,
        "radial profile": _radial_profile,
        "power spectrum": _power_spectrum,
        "border": _border,
        NEIGHBOURS: _neighbouring_sections,
    }
    prefixes = [f"channel {number} " for number in range(pixels.shape[1])]
    if len(prefixes) == 1:
        prefixes = [""]
        del measures["colour means"]
    if pixels.ndim == 4 or pixels.shape[2] == 1:
        del measures[NEIGHBOURS]
    return {name: of_each(measure, pixels, prefixes) for name, measure in measures.items()}


def of_each(
    measure: Callable[[np.ndarray], dict[str, float]], pixels: np.ndarray, prefixes: Sequence[str]
) -> pd.DataFrame:
    """What ``measure`` finds in each channel (z, y, x) of each image, from 0 to 1, by its name
    after the prefix of the channel.
    """
    rows = []
    for image in pixels:
        values = np.asarray(image, np.float32) / np.iinfo(pixels.dtype).max
        channels = values.reshape(len(values), -1, *values.shape[-2:])
        row = {}
        for prefix, channel in zip(prefixes, channels, strict=True):
            row |= _named(prefix, measure(channel))
        rows.append(row)
    return pd.DataFrame(rows).astype(float)


def _named(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in values.items()}


def _colour(channel: np.ndarray) -> dict[str, float]:
    return {"mean": channel.mean(), "spread": channel.std()}


def _grey_levels(channel: np.ndarray) -> dict[str, float]:
    """Mean, spread and percentiles, and the same of the middle: the half of the height and width
    around the centre.
    """
    height, width = channel.shape[1:]
    middle = channel[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    of_middle = levels(middle, GREY_PERCENTILES)
    return levels(channel, GREY_PERCENTILES) | _named("middle ", of_middle)


def levels(values: np.ndarray, shares: Sequence[int]) -> dict[str, float]:
    """Mean, spread and the percentiles ``shares`` of values of any shape."""
    names = [f"percentile {share}" for share in shares]
    return _colour(values) | dict(zip(names, np.percentile(values, shares), strict=True))


def _radial_profile(channel: np.ndarray) -> dict[str, float]:
    """Mean, spread and 5th percentile in rings of equal width; the corners go to the last one."""
    # from the middle, 1 at the border
    down, across = (np.abs(np.arange(side) * 2 - (side - 1)) / side for side in channel.shape[1:])
    radius = np.hypot(down[:, None], across)
    ring = np.minimum((radius * RINGS).astype(int), RINGS - 1)
    row = {}
    for number in np.unique(ring):  # a tiny image has no pixel in some
        part = channel[:, ring == number]
        row |= _named(f"ring {number} ", _colour(part))
        row[f"ring {number} percentile 5"] = np.percentile(part, 5)
    return row


def _power_spectrum(channel: np.ndarray) -> dict[str, float]:
    """Logarithm of the power in rings of equal width around frequency 0, averaged over the
    sections."""
    frequency = np.hypot(
        np.fft.fftfreq(channel.shape[1])[:, None], np.fft.rfftfreq(channel.shape[2])
    )
    band = np.minimum((frequency * 2 * BANDS).astype(int), BANDS - 1).ravel()
    varying = channel - channel.mean(axis=(1, 2), keepdims=True)
    power = (np.abs(np.fft.rfft2(varying)) ** 2).mean(axis=0).ravel()
    mean = np.bincount(band, power, BANDS) / np.maximum(np.bincount(band, minlength=BANDS), 1)
    # an empty band stands at the noise of rounding to 8 bits, not at minus infinity
    floor = frequency.shape[0] * channel.shape[2] / 12 / 255**2
    return {f"band {number}": value for number, value in enumerate(np.log(mean + floor))}


def _border(channel: np.ndarray) -> dict[str, float]:
    """Mean and spread of each side's outermost line."""
    sides = {
        "top": channel[:, 0],
        "bottom": channel[:, -1],
        "left": channel[:, :, 0],
        "right": channel[:, :, -1],
    }
    row = {}
    for side, part in sides.items():
        row |= _named(f"{side} ", _colour(part))
    return row


def _neighbouring_sections(channel: np.ndarray) -> dict[str, float]:
    """How sections correlate that lie one and two apart: mean and spread over the cube, least and
    greatest."""
    flat = channel.reshape(len(channel), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    row = {}
    for apart in range(1, min(3, len(channel))):
        found = (flat[apart:] * flat[:-apart]).sum(axis=1)
        row |= _named(f"{apart} apart, ", _colour(found))
        row |= {f"{apart} apart, least": found.min(), f"{apart} apart, greatest": found.max()}
    return row
