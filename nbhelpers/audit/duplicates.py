"""Copies of one image: the same file, the same pixels, and near-duplicates that were turned,
mirrored, inverted, cropped, shifted, rescaled, recompressed or changed in contrast.

Near-duplicates are found in two steps. First, the edges in a disc of each image, evened out so that
strong and faint ones count alike, are looked for in every other image: in eight poses, at three
scales, in 25 places, and turned at its middle. Then the likest few are laid on each other to a part
of a pixel, and what counts is how far their fine or their middle detail correlates where they
overlap, above what the image reaches with the next likest images of the same set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

SIDE_PX = 64  # of the small image that all is measured in
# Gaussians in its pixels: detail lies between the first two, and is evened out over the third
FINE_PX = (0.6, 2.0, 4.0)
MIDDLE_PX = (1.5, 5.0, 8.0)
EVEN_FLOOR = 0.3  # of the usual strength of detail in the image: fainter detail is not raised to it
LEAST_STRENGTH = 2 / 255  # nor what is hardly more than a step of the grey scale
# Half the side is 1 in what follows
RIM = 0.94  # farther out, what was filled at the border by a turn or shift is seen
DISC = 0.8
DISC_PX = 22
SCALES = (1.0, 0.89, 0.8)
PLACES = (-0.2, -0.1, 0.0, 0.1, 0.2)
TURN_DEGREE = 11.25
DIMENSIONS = 48  # that the disc is described in, as this set varies
NEIGHBOURS = 6  # per image that are laid on it
FAR = 24  # the neighbour from which on no copies are expected any more
MOST_PLACED = 5000  # images, above which copies are looked for at the same scale and place only
# What is asked of a copy; z is the inverse hyperbolic tangent of the correlation, times
# fill ** CONTENT
CONTENT = 0.75
SAME_LIGHT = 0.94  # correlation of the grey levels themselves, smoothed
LIGHT_OF_SURE = 0.5  # the same where detail leaves no doubt
STANDS_OUT = {"fine": (0.35, 0.50), "middle": (0.70, 0.95)}  # z above the set's own, from and to
SURE = 1.1  # z of fine detail above the far neighbours that makes a copy without more ado
CERTAIN = 0.985  # correlation of both details, likewise
FALSE_SETS = 0.01  # clean sets in which a pair may stand out
FEWEST = 20  # images, below which a set says nothing about what is usual
ALONE = 0.8  # z then asked for
BLOCK = 512
AT_ONCE = 16  # images whose windows are held
VALUES_AT_ONCE = (
    2**25
)  # of the images, in float, when they are averaged down: 128 cubes of 16 x 128 x 128


def equal_pairs(keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (one, other) of all pairs with the same key; empty keys equal nothing."""
    places: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key:
            places.setdefault(key, []).append(row)
    # of a thousand black images not half a million pairs: each with the next hundred, and with the
    # first of all
    found = []
    for rows in places.values():
        for at, row in enumerate(rows):
            following = rows[at + 1 :] if at == 0 else rows[at + 1 : at + 101]
            found += [(row, other) for other in following]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def pixel_hashes(pixels: np.ndarray) -> list[str]:
    """A hash of the values of each image, read one by one so that a memory map stays on disk."""
    return [
        hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).hexdigest()
        for image in pixels
    ]


def small(pixels: np.ndarray) -> torch.Tensor:
    """(n, ...) uint8 or uint16 to (n, SIDE_PX, SIDE_PX) float32: mean over channels and sections,
    averaged down.
    """
    values = torch.from_numpy(np.asarray(pixels, np.float32) / np.iinfo(pixels.dtype).max)
    return F.adaptive_avg_pool2d(values.flatten(1, -3).mean(1, keepdim=True), SIDE_PX)[:, 0]


def _smooth(images: torch.Tensor, width: float) -> torch.Tensor:
    """A Gaussian along y and x, mirrored at the border; as a matrix, which is many times quicker
    than to filter.
    """
    reach = int(3 * width) + 1
    bell = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * width**2))
    mirrored = F.pad(torch.eye(images.shape[-1])[:, None], (reach, reach), mode="reflect")
    matrix = F.conv1d(mirrored, (bell / bell.sum())[None, None])[:, 0]
    return matrix.T @ images @ matrix


