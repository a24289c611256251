"""The Keras face: the trainer's results under Keras's names, and the losses of the face that did it
all itself.
"""

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint as Lightning
from torch import nn

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import hold_out
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.training.checkpoints import load_checkpoint
from nbhelpers.training.keras_face import (
    Batches,
    EarlyStopping,
    KerasModel,
    ModelCheckpoint,
    ReduceLROnPlateau,
)

# What the face gives that was found equal to the one with callbacks of its own in place of the
# trainer's schedule and stopping, in fp32: epoch 5 was the best, 18 epochs later it stopped.
LOSSES_BEFORE = [
    11.550126075744629,
    1.1555874347686768,
    1.3241103887557983,
    0.6927816867828369,
    0.6920197010040283,
    0.6951887607574463,
    0.6969255805015564,
    0.6990219950675964,
    0.6983006000518799,
    0.6976540684700012,
    0.6965512633323669,
    0.6964409947395325,
    0.6963079571723938,
    0.6961848735809326,
    0.6961745023727417,
    0.6961646676063538,
    0.6961497068405151,
    0.696148157119751,
    0.6961469650268555,
    0.6961453557014465,
    0.6961452960968018,
    0.6961451768875122,
    0.6961449980735779,
]
RATES_BEFORE = [*[0.3] * 8, *[0.03] * 3, *[3e-3] * 3, *[3e-4] * 3, *[3e-5] * 3, *[3e-6] * 3]


@pytest.fixture(scope="module")
def images():
    """Coloured noise, drawn here, so that what phantoms look like plays no part in the losses."""
    rng = np.random.default_rng(1)
    label = np.arange(60) % 2
    pixels = rng.integers(40, 200, (60, 3, 48, 48))
    pixels[:, 0] += (15 * label + rng.integers(0, 30, 60))[:, None, None]
    table = pd.DataFrame(
        {
            "id": [f"image {number:02}" for number in range(60)],
            "label": np.array(["plain", "redder"])[label],
            "group": [f"slide {number // 5:02}" for number in range(60)],
        }
    )
    about = {"source": "drawn by a test", "synthetic": True, "channels": ("red", "green", "blue")}
    return ImageSet("noise", table, pixels.astype(np.uint8), ("plain", "redder"), **about)


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
            nn.Dropout(0.1),
            nn.Linear(8, classes),
        )

    def forward(self, images):
        return self.layers(images)


@pytest.fixture
def fit(images, split, tmp_path):
    """Trains in one work folder; returns the history and the model."""

    def fit(rate=0.03, epochs=3, callbacks=(), seed=1, build=Small, px=32, **compiled):
        model = KerasModel(build, images.classes, seed=seed)
        model.compile(learning_rate=rate, **compiled)
        train, validation = (
            Batches(images, split.ids(0, 0, part), batch_size=12, image_px=px)
            for part in ("train", "validation")
        )
        history = model.fit(
            train,
            validation_data=validation,
            epochs=epochs,
            callbacks=callbacks,
            report=None,
            work_folder=tmp_path / "work",
        )
        return history, model

    return fit


def as_bytes(model):
    return b"".join(value.cpu().numpy().tobytes() for value in model.network.state_dict().values())


def test_the_losses_are_those_of_the_face_before(fit, tmp_path, monkeypatch):
    monkeypatch.setattr("nbhelpers.training.trainer.trains_in_bf16", lambda *_: False)
    path = tmp_path / "best.safetensors"
    history, model = fit(
        rate=0.3,
        epochs=30,
        label_smoothing=0.05,
        callbacks=[
            ModelCheckpoint(path, "val_accuracy", save_best_only=True),
            ReduceLROnPlateau("val_loss", factor=0.1, patience=3, min_lr=1e-6),
            EarlyStopping("val_loss", patience=18, restore_best_weights=True),
        ],
    )
    assert history.history["val_loss"] == pytest.approx(LOSSES_BEFORE, abs=1e-6)
    assert history.history["learning_rate"] == pytest.approx(RATES_BEFORE)
    assert history.kept_epoch == 5
    _, card = load_checkpoint(path, Small)
    assert card["about"]["epoch"] == 3 and card["classes"] == list(model.classes)
    assert history.history["val_accuracy"][2] == max(history.history["val_accuracy"])


