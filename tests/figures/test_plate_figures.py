"""Figures of plates: wells stand in their places, numbers are those given, units are written, no
pyplot state stays.
"""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from nbhelpers.core.errors import InputError
from nbhelpers.evaluation import plates as scores
from nbhelpers.figures import plates as figures
from nbhelpers.imagesets.plates import load_plates


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return load_plates(
        "phantom",
        data_folder=tmp_path_factory.mktemp("data"),
        size_px=48,
        phantom={"plates": 3, "fields": 1},
    )


@pytest.fixture(scope="module")
def wells(images):
    rng = np.random.default_rng(0)
    return scores.well_scores(
        scores.field_scores(
            images,
            6 * images.table["normalised_effect"].to_numpy() + rng.normal(0, 0.5, len(images)),
        )
    )


def texts(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def test_every_figure_is_drawn_and_leaves_no_state(images, wells):
    before = dict(matplotlib.rcParams)
    conditions = scores.condition_scores(wells)
    hits = scores.call_hits(wells)
    for figure in (
        figures.plate_map(wells),
        figures.plate_map(wells[wells["plate"] == "plate02"], "log_odds"),
        figures.condition_map(conditions),
        figures.condition_map(conditions, "probability"),
        figures.dose_response(wells, scores.dose_responses(wells), hits),
        figures.stain_sheet(images),
    ):
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=50)
        assert len(file.getvalue()) > 3000
    assert dict(matplotlib.rcParams) == before


def test_wells_stand_in_their_places(wells):
    figure = figures.plate_map(wells[wells["plate"] == "plate02"])
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == list("BCDEFGHJ")
    grid = axis.collections[0].get_array()
    value = wells.set_index(["plate", "well"])["damage"]
    assert grid[7, 0] == value["plate02", "J02"] and grid[0, 5] == value["plate02", "B07"]
    assert (
        len(axis.patches) == 24
        and "\n10 |" in texts(figure)
        and "amyloid-beta, 30 µM" in texts(figure)
    )
    assert "dose of the compound, µM" in texts(figure)


@pytest.mark.parametrize(
    ("columns", "plates_in_a_row", "numbers"), [(6, 2, True), (12, 1, True), (24, 1, False)]
)
def test_large_plates_have_room_for_their_numbers(wells, columns, plates_in_a_row, numbers):
    at = np.arange(len(wells)) % 144
    large = wells.assign(
        plate=np.where(np.arange(len(wells)) < 72, "P", "Q"),
        column=at % 72 % columns + 1,
        row=[chr(65 + row) for row in at % 72 // columns],
    )
    figure = figures.plate_map(large)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    first, second = (axis.get_position() for axis in figure.axes[:2])
    assert (abs(first.y0 - second.y0) < 0.01) == (plates_in_a_row == 2)
    inside = figure.axes[0].texts
    assert bool(inside) == numbers == ("below the value" in texts(figure))
    wide = [text.get_window_extent().width for text in inside]
    assert not inside or max(wide) < figure.axes[0].get_window_extent().width / columns


def test_the_bar_names_the_class(wells):
    assert "probability of cycloheximide" in texts(
        figures.plate_map(wells, "probability", of="cycloheximide")
    )
    conditions = scores.condition_scores(wells)
    assert "log-odds of cycloheximide" in texts(
        figures.condition_map(conditions, "log_odds", of="cycloheximide")
    )


def test_doses_stand_below_each_panel_and_controls_with_each_compound(wells):
    named = wells.assign(compound=wells["compound"].where(wells["dose_uM"] > 0, "DMSO"))
    named = pd.concat(
        [named, named.assign(compound=named["compound"] + "$", plate=named["plate"] + "b")]
    )
    fits = scores.dose_responses(named)
    assert sorted(fits) == ["C01", "C01$", "C02", "C02$", "C03", "C03$"]
    axes = figures.dose_response(named, dict(list(fits.items())[:4]), scores.call_hits(named)).axes
    assert [axis.get_xlabel() for axis in axes[:4]] == ["dose, µM"] * 4
    dots = axes[0].collections[0].get_offsets()
    assert len(dots) == 2 * 24  # 2 arms of 4 doses, 6 wells each, dose 0 among them


def test_means_of_wells_and_their_intervals_are_those_of_the_conditions(wells):
    figure = figures.dose_response(wells, scores.dose_responses(wells))
    conditions = scores.condition_scores(scores.with_controls(wells, "C01").assign(compound="C01"))
    arm = conditions[conditions["amyloid_uM"] == 0]
    means = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert means.get_ydata()[np.isfinite(means.get_ydata())].tolist() == arm["damage"].tolist()
    ends = [sorted(line.get_ydata()) for line in figure.axes[0].lines]
    assert arm[["damage_low", "damage_high"]].to_numpy().tolist()[1] in ends


def test_a_missing_well_is_left_blank(wells):
    plate = wells[(wells["plate"] == "plate01") & (wells["well"] != "C03")]
    figure = figures.plate_map(plate)
    assert np.ma.getmaskarray(figure.axes[0].collections[0].get_array())[1, 1]
    assert len(figure.axes[0].texts) == len(plate)


def test_a_well_without_a_value_keeps_its_dose(wells):
    known = wells["damage"].where(wells["plate"] != "plate02")
    figure = figures.plate_map(wells.assign(damage=known))
    assert "none\n10" in texts(figure)


def test_conditions_show_value_interval_and_wells(wells):
    conditions = scores.condition_scores(wells)
    row = conditions.iloc[-1]
    said = texts(figures.condition_map(conditions))
    assert (
        f"{row['damage']:.2f}\n{row['damage_low']:.2f} to {row['damage_high']:.2f}\n6 wells" in said
    )
    assert "compound, µM" in said and "amyloid-beta, µM" in said


def test_curves_only_where_there_is_a_fit(wells):
    fits = scores.dose_responses(wells)
    hits = scores.call_hits(wells)
    axes = figures.dose_response(wells, fits, hits).axes
    fitted = fits["C01"]["with amyloid-beta"]
    assert f"EC50 {fitted['ec50_uM']:.2g} µM" in texts(
        axes[0].figure
    ) and "C02: no effect" in texts(axes[0].figure)
    assert len(axes[1].lines) < len(axes[0].lines)


def test_a_stain_has_one_grey_scale_in_all_fields_and_all_stains_stand_together(images):
    # One field a class, so that the order of the rows is that of the classes.
    rows = [int(np.flatnonzero(images.labels == index)[0]) for index in (0, 1)]
    figure = figures.stain_sheet(images.take(rows))
    axes = np.array(figure.axes).reshape(2, 5)
    low, high = np.percentile(images.pixels[rows][:, 1], [0.5, 99.8])
    for at, row in enumerate(rows):
        assert np.allclose(
            axes[at, 1].images[0].get_array(),
            np.clip((images.pixels[row, 1] - low) / (high - low), 0, 1),
        )
        assert axes[at, 4].images[0].get_array().shape == (48, 48, 3)
    assert (
        "Synaptophysin" in texts(figure) and "together" in texts(figure) and "µm" in texts(figure)
    )


def test_nothing_to_draw_is_said(images, wells):
    for draw in (
        lambda: figures.plate_map(wells[:0]),
        lambda: figures.condition_map(wells[:0]),
        lambda: figures.dose_response(wells, {}),
        lambda: figures.stain_sheet(images.take(np.arange(0))),
        lambda: figures.plate_map(wells.assign(damage=np.nan)),
        lambda: figures.dose_response(wells.assign(damage=np.nan), scores.dose_responses(wells)),
    ):
        with pytest.raises(InputError):
            draw()
