"""Losses for hard and for soft labels, on logits whose softmax are the probabilities."""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nbhelpers.core.errors import InputError
from nbhelpers.training.recipe import Recipe

Loss = Callable[[Tensor, Tensor], Tensor]


def check_loss(loss: float, where: str, learning_rate: float) -> None:
    """Raises InputError for a loss that is NaN or infinity. Nothing is learned from there on, and
    such a network calls every image by the name of its first class.
    """
    if not math.isfinite(loss):
        raise InputError(
            f"training, {where}",
            f"the loss is {loss} at a learning rate of {learning_rate:g}, so training stops. Most "
            "often the rate is too high for this network.",
            "Set a tenth of it as learning_rate, or a small clip_gradient; if the first step says "
            "so already, look at the first weights and the images.",
        )


def soft_labels(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """(n,) class numbers, or (n, classes) shares, to (n, classes) float32 shares that sum to 1,
    smoothed.
    """
    shares = labels if labels.is_floating_point() else F.one_hot(labels, classes).float()
    return shares * (1 - smoothing) + smoothing / classes


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy (nats), each image counting by the weight of its class; shares count by
    their part.
    """
    if not labels.is_floating_point() or weight is None:
        return F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    each = F.cross_entropy(
        logits, labels, weight=weight, label_smoothing=smoothing, reduction="sum"
    )
    # torch divides by n here, but by the weights for hard labels
    return each / (labels @ weight).sum()


def balanced_bce(
    logits: Tensor, labels: Tensor, *, counts: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Binary cross-entropy of each class against the rest, in which a class weighs as much as its
    rest.

    ``counts`` (classes,) are the training images of each class. The probability of a class is its
    softmax, so that training and prediction mean the same by it; with two classes this is the
    cross-entropy with balanced classes.
    """
    shares = soft_labels(labels, logits.shape[1], smoothing)
    own = counts.clamp(min=1)
    rest = (counts.sum() - counts).clamp(min=1)
    others = []
    for k in range(logits.shape[1]):
        rivals = torch.cat([logits[:, :k], logits[:, k + 1 :]], 1)
        others.append(rivals.logsumexp(1))
    odds = logits - torch.stack(others, 1)  # sigmoid of these is the softmax of the logits
    inside = shares * F.logsigmoid(odds) / own
    outside = (1 - shares) * F.logsigmoid(-odds) / rest
    each = -(inside + outside) * counts.sum() / 2
    return each.mean()


def make_loss(recipe: Recipe, class_counts: np.ndarray, weight: Tensor | None = None) -> Loss:
    """``loss(logits, labels)`` of a recipe; labels are (n,) class numbers or (n, classes) shares.

    ``class_counts`` (classes,) are the training images of each class, ``weight`` (classes,) the
    recipe's class weights.
    """
    smoothing = recipe.label_smoothing
    if recipe.loss == "balanced_bce":
        counts = torch.as_tensor(np.asarray(class_counts), dtype=torch.float32)
        return lambda logits, labels: balanced_bce(
            logits, labels, counts=counts.to(logits.device), smoothing=smoothing
        )

    return functools.partial(cross_entropy, weight=weight, smoothing=smoothing)
