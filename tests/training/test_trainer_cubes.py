"""Cubes in the trainer: mixed labels resume to the bit, pixels stay on disk, two processes train as
one does.
"""

import mmap
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.models.video3d import make_cube_network
from nbhelpers.training import trainer as module
from nbhelpers.training.augment3d import CubePreparation
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import images_at_once, memory_format, predict_probabilities, train

SHAPE = (4, 16, 16)
RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    learning_rate=3e-3,
    ema_decay=0.9,
    loss="focal",
    mix="both",
    augmentation=Augmentation(
        quarter_turns=True, flip_depth=True, elastic_px=1, missing_sections=0.1
    ),
)


def small_network():
    return make_cube_network("unet3d", 2, shape=SHAPE, width=0.25)


def bright_or_dark(count=48, folder=None, step=60):
    draw = np.random.default_rng(0)
    label = np.arange(count) % 2
    pixels = (
        draw.integers(0, 150, (count, 1, *SHAPE)) + step * label.reshape(-1, 1, 1, 1, 1)
    ).astype(np.uint8)
    if folder is not None:
        np.save(folder / "cubes.npy", pixels)
        pixels = np.load(folder / "cubes.npy", mmap_mode="r")
    table = pd.DataFrame(
        {
            "id": [f"i{at}" for at in range(count)],
            "label": np.where(label, "bright", "dark"),
            "group": [f"g{at}" for at in range(count)],
        }
    )
    return ImageSet("cubes", table, pixels, ("bright", "dark"), "none", True)


def run(folder, recipe=RECIPE, report=None, images=None, **named):
    images = images or bright_or_dark()
    return train(
        small_network,
        images,
        images.ids[:33],
        images.ids[33:],
        recipe,
        seed=1,
        work_folder=folder,
        transform=CubePreparation(recipe.augmentation, recipe.input_px),
        report=report,
        **named,
    )


class Killed(BaseException):
    """Not an Exception: nothing may catch it on the way, as nothing catches SIGKILL."""


@pytest.mark.parametrize("changes", [{}, {"loss": "balanced_bce", "mix": "cutmix"}])
def test_mixed_labels_and_3d_augmentation_resume_to_the_bit(tmp_path, monkeypatch, changes):
    monkeypatch.setattr(module, "RESUME_SECONDS", 0.0, raising=False)
    recipe = RECIPE.but(**changes)
    said = []

    def stop(line):
        said.append(line)
        if len(said) == 2:
            raise Killed

    whole = run(tmp_path / "whole", recipe)
    with pytest.raises(Killed):
        run(tmp_path / "killed", recipe, stop)
    torch.manual_seed(99)
    np.random.seed(99)
    resumed = run(tmp_path / "killed", recipe)
    assert all(
        torch.equal(value, resumed.network.state_dict()[name])
        for name, value in whole.network.state_dict().items()
    )
    pd.testing.assert_frame_equal(whole.history, resumed.history)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "balanced_bce"])
def test_every_loss_and_mixing_finds_a_injected_difference(tmp_path, loss):
    images = bright_or_dark()
    trained = run(tmp_path, RECIPE.but(loss=loss, epochs=15, learning_rate=1e-2, ema_decay=0.0))
    found = predict_probabilities(
        trained.network, images.pixels, CubePreparation(RECIPE.augmentation), views=8
    )
    assert (found.argmax(1) == images.labels).mean() > 0.95


def test_only_training_batches_are_mixed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        module,
        "mix_batch",
        lambda images, labels, *rest, **named: (
            seen.append(len(images)) or (images, torch.nn.functional.one_hot(labels, 2).float())
        ),
    )
    run(tmp_path, RECIPE.but(epochs=2))
    assert seen == [8] * 8  # 33 training cubes are four whole batches


