"""Floors: fitted on training images only, and able to find what is there."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.draw import disk, ellipse, rectangle

from nbhelpers.core.errors import InputError, PredictionsError, SplitError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split
from nbhelpers.evaluation.floors import (
    features_floor,
    majority_class,
    photometric_features,
    photometric_floors,
)
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.random_weights import random_weights_floor
from nbhelpers.imagesets.shapes import shape_features
from nbhelpers.phantoms.spine import CLASSES, make_spine_phantoms
from nbhelpers.training.augment import Transform
from nbhelpers.training.recipe import Augmentation


def image_set(labels, classes=("a", "b"), pixels=None):
    n = len(labels)
    table = pd.DataFrame(
        {
            "id": [f"i{index}" for index in range(n)],
            "label": labels,
            "group": [f"g{index}" for index in range(n)],
        }
    )
    pixels = np.zeros((n, 1, 4, 4), np.uint8) if pixels is None else pixels
    channels = tuple(map(str, range(pixels.shape[1])))
    about = ("test set", table, pixels, tuple(classes), "made for a test", True)
    return ImageSet(*about, channels=channels)


def make_split(images, parts, known_leak=""):
    """``parts``: one list per fold, "train", "validation" or "test" per image."""
    rows = [
        pd.DataFrame(
            {"repeat": 0, "fold": fold, "part": part, "id": images.ids, "group": images.groups}
        )
        for fold, part in enumerate(parts)
    ]
    return Split(pd.concat(rows, ignore_index=True), "test", 0, known_leak)


def test_majority_of_the_training_images_not_of_the_test_images():
    images = image_set(["a"] * 4 + ["b"] * 2 + ["b"] * 6)
    split = make_split(images, [["train"] * 5 + ["validation"] + ["test"] * 6])
    found = majority_class(images, split)
    assert (found.table["predicted"] == "a").all() and len(found) == 6
    assert found.probabilities[0] == pytest.approx([5 / 8, 3 / 8])
    assert evaluate(found)["accuracy"].value == 0


def test_every_fold_is_fitted_anew():
    images = image_set(["a", "a", "b", "b"])
    split = make_split(
        images, [["train", "train", "test", "test"], ["test", "test", "train", "train"]]
    )
    found = majority_class(images, split).table.set_index("id")
    assert found.loc["i2", "predicted"] == "a" and found.loc["i0", "predicted"] == "b"
    assert found.loc["i2", "fold"] == 0 and found.loc["i0", "fold"] == 1


@pytest.mark.parametrize("classifier", ["logistic", "svm"])
def test_features_that_tell_are_found_and_noise_is_not(classifier):
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b"])[rng.integers(0, 2, 120)]
    images = image_set(list(labels))
    split = make_split(images, [["train"] * 60 + ["validation"] * 20 + ["test"] * 40])
    telling = np.where(labels == "a", 1.0, -1.0)[:, None] * 1000 + rng.normal(0, 300, (120, 1))
    noise = rng.normal(size=(120, 5))
    scores = [
        evaluate(features_floor(values, images, split, "floor", classifier))["accuracy"].value
        for values in (telling, noise)
    ]
    assert scores[0] > 0.95 and scores[1] < 0.75


def test_test_images_that_leak_into_training_are_left_out_of_the_fit():
    """A feature that names each image scores perfectly if a test image is fitted on, and at chance
    if not.
    """
    rng = np.random.default_rng(1)
    images = image_set(list(np.array(["a", "b"])[rng.integers(0, 2, 60)]))
    names = np.eye(60)
    honest = make_split(images, [["train"] * 40 + ["test"] * 20])
    leaking = Split(
        pd.concat([honest.table, honest.table[40:].assign(part="train")]),
        "published",
        0,
        "all of it",
    )
    first, second = (features_floor(names, images, split, "names") for split in (honest, leaking))
    assert first.probabilities == pytest.approx(second.probabilities)


def test_metadata_columns_serve_as_features_and_unlabelled_images_are_left_out():
    images = image_set(["a", "b"] * 10 + [None] * 2)
    split = make_split(images, [["train"] * 10 + ["test"] * 10 + ["train", "test"]])
    metadata = pd.DataFrame({"bit_depth": [1, 8] * 11, "number": range(22)})
    found = features_floor(metadata, images, split, "metadata")
    assert len(found) == 10 and evaluate(found)["accuracy"].value == 1


def test_a_rare_class_is_weighted_where_the_score_weights_it():
    """One image in eight is of class b: without weights nearly all are called a."""
    rng = np.random.default_rng(3)
    labels = np.where(np.arange(800) % 8 == 0, "b", "a")
    images = image_set(list(labels))
    split = make_split(images, [["train"] * 400 + ["test"] * 400])
    values = (labels == "b")[:, None] * 1.5 + rng.normal(size=(800, 1))
    found = {}
    for classifier in ("logistic", "svm"):
        for balanced in (False, True):
            floor = features_floor(values, images, split, "x", classifier, balanced=balanced)
            found[balanced] = evaluate(floor)["balanced_accuracy"].value
        assert found[True] > found[False] + 0.1


def photometry(kind, shape=(1, 32, 32), count=120, seed=3):
    """Images whose classes differ in nothing but ``kind``, and a split of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.normal(128, 20, (count, *shape))
    down, across = np.mgrid[-1 : 1 : shape[-2] * 1j, -1 : 1 : shape[-1] * 1j]
    for label, image in zip(labels, pixels, strict=True):
        if kind == "grey-level baseline":
            image += 6 * label
        elif kind == "radial profile":  # brighter in a ring, darker beyond, as bright on the whole
            ring = np.hypot(down, across) < 0.5
            image += label * 12 * (ring / ring.mean() - (~ring) / (~ring).mean()) * ring.mean()
        elif kind == "power spectrum" and label:
            image += np.roll(image, 1, axis=-1)
            image *= 1 / np.sqrt(2)
            image -= image.mean() - 128
        elif kind == "border":
            image[..., 0, :] += 30 * label
        elif kind == "colour means":
            image[0] += 6 * label
            image[1] -= 6 * label
        elif kind == "neighbouring sections" and label:
            image[:, 1:] = 0.5 * image[:, 1:] + 0.5 * image[:, :-1]
    images = image_set(list(np.array(["a", "b"])[labels]), pixels=pixels.clip(0, 255).astype("u1"))
    return images, make_split(images, [["train"] * 80 + ["test"] * 40])


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("grey-level baseline", (1, 32, 32)),
        ("radial profile", (1, 32, 32)),
        ("power spectrum", (1, 32, 32)),
        ("border", (1, 32, 32)),
        ("colour means", (3, 32, 32)),
        ("neighbouring sections", (1, 6, 32, 32)),
        ("nothing", (1, 32, 32)),
    ],
)
def test_each_photometric_floor_finds_its_short_cut(kind, shape):
    images, split = photometry(kind, shape)
    accuracy = {}
    for floor in photometric_floors(images, split):
        name = floor.table["model"].iloc[0]
        accuracy[name] = evaluate(floor)["balanced_accuracy"].value
    if kind == "nothing":
        assert max(accuracy.values()) < 0.75
    else:
        assert accuracy[kind] > 0.8
    if kind not in ("nothing", "neighbouring sections"):
        assert accuracy["photometric together"] > 0.8


