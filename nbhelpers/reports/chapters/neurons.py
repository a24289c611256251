"""From synapses to neurons: how many synapses name a neuron, and how alike their errors are."""

from __future__ import annotations

from collections.abc import Sequence

from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation import neurons as by_neuron
from nbhelpers.figures.neurons import neuron_curve
from nbhelpers.reports.chapters.scores import model_of
from nbhelpers.reports.run import NotebookRun


def show_neurons(
    run: NotebookRun,
    tested: Predictions | Sequence[Predictions],
    *,
    unit: str = "neuron",
) -> None:
    """Show and record the accuracy per neuron, or per group of the user's own, by how many of its
    synapses are seen, of one model or several; a sentence instead where a group, of which ``unit``
    is the word, is neither, or where groups hold several classes.
    """
    models = [tested] if isinstance(tested, Predictions) else list(tested)
    one_class = models[0].table.groupby("group")["label"].nunique().max() == 1
    if not (unit in ("neuron", "group") and one_class):
        run.record["per_neuron"] = None
        run.record["error_correlation"] = None
        print(
            f"These {run.images} belong to no neuron that has one class: there is nothing to "
            "combine."
        )
        return
    for number, predictions in enumerate(models):
        name = model_of(predictions)
        correlation = by_neuron.error_correlation(predictions)
        curve = by_neuron.neuron_curve(predictions, seed=run.seed)
        run.add_record("per_neuron", {name: by_neuron.neuron_accuracy(predictions)})
        run.add_record("error_correlation", {name: correlation})
        run.show_figure(
            neuron_curve(curve, correlation, unit=unit),
            "neuron_curve" if number == 0 else f"neuron_curve_{number + 1}",
            caption=f"{name}: share of {unit}s named rightly, by how many of their synapses are "
            "seen; beside it what independent errors would give.",
            alt=f"Accuracy per {unit} by the number of synapses, measured and if errors were "
            "independent.",
        )
        print("\n".join(by_neuron.neuron_sentences(curve, correlation, unit)))
