"""The custom CNN for synapse patches (system B)."""

import torch
from torch import nn

from nbhelpers.core.errors import InputError, check_choice, check_range
from nbhelpers.models.blocks import FeaturesAndHead, convolution_blocks


class SynapseCNN(FeaturesAndHead):
    """Four convolution blocks, flattened into one hidden layer; for patches of one size.

    Four times (3x3 convolution with padding 1, batch norm, ReLU, 2x2 max-pool) with 32, 64, 128 and
    256 filters; flatten, dropout .5, 256, ReLU, classes. With two classes that is 4,583,874
    parameters for 128 px and 17,166,786 for 256 px. ``pool="average"`` averages the 256 maps
    instead of flattening them: 455,106 parameters, and any size from 16 px. Input is (n,
    in_channels, y, x) float. Source: the published custom CNN for MICrONS synapses.
    """

    def __init__(
        self, input_px: int = 128, classes: int = 2, *, in_channels: int = 1, pool: str = "flatten"
    ):
        super().__init__()
        check_choice("parameter pool", pool, ("flatten", "average"))
        hint = "Fewer than 16 px leave nothing after four halvings."
        check_range("parameter input_px", input_px, 16, 8192, hint)
        self.settings = {
            "input_px": input_px,
            "classes": classes,
            "in_channels": in_channels,
            "pool": pool,
        }
        self.convolutions = convolution_blocks(in_channels)
        self.pool = nn.Identity() if pool == "flatten" else nn.AdaptiveAvgPool2d(1)
        flat = 256 * (input_px // 16) ** 2 if pool == "flatten" else 256
        self.hidden = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(flat, 256), nn.ReLU())
        self.head = nn.Linear(256, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, in_channels, y, x) to (n, 256): what the head sees. Raises InputError for images of
        another size.
        """
        size = self.settings["input_px"]
        if self.settings["pool"] == "flatten" and tuple(images.shape[-2:]) != (size, size):
            raise InputError(
                "images",
                f"they are {images.shape[-2]} x {images.shape[-1]} px, and this network was "
                f"made for {size} x {size} px.",
                f"Set input_px to {size}, or make another network.",
            )
        return self.hidden(self.pool(self.convolutions(images)))
