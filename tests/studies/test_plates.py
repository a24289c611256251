"""The plate task: recipes, training in stages on held-out plates, floors, log-odds of every well,
and who sees what.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from nbhelpers.core.errors import ParameterError, SplitError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split
from nbhelpers.evaluation.plate_floors import stain_features
from nbhelpers.imagesets.plates import split_by_plate
from nbhelpers.inference.new_images import flags
from nbhelpers.studies import plates as task
from nbhelpers.training.checkpoints import save_checkpoint
from nbhelpers.training.recipe import Augmentation

STAINS = ("first", "second")


def toy(plates=5, wells=24, size=32, seed=0):
    """Two stains; in the class amyloid-beta the second one has broad stripes instead of fine ones.
    Every third well of a plate has no label."""
    draw = np.random.default_rng(seed)
    rows = []
    pixels = []
    for plate in range(plates):
        for well in range(wells):
            broad = well % 2
            stripes = np.where(np.arange(size) // (8 if broad else 2) % 2, 60, 190)
            field = draw.integers(60, 190, (2, size, size))
            field[1] = field[1] // 4 + stripes * 3 // 4
            name = f"{'BCDEFG'[well // 4]}{well % 4 + 2:02d}"
            rows.append(
                {
                    "id": f"p{plate}/{name}",
                    "label": None if well % 3 == 2 else ("control", "amyloid-beta")[broad],
                    "group": f"p{plate}",
                    "plate": f"p{plate}",
                    "well": name,
                    "row": name[0],
                    "column": int(name[1:]),
                    "field": 1,
                    "compound": "C01",
                    "dose_uM": float(well % 3 == 2),
                    "amyloid_uM": 30.0 * broad,
                }
            )
            pixels.append(field)
    return ImageSet(
        "toy",
        pd.DataFrame(rows),
        np.array(pixels, np.uint8),
        ("control", "amyloid-beta"),
        "",
        True,
        channels=STAINS,
    )


def accuracy(predictions):
    return (predictions.predicted_index == predictions.true_index).mean()


SMALL = task.recipe("ours", epochs=10, batch_size=8, learning_rate=4e-3, precision="fp32")
SETTINGS = {"seed": 0, "report": None}
S4 = task.NetworkChoice("s4", "small")
EARLY = task.NetworkChoice("early", "small")


@pytest.fixture(scope="module")
def images():
    return toy()


@pytest.fixture(scope="module")
def split(images):
    return task.make_split("phantom", images, test_plates=1, seed=0)


@pytest.fixture(scope="module")
def s4(images, split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s4")
    return folder, task.train_network(S4, images, split, SMALL, work_folder=folder, **SETTINGS)


def test_recipes_by_name():
    published = task.recipe("published")
    assert (
        published.optimizer,
        published.learning_rate,
        published.epochs,
        published.batch_size,
    ) == ("sgd", 1e-3, 10, 2)
    assert published.augmentation == Augmentation() and (published.keep, published.select_by) == (
        "best",
        "loss",
    )
    assert task.recipe("ours", epochs=3).epochs == 3
    with pytest.raises(ParameterError, match="'best' is unknown"):
        task.recipe("best")


def test_stains_move_together_and_change_their_tones_apart():
    pixels = torch.randint(60, 190, (6, 3, 16, 16), dtype=torch.uint8)
    pixels[:, 1] = pixels[:, 0]
    moved = task.transform(
        SMALL.but(augmentation=Augmentation(quarter_turns=True, flip_horizontal=True))
    )
    seen = moved.train(pixels, 1)
    assert torch.equal(seen[:, 0], seen[:, 1]) and not torch.equal(seen, moved.evaluate(pixels))
    toned = task.transform(SMALL.but(augmentation=Augmentation(brightness=0.3)))
    seen = toned.train(pixels, 1)
    factor = seen.mean((2, 3)) / toned.evaluate(pixels).mean((2, 3))
    assert (factor.std(1) > 0.01).all() and factor.min() > 0.69 and factor.max() < 1.31
    torch.testing.assert_close(
        seen, toned.evaluate(pixels) * factor[:, :, None, None], atol=1e-5, rtol=1e-4
    )
    assert torch.equal(toned.train(pixels, 1), seen) and not torch.equal(
        toned.train(pixels, 2), seen
    )
    assert torch.equal(toned.evaluate(pixels), pixels / 255)


def test_plates_are_held_out_whole_and_only_candidates_are_used(images, split):
    parts = split.table.groupby("group")["part"].nunique()
    assert parts.max() == 1 and set(split.table["part"]) == {"train", "validation", "test"}
    assert set(split.table["id"]) == set(images.ids[images.labels >= 0])
    assert set(split.ids(0, 0, "test")) <= {name for name in images.ids if name.startswith("p4")}
    assert len(task.make_split("bbbc021", images, test_plates=1, seed=0).folds()) == 5
    with pytest.raises(SplitError, match="validation are asked for"):
        task.make_split("phantom", images, test_plates=5, seed=0)


def test_s4_learns_from_one_stain_encoders_in_two_stages(s4, images, split):
    folder, trained = s4
    test = trained.result.predictions.where(split="test")
    assert set(test.table["id"]) == set(split.ids(0, 0, "test")) and accuracy(test) == 1
    alone = {
        name: accuracy(one.predictions.where(split="test"))
        for name, one in trained.one_stain.items()
    }
    assert tuple(alone) == STAINS and alone["second"] == 1 and alone["first"] < 0.9
    history = trained.result.histories
    assert list(history["recipe"].unique()) == [task.FIRST_STAGE, "ours"]
    assert (
        history[history["recipe"] == "ours"]["learning_rate"].max()
        <= SMALL.learning_rate * task.LATER_RATE * 1.001
    )
    first = next(folder.glob("s4/0/*first stage*")) / "network.safetensors"
    one = next(folder.glob("one-stain/1/*ours*")) / "network.safetensors"
    from safetensors.torch import load_file

    started = load_file(first)
    source = load_file(one)
    assert torch.equal(
        started["backbone.1.layer1.0.conv1.weight"], source["backbone.0.layer1.0.conv1.weight"]
    )
    assert not torch.equal(
        started["backbone.1.layer4.0.conv1.weight"], source["backbone.0.layer4.0.conv1.weight"]
    )
    final = trained.result.last.network.state_dict()
    assert not torch.equal(
        started["backbone.1.layer1.0.conv1.weight"], final["backbone.1.layer1.0.conv1.weight"].cpu()
    )


def test_what_the_training_fields_look_like_tells_strange_ones(s4, images, split, tmp_path):
    last = s4[1].result.last
    kept = task.training_reference(images, split, s4[1].result)
    assert len(kept["usual_reference"]) == len(split.ids(0, 0, "train"))
    path = tmp_path / "network.safetensors"
    save_checkpoint(path, last.network, classes=images.classes, about={}, beside=kept)
    look = task.transform(last.recipe)
    assert flags(path, last.network, images, look)[0].mean() < 0.2
    noise = np.random.default_rng(0).integers(0, 256, images.pixels[:6].shape).astype(np.uint8)
    strange = replace(images.take(range(6)), pixels=noise)
    assert flags(path, last.network, strange, look)[0].all()


def test_a_finished_training_is_found_again(s4, images, split):
    folder, trained = s4
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("training.json")}
    again = task.train_network(S4, images, split, SMALL, work_folder=folder, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("training.json")} == before
    np.testing.assert_allclose(
        again.result.predictions.probabilities, trained.result.predictions.probabilities, atol=1e-5
    )


def test_every_plate_left_out_is_tested_once(images, tmp_path):
    three = images.take(np.flatnonzero(images.groups < "p3"))
    split = task.make_split("bbbc021", three, test_plates=1, seed=0)
    trained = task.train_network(
        EARLY, three, split, SMALL.but(epochs=1), work_folder=tmp_path, **SETTINGS
    )
    tested = trained.result.predictions.where(split="test").table
    assert sorted(tested["id"]) == sorted(three.ids[three.labels >= 0]) and set(tested["fold"]) == {
        0,
        1,
        2,
    }
    assert trained.one_stain == {}


def test_a_validation_plate_of_one_class_chooses_nothing(images, tmp_path):
    table = images.table.copy()
    table.loc[(table["plate"] == "p0") & (table["label"] != "control"), "label"] = None
    split = split_by_plate(
        ImageSet("toy", table, images.pixels, images.classes, "", True, channels=STAINS), seed=0
    )
    one_class = split.table.assign(
        part=split.table["group"].map({"p0": "validation", "p4": "test"}).fillna("train")
    )
    split = Split(one_class, "grouped", 0)
    trained = task.train_network(
        EARLY, images, split, SMALL.but(epochs=2), work_folder=tmp_path, **SETTINGS
    )
    assert trained.result.last.recipe.keep == "last" and trained.result.last.epoch == 2


def test_log_odds_of_all_fields_agree_with_the_predictions_and_do_not_saturate(s4, images):
    trained = s4[1].result
    found = task.field_log_odds(trained.last, images)
    assert found.shape == (len(images),) and np.isfinite(found).all()
    test = trained.predictions.where(split="test")
    own = found[images.positions(test.table["id"])]
    np.testing.assert_allclose(1 / (1 + np.exp(-own)), test.probabilities[:, 1], atol=1e-4)
    network = trained.last.network
    with torch.no_grad():
        network.head.weight *= 100  # so sure that every probability is 0 or 1
        network.head.bias *= 100
    try:
        sure = task.field_log_odds(trained.last, images)
    finally:
        with torch.no_grad():
            network.head.weight /= 100
            network.head.bias /= 100
    assert (
        np.isfinite(sure).all() and np.corrcoef(sure, found)[0, 1] > 0.99
    )  # bfloat16 rounds such large values
    with pytest.raises(ParameterError, match="3 classes"):
        task.field_log_odds(
            trained.last, replace(images, classes=("control", "amyloid-beta", "other"))
        )


def test_maps_of_each_encoder_at_the_size_of_the_field(s4, images):
    trained = s4[1].result
    rows, titles = task.telling_fields(trained.predictions.where(split="test"), images)
    maps = task.maps_of_fields(trained.last, images, rows)
    assert maps.shape == (len(rows), 2, 32, 32) and len(titles) == len(rows) == 4
    assert [images.table["label"].iloc[row] for row in rows] == ["control"] * 2 + [
        "amyloid-beta"
    ] * 2
    assert all("amyloid-beta" in title for title in titles)


def test_floors_stand_on_the_same_test_fields_and_see_only_what_they_may(images, split):
    made = task.floor_predictions(S4, images, split, seed=0)
    found = {one.table["model"].iloc[0]: one for one in made}
    assert list(found) == [
        "majority class",
        "stain intensity",
        "grey-level baseline",
        "colour means",
        "radial profile",
        "power spectrum",
        "border",
        "photometric together",
        "random weights",
        "well position alone",
        "background alone",
    ]
    for one in found.values():
        assert set(one.table["id"]) == set(split.ids(0, 0, "test"))
    again = task.floor_predictions(S4, images, split, seed=0)[-3]
    np.testing.assert_array_equal(again.probabilities, found["random weights"].probabilities)


def test_stain_intensities_see_no_structure(images):
    draw = np.random.default_rng(1)
    shuffled = draw.permuted(images.pixels.reshape(len(images), 2, -1), axis=2).reshape(
        images.pixels.shape
    )
    pd.testing.assert_frame_equal(
        stain_features(images.pixels, STAINS),
        stain_features(shuffled, STAINS),
        rtol=1e-4,
    )
    wide = stain_features(images.pixels.astype(np.uint16) * 257, STAINS)
    pd.testing.assert_frame_equal(wide, stain_features(images.pixels, STAINS), rtol=1e-4)


@pytest.mark.slow
def test_early_fusion_sees_torn_pairs_and_s4_does_not(tmp_path):
    predicted = task.colocalisation_experiment(
        "small",
        plates=8,
        fields=4,
        epochs=12,
        seed=7,
        data_folder=tmp_path,
        work_folder=tmp_path,
    )
    s4, early, intensity = (accuracy(one) for one in predicted)
    assert early > 0.68 and s4 < early - 0.1 and intensity < early
    assert ", beyond chance" in task.colocalisation_sentence(predicted)
