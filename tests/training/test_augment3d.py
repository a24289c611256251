"""Augmentation of cubes: within the section, by its seed, only in training; views are symmetries of
the voxel.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.training.augment3d import CubePreparation
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Augmentation

EVERYTHING = Augmentation(
    rotation_degrees=10,
    scale=0.1,
    flip_horizontal=True,
    flip_vertical=True,
    quarter_turns=True,
    flip_depth=True,
    elastic_px=2,
    section_contrast=0.2,
    missing_sections=0.1,
    section_shift_px=1,
    brightness=0.1,
    contrast=0.1,
    gamma=0.1,
    noise=0.02,
    blur_px=0.5,
)


def cubes(count=6, depth=5, size=16, dtype=np.uint8, channels=1, seed=0, smooth=False):
    high = np.iinfo(dtype).max
    drawn = np.random.default_rng(seed).integers(
        high // 4, high * 3 // 4, (count, channels, depth, size, size)
    )
    if smooth:
        from scipy.ndimage import gaussian_filter

        drawn = gaussian_filter(drawn.astype(float), (0, 0, 0, 2, 2)) * 3 - high
    return torch.from_numpy(np.clip(drawn, 0, high).astype(dtype))


def symmetries(cube):
    turned = [torch.rot90(cube, quarter, (-2, -1)) for quarter in range(4)]
    flat = turned + [one.flip(-1) for one in turned]
    return flat + [one.flip(1) for one in flat]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_views_are_the_sixteen_symmetries_of_a_thick_voxel(dtype):
    pixels = cubes(2, dtype=dtype)
    views = [CubePreparation(EVERYTHING).evaluate(pixels, view) for view in range(17)]
    for cube in range(2):
        known = symmetries(pixels[cube].float() / np.iinfo(dtype).max)
        for view, expected in zip(views, known, strict=False):
            torch.testing.assert_close(view[cube], expected)
    assert (
        torch.equal(views[16], views[0]) and len({view.numpy().tobytes() for view in views}) == 16
    )


class Weighted(nn.Module):
    """Depends on where everything is, so that nothing is invariant by accident."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(2, 1, 5, 16, 16, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, volumes):
        return torch.einsum("nczyx,kczyx->nk", volumes - 0.5, self.weight)


@pytest.mark.parametrize("views", [8, 16])
def test_prediction_over_all_views_does_not_change_when_the_cube_is_turned(views):
    pixels = cubes(1)
    network = Weighted()
    prepare = CubePreparation(EVERYTHING)
    turned = torch.cat([one[None] for one in symmetries(pixels[0])[:views]]).numpy()
    found = predict_probabilities(
        network, turned, prepare, test_time_augmentation=views, precision="fp32"
    )
    assert np.allclose(found, found[0], atol=1e-6)
    plain = predict_probabilities(
        network, turned, prepare, test_time_augmentation=1, precision="fp32"
    )
    assert np.ptp(plain[:, 0]) > 0.01
    if views == 8:  # upside down is another question unless all 16 are asked
        upside_down = predict_probabilities(
            network, turned[:, :, ::-1], prepare, test_time_augmentation=8, precision="fp32"
        )
        assert not np.allclose(upside_down, found, atol=1e-3)


def test_every_symmetry_occurs_in_training_and_nothing_is_interpolated():
    pixels = cubes(1).expand(400, -1, -1, -1, -1)
    known = torch.stack(symmetries(pixels[0] / 255))
    settings = Augmentation(
        flip_horizontal=True, flip_vertical=True, quarter_turns=True, flip_depth=True
    )
    trained = CubePreparation(settings).train(pixels, 4)
    which = [[bool(torch.equal(one, cube)) for cube in known] for one in trained]
    assert all(sum(row) == 1 for row in which) and np.array(which).sum(0).min() > 8


