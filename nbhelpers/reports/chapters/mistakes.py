"""What is predicted wrongly, the surest mistakes first, beside some right predictions."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.figures.images import predictions_sheet
from nbhelpers.reports.run import NotebookRun


def show_mistakes(
    run: NotebookRun,
    images: ImageSet,
    tested: Predictions,
    *,
    gallery: Callable[..., Figure] = predictions_sheet,
) -> None:
    """Show mistakes as pictures; ``gallery`` draws them from ``(images, tested, seed=...)``."""
    run.show_figure(
        gallery(images, tested, seed=run.seed),
        "mistakes",
        caption="Wrong predictions, the surest first, and some right ones.",
        alt=f"Some {run.images} with their true class, predicted class and probability.",
    )
