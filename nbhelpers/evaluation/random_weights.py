"""The floor of networks that have learnt nothing: what architecture and pixels give by
themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split
from nbhelpers.evaluation.floors import features_floor
from nbhelpers.training.augment import Transform
from nbhelpers.training.forward import head_features, images_at_once


def random_weights_floor(
    make_network: Callable[[], nn.Module],
    transform: Transform,
    images: ImageSet,
    split: Split,
    *,
    seed: int,
    name: str = "random weights",
) -> Predictions:
    """A logistic regression on what the head of an untrained network sees of the ``images``,
    without augmentation and in 8 bits, tested as :func:`features_floor`.

    ``make_network`` makes the network, and draws its weights by the ``seed``.
    """
    torch.manual_seed(derive_seed(seed, "random weights"))

    def evaluate(batch: torch.Tensor) -> torch.Tensor:
        return (transform.evaluate(batch) * 255).round() / 255

    step = images_at_once(images.pixels, 64)
    features = head_features(make_network(), images.pixels, evaluate, step)
    return features_floor(features, images, split, name)
