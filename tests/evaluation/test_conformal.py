"""Prediction sets: the coverage that was asked for, whatever the model, and nothing fitted on test
images.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import ParameterError, PredictionsError
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.decisions import (
    ConformalSets,
    conformal_folds,
    coverage_table,
    fit_conformal,
)

CLASSES = ("nonGS", "GS")


def predictions(
    n, seed, *, split="validation", share=0.3, noise=1.0, fold=0, per_group=1, shift=0.0
):
    """A model whose probabilities are wrong in scale: sets must not need them to be calibrated."""
    draw = np.random.default_rng(seed)
    labels = (draw.random(n) < share).astype(int)
    logits = 3 * (2 * labels - 1 + shift) + draw.normal(0, 3 * noise, n)
    positive = 1 / (1 + np.exp(-logits))
    return Predictions.build(
        ids=[f"{split}-{seed}-{index}" for index in range(n)],
        labels=[CLASSES[label] for label in labels],
        groups=[f"{split}-{seed}-{index // per_group}" for index in range(n)],
        classes=CLASSES,
        split=split,
        fold=fold,
        probabilities=np.stack([1 - positive, positive], 1),
    )


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_coverage_is_reached_on_fresh_images(coverage):
    hits = np.zeros(2)
    counts = np.zeros(2)
    for seed in range(60):
        fitted = fit_conformal(predictions(150, seed, noise=1.5), coverage)
        fresh = predictions(400, 1000 + seed, noise=1.5)
        inside = fitted.sets(fresh.probabilities)[np.arange(400), fresh.true_index]
        for label in (0, 1):
            hits[label] += inside[fresh.true_index == label].sum()
            counts[label] += (fresh.true_index == label).sum()
    assert hits.sum() / counts.sum() >= coverage - 0.01
    assert (hits / counts >= coverage - 0.015).all()


def test_more_coverage_gives_larger_sets():
    fitted = [
        fit_conformal(predictions(400, 1, noise=2), coverage) for coverage in (0.7, 0.9, 0.99)
    ]
    fresh = predictions(300, 2, noise=2)
    sizes = [one.sets(fresh.probabilities).sum(1).mean() for one in fitted]
    assert sizes[0] <= sizes[1] < sizes[2]


@given(st.integers(1, 12), st.floats(0.5, 0.999), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_no_set_is_empty_and_too_few_images_give_full_sets(n, coverage, seed):
    each = Predictions.concatenate(
        [predictions(n, seed, share=0), predictions(n, seed + 1000, share=1)]
    )
    fitted = fit_conformal(each, coverage)
    sets = fitted.sets(predictions(30, seed + 1).probabilities)
    assert sets.any(1).all()
    if np.ceil((n + 1) * coverage - 1e-9) > n:
        assert sets.all()


def test_sets_as_text_and_through_json():
    fitted = ConformalSets(CLASSES, 0.9, np.array([0.2, 0.4]), 50)
    values = np.array([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]])
    assert fitted.names(values) == ["nonGS or GS", "nonGS", "GS"]
    import json

    from nbhelpers.core.files import plain

    again = ConformalSets.from_dict(json.loads(json.dumps(plain(fitted.as_dict()))))
    assert again.names(values) == fitted.names(values) and again.classes == CLASSES


def test_folds_are_fitted_on_their_own_validation_rows_and_scored_by_group():
    parts = [
        one
        for fold in range(4)
        for one in (
            predictions(120, fold, fold=fold, noise=1.5, per_group=6),
            predictions(80, 50 + fold, split="test", fold=fold, noise=1.5, per_group=8),
        )
    ]
    sets = conformal_folds(Predictions.concatenate(parts), 0.9)
    table = coverage_table(sets, 0.9)
    assert len(sets) == 320 and table["class"].tolist() == ["all", "GS", "nonGS"]
    assert (
        (table["verdict"] == "reached").all()
        and table["coverage"].between(0.8, 1).all()
        and (table["low"] <= table["high"]).all()
    )


def test_a_shift_of_the_new_images_shows_as_coverage_that_is_not_reached():
    parts = [predictions(300, 1, noise=1), predictions(300, 2, split="test", shift=1.6, noise=1)]
    table = coverage_table(conformal_folds(Predictions.concatenate(parts), 0.9), 0.9)
    assert table.set_index("class").loc["nonGS", "verdict"] == "not reached"


def simulated(slides, per_slide, coverage, seed):
    """Sets of so many test slides, whose coverages vary about the true one (a beta law in which
    two images of a slide correlate by .2)."""
    draw = np.random.default_rng(seed)
    of_slide = draw.beta(4 * coverage, 4 * (1 - coverage), slides)
    rows = slides * per_slide
    return pd.DataFrame(
        {
            "id": [str(index) for index in range(rows)],
            "label": [CLASSES[index % 2] for index in range(rows)],
            "group": np.repeat([f"slide {index}" for index in range(slides)], per_slide),
            "repeat": 0,
            "fold": 0,
            "covered": draw.random(rows) < np.repeat(of_slide, per_slide),
            "size": 1,
            "set": "",
        }
    )


def share_of(verdict, *about):
    found = [coverage_table(simulated(*about, seed), 0.9) for seed in range(60)]
    return np.mean([table["verdict"][0] == verdict for table in found])


def test_few_slides_cannot_say_that_a_coverage_is_reached():
    for slides in (3, 5, 10):
        assert share_of("reached", slides, 20, 0.68) <= 0.05
    assert share_of("not reached", 40, 20, 0.68) >= 0.9
    assert share_of("reached", 60, 20, 0.9) >= 0.7
    few = coverage_table(simulated(5, 20, 0.9, 0), 0.9)
    assert (few["verdict"] == "not assessable").all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: fit_conformal(predictions(20, 1, split="test")),
            PredictionsError,
            "not be fitted on test",
        ),
        (lambda: fit_conformal(predictions(20, 1), 0.2), ParameterError, "coverage"),
        (
            lambda: fit_conformal(predictions(20, 1, share=0)),
            PredictionsError,
            "class GS.*no validation image",
        ),
        (lambda: fit_conformal(predictions(20, 1).where(fold=9)), PredictionsError, "no rows"),
        (
            lambda: conformal_folds(predictions(20, 1, split="test")),
            PredictionsError,
            "fold 0.*no validation",
        ),
        (lambda: conformal_folds(predictions(20, 1)), PredictionsError, "no test rows"),
    ],
)
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
