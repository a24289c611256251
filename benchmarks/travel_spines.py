"""How TinyCNN and the shape features fare on the public masks turned, scaled and drawn by another
hand, with every mask brought to one pose and size, and without.

    .venv/bin/python benchmarks/travel_spines.py FOLDER        # with spines_ghani, the public masks

The networks of two times three folds are trained on masks as they were published, upright; a mask
is tested in the folds in which it was not trained on. The other outlines are those masks, changed
one by one: nothing was chosen on them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.draw import polygon2mask
from skimage.measure import approximate_polygon, find_contours
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split, repeated_cross_validation
from nbhelpers.evaluation.shapes import shape_features
from nbhelpers.imagesets.masks import fit_frame
from nbhelpers.imagesets.spines import load_spines
from nbhelpers.imagesets.windows import FRAME_PX, windows
from nbhelpers.inference.reference import fit_reference
from nbhelpers.inference.spine_pose import Scale, in_one_pose
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.studies import spines
from nbhelpers.training.crossvalidation import Training

FOLDS = 3
EPOCHS = 30
REPEATS = 2
SEED = 11
RECIPE = spines.GENTLE


def turned(mask: np.ndarray, degrees: float) -> np.ndarray:
    return ndimage.rotate(mask.astype(np.float32), degrees, order=1) > 0.5


def scaled(mask: np.ndarray, factor: float) -> np.ndarray:
    return ndimage.zoom(mask.astype(np.float32), factor, order=1) > 0.5


def polygon(mask: np.ndarray) -> np.ndarray:
    """Drawn with a few straight strokes."""
    outline = max(find_contours(np.pad(mask, 5).astype(float), 0.5), key=len)
    corners = approximate_polygon(outline, 0.05 * np.sqrt(mask.sum()))
    return polygon2mask(np.array(mask.shape) + 10, corners)


def smooth(mask: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(np.pad(mask, 20).astype(float), 0.05 * np.sqrt(mask.sum())) > 0.5


def moved(mask: np.ndarray, share: float) -> np.ndarray:
    """The outline drawn outside, or inside, by a ``share`` of the root of the area."""
    outside = ndimage.distance_transform_edt(~np.pad(mask, 15))
    inside = ndimage.distance_transform_edt(np.pad(mask, 15))
    return inside - outside > -share * np.sqrt(mask.sum())


def cut_higher(mask: np.ndarray) -> np.ndarray:
    """Of an upright mask: cut from the dendrite a tenth of its height further up."""
    rows = np.flatnonzero(mask.any(1))
    kept = mask.copy()
    kept[int(rows[-1] - 0.1 * np.ptp(rows)) :] = False
    return kept


Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
CHANGES: dict[str, Change] = {
    "as published": lambda mask, draw: mask,
    "turned by 30 degrees": lambda mask, draw: turned(mask, 30),
    "turned by 90 degrees": lambda mask, draw: turned(mask, 90),
    "turned by 180 degrees": lambda mask, draw: turned(mask, 180),
    "each turned by any angle": lambda mask, draw: turned(mask, draw.uniform(0, 360)),
    "pixels twice as large": lambda mask, draw: scaled(mask, 0.5),
    "pixels half as large": lambda mask, draw: scaled(mask, 2.0),
    "any angle, pixels 1.4 times as large": lambda mask, draw: turned(
        scaled(mask, 0.7), draw.uniform(0, 360)
    ),
    "any angle, drawn as polygons": lambda mask, draw: turned(polygon(mask), draw.uniform(0, 360)),
    "any angle, smoothed": lambda mask, draw: turned(smooth(mask), draw.uniform(0, 360)),
    "any angle, drawn outside": lambda mask, draw: turned(moved(mask, 0.05), draw.uniform(0, 360)),
    "any angle, drawn inside": lambda mask, draw: turned(moved(mask, -0.05), draw.uniform(0, 360)),
    "any angle, cut higher": lambda mask, draw: turned(cut_higher(mask), draw.uniform(0, 360)),
}


def changed(images: ImageSet, change: Change) -> ImageSet:
    """The masks as files of another hand would give them, each in its frame."""
    draw = np.random.default_rng(SEED)
    pixels = np.empty_like(images.pixels)
    shrunk = np.ones(len(images))
    for row, image in enumerate(images.pixels[:, 0] > 127):
        mask = change(image, draw)
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        if count > 1:  # a neck that broke: the reader refuses two objects
            mask = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
        pixels[row, 0] = fit_frame(mask, FRAME_PX)
        box = [np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (0, 1)]
        shrunk[row] = max(1.0, max(box) / FRAME_PX)
    return replace(images, pixels=pixels, table=images.table.assign(shrunk=shrunk))


def in_pose(images: ImageSet, known: Scale | None) -> ImageSet:
    return in_one_pose(images, Scale.of(images, known=known)) if known else images


def measure(data_dir: str | Path, epochs: int = EPOCHS) -> list[dict]:
    """Rows for TinyCNN and for the shape features, per version of the masks: accuracy and macro-F1
    with one pose and size, ``before`` the accuracy without, and the flags."""
    place = Path(data_dir) / "spines_ghani"
    with tempfile.TemporaryDirectory() as folder:
        images = load_spines("ghani", data_folder=folder, data_dir=str(place))
        versions = {name: changed(images, change) for name, change in CHANGES.items()}
        found = {pose: tested(images, versions, pose, epochs) for pose in ("as_is", "upright")}
    rows = []
    for model in ("TinyCNN", "shape features"):
        for name in versions:
            row = found["upright"][model, name]
            before = found["as_is"][model, name]["accuracy"]
            rows.append({"task": "spines", "version": f"{model}, {name}", **row, "before": before})
    return rows


def tested(images: ImageSet, versions: dict[str, ImageSet], pose: str, epochs: int) -> dict:
    """Model and version to scores and flags, each the mean over the repeats."""
    seen, scale = spines.one_pose(images, "grouped", pose, 0.0)
    shown = {name: in_pose(version, scale) for name, version in versions.items()}
    shapes = {name: shape_features(one.pixels[:, 0]).to_numpy() for name, one in shown.items()}
    split = repeated_cross_validation(images, folds=FOLDS, repeats=REPEATS, seed=SEED)
    answers = {("TinyCNN", name): values for name, values in networks(seen, shown, split, epochs)}
    known_shapes = shape_features(seen.pixels[:, 0]).to_numpy()
    flagged = {name: np.zeros((REPEATS, len(images)), bool) for name in shown}
    answers |= {("shape features", name): np.zeros((REPEATS, len(images)), int) for name in shown}
    for repeat, fold in split.folds():
        test = images.positions(split.ids(repeat, fold, "test"))
        known = np.setdiff1d(np.arange(len(images)), test)
        classifier = make_pipeline(StandardScaler(), SVC(C=3))
        classifier.fit(known_shapes[known], images.labels[known])
        usual = fit_reference(known_shapes[known], groups=images.groups[known])
        for name, values in shapes.items():
            answers["shape features", name][repeat, test] = classifier.predict(values[test])
            flagged[name][repeat, test] = usual.unlike(values[test])
    found = {}
    for (model, name), given in answers.items():
        right = given == images.labels
        flags = flagged[name]
        each = [f1_score(images.labels, one, average="macro") for one in given]
        found[model, name] = {
            "n": len(images),
            "accuracy": float(right.mean()),
            "macro_f1": float(np.mean(each)),
            "flagged": float(flags.mean()),
            "flagged_right": float(flags[right].mean()) if right.any() else None,
            "flagged_wrong": float(flags[~right].mean()) if (~right).any() else None,
            "stated": float(usual.rate),
        }
    return found


def networks(
    seen: ImageSet, shown: dict[str, ImageSet], split: Split, epochs: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Of every version the classes, (repeats, n) int, that the networks of those folds give in
    which a mask was tested.
    """
    recipe = RECIPE.but(epochs=epochs, batch_size=16)
    look = spines.transform(1)
    windowed = windows(seen, "grouped", recipe.input_px)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(
            lambda: TinyCNN(1, len(seen.classes)),
            [recipe],
            look,
            seed=SEED,
            work_folder=folder,
            report=None,
        )
        training.cross_validate(windowed, split)
        for name, version in shown.items():
            # the pixels alone are others: the networks of the same folds predict them
            other = replace(windowed, pixels=windows(version, "grouped", recipe.input_px).pixels)
            views = recipe.test_time_augmentation
            again = training.predict_again(other, split, look(recipe), test_time_augmentation=views)
            values = np.zeros((REPEATS, len(seen)), int)
            rows = seen.positions(again.table["id"].to_numpy())
            values[again.table["repeat"].to_numpy(), rows] = again.probabilities.argmax(1)
            yield name, values


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:2], *map(int, sys.argv[2:])), indent=1))
