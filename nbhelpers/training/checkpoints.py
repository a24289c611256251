"""Weights on disk: safetensors with a card of what they belong to; pickles are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nbhelpers.errors import CheckpointError
from nbhelpers.files import sha256_of_file, whole_file

FORMAT = "1"


def save_checkpoint(path: str | Path, network: nn.Module, *, classes: Sequence[str], about: dict[str, Any]) -> str:
    """Write the weights and a card (architecture, its settings, classes, ``about``); returns the file's sha256.

    ``about`` is JSON-able: recipe, data hash, score with interval, limits. Introduced in notebook 04.
    """
    from safetensors.torch import save_file

    from nbhelpers.files import plain

    card = {"architecture": type(network).__name__, "settings": getattr(network, "settings", {}),
            "classes": list(classes), "about": about}
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "card": json.dumps(plain(card), sort_keys=True)})
    return sha256_of_file(path)


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a checkpoint. Raises CheckpointError for a missing, cut, pickled or foreign file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(path, "the checkpoint does not exist.", "Check the path, or run the notebook first.")
    with open(path, "rb") as file:
        start = file.read(9)
    # safetensors begins with the length of its header, any eight bytes, and then the header, which begins with a brace
    pickled = start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80")
    if pickled or path.suffix in (".pt", ".pth", ".ckpt", ".pkl"):
        raise CheckpointError(path, "this is a pickled checkpoint, which can run any code when it is opened.",
                              "Save its weights as .safetensors where you trust it, and give that file.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(path, f"the file is cut or is no safetensors file ({error}).",
                              "Copy it again, or run its notebook again.") from None
    if metadata.get("format") != FORMAT or "card" not in metadata:
        raise CheckpointError(path, "the file has no card of this collection.",
                              "Only checkpoints written by these notebooks say which network and classes they have.")
    try:
        card = json.loads(metadata["card"])
        absent = [name for name in ("architecture", "settings", "classes", "about") if name not in card]
    except (ValueError, TypeError):
        absent = ["everything"]
    if absent:
        raise CheckpointError(path, f"its card is damaged ({', '.join(absent)} missing).", "Run its notebook again.")
    return card


def load_checkpoint(path: str | Path, architecture: type[nn.Module]) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights, in evaluation mode, and its card.

    Raises CheckpointError when the file belongs to another architecture or its weights do not fit.
    """
    from safetensors.torch import load_file

    card = read_card(path)
    if card["architecture"] != architecture.__name__:
        raise CheckpointError(path, f"these are the weights of {card['architecture']}, not {architecture.__name__}.",
                              "Give a checkpoint of the same architecture.")
    try:
        network = architecture(**card["settings"])
        network.load_state_dict(load_file(str(path)))
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(path, f"the weights do not fit {architecture.__name__} ({str(error)[:200]}).",
                              "The file was made by another version; train again.") from None
    return network.eval(), card
