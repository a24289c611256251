"""Where pretrained weights come from: torchvision's own files, a file of the user's, or nowhere."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nbhelpers.core.errors import CheckpointError, DownloadError, check_choice
from nbhelpers.core.files import sha256_of_file
from nbhelpers.models.blocks import FeaturesAndHead
from nbhelpers.training.checkpoints import check_finite
from nbhelpers.training.pickles import load_pickled

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Pretrained(FeaturesAndHead):
    """A network that may start from pretrained weights.

    Its text names its ``settings`` and those weights, because a finished training is found again by
    this text: other first weights are another training.
    """

    weights_from = "none"  # or the first digits of the sha256 of the file

    def started_from(
        self, backbone: str, weights: str | Path, data_folder: str | Path = "data"
    ) -> Pretrained:
        """Itself, with the weights of a ``backbone`` as :func:`make_backbone` finds them, and with
        its errors.
        """
        path = weights_file(backbone, weights, data_folder)
        if path is not None:
            self.take(make_backbone(backbone, weights=path))
            self.weights_from = sha256_of_file(path)[:16]
        return self

    def take(self, source: nn.Module) -> None:
        """Take the weights of this backbone."""
        self.backbone.load_state_dict(source.state_dict())

    def extra_repr(self) -> str:
        named = self.settings | {"weights": self.weights_from}
        return ", ".join(f"{name}={value}" for name, value in named.items())


@dataclass(frozen=True)
class Backbone:
    """What must be known of a torchvision network."""

    head: str  # the attribute that is replaced
    width: int  # numbers per image before the head


BACKBONES = {
    "resnet18": Backbone("fc", 512),
    "resnet34": Backbone("fc", 512),
    "resnet50": Backbone("fc", 2048),
    "squeezenet1_0": Backbone("classifier", 512),
    "mobilenet_v2": Backbone("classifier", 1280),
    "densenet169": Backbone("classifier", 1664),
}
# under which a training script may save its state dict, beside epoch and optimiser, the outer first
STATE_DICTS = ("model", "network", "net", "weights", "model_state_dict", "state_dict")
# torchvision's own file has these names still
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def register_colours(network: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Give a network ``mean`` and ``std``, a number per channel, to normalise images by. They are
    settings and no weights: they are not stored.
    """
    for name, values in (("mean", mean), ("std", std)):
        network.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)


def with_filters(first: nn.Conv2d, filters: Tensor) -> nn.Conv2d:
    """The same convolution with other ``filters`` (out, channels, y, x), for another number of
    channels.
    """
    other = nn.Conv2d(
        filters.shape[1],
        first.out_channels,
        first.kernel_size,
        first.stride,
        first.padding,
        bias=first.bias is not None,
    )
    other.load_state_dict(first.state_dict() | {"weight": filters})
    return other


def make_backbone(
    name: str, *, weights: str | Path = "none", data_folder: str | Path = "data"
) -> nn.Module:
    """A torchvision network without its ImageNet head: (n, 3, y, x) float, normalised, to (n,
    width) features.

    ``name`` is one of BACKBONES; the result has the attribute ``width``. ``weights`` is "imagenet"
    (torchvision's file, downloaded once into ``data_folder/weights``), "none" (random, from torch's
    seed) or the path of a ``.safetensors`` or ``.pth`` file with weights of that network; its head,
    if it has one, is left out. Raises ParameterError for an unknown name, DownloadError without a
    network, and CheckpointError for a file that is missing, damaged, or of another network.
    """
    import torchvision

    check_choice("parameter backbone", name, BACKBONES)
    about = BACKBONES[name]
    network = torchvision.models.get_model(name, weights=None)
    squeezed = name.startswith("squeezenet")  # its own forward flattens, but pools inside the head
    setattr(network, about.head, nn.AdaptiveAvgPool2d(1) if squeezed else nn.Identity())
    network.width = about.width
    path = weights_file(name, weights, data_folder)
    if path is not None:
        load_into(network, read_weights(path), path, name, about.head)
    return network


