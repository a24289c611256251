"""Synapses in 3D (system B): the recipes, their floors, controls without 3D structure, and what
each option is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core.errors import ParameterError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split
from nbhelpers.evaluation import floors
from nbhelpers.evaluation.calibration import threshold_folds
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.imagesets.cubes import chosen
from nbhelpers.models.synapse_cnn import SynapseCNN
from nbhelpers.models.video3d import BACKBONES_3D, make_cube_network, make_network_25d
from nbhelpers.studies import synapses2d
from nbhelpers.training.augment import as_seen
from nbhelpers.training.augment3d import CubePreparation
from nbhelpers.training.crossvalidation import CrossValidated, Training
from nbhelpers.training.forward import images_at_once
from nbhelpers.training.recipe import Augmentation, Recipe

# Symmetries and grey cost nothing and are learnt through in a few epochs; the rest, which bends and
# slips sections and
# loses some, interpolates: it takes time and many epochs, and pays where cubes are few.
LIGHT = Augmentation(
    flip_horizontal=True,
    flip_vertical=True,
    flip_depth=True,
    quarter_turns=True,
    brightness=0.15,
    contrast=0.2,
    noise=0.02,
)
FULL = replace(
    LIGHT,
    rotation_degrees=10,
    elastic_px=1.0,
    section_contrast=0.1,
    section_shift_px=0.5,
    missing_sections=0.02,
)
AUGMENTATIONS = {"light": LIGHT, "full": FULL}
OURS = Recipe(
    name="ours",
    epochs=12,
    batch_size=8,
    learning_rate=2e-3,
    weight_decay=0.02,
    warmup_fraction=0.15,
    loss="balanced_bce",
    label_smoothing=0.05,
    mix_alpha=0.2,
    ema_decay=0.98,
    clip_gradient=1.0,
    keep="last",
    select_by="loss",
    test_time_augmentation=8,
    augmentation=LIGHT,
)
OURS_FINE_TUNED = OURS.but(
    learning_rate=1e-3, backbone_rate=0.3
)  # the new head learns faster than what is known already
RECIPES = {
    "unet3d": OURS,
    **{name: OURS.but(learning_rate=1e-3) for name in BACKBONES_3D if name != "unet3d"},
}
ABLATIONS = ("none", "small", "full")
_FLAT = {"channels_last": False}  # cubes go into these networks, but their filters are 2D
SMALL = ("test-time augmentation", "threshold")  # what can be turned off without training again


def recipe(
    backbone: str, *, augment: str = "light", pretrained: bool = False, input_px: int = 0, **changes
) -> Recipe:
    """Our recipe for a backbone, one of BACKBONES_3D, with changes. Raises ParameterError for
    unknown names and fields.

    ``augment`` is "light" (symmetries and grey) or "full" (sections are also turned, bent, slipped
    and lost). ``input_px`` is the height and width that the network sees; 0: the sections as they
    are.
    """
    if backbone not in RECIPES:
        raise ParameterError(
            "parameter backbone", f"{backbone!r} is unknown.", f"Give one of {', '.join(RECIPES)}."
        )
    if augment not in AUGMENTATIONS:
        raise ParameterError(
            "parameter augment",
            f"{augment!r} is unknown.",
            f"Give one of {', '.join(AUGMENTATIONS)}.",
        )
    found = OURS_FINE_TUNED if pretrained else RECIPES[backbone]
    return found.but(**{"input_px": input_px, "augmentation": AUGMENTATIONS[augment], **changes})


def transform(recipe: Recipe) -> CubePreparation:
    """What turns stored cubes into the network's input."""
    return CubePreparation(recipe.augmentation, recipe.input_px)


def shape_seen(
    images: ImageSet, input_px: int
) -> tuple[tuple[int, int, int], tuple[float, float, float] | None]:
    """Shape and voxel in nm, (z, y, x) each, of what a network sees of these cubes; the voxel is
    None where unknown.
    """
    depth, height, width = images.pixels.shape[2:]
    if not input_px:
        return (depth, height, width), images.pixel_size_nm
    scale = width / input_px
    z_y_x = images.pixel_size_nm and (
        images.pixel_size_nm[0],
        *(side * scale for side in images.pixel_size_nm[1:]),
    )
    return (depth, input_px, input_px), z_y_x


