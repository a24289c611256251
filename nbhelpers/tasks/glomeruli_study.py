"""The comparisons of notebook 07: what each change is worth, measured on the same images and folds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.evaluation.calibration import apply_temperature, calibrate_folds, fit_temperature
from nbhelpers.evaluation.conformal import fit_conformal
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.paired import compare_with_reference
from nbhelpers.evaluation.predictions import Predictions
from nbhelpers.imagesets.imageset import ImageSet
from nbhelpers.models.frozen import TextureFeatures, frozen_features, make_features, make_views
from nbhelpers.splits import Split
from nbhelpers.tasks.glomeruli import (
    STRENGTHS,
    CrossPredicted,
    Predictor,
    choose_threshold,
    cross_predict,
    ensemble,
    fit_final,
    neural_head,
    texture_head,
    threshold_folds,
)
from nbhelpers.training.stains import normalised

if TYPE_CHECKING:
    from nbhelpers.training.keras_face import Batches, KerasModel

REFERENCE = "linear head"
HOW = {"half": "one half", "validation": "chosen on validation slides", "unlabelled": "from unlabelled test images"}


@dataclass(frozen=True)
class Variant:
    """Features of one way to look at the images."""

    network: TextureFeatures
    features: np.ndarray  # (n, width) float32


def feature_variants(images: ImageSet, *, backbone: str, weights: str | Path, data_folder: str | Path, views: int,
                     stain: float, seed: int, cache_folder: str | Path, normalisation: str = "none",
                     report: Callable[[str], None] | None = None) -> dict[str, Variant]:
    """Features of all images in six ways: "one view", "published" (/255), "macenko", "reinhard", "views" (``views`` of
    them, normalised by ``normalisation``), and "random" (as "views", from weights that have learnt nothing).

    Computed once and kept in ``cache_folder``. Introduced in notebook 07.
    """
    many, single = make_views(views, stain=stain, seed=seed), make_views(1)
    ways = {"one view": ("none", "imagenet", weights, single), "published": ("none", "published", weights, single),
            "macenko": ("macenko", "imagenet", weights, single), "reinhard": ("reinhard", "imagenet", weights, single),
            "views": (normalisation, "imagenet", weights, many), "random": (normalisation, "imagenet", "none", many)}
    networks: dict[tuple, TextureFeatures] = {}
    sets, found = {}, {}
    for name, (method, preprocessing, source, seen) in ways.items():
        if (preprocessing, source) not in networks:
            networks[preprocessing, source] = make_features(backbone, weights=source, data_folder=data_folder,
                                                            preprocessing=preprocessing, seed=seed + (name == "random"))
        if method not in sets:
            sets[method] = normalised(images, method)
        network = networks[preprocessing, source]
        found[name] = Variant(network, frozen_features(network, sets[method], seen, cache_folder=cache_folder))
        if report:
            report(f"features: {name} ({len(seen)} per image)")
    return found


def our_head(variant: Variant, images: ImageSet, split: Split, *, model: str, seed: int) -> CrossPredicted:
    """The texture head in every fold, its strength of regularisation chosen on validation slides. Introduced in
    notebook 07."""
    candidates = {f"C = {strength}": texture_head(variant.network, strength, len(images.classes)) for strength in STRENGTHS}
    return cross_predict(candidates, variant.features, images, split, model=model, seed=seed)


def measured_changes(variants: dict[str, Variant], images: ImageSet, split: Split, *, seed: int,
                     epochs: int = 25) -> list[Predictions]:
    """Test predictions of one change at a time, on the same folds; the first is what they are compared with.

    Neural heads learn at 1e-3, as at the published 1e-4 they are far from done after ``epochs`` on few slides.
    The linear head on the pooled features of one view is the start. Then: /255 as published, the custom head, the same
    with squeeze-and-excite, Macenko and Reinhard normalisation, more views (turned, restained, nearer, out of focus),
    texture instead of means, and the ensemble. Introduced in notebook 07.
    """
    count = len(images.classes)

    def run(name: str, way: str, fit) -> Predictions:
        return cross_predict({name: fit}, variants[way].features, images, split, model=name, seed=seed,
                             validate=False).predictions

    def linear(way: str, parts: Sequence[str] = ("pooled",)):
        return texture_head(variants[way].network, STRENGTHS[0], count, parts=parts)

    def custom(way: str, attention: bool = False):
        return neural_head(variants[way].network, count, seed=seed, attention=attention, epochs=epochs, learning_rate=1e-3)

    found = [run(REFERENCE, "one view", linear("one view")),
             run("linear head, /255 as published", "published", linear("published")),
             run("custom head", "one view", custom("one view")),
             run("custom head, squeeze-and-excite", "one view", custom("one view", attention=True)),
             run("linear head, Macenko", "macenko", linear("macenko")),
             run("linear head, Reinhard", "reinhard", linear("reinhard")),
             run("linear head, more views", "views", linear("views")),
             run("texture head, more views", "views", linear("views", ("middle", "late")))]
    members = [found[-1], found[-2], run("custom head, more views", "views", custom("views", attention=True))]
    return [*found, members[-1], ensemble(members, "ensemble of the last three")]


def changes_table(found: Sequence[Predictions], *, seed: int, resamples: int = 1000) -> pd.DataFrame:
    """One row per change: AUC, balanced accuracy, log-loss, and the difference of the balanced accuracy to the first
    with its 95 % interval and p (Holm). Introduced in notebook 07.
    """
    together = Predictions.concatenate(found)
    differences = compare_with_reference(together, REFERENCE, seed=seed, resamples=resamples).set_index("model")
    rows = []
    for one in found:
        name, scores = one.table["model"].iloc[0], evaluate(one, seed=seed, resamples=200)
        row = {"change": name, **{key: scores[score]["value"] for key, score in (
            ("AUC", "auc"), ("balanced accuracy", "balanced_accuracy"), ("log-loss", "log_loss"))}}
        if name in differences.index:
            line = differences.loc[name]
            row |= {"difference": line["balanced_accuracy difference"], "from": line["balanced_accuracy low"],
                    "to": line["balanced_accuracy high"], "p": line["balanced_accuracy p (Holm)"]}
        rows.append(row)
    return pd.DataFrame(rows)


def fold_scores(found: CrossPredicted, names: Sequence[str], *, floor: CrossPredicted | None = None,
                seed: int = 0) -> pd.DataFrame:
    """One row per fold: AUC, ECE before and after the temperature, and balanced accuracy by each kind of threshold.

    ``names`` are the folds' names (the centre left out); the last row, "all", is over all test images. Each score has
    its 95 % interval over slides beside it (" low", " high"). ``floor`` adds the AUC and the balanced accuracy
    (validation threshold) of random weights. Introduced in notebook 07.
    """
    test = found.predictions.where(split="test")
    calibrated = calibrate_folds(found.predictions)[0]
    moved = {how: threshold_folds(found.predictions, how)[0] for how in HOW}
    floors = (floor.predictions.where(split="test"), threshold_folds(floor.predictions, "validation")[0]) if floor else None

    def score(text: str, predictions: Predictions, fold: int | None, name: str) -> dict[str, float | None]:
        part = predictions if fold is None else predictions.where(fold=fold)
        found = evaluate(part, seed=seed, resamples=1000)[name]
        return {text: found["value"], f"{text} low": found["low"], f"{text} high": found["high"]}

    rows = []
    for fold, name in [*enumerate(names), (None, "all")]:
        row = {"left out": name, "images": len(test if fold is None else test.where(fold=fold)),
               **score("AUC", test, fold, "auc"), **score("ECE as predicted", test, fold, "ece"),
               **score("ECE calibrated", calibrated, fold, "ece")}
        for how, text in HOW.items():
            row |= score(f"balanced accuracy, {text}", moved[how], fold, "balanced_accuracy")
        if floors:
            row |= score("random weights AUC", floors[0], fold, "auc")
            row |= score("random weights balanced accuracy", floors[1], fold, "balanced_accuracy")
        rows.append(row)
    return pd.DataFrame(rows)


def readable_folds(scores: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`fold_scores` for readers: one column per fold, scores as text with their intervals.

    Introduced in notebook 07.
    """
    def text(row: pd.Series, name: str) -> str:
        if f"{name} low" not in row:
            return str(row[name])
        if pd.isna(row[name]):
            return "n/a"
        return f"{row[name]:.3f}" + ("" if pd.isna(row[f"{name} low"]) else
                                     f" [{row[f'{name} low']:.3f}, {row[f'{name} high']:.3f}]")

    names = [name for name in scores.columns if not name.endswith((" low", " high")) and name != "left out"]
    return pd.DataFrame({"left out": names} | {row["left out"]: [text(row, name) for name in names]
                                               for _, row in scores.iterrows()})


