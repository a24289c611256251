"""How the bundled network for synapse patches fares on images that are not like its training: other
pixel sizes, noise, blur, grey turned round, other contrast, turned; and on the nerve cord of a fly.

    .venv/bin/python benchmarks/travel_synapses.py FOLDER        # with vnc_sstem, the fly's tissue
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets.synapses import load_synapses
from nbhelpers.inference.new_images import OutOfDistribution, flags
from nbhelpers.studies import synapse_checkpoints

NETWORK = Path(__file__).resolve().parents[1] / "checkpoints" / "synapse_phantom_2d.safetensors"
SIZE_PX = 128
PIXEL_SIZES = (0.5, 0.75, 1.5)
SEED = 4711  # other neurons than those of the training and of demo2d


def measure(data_dir: str) -> list[dict]:
    """One row per version of the patches: task, version, n, accuracy (None where the classes are
    not those of the network), flagged (the share out of distribution) and stated (the rate that is
    stated for patches like the training ones). ``data_dir`` holds the folder ``vnc_sstem``.
    """
    network, recipe, transform, card = synapse_checkpoints.rebuild(NETWORK)
    stated = OutOfDistribution.of_checkpoint(NETWORK).rate
    rows = []
    with tempfile.TemporaryDirectory() as folder:

        def phantoms(size_px: int) -> ImageSet:
            drawn = {"count": 192, "neurons": 48}
            places = {"data_folder": folder, "size_px": size_px, "seed": SEED}
            return load_synapses("phantom", phantom=drawn, **places)

        def fly(size_px: int) -> ImageSet:
            places = {"data_folder": folder, "size_px": size_px, "seed": SEED}
            tissue = Path(data_dir) / "vnc_sstem"
            return load_synapses("vnc_synapse", data_dir=str(tissue), **places)

        for load in (phantoms, fly):
            for version, shown in versions(load):
                accuracy = None
                if shown.classes == tuple(card["classes"]):
                    tested = synapse_checkpoints.predict_labelled(network, recipe, shown)
                    accuracy = float((tested.true_index == tested.probabilities.argmax(1)).mean())
                unlike, _ = flags(NETWORK, network, shown, transform)
                rows.append(
                    {
                        "task": "synapses",
                        "version": f"{load.__name__}, {version}",
                        "n": len(shown),
                        "accuracy": accuracy,
                        "flagged": float(unlike.mean()),
                        "stated": stated,
                    }
                )
    return rows


def versions(load: Callable[[int], ImageSet]) -> Iterator[tuple[str, ImageSet]]:
    """Names and patches of 128 x 128 px; ``load`` gives patches of a size in pixels."""
    images = load(SIZE_PX)
    plain = np.asarray(images.pixels)
    grey = plain.astype(np.float32)
    middle = grey.mean((2, 3), keepdims=True)
    draw = np.random.default_rng(SEED)
    made = {
        "as they are": plain,
        "noisier": as_grey(grey + draw.normal(0, 25, grey.shape)),
        "blurred": as_grey(gaussian_filter(grey, (0, 0, 2, 2))),
        "inverted": 255 - plain,
        "contrast x 0.5": as_grey(middle + 0.5 * (grey - middle)),
        "contrast x 1.5": as_grey(middle + 1.5 * (grey - middle)),
        "turned by 90 degrees": np.ascontiguousarray(np.rot90(plain, axes=(2, 3))),
    }
    for name, pixels in made.items():
        yield name, replace(images, pixels=pixels, content_hash="")
    for factor in PIXEL_SIZES:
        larger = load(max(SIZE_PX, round(SIZE_PX * factor)))
        cut = centre(np.asarray(larger.pixels), round(SIZE_PX * factor)).astype(np.float32)
        if factor > 1:  # no finer than the coarser pixels
            cut = gaussian_filter(cut, (0, 0, factor / 3, factor / 3))
        pixels = as_grey(zoom(cut, (1, 1, 1 / factor, 1 / factor), order=1))
        yield f"pixel size x {factor}", replace(larger, pixels=pixels, content_hash="")


def centre(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """The middle (n, 1, size_px, size_px) of larger patches."""
    start = (pixels.shape[-1] - size_px) // 2
    return pixels[..., start : start + size_px, start : start + size_px]


def as_grey(values: np.ndarray) -> np.ndarray:
    """Any numbers to the nearest uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    for row in measure(sys.argv[1]):
        print(json.dumps(row))
