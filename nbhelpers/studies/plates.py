"""Four-stain plates (system C): recipes, training in stages, floors, and predictions
of every well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core.errors import ParameterError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split
from nbhelpers.evaluation import floors
from nbhelpers.evaluation.plates import group_by_well
from nbhelpers.imagesets.plates import (
    leave_one_plate_out,
    load_plates,
    normalise_to_controls,
    split_by_plate,
)
from nbhelpers.models.four_stain import continued, make_stain_network
from nbhelpers.training.augment import DihedralPreparation, Transform, as_seen, random_tones
from nbhelpers.training.crossvalidation import CrossValidated, Training
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import Trained

FIRST_STAGE = "first stage"
LATER_RATE = 0.1  # of the first stage's learning rate, when all layers are trained on; as published

# As published: head and layer4 for 5 epochs at 1e-3, then all layers for 10 epochs at 1e-4, batches
# of 2, no augmentation,
# the epoch with the lowest validation loss.
PUBLISHED = Recipe(
    name="published",
    epochs=10,
    batch_size=2,
    optimizer="sgd",
    learning_rate=1e-3,
    schedule="constant",
    keep="best",
    select_by="loss",
)
# flips and quarter turns, as a field of a well has no upright; tones per stain, as each is stained
# and lit for itself
OURS = Recipe(
    name="ours",
    epochs=12,
    batch_size=16,
    learning_rate=2e-3,
    weight_decay=0.02,
    warmup_fraction=0.1,
    label_smoothing=0.02,
    clip_gradient=1.0,
    keep="best",
    select_by="loss",
    augmentation=Augmentation(
        flip_horizontal=True, flip_vertical=True, quarter_turns=True, brightness=0.15, gamma=0.1
    ),
)
RECIPES = {"published": PUBLISHED, "ours": OURS}


def recipe(protocol: str = "ours", **changes) -> Recipe:
    """The recipe "published" or "ours", with changes. Raises ParameterError for unknown names and
    fields.
    """
    if protocol not in RECIPES:
        raise ParameterError(
            "parameter protocol", f"{protocol!r} is unknown.", f"Give one of {', '.join(RECIPES)}."
        )
    return RECIPES[protocol].but(**changes)


class StainPreparation(DihedralPreparation):
    """Moves all stains of a field together, and changes the tones of each stain for itself.

    So what lies on what stays true, and a network cannot rely on how bright one stain is beside
    another.
    """

    def __init__(self, augmentation: Augmentation, input_px: int = 0):
        still = {name: 0.0 for name in ("blur_px", "brightness", "contrast", "gamma", "noise")}
        super().__init__(Augmentation(**(vars(augmentation) | still)), input_px)
        self.tones = augmentation

    def train(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        images = super().train(pixels, seed)
        if not self.tones.changes_tones:
            return images
        generator = torch.Generator().manual_seed(derive_seed(seed, "tones"))
        return random_tones(images.flatten(0, 1)[:, None], self.tones, generator).view_as(images)


def transform(recipe: Recipe) -> StainPreparation:
    """What turns stored fields into the network's input."""
    return StainPreparation(recipe.augmentation, recipe.input_px)


# splits and training


def make_split(data: str, images: ImageSet, *, test_plates: int, seed: int) -> Split:
    """Whole plates: of "bbbc021" each is left out in turn; else one hold-out, of "phantom" with the
    last plates for test, which hold every compound where there are as many of them, so that every
    kind of compound is judged unseen.

    Errors are those of :func:`nbhelpers.imagesets.plates.split_by_plate`.
    """
    if data == "bbbc021":
        return leave_one_plate_out(images, seed=seed)
    names = sorted(images.table["plate"].unique())
    return split_by_plate(
        images, test=names[-test_plates:] if data == "phantom" else test_plates, seed=seed
    )


@dataclass(frozen=True)
class TrainedStains:
    """``result`` of the network asked for; ``one_stain`` of "s4": of the networks that its encoders
    come from.
    """

    result: CrossValidated
    one_stain: dict[str, CrossValidated]