def port_predictions(model: KerasModel, batches: Mapping[str, Batches], images: ImageSet, name: str) -> Predictions:
    """Test predictions of the published network. Introduced in notebook 07."""
    rows = images.positions(batches["test"].ids)
    names = np.asarray(images.classes, dtype=object)
    return Predictions.build(ids=images.ids[rows], labels=names[images.labels[rows]], groups=images.groups[rows],
                             probabilities=model.predict(batches["test"]), classes=images.classes, model=name)


def final_predictor(variant: Variant, images: ImageSet, found: CrossPredicted, *, coverage: float, views: int, stain: float,
                    seed: int, normalisation: str = "none") -> Predictor:
    """The model for new images: the head that won most often, fitted on all images; temperature, threshold and sets
    from the validation rows of all folds together. Introduced in notebook 07.
    """
    won = found.choices[found.choices["chosen"]]["candidate"].value_counts().idxmax()
    strength = next(value for value in STRENGTHS if won == f"C = {value}")
    validation = found.predictions.where(split="validation")
    temperature = fit_temperature(validation)
    network = fit_final(variant.network, variant.features, images,
                        texture_head(variant.network, strength, len(images.classes)))
    threshold = choose_threshold(validation) if len(images.classes) == 2 else None
    return Predictor(network, images.classes, make_views(views, stain=stain, seed=seed), temperature, threshold,
                     fit_conformal(apply_temperature(validation, temperature), coverage), normalisation,
                     images.pixels.shape[-1], "")
