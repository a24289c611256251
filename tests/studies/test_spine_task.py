"""The spine task: recipes, floors on the same folds, and predictions for new masks with their
warnings.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nbhelpers.core import splits
from nbhelpers.core.errors import InputError
from nbhelpers.imagesets import spines
from nbhelpers.imagesets import windows as cut
from nbhelpers.imagesets.ghani import load_ghani_spines
from nbhelpers.inference.new_images import evaluation_table
from nbhelpers.inference.reference import fit_reference
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.phantoms.spine import load_phantom_spines
from nbhelpers.studies import spines as task
from nbhelpers.training.crossvalidation import Training
from nbhelpers.training.trainer import Trained


@pytest.fixture(scope="module")
def images():
    return load_phantom_spines(60, 3)


def make_training(channels, recipe, **more) -> Training:
    given = {"seed": 0, "work_folder": "work", **more}
    return Training(lambda: TinyCNN(channels, 3), [recipe], task.transform(channels), **given)


def test_the_published_recipe_is_as_published():
    (recipe,) = task.recipes("published")
    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size, recipe.epochs) == (
        "adam",
        8e-4,
        32,
        100,
    )
    assert (
        recipe.label_smoothing == recipe.ema_decay == recipe.weight_decay == 0
        and recipe.input_px == 0
    )
    assert recipe.augmentation.rotation_degrees == 10 and recipe.augmentation.flip_horizontal


def test_of_the_published_recipe_only_the_epochs_change():
    (changed,) = task.recipes(
        "published", "both", epochs=3, batch_size=16, learning_rate=2e-3, input_px=64
    )
    assert changed == task.PUBLISHED.but(epochs=3)


def test_recipes_by_name():
    assert [recipe.name for recipe in task.recipes("grouped", "both", epochs=3)] == [
        "gentle",
        "strong",
    ]
    assert [recipe.epochs for recipe in task.recipes("grouped", "strong", epochs=3)] == [3]


def test_softened_windows_keep_the_foreground_and_have_their_own_hash(images):
    windows = cut.windows(images, "grouped", 64)
    assert windows.pixels.shape == (60, 1, 160, 160) and windows.pixels.dtype == np.uint8
    plain = cut.centred(images, 160)
    hashes = {
        images.content_hash,
        windows.content_hash,
        plain.content_hash,
        cut.centred(images, 150).content_hash,
        cut.windows(images, "grouped", 32).content_hash,
    }
    assert (
        len(hashes) == 5 and cut.windows(images, "grouped", 64).content_hash == windows.content_hash
    )
    assert (
        np.abs((windows.pixels > 127).mean((1, 2, 3)) - (plain.pixels > 127).mean((1, 2, 3))).max()
        < 0.01
    )
    assert cut.windows(images, "published", 64) is images


@pytest.mark.parametrize("channels", [1, 3])
def test_floors_stand_on_the_same_folds(images, channels):
    split = splits.repeated_cross_validation(images, folds=3, repeats=1, seed=0)
    training = make_training(channels, task.GENTLE.but(input_px=32))
    windows = cut.windows(images, "grouped", 32)
    found = task.floor_predictions(images, windows, split, training)
    names = [rival.table["model"].iloc[0] for rival in found]
    photometric = ["radial profile", "power spectrum", "border", "photometric together"]
    networks = ["random weights", "shape features + SVM"]
    assert names == ["majority class", "grey-level baseline", *photometric, *networks]
    assert all(sorted(rival.table["id"]) == sorted(images.ids) for rival in found)
    accuracy = {
        name: (rival.predicted_index == rival.true_index).mean()
        for name, rival in zip(names, found, strict=True)
    }
    assert accuracy["shape features + SVM"] > accuracy["majority class"] + 0.1


def test_new_masks_are_predicted_and_unusable_files_get_no_prediction(images, tmp_path):
    recipe = task.GENTLE.but(epochs=12, batch_size=8, input_px=32)
    windows = cut.windows(images, "grouped", 32)
    training = make_training(1, recipe, seed=1, work_folder=tmp_path / "work")
    trained = training.on_everything(windows, recipe)
    folder = spines.write_example_masks(tmp_path / "new", 8, 99)
    square = np.zeros((250, 250), np.uint8)
    square[5:245:4, 20:230] = 255  # a comb of sixty stripes: no spine
    square[5:245, 20:24] = 255
    Image.fromarray(square).save(folder / "stripes <b>.png")
    new = spines.load_unlabelled_spines(folder, tmp_path / "data", images.classes)
    posed, scale = task.one_pose(images, "grouped", "upright", 0.0)
    keep_networks(tmp_path, [trained], posed, scale)
    about = {"protocol": "grouped", "confidence": 0.6, "scale": scale}
    shown, table = task.predict_new(training, [trained], tmp_path, new, **about)
    assert shown.ids.tolist() == new.ids.tolist() and (shown.pixels != new.pixels).any()
    assert set(table["pose_uncertain"].dropna()) <= {True, False}
    added = ["turned_degree", "pose_uncertain", "other_scale", "problem"]
    assert [name for name in table.columns if name != "warning"][-4:] == added
    assert len(table) == 11 and set(table["name"]) == {
        f"spine_{index:02d}.png" for index in range(1, 9)
    } | {"stripes <b>.png", "all_black.png", "cut_short.png"}
    usable = table[table["problem"] == ""]
    probabilities = usable[[f"probability {name}" for name in images.classes]].to_numpy(float)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (usable["low_confidence"].astype(bool) == (probabilities.max(1) < 0.6)).all()
    flagged = usable.set_index("name")["out_of_distribution"].astype(bool)
    assert flagged["stripes <b>.png"] and flagged.drop("stripes <b>.png").mean() < 0.4
    refused = table[table["problem"] != ""].set_index("name")
    assert (
        refused["predicted"].isna().all() and "constant" in refused.loc["all_black.png", "problem"]
    )


def keep_networks(folder, networks, images, scale=None):
    split = splits.repeated_cross_validation(images, folds=2, repeats=1, seed=0)
    scores = {"accuracy": 0.5, "macro_f1": 0.5}
    task.save_networks(folder, networks, images, split, scores, scale)


def untrained(recipe) -> Trained:
    return Trained(TinyCNN(1, 3), pd.DataFrame(), 0, None, recipe, Path("nowhere"))


def test_winner_is_the_recipe_that_was_chosen_most_often():
    recipes = task.recipes("grouped", "both")
    choices = pd.DataFrame(
        {"recipe": ["gentle", "strong"] * 3, "chosen": [False, True, True, False, False, True]}
    )
    assert task.winner(recipes, choices).name == "strong"


def test_of_several_networks_new_masks_get_the_mean(images, tmp_path):
    recipe = task.GENTLE.but(input_px=16, test_time_augmentation=1)
    training = make_training(1, recipe)
    folder = spines.write_example_masks(tmp_path / "new", 4, 3)
    new = spines.load_unlabelled_spines(folder, tmp_path / "data", images.classes)
    networks = [untrained(recipe), untrained(recipe)]

    def probabilities(some):
        keep_networks(tmp_path, some, images)
        _, table = task.predict_new(
            training, some, tmp_path, new, protocol="grouped", confidence=0.5
        )
        return table.loc[
            table["problem"] == "", [f"probability {name}" for name in images.classes]
        ].to_numpy(float)

    one = probabilities(networks[:1])
    other = probabilities(networks[1:])
    both = probabilities(networks)
    assert not np.allclose(one, other) and np.allclose(both, (one + other) / 2)


def test_without_any_usable_new_image_the_table_lists_the_reasons(images, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_bytes(b"")
    new = spines.load_unlabelled_spines(tmp_path / "new", tmp_path / "data", images.classes)
    training = make_training(1, task.GENTLE)
    final = [untrained(task.GENTLE)]
    _, table = task.predict_new(training, final, tmp_path, new, protocol="grouped", confidence=0.5)
    assert table["name"].tolist() == ["a.png"] and "empty" in table["problem"].iloc[0]


def test_familiarity_flags_the_far_and_not_the_near():
    draw = np.random.default_rng(0)
    usual = fit_reference(draw.normal(size=(300, 5)))
    assert usual.unlike(draw.normal(size=(200, 5))).mean() < 0.06
    assert usual.unlike(draw.normal(size=(20, 5)) + 8).all()
    with pytest.raises(InputError, match="only 5"):
        fit_reference(np.zeros((5, 2)))


def test_with_too_few_training_images_what_is_unusual_is_unknown():
    table = evaluation_table(
        ["a"],
        np.array([[0.9, 0.1]]),
        ("x", "y"),
        None,
        confidence=0.5,
        failures=pd.DataFrame(columns=["file", "why", "fix"]),
    )
    assert table["out_of_distribution"].tolist() == ["unknown"] and table["predicted"].tolist() == [
        "x"
    ]


def test_an_evaluation_table_without_any_usable_image():
    failures = pd.DataFrame({"file": ["a.png"], "why": ["it is empty."], "fix": ["Copy it."]})
    table = evaluation_table(
        [], np.zeros((0, 2)), ("x", "y"), np.zeros(0), confidence=0.5, failures=failures
    )
    assert (
        table["problem"].tolist() == ["it is empty. Copy it."] and table["predicted"].isna().all()
    )


@pytest.mark.realdata
@pytest.mark.slow
def test_tinycnn_beats_the_majority_on_the_real_masks(real_data, tmp_path):
    """A short training on the public masks: far from the full recipe, and still far above always
    saying Mushroom.
    """
    from nbhelpers.training.forward import predict_probabilities
    from nbhelpers.training.trainer import train

    real = load_ghani_spines(tmp_path, data_dir=real_data("spines_ghani"))
    split = splits.repeated_cross_validation(real, folds=5, repeats=1, seed=0)
    recipe = task.GENTLE.but(epochs=6, input_px=48, batch_size=16)
    windows = cut.windows(real, "grouped", 48)
    trained = train(
        lambda: TinyCNN(1, 3),
        windows,
        (split.ids(0, 0, "train"), split.ids(0, 0, "validation")),
        recipe,
        transform=task.transform(1)(recipe),
        seed=0,
        work_folder=tmp_path / "work",
    )
    rows = real.positions(split.ids(0, 0, "test"))
    torch.manual_seed(0)
    predicted = predict_probabilities(
        trained.network, windows.pixels[rows], task.transform(1)(recipe)
    ).argmax(1)
    assert (predicted == real.labels[rows]).mean() > 0.75  # majority: .63
