"""A thin Keras-like face on the shared trainer: compile, fit with callbacks, predict, under the
names of Keras.

Not a second Keras. It translates: ``compile`` and the callbacks become a Recipe, ``fit`` calls
:func:`nbhelpers.training.trainer.train`, and the three callbacks watch the same numbers under
Keras's names.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.files import sha256_of, sha256_of_file, whole_file
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import derive_seed
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import hash_of_weights, save_checkpoint
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import predict_probabilities, train

# Keras's name -> the trainer's
LOGGED = {
    "loss": "train_loss",
    "accuracy": "train_accuracy",
    "val_loss": "validation_loss",
    "val_accuracy": "validation_accuracy",
    "val_balanced_accuracy": "validation_balanced_accuracy",
    "val_f1_score": "validation_macro_f1",
    "learning_rate": "learning_rate",
}


class Batches:
    """Batches of some images of a set, as the published data generator gives them: a Keras
    ``Sequence``.

    ``batches[i]`` is (x, y): x (b, 3, px, px) float32 from 0 to 1, resized to ``image_px`` (torch
    keeps the channels first), y (b, classes) float32 one-hot. ``on_epoch_end`` shuffles anew, by
    the seed and the epoch; iterating goes once through all and then shuffles. ``fit`` takes from it
    which images to use and how, and draws the batches itself, from the seed of the model.
    """

    def __init__(
        self,
        images: ImageSet,
        ids: Sequence[str],
        *,
        batch_size: int = 32,
        image_px: int = 224,
        shuffle: bool = True,
        transform: Transform | None = None,
        augment: bool = False,
        seed: int = 0,
    ):
        if batch_size < 1:
            raise ParameterError(
                "parameter batch_size", f"{batch_size} is out of range.", "Give 1 or more."
            )
        self.images = images
        self.ids = np.asarray(ids)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.transform = transform or Transform(Augmentation(), image_px)
        self.augment = augment
        self.epoch = 0
        self._positions = images.positions(self.ids)
        self._labels = images.labels
        self.indexes = np.arange(len(self.ids))
        self._shuffle()

    def _shuffle(self) -> None:
        if self.shuffle:
            self.indexes = np.random.default_rng(
                derive_seed(self.seed, "order", self.epoch)
            ).permutation(len(self.ids))

    def __len__(self) -> int:
        return math.ceil(len(self.ids) / self.batch_size)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        rows = self._positions[
            self.indexes[number * self.batch_size : (number + 1) * self.batch_size]
        ]
        pixels = torch.from_numpy(np.array(self.images.pixels[rows]))
        if self.augment:
            x = self.transform.train(pixels, derive_seed(self.seed, "augment", self.epoch, number))
        else:
            x = self.transform.evaluate(pixels)
        labels = torch.from_numpy(self._labels[rows])
        if (labels < 0).any():
            raise InputError(
                self.images.name,
                "images without a label cannot be one-hot encoded.",
                "Give labelled images only.",
            )
        return x, nn.functional.one_hot(labels, len(self.images.classes)).float()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in range(len(self)):
            yield self[number]
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self._shuffle()


class _Watching(Callback):
    """A callback that looks at one logged number after each epoch; the state of Keras's counters is
    kept for resume.
    """

    def __init__(self, monitor: str, mode: str, min_delta: float):
        if monitor not in LOGGED or monitor == "learning_rate":
            raise ParameterError(
                f"{type(self).__name__} monitor",
                f"{monitor!r} is not logged.",
                f"Give one of {', '.join(sorted(set(LOGGED) - {'learning_rate'}))}.",
            )
        if mode not in ("auto", "min", "max"):
            raise ParameterError(
                f"{type(self).__name__} mode", f"{mode!r} is unknown.", "Give auto, min or max."
            )
        self.monitor = monitor
        self.min_delta = abs(min_delta)
        self.mode = mode if mode != "auto" else ("min" if monitor.endswith("loss") else "max")
        self.reset()

    def reset(self) -> None:
        """Forget an earlier training, as Keras does when one begins."""
        self.best = math.inf if self.mode == "min" else -math.inf
        self.wait = 0

    def settings(self) -> list:
        """What makes a training with it another one, as text; Lightning hangs functions on
        callbacks, which are no part.
        """
        own = {
            name: str(value)
            for name, value in vars(self).items()
            if isinstance(value, str | int | float)
        }
        return [type(self).__name__, own]

    def improves(self, value: float, delta: float | None = None) -> bool:
        delta = self.min_delta if delta is None else delta
        return value < self.best - delta if self.mode == "min" else value > self.best + delta

    def value(self, trainer) -> float:
        name = LOGGED[self.monitor]
        if name not in trainer.callback_metrics:
            raise InputError(
                type(self).__name__,
                f"{self.monitor} is not known in this training.",
                "Give fit validation_data, or monitor loss.",
            )
        return float(trainer.callback_metrics[name])

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if isinstance(value, int | float)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class EarlyStopping(_Watching):
    """Stop when ``monitor`` has not improved by more than ``min_delta`` for ``patience`` epochs, as
    Keras does.

    With ``restore_best_weights`` the model ends with the weights of the best epoch, also when it
    was not stopped early (as Keras 3; Keras 2 restores only when it stops).
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        min_delta: float = 0.0,
        patience: int = 0,
        mode: str = "auto",
        restore_best_weights: bool = False,
    ):
        super().__init__(monitor, mode, min_delta)
        if restore_best_weights and min_delta:
            raise ParameterError(
                "EarlyStopping min_delta",
                "it cannot be had together with restore_best_weights.",
                "Leave it at 0: the best epoch is the one with the best value.",
            )
        self.patience = patience
        self.restore_best_weights = restore_best_weights

    def reset(self) -> None:
        super().reset()
        self.stopped_epoch = 0

    def on_train_epoch_end(self, trainer, task) -> None:
        value = self.value(trainer)
        self.wait += 1
        if self.improves(value):
            self.best = value
            self.wait = 0
        elif self.wait >= self.patience and trainer.current_epoch > 0:
            self.stopped_epoch = trainer.current_epoch
            trainer.should_stop = True


