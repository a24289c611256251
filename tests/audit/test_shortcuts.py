"""Shortcuts: the injected one is named, clean sets are left in peace, and groups are no independent
witnesses.
"""

import numpy as np
import pandas as pd
import pytest

from nbhelpers.audit import Audit, Provenance, discriminant
from nbhelpers.audit.discriminant import label_from_features
from nbhelpers.audit.question import Question
from nbhelpers.audit.shortcuts import (
    appearance,
    part_difference,
    shortcut_checks,
)
from nbhelpers.core.errors import InputError, PredictionsError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split, hold_out
from nbhelpers.imagesets.confound import with_training_confound
from nbhelpers.phantoms.synapse import CLASSES, load_phantom_synapses


def styled_set(seed, neurons=24, each=8, shift=0.0):
    """Noise whose brightness, contrast and gradient are the neuron's own style; with ``shift`` the
    class tells too.
    """
    rng = np.random.default_rng(seed)
    rows = []
    pixels = []
    for neuron in range(neurons):
        brightness = rng.normal(130, 10)
        contrast = rng.uniform(20, 35)
        slope = rng.normal(0, 6)
        for index in range(each):
            image = rng.normal(
                brightness + rng.normal(0, 6), contrast, (24, 24)
            ) + slope * np.linspace(-1, 1, 24)
            pixels.append(image + shift * (1 - 2 * (neuron % 2)))
            rows.append(
                {"id": f"{neuron}-{index}", "label": CLASSES[neuron % 2], "group": f"n{neuron}"}
            )
    return ImageSet(
        "styled",
        pd.DataFrame(rows),
        np.clip(np.stack(pixels), 0, 255).astype(np.uint8)[:, None],
        CLASSES,
        "a test",
        True,
    )


LOOK = "look of training and test images"


def audited(images, split=None, predictions=None, shuffles=300, **options) -> Audit:
    question = Question(images, split, predictions=predictions, shuffles=shuffles, **options)
    return Audit({}, tuple(shortcut_checks(question)))


def brightness(images, split, predictions=None):
    return audited(images, split, predictions).check("shortcut: brightness")


def test_twenty_clean_sets_cause_at_most_one_alarm():
    alarms = 0
    for seed in range(20):
        images = styled_set(seed, each=5)
        found = audited(images, hold_out(images, seed=seed), shuffles=200)
        alarms += bool(found.findings())
        assert len(found.checks) == 7 and found.checks[-1].name == LOOK
    assert alarms <= 1


@pytest.mark.parametrize("seed", range(3))
def test_brightness_by_class_in_training_is_named_with_its_size(seed):
    clean = styled_set(seed)
    split = hold_out(clean, seed=seed)
    check = brightness(with_training_confound(clean, split, 2.0), split)
    assert "AUC of 0.9" in check.says or "AUC of 1.0" in check.says
    assert "holds in training only" in check.says and "Most telling is the " in check.says
    assert check.verdict == "warn" and check.numbers["p"] < 0.01


def test_a_shortcut_that_holds_everywhere_is_named_too():
    images = styled_set(1, shift=22)
    check = brightness(images, hold_out(images, seed=1))
    assert check.verdict == "warn" and "holds in training only" not in check.says


def test_what_the_audit_says_of_a_shortcut_is_its_measured_number():
    images = styled_set(1, shift=14)
    brightness_check = audited(images, hold_out(images, seed=1)).check("shortcut: brightness")
    assert f"AUC of {brightness_check.numbers['auc']:.2f}" in brightness_check.says


def predictions_from(images, split, score):
    rows = images.positions(split.ids(0, 0, "test"))
    first = 1 / (1 + np.exp(-score[rows]))
    return Predictions.build(
        ids=images.ids[rows],
        labels=images.table["label"].to_numpy()[rows],
        groups=images.groups[rows],
        probabilities=np.stack([first, 1 - first], 1),
        classes=CLASSES,
        model="network",
    )


def test_a_model_that_took_the_shortcut_is_told_from_one_that_did_not():
    clean = styled_set(3)
    split = hold_out(clean, seed=3)
    images = with_training_confound(clean, split, 1.0)
    means = np.asarray(images.pixels, float).mean(axis=(1, 2, 3))
    rng = np.random.default_rng(0)
    truth = np.where(images.labels == 0, 2.0, -2.0) + rng.normal(0, 1, len(images))
    dark = brightness(images, split, predictions_from(images, split, (means - 130) / 10))
    honest = brightness(images, split, predictions_from(images, split, truth))
    assert "learnt the shortcut" in dark.says
    assert "learnt the shortcut" not in honest.says
    assert "image model's AUC" in honest.says and "above it" in honest.says


def test_a_model_that_is_no_better_than_brightness_is_said_to_be_so():
    images = styled_set(5, shift=25)
    split = hold_out(images, seed=5)
    means = np.asarray(images.pixels, float).mean(axis=(1, 2, 3))
    check = brightness(images, split, predictions_from(images, split, (means - 130) / 10))
    assert "hardly more" in check.says


def test_test_images_that_look_otherwise_are_named():
    images = styled_set(7)
    split = hold_out(images, seed=7)
    rows = images.positions(split.ids(0, 0, "test"))
    pixels = images.pixels.copy()
    pixels[rows] = np.clip(pixels[rows].astype(int) - 50, 0, 255)
    darker = ImageSet("darker", images.table, pixels, CLASSES, "a test", True)
    check = audited(darker, split).check(LOOK)
    assert "differ from training images of the same class" in check.says
    assert "by -4" in check.says or "by -5" in check.says
    assert check.verdict == "warn"


