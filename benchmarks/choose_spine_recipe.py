"""How the recipes of notebook 04 compare, judged on validation images alone; no test image is
predicted here.

Each recipe is trained on the training part of the five folds of one repeat, and scored on their
validation parts. The differences are small against their standard error (about .014 in accuracy at
n = 365): the table is printed so that nobody takes the choice for more than it is.

    .venv/bin/python benchmarks/choose_spine_recipe.py --data ghani
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from nbhelpers.core.files import write_json
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import repeated_cross_validation
from nbhelpers.imagesets import spines
from nbhelpers.imagesets.windows import windows
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.studies.spines import GENTLE, STRONG, transform
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Augmentation
from nbhelpers.training.trainer import train

ROOT = Path(__file__).resolve().parent.parent
WILD = Augmentation(
    rotation_degrees=35, scale=0.3, stretch=0.2, shear=0.35, shift=0.08, flip_horizontal=True
)
CANDIDATES = [
    GENTLE,
    STRONG,
    STRONG.but(name="strong, batch 16", batch_size=16),
    STRONG.but(name="strong, label smoothing .05", label_smoothing=0.05),
    STRONG.but(name="wild", augmentation=WILD),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=("phantom", "ghani"), default="phantom")
    parser.add_argument(
        "--data-dir", default="", help="a folder that already holds the two published files"
    )
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    images = spines.load_spines(
        options.data,
        data_folder=ROOT / "data",
        data_dir=options.data_dir,
        seed=options.seed,
        phantom={"count": 456},
    )
    split = repeated_cross_validation(images, folds=5, repeats=1, seed=options.seed)
    rows = []
    for recipe in (candidate.but(epochs=options.epochs) for candidate in CANDIDATES):
        seen = windows(images, "grouped", recipe.input_px)
        prepare = transform(1)(recipe)
        right = []
        losses = []
        for repeat, fold in split.folds():
            with tempfile.TemporaryDirectory() as folder:
                validation = split.ids(repeat, fold, "validation")
                trained = train(
                    lambda: TinyCNN(1, len(images.classes)),
                    seen,
                    (split.ids(repeat, fold, "train"), validation),
                    recipe,
                    transform=prepare,
                    seed=derive_seed(options.seed, repeat, fold),
                    work_folder=folder,
                )
            at = images.positions(validation)
            probabilities = predict_probabilities(
                trained.network,
                seen.pixels[at],
                prepare,
                test_time_augmentation=recipe.test_time_augmentation,
            )
            labels = images.labels[at]
            right += list(probabilities.argmax(1) == labels)
            losses += list(-np.log(probabilities[np.arange(len(at)), labels]))
        rows.append(
            {
                "recipe": recipe.name,
                "n_validation": len(right),
                "accuracy": float(np.mean(right)),
                "log_loss": float(np.mean(losses)),
            }
        )
        print(
            "{recipe:28} n {n_validation}  validation accuracy {accuracy:.3f}  log-loss "
            "{log_loss:.3f}".format(**rows[-1]),
            flush=True,
        )
    write_json(
        ROOT / "benchmarks" / "results" / f"spine_recipes_{options.data}.json",
        {
            "data": images.name,
            "content_hash": images.content_hash,
            "split": split.hash,
            "recipes": rows,
        },
    )


if __name__ == "__main__":
    main()
