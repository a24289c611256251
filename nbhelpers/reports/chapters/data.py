"""What the images are: how many of each class, which were left out, and what they look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.core.imageset import ImageSet
from nbhelpers.figures.images import image_sheet
from nbhelpers.reports.run import NotebookRun

INVERTED = 200  # images in doubt, of which some are shown inverted
MOST_FAILURES = 50  # rows; a longer list would push the report away


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
    if "in_doubt" in images.table:
        doubtful = images.take(np.flatnonzero(images.table["in_doubt"])[:INVERTED])
        classes = tuple(name for name in images.classes if name in set(doubtful.table["label"]))
        inverse = replace(doubtful, pixels=~doubtful.pixels, classes=classes)
        run.show_figure(
            gallery(inverse, seed=run.seed),
            "inverse",
            caption="The same images with their grey values inverted: whichever of the two figures "
            "shows dark membranes on bright cytosol is the usual way round.",
            alt=f"Rows of {run.images} with inverted grey values.",
        )


def show_left_out(run: NotebookRun, images: ImageSet) -> None:
    """The files that were left out, of many how many for which reason; nothing where all could be
    used.
    """
    count = len(images.failures)
    if count:
        many = count > MOST_FAILURES
        table = kinds_of_failure(images.failures) if many else images.failures
        run.show_table(table, f"Left out: {count}. Why, and how to fix it.")


def kinds_of_failure(failures: pd.DataFrame) -> pd.DataFrame:
    """How many files were left out for which kind of reason: columns files, why, fix, the
    commonest first. Numbers, which differ from file to file, are left out.
    """
    kind = failures["why"].str.split(":").str[0]
    kind = kind.str.replace(r"\d[\d.,_-]*\d|\d", "…", regex=True)
    found = failures.assign(why=kind).groupby(["why", "fix"]).size().rename("files").reset_index()
    found = found.sort_values("files", ascending=False, ignore_index=True)
    return found[["files", "why", "fix"]]


def _pixel_size(images: ImageSet) -> str:
    if not images.pixel_size_nm:
        return ""
    return f" of {images.pixel_size_nm[-1]:g} nm"
