"""Figures of volumes: units on the axes, every section labelled, nothing drawn from nothing."""

import numpy as np
import pandas as pd
import pytest

from nbhelpers.core.errors import InputError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.figures import volumes

CLASSES = ("excitatory", "inhibitory")


@pytest.fixture
def table():
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "label": np.resize(CLASSES, 30),
            "group": [f"<n{at % 6}>" for at in range(30)],
            **{f"{axis}_nm": draw.uniform(1e6, 1.01e6, 30) for axis in "xyz"},
        }
    )


def texts(figure):
    import matplotlib.text

    return [found.get_text() for found in figure.findobj(matplotlib.text.Text)]


def test_the_map_has_units_and_counts(table):
    figure = volumes.synapse_map(table, CLASSES)
    assert {"x (µm)", "y (µm)", "z (µm)"} <= set(texts(figure))
    assert "excitatory (15)" in texts(figure) and "inhibitory (15)" in texts(figure)
    low, high = sorted(figure.axes[0].get_xlim())
    assert low <= table["x_nm"].min() / 1000 and high >= table["x_nm"].max() / 1000


def test_bars_per_neuron_name_how_many_are_left_out(table):
    figure = volumes.synapses_per_neuron(table, CLASSES)
    assert any("3 neurons, 15 synapses" in text for text in texts(figure))
    widths = [[bar.get_width() for bar in axis.patches] for axis in figure.axes]
    assert widths == [[5, 5, 5], [5, 5, 5]]
    many = table.assign(label="excitatory", group=[f"n{at}" for at in range(len(table))])
    many = pd.concat([many, many.assign(group=many["group"] + "b")])
    figure = volumes.synapses_per_neuron(many, CLASSES)
    assert any("60 neurons, the 40 largest, 60 synapses" in text for text in texts(figure))
    assert len(figure.axes[0].patches) == 40


def test_a_strip_shows_every_section_in_order_with_its_depth():
    cube = np.random.default_rng(1).integers(1, 255, (5, 24, 24), dtype=np.uint8)
    figure = volumes.cube_strip(cube, (40.0, 8.0, 8.0), title="synapse 1")
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in figure.axes if axis.images] == [
        f"z {40 * at} nm" for at in range(5)
    ]
    assert all(
        (np.asarray(image) == section).all() for image, section in zip(shown, cube, strict=True)
    )
    assert "50 nm" in texts(figure) and "synapse 1" in texts(figure)


def test_frames_are_the_sections_enlarged_with_a_bar_that_grows():
    cube = np.random.default_rng(1).integers(1, 255, (5, 24, 30), dtype=np.uint8)
    frames = volumes.cube_frames(cube, least_px=60)
    assert frames.shape == (5, 2 * 24 + 8, 2 * 30) and frames.dtype == np.uint8
    order = np.argsort(cube[2].ravel(), kind="stable")
    assert (np.diff(frames[2, :48:2, ::2].ravel()[order].astype(int)) >= 0).all()
    assert [int((frame[-4] == 255).sum()) for frame in frames] == [12, 24, 36, 48, 60]
    assert volumes.cube_frames(np.full((2, 8, 8), 7, np.uint8)).shape[0] == 2
    with pytest.raises(InputError, match="shape"):
        volumes.cube_frames(np.zeros((4, 4), np.uint8))


def test_nothing_is_drawn_from_nothing(table):
    for draw in (volumes.synapse_map, volumes.synapses_per_neuron):
        with pytest.raises(InputError, match="nothing to draw"):
            draw(table[:0], CLASSES)
    with pytest.raises(InputError, match="shape"):
        volumes.cube_strip(np.zeros((4, 4), np.uint8), (40, 8, 8))


# ---- sets of cubes and predictions of them


@pytest.fixture
def cubes():
    pixels = np.random.default_rng(0).integers(1, 255, (12, 1, 6, 20, 24), dtype=np.uint8)
    table = pd.DataFrame(
        {"id": [f"c{at}" for at in range(12)], "label": np.resize(CLASSES, 12), "group": "n"}
    )
    return ImageSet("cubes", table, pixels, CLASSES, "none", True, pixel_size_nm=(40.0, 8.0, 8.0))


@pytest.fixture
def predictions(cubes):
    sure = np.linspace(0.55, 0.99, 12)
    kinds = np.arange(12) % 2
    shown = np.where(np.arange(12) < 5, 1 - kinds, kinds)  # the first five are wrong
    probabilities = np.where(np.arange(2) == shown[:, None], sure[:, None], 1 - sure[:, None])
    return Predictions.build(
        ids=cubes.ids,
        labels=cubes.table["label"],
        groups=cubes.groups,
        classes=CLASSES,
        probabilities=probabilities,
    )


def test_a_sheet_of_cubes_has_sections_in_order_and_a_cut_through_the_depth(cubes):
    figure = volumes.cube_sheet(cubes)
    axes = [axis for axis in figure.axes if axis.images]
    assert len(axes) == 4 * 7
    depths = [f"z {40 * section} nm" for section in range(6)]
    assert [axis.get_title() for axis in axes[:7]] == [*depths, "side view"]
    first, cut = (np.asarray(axes[at].images[0].get_array()) for at in (0, 6))
    at = next(row for row in range(12) if (cubes.pixels[row, 0, 0] == first).all())
    assert (cut == cubes.pixels[at, 0, :, 10]).all() and axes[6].get_aspect() == 5
    assert {"excitatory\nn = 6", "inhibitory\nn = 6"} <= set(texts(figure))


def test_patches_are_no_cubes(cubes):
    flat = ImageSet("flat", cubes.table, cubes.pixels[:, :, 0], CLASSES, "none", True)
    with pytest.raises(InputError, match="no cube to draw"):
        volumes.cube_sheet(flat)


def test_mistakes_come_first_and_the_surest_of_them(cubes, predictions):
    chosen = volumes.chosen_predictions(predictions, wrong=2, right=3)
    assert chosen["id"].tolist()[:2] == ["c4", "c3"] and chosen["right"].tolist() == [
        False,
        False,
        True,
        True,
        True,
    ]
    shown = texts(volumes.cube_predictions(cubes, predictions))
    assert any("wrong: excitatory\n→ inhibitory 0.71" in text for text in shown)
    assert sum(text.startswith("wrong: ") for text in shown) == 4
    assert sum(text.startswith("right: ") for text in shown) == 3


def test_frames_side_by_side_scroll_together(cubes):
    frames = volumes.frames_side_by_side([cube[0] for cube in cubes.pixels[:3]], least_px=48)
    one = volumes.cube_frames(cubes.pixels[1, 0], least_px=48)
    assert frames.shape == (6, one.shape[1], 3 * one.shape[2] + 8)
    assert (frames[:, :, one.shape[2] + 4 : 2 * one.shape[2] + 4] == one).all()
    assert (frames[:, :, one.shape[2] : one.shape[2] + 4] == 255).all()
    with pytest.raises(InputError, match="shapes"):
        volumes.frames_side_by_side([np.zeros((2, 8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)])
    with pytest.raises(InputError, match="one or more"):
        volumes.frames_side_by_side([])