def train_network(
    fusion: str,
    images: ImageSet,
    split: Split,
    recipe: Recipe,
    *,
    encoder: str = "resnet34",
    weights: str | Path = "none",
    data_folder: str | Path = "data",
    stain: int = 0,
    seed: int,
    work_folder: str | Path,
    one_stain_first: bool = True,
    report: Callable[[str], None] | None = print,
) -> TrainedStains:
    """Train a StainNetwork on every fold of a split and predict its validation and test fields.

    "s4" first trains one network per stain and starts from their encoders, unless
    ``one_stain_first`` is off. Whatever starts from trained encoders is trained in two stages: last
    stage and head, for half the epochs, then everything at a tenth of the rate, as published; a
    random start has one stage. Where the validation plate lacks a class it cannot choose, and the
    last epoch is kept. Each stage is kept in ``work_folder`` and goes on where it was killed.
    """

    def one_fold(fold: Split) -> tuple[CrossValidated, dict[str, CrossValidated]]:
        validation = images.labels[images.positions(fold.ids(*fold.folds()[0], "validation"))]
        here = recipe if len(set(validation)) == len(images.classes) else recipe.but(keep="last")

        def trained(kind: str, number: int, sources: Sequence[nn.Module] = ()) -> CrossValidated:
            def make(part: str) -> nn.Module:
                return make_stain_network(
                    kind,
                    len(images.channels),
                    len(images.classes),
                    encoder=encoder,
                    weights=weights,
                    data_folder=data_folder,
                    encoders_from=sources,
                    stain=number,
                    trained=part,
                )

            training = Training(
                lambda: make("everything"),
                [here],
                transform,
                seed=seed,
                work_folder=Path(work_folder) / kind / str(number),
                model=model_name(kind, encoder, images.channels[number]),
                report=report,
            )
            if not sources and str(weights) == "none":
                return training.cross_validate(images, fold)
            return _in_stages(training, lambda: make("last stage"), images, fold)

        if fusion != "s4" or not one_stain_first:
            return trained(fusion, stain), {}
        ones = {name: trained("one-stain", number) for number, name in enumerate(images.channels)}
        return trained("s4", 0, [one.last.network.cpu() for one in ones.values()]), ones

    folds = [one_fold(_only(split, *fold)) for fold in split.folds()]
    return TrainedStains(
        _joined([result for result, _ in folds]),
        {name: _joined([ones[name] for _, ones in folds]) for name in folds[0][1]},
    )


def colocalisation_experiment(
    *,
    encoder: str = "small",
    plates: int = 8,
    fields: int = 4,
    size_px: int = 64,
    epochs: int = 10,
    seed: int = 0,
    data_folder: str | Path,
    work_folder: str | Path,
    report: Callable[[str], None] | None = print,
) -> list[Predictions]:
    """S4, early fusion and the floor of the stains' brightness on phantoms where damage only tears
    pairs of puncta apart.

    Both networks start from random weights and see the same fields as often. Test parts, grouped by
    well. S4 combines the stains after it averaged each over the field, and should stay at chance.
    """
    images = load_plates(
        "phantom",
        data_folder=data_folder,
        layout="randomised",
        size_px=size_px,
        seed=derive_seed(seed, "colocalisation"),
        phantom={"plates": plates, "fields": fields, "effect": "colocalisation"},
    )
    images = normalise_to_controls(images, cache_folder=Path(data_folder) / "packed")
    images = images.take(np.flatnonzero(images.labels >= 0))
    split = make_split("phantom", images, test_plates=3, seed=seed)
    found = [
        train_network(
            fusion,
            images,
            split,
            recipe("ours", epochs=epochs),
            encoder=encoder,
            seed=seed,
            work_folder=Path(work_folder) / fusion,
            one_stain_first=False,
            report=report,
        ).result.predictions
        for fusion in ("s4", "early")
    ]
    found.append(
        floors.features_floor(
            floors.stain_features(images.pixels, images.channels), images, split, "stain intensity"
        )
    )
    return [group_by_well(one.where(split="test"), images) for one in found]


def colocalisation_sentence(predictions: Sequence[Predictions], seed: int = 0) -> str:
    """What the predictions of :func:`colocalisation_experiment` say in words: each score, and early
    fusion less S4.
    """
    from nbhelpers.evaluation.metrics import evaluate
    from nbhelpers.evaluation.paired import compare

    s4, early = predictions[:2]
    said = []
    for one in predictions:
        score = evaluate(one, seed=seed)["balanced_accuracy"]
        said.append(f"{one.table['model'].iloc[0]} {score.text(2)}")
    found = compare(early, s4, seed=seed)["balanced_accuracy"]
    beyond = "beyond" if found.above_zero else "not beyond"
    return (
        f"Balanced accuracy where damage only tears pairs apart: {'; '.join(said)}. Early fusion "
        f"less S4: {found.text(2, '+')}, {beyond} chance."
    )


def model_name(fusion: str, encoder: str, stain: str = "") -> str:
    """How a network is called in tables and figures, e.g. "S4-ResNet34", "PSD-95 alone"."""
    network = {"small": "small ResNet"}.get(encoder, encoder.replace("resnet", "ResNet"))
    return {
        "s4": f"S4-{network}",
        "early": f"early fusion, {network}",
        "one-stain": f"{stain} alone",
        "sum": f"sum of the stains, {network}",
        "weighted": f"weighted stains, {network}",
    }[fusion]


