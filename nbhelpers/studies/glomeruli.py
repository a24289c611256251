"""Glomeruli (system D): splits by slide and centre, heads on frozen features, and what each change
is worth, measured on the same images and folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.errors import PredictionsError, SplitError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.folds import Fold, log_loss, predict_folds
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.published_splits import split_by_image
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split, fold_table, repeated_cross_validation
from nbhelpers.evaluation.calibration import (
    apply_temperature,
    average_by_image,
    calibrate_folds,
    fit_temperature,
)
from nbhelpers.evaluation.comparison import compare_with_reference
from nbhelpers.evaluation.decisions import (
    choose_threshold,
    conformal_folds,
    coverage_table,
    fit_conformal,
    threshold_folds,
)
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.imagesets.glomeruli import UNKNOWN_SLIDES
from nbhelpers.models.frozen import (
    LinearHead,
    NeuralHead,
    TextureFeatures,
    View,
    fit_linear_head,
    fit_neural_head,
    frozen_features,
    make_features,
    make_views,
)
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.studies.glomerulus_model import TEXTURE, Predictor, fit_final
from nbhelpers.training.stains import normalised

if TYPE_CHECKING:
    from nbhelpers.reports.run import NotebookRun
    from nbhelpers.training.keras_face import Batches, KerasModel

INNER_FOLDS = 5
# inverse regularisation of the logistic regressions that compete on validation slides
STRENGTHS = (0.01, 0.1)
REFERENCE = "linear head"
HOW = {
    "half": "one half",
    "validation": "chosen on validation slides",
    "unlabelled": "from unlabelled test images",
}
# What ``compile`` takes for the published network, and for its sibling. Of the sibling's AdamW and
# label smoothing only the rate is published: the decay is Keras's own, and .1 the usual smoothing.
PORT_SETTINGS = {"optimizer": "adam", "learning_rate": 1e-4}
DENSENET_SETTINGS = {
    "optimizer": "adamw",
    "learning_rate": 5e-5,
    "weight_decay": 0.004,
    "label_smoothing": 0.1,
}

# features, labels -> something with probabilities(features)
Fit = Callable[[np.ndarray, np.ndarray], object]


# splits


def make_split(protocol: str, images: ImageSet, *, folds: int, repeats: int, seed: int) -> Split:
    """Cross-validation over whole slides, protocol "grouped"; where no slide is named, a split by
    image, and its protocol says so. Or the "published" split by image, with its leak.

    Raises SplitError when all images come from one slide, and as ``repeated_cross_validation``.
    """
    if protocol == "published":
        return split_by_image(images, seed=seed)
    if len(set(images.groups)) == 1:
        raise SplitError(
            images.name,
            f"all {len(images)} images come from one slide.",
            "Add slides: what a model does on slides it has not seen cannot be told from one.",
        )
    split = repeated_cross_validation(images, folds=folds, repeats=repeats, seed=seed)
    if UNKNOWN_SLIDES not in images.source:
        return split
    protocol = f"by image, {repeats} x {folds}-fold cross-validation, stratified by class; "
    return replace(split, protocol=protocol + UNKNOWN_SLIDES)


def centres_of(images: ImageSet) -> list[str]:
    """The centres that the images name, in order; none where no centre is given."""
    return sorted(set(images.table["centre"].astype(str))) if "centre" in images.table else []


def leave_one_centre_out(images: ImageSet, *, seed: int) -> Split:
    """One fold per centre: its images are the test part, a fifth of the other centres' groups the
    validation part.

    Raises SplitError with fewer than two centres, and where a centre lacks a class or has too few
    groups.
    """
    names = centres_of(images)
    if len(names) < 2:
        raise SplitError(
            images.name,
            "its images come from one centre, or no centre is given.",
            "Add images of another centre, and a column 'centre'; or split by slide.",
        )
    centres = images.table["centre"].astype(str).to_numpy()
    parts = []
    for fold, name in enumerate(names):
        inside = centres == name
        _check_classes(images, inside, f"the centre {name}")
        _check_classes(images, ~inside, f"the centres other than {name}")
        rest = np.flatnonzero(~inside)
        inner_seed = derive_seed(seed, "centre", name)
        folds = _inner_folds(images.labels[rest], images.groups[rest], inner_seed)
        part = np.where(inside, "test", "train").astype(object)
        part[rest[folds[0][1]]] = "validation"
        parts.append(fold_table(images, part, fold=fold))
    protocol = f"grouped: leave one centre out ({', '.join(names)})"
    return Split(pd.concat(parts, ignore_index=True), protocol, seed)


def _check_classes(images: ImageSet, chosen: np.ndarray, where: str) -> None:
    for index, name in enumerate(images.classes):
        if not (images.labels[chosen] == index).any():
            raise SplitError(
                f"{images.name}, {where}",
                f"there is no image of {name}.",
                "Leave that centre out, or add images of the class to it.",
            )


def _inner_folds(
    labels: np.ndarray, groups: np.ndarray, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds of whole groups, with every class in each training part: (training rows,
    held-out rows).
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(set(groups[labels == index])) for index in np.unique(labels))
    if fewest < 2:
        raise SplitError(
            "validation",
            "a class of the training part comes from one slide only.",
            "Add slides: no choice can be made on images of a slide that was trained on.",
        )
    for attempt in range(20):
        maker = StratifiedGroupKFold(
            min(INNER_FOLDS, fewest), shuffle=True, random_state=derive_seed(seed, attempt) % 2**32
        )
        folds = list(maker.split(labels, labels, groups))
        classes = len(set(labels))
        if all(len(set(labels[train])) == classes and len(out) for train, out in folds):
            return folds
    raise SplitError(
        "validation",
        "the training slides cannot be parted so that every part holds every class.",
        "The slides are too few or too unequal: use fewer folds, or add slides.",
    )


# features


@dataclass(frozen=True)
class Look:
    """How images are looked at: by which backbone with which weights, in how many views (turned,
    restained by ``stain``, nearer, out of focus), after which normalisation of the stain.
    """

    backbone: str
    weights: str | Path = "none"
    views: int = 3
    stain: float = 0.2
    normalisation: str = "none"
    seed: int = 0

    def make_views(self) -> tuple[View, ...]:
        return make_views(self.views, stain=self.stain, seed=self.seed)


@dataclass(frozen=True)
class Variant:
    """Features of one way to look at the images."""

    network: TextureFeatures
    features: np.ndarray  # (n, width) float32


def feature_variants(
    images: ImageSet,
    look: Look,
    *,
    data_folder: str | Path,
    cache_folder: str | Path,
) -> dict[str, Variant]:
    """Features of all images in seven ways: "one view", "published" (/255), "macenko", "reinhard",
    "restained" (views that differ in the stain alone), "views" (as ``look`` has it), and "random"
    (as "views", from weights that have learnt nothing).

    Computed once and kept in ``cache_folder``.
    """
    about = {"data_folder": data_folder, "seed": look.seed}
    plain = make_features(look.backbone, weights=look.weights, **about)
    published = make_features(
        look.backbone, weights=look.weights, preprocessing="published", **about
    )
    random = plain
    if str(look.weights) != "none":
        random = make_features(look.backbone, weights="none", seed=look.seed + 1)
    many = look.make_views()
    single = make_views(1)
    # the dyes of "views", and nothing else of them
    dyes = tuple(dict.fromkeys(View(dyes=view.dyes) for view in many))
    ways = {
        "one view": (plain, "none", single),
        "published": (published, "none", single),
        "macenko": (plain, "macenko", single),
        "reinhard": (plain, "reinhard", single),
        "restained": (plain, "none", dyes),
        "views": (plain, look.normalisation, many),
        "random": (random, look.normalisation, many),
    }
    sets = {}
    found = {}
    for name, (network, method, seen) in ways.items():
        if method not in sets:
            sets[method] = normalised(images, method)
        values = frozen_features(network, sets[method], seen, cache_folder=cache_folder)
        found[name] = Variant(network, values)
        print(f"features: {name} ({len(seen)} per image)")
    return found


# heads on frozen features, chosen inside the training slides


@dataclass(frozen=True)
class CrossPredicted:
    """``predictions`` hold validation rows (each predicted by a head that did not see its slide)
    and test rows; ``choices`` one row per repeat, fold and candidate with its validation log-loss
    and whether it was chosen."""

    predictions: Predictions
    choices: pd.DataFrame


def texture_head(
    network: TextureFeatures,
    regularisation: float,
    classes: int,
    parts: Sequence[str] = TEXTURE,
) -> Fit:
    """Logistic regressions on ``parts`` of the features; see ``fit_linear_head``."""
    columns = [network.columns(part) for part in parts]

    def fit(values: np.ndarray, labels: np.ndarray) -> LinearHead:
        return fit_linear_head(
            values, labels, columns, regularisation=regularisation, classes=classes
        )

    return fit


def neural_head(network: TextureFeatures, classes: int, **settings) -> Fit:
    """A published head on the pooled features; ``settings`` go to ``fit_neural_head``. It learns at
    1e-3, as at the published 1e-4 it is far from done after some epochs on few slides.
    """
    columns = network.columns("pooled")

    def fit(values: np.ndarray, labels: np.ndarray) -> NeuralHead:
        pooled = values[:, columns]
        head = fit_neural_head(pooled, labels, classes=classes, learning_rate=1e-3, **settings)
        head.columns = columns
        return head

    return fit


def our_head(
    variant: Variant, images: ImageSet, split: Split, *, model: str, seed: int
) -> CrossPredicted:
    """The texture head in every fold, its strength of regularisation chosen on validation
    slides.
    """
    candidates = {}
    for strength in STRENGTHS:
        head = texture_head(variant.network, strength, len(images.classes))
        candidates[f"C = {strength}"] = head
    return cross_predict(candidates, variant.features, images, split, model=model, seed=seed)


def cross_predict(
    candidates: Mapping[str, Fit],
    features: np.ndarray,
    images: ImageSet,
    split: Split,
    *,
    model: str,
    seed: int,
) -> CrossPredicted:
    """Fit heads on ready-made features in every fold of a split, and choose among ``candidates`` by
    validation.

    Training and validation slides of a fold are put together; each slide among them is predicted by
    a head that was fitted without it, and these predictions are the validation rows on which the
    candidate (by log-loss), the temperature and the threshold are chosen. The chosen one is fitted
    on all of them and predicts the test part. A split that leaks by image keeps its own validation
    part. With a single candidate nothing is chosen, and there are no validation rows. Raises
    SplitError for training slides that are too few.
    """
    if len(features) != len(images) or not np.isfinite(features).all():
        raise PredictionsError(
            model,
            f"the features have the shape {features.shape} for {len(images)} images, or hold "
            "values that are not finite.",
            "Compute them from these images.",
        )
    labels = images.labels
    choices = []

    def predict(fold: Fold) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        training = fold.train if split.known_leak else fold.fitted
        found = {}
        best = next(iter(candidates))
        if len(candidates) > 1:
            held_out = fold.validation if split.known_leak else training
            inner = [(np.arange(len(training)), np.arange(len(held_out)))]
            if not split.known_leak:
                inner_seed = derive_seed(seed, fold.repeat, fold.fold)
                inner = _inner_folds(labels[training], images.groups[training], inner_seed)
            validations = {}
            losses = {}
            for name, fit in candidates.items():
                validation = np.zeros((len(held_out), len(images.classes)))
                for rows, left_out in inner:
                    head = fit(features[training[rows]], labels[training[rows]])
                    validation[left_out] = head.probabilities(features[held_out[left_out]])
                validations[name] = validation
                losses[name] = log_loss(validation, labels[held_out])
            best = min(losses, key=losses.get)
            for name, loss in losses.items():
                about = {"repeat": fold.repeat, "fold": fold.fold, "candidate": name}
                about |= {"validation_log_loss": loss, "chosen": name == best}
                choices.append(about)
            found["validation"] = (held_out, validations[best])
        head = candidates[best](features[training], labels[training])
        found["test"] = (fold.test, head.probabilities(features[fold.test]))
        return found

    predictions = predict_folds(predict, images, split, model=model)
    return CrossPredicted(predictions, pd.DataFrame(choices))


# the published network


def published_settings(backbone: str) -> dict:
    """What ``compile`` takes for the published network, or for its sibling densenet169."""
    return DENSENET_SETTINGS if backbone == "densenet169" else PORT_SETTINGS


def port_predictions(model: KerasModel, tested: Batches, name: str) -> Predictions:
    """Test predictions of the published network."""
    images = tested.images
    rows = images.positions(tested.ids)
    return Predictions.of(images, model.predict(tested), rows, model=name)


# a centre that was never seen


def show_centres(
    run: NotebookRun, variants: dict[str, Variant], images: ImageSet, split: Split
) -> None:
    """Show and record how the texture head does on centres that it was not fitted on, beside random
    weights. ``split`` is that of :func:`leave_one_centre_out`.
    """
    found = []
    for way, model in (("views", "texture head"), ("random", "random weights")):
        found.append(our_head(variants[way], images, split, model=model, seed=run.seed))
    scores = fold_scores(*found, centres_of(images))
    run.record["by centre"] = scores
    counts = {name: f"{name} (n = {row['AUC'].n})" for name, row in scores.items()}
    run.show_table(
        pd.DataFrame(scores).map(str).rename(columns=counts),
        "Trained on the other centres, tested on the one left out; 95 % intervals over slides",
    )


def fold_scores(
    found: CrossPredicted, floor: CrossPredicted, names: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """By fold: AUC, ECE before and after the temperature, and balanced accuracy by each kind of
    threshold; AUC and balanced accuracy (validation threshold) of random weights, ``floor``.
    Intervals over slides.

    ``names`` are the folds' names (the centre left out); the last one, "all", is over all test
    images.
    """
    test = found.predictions.where(split="test")
    wanted = {
        "AUC": (test, "auc"),
        "ECE as predicted": (test, "ece"),
        "ECE calibrated": (calibrate_folds(found.predictions)[0], "ece"),
    }
    for how, text in HOW.items():
        moved = threshold_folds(found.predictions, how)[0]
        wanted[f"balanced accuracy, {text}"] = (moved, "balanced_accuracy")
    moved = threshold_folds(floor.predictions, "validation")[0]
    wanted["random weights AUC"] = (floor.predictions.where(split="test"), "auc")
    wanted["random weights balanced accuracy"] = (moved, "balanced_accuracy")
    rows = {}
    for fold, name in [*enumerate(names), (None, "all")]:
        which = {} if fold is None else {"fold": fold}
        rows[name] = {}
        for text, (predictions, score) in wanted.items():
            scores = evaluate(predictions.where(**which))
            rows[name][text] = scores[score]
    return rows


# prediction sets


def show_sets(
    run: NotebookRun, predictions: Predictions, coverage: float, accuracy: Estimate
) -> None:
    """Show and record how often prediction sets, fitted on validation slides, hold the true class
    of held-out ones; with a word where the predicted class alone is right as often.
    """
    covered = coverage_table(conformal_folds(predictions, coverage), coverage)
    run.record["coverage"] = covered.to_dict("records")
    run.show_table(
        covered,
        "How often the set holds the true class on held-out slides. Reached: the whole interval "
        "speaks for at most twice the misses that were asked for (and at most .1 more); not "
        "reached: it lies below the coverage asked for; not assessable: too few slides for either",
    )
    if accuracy.value > coverage:
        print(
            f"The accuracy is {accuracy.value:.3f}: the predicted class alone is right more often "
            f"than the coverage of {coverage} asks for, and {covered['one class'].iloc[0]:.0%} of "
            "the sets hold one class. A higher coverage shows better where the model is in doubt."
        )


# what each change is worth


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
    return [_linear(name, variants[way], images, split, seed) for name, way in ways.items()]


def _linear(
    name: str,
    variant: Variant,
    images: ImageSet,
    split: Split,
    seed: int,
    parts: Sequence[str] = ("pooled",),
) -> Predictions:
    fit = texture_head(variant.network, STRENGTHS[0], len(images.classes), parts)
    return _tested(name, fit, variant, images, split, seed)


def _tested(
    name: str, fit: Fit, variant: Variant, images: ImageSet, split: Split, seed: int
) -> Predictions:
    one = cross_predict({name: fit}, variant.features, images, split, model=name, seed=seed)
    return one.predictions


def measured_changes(
    variants: dict[str, Variant], images: ImageSet, split: Split, *, seed: int, epochs: int = 25
) -> list[Predictions]:
    """Test predictions of one change at a time, on the same folds; the first is what they are
    compared with.

    The linear head on the pooled features of one view is the start. Then: /255 as published, the
    custom head (``epochs`` long), the same with squeeze-and-excite, the remedies of
    :func:`stain_changes`, more views (turned, restained, nearer, out of focus), texture instead of
    means, and the ensemble.
    """
    more = variants["views"]
    one = variants["one view"]
    rest = (images, split, seed)

    def custom(name: str, variant: Variant, attention: bool = False) -> Predictions:
        settings = {"seed": seed, "attention": attention, "epochs": epochs}
        fit = neural_head(variant.network, len(images.classes), **settings)
        return _tested(name, fit, variant, *rest)

    plain, *stains = stain_changes(variants, images, split, seed=seed)
    found = [
        plain,
        _linear("linear head, /255 as published", variants["published"], *rest),
        custom("custom head", one),
        custom("custom head, squeeze-and-excite", one, attention=True),
        *stains,
        _linear("linear head, more views", more, *rest),
        _linear("texture head, more views", more, *rest, TEXTURE),
        custom("custom head, more views", more, attention=True),
    ]
    # this order, as another one would change the mean in its last digit
    members = [found[-2], found[-3], found[-1]]
    return [*found, Predictions.mean(members, "ensemble of the last three")]


def show_changes(run: NotebookRun, key: str, changes: Sequence[Predictions], caption: str) -> None:
    """Show and record the differences to the first of ``changes``."""
    table = changes_table(changes)
    run.record[key] = table.to_dict("records")
    run.show_table(table, caption)


def changes_table(found: Sequence[Predictions]) -> pd.DataFrame:
    """One row per change: AUC, balanced accuracy, log-loss, and the difference of the balanced
    accuracy to the first with its 95 % interval and p (Holm).
    """
    together = Predictions.concatenate(found)
    compared = compare_with_reference(together, REFERENCE)
    differences = {line["model"]: line for line in compared.to_dict("records")}
    rows = []
    for one in found:
        scores = evaluate(one)
        row = {
            "change": one.table["model"].iloc[0],
            "AUC": scores["auc"].value,
            "balanced accuracy": scores["balanced_accuracy"].value,
            "log-loss": scores["log_loss"].value,
        }
        line = differences.get(row["change"])
        if line is not None:
            row |= {
                "difference": line["balanced_accuracy difference"],
                "from": line["balanced_accuracy low"],
                "to": line["balanced_accuracy high"],
                "p": line["balanced_accuracy p (Holm)"],
            }
        rows.append(row)
    return pd.DataFrame(rows)


# new images


def final_predictor(
    look: Look, variant: Variant, images: ImageSet, found: CrossPredicted, *, coverage: float
) -> Predictor:
    """The model for new images: the head that won most often, fitted on all images; temperature,
    threshold and sets from the validation rows of all folds together, averaged by image.
    """
    won = found.choices[found.choices["chosen"]]["candidate"].value_counts().idxmax()
    strength = next(value for value in STRENGTHS if won == f"C = {value}")
    validation = average_by_image(found.predictions.where(split="validation"))
    temperature = fit_temperature(validation)
    # one scale for threshold, sets and table
    calibrated = apply_temperature(validation, temperature)
    return Predictor(
        fit_final(variant.network, variant.features, images, strength),
        images.classes,
        look.make_views(),
        temperature,
        choose_threshold(calibrated) if len(images.classes) == 2 else None,
        fit_conformal(calibrated, coverage),
        look.normalisation,
        images.pixels.shape[-1],
    )


def write_example_images(folder: str | Path, count: int, seed: int, *, size_px: int = 224) -> Path:
    """Fresh phantoms in nested folders, as PNG, JPEG and TIFF of several sizes, and files that
    cannot be used.
    """
    from PIL import Image

    folder = Path(folder)
    images = load_phantom_glomeruli(count, seed, size_px=size_px)
    suffixes = ("png", "jpg", "tif")
    for index, pixels in enumerate(np.moveaxis(np.asarray(images.pixels), 1, -1)):
        place = folder / ("biopsy A" if index % 2 else "biopsy B/section 2")
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels)
        settings = {}
        if index % 3 == 1:
            image = image.resize((size_px + 40, size_px + 20))
            settings = {"quality": 95}
        image.save(place / f"glomerulus_{index + 1:02d}.{suffixes[index % 3]}", **settings)
    Image.new("RGB", (size_px, size_px), (200, 120, 180)).save(folder / "one_colour.png")
    grey = np.asarray(images.pixels[0]).mean(0).astype(np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    whole = folder / "biopsy B/section 2/glomerulus_01.png"
    (folder / "cut_short.png").write_bytes(whole.read_bytes()[:300])
    return folder
