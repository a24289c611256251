"""TinyCNN, the small network for dendritic spine masks (system A)."""

import torch
from torch import nn

from nbhelpers.models.blocks import FeaturesAndHead, convolution_blocks


class TinyCNN(FeaturesAndHead):
    """Four convolution blocks, global average pool, two hidden layers.

    Four times (3x3 convolution with padding 1, batch norm, ReLU, 2x2 max-pool) with 32, 64, 128 and
    256 filters; average pool; 256-192, ReLU, dropout .35; 192-96, ReLU, dropout .2; 96-classes.
    With three input channels and three classes it has 457,539 parameters, as published. Input is
    (n, channels, y, x) float, any size from 16 px. Source: the published TinyCNN for dendritic
    spines.
    """

    def __init__(self, in_channels: int = 3, classes: int = 3):
        super().__init__()
        self.settings = {"in_channels": in_channels, "classes": classes}
        self.convolutions = convolution_blocks(in_channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Linear(256, 192),
            nn.ReLU(),
            nn.Dropout(0.35),
            nn.Linear(192, 96),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(96, classes),
        )

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, channels, y, x) to (n, 256): what the head sees."""
        return self.pool(self.convolutions(images)).flatten(1)
