"""The encoder of a 3D U-Net with a classifier on it, and how a network for anisotropic volumes
halves its axes.
"""

from collections.abc import Sequence

import torch
from torch import nn

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.models.blocks import FeaturesAndHead

# z, y, x: what four halvings in plane need, and sections enough to be a volume
SMALLEST_PX = (4, 16, 16)
FEWEST_SECTIONS = 4  # z is not halved below this


def sections_apart(shape: Sequence[int], voxel_nm: Sequence[float] | None = None) -> float:
    """How many times farther sections lie apart than pixels; 5 for 40 x 8 x 8 nm.

    Without ``voxel_nm`` (z, y, x) it is guessed from the shape (z, y, x), as if the volume were as
    deep as it is wide.
    """
    if voxel_nm is None:
        return min(shape[1:]) / shape[0]
    if len(voxel_nm) != 3 or not min(voxel_nm) > 0:
        raise ParameterError(
            "parameter voxel_nm",
            f"{tuple(voxel_nm)} is no voxel size.",
            "Give z, y and x in nm, all above 0.",
        )
    return voxel_nm[0] / max(voxel_nm[1:])


def check_shape(
    shape: Sequence[int], smallest: Sequence[int] = SMALLEST_PX, where: str = "parameter shape"
) -> None:
    """Raises InputError for a volume (z, y, x) that is smaller than what a network needs, with the
    smallest allowed.
    """
    if len(shape) != 3 or any(side < least for side, least in zip(shape, smallest, strict=True)):
        raise InputError(
            where,
            f"volumes of {' x '.join(map(str, shape))} voxels are too small for this network.",
            f"The smallest allowed is {' x '.join(map(str, smallest))} (z, y, x): cut larger "
            "volumes, or choose a larger input_px.",
        )


def depth_strides(sections: int, apart: float, halvings: int) -> tuple[int, ...]:
    """The stride in z, 1 or 2, of each of so many halvings in plane.

    z stays while sections lie farther apart than pixels (by 1.4 times or more), so that a voxel
    becomes a cube first; and it stays where fewer than FEWEST_SECTIONS would be left.
    """
    strides = []
    for _ in range(halvings):
        halved = apart < 2**0.5 and sections // 2 >= FEWEST_SECTIONS
        strides.append(2 if halved else 1)
        if halved:
            sections //= 2
        else:
            apart /= 2
    return tuple(strides)


def groups_for(channels: int, most: int = 8) -> int:
    """The largest number of groups up to ``most`` into which group norm can part the channels."""
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


class UNet3D(FeaturesAndHead):
    """The encoder half of a 3D U-Net (16, 32, 64, 128 filters), averaged over the volume, and a
    linear head.

    Four times two convolutions, each with group norm and SiLU; from the second time on the first of
    the two halves y and x, and z only once a voxel is about a cube (:func:`depth_strides`). Where
    sections lie more than twice as far apart as pixels, convolutions stay within the section
    (1x3x3), as nnU-Net does it; after that they are 3x3x3. There the very first one halves y and x
    of sections of 128 px and more, which is a quarter of the work. Group norm needs no large
    batches. Input is (n, in_channels, z, y, x) float, 0 to 1, of ``shape`` (z, y, x) or larger;
    ``voxel_nm`` is (z, y, x); ``width`` multiplies the numbers of filters. Raises InputError for
    smaller volumes. Source: the published UNet3D for synapses; Isensee et al. 2021 (nnU-Net) for
    kernels and strides.
    """

    def __init__(
        self,
        classes: int = 2,
        *,
        shape: Sequence[int] = (16, 128, 128),
        voxel_nm: Sequence[float] | None = None,
        in_channels: int = 1,
        width: float = 1.0,
    ):
        super().__init__()
        check_shape(shape)
        self.settings = {
            "classes": classes,
            "shape": list(shape),
            "in_channels": in_channels,
            "width": width,
            "voxel_nm": None if voxel_nm is None else list(voxel_nm),
        }
        self.weights_from = "none"
        apart = sections_apart(shape, voxel_nm)
        first = 2 if apart > 2 and min(shape[1:]) >= 128 else 1
        apart /= first
        strides = (1, *depth_strides(shape[0], apart, 3))
        before = in_channels
        blocks = []
        for level, (filters, deep) in enumerate(zip((16, 32, 64, 128), strides, strict=True)):
            filters = max(4, round(width * filters))
            apart = apart / 2 if level and deep == 1 else apart
            depth = 1 if apart > 2 else 3
            for inputs, stride in (
                (before, (deep, 2, 2) if level else (1, first, first)),
                (filters, 1),
            ):
                blocks += [
                    nn.Conv3d(
                        inputs, filters, (depth, 3, 3), stride, (depth // 2, 1, 1), bias=False
                    ),
                    nn.GroupNorm(groups_for(filters), filters),
                    nn.SiLU(inplace=True),
                ]
            before = filters
        self.encoder = nn.Sequential(*blocks)
        self.smallest = (2 ** strides.count(2), 8 * first, 8 * first)
        self.head = nn.Linear(before, classes)

    def features(self, volumes: torch.Tensor) -> torch.Tensor:
        """(n, in_channels, z, y, x) to (n, 128): what the head sees."""
        check_shape(volumes.shape[-3:], self.smallest, "images")
        return self.encoder((volumes - 0.5) / 0.25).mean((2, 3, 4))

    def extra_repr(self) -> str:
        # a finished training is found again by this text: other first weights, another text
        return f"weights={self.weights_from}"
