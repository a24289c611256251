"""Masks of spines in one pose and size, however they came."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.imagesets.masks import fit_frame
from nbhelpers.imagesets.spines import load_unlabelled_spines
from nbhelpers.inference.spine_pose import SIDE_PX, Scale, in_one_pose
from nbhelpers.phantoms.spine import load_phantom_spines


@pytest.fixture(scope="module")
def images():
    return load_phantom_spines(40, 17)


def files_of(folder, images, *, degrees=0.0, factor=1.0, rows=None):
    """The masks as files of another microscope: turned, and with other pixels."""
    folder.mkdir()
    for row in range(len(images)) if rows is None else rows:
        mask = Image.fromarray(images.pixels[row, 0])
        size = round(250 * factor)
        mask = mask.resize((size, size), Image.Resampling.BILINEAR)
        mask = mask.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
        values = np.asarray(mask) > 127
        Image.fromarray(values.astype(np.uint8) * 255).save(folder / f"{row:03d}.png")
    return folder


def overlap(one, other):
    """Of each pair of masks, centred: what both hold, by what either holds."""
    shares = []
    for mine, theirs in zip(one.pixels[:, 0] > 127, other.pixels[:, 0] > 127, strict=True):
        shares.append((mine & theirs).sum() / (mine | theirs).sum())
    return np.array(shares)


@settings(max_examples=6, deadline=None)
@given(degrees=st.floats(-180, 180), factor=st.sampled_from([0.5, 1.0, 2.0]))
def test_turned_and_scaled_masks_come_to_the_same_pose_and_size(
    tmp_path_factory, images, degrees, factor
):
    folder = tmp_path_factory.mktemp("masks")
    upright = load_unlabelled_spines(files_of(folder / "a", images), folder, images.classes)
    files = files_of(folder / "b", images, degrees=degrees, factor=factor)
    other = load_unlabelled_spines(files, folder, images.classes)
    one = in_one_pose(upright, Scale.of(upright))
    again = in_one_pose(other, Scale.of(other))
    shares = overlap(one, again)
    assert np.median(shares) > 0.88 and np.mean(shares > 0.75) >= 0.85


def test_as_they_came_turned_masks_do_not_match(tmp_path, images):
    files = files_of(tmp_path / "b", images, degrees=90)
    other = load_unlabelled_spines(files, tmp_path, images.classes)
    one = in_one_pose(images, Scale.of(images))
    left = np.array([fit_frame(mask[0] > 127, 250)[None] for mask in other.pixels])
    assert np.median(overlap(one, replace(one, pixels=left))) < 0.8


def test_a_mask_comes_out_the_same_alone_and_in_company(images):
    scale = Scale.of(images)
    whole = in_one_pose(images, scale)
    alone = in_one_pose(images.take(np.array([5])), scale)
    assert overlap(alone, whole.take(np.array([5])))[0] > 0.99
    assert len(in_one_pose(images.take(np.arange(0)), scale)) == 0


def test_the_scale_is_that_of_the_pixels_where_these_are_known(images):
    known = Scale.of(images, um_per_px=0.1)
    finer = Scale.of(images, um_per_px=0.05, known=known)
    assert finer.zoom == pytest.approx(known.zoom / 2) and "0.05 µm" in finer.how
    sides = np.sqrt((images.pixels > 127).sum((1, 2, 3)))
    assert known.zoom == pytest.approx(SIDE_PX / np.median(sides))
    # one of the two sizes unknown: by the area, whatever the other is, and it is said
    for one in (Scale.of(images, known=known), Scale.of(images, 0.3, known=Scale.of(images))):
        assert one.zoom == known.zoom and "median area of these 40 masks" in one.how
        assert "one of the two sets only" in one.how
    assert "only" not in Scale.of(images, known=Scale.of(images)).how


def test_a_few_new_masks_are_taken_to_have_the_pixels_of_the_training_masks(images):
    known = Scale.of(images)
    few = Scale.of(images.take(np.arange(7)), known=known)
    assert few.zoom == known.zoom and "only 7" in few.how and "median" not in few.how
    small = replace(images.take(np.arange(7)), pixels=images.pixels[:7, :, ::3, ::3])
    assert "their own median area says" in Scale.of(small, known=known).how
    # copies of one mask say no more than one
    copies = replace(images, pixels=np.repeat(images.pixels[:1], len(images), 0))
    assert "only 1 " in Scale.of(copies, known=known).how


def test_masks_larger_than_the_frame_keep_their_size_among_the_others(tmp_path, images):
    files = files_of(tmp_path / "large", images, factor=4.0)
    large = load_unlabelled_spines(files, tmp_path, images.classes)
    assert (large.table["shrunk"] > 1).any() and large.pixels.shape[1:] == (1, 250, 250)
    one = in_one_pose(images, Scale.of(images))
    again = in_one_pose(large, Scale.of(large))
    assert np.median(overlap(one, again)) > 0.88
    areas = [(posed.pixels > 127).sum((1, 2, 3)) for posed in (one, again)]
    assert np.allclose(areas[0] / areas[1], 1, atol=0.12)


def test_nothing_leaves_the_frame_and_nothing_vanishes(images):
    for zoom in (0.02, 30.0):
        posed = in_one_pose(images, Scale(zoom, 0.0, "as asked"))
        assert (posed.pixels > 127).any((1, 2, 3)).all()
        assert not posed.pixels[:, 0, [0, -1]].any() and not posed.pixels[:, 0, :, [0, -1]].any()
        assert posed.table["other_scale"].all()
    assert not in_one_pose(images, Scale.of(images)).table["other_scale"].any()


def test_what_does_not_fit_is_said_whatever_its_outline(tmp_path, images):
    """A pointed end is thinner than a pixel of the frame, and a long neck too."""
    y, x = np.mgrid[:1500, :1500]
    wedge = np.abs(x - 750) < (y - 10) / 8
    head = (x - 750) ** 2 + (y - 200) ** 2 < 150**2
    lollipop = head | ((np.abs(x - 750) < 4) & (y > 200) & (y < 1490))
    for name, mask in (("wedge", wedge & (y < 1490)), ("lollipop", lollipop)):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{name}.png")
    found = load_unlabelled_spines(tmp_path, tmp_path / "data", images.classes)
    assert np.allclose(found.table["shrunk"], [1440 / 250, 1480 / 250], atol=0.1)
    height = (found.pixels[:, 0] > 0).any(2).sum(1)
    assert (height > 235).all()


def test_where_the_base_cannot_be_told_the_pose_is_uncertain(images):
    y, x = np.mgrid[:250, :250] - 124.5
    ring = ((x**2 + y**2 < 40**2) * 255).astype(np.uint8)
    round_ones = np.repeat(ring[None, None], len(images), 0)
    posed = in_one_pose(replace(images, pixels=round_ones), Scale.of(images))
    assert posed.table["pose_uncertain"].all()
    assert in_one_pose(images, Scale.of(images)).table["pose_uncertain"].mean() < 0.15
