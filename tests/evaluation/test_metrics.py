"""Scores agree with scikit-learn, and what is not defined says so instead of becoming 0."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.files import plain
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import evaluate, score_table
from nbhelpers.evaluation.neurons import aggregate_by_group

CLASSES = ("Mushroom", "Stubby", "Thin")


def make(true, probabilities, groups=None, repeat=0, fold=0, classes=CLASSES, ids=None, model="m"):
    ids = [f"i{index}" for index in range(len(true))] if ids is None else ids
    return Predictions.build(
        ids=ids,
        labels=[classes[index] for index in true],
        classes=classes,
        model=model,
        groups=ids if groups is None else groups,
        probabilities=probabilities,
        repeat=repeat,
        fold=fold,
    )


def simulate(n, seed, *, strength=1.5, images_per_group=1, repeats=1):
    """Noisy predictions of ``n`` images; the noise is partly common to a group."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, n)
    true[:3] = 0, 1, 2
    group = np.arange(n) // images_per_group
    parts = []
    for repeat in range(repeats):
        logits = rng.normal(0, 1, (n, 3)) + rng.normal(0, 1, (group.max() + 1, 3))[group]
        logits[np.arange(n), true] += strength
        logits = np.round(logits, 1)  # ties occur
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        parts.append(make(true, probabilities, [f"g{number}" for number in group], repeat=repeat))
    return Predictions.concatenate(parts)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(4, 60), seed=st.integers(0, 10**6), strength=st.floats(-1, 4))
def test_values_agree_with_scikit_learn(n, seed, strength):
    predictions = simulate(n, seed, strength=strength)
    found = evaluate(predictions)
    true = predictions.true_index
    chosen = predictions.predicted_index
    probabilities = predictions.probabilities
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["accuracy"].value == pytest.approx(sk.accuracy_score(true, chosen))
        assert found["balanced_accuracy"].value == pytest.approx(
            sk.balanced_accuracy_score(true, chosen)
        )
        assert found["macro_f1"].value == pytest.approx(sk.f1_score(true, chosen, average="macro"))
        assert found["auc"].value == pytest.approx(
            sk.roc_auc_score(true, probabilities, multi_class="ovr", average="macro")
        )
        assert found["log_loss"].value == pytest.approx(
            sk.log_loss(true, probabilities, labels=[0, 1, 2])
        )
        assert (
            found["confusion_matrix"]
            == sk.confusion_matrix(true, chosen, labels=[0, 1, 2]).tolist()
        )
        precision, recall, f1, count = sk.precision_recall_fscore_support(
            true, chosen, labels=[0, 1, 2], zero_division=np.nan
        )
    for index, name in enumerate(CLASSES):
        entry = found["per_class"][name]
        if np.isnan(precision[index]):
            assert (
                entry["precision"].value is None
                and "no image was predicted" in entry["precision"].reason
            )
        else:
            assert entry["precision"].value == pytest.approx(precision[index])
        assert entry["recall"].value == pytest.approx(recall[index])
        assert entry["f1"].value == pytest.approx(f1[index])
        assert entry["n_true"] == count[index] == entry["recall"].n
        assert entry["auc"].value == pytest.approx(
            sk.roc_auc_score(true == index, probabilities[:, index])
        )


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6), images_per_group=st.integers(1, 4), repeats=st.sampled_from([1, 2])
)
def test_scores_without_a_group_are_those_of_a_table_without_it(seed, images_per_group, repeats):
    """Each row of the sums, done the slow way; ties are among the probabilities."""
    from nbhelpers.evaluation.metrics import GroupSums

    predictions = simulate(30, seed, images_per_group=images_per_group, repeats=repeats)
    sums = GroupSums.of(predictions)
    scores = sums.scores()
    names = np.unique(predictions.table["group"])
    for row, name in enumerate(names, start=1):
        kept = Predictions(predictions.table[predictions.table["group"] != name], CLASSES)
        alone = GroupSums.of(kept).scores()
        gone = (sums.n_true > 0) & (GroupSums.of(kept).n_true == 0)
        for score in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "auc"):
            wanted = alone[score][0]
            if gone.any() and score in ("balanced_accuracy", "macro_f1", "auc"):
                wanted = np.nan
            assert scores[score][row] == pytest.approx(wanted, nan_ok=True)
        for score in ("recall", "f1_by_class", "auc_by_class"):
            assert scores[score][row] == pytest.approx(alone[score][0], nan_ok=True)


def test_accuracy_follows_the_predicted_column_and_auc_the_probabilities():
    predictions = make([0, 1, 2], np.eye(3) * 0.7 + 0.1)
    moved = Predictions(predictions.table.assign(predicted="Thin"), CLASSES)
    found = evaluate(moved)
    assert found["accuracy"].value == pytest.approx(1 / 3)
    assert found["auc"].value == 1
    assert found["per_class"]["Stubby"]["precision"].value is None
    assert found["per_class"]["Stubby"]["n_predicted"] == 0
    assert found["per_class"]["Stubby"]["recall"].value == 0  # that one is a real zero


