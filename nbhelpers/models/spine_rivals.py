"""The rivals of TinyCNN in its published benchmark (system A): ResNet18 with a fine stem,
CNN-3Layer, frozen ViT-B16.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbhelpers.core.files import sha256_of_file
from nbhelpers.models.blocks import FeaturesAndHead, convolution_blocks
from nbhelpers.models.weights import load_into, read_weights, weights_file


class SpineResNet18(FeaturesAndHead):
    """ResNet-18 that keeps the full resolution in its first stage; input (n, channels, y, x) float,
    0 to 1.

    The stem is a 5x5 convolution with stride 1 and no max-pool, which makes it 38 times the work of
    the usual one per image; the head is dropout .5, 512-256, ReLU, dropout .5, 256-classes. With
    three input channels and three classes it has 11,304,003 parameters, as published. Source: the
    published spine benchmark; torchvision.
    """

    def __init__(self, in_channels: int = 3, classes: int = 3):
        from torchvision.models import resnet18

        super().__init__()
        self.settings = {"in_channels": in_channels, "classes": classes}
        self.body = resnet18(weights=None)
        self.body.conv1 = nn.Conv2d(in_channels, 64, 5, padding=2, bias=False)
        self.body.maxpool = nn.Identity()
        self.body.fc = nn.Identity()
        self.head = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, classes),
        )

    def features(self, images: Tensor) -> Tensor:
        """(n, channels, y, x) to (n, 512): what the head sees."""
        return self.body(images)


class CNN3Layer(FeaturesAndHead):
    """Three times (3x3 convolution, ReLU, 2x2 max-pool) with 32, 64 and 128 filters, then two
    linear layers.

    Between them an adaptive average pool to 16x16; 32768-256, ReLU, dropout .5, 256-classes. With
    three input channels and three classes it has 8,482,883 parameters, as published, nearly all of
    them in the first linear layer. Input is (n, channels, y, x) float, 0 to 1. Source: the
    published spine benchmark.
    """

    def __init__(self, in_channels: int = 3, classes: int = 3):
        super().__init__()
        self.settings = {"in_channels": in_channels, "classes": classes}
        self.convolutions = convolution_blocks(in_channels, (32, 64, 128), norm=False)
        self.pool = nn.AdaptiveAvgPool2d(16)
        self.head = nn.Sequential(
            nn.Linear(128 * 16 * 16, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, classes)
        )

    def features(self, images: Tensor) -> Tensor:
        """(n, channels, y, x) to (n, 32768): what the head sees."""
        return self.pool(self.convolutions(images)).flatten(1)


class SpineViT(FeaturesAndHead):
    """torchvision's ViT-B16, frozen, with a linear head; input (n, 3, y, x) float, 0 to 1, not
    normalised, as published.

    With three classes it has 85,800,963 parameters, of which the head's 2,307 are trained. Made for
    224 px; of images of another size, a multiple of 16, the position embeddings are interpolated.
    ``weights_from`` says where the backbone comes from: "random" until :func:`make_vit` loads
    others.
    """

    def __init__(self, classes: int = 3):
        from torchvision.models import vit_b_16

        super().__init__()
        self.settings = {"classes": classes}
        self.weights_from = "random"
        self.body = vit_b_16(weights=None)
        self.body.heads = nn.Identity()
        self.body.requires_grad_(False)
        self.head = nn.Linear(768, classes)

    def features(self, images: Tensor) -> Tensor:
        """(n, 3, y, x) to (n, 768): the class token after the last layer."""
        patches = self.body.conv_proj(images)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat(
            [self.body.class_token.expand(len(images), -1, -1).to(tokens.dtype), tokens], 1
        )
        encoder = self.body.encoder
        places = self._places(encoder.pos_embedding, tuple(patches.shape[-2:]))
        return encoder.ln(encoder.layers(tokens + places))[:, 0]

    @staticmethod
    def _places(embedding: Tensor, shape: tuple[int, int]) -> Tensor:
        """(1, 1 + 196, 768) position embeddings for a grid of ``shape`` patches."""
        if shape == (14, 14):
            return embedding
        grid = embedding[:, 1:].transpose(1, 2).reshape(1, -1, 14, 14)
        grid = F.interpolate(grid, size=shape, mode="bicubic", align_corners=False)
        return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def make_vit(classes: int, *, weights: str | Path = "none", seed: int = 0) -> SpineViT:
    """A SpineViT whose backbone comes from ``weights``: the path of torchvision's file, or "none":
    random, from ``seed``, which is no published model.

    Raises CheckpointError for a file that is missing, damaged, or of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SpineViT(classes).eval()
    path = weights_file("vit_b_16", weights)
    if path is None:
        return network
    load_into(network.body, read_weights(path), path, "vit_b_16", "heads")
    network.weights_from = f"file {sha256_of_file(path)[:12]}"
    return network
