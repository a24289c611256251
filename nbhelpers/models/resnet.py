"""ResNet-18/34/50 and other torchvision networks for grey images, with ImageNet
weights or without."""

from pathlib import Path

import torch
from torch import nn

from nbhelpers.core.errors import check_choice
from nbhelpers.models.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pretrained,
    make_backbone,
    register_colours,
    with_filters,
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
        colours = [torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)]
        if grey == "one channel":
            colours = [values.mean() for values in colours]
            _one_channel_stem(self.backbone)
        register_colours(self, *colours)

    def take(self, source: nn.Module) -> None:
        if self.grey == "one channel":
            _one_channel_stem(source)
        super().take(source)

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
    parent, _, leaf = name.rpartition(".")
    single = with_filters(first, first.weight.sum(1, keepdim=True))
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
    return network.started_from(backbone, weights, data_folder)
