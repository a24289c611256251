"""The comparisons of notebook 07: what each change is worth, measured on the same
images and folds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split
from nbhelpers.evaluation.calibration import (
    apply_temperature,
    calibrate_folds,
    choose_threshold,
    fit_conformal,
    fit_temperature,
    threshold_folds,
)
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.paired import compare_with_reference
from nbhelpers.models.frozen import (
    TextureFeatures,
    View,
    frozen_features,
    make_features,
    make_views,
)
from nbhelpers.studies.glomeruli import (
    STRENGTHS,
    CrossPredicted,
    Fit,
    Predictor,
    cross_predict,
    fit_final,
    neural_head,
    texture_head,
)
from nbhelpers.training.stains import normalised

if TYPE_CHECKING:
    from nbhelpers.training.keras_face import Batches, KerasModel

REFERENCE = "linear head"
HOW = {
    "half": "one half",
    "validation": "chosen on validation slides",
    "unlabelled": "from unlabelled test images",
}


@dataclass(frozen=True)
class Variant:
    """Features of one way to look at the images."""

    network: TextureFeatures
    features: np.ndarray  # (n, width) float32


def feature_variants(
    images: ImageSet,
    *,
    backbone: str,
    weights: str | Path,
    data_folder: str | Path,
    views: int,
    stain: float,
    seed: int,
    cache_folder: str | Path,
    normalisation: str = "none",
    report: Callable[[str], None] | None = None,
) -> dict[str, Variant]:
    """Features of all images in seven ways: "one view", "published" (/255), "macenko", "reinhard",
    "restained" (views that differ in the stain alone), "views" (``views`` of them, normalised by
    ``normalisation``), and "random" (as "views", from weights that have learnt nothing).

    Computed once and kept in ``cache_folder``.
    """
    many = make_views(views, stain=stain, seed=seed)
    single = make_views(1)
    dyes = tuple(
        dict.fromkeys(View(dyes=view.dyes) for view in many)
    )  # the dyes of "views", and nothing else of them
    ways = {
        "one view": ("none", "imagenet", weights, single),
        "published": ("none", "published", weights, single),
        "macenko": ("macenko", "imagenet", weights, single),
        "reinhard": ("reinhard", "imagenet", weights, single),
        "restained": ("none", "imagenet", weights, dyes),
        "views": (normalisation, "imagenet", weights, many),
        "random": (normalisation, "imagenet", "none", many),
    }
    networks: dict[tuple, TextureFeatures] = {}
    sets = {}
    found = {}
    for name, (method, preprocessing, source, seen) in ways.items():
        if (preprocessing, source) not in networks:
            networks[preprocessing, source] = make_features(
                backbone,
                weights=source,
                data_folder=data_folder,
                preprocessing=preprocessing,
                seed=seed + (name == "random"),
            )
        if method not in sets:
            sets[method] = normalised(images, method)
        network = networks[preprocessing, source]
        found[name] = Variant(
            network, frozen_features(network, sets[method], seen, cache_folder=cache_folder)
        )
        if report:
            report(f"features: {name} ({len(seen)} per image)")
    return found


def our_head(
    variant: Variant, images: ImageSet, split: Split, *, model: str, seed: int
) -> CrossPredicted:
    """The texture head in every fold, its strength of regularisation chosen on validation slides.
    Introduced in notebook 07."""
    candidates = {
        f"C = {strength}": texture_head(variant.network, strength, len(images.classes))
        for strength in STRENGTHS
    }
    return cross_predict(candidates, variant.features, images, split, model=model, seed=seed)


PORT_SETTINGS = {"optimizer": "adam", "learning_rate": 1e-4}
DENSENET_SETTINGS = {
    "optimizer": "adamw",
    "learning_rate": 5e-5,
    "weight_decay": 0.004,
    "label_smoothing": 0.1,
}


def published_settings(backbone: str) -> dict:
    """What ``compile`` takes for the published network, or for its sibling densenet169.

    Of the sibling's AdamW and label smoothing only the rate is published: the decay is Keras's own,
    and .1 the usual smoothing.
    """
    return DENSENET_SETTINGS if backbone == "densenet169" else PORT_SETTINGS


def stain_changes(
    variants: dict[str, Variant], images: ImageSet, split: Split, *, seed: int
) -> list[Predictions]:
    """Test predictions of the linear head with each remedy for the stain by itself; the first has
    none.

    Macenko and Reinhard normalisation, and features averaged over views that differ in the stain
    alone (HED space). They show what they are worth with ``leave_one_centre_out``.
    """
    ways = {
        REFERENCE: "one view",
        "linear head, Macenko": "macenko",
        "linear head, Reinhard": "reinhard",
        "linear head, restained": "restained",
    }
    return [_linear(variants[way], images, split, name, seed=seed) for name, way in ways.items()]


def _linear(
    variant: Variant,
    images: ImageSet,
    split: Split,
    name: str,
    *,
    seed: int,
    parts: Sequence[str] = ("pooled",),
) -> Predictions:
    fit = texture_head(variant.network, STRENGTHS[0], len(images.classes), parts=parts)
    return _tested(variant, images, split, name, fit, seed)


def _tested(
    variant: Variant, images: ImageSet, split: Split, name: str, fit: Fit, seed: int
) -> Predictions:
    return cross_predict(
        {name: fit}, variant.features, images, split, model=name, seed=seed, validate=False
    ).predictions


def measured_changes(
    variants: dict[str, Variant], images: ImageSet, split: Split, *, seed: int, epochs: int = 25
) -> list[Predictions]:
    """Test predictions of one change at a time, on the same folds; the first is what they are
    compared with.

    Neural heads learn at 1e-3, as at the published 1e-4 they are far from done after ``epochs`` on
    few slides. The linear head on the pooled features of one view is the start. Then: /255 as
    published, the custom head, the same with squeeze-and-excite, the remedies of
    :func:`stain_changes`, more views (turned, restained, nearer, out of focus), texture instead of
    means, and the ensemble.
    """

    def linear(name: str, way: str, parts: Sequence[str] = ("pooled",)) -> Predictions:
        return _linear(variants[way], images, split, name, seed=seed, parts=parts)

    def custom(name: str, way: str, attention: bool = False) -> Predictions:
        fit = neural_head(
            variants[way].network,
            len(images.classes),
            seed=seed,
            attention=attention,
            epochs=epochs,
            learning_rate=1e-3,
        )
        return _tested(variants[way], images, split, name, fit, seed)

    plain, *stains = stain_changes(variants, images, split, seed=seed)
    found = [
        plain,
        linear("linear head, /255 as published", "published"),
        custom("custom head", "one view"),
        custom("custom head, squeeze-and-excite", "one view", attention=True),
        *stains,
        linear("linear head, more views", "views"),
        linear("texture head, more views", "views", ("middle", "late")),
    ]
    members = [found[-1], found[-2], custom("custom head, more views", "views", attention=True)]
    return [*found, members[-1], Predictions.mean(members, "ensemble of the last three")]


def changes_table(
    found: Sequence[Predictions], *, seed: int, resamples: int = 1000
) -> pd.DataFrame:
    """One row per change: AUC, balanced accuracy, log-loss, and the difference of the balanced
    accuracy to the first with its 95 % interval and p (Holm).
    """
    together = Predictions.concatenate(found)
    differences = compare_with_reference(
        together, REFERENCE, seed=seed, resamples=resamples
    ).set_index("model")
    rows = []
    for one in found:
        name = one.table["model"].iloc[0]
        scores = evaluate(one, seed=seed, resamples=200)
        row = {
            "change": name,
            **{
                key: scores[score].value
                for key, score in (
                    ("AUC", "auc"),
                    ("balanced accuracy", "balanced_accuracy"),
                    ("log-loss", "log_loss"),
                )
            },
        }
        if name in differences.index:
            line = differences.loc[name]
            row |= {
                "difference": line["balanced_accuracy difference"],
                "from": line["balanced_accuracy low"],
                "to": line["balanced_accuracy high"],
                "p": line["balanced_accuracy p (Holm)"],
            }
        rows.append(row)
    return pd.DataFrame(rows)


def fold_scores(
    found: CrossPredicted,
    names: Sequence[str],
    *,
    floor: CrossPredicted | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per fold: AUC, ECE before and after the temperature, and balanced accuracy by each
    kind of threshold.

    ``names`` are the folds' names (the centre left out); the last row, "all", is over all test
    images. Each score has its 95 % interval over slides beside it (" low", " high"). ``floor`` adds
    the AUC and the balanced accuracy (validation threshold) of random weights.
    """
    test = found.predictions.where(split="test")
    calibrated = calibrate_folds(found.predictions)[0]
    moved = {how: threshold_folds(found.predictions, how)[0] for how in HOW}
    floors = (
        (floor.predictions.where(split="test"), threshold_folds(floor.predictions, "validation")[0])
        if floor
        else None
    )

    def score(
        text: str, predictions: Predictions, fold: int | None, name: str
    ) -> dict[str, float | None]:
        part = predictions if fold is None else predictions.where(fold=fold)
        found = evaluate(part, seed=seed, resamples=1000)[name]
        return found.columns(text, f"{text} low", f"{text} high")

    rows = []
    for fold, name in [*enumerate(names), (None, "all")]:
        row = {
            "left out": name,
            "images": len(test if fold is None else test.where(fold=fold)),
            **score("AUC", test, fold, "auc"),
            **score("ECE as predicted", test, fold, "ece"),
            **score("ECE calibrated", calibrated, fold, "ece"),
        }
        for how, text in HOW.items():
            row |= score(f"balanced accuracy, {text}", moved[how], fold, "balanced_accuracy")
        if floors:
            row |= score("random weights AUC", floors[0], fold, "auc")
            row |= score("random weights balanced accuracy", floors[1], fold, "balanced_accuracy")
        rows.append(row)
    return pd.DataFrame(rows)


