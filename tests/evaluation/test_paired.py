"""Paired comparison: the same images or a refusal, and p-values that behave as p-values."""

import numpy as np
import pytest
from scipy.stats import binomtest

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.comparison import adjusted_for_number, compare_with_reference
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.paired import compare

CLASSES = ("a", "b", "c")


def model(name, n, seed, *, accuracy, common=0, repeats=1, per_group=2):
    """A model that is right with the given probability; ``common`` seeds the labels."""
    true = np.random.default_rng(common).integers(0, 3, n)
    rng = np.random.default_rng(seed + 1000)
    parts = []
    for repeat in range(repeats):
        chosen = np.where(rng.random(n) < accuracy, true, (true + rng.integers(1, 3, n)) % 3)
        parts.append(
            Predictions.build(
                ids=[f"i{index}" for index in range(n)],
                labels=[CLASSES[index] for index in true],
                groups=[f"g{index // per_group}" for index in range(n)],
                probabilities=np.eye(3)[chosen] * 0.7 + 0.1,
                classes=CLASSES,
                model=name,
                repeat=repeat,
                fold=0,
            )
        )
    return Predictions.concatenate(parts)


def test_differences_are_those_of_the_scores():
    a = model("a", 200, 1, accuracy=0.9)
    b = model("b", 200, 2, accuracy=0.7)
    found = compare(a, b)
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        first, second = (evaluate(one)[name].value for one in (a, b))
        assert found[name].value == pytest.approx(first - second)
        assert 0 < found[name].low < found[name].value < found[name].high
        assert found[name].p < 0.02
    mirrored = compare(b, a)["accuracy"]
    assert mirrored.low == pytest.approx(-found["accuracy"].high)
    assert mirrored.p == found["accuracy"].p


def test_mcnemar_is_the_exact_binomial_test():
    a = model("a", 120, 3, accuracy=0.85, per_group=1)
    b = model("b", 120, 4, accuracy=0.75, per_group=1)
    right_a = (a.table["predicted"] == a.table["label"]).to_numpy()
    right_b = (b.table["predicted"] == b.table["label"]).to_numpy()
    only_a = int((right_a & ~right_b).sum())
    only_b = int((~right_a & right_b).sum())
    found = compare(a, b)["mcnemar"]
    assert (found["only_a_right"], found["only_b_right"]) == (only_a, only_b)
    assert found["p"] == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    assert (
        sum(found[name] for name in ("both_right", "only_a_right", "only_b_right", "both_wrong"))
        == 120
    )


def test_mcnemar_is_left_out_where_groups_hold_several_images():
    """It took them as independent, and called equal models different in .3 of the cases."""
    found = compare(model("a", 120, 3, accuracy=0.85), model("b", 120, 4, accuracy=0.75))
    assert found["mcnemar"]["p"] is None and found["mcnemar"]["n"] == 120


def test_with_repeats_mcnemar_counts_each_image_once():
    a = model("a", 60, 5, accuracy=0.8, repeats=3)
    b = model("b", 60, 6, accuracy=0.8, repeats=3)
    found = compare(a, b)
    assert found["mcnemar"]["n"] == 60 and "mean probability" in found["mcnemar"]["of"]
    mean = np.mean([a.where(repeat=repeat).probabilities for repeat in range(3)], axis=0)
    right = mean.argmax(axis=1) == a.where(repeat=0).true_index
    assert found["mcnemar"]["both_right"] + found["mcnemar"]["only_a_right"] == right.sum()
    assert found["accuracy"].n == 60


def test_a_model_against_itself_differs_in_nothing():
    a = model("a", 50, 1, accuracy=0.8)
    found = compare(a, a)
    assert found["accuracy"].value == 0 and found["accuracy"].p == 1
    assert found["accuracy"].low == -found["accuracy"].high < 0


def test_the_order_of_rows_plays_no_part():
    a = model("a", 60, 1, accuracy=0.8)
    b = model("b", 60, 2, accuracy=0.7)
    shuffled = Predictions(b.table.sample(frac=1, random_state=0), CLASSES)
    assert compare(a, b) == compare(a, shuffled)


def test_equal_models_are_rarely_called_different():
    """Of 60 pairs of equally good models about 3 fall below p = .05."""
    small = sum(
        compare(
            model("a", 150, 2 * seed, accuracy=0.8, common=seed),
            model("b", 150, 2 * seed + 1, accuracy=0.8, common=seed),
        )["accuracy"].p
        < 0.05
        for seed in range(60)
    )
    assert small <= 9


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda table: table.iloc[1:], "images"),
        (lambda table: table.assign(fold=1), "folds"),
        (lambda table: table.assign(label="a"), "label"),
        (lambda table: table.assign(group="g"), "group"),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_the_difference(change, word):
    a = model("a", 20, 1, accuracy=0.8)
    b = model("b", 20, 2, accuracy=0.8)
    with pytest.raises(PredictionsError, match=word):
        compare(a, Predictions(change(b.table), CLASSES))


def test_other_classes_are_refused():
    a = model("a", 20, 1, accuracy=0.8)
    other = Predictions(
        a.table.rename(columns={"probability c": "probability d"}).replace("c", "d"),
        ("a", "b", "d"),
    )
    with pytest.raises(PredictionsError, match="classes differ"):
        compare(a, other)


def test_holm_by_hand():
    assert adjusted_for_number([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted_for_number([0.5, 0.9]) == pytest.approx([1, 1])
    lacking = adjusted_for_number([0.02, None, np.nan, 0.01])  # what is missing does not count
    assert lacking == pytest.approx([0.02, np.nan, np.nan, 0.02], nan_ok=True)


def test_several_models_against_a_reference():
    table = Predictions.concatenate(
        [
            model("reference", 200, 1, accuracy=0.7, per_group=1),
            model("better", 200, 2, accuracy=0.9, per_group=1),
            model("alike", 200, 3, accuracy=0.7, per_group=1),
        ]
    )
    found = compare_with_reference(table, "reference").set_index("model")
    assert list(found.index) == ["better", "alike"]
    assert found.loc["better", "accuracy p (Holm)"] < 0.05 < found.loc["alike", "accuracy p (Holm)"]
    assert found.loc["better", "accuracy p (Holm)"] == pytest.approx(
        2 * found.loc["better", "accuracy p"]
    )
    assert (found["McNemar p (Holm)"] >= found["McNemar p"]).all()
    with pytest.raises(PredictionsError, match="no model 'absent'"):
        compare_with_reference(table, "absent")
    with pytest.raises(PredictionsError, match="only model"):
        compare_with_reference(table.where(model="alike"), "alike")
