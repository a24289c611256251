"""Polarity of electron micrographs: dark membranes on bright cytosol, or the other way round."""

from __future__ import annotations

import numpy as np

# 5 px at 4 to 8 nm: wider than a membrane, narrower than a vesicle or a neurite
SMOOTH_PX = 1.0
MEMBRANE_PX = 5
LIMIT = 0.03  # of the median of a set; below it, from noise and content, the sign says nothing
LIMIT_ALONE = 0.05  # of a single image


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


def inverted(contrast: np.ndarray, usual: float = 1.0) -> np.ndarray:
    """(n,) bool: which images have the opposite polarity of ``usual``, the contrast of the images
    to compare with.

    ``contrast`` is what :func:`membrane_contrast` gives. An image by itself must be clearly
    inverted; where the median of five or more is, all of them count that are not clearly right. Of
    1,280 single patches of real EM at 4.6 nm 2 are called inverted by mistake and 87 % are found
    when they are; at 8 nm none of 320, and 95 %.
    """
    contrast = np.asarray(contrast, np.float64) * (1.0 if usual >= 0 else -1.0)
    if len(contrast) >= 5 and np.median(contrast) < -LIMIT:
        return contrast < LIMIT
    return contrast < -LIMIT_ALONE
