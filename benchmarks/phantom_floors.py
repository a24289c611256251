"""Whether matched phantoms carry their class in structure only.

Every kind of phantom is drawn matched (the default of all but spines), and once more with its short
cuts left in.
Every photometric floor is fitted and tested by 5-fold cross-validation over whole groups; so is the
order of the files. Balanced accuracy goes to docs/phantom_floors.json, with the name of the kept
run that holds the score of the demo's network.

    .venv/bin/python benchmarks/phantom_floors.py        # some minutes on one core
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from nbhelpers.core.files import write_text
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import repeated_cross_validation
from nbhelpers.evaluation.floors import features_floor, photometric_floors
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.phantoms.plate import Nuisance, load_phantom_plates
from nbhelpers.phantoms.spine import load_phantom_spines
from nbhelpers.phantoms.synapse import load_phantom_cubes, load_phantom_synapses

ROOT = Path(__file__).resolve().parent.parent
BOUND = 0.65
FEWEST = 600
SEEDS = (101, 102)


def synapses(seed: int, matched: bool, folder: Path) -> ImageSet:
    return load_phantom_synapses(FEWEST, folder, neurons=48, seed=seed, matched=matched)


def cubes(seed: int, matched: bool, folder: Path) -> ImageSet:
    settings = {"shape_px": (8, 48, 48), "cue": "3d", "matched": matched}
    return load_phantom_cubes(FEWEST, folder, seed=seed, **settings)


def cubes_of_patches(seed: int, matched: bool, folder: Path) -> ImageSet:
    settings = {"shape_px": (8, 48, 48), "cue": "all", "matched": matched}
    return load_phantom_cubes(FEWEST, folder, seed=seed, **settings)


def plates(seed: int, matched: bool, folder: Path) -> ImageSet:
    settings = {"plates": 13, "fields": 4, "size_px": 64, "layout": "randomised"}
    nuisance = Nuisance(matched=matched)
    images = load_phantom_plates(folder, seed=seed, nuisance=nuisance, **settings)
    return images.take(np.flatnonzero(images.labels >= 0))


def glomeruli(seed: int, matched: bool, folder: Path) -> ImageSet:
    return load_phantom_glomeruli(FEWEST, seed, size_px=64, matched=matched)


def spines(seed: int, matched: bool, folder: Path) -> ImageSet:
    return load_phantom_spines(FEWEST, seed, matched=matched)


# kind of phantom: how it is drawn, and the kept run whose network is named beside it
KINDS = {
    "synapse patches": (synapses, "02_synapse_resnet_cnn"),
    "synapse cubes, order of sections": (cubes, "04_synapse_3d"),
    "synapse cubes, every section": (cubes_of_patches, None),
    "plates": (plates, "05_four_stain_resnet34"),
    "glomeruli": (glomeruli, "06_glomeruli_resnet50"),
    "spines": (spines, "03_spine_tinycnn"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "phantom_floors.json")
    options = parser.parse_args()
    known = json.loads(options.out.read_text()) if options.out.is_file() else {}
    kinds = known.get("kinds", {})
    for name in options.kinds:
        draw, notebook = KINDS[name]
        found = {"network": f"docs/scores/{notebook}.demo.json" if notebook else None}
        for kind, matched in (("matched", True), ("short cuts left in", False)):
            found[kind] = {}
            for seed in SEEDS:
                with tempfile.TemporaryDirectory() as folder:
                    images = draw(seed, matched, Path(folder))
                    found[kind][str(seed)] = {"n": len(images), **scores(images, seed)}
                print(name, kind, seed, found[kind][str(seed)], flush=True)
        kinds[name] = found
        about = {"score": "balanced accuracy, 5 folds by group", "bound": BOUND, "kinds": kinds}
        write_text(options.out, json.dumps(about, indent=1) + "\n")


def scores(images: ImageSet, seed: int) -> dict[str, float]:
    """Balanced accuracy of each photometric floor and of the place among the files."""
    split = repeated_cross_validation(images, folds=5, repeats=1, seed=seed)
    place = np.arange(len(images))
    order = np.stack([place, place % 2, place % 3, place % 10], axis=1)
    floors = photometric_floors(images, split, balanced=True)
    floors.append(features_floor(order, images, split, "file order", balanced=True))
    found = {}
    for floor in floors:
        table = floor.table
        right = table["label"] == table["predicted"]
        name = table["model"].iloc[0]
        found[name] = round(float(right.groupby(table["label"]).mean().mean()), 3)
    return found


if __name__ == "__main__":
    main()
