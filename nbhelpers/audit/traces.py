"""Traces in the pixels of how images were taken, stored or worked on: compression, sharpness and
noise, grey levels, colour and handedness. Numbers per image for :mod:`nbhelpers.audit.shortcuts`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

LARGEST_PX = 256  # height and width that are looked at, in the middle; a grid of blocks must stay
AT_ONCE = 64
BLOCK_PX = 8  # of JPEG
NEARLY_NOTHING = 0.5  # grey levels
LATE = 6  # the sum of the two frequencies from which on compression takes them first


def traces(pixels: np.ndarray, rows: np.ndarray) -> dict[str, pd.DataFrame]:
    """Name of each kind of trace to its numbers, one row for each of ``rows``.

    ``pixels`` is (n, channel, y, x) or (n, channel, z, y, x), uint8 or uint16; of a volume the
    middle section counts, of a large image the middle. Numbers are means over the channels. A kind
    that these images cannot have (colour without three channels, blocks in less than 32 px) is left
    out.
    """
    scale = 255 / np.iinfo(pixels.dtype).max
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(rows), AT_ONCE):
        part = []
        for row in rows[start : start + AT_ONCE]:
            image = np.asarray(pixels[row])
            image = image[:, image.shape[1] // 2] if image.ndim == 4 else image
            part.append(image[(slice(None), *map(_middle, image.shape[1:]))])
        values = torch.from_numpy(np.stack(part).astype(np.float32) * scale)
        planes = values.flatten(0, 1)
        for name, make in KINDS.items():
            if name == "compression" and min(values.shape[2:]) < 4 * BLOCK_PX:
                continue
            if name == "colour balance":
                if values.shape[1] != 3:
                    continue
                numbers = make(values)
            else:
                numbers = make(planes).unflatten(0, values.shape[:2]).mean(1)
            found.setdefault(name, []).append(numbers.numpy())
    return {
        name: pd.DataFrame(np.concatenate(parts).astype(float), columns=COLUMNS[name])
        for name, parts in found.items()
    }


def _middle(side: int) -> slice:
    """At most LARGEST_PX, beginning where a block of JPEG begins."""
    start = max(0, side - LARGEST_PX) // 2 // BLOCK_PX * BLOCK_PX
    return slice(start, start + LARGEST_PX)


def _compression(planes: torch.Tensor) -> torch.Tensor:
    """Steps between blocks of 8 x 8 px against those within, in logarithms, and how many more of
    the high frequencies of such blocks are nothing than of blocks that begin elsewhere: both are
    about the grid, which no structure follows. The outermost blocks, with frames, do not count.
    """
    planes = planes[:, BLOCK_PX:-BLOCK_PX, BLOCK_PX:-BLOCK_PX]
    steps = []
    for image in (planes, planes.transpose(1, 2)):
        size = (image[..., 1:] - image[..., :-1]).abs().mean(1)
        at = torch.arange(size.shape[1]) % BLOCK_PX == BLOCK_PX - 1
        steps.append(((size[:, at].mean(1) + 0.1) / (size[:, ~at].mean(1) + 0.1)).log())
    nothing = _nothing(planes) - _nothing(planes[:, 4:-4, 4:-4])
    return torch.stack([sum(steps), nothing], 1)


def _nothing(planes: torch.Tensor) -> torch.Tensor:
    place = torch.arange(BLOCK_PX)
    cosine = torch.cos(torch.pi * (2 * place[None] + 1) * place[:, None] / (2 * BLOCK_PX))
    cosine = F.normalize(cosine, dim=1)
    late = place[:, None] + place[None] >= LATE
    whole = [side // BLOCK_PX * BLOCK_PX for side in planes.shape[1:]]
    blocks = planes[:, : whole[0], : whole[1]]
    blocks = blocks.unfold(1, BLOCK_PX, BLOCK_PX).unfold(2, BLOCK_PX, BLOCK_PX)
    strengths = (cosine @ blocks @ cosine.T).abs()[..., late]
    return (strengths < NEARLY_NOTHING).float().mean((1, 2, 3))


def _sharpness(planes: torch.Tensor) -> torch.Tensor:
    """Detail of three sizes, each against the next coarser one, and the noise (Immerkaer 1996)."""
    image = planes[:, None]
    strengths = []
    for _ in range(4):
        smooth = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="reflect"), 3, 1)
        strengths.append(((image - smooth) ** 2).mean((1, 2, 3)).add(0.01).log())
        image = F.avg_pool2d(smooth, 2)
    mask = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]])[None, None]
    noise = F.conv2d(planes[:, None], mask).abs().mean((1, 2, 3)) * np.sqrt(np.pi / 2) / 6
    finer = torch.stack(strengths[:-1], 1) - torch.stack(strengths[1:], 1)
    return torch.cat([finer, (noise + 0.1).log()[:, None]], 1)


def _grey_levels(planes: torch.Tensor) -> torch.Tensor:
    """The darkest and brightest, the commonest, and how rough the histogram is: levels that were
    spread or pushed together leave gaps and peaks in it.
    """
    values = planes.flatten(1)
    counts = torch.stack([torch.histc(one, 256, 0, 255) for one in values])
    rough = counts[:, 1:-1] - (counts[:, :-2] + counts[:, 2:]) / 2
    by_chance = 1.5 * counts[:, 1:-1].sum(1) + 1
    ends = torch.quantile(values, torch.tensor([0.0, 0.02, 0.98, 1.0]), dim=1)
    common = counts.argmax(1).float()
    return torch.stack([*ends, common, ((rough**2).sum(1) / by_chance + 0.1).log()], 1)


def _colour(images: torch.Tensor) -> torch.Tensor:
    """The mean hue as a direction, how strong colours are, and green and blue against red."""
    red, green, blue = images.flatten(2).unbind(1)
    x = red - (green + blue) / 2
    y = (green - blue) * np.sqrt(3) / 2
    strength = torch.hypot(x, y)
    all_strength = strength.sum(1).clamp_min(1e-3)
    mean = red.mean(1) + 1
    return torch.stack(
        [
            x.sum(1) / all_strength,
            y.sum(1) / all_strength,
            strength.mean(1),
            ((green.mean(1) + 1) / mean).log(),
            ((blue.mean(1) + 1) / mean).log(),
        ],
        1,
    )


def _handedness(planes: torch.Tensor) -> torch.Tensor:
    """What a mirror turns round: the left half against the right, and, fine and coarse, which way
    edges rise and lines lean. The rim, with frames and marks, does not count.
    """
    rim = max(1, min(planes.shape[1:]) // 8)
    planes = planes[:, rim:-rim, rim:-rim]
    half = planes.shape[2] // 2
    spread = planes.flatten(1).std(1) + 1
    found = [(planes[:, :, :half].mean((1, 2)) - planes[:, :, -half:].mean((1, 2))) / spread]
    image = planes[:, None]
    for _ in range(2):
        across = image[..., 1:-1, 2:] - image[..., 1:-1, :-2]
        down = image[..., 2:, 1:-1] - image[..., :-2, 1:-1]
        power = (across**2).mean((1, 2, 3)) + 0.1
        found.append((across**3).mean((1, 2, 3)) / power**1.5)
        found.append((across * down).mean((1, 2, 3)) / (power + (down**2).mean((1, 2, 3))))
        image = F.avg_pool2d(image, 4)
    return torch.stack(found, 1)


KINDS = {
    "compression": _compression,
    "sharpness and noise": _sharpness,
    "grey levels": _grey_levels,
    "colour balance": _colour,
    "handedness": _handedness,
}
COLUMNS = {
    "compression": ["steps between blocks", "empty frequencies of the grid"],
    "sharpness and noise": ["finest detail", "fine detail", "coarse detail", "noise"],
    "grey levels": [
        "darkest level",
        "2nd percentile",
        "98th percentile",
        "brightest level",
        "commonest level",
        "roughness of the histogram",
    ],
    "colour balance": [
        "hue towards red",
        "hue towards green",
        "strength of colour",
        "green against red",
        "blue against red",
    ],
    "handedness": [
        "left against right",
        "fine edges rising to the right",
        "fine lines leaning",
        "coarse edges rising to the right",
        "coarse lines leaning",
    ],
}
