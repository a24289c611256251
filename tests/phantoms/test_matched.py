"""Matched phantoms: both classes have the same photometry, and each keeps its structure."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nbhelpers.evaluation.floors import photometric_features
from nbhelpers.phantoms.matched import match_photometry

_FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "phantom_floors.py"
_SPEC = importlib.util.spec_from_file_location("phantom_floors", _FILE)
phantom_floors = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(phantom_floors)


def twins(seed=0, size=64):
    """Two images that nearly all photometry tells apart: discs and a smooth texture."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:size, :size]
    discs = np.full((size, size), 120.0)
    for y, x in rng.uniform(0, size, (14, 2)):
        discs[np.hypot(down - y, across - x) < 4] = 60
    smooth = 140 + 30 * gaussian_filter(rng.normal(size=(size, size)), 1.5) * 5
    noise = rng.normal(0, 3, (2, size, size))
    return discs + noise[0], smooth + noise[1]


def test_twins_end_with_the_same_photometry():
    first, second = twins()
    ends = [match_photometry(one[None], first[None], second[None]) for one in (first, second)]
    pixels = np.stack(ends).clip(0, 255).round().astype(np.uint8)
    before = np.stack([first[None], second[None]]).clip(0, 255).round().astype(np.uint8)
    for name, values in photometric_features(pixels).items():
        gap = values.diff().abs().iloc[1]
        was = photometric_features(before)[name].diff().abs().iloc[1]
        assert gap.mean() < 0.25 * was.mean(), name


def test_structure_stays():
    first, second = twins()
    matched = match_photometry(first[None], first[None], second[None])[0]
    assert np.corrcoef(matched.ravel(), first.ravel())[0, 1] > 0.7
    assert abs(np.corrcoef(matched.ravel(), second.ravel())[0, 1]) < 0.2
    again = match_photometry(first[None], first[None], second[None])[0]
    assert np.array_equal(matched, again)


def test_an_image_that_is_its_own_twin_stays_as_it_is():
    first, _ = twins(1)
    assert np.allclose(match_photometry(first[None], first[None], first[None]), first, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", phantom_floors.KINDS)
@pytest.mark.parametrize("seed", phantom_floors.SEEDS)
def test_no_short_cut_is_left_in_a_matched_phantom(kind, seed, tmp_path):
    images = phantom_floors.KINDS[kind][0](seed, True, tmp_path)
    assert len(images) >= phantom_floors.FEWEST
    found = phantom_floors.scores(images, seed)
    if kind == "synapse cubes, order of sections":  # the order is the class
        assert found.pop("neighbouring sections") > phantom_floors.BOUND
    assert max(found.values()) <= phantom_floors.BOUND, found
