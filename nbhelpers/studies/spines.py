"""Dendritic spines (system A): the recipes of TinyCNN, its floors, and predictions
for new masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from torch import nn

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split
from nbhelpers.evaluation import floors
from nbhelpers.imagesets.spines import WINDOW_PX, windows  # noqa: F401
from nbhelpers.inference.new_images import FEWEST, OutOfDistribution, evaluation_table
from nbhelpers.training.augment import Transform, as_seen
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Augmentation, Recipe

# As published: Adam 8e-4, cross-entropy, batch 32, 100 epochs; rotation 10, resized crop .9 to 1
# (here scale, stretch
# and shift of that size), horizontal flip; the whole 250 px frame; the checkpoint with the best
# accuracy.
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


def floor_predictions(
    images: ImageSet,
    seen: ImageSet,
    split: Split,
    make_network: Callable[[], nn.Module],
    prepare: Transform,
    *,
    seed: int,
) -> list[Predictions]:
    """Predictions of the floors on the test parts of the same folds.

    The commonest class; a TinyCNN with random weights under logistic regression; shape features
    under an SVM; and, where the files are numbered as in the public set, the file number alone.
    """
    import torch

    from nbhelpers.core.seeds import derive_seed

    torch.manual_seed(derive_seed(seed, "random weights"))
    random = floors.random_weight_features(make_network(), as_seen(prepare, seen.pixels))
    found = [
        floors.majority_class(images, split),
        floors.features_floor(random, images, split, "random weights"),
        floors.features_floor(
            floors.shape_features(images.pixels[:, 0]), images, split, "shape features + SVM", "svm"
        ),
    ]
    numbers = pd.to_numeric(
        pd.Series(images.ids).str.extract(r"^(\d+)\.[a-z]+$")[0], errors="coerce"
    )
    if numbers.notna().all():
        found.append(
            floors.features_floor(
                numbers.to_frame("file number"), images, split, "file number alone", "svm"
            )
        )
    return found


def predict_new(
    networks: Sequence[nn.Module],
    recipe: Recipe,
    prepare: Transform,
    protocol: str,
    training: ImageSet,
    new: ImageSet,
    *,
    confidence: float,
) -> pd.DataFrame:
    """The table of ``evaluation.csv`` for masks without labels; see ``evaluation_table`` for its
    columns.

    The probabilities are the mean of those of the ``networks``, all trained by ``recipe``.
    ``training`` and ``new`` are the masks in their frames. Whether a mask is unlike the training
    masks is judged by its shape features, which are the same for every network.
    """
    if not len(new):
        return evaluation_table(
            [],
            np.zeros((0, len(new.classes))),
            new.classes,
            None,
            confidence=confidence,
            failures=new.failures,
        )
    seen = windows(new, protocol, recipe.input_px or 1)
    probabilities = np.mean(
        [
            predict_probabilities(
                network,
                seen.pixels,
                prepare,
                test_time_augmentation=recipe.test_time_augmentation,
                precision=recipe.precision,
                channels_last=recipe.channels_last,
            )
            for network in networks
        ],
        axis=0,
    )
    features = floors.shape_features(training.pixels[:, 0]).to_numpy()
    unlike = (
        OutOfDistribution.fit(features).unlike(floors.shape_features(new.pixels[:, 0]).to_numpy())
        if len(training) >= FEWEST
        else None
    )
    return evaluation_table(
        new.ids, probabilities, new.classes, unlike, confidence=confidence, failures=new.failures
    )