def _in_stages(
    training: Training, make_last_stage: Callable[[], nn.Module], images: ImageSet, fold: Split
) -> CrossValidated:
    """First last stage and head, for half of the epochs, then everything at a tenth of the rate."""
    (recipe,) = training.recipes
    first = recipe.but(name=FIRST_STAGE, epochs=max(1, recipe.epochs // 2))
    stage = training.but(make_network=make_last_stage, recipes=[first], report=None)
    started = stage.cross_validate(images, fold)
    later = recipe.but(learning_rate=recipe.learning_rate * LATER_RATE)
    stage = training.but(
        make_network=lambda: continued(started.last.network.cpu()), recipes=[later]
    )
    result = stage.cross_validate(images, fold)
    return CrossValidated(
        result.predictions,
        pd.concat([started.histories, result.histories], ignore_index=True),
        pd.concat([started.choices.assign(chosen=False), result.choices], ignore_index=True),
        result.last,
    )


def _only(split: Split, repeat: int, fold: int) -> Split:
    chosen = (split.table["repeat"] == repeat) & (split.table["fold"] == fold)
    return Split(
        split.table[chosen].reset_index(drop=True), split.protocol, split.seed, split.known_leak
    )


def _joined(parts: Sequence[CrossValidated]) -> CrossValidated:
    return CrossValidated(
        Predictions.concatenate([part.predictions for part in parts]),
        pd.concat([part.histories for part in parts], ignore_index=True),
        pd.concat([part.choices for part in parts], ignore_index=True),
        parts[-1].last,
    )


# floors


def floor_predictions(
    images: ImageSet,
    split: Split,
    fusion: str,
    *,
    encoder: str,
    seed: int,
    stain: int = 0,
    input_px: int = 0,
) -> list[Predictions]:
    """Floors on the same test fields: the commonest class; how bright each stain is; the features
    of the same network with random weights; the last two under a logistic regression."""
    torch.manual_seed(derive_seed(seed, "random weights"))
    network = make_stain_network(
        fusion, len(images.channels), len(images.classes), encoder=encoder, stain=stain
    )
    labelled = images.take(np.flatnonzero(images.labels >= 0))
    seen = as_seen(Transform(Augmentation(), input_px), labelled.pixels)
    return [
        floors.majority_class(labelled, split),
        floors.features_floor(
            floors.stain_features(labelled.pixels, images.channels),
            labelled,
            split,
            "stain intensity",
        ),
        floors.features_floor(
            floors.random_weight_features(network, seen), labelled, split, "random weights"
        ),
    ]


# all wells


def field_log_odds(trained: Trained, images: ImageSet) -> np.ndarray:
    """(n,) float64 log-odds of the second class for all fields, labelled or not, batch by batch
    from the memory map. Raises ParameterError unless there are two classes.
    """
    if len(images.classes) != 2:
        raise ParameterError(
            "parameter images", f"there are {len(images.classes)} classes.", "Log-odds need two."
        )
    found = predict_probabilities(
        trained.network,
        images.pixels,
        transform(trained.recipe),
        test_time_augmentation=trained.recipe.test_time_augmentation,
        precision="fp32",
        channels_last=False,
        batch_size=64,
    )
    # both classes: 1 - p would lose the sure ones
    logarithms = np.log(np.maximum(found, np.finfo(np.float64).tiny))
    return logarithms[:, 1] - logarithms[:, 0]


def maps_of_fields(
    trained: Trained, images: ImageSet, rows: Sequence[int], target_class: int
) -> np.ndarray:
    """(fields, encoders, y, x) float32 GradCAM of each encoder for these fields, raw, at the size
    the network sees.
    """
    from nbhelpers.models.four_stain import encoder_parts
    from nbhelpers.saliency.maps import grad_cam_of_layers

    seen = transform(trained.recipe).evaluate(
        torch.from_numpy(np.array(images.pixels[np.asarray(rows)]))
    )
    layers = [part.layer for part in encoder_parts(trained.network)]
    return grad_cam_of_layers(trained.network, seen, layers, target_class)


def telling_fields(
    predictions: Predictions, images: ImageSet, target_class: int, count: int = 2
) -> tuple[np.ndarray, list[str]]:
    """Row numbers and titles of some predicted fields: of each class the ``count`` that the network
    is surest of, and the one that it got most wrong, if any.

    ``predictions`` has each field once.
    """
    table = predictions.table
    probability = predictions.probabilities[:, target_class]
    own = predictions.probabilities[np.arange(len(table)), predictions.true_index]
    chosen = [
        row
        for index in range(len(predictions.classes))
        for row in np.flatnonzero(predictions.true_index == index)[
            np.argsort(-own[predictions.true_index == index], kind="stable")[:count]
        ]
    ]
    if own.min() < 0.5 and own.argmin() not in chosen:
        chosen.append(int(own.argmin()))
    titles = [
        f"{table['label'].iloc[row]}\n{predictions.classes[target_class]} {probability[row]:.2f}"
        for row in chosen
    ]
    return images.positions(table["id"].iloc[chosen]), titles
