"""Neurons from synapses: combined as promised, errors that go together are measured, intervals do
not collapse.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.intervals import share_interval
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.neurons import (
    error_correlation,
    neuron_accuracy,
    neuron_curve,
    neuron_interval,
    neuron_sentences,
    neuron_table,
)

CLASSES = ("excitatory", "inhibitory")


def predict(neurons=20, synapses=15, accuracy=0.75, concentration=None, seed=0, repeats=1):
    """Right with ``accuracy``; with a ``concentration`` each neuron has its own, drawn from a beta
    distribution.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for repeat in range(repeats):
        rows = []
        for neuron in range(neurons):
            share = (
                accuracy
                if concentration is None
                else rng.beta(accuracy * concentration, (1 - accuracy) * concentration)
            )
            for synapse in range(synapses):
                confidence = rng.uniform(0.55, 0.95)
                true = confidence if rng.random() < share else 1 - confidence
                rows.append((f"n{neuron}s{synapse}", neuron % 2, f"n{neuron}", true))
        table = pd.DataFrame(rows, columns=["id", "label", "group", "true"])
        first = np.where(table["label"] == 0, table["true"], 1 - table["true"])
        parts.append(
            Predictions.build(
                ids=table["id"],
                labels=[CLASSES[label] for label in table["label"]],
                groups=table["group"],
                probabilities=np.stack([first, 1 - first], 1),
                classes=CLASSES,
                repeat=repeat,
            )
        )
    return Predictions.concatenate(parts)


def by_hand(*neurons):
    """Each neuron: (label, the probability of the first class of its synapses)."""
    rows = [
        (f"{at}-{number}", label, f"n{at}", value)
        for at, (label, values) in enumerate(neurons)
        for number, value in enumerate(values)
    ]
    table = pd.DataFrame(rows, columns=["id", "label", "group", "p"])
    return Predictions.build(
        ids=table["id"],
        labels=table["label"],
        groups=table["group"],
        classes=CLASSES,
        probabilities=np.stack([table["p"], 1 - table["p"]], 1),
    )


def test_a_neuron_is_what_its_synapses_together_say():
    predictions = by_hand(("excitatory", [0.99, 0.4, 0.4]), ("inhibitory", [0.2, 0.1]))
    table = neuron_table(predictions)
    assert table["predicted"].tolist() == ["excitatory", "inhibitory"]
    assert table["right"].tolist() == [1, 1] and table["synapses"].tolist() == [3, 2]
    assert table["synapses_right"].tolist() == pytest.approx([1 / 3, 1])


def test_all_synapses_together_are_the_end_of_the_curve():
    predictions = predict(accuracy=0.65, concentration=3)
    curve = neuron_curve(predictions)
    assert curve["accuracy"].iloc[-1] == pytest.approx(neuron_accuracy(predictions).value, abs=1e-9)
    assert curve["accuracy"].iloc[0] == pytest.approx(
        evaluate(predictions)["accuracy"].value, abs=0.02
    )