def test_cubes_on_disk_are_read_batch_by_batch(tmp_path):
    images = bright_or_dark(folder=tmp_path)
    first = images.pixels
    most = []

    class Watched:
        """Says how many cubes are asked for at a time."""

        shape = first.shape
        ndim = first.ndim
        dtype = first.dtype

        def __len__(self):
            return len(first)

        def __iter__(self):
            return iter(first)

        def __getitem__(self, key):
            found = first[key]
            most.append(len(found))
            return found

    watched = ImageSet("cubes", images.table, Watched(), images.classes, "none", True)
    trained = run(tmp_path / "disk", images=watched)
    in_memory = run(tmp_path / "memory")
    assert all(
        torch.equal(value, in_memory.network.state_dict()[name])
        for name, value in trained.network.state_dict().items()
    )
    most_in_training = max(most)
    prepare = CubePreparation(RECIPE.augmentation)
    rows = np.arange(47, -1, -1)
    expected = predict_probabilities(
        trained.network, bright_or_dark().pixels[rows], prepare, batch_size=8
    )
    most.clear()
    assert np.array_equal(
        predict_probabilities(trained.network, Watched(), prepare, batch_size=8, rows=rows),
        expected,
    )
    assert most_in_training == 15 and max(most) == 8


def test_large_cubes_come_fewer_at_a_time():
    def pixels(*shape):
        return np.broadcast_to(np.uint8(0), shape)

    assert images_at_once(pixels(9, 1, 16, 128, 128), 128) == 16
    assert images_at_once(pixels(9, 1, 400, 1024, 1024), 128) == 1
    assert images_at_once(pixels(9, 1, 4, 16, 16), 128) == 128
    assert images_at_once(pixels(9, 1, 2048, 2048), 256) == 256  # images: as ever


def test_group_norm_trains_contiguous_on_a_processor_and_all_else_channels_last():
    grouped, batched = (
        make_cube_network(name, 2, shape=SHAPE, width=0.125) for name in ("unet3d", "r3d_18")
    )
    assert memory_format(5, grouped.train()) == torch.contiguous_format
    assert (
        memory_format(5, grouped.eval())
        == memory_format(5, batched.train())
        == torch.channels_last_3d
    )
    assert memory_format(4, grouped.train()) == torch.channels_last
    assert (
        memory_format(5, batched, False)
        == memory_format(4, batched, False)
        == torch.contiguous_format
    )


def test_to_another_process_goes_the_name_of_the_file(tmp_path):
    images = bright_or_dark(count=400, folder=tmp_path)
    batches = module._Batches(images.pixels, images.labels, np.arange(400))
    sent = pickle.dumps(batches)
    again = pickle.loads(sent)
    assert len(sent) < images.pixels.nbytes / 10 and isinstance(again.pixels.base, mmap.mmap)
    for row in ([3, 399], [0]):
        assert torch.equal(again[np.array(row)][0], batches[np.array(row)][0])
    part = module._Batches(
        images.pixels[5:9], images.labels, np.arange(4)
    )  # a view: starts within the file
    assert torch.equal(pickle.loads(pickle.dumps(part))[np.array([1])][0], part[np.array([1])][0])


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "win32", reason="gloo between processes is tested on Linux and macOS"
)
def test_two_processes_train_as_one_does(tmp_path):
    recipe = RECIPE.but(augmentation=Augmentation(), mix="none", precision="fp32", select_by="loss")
    one = run(tmp_path / "one", recipe)
    two = run(tmp_path / "two", recipe, devices=2)
    pd.testing.assert_frame_equal(one.history, two.history, rtol=1e-3, atol=1e-4)
    assert one.epoch == two.epoch and one.score == pytest.approx(two.score, rel=1e-3)
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(two.network.state_dict()[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("devices", "batch_size"), [(3, 8), (0, 8), (2, 64)])
def test_devices_that_cannot_share_a_batch_are_refused(tmp_path, devices, batch_size):
    with pytest.raises(
        ParameterError, match=f"devices: {devices} devices cannot share batches of {batch_size}"
    ):
        run(tmp_path, RECIPE.but(batch_size=batch_size), devices=devices)


def test_each_device_needs_a_validation_image(tmp_path):
    images = bright_or_dark()
    with pytest.raises(InputError, match="1 validation images for 2 devices"):
        train(
            small_network,
            images,
            images.ids[:40],
            images.ids[40:41],
            RECIPE,
            seed=1,
            work_folder=tmp_path,
            devices=2,
            transform=CubePreparation(RECIPE.augmentation),
        )