def test_images_of_a_group_are_no_independent_witnesses():
    """Six neurons with brightness of their own: image by image it looks certain, between neurons it
    is chance.
    """
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        style = rng.normal(0, 5, 8)
        groups = np.repeat(np.arange(8), 50)
        features = pd.DataFrame({"x": style[groups] + rng.normal(size=400)})
        found.append(label_from_features(features, groups % 2, groups, shuffles=100, seed=seed).p)
    assert np.mean(np.array(found) <= 0.05) <= 0.17


def test_groups_of_several_classes_are_shuffled_within():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 60)
    labels = np.tile([0, 1, 2], 80)
    telling = pd.DataFrame({"x": labels + rng.normal(0, 0.5, 240), "block": groups * 3.0})
    found = label_from_features(telling, labels, groups, shuffles=200)
    assert found.auc > 0.75 and found.p < 0.01 and found.n == 240
    blind = label_from_features(telling[["block"]], labels, groups, shuffles=200)
    assert blind.p > 0.05


def test_what_looks_certain_is_shuffled_more_often_and_chance_less():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 6)
    labels = groups % 2
    telling = pd.DataFrame({"x": labels + rng.normal(size=240)})
    blind = pd.DataFrame({"x": rng.normal(size=240)})
    found = label_from_features(telling, labels, groups, shuffles=100, least_p=0.001)
    assert found.shuffles == 1000 and found.p == pytest.approx(1 / 1001)
    found = label_from_features(blind, labels, groups, shuffles=1000, least_p=0.001)
    assert found.shuffles == 200 and found.p > 0.05
    assert label_from_features(blind, labels, groups, shuffles=100).shuffles == 100


def test_large_sets_are_thinned_evenly():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), [6000, *[50] * 29])
    found = label_from_features(
        pd.DataFrame({"x": rng.normal(size=len(groups))}), groups % 2, groups, shuffles=20
    )
    assert found.n == 4000 and (np.bincount(groups[found.rows])[1:] == 50).all()


@pytest.mark.parametrize(
    "labels, groups, word",
    [
        ([0] * 8, list(range(8)), "one class"),
        ([0, 1] * 4, ["g"] * 8, "one group"),
        ([0, 0, 1, 1], [0, 0, 1, 1], "too few"),
    ],
)
def test_what_cannot_be_tested_says_why(labels, groups, word):
    found = label_from_features(
        pd.DataFrame({"x": np.arange(float(len(labels)))}), np.array(labels), np.array(groups)
    )
    assert word in found.reason and found.auc is None


def test_too_few_neurons_are_said_not_passed():
    images = styled_set(0, neurons=4)
    part = pd.Series(images.groups).map(
        {"n0": "train", "n1": "train", "n2": "validation", "n3": "test"}
    )
    split = Split(
        pd.DataFrame(
            {"repeat": 0, "fold": 0, "part": part, "id": images.ids, "group": images.groups}
        ),
        "few",
        0,
    )
    found = audited(images, split)
    assert {one.verdict for one in found.checks} == {"not assessable"}
    assert all("cannot be tested" in one.says for one in found.checks)
    assert "reason" in part_difference(
        appearance(images), images.labels, images.groups, (part == "test").to_numpy()
    )


def test_any_metadata_serves_and_cross_validation_is_looked_at_as_a_whole():
    images = styled_set(2)
    halves = np.where(np.arange(len(images)) < len(images) // 2, "train", "test")
    other = np.where(halves == "train", "test", "train")
    parts = [
        pd.DataFrame(
            {"repeat": 0, "fold": fold, "part": part, "id": images.ids, "group": images.groups}
        )
        for fold, part in enumerate((halves, other))
    ]
    split = Split(pd.concat(parts), "two", 0)
    number = images.labels * 100.0 + np.arange(len(images)) % 7
    table = images.table.assign(**{"serial number": number})
    named = ImageSet("named", table, images.pixels, CLASSES, "a test", True)
    found = audited(named, split, known=Provenance(columns=["serial number"]))
    assert "told by the serial number alone" in found.check("shortcut: serial number").says
    assert LOOK not in {one.name for one in found.checks}
    with pytest.raises(InputError, match="serial number, row 3"):
        label_from_features(
            pd.DataFrame({"serial number": [1.0, 2, 3, np.nan]}), np.arange(4), np.arange(4)
        )


def test_predictions_of_other_classes_are_refused():
    images = styled_set(0)
    split = hold_out(images, seed=0)
    wrong = Predictions.build(
        ids=["0-0"],
        labels=["x"],
        groups=["n0"],
        probabilities=np.array([[0.5, 0.5]]),
        classes=("x", "y"),
    )
    with pytest.raises(PredictionsError, match="classes"):
        audited(images, split, wrong)


@pytest.mark.slow
def test_the_injected_shortcut_of_real_phantoms(tmp_path):
    images = load_phantom_synapses(96, tmp_path, neurons=24, seed=5)
    split = hold_out(images, seed=5)
    clean = brightness(images, split)
    named = brightness(with_training_confound(images, split, 1.0), split)
    assert clean.verdict == "pass" and named.verdict == "warn"


def test_a_class_that_some_folds_lack_gives_no_opinion_and_no_infinity():
    labels = np.stack([np.zeros(12, int), np.ones(12, int), np.arange(12) % 2], axis=1)
    values = np.random.default_rng(2).normal(size=(12, 3)) + labels[:, 2:] * 3
    weights, offset = discriminant._discriminant(values, labels, 1)
    assert (weights[:, :2] == 0).all() and (offset[:2] == 0).all()
    assert np.isfinite(weights).all() and np.abs(weights[:, 2]).max() > 0.1
