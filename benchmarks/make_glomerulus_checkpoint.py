"""Train the small backbone that comes with the repository for synthetic glomeruli,
checkpoints/glomerulus_phantom_mobilenet_v2.safetensors, and write its card.

Notebook 06 freezes a backbone and fits a head behind it. On phantoms whose classes differ in
structure alone, random filters see next to nothing, so the demo needs filters that have seen
glomeruli. These were trained on phantoms of other slides than any that the notebook draws, and are
tested as the notebook uses them: frozen, with a new head, on slides that neither of them saw.
Weights are stored with 16 bits, and scored as stored. Same machine, threads, versions: same file.

    .venv/bin/python benchmarks/make_glomerulus_checkpoint.py        # some minutes on a free core
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nbhelpers.core.files import write_text
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import derive_seed, seed_everything
from nbhelpers.evaluation.decisions import threshold_folds
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.models.resnet import PretrainedCNN
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.studies import glomeruli
from nbhelpers.training.augment import DihedralPreparation
from nbhelpers.training.checkpoints import save_checkpoint
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import ProgressLines, train

ROOT = Path(__file__).resolve().parent.parent
BACKBONE = "mobilenet_v2"
LABORATORIES = 8
SIZE_PX = 64  # as notebook 06 draws them in its demo
LIMITS = (
    "Trained on synthetic images only: scores with it say that the pipeline works, and nothing "
    "about kidneys.",
    "On real sections it is no better a start than random weights; take weights = 'imagenet'.",
)
TURNED = Augmentation(
    flip_horizontal=True,
    flip_vertical=True,
    quarter_turns=True,
    brightness=0.15,
    contrast=0.2,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phantoms", type=int, default=1600)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "checkpoints" / f"glomerulus_phantom_{BACKBONE}.safetensors",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seed_everything(options.seed)

    images = draw(options)
    recipe = Recipe(
        name="backbone",
        epochs=options.epochs,
        batch_size=16,
        learning_rate=2e-3,
        weight_decay=0.02,
        warmup_fraction=0.1,
        ema_decay=0.99,
        clip_gradient=1.0,
        keep="last",
        select_by="loss",
        precision="fp32",
        augmentation=TURNED,
    )
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            lambda: PretrainedCNN(BACKBONE, len(images.classes), grey="colour"),
            images,
            (images.ids, images.ids[:0]),
            recipe,
            transform=DihedralPreparation(TURNED, 0),
            seed=options.seed,
            work_folder=folder,
            callbacks=[ProgressLines(options.epochs)],
        )
    backbone = trained.network.backbone.cpu().half()
    about = {"data": images.source, "recipe": recipe.as_dict(), "limits": list(LIMITS)}
    digest = save_checkpoint(options.out, backbone, classes=images.classes, about=about)
    card = model_card(options, images, recipe, digest, test(options))
    write_text(options.out.with_suffix(".md"), card)
    print(card)


def draw(options) -> ImageSet:
    """Phantoms of many laboratories: each seed is ten slides in two centres of their own. Notebooks
    draw with small seeds, so none of their slides is among these.
    """
    count = options.phantoms // LABORATORIES
    sets = []
    for number in range(LABORATORIES):
        seed = derive_seed(options.seed, "glomeruli of the backbone", number)
        sets.append(load_phantom_glomeruli(count, seed, size_px=SIZE_PX))
    tables = []
    for number, images in enumerate(sets):
        names = {name: f"{number}-" + images.table[name] for name in ("id", "group")}
        tables.append(images.table.assign(**names))
    return replace(
        sets[0],
        table=pd.concat(tables, ignore_index=True),
        pixels=np.concatenate([images.pixels for images in sets]),
        source=f"{LABORATORIES * count} synthetic glomeruli of {10 * LABORATORIES} slides drawn by "
        f"nbhelpers.phantoms.glomerulus, seeds from {options.seed}",
        content_hash="",
    )


def test(options) -> dict[str, dict]:
    """Scores of notebook 06's head on this backbone and on random weights, 240 fresh phantoms."""
    seed = derive_seed(options.seed, "glomeruli of the test")
    images = load_phantom_glomeruli(240, seed, size_px=SIZE_PX)
    split = glomeruli.make_split("grouped", images, folds=3, repeats=1, seed=options.seed)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        look = glomeruli.Look(BACKBONE, options.out, seed=options.seed)
        variants = glomeruli.feature_variants(
            images, look, data_folder=Path(folder), cache_folder=Path(folder) / "features"
        )
    for name, way in (("this backbone", "views"), ("floor, random weights", "random")):
        head = glomeruli.our_head(variants[way], images, split, model=name, seed=options.seed)
        decided, _ = threshold_folds(head.predictions)
        found[name] = evaluate(decided, seed=options.seed)
    return found


def model_card(options, images, recipe: Recipe, digest: str, scores: dict[str, dict]) -> str:
    lines = [
        f"# {options.out.stem}",
        "",
        f"A {BACKBONE} without its head that has seen synthetic glomeruli, for "
        "`notebooks/06_glomeruli_resnet50.ipynb`.",
        "",
        f"- **Data**: {images.source}, {SIZE_PX} px.",
        f"- **Recipe**: {recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.optimizer} "
        f"{recipe.learning_rate:g}, turned and mirrored, brightness and contrast changed.",
        f"- **Made by**: `benchmarks/make_glomerulus_checkpoint.py`, seed {options.seed}.",
        f"- **sha256**: `{digest}`",
        "",
        "## Scores of a head on the frozen backbone, other slides, with 95 % intervals",
        "",
    ]
    for name, one in scores.items():
        lines.append(f"- {name}: balanced accuracy {one['balanced_accuracy']}, AUC {one['auc']}")
    lines += ["", "## Limits", ""]
    for limit in LIMITS:
        lines.append(f"- {limit}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
