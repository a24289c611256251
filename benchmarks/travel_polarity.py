"""How often patches and stacks of real tissue are refused or doubted for their polarity, and how
often inverted ones are seen. ``measure`` is called by ``benchmarks/travel.py``.

The tissue is the nerve cord of the set "vnc": patches at 4.6, 8 and 10 nm, of three sizes, sharp to
blurred, in three contrasts; and stacks of eight sections. A patch or a set is refused where it is
inverted beyond doubt; a set that is in doubt is kept, and shown both ways.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.imageset import failure_table
from nbhelpers.imagesets.from_files import FileImages
from nbhelpers.imagesets.polarity import (
    membrane_contrast,
    polarity_of,
    unlike_the_others,
    with_doubts,
)
from nbhelpers.imagesets.reader import read_image

TISSUE_NM = 4.6
SIZES_NM = (4.6, 8.0, 10.0)
CROPS_PX = (64, 96, 128)
BLURS_PX = (0, 1, 2, 3)
STRENGTHS = (0.5, 1.0, 1.5)  # of the contrast
SET = 24  # patches
FIRST = 1  # of every fourth section is read from here on: others than those of the tests
STACK = (8, 128, 128)


def measure(data_folder: Path) -> list[dict]:
    """Rows for ``docs/travel.json``; of the folder it reads ``vnc_sstem/stack1/raw``."""
    files = sorted((data_folder / "vnc_sstem" / "stack1" / "raw").glob("*.tif"))
    sections = [read_image(file)[0].astype(np.float32) for file in files]
    rows = []
    for nm in SIZES_NM:
        sets = [membrane_contrast(patches) for patches in patch_sets(sections, nm)]
        inverted = [-contrast for contrast in sets]  # inverting turns the sign exactly
        at = f"at {nm:g} nm"
        rows += [
            row(f"patches as they are, {at}: refused", np.concatenate(list(map(refused, sets)))),
            row(f"sets as they are, {at}: doubted or refused", list(map(doubted, sets))),
            row(f"inverted sets, {at}: doubted or refused", list(map(doubted, inverted)), False),
            row(
                f"inverted sets, {at}: refused",
                [one.all() for one in map(refused, inverted)],
                False,
            ),
        ]
    stacks = [membrane_contrast(cubes) for cubes in stack_sets(sections)]
    rows += [
        row("sets of stacks as they are: doubted", list(map(doubted, stacks))),
        row("inverted sets of stacks: doubted", [doubted(-one) for one in stacks], False),
    ]
    classes = [doubted_classes(one) for one in stacks]
    rows += [
        row("class of stacks as they are, the other inverted: doubted", [a for a, _ in classes]),
        row("inverted class of stacks: doubted", [b for _, b in classes], False),
    ]
    return rows


def row(version: str, flagged: np.ndarray | list[bool], right: bool = True) -> dict:
    share = float(np.mean(flagged))
    return {
        "task": "polarity",
        "version": version,
        "n": len(flagged),
        "flagged": share,
        "flagged_right" if right else "flagged_wrong": share,
    }


def refused(contrast: np.ndarray) -> np.ndarray:
    """(n,) bool: patches that are left out, as in :mod:`nbhelpers.imagesets.synapses`."""
    return unlike_the_others(contrast) | (polarity_of(contrast) == "inverted")


def doubted(contrast: np.ndarray) -> bool:
    return polarity_of(contrast) != "as usual"


def doubted_classes(contrast: np.ndarray) -> tuple[bool, bool]:
    """Whether class "a", as it is, and class "b", inverted, are in doubt where both are given."""
    label = np.array(["a", "b"])[np.arange(len(contrast)) % 2]
    table = pd.DataFrame({"label": label})
    given = FileImages(table, np.zeros(len(table)), failure_table([]))
    found, _ = with_doubts(given, np.where(label == "b", -contrast, contrast))
    doubts = found.table.get("in_doubt", pd.Series(False, table.index)).groupby(label).any()
    return bool(doubts["a"]), bool(doubts["b"])


def patch_sets(sections: list[np.ndarray], nm: float) -> Iterator[np.ndarray]:
    """Sets of (24, y, x) uint8 patches, one for each size, blur and contrast."""
    from scipy.ndimage import gaussian_filter
    from skimage.transform import rescale

    draw = np.random.default_rng(round(10 * nm))
    small = [rescale(one, TISSUE_NM / nm, anti_aliasing=True) for one in sections[FIRST::4]]
    for blur in BLURS_PX:
        blurred = [gaussian_filter(one, blur) for one in small]
        for size in CROPS_PX:
            patches = []
            for number in range(SET):
                section = blurred[number % len(blurred)]
                y, x = draw.integers(0, len(section) - size, 2)
                patches.append(section[y : y + size, x : x + size])
            for strength in STRENGTHS:
                grey = 128 + (np.stack(patches) - 128) * strength
                yield np.clip(grey, 0, 255).astype(np.uint8)


def stack_sets(sections: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Sets of (24, z, y, x) uint8 stacks at 4.6 nm, one for each blur and contrast."""
    from scipy.ndimage import gaussian_filter

    draw = np.random.default_rng(0)
    volume = np.stack(sections)
    for blur, strength in itertools.product(BLURS_PX, STRENGTHS):
        stacks = []
        for _ in range(SET):
            corner = [
                draw.integers(0, have - want)
                for have, want in zip(volume.shape, STACK, strict=True)
            ]
            cut = tuple(
                slice(start, start + want) for start, want in zip(corner, STACK, strict=True)
            )
            stacks.append(gaussian_filter(volume[cut], (0, blur, blur)))
        yield np.clip(128 + (np.stack(stacks) - 128) * strength, 0, 255).astype(np.uint8)
