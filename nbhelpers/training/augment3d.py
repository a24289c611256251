"""Augmentation of cubes of sections, as whole batches of tensors: everything moves within the
section.

Sections are thicker than pixels are wide and are cut, stained and aligned one by one, so that is
how they vary: they are turned and bent together, in plane, and change their grey, slip or get lost
one by one. Nothing is interpolated between sections, which would blur what is real, and which makes
it several times faster than in 3D.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nbhelpers.core.errors import InputError
from nbhelpers.core.seeds import derive_seed
from nbhelpers.training.augment import random_symmetries, random_tones
from nbhelpers.training.recipe import Augmentation
from nbhelpers.training.transform import (
    random_matrices,
    resample,
    sampling_grid,
    symmetry,
    to_float,
)

_ELASTIC_POINTS = (3, 5, 5)  # z, y, x: where displacements are drawn; between them they are smooth
BLANK = 0.0  # the grey of a lost section, as notebook 01 stores it


def random_warp(volumes: Tensor, settings: Augmentation, seed: int) -> Tensor:
    """(n, c, z, y, x) float with each cube turned, scaled and bent in plane, and its sections
    slipped, at random.

    ``rotation_degrees``, ``scale``, ``stretch``, ``shear`` and ``shift`` are one movement for a
    whole cube, ``elastic_px`` a displacement that is smooth in z too, ``section_shift_px`` one for
    each section. All of it is one interpolation.
    """
    count = len(volumes)
    depth, height, width = volumes.shape[2:]
    matrices = random_matrices(count, settings, _generator(seed, "warp"))
    grid = sampling_grid(matrices, (height, width))[:, None].expand(-1, depth, -1, -1, -1)
    per_px = torch.tensor([2 / width, 2 / height])  # the grid runs from -1 to 1, x first
    if settings.section_shift_px:
        slip = 2 * torch.rand(count, depth, 1, 1, 2, generator=_generator(seed, "slip")) - 1
        grid = grid + slip * settings.section_shift_px * per_px
    if settings.elastic_px:
        draw = _generator(seed, "elastic")
        drawn = 2 * torch.rand(count, 2, *_ELASTIC_POINTS, generator=draw) - 1
        bend = F.interpolate(drawn, (depth, height, width), mode="trilinear", align_corners=True)
        grid = grid + bend.movedim(1, -1) * settings.elastic_px * per_px
    sections = volumes.transpose(1, 2).flatten(0, 1)
    grid = grid.to(volumes).reshape(len(sections), height, width, 2)
    moved = F.grid_sample(sections, grid, padding_mode="border", align_corners=False)
    return moved.unflatten(0, (count, depth)).transpose(1, 2)


def random_sections(volumes: Tensor, settings: Augmentation, seed: int) -> Tensor:
    """(n, c, z, y, x) float, 0 to 1, with each section's grey changed and some sections lost, at
    random.

    A lost section is black, or the mean of its two neighbours as some data sets fill it; either is
    as likely.
    """
    count, _, depth = volumes.shape[:3]
    if settings.section_contrast:
        draw = _generator(seed, "section grey")
        drawn = 2 * torch.rand(2, count, 1, depth, 1, 1, generator=draw) - 1
        factor, bright = (1 + settings.section_contrast * drawn.to(volumes)).unbind(0)
        mean = volumes.mean((-2, -1), keepdim=True)
        volumes = (mean * bright + (volumes - mean) * factor).clamp(0, 1)
    if settings.missing_sections:
        drawn = torch.rand(2, count, depth, generator=_generator(seed, "lost sections"))
        lost = (drawn[0] < settings.missing_sections).nonzero()
        black = drawn[1] < 0.5
        whole = volumes
        volumes = volumes.clone()
        for cube, at in lost.tolist():
            beside = [near for near in (at - 1, at + 1) if 0 <= near < depth]
            blank = black[cube, at] or not beside
            volumes[cube, :, at] = BLANK if blank else whole[cube, :, beside].mean(1)
    return volumes


def _generator(seed: int, what: str) -> torch.Generator:
    """One for each kind of change, so that one setting does not change the others' draws."""
    return torch.Generator().manual_seed(derive_seed(seed, what))


@dataclass(eq=False)
class CubePreparation:
    """Turns stored cubes into what the network sees, the same way for training and evaluation.

    ``train(pixels, seed)`` augments each cube, drawn from ``seed``. ``evaluate(pixels, view)`` does
    not: views 0 to 7 are the symmetries of a square in plane (0 the cube, 1 to 3 its quarter turns,
    4 to 7 their mirror images), 8 to 15 the same with the sections in reverse order; then from the
    start. No view is interpolated, and none turns a section on its edge, as voxels are no cubes.
    Both take (n, c, z, y, x) uint8 or uint16 and give (n, c, z, px, px) float32, 0 to 1.
    ``input_px`` averages y and x down to this (0: as they are); z stays. Raises InputError for
    quarter turns of sections that are not square.
    """

    augmentation: Augmentation
    input_px: int = 0

    def train(self, pixels: Tensor, seed: int) -> Tensor:
        settings = self.augmentation
        count, channels, depth = pixels.shape[:3]
        volumes = self._resized(pixels)
        # cubes are images whose channels are the sections: what 2D has serves here too
        volumes = random_symmetries(volumes.flatten(1, 2), settings, _generator(seed, "symmetries"))
        volumes = volumes.unflatten(1, (channels, depth))
        if settings.flip_depth:
            reverse = torch.rand(count, generator=_generator(seed, "depth")) < 0.5
            volumes[reverse] = volumes[reverse].flip(2)
        settings = replace(settings, flip_horizontal=False, flip_vertical=False)  # they are done
        if settings.resamples or settings.elastic_px or settings.section_shift_px:
            volumes = random_warp(volumes, settings, seed)
        volumes = random_sections(volumes, settings, seed)
        if settings.changes_tones:
            volumes = random_tones(volumes.flatten(1, 2), settings, _generator(seed, "tones"))
            volumes = volumes.unflatten(1, (channels, depth))
        return volumes

    def evaluate(self, pixels: Tensor, view: int = 0) -> Tensor:
        volumes = self._resized(pixels)
        if view % 2 and volumes.shape[-2] != volumes.shape[-1]:
            raise InputError(
                "images",
                f"their sections are {volumes.shape[-2]} x {volumes.shape[-1]} px and cannot be "
                "turned by quarters in place.",
                "Crop them to squares, or predict with one view.",
            )
        volumes = symmetry(volumes, view)
        return volumes.flip(2) if view % 16 >= 8 else volumes

    def _resized(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 5:
            raise InputError(
                "images",
                f"they have {pixels.ndim} axes.",
                "Cubes have five: image, channel, z, y, x.",
            )
        count, channels, depth = pixels.shape[:3]
        sections = to_float(pixels).flatten(0, 2)[:, None]
        resized = resample(sections, self.input_px)
        return resized.reshape(count, channels, depth, *resized.shape[-2:])
