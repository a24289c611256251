"""MixUp and CutMix of whole batches, for images and for volumes, with labels that are shares of
classes.
"""

import numpy as np
import torch
from torch import Tensor

from nbhelpers.training.losses import soft_labels


def mixup(images: Tensor, partners: Tensor, shares: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Image i times ``shares[i]`` plus image ``partners[i]`` times the rest, and those shares.

    Source: Zhang et al. 2018, "mixup: Beyond empirical risk minimization".
    """
    kept = torch.as_tensor(shares, dtype=images.dtype, device=images.device)
    kept = kept.view(-1, *[1] * (images.ndim - 1))
    return images * kept + images[partners] * (1 - kept), shares


def cutmix(
    images: Tensor, partners: Tensor, shares: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray]:
    """Image i with a box of image ``partners[i]`` in it, and the TRUE shares of itself that are
    left.

    The box of all axes (y, x or z, y, x) has the volume 1 - ``shares[i]`` around a centre drawn
    anywhere; what reaches over the border is cut off, so less of the partner may be in the image
    than was asked for. Source: Yun et al. 2019, "CutMix", whose share counts what was cut off
    likewise.
    """
    size = images.shape[2:]
    side = (1 - shares) ** (1 / len(size))
    inside = torch.ones(len(images), 1, *size, dtype=torch.bool)
    for axis, length in enumerate(size):
        centre = rng.integers(length, size=len(images))
        half = side * length / 2
        low = np.rint(centre - half)
        high = np.rint(centre + half)
        at = np.arange(length)
        within = (at >= low[:, None]) & (at < high[:, None])
        shape = [1] * len(size)
        shape[axis] = length
        inside &= torch.from_numpy(within).view(len(images), 1, *shape)
    taken = inside.flatten(1).double().mean(1).numpy()
    return torch.where(inside.to(images.device), images[partners], images), 1 - taken


def mix_batch(
    images: Tensor, labels: Tensor, classes: int, *, mix: str, alpha: float, seed: int
) -> tuple[Tensor, Tensor]:
    """(n, c, ...) float images and (n,) class numbers to mixed images and (n, classes) float32
    shares of the classes.

    ``mix`` is "mixup", "cutmix" or "both" (one or the other, drawn for each image); the shares are
    drawn from Beta(``alpha``, ``alpha``) and the partners from the batch, all of it from ``seed``.
    """
    rng = np.random.default_rng(seed)
    partners = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    shares = rng.beta(alpha, alpha, len(images))
    boxed = rng.random(len(images)) < {"mixup": 0, "cutmix": 1, "both": 0.5}[mix]
    mixed = images
    kept = shares
    if not boxed.all():
        mixed, kept = mixup(images, partners, shares)
    if boxed.any():
        cut, left = cutmix(images, partners, shares, rng)
        chosen = torch.from_numpy(boxed).to(images.device).view(-1, *[1] * (images.ndim - 1))
        mixed = torch.where(chosen, cut, mixed)
        kept = np.where(boxed, left, kept)
    kept = torch.as_tensor(kept, dtype=torch.float32, device=images.device)[:, None]
    hard = soft_labels(labels, classes)
    return mixed, hard * kept + hard[partners] * (1 - kept)