def test_a_finished_training_is_read_and_writes_its_checkpoint_again(fit, tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"

    def callbacks():
        return [ModelCheckpoint(path, save_best_only=True), ReduceLROnPlateau(patience=1)]

    first = as_bytes(fit(callbacks=callbacks())[1])
    content = path.read_bytes()
    others = [{"seed": 2}, {"rate": 0.01}, {"epochs": 4}, {"label_smoothing": 0.1}, {"px": 16}]
    found = [as_bytes(fit(callbacks=callbacks(), **changes)[1]) for changes in others]
    assert len({first, *found}) == len(others) + 1
    path.write_bytes(b"another")
    monkeypatch.setattr(
        "lightning.Trainer.fit", lambda *a, **b: pytest.fail("it was trained again")
    )
    assert as_bytes(fit(callbacks=callbacks())[1]) == first and path.read_bytes() == content


def test_the_checkpoint_of_an_epoch_before_a_kill_is_there_again(fit, tmp_path, monkeypatch):
    monkeypatch.setattr("nbhelpers.training.trainer.RESUME_SECONDS", 0)
    kept = Lightning.on_train_epoch_end
    epochs = []

    def keep(checkpoint, trainer, task):
        kept(checkpoint, trainer, task)
        epochs.append(trainer.current_epoch + 1)
        if epochs == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Lightning, "on_train_epoch_end", keep)
    whole = tmp_path / "whole.safetensors"
    best = tmp_path / "best.safetensors"
    last = tmp_path / "last.safetensors"
    callbacks = [ModelCheckpoint(best, save_best_only=True), ModelCheckpoint(last)]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(callbacks=callbacks[1:])
    assert not last.exists()
    fit(callbacks=callbacks[1:])
    assert epochs == [1, 2, 2, 3]  # the first epoch was not trained again
    assert load_checkpoint(last, Small)[1]["about"]["epoch"] == 3
    fit(callbacks=[ModelCheckpoint(whole)])  # read, and written again
    assert epochs == [1, 2, 2, 3] and whole.read_bytes() == last.read_bytes()
    history, _ = fit(callbacks=callbacks, rate=0.3)
    losses = history.history["val_loss"]
    about = load_checkpoint(best, Small)[1]["about"]
    assert about == {"epoch": 1 + int(np.argmin(losses)), "val_loss": min(losses)}


def test_without_restore_the_last_epoch_is_kept(fit):
    history, model = fit(callbacks=[EarlyStopping(patience=9)])
    assert history.kept_epoch == 3 and set(history.history) >= {"loss", "val_loss", "learning_rate"}
    assert sorted(model.summary()["kind"]) == ["Conv2d", "Linear"]


@pytest.mark.parametrize(("patience", "epochs"), [(0, 2), (1, 2), (2, 3)])
def test_stopping_waits_for_patience_epochs_without_improvement(fit, patience, epochs):
    # at a rate of nothing, the second epoch is as good as the first
    history, _ = fit(rate=1e-9, epochs=5, callbacks=[EarlyStopping("val_f1_score", patience)])
    assert len(history.table) == epochs


def test_predictions_stand_in_the_order_of_the_ids(fit, images, split):
    _, model = fit()
    ids = split.ids(0, 0, "test")
    one_way = model.predict(Batches(images, ids, image_px=32))
    other = model.predict(Batches(images, ids[::-1], image_px=32))
    assert one_way.shape == (len(ids), 2) and np.allclose(one_way, other[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EarlyStopping("val_dice").settings(), "monitor: 'val_dice' is unknown.*val_loss"),
        (lambda: ReduceLROnPlateau("val_accuracy").settings(), "Give one of val_loss"),
        (lambda: ModelCheckpoint("a.safetensors", "loss"), "'loss' is unknown.*val_accuracy"),
        (lambda: ModelCheckpoint("a.keras"), "safetensors"),
    ],
)
def test_what_callbacks_refuse(make, words):
    with pytest.raises(ParameterError, match=words):
        make()


def test_what_fit_refuses(fit, images, split, tmp_path):
    model = KerasModel(Small, images.classes)
    train = Batches(images, split.ids(0, 0, "train"), image_px=32)
    more = {"validation_data": train, "work_folder": tmp_path}
    with pytest.raises(InputError, match="not compiled"):
        model.fit(train, **more)
    with pytest.raises(InputError, match="not trained"):
        model.predict(train)
    with pytest.raises(ParameterError, match="optimizer"):
        model.compile("rmsprop")
    with pytest.raises(ParameterError, match="plateau_factor"):
        fit(callbacks=[ReduceLROnPlateau(factor=1.5)])
    model.compile()
    other = load_phantom_glomeruli(20, 9, size_px=48)
    for validation in (
        Batches(images, split.ids(0, 0, "validation"), image_px=24),
        Batches(other, other.ids, image_px=32),
    ):
        with pytest.raises(InputError, match="another set or another size"):
            model.fit(train, **(more | {"validation_data": validation}))


class Breaking(Small):
    def forward(self, images):
        return super().forward(images) * float("inf")


def test_a_loss_that_is_not_finite_stops_the_fit(fit):
    with pytest.raises(InputError, match="training, epoch 1, step 1: the loss is nan.*0.03, so"):
        fit(build=Breaking)