def weights_file(name: str, weights: str | Path, data_folder: str | Path = "data") -> Path | None:
    """The file that ``weights`` means for a backbone, downloaded now if need be; None for "none".

    "imagenet", or "kinetics" for the networks for volumes, is looked for in ``data_folder/weights``
    and in torch hub's cache. torchvision's file names carry the first digits of their sha256, and
    every file is checked against them, wherever it comes from.
    """
    if str(weights) == "none":
        return None
    if str(weights) not in ("imagenet", "kinetics"):
        path = Path(weights)
        if not path.is_file():
            published = "imagenet" if name in BACKBONES else "kinetics"
            raise CheckpointError(
                path,
                "the file with weights does not exist.",
                f"Give '{published}', 'none', or the path of a .safetensors or .pth file.",
            )
        return path
    url, name_of_file, digits = imagenet_file(name)
    own = Path(data_folder) / "weights"
    by_hand = (
        f"fetch {url} by hand and put it into the folder {own.name} of your data folder, as "
        f"{own.parent.name or 'data'}/{own.name}/{name_of_file}; or give its path as weights; or "
        "train without, with weights = 'none'."
    )
    for folder in (own, Path(torch.hub.get_dir()) / "checkpoints"):
        path = folder / name_of_file
        if path.is_file():
            if not sha256_of_file(path).startswith(digits):
                raise DownloadError(
                    name_of_file,
                    "the file is cut or is not the published one (its sha256 differs).",
                    f"Delete it and run again, or {by_hand}",
                )
            return path
    from nbhelpers.imagesets.downloads import download, progress_bar

    with progress_bar(desc=name_of_file, unit="B", unit_scale=True) as bar:
        download(url, own / name_of_file, digits, bar, by_hand)
    return own / name_of_file


def imagenet_file(name: str) -> tuple[str, str, str]:
    """Address, file name and first sha256 digits of torchvision's first ImageNet (or Kinetics)
    weights of a backbone.
    """
    import torchvision

    url = next(iter(torchvision.models.get_model_weights(name))).url
    file = url.rsplit("/", 1)[-1]
    return url, file, re.search(r"-([0-9a-f]{8,})\.", file).group(1)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name to tensor from a ``.safetensors`` file, or from a ``.pth`` / ``.pt`` file that holds
    tensors and plain values only; of these the table under one of STATE_DICTS is taken.

    Raises CheckpointError for another kind of file, a damaged one, a pickle that holds more than
    tensors, and weights that are not finite.
    """
    path = Path(path)
    found = _content(path)
    for name in STATE_DICTS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(value, Tensor) for value in found.values())
    ):
        raise CheckpointError(
            path,
            "it holds no plain table of tensors.",
            "Save network.state_dict() alone, without optimiser or epoch, and give that file.",
        )
    check_finite(found, path)
    return found


def _content(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    readers = {".safetensors": load_file, ".pth": load_pickled, ".pt": load_pickled}
    if path.suffix not in readers:
        raise CheckpointError(
            path,
            f"files that end in {path.suffix or 'nothing'} are not read.",
            "Give a .safetensors or .pth file.",
        )
    try:
        return readers[path.suffix](path)
    except SafetensorError as error:
        raise CheckpointError(
            path,
            f"the file is cut or is no safetensors file ({error}).",
            "Copy it again from its source.",
        ) from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            path,
            "it is damaged, or holds more than tensors and could run any code when opened.",
            "Save network.state_dict() where you trust it, and give that file.",
        ) from None
    except Exception as error:  # of many types, where a pickle is damaged
        raise CheckpointError(
            path,
            f"the file is cut or damaged ({type(error).__name__}).",
            "Copy it again from its source.",
        ) from None


def without_prefix(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors under the names that ``network`` has for them: without ``module.``, ``model.``,
    ``backbone._orig_mod.`` or whatever a training script wrote before each, and without what has
    another beginning, such as a head.

    Unchanged where no beginning, or more than one, gives all names of the network's parameters.
    """
    names = [name for name, _ in network.named_parameters()]
    starts = [key.removesuffix(names[0]) for key in tensors if f".{key}".endswith(f".{names[0]}")]
    fitting = [start for start in starts if all(start + name in tensors for name in names)]
    if "" in fitting or len(fitting) != 1:
        return tensors
    size = len(fitting[0])
    return {key[size:]: value for key, value in tensors.items() if key.startswith(fitting[0])}


def load_into(
    network: nn.Module, tensors: dict[str, Tensor], path: object, name: str, head: str = "fc"
) -> None:
    """Put tensors into a headless backbone. The ``head`` is passed over; everything else must fit,
    by name and shape.

    A checkpoint of a whole network fits too: its backbone is taken, see :func:`without_prefix`.
    Raises CheckpointError that names missing and unexpected parts.
    """
    if name.startswith("densenet"):
        tensors = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in tensors.items()}
    tensors = without_prefix(tensors, network)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(head + ".")}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:  # whose first line has no news
        parts = [line.strip()[:200] for line in str(error).splitlines()[1:4]]
        raise CheckpointError(
            path,
            f"these are no weights of {name} ({' '.join(parts)}).",
            "Give the weights of the same network, or choose the network that they belong to.",
        ) from None
