"""Frozen features: a pretrained backbone looked at in several depths, computed once, and heads
trained in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbhelpers.core.columns import column_scale
from nbhelpers.core.errors import InputError, check_choice, check_range
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.kept import kept
from nbhelpers.core.seeds import derive_seed, generator_for
from nbhelpers.models.keras_head import make_head, mean_and_std
from nbhelpers.models.weights import make_backbone, register_colours
from nbhelpers.training.checkpoints import hash_of_weights
from nbhelpers.training.forward import uses_bf16
from nbhelpers.training.losses import check_loss
from nbhelpers.training.transform import symmetry, to_float

# where each backbone is tapped: in the middle, where small structures are seen, and late; the last
# one is also pooled
TAPS = {
    "mobilenet_v2": (
        ("features.10", "features.13", "features.16"),
        ("features.13", "features.16", "features.17", "features.18"),
    ),
    "squeezenet1_0": (
        ("features.5", "features.7", "features.8"),
        ("features.8", "features.9", "features.10", "features.12"),
    ),
    "resnet18": (("layer2", "layer3"), ("layer3", "layer4")),
    "resnet34": (("layer2", "layer3"), ("layer3", "layer4")),
    "resnet50": (("layer2", "layer3"), ("layer3", "layer4")),
    "densenet169": (
        ("features.denseblock2", "features.denseblock3"),
        ("features.denseblock3", "features.norm5"),
    ),
}
PARTS = ("middle", "late", "pooled")
BATCH = 32


class TextureFeatures(nn.Module):
    """(n, 3, y, x) float, 0 to 1, to (n, width) float: how much each filter varies over the image,
    at several depths.

    The standard deviation over the image of every channel at every tap, then the mean of every
    channel at the last one (what a usual head sees). Sclerosis is a loss of structure, so how much
    a filter varies says more than its mean, and it depends less on the stain. ``columns(part)``
    says where "middle", "late" and "pooled" stand. ``preprocessing`` is that of KerasHead.
    """

    def __init__(self, backbone: str = "mobilenet_v2", preprocessing: str = "imagenet"):
        from torchvision.models.feature_extraction import create_feature_extractor

        super().__init__()
        check_choice("parameter backbone", backbone, TAPS)
        self.settings = {"backbone": backbone, "preprocessing": preprocessing}
        middle, late = TAPS[backbone]
        self.taps = sorted({*middle, *late}, key=[*middle, *late].index)
        self.body = create_feature_extractor(
            make_backbone(backbone), {name: name for name in self.taps}
        ).eval()
        register_colours(self, *mean_and_std(preprocessing))
        with torch.no_grad():
            widths = [maps.shape[1] for maps in self.body(torch.zeros(1, 3, 64, 64)).values()]
        ends = np.cumsum(widths)
        spans = {
            name: np.arange(end - width, end)
            for name, end, width in zip(self.taps, ends, widths, strict=True)
        }
        self._columns = {
            "middle": np.concatenate([spans[name] for name in middle]),
            "late": np.concatenate([spans[name] for name in late]),
            "pooled": ends[-1] + np.arange(widths[-1]),
        }
        self.width = int(ends[-1] + widths[-1])

    def train(self, mode: bool = True) -> TextureFeatures:
        return super().train(False)  # frozen: batch norm stays in inference mode

    def columns(self, part: str) -> np.ndarray:
        """(k,) int64 columns of "middle", "late" or "pooled"."""
        return self._columns[part]

    def forward(self, images: Tensor) -> Tensor:
        maps = list(self.body((images - self.mean) / self.std).values())
        found = []
        for values in maps:
            values = values.float()
            centred = values - values.mean((2, 3), keepdim=True)
            found.append(centred.square().mean((2, 3)).sqrt())
        return torch.cat([*found, maps[-1].float().mean((2, 3))], 1)


def make_features(
    backbone: str,
    *,
    weights: str | Path = "imagenet",
    data_folder: str | Path = "data",
    preprocessing: str = "imagenet",
    seed: int = 0,
) -> TextureFeatures:
    """TextureFeatures with weights: "imagenet", a file, or "none" (random, from ``seed``)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "frozen features"))
        network = TextureFeatures(backbone, preprocessing)
    if str(weights) != "none":
        source = make_backbone(backbone, weights=weights, data_folder=data_folder).state_dict()
        network.body.load_state_dict({name: source[name] for name in network.body.state_dict()})
    return network