def _detail(images: torch.Tensor, widths: tuple[float, float, float]) -> torch.Tensor:
    """Detail between two widths, divided by its strength around: contrast no longer matters, and a
    single strong edge is not all that counts.
    """
    band = _smooth(images, widths[0]) - _smooth(images, widths[1])
    energy = _smooth(band**2, widths[2])
    usual = energy.flatten(1).median(dim=1).values[:, None, None]
    return band / torch.sqrt(energy + EVEN_FLOOR**2 * usual + LEAST_STRENGTH**2)


def _windows(placed: bool) -> torch.Tensor:
    """(windows, 2, 3) maps from the disc of one image to places of another: x' = A x + t."""
    poses = [(angle, 1.0, 0.0, 0.0) for angle in np.arange(0, 360, TURN_DEGREE)]
    if placed:
        poses += product((0, 90, 180, 270), SCALES, PLACES, PLACES)
    rows = [(mirror, *pose) for mirror, pose in product((1, -1), poses)]
    mirror, angle, scale, x, y = torch.tensor(rows, dtype=torch.float32).T
    along = scale * torch.cos(torch.deg2rad(angle))
    aside = scale * torch.sin(torch.deg2rad(angle))
    return torch.stack([along * mirror, -aside, x, aside * mirror, along, y], 1).unflatten(
        1, (2, 3)
    )


def _places(side: int) -> torch.Tensor:
    """(3, side * side): x, y and 1 of all pixels."""
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten(), torch.ones(side * side)])


def _circle(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, points) x, y and 1 of the pixels in the inner circle, and which pixels these are."""
    points = _places(side)
    circle = torch.nonzero(points[:2].norm(dim=0) <= RIM)[:, 0]
    return points[:, circle], circle


@dataclass(frozen=True)
class _Described:
    """Images as they are compared: (n, SIDE_PX, SIDE_PX) grey levels, 0 to 1, and the middle detail
    at half that size, both float16; (n, dimensions) discs of length 1, and how discs become these.
    """

    grey: torch.Tensor
    coarse: torch.Tensor
    discs: torch.Tensor
    axes: torch.Tensor
    windows: torch.Tensor
    points: torch.Tensor

    @classmethod
    def of(cls, pixels: np.ndarray) -> _Described:
        step = max(1, min(BLOCK, VALUES_AT_ONCE // int(np.prod(pixels.shape[1:]))))
        windows = _windows(len(pixels) <= MOST_PLACED)
        points = _places(DISC_PX) * torch.tensor([DISC, DISC, 1.0])[:, None]
        points = points[:, points[:2].norm(dim=0) <= DISC]
        parts = []
        for start in range(0, len(pixels), step):
            grey = small(pixels[start : start + step])
            coarse = F.avg_pool2d(_detail(grey, MIDDLE_PX)[:, None], 2)[:, 0]
            discs = F.normalize(_sampled(coarse, windows[:1], points)[:, 0], dim=1)
            parts.append((grey.half(), coarse.half(), discs))
        grey, coarse, discs = (torch.cat(of_kind) for of_kind in zip(*parts, strict=True))
        # what many images share counts less; second moments, so that an inverted image is the same
        strength, axes = torch.linalg.eigh(discs.T @ discs / len(discs))
        axes = axes[:, -DIMENSIONS:] / strength[-DIMENSIONS:].clamp_min(1e-4) ** 0.25
        return cls(grey, coarse, F.normalize(discs @ axes, dim=1), axes, windows, points)

    def of_windows(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, windows, dimensions) of length 1."""
        found = _sampled(self.coarse[rows].float(), self.windows, self.points) @ self.axes
        return F.normalize(found, dim=2)


