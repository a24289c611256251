"""Where a model fails: errors by image quality and by neuron, from the pixels and the predictions
alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.intervals import (
    Difference,
    Sampling,
    difference_interval,
    likeness_effect,
    means_without_each,
    share_interval,
)
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import binned_shares, bins_of, check_one_model

QUALITIES = {
    "sharpness": "fine detail, relative",
    "contrast": "contrast, grey levels",
    "brightness": "brightness, grey levels",
    "noise": "noise, grey levels",
    "zero_fraction": "share of black pixels",
}
QUARTERS = 4
# the difference of two Laplacians: blind to slopes and edges; its standard deviation is 6 times the
# noise
NOISE_FILTER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
DIFFERENCE = ("difference", "difference_low", "difference_high")
ERROR_COLUMNS = (
    "quality",
    "bin",
    "from",
    "to",
    "n",
    "error",
    "low",
    "high",
    "method",
    *DIFFERENCE,
)


def image_quality(images: ImageSet) -> pd.DataFrame:
    """Five numbers per image from its pixels, one row per image with ``id``; grey levels are of
    255.

    ``sharpness``: variance of the Laplacian after a Gaussian of 1 px, over the variance of the
    image, so that brightness and contrast do not count; ``contrast``: standard deviation;
    ``brightness``: mean; ``noise``: standard deviation of pixel noise (Immerkaer 1996, with the
    median in place of the mean, so that membranes count little); ``zero_fraction``: share of pixels
    that are exactly 0 (missing data). Means over channels and sections. Black or constant images
    have sharpness 0.
    """
    rows = [_quality(np.asarray(image)) for image in images.pixels]
    return pd.DataFrame(rows, columns=list(QUALITIES)).assign(id=images.ids)[["id", *QUALITIES]]


def _quality(image: np.ndarray) -> tuple[float, ...]:
    from scipy.ndimage import convolve, gaussian_filter, laplace

    scale = 255 / np.iinfo(image.dtype).max
    found = []
    for plane in image.reshape(-1, *image.shape[-2:]):
        values = plane.astype(np.float32) * scale
        variance = float(values.var())
        detail = 0.0
        if variance > 1e-6:
            detail = float(laplace(gaussian_filter(values, 1.0)).var()) / variance
        residue = convolve(values, NOISE_FILTER)[1:-1, 1:-1]
        noise = float(np.median(abs(residue))) / (0.6745 * 6) if residue.size else 0.0
        black = float((plane == 0).mean())
        found.append((detail, variance**0.5, float(values.mean()), noise, black))
    return tuple(np.mean(found, axis=0))


def errors_by_quality(predictions: Predictions, quality: pd.DataFrame) -> pd.DataFrame:
    """Error rate in quarters of each quality column, with 95 % intervals over groups.

    ``quality`` has ``id`` and numbers per image: :func:`image_quality`, or anything else known of
    the images. Columns: ``quality``, ``bin`` (1 lowest), ``from``, ``to``, ``n`` images, ``error``,
    ``low``, ``high``, ``method``; ``difference``: error of the lowest less that of the highest bin,
    with ``difference_low`` and ``difference_high`` (the same in all rows of a quality; NaN where it
    is not defined). Equal values stay together, so a column may have fewer bins; one that never
    varies is left out. Raises PredictionsError when an image has no quality row or a quality is not
    finite.
    """
    check_one_model(predictions)
    table = predictions.table
    at = pd.Index(quality["id"].astype(str)).get_indexer(table["id"].astype(str))
    if (at < 0).any():
        raise PredictionsError(
            f"predictions, image {table['id'].iloc[int((at < 0).argmax())]}",
            "its quality is not in the table.",
            "Measure the same images that were predicted.",
        )
    wrong = (predictions.predicted_index != predictions.true_index).astype(float)
    rows = []
    for name in quality.columns.drop("id"):
        values = quality[name].to_numpy(np.float64)[at]
        if not np.isfinite(values).all():
            raise PredictionsError(
                f"quality {name}",
                f"{int((~np.isfinite(values)).sum())} values are not finite.",
                "Leave these images or this column out.",
            )
        which = bins_of(values, QUARTERS)
        if which.max() == 0:  # nearly all are the lowest value: those against the rest
            which = (values > values.min()).astype(np.int64)
        if which.max() == 0:
            continue
        shares = binned_shares(table, wrong, which)
        difference = _difference_of_bins(table, wrong, which)
        for index, error in enumerate(shares):
            inside = values[which == index]
            rows.append(
                {
                    "quality": name,
                    "bin": index + 1,
                    "from": inside.min(),
                    "to": inside.max(),
                    "n": error.n,
                    **error.columns("error"),
                    "method": error.method or error.reason,
                    **difference.columns(*DIFFERENCE),
                }
            )
    table = pd.DataFrame(rows, columns=ERROR_COLUMNS)
    return table.astype(dict.fromkeys(DIFFERENCE[1:], float))


def _difference_of_bins(table: pd.DataFrame, wrong: np.ndarray, which: np.ndarray) -> Difference:
    """Error of the lowest bin less that of the highest, other images of the same groups."""
    group, names = pd.factorize(table["group"], sort=True)
    repeats = table["repeat"].nunique()
    error = 0.0
    left = np.zeros(len(names))
    variance = 0.0
    influence = np.zeros(len(names))
    for index, sign in ((0, 1), (int(which.max()), -1)):
        inside = which == index
        sizes = np.bincount(group[inside], minlength=len(names)) / repeats
        sums = np.bincount(group[inside], wrong[inside], len(names)) / repeats
        total = sizes.sum()
        share = (sums.sum() + 1) / (total + 2)  # no share is certain
        variance += share * (1 - share) / total
        error += sign * sums.sum() / total
        left += sign * means_without_each(sums, sizes)
        influence += sizes / total / 2
    n = int(table["id"].nunique())
    sampling = Sampling(
        influence, np.zeros(len(names), np.int64), n, likeness_effect(influence * n)
    )
    return difference_interval(
        error, left, sampling, n, image_variance=variance, differing=float(wrong.sum()) / repeats
    )


def errors_by_neuron(predictions: Predictions) -> pd.DataFrame:
    """One row per neuron (group), the worst first: ``neuron``, ``label``, ``n`` synapses,
    ``errors``, ``error``, ``low`` and ``high`` (over its synapses), ``wrong_as`` (its
    commonest wrong class).

    Sorted by ``low``: with few synapses a high error rate may be chance. Errors are means over
    repeats.
    """
    check_one_model(predictions)
    table = predictions.table.assign(wrong=predictions.predicted_index != predictions.true_index)
    repeats = table["repeat"].nunique()
    rows = []
    for name, part in table.groupby("group", sort=True):
        n = int(part["id"].nunique())
        errors = float(part["wrong"].sum()) / repeats
        low, high = share_interval(min(errors, n) / n, n)
        mistaken = part.loc[part["wrong"], "predicted"].value_counts()
        rows.append(
            {
                "neuron": name,
                "label": "/".join(sorted(set(part["label"]))),
                "n": n,
                "errors": errors,
                "error": errors / n,
                "low": low,
                "high": high,
                "wrong_as": mistaken.index[0] if len(mistaken) else "",
            }
        )
    order = ["low", "error", "neuron"]
    return pd.DataFrame(rows).sort_values(order, ascending=[False, False, True], ignore_index=True)


def failure_sentences(
    by_quality: pd.DataFrame, by_neuron: pd.DataFrame, unit: str = "neuron"
) -> list[str]:
    """Where it fails, in words: qualities whose lowest and highest bin differ beyond chance, and
    the worst neurons.

    ``unit`` is the word for a group.
    """
    from scipy.stats import binom

    said = []
    for name, part in by_quality.groupby("quality", sort=False):
        first = part.iloc[0]
        low = first["difference_low"]
        high = first["difference_high"]
        if low > 0 or high < 0:
            worse = "low" if first["difference"] > 0 else "high"
            said.append(
                f"Errors go with {worse} {name.replace('_', ' ')}: {first['error']:.1%} in the "
                f"lowest part of the images, {part['error'].iloc[-1]:.1%} in the highest "
                f"(difference {100 * first['difference']:.0f} points, {100 * low:.0f} to "
                f"{100 * high:.0f})."
            )
    if not said and len(by_quality):
        said.append("No measured image quality goes with the errors beyond chance.")
    errors = by_neuron["errors"]
    overall = errors.sum() / by_neuron["n"].sum()
    chance = binom.sf(np.ceil(errors) - 1, by_neuron["n"], overall)
    worst = by_neuron[chance < 0.05 / len(by_neuron)]  # Bonferroni: one false name in 20 tables
    if len(worst):
        share = worst["errors"].sum() / max(errors.sum(), 1e-9)
        named = [f"{row.neuron} ({row.error:.0%} of {row.n})" for row in worst[:5].itertuples()]
        said.append(
            f"{len(worst)} of {len(by_neuron)} {unit}s have more errors than chance allows and "
            f"hold {share:.0%} of them: {', '.join(named)}."
        )
    elif len(by_neuron) > 1:
        said.append(f"No {unit} stands out among {len(by_neuron)}.")
    return said
