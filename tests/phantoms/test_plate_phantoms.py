"""Plate phantoms: the injected effect shows, in one mode only where stains are seen together;
layouts, light and edges.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import ParameterError
from nbhelpers.phantoms.plate import Compound, Nuisance, make_compounds, make_plates


@pytest.fixture(scope="module")
def phantoms():
    return make_plates(3, size_px=64, fields=1, seed=1)


@pytest.fixture(scope="module")
def torn():
    return make_plates(
        8, size_px=96, fields=1, seed=2, effect="colocalisation", layout="randomised"
    )


def training(found):
    """Pixels as float of the control and of the amyloid-beta wells."""
    return [
        found.pixels[(found.table["label"] == name).to_numpy()].astype(float)
        for name in ("control", "amyloid-beta")
    ]


def colocalisation(fields):
    """(n,) correlation of what PSD-95 and Synaptophysin show beyond MAP2's neurites: puncta,
    brighter than 95 in 100.
    """
    found = []
    for _, psd, synaptophysin, _ in fields:
        first, second = (stain > np.percentile(stain, 95) for stain in (psd, synaptophysin))
        found.append((first & second).sum() / first.sum())
    return np.array(found)


def apart(a, b):
    """Difference of means in standard errors."""
    return abs(a.mean() - b.mean()) / np.hypot(
        a.std(ddof=1) / len(a) ** 0.5, b.std(ddof=1) / len(b) ** 0.5
    )


def test_shapes_columns_and_the_training_rule(phantoms):
    table = phantoms.table
    assert phantoms.pixels.shape == (144, 4, 64, 64) and phantoms.pixels.dtype == np.uint8
    assert table["id"].is_unique and (table["group"] == table["plate"]).all()
    labelled = table[table["label"].notna()]
    assert (labelled["dose_uM"] == 0).all() and labelled.groupby(["plate", "label"]).size().eq(
        6
    ).all()


def test_no_stain_is_saturated_or_black(phantoms):
    assert (phantoms.pixels == 255).mean() < 0.005 and (phantoms.pixels == 0).mean() < 0.01


def test_a_field_depends_on_its_place_and_not_on_how_many_plates_there_are(phantoms):
    few = make_plates(1, size_px=64, fields=1, seed=1)
    assert np.array_equal(few.pixels, phantoms.pixels[:48])
    assert not np.array_equal(make_plates(1, size_px=64, fields=1, seed=5).pixels, few.pixels)


def test_amyloid_beta_thins_neurites_and_takes_puncta():
    negative, positive = training(
        make_plates(4, size_px=96, fields=1, seed=3, nuisance=Nuisance(0, 0, matched=False))
    )
    for stain in (0, 1, 2):
        spread = [fields[:, stain].std(axis=(1, 2)) for fields in (negative, positive)]
        assert spread[0].mean() > 1.1 * spread[1].mean() and apart(*spread) > 3
    assert (
        apart(*(fields[:, 3].mean(axis=(1, 2)) for fields in (negative, positive))) < 3
    )  # nuclei stay


def test_torn_pairs_show_in_the_stains_together_and_in_none_alone(torn):
    negative, positive = training(torn)
    assert apart(colocalisation(negative), colocalisation(positive)) > 15
    for stain in range(4):
        for measure in (
            np.mean,
            np.std,
            lambda x, axis: np.percentile(x, 99, axis=axis),
            lambda x, axis: abs(np.diff(x, axis=-1)).mean(axis=axis),
        ):
            assert (
                apart(*(measure(fields[:, stain], axis=(1, 2)) for fields in (negative, positive)))
                < 4
            )


def test_strength_zero_shows_nothing():
    negative, positive = training(
        make_plates(3, size_px=64, fields=1, strength=0, layout="randomised")
    )
    assert apart(colocalisation(negative), colocalisation(positive)) < 4
    assert apart(negative[:, 0].std(axis=(1, 2)), positive[:, 0].std(axis=(1, 2))) < 4


def test_the_published_layout_is_the_same_on_every_plate_and_the_randomised_one_is_not(phantoms):
    def places(table):
        return {
            plate: tuple(
                rows.sort_values("well")[["dose_uM", "amyloid_uM"]].itertuples(
                    index=False, name=None
                )
            )
            for plate, rows in table.groupby("plate")
        }

    assert len(set(places(phantoms.table).values())) == 1
    shuffled = places(make_plates(3, size_px=32, fields=1, layout="randomised").table)
    assert len(set(shuffled.values())) == 3
    assert all(
        sorted(wells) == sorted(next(iter(places(phantoms.table).values())))
        for wells in shuffled.values()
    )


def test_edge_wells_have_a_brighter_background_only_when_injected():
    def gap(edge):
        found = make_plates(
            2, size_px=48, fields=1, nuisance=Nuisance(0, edge), layout="randomised"
        )
        dark = np.percentile(found.pixels[:, 3], 5, axis=(1, 2))
        outer = (found.table["edge"] > 0.9).to_numpy()
        return dark[outer].mean() - dark[~outer].mean()

    assert gap(2.0) > 3 > abs(gap(0.0)) + 1.5


def test_kinds_do_what_they_are_called():
    protective, inert, toxic = make_compounds(3)
    doses = np.array([0.0, 1.0, 3.0, 10.0])
    assert (np.diff(protective.normalised_effect(doses, 30.0)) < 0).all()
    assert (protective.normalised_effect(doses, 0.0) == 0).all()
    assert (inert.normalised_effect(doses, 30.0) == 1).all()
    assert (inert.normalised_effect(doses, 0.0) == 0).all()
    assert (np.diff(toxic.normalised_effect(doses, 0.0)) > 0).all()
    assert (toxic.normalised_effect(doses, 30.0) == 1).all()


@settings(deadline=None, max_examples=30)
@given(st.floats(0.5, 20), st.floats(0.1, 1), st.floats(0.5, 4), st.floats(0, 100))
def test_half_of_the_effect_is_at_the_ec50_and_it_stays_in_range(ec50, largest, slope, dose):
    compound = Compound("x", "protective", ec50, largest, slope)
    assert compound.effect(ec50) == pytest.approx(largest / 2)
    assert 0 <= compound.normalised_effect(dose, 30.0) <= 1


@pytest.mark.parametrize(
    "change, name",
    [
        ({"plates": 0}, "plates"),
        ({"size_px": 8}, "size_px"),
        ({"fields": 0}, "fields"),
        ({"strength": 2.0}, "strength"),
        ({"effect": "both"}, "effect"),
        ({"layout": "spiral"}, "layout"),
        ({"nuisance": Nuisance(1, float("nan"))}, "nuisance"),
    ],
)
def test_values_out_of_range_are_named(change, name):
    with pytest.raises(ParameterError, match=f"parameter {name}"):
        make_plates(**({"plates": 1, "size_px": 32, "fields": 1} | change))
