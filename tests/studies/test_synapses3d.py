"""The 3D synapse task: recipes, controls that take the structure away, floors on the same folds,
and ablations.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core import splits
from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.imageset import ImageSet, failure_table
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.inference.new_images import OutOfDistribution, flags
from nbhelpers.models.unet3d import UNet3D
from nbhelpers.models.video3d import BACKBONES_3D
from nbhelpers.studies import synapses3d as task
from nbhelpers.training.augment3d import CubePreparation
from nbhelpers.training.checkpoints import read_card
from nbhelpers.training.crossvalidation import CrossValidated, Training
from nbhelpers.training.recipe import Augmentation

DEPTH = 8
SIDE = 16
SEED = 3
FLIPS = Augmentation(flip_horizontal=True, flip_vertical=True, flip_depth=True, quarter_turns=True)


def ordered(count=96, seed=0):
    """Half of the sections are bright; in "runs" they follow one another, in "mixed" they
    alternate. 16 neurons.
    """
    draw = np.random.default_rng(seed)
    label = np.arange(count) % 2
    pixels = draw.integers(60, 120, (count, 1, DEPTH, SIDE, SIDE))
    for at in range(count):
        bright = np.arange(DEPTH) < DEPTH // 2 if label[at] == 0 else np.arange(DEPTH) % 2 == 0
        pixels[at, 0, np.roll(bright, draw.integers(DEPTH))] += 90
    table = pd.DataFrame(
        {
            "id": [f"s{at}" for at in range(count)],
            "label": np.where(label, "mixed", "runs"),
            "group": [f"n{at}" for at in np.arange(count) % 16],
        }
    )
    return ImageSet(
        "orders",
        table,
        pixels.astype(np.uint8),
        ("runs", "mixed"),
        "none",
        True,
        pixel_size_nm=(40.0, 20.0, 20.0),
    )


def accuracy(predictions):
    return float((predictions.predicted_index == predictions.true_index).mean())


@pytest.fixture(scope="module")
def images():
    return ordered()


@pytest.fixture(scope="module")
def split(images):
    return splits.hold_out(images, seed=1, parts_in=4, validation=1, test=1)


RECIPE = task.recipe(
    "unet3d",
    epochs=4,
    batch_size=8,
    learning_rate=5e-3,
    mix="none",
    ema_decay=0.9,
    augmentation=FLIPS,
    precision="fp32",
)


def network(classes=2):
    return UNet3D(classes, shape=(DEPTH, SIDE, SIDE), voxel_nm=(40, 20, 20), width=0.25)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return Training(
        network,
        [RECIPE],
        task.transform,
        seed=SEED,
        work_folder=folder,
        model="unet3d",
        report=None,
    )


@pytest.fixture(scope="module")
def result(images, split, training):
    return training.cross_validate(images, split)


# ---- recipes and networks


@pytest.mark.parametrize("backbone", BACKBONES_3D)
def test_every_backbone_has_a_recipe_and_a_network_for_the_cubes(images, backbone):
    found = task.recipe(backbone, input_px=16, epochs=3)
    assert (
        found.epochs == 3 and found.test_time_augmentation == 8 and found.augmentation.quarter_turns
    )
    made = task.make_network(backbone, images, input_px=0, width=0.125)
    cubes = task.transform(found).evaluate(torch.from_numpy(images.pixels[:2]))
    assert made(cubes).shape == (2, 2)
    assert task.recipe(backbone, pretrained=True).backbone_rate < 1


def test_unknown_backbones_and_fields_are_named():
    with pytest.raises(ParameterError, match="'resnet'.*unet3d"):
        task.recipe("resnet")
    with pytest.raises(ParameterError, match="epoch"):
        task.recipe("unet3d", epoch=3)
    with pytest.raises(ParameterError, match="augment.*'much'.*light, full"):
        task.recipe("unet3d", augment="much")
    light = task.recipe("unet3d", augment="light").augmentation
    full = task.recipe("unet3d", augment="full").augmentation
    assert full.elastic_px > 0 == light.elastic_px
    own = task.recipe("unet3d").learning_rate
    assert task.recipe("unet3d", learning_rate=0.0).learning_rate == own > 0
    assert task.recipe("unet3d", learning_rate=0.5).learning_rate == 0.5


def test_a_network_knows_the_voxels_that_it_sees(images):
    assert task.shape_seen(images, 8) == ((8, 8, 8), (40.0, 40.0, 40.0))
    assert task.shape_seen(images, 0) == ((8, 16, 16), (40.0, 20.0, 20.0))
    unknown = ImageSet("c", images.table, images.pixels, images.classes, "", True)
    assert task.shape_seen(unknown, 8) == ((8, 8, 8), None)


def test_volumes_smaller_than_the_network_are_refused(images):
    with pytest.raises(InputError, match="too small for this network.*smallest allowed"):
        task.make_network("unet3d", images, input_px=8)


# ---- controls


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_shuffling_keeps_every_section_and_nothing_else(seed, count, depth):
    cubes = torch.randint(0, 255, (count, 1, depth, 4, 4), dtype=torch.uint8)
    mixed = task._shuffled(cubes, seed)
    assert torch.equal(mixed, task._shuffled(cubes, seed))
    for before, after in zip(cubes[:, 0], mixed[:, 0], strict=True):
        assert sorted(one.flatten().tolist() for one in before) == sorted(
            one.flatten().tolist() for one in after
        )


def test_cubes_of_a_batch_are_shuffled_each_in_its_own_way():
    cubes = torch.arange(12, dtype=torch.uint8).view(1, 1, 12, 1, 1).expand(20, 1, 12, 8, 8)
    look = task.ShuffledSections(Augmentation())
    for mixed in (look.train(cubes, 1), look.evaluate(cubes)):
        orders = {tuple(row) for row in (mixed[:, 0, :, 0, 0] * 255).round().int().tolist()}
        assert len(orders) > 15
    assert not torch.equal(look.train(cubes, 1), look.train(cubes, 2))


def test_single_sections_are_sections_of_their_cube(images):
    cubes = torch.from_numpy(images.pixels[:6])
    whole = CubePreparation(Augmentation()).evaluate(cubes)
    look = task.SingleSections(Augmentation())
    for view in (0, 5, 8):
        assert torch.equal(look.evaluate(cubes, view), whole[:, :, view % DEPTH])
    assert torch.equal(task.SingleSections(Augmentation(), only=3).evaluate(cubes), whole[:, :, 3])
    drawn = look.train(cubes, 4)
    assert drawn.shape == (6, 1, SIDE, SIDE)
    assert all(
        any(torch.equal(one, section) for section in cube[0].unbind(0))
        for one, cube in zip(drawn[:, 0], whole, strict=True)
    )
    assert not torch.equal(look.train(cubes, 4), look.train(cubes, 5))


def test_the_order_is_learnt_and_shuffled_sections_are_chance(images, split, training, result):
    assert accuracy(result.predictions.where(split="test")) > 0.9
    again = training.but(model="shuffled").predict_again(
        images, split, task.shuffled(RECIPE), test_time_augmentation=8
    )
    assert abs(accuracy(again) - 0.5) < 0.3 and len(again) == 24
    blind = task.shuffled_predictions(training, images, split)
    assert abs(accuracy(blind) - 0.5) < 0.3


def test_a_kept_network_predicts_the_same_again(images, split, training, result):
    again = training.predict_again(images, split, task.transform(RECIPE), test_time_augmentation=8)
    assert np.allclose(
        again.probabilities, result.predictions.where(split="test").probabilities, atol=1e-6
    )


def test_with_retrain_the_test_part_is_predicted_by_the_network_that_saw_validation_too(
    images, split, training, tmp_path
):
    recipe = RECIPE.but(epochs=1)
    other = training.but(recipes=[recipe], work_folder=tmp_path, retrain=True)
    result = other.cross_validate(images, split)
    trainings = sorted(path.name for path in tmp_path.iterdir())
    again = other.predict_again(
        images,
        split,
        task.transform(recipe),
        test_time_augmentation=8,
        parts=("validation", "test"),
    )
    assert (
        sorted(path.name for path in tmp_path.iterdir()) == trainings and len(trainings) == 2
    )  # read, not trained
    assert np.allclose(again.probabilities, result.predictions.probabilities, atol=1e-6)


# ---- floors, thresholds, ablations


def test_floors_stand_on_the_same_cubes_and_see_no_order(images, split, training):
    short = training.but(recipes=[RECIPE.but(epochs=2)])
    found = [
        *task.floor_predictions(training, images, split, network),
        *task.section_predictions(short, images, split),
    ]
    assert [one.table["model"].iloc[0] for one in found] == [
        "majority class",
        "grey-level baseline",
        "radial profile",
        "power spectrum",
        "border",
        "neighbouring sections",
        "photometric together",
        "random weights",
        "best single section",
        "sections one by one",
    ]
    tested = set(split.ids(0, 0, "test"))
    assert all(
        set(one.table["id"]) == tested and set(one.table["split"]) == {"test"} for one in found
    )
    blind = [*found[:5], *found[6:7], *found[8:]]  # of sections that lie beside each other
    assert all(abs(accuracy(one) - 0.5) < 0.3 for one in blind)


def test_a_cube_of_many_sections_is_judged_section_by_section_too(training, tmp_path):
    """Notebook 04 allows 512: every one of them is a view."""
    whole = ordered(32)
    deep = ImageSet(
        "deep", whole.table, np.tile(whole.pixels, (1, 1, 9, 1, 1)), whole.classes, "none", True
    )
    assert deep.pixels.shape[2] == 72
    split = splits.hold_out(deep, seed=1, parts_in=4, validation=1, test=1)
    other = training.but(recipes=[RECIPE.but(epochs=1, mix="both")], work_folder=tmp_path)
    best, averaged = task.section_predictions(other, deep, split)
    assert len(best) == len(averaged) == len(split.ids(0, 0, "test"))


def test_the_flat_network_predicts_the_test_cubes(images, split, training):
    short = training.but(recipes=[RECIPE.but(epochs=1)])
    flat = task.flat_predictions(short, images, split)
    assert set(flat.table["model"]) == {"2.5D"} and set(flat.table["id"]) == set(
        split.ids(0, 0, "test")
    )


def test_connectivity_is_synthetic_for_synthetic_cubes_and_absent_where_no_table_is(
    images, split, tmp_path
):
    predicted = task.connectivity_predictions(images, split, tmp_path, SEED)
    found = {one.table["model"].iloc[0]: one for one in predicted}
    by_neuron = found["connectivity"]
    assert set(by_neuron.table["id"]) == set(split.ids(0, 0, "test"))
    assert accuracy(found["connectivity, by synapse (LEAKS)"]) > accuracy(by_neuron)
    real = replace(images, synthetic=False)
    assert task.connectivity_predictions(real, split, tmp_path, SEED) == []


def test_the_threshold_comes_from_validation_and_moves_the_class_only(result):
    tuned, table = task.with_threshold(result.predictions, True)
    plain, half = task.with_threshold(result.predictions, False)
    assert np.array_equal(tuned.probabilities, plain.probabilities) and half[
        "threshold"
    ].tolist() == [0.5]
    expected = np.where(tuned.probabilities[:, 1] >= table["threshold"].iloc[0], "mixed", "runs")
    assert (tuned.table["predicted"] == expected).all()


def test_ablations_turn_off_one_option_each():
    recipe = task.recipe("unet3d", mix="both")
    found = task.ablations(recipe, "full")
    assert list(found) == [
        "augmentation",
        "mixing",
        "averaged weights",
        "loss",
        "test-time augmentation",
    ]
    for one in found.values():
        changed = [
            name
            for name, value in one.as_dict().items()
            if value != recipe.as_dict()[name] and name != "name"
        ]
        assert len(changed) == 1
    assert list(task.ablations(recipe, "small")) == [
        "test-time augmentation"
    ] and not task.ablations(recipe, "none")
    assert "mixing" not in task.ablations(
        recipe.but(mix="none"), "full"
    )  # what is off already is no option
    with pytest.raises(ParameterError, match="ablation.*'all'"):
        task.ablations(recipe, "all")


def test_the_ablation_table_compares_with_the_whole_recipe(images, split, training, result):
    table = task.ablation_table(training, images, split, result, "small", tau=True)
    assert table["network"].tolist() == [
        "whole recipe",
        "without test-time augmentation",
        "without threshold",
    ]
    assert table["difference"].iloc[0] == 0 and (table["n"] == 24).all()
    known = table.dropna()  # where all cubes are right there is no interval by resampling
    assert (known["balanced accuracy low"] <= known["balanced accuracy"]).all()
    assert (known["balanced accuracy"] <= known["balanced accuracy high"]).all()
    short = training.but(recipes=[RECIPE.but(epochs=1)])
    whole = task.ablation_table(short, images, split, result, "full", tau=False)
    assert whole["network"].tolist() == [
        "whole recipe",
        "without augmentation",
        "without averaged weights",
        "without loss",
        "without test-time augmentation",
    ]


def test_of_three_classes_no_threshold_is_turned_off(training):
    rows = np.arange(30)
    classes = ("a", "b", "c")
    probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), 30)
    table = pd.DataFrame(
        {
            "id": [f"i{at}" for at in rows],
            "label": np.take(classes, rows % 3),
            "group": [f"g{at}" for at in rows],
        }
    )
    images = ImageSet("three", table, np.zeros((30, 1, 4, 8, 8), np.uint8), classes, "none", True)
    result = CrossValidated(
        Predictions.build(
            ids=images.ids,
            labels=table["label"],
            groups=images.groups,
            classes=classes,
            probabilities=probabilities,
            repeat=0,
            fold=0,
            split="test",
            model="m",
        ),
        pd.DataFrame(),
        pd.DataFrame(),
        None,
    )
    single = training.but(recipes=[RECIPE.but(test_time_augmentation=1)])
    table = task.ablation_table(single, images, None, result, "small", tau=True)
    assert table["network"].tolist() == ["whole recipe"]


def test_seeds_differ_on_the_same_cubes_and_the_first_is_the_training_that_is_there(
    images, split, training, result
):
    once = task.seeds_table(training, images, split, result, 1, tau=True)
    assert once["network"].tolist() == [
        f"seed {SEED}"
    ] and "one random seed only" in task.seeds_sentence(once)
    short = training.but(recipes=[RECIPE.but(epochs=1)])
    first = short.cross_validate(images, split)
    twice = task.seeds_table(short, images, split, first, 2, tau=False)
    assert twice["network"].tolist() == [f"seed {SEED}", f"seed {SEED + 1}", "all together"]
    assert (twice["n"] == 24).all()
    assert twice["AUC"].iloc[0] == pytest.approx(
        evaluate(first.predictions.where(split="test"))["auc"].value
    )
    assert twice["AUC"][:2].nunique() == 2  # another seed, another network
    shown = task.readable(twice)
    assert list(shown) == ["network", "AUC", "balanced accuracy", "cubes"]
    assert shown["AUC"].str.contains(r"^\d\.\d{3}").all()
    mean = twice["AUC"][:2].mean()
    assert (
        f"From 2 random seeds, on the same folds: AUC {mean:.3f} on average"
        in task.seeds_sentence(twice)
    )


def test_a_group_is_a_neuron_an_object_or_the_cube_itself(images):
    assert task.unit(images) == "neuron" and task.unit(images, "folder") == "group"
    alone = replace(images, table=images.table.assign(group=images.table["id"]))
    assert task.unit(alone) == "cube"
    tissue = replace(images, table=images.table.assign(object=images.table["id"]))
    assert task.unit(tissue) == "object"


def test_scrolls_show_a_cube_of_each_class_and_the_surest_mistakes(images, result):
    scroll = task.scroll_through_classes(images)
    assert len(scroll["frames"]) == DEPTH and "runs, mixed" in scroll["caption"]
    tested = result.predictions.where(split="test")
    mistakes = task.scroll_through_mistakes(images, tested, SEED)
    assert len(mistakes["frames"]) == DEPTH and "→" in mistakes["caption"]


def test_the_network_that_was_tested_is_kept_with_its_recipe(
    images, split, training, result, tmp_path
):
    task.save_network(tmp_path, training, result, images, split)
    about = read_card(tmp_path / "network.safetensors")["about"]
    assert about["recipe"]["epochs"] == RECIPE.epochs and about["split_hash"] == split.hash


@pytest.fixture(scope="module")
def kept(images, split, training, result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    task.save_network(folder, training, result, images, split)
    return folder / "network.safetensors"


def new_of(cubes):
    table = cubes.table.assign(label=None)
    failures = failure_table([("x.tif", "it is cut.", "Copy it.")])
    return replace(cubes, table=table, failures=failures, content_hash="")


def test_new_cubes_are_predicted_as_test_cubes_are(images, split, training, result, kept):
    tested = images.take(images.positions(split.ids(0, 0, "test")))
    decided, thresholds = task.with_threshold(result.predictions, True)
    new = new_of(tested)
    about = {"confidence": 0.7}
    table = task.predict_new(kept, training, result.last, new, thresholds, **about)
    rows = table.iloc[:-1].set_index("name")
    expected = decided.table.set_index("id").loc[tested.ids]
    assert (rows["predicted"] == expected["predicted"]).all()
    for name in images.classes:
        own = rows[f"probability {name}"].astype(float)
        assert np.allclose(own, expected[f"probability {name}"], atol=1e-5)
    assert set(rows["threshold"]) == {thresholds["threshold"].iloc[-1]}
    assert table.iloc[-1][["name", "problem"]].tolist() == ["x.tif", "it is cut. Copy it."]
    moved = thresholds.assign(threshold=1.0)
    table = task.predict_new(kept, training, result.last, new, moved, **about)
    assert set(table["predicted"].dropna()) == {"runs"} and len(table) == len(new) + 1
    # a class that only the threshold gives is as sure as its own probability
    own = table["probability runs"].iloc[:-1].astype(float)
    assert (table["low_confidence"].iloc[:-1] == (own < 0.7)).all() and (own < 0.3).any()
    table = task.predict_new(kept, training, result.last, new, pd.DataFrame(), **about)
    likeliest = table.iloc[:-1].filter(regex="^probability").astype(float).idxmax(axis=1)
    assert ("probability " + table["predicted"].iloc[:-1] == likeliest).all()
    assert task.predict_new(kept, training, result.last, None, thresholds, **about) is None


def test_new_cubes_unlike_those_of_the_training_are_flagged(training, result, kept):
    other = new_of(ordered(40, seed=9))
    noise = np.random.default_rng(0).integers(0, 255, other.pixels[30:].shape, np.uint8)
    some = np.concatenate([other.pixels[:30], noise])
    other = replace(other, pixels=some, content_hash="")
    none = pd.DataFrame()
    table = task.predict_new(kept, training, result.last, other, none, confidence=0.7)
    flagged = table["out_of_distribution"].iloc[:-1].astype(bool)
    assert flagged[30:].all() and flagged[:30].mean() < 0.2 and "warning" not in table
    empty = replace(other.take(np.arange(0)), failures=other.failures)
    table = task.predict_new(kept, training, result.last, empty, none, confidence=0.7)
    assert table["name"].tolist() == ["x.tif"]


def test_the_file_keeps_what_the_training_cubes_look_like(
    images, split, training, result, tmp_path
):
    task.save_network(tmp_path, training, result, images, split)
    path = tmp_path / "network.safetensors"
    parts = ("train", "validation") if training.retrain else ("train",)
    usual = OutOfDistribution.of_checkpoint(path)
    assert len(usual.reference) == len(split.ids(0, 0, *parts))
    look = task.transform(RECIPE)
    unlike, rate = flags(path, result.last.network, images, look)
    assert rate == usual.rate and unlike.mean() < 0.1
    noise = np.random.default_rng(0).integers(0, 256, images.pixels[:6].shape).astype(np.uint8)
    strange = replace(images.take(range(6)), pixels=noise)
    assert flags(path, result.last.network, strange, look)[0].all()


def test_a_stored_split_loses_the_cubes_that_were_left_out(images, split, monkeypatch):
    monkeypatch.setattr(task.synapses2d, "make_split", lambda *args, **more: split)
    some = images.take(np.arange(60))
    found = task.make_split("microns", some, data_dir="", folds=2, seed=0)
    assert set(found.table["id"]) == set(some.ids) and found.hash != split.hash
    assert task.make_split("microns", images, data_dir="", folds=2, seed=0) is split
    assert task.used(images, split) is images and set(task.used(images, found).ids) == set(some.ids)
