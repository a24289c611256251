"""Networks for fields of several stains: S4-ResNet (one encoder per stain), early fusion, and the
other ways tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nbhelpers.core.errors import InputError, ParameterError, check_choice, check_range
from nbhelpers.models.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pretrained,
    make_backbone,
    with_filters,
)
from nbhelpers.training.checkpoints import hash_of_weights

FUSIONS = ("s4", "early", "one-stain", "sum", "weighted")
ENCODERS = ("small", "resnet18", "resnet34")
TRAINED = ("everything", "last stage", "head")
MOST_STAINS = 64
SMALL_WIDTHS = (16, 32, 64, 128)  # filters in the four stages of the encoder "small"


class StainNetwork(Pretrained):
    """ResNets that tell classes from fields of ``stains`` grey pictures each; input (n, stains, y,
    x) float, 0 to 1.

    ``fusion`` says where the stains meet:

    - "s4": each stain has an encoder of its own; what the encoders give (512 numbers each) is put
      side by side before the one linear layer. Each encoder averages over the field, so where two
      stains lie on each other is lost.
    - "early": one encoder whose first layer takes all stains.
    - "one-stain": one encoder that sees the stain number ``stain`` and no other.
    - "sum": one encoder that sees the mean of all stains.
    - "weighted": one encoder for three colours; the stains from the fourth on are added to them,
    with learnt weights.

    ``encoder`` is "resnet18", "resnet34" (as published) or "small": four blocks of 16 to 128
    filters. ``trained`` is "everything", the "last stage" (layer4) and the head, or the "head";
    batch norm goes on measuring in the stages that are not trained, because stains are no
    photographs. Source: the published S4-ResNet34 for amyloid-beta in neurons, and its early
    fusion.
    """

    def __init__(
        self,
        fusion: str = "s4",
        stains: int = 4,
        classes: int = 2,
        *,
        encoder: str = "resnet34",
        stain: int = 0,
        trained: str = "everything",
    ):
        super().__init__()
        check_choice("parameter fusion", fusion, FUSIONS)
        check_choice("parameter encoder", encoder, ENCODERS)
        check_choice("parameter trained", trained, TRAINED)
        fewest = 3 if fusion == "weighted" else 1
        hint = f"The fusion is {fusion!r}."
        check_range("parameter stains", stains, fewest, MOST_STAINS, hint)
        check_range("parameter stain", stain, 0, stains - 1)
        self.settings = {
            "fusion": fusion,
            "stains": stains,
            "classes": classes,
            "encoder": encoder,
            "stain": stain,
            "trained": trained,
        }
        count = stains if fusion == "s4" else 1
        channels = {"early": stains, "weighted": 3}.get(fusion, 1)
        self.backbone = nn.ModuleList(_encoder(encoder, channels) for _ in range(count))
        if fusion == "weighted":
            # how much of each further stain goes into a colour
            self.mix = nn.Parameter(torch.full((3, stains - 3), 1 / 3))
        self.head = nn.Linear(count * self.backbone[0].width, classes)
        # of grey pictures
        self.mean = sum(IMAGENET_MEAN) / 3
        self.std = sum(IMAGENET_STD) / 3
        for one in self.backbone:
            for name, part in one.named_children():
                if trained == "head" or (trained == "last stage" and name != "layer4"):
                    part.requires_grad_(False)

    def inputs(self, images: Tensor) -> list[Tensor]:
        """(n, stains, y, x) to what each encoder sees, one (n, channels, y, x) per encoder. Raises
        InputError for another number of stains."""
        fusion = self.settings["fusion"]
        stains = self.settings["stains"]
        stain = self.settings["stain"]
        if images.shape[1] != stains:
            raise InputError(
                "images",
                f"they have {images.shape[1]} stains, and this network was made for {stains}.",
                "Give the same stains in the same order, or make another network.",
            )
        images = (images - self.mean) / self.std
        if fusion == "s4":
            return [images[:, number : number + 1] for number in range(stains)]
        if fusion == "one-stain":
            return [images[:, stain : stain + 1]]
        if fusion == "sum":
            return [images.mean(1, keepdim=True)]  # a sum in the range of one stain
        if fusion == "weighted":
            return [images[:, :3] + torch.einsum("cs,nsyx->ncyx", self.mix, images[:, 3:])]
        return [images]

    def take(self, source: nn.Module) -> None:
        _for_channels(source, self.backbone[0].conv1.in_channels)
        for one in self.backbone:
            one.load_state_dict(source.state_dict())

    def features(self, images: Tensor) -> Tensor:
        """(n, stains, y, x) to (n, encoders * width): what the head sees."""
        seen = zip(self.backbone, self.inputs(images), strict=True)
        return torch.cat([encoder(part) for encoder, part in seen], 1)


def _encoder(name: str, channels: int) -> nn.Module:
    """A ResNet without its head, whose first layer takes ``channels``: (n, channels, y, x) to (n,
    width).
    """
    network = _small_resnet() if name == "small" else make_backbone(name)
    _for_channels(network, channels)
    return network


def _for_channels(network: nn.Module, channels: int) -> None:
    """Filters of the first layer averaged over the colours, and repeated, as published."""
    first = network.conv1
    if channels != first.in_channels:
        grey = first.weight.mean(1, keepdim=True)
        network.conv1 = with_filters(first, grey.expand(-1, channels, -1, -1))


def _small_resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    network = ResNet(BasicBlock, [1, 1, 1, 1])
    network.inplanes = SMALL_WIDTHS[0]
    network.conv1 = nn.Conv2d(3, SMALL_WIDTHS[0], 3, stride=2, padding=1, bias=False)
    # finer maps for small fields
    network.bn1 = nn.BatchNorm2d(SMALL_WIDTHS[0])
    network.maxpool = nn.Identity()
    for number, width in enumerate(SMALL_WIDTHS, start=1):
        setattr(
            network,
            f"layer{number}",
            network._make_layer(BasicBlock, width, 1, stride=1 if number == 1 else 2),
        )
    network.fc = nn.Identity()
    network.width = SMALL_WIDTHS[-1]
    return network


def make_stain_network(
    fusion: str,
    stains: int,
    classes: int = 2,
    *,
    encoder: str = "resnet34",
    weights: str | Path = "none",
    data_folder: str | Path = "data",
    encoders_from: Sequence[StainNetwork] = (),
    **settings,
) -> StainNetwork:
    """A StainNetwork whose encoders start from ``weights``, "imagenet", "none" or a file of that
    ResNet, or from the trained one-stain networks ``encoders_from``, one per stain.

    Filters of the first layer are averaged over the colours and repeated for every channel, as
    published. Raises ParameterError for unknown names, for weights of "small", which has none, and
    for ``encoders_from`` that do not fit; the errors of the weights are those of
    :func:`nbhelpers.models.weights.make_backbone`.
    """
    if encoder == "small" and str(weights) != "none":
        raise ParameterError(
            "parameter weights",
            f"there are no weights {str(weights)!r} for the encoder 'small'.",
            "Set weights to 'none', or choose resnet18 or resnet34.",
        )
    network = StainNetwork(fusion, stains, classes, encoder=encoder, **settings)
    if encoders_from:
        return _with_encoders(network, encoders_from)
    return network.started_from(encoder, weights, data_folder)


def _with_encoders(network: StainNetwork, sources: Sequence[StainNetwork]) -> StainNetwork:
    wanted = [("one-stain", number) for number in range(network.settings["stains"])]
    given = [(source.settings["fusion"], source.settings["stain"]) for source in sources]
    kinds = {source.settings["encoder"] for source in sources} | {network.settings["encoder"]}
    if network.settings["fusion"] != "s4" or given != wanted or len(kinds) > 1:
        raise ParameterError(
            "encoders_from",
            f"{len(sources)} networks that do not fit {network.settings['fusion']!r}.",
            "Give one one-stain network per stain, in the order of the stains, of the same "
            "encoder.",
        )
    for one, source in zip(network.backbone, sources, strict=True):
        one.load_state_dict(source.backbone[0].state_dict())
    network.weights_from = "-".join(hash_of_weights(source)[:8] for source in sources)
    return network


def continued(network: StainNetwork) -> StainNetwork:
    """A copy with the same weights, of which everything is trained on: the second stage of a
    training.
    """
    again = StainNetwork(**(network.settings | {"trained": "everything"}))
    again.load_state_dict(network.state_dict())
    again.weights_from = hash_of_weights(network)
    return again


@dataclass(frozen=True)
class EncoderPart:
    """One encoder of a network, for saliency: the layer to look into, and the stains that reach it
    (row numbers).
    """

    layer: nn.Module
    stains: tuple[int, ...]


def encoder_parts(network: StainNetwork) -> list[EncoderPart]:
    """The last stage of every encoder, with the stains it sees."""
    stains = tuple(range(network.settings["stains"]))
    parts = []
    for number, encoder in enumerate(network.backbone):
        seen = {"s4": (number,), "one-stain": (network.settings["stain"],)}
        which = seen.get(network.settings["fusion"], stains)
        parts.append(EncoderPart(encoder.layer4[-1], which))
    return parts
