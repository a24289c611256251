"""The Keras face: callbacks with Keras's semantics, generator batches, and fit over the shared
trainer.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.splits import hold_out
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import load_checkpoint
from nbhelpers.training.keras_face import (
    Batches,
    EarlyStopping,
    KerasModel,
    ModelCheckpoint,
    ReduceLROnPlateau,
)
from nbhelpers.training.recipe import Augmentation


@pytest.fixture(scope="module")
def images():
    return load_phantom_glomeruli(60, 1, size_px=48, difficulty=0)


@pytest.fixture(scope="module")
def split(images):
    return hold_out(images, seed=0, parts_in=5, validation=1, test=1)


class Small(nn.Module):
    def __init__(self, classes: int = 2):
        super().__init__()
        self.settings = {"classes": classes}
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, classes),
        )

    def forward(self, images):
        return self.layers(images)


# callbacks, driven epoch by epoch


class FakeTrainer:
    def __init__(self, rate=1.0):
        group = {"lr": rate}
        optimizer = SimpleNamespace(param_groups=[group])
        self.optimizers = [optimizer]
        self.should_stop = False
        self.current_epoch = -1
        self.lr_scheduler_configs = [
            SimpleNamespace(scheduler=SimpleNamespace(optimizer=optimizer, base_lrs=[rate]))
        ]

    def run(self, callback, values, name="validation_loss"):
        rates = []
        for value in values:
            self.current_epoch += 1
            self.callback_metrics = {name: torch.tensor(value)}
            callback.on_train_epoch_end(self, None)
            rates.append(self.optimizers[0].param_groups[0]["lr"])
            if self.should_stop:
                break
        return rates


def test_the_rate_falls_after_patience_epochs_and_never_below_the_floor():
    trainer = FakeTrainer()
    rates = trainer.run(
        ReduceLROnPlateau("val_loss", factor=0.1, patience=3, min_lr=0.005), [1.0, 0.5, *[0.5] * 9]
    )
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.005])
    assert trainer.lr_scheduler_configs[0].scheduler.base_lrs == pytest.approx(
        [0.005]
    )  # the schedule keeps it


def test_an_improvement_smaller_than_min_delta_does_not_count():
    assert FakeTrainer().run(ReduceLROnPlateau(patience=2, min_delta=0.1), [1, 0.95, 0.92])[
        -1
    ] == pytest.approx(0.1)
    assert (
        FakeTrainer().run(ReduceLROnPlateau(patience=2, min_delta=0.01), [1, 0.95, 0.92])[-1] == 1
    )


def test_cooldown_epochs_are_not_counted():
    rates = FakeTrainer().run(
        ReduceLROnPlateau(factor=0.5, patience=1, cooldown=2), [1, 1, 1, 1, 1, 1]
    )
    assert rates == pytest.approx([1, 0.5, 0.5, 0.25, 0.25, 0.125])


@pytest.mark.parametrize(("patience", "epochs"), [(0, 3), (1, 3), (2, 4), (18, 10)])
def test_stopping_waits_for_patience_epochs_without_improvement(patience, epochs):
    trainer = FakeTrainer()
    trainer.run(EarlyStopping("val_loss", patience=patience), [3.0, 2.0] + [2.5] * 8)
    assert trainer.current_epoch + 1 == epochs and trainer.should_stop == (patience < 10)


def test_mode_follows_the_name_and_can_be_given():
    assert EarlyStopping("val_accuracy").mode == "max" and EarlyStopping("val_loss").mode == "min"
    assert EarlyStopping("val_loss", mode="max").mode == "max"
    trainer = FakeTrainer()
    trainer.run(
        EarlyStopping("val_accuracy", patience=2), [0.5, 0.6, 0.7, 0.8], "validation_accuracy"
    )
    assert not trainer.should_stop


def test_the_counters_survive_a_resume():
    first, second = (ReduceLROnPlateau(patience=3) for _ in range(2))
    trainer = FakeTrainer()
    trainer.run(first, [1.0, 1.0, 1.0])
    second.load_state_dict(first.state_dict())
    assert trainer.run(second, [1.0])[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EarlyStopping("val_dice"), "val_dice.*not logged"),
        (lambda: EarlyStopping(mode="up"), "mode.*up"),
        (lambda: ReduceLROnPlateau(factor=1.0), "factor"),
        (lambda: ModelCheckpoint("a.keras"), "safetensors"),
        (lambda: EarlyStopping(min_delta=0.1, restore_best_weights=True), "min_delta"),
    ],
)
def test_what_callbacks_refuse(make, words):
    with pytest.raises(ParameterError, match=words):
        make()


# the generator


def test_batches_are_resized_scaled_one_hot_and_shuffled_each_epoch(images, split):
    ids = split.ids(0, 0, "train")
    batches = Batches(images, ids, batch_size=16, image_px=32, seed=3)
    first = list(batches)
    second = list(batches)
    assert len(batches) == len(first) == -(-len(ids) // 16)
    x, y = first[0]
    assert x.shape == (16, 3, 32, 32) and x.dtype == torch.float32 and 0 <= x.min() < x.max() <= 1
    assert y.shape == (16, 2) and (y.sum(1) == 1).all()
    labels = [torch.cat([y for _, y in epoch]).argmax(1) for epoch in (first, second)]
    assert not torch.equal(*labels) and torch.equal(labels[0].bincount(), labels[1].bincount())
    again = Batches(images, ids, batch_size=16, image_px=32, seed=3)
    assert torch.equal(again[0][0], x)
    still = Batches(images, ids, batch_size=16, image_px=32, shuffle=False)
    assert torch.equal(
        torch.cat([y for _, y in still]).argmax(1),
        torch.from_numpy(images.labels[images.positions(ids)]),
    )


# fit


def test_fit_learns_logs_stops_and_restores_the_best_epoch(images, split, tmp_path):
    train, validation = (
        Batches(images, split.ids(0, 0, part), batch_size=12, image_px=32, shuffle=part == "train")
        for part in ("train", "validation")
    )
    model = KerasModel(Small, images.classes, seed=1)
    model.compile(learning_rate=0.03)
    checkpoint = ModelCheckpoint(
        tmp_path / "best-{epoch:02d}.safetensors", "val_loss", save_best_only=True
    )
    history = model.fit(
        train,
        validation_data=validation,
        epochs=12,
        report=None,
        callbacks=[
            checkpoint,
            ReduceLROnPlateau("val_loss", patience=2, factor=0.5),
            EarlyStopping("val_loss", patience=6, restore_best_weights=True),
        ],
    )
    losses = history.history["val_loss"]
    assert set(history.history) >= {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert history.kept_epoch == int(np.argmin(losses)) + 1 and history.epoch == list(
        range(len(losses))
    )
    assert model.evaluate(validation)["loss"] == pytest.approx(
        min(losses), abs=0.03
    )  # bf16 while training
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert all(0 <= value <= 1 for value in history.history["accuracy"])
    kept, card = load_checkpoint(checkpoint.last_path, Small)
    assert card["about"]["epoch"] == history.kept_epoch and card["classes"] == list(images.classes)
    pairs = zip(kept.parameters(), model.network.cpu().parameters(), strict=True)
    assert all(torch.allclose(one, other) for one, other in pairs)
    assert model.predict(validation).shape == (len(validation.ids), 2)


@pytest.fixture
def trains(images, split, tmp_path):
    """Trains in one work folder and returns the history and the network's weights, as bytes."""

    def fit(seed=0, rate=0.03, epochs=3, ids=None, callbacks=(), build=Small, **compiled):
        model = KerasModel(build, images.classes, seed=seed)
        model.compile(learning_rate=rate, **compiled)
        train = Batches(
            images, split.ids(0, 0, "train") if ids is None else ids, batch_size=16, image_px=16
        )
        validation = Batches(images, split.ids(0, 0, "validation"), image_px=16)
        history = model.fit(
            train,
            validation_data=validation,
            epochs=epochs,
            callbacks=callbacks,
            report=None,
            work_folder=tmp_path / "work",
        )
        return history, b"".join(
            value.cpu().numpy().tobytes() for value in model.network.state_dict().values()
        )

    return fit


