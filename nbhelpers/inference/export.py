"""A trained spine network as a file for another program: OpenVINO IR, ONNX or safetensors, with a
card; and its use.

    python -m nbhelpers.inference.export write CHECKPOINT --masks FOLDER \\
        --backend "openvino int8" --out EXPORTED
    python -m nbhelpers.inference.export predict EXPORTED --masks FOLDER --out evaluation.csv

The masks given to ``write`` are those on which the file is compared with plain fp32 before it may
be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nbhelpers.core.errors import CheckpointError, InputError, check_range
from nbhelpers.core.files import sha256_of_file, whole_file, write_csv, write_json
from nbhelpers.imagesets.shapes import shape_features
from nbhelpers.inference.backends import (
    BACKENDS,
    BackendError,
    Drift,
    OnnxNetwork,
    OpenVinoNetwork,
    Ready,
    check_usable,
    limits,
    onnx_file,
    openvino_model,
    program_of,
)
from nbhelpers.inference.new_images import OutOfDistribution, evaluation_table
from nbhelpers.models.spine_rivals import CNN3Layer, SpineResNet18
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import load_checkpoint, read_card, save_checkpoint
from nbhelpers.training.recipe import Augmentation, Recipe

ARCHITECTURES = {one.__name__: one for one in (TinyCNN, SpineResNet18, CNN3Layer)}
FILES = {"eager": "network.safetensors", "onnx": "network.onnx", "openvino": "network.xml"}
CARD = "card.json"
REFERENCE = "reference.safetensors"
# beside its files and its backend
CARD_HAS = ("architecture", "classes", "views", "transform", "about")


@dataclass(frozen=True)
class Exported:
    """A network from an exported folder, ready to predict, with its card."""

    ready: Ready
    card: dict

    def predict(self, pixels: np.ndarray, *, test_time_augmentation: int | None = None):
        """(n, c, y, x) uint8 masks as the network was trained on to (n, classes) float64
        probabilities.
        """
        about = self.card["transform"]
        augmentation = Augmentation(**about["augmentation"])
        return self.ready.probabilities(
            pixels,
            Transform(augmentation, about["input_px"], about["channels"]),
            test_time_augmentation=test_time_augmentation or self.card["views"],
        )


def export(
    folder: str | Path,
    network: nn.Module,
    recipe: Recipe,
    pixels: np.ndarray,
    *,
    backend: str,
    channels: int,
    classes: Sequence[str],
    about: Mapping,
) -> dict:
    """Write a network for one backend into ``folder``, with ``card.json``; returns the card.

    ``pixels`` are (n, c, y, x) uint8 images, real ones: the written file is read back and compared
    with eager fp32 on them; int8 takes its ranges from every second one first. A file that drifts
    too far is removed again. Raises BackendError then, and where the backend is not installed;
    ParameterError for fewer than four images.
    """
    check_usable(backend, "Choose another one.")
    check_range("number of images to compare on", len(pixels), 4, 10**9)
    kind = program_of(backend)
    folder = Path(folder)
    network = network.cpu().eval()
    prepare = Transform(recipe.augmentation, recipe.input_px, channels)
    some = prepare.evaluate(torch.from_numpy(np.array(pixels[::2]))).contiguous()
    calibration = None
    if backend.endswith("int8"):
        calibration = some
        pixels = pixels[1::2]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)  # the card comes last: a folder without one is not read
    path = folder / FILES[kind]
    if kind == "eager":
        save_checkpoint(path, network, classes=classes, about=dict(about))
    elif kind == "onnx":
        with whole_file(path) as temporary:
            onnx_file(network, some[:1], temporary)
    else:
        import openvino

        model = openvino_model(network, some[:1], calibration)
        openvino.save_model(model, str(path), compress_to_fp16=False)
    written = [one for one in (path, path.with_suffix(".bin")) if one.is_file()]
    card = {
        "format": 1,
        "backend": backend,
        "architecture": type(network).__name__,
        "settings": getattr(network, "settings", {}),
        "classes": list(classes),
        "input": list(some.shape[1:]),
        "output": "logits; softmax gives probabilities",
        "views": recipe.test_time_augmentation,
        "transform": {
            "input_px": recipe.input_px,
            "channels": channels,
            "augmentation": recipe.as_dict()["augmentation"],
        },
        "files": {one.name: sha256_of_file(one) for one in written},
        "about": dict(about),
    }
    exported = Exported(_read_network(folder, card), card)
    drift = Drift.between(
        exported.predict(pixels, test_time_augmentation=1),
        Ready("eager fp32", network).probabilities(pixels, prepare),
    )
    if drift.too_far:
        for one in written:
            one.unlink()
        raise BackendError(
            f"backend {backend}",
            f"it drifts from fp32: {drift.too_far}.",
            "Export another backend.",
        )
    card["drift"] = vars(drift) | {"limits": limits()}
    write_json(folder / CARD, card)
    return card


def load_exported(folder: str | Path) -> Exported:
    """What :func:`export` wrote. Raises CheckpointError for a folder without a card, a changed or a
    missing file, and BackendError where its backend is not installed.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        files = dict(card["files"])
        backend = card["backend"]
        absent = [name for name in CARD_HAS if name not in card]
        if FILES[program_of(backend)] not in files or absent:
            raise KeyError(CARD)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            folder, f"it holds no readable {CARD}.", "Give a folder that export wrote."
        ) from None
    for name, digest in files.items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != digest:
            raise CheckpointError(
                folder / name,
                "the file is missing or was changed after the export.",
                "Export it again.",
            )
    check_usable(backend, "Export another backend.")
    return Exported(_read_network(folder, card), card)


