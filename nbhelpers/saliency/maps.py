"""Where a network looks: class activation maps over the methods of pytorch-grad-cam, and maps by
covering up.

Maps are raw, in units of the class's log-odds (or logit), 0 where nothing speaks for the class:
they are not rescaled each to its own maximum, so that images can be compared. What a map is worth,
:mod:`nbhelpers.saliency.checks` tells.
"""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbhelpers.core.errors import InputError, ParameterError, check_choice

METHODS = ("gradcam", "gradcam++", "layercam", "occlusion")
# a layer with fewer places in y or x than a ResNet has at 224 px says little about where
FEWEST_PLACES = 7
FINE_PLACES = 16  # and from here on a layer says where exactly: LayerCAM looks into all of these
COVERED = 8  # places along y and along x that are covered in turn, each with a soft edge
COVERED_DEEP = 3  # and along z
Asked = int | Sequence[int] | None  # the class asked about: of all, of each, or the predicted one
_NO_MEMORY = re.compile("(?i)allocate memory|out of memory|not enough memory")


def saliency_maps(
    network: nn.Module,
    images: Tensor,
    *,
    method: str = "layercam",
    target_class: Asked = None,
    layers: Sequence[str | Sequence[str]] | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Maps of prepared images, (n, c, y, x) or (n, c, z, y, x) float, to (n, parts, y, x) or (n,
    parts, z, y, x) float32.

    Parameters
    ----------
    method : "gradcam" and "gradcam++" weigh whole filters of one late layer by their mean slope:
        right where the network averages over the image before it decides, and wrong where it does
        not. "layercam" weighs each place by its own slope, in several layers: the map of the finest
        one, times how much each coarser one marks the place (0 to 1 of its own highest point), as
        in Guided GradCAM. "occlusion" covers one place after another with a blur and measures how
        far the log-odds fall; it needs no layer and many passes.
    target_class : the class asked about: one for all, one per image, or None for the class that is
        predicted.
    layers : names of the layers to look into, as :func:`target_layers` chooses them if None; one
        part each, and where an entry holds several names, the first times the others as with
        "layercam".
    batch_size : images at once; split further by itself where memory is too small.

    A network with an encoder per stain has one part per stain, all others one part. The network
    comes out as it went in, also after an error: weights, gradients, mode, no hooks. Raises
    ParameterError for a class, layer or method that is unknown, InputError for values that are not
    finite, for images smaller than the network's stride, and for a network without a layer that has
    places.
    """
    check_choice("parameter method", method, METHODS)
    _check(images)
    if method == "occlusion":
        return _occlusion(network, images, target_class, batch_size)
    known = dict(network.named_modules())
    chosen = target_layers(network, images, method) if layers is None else layers
    chosen = [(one,) if isinstance(one, str) else tuple(one) for one in chosen]
    names = list(itertools.chain(*chosen))
    absent = [name for name in names if name not in known]
    if absent:
        raise ParameterError(
            "parameter layers",
            f"the network has no layer {absent[0]!r}.",
            f"Its layers are {', '.join(list(known)[1:9])} ...",
        )
    found = grad_cam_of_layers(
        network,
        images,
        [known[name] for name in names],
        target_class,
        batch_size,
        method=method,
        against_others=True,
    )
    ends = np.cumsum([len(one) for one in chosen])[:-1]
    return np.stack([_gated(part) for part in np.split(found, ends, 1)], 1)


def _gated(maps: np.ndarray) -> np.ndarray:
    """(n, layers, ...), the finest layer first, to (n, ...): that one, times the others from 0 to
    1.
    """
    rest = maps[:, 1:]
    highest = rest.max(tuple(range(2, maps.ndim)), keepdims=True)
    return maps[:, 0] * np.divide(rest, highest, out=np.zeros_like(rest), where=highest > 0).prod(1)


def target_layers(
    network: nn.Module, images: Tensor, method: str = "gradcam"
) -> list[tuple[str, ...]]:
    """The names of the layers to look into for images of this size, one entry per encoder.

    The last layer whose output has at least FEWEST_PLACES places along y and x (later ones are too
    coarse to say where), or the one with the most where images are small; for "layercam" the last
    layer of each size with FINE_PLACES and more, if there is one. Of vision transformers the last
    block's first norm, as the library's authors advise. Raises InputError as :func:`saliency_maps`.
    """
    transformer = _transformer(network)
    if transformer is not None:
        layer = transformer.encoder.layers[-1].ln_1
        return [(next(name for name, module in network.named_modules() if module is layer),)]
    places = _places(network, images[:1])
    if not places:
        raise InputError(
            "network",
            f"{type(network).__name__} has no layer that keeps the places of the image.",
            "Give a network with convolutions, or use the method 'occlusion'.",
        )
    encoders = getattr(network, "backbone", None)
    prefixes = [""]
    if isinstance(encoders, nn.ModuleList):
        prefixes = [f"backbone.{at}." for at in range(len(encoders))]
    found = []
    for prefix in prefixes:
        own = {name: count for name, count in places.items() if name.startswith(prefix)}
        most = max(own.values())
        if most < 2:
            raise InputError(
                "images",
                f"{_px(images)} px leave a single place in every layer: they are smaller than the "
                "stride of the network.",
                "Give larger images.",
            )
        fine = {
            count: name for name, count in own.items() if count >= FINE_PLACES
        }  # the last one of each size
        enough = min(FEWEST_PLACES, most)
        last = [name for name, count in own.items() if count >= enough][-1]
        finest_first = tuple(fine[count] for count in sorted(fine, reverse=True))
        found.append(finest_first if method == "layercam" and fine else (last,))
    return found


def _places(network: nn.Module, image: Tensor) -> dict[str, int]:
    """Layer name to the places along the shorter of y and x of what it gives, in the order in which
    layers end.
    """
    found: dict[str, int] = {}

    def note(name: str) -> Callable:
        def hook(_, __, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == image.ndim:
                found.pop(name, None)  # used twice: the last time counts
                found[name] = min(output.shape[-2:])

        return hook

    parts = [
        (name, part)
        for name, part in network.named_modules()
        if name and not isinstance(part, nn.Identity | nn.modules.dropout._DropoutNd)
    ]
    with still(network), contextlib.ExitStack() as hooks, torch.no_grad():
        for name, part in parts:
            hooks.callback(part.register_forward_hook(note(name)).remove)
        _run(network, placed(image, network))
    return found


def grad_cam_of_layers(
    network: nn.Module,
    images: Tensor,
    target_layers: Sequence[nn.Module],
    target_class: Asked = None,
    batch_size: int = 16,
    method: str = "gradcam",
    against_others: bool = False,
) -> np.ndarray:
    """Maps of prepared images, (n, c, y, x) or (n, c, z, y, x) float, at several layers in one
    pass: (n, layers, y, x) or (n, layers, z, y, x) float32.

    Maps of parallel encoders have one unit and may be compared. ``method`` as in
    :func:`saliency_maps`, without "occlusion". ``against_others`` asks for the log-odds of the
    class in place of its logit: a logit by itself says little, as only differences of logits make a
    probability.
    """
    _check(images)
    if not len(images):
        return np.zeros((0, len(target_layers), *images.shape[2:]), np.float32)
    with _watched(network, target_layers) as outputs:
        explain = _method(method, network)

        def compute(rows: slice) -> np.ndarray:
            outputs.clear()
            batch = placed(images[rows], network)
            with torch.enable_grad():
                logits = _run(network, batch)
                asked = _classes(logits, target_class, rows)
                own = logits.gather(1, asked[:, None])
                score = (_log_odds(logits, asked) if against_others else own).sum()
            absent = [layer for layer in target_layers if layer not in outputs]
            if absent:
                raise ParameterError(
                    "parameter target_layer",
                    f"{type(absent[0]).__name__} is no part that the network uses.",
                    "Give a part of this very network.",
                )
            activations = [outputs[layer] for layer in target_layers]
            gradients = torch.autograd.grad(score, activations)
            maps = []
            for activation, gradient in zip(activations, gradients, strict=True):
                # a standard deviation of 0 has no slope: that filter says nothing
                slope = gradient.nan_to_num(0, 0, 0)
                known = [
                    _in_places(one, network, batch).float().cpu().numpy()
                    for one in (activation.detach(), slope)
                ]
                raw = explain.get_cam_image(None, None, None, *known, False)
                found = torch.from_numpy(np.maximum(raw, 0)).float()[:, None]
                maps.append(enlarged(found, batch.shape[2:]))
            return torch.cat(maps, 1).numpy()

        return in_batches(compute, len(images), batch_size)


def _method(name: str, network: nn.Module):
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM

    kind = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "layercam": LayerCAM}[name]
    return kind(network, [])  # no layers: the hooks here see more than the library's own


def _in_places(values: Tensor, network: nn.Module, batch: Tensor) -> Tensor:
    """What a layer gives as (n, channels, ...places): tokens of a vision transformer are laid out
    as they were cut.
    """
    if values.ndim == 3 and _transformer(network) is not None:
        down = round(((values.shape[1] - 1) * batch.shape[-2] / batch.shape[-1]) ** 0.5)
        return values[:, 1:].unflatten(1, (down, -1)).movedim(-1, 1)  # the first token is no place
    if values.ndim != batch.ndim:
        raise InputError(
            "target_layer",
            f"it gives values of the shape {tuple(values.shape)}, without a place in the image.",
            "Give a convolution layer before the pooling.",
        )
    return values


def _transformer(network: nn.Module) -> nn.Module | None:
    """torchvision's vision transformer, if the network is one or holds one."""
    for part in network.modules():
        if hasattr(part, "class_token") and hasattr(part, "encoder"):
            return part
    return None


def _occlusion(
    network: nn.Module,
    images: Tensor,
    target_class: Asked,
    batch_size: int,
) -> np.ndarray:
    """How far the logit falls when a place is covered by a blur of the image; each stain by itself
    where encoders are.
    """
    if not len(images):
        return np.zeros((0, 1, *images.shape[2:]), np.float32)
    encoders = getattr(network, "backbone", None)
    apart = isinstance(encoders, nn.ModuleList) and len(encoders) == images.shape[1] > 1
    grid = (
        *[min(COVERED_DEEP, images.shape[2])] * (images.ndim - 4),
        *(min(COVERED, side) for side in images.shape[-2:]),
    )
    count = int(np.prod(grid))
    covers = enlarged(torch.eye(count).view(count, 1, *grid), images.shape[2:])

    def compute(rows: slice) -> np.ndarray:
        batch = placed(images[rows], network)
        logits = _run(network, batch)
        asked = _classes(logits, target_class, rows)
        whole = _log_odds(logits, asked)
        veiled = blurred(batch)
        maps = []
        for channels in range(batch.shape[1]) if apart else [slice(None)]:
            fall = []
            for cover in covers.to(batch.device):
                covered = batch.clone()
                covered[:, channels] = torch.lerp(
                    batch[:, channels], veiled[:, channels], cover if not apart else cover[0]
                )
                fall.append(whole - _log_odds(network(covered), asked))
            coarse = torch.stack(fall, 1).clamp(min=0).view(len(batch), 1, *grid)
            maps.append(enlarged(coarse, batch.shape[2:]))
        return torch.cat(maps, 1).float().cpu().numpy()

    with still(network), torch.no_grad():
        return in_batches(compute, len(images), batch_size)


def blurred(images: Tensor) -> Tensor:
    """The same images without anything smaller than an eighth of their side: what stands for "not
    there".
    """
    block = max(1, images.shape[-1] // 8)
    grid = [max(1, min(side, -(-side // block))) for side in images.shape[2:]]
    return enlarged(averaged(images, grid), images.shape[2:])


def in_batches(compute: Callable[[slice], np.ndarray], count: int, batch_size: int) -> np.ndarray:
    """What ``compute`` gives for all rows, some at a time; where memory is too small for a batch,
    half of it.

    Raises InputError when a single image is too large.
    """
    parts = []
    start = 0
    while start < count:
        try:
            parts.append(compute(slice(start, min(start + batch_size, count))))
            start += batch_size
            continue
        except (MemoryError, RuntimeError) as error:
            if not (
                isinstance(error, MemoryError | torch.OutOfMemoryError)
                or _NO_MEMORY.search(str(error))
            ):
                raise
        if batch_size == 1:
            raise InputError(
                "images",
                "a single one of them is too large for the memory.",
                "Give smaller images.",
            )
        batch_size = -(-batch_size // 2)  # outside of the except: the failed batch is gone by now
    return np.concatenate(parts)


def save_maps(folder: str | Path, name: str, maps: np.ndarray, table) -> Path:
    """Write maps as ``NAME.tif`` (float32, raw, opens in Fiji) and, beside it, ``NAME.csv`` with
    one row per image.

    ``maps`` is (n, parts, y, x) or (n, parts, z, y, x); ``table`` is a pandas table with n rows.
    Raises InputError where they do not belong together.
    """
    import tifffile

    from nbhelpers.core.files import whole_file, write_csv

    if len(table) != len(maps) or maps.ndim not in (4, 5):
        raise InputError(
            "maps",
            f"there are maps of the shape {maps.shape} and a table of {len(table)} rows.",
            "Give one row per map.",
        )
    stack = np.ascontiguousarray(
        maps if maps.ndim == 4 else maps.swapaxes(1, 2), np.float32
    )  # ImageJ: T, Z, C, Y, X
    path = Path(folder) / f"{name}.tif"
    with whole_file(path) as temporary:
        tifffile.imwrite(
            temporary, stack, imagej=True, metadata={"axes": "TCYX" if maps.ndim == 4 else "TZCYX"}
        )
    write_csv(path.with_suffix(".csv"), table, index=True, index_label="frame")
    return path


def _check(images: Tensor) -> None:
    if images.ndim not in (4, 5):
        raise InputError(
            "images",
            f"they have the shape {tuple(images.shape)}.",
            "Give (n, c, y, x) or (n, c, z, y, x).",
        )
    if not torch.isfinite(images).all():
        raise InputError(
            "images", "some of their values are not finite.", "Leave those images out."
        )


def placed(images: Tensor, network: nn.Module) -> Tensor:
    """The images where the network is."""
    return images.to(next(network.parameters()).device)


def _run(network: nn.Module, batch: Tensor) -> Tensor:
    """(n, classes) logits. Raises InputError where a layer has nothing left to pool
    or to convolve."""
    try:
        return network(batch)
    except RuntimeError as error:
        if re.search("too small|can't be greater than actual input size", str(error)):
            raise InputError(
                "images",
                f"{_px(batch)} px are smaller than the stride of the network.",
                "Give larger images.",
            ) from None
        raise


def _px(images: Tensor) -> str:
    return " x ".join(str(side) for side in images.shape[2:])


def _classes(logits: Tensor, target_class: Asked, rows: slice) -> Tensor:
    """(n,) int64: the class asked about, of each of these rows."""
    if target_class is None:
        return logits.argmax(1)
    asked = np.asarray(target_class, np.int64)
    asked = np.broadcast_to(asked[rows] if asked.ndim else asked, len(logits)).copy()
    wrong = asked[(asked < 0) | (asked >= logits.shape[1])]
    if len(wrong):
        raise ParameterError(
            "parameter target_class",
            f"{wrong[0]} is no class of {logits.shape[1]}.",
            f"Give a number from 0 to {logits.shape[1] - 1}.",
        )
    return torch.as_tensor(asked).to(logits.device)


def _log_odds(logits: Tensor, asked: Tensor) -> Tensor:
    """(n,) log-odds of the class asked about against all others; of a network with one output, that
    output.
    """
    own = logits.gather(1, asked[:, None])[:, 0]
    if logits.shape[1] == 1:
        return own
    return own - logits.scatter(1, asked[:, None], -torch.inf).logsumexp(1)


def averaged(values: Tensor, size: Sequence[int]) -> Tensor:
    """(n, c, ...) to this size, in 2D or 3D: means of what lies in each place."""
    pool = F.adaptive_avg_pool2d if values.ndim == 4 else F.adaptive_avg_pool3d
    return pool(values, tuple(size))


def enlarged(coarse: Tensor, size: Sequence[int]) -> Tensor:
    """(n, c, ...) to this size, in 2D or 3D: interpolated in a straight line."""
    return F.interpolate(coarse, tuple(size), mode="bilinear" if coarse.ndim == 4 else "trilinear")


@contextlib.contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode, and its parts as they were in the end."""
    modes = [(part, part.training) for part in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def _watched(network: nn.Module, layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collects what ``layers`` give, each open to a gradient, while no parameter is; puts
    everything back in the end.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _, output: Tensor) -> Tensor:
        outputs[layer] = output if output.requires_grad else output.detach().requires_grad_()
        return outputs[layer].clone()  # what follows may change it in place

    learning = [(one, one.requires_grad) for one in network.parameters()]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with still(network):
            network.requires_grad_(False)
            yield outputs
    finally:
        for hook in hooks:
            hook.remove()
        for one, learns in learning:
            one.requires_grad_(learns)
