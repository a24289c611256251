"""Models side by side on the same images: differences with intervals, paired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.comparison import compare_with_reference
from nbhelpers.evaluation.metrics import SCORE_NAMES
from nbhelpers.evaluation.paired import COMPARED
from nbhelpers.reports.chapters.scores import model_of

if TYPE_CHECKING:
    from nbhelpers.reports.run import NotebookRun


def show_comparison(
    run: NotebookRun, reference: Predictions, others: Sequence[Predictions]
) -> None:
    """Show and record each of the ``others`` minus ``reference``, on the same images and folds.

    The table shows the score of the run's result where it can be compared in pairs, else the
    balanced accuracy; the record holds all.
    """
    name = model_of(reference)
    everyone = Predictions.concatenate([reference, *others])
    table = compare_with_reference(everyone, name)
    score = run.record["result"]["score"]
    if score not in COMPARED:
        score = "balanced_accuracy"
    label = SCORE_NAMES[score]
    shown = {
        "model": "model",
        "n": run.images,
        score: label,
        f"{score} difference": "difference",
        f"{score} low": "from",
        f"{score} high": "to",
        f"{score} p (Holm)": "p",
        "right alone": f"right where {name} is not",
        "reference right alone": f"wrong where {name} is right",
    }
    kept = [column for column in shown if column in table]
    run.show_table(
        table[kept].rename(columns=shown),
        f"Each of them minus {name} on the same {run.images}: {label.lower()}, with the 95 % "
        "interval of the difference. p is corrected for the number of comparisons (Holm).",
    )
    run.record["comparison"] = table.to_dict("records")