def _read_network(folder: Path, card: Mapping) -> Ready:
    backend = card["backend"]
    kind = program_of(backend)
    threads = torch.get_num_threads()
    path = folder / FILES[kind]
    if kind == "onnx":
        return Ready(backend, OnnxNetwork(path, threads=threads))
    if kind == "openvino":
        low = backend.endswith("bf16")
        return Ready(backend, OpenVinoNetwork(str(path), bf16=low, threads=threads))
    return Ready(backend, load_checkpoint(path, _architecture(path, card))[0])


def _architecture(path: object, card: Mapping) -> type[nn.Module]:
    architecture = ARCHITECTURES.get(card["architecture"])
    if architecture is None:
        raise CheckpointError(
            path,
            f"{card['architecture']} cannot be exported by this command.",
            f"Give a checkpoint of {', '.join(ARCHITECTURES)} that notebook 03 or 07 wrote.",
        )
    return architecture


def write_from_checkpoint(
    checkpoint: str | Path, masks: str | Path, out: str | Path, backend: str, work: str | Path
) -> dict:
    """Export a checkpoint of notebook 03 or 07, and beside it what its training masks look like, if
    it keeps that; ``masks`` is a folder with masks to compare on. Returns the card.

    Raises CheckpointError for another network.
    """
    card = read_card(checkpoint)
    architecture = _architecture(checkpoint, card)
    about = card["about"]
    if "epochs" not in about.get("recipe", {}):
        raise CheckpointError(
            checkpoint, "it cannot be exported: its card has no recipe.", "Train it again."
        )
    network = load_checkpoint(checkpoint, architecture)[0]
    recipe = Recipe.from_dict(about["recipe"])
    window = about.get("window", not about.get("protocol", "").startswith("published"))
    about = {**about, "window": bool(window)}
    shown, _ = _masks(masks, work, card["classes"], about, recipe.input_px)
    written = export(
        out,
        network,
        recipe,
        shown.pixels,
        backend=backend,
        channels=card["settings"]["in_channels"],
        classes=card["classes"],
        about=about,
    )
    usual = OutOfDistribution.of_checkpoint(checkpoint)
    if usual:
        path = Path(out) / REFERENCE
        beside = usual.tensors()
        digest = save_checkpoint(
            path, nn.Identity(), classes=card["classes"], about={}, beside=beside
        )
        written["files"][REFERENCE] = digest
        write_json(Path(out) / CARD, written)
    return written


def _masks(
    folder: str | Path, work: str | Path, classes: Sequence[str], about: Mapping, input_px: int
) -> tuple:
    """The masks of a folder as the network sees them, and in their whole frames. ``about`` says
    whether it saw a window around them, and at which scale it was trained on masks in one pose, if
    it was.
    """
    from nbhelpers.imagesets.spines import load_unlabelled_spines
    from nbhelpers.imagesets.windows import windows
    from nbhelpers.inference.spine_pose import Scale, in_one_pose

    masks = load_unlabelled_spines(folder, work, tuple(classes))
    if not len(masks):
        return masks, masks
    posed = masks
    if about.get("scale"):
        posed = in_one_pose(masks, Scale.of(masks, known=Scale(**about["scale"])))
    return windows(posed, "grouped" if about["window"] else "published", input_px or 1), posed


def predict_masks(
    folder: str | Path, masks: str | Path, out: str | Path, work: str | Path
) -> tuple[int, int]:
    """Predict a folder of masks with an exported network into a CSV; returns how many, and how many
    could not be used.

    The columns are those of ``evaluation_table``.
    """
    exported = load_exported(folder)
    card = exported.card
    shown, found = _masks(
        masks, work, card["classes"], card["about"], card["transform"]["input_px"]
    )
    probabilities = (
        exported.predict(shown.pixels) if len(found) else np.zeros((0, len(card["classes"])))
    )
    usual = None
    if REFERENCE in card["files"] and len(found):
        usual = OutOfDistribution.of_checkpoint(Path(folder) / REFERENCE)
    table = evaluation_table(
        found.ids,
        probabilities,
        tuple(card["classes"]),
        usual and usual.unlike(shape_features(found.pixels[:, 0]).to_numpy()),
        rate=usual and usual.rate,
        confidence=0.7,
        failures=found.failures,
    )
    write_csv(out, table)
    return len(found), len(found.failures)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 with one line on standard error when something must be fixed by
    the user.
    """
    import tempfile

    parser = argparse.ArgumentParser(
        prog="python -m nbhelpers.inference.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="write a network for one backend, with its card")
    write.add_argument("checkpoint", help="the .safetensors file that notebook 03 or 07 wrote")
    write.add_argument(
        "--backend",
        default="openvino bf16",
        help="which one to write for (openvino bf16)",
        choices=BACKENDS,
    )
    write.add_argument("--out", required=True, help="folder for the files and their card")
    use = commands.add_parser("predict", help="predict masks with an exported network")
    use.add_argument("exported", help="the folder that write made")
    use.add_argument("--out", required=True, help="the CSV to write")
    for one in (write, use):
        one.add_argument("--masks", required=True, help="folder with masks")
    given = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="export-") as work:
            if given.command == "write":
                card = write_from_checkpoint(
                    given.checkpoint, given.masks, given.out, given.backend, work
                )
                drift = card["drift"]
                print(
                    f"{', '.join(card['files'])} and {CARD} in {given.out}; largest drift "
                    f"{drift['probability']:.4f}, "
                    f"{100 * drift['changed']:.1f} % of the labels, on {drift['n']} masks"
                )
            else:
                count, failed = predict_masks(given.exported, given.masks, given.out, work)
                print(f"{count} masks predicted, {failed} could not be used; see {given.out}")
    except (InputError, OSError) as error:  # OSError: --out is a folder, or may not be written
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
