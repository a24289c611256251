"""A small network that sees which way a spine points."""

from __future__ import annotations

import torch
from torch import nn

from nbhelpers.models.blocks import convolution_blocks


class SpinePoseCNN(nn.Module):
    """Where the base of a spine lies, where it was cut from the dendrite: (n, 1, y, x) float masks
    to (n, 2), the cosine and sine of the angle by which to turn a mask so that its base is below.

    Four convolution blocks of 16, 32, 64 and 128 filters, average pool, one linear layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = convolution_blocks(1, (16, 32, 64, 128))
        self.head = nn.Linear(128, 2)

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        return self.head(self.convolutions(masks).mean((2, 3)))
