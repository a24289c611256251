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

    Raises UnreadableImageError for colour and grey images, constant images, label images (0, 1, 2
    ... for several objects), inverted masks and masks of several objects.
    """
    if len(pixels) > 1 and not (pixels == pixels[:1]).all():
        raise UnreadableImageError(
            path,
            "the image is in colour, but a mask is black and white.",
            "Give the segmented spine: white on black.",
        )
    values = pixels[0]
    high = int(values.max())
    low = int(values.min())
    if low == high:
        raise UnreadableImageError(
            path,
            f"the image is constant (every pixel is {high}).",
            "Segment the spine again, or leave the file out.",
        )
    mask = values > high // 2
    white = np.count_nonzero(mask)
    near = (high - low) // 32  # the ripple of JPEG in black and white areas
    lit = values > low + near
    between = lit & (values < high - near)
    if between.any():
        if _has_flat_areas(values, between, lit):
            raise UnreadableImageError(
                path,
                "it holds areas of a value between the darkest and the brightest: labels of "
                "several objects, or a grey image, not one mask.",
                "Segment it first; save one object per file, 0 outside and 255 inside.",
            )
        if _is_grey(mask, between, min(white, mask.size - white)):
            raise UnreadableImageError(
                path,
                "this is a grey image, not a mask: segment it first.",
                "Give the segmented spine: white on black.",
            )
    if white < FEWEST_PX:
        raise UnreadableImageError(
            path,
            f"only {white} px are white, too few for a spine.",
            "Segment the spine again, or leave the file out.",
        )
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if np.count_nonzero(border) > border.size / 2:
        raise UnreadableImageError(
            path,
            "the background is white and the spine black.",
            "Invert it (in Fiji: Edit > Invert).",
        )
    _check_one_object(mask, path)
    return mask


def _has_flat_areas(values: np.ndarray, between: np.ndarray, lit: np.ndarray) -> bool:
    """Whether (y, x) values ``between`` darkest and brightest form areas: they do in label images.

    A smooth edge is a slope: next to none of its pixels has eight equal neighbours (in the
    published set none has), and with few grey levels it is only one or two pixels wide. With up to
    16 levels one such pixel is enough; with more, as in a blurred or JPEG mask, they must make up 5
    % of what is ``lit``: no background.
    """
    across = values[:, 1:] == values[:, :-1]
    down = values[1:] == values[:-1]
    row = across[:, 1:] & across[:, :-1]
    flat = row[:-2] & row[1:-1] & row[2:] & down[1:, 1:-1] & down[:-1, 1:-1] & between[1:-1, 1:-1]
    if not flat.any():
        return False
    return len(np.unique(values)) <= 16 or flat.sum() > 0.05 * lit.sum()


def _is_grey(mask: np.ndarray, between: np.ndarray, fewer: int) -> bool:
    """Whether values ``between`` darkest and brightest fill the image, or lie far from every edge
    of its ``mask``, both (y, x) bool; ``fewer`` counts what there is less of, white or black.

    The slope along the edge of a mask is as wide as what blurred it, and may have three times as
    many pixels as the mask. But of 456 published masks and 550 phantoms of spines, of 32 to 250 px,
    blurred by 2 px, saved as JPEG or resized, none fills 45 % with it, or has 20 % as much as white
    6 px and more (in large images, a 32nd of the side) from where white begins. Sections of EM,
    noise, stained tissue and all but 1 of 1980 pictures of cells do the one or the other.
    """
    count = np.count_nonzero(between)
    if count > 0.45 * mask.size:
        return True
    if count <= fewer / 2:
        return False
    from scipy import ndimage

    reach = 2 * max(6, min(mask.shape) // 32) + 1
    alike = ndimage.maximum_filter(mask, reach) == ndimage.minimum_filter(mask, reach)
    return np.count_nonzero(between & alike) > 0.2 * fewer


def _check_one_object(mask: np.ndarray, path: object) -> None:
    """Raises UnreadableImageError for several objects: a second one of a tenth of the largest, or
    many that have half of its area together, as in noise.

    All specks beside a spine have at most 0.4 % of its area in the 456 published masks, and 3.4 %
    in 3,600 phantoms (of 32 px, where a rough outline falls into corners).
    """
    from scipy import ndimage

    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    labels, count = ndimage.label(box, np.ones((3, 3)))  # a neck may hang together by corners
    if count == 1:
        return
    sizes = np.sort(np.bincount(labels.ravel())[1:])
    if sizes[-2] > sizes[-1] / 10 or sizes[:-1].sum() > sizes[-1] / 2:
        raise UnreadableImageError(
            path,
            f"several objects are white ({count}, specks included).",
            "Save one object per file; close the gap where one spine is in two pieces.",
        )


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
        name=f"spine mask in a {FRAME_PX} px frame, and its scale, 4",
        shape=(1, FRAME_PX + 1, FRAME_PX),
    )
    shrunk = np.ascontiguousarray(found.pixels[:, 0, -1, :4]).view(np.float32)[:, 0]
    found = replace(
        found,
        table=found.table.assign(shrunk=shrunk.astype(np.float64)),
        pixels=found.pixels[:, :, :-1],
    )
    shapes = [centre_foreground(mask[0] > 127, FRAME_PX) for mask in found.pixels]
    found = found.without_copies(shapes)
    found.check_classes(listed)
    table = found.table
    if "group" not in table:  # equal masks must not be trained on and tested on
        table = table.assign(group="mask-" + table["print"])
    table = table.assign(foreground_px=[int(np.count_nonzero(mask)) for mask in found.pixels])
    return replace(found, table=table).image_set(channels=("mask",), **about)


def _prepare(pixels: np.ndarray, path: Path) -> np.ndarray:
    """The mask in its frame, and below it a row that begins with four bytes, a float32: how many px
    of the file are one px of the frame, 1 where the mask fits.
    """
    mask = binarise(pixels, path)
    sides = [np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (0, 1)]
    last = np.zeros((1, FRAME_PX), np.uint8)
    last[0, :4] = np.frombuffer(np.float32(max(1.0, max(sides) / FRAME_PX)).tobytes(), np.uint8)
    return np.concatenate([fit_frame(mask, FRAME_PX), last])[None]
