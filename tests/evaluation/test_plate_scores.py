"""Plates: log-odds survive saturation, intervals resample wells, curves and hits find what was
injected and no more.
"""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import InputError, PredictionsError
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation import plates as scores
from nbhelpers.imagesets.plates import load_plates
from nbhelpers.phantoms.plate import Compound, make_compounds

BENCHMARK = runpy.run_path(Path(__file__).parents[2] / "benchmarks" / "plate_hits.py")
simulate_wells = BENCHMARK["simulate_wells"]
DOSES = np.repeat([0.0, 1.0, 3.0, 10.0], 12)


def fit_dose_response(dose, response):
    """The curve of one compound on one plate, where the wells lie being not known."""
    wells = pd.DataFrame({"dose_uM": dose, "damage": response})
    wells = wells.assign(plate="p", compound="C", amyloid_uM=30.0)
    return scores.fit_curve(scores.wells_of(wells, "C", 30.0))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return load_plates(
        "phantom",
        data_folder=tmp_path_factory.mktemp("data"),
        size_px=32,
        phantom={"plates": 3, "fields": 2},
    )


@pytest.fixture(scope="module")
def wells(images):
    rng = np.random.default_rng(0)
    return scores.well_scores(
        scores.field_scores(
            images,
            -4 + 8 * images.table["normalised_effect"].to_numpy() + rng.normal(0, 0.6, len(images)),
        )
    )


def test_logits_log_odds_and_predictions_agree(images):
    log_odds = np.random.default_rng(1).normal(0, 3, len(images))
    plain = scores.field_scores(images, log_odds)
    logits = np.stack([np.full(len(images), 2.0), log_odds + 2.0], axis=1)
    assert np.allclose(scores.field_scores(images, logits)["log_odds"], log_odds)
    known = np.flatnonzero(images.labels >= 0)
    chance = plain["probability"].to_numpy()[known]
    predictions = Predictions.build(
        ids=images.ids[known],
        labels=images.table["label"].iloc[known],
        classes=images.classes,
        groups=images.groups[known],
        probabilities=np.stack([1 - chance, chance], 1),
    )
    again = scores.field_scores(images, predictions)
    assert again["id"].tolist() == list(images.ids[known]) and np.allclose(
        again["log_odds"], log_odds[known], atol=1e-4
    )
    wells = scores.group_by_well(predictions, images).table["group"]
    assert wells.nunique() == 36 and wells.iloc[0] == "plate01/B02"
    with pytest.raises(PredictionsError, match="more than once"):
        scores.field_scores(
            images,
            Predictions.concatenate(
                [predictions, Predictions(predictions.table.assign(model="b"), images.classes)]
            ),
        )


@pytest.mark.parametrize("given_scores", [np.zeros(3), np.zeros((288, 3))])
def test_scores_of_the_wrong_shape_are_refused(images, given_scores):
    with pytest.raises(InputError, match="their shape is"):
        scores.field_scores(images, given_scores)


def test_a_score_that_is_not_finite_names_its_field(images):
    values = np.zeros(len(images))
    values[5] = np.nan
    with pytest.raises(InputError, match=images.ids[5]):
        scores.field_scores(images, values)


def test_wells_are_means_of_log_odds_and_not_of_probabilities(images):
    values = np.where(images.table["field"] == 1, 30.0, 4.0)
    well = scores.well_scores(scores.field_scores(images, values)).iloc[0]
    assert well["log_odds"] == 17.0 and well["n_fields"] == 2
    assert well["mean_probability"] == pytest.approx((1 + 1 / (1 + np.exp(-4))) / 2)


def test_saturation_is_counted(images):
    values = np.where(np.arange(len(images)) % 4 == 0, 12.0, -1.0)
    found, sentence = scores.saturation(scores.field_scores(images, values))
    assert found.value == 0.25 and found.n == len(images) and found.low < 0.25 < found.high
    assert "72 of 288 fields (25 %)" in sentence


