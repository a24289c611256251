"""The position check flags the published layout and real plates whose control has one place, and
clears random ones.
"""

import numpy as np
import pytest

from nbhelpers.audit.question import Question
from nbhelpers.audit.shortcuts import shortcut_checks
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.paired import compare
from nbhelpers.evaluation.plate_floors import (
    BACKGROUND,
    POSITION,
    background_features,
    position_features,
    position_floors,
)
from nbhelpers.evaluation.plates import group_by_well
from nbhelpers.imagesets.plates import (
    leave_one_plate_out,
    load_plates,
    normalise_to_controls,
    split_by_plate,
)
from nbhelpers.phantoms.plate import Nuisance


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    images = load_plates(
        "phantom",
        data_folder=tmp_path_factory.mktemp("data"),
        size_px=48,
        phantom={"plates": 6, "fields": 1},
    )
    return images, split_by_plate(images, test=2)


def predict(images, split, accuracy, seed=0):
    rng = np.random.default_rng(seed)
    rows = images.positions(split.ids(0, 0, "test"))
    right = rng.random(len(rows)) < accuracy
    first = np.where((images.labels[rows] == 0) == right, 0.9, 0.1)
    return Predictions.build(
        ids=images.ids[rows],
        labels=images.table["label"].iloc[rows],
        groups=images.groups[rows],
        probabilities=np.stack([first, 1 - first], 1),
        classes=images.classes,
        model="image model",
    )


def shortcut(images, title):
    found = {one.name: one for one in shortcut_checks(Question(images, shuffles=300))}
    return found[f"shortcut: {title}"]


def less_position(images, split, predictions):
    """How far an image model exceeds the position of the well, field by field, wells resampled."""
    floor = position_floors(images, split)[0]
    found = compare(group_by_well(predictions, images), group_by_well(floor, images))
    return found["balanced_accuracy"]


def test_the_published_layout_is_flagged_in_plain_words(published):
    images, split = published
    check = shortcut(images, "plate position")
    assert check.numbers["auc"] == 1 and check.verdict == "fail" and "AUC of 1.00" in check.says
    assert check.fix.startswith("Position and treatment are confounded")
    floors = position_floors(images, split)
    assert [floor.table["model"].iloc[0] for floor in floors] == [POSITION, BACKGROUND]
    scores = evaluate(group_by_well(floors[0], images))
    assert (scores["auc"].value, scores["n_images"], scores["n_groups"]) == (1.0, 24, 24)


def test_a_perfect_image_model_cannot_exceed_a_perfect_position(published):
    images, split = published
    difference = less_position(images, split, predict(images, split, 1.0))
    assert difference.value == 0 and not difference.above_zero


def test_a_random_layout_is_cleared_and_the_image_model_exceeds_it(tmp_path):
    images = load_plates(
        "phantom",
        data_folder=tmp_path,
        size_px=48,
        layout="randomised",
        phantom={"plates": 8, "fields": 2},
    )
    split = split_by_plate(images, test=3)
    assert shortcut(images, "plate position").verdict == "pass"
    predictions = predict(images, split, 0.97)
    difference = less_position(images, split, predictions)
    assert difference.low > 0 and difference.n == 72
    assert group_by_well(predictions, images).table["group"].nunique() == 36


def test_background_that_goes_with_the_label_is_flagged(tmp_path):
    from dataclasses import replace

    images = load_plates(
        "phantom",
        data_folder=tmp_path,
        size_px=48,
        layout="randomised",
        phantom={"plates": 6, "fields": 1, "nuisance": Nuisance(0, 0)},
    )
    pixels = np.clip(
        images.pixels.astype(int) + 12 * (images.labels == 1)[:, None, None, None], 0, 255
    ).astype(np.uint8)
    lit = replace(images, pixels=pixels, content_hash="")
    assert shortcut(lit, "plate position").verdict == "pass"
    check = shortcut(lit, "background")
    assert check.verdict == "warn" and check.fix.startswith("Light and treatment go together")


def test_clean_plates_are_not_accused_of_their_light(tmp_path):
    raw = load_plates(
        "phantom",
        data_folder=tmp_path,
        layout="randomised",
        size_px=64,
        seed=5,
        phantom={"plates": 8, "fields": 4},
    )
    images = normalise_to_controls(raw, wells="controls", cache_folder=tmp_path)
    check = shortcut(
        images, "background"
    )  # 0.70 with a dark percentile of blocks: cells were in it
    assert check.verdict == "pass" and check.numbers["auc"] < 0.62


def test_features_have_a_row_per_image_and_see_no_structure(published):
    images, _ = published
    place = position_features(images)
    assert len(place) == len(images) and place["edge"].max() == 2 and place["row number"].max() == 7
    assert place.filter(like="well_").shape[1] == 48
    dark = background_features(images)
    assert dark.shape == (len(images), 4) and (dark[images.labels < 0] == 0).all().all()


@pytest.mark.realdata
def test_bbbc021_is_flagged(real_data, tmp_path):
    images = load_plates("bbbc021", data_folder=tmp_path, data_dir=str(real_data("bbbc021_subset")))
    check = shortcut(images, "plate position")
    assert check.verdict in ("warn", "fail") and check.numbers["auc"] > 0.95
    assert check.fix.startswith("Position and treatment are confounded")
    test = group_by_well(position_floors(images, leave_one_plate_out(images))[0], images)
    assert test.table["group"].nunique() == 7
