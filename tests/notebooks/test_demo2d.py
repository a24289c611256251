"""demo2d: the same numbers twice, and the right message for every wrong input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from nbhelpers.core import splits
from nbhelpers.core.errors import CheckpointError, InputError, ParameterError, TableError
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.imagesets import synapses
from nbhelpers.models.synapse_cnn import SynapseCNN
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.studies import synapse_checkpoints, synapses2d
from nbhelpers.training.checkpoints import load_checkpoint, read_card, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "checkpoints" / "synapse_phantom_2d.safetensors"


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def images(data_folder):
    return synapses.load_synapses(
        "phantom", data_folder=data_folder, seed=5, phantom={"count": 40, "neurons": 10}
    )


@pytest.fixture(scope="module")
def reference(images):
    return synapse_checkpoints.PatchReference.of(images)


def new_patches(folder: Path, data_folder, reference, **changes):
    return synapses.load_unlabelled_synapses(
        folder, data_folder, synapses.CLASSES, 128, reference, own=synapses.OwnPatches(**changes)
    )


def write(folder: Path, patches: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for number, patch in enumerate(patches):
        Image.fromarray(patch).save(folder / f"{number}.png")
    return folder


def test_the_bundled_checkpoint_is_small_and_says_what_it_is():
    assert BUNDLED.stat().st_size < 4_000_000
    network, recipe, prepare, card = synapse_checkpoints.rebuild(BUNDLED)
    about = card["about"]
    text = BUNDLED.with_suffix(".md").read_text()
    assert about["synthetic"] and not about["known_leak"] and about["limits"]
    scores = about["scores"]["accuracy"]
    assert scores["low"] > max(entry["accuracy"]["value"] for entry in about["floors"].values())
    assert f"{scores['value']:.3f} [{scores['low']:.3f}, {scores['high']:.3f}]" in text
    assert all(limit in text for limit in about["limits"]) and "sha256" in text
    from nbhelpers.core.files import sha256_of_file

    assert sha256_of_file(BUNDLED) in text
    assert prepare.input_px == recipe.input_px == network.settings["input_px"]
    assert synapse_checkpoints.reference_of(card, BUNDLED).membrane_contrast > 0


def test_the_bundled_network_tells_unseen_neurons_apart(images):
    network, recipe, _, card = synapse_checkpoints.rebuild(BUNDLED)
    synapse_checkpoints.check_fits(card, images, BUNDLED)
    once = recipe.but(test_time_augmentation=1)
    found = synapse_checkpoints.predict_labelled(network, once, images)
    assert (found.predicted_index == images.labels).mean() > 0.7  # chance .5; 40 patches


def test_wrong_checkpoints(tmp_path, images):
    with pytest.raises(CheckpointError, match="does not exist"):
        synapse_checkpoints.rebuild(tmp_path / "nothing.safetensors")
    save_checkpoint(tmp_path / "tiny.safetensors", TinyCNN(1, 3), classes=("a", "b", "c"), about={})
    with pytest.raises(
        CheckpointError, match="weights of TinyCNN, which is no network for synapse"
    ):
        synapse_checkpoints.rebuild(tmp_path / "tiny.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(BUNDLED.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut"):
        synapse_checkpoints.rebuild(tmp_path / "cut.safetensors")
    save_checkpoint(
        tmp_path / "bare.safetensors", SynapseCNN(16), classes=synapses.CLASSES, about={}
    )
    with pytest.raises(CheckpointError, match="no recipe"):
        synapse_checkpoints.rebuild(tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="what its training patches look like"):
        synapse_checkpoints.reference_of(
            read_card(tmp_path / "bare.safetensors"), "bare.safetensors"
        )
    with pytest.raises(
        CheckpointError,
        match=r"tells cat, dog apart, but the classes of .* are excitatory, inhibitory",
    ):
        synapse_checkpoints.check_fits(
            {"classes": ["cat", "dog"], "about": {}}, images, "pets.safetensors"
        )


def test_a_checkpoint_is_not_tested_on_what_it_was_trained_on(images):
    split = splits.hold_out(images, seed=1, parts_in=3, validation=1, test=1)
    card = {
        "classes": list(images.classes),
        "about": {"content_hash": images.content_hash, "split_hash": split.hash},
    }
    synapse_checkpoints.check_fits(card, images, "mine.safetensors", split)
    for other in (None, splits.hold_out(images, seed=2, parts_in=3, validation=1, test=1)):
        with pytest.raises(CheckpointError, match="no telling which groups it saw"):
            synapse_checkpoints.check_fits(card, images, "mine.safetensors", other)


def test_a_card_is_enough_to_rebuild_network_and_preparation(tmp_path, images):
    import torch

    torch.manual_seed(0)
    split = splits.hold_out(images, seed=1, parts_in=3, validation=1, test=1)
    recipe = synapses2d.recipe("cnn", "ours", input_px=16, epochs=3)
    network = SynapseCNN(16).eval()
    floors, _ = synapse_checkpoints.floors_among(images, 1)
    about = synapses2d.about_checkpoint(
        recipe,
        images,
        split,
        split.ids(0, 0, "train"),
        evaluate(floors[0]),
        {"commonest class": evaluate(floors[0])},
        limits=["small"],
        seed=1,
    )
    save_checkpoint(tmp_path / "it.safetensors", network, classes=images.classes, about=about)
    again, recipe_again, prepare, card = synapse_checkpoints.rebuild(tmp_path / "it.safetensors")
    assert recipe_again == recipe and card["classes"] == list(images.classes)
    assert card["about"]["n_training"] == len(split.ids(0, 0, "train"))
    assert vars(prepare) == vars(synapse_checkpoints.evaluation_transform(recipe))
    few = images.take(np.arange(4))
    found = synapse_checkpoints.predict_labelled(again, recipe_again, few)
    expected = synapse_checkpoints.predict_labelled(network, recipe, few)
    assert np.array_equal(found.probabilities, expected.probabilities)
    assert load_checkpoint(tmp_path / "it.safetensors", SynapseCNN)[1]["settings"]["input_px"] == 16


def test_floors_among_test_images(images):
    floors, missing = synapse_checkpoints.floors_among(images, 3)
    assert [one.table["model"].iloc[0] for one in floors] == [
        "commonest class",
        "grey-level baseline",
        "radial profile",
        "power spectrum",
        "border",
        "photometric together",
    ] and not missing
    assert evaluate(floors[0])["accuracy"].value == max(images.counts().values()) / len(images)
    for floor in floors[1:]:
        assert list(floor.table["id"].sort_values()) == sorted(images.ids)
    few = images.take(np.flatnonzero(np.isin(images.groups, [images.groups[0], images.groups[1]])))
    floors, missing = synapse_checkpoints.floors_among(few, 3)
    assert len(floors) == 1 and "No floor of grey-level baseline" in missing


def test_own_patches_that_cannot_be_used(tmp_path, data_folder, images, reference):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="no images in this folder"):
        new_patches(tmp_path / "empty", data_folder, reference)
    patches = np.array(images.pixels[:8, 0])
    small = new_patches(write(tmp_path / "small", patches[:, :100, :100]), data_folder, reference)
    assert len(small) == 0 and "100 x 100 px: too small" in small.failures["why"].iloc[0]
    white = new_patches(write(tmp_path / "white", 255 - patches), data_folder, reference)
    assert len(white) == 0 and (white.failures["why"].str.contains("inverted")).all()
    assert white.failures["fix"].str.contains("Invert it").all()
    deep = new_patches(
        write(tmp_path / "deep", patches.astype(np.uint16) * 200 + 1000), data_folder, reference
    )
    assert len(deep) == 8 and deep.pixels.dtype == np.uint8
    assert "16-bit values scaled" in deep.source
    assert np.abs(deep.pixels.astype(int)[:, 0] - patches).mean() < 20
    network, recipe, *_ = synapse_checkpoints.rebuild(BUNDLED)
    for new in (small, deep):
        table = synapse_checkpoints.predict_new(
            network, recipe.but(test_time_augmentation=1), BUNDLED, new, confidence=0.7
        )
        assert len(table) == 8
        assert (table["problem"] != "").sum() == len(new.failures)


def test_noise_is_flagged_as_unlike_the_known_patches(tmp_path, data_folder, images):
    network, recipe, *_ = synapse_checkpoints.rebuild(BUNDLED)
    patches = np.array(images.pixels[:6, 0])
    noise = np.random.default_rng(0).integers(0, 256, (6, 128, 128), np.uint8)
    folder = write(tmp_path / "both", np.concatenate([patches, noise]))
    new = new_patches(folder, data_folder, None, polarity="as given")
    table = synapse_checkpoints.predict_new(
        network, recipe.but(test_time_augmentation=1), BUNDLED, new, confidence=0.7
    ).set_index("name")
    assert not table.loc[[f"{number}.png" for number in range(6)], "out_of_distribution"].any()
    assert table.loc[[f"{number}.png" for number in range(6, 12)], "out_of_distribution"].all()


def test_a_missing_data_set_names_the_notebook_that_makes_it(tmp_path, data_folder):
    with pytest.raises(InputError, match="notebook 01"):
        synapses.load_synapses("microns", data_folder=tmp_path)
    with pytest.raises(ParameterError, match="data_dir"):
        synapses.load_synapses("folder", data_folder=data_folder)


def test_a_checkpoint_from_before_training_patches_were_kept_still_predicts(
    tmp_path, data_folder, images
):
    network, recipe, _, card = synapse_checkpoints.rebuild(BUNDLED)
    old = tmp_path / "old.safetensors"
    save_checkpoint(old, network, classes=card["classes"], about=card["about"])
    new = new_patches(write(tmp_path / "new", np.array(images.pixels[:3, 0])), data_folder, None)
    network, recipe, *_ = synapse_checkpoints.rebuild(old)
    tables = []
    for path in (old, BUNDLED):
        tables.append(synapse_checkpoints.predict_new(network, recipe, path, new, confidence=0.7))
    before, now = tables
    assert (before["out_of_distribution"] == "unknown").all()
    assert before["flagged_by_chance"].isna().all() and (now["flagged_by_chance"] == 0.01).all()
    assert before["predicted"].equals(now["predicted"])
    assert np.array_equal(before.filter(like="probability"), now.filter(like="probability"))


@pytest.mark.slow
def test_the_same_patches_get_the_same_flags_whatever_labelled_patches_test(
    make_checkout, data_folder, tmp_path
):
    """Foreign patches were once out of distribution by default, and none of them was where other
    foreign patches were the labelled ones."""
    checkout = make_checkout(notebook=None)
    shutil.copy(ROOT / "notebooks" / "demo2d.ipynb", checkout.root / "notebooks")
    (checkout.root / "checkpoints").mkdir()
    shutil.copy(BUNDLED, checkout.root / "checkpoints")
    checkout.profile("demo", "notebooks:\n  demo2d: {phantoms: 60, neurons: 12}\n")
    strange = np.random.default_rng(0).integers(0, 256, (160, 128, 128), np.uint8)
    strange = np.array([gaussian_filter(image, 3) for image in strange])
    for number, patch in enumerate(strange[:128]):
        group = tmp_path / "labelled" / synapses.CLASSES[number % 2] / f"animal {number // 8}"
        group.mkdir(parents=True, exist_ok=True)
        Image.fromarray(patch).save(group / f"{number}.png")
    new = write(tmp_path / "new", strange[128:])
    given = ["-p", "new_images_dir", str(new), "-p", "polarity", "as given"]
    labelled = ["-p", "data", "folder", "-p", "data_dir", str(tmp_path / "labelled")]
    found = []
    for asked in (given, given + labelled):
        ended = checkout.run("--force", *asked, timeout=900)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        found.append(pd.read_csv(checkout.results / "demo2d" / "evaluation.csv"))
    assert found[0]["out_of_distribution"].all()
    pd.testing.assert_frame_equal(*found)


@pytest.mark.slow
def test_run_twice_gives_the_same_numbers(make_checkout):
    checkout = make_checkout(notebook=None)
    shutil.copy(ROOT / "notebooks" / "demo2d.ipynb", checkout.root / "notebooks")
    (checkout.root / "checkpoints").mkdir()
    shutil.copy(BUNDLED, checkout.root / "checkpoints")
    checkout.profile("demo", "notebooks:\n  demo2d: {phantoms: 60, neurons: 12}\n")
    found = []
    for _ in range(2):
        ended = checkout.run("--force", timeout=900)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        found.append((checkout.results / "demo2d" / "metrics.json").read_bytes())
        assert json.loads(found[-1])["headline"]["low"] > 0.5
        assert (checkout.results / "demo2d" / "evaluation.csv").read_text().count("\n") == 14
    assert found[0] == found[1]
