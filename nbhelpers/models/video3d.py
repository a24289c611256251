"""Networks for cubes: torchvision's video ResNets with one channel and strides for thick sections,
and a 2.5D one.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torchvision.models.video.resnet import (
    BasicBlock,
    Conv2Plus1D,
    Conv3DNoTemporal,
    Conv3DSimple,
    VideoResNet,
)

from nbhelpers.core.errors import InputError, ParameterError, check_choice, check_range
from nbhelpers.core.files import sha256_of_file
from nbhelpers.models.synapse_cnn import SynapseCNN
from nbhelpers.models.unet3d import (
    SMALLEST_PX,
    UNet3D,
    check_shape,
    depth_strides,
    groups_for,
    sections_apart,
)
from nbhelpers.models.weights import (
    Pretrained,
    load_into,
    read_weights,
    weights_file,
    without_prefix,
)

BACKBONES_3D = ("unet3d", "r3d_18", "mc3_18", "r2plus1d_18")
NORMS = ("batch", "group")
WHOLE_BELOW_PX = 48  # smaller sections are not halved by the stem: fewer than 24 px would be left
# torchvision's, averaged over the colours
KINETICS_MEAN = 0.3989
KINETICS_STD = 0.2228
_CONVOLUTIONS = {
    "r3d_18": [Conv3DSimple] * 4,
    "mc3_18": [Conv3DSimple, *[Conv3DNoTemporal] * 3],
    "r2plus1d_18": [Conv2Plus1D] * 4,
}


class _Backbone(VideoResNet):
    """torchvision's network with ``width`` times its filters, a one-channel stem, and no head."""

    def __init__(self, name: str, width: float):
        self.filters = {planes: max(4, round(planes * width)) for planes in (45, 64, 128, 256, 512)}
        super().__init__(
            BasicBlock, _CONVOLUTIONS[name], [2, 2, 2, 2], lambda: self._make_stem(name)
        )
        self.width = self.filters[512]
        self.fc = nn.Identity()

    def _make_stem(self, name: str) -> nn.Sequential:
        self.inplanes = self.filters[64]
        between = self.filters[45]
        convolutions = [(1, self.inplanes, (3, 7, 7), (1, 2, 2), (1, 3, 3))]
        if name == "r2plus1d_18":
            convolutions = [
                (1, between, (1, 7, 7), (1, 2, 2), (0, 3, 3)),
                (between, self.inplanes, (3, 1, 1), 1, (1, 0, 0)),
            ]
        layers = []
        for about in convolutions:
            convolution = nn.Conv3d(*about, bias=False)
            norm = nn.BatchNorm3d(convolution.out_channels)
            layers += [convolution, norm, nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def _make_layer(self, block, conv_builder, planes, blocks, stride=1):
        return super()._make_layer(block, conv_builder, self.filters[planes], blocks, stride)


class CubeResNet(Pretrained):
    """torchvision's r3d_18, mc3_18 or r2plus1d_18 for grey cubes, with a new linear head.

    torchvision halves z three times, as it does y and x, after a stem that halves these alone: 16
    sections of 40 nm end as 2, of 320 nm. Here y and x are halved first, if need be by a max-pool
    behind the stem, until a voxel is about a cube, and z only from there on, and never below 4
    sections (:func:`nbhelpers.models.unet3d.depth_strides`). That is also a quarter of the work.
    Sections of fewer than 48 px pass the stem at their full size: if they were halved there, before
    they are compared in depth, what is a pixel or two wide would be lost, and little learnt. No
    filter changes its shape, so torchvision's weights fit.

    Input is (n, 1, z, y, x) float, 0 to 1, of ``shape`` (z, y, x) or larger; ``voxel_nm`` is (z, y,
    x), guessed from the shape if None; ``norm`` is "batch" or "group"; ``width`` multiplies the
    numbers of filters. Raises InputError for volumes smaller than the network's stride.
    """

    def __init__(
        self,
        backbone: str = "r3d_18",
        classes: int = 2,
        *,
        shape: Sequence[int] = (16, 128, 128),
        voxel_nm: Sequence[float] | None = None,
        norm: str = "batch",
        width: float = 1.0,
    ):
        super().__init__()
        check_shape(shape)
        self.settings = {
            "backbone": backbone,
            "classes": classes,
            "shape": list(shape),
            "norm": norm,
            "width": width,
            "voxel_nm": None if voxel_nm is None else list(voxel_nm),
        }
        self.backbone = _Backbone(backbone, width)
        apart = sections_apart(shape, voxel_nm)
        whole = min(shape[1:]) < WHOLE_BELOW_PX
        if whole:
            self.backbone.stem[0].stride = (1, 1, 1)
        else:
            apart /= 2  # behind the stem
        if apart >= 2 and min(shape[1:]) >= 64:
            self.backbone.stem.append(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
            apart /= 2
        strides = depth_strides(shape[0], apart, 3)
        for stride, layer in zip(
            strides, (self.backbone.layer2, self.backbone.layer3, self.backbone.layer4), strict=True
        ):
            for part in layer[0].modules():
                if isinstance(part, nn.Conv3d):
                    part.stride = (min(stride, part.stride[0]), *part.stride[1:])
        if norm == "group":
            _batch_to_group_norm(self.backbone)
        pooled = isinstance(self.backbone.stem[-1], nn.MaxPool3d)
        deep = 1 if backbone == "mc3_18" else 2 ** strides.count(2)
        self.smallest = (deep, *[32 if pooled else 8 if whole else 16] * 2)
        self.head = nn.Linear(self.backbone.width, classes)

    def features(self, volumes: Tensor) -> Tensor:
        """(n, 1, z, y, x) to (n, 512): what the head sees."""
        check_shape(volumes.shape[-3:], self.smallest, "images")
        return self.backbone((volumes - KINETICS_MEAN) / KINETICS_STD)


def _batch_to_group_norm(network: nn.Module) -> None:
    """Replace every batch norm by a group norm with the same weights and as many groups as divide
    it, up to 16.
    """
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.BatchNorm3d):
            parent, _, leaf = name.rpartition(".")
            group = nn.GroupNorm(groups_for(part.num_features, 16), part.num_features)
            setattr(network.get_submodule(parent), leaf, group)


def make_cube_network(
    backbone: str,
    classes: int,
    *,
    shape: Sequence[int],
    voxel_nm: Sequence[float] | None = None,
    norm: str = "batch",
    weights: str | Path = "none",
    data_folder: str | Path = "data",
    width: float = 1.0,
) -> nn.Module:
    """A network for cubes of ``shape`` (z, y, x), as it sees them: with the height and width after
    input_px.

    ``backbone`` is one of BACKBONES_3D. ``voxel_nm`` (z, y, x) decides when z is halved; without it
    the shape does. ``norm`` is "batch" or "group" (unet3d always has group norm). ``weights`` is
    "none", "kinetics" (torchvision's file, downloaded once into ``data_folder/weights``) or a .pth
    / .safetensors file of the same backbone; a stem of three colours is summed to one. With group
    norm the filters and scales of such a file are taken, its statistics are left out. ``width`` .25
    has a quarter of the filters. Raises ParameterError for unknown names and combinations,
    InputError for too small volumes, DownloadError and CheckpointError as
    :func:`nbhelpers.models.weights.make_backbone` does.
    """
    check_choice("parameter backbone", backbone, BACKBONES_3D)
    check_choice("parameter norm", norm, NORMS)
    check_range("parameter width", width, 0.05, 4)
    if str(weights) == "kinetics" and (backbone == "unet3d" or width != 1):
        raise ParameterError(
            "parameter weights",
            f"there are no Kinetics weights for {backbone} of width {width}.",
            "Set weights to 'none', or choose r3d_18, mc3_18 or r2plus1d_18 of width 1.",
        )
    if backbone == "unet3d":
        network = UNet3D(classes, shape=shape, voxel_nm=voxel_nm, width=width)
    else:
        network = CubeResNet(
            backbone, classes, shape=shape, voxel_nm=voxel_nm, norm=norm, width=width
        )
    path = weights_file(backbone, weights, data_folder)
    if path is None:
        return network
    target = network.encoder if backbone == "unet3d" else network.backbone
    tensors = without_prefix(read_weights(path), target)
    load_into(target, _one_channel(tensors, target), path, backbone)
    network.weights_from = sha256_of_file(path)[:16]
    return network


def _one_channel(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors with a three-colour stem summed to one, and without the statistics of norms that
    have none.
    """
    found = dict(tensors)
    stem = found.get("stem.0.weight")
    if stem is not None and stem.ndim == 5 and stem.shape[1] == 3:
        found["stem.0.weight"] = stem.sum(1, keepdim=True)
    if not any(isinstance(part, nn.BatchNorm3d) for part in network.modules()):
        found = {
            key: value
            for key, value in found.items()
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        }
    return {key: value for key, value in found.items() if not key.startswith("head.")}


class SectionsAsChannels(nn.Module):
    """2.5D, a baseline: a 2D network whose input channels are the sections, mixed once, in its
    first layer.

    The custom CNN of notebook 02 with averaged maps
    (:class:`nbhelpers.models.synapse_cnn.SynapseCNN`). Input is (n, 1, z, y, x) float, 0 to 1, with
    as many sections as ``shape`` (z, y, x) has.
    """

    def __init__(self, classes: int = 2, *, shape: Sequence[int] = (16, 128, 128)):
        super().__init__()
        check_shape(shape, (1, *SMALLEST_PX[1:]))
        self.settings = {"classes": classes, "shape": list(shape)}
        self.body = SynapseCNN(min(shape[1:]), classes, in_channels=shape[0], pool="average")

    def features(self, volumes: Tensor) -> Tensor:
        """(n, 1, z, y, x) to (n, 256): what the head sees. Raises InputError for another number of
        sections.
        """
        if volumes.shape[2] != self.settings["shape"][0]:
            raise InputError(
                "images",
                f"they have {volumes.shape[2]} sections, and this network was made for "
                f"{self.settings['shape'][0]}.",
                "Make another network: its channels are the sections.",
            )
        return self.body.features(volumes.flatten(1, 2))

    def forward(self, volumes: Tensor) -> Tensor:
        """(n, 1, z, y, x) to (n, classes) logits."""
        return self.body.head(self.features(volumes))
