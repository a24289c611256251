"""How the model for new glomeruli does on a centre that it has not seen, and on other stains,
scanners and noise. ``measure`` is called by ``benchmarks/travel.py``.

The model of notebook 06 (frozen MobileNetV2, texture head) is fitted on the slides of one centre,
and on two thirds of the slides of that centre. New images get the threshold of the validation
slides ("before"), or that from their own scores where they are shifted as a set. Of several ways to
measure a shift this one was chosen on these very images, so the figures are a little too good.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import repeated_cross_validation
from nbhelpers.imagesets.bueno import load_bueno_glomeruli
from nbhelpers.inference.new_images import out_of_distribution
from nbhelpers.models.frozen import frozen_features, make_features
from nbhelpers.studies import glomeruli
from nbhelpers.studies.glomerulus_model import Predictor
from nbhelpers.training.stains import change_dyes

Change = Callable[[np.ndarray], np.ndarray]
WEIGHTS = "mobilenet_v2_from_quantized.pth"
SEED = 7


def measure(data_folder: Path) -> list[dict]:
    """Rows for ``docs/travel.json``; of the folder it reads ``glomeruli_bueno``, and the weights
    from ``weights`` in it or beside it, where there are such, else those of torchvision.
    """
    found = [place / "weights" / WEIGHTS for place in (data_folder, data_folder.parent)]
    weights = next((path for path in found if path.exists()), "imagenet")
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        images = load_bueno_glomeruli(cache, data_dir=data_folder / "glomeruli_bueno")
        look = glomeruli.Look("mobilenet_v2", weights, seed=SEED)
        network = make_features(look.backbone, weights=weights, data_folder=data_folder)
        features = frozen_features(network, images, look.make_views(), cache_folder=cache)
    variant = glomeruli.Variant(network, features)
    centre = images.table["centre"].astype(str).to_numpy()
    names = sorted(set(centre), key=lambda name: -(centre == name).sum())
    for name in names:
        inside = np.flatnonzero(centre == name)
        predictor = fitted(look, variant, images, inside)
        for other in names:
            if other != name:
                new = images.take(np.flatnonzero(centre == other))
                changes = CHANGES if name == names[0] else {"as they are": CHANGES["as they are"]}
                rows += tested(predictor, new, f"centre {name} to {other}", changes)
    inside = np.flatnonzero(centre == names[0])
    split = repeated_cross_validation(images.take(inside), folds=3, repeats=1, seed=SEED)
    rest, held = (inside[rows_of(images.take(inside), split, which)] for which in (False, True))
    predictor = fitted(look, variant, images, rest)
    return rows + tested(predictor, images.take(held), f"other slides of {names[0]}", CHANGES)


def rows_of(images: ImageSet, split, held: bool) -> np.ndarray:
    return np.flatnonzero(np.isin(images.ids, split.ids(0, 0, "test")) == held)


def fitted(look: glomeruli.Look, variant, images: ImageSet, rows: np.ndarray) -> Predictor:
    known = images.take(rows)
    own = glomeruli.Variant(variant.network, variant.features[rows])
    split = repeated_cross_validation(known, folds=3, repeats=1, seed=SEED)
    ours = glomeruli.our_head(own, known, split, model="texture head", seed=SEED)
    return glomeruli.final_predictor(look, own, known, ours, coverage=0.95)


def tested(
    predictor: Predictor, new: ImageSet, where: str, changes: dict[str, Change]
) -> list[dict]:
    rows = []
    for name, change in changes.items():
        features = predictor.features_of(change(np.asarray(new.pixels)))
        default = predictor.table(new.ids, features, confidence=0.7)
        shift = predictor.shift(
            predictor.place(features), default[f"probability {predictor.classes[-1]}"].to_numpy()
        )
        table = predictor.shifted(default, shift, confidence=0.7)
        label = new.table["label"].to_numpy()
        right = table["predicted"].to_numpy() == label
        flagged = out_of_distribution(table).to_numpy()
        moved = "own threshold" if shift.threshold != shift.before else "threshold kept"
        rows.append(
            {
                "task": "glomeruli",
                "version": f"{where}, {name}: shift {shift.size:.2f} of {shift.limit:.2f}, {moved}",
                "n": len(new),
                "accuracy": float(right.mean()),
                "macro_f1": macro_f1(label, table["predicted"].to_numpy()),
                "before": float((default["predicted"].to_numpy() == label).mean()),
                "flagged": float(flagged.mean()),
                "flagged_right": share(flagged[right]),
                "flagged_wrong": share(flagged[~right]),
                "stated": predictor.network.usual.rate,
            }
        )
    return rows


def share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if len(flags) else None


def macro_f1(label: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(label, predicted, average="macro"))


# changes of (n, 3, y, x) uint8


def dyes(*factors: float) -> Change:
    def change(pixels: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(np.array(pixels)).float() / 255
        gains = torch.tensor(factors).view(1, 3, 1, 1)
        made = change_dyes(given, gains, torch.zeros(1, 3, 1, 1))
        return (made * 255).round().byte().numpy()

    return change


def hue(turn: float, saturation: float = 1.0) -> Change:
    def change(pixels: np.ndarray) -> np.ndarray:
        from skimage.color import hsv2rgb, rgb2hsv

        found = rgb2hsv(np.moveaxis(pixels, 1, -1))
        found[..., 0] = (found[..., 0] + turn) % 1
        found[..., 1] *= saturation
        return np.moveaxis((255 * hsv2rgb(found)).round().astype(np.uint8), -1, 1)

    return change


def jpeg(quality: int) -> Change:
    def change(pixels: np.ndarray) -> np.ndarray:
        from PIL import Image

        made = []
        for image in np.moveaxis(pixels, 1, -1):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=quality)
            made.append(np.asarray(Image.open(file)))
        return np.moveaxis(np.stack(made), -1, 1)

    return change


def blurred(pixels: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(pixels.astype(np.float32), (0, 0, 2, 2)).round().astype(np.uint8)


def noisy(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(SEED).normal(0, 12, pixels.shape)
    return np.clip(pixels + noise, 0, 255).round().astype(np.uint8)


def gamma(power: float) -> Change:
    return lambda pixels: (255 * (pixels / 255) ** power).round().astype(np.uint8)


CHANGES: dict[str, Change] = {
    "as they are": lambda pixels: pixels,
    "haematoxylin and eosin x 0.6": dyes(0.6, 0.6, 1),
    "eosin x 1.6": dyes(1, 1.6, 1),
    "hue turned by 0.1": hue(0.1),
    "half saturation": hue(0, 0.5),
    "gamma 1.7": gamma(1.7),
    "JPEG of quality 10": jpeg(10),
    "blurred by 2 px": blurred,
    "noise of 12 grey values": noisy,
}
