"""Glomerulus phantoms: the injected truth decides the class, and the stain does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import ParameterError
from nbhelpers.phantoms.glomerulus import make_glomerulus_phantoms


@pytest.fixture(scope="module")
def phantoms():
    return make_glomerulus_phantoms(60, seed=1, size_px=64, difficulty=0.5)


def test_shapes_types_and_ids(phantoms):
    assert phantoms.pixels.shape == (60, 3, 64, 64) and phantoms.pixels.dtype == np.uint8
    assert phantoms.cause.shape == (60, 64, 64) and phantoms.cause.dtype == bool
    assert phantoms.table["id"].is_unique and set(phantoms.table["label"]) == {"GS", "nonGS"}
    assert phantoms.table.groupby("group")["centre"].nunique().eq(1).all()


def test_sclerosis_decides_the_class_and_closes_capillaries(phantoms):
    table = phantoms.table
    sclerosed = table["label"] == "GS"
    assert table.loc[sclerosed, "sclerosis"].min() > 0.5 > table.loc[~sclerosed, "sclerosis"].max()
    assert (
        2 * table.loc[sclerosed, "capillaries"].mean() < table.loc[~sclerosed, "capillaries"].mean()
    )


def test_an_image_depends_on_its_number_and_not_on_how_many_there_are(phantoms):
    few = make_glomerulus_phantoms(7, seed=1, size_px=64, difficulty=0.5)
    assert np.array_equal(few.pixels, phantoms.pixels[:7]) and few.table.equals(
        phantoms.table.head(7)
    )
    assert not np.array_equal(make_glomerulus_phantoms(7, seed=2, size_px=64).pixels, few.pixels)


def test_difficulty_brings_the_classes_nearer():
    spans = []
    for difficulty in (0.0, 1.0):
        table = make_glomerulus_phantoms(40, seed=3, size_px=48, difficulty=difficulty).table
        spans.append(table.groupby("label")["sclerosis"].mean().diff().abs().iloc[-1])
    assert spans[0] > spans[1] + 0.1


@given(st.integers(1, 6), st.integers(48, 70), st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_any_setting_gives_whole_images(count, size, difficulty):
    found = make_glomerulus_phantoms(count, seed=0, size_px=size, difficulty=difficulty)
    assert found.pixels.shape == (count, 3, size, size) and found.cause.any(axis=(1, 2)).all()
    assert all(image.std() > 5 for image in found.pixels)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 0),
        ("size_px", 20),
        ("difficulty", 2),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(ParameterError, match=f"parameter {name}"):
        make_glomerulus_phantoms(**{"count": 3, "size_px": 48, name: value})