def test_damage_is_0_and_1_at_the_controls_of_every_plate(wells):
    plain = wells[wells["dose_uM"] == 0].groupby(["plate", "amyloid_uM"])["damage"].mean()
    assert np.allclose(plain.xs(0.0, level=1), 0) and np.allclose(plain.xs(30.0, level=1), 1)


@given(st.floats(-20, 20), st.floats(0.1, 10))
@settings(deadline=None, max_examples=15)
def test_damage_does_not_change_with_level_and_scale_of_a_plate(wells, level, gain):
    moved = wells.assign(
        log_odds=wells["log_odds"].where(
            wells["plate"] != "plate02", level + gain * wells["log_odds"]
        )
    )
    assert np.allclose(scores.normalised_effect(moved), wells["damage"], atol=1e-6)


def test_a_plate_with_one_class_has_no_damage_and_says_why_it_has_no_z_prime(wells):
    part = wells[
        ~((wells["plate"] == "plate02") & (wells["dose_uM"] == 0) & (wells["amyloid_uM"] > 0))
    ]
    assert np.isnan(scores.normalised_effect(part)[part["plate"] == "plate02"]).all()
    quality = scores.control_quality(part).set_index("plate")
    assert quality.loc["plate02", "verdict"] == "not known: fewer than 3 positive control wells"
    assert quality.loc["plate01", "verdict"] == "marginal to excellent"
    assert quality.loc["plate01", "ssmd_verdict"] == "excellent"
    call = scores.call_hits(part.assign(damage=scores.normalised_effect(part)))
    assert set(call["compound"]) == {"C01", "C03"}
    with pytest.raises(InputError, match="no plate has both controls"):
        scores.call_hits(part[part["plate"] == "plate02"].assign(damage=np.nan))


def test_z_prime_and_ssmd_are_those_of_the_formulas(wells):
    row = scores.control_quality(wells).iloc[0]
    controls = wells[(wells["plate"] == row["plate"]) & (wells["dose_uM"] == 0)].groupby(
        "amyloid_uM"
    )["log_odds"]
    mean = controls.mean()
    sd = controls.std()
    assert row["z_prime"] == pytest.approx(1 - 3 * sd.sum() / (mean[30] - mean[0]))
    assert row["ssmd"] == pytest.approx((mean[30] - mean[0]) / np.hypot(*sd))
    assert row["z_prime_low"] < row["z_prime"] < row["z_prime_high"]


def test_controls_alike_are_not_separated(wells):
    noise = np.random.default_rng(2).normal(0, 1, len(wells))
    assert (
        scores.control_quality(wells.assign(log_odds=noise))["verdict"] == "not separated"
    ).all()


def test_intervals_of_controls_cover_with_few_wells_and_unequal_spread():
    rng = np.random.default_rng(0)
    for wells, sd in (((6, 6), 1.0), ((3, 3), 2.0), ((12, 6), 2.0)):
        held = []
        for _ in range(200):
            z_prime, ssmd = scores.separation(
                rng.normal(0, 1, wells[0]), rng.normal(10, sd, wells[1])
            )
            held.append(ssmd.low <= 10 / np.hypot(1, sd) <= ssmd.high)
            lowest = -np.inf if z_prime.low is None else z_prime.low
            held.append(lowest <= 1 - 3 * (1 + sd) / 10 <= z_prime.high)
        assert np.mean(held) >= 0.93, (wells, sd)


def test_where_one_control_has_all_the_spread_the_interval_is_the_inverted_noncentral_t():
    from scipy.stats import nct

    high = np.array([3.1, 2.6, 3.7, 3.2, 2.4, 3.0])
    _, found = scores.separation(1e-6 * high, high)
    root = np.sqrt(len(high))
    ends = [nct.cdf(found.value * root, 5, end * root) for end in (found.low, found.high)]
    assert np.allclose(ends, [0.975, 0.025], atol=0.003)


def test_reversed_controls_are_called_reversed_and_words_follow_the_whole_interval(wells):
    turned = scores.control_quality(wells.assign(log_odds=-wells["log_odds"]))
    assert (turned["verdict"] == "reversed").all() and (turned["ssmd_verdict"] == "reversed").all()
    assert (turned["ssmd_high"] < 0).all()
    assert turned["note"].str.contains("assumed").all()
    noise = np.random.default_rng(2).normal(0, 1, len(wells))
    alike = scores.control_quality(wells.assign(log_odds=noise))
    assert alike["z_prime_low"].isna().all() and alike["ssmd_verdict"].str.startswith("poor").all()


