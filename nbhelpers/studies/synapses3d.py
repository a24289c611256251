"""Synapses in 3D (system B): the recipes, their floors, controls without 3D structure, and what
each option is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from nbhelpers.core.errors import check_choice
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split
from nbhelpers.evaluation import connectivity, floors
from nbhelpers.evaluation.decisions import threshold_folds
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.random_weights import random_weights_floor
from nbhelpers.figures import volumes
from nbhelpers.imagesets.cubes import chosen
from nbhelpers.imagesets.sections import voxel_text
from nbhelpers.inference.new_images import evaluation_table, flags
from nbhelpers.inference.reference import reference_tensors
from nbhelpers.models.synapse_cnn import SynapseCNN
from nbhelpers.models.video3d import BACKBONES_3D, SectionsAsChannels, make_cube_network
from nbhelpers.studies import synapses2d
from nbhelpers.training.augment3d import CubePreparation
from nbhelpers.training.checkpoints import save_checkpoint
from nbhelpers.training.crossvalidation import CrossValidated, Training
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import Trained

# Symmetries and grey cost nothing and are learnt through in a few epochs; the rest, which bends and
# slips sections and loses some, interpolates: it takes time and many epochs, and pays where cubes
# are few.
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
# the new head learns faster than what is known already
OURS_FINE_TUNED = OURS.but(learning_rate=1e-3, backbone_rate=0.3)
ABLATIONS = ("none", "small", "full")
_FLAT = {"channels_last": False}  # cubes go into these networks, but their filters are 2D
_VIEWS = "test-time augmentation"  # the one part of a recipe that needs no training to be left out
_SCORES = {"AUC": "auc", "balanced accuracy": "balanced_accuracy"}
_TOGETHER = "all together"


def recipe(
    backbone: str, *, augment: str = "light", pretrained: bool = False, input_px: int = 0, **changes
) -> Recipe:
    """Our recipe for a backbone, one of BACKBONES_3D, with changes. Raises ParameterError for
    unknown names and fields.

    ``augment`` is "light" (symmetries and grey) or "full" (sections are also turned, bent, slipped
    and lost). ``input_px`` is the height and width that the network sees; 0: the sections as they
    are.
    """
    check_choice("parameter backbone", backbone, BACKBONES_3D)
    check_choice("parameter augment", augment, AUGMENTATIONS)
    if pretrained:
        found = OURS_FINE_TUNED
    else:
        found = OURS if backbone == "unet3d" else OURS.but(learning_rate=1e-3)
    changes = {"augmentation": AUGMENTATIONS[augment], "input_px": input_px, **changes}
    return found.but(**changes)


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
    voxel_nm = images.pixel_size_nm
    if not input_px:
        return (depth, height, width), voxel_nm
    if voxel_nm:
        scale = width / input_px
        voxel_nm = (voxel_nm[0], voxel_nm[1] * scale, voxel_nm[2] * scale)
    return (depth, input_px, input_px), voxel_nm


def make_network(backbone: str, images: ImageSet, *, input_px: int = 0, **settings) -> nn.Module:
    """The network for these cubes, with strides that go with their voxels; ``settings`` as of
    :func:`nbhelpers.models.video3d.make_cube_network`.
    """
    shape, voxel_nm = shape_seen(images, input_px)
    classes = len(images.classes)
    return make_cube_network(backbone, classes, shape=shape, voxel_nm=voxel_nm, **settings)


def network_sentence(network: nn.Module, images: ImageSet, input_px: int) -> str:
    """How large a network is, and what it sees of these cubes."""
    shape, voxel_nm = shape_seen(images, input_px)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    voxels = " x ".join(map(str, shape))
    size = voxel_text(voxel_nm)
    return f"{parameters:,} parameters; it sees {voxels} voxels of {size} (z, y, x)"


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


def unit(images: ImageSet, data: str = "") -> str:
    """What one group of cubes is, for intervals and captions; "cube" where no group is named, and
    "group" of ``data`` "folder", of which only the user knows more.
    """
    if "object" in images.table:
        return "object"  # of real tissue: a synapse, or a place without one
    if set(images.groups) <= set(images.ids):
        return "cube"
    return "group" if data == "folder" else "neuron"


# Figures


def scroll_through_classes(images: ImageSet) -> dict[str, object]:
    """A scroll through the first cube of each class, as ``run.show_animation`` takes it."""
    rows = [int((images.labels == kind).argmax()) for kind in range(len(images.classes))]
    return {
        "frames": _side_by_side(images, rows),
        "name": "scroll",
        "caption": f"A scroll through one cube of each class ({', '.join(images.classes)}, from "
        "left to right). The bar shows the depth.",
        "alt": "A moving picture: the sections of one cube of each class, one after the other.",
    }


def scroll_through_mistakes(images: ImageSet, tested: Predictions, seed: int) -> dict[str, object]:
    """A scroll through the two surest mistakes and two right predictions, likewise."""
    shown = volumes.chosen_predictions(tested, wrong=2, right=2, seed=seed)
    words = "; ".join(f"{row.label} → {row.predicted} {row.sure:.2f}" for row in shown.itertuples())
    return {
        "frames": _side_by_side(images, images.positions(shown["id"])),
        "name": "scroll_mistakes",
        "caption": "True class → predicted class and its probability, from left to right: "
        f"{words}.",
        "alt": "A moving picture through wrongly and rightly predicted cubes side by side.",
    }


def _side_by_side(images: ImageSet, rows: Sequence[int]) -> np.ndarray:
    return volumes.frames_side_by_side([images.pixels[row][0] for row in rows])


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
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(len(pixels), pixels.shape[2], generator=draw).argsort(1)
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


# Floors and rivals; ``training`` is that of the 3D network, with one recipe


def floor_predictions(
    training: Training, images: ImageSet, split: Split, make_random: Callable[[], nn.Module]
) -> list[Predictions]:
    """Test predictions of what has learnt no image: the commonest class; the photometric floors;
    and the features of ``make_random()``, which has random weights, under a logistic regression.
    """
    look = CubePreparation(Augmentation(), training.recipes[0].input_px)
    return [
        floors.majority_class(images, split),
        *floors.photometric_floors(images, split),
        random_weights_floor(make_random, look, images, split, seed=training.seed),
    ]


def section_predictions(training: Training, images: ImageSet, split: Split) -> list[Predictions]:
    """Test predictions of a 2D network that was trained on single sections: "best single section"
    judges each cube by the one that does best on the validation part of its fold; "sections one by
    one" averages over all of them.

    Neither knows which section lies beside which.
    """
    (recipe,) = training.recipes
    shape, _ = shape_seen(images, recipe.input_px)
    depth = shape[0]
    by_section = training.but(
        make_network=lambda: SynapseCNN(shape[-1], len(images.classes), pool="average"),
        recipes=[recipe.but(name="sections", test_time_augmentation=depth, **_FLAT)],
        make_transform=single_sections,
        model="sections one by one",
    )
    averaged = by_section.cross_validate(images, split)
    each = []
    for at in range(depth):
        look = SingleSections(Augmentation(), recipe.input_px, only=at)
        one = by_section.but(model="best single section").predict_again(
            images, split, look, test_time_augmentation=1, parts=("validation", "test")
        )
        each.append(one)
    best = []
    for repeat, fold in split.folds():
        scores = []
        for one in each:
            seen = one.where(repeat=repeat, fold=fold, split="validation")
            scores.append(balanced_accuracy_score(seen.true_index, seen.predicted_index))
        best.append(each[int(np.argmax(scores))].where(repeat=repeat, fold=fold, split="test"))
    return [Predictions.concatenate(best), averaged.predictions.where(split="test")]


def flat_predictions(training: Training, images: ImageSet, split: Split) -> Predictions:
    """Test predictions of the 2.5D network, whose channels are the sections."""
    (recipe,) = training.recipes
    shape, _ = shape_seen(images, recipe.input_px)
    flat = training.but(
        make_network=lambda: SectionsAsChannels(len(images.classes), shape=shape),
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


def connectivity_predictions(
    images: ImageSet, split: Split, folder: str | Path, seed: int
) -> list[Predictions]:
    """Test predictions from connectivity alone, by neuron and, with its leak, by synapse; nothing
    where ``folder`` has none. The features of synthetic cubes are synthetic, too.
    """
    if images.synthetic:
        features = connectivity.synthetic_connectivity(images, seed)
    elif connectivity.has_connectivity(folder):
        features = connectivity.read_connectivity(images, folder)
    else:
        return []
    return connectivity.connectivity_predictions(images, split, features, seed=seed)


def save_network(
    folder: Path, training: Training, result: CrossValidated, images: ImageSet, split: Split
) -> None:
    """Write the network that was tested last, with what it was trained on and what those cubes look
    like, to ``network.safetensors``.
    """
    about = {
        "recipe": training.recipes[0].as_dict(),
        "data": images.source,
        "synthetic": images.synthetic,
        "split_hash": split.hash,
        "seed": training.seed,
    }
    look = training.make_transform(result.last.recipe)
    parts = ("train", "validation") if training.retrain else ("train",)
    known = split.ids(*split.folds()[-1], *parts)
    save_checkpoint(
        folder / "network.safetensors",
        result.last.network,
        classes=images.classes,
        about=about,
        beside=reference_tensors(result.last.network, images, known, look),
    )


def predict_new(
    checkpoint: str | Path,
    training: Training,
    trained: Trained,
    new: ImageSet | None,
    thresholds: pd.DataFrame,
    *,
    confidence: float,
) -> pd.DataFrame | None:
    """The table of ``evaluation.csv`` for cubes without labels, by the network that
    :func:`save_network` wrote to ``checkpoint``; see ``evaluation_table`` for its columns. None
    where there are no ``new`` cubes.

    ``thresholds`` is what :func:`with_threshold` gave: the last class is predicted from the
    probability of the last fold on, which stands in one more column, ``threshold``.
    """
    if new is None:
        return None
    probabilities = training.predicted(trained, new, np.arange(len(new)))
    look = training.make_transform(trained.recipe)
    unlike, rate = flags(checkpoint, trained.network, new, look)
    table = evaluation_table(
        new.ids,
        probabilities,
        new.classes,
        unlike,
        rate=rate,
        confidence=confidence,
        failures=new.failures,
    )
    if len(thresholds) and len(new):
        threshold = thresholds["threshold"].iloc[-1]
        found = (probabilities[:, -1] >= threshold).astype(int)
        given = np.take_along_axis(probabilities, found[:, None], 1)[:, 0]
        rows = slice(len(new) - 1)
        table.loc[rows, "predicted"] = np.take(new.classes, found)
        table.loc[rows, "low_confidence"] |= given < confidence
        table.loc[rows, "threshold"] = threshold
    return table


# What each option is worth


def with_threshold(predictions: Predictions, tau: bool) -> tuple[Predictions, pd.DataFrame]:
    """The test predictions, and the table of thresholds: with ``tau`` the class is decided at the
    probability that does best on the validation part of the same fold, else at one half. Of more
    than two classes the likeliest is taken."""
    if len(predictions.classes) != 2:
        return predictions.where(split="test"), pd.DataFrame()
    return threshold_folds(predictions, "validation" if tau else "half")


def ablations(recipe: Recipe, how: str) -> dict[str, Recipe]:
    """Name of the option that is off, and the recipe without it; options that the recipe does not
    use are left out.

    ``how`` is "none", "small" (only what needs no training) or "full". Raises ParameterError.
    """
    check_choice("parameter ablation", how, ABLATIONS)
    without = {
        "augmentation": recipe.but(augmentation=Augmentation()),
        "mixing": recipe.but(mix="none"),
        "averaged weights": recipe.but(ema_decay=0.0),
        "loss": recipe.but(loss="cross_entropy"),
        _VIEWS: recipe.but(test_time_augmentation=1),
    }
    wanted = {"none": (), "small": (_VIEWS,), "full": tuple(without)}[how]
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
    """One row for the recipe and one for each option turned off, as ``network``: balanced accuracy
    and AUC on the test part, with 95 % intervals (by group), ``n`` cubes, and the ``difference`` in
    balanced accuracy to the whole recipe.

    ``result`` is what ``training.cross_validate`` gave; ``how`` as in :func:`ablations`.
    """
    (recipe,) = training.recipes
    whole = result.predictions
    found = {"whole recipe": with_threshold(whole, tau)[0]}
    for name, without in ablations(recipe, how).items():
        if name == _VIEWS:
            look = training.make_transform(recipe)
            parts = ("validation", "test")
            other = training.predict_again(
                images, split, look, test_time_augmentation=1, parts=parts
            )
        else:
            other_training = training.but(recipes=[without], model=without.name)
            other = other_training.cross_validate(images, split).predictions
        found[without.name] = with_threshold(other, tau)[0]
    if tau and how != "none" and len(whole.classes) == 2:
        found["without threshold"] = with_threshold(whole, False)[0]
    table = _score_table(found, images)
    score = table["balanced accuracy"]
    return table.assign(difference=score - score[0])


# How much depends on the random seed


def seeds_table(
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
    found = {f"seed {training.seed}": result.predictions}
    for seed in range(training.seed + 1, training.seed + repeats):
        other = training.but(seed=seed, model="again")
        found[f"seed {seed}"] = other.cross_validate(images, split).predictions
    if repeats > 1:
        found[_TOGETHER] = Predictions.mean(list(found.values()), _TOGETHER)
    decided = {name: with_threshold(one, tau)[0] for name, one in found.items()}
    return _score_table(decided, images)


def _score_table(found: Mapping[str, Predictions], images: ImageSet) -> pd.DataFrame:
    rows = []
    for name, predictions in found.items():
        scores = evaluate(synapses2d.by_unit(predictions, images))
        row = {"network": name}
        for score, key in _SCORES.items():
            row |= scores[key].columns(score, f"{score} low", f"{score} high")
        rows.append(row | {"n": scores["n_images"]})
    return pd.DataFrame(rows)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of :func:`ablation_table` or :func:`seeds_table` for a report: each score with its
    interval.
    """
    shown = table.copy()
    for score in _SCORES:
        ends = [f"{score} low", f"{score} high"]
        shown[score] = [Estimate(*row).text() for row in table[[score, *ends]].to_numpy()]
        shown = shown.drop(columns=ends)
    return shown.rename(columns={"n": "cubes"})


def seeds_sentence(seeds: pd.DataFrame) -> str:
    """What a table of :func:`seeds_table` says, in words."""
    if len(seeds) == 1:
        return (
            "The network was trained from one random seed only, so how much its score owes to "
            "luck is not known: repeats = 3 shows it."
        )
    each = seeds[seeds["network"] != _TOGETHER]
    together = seeds[seeds["network"] == _TOGETHER].iloc[0]
    spread = "; ".join(
        f"{name} {each[name].mean():.3f} on average ({each[name].min():.3f} to "
        f"{each[name].max():.3f}, standard deviation {each[name].std(ddof=1):.3f}), and "
        f"{together[name]:.3f} if the mean of their probabilities decides"
        for name in _SCORES
    )
    return (
        f"From {len(each)} random seeds, on the same folds: {spread}. The headline is that of "
        "the first."
    )
