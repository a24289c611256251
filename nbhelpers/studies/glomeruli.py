"""Glomeruli (system D): splits by slide and centre, heads on frozen features, thresholds, and the
model for new images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core.errors import CheckpointError, InputError, PredictionsError, SplitError
from nbhelpers.core.folds import Fold, log_loss, predict_folds
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import PROBABILITY_PREFIX, Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split, repeated_cross_validation
from nbhelpers.core.splits import split_by_image as published_split  # noqa: F401
from nbhelpers.evaluation.calibration import ConformalSets
from nbhelpers.imagesets.glomeruli import UNKNOWN_SLIDES
from nbhelpers.inference.new_images import FEWEST, OutOfDistribution
from nbhelpers.models.frozen import (
    LinearHead,
    TextureFeatures,
    View,
    fit_linear_head,
    fit_neural_head,
    mean_features,
)

INNER_FOLDS = 5
STRENGTHS = (
    0.01,
    0.1,
)  # inverse regularisation of the logistic regressions that compete on validation slides
FAMILIAR_AXES = 16
EVALUATION_CSV = "evaluation.csv"
FULL_CSV = "evaluation_full.csv"
UNREADABLE_CSV = "unreadable.csv"

Fit = Callable[
    [np.ndarray, np.ndarray], object
]  # features, labels -> something with probabilities(features)


# splits


def split_by_slide(images: ImageSet, *, folds: int, repeats: int, seed: int) -> Split:
    """Cross-validation over whole slides; where no slide is named, a split by image, and its
    protocol says so.

    Raises SplitError when all images come from one slide, and as ``repeated_cross_validation``.
    """
    if len(set(images.groups)) == 1:
        raise SplitError(
            images.name,
            f"all {len(images)} images come from one slide.",
            "Add slides: what a model does on slides it has not seen cannot be told from one.",
        )
    split = repeated_cross_validation(images, folds=folds, repeats=repeats, seed=seed)
    if UNKNOWN_SLIDES not in images.source:
        return split
    return replace(
        split,
        protocol=f"by image, {repeats} x {folds}-fold cross-validation, stratified by class; "
        f"{UNKNOWN_SLIDES}",
    )


def leave_one_centre_out(images: ImageSet, *, seed: int) -> Split:
    """One fold per centre: its images are the test part, a fifth of the other centres' groups the
    validation part.

    Raises SplitError with fewer than two centres, and where a centre lacks a class or has too few
    groups.
    """
    centres = (
        images.table["centre"].astype(str).to_numpy()
        if "centre" in images.table
        else np.array([""] * len(images))
    )
    names = sorted(set(centres))
    if len(names) < 2:
        raise SplitError(
            images.name,
            "its images come from one centre, or no centre is given.",
            "Add images of another centre, and a column 'centre'; or split by slide.",
        )
    parts = []
    for fold, name in enumerate(names):
        inside = centres == name
        for part, where in (
            (inside, f"the centre {name}"),
            (~inside, f"the centres other than {name}"),
        ):
            absent = [
                images.classes[index]
                for index in range(len(images.classes))
                if not (images.labels[part] == index).any()
            ]
            if absent:
                raise SplitError(
                    f"{images.name}, {where}",
                    f"there is no image of {absent[0]}.",
                    "Leave that centre out, or add images of the class to it.",
                )
        rest = np.flatnonzero(~inside)
        folds = _inner_folds(
            images.labels[rest], images.groups[rest], derive_seed(seed, "centre", name)
        )
        validation = folds[0][1]
        part = np.where(inside, "test", "train").astype(object)
        part[rest[validation]] = "validation"
        parts.append(
            pd.DataFrame(
                {"repeat": 0, "fold": fold, "part": part, "id": images.ids, "group": images.groups}
            )
        )
    return Split(
        pd.concat(parts, ignore_index=True),
        f"grouped: leave one centre out ({', '.join(names)})",
        seed,
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
        if all(
            len(set(labels[train])) == len(set(labels)) and len(held_out)
            for train, held_out in folds
        ):
            return folds
    raise SplitError(
        "validation",
        "the training slides cannot be parted so that every part holds every class.",
        "The slides are too few or too unequal: use fewer folds, or add slides.",
    )


# heads on frozen features, chosen inside the training slides


@dataclass(frozen=True)
class CrossPredicted:
    """``predictions`` hold validation rows (each predicted by a head that did not see its slide)
    and test rows; ``choices`` one row per repeat, fold and candidate with its validation log-loss
    and whether it was chosen."""

    predictions: Predictions
    choices: pd.DataFrame


def texture_head(
    features: TextureFeatures,
    regularisation: float,
    classes: int,
    *,
    parts: Sequence[str] = ("middle", "late"),
    balanced: bool = False,
) -> Fit:
    """Logistic regressions on ``parts`` of the features; see ``fit_linear_head``."""
    columns = [features.columns(part) for part in parts]
    return lambda values, labels: fit_linear_head(
        values, labels, columns, regularisation=regularisation, balanced=balanced, classes=classes
    )


def neural_head(features: TextureFeatures, classes: int, *, seed: int, **settings) -> Fit:
    """A published head on the pooled features; ``settings`` go to ``fit_neural_head``."""
    columns = features.columns("pooled")

    def fit(values: np.ndarray, labels: np.ndarray):
        return _OnColumns(
            fit_neural_head(values[:, columns], labels, classes=classes, seed=seed, **settings),
            columns,
        )

    return fit


@dataclass(frozen=True)
class _OnColumns:
    head: object
    columns: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        return self.head.probabilities(features[:, self.columns])


def cross_predict(
    candidates: Mapping[str, Fit],
    features: np.ndarray,
    images: ImageSet,
    split: Split,
    *,
    model: str,
    seed: int,
    run: str = "",
    validate: bool = True,
) -> CrossPredicted:
    """Fit heads on ready-made features in every fold of a split, and choose among ``candidates`` by
    validation.

    Training and validation slides of a fold are put together; each slide among them is predicted by
    a head that was fitted without it, and these predictions are the validation rows on which the
    candidate (by log-loss), the temperature and the threshold are chosen. The chosen one is fitted
    on all of them and predicts the test part. A split that leaks by image keeps its own validation
    part. ``validate=False`` with a single candidate leaves the validation rows out, which is
    quicker. Raises SplitError for training slides that are too few.
    """
    if len(features) != len(images) or not np.isfinite(features).all():
        raise PredictionsError(
            model,
            f"the features have the shape {features.shape} for {len(images)} images, or hold "
            "values that are not finite.",
            "Compute them from these images.",
        )
    if not validate and len(candidates) > 1:
        raise InputError(
            model,
            "several candidates cannot be chosen among without validation.",
            "Set validate=True.",
        )
    labels = images.labels
    choices = []

    def predict(fold: Fold) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        training = fold.train if split.known_leak else fold.fitted
        held_out = fold.validation if split.known_leak else training
        found = {}
        best = next(iter(candidates))
        if validate:
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
                choices.append(
                    {
                        "repeat": fold.repeat,
                        "fold": fold.fold,
                        "candidate": name,
                        "validation_log_loss": loss,
                        "chosen": name == best,
                    }
                )
            found["validation"] = (held_out, validations[best])
        head = candidates[best](features[training], labels[training])
        found["test"] = (fold.test, head.probabilities(features[fold.test]))
        return found

    predictions = predict_folds(predict, images, split, model=model, run=run)
    return CrossPredicted(predictions, pd.DataFrame(choices))


# the model for new images


class GlomerulusNet(nn.Module):
    """Frozen features and a linear head in one file, with the training images' features to tell
    what is usual.

    ``forward`` gives features (n, width); ``head`` and ``out_of_distribution`` take the mean over
    the views.
    """

    def __init__(
        self,
        backbone: str = "mobilenet_v2",
        preprocessing: str = "imagenet",
        classes: int = 2,
        references: int = 0,
        axes: int = FAMILIAR_AXES,
    ):
        super().__init__()
        self.settings = {
            "backbone": backbone,
            "preprocessing": preprocessing,
            "classes": classes,
            "references": references,
            "axes": axes,
        }
        self.features = TextureFeatures(backbone, preprocessing)
        width = self.features.width
        for name, shape in (
            ("weight", (classes, width)),
            ("bias", (classes,)),
            ("axes_mean", (width,)),
            ("axes_scale", (width,)),
            ("axes", (axes, width)),
            ("reference", (references, axes + 1)),
            ("reference_mean", (axes + 1,)),
            ("reference_scale", (axes + 1,)),
            ("limit", (1,)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images)

    def head(self) -> LinearHead:
        return LinearHead(self.weight.numpy(), self.bias.numpy())

    def unlike(self, features: np.ndarray) -> np.ndarray | None:
        """(n,) bool: farther from the training images than 99 in 100 of them; None where they were
        too few.
        """
        if not len(self.reference):
            return None
        placed = _placed(
            (features - self.axes_mean.numpy()) / self.axes_scale.numpy(), self.axes.numpy()
        )
        usual = OutOfDistribution(
            self.reference.numpy(),
            self.reference_mean.numpy(),
            self.reference_scale.numpy(),
            float(self.limit),
        )
        return usual.unlike(placed)


def _placed(standardised: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """(n, axes + 1): the place along the main axes of the training images, and the distance from
    the space of these.
    """
    along = standardised @ axes.T
    return np.column_stack([along, np.linalg.norm(standardised - along @ axes, axis=1)])


def fit_final(
    network: TextureFeatures, features: np.ndarray, images: ImageSet, fit: Fit
) -> GlomerulusNet:
    """The model for new images, fitted on all labelled ones. It has no score of its own: the
    cross-validated one of the same head is the estimate.
    """
    from sklearn.decomposition import PCA

    known = images.labels >= 0
    head = fit(features[known], images.labels[known])
    if not isinstance(head, LinearHead):
        raise InputError(
            "final model", f"{type(head).__name__} is not linear.", "Give a texture head."
        )
    count = int(known.sum())
    axes = min(FAMILIAR_AXES, count, features.shape[1])
    enough = count >= FEWEST
    found = GlomerulusNet(
        network.settings["backbone"],
        network.settings["preprocessing"],
        len(images.classes),
        references=count if enough else 0,
        axes=axes,
    )
    found.features.load_state_dict(network.state_dict())
    found.weight[:] = torch.from_numpy(head.weight)
    found.bias[:] = torch.from_numpy(head.bias)
    if enough:
        mean = features[known].mean(0)
        scale = np.where(features[known].std(0) > 0, features[known].std(0), 1.0)
        pca = PCA(axes, random_state=0).fit((features[known] - mean) / scale)
        usual = OutOfDistribution.fit(_placed((features[known] - mean) / scale, pca.components_))
        values = {
            "axes_mean": mean,
            "axes_scale": scale,
            "axes": pca.components_,
            "reference": usual.reference,
            "reference_mean": usual.mean,
            "reference_scale": usual.scale,
            "limit": [usual.limit],
        }
        for name, value in values.items():
            getattr(found, name)[:] = torch.as_tensor(np.asarray(value, np.float64))
    return found.eval()


@dataclass(frozen=True)
class Predictor:
    """Everything that turns images into rows of the table: network, views, temperature, threshold,
    sets.
    """

    network: GlomerulusNet
    classes: tuple[str, ...]
    views: tuple[View, ...]
    temperature: float
    threshold: float | None  # on the calibrated probability of the last class
    sets: ConformalSets | None
    normalisation: str
    size_px: int
    model: str  # hash of the file, or "" before it is written

    def save(self, path: str | Path, **about) -> str:
        """Write the model with all its settings; returns the sha256 of the file. ``about`` is
        JSON-able.
        """
        from nbhelpers.training.checkpoints import save_checkpoint

        return save_checkpoint(
            path,
            self.network,
            classes=self.classes,
            about={
                **about,
                "views": [asdict(view) for view in self.views],
                "temperature": self.temperature,
                "calibrated_threshold": self.threshold,
                "sets": self.sets.as_dict() if self.sets else None,
                "normalisation": self.normalisation,
                "size_px": self.size_px,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Read what :meth:`save` wrote. Raises CheckpointError."""
        from nbhelpers.core.files import sha256_of_file
        from nbhelpers.training.checkpoints import load_checkpoint

        network, card = load_checkpoint(path, GlomerulusNet)
        about = card["about"]
        try:
            views = tuple(
                View(**{**view, "dyes": tuple(view["dyes"]), "place": tuple(view["place"])})
                for view in about["views"]
            )
            sets = ConformalSets.from_dict(about["sets"]) if about["sets"] else None
            return cls(
                network,
                tuple(card["classes"]),
                views,
                about["temperature"],
                about["calibrated_threshold"],
                sets,
                about["normalisation"],
                about["size_px"],
                sha256_of_file(path)[:16],
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                path,
                f"its card lacks what a prediction needs ({error}).",
                "Train the model again with notebook 07.",
            ) from None

    def features_of(
        self, pixels: np.ndarray, *, network: nn.Module | None = None, precision: str = "auto"
    ) -> np.ndarray:
        """(n, 3, y, x) uint8 to (n, width); ``network`` is the same one compiled, if any."""
        from nbhelpers.training.stains import normalise

        if self.normalisation != "none" and len(pixels):
            pixels = np.stack(
                [normalise(np.asarray(image), self.normalisation) for image in pixels]
            )
        return mean_features(network or self.network, pixels, self.views, precision=precision)

    def table(
        self, names: Sequence[str], features: np.ndarray, *, confidence: float
    ) -> pd.DataFrame:
        """One row per image: name, predicted, ``probability <class>`` (calibrated), set (always
        with the predicted class), low_confidence, out_of_distribution ("unknown" where the training
        images were too few), model."""
        columns = [PROBABILITY_PREFIX + name for name in self.classes]
        if not len(names):
            return pd.DataFrame(
                columns=[
                    "name",
                    "predicted",
                    *columns,
                    "set",
                    "low_confidence",
                    "out_of_distribution",
                    "model",
                ]
            )
        from scipy.special import softmax

        head = self.network.head()
        probabilities = softmax(head.logits(features) / self.temperature, axis=1)
        chosen = probabilities.argmax(1)
        if self.threshold is not None:
            chosen = (probabilities[:, -1] >= self.threshold).astype(int)
        unlike = self.network.unlike(features)
        found = pd.DataFrame(
            {"name": list(names), "predicted": [self.classes[index] for index in chosen]}
        )
        found[columns] = probabilities.round(6)
        found["set"] = self.sets.names(probabilities, chosen) if self.sets else "unknown"
        found["low_confidence"] = probabilities[np.arange(len(chosen)), chosen] < confidence
        found["out_of_distribution"] = "unknown" if unlike is None else unlike
        return found.assign(model=self.model)


