"""Checkpoints of 2D synapse networks: what their card says, what they fit, and predictions for new
patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from nbhelpers.core.errors import CheckpointError, SplitError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split, repeated_cross_validation
from nbhelpers.evaluation.floors import features_floor, grey_level_features
from nbhelpers.imagesets.sources import loader
from nbhelpers.imagesets.synapses import SPLITS, PatchReference
from nbhelpers.inference.new_images import FEWEST, OutOfDistribution, evaluation_table
from nbhelpers.training.augment import Transform
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Recipe

MOST_PRINTS = 20_000  # patches of which a card keeps a hash; of more only the hash of the whole set
SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece")


def about_checkpoint(
    recipe: Recipe,
    images: ImageSet,
    split: Split,
    trained_on: Sequence[str],
    scores: Mapping,
    floors: Mapping[str, Mapping],
    *,
    limits: Sequence[str],
    seed: int,
) -> dict:
    """The ``about`` of a checkpoint: enough to rebuild, to judge and to use the network without its
    training images.

    ``trained_on`` are the ids that the network saw; ``scores`` and ``floors`` come from
    ``evaluate``, of images that it did not. ``reference`` says what the training patches look like.
    """
    rows = images.positions(trained_on)

    def kept(entry: Mapping) -> dict:
        found = {"n_images": entry["n_images"], "n_groups": entry["n_groups"]}
        for name in SCORES:
            found[name] = entry[name].columns() | {"n": entry[name].n}
        return found

    return {
        "recipe": recipe.as_dict(),
        "data": images.source,
        "content_hash": images.content_hash,
        "synthetic": images.synthetic,
        "protocol": split.protocol,
        "split_hash": split.hash,
        "known_leak": split.known_leak,
        "n_training": len(rows),
        "n_training_groups": len(set(images.groups[rows])),
        "scores": kept(scores),
        "floors": {name: kept(entry) for name, entry in floors.items()},
        "reference": PatchReference.of(images.take(rows)).as_dict(),
        "limits": list(limits),
        "seed": seed,
        "trained_on": prints_of(images.take(rows)) if len(rows) <= MOST_PRINTS else [],
    }


def prints_of(images: ImageSet) -> list[str]:
    """A short hash per patch, of its pixels alone, sorted: the same patch is known again under any
    name.
    """
    import hashlib

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
            path,
            "its card does not say what its training patches look like.",
            "Train again with notebook 02 or 03.",
        ) from None


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
        tested = images.take(
            images.positions([one for fold in split.folds() for one in split.ids(*fold, "test")])
        )
        known = set(about["trained_on"]) & set(prints_of(tested))
        if known:
            raise CheckpointError(
                path,
                f"this network was trained on {len(known)} of the {len(tested)} patches that are "
                "to test it.",
                "Test it on other neurons.",
            )
    if not about.get("synthetic", True) and images.synthetic:
        raise CheckpointError(
            path,
            "this network was trained on real patches, and synthetic ones say nothing about it.",
            "Set data to folder, microns or vnc_synapse and name labelled patches of neurons that "
            "it has "
            "not seen; predictions alone are made by the notebook that trained it "
            "(new_images_dir).",
        )
    trained_here = about.get("content_hash") == images.content_hash
    if trained_here and (split is None or split.hash != about.get("split_hash")):
        raise CheckpointError(
            path,
            f"this network was trained on part of {images.name}, with another split, so there "
            "is no telling which neurons it saw.",
            "Test it on other images, or with its own split.",
        )


def unseen_part(images: ImageSet, data: str, data_folder: str | Path, data_dir: str = "") -> Split:
    """Which images test a network that is already trained: of "microns" the test part of the split
    that notebook 01 stored, of everything else all of them.
    """
    if data in SPLITS:
        return loader(SPLITS, data)(data_dir or Path(data_folder) / "microns")
    table = pd.DataFrame(
        {"repeat": 0, "fold": 0, "part": "test", "id": images.ids, "group": images.groups}
    )
    return Split(table, "all images test; the network was trained on others", 0)


def floors_among(images: ImageSet, seed: int) -> tuple[list[Predictions], str]:
    """What a trained network must beat on these images, and in words why a floor is missing (''
    where none is).

    The commonest class; and the grey-level baseline, trained and tested by cross-validation over
    the groups of these very images, which is more than the network was given.
    """
    shares = np.array(list(images.counts().values()), float) / len(images)
    names = images.table["label"].tolist()
    found = [
        Predictions.build(
            ids=images.ids,
            labels=names,
            groups=images.groups,
            classes=images.classes,
            probabilities=np.tile(shares, (len(images), 1)),
            model="commonest class",
        )
    ]
    try:
        folds = repeated_cross_validation(images, folds=5, repeats=1, seed=seed)
        dark = features_floor(
            grey_level_features(images.pixels), images, folds, "grey-level baseline"
        )
    except SplitError as error:
        return found, f"No floor of grey-level baseline: {error}"
    return [*found, Predictions(dark.table.assign(fold=0), dark.classes)], ""


def predict_new(
    network: nn.Module,
    recipe: Recipe,
    prepare: Transform,
    known: ImageSet,
    new: ImageSet,
    *,
    confidence: float,
) -> pd.DataFrame:
    """The table of ``evaluation.csv`` for patches without labels; see ``evaluation_table`` for its
    columns.

    A patch is unlike what the network was tested on when what its head sees, or the grey values,
    lie farther from the patches of ``known`` than 99 in 100 of those from each other.
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
    probabilities = predict_probabilities(
        network,
        new.pixels,
        prepare,
        test_time_augmentation=recipe.test_time_augmentation,
        precision="fp32",
        channels_last=False,
    )
    unlike = None
    if len(known) >= FEWEST:
        unlike = np.zeros(len(new), bool)
        for describe in (lambda pixels: features(network, pixels, prepare), grey_level_features):
            unlike |= OutOfDistribution.fit(describe(known.pixels)).unlike(describe(new.pixels))
    return evaluation_table(
        new.ids, probabilities, new.classes, unlike, confidence=confidence, failures=new.failures
    )


def features(
    network: nn.Module, pixels: np.ndarray, prepare: Transform, batch_size: int = 128
) -> np.ndarray:
    """(n, c, y, x) to (n, d) float64: what the head of the network sees of each patch, without
    augmentation.
    """
    import torch

    was_training = network.training
    place = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        found = [
            network.features(
                prepare.evaluate(
                    torch.from_numpy(np.array(pixels[start : start + batch_size])).to(place)
                )
            )
            .double()
            .cpu()
            .numpy()
            for start in range(0, len(pixels), batch_size)
        ]
    network.train(was_training)
    return np.concatenate(found)
