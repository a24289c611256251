"""Augmentation: changes training images only, moves pixels without inventing any, and follows its
seed.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as reference

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.training.augment import DihedralPreparation, Transform, _blurred
from nbhelpers.training.recipe import Augmentation

SYMMETRIES = Augmentation(flip_horizontal=True, flip_vertical=True, quarter_turns=True)
FULL = Augmentation(
    rotation_degrees=10,
    flip_horizontal=True,
    flip_vertical=True,
    quarter_turns=True,
    blur_px=1,
    brightness=0.2,
    contrast=0.1,
    gamma=0.2,
    noise=0.05,
)


def patches(count=16, size=20, dtype=np.uint8, channels=1, seed=0):
    high = np.iinfo(dtype).max
    drawn = np.random.default_rng(seed).integers(
        high // 4, high * 3 // 4, (count, channels, size, size)
    )
    return torch.from_numpy(drawn.astype(dtype))


def all_symmetries(image):
    turned = [torch.rot90(image, quarter, (-2, -1)) for quarter in range(4)]
    return turned + [one.flip(-1) for one in turned]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_symmetry_occurs_and_no_pixel_is_interpolated(dtype):
    pixels = patches(1, dtype=dtype).expand(200, -1, -1, -1)
    known = all_symmetries(pixels[0].float() / np.iinfo(dtype).max)
    trained = Transform(SYMMETRIES).train(pixels, 3)
    which = [[bool(torch.allclose(one, image, atol=1e-7)) for image in known] for one in trained]
    assert all(sum(row) == 1 for row in which)
    assert np.array(which).sum(0).min() > 5


def test_flips_alone_never_turn():
    pixels = patches(1).expand(60, -1, -1, -1)
    plain = pixels[0].float() / 255
    known = [plain, plain.flip(-1), plain.flip(-2), plain.flip((-2, -1))]
    trained = Transform(Augmentation(flip_horizontal=True, flip_vertical=True)).train(pixels, 1)
    assert all(any(torch.allclose(one, image, atol=1e-4) for image in known) for one in trained)


def test_the_views_are_the_eight_symmetries():
    pixels = patches(3)
    prepare = DihedralPreparation(FULL)
    views = [prepare.evaluate(pixels, view) for view in range(9)]
    for image in range(3):
        for view, known in zip(views, all_symmetries(pixels[image].float() / 255), strict=False):
            assert torch.equal(view[image], known)
    assert torch.equal(views[8], views[0])
    assert len({view.numpy().tobytes() for view in views}) == 8


@given(
    st.integers(0, 2**40), st.sampled_from(["blur_px", "brightness", "contrast", "gamma", "noise"])
)
@settings(max_examples=25, deadline=None)
def test_each_tone_changes_training_images_by_its_seed_and_nothing_else(seed, name):
    prepare = Transform(Augmentation(**{name: 2.0 if name == "blur_px" else 0.4}))
    pixels = patches(4)
    before = pixels.clone()
    first, again, other = (prepare.train(pixels, value) for value in (seed, seed, seed + 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.allclose(first, pixels / 255, atol=1e-4)
    assert torch.equal(prepare.evaluate(pixels), pixels / 255) and torch.equal(pixels, before)
    assert first.min() >= 0 and first.max() <= 1


def test_tones_stay_in_their_range():
    pixels = patches(200, seed=1)
    means = pixels.float().mean((1, 2, 3)) / 255
    bright = Transform(Augmentation(brightness=0.2)).train(pixels, 0).mean((1, 2, 3)) / means
    assert 0.79 < bright.min() < 0.82 and 1.18 < bright.max() < 1.21
    spread = Transform(Augmentation(contrast=0.1)).train(pixels, 0).std((1, 2, 3)) / (
        pixels.float() / 255
    ).std((1, 2, 3))
    assert 0.89 < spread.min() < 0.92 and 1.08 < spread.max() < 1.11
    noise = (Transform(Augmentation(noise=0.05)).train(pixels, 0) - pixels / 255).std((1, 2, 3))
    assert noise.max() < 0.055 and noise.min() < 0.005 and noise.max() > 0.045


@pytest.mark.parametrize("width", [0.1, 0.45, 1.0])
def test_the_blur_is_that_of_the_published_recipe(width):
    images = patches(2).float() / 255
    blurred = _blurred(images, torch.full((2,), width))
    torch.testing.assert_close(
        blurred, reference.gaussian_blur(images, [3, 3], [width, width]), atol=1e-5, rtol=1e-4
    )


def test_one_setting_does_not_change_the_draws_of_another():
    pixels = patches(8)
    both = Transform(Augmentation(brightness=0.3, quarter_turns=True)).train(pixels, 5)
    turned = Transform(Augmentation(quarter_turns=True)).train(pixels, 5)
    ratio = both / turned
    assert (
        ratio.amax((1, 2, 3)) - ratio.amin((1, 2, 3))
    ).max() < 1e-4  # the same turn, times one number
    mirrored = Transform(Augmentation(flip_horizontal=True)).train(pixels, 5)
    toned = Transform(Augmentation(flip_horizontal=True, contrast=1e-6)).train(pixels, 5)
    torch.testing.assert_close(mirrored, toned, atol=1e-5, rtol=0)


def test_resampling_and_symmetries_go_together():
    prepared = Transform(FULL, input_px=12).train(patches(6), 0)
    assert prepared.shape == (6, 1, 12, 12) and torch.isfinite(prepared).all()
    assert DihedralPreparation(FULL, input_px=12).evaluate(patches(6), 5).shape == (6, 1, 12, 12)


def test_quarter_turns_need_squares():
    with pytest.raises(InputError, match="20 x 16 px and cannot be turned"):
        Transform(SYMMETRIES).train(patches()[..., :16], 0)
    moved = Transform(Augmentation(flip_horizontal=True)).train(patches()[..., :16], 0)
    assert moved.shape == (16, 1, 20, 16)


@pytest.mark.parametrize(
    "wrong", [{"blur_px": 0.05}, {"brightness": 1.5}, {"noise": -0.1}, {"gamma": 9}]
)
def test_limits_are_named(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        Augmentation(**wrong)
