"""What the images are: how many of each class, which were left out, and what they look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nbhelpers.figures.images import image_sheet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from nbhelpers.core.imageset import ImageSet
    from nbhelpers.reports.run import NotebookRun

MOST_FAILURES = 50  # rows; the whole list would push the report away


def show_data(
    run: NotebookRun,
    images: ImageSet,
    *,
    gallery: Callable[..., Figure] = image_sheet,
    table: pd.DataFrame | None = None,
    details: str = "",
) -> None:
    """Show the images of a run and note them in its record.

    ``gallery`` draws examples from ``(images, seed=...)``; ``table`` stands in for the counts per
    class, and ``details`` says what its columns are.
    """
    run.add_data(images)
    caption = f"{images.name}: {images.source}."
    run.show_table(images.summary() if table is None else table, f"{caption} {details}".strip())
    show_left_out(run, images)
    height, width = images.pixels.shape[-2:]
    run.show_figure(
        gallery(images, seed=run.seed),
        "examples",
        thumbnail=True,
        caption=f"Some {run.images} of each class, {width} x {height} px"
        + _pixel_size(images)
        + (", synthetic." if images.synthetic else "."),
        alt=f"Rows of {run.images}, one row for each class: {', '.join(images.classes)}.",
    )


def show_left_out(run: NotebookRun, images: ImageSet) -> None:
    """The files that were left out; nothing where all could be used."""
    count = len(images.failures)
    if count:
        shown = "" if count <= MOST_FAILURES else f" The first {MOST_FAILURES} are shown."
        run.show_table(
            images.failures.head(MOST_FAILURES),
            f"Left out: {count}. Why, and how to fix it.{shown}",
        )


def _pixel_size(images: ImageSet) -> str:
    if not images.pixel_size_nm:
        return ""
    return f" of {images.pixel_size_nm[-1]:g} nm"