def make_network(
    backbone: str,
    images: ImageSet,
    *,
    input_px: int = 0,
    norm: str = "batch",
    weights: str = "none",
    width: float = 1.0,
    data_folder: str | Path = "data",
) -> nn.Module:
    """The network for these cubes, with strides that go with their voxels."""
    shape, voxel_nm = shape_seen(images, input_px)
    return make_cube_network(
        backbone,
        len(images.classes),
        shape=shape,
        voxel_nm=voxel_nm,
        norm=norm,
        weights=weights,
        data_folder=data_folder,
        width=width,
    )


def make_split(
    data: str, images: ImageSet, *, data_dir: str | Path, folds: int, seed: int
) -> Split:
    """As in 2D (:func:`nbhelpers.studies.synapses2d.make_split`); of a stored split, the cubes that
    are in the set.
    """
    split = synapses2d.make_split(data, images, data_dir=data_dir, folds=folds, seed=seed)
    known = split.table["id"].isin(images.ids)
    return split if known.all() else replace(split, table=split.table[known].reset_index(drop=True))


def used(images: ImageSet, split: Split) -> ImageSet:
    """The cubes that the split uses, still on disk: the set itself where it uses all."""
    wanted = images.positions(sorted(set(split.table["id"])))
    return images if len(wanted) == len(images) else chosen(images, wanted)


# Controls: the same cubes, with less of their structure