def test_wells_that_are_seen_not_to_be_normal_are_named():
    rng = np.random.default_rng(0)
    _, normal = scores.separation(rng.normal(0, 1, 20), rng.normal(8, 1, 20))
    _, skewed = scores.separation(rng.exponential(1, 20) ** 2, rng.normal(8, 1, 20))
    assert normal.note == "" and "not normal" in skewed.note


@pytest.mark.parametrize("order", ["by column", "at random"])
def test_the_highest_dose_is_refused_where_its_place_explains_it(order):
    """Filled dose by dose, least squares gave a mixture of doses, and called it the highest."""
    rng = np.random.default_rng(0)
    places = [(row, column) for column in range(1, 7) for row in "ABCD"]
    if order == "at random":
        places = [places[at] for at in np.random.default_rng(99).permutation(24)]
    doses = [("DMSO", 0.0, 0.0)] * 6 + [("DMSO", 0.0, 5.0)] * 6
    for dose in (0.1, 1.0, 10.0, 100.0):
        doses += [("X", dose, 5.0)] * 3
    rows = []
    for plate in "AB":
        for (compound, dose, amyloid), (row, column) in zip(doses, places, strict=True):
            score = -2 + 4 * (amyloid > 0) / (1 + dose) + 0.3 * rng.normal()
            about = {"plate": plate, "well": f"{row}{column}", "row": row, "column": column}
            about |= {"compound": compound, "dose_uM": dose, "amyloid_uM": amyloid}
            rows.append(about | {"probability": 1 / (1 + np.exp(-score)), "log_odds": score})
    hits = scores.call_hits(scores.well_scores(pd.DataFrame(rows))).set_index("compound")
    if order == "at random":
        assert hits.loc["X", "protection_low"] < 0.99 < hits.loc["X", "protection_high"] + 0.1
        assert hits.loc["X", "call"] == "protective"
    else:
        assert hits.loc["X", "call"] == "not assessable"
        assert "highest dose cannot be told" in hits.loc["X", "note"]


def test_conditions_have_an_interval_over_wells(wells):
    table = scores.condition_scores(wells)
    assert len(table) == 24 and (table["n_wells"] == 6).all() and (table["note"] == "").all()
    assert (
        (table["probability_low"] <= table["probability"])
        & (table["probability"] <= table["probability_high"])
    ).all()
    pooled = scores.condition_scores(wells, ("dose_uM", "amyloid_uM")).set_index(
        ["dose_uM", "amyloid_uM"]
    )
    assert pooled.loc[(0.0, 0.0), "n_wells"] == 18 and pooled.loc[(0.0, 0.0), "n_plates"] == 3
    single = scores.condition_scores(wells.groupby(["compound", "dose_uM", "amyloid_uM"]).head(1))
    assert (
        single["damage_low"].isna().all()
        and (single["note"] == "one well: how wells differ cannot be seen").all()
    )


def test_wells_without_damage_do_not_take_it_from_the_others_of_their_condition():
    wells = simulate_wells(make_compounds(3, 1), seed=1)
    table = scores.condition_scores(
        wells.assign(damage=wells["damage"].where(wells["plate"] != "plate001"))
    )
    alone = scores.condition_scores(wells[wells["plate"] == "plate002"])
    first = table[table["compound"] == "C01"].reset_index(drop=True)
    assert np.allclose(first["damage"], alone["damage"]) and first["damage_low"].notna().all()
    assert first["note"].str.endswith("damage of 6 wells").all() and (first["n_wells"] == 12).all()
    none = scores.condition_scores(wells.assign(damage=np.nan))
    assert none["damage"].isna().all() and (none["note"] == "no plate with both controls").all()