def test_photometric_features_go_with_the_kind_of_image():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (2, 1, 20, 24), np.uint8)
    assert photometric_features(grey)["radial profile"].shape == (2, 24)
    assert "colour means" not in photometric_features(grey)
    colour = photometric_features(np.concatenate([grey] * 3, axis=1))
    assert colour["colour means"].shape == (2, 6) and colour["radial profile"].shape == (2, 72)
    cubes = photometric_features(np.stack([grey] * 5, axis=2))
    assert cubes["neighbouring sections"].filter(like="mean").to_numpy() == pytest.approx(1)
    for name, values in photometric_features(np.zeros((2, 2, 3, 9, 9), np.uint16)).items():
        assert np.isfinite(values.to_numpy()).all(), name


def test_bad_features_are_refused_by_name():
    images = image_set(["a", "b"] * 4)
    split = make_split(images, [["train"] * 6 + ["test"] * 2])
    values = pd.DataFrame({"size": np.ones(8), "age": [1, 2, 3, np.nan, 5, 6, 7, 8]})
    with pytest.raises(PredictionsError, match=r"image i3.*age"):
        features_floor(values, images, split, "metadata")
    with pytest.raises(PredictionsError, match="8 images"):
        features_floor(np.ones((7, 2)), images, split, "x")
    with pytest.raises(PredictionsError, match="not all numbers"):
        features_floor(pd.DataFrame({"centre": list("abcdefgh")}), images, split, "x")


