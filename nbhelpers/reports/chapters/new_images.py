"""What the model says about images without a label, and which of them it should not be asked
about.
"""

from __future__ import annotations

import pandas as pd

from nbhelpers.core.imageset import ImageSet
from nbhelpers.figures.gallery import prediction_gallery
from nbhelpers.reports.chapters.data import show_left_out
from nbhelpers.reports.run import NotebookRun

MOST_ROWS = 12


def show_new_images(
    run: NotebookRun,
    new: ImageSet | None,
    table: pd.DataFrame | None,
    *,
    own: bool,
    file: str = "evaluation.csv",
) -> None:
    """Write the table to ``file``, show its first rows, some of the images, and the files without a
    prediction.

    ``new`` are the images, None where there are none; ``table`` is what
    :func:`nbhelpers.inference.new_images.evaluation_table` gave for them (without its column
    ``problem`` where it holds predictions only); ``own`` says whether the user named them, or
    whether they are examples.
    """
    if new is None:
        print("No new images were named (new_images_dir).")
        return
    table.to_csv(run.folder / file, index=False)
    usable = table
    if "problem" in table:
        usable = table[table["problem"] == ""].drop(columns="problem").reset_index(drop=True)
    flagged = usable["out_of_distribution"].astype(str) == "True"
    run.add_record(
        "new_images",
        {
            "own": own,
            "given": len(usable) + len(new.failures),
            "predicted": len(usable),
            "low_confidence": int(usable["low_confidence"].astype(bool).sum()),
            "out_of_distribution": int(flagged.sum()),
            "without_prediction": len(new.failures),
        },
    )
    drawn = "" if own else " They are examples, drawn by a program, as no folder was named."
    if len(usable):
        rows = "All" if len(usable) <= MOST_ROWS else f"The first {MOST_ROWS} of"
        run.show_table(
            usable.head(MOST_ROWS), f"{rows} {len(usable)} predictions in {file}.{drawn}"
        )
        run.show_figure(
            prediction_gallery(new, usable),
            "new_images",
            caption="New images and what was predicted. The colour of the frame is that of the "
            'class; a dashed frame marks a low probability, and "unlike" an image out of '
            f"distribution.{drawn}",
            alt="Small images with coloured frames, predicted class and probability over each.",
        )
    show_left_out(run, new)
