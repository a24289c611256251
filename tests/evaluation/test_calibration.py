"""Calibration: a injected temperature is found again, and nothing is fitted on test images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import ParameterError, PredictionsError
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.calibration import (
    apply_temperature,
    average_by_image,
    calibrate_folds,
    fit_temperature,
)
from nbhelpers.evaluation.metrics import calibration_of, evaluate, reliability_bins

CLASSES = ("a", "b", "c")


def calibrated(n, seed, *, split="validation", repeat=0, fold=0, sharpness=1.0):
    """Labels drawn from the probabilities; the table then reports them sharpened."""
    rng = np.random.default_rng(seed)
    honest = rng.dirichlet(np.full(3, 0.7), n).clip(1e-6)
    honest /= honest.sum(axis=1, keepdims=True)
    true = (honest.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, 2)
    shown = honest**sharpness
    ids = [f"{split}{seed}-{index}" for index in range(n)]
    return Predictions.build(
        ids=ids,
        labels=[CLASSES[index] for index in true],
        groups=ids,
        classes=CLASSES,
        probabilities=shown / shown.sum(axis=1, keepdims=True),
        split=split,
        repeat=repeat,
        fold=fold,
    )


@settings(max_examples=10, deadline=None)
@given(sharpness=st.floats(0.4, 4), seed=st.integers(0, 1000))
def test_a_injected_temperature_is_found(sharpness, seed):
    assert fit_temperature(calibrated(3000, seed, sharpness=sharpness)) == pytest.approx(
        sharpness, rel=0.15
    )


def two_classes(groups, per_group, seed, *, temperature=1.0, split="validation"):
    """Labels drawn from the probabilities, which vary with the group; the table then shows them
    too sure of themselves by ``temperature``.
    """
    rng = np.random.default_rng([seed, split == "test"])
    group = np.repeat(np.arange(groups), per_group)
    logits = rng.normal(0, 1, groups)[group] + rng.normal(0, 2, len(group))
    honest = 1 / (1 + np.exp(-logits))
    true = rng.random(len(group)) < honest
    shown = 1 / (1 + np.exp(-logits * temperature))
    return Predictions.build(
        ids=[str(index) for index in range(len(group))],
        labels=[CLASSES[int(one)] for one in true],
        groups=[f"slide {one}" for one in group],
        classes=CLASSES[:2],
        probabilities=np.stack([1 - shown, shown], 1),
        split=split,
    )


def log_loss(predictions):
    true = predictions.probabilities[np.arange(len(predictions)), predictions.true_index]
    return -np.log(np.maximum(true, 1e-6)).mean()


def test_a_calibrated_model_is_left_alone_and_one_too_sure_of_itself_is_mended():
    harm = []
    moved = 0
    for seed in range(100):
        found = fit_temperature(two_classes(8, 5, seed))
        fresh = two_classes(200, 5, seed, split="test")
        moved += found != 1
        harm.append(log_loss(apply_temperature(fresh, found)) - log_loss(fresh))
    assert moved <= 5
    assert np.mean(harm) < 0.005 and max(harm) < 0.2
    for seed in range(20):
        found = fit_temperature(two_classes(20, 10, seed, temperature=3))
        fresh = two_classes(200, 5, seed, temperature=3, split="test")
        honest = log_loss(apply_temperature(fresh, 3))
        assert log_loss(apply_temperature(fresh, found)) < honest + 0.3 * (log_loss(fresh) - honest)


def test_one_absurd_row_sets_no_temperature():
    table = two_classes(20, 10, 3).table
    row = table["label"].eq(CLASSES[0]).idxmax()
    table.loc[row, [f"probability {name}" for name in CLASSES[:2]]] = [4.6e-101, 1.0]
    assert fit_temperature(Predictions(table, CLASSES[:2])) == 1


def test_averaged_by_image_each_image_counts_once():
    parts = [calibrated(30, 1, repeat=repeat, fold=2) for repeat in range(3)]
    shifted = parts[1].probabilities[::-1]
    parts[1].table[parts[1].probability_columns] = shifted
    found = average_by_image(Predictions.concatenate(parts))
    assert sorted(found.table["id"]) == sorted(parts[0].table["id"])
    rows = found.table.set_index("id").loc[parts[0].table["id"]]
    expected = (2 * parts[0].probabilities + shifted) / 3
    assert rows[found.probability_columns].to_numpy() == pytest.approx(expected)
    assert (rows["label"].to_numpy() == parts[0].table["label"]).all()


def test_scaling_lowers_log_loss_and_error_and_keeps_the_predicted_class():
    sure = calibrated(2000, 1, sharpness=3)
    milder = apply_temperature(sure, fit_temperature(sure))
    assert calibration_of(milder).estimate.value < 0.5 * calibration_of(sure).estimate.value
    assert evaluate(milder)["log_loss"].value < evaluate(sure)["log_loss"].value
    assert (milder.table["predicted"] == sure.table["predicted"]).all()
    assert np.array_equal(milder.probabilities.argmax(axis=1), sure.probabilities.argmax(axis=1))
    assert sure.probabilities == pytest.approx(
        apply_temperature(milder, 1 / fit_temperature(sure)).probabilities
    )


def test_probabilities_of_zero_survive():
    table = Predictions.build(
        ids=["1", "2"],
        labels=["a", "b"],
        groups=["1", "2"],
        classes=CLASSES,
        probabilities=[[1, 0, 0], [1, 0, 0]],
        split="validation",
    )
    assert np.isfinite(apply_temperature(table, fit_temperature(table)).probabilities).all()


def test_a_temperature_is_never_fitted_on_test_rows():
    with pytest.raises(PredictionsError, match="test images"):
        fit_temperature(calibrated(20, 0, split="test"))
    with pytest.raises(PredictionsError, match="no rows"):
        fit_temperature(calibrated(20, 0).where(fold=3))


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(ParameterError):
        apply_temperature(calibrated(5, 0), temperature)


def test_each_fold_is_scaled_by_its_own_validation_rows():
    parts = [
        calibrated(800, 10 * fold + (split == "test"), split=split, fold=fold, sharpness=sharpness)
        for fold, sharpness in ((0, 1.0), (1, 3.0))
        for split in ("validation", "test")
    ]
    both = Predictions.concatenate(parts)
    scaled, temperatures = calibrate_folds(both)
    assert temperatures["temperature"].tolist() == pytest.approx([1.0, 3.0], rel=0.15)
    assert len(scaled) == 1600 and (scaled.table["split"] == "test").all()
    alone = apply_temperature(parts[3], temperatures["temperature"][1])
    assert scaled.where(fold=1).probabilities == pytest.approx(alone.probabilities)

    with pytest.raises(PredictionsError, match="fold 1"):
        calibrate_folds(Predictions.concatenate(parts[:2] + parts[3:]))


def test_bins_have_equal_counts_and_hold_the_accuracy():
    table = reliability_bins(calibrated(1000, 3))
    assert table["n"].tolist() == [100] * 10
    assert table["confidence"].is_monotonic_increasing
    inside = (table["low"] <= table["confidence"]) & (table["confidence"] <= table["high"])
    assert inside.sum() >= 8  # calibrated: the diagonal runs through nearly every interval
    sure = reliability_bins(calibrated(1000, 3, sharpness=4))
    assert (sure["high"] < sure["confidence"]).sum() >= 5


def test_equal_confidences_share_a_bin():
    table = Predictions.build(
        ids=list("123456"),
        labels=["a"] * 6,
        groups=list("123456"),
        classes=CLASSES,
        probabilities=[[0.8, 0.1, 0.1]] * 6,
    )
    found = reliability_bins(table)
    assert len(found) == 1 and found.n.iloc[0] == 6 and found["accuracy"].iloc[0] == 1
    assert calibration_of(table).estimate.value == pytest.approx(0.2)


def test_the_error_is_the_one_in_the_metrics():
    predictions = Predictions.concatenate(
        [calibrated(200, 5, repeat=0), calibrated(200, 6, repeat=1)]
    )
    assert evaluate(predictions)["ece"].value == pytest.approx(
        calibration_of(predictions).estimate.value
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60))
def test_the_error_agrees_with_its_definition(seed, n):
    predictions = calibrated(n, seed)
    confidence = predictions.probabilities.max(axis=1)
    right = predictions.probabilities.argmax(axis=1) == predictions.true_index
    edges = np.unique(np.quantile(confidence, np.arange(1, 10) / 10, method="higher"))
    which = np.searchsorted(edges, confidence, side="right")
    expected = sum(
        abs(confidence[which == one].mean() - right[which == one].mean()) * (which == one).mean()
        for one in set(which)
    )
    assert calibration_of(predictions).estimate.value == pytest.approx(expected)
