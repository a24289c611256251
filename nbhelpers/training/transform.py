"""What the network sees of stored images: batched resampling on tensors, and the views of an image.

Training and evaluation images go through the same resampling, evaluation with the identity: a
network that only ever saw interpolated edges scores several points lower on edges that were not.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nbhelpers.core.errors import InputError
from nbhelpers.training.recipe import Augmentation


def to_float(pixels: Tensor) -> Tensor:
    """uint8 or uint16 of any shape to float32 from 0 to 1."""
    if pixels.dtype == torch.uint16:
        return pixels.to(torch.int32).to(torch.float32) / 65535.0
    return pixels.to(torch.float32) / 255.0


def resample(images: Tensor, size_px: int, matrices: Tensor | None = None) -> Tensor:
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
    return F.grid_sample(
        images,
        sampling_grid(matrices.to(images), target),
        padding_mode="border",
        align_corners=False,
    )


def sampling_grid(matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, 2, 3) affine maps to (n, y, x, 2): from where each pixel of an image of this ``size`` is
    taken, -1 to 1, x first.
    """
    height, width = size
    # affine_grid works in fractions of the height and the width: a turn must stay a turn
    matrices = matrices.clone()
    matrices[:, 0, 1] *= height / width
    matrices[:, 1, 0] *= width / height
    return F.affine_grid(matrices, (len(matrices), 1, height, width), align_corners=False)


def random_matrices(count: int, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """(count, 2, 3) random affine maps from output to input coordinates (-1 to 1), drawn from
    ``generator``.
    """

    def between(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle = between(math.radians(settings.rotation_degrees))
    scale = 1 + between(settings.scale)
    stretch = between(settings.stretch)
    shear = between(settings.shear)
    shift_x = between(2 * settings.shift)
    shift_y = between(2 * settings.shift)
    mirror_x = random_signs(count, settings.flip_horizontal, generator)
    mirror_y = random_signs(count, settings.flip_vertical, generator)
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


def random_signs(count: int, flip: bool, generator: torch.Generator) -> Tensor:
    """(count,) 1 or, as likely where it may ``flip``, -1."""
    # drawn in any case: one setting must not change the others' draws
    draw = torch.rand(count, generator=generator)
    return torch.where(draw < 0.5, -1.0, 1.0) if flip else torch.ones(count)


def symmetry(images: Tensor, view: int) -> Tensor:
    """(..., y, x) in one of the eight symmetries of the square: 0 is the image; 1, 2 and 3 are its
    quarter turns; 4 to 7 their mirror images; then from the start. Nothing is interpolated.
    """
    if view % 4:  # turned by nothing is a copy
        images = torch.rot90(images, view % 4, (-2, -1))
    return images.flip(-1) if view % 8 >= 4 else images


@dataclass(eq=False)
class EvaluationTransform:
    """Turns stored pixels into what the network sees when it predicts.

    ``evaluate(pixels, view)`` takes (n, c, y, x) uint8 or uint16 and gives (n, channels, px, px)
    float32, 0 to 1: view 0 is the image, view 1 its mirror image, later views are fixed small
    rotations and shifts within the augmentation's range.
    """

    augmentation: Augmentation
    input_px: int = 0
    channels: int | None = None

    def evaluate(self, pixels: Tensor, view: int = 0) -> Tensor:
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

    def _resampled(self, pixels: Tensor, matrices: Tensor | None) -> Tensor:
        images = resample(
            pixels if pixels.is_floating_point() else to_float(pixels), self.input_px, matrices
        )
        if self.channels and images.shape[1] == 1 and self.channels > 1:
            images = images.expand(-1, self.channels, -1, -1)
        return images


class DihedralEvaluation(EvaluationTransform):
    """The same, but its views are the eight symmetries of the square (:func:`symmetry`): for images
    without an upright. No view is interpolated.
    """

    def evaluate(self, pixels: Tensor, view: int = 0) -> Tensor:
        return symmetry(self._resampled(pixels, None), view)
