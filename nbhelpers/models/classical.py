"""Classical classifiers on raw pixels, as in the published spine benchmark (system A): a linear SVM
and a random forest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nbhelpers.core.errors import InputError, check_choice
from nbhelpers.core.seeds import derive_seed

KINDS = ("svm", "forest")
STRENGTHS = (0.1, 1.0, 10.0)  # C of the SVM, chosen by cross-validation in five parts
RARE = ("Stubby", "Thin")  # of these the published forest saw five images for each one
SHIFT_PX = 5


class PixelClassifier:
    """A linear SVM or a random forest on every pixel of an image; ``kind`` is "svm" or "forest".

    As published: the SVM chooses C from .1, 1 and 10 by five-fold cross-validation on what it is
    fitted to (fewer parts where a class has fewer images); the forest has 100 trees of depth 10
    with balanced classes. The SVM's "probabilities" are the softmax of its decision values, which
    ranks as published but is not calibrated.
    """

    def __init__(self, kind: str, seed: int = 0):
        check_choice("parameter kind", kind, KINDS)
        self.kind = kind
        self.seed = seed
        self.model = None

    def fit(self, pixels: np.ndarray, labels: np.ndarray) -> PixelClassifier:
        """Fit to (n, y, x) or (n, pixels) numbers and (n,) labels from 0. Raises InputError for a
        class with too few.
        """
        values = _flat(pixels)
        counts = np.bincount(labels)
        if self.kind == "forest":
            from sklearn.ensemble import RandomForestClassifier

            forest = RandomForestClassifier(
                100, max_depth=10, class_weight="balanced", random_state=self.seed % 2**32
            )
            self.model = forest.fit(values, labels)
            return self
        if counts.min() < 2:
            raise InputError(
                "SVM",
                f"class number {int(counts.argmin())} has {counts.min()} images to fit on.",
                "It needs 2 of each class to choose C: use fewer folds or more images.",
            )
        from sklearn.model_selection import GridSearchCV
        from sklearn.svm import SVC

        # all products between images once, for the 16 fits that follow; the same as kernel
        # "linear", many times faster
        search = GridSearchCV(
            SVC(kernel="precomputed"), {"C": list(STRENGTHS)}, cv=int(min(5, counts.min()))
        )
        search.fit(values @ values.T, labels)
        self.chosen = search.best_params_["C"]
        self.search_score = float(search.best_score_)
        self.model = search.best_estimator_
        self.count = len(values)
        self.vectors = values[self.model.support_]
        return self

    def _seen(self, pixels: np.ndarray) -> np.ndarray:
        """What the model is given: pixels, or, for the SVM, their products with the images that it
        was fitted to.
        """
        values = _flat(pixels)
        if self.kind == "forest":
            return values
        products = np.zeros((len(values), self.count))
        products[:, self.model.support_] = values @ self.vectors.T  # the others have no weight
        return products

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """(n, y, x) or (n, pixels) to (n, classes) float64, each row summing to 1."""
        from scipy.special import softmax

        seen = self._seen(pixels)
        if self.kind == "forest":
            return self.model.predict_proba(seen)
        decision = self.model.decision_function(seen)
        if decision.ndim == 1:  # of two classes the SVM gives one column
            decision = np.stack([-decision, decision], 1)
        return softmax(decision, axis=1)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """(n, y, x) or (n, pixels) to (n,) int64 labels. The SVM's are the votes between pairs of
        classes, as published; where these are tied, the largest probability may be another
        class."""
        return self.model.predict(self._seen(pixels)).astype(np.int64)


def _flat(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels).reshape(len(pixels), -1).astype(np.float64)


def five_for_one(
    masks: np.ndarray, labels: np.ndarray, rare: Sequence[int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(n, y, x) masks of 0 and 1 with four changed copies of each image of the ``rare`` classes,
    and their labels.

    As published: one turned by up to 30 degrees, one mirrored, one scaled by .8 to 1.2, one shifted
    by up to 5 px; black and white again afterwards.
    """
    import torch

    from nbhelpers.training.recipe import Augmentation
    from nbhelpers.training.transform import random_matrices, resample

    chosen = np.flatnonzero(np.isin(labels, rare))
    some = torch.from_numpy(np.asarray(masks[chosen], np.float32))[:, None]
    copies = [some.flip(-1)]
    for change in ({"rotation_degrees": 30}, {"scale": 0.2}, {"shift": SHIFT_PX / masks.shape[-1]}):
        draw = torch.Generator().manual_seed(derive_seed(seed, *change))
        copies.append(resample(some, 0, random_matrices(len(some), Augmentation(**change), draw)))
    changed = (torch.cat(copies)[:, 0] > 0.5).numpy().astype(masks.dtype)
    more = np.tile(labels[chosen], len(copies))
    return np.concatenate([masks, changed]), np.concatenate([labels, more])


def read_as_published(paths: Sequence[str | Path]) -> np.ndarray:
    """(n, y, x) uint8 of mask files as the published SVM and forest read them: 1-bit files become 0
    and 1, 8-bit files stay 0 to 255, so that more than half of the published masks are next to
    black. To reproduce their figures, nothing else.
    """
    from PIL import Image

    from nbhelpers.imagesets.reader import read_image

    images = []
    for path in paths:
        pixels = read_image(path)[0]  # with all its checks
        with Image.open(path) as image:
            images.append((pixels > 0).astype(np.uint8) if image.mode == "1" else pixels)
    return np.stack(images)
