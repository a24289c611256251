"""Takes the short cuts out of a phantom: its photometry becomes what it would be in either class.

Every image is drawn twice from the same random numbers, once in its own class and once in the
other. What both have in common on average, ring by ring and frequency by frequency, is then forced
upon the image. So grey levels, colours, radial profile and power spectrum are drawn independently
of the class, and what is left to tell it is where things lie: structure.
"""

from functools import cache

import numpy as np

RINGS = 16
BANDS = 32
ROUNDS = 5  # rings and bands disturb each other a little less in every round


def match_photometry(drawn: np.ndarray, *twins: np.ndarray) -> np.ndarray:
    """``drawn`` (n, y, x) float, n channels or sections, with the photometry that lies midway
    between its ``twins``: the same image drawn once in each class; float32.

    In each of 16 rings around the middle the sorted values become the mean of the twins', by rank;
    in each of 32 bands of frequency the power becomes nearly their geometric mean, phases stay.
    """
    found = np.empty(drawn.shape, np.float32)
    bands = _bands(*drawn.shape[1:])
    # far apart, so that sorting keeps the rings in order: one sort in place of one for each ring
    ring = 1e6 * _rings(*drawn.shape[1:])
    for number, matched in enumerate(drawn.astype(np.float64)):
        both = [twin[number] for twin in twins]
        values = np.mean([np.sort(one + ring, axis=None) for one in both], axis=0)
        values -= np.sort(ring, axis=None)
        power = np.exp(np.mean([np.log(_power(one, bands)) for one in both], axis=0))
        for _ in range(ROUNDS):
            matched = _with_power(matched, power, bands)
            matched.flat[np.argsort(matched + ring, axis=None)] = values
        found[number] = matched
    return found


@cache
def _rings(height: int, width: int) -> np.ndarray:
    """The ring of each pixel (y, x), whose last one has the corners. Each outermost line is a ring
    of its own: filtering wraps around the borders.
    """
    down, across = (np.abs(np.arange(size) * 2 - (size - 1)) / size for size in (height, width))
    ring = np.minimum((np.hypot(down[:, None], across) * RINGS).astype(int), RINGS - 1)
    for number, side in enumerate((np.s_[0], np.s_[-1], np.s_[1:-1, 0], np.s_[1:-1, -1])):
        ring[side] = RINGS + number
    return ring


@cache
def _bands(height: int, width: int) -> np.ndarray:
    """The band of each frequency (y, x) of :func:`numpy.fft.rfft2`."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    return np.minimum((frequency * 2 * BANDS).astype(int), BANDS - 1)


def _power(image: np.ndarray, bands: np.ndarray) -> np.ndarray:
    power = np.abs(np.fft.rfft2(image - image.mean())) ** 2
    return np.bincount(bands.ravel(), power.ravel(), BANDS) + 1e-6


def _with_power(image: np.ndarray, power: np.ndarray, bands: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft2(image - image.mean())
    spectrum *= np.sqrt(power / _power(image, bands))[bands]
    return np.fft.irfft2(spectrum, image.shape) + image.mean()