@dataclass(frozen=True)
class View:
    """One fixed way to look at an image: turned, with other dyes, nearer, out of focus. The same
    for every image.
    """

    quarter_turns: int = 0
    mirrored: bool = False
    dyes: tuple[float, ...] = ()  # three factors and three shifts of haematoxylin, eosin, DAB
    zoom: float = 1.0
    place: tuple[float, float] = (0.5, 0.5)  # of the part that is zoomed into, 0 to 1
    blur_px: float = 0.0  # standard deviation on an image of 224 px

    def __call__(self, images: Tensor) -> Tensor:
        """(n, 3, y, x) float, 0 to 1, to the same shape."""
        from torchvision.transforms.functional import gaussian_blur

        from nbhelpers.training.stains import change_dyes

        if self.dyes:
            values = torch.tensor(self.dyes).view(2, 1, 3, 1, 1)
            images = change_dyes(images, values[0], values[1])
        size = tuple(images.shape[-2:])
        if self.zoom > 1:
            height, width = (round(side / self.zoom) for side in size)
            top = round(self.place[0] * (size[0] - height))
            left = round(self.place[1] * (size[1] - width))
            part = images[..., top : top + height, left : left + width]
            images = F.interpolate(part, size=size, mode="bilinear", antialias=True)
        sigma = self.blur_px * size[0] / 224
        if sigma > 0.2:
            reach = 2 * min(int(np.ceil(2.5 * sigma)), (min(size) - 1) // 2) + 1
            images = gaussian_blur(images, [reach, reach], [sigma, sigma])
        return symmetry(images, self.quarter_turns % 4 + 4 * self.mirrored)


def make_views(count: int, *, stain: float = 0.2, seed: int = 0) -> tuple[View, ...]:
    """``count`` views in turn: as it is; nearer, blurred and strongly restained; restained by
    ``stain``; each turned.

    Every third one is only turned or mirrored, so that 1 is the image itself. Both kinds of change
    are those that slides and centres differ by. ``stain`` 0 leaves the dyes alone everywhere.
    """
    check_range("parameter views", count, 1, 64)
    views = []
    for number in range(count):
        turn = number // 3
        rng = generator_for(seed, "view", number)
        about = {"quarter_turns": turn % 4, "mirrored": turn % 8 >= 4}
        strength = {0: 0.0, 1: 2 * stain, 2: stain}[number % 3]
        draws = 2 * rng.random(6) - 1
        if strength:
            about["dyes"] = (*(1 + strength * draws[:3]), *(0.1 * strength * draws[3:]))
        if number % 3 == 1:
            about |= {
                "zoom": float(1 / (1 - 0.4 * rng.random())),
                "place": tuple(map(float, rng.random(2))),
                "blur_px": float(2.5 * rng.random()),
            }
        views.append(View(**about))
    return tuple(views)


@torch.inference_mode()
def mean_features(
    network: nn.Module,
    pixels: np.ndarray,
    views: Sequence[View],
    *,
    precision: str = "auto",
) -> np.ndarray:
    """(n, 3, y, x) uint8 to (n, width) float32: the features of each image, averaged over its
    views.

    A head that is linear gives for them the mean of its logits over the views.
    """
    device = next(network.parameters()).device
    low = uses_bf16(precision, device.type)
    order = torch.channels_last if low else torch.contiguous_format
    if device.type == "cpu":  # else what ran before would show in the last digits
        network = network.to(memory_format=order)
    parts = []
    for start in range(0, len(pixels), BATCH):
        images = to_float(torch.from_numpy(np.array(pixels[start : start + BATCH])).to(device))
        total = 0.0
        for view in views:
            seen = view(images).contiguous(memory_format=order)
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                total = total + network(seen)
        parts.append((total / len(views)).float().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def frozen_features(
    network: TextureFeatures,
    images: ImageSet,
    views: Sequence[View],
    *,
    cache_folder: str | Path,
) -> np.ndarray:
    """As :func:`mean_features` for a whole set, kept in ``cache_folder`` under the hash of all that
    it depends on: the images, the weights, the taps, the views and whether it is in bfloat16.
    """
    if images.pixels.ndim != 4 or images.pixels.shape[1] != 3:
        raise InputError(
            images.name,
            f"its images have the shape {images.pixels.shape[1:]}.",
            "Frozen features need three colour channels.",
        )
    key = [
        2,
        images.content_hash,
        hash_of_weights(network),
        network.settings,
        network.taps,
        [asdict(view) for view in views],
        uses_bf16("auto"),
    ]

    def pieces() -> Iterator[np.ndarray]:
        for start in range(0, len(images), 4 * BATCH):
            yield mean_features(network, images.pixels[start : start + 4 * BATCH], views)

    return np.array(kept(cache_folder, key, pieces, name="features-"))


@dataclass(frozen=True)
class LinearHead:
    """``features @ weight.T + bias`` are logits; ``weight`` is (classes, width) float64, ``bias``
    (classes,).
    """

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(features, np.float64) @ self.weight.T + self.bias

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        from scipy.special import softmax

        return softmax(self.logits(features), axis=1)


def fit_linear_head(
    features: np.ndarray,
    labels: np.ndarray,
    parts: Sequence[np.ndarray],
    *,
    regularisation: float,
    classes: int = 2,
) -> LinearHead:
    """Logistic regressions on standardised columns, one for each of ``parts``, their logits
    averaged into one head. Columns that are next to constant have no weight.

    ``parts`` are arrays of columns; ``regularisation`` is the inverse strength C.
    Averaging two that see different depths ranks better than one that sees all. Raises InputError
    when a class is absent.
    """
    from sklearn.linear_model import LogisticRegression

    counts = np.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise InputError(
            "head",
            f"there is no training image of class number {int(counts.argmin())}.",
            "Use other training images.",
        )
    weight = np.zeros((classes, features.shape[1]))
    bias = np.zeros(classes)
    for columns in parts:
        seen = features[:, columns].astype(np.float64)
        mean = seen.mean(0)
        scale = column_scale(seen)
        model = LogisticRegression(C=regularisation, max_iter=1000)
        model.fit((seen - mean) / scale, labels)
        slope = model.coef_
        shift = model.intercept_
        if classes == 2:
            slope = np.concatenate([-slope, slope]) / 2
            shift = np.concatenate([-shift, shift]) / 2
        scaled = slope / scale
        weight[:, columns] += scaled / len(parts)
        bias += (shift - scaled @ mean) / len(parts)
    return LinearHead(weight, bias)


class NeuralHead:
    """One of the published heads on features, with ``probabilities(features)`` as LinearHead has
    it. ``columns`` are those of the features that it sees, all by default.
    """

    def __init__(self, head: nn.Module, mean: np.ndarray, scale: np.ndarray):
        self.head = head.eval()
        self.mean = mean
        self.scale = scale
        self.columns: np.ndarray | slice = slice(None)

    @torch.inference_mode()
    def probabilities(self, features: np.ndarray) -> np.ndarray:
        features = features[:, self.columns]
        values = torch.from_numpy(((features - self.mean) / self.scale).astype(np.float32))
        return self.head(values).double().softmax(1).numpy()


def fit_neural_head(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    kind: str = "custom",
    attention: bool = False,
    classes: int = 2,
    epochs: int = 25,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> NeuralHead:
    """Train a published head on ready-made features (n, width): Adam, by default with the published
    1e-4, batch 32 and 25 epochs. Features are standardised first; the incomplete last batch is left
    out. The statistics of the batch norms are in the end those of all training features: Keras's
    moving average needs about 500 steps to get there, which few slides do not give, and until then
    a head is at chance.
    """
    mean = features.mean(0)
    scale = column_scale(features)
    inputs = torch.from_numpy(((features - mean) / scale).astype(np.float32))
    targets = torch.from_numpy(np.asarray(labels, np.int64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "head"))
        head = make_head(kind, inputs.shape[1], classes, attention=attention).train()
        optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)
        size = min(BATCH, len(inputs))
        for epoch in range(epochs):
            order = torch.randperm(len(inputs))
            for start in range(0, len(inputs) - size + 1, size):
                rows = order[start : start + size]
                loss = F.cross_entropy(head(inputs[rows]), targets[rows])
                where = f"head, epoch {epoch + 1}, step {start // size + 1}"
                check_loss(float(loss.detach()), where, learning_rate)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        torch.optim.swa_utils.update_bn([inputs], head)
    return NeuralHead(head, mean, scale)
