"""Position: can the treatment be told from the place of the well, or from the light behind the
cells, alone?
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.floors import features_floor
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.paired import compare
from nbhelpers.evaluation.plates import group_by_well
from nbhelpers.evaluation.shortcuts import NOTABLE_AUC

if TYPE_CHECKING:
    from nbhelpers.core.imageset import ImageSet
    from nbhelpers.core.splits import Split

POSITION = "well position alone"
BACKGROUND = "background alone"
BLOCKS = 8  # the background is seen in 8 x 8 blocks
DARK = 5  # percentile of a block: what lies behind the cells


def position_features(images: ImageSet) -> pd.DataFrame:
    """What is known of a field without looking at it: row, column, distance from the edge, and
    which well it is.

    Rows are counted by their letters in use. ``edge`` is the number of wells in use between it and
    the border; then one column (0 or 1) per row, column and well. One row per image.
    """
    table = images.table
    down = table["row"].rank(method="dense").to_numpy() - 1
    across = table["column"].rank(method="dense").to_numpy() - 1
    edge = np.minimum.reduce([down, down.max() - down, across, across.max() - across])
    found = pd.DataFrame({"row number": down, "column number": across, "edge": edge})
    places = pd.DataFrame(
        {
            "row": table["row"].to_numpy(),
            "column": table["column"].astype(str).to_numpy(),
            "well": table["well"].to_numpy(),
        }
    )
    return pd.concat([found, pd.get_dummies(places, dtype=float)], axis=1)


def background_features(images: ImageSet) -> pd.DataFrame:
    """The dark end (5th percentile) of 8 x 8 blocks of every stain, in grey levels of 255; no
    structure is in it.

    One row per image; unlabelled images, which take no part in a check, are 0. Where cells fill
    whole blocks, as in crops of single cells, their own brightness is in it too.
    """
    height, width = (size // BLOCKS for size in images.pixels.shape[-2:])
    found = np.zeros((len(images), images.pixels.shape[1] * BLOCKS**2), np.float32)
    for row in np.flatnonzero(images.labels >= 0):
        field = np.asarray(images.pixels[row])[:, : BLOCKS * height, : BLOCKS * width]
        blocks = field.reshape(len(field), BLOCKS, height, BLOCKS, width)
        found[row] = np.percentile(blocks, DARK, axis=(2, 4)).ravel()
    names = [
        f"{name} {down},{across}"
        for name in images.channels
        for down in range(BLOCKS)
        for across in range(BLOCKS)
    ]
    return pd.DataFrame(found * (255 / np.iinfo(images.pixels.dtype).max), columns=names)


def position_check(
    images: ImageSet,
    split: Split,
    predictions: Predictions | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[list[str], pd.DataFrame, list[Predictions]]:
    """Whether position or background tell the class of test fields, and how far the image model
    exceeds them.

    Both are logistic models fitted on the training and validation plates of the same split. Returns
    sentences (a "Warning" where AUC is .7 or more and its interval lies above .5), a table with
    ``check``, ``value``, ``low``, ``high``, ``n``, ``wells``, ``verdict`` ("warn", "pass" or ""),
    and the predictions of both, with plates as group. ``predictions``: of the image model on the
    test part, one model, or None before training; then the differences in balanced accuracy are
    paired, field by field. Intervals resample wells.
    """
    floors = [
        features_floor(position_features(images), images, split, POSITION),
        features_floor(background_features(images), images, split, BACKGROUND, regularisation=0.01),
    ]
    said = []
    rows = []
    for floor, what in zip(
        floors,
        ("the row, the column and the edge of a well", "the dark background of a field"),
        strict=True,
    ):
        name = floor.table["model"].iloc[0]
        by_well = group_by_well(floor, images)
        entry = evaluate(by_well, resamples=resamples, seed=seed)["auc"]
        tells = (
            entry["value"] is not None
            and entry["value"] >= NOTABLE_AUC
            and (entry["low"] or 1) > 0.5
        )
        rows.append(_row(f"AUC of {name}", entry, by_well, "warn" if tells else "pass"))
        if tells:
            confounded = (
                "position and treatment are confounded on these plates"
                if name == POSITION
                else "light and treatment go together on these plates"
            )
            said.append(
                f"Warning: {confounded}. A model that sees only {what} tells the class of fields "
                f"on unseen plates "
                f"with an AUC of {_with_span(entry)}, {entry['n']} fields of {rows[-1]['wells']} "
                f"wells. A high "
                "score of an image model does not by itself show that it sees the treatment."
            )
    if predictions is not None:
        model = group_by_well(predictions, images)
        rows.append(
            _row(
                "AUC of the image model",
                evaluate(model, resamples=resamples, seed=seed)["auc"],
                model,
                "",
            )
        )
        for floor, row in zip(floors, rows[:2], strict=True):
            said.append(
                _exceeds(
                    model,
                    group_by_well(floor, images),
                    row["verdict"] == "warn",
                    rows,
                    resamples,
                    seed,
                )
            )
    return (
        said,
        pd.DataFrame(rows, columns=["check", "value", "low", "high", "n", "wells", "verdict"]),
        floors,
    )


def _row(check: str, entry: dict, predictions: Predictions, verdict: str) -> dict:
    return {
        "check": check,
        "value": entry["value"],
        "low": entry["low"],
        "high": entry["high"],
        "n": entry["n"],
        "wells": predictions.table["group"].nunique(),
        "verdict": verdict,
    }


def _with_span(entry: dict, sign: str = "") -> str:
    span = (
        f" ({entry['low']:{sign}.2f} to {entry['high']:{sign}.2f})"
        if entry["low"] is not None
        else ""
    )
    return f"{entry['value']:{sign}.2f}{span}"


def _exceeds(
    model: Predictions,
    floor: Predictions,
    warned: bool,
    rows: list[dict],
    resamples: int,
    seed: int,
) -> str:
    """Adds the row of the paired difference, and says it in words."""
    name = floor.table["model"].iloc[0]
    found = compare(model, floor, resamples, seed)["balanced_accuracy"]
    entry = {"value": found["difference"], **{key: found[key] for key in ("low", "high", "n")}}
    beyond = entry["low"] is not None and entry["low"] > 0
    verdict = "warn" if warned and not beyond else ""
    rows.append(_row(f"balanced accuracy of the image model less {name}", entry, floor, verdict))
    text = (
        f"The image model has a balanced accuracy of {found['a']:.2f}, {name} {found['b']:.2f}: it "
        f"exceeds it by "
        f"{_with_span(entry, '+')}."
    )
    if beyond or not warned:
        return text
    return (
        f"{text} That is not above chance: the score of the image model is no evidence that it "
        f"sees more."
    )
