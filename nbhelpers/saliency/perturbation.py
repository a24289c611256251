"""What taking away or putting in what a map marks does to a prediction: insertion, deletion and
ROAD, in 2D and in 3D.
"""

import numpy as np
import torch
from torch import Tensor, nn

from nbhelpers.core.seeds import derive_seed
from nbhelpers.saliency.maps import FEWEST_PLACES, blurred, enlarged, in_batches, placed, still

SHARES = (0.2, 0.4, 0.6, 0.8)  # of the image that ROAD takes away
STEPS = 5  # of insertion and deletion
# of the sides: how far around a place a map is averaged before it is put in order
GRAIN = 1 / (FEWEST_PLACES * 12**0.5)


class Scorer:
    """Probabilities (n, steps) of the classes asked about while places are taken away or put in, in
    the order of a map.
    """

    def __init__(self, network: nn.Module, images: Tensor, classes: np.ndarray, seed: int = 0):
        self.network = network
        self.seed = seed  # of the order of ties, and of what is filled in
        self.images = images
        self.classes = classes
        self.veiled = blurred(images)
        self.probabilities = self._all(images)
        own = np.arange(len(classes)), classes
        self.ends = self._all(self.veiled)[own], self.probabilities[own]  # nothing there, and all

    def _all(self, images: Tensor) -> np.ndarray:
        def compute(rows: slice) -> np.ndarray:
            logits = self.network(placed(images[rows], self.network))
            return logits.double().softmax(1).cpu().numpy()

        with still(self.network), torch.inference_mode():
            return in_batches(compute, len(images), 64)

    def _asked(self, images: Tensor) -> np.ndarray:
        return self._all(images)[np.arange(len(self.classes)), self.classes]

    def insertion(self, maps: np.ndarray) -> np.ndarray:
        """(n, STEPS + 1): from a blur to the image, what the map marks most first."""
        return self._steps(maps, self.veiled, self.images, *self.ends)

    def deletion(self, maps: np.ndarray) -> np.ndarray:
        """(n, STEPS + 1): from the image to a blur, what the map marks most first."""
        return self._steps(maps, self.images, self.veiled, *self.ends[::-1])

    def _steps(
        self,
        maps: np.ndarray,
        start: Tensor,
        end: Tensor,
        first: np.ndarray,
        last: np.ndarray,
    ) -> np.ndarray:
        order = _order(maps, self.seed)
        between = [
            self._asked(torch.where(order < at / STEPS, end, start)) for at in range(1, STEPS)
        ]
        return np.stack([first, *between, last], 1)

    def road(self, maps: np.ndarray) -> np.ndarray:
        """(n,) ROAD (Rong et al. 2022): how much more the probability falls when what the map marks
        most is taken away than when what it marks least is, halved, mean over SHARES. What is away
        is filled in from around it (:func:`filled_in`).
        """
        channels = self.images.shape[1] if maps.shape[1] > 1 else -1
        order = _order(maps, self.seed).expand(-1, channels, *[-1] * (maps.ndim - 2))
        found = []
        for share in SHARES:
            most = self._asked(filled_in(self.images, order < share, self.seed))
            least = self._asked(filled_in(self.images, order >= 1 - share, self.seed))
            found.append((least - most) / 2)
        return np.mean(found, 0)


