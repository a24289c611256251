"""Figures of neurons: they show the numbers they were given, with units, and keep no
pyplot state."""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from nbhelpers.core.errors import InputError
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.neurons import error_correlation, neuron_curve
from nbhelpers.evaluation.quality import errors_by_neuron, errors_by_quality
from nbhelpers.figures import neurons as figures

CLASSES = ("excitatory", "inhibitory")


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"8646911350{at:02d}" for at in range(40)], 12)
    label = np.repeat(np.arange(40) % 2, 12)
    right = rng.random(len(groups)) < np.repeat(rng.beta(6, 1, 40), 12)
    first = np.where((label == 0) == right, 0.8, 0.2)
    predictions = Predictions.build(
        ids=[str(at) for at in range(len(groups))],
        labels=[CLASSES[at] for at in label],
        groups=groups,
        probabilities=np.stack([first, 1 - first], 1),
        classes=CLASSES,
    )
    quality = pd.DataFrame(
        {
            "id": predictions.table["id"],
            "sharpness": rng.uniform(size=len(groups)) + right,
            "noise": rng.uniform(3, 9, len(groups)),
        }
    )
    return predictions, quality


def texts(figure):
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def test_every_figure_is_drawn_labelled_and_leaves_no_state(parts):
    predictions, quality = parts
    before = dict(matplotlib.rcParams)
    made = [
        figures.neuron_curve(neuron_curve(predictions), error_correlation(predictions)),
        figures.neuron_errors(errors_by_neuron(predictions), CLASSES),
        figures.quality_errors(errors_by_quality(predictions, quality)),
    ]
    for figure in made:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=50)
        assert len(file.getvalue()) > 3000
        for axis in figure.axes:
            assert axis.get_xlabel() or not axis.get_visible()
    assert dict(matplotlib.rcParams) == before


def test_the_curve_shows_what_was_measured_and_what_independence_would_give(parts):
    predictions, _ = parts
    curve = neuron_curve(predictions)
    correlation = error_correlation(predictions)
    (axis,) = figures.neuron_curve(curve, correlation).axes
    lines = {line.get_label(): line.get_ydata() for line in axis.lines}
    measured = lines["measured, with its 95 % interval over neurons"]
    assert np.array_equal(measured, curve["accuracy"])
    assert np.array_equal(lines["if errors were independent"], curve["independent"])
    said = texts(axis.figure)
    assert "40 neurons" in said and f"count as {correlation.effective_synapses:.0f}" in said
    assert "count as" not in texts(figures.neuron_curve(curve))


def test_the_worst_neurons_stand_on_top_and_the_rest_is_mentioned(parts):
    table = errors_by_neuron(parts[0])
    figure = figures.neuron_errors(table, CLASSES)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == table["neuron"].head(30).tolist()
    said = texts(figure)
    assert (
        "worst 30 of 40 neurons" in said
        and f"{table['errors'].iloc[0]:g} of 12" in said
        and "%" in said
    )


def test_a_quality_that_goes_with_errors_is_marked(parts):
    predictions, quality = parts
    figure = figures.quality_errors(errors_by_quality(predictions, quality))
    titles = {axis.get_xlabel(): axis.get_title(loc="left") for axis in figure.axes}
    assert titles == {
        "fine detail, relative": "differs beyond chance",
        "noise, grey levels": "no difference beyond chance",
    }


def test_no_interval_is_cut_at_the_top_of_a_panel():
    rows = []
    for quality, error in (("noise", 0.02), ("brightness", 0.6)):
        for part in (1, 2):
            ends = {"low": error / 2, "high": error + 0.3, "from": part, "to": part + 1}
            differs = {"difference_low": -1.0, "difference_high": 1.0}
            rows.append({"quality": quality, "bin": part, "error": error, **ends, **differs})
    figure = figures.quality_errors(pd.DataFrame(rows))
    assert all(axis.get_ylim()[1] >= 90 for axis in figure.axes if axis.get_visible())


@pytest.mark.parametrize(
    "draw",
    [
        figures.neuron_curve,
        lambda table: figures.neuron_errors(table, CLASSES),
        figures.quality_errors,
    ],
)
def test_empty_tables_are_refused(draw):
    with pytest.raises(InputError, match="nothing to draw"):
        draw(pd.DataFrame())
