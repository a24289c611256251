"""Copies of one image: the same file, the same pixels, and near-duplicates that were turned,
mirrored or recompressed.

Near-duplicates are found by a perceptual hash that does not care how an image lies. The image is
made small, smooth and coarse shades are taken out so that edges stay, and brightness is read along
rings around the middle. Turning the image moves each ring along itself, mirroring reverses it: how
strongly brightness goes round a ring once, twice, three times ... stays the same. These strengths
are the hash; images with like hashes are then turned and mirrored onto each other, and what counts
is the normalised correlation of the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from nbhelpers.core.errors import InputError

# of the small image; places on each ring
SIDE_PX = 64
RINGS = 20
ANGLES = 128
REACH = 0.9  # of half the side: beyond it a turned image shows its filled corners
# widths of the two Gaussians whose difference keeps the edges
FINE_PX = 0.7
COARSE_PX = 2.5
WAVES = 20  # how often round a ring, at most, in the hash
# of the hash; candidates per image
DIMENSIONS = 64
NEIGHBOURS = 8
LEAST_LIKE = 0.5  # cosine of two hashes below which the pair is not looked at
# of the gap between two unrelated images of the set and identity: nearer, and it may be a copy
CLOSES = 0.82
FALSE_PAIRS = (
    0.01  # pairs of unrelated images that may be taken for copies, expected in the whole set
)
STRICTEST = 0.002  # what a recompressed copy may lack to identity in any set
BLOCK = 512
VALUES_AT_ONCE = (
    2**25
)  # of the images, in float, when they are averaged down: 128 cubes of 16 x 128 x 128
SAMPLE = 2000  # images from which random pairs are drawn


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


def rings(images: torch.Tensor) -> torch.Tensor:
    """(n, SIDE_PX, SIDE_PX) float to (n, RINGS, ANGLES) int8: edges along rings, -127 to 127 in
    each image.
    """
    edges = (_smooth(images, FINE_PX) - _smooth(images, COARSE_PX))[:, None]
    radius = (torch.arange(RINGS) + 0.5)[:, None] / RINGS * REACH
    angle = torch.arange(ANGLES) / ANGLES * 2 * np.pi
    grid = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    sampled = F.grid_sample(edges, grid[None].expand(len(edges), -1, -1, -1), align_corners=False)[
        :, 0
    ]
    weight = radius.sqrt()  # a ring counts by its length
    mean = (sampled * weight**2).sum((1, 2), keepdim=True) / (weight**2).sum() / ANGLES
    sampled = (sampled - mean) * weight
    brightest = sampled.abs().amax((1, 2), keepdim=True)
    return (
        torch.where(brightest > 1e-4, sampled / brightest.clamp_min(1e-4) * 127, 0)
        .round()
        .to(torch.int8)
    )


def _smooth(images: torch.Tensor, width: float) -> torch.Tensor:
    """A Gaussian along y and x, mirrored at the border; as a matrix, which is many times quicker
    than to filter.
    """
    reach = int(4 * width) + 1
    bell = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * width**2))
    mirrored = F.pad(torch.eye(SIDE_PX)[:, None], (reach, reach), mode="reflect")
    matrix = F.conv1d(mirrored, (bell / bell.sum())[None, None])[:, 0]
    return matrix.T @ images @ matrix


def _spectra(ringed: torch.Tensor) -> torch.Tensor:
    """(n, RINGS, ANGLES // 2 + 1) complex, of length 1 per image (0 for an image without edges)."""
    values = ringed.float()
    values = values / values.flatten(1).norm(dim=1).clamp_min(1e-9)[:, None, None]
    return torch.fft.rfft(values, dim=2)


def correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(n,) highest normalised correlation of two sets of :func:`rings` over all turns, mirrored or
    not.
    """
    return _likeness(_spectra(one), _spectra(other))


def _likeness(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    both = [
        torch.fft.irfft((one * way).sum(1), n=4 * ANGLES, dim=1).amax(1) * 4
        for way in (other.conj(), other)
    ]
    return torch.maximum(*both)


def _hashes(ringed: torch.Tensor) -> torch.Tensor:
    """(n, DIMENSIONS) float32 of length 1: strengths of the waves round the rings, as this set
    varies in them.
    """

    def strengths(part: torch.Tensor) -> torch.Tensor:
        return _spectra(part)[:, :, :WAVES].abs().unflatten(1, (RINGS // 2, 2)).mean(2).flatten(1)

    generator = torch.Generator().manual_seed(0)
    some = strengths(ringed[torch.randperm(len(ringed), generator=generator)[:4000]])
    mean = some.mean(0)
    spread = some.std(0, correction=0) + 1e-9
    _, _, axes = torch.linalg.svd((some - mean) / spread, full_matrices=False)
    axes = axes[:DIMENSIONS].T
    return torch.cat(
        [
            F.normalize((strengths(part) - mean) / spread @ axes, dim=1)
            for part in ringed.split(BLOCK)
        ]
    )


def nearest(vectors: torch.Tensor, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (one, other), one < other, of the nearest neighbours of (n, d) vectors of length 1 by
    cosine >= least.
    """
    found = []
    for start in range(0, len(vectors), BLOCK):
        cosine = vectors[start : start + BLOCK] @ vectors.T
        rows = torch.arange(len(cosine))
        cosine[rows, rows + start] = -2
        value, at = cosine.topk(min(NEIGHBOURS, cosine.shape[1]), dim=1)
        row, column = torch.nonzero(value >= least, as_tuple=True)
        pair = torch.stack([row + start, at[row, column]], 1)
        found.append(torch.stack([pair.amin(1), pair.amax(1)], 1))
    pairs = (
        torch.unique(torch.cat(found), dim=0) if found else torch.zeros((0, 2), dtype=torch.long)
    )
    return pairs[:, 0], pairs[:, 1]


def near_pairs(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Pairs of images that are one image, turned, mirrored, recompressed, of another bit depth or a
    little edited.

    ``pixels`` is (n, channel, y, x) or (n, channel, z, y, x), uint8 or uint16, often memory-mapped;
    about 3 kB of memory are held per image. Returns rows ``one`` and ``other`` (int64), their
    correlation, and the correlation asked for. It depends on the set: two unrelated spine masks are
    far more alike than two unrelated micrographs, so a pair must close most of the gap between
    unrelated images of this set (99 of 100 pairs are less alike) and identity, and be more alike
    than the likest of so many unrelated pairs are expected to be: in a large set of simple shapes
    only copies that were hardly changed can be told from lookalikes.
    """
    if len(pixels) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 1.0
    step = max(1, min(BLOCK, VALUES_AT_ONCE // int(np.prod(pixels.shape[1:]))))
    ringed = torch.cat(
        [rings(small(pixels[start : start + step])) for start in range(0, len(pixels), step)]
    )
    threshold = _threshold(ringed)
    one, other = nearest(_hashes(ringed), LEAST_LIKE)
    parts = range(0, len(one), BLOCK)
    alike = torch.cat(
        [correlation(ringed[one[at : at + BLOCK]], ringed[other[at : at + BLOCK]]) for at in parts]
        or [torch.zeros(0)]
    )
    keep = alike >= threshold
    return one[keep].numpy(), other[keep].numpy(), alike[keep].numpy().astype(float), threshold


def _threshold(ringed: torch.Tensor) -> float:
    """The correlation asked for: CLOSES of the gap to identity, and so high that among all the
    pairs of the set less than FALSE_PAIRS of unrelated images are expected above it. What random
    pairs lack to identity (1 - correlation) falls along a power of how rare the pair is, so that
    the rarest of millions can be told from a sample of thousands."""
    generator = torch.Generator().manual_seed(1)
    some = _spectra(ringed[torch.randperm(len(ringed), generator=generator)[:SAMPLE]])
    one, other = torch.randint(len(some), (2, 20_000), generator=generator)
    distinct = one != other
    one = one[distinct]
    other = other[distinct]
    alike = torch.cat(
        [
            _likeness(some[a], some[b])
            for a, b in zip(one.split(BLOCK), other.split(BLOCK), strict=True)
        ]
    )
    near = (1 - CLOSES) * float(1 - torch.quantile(alike, 0.99))
    unlike = alike[alike < 1 - near]
    if not len(unlike):  # one image over and over
        return 1 - STRICTEST
    common, rare = (1 - torch.quantile(unlike, torch.tensor([0.9, 0.999]))).clamp_min(1e-6).tolist()
    pairs = len(ringed) * (len(ringed) - 1) / 2
    rarest = rare * (rare / common) ** (np.log10(pairs / FALSE_PAIRS / 1000) / 2)
    return float(1 - max(min(near, rarest), STRICTEST))


def embedded_pairs(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The same from an embedding, (n, d) float: pairs that a network holds for alike, shifted crops
    among them.
    """
    vectors = torch.from_numpy(np.asarray(vectors, np.float32))
    if not torch.isfinite(vectors).all():
        raise InputError(
            "embedding", "its values are not all finite.", "Check the network and its weights."
        )
    if len(vectors) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 1.0
    vectors = F.normalize(vectors - vectors.mean(0), dim=1)
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randint(len(vectors), (2, 20_000), generator=generator)
    usual = torch.quantile((vectors[a[a != b]] * vectors[b[a != b]]).sum(1), 0.99)
    threshold = float(1 - (1 - 0.9) * (1 - usual))
    one, other = nearest(vectors, threshold)
    alike = (vectors[one] * vectors[other]).sum(1)
    return one.numpy(), other.numpy(), alike.numpy().astype(float), threshold
