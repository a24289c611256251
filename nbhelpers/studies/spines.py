"""Dendritic spines (system A): TinyCNN's recipes, its floors, and predictions for new masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split
from nbhelpers.evaluation import floors
from nbhelpers.evaluation.random_weights import random_weights_floor
from nbhelpers.imagesets.shapes import shape_features
from nbhelpers.imagesets.windows import windows as spine_windows
from nbhelpers.inference.new_images import OutOfDistribution, evaluation_table
from nbhelpers.inference.reference import can_judge, fit_reference
from nbhelpers.inference.spine_pose import Scale, in_one_pose
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import save_checkpoint
from nbhelpers.training.crossvalidation import Training
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import Trained

NETWORK = "tinycnn_spines"  # the name of its file
# As published: Adam 8e-4, cross-entropy, batch 32, 100 epochs; rotation 10, resized crop .9 to 1
# (here scale, stretch and shift of that size), horizontal flip; the whole 250 px frame; the
# checkpoint with the best accuracy.
PUBLISHED = Recipe(
    name="published",
    epochs=100,
    optimizer="adam",
    learning_rate=8e-4,
    schedule="constant",
    keep="best",
    select_by="accuracy",
    augmentation=Augmentation(
        rotation_degrees=10, scale=0.03, stretch=0.1, shift=0.025, flip_horizontal=True
    ),
)

GENTLE = Recipe(
    name="gentle",
    epochs=40,
    learning_rate=2e-3,
    weight_decay=0.01,
    warmup_fraction=0.1,
    ema_decay=0.99,
    input_px=64,
    keep="last",
    test_time_augmentation=8,
    augmentation=Augmentation(
        rotation_degrees=15, scale=0.12, stretch=0.06, shear=0.1, shift=0.03, flip_horizontal=True
    ),
)
STRONG = GENTLE.but(
    name="strong",
    augmentation=Augmentation(
        rotation_degrees=25, scale=0.2, stretch=0.1, shear=0.25, shift=0.05, flip_horizontal=True
    ),
)


def recipes(protocol: str, which: str = "both", **changes) -> list[Recipe]:
    """The published recipe, of which only ``epochs`` can be changed, or ours: "gentle", "strong",
    or "both" to compete; with changes.
    """
    if protocol == "published":
        return [PUBLISHED.but(epochs=changes.get("epochs", PUBLISHED.epochs))]
    return [recipe.but(**changes) for recipe in (GENTLE, STRONG) if which in (recipe.name, "both")]


def transform(channels: int) -> Callable[[Recipe], Transform]:
    """What turns stored masks into the network's input, for any recipe."""
    return lambda recipe: Transform(recipe.augmentation, recipe.input_px, channels)


def one_pose(
    images: ImageSet, protocol: str, pose: str, um_per_px: float
) -> tuple[ImageSet, Scale | None]:
    """Masks "upright" and of one size, with their scale, and a word about it; or "as_is" and None,
    as also under the published protocol. ``um_per_px`` is the size of a pixel, 0 where not known.
    """
    if protocol == "published" or pose == "as_is":
        print(
            "The masks stay as they lie (um_per_px and new_um_per_px are not used): new ones must "
            "lie alike, in pixels of the same size."
        )
        return images, None
    scale = Scale.of(images, um_per_px)
    posed = in_one_pose(images, scale)
    unsure = int(posed.table["pose_uncertain"].sum())
    print(f"{len(posed)} masks turned to have their base below (uncertain: {unsure}).")
    print(_scale_sentence(posed, scale))
    return posed, scale


def _scale_sentence(posed: ImageSet, scale: Scale) -> str:
    other = int(posed.table["other_scale"].sum())
    text = f"Each of their px is {scale.zoom:.2f} px here, {scale.how}."
    if other:
        text += f" Too large or too small for that, and so drawn smaller or larger: {other}."
    if 2 * other > len(posed):
        text += " These are most: is the size of their pixels right?"
    return text


