"""Figures of volumes: units on the axes, every section labelled, nothing drawn from nothing."""

import numpy as np
import pandas as pd
import pytest

from nbhelpers.errors import InputError
from nbhelpers.figures import volumes

CLASSES = ("excitatory", "inhibitory")


@pytest.fixture
def table():
    draw = np.random.default_rng(0)
    return pd.DataFrame({"label": np.resize(CLASSES, 30), "group": [f"<n{at % 6}>" for at in range(30)],
                         **{f"{axis}_nm": draw.uniform(1e6, 1.01e6, 30) for axis in "xyz"}})


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
    figure = volumes.synapses_per_neuron(table, CLASSES, most=2)
    assert any("3 neurons, the 2 largest, 15 synapses" in text for text in texts(figure))
    assert sum(len(axis.patches) for axis in figure.axes) == 4


def test_a_strip_shows_every_section_in_order_with_its_depth():
    cube = np.random.default_rng(1).integers(1, 255, (5, 24, 24), dtype=np.uint8)
    figure = volumes.cube_strip(cube, (40.0, 8.0, 8.0), title="synapse 1", columns=3)
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in figure.axes if axis.images] == [f"z {40 * at} nm" for at in range(5)]
    assert all((np.asarray(image) == section).all() for image, section in zip(shown, cube, strict=True))
    assert any("bar 50 nm" in text for text in texts(figure))


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
        with pytest.raises(InputError, match="no synapses"):
            draw(table[:0], CLASSES)
    with pytest.raises(InputError, match="shape"):
        volumes.cube_strip(np.zeros((4, 4), np.uint8), (40, 8, 8))
