"""Training: finds injected truth, gives the same twice, and goes on after a kill as if nothing had
been.
"""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nbhelpers.core import splits
from nbhelpers.core.errors import InputError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.training.augment import Transform
from nbhelpers.training.augment3d import CubePreparation
from nbhelpers.training.crossvalidation import Training
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import ProgressLines, train

RECIPE = Recipe(
    epochs=6,
    batch_size=16,
    learning_rate=3e-3,
    ema_decay=0.9,
    warmup_fraction=0.1,
    augmentation=Augmentation(rotation_degrees=10, flip_horizontal=True),
)


def bright_or_dark(count=64, seed=0, dtype=np.uint8, channels=1, depth=None):
    """Two classes that differ in brightness: easy, so that a network which learns at all gets them
    right.
    """
    draw = np.random.default_rng(seed)
    label = np.arange(count) % 2
    shape = (count, channels, *([depth] if depth else []), 24, 24)
    pixels = draw.integers(0, 120, shape) + 100 * label.reshape(-1, *[1] * (len(shape) - 1))
    pixels = (pixels * (257 if dtype == np.uint16 else 1)).astype(dtype)
    table = pd.DataFrame(
        {
            "id": [f"i{index}" for index in range(count)],
            "label": np.where(label, "bright", "dark"),
            "group": [f"g{index}" for index in range(count)],
        }
    )
    return ImageSet(
        "bright or dark",
        table,
        pixels,
        ("bright", "dark"),
        "none",
        True,
        channels=tuple(f"c{index}" for index in range(channels)),
    )


def run(folder, images=None, recipe=RECIPE, report=None, seed=5):
    images = images or bright_or_dark()
    return train(
        lambda: TinyCNN(images.pixels.shape[1], 2),
        images,
        (images.ids[:40], images.ids[40:]),
        recipe,
        transform=Transform(recipe.augmentation, recipe.input_px),
        seed=seed,
        work_folder=folder,
        callbacks=[ProgressLines(recipe.epochs, report)] if report else [],
    )


def weights(trained):
    return {name: value.clone() for name, value in trained.network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint16, 4), (np.uint8, 5)])
def test_it_finds_a_injected_difference(tmp_path, dtype, channels):
    images = bright_or_dark(dtype=dtype, channels=channels)
    trained = run(tmp_path, images, RECIPE.but(epochs=12, ema_decay=0.0))
    test = bright_or_dark(seed=9, dtype=dtype, channels=channels)
    probabilities = predict_probabilities(
        trained.network, test.pixels, Transform(RECIPE.augmentation)
    )
    assert probabilities.shape == (64, 2) and np.allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == test.labels).mean() > 0.95


class Small3D(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        )

    def forward(self, volumes):
        return self.body(volumes)


class AsTheyAre:
    """A transform for volumes: the trainer asks for nothing but these two."""

    def train(self, pixels, seed):
        return pixels.float() / 255

    def evaluate(self, pixels, view=0):
        return pixels.float() / 255


def test_volumes_go_through_the_same_trainer(tmp_path):
    images = bright_or_dark(depth=6)
    trained = train(
        Small3D,
        images,
        (images.ids[:40], images.ids[40:]),
        RECIPE.but(epochs=25, learning_rate=0.03),
        transform=AsTheyAre(),
        seed=1,
        work_folder=tmp_path,
    )
    assert trained.score > 0.9


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    first = run(tmp_path / "a")
    second = run(tmp_path / "b")
    other = run(tmp_path / "c", seed=6)
    assert same(weights(first), weights(second)) and not same(weights(first), weights(other))


@pytest.fixture(autouse=True)
def resume_points_after_every_epoch(monkeypatch):
    from nbhelpers.training import trainer

    monkeypatch.setattr(trainer, "RESUME_SECONDS", 0.0)


class Killed(BaseException):
    """Not an Exception: nothing may catch it on the way, as nothing catches SIGKILL."""


@pytest.mark.parametrize("stop_after", [1, 3, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema_decay": 0.0, "keep": "last"},
        {"schedule": "plateau", "optimizer": "adam", "early_stopping_patience": 3},
        {"schedule": "plateau", "plateau_patience": 1, "learning_rate": 0.1},
    ],
)
def test_a_resumed_training_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path, stop_after, changes
):
    recipe = RECIPE.but(**changes)
    calls = []

    def stop(line):
        calls.append(line)
        if len(calls) == stop_after:
            raise Killed

    whole = run(tmp_path / "whole", recipe=recipe)
    try:
        run(tmp_path / "killed", recipe=recipe, report=stop)
    except Killed:
        assert not (tmp_path / "killed" / "training.json").exists()
    np.random.seed(123)  # whatever state the new process has, it must not matter
    torch.manual_seed(123)
    resumed = run(tmp_path / "killed", recipe=recipe)
    assert same(weights(whole), weights(resumed)) and whole.epoch == resumed.epoch
    pd.testing.assert_frame_equal(whole.history, resumed.history)


