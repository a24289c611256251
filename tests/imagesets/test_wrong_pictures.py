"""The wrong kind of picture is refused by name: grey images for masks, drawings for stained tissue,
several objects for one; and nothing of the right kind is.
"""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy import ndimage

from nbhelpers.core.errors import UnreadableImageError
from nbhelpers.imagesets.masks import binarise
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.phantoms.spine import make_spine_phantoms
from nbhelpers.phantoms.synapse import load_phantom_synapses

Y, X = np.mgrid[:250, :250]


@pytest.fixture(scope="module")
def glomeruli():
    return np.array(load_phantom_glomeruli(24, 0).pixels)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return np.array(load_phantom_synapses(12, tmp_path_factory.mktemp("s"), seed=3).pixels)


def jpeg(image, quality):
    """(y, x) or (y, x, 3) uint8 as a JPEG gives it back."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def discs(*centres, radius=18):
    inside = np.zeros(X.shape, bool)
    for y, x in centres:
        inside |= (Y - y) ** 2 + (X - x) ** 2 < radius**2
    return inside.astype(np.uint8) * 255


# masks


def test_a_mask_with_several_objects_is_refused():
    five = discs((40, 40), (40, 200), (125, 120), (200, 60), (200, 200))
    with pytest.raises(UnreadableImageError, match=r"five\.png: several objects.*one object per"):
        binarise(five[None], "five.png")
    beside = np.maximum(discs((100, 100), radius=40), discs((100, 200), radius=20))
    with pytest.raises(UnreadableImageError, match="several objects"):
        binarise(beside[None], "x")
    noise = (np.random.default_rng(0).random((250, 250)) < 0.3).astype(np.uint8)
    with pytest.raises(UnreadableImageError, match="several objects"):
        binarise(noise[None], "x")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 3))
def test_specks_beside_a_spine_do_not_matter(seed, count, side):
    draw = np.random.default_rng(seed)
    mask = discs((125, 125), radius=60)
    for top, left in draw.integers(0, 247, (count, 2)):
        mask[top : top + side, left : left + side] = 255
    assert np.array_equal(binarise(mask[None], "x"), mask > 0)


def grey_images():
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 7, X.shape)
    spot = np.exp(-((Y - 120) ** 2 + (X - 120) ** 2) / 900)
    yield "fluorescence", 40 + 0.3 * X + 120 * spot + noise
    yield "on black", 255 * spot
    yield "saturated", 4 * 255 * spot
    yield "saturated and noisy", 4 * 255 * spot + abs(noise)
    yield "noise", draw.integers(0, 256, X.shape)
    yield "normal noise", draw.normal(128, 30, X.shape)
    yield "gradient", X
    yield "slope with ends", np.clip(2 * X - 125, 0, 255)
    yield "steeper slope", np.clip(4 * X - 400, 0, 255)
    yield "16 bit", (1000 + 3000 * spot) * 10 + 70 * noise
    spine = make_spine_phantoms(3, 1)[0][2] / 255
    light = ndimage.gaussian_filter(spine, 2) * 40 + 3
    yield "a spine as a microscope sees it", draw.poisson(light) * 5


@pytest.mark.parametrize(("name", "values"), grey_images(), ids=lambda one: str(one)[:20])
def test_a_grey_image_is_no_mask(name, values):
    kind = np.uint16 if values.max() > 2000 else np.uint8
    pixels = np.clip(values, 0, np.iinfo(kind).max).astype(kind)
    words = r"grey\.png: this is a grey image, not a mask: segment it first"
    with pytest.raises(UnreadableImageError, match=words):
        binarise(pixels[None], "grey.png")


def test_phantoms_of_other_things_are_no_masks(glomeruli, patches):
    for image in [*patches[:, 0], *glomeruli[:, 1]]:
        with pytest.raises(UnreadableImageError, match="grey image"):
            binarise(image[None], "x")
    for large in (500, 1000):  # so smooth that neighbours are equal
        y, x = np.mgrid[:large, :large] / large - 0.5
        spot = (255 * np.exp(-(x**2 + y**2) * 18)).astype(np.uint8)
        with pytest.raises(UnreadableImageError, match="grey image"):
            binarise(spot[None], "x")


CHANGES = {
    "none": lambda image: image,
    "JPEG": lambda image: Image.fromarray(jpeg(np.asarray(image), 50)),
    "coarse JPEG": lambda image: Image.fromarray(jpeg(np.asarray(image), 20)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "smaller": lambda image: image.resize((125, 125)),
    "larger": lambda image: image.resize((600, 600), Image.Resampling.BICUBIC),
    "larger, bilinear": lambda image: image.resize((1000, 1000), Image.Resampling.BILINEAR),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("matched", [False, True])
def test_masks_with_soft_edges_are_read(change, matched):
    for mask in make_spine_phantoms(40, 7, matched=matched)[0]:
        soft = np.asarray(change(Image.fromarray(mask)))
        assert np.array_equal(binarise(soft[None], "x"), soft > soft.max() / 2)
