"""One pose and one size for all masks of spines: dendrite below, and the pixels of one microscope.

Outlines of another laboratory lie as they were drawn, in pixels of another size. A network that was
trained upright gives a turned mask another class, and is sure of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from nbhelpers.core.files import repository, sha256_of
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets.windows import WINDOW_PX
from nbhelpers.models.spine_pose import SpinePoseCNN
from nbhelpers.training.checkpoints import load_checkpoint
from nbhelpers.training.transform import resample

CHECKPOINT = repository() / "checkpoints" / "spine_pose.safetensors"
SEEN_PX = 40  # height and width in which the network of the pose sees a mask
RADII = 3.0  # half of that, in root mean square distances of the foreground from its centre
SMALL_PX = 96
TURNS = 12  # of each mask and its mirror image: what is found must not hang on how it came
SIDE_PX = 50.0  # root of the usual area of a mask in its frame; that of the public masks
FEWEST_PX = 4  # root of the area of the smallest mask
NOTABLE = 1.5  # times between two scales of which only one can be right
FEWEST = 20  # different masks whose median area tells the size of a pixel
AT_ONCE = 256


def moments(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of (n, 1, y, x) float masks: the centres (n, 2) as x and y, the areas (n,) and the root mean
    square distances from the centre (n,), in pixels.
    """
    shown = masks[:, 0]
    height, width = shown.shape[1:]
    x = torch.arange(width) + 0.5
    y = torch.arange(height) + 0.5
    area = shown.sum((1, 2))
    columns = shown.sum(1) / area[:, None]
    rows = shown.sum(2) / area[:, None]
    centre = torch.stack([columns @ x, rows @ y], 1)
    spread = columns @ x**2 + rows @ y**2 - (centre**2).sum(1)
    return centre, area, spread.clamp(min=0.25).sqrt()


def turned(
    masks: torch.Tensor,
    centre: torch.Tensor,
    angles: torch.Tensor,
    pixels_each: torch.Tensor,
    size_px: int,
    shapes: torch.Tensor | None = None,
) -> torch.Tensor:
    """(n, 1, y, x) float masks, square, turned counterclockwise about their ``centre`` by
    ``angles`` (n,) in radians, in frames of ``size_px`` of which a pixel is ``pixels_each`` (n,) of
    theirs. ``shapes`` (n, 2, 2) change the masks before that (mirror, stretch, shear).
    """
    width = masks.shape[-1]
    cos = torch.cos(angles)
    sin = torch.sin(angles)
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    if shapes is not None:
        turn = shapes @ turn
    turn = turn * (pixels_each * size_px / width)[:, None, None]
    return resample(masks, size_px, torch.cat([turn, (2 * centre / width - 1)[:, :, None]], 2))


