"""Augmentation of 2D images, as whole batches of tensors."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nbhelpers.core.errors import InputError
from nbhelpers.training.recipe import Augmentation
from nbhelpers.training.transform import (
    DihedralEvaluation,
    EvaluationTransform,
    random_matrices,
    random_signs,
    to_float,
)


def random_symmetries(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """(n, c, y, x) with each image mirrored and turned by quarters at random: pixels move, none is
    interpolated.

    Raises InputError for quarter turns of images that are not square.
    """
    count = len(images)
    mirror_x = random_signs(count, settings.flip_horizontal, generator) < 0
    mirror_y = random_signs(count, settings.flip_vertical, generator) < 0
    turns = torch.randint(4, (count,), generator=generator)
    if not settings.quarter_turns:
        turns.zero_()
    elif images.shape[-2] != images.shape[-1]:
        raise InputError(
            "images",
            f"they are {images.shape[-2]} x {images.shape[-1]} px and cannot be turned by "
            "quarters in place.",
            "Crop them to squares, or set quarter_turns to false.",
        )
    moved = images.clone()
    for chosen, axes in ((mirror_x, (-1,)), (mirror_y, (-2,))):
        moved[chosen] = moved[chosen].flip(axes)
    for quarter in (1, 2, 3) if settings.quarter_turns else ():
        moved[turns == quarter] = torch.rot90(moved[turns == quarter], quarter, (-2, -1))
    return moved


def random_tones(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """(n, c, y, x) float, 0 to 1, with blur, brightness, contrast, gamma and noise drawn anew for
    each image.

    The result stays between 0 and 1, where any of the tones but blur is on.
    """
    count = len(images)

    def draw() -> Tensor:  # drawn in any case: one setting must not change the others' draws
        return torch.rand(count, generator=generator).to(images.device)

    def factor(limit: float) -> Tensor:
        return (1 + limit * (2 * draw() - 1)).view(-1, 1, 1, 1)

    width = draw()
    bright = factor(settings.brightness)
    contrast = factor(settings.contrast)
    power = draw()
    noise = draw()
    if settings.blur_px:
        images = _blurred(images, 0.1 + width * (settings.blur_px - 0.1))
    if settings.brightness:
        images = images * bright
    if settings.contrast:
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * contrast
    if settings.gamma:
        images = images.clamp(0, 1) ** ((1 + settings.gamma) ** (2 * power - 1)).view(-1, 1, 1, 1)
    if settings.noise:
        grain = torch.randn(images.shape, generator=generator).to(images.device)
        images = images + grain * (settings.noise * noise).view(-1, 1, 1, 1)
    changed = settings.brightness or settings.contrast or settings.noise
    return images.clamp(0, 1) if changed else images


def _blurred(images: Tensor, widths: Tensor) -> Tensor:
    """Gaussian blur over 3 x 3 px, image i with the standard deviation ``widths[i]`` in px."""
    side = torch.exp(-0.5 / widths**2)
    total = 1 + 2 * side
    middle = (1 / total).view(-1, 1, 1, 1)
    side = (side / total).view(-1, 1, 1, 1)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] * side + padded[..., 1:-1, :] * middle + padded[..., 2:, :] * side
    return rows[..., :-2] * side + rows[..., 1:-1] * middle + rows[..., 2:] * side


class Transform(EvaluationTransform):
    """Turns stored pixels into what the network sees, the same way for training and evaluation.

    ``train(pixels, seed)`` augments, each image drawn from ``seed``; ``evaluate(pixels, view)``
    does not. Both take (n, c, y, x) uint8 or uint16 and give (n, channels, px, px) float32, about 0
    to 1.
    """

    def train(self, pixels: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        settings = self.augmentation
        matrices = None
        if settings.quarter_turns:
            # then mirrored here too, so that without a resampling no pixel is interpolated
            pixels = random_symmetries(to_float(pixels), settings, generator)
            settings = replace(settings, flip_horizontal=False, flip_vertical=False)
        if not settings.quarter_turns or settings.resamples:
            matrices = random_matrices(len(pixels), settings, generator)
        images = self._resampled(pixels, matrices)
        if not settings.changes_tones:
            return images
        return random_tones(images, settings, generator)


class DihedralPreparation(DihedralEvaluation, Transform):
    """The same with the views of :class:`DihedralEvaluation`, for images without an upright."""