KILL_AT = ["before resume", "after resume", "after best", "after the last epoch"]


@pytest.mark.parametrize("at", KILL_AT)
@pytest.mark.parametrize(
    "changes",
    [
        {"keep": "last"},
        {"select_by": "loss"},
        {"early_stopping_patience": 2, "select_by": "loss"},
        {"early_stopping_patience": 2, "select_by": "loss", "keep": "last", "ema_decay": 0.0},
    ],
)
def test_a_kill_between_two_files_changes_nothing(tmp_path, monkeypatch, at, changes):
    """The moments that are too short to be hit by chance: around each file that training writes."""
    import lightning

    from nbhelpers.training import trainer as module

    recipe = RECIPE.but(learning_rate=0.02, **changes)
    whole = run(tmp_path / "whole", recipe=recipe)
    save = lightning.Trainer.save_checkpoint
    calls = []

    def saving(self, path, *arguments, **named):
        resume = str(path).endswith("resume.ckpt")
        calls.append(resume)
        if at == "before resume" and resume and len(calls) > 3:
            raise Killed
        save(self, path, *arguments, **named)
        if len(calls) > 3 and (at, resume) in (("after resume", True), ("after best", False)):
            raise Killed

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", saving)
    if at == "after the last epoch":
        monkeypatch.setattr(
            module, "save_checkpoint", lambda *arguments, **named: (_ for _ in ()).throw(Killed())
        )
    try:
        run(tmp_path / "killed", recipe=recipe)
    except Killed:
        assert not (tmp_path / "killed" / "training.json").exists()
    monkeypatch.undo()
    resumed = run(tmp_path / "killed", recipe=recipe)
    assert (
        same(weights(whole), weights(resumed))
        and whole.epoch == resumed.epoch
        and whole.score == resumed.score
    )
    pd.testing.assert_frame_equal(whole.history, resumed.history)


def test_the_score_of_the_best_epoch_is_that_of_the_weights_that_are_kept(tmp_path):
    """With averaging, the score is measured on the averaged weights, so these are
    the ones to keep."""
    images = bright_or_dark()
    recipe = RECIPE.but(select_by="loss", precision="fp32")
    trained = run(tmp_path, images, recipe)
    rows = images.positions(images.ids[40:])
    probabilities = predict_probabilities(
        trained.network, images.pixels[rows], Transform(recipe.augmentation), precision="fp32"
    )
    loss = -np.log(probabilities[np.arange(len(rows)), images.labels[rows]]).mean()
    assert loss == pytest.approx(trained.score, abs=1e-5)


def test_a_plateau_schedule_works_without_validation_images(tmp_path):
    images = bright_or_dark()
    recipe = RECIPE.but(schedule="plateau", keep="last", epochs=2)
    trained = train(
        lambda: TinyCNN(1, 2),
        images,
        (images.ids, images.ids[:0]),
        recipe,
        seed=1,
        work_folder=tmp_path,
        transform=Transform(recipe.augmentation),
    )
    assert trained.epoch == 2 and trained.score is None