class Frozen(Small):
    def __init__(self, classes: int = 2):
        super().__init__(classes)
        self.layers[0].requires_grad_(False)


def test_a_work_folder_gives_back_the_same_training_only(trains, images, split, monkeypatch):
    first = trains()[1]
    others = [
        {"seed": 1},
        {"rate": 0.01},
        {"epochs": 4},
        {"ids": split.ids(0, 0, "test")},
        {"label_smoothing": 0.1},
        {"callbacks": [ReduceLROnPlateau("val_loss", patience=1, min_delta=9)]},
        {"build": Frozen},
    ]
    found = [trains(**changes)[1] for changes in others]
    assert len({first, *found}) == len(others) + 1
    monkeypatch.setattr(
        "lightning.Trainer.fit", lambda *a, **b: pytest.fail("it was trained again")
    )
    assert trains()[1] == first and [trains(**changes)[1] for changes in others] == found


def test_the_checkpoint_is_there_again_after_a_finished_training(trains, tmp_path):
    checkpoint = ModelCheckpoint(
        tmp_path / "best-{epoch:02d}.safetensors", "val_loss", save_best_only=True
    )
    trains(callbacks=[checkpoint])
    path = checkpoint.last_path
    content = checkpoint.last_path.read_bytes()
    for change in (path.unlink, lambda: path.write_bytes(b"another")):
        change()
        again = ModelCheckpoint(
            tmp_path / "best-{epoch:02d}.safetensors", "val_loss", save_best_only=True
        )
        trains(callbacks=[again])
        assert again.last_path == path and path.read_bytes() == content


