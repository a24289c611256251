"""The position check flags the published layout and real plates whose control has one place, and
clears random ones.
"""

import numpy as np
import pytest

from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.position import (
    BACKGROUND,
    POSITION,
    background_features,
    position_check,
    position_features,
)
from nbhelpers.imagesets.plates import leave_one_plate_out, load_plates, split_by_plate
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


def test_the_published_layout_is_flagged_in_plain_words(published):
    said, table, floors = position_check(*published)
    assert table.iloc[0][["value", "verdict", "n", "wells"]].tolist() == [1.0, "warn", 24, 24]
    assert "position and treatment are confounded" in said[0] and "AUC of 1.00" in said[0]
    assert [floor.table["model"].iloc[0] for floor in floors] == [POSITION, BACKGROUND]


def test_a_perfect_image_model_cannot_exceed_a_perfect_position(published):
    images, split = published
    said, table, _ = position_check(images, split, predict(images, split, 1.0))
    row = table.set_index("check").loc[f"balanced accuracy of the image model less {POSITION}"]
    assert row["value"] == 0 and row["verdict"] == "warn"
    assert any("not above chance" in sentence for sentence in said)


def test_a_random_layout_is_cleared_and_the_image_model_exceeds_it(tmp_path):
    images = load_plates(
        "phantom",
        data_folder=tmp_path,
        size_px=48,
        layout="randomised",
        phantom={"plates": 8, "fields": 2},
    )
    split = split_by_plate(images, test=3)
    said, table, _ = position_check(images, split, predict(images, split, 0.97))
    assert table["verdict"].tolist()[0] == "pass" and "Warning: position" not in " ".join(said)
    row = table.set_index("check").loc[f"balanced accuracy of the image model less {POSITION}"]
    assert row["low"] > 0 and row["n"] == 72 and row["wells"] == 36


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
    said, table, _ = position_check(
        replace(images, pixels=pixels, content_hash=""), split_by_plate(images, test=2)
    )
    assert (
        table["verdict"].tolist() == ["pass", "warn"]
        and "light and treatment go together" in said[0]
    )


def test_features_have_a_row_per_image_and_see_no_structure(published):
    images, _ = published
    place = position_features(images)
    assert len(place) == len(images) and place["edge"].max() == 2 and place["row number"].max() == 7
    assert place.filter(like="well_").shape[1] == 48
    dark = background_features(images)
    assert dark.shape == (len(images), 4 * 64) and (dark[images.labels < 0] == 0).all().all()


@pytest.mark.realdata
def test_bbbc021_is_flagged(real_data, tmp_path):
    images = load_plates("bbbc021", data_folder=tmp_path, data_dir=str(real_data("bbbc021_subset")))
    said, table, _ = position_check(images, leave_one_plate_out(images))
    assert table["verdict"].iloc[0] == "warn" and table["value"].iloc[0] > 0.95
    assert "position and treatment are confounded" in said[0] and "7 wells" in said[0]