@pytest.mark.parametrize("shape", [(48, 48), (48, 144), (96, 48)])
def test_a_turned_square_stays_a_square_in_images_of_any_shape(shape):
    pixels = torch.zeros(1, 1, *shape, dtype=torch.uint8)
    middle = [side // 2 for side in shape]
    pixels[0, 0, middle[0] - 10 : middle[0] + 10, middle[1] - 10 : middle[1] + 10] = 255
    angles = set()
    for seed in range(5):
        turned = Transform(Augmentation(rotation_degrees=45)).train(pixels, seed)[0, 0]
        at = torch.nonzero(turned > 0.5).double()
        spread = torch.linalg.eigvalsh(torch.cov((at - at.mean(0)).T))
        assert spread[1] / spread[0] < 1.15 and abs(float(turned.sum()) - 400) < 25
        angles.add(round(float(turned.std()), 5))
    assert len(angles) > 1


def test_images_that_are_no_squares_are_not_squashed():
    with pytest.raises(InputError, match="20 x 30 px.*Crop or pad"):
        Transform(Augmentation(), 16).evaluate(torch.zeros(1, 1, 20, 30, dtype=torch.uint8))


def test_a_finished_training_is_read_and_not_repeated(tmp_path):
    lines = []
    first = run(tmp_path, report=lines.append)
    said = len(lines)
    again = run(tmp_path, report=lines.append)
    assert said and len(lines) == said and same(weights(first), weights(again))
    assert not list(tmp_path.glob("*.ckpt"))


def test_the_best_epoch_is_chosen_on_validation(tmp_path):
    trained = run(tmp_path, recipe=RECIPE.but(select_by="loss"))
    history = trained.history.set_index("epoch")["validation_loss"]
    assert trained.epoch == history.idxmin() and trained.score == pytest.approx(
        history.min(), abs=1e-6
    )


def test_a_recipe_without_augmentation_still_shuffles_but_leaves_images_alone():
    pixels = torch.from_numpy(bright_or_dark().pixels)
    plain = Transform(Augmentation())
    assert torch.allclose(plain.train(pixels, 1), plain.evaluate(pixels), atol=1e-5)


def test_augmentation_changes_training_images_and_not_evaluation_ones():
    pixels = torch.from_numpy(bright_or_dark().pixels)
    strong = Transform(
        Augmentation(rotation_degrees=20, scale=0.2, shift=0.1, shear=0.1, flip_horizontal=True)
    )
    one = strong.train(pixels, 1)
    two = strong.train(pixels, 2)
    again = strong.train(pixels, 1)
    assert torch.equal(one, again)
    changed = (one - two).abs().flatten(1).max(1).values
    assert (changed > 0.02).all()  # every image of the batch, not the batch as a whole
    assert (one - strong.evaluate(pixels)).abs().flatten(1).max(1).values.gt(0.02).all()
    assert torch.equal(strong.evaluate(pixels), strong.evaluate(pixels))
    assert torch.allclose(
        strong.evaluate(pixels), pixels.float() / 255, atol=1e-5
    )  # full size: as stored


def test_each_image_of_a_batch_is_moved_differently():
    pixels = torch.from_numpy(np.repeat(bright_or_dark(1).pixels, 8, 0))
    moved = Transform(Augmentation(rotation_degrees=20)).train(pixels, 3)
    assert len({tuple(image.flatten().tolist()) for image in moved}) == 8


def test_the_second_view_is_the_mirror_image():
    pixels = torch.from_numpy(bright_or_dark(4).pixels)
    transform = Transform(Augmentation(rotation_degrees=10))
    assert torch.allclose(
        transform.evaluate(pixels, 1), transform.evaluate(pixels).flip(3), atol=1e-5
    )


def test_uint16_and_uint8_of_the_same_image_look_the_same_to_the_network():
    eight = bright_or_dark().pixels
    sixteen = eight.astype(np.uint16) * 257
    transform = Transform(Augmentation())
    assert torch.allclose(
        transform.evaluate(torch.from_numpy(eight)),
        transform.evaluate(torch.from_numpy(sixteen)),
        atol=1e-6,
    )


def test_images_without_labels_cannot_be_trained_on(tmp_path):
    images = bright_or_dark()
    table = images.table.copy()
    table.loc[3, "label"] = None
    with pytest.raises(InputError, match="1 train images have no label"):
        run(tmp_path, ImageSet("x", table, images.pixels, images.classes, "none", True))


def test_cross_validation_predicts_every_image_once_and_resumes(tmp_path):
    images = bright_or_dark(40)
    split = splits.repeated_cross_validation(images, folds=3, repeats=1, seed=0)
    recipes = [RECIPE.but(name="short", epochs=2), RECIPE.but(name="long", epochs=8)]

    def go(folder, report=None):
        training = Training(
            lambda: TinyCNN(1, 2),
            recipes,
            lambda recipe: Transform(recipe.augmentation),
            seed=1,
            work_folder=folder,
            model="TinyCNN",
            retrain=True,
            report=report,
        )
        return training.cross_validate(images, split)

    whole = go(tmp_path / "whole")
    assert sorted(whole.predictions.where(split="test").table["id"]) == sorted(images.ids)
    assert (
        whole.choices.groupby(["repeat", "fold"])["chosen"].sum().eq(1).all()
        and len(whole.choices) == 6
    )
    best = whole.choices.loc[whole.choices["chosen"], "validation_log_loss"].mean()
    assert best <= whole.choices.groupby("recipe")["validation_log_loss"].mean().min() + 1e-12

    def stop(line):
        raise Killed

    with pytest.raises(Killed):
        go(tmp_path / "killed", stop)
    resumed = go(tmp_path / "killed")
    pd.testing.assert_frame_equal(whole.predictions.table, resumed.predictions.table)


def test_another_start_tests_the_recipe_that_was_chosen_on_the_same_folds(tmp_path):
    images = bright_or_dark(40)
    split = splits.repeated_cross_validation(images, folds=2, repeats=1, seed=0)
    recipes = [
        RECIPE.but(name="useless", epochs=1, learning_rate=1e-9),
        RECIPE.but(name="useful", epochs=4),
    ]
    seen = []

    def prepare(recipe):
        seen.append(recipe.name)
        return Transform(recipe.augmentation)

    training = Training(
        lambda: TinyCNN(1, 2),
        recipes,
        prepare,
        seed=1,
        work_folder=tmp_path,
        retrain=True,
        report=None,
    )
    first = training.but(model="first").cross_validate(images, split)
    assert set(first.choices.loc[first.choices["chosen"], "recipe"]) == {"useful"}
    seen.clear()
    others = [
        training.but(model=f"start {member}").again(first, images, split, member)
        for member in (1, 2, 1)
    ]
    assert set(seen) == {"useful"}  # nothing is chosen anew
    one = first.predictions.where(split="test")
    assert all(other.table["id"].tolist() == one.table["id"].tolist() for other in others)
    assert np.array_equal(others[0].probabilities, others[2].probabilities)
    assert not np.allclose(others[0].probabilities, others[1].probabilities)
    assert not np.allclose(others[0].probabilities, one.probabilities)
    mean = Predictions.mean([one, *others[:2]], "mean")
    expected = np.mean([part.where(id="i7").probabilities for part in (one, *others[:2])], axis=0)
    assert np.allclose(mean.where(id="i7").probabilities, expected) and set(
        mean.table["model"]
    ) == {"mean"}
    assert (mean.predicted_index == mean.probabilities.argmax(1)).all()


def test_a_work_folder_of_other_images_is_not_taken_for_these(tmp_path):
    recipe = [RECIPE.but(name="r", epochs=2)]
    results = []
    for seed in (0, 1):
        images = bright_or_dark(40, seed=seed)
        split = splits.repeated_cross_validation(images, folds=2, repeats=1, seed=0)
        training = Training(
            lambda: TinyCNN(1, 2),
            recipe,
            lambda one: Transform(one.augmentation),
            seed=1,
            work_folder=tmp_path,
            report=None,
        )
        results.append(training.cross_validate(images, split))
    assert not np.allclose(
        results[0].predictions.probabilities, results[1].predictions.probabilities
    )


def test_the_finished_record_is_json(tmp_path):
    run(tmp_path)
    about = json.loads((tmp_path / "training.json").read_text())
    assert len(about["history"]) == 6 and 1 <= about["epoch"] <= 6


class Breaking(nn.Module):
    """Learns, until at one step or in evaluation its scores are ``value``."""

    def __init__(self, value, at=None):
        super().__init__()
        self.body = TinyCNN(1, 2)
        self.value = value
        self.at = at
        self.calls = 0

    def forward(self, images):
        self.calls += self.training
        wrong = self.calls == self.at if self.training else self.at is None
        return self.body(images) * (self.value if wrong else 1.0)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (4, r"training, epoch 2, step 2: the loss is nan at a learning rate of 0\.\d+.*tenth"),
        (None, "training, epoch 1, validation: the loss is nan"),
    ],
)
@pytest.mark.parametrize("depth", [None, 4])
def test_a_loss_that_is_not_finite_stops_training_at_once(tmp_path, at, words, depth):
    images = bright_or_dark(depth=depth)
    network = Breaking(float("nan"), at)
    if depth:
        network.body = nn.Sequential(nn.AdaptiveAvgPool3d(4), nn.Flatten(), nn.Linear(64, 2))
    recipe = Recipe(epochs=6, batch_size=16, learning_rate=3e-3)
    prepare = CubePreparation if depth else Transform
    with pytest.raises(InputError, match=words):
        train(
            lambda: network,
            images,
            (images.ids[:40], images.ids[40:]),
            recipe,
            transform=prepare(recipe.augmentation),
            seed=0,
            work_folder=tmp_path,
        )
    assert network.calls == (at or 2)
    assert not (tmp_path / "network.safetensors").exists()


def test_a_rate_that_is_far_too_high_ends_in_words_and_not_in_a_model(tmp_path):
    recipe = Recipe(
        epochs=6, batch_size=16, learning_rate=10.0, optimizer="sgd", schedule="constant"
    )
    images = bright_or_dark()
    ids = (images.ids, images.ids[:0])

    def linear():
        return nn.Sequential(nn.Flatten(), nn.Linear(576, 64), nn.Linear(64, 2))

    with pytest.raises(InputError, match="the loss is (nan|inf) at a learning rate of 10, so"):
        train(
            linear,
            images,
            ids,
            recipe,
            transform=Transform(recipe.augmentation, 0),
            seed=0,
            work_folder=tmp_path,
        )
    assert not (tmp_path / "network.safetensors").exists()
