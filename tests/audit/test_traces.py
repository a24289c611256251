"""Copies that were cropped, shifted, inverted or stored anew are found, lookalikes are not; and
traces of how images were taken tell the class where one class alone has them.
"""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from nbhelpers.audit import duplicates
from nbhelpers.audit.question import Question
from nbhelpers.audit.shortcuts import shortcut_checks
from nbhelpers.audit.traces import traces
from nbhelpers.core.imageset import ImageSet

SIDE = 64


def texture(count: int, seed: int) -> np.ndarray:
    """(count, 1, 64, 64) uint8: noise with fine and coarse detail, no two alike."""
    noise = np.random.default_rng(seed).normal(size=(count, 1, SIDE, SIDE))
    fine = gaussian_filter(noise, (0, 0, 1.5, 1.5)) * 100
    coarse = gaussian_filter(noise[::-1], (0, 0, 3, 3)) * 300
    return np.clip(128 + fine + coarse, 0, 255).astype(np.uint8)


def resized(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


CHANGES = {
    "inverted": lambda image: 255 - image,
    "cropped to 90 %": lambda image: resized(np.ascontiguousarray(image[6:, :58]), SIDE),
    "cropped to 80 %": lambda image: resized(np.ascontiguousarray(image[:51, 13:]), SIDE),
    "shifted by 5 %": lambda image: shift(image, (3, -3), order=0),
    "shifted by 10 %": lambda image: shift(image, (-6, 6), order=0, mode="nearest"),
    "JPEG 30": lambda image: jpeg(image, 30),
    "rescaled to 1/4": lambda image: resized(resized(image, SIDE // 4), SIDE),
    "turned and mirrored": lambda image: np.rot90(image)[:, ::-1],
    "half the contrast": lambda image: (image // 2 + 60).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(change):
    pixels = texture(60, 1)
    made = [CHANGES[change](pixels[at, 0])[None] for at in range(5)]
    one, other, alike, asked = duplicates.near_pairs(np.concatenate([pixels, np.stack(made)]))
    found = set(zip(one.tolist(), other.tolist(), strict=True))
    assert found == {(at, 60 + at) for at in range(5)}
    assert (alike >= asked).all() and (alike <= 1).all()


def test_a_family_of_many_copies_is_found_whole():
    """Crops of a few images, each moved by a little, that were made before the split: an image has
    more copies than strangers that are like it.
    """
    originals = texture(12, 2)[:, 0]
    family = []
    for image in originals:
        for down in (0, 4, 8, 12):
            part = np.ascontiguousarray(image[down : down + 52, 12 - down : 64 - down])
            family.append(resized(part, SIDE)[None])
    one, other, _, _ = duplicates.near_pairs(np.stack(family))
    assert (one // 4 == other // 4).all()
    found = set(zip(one.tolist(), other.tolist(), strict=True))
    assert {(at, at + 1) for at in range(48) if at % 4 < 3} <= found


def test_a_dark_corner_that_all_images_share_makes_no_copies():
    y, x = np.mgrid[:SIDE, :SIDE]
    lit = np.hypot(y, x) < 70
    faint = gaussian_filter(np.random.default_rng(3).normal(size=(60, 1, SIDE, SIDE)), (0, 0, 1, 1))
    pixels = np.where(lit, 150 + 12 * faint, 4).astype(np.uint8)
    assert len(duplicates.near_pairs(pixels)[0]) == 0


def labelled(pixels: np.ndarray, labels: np.ndarray) -> ImageSet:
    rows = {
        "id": [f"i{at}" for at in range(len(pixels))],
        "label": np.array(["A", "B"], object)[labels],
        "group": [f"g{at // 3}" for at in range(len(pixels))],
    }
    return ImageSet("traced", pd.DataFrame(rows), pixels, ("A", "B"), "a test", True)


DEFECTS = {
    "compression": lambda image: jpeg(image, 40),
    "sharpness and noise": lambda image: resized(resized(image, SIDE // 2), SIDE),
    "grey levels": lambda image: (255 * (image / 255) ** 1.15).round().astype(np.uint8),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_what_was_done_to_one_class_alone_tells_it(name):
    labels = np.arange(90) // 3 % 2
    pixels = texture(90, 4)
    assert not [
        one for one in shortcut_checks(Question(labelled(pixels, labels))) if one.verdict != "pass"
    ]
    for at in np.flatnonzero(labels == 1):
        pixels[at, 0] = DEFECTS[name](pixels[at, 0])
    check = {one.name: one for one in shortcut_checks(Question(labelled(pixels, labels)))}[
        f"shortcut: {name}"
    ]
    assert check.verdict in ("warn", "fail") and check.numbers["auc"] > 0.9
    assert name == "compression" or "look whether it is the biology" in check.fix


def test_a_smooth_class_is_no_compressed_one():
    """Structure that follows no grid of 8 x 8 px may be the biology: it must not fail an audit."""
    labels = np.arange(90) // 3 % 2
    pixels = texture(90, 5)
    smooth = gaussian_filter(pixels[labels == 1].astype(float), (0, 0, 2, 2))
    pixels[labels == 1] = smooth.astype(np.uint8)
    checks = {one.name: one for one in shortcut_checks(Question(labelled(pixels, labels)))}
    assert checks["shortcut: compression"].verdict == "pass"
    assert checks["shortcut: sharpness and noise"].verdict == "warn"


def test_traces_of_volumes_colour_and_small_images():
    cubes = np.random.default_rng(0).integers(0, 255, (3, 1, 5, 40, 48), dtype=np.uint8)
    found = traces(cubes, np.arange(3))
    assert set(found) == {"compression", "sharpness and noise", "grey levels", "handedness"}
    assert all(table.shape[0] == 3 and np.isfinite(table).all(None) for table in found.values())
    small = np.zeros((2, 3, 24, 24), np.uint16)
    found = traces(small, np.array([1]))
    assert "compression" not in found and np.isfinite(found["colour balance"]).all(None)
    assert found["grey levels"]["brightest level"].tolist() == [0]
