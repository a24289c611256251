"""Stains: changes in the space of dyes, and normalisation of one image to a common look (Macenko,
Reinhard).
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nbhelpers.core.errors import InputError, check_choice
from nbhelpers.core.files import sha256_of
from nbhelpers.core.imageset import ImageSet

METHODS = ("none", "macenko", "reinhard")
# optical density in every channel from which a pixel counts as stained (Macenko et al. 2009)
TISSUE_DENSITY = 0.15
# what images are normalised to: haematoxylin and periodic acid-Schiff, as optical density in red,
# green, blue ...
REFERENCE_DYES = np.array([[0.62, 0.70, 0.36], [0.22, 0.90, 0.38]])
REFERENCE_AMOUNTS = np.array([2.0, 2.4])  # ... of which the 99th percentile is brought to this
# CIELAB of the tissue
REFERENCE_MEAN = np.array([55.0, 40.0, -18.0])
REFERENCE_SPREAD = np.array([16.0, 14.0, 9.0])
FEWEST_PX = 500  # of tissue, below which an image says nothing of its stain


def change_dyes(images: Tensor, factors: Tensor, shifts: Tensor) -> Tensor:
    """(n, 3, y, x) RGB float from 0 to 1 with the amounts of haematoxylin, eosin and DAB times
    ``factors`` plus ``shifts``, each (n or 1, 3, 1, 1).

    Optical density is split into the three dyes (Ruifrok and Johnston 2001). A stain laboratory
    varies by about .2 (Tellez et al. 2018). Raises InputError for images that are not RGB.
    """
    if images.shape[1] != 3:
        raise InputError(
            "images",
            f"they have {images.shape[1]} channels, but stains need red, green and blue.",
            "Leave the stain as it is.",
        )
    from skimage.color import rgb_from_hed

    dyes = torch.tensor(np.asarray(rgb_from_hed), dtype=images.dtype, device=images.device)
    density = -torch.log(images.clamp(1 / 255, 1))
    amounts = torch.einsum("nkyx,kd->ndyx", density, torch.linalg.inv(dyes))
    amounts = amounts * factors.to(images) + shifts.to(images)
    return torch.exp(-torch.einsum("ndyx,dk->nkyx", amounts, dyes)).clamp(0, 1)


def normalise(image: np.ndarray, method: str) -> np.ndarray:
    """(3, y, x) uint8 RGB to the same with the common look of ``method``: "macenko", "reinhard" or
    "none".

    "macenko" finds the two dyes of the image as the extreme directions of its optical density, and
    puts the reference dyes in their place (Macenko et al. 2009). "reinhard" gives the tissue the
    mean and spread of the reference in CIELAB (Reinhard et al. 2001). Both look at this image
    alone, and nothing is fitted on others. An image with less than 500 px of tissue comes back as
    it is. Raises ParameterError for another method.
    """
    check_choice("parameter normalisation", method, METHODS)
    if method == "none":
        return image
    return _macenko(image) if method == "macenko" else _reinhard(image)


def _macenko(image: np.ndarray) -> np.ndarray:
    density = -np.log((image.reshape(3, -1).T.astype(np.float64) + 1) / 256)
    tissue = density[(density > TISSUE_DENSITY).all(1)]
    if len(tissue) < FEWEST_PX:
        return image
    plane = np.linalg.eigh(np.cov(tissue.T))[1][:, [2, 1]]
    plane[:, 0] *= np.sign(plane[:, 0].sum()) or 1.0
    along = tissue @ plane
    extremes = np.percentile(np.arctan2(along[:, 1], along[:, 0]), [1, 99])
    dyes = np.stack([plane @ [np.cos(angle), np.sin(angle)] for angle in extremes])
    if dyes[0, 0] < dyes[1, 0]:  # haematoxylin takes away more red
        dyes = dyes[::-1]
    if np.linalg.cond(dyes) > 50:  # one dye only: there are no two directions to be told apart
        return image
    amounts = density @ np.linalg.pinv(dyes)
    strongest = np.maximum(np.percentile(tissue @ np.linalg.pinv(dyes), 99, axis=0), 0.05)
    reference = REFERENCE_DYES / np.linalg.norm(REFERENCE_DYES, axis=1, keepdims=True)
    found = 256 * np.exp(-(amounts * (REFERENCE_AMOUNTS / strongest)) @ reference) - 1
    return np.clip(found, 0, 255).round().astype(np.uint8).T.reshape(image.shape)


def _reinhard(image: np.ndarray) -> np.ndarray:
    import warnings

    from skimage.color import lab2rgb, rgb2lab

    lab = rgb2lab(np.moveaxis(image, 0, -1))
    tissue = lab[..., 0] < 90
    if tissue.sum() < FEWEST_PX:
        return image
    mean = lab[tissue].mean(0)
    spread = np.maximum(lab[tissue].std(0), 1.0)
    lab[tissue] = (lab[tissue] - mean) / spread * REFERENCE_SPREAD + REFERENCE_MEAN
    with warnings.catch_warnings():
        # of colours that no screen can show: they are clipped
        warnings.simplefilter("ignore", UserWarning)
        found = lab2rgb(lab)
    return np.moveaxis((np.clip(found, 0, 1) * 255).round().astype(np.uint8), -1, 0)


def normalised(images: ImageSet, method: str) -> ImageSet:
    """The same set with every image normalised; other pixels are another ``content_hash``."""
    if method == "none":
        return images
    pixels = np.empty_like(images.pixels)
    for image, target in zip(images.pixels, pixels, strict=True):
        target[:] = normalise(np.asarray(image), method)
    return replace(
        images, pixels=pixels, content_hash=sha256_of([images.content_hash, "stain", method, 1])
    )
