"""The model for new images of glomeruli: one file with frozen features, a head, and what was
fitted on validation slides; and the tables that it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core.errors import CheckpointError
from nbhelpers.core.files import sha256_of_file, write_csv
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import PROBABILITY_PREFIX
from nbhelpers.evaluation.decisions import ConformalSets
from nbhelpers.inference.new_images import (
    OutOfDistribution,
    image_statistics,
    out_of_distribution,
    warned,
)
from nbhelpers.inference.reference import can_judge, fit_reference
from nbhelpers.models.frozen import (
    LinearHead,
    TextureFeatures,
    View,
    fit_linear_head,
    mean_features,
)
from nbhelpers.studies.shift import Shift, UsualPlaces
from nbhelpers.training.checkpoints import load_checkpoint, save_checkpoint
from nbhelpers.training.stains import normalise

SHIFT = ["shift", "shift_limit", "threshold"]
TEXTURE = ("middle", "late")  # the parts of the features that the texture head sees
EVALUATION_CSV = "evaluation.csv"
FULL_CSV = "evaluation_full.csv"
UNREADABLE_CSV = "unreadable.csv"


class GlomerulusNet(nn.Module):
    """Frozen features and a linear head in one file, with what tells whether an image is like the
    training images (``usual``; None where these were too few), by its features and by its
    statistics.

    ``forward`` gives features (n, width); ``head`` takes their mean over the views, and ``usual``
    this with the statistics behind it. ``places`` tells whether new images are shifted as a set.
    """

    usual: OutOfDistribution | None = None
    places: UsualPlaces | None = None

    def __init__(
        self, backbone: str = "mobilenet_v2", preprocessing: str = "imagenet", classes: int = 2
    ):
        super().__init__()
        self.settings = {
            "backbone": backbone,
            "preprocessing": preprocessing,
            "classes": classes,
        }
        self.features = TextureFeatures(backbone, preprocessing)
        self.width = self.features.width
        for name, shape in {"weight": (classes, self.width), "bias": (classes,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images)

    def head(self) -> LinearHead:
        return LinearHead(self.weight.numpy(), self.bias.numpy())


def fit_final(
    network: TextureFeatures, features: np.ndarray, images: ImageSet, regularisation: float
) -> GlomerulusNet:
    """The model for new images: the texture head fitted on all labelled ones, by their
    ``features``, (n, width). It has no score of its own: the cross-validated one of the same head
    is the estimate.
    """
    known = images.take(np.flatnonzero(images.labels >= 0))
    features = features[images.labels >= 0]
    classes = len(images.classes)
    parts = [network.columns(part) for part in TEXTURE]
    head = fit_linear_head(
        features, known.labels, parts, regularisation=regularisation, classes=classes
    )
    found = GlomerulusNet(**network.settings, classes=classes)
    found.features.load_state_dict(network.state_dict())
    found.weight[...] = torch.as_tensor(head.weight)
    found.bias[...] = torch.as_tensor(head.bias)
    if can_judge(known.groups):
        look = image_statistics(known.pixels)
        found.usual = fit_reference(features, look, groups=known.groups)
        both = np.concatenate([features, look], axis=1)
        found.places = UsualPlaces.fit(found.usual, both, known.labels, known.groups)
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
    model: str = ""  # hash of the file, or "" before it is written

    def save(self, path: str | Path, **about) -> str:
        """Write the model with all its settings; returns the sha256 of the file. ``about`` is
        JSON-able.
        """
        about |= {
            "views": [asdict(view) for view in self.views],
            "temperature": self.temperature,
            "calibrated_threshold": self.threshold,
            "sets": self.sets.as_dict() if self.sets else None,
            "normalisation": self.normalisation,
            "size_px": self.size_px,
            "places": self.network.places and vars(self.network.places),
        }
        usual = self.network.usual
        beside = usual and usual.tensors()
        return save_checkpoint(path, self.network, classes=self.classes, about=about, beside=beside)

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Read what :meth:`save` wrote. Raises CheckpointError."""
        network, card = load_checkpoint(path, GlomerulusNet)
        network.usual = OutOfDistribution.of_checkpoint(path)
        about = card["about"]
        try:
            views = []
            for view in about["views"]:
                pairs = {"dyes": tuple(view["dyes"]), "place": tuple(view["place"])}
                views.append(View(**view | pairs))
            if about.get("places"):  # files of before have none
                places = {name: np.asarray(value) for name, value in about["places"].items()}
                network.places = UsualPlaces(**places)
            return cls(
                network,
                tuple(card["classes"]),
                tuple(views),
                about["temperature"],
                about["calibrated_threshold"],
                ConformalSets.from_dict(about["sets"]) if about["sets"] else None,
                about["normalisation"],
                about["size_px"],
                sha256_of_file(path)[:16],
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                path,
                f"its card lacks what a prediction needs ({error}).",
                "Train the model again with notebook 06.",
            ) from None

    def features_of(
        self, pixels: np.ndarray, *, network: nn.Module | None = None, precision: str = "auto"
    ) -> np.ndarray:
        """(n, 3, y, x) uint8 to (n, width + 24): the mean features of the views, and the
        statistics of the image itself; ``network`` is the same one compiled, if any."""
        if not len(pixels):
            return np.zeros((0, 0))
        look = image_statistics(pixels)
        if self.normalisation != "none":
            same = [normalise(np.asarray(image), self.normalisation) for image in pixels]
            pixels = np.stack(same)
        seen = mean_features(network or self.network, pixels, self.views, precision=precision)
        return np.concatenate([seen, look], axis=1)

    def table(
        self, names: Sequence[str], features: np.ndarray, *, confidence: float
    ) -> pd.DataFrame:
        """One row per image: name, predicted, ``probability <class>`` (calibrated), set (always
        with the predicted class), low_confidence, out_of_distribution ("unknown" where the training
        images were too few), flagged_by_chance (the share of images like the training ones, but
        from new slides, that are out of distribution all the same), model."""
        from scipy.special import softmax

        probability = [PROBABILITY_PREFIX + name for name in self.classes]
        flags = ["set", "low_confidence", "out_of_distribution", "flagged_by_chance", "model"]
        if not len(names):
            return pd.DataFrame(columns=["name", "predicted", *probability, *flags])
        logits = self.network.head().logits(features[:, : self.network.width])
        probabilities = softmax(logits / self.temperature, axis=1)
        usual = self.network.usual
        if features.shape[1] == self.network.width:  # they come without statistics
            usual = None
        found = pd.DataFrame({"name": list(names), "predicted": ""})
        found[probability] = probabilities.round(6)
        found = self._decided(found, probabilities, self.threshold, confidence)
        found["out_of_distribution"] = usual.unlike(features) if usual else "unknown"
        rate = usual.rate if usual else None
        return found.assign(flagged_by_chance=rate, model=self.model)

    def _decided(
        self,
        table: pd.DataFrame,
        probabilities: np.ndarray,
        threshold: float | None,
        confidence: float,
    ) -> pd.DataFrame:
        chosen = probabilities.argmax(1)
        if threshold is not None:
            chosen = (probabilities[:, -1] >= threshold).astype(int)
        return table.assign(
            predicted=[self.classes[index] for index in chosen],
            set=self.sets.names(probabilities, chosen) if self.sets else "unknown",
            low_confidence=probabilities[np.arange(len(chosen)), chosen] < confidence,
        )

    def place(self, features: np.ndarray) -> np.ndarray:
        """(k,) float64: the places of images, see :class:`UsualPlaces`, added up."""
        if not self.network.places or features.shape[1] == self.network.width:
            return np.zeros(0)
        return self.network.usual.place(features).sum(0)

    def shift(self, total: np.ndarray, last_class: np.ndarray, flagged: np.ndarray) -> Shift:
        """Of all new images together: their places added up, the probabilities of the last class,
        as they stand in the table, and which are out of distribution.
        """
        places = self.network.places if len(total) else None
        return Shift.of(places, total, last_class, self.threshold, flagged)

    def shifted(self, table: pd.DataFrame, shift: Shift, *, confidence: float) -> pd.DataFrame:
        """The table with the threshold of ``shift``, and its columns shift, shift_limit and
        threshold (None where not known).
        """
        if shift.threshold != shift.before and len(table):
            columns = [PROBABILITY_PREFIX + name for name in self.classes]
            probabilities = table[columns].to_numpy(np.float64)
            table = self._decided(table, probabilities, shift.threshold, confidence)
        return table.assign(shift=shift.size, shift_limit=shift.limit, threshold=shift.threshold)