def compatible(table: pd.DataFrame) -> pd.DataFrame:
    """``name`` and ``ground_truth`` as the published program writes them: the PREDICTED class
    stands under the name ground_truth.
    """
    return table[["name", "predicted"]].rename(columns={"predicted": "ground_truth"})


def predict_new(
    predictor: Predictor, new: ImageSet, folder: str | Path, *, confidence: float
) -> pd.DataFrame:
    """Predict an unlabelled set and write ``evaluation.csv``, ``evaluation_full.csv`` and
    ``unreadable.csv``.

    Returns the full table; unreadable files stand in the last file only. For large folders see
    :mod:`nbhelpers.studies.predict_folder`.
    """
    from nbhelpers.core.files import whole_file

    features = predictor.features_of(new.pixels) if len(new) else np.zeros((0, 0))
    table = predictor.table(new.ids, features, confidence=confidence)
    for name, content in (
        (EVALUATION_CSV, compatible(table)),
        (FULL_CSV, table),
        (UNREADABLE_CSV, new.failures),
    ):
        with whole_file(Path(folder) / name) as temporary:
            content.to_csv(temporary, index=False)
    return table


def write_example_images(folder: str | Path, count: int, seed: int, *, size_px: int = 224) -> Path:
    """Fresh phantoms in nested folders, as PNG, JPEG and TIFF of several sizes, and files that
    cannot be used.
    """
    import tifffile
    from PIL import Image

    from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli

    folder = Path(folder)
    images = load_phantom_glomeruli(count, seed, size_px=size_px)
    for index, pixels in enumerate(np.moveaxis(np.asarray(images.pixels), 1, -1)):
        place = folder / ("biopsy A" if index % 2 else "biopsy B/section 2")
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels)
        if index % 3 == 0:
            image.save(place / f"glomerulus_{index + 1:02d}.png")
        elif index % 3 == 1:
            image.resize((size_px + 40, size_px + 20)).save(
                place / f"glomerulus_{index + 1:02d}.jpg", quality=95
            )
        else:
            tifffile.imwrite(
                place / f"glomerulus_{index + 1:02d}.tif", np.asarray(image), photometric="rgb"
            )
    Image.new("RGB", (size_px, size_px), (200, 120, 180)).save(folder / "one_colour.png")
    Image.fromarray(np.asarray(images.pixels[0]).mean(0).astype(np.uint8)).save(folder / "grey.png")
    (folder / "cut_short.png").write_bytes(
        (folder / "biopsy B/section 2/glomerulus_01.png").read_bytes()[:300]
    )
    return folder
