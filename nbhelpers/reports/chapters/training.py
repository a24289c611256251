"""How a training went: its losses, its validation scores, and which recipe won on validation."""

from __future__ import annotations

import pandas as pd

from nbhelpers.figures.training import history
from nbhelpers.reports.run import NotebookRun


def show_training(
    run: NotebookRun,
    histories: pd.DataFrame,
    choices: pd.DataFrame | None = None,
    *,
    model: str = "",
    kept_epoch: int | None = None,
) -> None:
    """Show the curves of a training, and, where several recipes competed, how often each won.

    ``histories`` and ``choices`` are those of a cross-validation; ``kept_epoch`` marks the epoch
    whose weights were kept. With a ``model`` the figure carries its name, so that a notebook can
    show several.
    """
    if choices is not None and choices["recipe"].nunique() > 1:
        table = choices.groupby("recipe").agg(
            **{
                "folds won": ("chosen", "sum"),
                "validation log-loss": ("validation_log_loss", "mean"),
                "epoch": ("epoch", "mean"),
            }
        )
        run.show_table(
            table.reset_index(),
            f"How often each recipe was the better one on validation {run.images}",
        )
    if choices is not None:
        won = choices.groupby("recipe")["chosen"].sum()
        run.add_record("recipes_chosen", {name: int(count) for name, count in won.items()})
    run.show_figure(
        history(histories, kept_epoch),
        f"history_{model}" if model else "history",
        caption=f"{model or 'Training'}: loss and validation scores over the epochs. Thin lines "
        "are single trainings, thick ones their median.",
        alt="Curves of training and validation loss, validation scores and learning rate.",
    )