@torch.inference_mode()
def upright_angles(network: torch.nn.Module, masks: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """By which angle (n,), in radians, each of (n, 1, y, x) float masks has to be turned to have
    its base below, and how sure that is (n,), 0 to 1: how far what the network sees in many turns
    of the mask, and of its mirror image, agrees.
    """
    centre, _, radius = moments(masks)
    none = torch.zeros(len(masks))
    # once into a smaller frame in which they can be turned, as most of the time goes into this
    small = turned(masks, centre, none, 3 * RADII * radius / SMALL_PX, SMALL_PX)
    middle = torch.full((len(masks), 2), SMALL_PX / 2)
    each = torch.full((len(masks),), SMALL_PX / 1.5 / SEEN_PX)
    agreed = torch.zeros(len(masks), 2)
    for mirror in (1.0, -1.0):
        shapes = torch.diag(torch.tensor([mirror, 1.0])).expand(len(masks), 2, 2)
        for turn in range(TURNS):
            angle = none + 2 * math.pi * turn / TURNS
            found = network(turned(small, middle, angle, each, SEEN_PX, shapes))
            angle = mirror * (angle - torch.atan2(found[:, 1], found[:, 0]))
            agreed += torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    agreed /= 2 * TURNS
    return torch.atan2(agreed[:, 1], agreed[:, 0]).numpy(), agreed.norm(dim=1).numpy()


@dataclass(frozen=True)
class Scale:
    """How large the masks of a set are drawn: ``zoom`` px of the common frame per px of their
    files, ``um_per_px`` of these where it is known (else 0), and ``how`` that was found, in words.
    """

    zoom: float
    um_per_px: float
    how: str

    @classmethod
    def of(cls, images: ImageSet, um_per_px: float = 0.0, known: Scale | None = None) -> Scale:
        """By the size of a pixel, where it is known of these masks and of those of ``known``; else
        by the median area of these masks, which hardly hangs on the shares of their classes; of
        fewer than 20 different new ones, as ``known``.
        """
        if known and known.um_per_px and um_per_px:
            zoom = known.zoom * um_per_px / known.um_per_px
            return cls(zoom, um_per_px, f"by their pixels of {um_per_px:g} µm")
        sides = np.sqrt(np.count_nonzero(images.pixels, axis=(1, 2, 3))) * _shrunk(images)
        zoom = SIDE_PX / float(np.median(sides))
        how = f"by the median area of these {len(images)} masks"
        different = len(np.unique(sides))
        if known and different < FEWEST:
            how = f"as the training masks, as only {different} are different"
            if max(zoom / known.zoom, known.zoom / zoom) > NOTABLE:
                how += f" (their own median area says {zoom:.2f}: are their pixels of one size?)"
            zoom = known.zoom
        if known and known.um_per_px != um_per_px:
            how += "; the size of a pixel is known of one of the two sets only, and was not used"
        return cls(zoom, um_per_px, how)


def _shrunk(images: ImageSet) -> np.ndarray:
    """(n,) px of the file per px of the frame: above 1 where a mask did not fit."""
    return images.table["shrunk"].to_numpy() if "shrunk" in images.table else np.ones(len(images))


def _farthest(masks: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """(n,) px from the centres of (n, 1, y, x) masks to their farthest pixel."""
    shown = masks[:, 0] > 0
    x = torch.arange(shown.shape[2]) + 0.5
    y = torch.arange(shown.shape[1]) + 0.5
    across = (x - centre[:, :1]) ** 2
    down = (y - centre[:, 1:]) ** 2
    squares = (down[:, :, None] + across[:, None, :]) * shown
    return squares.amax((1, 2)).sqrt() + 1


@cache
def _network() -> tuple[SpinePoseCNN, float]:
    network, card = load_checkpoint(CHECKPOINT, SpinePoseCNN)
    return network, float(card["about"]["sure_from"])


def in_one_pose(images: ImageSet, scale: Scale) -> ImageSet:
    """The same masks, (n, 1, y, x) uint8 in square frames, turned to have their base below and
    drawn at one ``scale``, their centre in the middle of the frame.

    The table gains ``turned_degree`` (counterclockwise); ``pose_uncertain``, whether what the
    network of the pose sees in several turns of a mask disagrees; and ``other_scale``, whether a
    mask was too large for the window of a network, or far too small, and is drawn smaller or larger
    than the others.
    """
    network, sure_from = _network()
    zooms = scale.zoom * _shrunk(images)
    pixels = np.empty(images.pixels.shape, np.uint8)
    size_px = pixels.shape[-1]
    angles = np.zeros(len(images))
    sure = np.ones(len(images))
    other = np.zeros(len(images), bool)
    for start in range(0, len(images), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        # a black border, as what lies beyond the frame is drawn like its last pixels
        masks = F.pad(torch.from_numpy((images.pixels[some] > 127).astype(np.float32)), (1,) * 4)
        angles[some], sure[some] = upright_angles(network, masks)
        centre, area, _ = moments(masks)
        # no mask may vanish, and no part may leave the frame: what is far too small or too large
        # is drawn larger or smaller
        each = torch.minimum(torch.from_numpy(1 / zooms[some]).float(), area.sqrt() / FEWEST_PX)
        each = torch.maximum(each, 2 * _farthest(masks, centre) / (size_px - 2))
        other[some] = np.abs(each.numpy() * zooms[some] - 1) > 1e-3
        angle = torch.from_numpy(angles[some]).float()
        upright = turned(masks, centre, angle, each, size_px)
        # half of its own brightest pixel, as a small mask drawn smaller has no full one
        shown = upright > 0.5 * upright.amax((1, 2, 3), keepdim=True)
        pixels[some] = shown.numpy() * np.uint8(255)
    sides = [np.count_nonzero(pixels[:, 0].any(axis), axis=1) for axis in (1, 2)]
    table = images.table.assign(
        turned_degree=np.degrees(angles).round(1),
        pose_uncertain=sure < sure_from,
        other_scale=other | (np.max(sides, axis=0) > WINDOW_PX),
    )
    digest = sha256_of([images.content_hash, "one pose", scale.zoom, angles.round(4).tolist()])
    return replace(images, table=table, pixels=pixels, content_hash=digest)