def test_independent_errors_give_the_binomial_curve_and_no_correlation():
    predictions = predict(neurons=60, synapses=15)
    # all equally sure, so that the neuron's class is that of the majority
    sure = np.where(predictions.probabilities > 0.5, 0.8, 0.2)
    table = predictions.table.copy()
    table[predictions.probability_columns] = sure
    predictions = Predictions(table, CLASSES)
    curve = neuron_curve(predictions)
    curve = curve[curve["k"] % 2 == 1]
    share = (predictions.predicted_index == predictions.true_index).mean()
    assert curve["binomial"].tolist() == pytest.approx(
        [binom.sf(k // 2, k, share) for k in curve["k"]]
    )
    assert curve["independent"].tolist() == pytest.approx(curve["binomial"].tolist(), abs=0.03)
    assert curve["accuracy"].tolist() == pytest.approx(curve["binomial"].tolist(), abs=0.06)
    found = error_correlation(predictions)
    assert found.low < 0.02 and abs(found.value) < 0.05 and found.effective_synapses > 500


def test_errors_that_go_together_flatten_the_curve():
    """Beta-binomial: the correlation is 1 / (1 + concentration)."""
    predictions = predict(neurons=150, synapses=15, concentration=2.0, seed=2)
    found = error_correlation(predictions)
    assert found.low < 1 / 3 < found.high and found.value == pytest.approx(1 / 3, abs=0.07)
    assert found.effective_synapses == pytest.approx(2250 / (1 + 14 * found.value))
    curve = neuron_curve(predictions)
    assert curve["independent"].iloc[-1] > 0.95 and curve["accuracy"].iloc[-1] < 0.9
    said = neuron_sentences(curve, found)
    assert "independent errors would give" in said[0] and "correlate with 0.3" in said[-1]


def test_neurons_that_are_all_right_or_all_wrong_correlate_fully():
    found = error_correlation(
        by_hand(("excitatory", [0.9] * 5), ("inhibitory", [0.9] * 5), ("excitatory", [0.8] * 5))
    )
    assert found.value == 1 and found.effective_synapses == pytest.approx(3)


@pytest.mark.parametrize(
    "neurons, word",
    [
        ([("excitatory", [0.9] * 4), ("inhibitory", [0.1] * 4)], "all synapses are right"),
        ([("excitatory", [0.9, 0.1])], "only one group"),
        ([("excitatory", [0.9]), ("inhibitory", [0.9])], "no group has two synapses"),
    ],
)
def test_what_cannot_be_told_says_why(neurons, word):
    predictions = by_hand(*neurons)
    found = error_correlation(predictions)
    assert found.value is None and word in found.reason
    assert any(word in line for line in neuron_sentences(neuron_curve(predictions), found))


def test_the_same_neurons_stand_at_every_point_of_the_curve():
    predictions = by_hand(*[("excitatory", [0.9] * 10)] * 9, ("inhibitory", [0.9] * 2))
    assert neuron_curve(predictions)["k"].max() == 2  # what nine in ten neurons have
    more = by_hand(*[("excitatory", [0.9] * 10)] * 19, ("inhibitory", [0.9] * 2))
    curve = neuron_curve(more)
    assert curve["k"].max() == 10 and set(curve["accuracy"]) == {1}
    assert set(curve["n_neurons"]) == {19} and curve.attrs["left_out"] == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=40))
def test_an_interval_holds_its_value_and_never_collapses(values):
    found = neuron_interval(np.array(values))
    assert 0 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 1
    assert found.high - found.low > 0.02


def test_a_dozen_neurons_that_are_all_right_do_not_prove_perfection():
    found = neuron_interval(np.ones(12))
    assert found.low == pytest.approx(share_interval(1.0, 12, 13)[0]) and found.high == 1
    assert 0.6 < found.low < 12 / (12 + 1.96**2)  # below Wilson's: few neurons say little
    assert neuron_interval(np.ones(2)).low is None and neuron_interval(np.ones(5)).note


@pytest.mark.parametrize("concentration", [0.5, 5, 20])
def test_the_interval_holds_the_truth_as_often_as_it_says(concentration):
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        found = neuron_interval(
            rng.binomial(20, rng.beta(0.9 * concentration, 0.1 * concentration, 10)) / 20, 200
        )
        held += found.low <= 0.9 <= found.high
    assert held >= 186


def test_repeats_are_averaged():
    once = predict(seed=1)
    twice = predict(seed=1, repeats=2)
    table = neuron_table(twice)
    assert len(table) == 20 and (table["synapses"] == 15).all()
    assert set(table["right"]) <= {0.0, 0.5, 1.0}
    assert neuron_curve(twice)["accuracy"].between(0, 1).all()
    assert error_correlation(twice).n_synapses == error_correlation(once).n_synapses == 300


def test_the_same_seed_gives_the_same_curve():
    predictions = predict()
    pd.testing.assert_frame_equal(
        neuron_curve(predictions, seed=3), neuron_curve(predictions, seed=3)
    )


def test_bad_input():
    predictions = predict()
    table = predictions.table.assign(label=["inhibitory", *predictions.table["label"][1:]])
    with pytest.raises(PredictionsError, match="different labels"):
        neuron_curve(Predictions(table, CLASSES))