def test_tables_in_words():
    table = pd.DataFrame(
        {
            "a": [0.961, -0.001],
            "a_low": [0.941, np.nan],
            "a_high": [0.97, np.nan],
            "b": [15.0, np.nan],
            "n": [3, 4],
            "left out": "x",
        }
    )
    found = scores.in_words(table, {"n": "wells", "a": "score", "b": "dose"})
    assert found.to_dict("list") == {
        "wells": [3, 4],
        "score": ["0.96 [0.94, 0.97]", "0.00"],
        "dose": ["15", "none"],
    }


# Dose and response


def test_the_injected_ec50_lies_in_the_interval():
    """Over 200 curves: near the highest dose a shallow one may seem to have its half above it."""
    near = 0
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ec50 = rng.uniform(1, 6)
        slope = rng.uniform(1, 2.5)
        response = scores.hill(DOSES, 1.0, rng.uniform(0, 0.3), ec50, slope)
        found = fit_dose_response(DOSES, response + rng.normal(0, 0.02, len(DOSES)))
        if not found["fitted"]:
            assert "outside the doses" in found["reason"]
        near += found["fitted"] and ec50 / 2 < found["ec50_uM"] < ec50 * 2
        held += (found["low"] or 0) <= ec50 <= (found["high"] or np.inf)
    assert near >= 194 and held >= 184


def test_noise_has_no_fit_and_says_so():
    response = 1 + np.random.default_rng(3).normal(0, 0.2, len(DOSES))
    found = fit_dose_response(DOSES, response)
    assert (
        not found["fitted"]
        and found["ec50_uM"] is None
        and "no change with the dose" in found["reason"]
    )


def test_an_ec50_outside_the_doses_is_not_given_as_a_number():
    noise = np.random.default_rng(4).normal(0, 0.02, len(DOSES))
    found = fit_dose_response(DOSES, scores.hill(DOSES, 1.0, 0.0, 200.0, 1.5) + noise)
    if found["fitted"]:  # a curve that has only begun may have its half anywhere above
        assert found["high"] is None
    early = fit_dose_response(DOSES, np.where(DOSES > 0, 0.1, 1.0) + noise)
    assert not early["fitted"] and early["low"] is None and "below 1 uM" in early["reason"]


@pytest.mark.parametrize("dose", [[0, 1, 3] * 4, [0, 1, 3, 10]])
def test_too_few_doses_or_wells(dose):
    found = fit_dose_response(np.array(dose, float), np.arange(len(dose), dtype=float))
    assert not found["fitted"] and "too few" in found["reason"]


def test_wells_without_damage_are_passed_over():
    response = scores.hill(DOSES, 1.0, 0.1, 3.0, 1.5) + np.random.default_rng(5).normal(
        0, 0.02, len(DOSES)
    )
    assert (
        fit_dose_response(DOSES, np.where(np.arange(len(DOSES)) % 6, response, np.nan))["n_wells"]
        == 40
    )


def test_the_interval_of_an_ec50_covers_is_continuous_and_never_empty():
    dose = np.repeat([0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0], 4)
    curve = scores.hill(dose, 1.0, 0.1, 2.0, 1.2)
    rng = np.random.default_rng(1)
    held = []
    for _ in range(150):
        found = fit_dose_response(dose, curve + rng.normal(0, 0.05, len(dose)))
        held.append(found["low"] <= 2.0 <= found["high"])
    assert np.mean(held) >= 0.92
    noise = rng.normal(0, 0.05, len(dose))
    ends = []
    for scale in np.linspace(1, 1.02, 6):
        found = fit_dose_response(dose, curve + scale * noise)
        ends.append([found["low"], found["ec50_uM"], found["high"]])
    assert (np.diff(ends, axis=1) > 0).all() and abs(np.diff(ends, axis=0)).max() < 0.01
    exact = fit_dose_response(dose, curve)
    assert exact["low"] < exact["ec50_uM"] < exact["high"]


def test_an_ec50_outside_the_doses_is_not_assessable():
    dose = np.repeat([0.0, 0.1, 0.3, 1.0, 3.0], 6)
    noise = np.random.default_rng(0).normal(0, 0.01, len(dose))
    found = fit_dose_response(dose, scores.hill(dose, 1.0, 0.0, 6.0, 1.5) + noise)
    assert not found["fitted"] and found["ec50_uM"] is None
    assert "not assessable: the half effect lies above 3 uM" in found["reason"]