class ShuffledSections(CubePreparation):
    """The same cubes with their sections in random order, another one each time: what is left is
    not 3D.
    """

    def train(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        return super().train(_shuffled(pixels, derive_seed(seed, "order of sections")), seed)

    def evaluate(self, pixels: torch.Tensor, view: int = 0) -> torch.Tensor:
        return super().evaluate(_shuffled(pixels, derive_seed(view, "order of sections")), view)


def _shuffled(pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """(n, c, z, y, x) with the sections of each cube in an order of its own."""
    order = torch.rand(
        len(pixels), pixels.shape[2], generator=torch.Generator().manual_seed(seed)
    ).argsort(1)
    rows = torch.arange(len(pixels))[:, None]
    return pixels.transpose(1, 2)[rows, order.to(pixels.device)].transpose(1, 2)


class SingleSections(CubePreparation):
    """One section of each cube, (n, c, y, x): any of them in training, number ``view`` in
    evaluation (``only``: that one).

    Predicted with as many views as there are sections, each section is judged by itself and the
    judgements averaged.
    """

    def __init__(self, augmentation: Augmentation, input_px: int = 0, only: int | None = None):
        super().__init__(augmentation, input_px)
        self.only = only

    def train(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(derive_seed(seed, "section"))
        at = torch.randint(pixels.shape[2], (len(pixels),), generator=draw)
        return super().train(pixels[torch.arange(len(pixels)), :, at][:, :, None], seed)[:, :, 0]

    def evaluate(self, pixels: torch.Tensor, view: int = 0) -> torch.Tensor:
        at = view if self.only is None else self.only
        return super().evaluate(pixels[:, :, at % pixels.shape[2]][:, :, None])[:, :, 0]


def shuffled(recipe: Recipe) -> ShuffledSections:
    return ShuffledSections(recipe.augmentation, recipe.input_px)


def single_sections(recipe: Recipe) -> SingleSections:
    return SingleSections(recipe.augmentation, recipe.input_px)


# Floors and rivals


def floor_predictions(
    images: ImageSet,
    split: Split,
    make_network: Callable[[], nn.Module],
    recipe: Recipe,
    *,
    seed: int,
) -> list[Predictions]:
    """Test predictions of what has learnt no image: the commonest class; the grey-level baseline;
    and the features of ``make_network()`` with random weights under a logistic regression."""
    torch.manual_seed(derive_seed(seed, "random weights"))
    network = make_network()
    look = CubePreparation(Augmentation(), recipe.input_px)
    step = images_at_once(images.pixels, 64)  # never all cubes in memory
    random = np.concatenate(
        [
            floors.random_weight_features(
                network, as_seen(look, images.pixels[start : start + step])
            )
            for start in range(0, len(images), step)
        ]
    )
    return [
        floors.majority_class(images, split),
        floors.features_floor(
            floors.grey_level_features(images.pixels), images, split, "grey-level baseline"
        ),
        floors.features_floor(random, images, split, "random weights"),
    ]


def section_predictions(training: Training, images: ImageSet, split: Split) -> list[Predictions]:
    """Test predictions of a 2D network that was trained on single sections: "best single section"
    judges each cube by the one that does best on the validation part of its fold; "sections one by
    one" averages over all of them.

    Neither knows which section lies beside which. ``training`` is that of the 3D network.
    """
    (recipe,) = training.recipes
    shape, _ = shape_seen(images, recipe.input_px)
    depth = shape[0]

    def network() -> nn.Module:
        return SynapseCNN(shape[-1], len(images.classes), pool="average")

    flat = training.but(
        make_network=network,
        recipes=[recipe.but(name="sections", test_time_augmentation=depth, **_FLAT)],
        make_transform=single_sections,
        model="sections one by one",
    )
    averaged = flat.cross_validate(images, split)
    each = [
        flat.but(model="best single section").predict_again(
            images,
            split,
            SingleSections(Augmentation(), recipe.input_px, only=at),
            test_time_augmentation=1,
            parts=("validation", "test"),
        )
        for at in range(depth)
    ]
    best = []
    for repeat, fold in split.folds():
        scores = [
            _balanced(one.where(repeat=repeat, fold=fold, split="validation")) for one in each
        ]
        best.append(each[int(np.argmax(scores))].where(repeat=repeat, fold=fold, split="test"))
    return [Predictions.concatenate(best), averaged.predictions.where(split="test")]


def _balanced(predictions: Predictions) -> float:
    right = predictions.predicted_index == predictions.true_index
    return float(
        np.mean(
            [
                right[predictions.true_index == kind].mean()
                for kind in np.unique(predictions.true_index)
            ]
        )
    )


def flat_predictions(training: Training, images: ImageSet, split: Split) -> Predictions:
    """Test predictions of the 2.5D network, whose channels are the sections."""
    (recipe,) = training.recipes
    shape, _ = shape_seen(images, recipe.input_px)
    flat = training.but(
        make_network=lambda: make_network_25d(len(images.classes), shape),
        recipes=[recipe.but(name="flat", **_FLAT)],
        model="2.5D",
    )
    return flat.cross_validate(images, split).predictions.where(split="test")


def shuffled_predictions(training: Training, images: ImageSet, split: Split) -> Predictions:
    """Test predictions of the same network, trained and tested on cubes whose sections are in
    random order: what it still scores needs no 3D structure."""
    (recipe,) = training.recipes
    blind = training.but(
        recipes=[recipe.but(name="shuffled")], make_transform=shuffled, model="sections shuffled"
    )
    return blind.cross_validate(images, split).predictions.where(split="test")


# What each option is worth


def with_threshold(result: CrossValidated, tau: bool) -> tuple[Predictions, pd.DataFrame]:
    """The test predictions, and the table of thresholds: with ``tau`` the class is decided at the
    probability that does best on the validation part of the same fold, else at one half. Of more
    than two classes the likeliest is taken."""
    if len(result.predictions.classes) != 2:
        return result.predictions.where(split="test"), pd.DataFrame()
    return threshold_folds(result.predictions, "validation" if tau else "half")


def ablations(recipe: Recipe, how: str) -> dict[str, Recipe]:
    """Name of the option that is off, and the recipe without it; options that the recipe does not
    use are left out.

    ``how`` is "none", "small" (only what needs no training) or "full". Raises ParameterError.
    """
    if how not in ABLATIONS:
        raise ParameterError(
            "parameter ablation", f"{how!r} is unknown.", f"Give one of {', '.join(ABLATIONS)}."
        )
    without = {
        "augmentation": recipe.but(augmentation=Augmentation()),
        "mixing": recipe.but(mix="none"),
        "averaged weights": recipe.but(ema_decay=0.0),
        "loss": recipe.but(loss="cross_entropy"),
        "test-time augmentation": recipe.but(test_time_augmentation=1),
    }
    wanted = {"none": (), "small": SMALL, "full": tuple(without)}[how]
    return {
        name: one.but(name=f"without {name}")
        for name, one in without.items()
        if name in wanted and one != recipe
    }


def ablation_table(
    training: Training,
    images: ImageSet,
    split: Split,
    result: CrossValidated,
    how: str,
    *,
    tau: bool,
) -> pd.DataFrame:
    """One row for the recipe and one for each option turned off: balanced accuracy and AUC on the
    test part, with 95 % intervals (by group), ``n`` cubes, and the ``difference`` in balanced
    accuracy to the whole recipe.

    ``result`` is what ``training.cross_validate`` gave; ``how`` as in :func:`ablations`.
    """
    (recipe,) = training.recipes
    found = {"whole recipe": with_threshold(result, tau)[0]}
    for name, without in ablations(recipe, how).items():
        if name == "test-time augmentation":
            again = training.but(model=name).predict_again(
                images,
                split,
                training.make_transform(recipe),
                test_time_augmentation=1,
                parts=("validation", "test"),
            )
            found[f"without {name}"] = with_threshold(replace(result, predictions=again), tau)[0]
            continue
        other = training.but(recipes=[without], model=without.name).cross_validate(images, split)
        found[without.name] = with_threshold(other, tau)[0]
    if tau and how != "none" and len(result.predictions.classes) == 2:
        found["without threshold"] = with_threshold(result, False)[0]
    rows = []
    for name, predictions in found.items():
        scores = evaluate(synapses2d.by_unit(predictions, images), seed=training.seed)
        balanced = scores["balanced_accuracy"]
        auc = scores["auc"]
        whole = rows[0]["balanced accuracy"] if rows else balanced.value
        rows.append(
            {
                "recipe": name,
                **balanced.columns("balanced accuracy", "from", "to"),
                "difference": balanced.value - whole,
                "AUC": auc.value,
                "n": scores["n_images"],
            }
        )
    return pd.DataFrame(rows)


# How much depends on the random start

_STARTS = {"AUC": "auc", "balanced accuracy": "balanced_accuracy"}
_TOGETHER = "all together"


def starts_table(
    training: Training,
    images: ImageSet,
    split: Split,
    result: CrossValidated,
    repeats: int,
    *,
    tau: bool,
) -> pd.DataFrame:
    """Test scores of ``repeats`` trainings on the same folds, from the random seeds
    ``training.seed``, the next one and so on.

    One row per ``network``, and of several a last one for the mean of their probabilities: balanced
    accuracy and AUC with 95 % intervals (by group) and ``n`` cubes. ``result`` is what
    ``training.cross_validate`` gave, so that one repeat costs nothing.
    """
    found = {f"seed {training.seed}": result}
    for seed in range(training.seed + 1, training.seed + repeats):
        other = training.but(seed=seed, model="again")
        found[f"seed {seed}"] = other.cross_validate(images, split)
    if repeats > 1:
        together = Predictions.mean([one.predictions for one in found.values()], _TOGETHER)
        found[_TOGETHER] = replace(result, predictions=together)
    rows = []
    for name, one in found.items():
        tested = synapses2d.by_unit(with_threshold(one, tau)[0], images)
        scores = evaluate(tested, seed=training.seed)
        row = {"network": name}
        for score, key in _STARTS.items():
            row |= scores[key].columns(score, f"{score} low", f"{score} high")
        rows.append(row | {"n": scores["n_images"]})
    return pd.DataFrame(rows)


def readable_starts(starts: pd.DataFrame) -> pd.DataFrame:
    """A table of :func:`starts_table` for a report: each score with its interval."""
    scores = {
        name: [
            Estimate(row[name], row[f"{name} low"], row[f"{name} high"]).text()
            for _, row in starts.iterrows()
        ]
        for name in _STARTS
    }
    return starts[["network"]].assign(**scores, cubes=starts["n"])


def starts_sentence(starts: pd.DataFrame) -> str:
    """What a table of :func:`starts_table` says, in words."""
    if len(starts) == 1:
        return (
            "The network was trained from one random start only, so how much its score owes to "
            "luck is not known: "
            "repeats = 3 shows it."
        )
    each = starts[starts["network"] != _TOGETHER]
    together = starts[starts["network"] == _TOGETHER].iloc[0]
    spread = "; ".join(
        f"{name} {each[name].mean():.3f} on average ({each[name].min():.3f} to "
        f"{each[name].max():.3f}, standard deviation "
        f"{each[name].std(ddof=1):.3f}), and {together[name]:.3f} if the mean of their "
        f"probabilities decides"
        for name in _STARTS
    )
    return (
        f"From {len(each)} random starts, on the same folds: {spread}. The headline is that of "
        f"the first."
    )
