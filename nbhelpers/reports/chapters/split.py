"""Which images train, which validate, which test; whole groups, stored as a file with a hash."""

from __future__ import annotations

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split
from nbhelpers.figures.scores import class_balance
from nbhelpers.reports.run import NotebookRun


def show_split(run: NotebookRun, split: Split, images: ImageSet) -> None:
    """Store the split as ``split.csv``, note it in the record, and show how many images of each
    class its parts hold.
    """
    split.save(run.folder / "split.csv")
    run.add_split(split)
    whole = f"{run.images[:1].upper()}{run.images[1:]}"
    run.show_table(split.summary(images), f"{whole} per part. Protocol: {split.protocol}.")
    if split.known_leak:
        print("This split leaks:", split.known_leak)
    if split.table["part"].nunique() > 1:
        run.show_figure(
            class_balance(images, split),
            "class_balance",
            caption=f"{whole} of each class in each part of the split.",
            alt=f"Bars with the number of {run.images} per class for each part of the split.",
        )
