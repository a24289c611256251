"""What can be told of a stack of sections by its pixels alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cube_text(shape: Sequence[int]) -> str:
    """The size (z, y, x) in words."""
    return f"{shape[0]} sections of {shape[1]} x {shape[2]} px"


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