def _order(maps: np.ndarray, seed: int) -> Tensor:
    """(n, parts, ...) float: the place in the order of a map, 0 for what it marks most, to below 1.

    Each place counts with what is around it, as Samek et al. (2017) take regions away and not
    pixels: a fine map marks the outline of a thing and says nothing within, and a thing is not away
    as long as its inside is there. GRAIN is the standard deviation of a place in the coarsest layer
    that is looked into (FEWEST_PLACES along a side), so that fine and coarse maps, random ones and
    blobs are all taken away in equally coarse pieces. Places that a map marks alike, as where it
    is 0, are put in the order of a random map of ``seed``, in such pieces too: from top to bottom
    an empty map would gain by whatever stands above.
    """
    from scipy.ndimage import gaussian_filter

    width = [0, 0, *[0] * (maps.ndim - 4), *(GRAIN * side for side in maps.shape[-2:])]
    flat = torch.from_numpy(gaussian_filter(maps, width, mode="nearest")).flatten(1)
    most = flat.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    marked = (1e6 * flat / most).round()  # what rounding alone tells apart is a tie
    at_random = torch.from_numpy(random_maps(maps, derive_seed(seed, "ties"))).flatten(1)
    at_random = at_random.argsort(dim=1)
    order = marked.gather(1, at_random).argsort(dim=1, descending=True, stable=True)
    ranks = at_random.gather(1, order).argsort(dim=1).float() / flat.shape[1]
    return ranks.view(maps.shape)


def filled_in(images: Tensor, away: Tensor, seed: int = 0, noise: float = 0.01) -> Tensor:
    """The images, (n, c, ...), with the places ``away``, (n, 1 or c, ...) bool, filled in smoothly
    from around them.

    Each missing value becomes the weighted mean of its neighbours (diagonal ones count half as much
    for each step aside), plus a little noise, as in ROAD's noisy linear imputation; in 3D
    neighbours lie in the sections beside too, so that a section that is missing as a whole can be
    filled in. Solved by conjugate gradients, never NaN. What has no known value anywhere becomes 0.
    """
    axes = images.ndim - 2

    def around(values: Tensor) -> Tensor:
        total = values
        # axis by axis and in place: many times faster than a convolution of one channel
        for axis in range(2, 2 + axes):
            one = total
            total = total.clone()
            pairs = total.shape[axis] - 1
            total.narrow(axis, 1, pairs).add_(one.narrow(axis, 0, pairs), alpha=0.5)
            total.narrow(axis, 0, pairs).add_(one.narrow(axis, 1, pairs), alpha=0.5)
        return total - values

    away = away.expand_as(images)
    weights = around(torch.ones_like(images))
    right = torch.where(away, around(torch.where(away, 0.0, images)), 0.0)
    found = torch.zeros_like(images)
    residual = right
    step = residual
    size = residual.flatten(2).square().sum(2)
    enough = 1e-6 * size.clamp(min=1e-12)
    for _ in range(200):
        if (size <= enough).all():
            break
        pushed = torch.where(away, weights * step - around(step), 0.0)
        length = size / (step * pushed).flatten(2).sum(2).clamp(min=1e-20)
        length = torch.where(size > enough, length, 0.0).view(*size.shape, *[1] * axes)
        found = found + length * step
        residual = residual - length * pushed
        before = size
        size = residual.flatten(2).square().sum(2)
        step = residual + (size / before.clamp(min=1e-20)).view(*size.shape, *[1] * axes) * step
    draw = torch.Generator().manual_seed(derive_seed(seed, "filled in"))
    grain = torch.randn(images.shape, generator=draw)
    return torch.where(away, found + noise * grain, images)


def random_maps(maps: np.ndarray, seed: int = 0) -> np.ndarray:
    """Maps of the same shape that are random and as smooth as class activation maps."""
    size = maps.shape[2:]
    draw = torch.Generator().manual_seed(derive_seed(seed, "random maps"))
    grid = [min(8, side) for side in size]
    coarse = torch.rand(len(maps) * maps.shape[1], 1, *grid, generator=draw)
    return enlarged(coarse, size).view(maps.shape).numpy()


def central_blobs(maps: np.ndarray) -> np.ndarray:
    """Maps of the same shape: a Gaussian blob in the middle, a quarter of the sides wide."""
    axes = [np.linspace(-2, 2, side) if side > 1 else np.zeros(1) for side in maps.shape[2:]]
    away = np.meshgrid(*axes, indexing="ij")
    blob = np.exp(-0.5 * sum(one**2 for one in away)).astype(np.float32)
    return np.broadcast_to(blob, maps.shape)
