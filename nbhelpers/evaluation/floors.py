"""Floors: what a score must beat before it says anything. Majority class, shape, metadata, random
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, ParameterError, PredictionsError, SplitError
from nbhelpers.core.folds import Fold, predict_folds
from nbhelpers.core.predictions import Predictions

if TYPE_CHECKING:
    from nbhelpers.core.imageset import ImageSet
    from nbhelpers.core.splits import Split

FITTED_PARTS = ("train", "validation")


def majority_class(
    imageset: ImageSet, split: Split, *, model: str = "majority class", run: str = ""
) -> Predictions:
    """Predict the commonest class of the training and validation parts for every test image of
    every fold.

    The probabilities are the class shares of those parts, each count plus one so that the log-loss
    stays finite. Ties go to the class that stands first.
    """

    def fit(fitted: np.ndarray, tested: np.ndarray) -> np.ndarray:
        counts = np.bincount(imageset.labels[fitted], minlength=len(imageset.classes)) + 1.0
        return np.tile(counts / counts.sum(), (len(tested), 1))

    return _predict_folds(fit, imageset, split, model, run)


def features_floor(
    features: np.ndarray | pd.DataFrame,
    imageset: ImageSet,
    split: Split,
    name: str,
    classifier: str = "logistic",
    *,
    regularisation: float | None = None,
    seed: int = 0,
    run: str = "",
) -> Predictions:
    """Classify ready-made features with a classical model, fitted anew in each fold.

    Parameters
    ----------
    features : (n, d) numbers, row i belongs to image i of the set. Metadata columns serve as well.
    name : of the model in the predictions, e.g. "shape features + SVM".
    classifier : "logistic" (standardised, logistic regression) or "svm" (standardised, RBF kernel,
        probabilities by Platt's sigmoid on inner folds).
    regularisation : the inverse strength C; 1 for "logistic" and 3 for "svm" unless given.

    Fitted on the training and validation parts, predicts the test part. Raises PredictionsError
    when features and images differ in number or a feature is not finite, SplitError when a class
    has too few images to fit.
    """
    if classifier not in ("logistic", "svm"):
        raise ParameterError(
            "parameter classifier", f"{classifier!r} is unknown.", "Give 'logistic' or 'svm'."
        )
    columns = list(features.columns) if isinstance(features, pd.DataFrame) else None
    try:
        values = np.asarray(features, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PredictionsError(
            name,
            f"the features are not all numbers ({error}).",
            "Leave text columns out, or turn them into numbers.",
        ) from None
    if values.ndim != 2 or len(values) != len(imageset) or values.shape[1] == 0:
        raise PredictionsError(
            name,
            f"the features have the shape {values.shape} for {len(imageset)} images.",
            "Give one row per image, in the order of the set.",
        )
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise PredictionsError(
            f"{name}, image {imageset.ids[row]}",
            f"feature {columns[column] if columns else column} is not a finite "
            f"number ({len(bad)} such values).",
            "Fill or leave out what is missing before fitting.",
        )

    def fit(fitted: np.ndarray, tested: np.ndarray) -> np.ndarray:
        labels = imageset.labels[fitted]
        counts = np.bincount(labels, minlength=len(imageset.classes))
        needed = 2 if classifier == "svm" else 1
        if counts.min() < needed:
            scarce = imageset.classes[int(counts.argmin())]
            raise SplitError(
                f"{name}, class {scarce}",
                f"{counts.min()} images to fit on in one of the folds.",
                f"It needs {needed} or more: use fewer folds or more images.",
            )
        pipeline = _pipeline(classifier, regularisation, seed, int(min(5, counts.min())))
        return pipeline.fit(values[fitted], labels).predict_proba(values[tested])

    return _predict_folds(fit, imageset, split, name, run)


def _pipeline(classifier: str, regularisation: float | None, seed: int, inner_folds: int):
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    if classifier == "logistic":
        return make_pipeline(
            StandardScaler(), LogisticRegression(C=regularisation or 1.0, max_iter=2000)
        )
    machine = make_pipeline(
        StandardScaler(), SVC(C=regularisation or 3.0, decision_function_shape="ovr")
    )
    return CalibratedClassifierCV(
        machine, ensemble=False, cv=StratifiedKFold(inner_folds, shuffle=True, random_state=seed)
    )


def _predict_folds(fit, imageset: ImageSet, split: Split, model: str, run: str) -> Predictions:
    """Call ``fit(fitted rows, tested rows) -> (n, classes)`` for each fold; unlabelled images are
    left out.
    """
    labelled = imageset.labels >= 0

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

    return predict_folds(predict, imageset, split, model=model, run=run)


def random_weight_features(model, pixels: np.ndarray, batch: int = 64) -> np.ndarray:
    """Features of a network that has learnt nothing: what architecture and pixels give by
    themselves.

    ``model`` is an nn.Module with seeded random weights and ``features(x) -> (n, d)``; ``pixels``
    is (n, c, y, x) or (n, c, z, y, x) uint8 or uint16, scaled to 0..1 by the range of its type.
    Runs in evaluation mode without gradients and leaves the model in the mode it was in. Returns
    (n, d) float32. Raises InputError when the model has no ``features`` or gives values that are
    not finite.
    """
    import torch

    if not callable(getattr(model, "features", None)):
        raise InputError(
            type(model).__name__,
            "this network has no method features(x).",
            "Use one of the networks in nbhelpers.models.",
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError("pixels", f"they are {pixels.dtype}.", "Give uint8 or uint16.")
    was_training = model.training
    first = next(model.parameters(), torch.zeros(()))
    model.eval()
    found = []
    try:
        with torch.no_grad():
            for start in range(0, len(pixels), batch):
                part = (
                    np.asarray(pixels[start : start + batch]).astype(np.float32)
                    / np.iinfo(pixels.dtype).max
                )
                values = (
                    model.features(torch.from_numpy(part).to(first.device)).float().cpu().numpy()
                )
                found.append(values.reshape(len(part), -1))
    finally:
        model.train(was_training)
    features = np.concatenate(found).astype(np.float32)
    if not np.isfinite(features).all():
        raise InputError(
            type(model).__name__, "the features are not finite.", "Check the weights and the input."
        )
    return features


def shape_features(masks: np.ndarray | Sequence[np.ndarray]) -> pd.DataFrame:
    """Measure binary masks: one row per mask, one named property per column, lengths in pixels.

    ``masks`` is (n, y, x) bool or uint8; every value above 0 is foreground. All but ``components``
    is measured on the largest component. ``width_00`` ... ``width_90`` are foreground widths at ten
    heights from the top to the bottom of the bounding box; head and neck are the widest row of the
    upper half and the narrowest row below it. Raises InputError on an empty mask, naming its
    position.
    """
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist
    from skimage.measure import label, regionprops

    rows = []
    for number, mask in enumerate(masks):
        mask = np.asarray(mask) > 0
        if mask.ndim != 2:
            raise InputError(
                f"mask {number}", f"it has {mask.ndim} axes.", "Give masks with the axes (n, y, x)."
            )
        if not mask.any():
            raise InputError(
                f"mask {number}", "it has no foreground.", "Leave it out, or check its threshold."
            )
        regions = regionprops(label(mask, connectivity=2))
        region = max(regions, key=lambda one: one.area)
        shape = region.image
        height, width = shape.shape
        widths = shape.sum(axis=1).astype(float)
        # Corners of the outermost pixels of each row: enough for the convex hull, and quick.
        lines = np.arange(height)
        left = shape.argmax(axis=1)
        right = width - shape[:, ::-1].argmax(axis=1)
        corners = np.concatenate(
            [np.stack([lines + down, side], 1) for down in (0, 1) for side in (left, right)]
        )
        hull = ConvexHull(corners.astype(float))
        head_row = int(widths[: max(1, height // 2)].argmax())
        below = widths[head_row : max(head_row + 1, int(0.95 * height))]
        neck = float(below.min())
        head = float(widths[head_row])
        perimeter = max(region.perimeter, 1.0)
        major = region.axis_major_length
        minor = region.axis_minor_length
        hu = np.asarray(region.moments_hu)
        row = {
            "area_px2": region.area,
            "perimeter_px": region.perimeter,
            "convex_area_px2": hull.volume,
            "solidity": region.area / hull.volume,
            "extent": region.extent,
            "eccentricity": region.eccentricity,
            "major_axis_px": major,
            "minor_axis_px": minor,
            "axis_ratio": minor / major if major > 0 else 1.0,
            "orientation_cos": np.cos(2 * region.orientation),
            "orientation_sin": np.sin(2 * region.orientation),
            "feret_diameter_px": pdist(corners[hull.vertices]).max(),
            "equivalent_diameter_px": region.equivalent_diameter_area,
            "circularity": 4 * np.pi * region.area / perimeter**2,
            "euler_number": region.euler_number,
            "inscribed_radius_px": distance_transform_edt(np.pad(shape, 1)).max(),
            "height_px": height,
            "width_px": width,
            "height_to_width": height / width,
            "centroid_height": region.centroid_local[0] / height,
            "widest_height": widths.argmax() / height,
            "head_width_px": head,
            "neck_width_px": neck,
            "neck_to_head": neck / head,
            "base_width_px": widths[int(0.85 * height) :].max(),
            "components": len(regions),
        }
        # Logarithms: the seven moments span many powers of ten, and their sign means mirror images.
        row |= {
            f"hu_{order + 1}": np.sign(value) * np.log10(1 + abs(value) * 1e6)
            for order, value in enumerate(hu)
        }
        at = np.linspace(0, height - 1, 10).round().astype(int)
        row |= {f"width_{10 * order:02d}": value for order, value in enumerate(widths[at])}
        rows.append(row)
    return pd.DataFrame(rows).astype(float)
