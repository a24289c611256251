"""Stacks on disk behave as the array that was written into them, in every way the collection
indexes it.
"""

import hashlib

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets import stacks as module
from nbhelpers.imagesets.stacks import ChosenPixels, StackedPixels, StackError, write_stack

ROWS = (5, 1, 7, 4)


def make(folder, image_shape=(6, 9), dtype=np.uint8, rows=ROWS):
    pixels = (
        np.random.default_rng(0)
        .integers(0, np.iinfo(dtype).max, (sum(rows), *image_shape))
        .astype(dtype)
    )
    starts = np.cumsum([0, *rows])
    for number, count in enumerate(rows):
        write_stack(
            folder / f"{number:05}.ome.tif",
            pixels[starts[number] : starts[number] + count],
            (40, 8, 8),
        )
    stacks = [(folder / f"{number:05}.ome.tif", count) for number, count in enumerate(rows)]
    return pixels[:, None], StackedPixels(stacks, image_shape, dtype)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make(tmp_path_factory.mktemp("stacks"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(6, 9), (3, 6, 9)])
def test_it_is_the_array_that_was_written(tmp_path, shape, dtype):
    pixels, stacked = make(tmp_path, shape, dtype)
    assert (stacked.shape, stacked.dtype, stacked.ndim, len(stacked)) == (
        pixels.shape,
        dtype,
        pixels.ndim,
        len(pixels),
    )
    assert np.array_equal(np.asarray(stacked), pixels)
    assert np.asarray(stacked).dtype == dtype
    assert all(np.array_equal(one, other) for one, other in zip(stacked, pixels, strict=True))


TOTAL = sum(ROWS)
INTS = st.integers(-TOTAL, TOTAL - 1)
KEYS = st.one_of(
    INTS,
    st.builds(np.int64, INTS),
    st.slices(TOTAL),
    st.lists(INTS, max_size=30).map(lambda rows: np.array(rows, np.int64)),
    st.lists(st.booleans(), min_size=TOTAL, max_size=TOTAL).map(np.array),
)


@settings(max_examples=200, deadline=None)
@given(KEYS)
def test_every_index_gives_what_an_array_gives(pair, key):
    pixels, stacked = pair
    expected = pixels[key]
    found = stacked[key]
    assert found.shape == expected.shape and np.array_equal(found, expected)
    assert np.array_equal(stacked[key, ..., 2:], pixels[key, ..., 2:])


CHOSEN = np.array(
    [16, 3, 3, 8, 0, 5, 12, 7, 1, 2, 4, 6, 9, 10, 11, 13, 14]
)  # as many as there are, one of them twice


@settings(max_examples=200, deadline=None)
@given(KEYS)
def test_chosen_rows_are_indexed_as_an_array_is_and_stay_on_disk(pair, key):
    expected = pair[0][CHOSEN]
    found = ChosenPixels(pair[1], CHOSEN)
    assert found.shape == expected.shape and found[key].shape == expected[key].shape
    assert np.array_equal(found[key], expected[key]) and np.array_equal(
        found[key, ..., 2:], expected[key, ..., 2:]
    )
    assert np.array_equal(np.asarray(found), expected) and np.array_equal(
        found[None, 3:], expected[None, 3:]
    )
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("key", [TOTAL, -TOTAL - 1, [0, TOTAL], np.ones(3, bool), [0.5], "a"])
def test_indices_outside_are_refused_as_by_an_array(pair, key):
    with pytest.raises((IndexError, TypeError)):
        pair[1][key]


def test_nothing_is_copied_until_it_must_be(pair):
    stacked = pair[1]
    for view in (stacked[3], stacked[1:4], stacked[12:6:-2]):
        base = view
        while base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap) and not view.flags.writeable
    torch.from_numpy(stacked[np.array([3, 0, 9])]).add_(
        1
    )  # the copies can be written to, without a warning
    assert np.array_equal(np.asarray(stacked), pair[0])