def compatible(table: pd.DataFrame) -> pd.DataFrame:
    """``name`` and ``ground_truth`` as the published program writes them: the PREDICTED class
    stands under the name ground_truth. Where there is a warning, it stands beside.
    """
    columns = [name for name in ("name", "predicted", "warning") if name in table]
    return table[columns].rename(columns={"predicted": "ground_truth"})


def predict_new(
    predictor: Predictor, new: ImageSet, folder: str | Path, *, confidence: float
) -> pd.DataFrame:
    """Predict an unlabelled set, say whether it is shifted, and write ``evaluation.csv``,
    ``evaluation_full.csv`` and ``unreadable.csv``.

    Returns the full table; unreadable files stand in the last file only. For large folders see
    :mod:`nbhelpers.studies.predict_folder`.
    """
    features = predictor.features_of(new.pixels)
    table = predictor.table(new.ids, features, confidence=confidence)
    last = table[PROBABILITY_PREFIX + predictor.classes[-1]].to_numpy(np.float64)
    flagged = out_of_distribution(table).to_numpy()
    shift = predictor.shift(predictor.place(features), last, flagged)
    print(shift)
    table = warned(predictor.shifted(table, shift, confidence=confidence))
    written = {EVALUATION_CSV: compatible(table), FULL_CSV: table, UNREADABLE_CSV: new.failures}
    for name, content in written.items():
        write_csv(Path(folder) / name, content)
    return table
