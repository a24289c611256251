"""Weights on disk: safetensors with a card of what they belong to; pickles are refused."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nbhelpers.core.errors import CheckpointError
from nbhelpers.core.files import sha256_of_file, whole_file

FORMAT = "1"
BESIDE = "usual_"  # begins the names of what is kept beside the weights


def save_checkpoint(
    path: str | Path,
    network: nn.Module,
    *,
    classes: Sequence[str],
    about: dict[str, Any],
    beside: Mapping[str, torch.Tensor] | None = None,
) -> str:
    """Write the weights and a card (architecture, its settings, classes, ``about``); returns the
    file's sha256.

    ``about`` is JSON-able: recipe, data hash, score with interval, limits. ``beside`` are tensors
    that are no weights, named from "usual_": what the training images look like, as
    :mod:`nbhelpers.inference.new_images` has it. Raises CheckpointError for weights that are not
    finite.
    """
    from safetensors.torch import save_file

    from nbhelpers.core.files import plain

    card = {
        "architecture": type(network).__name__,
        "settings": getattr(network, "settings", {}),
        "classes": list(classes),
        "about": about,
    }
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in (network.state_dict() | dict(beside or {})).items()
    }
    check_finite(tensors, path)
    card |= {"format": FORMAT, "weights": _digest(tensors)}
    with whole_file(path) as temporary:
        # one entry only: safetensors writes several in any order, and the same network must give
        # the same bytes
        save_file(tensors, temporary, {"card": json.dumps(plain(card), sort_keys=True)})
    return sha256_of_file(path)


def check_finite(tensors: dict[str, torch.Tensor], path: object) -> None:
    """Raises CheckpointError that names the first tensor with NaN or infinity: such a network calls
    every image by the name of its first class.
    """
    for name, value in tensors.items():
        try:
            # not what is kept beside them: a feature that never varies has an infinite scale
            finite = str(name).startswith(BESIDE) or bool(torch.isfinite(value).all())
        except (RuntimeError, TypeError):  # sparse, without content, or of 8 bit
            kind = f"of the kind {value.dtype}, {value.layout}, {value.device}"
            fix = "Save the weights as plain tensors of 16 or 32 bit."
            raise CheckpointError(path, f"the weights {name} are {kind}.", fix) from None
        if not finite:
            raise CheckpointError(
                path,
                f"the weights {name} hold NaN or infinity: the training that made them broke down.",
                "Give weights of an earlier epoch, or train again with a lower learning rate.",
            )


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values; safetensors itself has no check sum."""
    made = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        made.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        made.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return made.hexdigest()


def hash_of_weights(network: nn.Module) -> str:
    """16 hex digits over names, types, shapes and values of all parameters and buffers."""
    return _digest({name: value.detach().cpu() for name, value in network.state_dict().items()})[
        :16
    ]


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a checkpoint. Raises CheckpointError for a missing, cut, pickled
    or foreign file."""
    return _card_and_digest(path)[0]


def _card_and_digest(path: str | Path) -> tuple[dict[str, Any], str | None]:
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            path, "the checkpoint does not exist.", "Check the path, or run the notebook first."
        )
    with open(path, "rb") as file:
        start = file.read(9)
    # safetensors begins with the length of its header, any eight bytes, and then the header, which
    # begins with a brace
    pickled = start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80")
    if pickled or path.suffix in (".pt", ".pth", ".ckpt", ".pkl"):
        raise CheckpointError(
            path,
            "this is a pickled checkpoint, which can run any code when it is opened.",
            "Save its weights as .safetensors where you trust it, and give that file.",
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            path,
            f"the file is cut or is no safetensors file ({error}).",
            "Copy it again, or run its notebook again.",
        ) from None
    if "card" not in metadata:
        raise CheckpointError(
            path,
            "the file has no card of this collection.",
            "Only checkpoints written by these notebooks say which network and classes they have.",
        )
    try:
        card = json.loads(metadata["card"])
        written = card.pop("format", metadata.get("format"))
        digest = card.pop("weights", None)
        absent = [
            name for name in ("architecture", "settings", "classes", "about") if name not in card
        ]
    except (ValueError, TypeError, AttributeError):
        written = FORMAT
        digest = None
        absent = ["everything"]
    if absent or written != FORMAT:
        raise CheckpointError(
            path,
            f"its card is damaged ({', '.join(absent) or 'format'} missing).",
            "Run its notebook again.",
        )
    return card, digest  # the first checkpoints have no digest


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Name to tensor. Raises CheckpointError as :func:`read_card`, where they were damaged after
    they were written, and where they are not finite.
    """
    from safetensors.torch import load_file

    _, digest = _card_and_digest(path)
    tensors = load_file(str(path))
    if digest not in (None, _digest(tensors)):
        raise CheckpointError(
            path,
            "the weights were damaged after they were written (their hash differs).",
            "Copy it again, or run its notebook again.",
        )
    check_finite(tensors, path)
    return tensors


def load_checkpoint(
    path: str | Path, architecture: type[nn.Module]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights, in evaluation mode, and its card.

    Raises CheckpointError when the file belongs to another architecture, when its weights do not
    fit, or when they were damaged after they were written.
    """
    card = read_card(path)
    if card["architecture"] != architecture.__name__:
        raise CheckpointError(
            path,
            f"these are the weights of {card['architecture']}, not {architecture.__name__}.",
            "Give a checkpoint of the same architecture.",
        )
    # older cards have settings of training that the network has no more, and its use never needed
    known = inspect.signature(architecture).parameters
    settings = {name: value for name, value in card["settings"].items() if name in known}
    try:
        network = architecture(**settings)
        tensors = read_tensors(path)
        weights = {name: tensors[name] for name in tensors if not name.startswith(BESIDE)}
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            path,
            f"the weights do not fit {architecture.__name__} ({str(error)[:200]}).",
            "The file was made by another version; train again.",
        ) from None
    return network.eval(), card
