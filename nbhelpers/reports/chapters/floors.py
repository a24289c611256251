"""What a score must beat: models that cannot be said to have understood anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import SCORE_NAMES, evaluate
from nbhelpers.evaluation.paired import COMPARED, compare
from nbhelpers.figures.scores import scores_with_floors
from nbhelpers.reports.chapters.scores import model_of

if TYPE_CHECKING:
    from nbhelpers.reports.run import NotebookRun


def show_floors(
    run: NotebookRun,
    tested: Predictions,
    floors: Sequence[Predictions],
    *,
    rivals: Sequence[Predictions] = (),
) -> dict[str, dict]:
    """Show and record the floors on the images of ``tested``, the model of the run's result.

    ``rivals`` are models that understand something; they are shown and recorded as scores, and are
    not what has to be beaten. Returns the scores of the floors by name. Call it after the chapter
    on scores, which sets the result.
    """
    score = run.record["result"]["score"]
    name = model_of(tested)
    rows = [(name, "model", run.record["scores"][name][score])]
    for rival in rivals:
        scores = run.record["scores"].get(model_of(rival)) or evaluate(rival)
        run.add_record("scores", {model_of(rival): scores})
        rows.append((model_of(rival), "model", scores[score]))
    found = {}
    for floor in floors:
        found[model_of(floor)] = evaluate(floor)
        rows.append((model_of(floor), "floor", found[model_of(floor)][score]))
    run.add_record("floors", found)
    _record_differences(run, tested, floors, rivals, score)
    run.show_figure(
        scores_with_floors(rows, score=SCORE_NAMES[score]),
        "floors",
        caption=f"{name} beside its floors, on the same {run.images}, with 95 % intervals.",
        alt=f"A dot with an interval per model on an axis of the {SCORE_NAMES[score].lower()}.",
    )
    return found


def _record_differences(
    run: NotebookRun,
    tested: Predictions,
    floors: Sequence[Predictions],
    rivals: Sequence[Predictions],
    score: str,
) -> None:
    """The paired differences to the highest floor, which is what "above its floor" means in the
    headline, and to every rival.
    """
    if score not in COMPARED:
        return
    known = {
        model_of(floor): floor
        for floor in floors
        if run.record["floors"][model_of(floor)][score].value is not None
    }
    if known:
        highest = max(known, key=lambda name: run.record["floors"][name][score].value)
        run.add_record("differences", {highest: compare(tested, known[highest])[score]})
    for rival in rivals:
        run.add_record("rivals", {model_of(rival): compare(tested, rival)[score]})