class ReduceLROnPlateau(_Watching):
    """Multiply the learning rate by ``factor`` when ``monitor`` stands still for ``patience``
    epochs, as Keras does.

    Never below ``min_lr``; after a reduction the count starts anew, and ``cooldown`` epochs are not
    counted.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        factor: float = 0.1,
        patience: int = 10,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ):
        super().__init__(monitor, mode, min_delta)
        if not 0 < factor < 1:
            raise ParameterError(
                "ReduceLROnPlateau factor",
                f"{factor} is out of range.",
                "Give 0 to 1, both excluded.",
            )
        self.factor = factor
        self.patience = patience
        self.cooldown = cooldown
        self.min_lr = min_lr

    def reset(self) -> None:
        super().reset()
        self.cooling = 0

    def on_train_epoch_end(self, trainer, task) -> None:
        value = self.value(trainer)
        if self.cooling > 0:
            self.cooling = self.cooling - 1
            self.wait = 0
        if self.improves(value):
            self.best = value
            self.wait = 0
        elif self.cooling <= 0:
            self.wait += 1
            if self.wait >= self.patience:
                for optimizer in trainer.optimizers:
                    for group in optimizer.param_groups:
                        if group["lr"] > self.min_lr:
                            group["lr"] = max(group["lr"] * self.factor, self.min_lr)
                for entry in (
                    trainer.lr_scheduler_configs
                ):  # else the trainer's constant schedule would undo it
                    entry.scheduler.base_lrs = [
                        group["lr"] for group in entry.scheduler.optimizer.param_groups
                    ]
                self.cooling = self.cooldown
                self.wait = 0


class ModelCheckpoint(_Watching):
    """Write the model (safetensors with its card) after an epoch; with ``save_best_only`` when
    ``monitor`` improved.

    The name in ``filepath`` may hold ``{epoch:02d}`` and logged names such as
    ``{val_accuracy:.3f}``. The last file is kept in the work folder of ``fit`` as well, so that it
    is there again when a finished or killed training is called again.
    """

    def __init__(
        self,
        filepath: str | Path,
        monitor: str = "val_loss",
        *,
        save_best_only: bool = False,
        mode: str = "auto",
    ):
        super().__init__(monitor, mode, 0.0)
        if Path(filepath).suffix != ".safetensors":
            raise ParameterError(
                "ModelCheckpoint filepath",
                f"{Path(filepath).name} is no .safetensors file.",
                "Weights are kept as safetensors, which no program runs when it opens them.",
            )
        if "{" in str(Path(filepath).parent):
            raise ParameterError(
                "ModelCheckpoint filepath",
                "its folder holds a brace.",
                "Only the name may hold {epoch}.",
            )
        self.filepath = Path(filepath)
        self.save_best_only = save_best_only
        self.classes = ()
        self.kept_in = None

    def reset(self) -> None:
        super().reset()
        self.last_path = None

    def settings(self) -> list:
        return []  # where it writes changes no training

    def on_train_epoch_end(self, trainer, task) -> None:
        value = self.value(trainer)
        if self.improves(value):
            self.best = value
        elif self.save_best_only:
            return
        known = {
            keras: float(trainer.callback_metrics[ours])
            for keras, ours in LOGGED.items()
            if ours in trainer.callback_metrics
        }
        self.last_path = self.filepath.with_name(
            self.filepath.name.format(epoch=trainer.current_epoch + 1, **known)
        )
        save_checkpoint(
            self.last_path,
            task.network,
            classes=self.classes,
            about={"epoch": trainer.current_epoch + 1, self.monitor: value},
        )
        if self.kept_in is not None:
            shutil.rmtree(self.kept_in, ignore_errors=True)
            _copy(self.last_path, self.kept_in / self.last_path.name)

    def write_again(self) -> None:
        """Put the last file of a training that was finished, or killed after its best epoch, where
        it belongs.
        """
        for kept in self.kept_in.glob("[!.]*.safetensors") if self.kept_in is not None else ():
            self.last_path = self.filepath.with_name(kept.name)
            if not self.last_path.is_file() or sha256_of_file(self.last_path) != sha256_of_file(
                kept
            ):
                _copy(kept, self.last_path)


def _copy(source: Path, target: Path) -> None:
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)


class _TrainingAccuracy(Callback):
    """Logs how many training images were right as they came, with dropout on, as Keras's
    ``accuracy`` does.
    """

    def __init__(self):
        self._logits = None

    def on_fit_start(self, trainer, task) -> None:
        def keep(module, inputs, output):
            if module.training:
                self._logits = output.detach()

        self._hook = task.network.register_forward_hook(keep)

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_index) -> None:
        labels = batch[1]
        right = (self._logits.argmax(1) == labels.to(self._logits.device)).float().mean()
        task.log("train_accuracy", right, on_step=False, on_epoch=True, batch_size=len(labels))

    def on_fit_end(self, trainer, task) -> None:
        self._hook.remove()


class History:
    """What ``fit`` returns: ``epoch`` (0, 1 ...) and ``history``, a list per logged name, as in
    Keras.
    """

    def __init__(self, table: pd.DataFrame, kept_epoch: int):
        self.table = table
        self.kept_epoch = kept_epoch
        self.epoch = list(range(len(table)))
        self.history = {
            keras: table[ours].tolist() for keras, ours in LOGGED.items() if ours in table
        }


class KerasModel:
    """A network with ``compile``, ``fit``, ``predict``, ``evaluate`` and ``summary`` as in Keras.

    ``build`` makes the network anew (it is called with torch seeded, so that the first weights are
    the same each time); ``classes`` are the names of its outputs.
    """

    def __init__(self, build: Callable[[], nn.Module], classes: Sequence[str], *, seed: int = 0):
        self.build = build
        self.classes = tuple(classes)
        self.seed = seed
        self.settings: dict[str, Any] | None = None
        self.network: nn.Module | None = None

    def compile(
        self,
        optimizer: str = "adam",
        *,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        """Choose optimiser and loss; the loss is categorical cross-entropy on the softmax of the
        logits.
        """
        self.settings = {
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "label_smoothing": label_smoothing,
        }
        Recipe(**self.settings)  # refuses what is out of range here and not in fit

    def recipe(
        self, batches: Batches, epochs: int, callbacks: Sequence[Callback], balanced: bool
    ) -> Recipe:
        """What ``fit`` asks of the trainer."""
        stopping = next((one for one in callbacks if isinstance(one, EarlyStopping)), None)
        restore = stopping is not None and stopping.restore_best_weights
        score = (
            LOGGED[stopping.monitor].removeprefix("validation_") if restore else "balanced_accuracy"
        )
        if restore and stopping.monitor in ("loss", "accuracy"):
            raise ParameterError(
                "EarlyStopping monitor",
                f"the best weights cannot be restored by {stopping.monitor}.",
                "Monitor val_loss or val_accuracy.",
            )
        if restore and stopping.mode != ("min" if score == "loss" else "max"):
            raise ParameterError(
                "EarlyStopping mode",
                f"{stopping.mode} is the wrong way round for {stopping.monitor}.",
                "Leave it at auto.",
            )
        return Recipe(
            name="keras",
            epochs=epochs,
            batch_size=batches.batch_size,
            schedule="constant",
            keep="best" if restore else "last",
            select_by=score,
            class_weight_power=float(balanced),
            input_px=batches.transform.input_px,
            augmentation=batches.transform.augmentation,
            **self.settings,
        )

    def fit(
        self,
        batches: Batches,
        *,
        validation_data: Batches | None = None,
        epochs: int = 1,
        callbacks: Sequence[Callback] = (),
        balanced: bool = False,
        work_folder: str | Path | None = None,
        report: Callable[[str], None] | None = print,
    ) -> History:
        """Train, and return the history. ``balanced`` weights the loss so that each class counts
        the same (Keras's ``class_weight``). Unlike Keras, every call starts from the first weights
        and with callbacks that have forgotten earlier trainings. Killed and called again with the
        same ``work_folder`` it goes on from the last whole epoch, and a finished training is read
        from there; another network, images, settings or callbacks have a folder of their own in it.
        The images of both generators must come from one set and be prepared alike. Raises
        InputError, ParameterError.
        """
        if self.settings is None:
            raise InputError("fit", "the model is not compiled.", "Call compile first.")
        if (
            validation_data is not None
            and validation_data.images.content_hash != batches.images.content_hash
        ):
            raise InputError(
                "validation_data",
                "its images come from another set than the training images.",
                "Make both generators from one ImageSet.",
            )
        if not batches.augment and batches.transform.augmentation != Augmentation():
            raise InputError(
                "fit",
                "the transform augments, but the generator was made with augment=False.",
                "Make it with augment=True, or with a transform that does not augment.",
            )
        if not batches.shuffle:
            raise InputError(
                "fit",
                "the generator of the training images was made with shuffle=False.",
                "Make it with shuffle=True: training draws a new order in each epoch.",
            )
        if validation_data is not None and validation_data.augment:
            raise InputError(
                "validation_data", "its generator augments.", "Make it with augment=False."
            )
        if validation_data is not None and _as_seen(validation_data) != _as_seen(batches):
            raise InputError(
                "validation_data",
                "its images are prepared in another way than the training images.",
                "Give both generators the same image_px or transform.",
            )
        recipe = self.recipe(batches, epochs, callbacks, balanced)
        validation = validation_data.ids if validation_data is not None else batches.ids[:0]
        for one in callbacks:
            if isinstance(one, _Watching):
                one.reset()
        settings = [
            one.settings() if isinstance(one, _Watching) else type(one).__name__
            for one in callbacks
        ]
        checkpoints = [one for one in callbacks if isinstance(one, ModelCheckpoint)]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(work_folder or temporary) / self._key(
                batches, validation, recipe, settings
            )
            for number, callback in enumerate(checkpoints):
                callback.classes = self.classes
                callback.kept_in = folder / f"checkpoint{number}" if work_folder else None
            trained = train(
                self.build,
                batches.images,
                batches.ids,
                validation,
                recipe,
                seed=self.seed,
                transform=batches.transform,
                work_folder=folder,
                report=report,
                callbacks=[_TrainingAccuracy(), *callbacks],
            )
            for callback in checkpoints:
                callback.write_again()
        self.network = trained.network
        return History(trained.history, trained.epoch)

    def _key(
        self, batches: Batches, validation: np.ndarray, recipe: Recipe, callbacks: list
    ) -> str:
        """Whatever makes a training another one, as 16 hex digits."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.build()
        trained = [
            name for name, parameter in network.named_parameters() if parameter.requires_grad
        ]
        return sha256_of(
            [
                batches.images.content_hash,
                list(batches.ids),
                list(validation),
                recipe.as_dict(),
                self.seed,
                self.classes,
                repr(network),
                hash_of_weights(network),
                trained,
                _as_seen(batches),
                callbacks,
                torch.get_num_threads(),
                torch.cuda.is_available(),
            ]
        )[:16]

    def predict(self, batches: Batches, *, views: int = 1) -> np.ndarray:
        """(n, classes) float64 probabilities, in the order of ``batches.ids`` whatever was
        shuffled.
        """
        if self.network is None:
            raise InputError("predict", "the model is not trained.", "Call fit first.")
        rows = batches.images.positions(batches.ids)
        return predict_probabilities(
            self.network,
            batches.images.pixels[rows],
            batches.transform,
            views=views,
            batch_size=batches.batch_size,
        )

    def evaluate(self, batches: Batches) -> dict[str, float]:
        """``loss`` and ``accuracy`` on the images of ``batches``."""
        probabilities = self.predict(batches)
        labels = batches.images.labels[batches.images.positions(batches.ids)]
        likelihood = np.clip(
            probabilities[np.arange(len(labels)), labels], 1e-7, 1
        )  # Keras's epsilon
        return {
            "loss": float(-np.log(likelihood).mean()),
            "accuracy": float((probabilities.argmax(1) == labels).mean()),
        }

    def summary(self) -> pd.DataFrame:
        """One row per part with weights: name, kind, parameters, trained or frozen."""
        network = self.network or self.build()
        rows = [
            {
                "layer": name,
                "kind": type(part).__name__,
                "parameters": sum(one.numel() for one in own),
                "trained": all(one.requires_grad for one in own),
            }
            for name, part in network.named_modules()
            if (own := list(part.parameters(recurse=False)))
        ]
        return pd.DataFrame(rows)


def _as_seen(batches: Batches) -> list:
    """How the images of a generator are prepared, augmentation apart, as text to compare."""
    about = {
        name: str(value)
        for name, value in vars(batches.transform).items()
        if name != "augmentation"
    }
    return [type(batches.transform).__name__, about]