def _sampled(images: torch.Tensor, maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(n, y, x) at the mapped points, every map in every image: (n, maps, points)."""
    grid = (maps @ points).transpose(1, 2)[None].expand(len(images), -1, -1, -1)
    return F.grid_sample(images[:, None], grid, align_corners=False, padding_mode="border")[:, 0]


def _neighbours(described: _Described) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs (pairs, 2) to be laid on each other, the window of the first that is likest to the disc
    of the second (pairs, 2, 3), and whether the second is a far neighbour.
    """
    count = len(described.discs)
    last = min(FAR + 2, count - 1)
    kept = torch.arange(last)
    kept = kept[(kept < NEIGHBOURS) | (kept >= FAR)]
    others = []
    best = []
    for rows in torch.arange(count).split(AT_ONCE):
        windows = described.of_windows(rows)
        alike = (windows.flatten(0, 1) @ described.discs.T).abs_()
        alike = alike.unflatten(0, windows.shape[:2])
        highest = alike.amax(1)
        highest[torch.arange(len(rows)), rows] = -1
        likest = highest.topk(last, dim=1).indices[:, kept]
        others.append(likest)
        best.append(alike.gather(2, likest[:, None].expand(-1, alike.shape[1], -1)).argmax(1))
    one = torch.arange(count)[:, None].expand(-1, len(kept))
    far = (kept >= FAR)[None].expand(count, -1)
    pairs = torch.stack([one, torch.cat(others)], 2).flatten(0, 1)
    return pairs, described.windows[torch.cat(best).flatten()], far.flatten()


def _laid_on(one: torch.Tensor, other: torch.Tensor, maps: torch.Tensor, steps: int):
    """The maps made better, step by step (Gauss and Newton): turned, scaled and moved so that the
    squared difference of the images (pairs, y, x) becomes least, up to contrast and sign.
    """
    side = one.shape[-1]
    points, circle = _circle(side)
    padded = F.pad(one[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * side / 4
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) * side / 4
    channels = torch.stack([one, across, down], 1)
    wanted = other.flatten(1)[:, circle]
    for _ in range(steps):
        (here, dx, dy), inside = _mapped(channels, maps, points)
        gain = (inside * here * wanted).sum(1) / (inside * wanted**2).sum(1).clamp_min(1e-9)
        x, y = (maps[:, :, :2] @ points[:2]).unbind(1)
        slopes = torch.stack([dx * x + dy * y, dy * x - dx * y, dx, dy], 1) * inside[:, None]
        moments = slopes @ slopes.transpose(1, 2)
        moments += torch.diag_embed(moments.diagonal(dim1=1, dim2=2) * 0.01 + 1e-6)
        lacking = slopes @ (gain[:, None] * wanted - here)[..., None]
        change = torch.linalg.solve(moments, lacking)[..., 0].clamp(-0.08, 0.08)
        grow = change[:, 0]
        turn = change[:, 1]
        turned = torch.stack([1 + grow, -turn, turn, 1 + grow], 1).unflatten(1, (2, 2))
        maps = torch.cat([turned @ maps[:, :, :2], maps[:, :, 2:] + change[:, 2:, None]], 2)
    return maps


def _mapped(channels: torch.Tensor, maps: torch.Tensor, points: torch.Tensor):
    """The channels (pairs, channels, y, x) at the mapped points, and which of these lie in the
    inner circle of both images: turned copies have filled corners.
    """
    grid = maps @ points
    found = F.grid_sample(
        channels, grid.transpose(1, 2)[:, None], align_corners=False, padding_mode="border"
    )[:, :, 0]
    return found.unbind(1), (grid.norm(dim=1) <= RIM).float()


def _correlations(one: torch.Tensor, other: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """(5, pairs) of images as fine detail, middle detail and grey levels (pairs, 3, y, x): the
    correlation of each where they overlap, then how far fine and middle detail fill the overlap (1:
    everywhere, 0: one spot).
    """
    points, circle = _circle(SIDE_PX)
    mapped, inside = _mapped(one, maps, points)
    count = inside.sum(1, keepdim=True).clamp_min(1)
    found = []
    fills = []
    other = other.flatten(2)[:, :, circle]
    for here, there in zip(mapped, other.unbind(1), strict=True):
        here = (here - (inside * here).sum(1, keepdim=True) / count) * inside
        there = (there - (inside * there).sum(1, keepdim=True) / count) * inside
        lengths = here.norm(dim=1) * there.norm(dim=1)
        found.append(((here * there).sum(1) / lengths.clamp_min(1e-3)).abs().clamp(max=1))
        # of normal noise the fourth moment is three times the squared second
        both = torch.stack([here, there])
        fill = 3 * (both**2).sum(2) ** 2 / (count[:, 0] * (both**4).sum(2)).clamp_min(1e-9)
        fills.append(fill.amin(0).clamp(max=1))
    return torch.stack([*found, *fills[:2]])


def _measured(described: _Described, pairs: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """What :func:`_correlations` gives of pairs, from where these maps lay them on each other."""
    found = []
    for some, begun in zip(pairs.split(BLOCK), maps.split(BLOCK), strict=True):
        coarse = described.coarse[some].float().unbind(1)
        better = _laid_on(*coarse, begun, 5)
        both = []
        for rows in some.unbind(1):
            grey = described.grey[rows].float()
            layers = (_detail(grey, FINE_PX), _detail(grey, MIDDLE_PX), _smooth(grey, 1.5))
            both.append(torch.stack(layers, 1))
        better = _laid_on(both[0][:, 1], both[1][:, 1], better, 1)
        found.append(_correlations(*both, better))
    return torch.cat(found, 1)


def near_pairs(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of images that are one image, changed as the head of this module says.

    ``pixels`` is (n, channel, y, x) or (n, channel, z, y, x), uint8 or uint16, often memory-mapped;
    about 12 kB of memory are held per image. Returns rows ``one`` and ``other`` (int64), the
    correlation of their detail (float, the finer where both stand out), and the correlation that
    was asked of each pair. That depends on the set: two unrelated spine masks are far more alike
    than two unrelated micrographs, so a pair must stand out from the next likest pairs of its two
    images, by more than such pairs do in this set. Turned and mirrored copies of images at which
    nothing else changed are found in sets of any size, cropped and shifted ones in sets of
    ``MOST_PLACED`` images at most.
    """
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    if len(pixels) < 2:
        return nothing
    described = _Described.of(pixels)
    pairs, maps, far = _neighbours(described)
    measured = _measured(described, pairs, maps).numpy()
    pairs = pairs.numpy()
    far = far.numpy()
    same_light = measured[2] >= SAME_LIGHT
    certain = same_light & (measured[:2] >= CERTAIN).all(axis=0) & (measured[3] > 0.01)
    margins = []
    asked = []
    z = np.arctanh(np.clip(measured[:2], 0, 0.9999)) * measured[3:] ** CONTENT
    sure = certain | (
        (measured[2] > LIGHT_OF_SURE)
        & (z[0] - _level(z[0], pairs, far, len(pixels), 0) > SURE)
        & ~far
    )
    for score, fill, (least, most) in zip(z, measured[3:], STANDS_OUT.values(), strict=True):
        level = _level(score, pairs, ~sure & ~far, len(pixels), 2)
        above = score - level
        needed = max(_needed(above, pairs, ~sure & ~far, least, most), 0.0)
        margins.append(above - needed)
        asked.append(np.tanh((level + needed) / np.maximum(fill, 1e-3) ** CONTENT))
    margin = np.stack(margins)
    keep = (sure | (same_light & (margin > 0).any(axis=0))) & ~far
    band = np.where(margin[0] > 0, 0, np.where(margin[1] > 0, 1, 0))
    chosen = np.arange(len(pairs))
    table = np.stack([measured[band, chosen], np.stack(asked)[band, chosen]])
    table[1] = np.where(margin[band, chosen] > 0, table[1], np.minimum(table[0], CERTAIN))
    ordered = np.sort(pairs[keep], axis=1)
    found, first = np.unique(ordered, axis=0, return_index=True)
    alike, needed = table[:, keep][:, first].astype(float)
    return found[:, 0], found[:, 1], alike, needed


def _level(
    score: np.ndarray, pairs: np.ndarray, chosen: np.ndarray, count: int, rank: int
) -> np.ndarray:
    """(pairs,) what the two images of a pair reach with others: of each image the score at this
    rank among its chosen pairs (0: the highest; the lowest where it has fewer), of the two the
    higher.
    """
    if count < FEWEST:
        return np.full(len(score), ALONE)
    scores = pd.Series(score[chosen], pairs[chosen, 0], float).sort_values(ascending=False)
    highest = scores.groupby(level=0).head(rank + 1)
    level = highest.groupby(level=0).min().reindex(range(count), fill_value=0.0).to_numpy()
    return level[pairs].max(axis=1)


def _needed(
    above: np.ndarray, pairs: np.ndarray, chosen: np.ndarray, least: float, most: float
) -> float:
    """How far a pair must stand out so that in FALSE_SETS of such sets an unrelated pair does: the
    highest of each image follow a Gumbel law, whose place and width are those of the common ones.
    """
    count = pairs.max() + 1
    if count < FEWEST:
        return 0.0
    highest = pd.Series(above[chosen]).groupby(pairs[chosen, 0]).max().to_numpy()
    if not len(highest):
        return least
    middle, high = np.quantile(highest, [0.5, 0.8])
    width = (high - middle) / 1.133
    return float(np.clip(middle + width * (np.log(count / FALSE_SETS) - 0.367), least, most))
