"""The synapse task: recipes as published, floors on the same folds, networks that come back from a
checkpoint.
"""

from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch

from nbhelpers.core import splits
from nbhelpers.core.errors import CheckpointError, ParameterError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.models.resnet import PretrainedCNN
from nbhelpers.models.synapse_cnn import SynapseCNN
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.studies import synapse_checkpoints as cards
from nbhelpers.studies import synapses2d as task
from nbhelpers.training.augment import DihedralPreparation, Transform
from nbhelpers.training.checkpoints import save_checkpoint
from nbhelpers.training.crossvalidation import Training
from nbhelpers.training.transform import DihedralEvaluation

UNTRAINED = {"random weights": lambda: SynapseCNN(32)}


def textured(count=80, size=32, darker=0, seed=0):
    """Stripes or noise of the same brightness, in eight neurons; ``darker`` takes
    from the stripes."""
    draw = np.random.default_rng(seed)
    label = np.arange(count) % 2
    pixels = draw.integers(60, 190, (count, 1, size, size))
    stripes = np.where(np.arange(size) // 4 % 2, 60, 190)
    pixels[label == 1] = (pixels[label == 1] // 4 + stripes * 3 // 4) - darker
    neuron = np.arange(count) // 2 % 8
    table = pd.DataFrame(
        {
            "id": [f"s{at}" for at in range(count)],
            "label": np.where(label, "striped", "plain"),
            "group": [f"n{at}" for at in neuron],
        }
    )
    return ImageSet(
        "textures", table, pixels.clip(0, 255).astype(np.uint8), ("plain", "striped"), "none", True
    )


def accuracy(predictions):
    return (predictions.predicted_index == predictions.true_index).mean()


def test_the_published_recipes_are_as_published():
    resnet = task.PUBLISHED_RESNET
    cnn = task.PUBLISHED_CNN
    assert (resnet.optimizer, resnet.learning_rate, resnet.schedule) == ("adam", 5e-4, "cosine")
    assert (cnn.optimizer, cnn.learning_rate, cnn.schedule) == ("adam", 2.5e-4, "constant")
    for recipe in (resnet, cnn):
        assert (recipe.epochs, recipe.batch_size) == (30, 32)
        moved = recipe.augmentation
        assert (moved.rotation_degrees, moved.blur_px, moved.brightness, moved.contrast) == (
            10,
            1,
            0.2,
            0.1,
        )
        assert moved.flip_horizontal and moved.flip_vertical and not moved.quarter_turns
        assert (
            recipe.ema_decay
            == recipe.label_smoothing
            == recipe.weight_decay
            == recipe.warmup_fraction
            == 0
        )
        assert recipe.test_time_augmentation == 1


def test_recipes_by_name():
    assert task.recipe("cnn", "ours", epochs=3) == task.OURS_CNN.but(epochs=3)
    assert task.recipe("resnet", "published", input_px=256) == task.PUBLISHED_RESNET
    assert (
        task.recipe("resnet", "ours", pretrained=True).backbone_rate
        < 1
        == task.recipe("resnet").backbone_rate
    )
    with pytest.raises(ParameterError, match="recipe: 'best cnn' is unknown.*published resnet"):
        task.recipe("cnn", "best")
    with pytest.raises(ParameterError, match="epoch"):
        task.recipe("cnn", "ours", epoch=3)


def test_a_learning_rate_of_0_is_that_of_the_recipe():
    assert task.recipe("cnn", "published", learning_rate=0.0).learning_rate == 2.5e-4
    assert task.recipe("cnn", "published", learning_rate=1e-3).learning_rate == 1e-3


def test_the_network_with_the_lower_validation_log_loss_comes_first(capsys):
    def result(*losses):
        choices = pd.DataFrame({"chosen": True, "validation_log_loss": losses})
        return Mock(choices=choices)

    run = Mock(images="patches", record={})
    results = {"ResNet": result(0.3, 0.5), "CNN": result(0.1, 0.6)}
    assert task.best_first(run, results) == ["CNN", "ResNet"]
    assert run.record["validation_log_loss"] == pytest.approx({"ResNet": 0.4, "CNN": 0.35})
    assert "So CNN is the network of the headline" in capsys.readouterr().out
    results["CNN"] = result(0.1, 0.8)
    assert task.best_first(run, results) == ["ResNet", "CNN"]
    assert "So ResNet is the network of the headline" in capsys.readouterr().out


def test_recipes_with_quarter_turns_are_predicted_in_all_symmetries():
    ours = task.transform(task.OURS_CNN)
    published = task.transform(task.PUBLISHED_CNN)
    assert isinstance(ours, DihedralPreparation) and type(published) is Transform
    assert task.OURS_CNN.test_time_augmentation == 8


@pytest.mark.parametrize(("darker", "low", "high"), [(0, 0.0, 0.75), (60, 0.95, 1.0)])
def test_darkness_alone_sees_darkness_and_no_structure(darker, low, high):
    draw = np.random.default_rng(1)
    images = textured(160)
    shuffled = images.pixels.copy()  # the same grey values in every patch, structure or not
    for at, patch in enumerate(shuffled):
        values = np.arange(patch.size) % 128 + 100 - darker * images.labels[at]
        order = np.argsort(patch.ravel() + draw.random(patch.size), kind="stable")
        patch.reshape(-1)[order] = np.sort(values)
    images = ImageSet("textures", images.table, shuffled, images.classes, "none", True)
    split = splits.repeated_cross_validation(images, folds=2, repeats=1, seed=0)
    found = task.floor_predictions(images, split, UNTRAINED, seed=0)
    dark = next(one for one in found if one.table["model"].iloc[0] == "grey-level baseline")
    assert low <= accuracy(dark) <= high


def test_floors_stand_on_the_same_folds():
    images = textured()
    split = splits.repeated_cross_validation(images, folds=2, repeats=1, seed=0)
    torch.manual_seed(0)
    pretended = SynapseCNN(32)
    networks = UNTRAINED | {"ImageNet weights, frozen": lambda: pretended}
    found = task.floor_predictions(images, split, networks, seed=0)
    names = [one.table["model"].iloc[0] for one in found]
    assert names == [
        "majority class",
        "grey-level baseline",
        "radial profile",
        "power spectrum",
        "border",
        "photometric together",
        "random weights",
        "ImageNet weights, frozen",
    ]
    tested = split.table[split.table["part"] == "test"]
    for one in found:
        pd.testing.assert_frame_equal(
            one.table[["id", "fold"]].sort_values("id", ignore_index=True),
            tested[["id", "fold"]].sort_values("id", ignore_index=True),
        )
    assert accuracy(found[0]) == 0.5 and accuracy(found[2]) > 0.9  # stripes are seen by any filters
    again = task.floor_predictions(images, split, UNTRAINED, seed=0)
    assert np.array_equal(again[2].probabilities, found[2].probabilities)


def test_ours_learns_a_texture_by_neuron(tmp_path):
    images = textured(160)
    split = splits.hold_out(images, seed=1, parts_in=4, validation=1, test=1)
    recipe = task.recipe("cnn", epochs=10, batch_size=8, precision="fp32")
    training = Training(
        lambda: SynapseCNN(32, pool="average"),
        [recipe],
        task.transform,
        seed=0,
        work_folder=tmp_path,
        report=None,
    )
    result = training.cross_validate(images, split)
    assert accuracy(result.predictions.where(split="test")) > 0.9


@pytest.mark.parametrize(
    "network", [SynapseCNN(32, pool="average"), PretrainedCNN("squeezenet1_0", grey="one channel")]
)
def test_a_checkpoint_brings_its_recipe_and_preparation_back(tmp_path, network):
    recipe = task.recipe("cnn", input_px=32, epochs=7)
    save_checkpoint(
        tmp_path / "it.safetensors", network, classes=["a", "b"], about={"recipe": recipe.as_dict()}
    )
    again, found, prepare, card = cards.rebuild(tmp_path / "it.safetensors")
    assert found == recipe and isinstance(prepare, DihedralEvaluation) and prepare.input_px == 32
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(again(images), network.eval()(images)) and card["classes"] == ["a", "b"]


def test_other_checkpoints_are_refused(tmp_path):
    path = tmp_path / "it.safetensors"
    save_checkpoint(
        path, TinyCNN(1, 2), classes=["a", "b"], about={"recipe": task.OURS_CNN.as_dict()}
    )
    with pytest.raises(CheckpointError, match="TinyCNN, which is no network for synapse"):
        cards.rebuild(path)
    for about in (
        {},
        {"recipe": {"epochs": 3}},
        {"recipe": task.OURS_CNN.as_dict() | {"unknown": 1}},
    ):
        save_checkpoint(path, SynapseCNN(32), classes=["a", "b"], about=about)
        with pytest.raises(CheckpointError, match="no recipe that this version knows"):
            cards.rebuild(path)


def test_patches_that_trained_a_network_are_known_again_in_any_order_and_under_any_name():
    from nbhelpers.evaluation.floors import majority_class
    from nbhelpers.evaluation.metrics import evaluate

    images = textured(80)
    split = splits.hold_out(images, seed=1, parts_in=4, validation=1, test=1)
    scores = evaluate(majority_class(images, split))
    about = task.about_checkpoint(
        task.recipe("cnn"),
        images,
        split,
        split.ids(0, 0, "train"),
        scores,
        {"floor": scores},
        limits=[],
        seed=0,
    )
    card = {"classes": list(images.classes), "about": about}
    table = images.table.assign(id=[f"other name {at}" for at in range(80)])
    again = ImageSet(
        "the same",
        table.iloc[::-1].reset_index(drop=True),
        images.pixels[::-1].copy(),
        images.classes,
        "",
        True,
    )
    everything = cards.unseen_part(again, "folder", "")
    with pytest.raises(CheckpointError, match="trained on .* of the 80 patches"):
        cards.check_fits(card, again, "net", everything)
    unseen = images.take(images.positions(split.ids(0, 0, "test")))
    cards.check_fits(card, unseen, "net", cards.unseen_part(unseen, "folder", ""))
    real = {"classes": list(images.classes), "about": about | {"synthetic": False}}
    with pytest.raises(CheckpointError, match="synthetic ones say nothing"):
        cards.check_fits(real, unseen, "net", cards.unseen_part(unseen, "folder", ""))
