"""Train the small network that comes with the repository,
checkpoints/synapse_phantom_2d.safetensors, and write its card.

Synthetic synapses of 60 neurons are drawn; 48 neurons train, 12 test, and no neuron does both. The
recipe is the one of the custom CNN of notebook 02, at half the resolution so that the file stays
small and the demo quick; nothing is chosen on the way, so no neuron is needed for validation.
Weights are stored with 16 bits, and scored as stored. Same machine, threads, versions: same file.

    .venv/bin/python benchmarks/make_demo_checkpoint.py        # a few minutes on two free cores

With ``--keep-weights`` nothing is trained: weights and card stay as they are in the file, and what
it keeps of the training patches, by which others are out of distribution, is made anew.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from nbhelpers.core import splits
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.files import write_text
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import seed_everything
from nbhelpers.core.splits import Split
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.inference.reference import reference_tensors
from nbhelpers.models.synapse_cnn import SynapseCNN
from nbhelpers.phantoms.synapse import load_phantom_synapses
from nbhelpers.studies import synapse_checkpoints, synapses2d
from nbhelpers.training.checkpoints import save_checkpoint
from nbhelpers.training.recipe import Recipe
from nbhelpers.training.trainer import ProgressLines, train

ROOT = Path(__file__).resolve().parent.parent
INPUT_PX = 64  # 16 nm a pixel: the band behind the cleft is still two pixels wide where it is thick
LIMITS = (
    "Trained on synthetic images only: its scores say that the pipeline works, and nothing about "
    "biology.",
    "On real electron micrographs its predictions mean nothing, however sure they look.",
    "Patches of 128 x 128 px at 8 nm a pixel, one section of 40 nm, the synapse in the middle, "
    "membranes dark.",
    "Two classes: what is neither an excitatory nor an inhibitory synapse is called one of them "
    "all the same.",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phantoms", type=int, default=2000)
    parser.add_argument("--neurons", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--data-folder", type=Path, default=ROOT / "data", help="where drawn phantoms are kept"
    )
    parser.add_argument(
        "--work-folder",
        type=Path,
        help="where a stopped training goes on (default: it starts again)",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "checkpoints" / "synapse_phantom_2d.safetensors"
    )
    parser.add_argument("--keep-weights", action="store_true", help="of the file that is there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seed_everything(options.seed)

    images = load_phantom_synapses(
        options.phantoms, options.data_folder, neurons=options.neurons, seed=options.seed
    )
    split = splits.hold_out(images, seed=options.seed)
    training = split.ids(0, 0, "train", "validation")
    if options.keep_weights:
        network, recipe, _, card = synapse_checkpoints.rebuild(options.out)
        about = card["about"]
        if about["content_hash"] != images.content_hash:
            raise SystemExit(f"{options.out.name} was trained on other phantoms: train it again.")
    else:
        network, recipe, about = trained_network(images, split, options)
    # of the weights as they are stored
    usual = reference_tensors(network, images, training, synapses2d.transform(recipe))
    digest = save_checkpoint(
        options.out, network.half(), classes=images.classes, about=about, beside=usual
    )
    text = model_card(network, recipe, about, options, digest)
    write_text(options.out.with_suffix(".md"), text)
    print(text)


def trained_network(
    images: ImageSet, split: Split, options: argparse.Namespace
) -> tuple[SynapseCNN, Recipe, dict]:
    """The network with its weights rounded to 16 bits, its recipe, and what its card says."""
    training = split.ids(0, 0, "train", "validation")
    tested = split.ids(0, 0, "test")
    recipe = synapses2d.recipe(
        "cnn", "ours", epochs=options.epochs, input_px=INPUT_PX, precision="fp32"
    )
    print(f"{len(images)} phantoms; training on {len(training)}, testing {len(tested)}", flush=True)

    def make_network() -> SynapseCNN:
        return SynapseCNN(INPUT_PX, len(images.classes))

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work_folder or temporary
        trained = train(
            make_network,
            images,
            (training, tested[:0]),
            recipe,
            transform=synapses2d.transform(recipe),
            seed=options.seed,
            work_folder=folder,
            callbacks=[ProgressLines(options.epochs)],
        )
    print(f"trained in {time.perf_counter() - started:.0f} s", flush=True)
    network = trained.network.cpu().half().float()
    unseen = images.take(images.positions(tested))
    test = synapse_checkpoints.predict_labelled(network, recipe, unseen)
    scores = evaluate(test)
    untrained = {"random weights": lambda: SynapseCNN(images.pixels.shape[-1])}
    floors = {}
    for floor in synapses2d.floor_predictions(images, split, untrained, seed=options.seed):
        floors[floor.table["model"].iloc[0]] = evaluate(floor)
    about = synapses2d.about_checkpoint(
        recipe, images, split, training, scores, floors, limits=LIMITS, seed=options.seed
    )
    return network, recipe, about


def model_card(network, recipe, about: dict, options, digest: str) -> str:
    """What a reader must know before using the weights, from the same figures that
    are in the file."""

    def line(name: str, scores: dict) -> str:
        accuracy = Estimate(**scores["accuracy"])
        auc = Estimate(**scores["auc"])
        return f"- {name}: accuracy {accuracy}, AUC {auc}"

    changes = recipe.as_dict()["augmentation"].items()
    augmentation = ", ".join(f"{name} {value}" for name, value in changes if value)
    reference = about["reference"]
    count = sum(value.numel() for value in network.parameters())
    lines = [
        f"# {options.out.stem}",
        "",
        "A small network that tells synthetic excitatory from inhibitory synapses, for "
        "`notebooks/demo2d.ipynb`.",
        "",
        f"- **Network**: {type(network).__name__} {network.settings}, {count:,} parameters, stored "
        f"with 16 bits; patches of {reference['size_px']} px are averaged to {recipe.input_px} px.",
        f"- **Data**: {about['data']}. Training on {about['n_training']} patches of "
        f"{about['n_training_groups']} neurons; {about['protocol']}.",
        f"- **Recipe**: {recipe.name}, {recipe.epochs} epochs, batch {recipe.batch_size}, "
        f"{recipe.optimizer} {recipe.learning_rate:g}, {recipe.schedule}, label smoothing "
        f"{recipe.label_smoothing:g}, weights averaged with {recipe.ema_decay:g}; {augmentation}; "
        f"test-time augmentation with {recipe.test_time_augmentation} views.",
        f"- **Made by**: `benchmarks/make_demo_checkpoint.py`, seed {options.seed}.",
        f"- **sha256**: `{digest}`",
        "",
        "## Scores on neurons that it never saw, with 95 % intervals",
        "",
        f"{about['scores']['n_images']} patches of {about['scores']['n_groups']} neurons.",
        "",
        line("this network", about["scores"]),
    ]
    for name, scores in sorted(about["floors"].items()):
        lines.append(line(f"floor, {name}", scores))
    lines += ["", "## Limits", ""]
    for limit in about["limits"]:
        lines.append(f"- {limit}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