def test_a_class_without_images_is_left_out_and_named():
    found = evaluate(make([0, 0, 1, 1] * 4, np.tile([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1]], (8, 1))))
    thin = found["per_class"]["Thin"]
    assert thin["recall"].value is None and "no image" in thin["recall"].reason
    assert thin["auc"].value is None and thin["f1"].value is None
    assert found["balanced_accuracy"].value == pytest.approx(0.5)
    assert "Thin" in found["balanced_accuracy"].note and "Thin" in found["auc"].note


def test_repeats_are_averaged_and_the_images_counted_once():
    predictions = simulate(60, 4, images_per_group=3, repeats=3)
    found = evaluate(predictions)
    single = [evaluate(predictions.where(repeat=repeat)) for repeat in range(3)]
    for name in ("accuracy", "macro_f1", "auc", "log_loss"):
        assert found[name].value == pytest.approx(np.mean([one[name].value for one in single]))
        assert found[name].n == 60
    assert [row["accuracy"] for row in found["per_repeat"]] == [
        one["accuracy"].value for one in single
    ]
    assert np.sum(found["confusion_matrix"]) == 180 and "3 repeats" in found["confusion_matrix_is"]
    assert found["n_images"] == 60 and found["n_groups"] == 20 and found["n_repeats"] == 3
    assert sum(found["classes"].values()) == 60


def test_images_of_one_group_widen_the_interval():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(40) < 0.8, 10)  # whole groups are right or wrong
    probabilities = np.where(right[:, None], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1])
    groups = [f"g{number}" for number in np.repeat(np.arange(40), 10)]
    grouped = evaluate(make([0] * 400, probabilities, groups))["accuracy"]
    alone = evaluate(make([0] * 400, probabilities))["accuracy"]
    assert grouped.value == alone.value
    assert (grouped.high - grouped.low) > 2.5 * (alone.high - alone.low)


def test_neither_chance_nor_the_order_of_rows_plays_a_part():
    predictions = simulate(50, 1, images_per_group=2)
    first, again = (json.dumps(plain(evaluate(predictions))) for _ in range(2))
    assert first == again  # and it is JSON
    shuffled = Predictions(predictions.table.sample(frac=1, random_state=0), CLASSES)
    assert evaluate(shuffled)["macro_f1"].low == pytest.approx(
        evaluate(predictions)["macro_f1"].low
    )


def test_intervals_hold_what_they_promise():
    """In about 95 of 100 simulated experiments the accuracy that was injected lies inside the
    interval.
    """
    inside = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        shares = rng.beta(8, 2, 40)  # the accuracy of each group; 0.8 on average
        right = (rng.random((40, 5)) < shares[:, None]).ravel()
        probabilities = np.where(right[:, None], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1])
        groups = [f"g{number}" for number in np.repeat(np.arange(40), 5)]
        found = evaluate(make([0] * 200, probabilities, groups))["accuracy"]
        inside += found.low <= 0.8 <= found.high
    assert 0.88 <= inside / 120 <= 0.995


def test_every_interval_contains_its_value():
    found = evaluate(simulate(80, 9, images_per_group=2))
    entries = [
        found[name]
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece", "log_loss")
    ]
    entries += [
        entry[score]
        for entry in found["per_class"].values()
        for score in ("precision", "recall", "f1")
    ]
    for entry in entries:
        assert entry.low < entry.value < entry.high and entry.method


def test_a_class_of_one_group_is_not_assessed_and_the_rest_is():
    probabilities = np.tile([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.1, 0.2, 0.7]], (20, 1))
    true = np.tile([0, 1, 2], 20)
    groups = [f"g{number % 10}" if kind < 2 else "g0" for number, kind in enumerate(true)]
    found = evaluate(make(true, probabilities, groups))
    assert found["accuracy"].has_interval
    for entry in (found["balanced_accuracy"], found["auc"], found["per_class"]["Thin"]["recall"]):
        assert entry.low is None and entry.reason.startswith("not assessable")


def test_a_sure_and_right_model_has_no_interval_without_width():
    """AUC of 1 had none, and a log-loss near 0 one that ended below its truth."""
    found = evaluate(make([0, 1] * 30, np.tile([[0.9, 0.1, 0], [0.1, 0.9, 0]], (30, 1))))
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc"):
        assert found[name].value == 1 == found[name].high and 0.8 < found[name].low < 0.97


def test_a_log_loss_of_few_large_losses_says_so():
    probabilities = np.tile([[0.98, 0.01, 0.01]], (60, 1))
    probabilities[0] = [0.0001, 0.9998, 0.0001]
    assert "1 make up half" in evaluate(make([0] * 60, probabilities))["log_loss"].note
    assert evaluate(simulate(80, 9))["log_loss"].note is None


