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
from nbhelpers.core.files import sha256_of_file, whole_file
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import PROBABILITY_PREFIX
from nbhelpers.evaluation.decisions import ConformalSets
from nbhelpers.inference.new_images import FEWEST, OutOfDistribution
from nbhelpers.models.frozen import (
    LinearHead,
    TextureFeatures,
    View,
    fit_linear_head,
    mean_features,
)
from nbhelpers.training.checkpoints import load_checkpoint, save_checkpoint
from nbhelpers.training.stains import normalise

TEXTURE = ("middle", "late")  # the parts of the features that the texture head sees
AXES = 16  # main axes of the training images, along which out of distribution is measured
EVALUATION_CSV = "evaluation.csv"
FULL_CSV = "evaluation_full.csv"
UNREADABLE_CSV = "unreadable.csv"


class GlomerulusNet(nn.Module):
    """Frozen features and a linear head in one file, with the training images' features to tell
    what is usual.

    ``forward`` gives features (n, width); ``head`` and ``unlike`` take their mean over the views.
    """

    def __init__(
        self,
        backbone: str = "mobilenet_v2",
        preprocessing: str = "imagenet",
        classes: int = 2,
        references: int = 0,
        axes: int = AXES,
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
        shapes = {
            "weight": (classes, width),
            "bias": (classes,),
            "axes_mean": (width,),
            "axes_scale": (width,),
            "axes": (axes, width),
            "reference": (references, axes + 1),
            "reference_mean": (axes + 1,),
            "reference_scale": (axes + 1,),
            "limit": (1,),
        }
        for name, shape in shapes.items():
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
        standardised = (features - self.axes_mean.numpy()) / self.axes_scale.numpy()
        usual = OutOfDistribution(
            self.reference.numpy(),
            self.reference_mean.numpy(),
            self.reference_scale.numpy(),
            float(self.limit),
        )
        return usual.unlike(_placed(standardised, self.axes.numpy()))


def _placed(standardised: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """(n, axes + 1): the place along the main axes of the training images, and the distance from
    the space of these.
    """
    along = standardised @ axes.T
    return np.column_stack([along, np.linalg.norm(standardised - along @ axes, axis=1)])


def fit_final(
    network: TextureFeatures, features: np.ndarray, images: ImageSet, regularisation: float
) -> GlomerulusNet:
    """The model for new images: the texture head fitted on all labelled ones, by their
    ``features``, (n, width). It has no score of its own: the cross-validated one of the same head
    is the estimate.
    """
    from sklearn.decomposition import PCA

    known = images.labels >= 0
    features = features[known]
    count = len(features)
    classes = len(images.classes)
    parts = [network.columns(part) for part in TEXTURE]
    head = fit_linear_head(
        features, images.labels[known], parts, regularisation=regularisation, classes=classes
    )
    enough = count >= FEWEST
    found = GlomerulusNet(
        **network.settings,
        classes=classes,
        references=count if enough else 0,
        axes=min(AXES, count, features.shape[1]),
    )
    found.features.load_state_dict(network.state_dict())
    values = {"weight": head.weight, "bias": head.bias}
    if enough:
        mean = features.mean(0)
        scale = np.where(features.std(0) > 0, features.std(0), 1.0)
        standardised = (features - mean) / scale
        axes = PCA(found.settings["axes"], random_state=0).fit(standardised).components_
        usual = OutOfDistribution.fit(_placed(standardised, axes))
        values |= {
            "axes_mean": mean,
            "axes_scale": scale,
            "axes": axes,
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
        }
        return save_checkpoint(path, self.network, classes=self.classes, about=about)

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Read what :meth:`save` wrote. Raises CheckpointError."""
        network, card = load_checkpoint(path, GlomerulusNet)
        about = card["about"]
        try:
            views = []
            for view in about["views"]:
                pairs = {"dyes": tuple(view["dyes"]), "place": tuple(view["place"])}
                views.append(View(**view | pairs))
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
        """(n, 3, y, x) uint8 to (n, width); ``network`` is the same one compiled, if any."""
        if not len(pixels):
            return np.zeros((0, 0))
        if self.normalisation != "none":
            same = [normalise(np.asarray(image), self.normalisation) for image in pixels]
            pixels = np.stack(same)
        return mean_features(network or self.network, pixels, self.views, precision=precision)

    def table(
        self, names: Sequence[str], features: np.ndarray, *, confidence: float
    ) -> pd.DataFrame:
        """One row per image: name, predicted, ``probability <class>`` (calibrated), set (always
        with the predicted class), low_confidence, out_of_distribution ("unknown" where the training
        images were too few), model."""
        from scipy.special import softmax

        probability = [PROBABILITY_PREFIX + name for name in self.classes]
        flags = ["set", "low_confidence", "out_of_distribution", "model"]
        if not len(names):
            return pd.DataFrame(columns=["name", "predicted", *probability, *flags])
        logits = self.network.head().logits(features)
        probabilities = softmax(logits / self.temperature, axis=1)
        chosen = probabilities.argmax(1)
        if self.threshold is not None:
            chosen = (probabilities[:, -1] >= self.threshold).astype(int)
        unlike = self.network.unlike(features)
        predicted = [self.classes[index] for index in chosen]
        found = pd.DataFrame({"name": list(names), "predicted": predicted})
        found[probability] = probabilities.round(6)
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
    table = predictor.table(new.ids, predictor.features_of(new.pixels), confidence=confidence)
    written = {EVALUATION_CSV: compatible(table), FULL_CSV: table, UNREADABLE_CSV: new.failures}
    for name, content in written.items():
        with whole_file(Path(folder) / name) as temporary:
            content.to_csv(temporary, index=False)
    return table
