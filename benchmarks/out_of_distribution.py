"""How often images of new groups are called out of distribution that are like the training ones,
beside the rate that is stated, and how often images that are unlike them are.

First on drawn features: independent images, and groups of images that resemble each other, of
several laws. Then on the phantoms of demo2d and notebook 06, with images of other neurons and
slides, and with noise, inverted images and another tissue. Written to
``docs/out_of_distribution.json``.

    .venv/bin/python benchmarks/out_of_distribution.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from nbhelpers.core.files import write_json
from nbhelpers.core.seeds import derive_seed
from nbhelpers.inference.new_images import image_statistics
from nbhelpers.inference.reference import fit_reference
from nbhelpers.models.frozen import make_features, make_views, mean_features
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.phantoms.synapse import load_phantom_synapses, make_synapse_patches
from nbhelpers.studies import synapse_checkpoints
from nbhelpers.studies.glomerulus_model import fit_final

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "out_of_distribution.json"
NETWORK = ROOT / "checkpoints" / "synapse_phantom_2d.safetensors"
FOREIGN = 60  # images of each foreign kind


@dataclass(frozen=True)
class Case:
    """Features of ``groups`` x ``per_group`` images, of which those of a group correlate by
    ``likeness``. ``rank``: they all come from so few numbers; 0: from as many as they are."""

    groups: int
    per_group: int
    features: int
    likeness: float = 0.0
    law: str = "normal"
    rank: int = 0


CASES = (
    Case(20, 1, 17),
    Case(80, 1, 17),
    Case(240, 1, 40, law="student t, 5 degrees of freedom"),
    Case(20, 8, 17, 0.5),
    Case(20, 8, 40, 0.5),
    Case(20, 8, 17, 0.5, "log-normal"),
    Case(20, 8, 17, 0.9),
    Case(8, 20, 17, 0.5),
    Case(5, 30, 17, 0.5),
    Case(10, 12, 1000, 0.3, rank=30),
    Case(10, 12, 1000, 0.7, rank=30),
    Case(24, 8, 500, 0.2, rank=40),
    Case(31, 15, 500, 0.5, "exponential", 20),
    Case(60, 3, 30, 0.7, "exponential"),
)
LAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "student t, 5 degrees of freedom": lambda rng, shape: rng.standard_t(5, shape),
    "log-normal": lambda rng, shape: np.exp(0.5 * rng.normal(size=shape)),
    "exponential": lambda rng, shape: rng.exponential(size=shape),
}


def draw_features(case: Case, groups: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(groups x per_group, features) float64, and the group of each row."""
    rng = np.random.default_rng(seed)
    width = case.rank or case.features
    law = LAWS[case.law]
    shared = np.sqrt(case.likeness) * law(rng, (groups, 1, width))
    own = np.sqrt(1 - case.likeness) * law(rng, (groups, case.per_group, width))
    values = (shared + own).reshape(-1, width)
    if case.rank:
        mix = np.random.default_rng(0).normal(size=(width, case.features))
        mix *= np.exp(-2 * np.arange(width) / width)[:, None]
        values = values @ mix + 0.3 * rng.normal(size=(len(values), case.features))
    return values, np.repeat(np.arange(groups), case.per_group)


def simulate(case: Case, draws: int) -> dict:
    """Rate that is stated, and share of images of new groups that are flagged, over ``draws``."""
    stated = []
    flagged = []
    for number in range(draws):
        features, groups = draw_features(case, case.groups, derive_seed(number, "known"))
        known = fit_reference(features, groups=groups)
        new, _ = draw_features(case, 400 // case.per_group, derive_seed(number, "new"))
        stated.append(known.rate)
        flagged.append(known.unlike(new).mean())
    found = {"stated": float(np.mean(stated)), "flagged": float(np.mean(flagged))}
    return asdict(case) | found | {"ratio": found["flagged"] / found["stated"], "draws": draws}


def noise(shape: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def of_synapses(seed: int) -> dict:
    """demo2d: its network with what it keeps of its 1600 training patches of 48 neurons, and
    patches of 60 other neurons; three times.
    """
    network, recipe, *_ = synapse_checkpoints.rebuild(NETWORK)
    recipe = recipe.but(test_time_augmentation=1)
    tissue = load_phantom_glomeruli(FOREIGN, seed, size_px=128).pixels
    stated = []
    found = {}
    for drawn in range(seed, seed + 3):
        with tempfile.TemporaryDirectory() as folder:
            new = load_phantom_synapses(
                300, folder, neurons=60, seed=derive_seed(drawn, "new neurons")
            )
            kinds = {
                "new neurons": np.array(new.pixels),
                "noise": noise((FOREIGN, 1, 128, 128)),
                "inverted": 255 - new.pixels[:FOREIGN],
                "another tissue": tissue.mean(1, keepdims=True).astype(np.uint8),
            }
            for name, pixels in kinds.items():
                images = replace(new.take(range(len(pixels))), pixels=pixels, content_hash="")
                table = synapse_checkpoints.predict_new(
                    network, recipe, NETWORK, images, confidence=0.7
                )
                found.setdefault(name, []).append(table["out_of_distribution"].mean())
            stated.append(table["flagged_by_chance"].iloc[0])
    return averaged(stated, found)


def averaged(stated: list, found: dict[str, list]) -> dict:
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {"stated": float(np.mean(stated)), "flagged": means}


def of_glomeruli(seed: int) -> dict:
    """Notebook 06: 120 images of ten slides, of which two in turn are new ones."""
    images = load_phantom_glomeruli(240, seed, size_px=64)
    network = make_features("mobilenet_v2", weights="none", seed=seed)
    views = make_views(3, seed=seed)

    def measured(pixels: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [mean_features(network, pixels, views), image_statistics(pixels)], axis=1
        )

    features = measured(images.pixels)
    tissue = make_synapse_patches(FOREIGN, size_px=64, seed=seed).pixels
    kinds = {
        "noise": measured(noise((FOREIGN, 3, 64, 64))),
        "inverted": measured(255 - np.asarray(images.pixels[:FOREIGN])),
        "another tissue": measured(np.repeat(tissue, 3, axis=1)),
    }
    slides = sorted(set(images.groups))
    first = np.arange(len(images)) < 120
    found = {}
    stated = []
    for number in range(5):
        out = np.isin(images.groups, slides[number::5])
        known = np.flatnonzero(first & ~out)
        seen = features[known, : network.width]
        model = fit_final(network, seen, images.take(known), 0.1)
        stated.append(model.usual.rate)
        tested = {"new slides": features[out], "same slides": features[~first & ~out], **kinds}
        for name, values in tested.items():
            found.setdefault(name, []).append(model.usual.unlike(values).mean())
    return averaged(stated, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=40, help="per case (40)")
    parser.add_argument("--seed", type=int, default=7, help="of the phantoms (7)")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write")
    given = parser.parse_args()
    drawn = []
    for case in CASES:
        drawn.append(simulate(case, given.draws))
        print("{stated:.4f} stated, {flagged:.4f} flagged".format(**drawn[-1]), case)
    found = {"drawn features": drawn}
    for name, measure in (("demo2d", of_synapses), ("06_glomeruli_resnet50", of_glomeruli)):
        found[name] = measure(given.seed)
        print(name, found[name])
    write_json(given.out, found)


if __name__ == "__main__":
    main()
