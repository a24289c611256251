"""A pretrained backbone with the published heads for glomeruli (system D), frozen by layers as
Keras counts them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nbhelpers.core.errors import check_choice, check_range
from nbhelpers.models.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pretrained,
    make_backbone,
    register_colours,
)

PREPROCESSING = ("imagenet", "published")
HEADS = ("custom", "densenet", "linear")
# Keras counts momentum the other way round: .99 there is .01 here
KERAS_EPSILON = 1e-3
KERAS_MOMENTUM = 0.01
_batch_norm = functools.partial(nn.BatchNorm1d, eps=KERAS_EPSILON, momentum=KERAS_MOMENTUM)
_layer_norm = functools.partial(nn.LayerNorm, eps=KERAS_EPSILON)
TRAINED_LAYERS = {
    "resnet50": 30,
    "densenet169": 50,
}  # as published; of other networks as many as ResNet50


def keras_layers(backbone: str) -> list[tuple[str, str]]:
    """Keras's name and torch's module path of every layer, in the order of ``model.layers`` without
    the top.

    The path is empty for what Keras counts as a layer and torch does as part of a step (paddings,
    additions, ReLUs of a block, concatenations). Known for "resnet50" (175 layers) and
    "densenet169" (595); other networks, which Keras does not have in this form, are counted by
    their leaf modules.
    """
    if backbone == "resnet50":
        return _resnet_layers((3, 4, 6, 3))
    if backbone == "densenet169":
        return _densenet_layers((6, 12, 32, 32))
    network = make_backbone(backbone)
    leaves = [name for name, part in network.named_modules() if not list(part.children())]
    return [(name, name) for name in leaves if name]


# "Keras's name:torch's name" of the layers, in Keras's order
_STEM = (
    "input_layer: conv1_pad: conv1_conv:conv1 conv1_bn:bn1 conv1_relu: pool1_pad: "
    "pool1_pool:maxpool"
)
_BOTTLENECK = "1_conv:conv1 1_bn:bn1 1_relu: 2_conv:conv2 2_bn:bn2 2_relu: {} 3_bn:bn3 add: out:"
# Keras sorts by depth: the shortcut of a first block stands between the last two convolutions
_FIRST_BOTTLENECK = _BOTTLENECK.format("0_conv:downsample.0 3_conv:conv3 0_bn:downsample.1")
_LATER_BOTTLENECK = _BOTTLENECK.format("3_conv:conv3")
_DENSE_STEM = (
    "input_layer: zero_padding2d: conv1_conv:features.conv0 conv1_bn:features.norm0 "
    "conv1_relu:features.relu0 zero_padding2d_1: pool1:features.pool0"
)
_DENSE_LAYER = "0_bn:norm1 0_relu:relu1 1_conv:conv1 1_bn:norm2 1_relu:relu2 2_conv:conv2 concat:"
_TRANSITION = "bn:norm relu:relu conv:conv pool:pool"


def _pairs(layers: str, keras: str = "", path: str = "") -> list[tuple[str, str]]:
    """The layers of one part, whose names begin with ``keras`` and ``path``."""
    pairs = [layer.split(":") for layer in layers.split()]
    return [(keras + name, torch_name and path + torch_name) for name, torch_name in pairs]


def _resnet_layers(blocks: tuple[int, ...]) -> list[tuple[str, str]]:
    found = _pairs(_STEM)
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            layers = _LATER_BOTTLENECK if block else _FIRST_BOTTLENECK
            keras = f"conv{stage + 1}_block{block + 1}_"
            found += _pairs(layers, keras, f"layer{stage}.{block}.")
    return found


def _densenet_layers(blocks: tuple[int, ...]) -> list[tuple[str, str]]:
    found = _pairs(_DENSE_STEM)
    for stage, count in enumerate(blocks, start=1):
        for block in range(1, count + 1):
            path = f"features.denseblock{stage}.denselayer{block}."
            found += _pairs(_DENSE_LAYER, f"conv{stage + 1}_block{block}_", path)
        if stage < len(blocks):
            found += _pairs(_TRANSITION, f"pool{stage + 1}_", f"features.transition{stage}.")
    return [*found, ("bn", "features.norm5"), ("relu", "")]


def mean_and_std(preprocessing: str) -> tuple[Tensor, Tensor]:
    """What colours are normalised by, (3,) each: "imagenet" is what the weights were
    trained with; "published" leaves values from 0 to 1 as they are. Raises ParameterError.
    """
    check_choice("parameter preprocessing", preprocessing, PREPROCESSING)
    if preprocessing == "published":
        return torch.zeros(3), torch.ones(3)
    return torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)


class SqueezeExcite(nn.Module):
    """Attention over channels: (n, width) pooled features, each times a weight from 0 to 1 that all
    of them decide.

    Squeezing is pooling, and a weight per channel may be multiplied before or after it with the
    same result; so it stands in the head, behind the pool. Source: Hu et al. 2018.
    """

    def __init__(self, width: int):
        super().__init__()
        fewer = max(4, width // 16)
        self.gate = nn.Sequential(
            nn.Linear(width, fewer), nn.ReLU(), nn.Linear(fewer, width), nn.Sigmoid()
        )

    def forward(self, features: Tensor) -> Tensor:
        return features * self.gate(features)


def make_head(kind: str, width: int, classes: int, *, attention: bool = False) -> nn.Sequential:
    """The layers behind the pool: (n, width) to (n, classes) logits.

    "custom": Dense 512, ReLU, BatchNorm, Dropout .4, Dense 256, ReLU, BatchNorm, Dropout .3, Dense,
    as published for ResNet50. "densenet": Dense 512, LayerNorm, Dense 512, LayerNorm, Dropout .5,
    Dense 256, LayerNorm, Dropout .4, Dense, as published for DenseNet169. "linear": one Dense
    layer, to see what the others gain. ``attention`` puts a SqueezeExcite first. Weights start as
    in Keras (Glorot uniform, biases 0); the softmax is left to the loss. Raises ParameterError for
    an unknown kind.
    """
    check_choice("parameter head", kind, HEADS)
    layers: list[nn.Module] = [SqueezeExcite(width)] if attention else []
    if kind == "custom":
        layers += _dense(width, 512, _batch_norm, 0.4)
        layers += _dense(512, 256, _batch_norm, 0.3)
    elif kind == "densenet":
        layers += _dense(width, 512, _layer_norm, 0)
        layers += _dense(512, 512, _layer_norm, 0.5)
        layers += _dense(512, 256, _layer_norm, 0.4)
    layers.append(nn.Linear(width if kind == "linear" else 256, classes))
    head = nn.Sequential(*layers)
    for part in head.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    return head


def _dense(inputs: int, outputs: int, norm: Callable, dropout: float) -> list[nn.Module]:
    layers = [nn.Linear(inputs, outputs), nn.ReLU(), norm(outputs)]
    return [*layers, nn.Dropout(dropout)] if dropout else layers


class KerasHead(Pretrained):
    """Backbone, global average pool and head; input (n, 3, y, x) float, 0 to 1, output (n, classes)
    logits.

    All but the last ``trained_layers`` layers of the backbone, counted as Keras counts them, are
    frozen: their weights stay, and their batch norms run in inference mode even while training, as
    in Keras. ``preprocessing`` "imagenet" is what the weights were trained with; "published" leaves
    values from 0 to 1 as they are (/255), as the original did. torchvision's ResNet50 halves the
    size in the 3x3 convolution of a block and has no biases in its convolutions, Keras's halves it
    in the 1x1 before and has; the layers are the same otherwise.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        classes: int = 2,
        *,
        head: str = "custom",
        trained_layers: int | None = None,
        attention: bool = False,
        preprocessing: str = "imagenet",
    ):
        super().__init__()
        layers = keras_layers(backbone)
        if trained_layers is None:
            trained_layers = min(TRAINED_LAYERS.get(backbone, 30), len(layers))
        check_range("parameter trained_layers", trained_layers, 0, len(layers))
        self.settings = {
            "backbone": backbone,
            "classes": classes,
            "head": head,
            "trained_layers": trained_layers,
            "attention": attention,
            "preprocessing": preprocessing,
        }
        self.backbone = make_backbone(backbone)
        self.head = make_head(head, self.backbone.width, classes, attention=attention)
        first = len(layers) - trained_layers
        self.frozen, self.trained = (
            [path for _, path in some if path] for some in (layers[:first], layers[first:])
        )
        for path in self.frozen:
            self.backbone.get_submodule(path).requires_grad_(False)
        register_colours(self, *mean_and_std(preprocessing))

    def train(self, mode: bool = True) -> KerasHead:
        super().train(mode)
        for path in self.frozen:
            self.backbone.get_submodule(path).eval()
        return self

    def trained_modules(self) -> list[str]:
        """Paths of the backbone's modules with weights that are trained, in the order of Keras's
        layers.
        """
        return [
            path
            for path in self.trained
            if list(self.backbone.get_submodule(path).parameters(recurse=False))
        ]

    def features(self, images: Tensor) -> Tensor:
        """(n, 3, y, x) to (n, width): what the head sees."""
        return self.backbone((images - self.mean) / self.std)


def make_keras_head(
    backbone: str = "resnet50",
    classes: int = 2,
    *,
    weights: str | Path = "imagenet",
    data_folder: str | Path = "data",
    **settings,
) -> KerasHead:
    """A KerasHead whose backbone starts from ``weights``: "imagenet", "none", or a file.

    ``settings`` go to KerasHead; the head is "densenet" for DenseNet169 and "custom" for the others
    unless given. Errors are those of :func:`nbhelpers.models.weights.make_backbone`.
    """
    settings.setdefault("head", "densenet" if backbone == "densenet169" else "custom")
    network = KerasHead(backbone, classes, **settings)
    return network.started_from(backbone, weights, data_folder)
