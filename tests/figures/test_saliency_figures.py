"""Maps beside what the encoders see: one scale for all, named stains, nothing that does not belong
together.
"""

import matplotlib.text
import numpy as np
import pandas as pd
import pytest

from nbhelpers.figures.saliency import (
    class_means,
    map_sheet,
    maps_per_encoder,
    sanity_curves,
    section_maps,
)
from nbhelpers.figures.style import INK, RIGHT, WRONG

STAINS = ("MAP2", "PSD-95", "Synaptophysin", "Hoechst")


def given(fields=2, encoders=4, size=24):
    draw = np.random.default_rng(0)
    return (
        draw.integers(0, 255, (fields, 4, size, size), dtype=np.uint8),
        draw.random((fields, encoders, size, size), dtype=np.float32)
        * np.arange(1, fields + 1)[:, None, None, None],
    )


@pytest.mark.parametrize("seen", [[(0,), (1,), (2,), (3,)], [(0, 1, 2, 3)]])
def test_every_map_stands_beside_its_stain_on_one_scale(seen):
    pixels, maps = given(encoders=len(seen))
    figure = maps_per_encoder(pixels, maps, seen, STAINS, ["first\np .9", "second"])
    pictures = [axis.images[0] for axis in figure.axes[: 4 * len(seen)]]
    scales = {picture.get_clim() for picture in pictures[1::2]}
    assert scales == {(0.0, float(maps.max()))}
    np.testing.assert_array_equal(pictures[1].get_array(), maps[0, 0])
    texts = [found.get_text() for found in figure.findobj(matplotlib.text.Text)]
    assert "first\np .9" in texts and any(text.startswith("MAP2") for text in texts)
    assert {text.get_color() for text in figure.axes[0].texts} == {INK}
    judged = maps_per_encoder(pixels, maps, seen, STAINS, ["a", "b"], right=[True, False])
    colours = [judged.axes[row * 2 * len(seen)].texts[0].get_color() for row in (0, 1)]
    assert colours == [RIGHT, WRONG]
    figure.canvas.draw()


def test_maps_of_nothing_can_be_drawn():
    pixels, maps = given(fields=1)
    maps_per_encoder(pixels, maps * 0, [(0,), (1,), (2,), (3,)], STAINS, ["none"]).canvas.draw()


def texts(figure):
    return " ".join(found.get_text() for found in figure.findobj(matplotlib.text.Text))


def drawn_maps(figure):
    return [
        picture
        for axis in figure.axes
        for picture in axis.images
        if picture.get_cmap().name == "magma"
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 5])
def test_images_maps_and_overlays_share_one_scale_that_is_shown(channels, count):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (count, channels, 20, 24), dtype=np.uint8)
    maps = draw.random((count, 20, 24), dtype=np.float32) * np.arange(1, count + 1)[:, None, None]
    cause = np.zeros(maps.shape)
    cause[:, 5:9, 5:9] = 1
    figure = map_sheet(
        images, maps, [f"image {at}" for at in range(count)], [True] * count, cause=cause
    )
    assert {picture.get_clim() for picture in drawn_maps(figure)} == {(0.0, float(maps.max()))}
    assert len(drawn_maps(figure)) == 2 * count
    assert "speaks for the class" in texts(figure) and f"image {count - 1}" in texts(figure)
    assert "FAILED" not in texts(figure)
    figure.canvas.draw()


def test_what_failed_is_shown_and_stamped():
    maps = np.zeros((2, 16, 16), np.float32)
    figure = map_sheet(
        np.zeros((2, 1, 16, 16), np.uint8), maps, ["a", "b"], [True, False], stamp="random weights"
    )
    assert "FAILED" in texts(figure) and "random weights" in texts(figure)
    figure.canvas.draw()
    pixels, maps = given()
    assert "FAILED" in texts(
        maps_per_encoder(pixels, maps, [(0,), (1,), (2,), (3,)], STAINS, ["a", "b"], stamp="why")
    )


@pytest.mark.parametrize("depth", [3, 12])
def test_sections_stand_in_order_with_their_depth(depth):
    draw = np.random.default_rng(0)
    volumes = draw.integers(0, 255, (2, depth, 16, 16), dtype=np.uint8)
    maps = draw.random(volumes.shape, dtype=np.float32)
    figure = section_maps(
        volumes, maps, ["a", "b"], [True, False], voxel_nm=(40, 8, 8), cause=maps > 0.8
    )
    assert {picture.get_clim() for picture in drawn_maps(figure)} == {(0.0, float(maps.max()))}
    shown = min(depth, 7)
    assert len(drawn_maps(figure)) == 2 * (shown + 1)
    np.testing.assert_array_equal(drawn_maps(figure)[0].get_array(), maps[0, 0])
    np.testing.assert_array_equal(drawn_maps(figure)[shown].get_array(), maps[0, :, 8])
    assert f"z {40 * (depth - 1)} nm" in texts(figure)
    figure.canvas.draw()


def test_curves_show_the_limit_and_every_step():
    curves = pd.DataFrame(
        [
            {"map": kind, "order": order, "share": share, "probability": share}
            for share in (0.0, 0.5, 1.0)
            for kind in ("map", "random map", "blob")
            for order in ("insertion", "deletion")
        ]
    )
    cascade = pd.DataFrame(
        {"layers": [2, 4], "similarity": [0.6, 0.1], "low": [0.5, None], "high": [0.7, None]}
    ).assign(**{"from": ["head.0", "find.3"]})
    figure = sanity_curves(curves, cascade, most_alike=0.5, stamp="no")
    for axis in figure.axes[:2]:
        assert len([line for line in axis.lines if len(line.get_xdata())]) == 3
    last = figure.axes[2].lines
    assert last[0].get_ydata().tolist() == [1.0, 0.6, 0.1]
    assert [0.5, 0.7] in [sorted(line.get_ydata()) for line in last]
    assert "limit" in texts(figure)
    figure.canvas.draw()


def test_means_and_typical_images_of_each_class_that_is_there():
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (6, 16, 16), dtype=np.uint8)
    maps = draw.random((6, 16, 16), dtype=np.float32)
    likeness = np.array([0.9, 0.1, 0.5, 0.2, 0.3, 0.8])
    figure = class_means(images, maps, np.array([0, 0, 0, 2, 2, 2]), likeness, ("A", "B", "C"))
    found = drawn_maps(figure)
    np.testing.assert_allclose(found[0].get_array(), maps[:3].mean(0))
    for at, row in ((1, 0), (2, 1), (4, 5), (5, 3)):
        np.testing.assert_array_equal(found[at].get_array(), maps[row])
    assert len({picture.get_clim() for picture in found}) == 1 and "n = 3" in texts(figure)
    figure.canvas.draw()