def test_the_checkpoint_of_an_epoch_before_a_kill_is_there_again(trains, tmp_path, monkeypatch):
    monkeypatch.setattr("nbhelpers.training.trainer.RESUME_SECONDS", 0)
    path = tmp_path / "best.safetensors"

    class FirstIsBest(ModelCheckpoint):
        last_epoch = 1

        def value(self, trainer):
            if trainer.current_epoch > self.last_epoch:
                raise KeyboardInterrupt
            return float(trainer.current_epoch)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trains(epochs=4, callbacks=[FirstIsBest(path, save_best_only=True)])
    assert load_checkpoint(path, Small)[1]["about"]["epoch"] == 1
    path.unlink()
    FirstIsBest.last_epoch = 3
    trains(epochs=4, callbacks=[FirstIsBest(path, save_best_only=True)])
    assert load_checkpoint(path, Small)[1]["about"]["epoch"] == 1


def test_callbacks_forget_an_earlier_training(trains):
    reduce = ReduceLROnPlateau("val_loss", patience=1, min_delta=9)
    stop = EarlyStopping("val_loss", patience=9)
    first, _ = trains(callbacks=[reduce, stop])
    second, _ = trains(callbacks=[reduce, stop], seed=5)
    assert first.history["learning_rate"] == second.history["learning_rate"]


def test_without_restore_the_last_epoch_is_kept(images, split):
    model = KerasModel(Small, images.classes)
    model.compile(learning_rate=0.01)
    train = Batches(images, split.ids(0, 0, "train"), image_px=32)
    validation = Batches(images, split.ids(0, 0, "validation"), image_px=32, shuffle=False)
    history = model.fit(
        train,
        validation_data=validation,
        epochs=3,
        callbacks=[EarlyStopping(patience=9)],
        report=None,
    )
    assert history.kept_epoch == 3
    assert sorted(model.summary()["kind"]) == ["Conv2d", "Linear"]


def test_what_fit_refuses(images, split):
    model = KerasModel(Small, images.classes)
    train = Batches(images, split.ids(0, 0, "train"), image_px=32)
    with pytest.raises(InputError, match="not compiled"):
        model.fit(train)
    with pytest.raises(InputError, match="not trained"):
        model.predict(train)
    with pytest.raises(ParameterError, match="optimizer"):
        model.compile("rmsprop")
    model.compile()
    with pytest.raises(InputError, match="val_loss is not known"):
        model.fit(train, epochs=1, callbacks=[EarlyStopping("val_loss")], report=None)
    moving = Batches(
        images,
        split.ids(0, 0, "train"),
        transform=Transform(Augmentation(flip_horizontal=True), 32),
    )
    with pytest.raises(InputError, match="augment=False"):
        model.fit(moving)
    with pytest.raises(InputError, match="shuffle=False"):
        model.fit(Batches(images, split.ids(0, 0, "train"), image_px=32, shuffle=False))
    for settings, words in (
        ({"image_px": 24}, "prepared in another way"),
        ({"image_px": 32, "augment": True}, "augments"),
    ):
        with pytest.raises(InputError, match=words):
            model.fit(
                train, validation_data=Batches(images, split.ids(0, 0, "validation"), **settings)
            )
    with pytest.raises(InputError, match="another set"):
        model.fit(
            train, validation_data=Batches(load_phantom_glomeruli(20, 9, size_px=48), ["x"][:0])
        )
