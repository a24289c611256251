"""ResNet-18/34/50 and other torchvision networks for grey images, with ImageNet
weights or without."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from nbhelpers.core.errors import check_choice
from nbhelpers.core.files import sha256_of_file
from nbhelpers.models.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pretrained,
    make_backbone,
    weights_file,
)

GREY = ("repeat", "one channel", "colour")


class PretrainedCNN(Pretrained):
    """A torchvision network with a new linear head; input (n, channels, y, x) float, 0 to 1.

    The normalisation that ImageNet weights expect is done inside, so that a transform need not
    know of it. ``grey`` says how one channel meets a network made for three: "repeat" it three
    times, as published; "one channel" sums the three colour filters of the first layer, which gives
    nearly the same numbers for less work; "colour" takes three channels.
    """

    def __init__(self, backbone: str = "resnet18", classes: int = 2, *, grey: str = "repeat"):
        super().__init__()
        check_choice("parameter grey", grey, GREY)
        self.settings = {"backbone": backbone, "classes": classes, "grey": grey}
        self.grey = grey
        self.backbone = make_backbone(backbone)
        self.head = nn.Linear(self.backbone.width, classes)
        mean = torch.tensor(IMAGENET_MEAN)
        std = torch.tensor(IMAGENET_STD)
        if grey == "one channel":
            mean = mean.mean().view(1)
            std = std.mean().view(1)
            _one_channel_stem(self.backbone)
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1), persistent=False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, channels, y, x) to (n, width): what the head sees."""
        if self.grey == "repeat" and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return self.backbone((images - self.mean) / self.std)


def _one_channel_stem(network: nn.Module) -> None:
    """Replace the first convolution by one that takes a single channel: its filters summed over the
    colours.
    """
    name, first = next(
        (name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d)
    )
    single = nn.Conv2d(
        1,
        first.out_channels,
        first.kernel_size,
        first.stride,
        first.padding,
        bias=first.bias is not None,
    )
    with torch.no_grad():
        single.weight.copy_(first.weight.sum(1, keepdim=True))
        if first.bias is not None:
            single.bias.copy_(first.bias)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, single)


def make_pretrained(
    backbone: str,
    classes: int,
    *,
    weights: str | Path = "none",
    data_folder: str | Path = "data",
    **settings,
) -> PretrainedCNN:
    """A PretrainedCNN whose backbone starts from ``weights``: "imagenet", "none", or a file.

    ``settings`` go to PretrainedCNN; errors are those of
    :func:`nbhelpers.models.weights.make_backbone`.
    """
    network = PretrainedCNN(backbone, classes, **settings)
    path = weights_file(backbone, weights, data_folder)
    if path is None:
        return network
    source = make_backbone(backbone, weights=path)
    if network.grey == "one channel":
        _one_channel_stem(source)
    network.backbone.load_state_dict(source.state_dict())
    network.weights_from = sha256_of_file(path)[:16]
    return network