def test_a_class_without_training_images_is_refused():
    images = image_set(["a", "a", "a", "b"])
    split = make_split(images, [["train", "train", "train", "test"]])
    with pytest.raises(SplitError, match="class b"):
        features_floor(np.ones((4, 1)), images, split, "x")
    with pytest.raises(SplitError, match="0 to test"):
        majority_class(images, make_split(images, [["train"] * 4]))


def test_a_shape_svm_tells_spine_phantoms_apart_but_not_perfectly():
    masks, table = make_spine_phantoms(300, 21)
    images = ImageSet("phantoms", table, masks[:, None], CLASSES, "phantoms", True)
    part = np.where(np.arange(300) < 200, "train", "test")
    part[images.groups == images.groups[200]] = "train"
    split = make_split(images, [part])
    found = features_floor(shape_features(masks), images, split, "shape", "svm")
    accuracy = evaluate(found)["accuracy"].value
    assert 0.82 < accuracy < 1


def test_random_weights_tell_what_colours_tell_in_any_bit_depth():

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(2, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Dropout(0.5)
            )

        def features(self, x):
            assert float(x.max()) <= 1
            return self.layers(x).mean(dim=(2, 3))

    rng = np.random.default_rng(0)
    labels = ["a", "b"] * 20
    pixels = rng.integers(0, 120, (40, 2, 8, 8), dtype=np.uint8)
    pixels[1::2] += 100
    images = image_set(labels, pixels=pixels)
    split = make_split(images, [["train"] * 30 + ["test"] * 10])
    network = Net().train()
    found = random_weights_floor(lambda: network, Transform(Augmentation()), images, split, seed=0)
    assert evaluate(found)["accuracy"].value > 0.8 and network.training
    assert found.table["model"].unique().tolist() == ["random weights"]
    finer = image_set(labels, pixels=pixels.astype(np.uint16) * 257)
    again = random_weights_floor(lambda: network, Transform(Augmentation()), finer, split, seed=0)
    assert found.probabilities == pytest.approx(again.probabilities, abs=1e-6)


def test_properties_of_shapes_that_are_known():
    masks = np.zeros((4, 100, 100), np.uint8)
    masks[0][disk((50, 50), 20)] = 255
    masks[1][rectangle((10, 30), extent=(60, 20))] = 1
    masks[2][ellipse(50, 50, 10, 30)] = 255
    masks[3] = masks[0]
    masks[3][2:5, 2:5] = 255
    found = shape_features(masks)
    assert len(found.columns) >= 30 and np.isfinite(found.to_numpy()).all()
    assert found["area_px2"][0] == pytest.approx(np.pi * 400, rel=0.02)
    assert found["inscribed_radius_px"][0] == pytest.approx(20, abs=0.6)
    assert found["eccentricity"][0] < 0.05 < 0.8 < found["eccentricity"][2]
    assert found[["height_px", "width_px", "area_px2", "solidity", "extent"]].iloc[1].tolist() == [
        60,
        20,
        1200,
        1,
        1,
    ]
    assert found["feret_diameter_px"][1] == pytest.approx(np.hypot(60, 20))
    assert (found.loc[1, [f"width_{height:02d}" for height in range(0, 100, 10)]] == 20).all()
    assert found["solidity"][0] > 0.95 and found["neck_to_head"][1] == 1
    assert found["components"].tolist() == [1, 1, 1, 2]
    assert found.drop(columns="components").iloc[3].equals(found.drop(columns="components").iloc[0])


def test_neck_and_head_of_a_mushroom():
    mask = np.zeros((1, 100, 100), bool)
    mask[0][disk((30, 50), 20)] = True
    mask[0, 45:80, 46:54] = True
    mask[0, 80:84, 40:60] = True
    found = shape_features(mask).iloc[0]
    assert found["neck_width_px"] == 8 and found["head_width_px"] == pytest.approx(39, abs=1)
    assert found["base_width_px"] == 20


def test_smallest_and_empty_masks():
    single = np.zeros((2, 9, 9), bool)
    single[0, 4, 4] = True
    assert np.isfinite(shape_features(single[:1]).to_numpy()).all()
    with pytest.raises(InputError, match="mask 1"):
        shape_features(single)


def test_evaluation_needs_no_torch():
    code = (
        "import sys; import nbhelpers.evaluation.floors, nbhelpers.evaluation.metrics, "
        "nbhelpers.evaluation.paired, nbhelpers.evaluation.calibration; sys.exit('torch' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
