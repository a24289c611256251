"""Polarity of electron micrographs: dark membranes on bright cytosol, or the other way round."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nbhelpers.imagesets.from_files import FileImages

# 5 px at 4 to 8 nm: wider than a membrane, narrower than a vesicle or a neurite
SMOOTH_PX = 1.0
MEMBRANE_PX = 5
BEYOND_DOUBT = 0.2  # sets of correct tissue, however blurred, never came near it
FEWEST = 5  # images whose signs can be counted; with fewer, LIMIT_ALONE
LIMIT_ALONE = 0.05
USUAL_SHARE = 0.25  # of correct images have the other sign at most, where they are small or blurred


def membrane_contrast(pixels: np.ndarray) -> np.ndarray:
    """How much more thin dark than thin bright structure each image holds: (n,) float64 from -1 to
    1.

    ``pixels`` is (n, y, x), (n, 1, y, x) or (n, 1, z, y, x), any integer type. Positive where
    membranes are dark, as in transmission EM; inverting the grey values turns the sign exactly;
    brightness and contrast do not matter. It is (B - W) / (B + W), with B and W the means of the
    black and the white top-hat (Meyer 1979) over 5 x 5 px after a Gaussian of 1 px. Constant images
    give 0. The median is .10 in patches of 128 px of real EM (Drosophila nerve cord) at 4.6 nm, .14
    at 8 nm and .31 in phantoms.
    """
    from scipy.ndimage import gaussian_filter, grey_closing, grey_opening

    found = np.zeros(len(pixels))
    for index, image in enumerate(pixels):
        image = np.asarray(image)
        sections = image.reshape(-1, *image.shape[-2:])
        sections = sections[:: max(1, len(sections) // 4)]  # of a cube a few suffice
        size = (1, MEMBRANE_PX, MEMBRANE_PX)
        smooth = gaussian_filter(sections.astype(np.float32), (0, SMOOTH_PX, SMOOTH_PX))
        dark = float((grey_closing(smooth, size=size) - smooth).mean())
        bright = float((smooth - grey_opening(smooth, size=size)).mean())
        found[index] = (dark - bright) / (dark + bright) if dark + bright > 0 else 0.0
    return found


def _signed(contrast: np.ndarray, usual: float) -> np.ndarray:
    """The contrast, positive where an image is the usual way round."""
    return np.asarray(contrast, np.float64) * (1.0 if usual >= 0 else -1.0)


def polarity_of(contrast: np.ndarray, usual: float = 1.0) -> str:
    """ "as usual", "in doubt" or "inverted": the polarity of a set of images, judged as a whole.

    ``contrast`` is what :func:`membrane_contrast` gives, ``usual`` that of the images to compare
    with. In doubt is a set in which clearly more images than a quarter have the other sign: dense
    tissue may look so. Inverted is one whose median is beyond doubt, with nine of ten images.
    """
    from scipy.stats import binomtest

    signed = _signed(contrast, usual)
    middle = np.median(signed)
    against = signed < 0
    if middle < -BEYOND_DOUBT and against.mean() >= 0.9:
        return "inverted"
    if len(signed) < FEWEST:
        return "in doubt" if middle < -LIMIT_ALONE else "as usual"
    chance = binomtest(int(against.sum()), len(signed), USUAL_SHARE, alternative="greater").pvalue
    return "in doubt" if chance < 0.05 else "as usual"


def unlike_the_others(contrast: np.ndarray, usual: float | None = None) -> np.ndarray:
    """(n,) bool: images that are inverted beyond doubt, however many, where others surely are not:
    by their contrast and by Tukey's outer fence around that of the others.

    ``usual`` is the contrast of the images to compare with, where there are such.
    """
    signed = _signed(contrast, usual or 1.0)
    others = signed[signed > 0]
    if len(others) < 3:
        others = [abs(usual or 0)]
    low, high = np.quantile(others, [0.25, 0.75])
    limit = min(-BEYOND_DOUBT, low - 3 * (high - low))
    # of small or dense patches the contrast spreads widely around a small value: there no single
    # one is beyond doubt
    return (signed < limit) & (low > high - low)


def with_doubts(
    found: FileImages, contrast: np.ndarray, usual: float = 1.0
) -> tuple[FileImages, dict[str, str]]:
    """The images with a note for each class that is in doubt, and ``in_doubt`` where some is; and
    what :func:`polarity_of` says of each class ("" without labels).
    """
    bright = "bright" if usual >= 0 else "dark"
    classes = found.table["label"].fillna("")
    verdicts = {
        name: polarity_of(contrast[rows], usual)
        for name, rows in classes.groupby(classes).indices.items()
    }
    doubted = [name for name, verdict in verdicts.items() if verdict != "as usual"]
    notes = [
        f"in many images{f' of class {name}' if name else ''} membranes look {bright}, as if grey "
        "values were inverted; dense tissue may look so: compare them with their inverse"
        for name in doubted
    ]
    if 0 < len(doubted) < len(verdicts):
        notes.append("in other classes they do not, so this alone may give the class away")
    if doubted:
        found = replace(found, table=found.table.assign(in_doubt=classes.isin(doubted)))
    return replace(found, notes=(*found.notes, *notes)), verdicts