@given(
    st.integers(0, 2**40),
    st.sampled_from(
        [
            {"elastic_px": 2.0},
            {"section_contrast": 0.3},
            {"missing_sections": 0.4},
            {"section_shift_px": 2.0},
            {"rotation_degrees": 10.0},
            {"noise": 0.1},
            {"blur_px": 2.0},
            {"brightness": 0.3},
        ]
    ),
)
@settings(max_examples=25, deadline=None)
def test_each_change_follows_its_seed_and_spares_evaluation(seed, change):
    prepare = CubePreparation(Augmentation(**change))
    pixels = cubes(6)
    before = pixels.clone()
    first, again, other = (prepare.train(pixels, value) for value in (seed, seed, seed + 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == pixels.shape and not torch.allclose(first, pixels / 255, atol=1e-4)
    assert torch.equal(prepare.evaluate(pixels), pixels / 255) and torch.equal(pixels, before)
    assert first.min() >= 0 and first.max() <= 1


@given(st.integers(0, 2**40))
@settings(max_examples=15, deadline=None)
def test_no_change_in_plane_mixes_sections(seed):
    """One section white, the others black: whatever moves, the white stays in that section (or is
    flipped in z).
    """
    pixels = torch.zeros(4, 1, 5, 16, 16, dtype=torch.uint8)
    pixels[:, :, 1] = 255
    strong = Augmentation(
        rotation_degrees=30, scale=0.2, elastic_px=4, section_shift_px=3, quarter_turns=True
    )
    means = CubePreparation(strong).train(pixels, seed).mean((1, 3, 4))
    assert (means[:, 1] > 0.999).all() and (means[:, [0, 2, 3, 4]] == 0).all()


def test_a_lost_section_is_black_or_the_mean_of_its_neighbours():
    pixels = cubes(200, depth=6)
    plain = pixels / 255
    trained = CubePreparation(Augmentation(missing_sections=0.2)).train(pixels, 0)
    changed = (plain != trained).flatten(3).any(3)[:, 0]
    assert 0.15 < changed.float().mean() < 0.25
    black = 0
    for cube, at in changed.nonzero().tolist():
        section = trained[cube, :, at]
        beside = [near for near in (at - 1, at + 1) if 0 <= near < 6]
        if (section == 0).all():
            black += 1
        else:
            torch.testing.assert_close(section, plain[cube, :, beside].mean(1))
    assert 0.35 < black / int(changed.sum()) < 0.65


def test_a_cube_of_one_section_can_lose_it():
    trained = CubePreparation(Augmentation(missing_sections=0.5)).train(cubes(20, depth=1), 0)
    assert 3 < int((trained == 0).flatten(1).all(1).sum()) < 17


def test_section_contrast_stays_in_its_range():
    pixels = cubes(50, size=24)
    plain = pixels / 255
    trained = CubePreparation(Augmentation(section_contrast=0.1)).train(pixels, 1)
    spread = trained.std((-2, -1)) / plain.std((-2, -1))
    mean = trained.mean((-2, -1)) / plain.mean((-2, -1))
    for ratio in (spread, mean):
        assert 0.89 < ratio.min() < 0.92 and 1.08 < ratio.max() < 1.11
    assert spread.std(2).min() > 0  # each section its own


def test_slipped_sections_slip_by_no_more_than_asked_and_each_by_its_own():
    pixels = torch.zeros(30, 1, 6, 33, 33, dtype=torch.uint8)
    pixels[..., 16, 16] = 255
    trained = CubePreparation(Augmentation(section_shift_px=3)).train(pixels, 2)[:, 0]
    along = torch.arange(33.0)
    total = trained.sum((-2, -1))
    slips = torch.stack(
        [
            (trained.sum(-1) * along).sum(-1) / total - 16,
            (trained.sum(-2) * along).sum(-1) / total - 16,
        ]
    )
    assert slips.abs().max() < 3.01 and slips.abs().max() > 2.5 and slips.std(2).min() > 0.2


def test_elastic_displacement_is_smooth_and_within_its_limit():
    """On a ramp of grey, the change of grey is the displacement."""
    ramp = torch.arange(48.0).expand(20, 1, 6, 48, 48)
    from nbhelpers.training.augment3d import random_warp

    moved = random_warp(ramp.clone(), Augmentation(elastic_px=3), 0) - ramp
    inner = moved[..., 6:-6]  # at the border the ramp ends
    assert 1.5 < inner.abs().max() < 3.01
    for axis in (2, 3, 4):
        assert inner.diff(dim=axis).abs().max() < 3.5


@pytest.mark.parametrize("shape", [(40, 40), (40, 80)])
def test_a_turned_square_stays_a_square_and_all_sections_turn_alike(shape):
    pixels = torch.zeros(1, 1, 3, *shape, dtype=torch.uint8)
    middle = [side // 2 for side in shape]
    pixels[..., middle[0] - 8 : middle[0] + 8, middle[1] - 8 : middle[1] + 8] = 255
    turned = CubePreparation(Augmentation(rotation_degrees=45)).train(pixels, 3)[0, 0]
    at = torch.nonzero(turned[0] > 0.5).double()
    spread = torch.linalg.eigvalsh(torch.cov((at - at.mean(0)).T))
    assert spread[1] / spread[0] < 1.15 and abs(float(turned[0].sum()) - 256) < 20
    assert all(torch.equal(one, two) for one, two in pairwise(turned))


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint16, 2)])
def test_input_px_averages_in_plane_only(dtype, channels):
    pixels = cubes(3, dtype=dtype, channels=channels)
    seen = CubePreparation(Augmentation(), 8).evaluate(pixels)
    expected = (
        (pixels.to(torch.int64) / np.iinfo(dtype).max)
        .unflatten(-1, (8, 2))
        .unflatten(-3, (8, 2))
        .mean((-3, -1))
    )
    torch.testing.assert_close(seen, expected.float())
    trained = CubePreparation(EVERYTHING, 8).train(pixels, 0)
    assert trained.shape == (3, channels, 5, 8, 8) and torch.isfinite(trained).all()


