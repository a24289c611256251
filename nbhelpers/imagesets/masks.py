"""Binary mask files: nothing but the shape of the foreground passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nbhelpers.core.errors import UnreadableImageError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets.folder import FileList
from nbhelpers.imagesets.from_files import read_files
from nbhelpers.imagesets.windows import FRAME_PX, centre_foreground

FEWEST_PX = 10  # of foreground


def binarise(pixels: np.ndarray, path: object) -> np.ndarray:
    """Foreground of a mask file: (channel, y, x) uint8 or uint16 to (y, x) bool.

    A pixel is foreground when it exceeds half of the brightest value of its own image, so that a
    mask gives the same result stored with 1, 8 or 16 bit, as 0/1 or 0/255. The published set mixes
    1-bit and 8-bit files, and which one it is says something about the class: nothing but the shape
    may pass.

    Raises UnreadableImageError for colour images, constant images, label images (0, 1, 2 ... for
    several objects) and inverted masks.
    """
    if len(pixels) > 1 and not (pixels == pixels[:1]).all():
        raise UnreadableImageError(
            path,
            "the image is in colour, but a mask is black and white.",
            "Give the segmented spine: white on black.",
        )
    mask = pixels[0]
    if mask.min() == mask.max():
        raise UnreadableImageError(
            path,
            f"the image is constant (every pixel is {mask.max()}).",
            "Segment the spine again, or leave the file out.",
        )
    if _has_flat_areas_between(mask):
        raise UnreadableImageError(
            path,
            "it holds areas of a value between the darkest and the brightest: labels of "
            "several objects, not one mask.",
            "Save one object per file, 0 outside and 255 inside.",
        )
    mask = mask > mask.max() / 2
    if mask.sum() < FEWEST_PX:
        raise UnreadableImageError(
            path,
            f"only {int(mask.sum())} px are white, too few for a spine.",
            "Segment the spine again, or leave the file out.",
        )
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if border.mean() > 0.5:
        raise UnreadableImageError(
            path,
            "the background is white and the spine black.",
            "Invert it (in Fiji: Edit > Invert).",
        )
    return mask


def _has_flat_areas_between(values: np.ndarray) -> bool:
    """Whether (y, x) values that are neither darkest nor brightest form areas: they do in label
    images.

    A smooth edge is a slope: next to none of its pixels has eight equal neighbours (in the
    published set none has), and with few grey levels it is only one or two pixels wide. With up to
    16 levels one such pixel is enough; with more, as in a blurred or JPEG mask, they must make up 5
    % of what is not background.
    """
    low = int(values.min())
    high = int(values.max())
    near = (high - low) // 32  # the ripple of JPEG in black and white areas
    between = (values > low + near) & (values < high - near)
    if not between.any():
        return False
    across = values[:, 1:] == values[:, :-1]
    down = values[1:] == values[:-1]
    row = across[:, 1:] & across[:, :-1]
    flat = row[:-2] & row[1:-1] & row[2:] & down[1:, 1:-1] & down[:-1, 1:-1] & between[1:-1, 1:-1]
    if not flat.any():
        return False
    return len(np.unique(values)) <= 16 or flat.sum() > 0.05 * (values > low + near).sum()


def fit_frame(mask: np.ndarray, size_px: int) -> np.ndarray:
    """Put a (y, x) bool mask of any size into a (size_px, size_px) frame: uint8, 0 and 255.

    A mask of that size stays as it is. Otherwise the foreground is centred; the scale is kept, as
    size tells the classes apart, unless the foreground does not fit: then it is shrunk just enough.
    """
    if mask.shape == (size_px, size_px):
        return mask.astype(np.uint8) * 255
    return centre_foreground(mask, size_px)


def from_files(listed: FileList, data_folder: str | Path, **about: object) -> ImageSet:
    """Read mask files; equal masks share a group where none is given.

    ``about`` goes to ImageSet. Copies of one mask under different labels are left out and listed.
    Raises InputError when no file of a class can be used.
    """
    found = read_files(
        listed,
        data_folder,
        _prepare,
        name=f"spine mask in a {FRAME_PX} px frame, 2",
        shape=(1, FRAME_PX, FRAME_PX),
    )
    shapes = [centre_foreground(mask[0] > 127, FRAME_PX) for mask in found.pixels]
    found = found.without_copies(shapes)
    table = found.table
    if "group" not in table:  # equal masks must not be trained on and tested on
        table = table.assign(group="mask-" + table["print"])
    table = table.assign(foreground_px=[int(np.count_nonzero(mask)) for mask in found.pixels])
    return replace(found, table=table).image_set(channels=("mask",), **about)


def _prepare(pixels: np.ndarray, path: Path) -> np.ndarray:
    return fit_frame(binarise(pixels, path), FRAME_PX)[None]
