"""Batched resampling and augmentation of 2D images on tensors.

Training and evaluation images go through the same resampling, evaluation with the identity: a network that only
ever saw interpolated edges scores several points lower on edges that were not.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from nbhelpers.errors import InputError
from nbhelpers.training.recipe import Augmentation


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 or uint16 of any shape to float32 from 0 to 1."""
    if pixels.dtype == torch.uint16:
        return pixels.to(torch.int32).to(torch.float32) / 65535.0
    return pixels.to(torch.float32) / 255.0


def resample(images: torch.Tensor, size_px: int, matrices: torch.Tensor | None = None) -> torch.Tensor:
    """(n, c, y, x) float to (n, c, size_px, size_px), through a (n, 2, 3) affine map or the identity.

    An image more than twice as large is first averaged over whole blocks, so that no edge falls between two samples.
    ``size_px`` 0 keeps the size. Raises InputError when a square is asked of images that are none.
    """
    height, width = images.shape[-2:]
    if size_px and height != width:
        raise InputError("images", f"they are {height} x {width} px, and squashing them into a square would change "
                         "every shape.", "Crop or pad them to squares, or keep their size (input_px 0).")
    target = (size_px, size_px) if size_px else (height, width)
    blocks = (max(1, height // target[0]), max(1, width // target[1]))
    if blocks != (1, 1):
        images = F.avg_pool2d(images, blocks)
    if matrices is None:
        if images.shape[-2:] == target:
            return images
        matrices = torch.eye(2, 3).expand(len(images), 2, 3)
    if height != width:  # affine_grid works in fractions of the height and the width: a turn must stay a turn
        matrices = matrices.clone()
        matrices[:, 0, 1] *= height / width
        matrices[:, 1, 0] *= width / height
    grid = F.affine_grid(matrices.to(images), (len(images), images.shape[1], *target), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def random_matrices(count: int, settings: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """(count, 2, 3) random affine maps from output to input coordinates (-1 to 1), drawn from ``generator``."""

    def between(limit: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle = between(math.radians(settings.rotation_degrees))
    scale, stretch, shear = 1 + between(settings.scale), between(settings.stretch), between(settings.shear)
    shift_x, shift_y = between(2 * settings.shift), between(2 * settings.shift)
    mirror_x = _signs(count, settings.flip_horizontal, generator)
    mirror_y = _signs(count, settings.flip_vertical, generator)
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrices = torch.zeros(count, 2, 3)
    matrices[:, 0, 0] = mirror_x * scale * cos
    matrices[:, 0, 1] = mirror_x * scale * (shear * cos - sin)
    matrices[:, 1, 0] = mirror_y * scale * (1 + stretch) * sin
    matrices[:, 1, 1] = mirror_y * scale * (1 + stretch) * (shear * sin + cos)
    matrices[:, 0, 2], matrices[:, 1, 2] = shift_x, shift_y
    return matrices


def _signs(count: int, flip: bool, generator: torch.Generator) -> torch.Tensor:
    draw = torch.rand(count, generator=generator)  # drawn in any case: one setting must not change the others' draws
    return torch.where(draw < 0.5, -1.0, 1.0) if flip else torch.ones(count)


class Preparation:
    """Turns stored pixels into what the network sees, the same way for training and evaluation.

    ``train(pixels, seed)`` augments, each image drawn from ``seed``; ``evaluate(pixels, view)`` does not: view 0 is
    the image, view 1 its mirror image, later views are fixed small rotations and shifts within the augmentation's
    range. Both take (n, c, y, x) uint8 or uint16 and give (n, channels, px, px) float32, about 0 to 1.
    """

    def __init__(self, augmentation: Augmentation, input_px: int = 0, channels: int | None = None):
        self.augmentation, self.input_px, self.channels = augmentation, input_px, channels

    def train(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return self._resampled(pixels, random_matrices(len(pixels), self.augmentation, generator))

    def evaluate(self, pixels: torch.Tensor, view: int = 0) -> torch.Tensor:
        if view == 0:
            return self._resampled(pixels, None)
        matrix = torch.eye(2, 3)[None]
        if view > 1:
            settings = self.augmentation
            half = Augmentation(rotation_degrees=settings.rotation_degrees / 2, scale=settings.scale / 2,
                                shift=settings.shift / 2)
            matrix = random_matrices(1, half, torch.Generator().manual_seed(view // 2))
        if view % 2 == 1:
            matrix = matrix.clone()
            matrix[:, :, 0] *= -1  # the mirror image of that view
        return self._resampled(pixels, matrix.expand(len(pixels), 2, 3))

    def _resampled(self, pixels: torch.Tensor, matrices: torch.Tensor | None) -> torch.Tensor:
        images = resample(to_float(pixels), self.input_px, matrices)
        if self.channels and images.shape[1] == 1 and self.channels > 1:
            images = images.expand(-1, self.channels, -1, -1)
        return images
