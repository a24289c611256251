"""TinyCNN is the published network, layer by layer."""

import pytest
import torch
from torch import nn

from nbhelpers.models.tinycnn import TinyCNN


def test_it_has_the_published_number_of_parameters():
    assert sum(parameter.numel() for parameter in TinyCNN(3, 3).parameters()) == 457_539


def test_it_has_the_published_layers():
    kinds = [type(module).__name__ for module in TinyCNN().modules() if not list(module.children())]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 4 + [
        "AdaptiveAvgPool2d",
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
    ]
    dropouts = [module.p for module in TinyCNN().modules() if isinstance(module, nn.Dropout)]
    widths = [
        (module.in_features, module.out_features)
        for module in TinyCNN().modules()
        if isinstance(module, nn.Linear)
    ]
    assert dropouts == [0.35, 0.2] and widths == [(256, 192), (192, 96), (96, 3)]


@pytest.mark.parametrize("size", [16, 125, 250])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_takes_any_size_and_width(size, channels):
    network = TinyCNN(channels, 3).eval()
    images = torch.rand(2, channels, size, size)
    assert network(images).shape == (2, 3) and network.features(images).shape == (2, 256)
