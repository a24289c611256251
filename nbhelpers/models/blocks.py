"""What the networks of this collection share."""

from collections.abc import Sequence

import torch
from torch import nn


class FeaturesAndHead(nn.Module):
    """A network of two parts: ``features(images)`` is what its ``head`` sees. ``settings`` make it
    again.
    """

    settings: dict

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, channels, ...) float to (n, classes) logits."""
        return self.head(self.features(images))


def convolution_blocks(
    in_channels: int, widths: Sequence[int] = (32, 64, 128, 256), *, norm: bool = True
) -> nn.Sequential:
    """For each of ``widths`` a 3x3 convolution with that many filters, batch norm (unless without
    ``norm``), ReLU, 2x2 max-pool.
    """
    layers = []
    for width in widths:
        layers.append(nn.Conv2d(in_channels, width, 3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(width))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        in_channels = width
    return nn.Sequential(*layers)