def test_the_calibration_error_stands_beside_that_of_a_calibrated_model():
    rng = np.random.default_rng(4)
    true_probability = rng.uniform(0.34, 1, 300)
    right = rng.random(300) < true_probability
    rest = (1 - true_probability) / 2
    probabilities = np.stack([true_probability, rest, rest], axis=1)
    true = np.where(right, 0, 1 + rng.integers(0, 2, 300))
    found = evaluate(make(true, probabilities))
    seen = found["ece"].value
    assert seen == pytest.approx(found["calibration"]["expected_if_calibrated"], rel=0.5)
    assert found["ece"].low == 0 and found["calibration"]["p"] > 0.05
    assert "a calibrated model would show" in found["ece"].note
    overconfident = evaluate(make(true, probabilities**4 / (probabilities**4).sum(1)[:, None]))
    assert overconfident["ece"].low > 0 and overconfident["calibration"]["p"] < 0.01


@pytest.mark.parametrize(("sure", "accuracy"), [(0.997, 0.96), (1.0, 0.95), (0.9, 0.9)])
def test_the_interval_of_the_calibration_error_covers_also_where_a_model_is_sure(sure, accuracy):
    """It covered .57 of such sets of 20 images, and p was 1 for probabilities of 0 and 1."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(120):
        right = rng.random(20) < accuracy
        probabilities = np.tile([[sure, (1 - sure) / 2, (1 - sure) / 2]], (20, 1))
        found = evaluate(make(np.where(right, 0, 1), probabilities))
        held += found["ece"].low - 0.002 <= abs(sure - accuracy) <= found["ece"].high + 0.002
        assert found["ece"].high - found["ece"].low > 0.01
    assert held >= 108
    wrong = evaluate(make([1] * 20, np.tile([[1.0, 0.0, 0.0]], (20, 1))))
    assert wrong["ece"].value == 1 and wrong["calibration"]["p"] == 0


def test_groups_are_told_in_independent_images():
    grouped = score_table(evaluate(simulate(80, 9, images_per_group=4))).set_index("Score")
    assert 0 < int(grouped.loc["Accuracy", "as good as independent"]) < 80
    assert "as good as independent" not in score_table(evaluate(simulate(80, 9)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda table: table.iloc[:0], "empty"),
        (lambda table: table.assign(model=["a", "b"] * 5), "model"),
        (lambda table: table.assign(split=["test", "train"] * 5), "split"),
        (lambda table: table.assign(predicted="Round"), "Round"),
        (
            lambda table: table.assign(id="same", fold=range(10), label="Thin", group="g"),
            "several folds",
        ),
        (
            lambda table: table.assign(
                id=[f"i{i // 2}" for i in range(10)],
                repeat=[0, 1] * 5,
                label=["Thin", "Stubby"] * 5,
            ),
            "label",
        ),
    ],
)
def test_tables_that_cannot_be_scored_are_refused(change, word):
    table = change(simulate(10, 0).table)
    with pytest.raises(PredictionsError, match=word):
        evaluate(Predictions(table, CLASSES))


def test_aggregation_multiplies_the_evidence_of_a_group():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    found = aggregate_by_group(make([0, 0, 2], probabilities, ["n1", "n1", "n2"]))
    expected = np.exp(np.log(probabilities[:2]).mean(axis=0))
    assert found.table["id"].tolist() == ["n1", "n2"] and found.table["label"].tolist() == [
        "Mushroom",
        "Thin",
    ]
    assert found.probabilities[0] == pytest.approx(expected / expected.sum())
    assert found.table["predicted"].tolist() == [
        "Stubby" if expected[1] > expected[0] else "Mushroom",
        "Thin",
    ]
    assert evaluate(found)["n_images"] == 2


def test_aggregation_survives_a_probability_of_zero_and_keeps_repeats_apart():
    table = Predictions.concatenate(
        [
            make([0, 0], np.array([[1, 0, 0], [0.4, 0.6, 0]]), ["n1", "n1"], repeat=repeat)
            for repeat in range(2)
        ]
    )
    found = aggregate_by_group(table)
    assert len(found) == 2 and sorted(found.table["repeat"]) == [0, 1]
    assert np.isfinite(found.probabilities).all() and (found.table["predicted"] == "Mushroom").all()


def test_aggregation_refuses_groups_with_two_labels():
    with pytest.raises(PredictionsError, match="group n1"):
        aggregate_by_group(make([0, 1], np.full((2, 3), 1 / 3), ["n1", "n1"]))


def test_score_table_is_text_with_reasons():
    predictions = simulate(40, 2)
    never_thin = Predictions(predictions.table.assign(predicted="Stubby"), CLASSES)
    table = score_table(evaluate(never_thin)).set_index("Score")
    assert list(table.columns) == ["Value", "95 % interval", "n"]
    assert table.loc["Accuracy", "Value"] == f"{(predictions.true_index == 1).mean():.3f}"
    assert " to " in table.loc["Accuracy", "95 % interval"]
    assert "no image was predicted as Thin" in table.loc["Precision of Thin", "Value"]
    assert table.loc["Recall of Stubby", "95 % interval"].endswith("to 1.000")
    assert not table.astype(str).map(lambda text: "nan" in text.lower().split()).any().any()
