"""Networks for synapse patches that are trained already: their card, what they fit, and what they
predict. Nothing here trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from nbhelpers.core.errors import CheckpointError, SplitError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split, fold_table, repeated_cross_validation
from nbhelpers.evaluation import floors
from nbhelpers.imagesets.sources import loader
from nbhelpers.imagesets.synapses import SPLITS, PatchReference
from nbhelpers.inference.new_images import evaluation_table, flags
from nbhelpers.training.checkpoints import load_checkpoint, read_card
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Recipe
from nbhelpers.training.transform import DihedralEvaluation, EvaluationTransform

# By name, so that who reads or runs one of them need not know the other.
NETWORKS = {
    "PretrainedCNN": "nbhelpers.models.resnet",
    "SynapseCNN": "nbhelpers.models.synapse_cnn",
}
TRAIN_AGAIN = "Train again with notebook 02."


def evaluation_transform(recipe: Recipe) -> EvaluationTransform:
    """What turns stored patches into the input of a trained network: with the eight symmetries as
    views where the recipe trains with quarter turns."""
    kind = DihedralEvaluation if recipe.augmentation.quarter_turns else EvaluationTransform
    return kind(recipe.augmentation, recipe.input_px)


def rebuild(path: str | Path) -> tuple[nn.Module, Recipe, EvaluationTransform, dict]:
    """Network, recipe, transform and card of a checkpoint that notebook 02 wrote.

    The card's ``about`` holds the recipe as a dict under "recipe". Raises CheckpointError for
    another kind of file, another architecture, or a card without a recipe.
    """
    architecture = read_card(path)["architecture"]
    if architecture not in NETWORKS:
        raise CheckpointError(
            path,
            f"these are the weights of {architecture}, which is no network for synapse patches.",
            f"Give a checkpoint of {' or '.join(NETWORKS)}, from notebook 02.",
        )
    kind = getattr(import_module(NETWORKS[architecture]), architecture)
    network, card = load_checkpoint(path, kind)
    try:
        recipe = Recipe.from_dict(card["about"]["recipe"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            path, f"its card holds no recipe that this version knows ({error}).", TRAIN_AGAIN
        ) from None
    return network, recipe, evaluation_transform(recipe), card


def prints_of(images: ImageSet) -> list[str]:
    """A short hash per patch, of its pixels alone, sorted: the same patch is known again under any
    name.
    """
    return sorted(
        hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]
        for image in images.pixels
    )


def reference_of(card: Mapping, path: object) -> PatchReference:
    """What the training patches of a checkpoint look like. Raises CheckpointError when its card
    does not say.
    """
    try:
        return PatchReference(**card["about"]["reference"])
    except (KeyError, TypeError):
        raise CheckpointError(
            path, "its card does not say what its training patches look like.", TRAIN_AGAIN
        ) from None


def network_facts(network: nn.Module, recipe: Recipe, card: Mapping) -> dict[str, object]:
    """Which network a checkpoint holds, and what it wants to see, for a table."""
    reference = card["about"]["reference"]
    side = reference["size_px"]
    pixel = f" of {reference['pixel_nm']:g} nm" if reference["pixel_nm"] else ""
    count = sum(parameter.numel() for parameter in network.parameters())
    return {
        "network": f"{card['architecture']}, {count:,} parameters",
        "classes": ", ".join(card["classes"]),
        "patches": f"{side} x {side} px{pixel}",
        "test-time augmentation": f"mean of {recipe.test_time_augmentation} views of each patch",
    }


def training_facts(card: Mapping) -> dict[str, object]:
    """What a checkpoint says about its training and its scores then, for a table."""
    about = card["about"]
    then = Estimate(**about["scores"]["accuracy"])
    found = {
        "trained on": f"{about['n_training']} patches of {about['n_training_groups']} groups",
        "data": about["data"],
        "recipe": f"{about['recipe']['name']}, {about['recipe']['epochs']} epochs",
        "split": about["protocol"],
        "leak": about["known_leak"] or "none known",
        "accuracy then": f"{then}, n = {then.n}",
    }
    for name, scores in about["floors"].items():
        found[f"floor then: {name}"] = f"{scores['accuracy']['value']:.3f}"
    return found


def check_fits(card: Mapping, images: ImageSet, path: object, split: Split | None = None) -> None:
    """Refuse labelled images of other classes, and a split other than the one that kept test
    neurons from training.

    Raises CheckpointError.
    """
    if tuple(card["classes"]) != images.classes:
        raise CheckpointError(
            path,
            f"this network tells {', '.join(card['classes'])} apart, but the classes of "
            f"{images.name} are {', '.join(images.classes)}.",
            "Give images with the same class names, or the checkpoint that was trained on these.",
        )
    about = card["about"]
    if split is not None and about.get("trained_on"):
        ids = split.table.loc[split.table["part"] == "test", "id"]
        tested = images.take(images.positions(ids.to_numpy()))
        known = set(about["trained_on"]) & set(prints_of(tested))
        if known:
            raise CheckpointError(
                path,
                f"this network was trained on {len(known)} of the {len(tested)} patches that are "
                "to test it.",
                "Test it on other groups.",
            )
    if not about.get("synthetic", True) and images.synthetic:
        raise CheckpointError(
            path,
            "this network was trained on real patches, and synthetic ones say nothing about it.",
            "Set data to folder, microns or vnc_synapse and name labelled patches of groups that "
            "it has not seen; predictions alone are made by the notebook that trained it "
            "(new_images_dir).",
        )
    trained_here = about.get("content_hash") == images.content_hash
    if trained_here and (split is None or split.hash != about.get("split_hash")):
        raise CheckpointError(
            path,
            f"this network was trained on part of {images.name}, with another split, so there "
            "is no telling which groups it saw.",
            "Test it on other images, or with its own split.",
        )


def unseen_part(images: ImageSet, data: str, data_folder: str | Path, data_dir: str = "") -> Split:
    """Which images test a network that is already trained: of "microns" the test part of the split
    that notebook 01 stored, of everything else all of them.
    """
    if data in SPLITS:
        return loader(SPLITS, data)(data_dir or Path(data_folder) / "microns")
    table = fold_table(images, "test")
    return Split(table, "all images test; the network was trained on others", 0)


def predict_labelled(network: nn.Module, recipe: Recipe, images: ImageSet) -> Predictions:
    """The network's answers for all of these images, as test rows under the name of its
    architecture."""
    found = _probabilities(network, recipe, images)
    return Predictions.of(images, found, model=type(network).__name__)


def _probabilities(network: nn.Module, recipe: Recipe, images: ImageSet) -> np.ndarray:
    # Plain fp32, whatever the processor can do: a checkpoint gives the same answers everywhere.
    return predict_probabilities(
        network,
        images.pixels,
        evaluation_transform(recipe),
        test_time_augmentation=recipe.test_time_augmentation,
        precision="fp32",
        channels_last=False,
    )


def floors_among(images: ImageSet, seed: int) -> tuple[list[Predictions], str]:
    """What a trained network must beat on these images, and in words why a floor is missing (''
    where none is).

    The commonest class; and the photometric floors, trained and tested by cross-validation over
    the groups of these very images, which is more than the network was given.
    """
    shares = np.array(list(images.counts().values()), float) / len(images)
    commonest = Predictions.of(images, np.tile(shares, (len(images), 1)), model="commonest class")
    try:
        folds = repeated_cross_validation(images, folds=5, repeats=1, seed=seed)
        found = floors.photometric_floors(images, folds)
    except SplitError as error:
        return [commonest], f"No floor of {floors.GREY} or other photometry: {error}"
    # In one piece, as the network's answers are: fold 0.
    return [commonest, *[one.assign(fold=0) for one in found]], ""


def predict_new(
    network: nn.Module,
    recipe: Recipe,
    checkpoint: str | Path,
    new: ImageSet | None,
    *,
    confidence: float,
) -> pd.DataFrame | None:
    """The table of ``evaluation.csv`` for patches without labels; see ``evaluation_table`` for its
    columns. None where there are no ``new`` patches to ask about.

    A patch is out of distribution when what the network's head sees and how the patch looks
    (``image_statistics``) lie too far from the training patches, as the ``checkpoint`` of the
    network keeps them; whatever labelled patches test the network.
    """
    if new is None:
        return None
    unlike, rate = flags(checkpoint, network, new, evaluation_transform(recipe))
    return evaluation_table(
        new.ids,
        _probabilities(network, recipe, new),
        new.classes,
        unlike,
        rate=rate,
        confidence=confidence,
        failures=new.failures,
    )