def test_each_cube_of_a_batch_is_changed_differently():
    pixels = cubes(1).expand(8, -1, -1, -1, -1)
    assert len({one.numpy().tobytes() for one in CubePreparation(EVERYTHING).train(pixels, 3)}) == 8


def test_one_setting_does_not_change_the_draws_of_another():
    pixels = cubes(8)
    bent = CubePreparation(Augmentation(elastic_px=2)).train(pixels, 5)
    both = CubePreparation(Augmentation(elastic_px=2, brightness=0.2, section_contrast=1e-7)).train(
        pixels, 5
    )
    ratio = both / bent
    assert (ratio.amax((1, 2, 3, 4)) - ratio.amin((1, 2, 3, 4))).max() < 1e-4


def test_what_cannot_be_turned_or_is_no_cube_is_refused():
    with pytest.raises(InputError, match="16 x 12 px and cannot be turned"):
        CubePreparation(Augmentation()).evaluate(cubes()[..., :12], 1)
    with pytest.raises(InputError, match="cannot be turned by quarters"):
        CubePreparation(Augmentation(quarter_turns=True)).train(cubes()[..., :12], 1)
    with pytest.raises(InputError, match="4 axes.*image, channel, z, y, x"):
        CubePreparation(Augmentation()).evaluate(cubes()[:, 0])
    flipped = CubePreparation(Augmentation()).evaluate(cubes()[..., :12], 8)
    assert torch.equal(flipped, cubes()[..., :12].flip(2) / 255)


@pytest.mark.parametrize(
    "wrong",
    [
        {"elastic_px": -1},
        {"section_contrast": 1.5},
        {"missing_sections": 0.6},
        {"section_shift_px": 1000},
    ],
)
def test_limits_are_named(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        Augmentation(**wrong)
