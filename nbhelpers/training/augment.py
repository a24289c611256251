"""Batched resampling and augmentation of 2D images on tensors.

Training and evaluation images go through the same resampling, evaluation with the identity: a
network that only ever saw interpolated edges scores several points lower on edges that were not.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from nbhelpers.core.errors import InputError
from nbhelpers.training.recipe import Augmentation


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 or uint16 of any shape to float32 from 0 to 1."""
    if pixels.dtype == torch.uint16:
        return pixels.to(torch.int32).to(torch.float32) / 65535.0
    return pixels.to(torch.float32) / 255.0


def resample(
    images: torch.Tensor, size_px: int, matrices: torch.Tensor | None = None
) -> torch.Tensor:
    """(n, c, y, x) float to (n, c, size_px, size_px), through a (n, 2, 3) affine map or the
    identity.

    An image more than twice as large is first averaged over whole blocks, so that no edge falls
    between two samples. ``size_px`` 0 keeps the size. Raises InputError when a square is asked of
    images that are none.
    """
    height, width = images.shape[-2:]
    if size_px and height != width:
        raise InputError(
            "images",
            f"they are {height} x {width} px, and squashing them into a square would change "
            "every shape.",
            "Crop or pad them to squares, or keep their size (input_px 0).",
        )
    target = (size_px, size_px) if size_px else (height, width)
    blocks = (max(1, height // target[0]), max(1, width // target[1]))
    if blocks != (1, 1):
        images = F.avg_pool2d(images, blocks)
    if matrices is None:
        if images.shape[-2:] == target:
            return images
        matrices = torch.eye(2, 3).expand(len(images), 2, 3)
    if height != width:
        # affine_grid works in fractions of the height and the width: a turn must stay a turn
        matrices = matrices.clone()
        matrices[:, 0, 1] *= height / width
        matrices[:, 1, 0] *= width / height
    grid = F.affine_grid(
        matrices.to(images), (len(images), images.shape[1], *target), align_corners=False
    )
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def random_matrices(count: int, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """(count, 2, 3) random affine maps from output to input coordinates (-1 to 1), drawn from
    ``generator``.
    """

    def between(limit: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle = between(math.radians(settings.rotation_degrees))
    scale = 1 + between(settings.scale)
    stretch = between(settings.stretch)
    shear = between(settings.shear)
    shift_x = between(2 * settings.shift)
    shift_y = between(2 * settings.shift)
    mirror_x = _signs(count, settings.flip_horizontal, generator)
    mirror_y = _signs(count, settings.flip_vertical, generator)
    cos = torch.cos(angle)
    sin = torch.sin(angle)
    matrices = torch.zeros(count, 2, 3)
    matrices[:, 0, 0] = mirror_x * scale * cos
    matrices[:, 0, 1] = mirror_x * scale * (shear * cos - sin)
    matrices[:, 1, 0] = mirror_y * scale * (1 + stretch) * sin
    matrices[:, 1, 1] = mirror_y * scale * (1 + stretch) * (shear * sin + cos)
    matrices[:, 0, 2] = shift_x
    matrices[:, 1, 2] = shift_y
    return matrices


def _signs(count: int, flip: bool, generator: torch.Generator) -> torch.Tensor:
    # drawn in any case: one setting must not change the others' draws
    draw = torch.rand(count, generator=generator)
    return torch.where(draw < 0.5, -1.0, 1.0) if flip else torch.ones(count)


def random_symmetries(
    images: torch.Tensor, settings: Augmentation, generator: torch.Generator
) -> torch.Tensor:
    """(n, c, y, x) with each image mirrored and turned by quarters at random: pixels move, none is
    interpolated.

    Raises InputError for quarter turns of images that are not square.
    """
    count = len(images)
    mirror_x = _signs(count, settings.flip_horizontal, generator) < 0
    mirror_y = _signs(count, settings.flip_vertical, generator) < 0
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


def random_tones(
    images: torch.Tensor, settings: Augmentation, generator: torch.Generator
) -> torch.Tensor:
    """(n, c, y, x) float, 0 to 1, with blur, brightness, contrast, gamma and noise drawn anew for
    each image.

    The result stays between 0 and 1, where any of the tones but blur is on.
    """
    count = len(images)

    def draw() -> torch.Tensor:  # drawn in any case: one setting must not change the others' draws
        return torch.rand(count, generator=generator).to(images.device)

    def factor(limit: float) -> torch.Tensor:
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


def _blurred(images: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Gaussian blur over 3 x 3 px, image i with the standard deviation ``widths[i]`` in px."""
    side = torch.exp(-0.5 / widths**2)
    total = 1 + 2 * side
    middle = (1 / total).view(-1, 1, 1, 1)
    side = (side / total).view(-1, 1, 1, 1)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] * side + padded[..., 1:-1, :] * middle + padded[..., 2:, :] * side
    return rows[..., :-2] * side + rows[..., 1:-1] * middle + rows[..., 2:] * side


class Transform:
    """Turns stored pixels into what the network sees, the same way for training and evaluation.

    ``train(pixels, seed)`` augments, each image drawn from ``seed``; ``evaluate(pixels, view)``
    does not: view 0 is the image, view 1 its mirror image, later views are fixed small rotations
    and shifts within the augmentation's range. Both take (n, c, y, x) uint8 or uint16 and give (n,
    channels, px, px) float32, about 0 to 1.
    """

    def __init__(self, augmentation: Augmentation, input_px: int = 0, channels: int | None = None):
        self.augmentation = augmentation
        self.input_px = input_px
        self.channels = channels

    def train(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
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

    def evaluate(self, pixels: torch.Tensor, view: int = 0) -> torch.Tensor:
        if view == 0:
            return self._resampled(pixels, None)
        matrix = torch.eye(2, 3)[None]
        if view > 1:
            settings = self.augmentation
            # half as far as in training: views should be easy images, and flips come below
            half = Augmentation(
                rotation_degrees=settings.rotation_degrees / 2,
                scale=settings.scale / 2,
                shift=settings.shift / 2,
            )
            matrix = random_matrices(1, half, torch.Generator().manual_seed(view // 2))
        if view % 2 == 1:
            matrix = matrix.clone()
            matrix[:, :, 0] *= -1  # the mirror image of that view
        return self._resampled(pixels, matrix.expand(len(pixels), 2, 3))

    def _resampled(self, pixels: torch.Tensor, matrices: torch.Tensor | None) -> torch.Tensor:
        images = resample(
            pixels if pixels.is_floating_point() else to_float(pixels), self.input_px, matrices
        )
        if self.channels and images.shape[1] == 1 and self.channels > 1:
            images = images.expand(-1, self.channels, -1, -1)
        return images


class DihedralPreparation(Transform):
    """The same, but its views are the eight symmetries of the square: for images without an
    upright.

    View 0 is the image; views 1, 2 and 3 are its quarter turns; 4 to 7 are their mirror images;
    then from the start. No view is interpolated.
    """

    def evaluate(self, pixels: torch.Tensor, view: int = 0) -> torch.Tensor:
        images = torch.rot90(self._resampled(pixels, None), view % 4, (-2, -1))
        return images.flip(-1) if view % 8 >= 4 else images
