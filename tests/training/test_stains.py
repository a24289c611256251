"""Stains: dyes change and not shapes, normalisation brings restained images back
together.
"""

import numpy as np
import pytest
import torch

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.training.stains import (
    change_dyes,
    normalise,
    normalised,
)

IMAGES = load_phantom_glomeruli(8, 2, size_px=64)


def as_float(pixels):
    return torch.from_numpy(np.array(pixels)).float() / 255


def test_dyes_do_not_move_pixels():
    flat = torch.full((1, 3, 8, 8), 0.5)
    found = change_dyes(
        flat, torch.tensor([1.4, 0.8, 1.1]).view(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)
    )
    assert torch.allclose(found, found[..., :1, :1].expand_as(found)) and not torch.allclose(
        found, flat
    )


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_two_stainings_of_one_image_come_nearer(method):
    images = as_float(IMAGES.pixels)
    other = change_dyes(
        images, torch.tensor([1.25, 0.8, 1.0]).view(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)
    )
    restained = (other * 255).round().to(torch.uint8).numpy()
    before = [
        np.abs(one.mean((1, 2)) - two.mean((1, 2))).mean()
        for one, two in zip(IMAGES.pixels, restained, strict=True)
    ]
    after = [
        np.abs(normalise(one, method).mean((1, 2)) - normalise(two, method).mean((1, 2))).mean()
        for one, two in zip(IMAGES.pixels, restained, strict=True)
    ]
    assert np.mean(after) < 0.6 * np.mean(before)


def test_normalised_sets_are_other_sets_and_keep_their_order():
    for method in ("macenko", "reinhard"):
        found = normalised(IMAGES, method)
        assert found.content_hash != IMAGES.content_hash and found.pixels.dtype == np.uint8
        assert np.array_equal(found.pixels[3], normalise(IMAGES.pixels[3], method))
    assert normalised(IMAGES, "none") is IMAGES


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_images_without_tissue_come_back_as_they_are(method):
    white = np.full((3, 40, 40), 252, np.uint8)
    assert np.array_equal(normalise(white, method), white)
    stripes = (
        np.where(np.arange(40) % 2, 60, 250)[None, None].repeat(3, 0).repeat(40, 1).astype(np.uint8)
    )
    assert (
        normalise(stripes, method).shape == stripes.shape
    )  # one dye: nothing to tell apart, and no error


def test_what_is_refused():
    with pytest.raises(ParameterError, match="normalisation.*vahadane"):
        normalise(IMAGES.pixels[0], "vahadane")
    with pytest.raises(InputError, match="1 channels.*red, green and blue"):
        change_dyes(torch.rand(2, 1, 8, 8), torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1))
