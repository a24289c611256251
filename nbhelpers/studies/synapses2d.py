"""Synapse patches in 2D (system B): the recipes, their floors, and networks rebuilt from a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from nbhelpers.core.errors import CheckpointError, ParameterError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split
from nbhelpers.evaluation import floors
from nbhelpers.training.augment import DihedralPreparation, Transform, as_seen
from nbhelpers.training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from nbhelpers.training.crossvalidation import CrossValidated, Training
    from nbhelpers.training.trainer import Trained

# As published: flips, rotation 10, Gaussian blur over 3 px with sigma .1 to 1, jitter of brightness
# .2 and contrast .1;
# ResNet: Adam 5e-4, cosine over 30 epochs, 256 px; custom CNN: Adam 2.5e-4, no scheduler, 128 or
# 256 px; batch 32.
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
# for ImageNet weights: the backbone moves less than its new head, and few patches are enough
OURS_FINE_TUNED = OURS_RESNET.but(backbone_rate=0.3, epochs=16, batch_size=16)

RECIPES = {
    ("resnet", "published"): PUBLISHED_RESNET,
    ("resnet", "ours"): OURS_RESNET,
    ("cnn", "published"): PUBLISHED_CNN,
    ("cnn", "ours"): OURS_CNN,
}


def recipe(
    family: str, protocol: str = "ours", *, pretrained: bool = False, input_px: int = 0, **changes
) -> Recipe:
    """The recipe of a family, "resnet" or "cnn", as "published" or as "ours", with changes.

    ``input_px`` is the height and width that the network sees; 0: the patches as they are (the
    published 256 px for 256 px patches). Raises ParameterError for unknown names and fields.
    """
    if (family, protocol) not in RECIPES:
        raise ParameterError(
            "parameter recipe",
            f"there is no {protocol!r} recipe for {family!r}.",
            f"There are {', '.join(' '.join(reversed(key)) for key in RECIPES)}.",
        )
    found = RECIPES[family, protocol]
    if pretrained and (family, protocol) == ("resnet", "ours"):
        found = OURS_FINE_TUNED
    return found.but(input_px=input_px, **changes)


def transform(recipe: Recipe) -> Transform:
    """What turns stored patches into the network's input: with the eight symmetries as views where
    the recipe trains with quarter turns."""
    kind = DihedralPreparation if recipe.augmentation.quarter_turns else Transform
    return kind(recipe.augmentation, recipe.input_px)


def floor_predictions(
    images: ImageSet,
    split: Split,
    make_network: Callable[[], nn.Module],
    *,
    seed: int,
    make_frozen: Callable[[], nn.Module] | None = None,
    input_px: int = 0,
) -> list[Predictions]:
    """Predictions of the floors on the test parts of the same folds: darkness from the patches as
    they are stored, networks from patches of ``input_px`` (0: as they are).

    The commonest class; the grey-level baseline; the features of ``make_network()`` with random weights; and, where ``make_frozen`` gives a network with ImageNet
    weights, its features as they are; each under a logistic regression.
    """
    import torch

    from nbhelpers.core.seeds import derive_seed

    torch.manual_seed(derive_seed(seed, "random weights"))
    seen = as_seen(Transform(Augmentation(), input_px), images.pixels)
    random = floors.random_weight_features(make_network(), seen)
    found = [
        floors.majority_class(images, split),
        floors.features_floor(
            floors.grey_level_features(images.pixels), images, split, "grey-level baseline"
        ),
        floors.features_floor(random, images, split, "random weights"),
    ]
    if make_frozen:
        frozen = floors.random_weight_features(make_frozen(), seen)
        found.append(floors.features_floor(frozen, images, split, "ImageNet weights, frozen"))
    return found


def rebuild(path: str | Path) -> tuple[nn.Module, Recipe, Transform, dict]:
    """Network, recipe, transform and card of a checkpoint that notebook 02 or 03 wrote.

    The card's ``about`` holds the recipe as a dict under "recipe". Raises CheckpointError for
    another kind of file, another architecture, or a card without a recipe.
    """
    from nbhelpers.models.resnet import PretrainedCNN
    from nbhelpers.models.synapse_cnn import SynapseCNN
    from nbhelpers.training.checkpoints import load_checkpoint, read_card

    known = {kind.__name__: kind for kind in (PretrainedCNN, SynapseCNN)}
    card = read_card(path)
    if card["architecture"] not in known:
        raise CheckpointError(
            path,
            f"these are the weights of {card['architecture']}, which is no network for synapse "
            "patches.",
            f"Give a checkpoint of {' or '.join(known)}, from notebook 02 or 03.",
        )
    network, card = load_checkpoint(path, known[card["architecture"]])
    try:
        settings = dict(card["about"]["recipe"])
        settings["augmentation"] = Augmentation(**settings["augmentation"])
        made = Recipe(**settings)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            path,
            f"its card holds no recipe that this version knows ({error}).",
            "Train again with notebook 02 or 03.",
        ) from None
    return network, made, transform(made), card


def make_split(
    data: str, images: ImageSet, *, data_dir: str | Path, folds: int, seed: int
) -> Split:
    """How the patches of a source are split, always by whole groups: of "microns" as notebook 01
    stored it; of "phantom" one hold-out by neuron (6 : 2 : 2); of real tissue and the user's own
    images cross-validation.
    """
    from nbhelpers.core import splits
    from nbhelpers.imagesets.sources import loader
    from nbhelpers.imagesets.synapses import SPLITS

    if data in SPLITS:
        return loader(SPLITS, data)(data_dir)
    if data == "phantom":
        return splits.hold_out(images, seed=seed)
    return splits.repeated_cross_validation(images, folds=folds, repeats=1, seed=seed)


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
    of_object = dict(zip(images.ids, images.table["object"], strict=True))
    groups = predictions.table["id"].map(of_object)
    return Predictions(predictions.table.assign(group=groups), predictions.classes)
