"""Synapse patches in 2D (system B): recipes, splits, floors, and which of two networks to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from nbhelpers.core import splits
from nbhelpers.core.errors import check_choice
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split
from nbhelpers.evaluation import floors
from nbhelpers.evaluation.random_weights import random_weights_floor
from nbhelpers.imagesets.sources import loader
from nbhelpers.imagesets.synapses import SPLITS, PatchReference
from nbhelpers.studies.synapse_checkpoints import prints_of
from nbhelpers.training.augment import DihedralPreparation, Transform
from nbhelpers.training.crossvalidation import CrossValidated, Training
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import Trained

# As published: flips, rotation 10, Gaussian blur over 3 px with sigma .1 to 1, jitter of brightness
# .2 and contrast .1; batch 32. ResNet: Adam 5e-4, cosine over 30 epochs, 256 px; custom CNN: Adam
# 2.5e-4, no scheduler, 128 or 256 px.
_PUBLISHED = Augmentation(
    rotation_degrees=10,
    flip_horizontal=True,
    flip_vertical=True,
    blur_px=1.0,
    brightness=0.2,
    contrast=0.1,
)
PUBLISHED_RESNET = Recipe(
    name="published",
    epochs=30,
    batch_size=32,
    optimizer="adam",
    learning_rate=5e-4,
    schedule="cosine",
    keep="best",
    select_by="accuracy",
    input_px=256,
    augmentation=_PUBLISHED,
)
PUBLISHED_CNN = PUBLISHED_RESNET.but(learning_rate=2.5e-4, schedule="constant", input_px=0)

_SYMMETRIES = Augmentation(
    flip_horizontal=True,
    flip_vertical=True,
    quarter_turns=True,
    brightness=0.15,
    contrast=0.2,
    noise=0.02,
)
OURS_RESNET = Recipe(
    name="ours",
    epochs=12,
    batch_size=32,
    learning_rate=1e-3,
    weight_decay=0.02,
    warmup_fraction=0.15,
    label_smoothing=0.05,
    ema_decay=0.99,
    clip_gradient=1.0,
    keep="last",
    select_by="loss",
    test_time_augmentation=8,
    augmentation=_SYMMETRIES,
)
OURS_CNN = OURS_RESNET.but(epochs=20)
# From ImageNet weights the backbone moves less than its new head, and few patches are enough.
OURS_FINE_TUNED = OURS_RESNET.but(backbone_rate=0.3, epochs=16, batch_size=16)

RECIPES = {
    "published resnet": PUBLISHED_RESNET,
    "ours resnet": OURS_RESNET,
    "published cnn": PUBLISHED_CNN,
    "ours cnn": OURS_CNN,
}
# Of a checkpoint's card
MOST_PRINTS = 20_000  # patches of which a card keeps a hash; of more only the hash of the whole set
SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece")
LIMITS = (
    "For patches like those it was trained on; see the limits in the report of the notebook that "
    "wrote it.",
)


def recipe(
    family: str,
    protocol: str = "ours",
    *,
    pretrained: bool = False,
    input_px: int = 0,
    **changes,
) -> Recipe:
    """The recipe of a family, "resnet" or "cnn", as "published" or as "ours", with changes.

    ``input_px`` is the height and width that the network sees; 0: the patches as they are (the
    published 256 px for 256 px patches). Raises ParameterError for unknown names and fields.
    """
    asked = f"{protocol} {family}"
    check_choice("parameter recipe", asked, RECIPES)
    found = RECIPES[asked]
    if pretrained and asked == "ours resnet":
        found = OURS_FINE_TUNED
    return found.but(input_px=input_px, **changes)


def transform(recipe: Recipe) -> Transform:
    """What turns stored patches into the network's input, in training too: with the eight
    symmetries as views where the recipe trains with quarter turns."""
    kind = DihedralPreparation if recipe.augmentation.quarter_turns else Transform
    return kind(recipe.augmentation, recipe.input_px)


def floor_predictions(
    images: ImageSet,
    split: Split,
    networks: Mapping[str, Callable[[], nn.Module]],
    *,
    seed: int,
    input_px: int = 0,
) -> list[Predictions]:
    """Predictions of the floors on the test parts of the same folds.

    The commonest class; the photometric floors, from the patches as they are stored; and, under
    its name in ``networks``, what each network sees in patches of ``input_px`` (0: as they are)
    before any training, under a logistic regression.
    """
    found = [floors.majority_class(images, split), *floors.photometric_floors(images, split)]
    look = Transform(Augmentation(), input_px)
    for name, make_network in networks.items():
        found.append(random_weights_floor(make_network, look, images, split, seed=seed, name=name))
    return found


def make_split(
    data: str, images: ImageSet, *, data_dir: str | Path, folds: int, seed: int
) -> Split:
    """How the patches of a source are split, always by whole groups: of "microns" as notebook 01
    stored it; of "phantom" one hold-out by neuron (6 : 2 : 2); of real tissue and the user's own
    images cross-validation.
    """
    if data in SPLITS:
        return loader(SPLITS, data)(data_dir)
    if data == "phantom":
        return splits.hold_out(images, seed=seed)
    return splits.repeated_cross_validation(images, folds=folds, repeats=1, seed=seed)


def best_first(run, results: Mapping[str, CrossValidated]) -> list[str]:
    """The names of trained networks, the one with the lowest validation log-loss (its mean over
    the folds) first. Says so, and records the log-losses in a notebook's ``run``.
    """
    losses = {}
    for name, result in results.items():
        chosen = result.choices[result.choices["chosen"]]
        losses[name] = float(chosen["validation_log_loss"].mean())
    names = sorted(losses, key=losses.get)
    compared = ", ".join(f"{name} {losses[name]:.3f}" for name in names)
    print(f"Log-loss on the validation {run.images}: {compared}.")
    print(f"So {names[0]} is the network of the headline. The test {run.images} had no say in it.")
    run.record["validation_log_loss"] = losses
    return names


def network_to_keep(
    training: Training, result: CrossValidated, images: ImageSet, split: Split
) -> tuple[Trained, np.ndarray]:
    """The network for new patches, and the ids that it was trained on.

    Of a hold-out it is the network that was tested; after a cross-validation, which made several,
    one more is trained on all patches.
    """
    (recipe,) = training.recipes
    if len(split.folds()) > 1:
        return training.on_everything(images, recipe), images.ids[images.labels >= 0]
    # as published, validation only chooses
    parts = ("train",) if recipe.keep == "best" else ("train", "validation")
    return result.last, split.ids(*split.folds()[0], *parts)


def by_unit(predictions: Predictions, images: ImageSet) -> Predictions:
    """The same predictions, grouped by what was sampled, for intervals: the neuron; of the real
    tissue, of which there are only a few blocks, the object.
    """
    if "object" not in images.table:
        return predictions
    objects = dict(zip(images.ids, images.table["object"], strict=True))
    names = predictions.table["id"].map(objects)
    return predictions.assign(group=names)


def about_checkpoint(
    recipe: Recipe,
    images: ImageSet,
    split: Split,
    trained_on: Sequence[str],
    scores: Mapping,
    floor_scores: Mapping[str, Mapping],
    *,
    limits: Sequence[str] = LIMITS,
    seed: int,
) -> dict:
    """The ``about`` of a checkpoint: enough to rebuild, to judge and to use the network without its
    training images.

    ``trained_on`` are the ids that the network saw; ``scores`` and ``floor_scores`` come from
    ``evaluate``, of images that it did not. ``reference`` says what the training patches look like.
    """
    known = images.take(images.positions(trained_on))
    return {
        "recipe": recipe.as_dict(),
        "data": images.source,
        "content_hash": images.content_hash,
        "synthetic": images.synthetic,
        "protocol": split.protocol,
        "split_hash": split.hash,
        "known_leak": split.known_leak,
        "n_training": len(known),
        "n_training_groups": len(set(known.groups)),
        "scores": _in_short(scores),
        "floors": {name: _in_short(entry) for name, entry in floor_scores.items()},
        "reference": PatchReference.of(known).as_dict(),
        "limits": list(limits),
        "seed": seed,
        "trained_on": prints_of(known) if len(known) <= MOST_PRINTS else [],
    }


def _in_short(scores: Mapping) -> dict:
    found = {"n_images": scores["n_images"], "n_groups": scores["n_groups"]}
    for name in SCORES:
        found[name] = scores[name].columns() | {"n": scores[name].n}
    return found
