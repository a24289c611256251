"""Cubes in the trainer: mixed labels resume to the bit, and pixels stay on disk."""

import numpy as np
import pandas as pd
import pytest
import torch

from nbhelpers.core.imageset import ImageSet
from nbhelpers.models.video3d import make_cube_network
from nbhelpers.training import trainer as module
from nbhelpers.training.augment3d import CubePreparation
from nbhelpers.training.forward import images_at_once, memory_format, predict_probabilities
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import ProgressLines, train

SHAPE = (4, 16, 16)
RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    learning_rate=3e-3,
    ema_decay=0.9,
    loss="balanced_bce",
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


def run(folder, recipe=RECIPE, report=None, images=None):
    images = images or bright_or_dark()
    return train(
        small_network,
        images,
        (images.ids[:33], images.ids[33:]),
        recipe,
        seed=1,
        work_folder=folder,
        transform=CubePreparation(recipe.augmentation, recipe.input_px),
        callbacks=[ProgressLines(recipe.epochs, report)] if report else [],
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


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced_bce"])
def test_every_loss_and_mixing_finds_a_injected_difference(tmp_path, loss):
    images = bright_or_dark()
    trained = run(tmp_path, RECIPE.but(loss=loss, epochs=15, learning_rate=1e-2, ema_decay=0.0))
    found = predict_probabilities(
        trained.network,
        images.pixels,
        CubePreparation(RECIPE.augmentation),
        test_time_augmentation=8,
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
