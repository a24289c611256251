"""How good the models are on images they have not seen: scores with intervals, confusions, and
whether the probabilities can be taken at their word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import SCORE_NAMES, evaluate, score_table
from nbhelpers.figures.scores import confusion_matrix, reliability_diagram
from nbhelpers.reports.record import counted

if TYPE_CHECKING:
    from nbhelpers.reports.run import NotebookRun

RELIABILITY = (
    "Of the predictions with a given confidence, how many were right. On the diagonal the network "
    "is as sure as it should be."
)
AFTER_TEMPERATURE = (
    " The temperature of a fold was set on its validation part, by the network trained without it; "
    "a network that was trained again on both parts may need another one."
)


def show_scores(
    run: NotebookRun,
    tested: Predictions | Sequence[Predictions],
    *,
    score: str | Sequence[str] = "accuracy",
    calibrated: Predictions | None = None,
) -> dict[str, dict]:
    """Show and record the scores of one model or several; the first one is the run's result.

    ``tested`` are the test rows, grouped by what was sampled. ``score`` names the score of the
    headline; of several names the first that has an interval counts. ``calibrated`` are the first
    model's predictions after their temperature was set. Returns the scores by model, as
    :func:`nbhelpers.evaluation.metrics.evaluate` gives them.
    """
    models = [tested] if isinstance(tested, Predictions) else list(tested)
    found = {}
    for number, predictions in enumerate(models):
        name = model_of(predictions)
        scores = evaluate(predictions)
        found[name] = scores
        # File names of the first model stay as they are when another one is added.
        suffix = "" if number == 0 else f"_{number + 1}"
        after = calibrated if number == 0 else None
        run.show_table(score_table(scores), f"{name} on {run.images} that it has not seen")
        run.show_figure(
            confusion_matrix(scores),
            f"confusion_matrix{suffix}",
            caption=f"{name}: which class was taken for which.",
            alt="A table of true against predicted classes with counts and percentages.",
        )
        run.show_figure(
            reliability_diagram(predictions, after),
            f"reliability{suffix}",
            caption=f"{name}: {RELIABILITY}" + (AFTER_TEMPERATURE if after is not None else ""),
            alt="Accuracy against confidence with intervals; the diagonal is perfect calibration.",
        )
    run.add_record("scores", found)
    if calibrated is not None:
        run.add_record("calibrated", evaluate(calibrated))
    _set_result(run, *next(iter(found.items())), score)
    return found


def model_of(predictions: Predictions) -> str:
    """The name of the one model that a table holds."""
    return str(predictions.table["model"].iloc[0])


def _set_result(run: NotebookRun, model: str, scores: dict, score: str | Sequence[str]) -> None:
    wanted = [score] if isinstance(score, str) else list(score)
    with_interval = [name for name in wanted if scores[name].has_interval]
    chosen = (with_interval or wanted)[0]
    run.set_result(
        SCORE_NAMES[chosen].partition(" (")[0],
        scores[chosen],
        score=chosen,
        model=model,
        n_text=counted(scores["n_images"], scores["n_groups"], run.images, run.groups),
    )
