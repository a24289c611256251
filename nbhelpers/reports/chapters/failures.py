"""Where a model fails: by the quality of the image, and by group."""

from __future__ import annotations

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation import quality
from nbhelpers.figures.neurons import neuron_errors, quality_errors
from nbhelpers.reports.run import NotebookRun


def show_failures(run: NotebookRun, images: ImageSet, tested: Predictions, *, unit: str) -> None:
    """Show the errors by image quality and by ``unit``, a word for one group (e.g. "neuron")."""
    by_quality = quality.errors_by_quality(tested, quality.image_quality(images))
    by_group = quality.errors_by_neuron(tested)
    print("\n".join(quality.failure_sentences(by_quality, by_group, unit)))
    run.show_figure(
        quality_errors(by_quality),
        "errors_by_quality",
        caption="Share of errors in quarters of each image quality, with 95 % intervals.",
        alt="Error rates in four bins for each image quality.",
    )
    run.show_figure(
        neuron_errors(by_group, images.classes, unit=unit),
        "errors_by_neuron",
        caption=f"Share of errors per {unit}, the worst first, with 95 % intervals.",
        alt=f"A dot with an interval for the error rate of each {unit}.",
    )
