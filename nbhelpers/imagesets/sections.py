"""What can be told of a stack of sections by its pixels alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import sha256_of
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.kept import kept


def shape_text(shape: Sequence[int]) -> str:
    """The size (y, x) or (z, y, x) in words."""
    plane = f"{shape[-2]} x {shape[-1]} px"
    return plane if len(shape) == 2 else f"{shape[0]} sections of {plane}"


def voxel_text(voxel_nm: Sequence[float] | None) -> str:
    """The size of a voxel in words."""
    return " x ".join(f"{side:g}" for side in voxel_nm) + " nm" if voxel_nm else "unknown size"


def middle(stored: Sequence[int], wanted: Sequence[int]) -> tuple[slice, ...]:
    """Where the middle of a ``wanted`` shape lies in a ``stored`` one, of the same axes."""
    first = [(have - want) // 2 for have, want in zip(stored, wanted, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(first, wanted, strict=True))


def central(images: ImageSet, shape_px: Sequence[int], data_folder: str | Path) -> ImageSet:
    """The middle of every image, (y, x) or (z, y, x) pixels, kept on disk; the set itself where its
    images have that shape.

    Raises InputError for images that are smaller, along any axis.
    """
    stored = tuple(images.pixels.shape[2:])
    wanted = tuple(int(side) for side in shape_px)
    if stored == wanted:
        return images
    if any(have < want for have, want in zip(stored, wanted, strict=True)):
        least = f"Set size_px to {min(stored[-2:])} or less"
        if len(stored) == 3:
            least = f"Set sections to {stored[0]} or less and size_px to {min(stored[1:])} or less"
        raise InputError(
            images.name,
            f"its images are {shape_text(stored)}, smaller than the {shape_text(wanted)} asked "
            "for.",
            f"{least}, or cut larger ones out.",
        )
    place = middle(stored, wanted)
    key = [images.content_hash, "central", wanted]
    rows = range(len(images))
    pixels = kept(
        Path(data_folder) / "packed",
        key,
        # one image at a time: they may lie in many files
        lambda: (images.pixels[row][(slice(0, 1), *place)][None] for row in rows),
    )
    return replace(
        images,
        pixels=pixels,
        content_hash=sha256_of(key),
        source=f"{images.source}; the central {shape_text(wanted)} of {shape_text(stored)}",
    )


def zero_fraction(pixels: np.ndarray) -> np.ndarray:
    """(n, z, y, x) to (n, z) float64: share of each section that is exactly 0, as where the volume
    has no tissue.
    """
    return 1 - np.count_nonzero(pixels, axis=(2, 3)) / (pixels.shape[2] * pixels.shape[3])


def continuity(pixels: np.ndarray) -> np.ndarray:
    """(n, z, y, x) to (n,) float64: mean correlation of neighbouring sections, low where one is
    lost or shifted.

    A constant section correlates with nothing: its pairs count as 0. NaN for a single section.
    """
    result = np.full(len(pixels), np.nan)
    constant = constant_sections(pixels)
    for at, cube in enumerate(
        pixels
    ):  # one at a time: in float, all of them are eight times as large
        flat = cube.reshape(len(cube), -1).astype(np.float32)
        flat -= flat.mean(axis=1, keepdims=True)
        norm = np.sqrt(np.einsum("zi,zi->z", flat, flat, dtype=np.float64))
        pairs = norm[1:] * norm[:-1]
        pairs[constant[at, 1:] | constant[at, :-1]] = (
            0  # whose mean, in float, may be off by a little
        )
        if len(pairs):
            products = np.einsum("zi,zi->z", flat[1:], flat[:-1], dtype=np.float64)
            result[at] = np.divide(
                products, pairs, out=np.zeros(len(pairs)), where=pairs > 0
            ).mean()
    return result


def constant_sections(pixels: np.ndarray) -> np.ndarray:
    """(n, z, y, x) to (n, z) bool: sections of one single grey value, whichever: nothing was imaged
    there.
    """
    return pixels.max(axis=(2, 3)) == pixels.min(axis=(2, 3))
