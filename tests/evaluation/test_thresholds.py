"""Thresholds come from validation rows only, and are applied once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.decisions import (
    apply_threshold,
    choose_threshold,
    sweep_thresholds,
    threshold_folds,
)


def scored(odds, labels, part="validation", fold=0, groups=None):
    positive = 1 / (1 + np.exp(-np.asarray(odds, float)))
    return Predictions.build(
        ids=[f"{part}{fold}-{at}" for at in range(len(labels))],
        fold=fold,
        split=part,
        labels=[("no", "yes")[label] for label in labels],
        groups=groups or ["g"] * len(labels),
        classes=("no", "yes"),
        probabilities=np.stack([1 - positive, positive], 1),
    )


def recall_mean(predictions):
    hit = predictions.predicted_index == predictions.true_index
    return np.mean([hit[predictions.true_index == name].mean() for name in (0, 1)])


@given(st.integers(0, 2**30), st.floats(-4, 4), st.integers(5, 40))
@settings(max_examples=25, deadline=None)
def test_the_chosen_threshold_is_nearly_as_good_as_any_on_validation(seed, offset, positives):
    draw = np.random.default_rng(seed)
    labels = (np.arange(80) < positives).astype(int)
    validation = scored(offset + draw.normal(0, 1, 80) + 3 * labels, labels)
    chosen = recall_mean(apply_threshold(validation, choose_threshold(validation)))
    best = max(
        recall_mean(apply_threshold(validation, one))
        for one in np.unique(validation.probabilities[:, 1])
    )
    assert (
        chosen > best - 2.5 / (min(positives, 80 - positives) + 2) ** 0.5 / 2
    )  # a standard error, and an image
    sweep = sweep_thresholds(validation)
    assert (
        sweep["balanced_accuracy"].between(0, 1).all()
        and sweep["threshold"].is_monotonic_increasing
    )


def test_one_half_stays_unless_validation_speaks_against_it():
    draw = np.random.default_rng(3)
    labels = np.arange(400) % 2
    slightly = scored(0.6 + draw.normal(0, 1.5, 40) + 4 * (labels[:40] - 0.5), labels[:40])
    assert choose_threshold(slightly) == 0.5
    clearly = scored(2 + draw.normal(0, 1.5, 400) + 4 * (labels - 0.5), labels)
    chosen = choose_threshold(clearly)
    assert chosen > 0.7
    assert (
        recall_mean(apply_threshold(clearly, chosen))
        > recall_mean(apply_threshold(clearly, 0.5)) + 0.1
    )


def test_a_gain_on_one_slide_alone_does_not_move_the_threshold():
    draw = np.random.default_rng(5)
    labels = np.arange(160) % 2
    slides = np.arange(160) // 20
    odds = draw.normal(0, 0.7, 160) + 6 * (labels - 0.5)
    shifted = {
        name: scored(
            odds - 3.5 * np.isin(slides, moved),
            labels,
            groups=[f"slide {slide}" for slide in slides],
        )
        for name, moved in (("one", [3]), ("all", range(8)))
    }
    as_images = scored(odds - 3.5 * (slides == 3), labels)
    assert choose_threshold(shifted["one"]) == 0.5 != choose_threshold(as_images)
    assert choose_threshold(shifted["all"]) < 0.3


def test_each_fold_has_the_threshold_of_its_own_validation_rows():
    draw = np.random.default_rng(1)
    labels = np.arange(60) % 2
    parts = [
        scored(shift + draw.normal(0, 0.5, 60) + 4 * labels, labels, part, fold)
        for fold, shift in ((0, -6.0), (1, 2.0))
        for part in ("validation", "test")
    ]
    test, table = threshold_folds(Predictions.concatenate(parts))
    assert (test.table["split"] == "test").all() and recall_mean(test) > 0.97
    assert table.loc[0, "threshold"] < 0.1 < 0.9 < table.loc[1, "threshold"]


def test_test_rows_one_class_and_three_classes_are_refused():
    labels = np.arange(10) % 2
    with pytest.raises(PredictionsError, match="not be fitted on test"):
        sweep_thresholds(scored(labels, labels, "test"))
    with pytest.raises(PredictionsError, match="all of one class"):
        choose_threshold(scored(np.arange(4), [1, 1, 1, 1]))
    three = Predictions.build(
        ids=list("abc"),
        labels=list("xyz"),
        groups=list("ggg"),
        classes=tuple("xyz"),
        probabilities=np.eye(3),
        split="validation",
    )
    with pytest.raises(PredictionsError, match="3 classes.*needs two"):
        choose_threshold(three)