def readable_folds(scores: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`fold_scores` for readers: one column per fold, scores as text with their
    intervals.
    """

    def text(row: pd.Series, name: str) -> str:
        if f"{name} low" not in row:
            return str(row[name])
        return Estimate(row[name], row[f"{name} low"], row[f"{name} high"]).text()

    names = [
        name
        for name in scores.columns
        if not name.endswith((" low", " high")) and name != "left out"
    ]
    return pd.DataFrame(
        {"left out": names}
        | {row["left out"]: [text(row, name) for name in names] for _, row in scores.iterrows()}
    )


def port_predictions(
    model: KerasModel, batches: Mapping[str, Batches], images: ImageSet, name: str
) -> Predictions:
    """Test predictions of the published network."""
    rows = images.positions(batches["test"].ids)
    names = np.asarray(images.classes, dtype=object)
    return Predictions.build(
        ids=images.ids[rows],
        labels=names[images.labels[rows]],
        groups=images.groups[rows],
        probabilities=model.predict(batches["test"]),
        classes=images.classes,
        model=name,
    )


def final_predictor(
    variant: Variant,
    images: ImageSet,
    found: CrossPredicted,
    *,
    coverage: float,
    views: int,
    stain: float,
    seed: int,
    normalisation: str = "none",
) -> Predictor:
    """The model for new images: the head that won most often, fitted on all images; temperature,
    threshold and sets from the validation rows of all folds together.
    """
    won = found.choices[found.choices["chosen"]]["candidate"].value_counts().idxmax()
    strength = next(value for value in STRENGTHS if won == f"C = {value}")
    validation = found.predictions.where(split="validation")
    temperature = fit_temperature(validation)
    calibrated = apply_temperature(
        validation, temperature
    )  # one scale for threshold, sets and table
    network = fit_final(
        variant.network,
        variant.features,
        images,
        texture_head(variant.network, strength, len(images.classes)),
    )
    threshold = choose_threshold(calibrated) if len(images.classes) == 2 else None
    return Predictor(
        network,
        images.classes,
        make_views(views, stain=stain, seed=seed),
        temperature,
        threshold,
        fit_conformal(calibrated, coverage),
        normalisation,
        images.pixels.shape[-1],
        "",
    )
