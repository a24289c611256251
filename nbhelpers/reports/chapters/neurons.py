"""From synapses to neurons: how many synapses name a neuron, and how alike their errors are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbhelpers.evaluation import neurons as by_neuron
from nbhelpers.figures.neurons import neuron_curve

if TYPE_CHECKING:
    from nbhelpers.core.predictions import Predictions
    from nbhelpers.reports.run import NotebookRun


def show_neurons(run: NotebookRun, tested: Predictions, *, neurons_known: bool = True) -> None:
    """Show and record the accuracy per neuron by how many of its synapses are seen; a sentence
    instead where the groups are no neurons, or hold several classes.
    """
    one_class = tested.table.groupby("group")["label"].nunique().max() == 1
    if not (neurons_known and one_class):
        run.record["per_neuron"] = None
        run.record["error_correlation"] = None
        print(
            f"These {run.images} belong to no neuron that has one class: there is nothing to "
            "combine."
        )
        return
    per_neuron = by_neuron.neuron_accuracy(tested)
    correlation = by_neuron.error_correlation(tested, seed=run.seed)
    curve = by_neuron.neuron_curve(tested, seed=run.seed)
    run.record["per_neuron"] = per_neuron
    run.record["error_correlation"] = correlation
    run.show_figure(
        neuron_curve(curve, correlation),
        "neuron_curve",
        caption="Share of neurons named rightly, by how many of their synapses are seen; beside it "
        "what independent errors would give.",
        alt="Accuracy per neuron by the number of synapses, measured and if errors were "
        "independent.",
    )
    print("\n".join(by_neuron.neuron_sentences(curve, correlation)))