def test_it_works_in_an_image_set(pair):
    table = pd.DataFrame(
        {"id": [f"s{row}" for row in range(TOTAL)], "label": ["a", "b"] * 8 + ["a"], "group": "g"}
    )
    make_set = lambda pixels: ImageSet("set", table, pixels, ("a", "b"), "test", True)  # noqa: E731
    ours = make_set(pair[1])
    plain = make_set(pair[0])
    assert ours.content_hash == plain.content_hash
    assert np.array_equal(ours.take([11, 2]).pixels, plain.pixels[[11, 2]])


def test_the_trainer_reads_it_as_an_array(tmp_path):
    from nbhelpers.models.tinycnn import TinyCNN
    from nbhelpers.training.augment import Augmentation, Transform
    from nbhelpers.training.forward import predict_probabilities
    from nbhelpers.training.trainer import _Batches

    pixels, stacked = make(tmp_path, (16, 16))
    positions = np.array([16, 3, 8, 5])
    batch = np.array([2, 0, 3])
    ours, plain = (_Batches(each, np.arange(TOTAL), positions)[batch] for each in (stacked, pixels))
    assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1], plain[1])
    network = TinyCNN(1, 2)

    def score(each):
        return predict_probabilities(network, each, Transform(Augmentation()), batch_size=4)

    assert np.array_equal(score(stacked), score(pixels))


def test_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OPEN_FILES", 2)
    pixels, stacked = make(tmp_path)
    held = stacked[0]  # its map is pushed out below, and must live on
    assert np.array_equal(stacked[[16, 0, 7, 5, 0]], pixels[[16, 0, 7, 5, 0]])
    assert len(stacked._maps) == 2 and np.array_equal(held, pixels[0])


def test_other_programs_read_the_voxel_size_and_the_axes(tmp_path):
    pixels, _ = make(tmp_path, (3, 6, 9))
    with tifffile.TiffFile(tmp_path / "00002.ome.tif") as tiff:
        assert (
            tiff.is_ome and tiff.series[0].axes == "TZYX" and tiff.series[0].shape == (7, 3, 6, 9)
        )
        assert np.array_equal(tiff.asarray(), pixels[6:13, 0])
        for part in ('PhysicalSizeZ="40.0"', 'PhysicalSizeX="8.0"', 'PhysicalSizeXUnit="nm"'):
            assert part in tiff.ome_metadata


def test_the_same_pixels_give_the_same_bytes(tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    one, other = (write_stack(tmp_path / name, pixels, (40, 8, 8)) for name in ("a.tif", "b.tif"))
    assert one == other == hashlib.sha256((tmp_path / "a.tif").read_bytes()).hexdigest()


def test_missing_cut_and_foreign_stacks_are_named(tmp_path):
    _, stacked = make(tmp_path)
    stacks = list(zip(stacked.files, ROWS, strict=True))
    with pytest.raises(StackError, match=r"00002\.ome\.tif.*uint8 \(6, 9\), not uint8 \(9, 6\)"):
        StackedPixels(stacks, (9, 6), np.uint8)[7]
    stacked.files[2].write_bytes(stacked.files[2].read_bytes()[:100])
    with pytest.raises(StackError, match=r"00002\.ome\.tif.*cut.*again"):
        StackedPixels(stacks, (6, 9), np.uint8)
    stacked.files[2].unlink()
    with pytest.raises(StackError, match=r"00002\.ome\.tif.*missing"):
        StackedPixels(stacks, (6, 9), np.uint8)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 4), np.uint8), np.zeros((2, 4, 4), np.float32), np.zeros((0, 4, 4), np.uint8)],
)
def test_what_is_no_stack_is_not_written(tmp_path, pixels):
    with pytest.raises(StackError, match="uint8 or uint16"):
        write_stack(tmp_path / "a.tif", pixels, (40, 8, 8))
    assert not list(tmp_path.iterdir())
