"""Stains: augmentation changes dyes and not shapes, normalisation brings restained images back
together.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.training.recipe import Augmentation
from nbhelpers.training.stains import (
    StainPreparation,
    change_dyes,
    jitter_dyes,
    normalise,
    normalised,
)

IMAGES = load_phantom_glomeruli(8, 2, size_px=64)


def as_float(pixels):
    return torch.from_numpy(np.array(pixels)).float() / 255


@given(st.floats(0.0, 1.0), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_jitter_stays_between_0_and_1_and_depends_on_the_generator_alone(strength, seed):
    images = as_float(IMAGES.pixels[:3])
    found = [jitter_dyes(images, strength, torch.Generator().manual_seed(seed)) for _ in (0, 1)]
    assert torch.equal(*found) and found[0].min() >= 0 and found[0].max() <= 1


def test_no_jitter_gives_the_image_back_and_more_jitter_changes_it_more():
    images = as_float(IMAGES.pixels).clamp(1 / 255, 1)
    generator = torch.Generator()
    changes = [
        float((jitter_dyes(images, strength, generator.manual_seed(1)) - images).abs().mean())
        for strength in (0.0, 0.1, 0.4)
    ]
    assert changes[0] < 1e-3 < changes[1] < changes[2]


def test_dyes_do_not_move_pixels():
    flat = torch.full((1, 3, 8, 8), 0.5)
    found = change_dyes(
        flat, torch.tensor([1.4, 0.8, 1.1]).view(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)
    )
    assert torch.allclose(found, found[..., :1, :1].expand_as(found)) and not torch.allclose(
        found, flat
    )


def test_training_images_are_restained_and_evaluation_images_are_not():
    prepare = StainPreparation(Augmentation(), 0, stain_strength=0.3)
    pixels = torch.from_numpy(np.array(IMAGES.pixels))
    assert torch.equal(prepare.evaluate(pixels), as_float(IMAGES.pixels))
    assert not torch.allclose(prepare.train(pixels, 1), as_float(IMAGES.pixels), atol=0.02)
    assert torch.equal(prepare.train(pixels, 1), prepare.train(pixels, 1))
    assert not torch.equal(prepare.train(pixels, 1), prepare.train(pixels, 2))
    with pytest.raises(ParameterError, match="stain_strength"):
        StainPreparation(Augmentation(), stain_strength=2)


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
        jitter_dyes(torch.rand(2, 1, 8, 8), 0.2, torch.Generator())