# Hits


def test_a_gradient_over_the_rows_makes_no_hit_and_dose_by_row_is_refused():
    inert = make_compounds(6, 0, ("inert",))
    for layout, expected in (("published", "no effect"), ("dose by row", "not assessable")):
        place = BENCHMARK["Place"](layout, gradient=1.0, rows=0.2)
        wells = simulate_wells(inert, seed=3, place=place)
        hits = scores.call_hits(wells)
        assert (hits["call"] == expected).all(), layout
    assert "dose and place are one" in hits["note"].iloc[0]
    assert "dose and place are one" in scores.hit_sentences(hits)[0]
    blind = scores.call_hits(
        simulate_wells(inert, seed=3, place=BENCHMARK["Place"]("published", 1.0)).drop(
            columns=["row", "column"]
        )
    )
    assert (blind["call"] != "no effect").any()  # what a gradient does where it is not taken out


def test_hits_are_called_in_their_direction_and_in_words():
    wells = simulate_wells(make_compounds(6, 1), seed=1)
    hits = scores.call_hits(wells)
    assert hits["call"].tolist() == ["protective", "no effect", "toxic"] * 2
    said = scores.hit_sentences(hits)
    assert "C02: no effect." in said[1] and "EC50" in said[0] and "EC50" not in said[1]
    fits = scores.dose_responses(wells)
    assert (
        fits["C01"]["with amyloid-beta"]["fitted"]
        and not fits["C02"]["with amyloid-beta"]["fitted"]
    )


def test_a_compound_at_one_dose_is_not_tested():
    wells = simulate_wells(make_compounds(3, 1), seed=1)
    hits = scores.call_hits(
        wells[(wells["compound"] != "C01") | (wells["dose_uM"] == 0)]
    ).set_index("compound")
    assert hits.loc["C01", "call"] == "not tested" and hits.loc["C03", "call"] == "toxic"
    assert scores.hit_sentences(hits.reset_index())[0] == "C01: not tested."


def test_controls_called_dmso_are_those_of_every_compound_on_their_plate():
    wells = simulate_wells(make_compounds(3, 1), seed=1)
    named = wells.assign(compound=wells["compound"].where(wells["dose_uM"] > 0, "DMSO"))
    hits = scores.call_hits(named).set_index("compound")
    assert hits.loc["DMSO", "call"] == "not tested"
    pd.testing.assert_frame_equal(
        hits.drop(index="DMSO"), scores.call_hits(wells).set_index("compound")
    )
    assert scores.dose_responses(named)["C01"] == scores.dose_responses(wells)["C01"]


def test_scores_the_wrong_way_round_are_not_called_missing_controls(wells):
    turned = wells.assign(log_odds=-wells["log_odds"])
    with pytest.raises(
        InputError, match="no plate has both controls with a higher score for amyloid-beta"
    ):
        scores.call_hits(turned.assign(damage=scores.normalised_effect(turned)))


def test_an_effect_below_the_least_one_is_no_hit(monkeypatch):
    weak = Compound("weak", "protective", 2.0, 0.15, 1.5)
    wells = simulate_wells([weak], plates_per_compound=8, well_sd=0.02, field_sd=0.02)
    assert scores.call_hits(wells)["call"].item() == "no effect"
    monkeypatch.setattr(scores, "LEAST_EFFECT", 0.05)
    assert scores.call_hits(wells)["call"].item() == "protective"


def test_only_inert_compounds_are_rarely_called(monkeypatch):
    monkeypatch.setattr(scores, "LEAST_EFFECT", 0.0)
    inert = make_compounds(12, 0, ("inert",))
    calls = [
        scores.call_hits(simulate_wells(inert, seed=seed, plates_per_compound=1))["call"]
        for seed in range(8)
    ]
    wrong_screens = np.mean([(call != "no effect").any() for call in calls])
    assert wrong_screens <= 0.5  # each screen has any false call in about 1 of 10