def floor_predictions(
    images: ImageSet,
    windows: ImageSet,
    split: Split,
    training: Training,
    as_they_lie: ImageSet | None = None,
) -> list[Predictions]:
    """Predictions of the floors on the test parts of the same folds.

    The commonest class; the photometric floors of the ``images``; the network of ``training`` with
    random weights on the ``windows`` under logistic regression; shape features of the ``images`` in
    their frames under an SVM, and those of the masks ``as_they_lie``, where these are others, as
    the hand that laid them upright may have said something about the class; and, where the files
    are numbered as in the public set, the file number alone.
    """
    transform = training.make_transform(training.recipes[0])
    shapes = shape_features(images.pixels[:, 0])
    found = [
        floors.majority_class(images, split),
        *floors.photometric_floors(images, split),
        random_weights_floor(training.make_network, transform, windows, split, seed=training.seed),
        floors.features_floor(shapes, images, split, "shape features + SVM", "svm"),
    ]
    if as_they_lie is not None and as_they_lie is not images:
        shapes = shape_features(as_they_lie.pixels[:, 0])
        name = "shape features as they lie + SVM"
        found.append(floors.features_floor(shapes, images, split, name, "svm"))
    numbers = pd.Series(images.ids).str.extract(r"^(\d+)\.[a-z]+$")[0]
    if numbers.notna().all():
        number = pd.to_numeric(numbers).to_frame("file number")
        found.append(floors.features_floor(number, images, split, "file number alone", "svm"))
    return found


def winner(recipes: Sequence[Recipe], choices: pd.DataFrame) -> Recipe:
    """The recipe that was chosen in most folds."""
    won = choices.groupby("recipe")["chosen"].sum()
    return next(recipe for recipe in recipes if recipe.name == won.idxmax())


def save_networks(
    folder: Path,
    final: Sequence[Trained],
    images: ImageSet,
    split: Split,
    scores: dict,
    scale: Scale | None = None,
) -> None:
    """Write the networks for new masks, each with a card that says what it was trained on, at which
    ``scale``, and what one such network scored in the cross-validation; beside it what the shapes
    of the masks are like.
    """
    beside = None
    if can_judge(images.groups):
        beside = fit_reference(_shapes(images), groups=images.groups).tensors()
    for member, trained in enumerate(final, start=1):
        suffix = "" if member == 1 else f"_{member}"
        save_checkpoint(
            folder / f"{NETWORK}{suffix}.safetensors",
            trained.network,
            classes=images.classes,
            about={
                "data": images.source,
                "content_hash": images.content_hash,
                "synthetic": images.synthetic,
                "recipe": trained.recipe.as_dict(),
                "protocol": split.protocol,
                "member": f"{member} of {len(final)}",
                "accuracy": scores["accuracy"],
                "macro_f1": scores["macro_f1"],
                "scale": asdict(scale) if scale else None,
            },
            beside=beside,
        )


def _shapes(images: ImageSet) -> np.ndarray:
    return shape_features(images.pixels[:, 0]).to_numpy()


def predict_new(
    training: Training,
    final: Sequence[Trained],
    folder: Path,
    new: ImageSet,
    *,
    protocol: str,
    confidence: float,
    scale: Scale | None = None,
    um_per_px: float = 0.0,
) -> tuple[ImageSet, pd.DataFrame]:
    """Masks without labels in their one pose, and the table of ``evaluation.csv`` for them; see
    ``evaluation_table`` for its columns. Where there is a ``scale`` of the training masks, it has
    ``turned_degree``, ``pose_uncertain`` and ``other_scale`` too; ``um_per_px`` is of the ``new``
    masks.

    The probabilities are the mean of those of the ``final`` networks, all trained by one recipe.
    Whether a mask is out of distribution is judged by its shape features, which are the same for
    every network, and by what the first of those in ``folder`` keeps.
    """
    unlike = None
    rate = None
    probabilities = np.zeros((0, len(new.classes)))
    if len(new) and scale:
        found = Scale.of(new, um_per_px, scale)
        new = in_one_pose(new, found)
        print(f"New masks: {_scale_sentence(new, found)}")
    if len(new):
        seen = spine_windows(new, protocol, final[0].recipe.input_px or 1)
        rows = np.arange(len(new))
        each = [training.predicted(trained, seen, rows) for trained in final]
        probabilities = np.mean(each, axis=0)
        usual = OutOfDistribution.of_checkpoint(folder / f"{NETWORK}.safetensors")
        if usual:
            unlike = usual.unlike(_shapes(new))
            rate = usual.rate
    table = evaluation_table(
        new.ids,
        probabilities,
        new.classes,
        unlike,
        rate=rate,
        confidence=confidence,
        failures=new.failures,
    )
    for column in ("turned_degree", "pose_uncertain", "other_scale") if scale else ():
        values = new.table[column] if len(new) else []
        table.insert(table.columns.get_loc("problem"), column, pd.Series(values, dtype=object))
    return new, table
