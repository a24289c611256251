"""What the model says about images without a label, and which of them it should not be asked
about.
"""

from __future__ import annotations

import pandas as pd

from nbhelpers.core.files import write_csv
from nbhelpers.core.imageset import ImageSet
from nbhelpers.figures.gallery import prediction_gallery
from nbhelpers.inference.new_images import out_of_distribution
from nbhelpers.reports.chapters.data import show_left_out
from nbhelpers.reports.record import users_images
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
    whether they are examples. ``record["new_images"]`` has what became of them in numbers, those
    out of distribution None where that is unknown, and as ``warning`` what the top of the report
    has to say where most of them are unlike the training images, and "" elsewhere.
    """
    if new is None:
        print("No new images were named (new_images_dir).")
        return
    if "in_doubt" in new.table:  # whether grey values are inverted
        table = table.assign(in_doubt=new.table["in_doubt"])
    write_csv(run.folder / file, table)
    usable = table
    if "problem" in table:
        usable = table[table["problem"] == ""].drop(columns="problem").reset_index(drop=True)
    warning = usable["warning"].iloc[0] if "warning" in usable and len(usable) else ""
    unknown = (usable["out_of_distribution"] == "unknown").any()
    unsure = usable["low_confidence"].astype(bool)
    unlike = out_of_distribution(usable)
    run.add_record(
        "new_images",
        {
            "own": own,
            "file": file,
            # of plates what is left out are files, and wells without a field: no images
            "given": new.failures.attrs.get("given", len(usable) + len(new.failures)),
            "predicted": len(usable),
            "low_confidence": int(unsure.sum()),
            "unflagged": int((~unsure & ~unlike).sum()),
            "in_doubt": int(usable.get("in_doubt", pd.Series()).sum()),
            "out_of_distribution": None if unknown else int(unlike.sum()),
            "warning": warning,
            "without_prediction": len(new.failures),
        },
    )
    remark = " They are examples, drawn by a program, as no folder was named."
    if own:
        remark = f" The images: {new.source}."
    said = " ".join(users_images(run.record)).strip() or warning
    if said:
        print(said)
        remark += f" {said}"
    if len(usable):
        rows = "All" if len(usable) <= MOST_ROWS else f"The first {MOST_ROWS} of"
        run.show_table(
            usable.head(MOST_ROWS), f"{rows} {len(usable)} predictions in {file}.{remark}"
        )
        run.show_figure(
            prediction_gallery(new, usable),
            "new_images",
            caption="New images and what was predicted. The colour of the frame is that of the "
            'class; a dashed frame marks a low probability, and "unlike" an image out of '
            f"distribution: {_by_chance(usable)}.{remark}",
            alt="Small images with coloured frames, predicted class and probability over each.",
        )
    show_left_out(run, new)


def _by_chance(table: pd.DataFrame) -> str:
    """How often an image is flagged that is like the training images, in words."""
    rate = table["flagged_by_chance"].iloc[0]
    if not isinstance(rate, float) or not rate > 0:
        return (
            "of no image this is known, as the file of the network says nothing about the images "
            "that it was trained on: it is from before this was kept, or they were too few"
        )
    return (
        f"it looks unlike all training images (so would about 1 in {round(1 / rate)} of new groups "
        "that are like the training ones)"
    )
