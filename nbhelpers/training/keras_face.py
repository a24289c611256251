"""The trainer under the names of Keras: compile, fit with callbacks, predict, summary.

Not a second Keras. ``compile`` and the callbacks become a Recipe, and the trainer does the work;
the same run both ways gives the same losses to the last digit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import ModelCheckpoint as KeptEpoch
from torch import nn

from nbhelpers.core.errors import InputError, ParameterError, check_choice
from nbhelpers.core.imageset import ImageSet
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import save_checkpoint
from nbhelpers.training.crossvalidation import train_kept
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.pickles import load_pickled
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import MONITORS, ProgressLines, Trained

# Keras's name -> the trainer's
LOGGED = {
    "loss": "train_loss",
    "val_loss": "validation_loss",
    "val_accuracy": "validation_accuracy",
    "val_balanced_accuracy": "validation_balanced_accuracy",
    "val_f1_score": "validation_macro_f1",
    "learning_rate": "learning_rate",
}


def _score(monitor: str) -> str:
    """The trainer's name of a validation score: "val_accuracy" is "accuracy"."""
    check_choice("parameter monitor", monitor, [name for name in LOGGED if name[:4] == "val_"])
    return LOGGED[monitor].removeprefix("validation_")


@dataclass(frozen=True)
class Batches:
    """Images of a set by their ids, to train on or to predict, as Keras's generators stand for
    them. ``image_px`` is the height and width the network sees (0: as stored).
    """

    images: ImageSet
    ids: Sequence[str]
    batch_size: int = 32
    image_px: int = 224

    @property
    def transform(self) -> Transform:
        return Transform(Augmentation(), self.image_px)


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when ``monitor`` has not improved for ``patience`` epochs.

    With ``restore_best_weights`` the model ends with the weights of the best epoch, also when it
    was not stopped early (as Keras 3; Keras 2 restores only when it stops).
    """

    monitor: str = "val_loss"
    patience: int = 0
    restore_best_weights: bool = False

    def settings(self) -> dict[str, Any]:
        return {
            "select_by": _score(self.monitor),
            "early_stopping_patience": max(1, self.patience),  # 0 is never in a Recipe
            "keep": "best" if self.restore_best_weights else "last",
        }


@dataclass(frozen=True)
class ReduceLROnPlateau:
    """Multiply the learning rate by ``factor`` when the validation loss has not fallen by more than
    1e-4 for ``patience`` epochs, never below ``min_lr``.
    """

    monitor: str = "val_loss"
    factor: float = 0.1
    patience: int = 10
    min_lr: float = 0.0

    def settings(self) -> dict[str, Any]:
        check_choice("ReduceLROnPlateau monitor", self.monitor, ["val_loss"])
        return {
            "schedule": "plateau",
            "plateau_patience": self.patience,
            "plateau_factor": self.factor,
            "plateau_lowest_rate": self.min_lr,
        }


@dataclass(frozen=True)
class ModelCheckpoint:
    """Write the model (safetensors with its card) to ``filepath``: of the epoch with the best
    ``monitor``, or with ``save_best_only=False`` of the last one. It is there when ``fit`` returns.
    """

    filepath: str | Path
    monitor: str = "val_loss"
    save_best_only: bool = False

    def __post_init__(self):
        _score(self.monitor)
        if Path(self.filepath).suffix != ".safetensors":
            raise ParameterError(
                "ModelCheckpoint filepath",
                f"{Path(self.filepath).name} is no .safetensors file.",
                "Weights are kept as safetensors, which no program runs when it opens them.",
            )

    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def name(self) -> str:
        return f"checkpoint-{self.monitor}-{self.save_best_only}"

    def keeper(self) -> KeptEpoch:
        """Lightning's own, which keeps the epoch in the folder of the training, where a finished or
        killed one finds it again.
        """
        best = {"monitor": LOGGED[self.monitor], "mode": MONITORS[_score(self.monitor)]}
        return KeptEpoch(
            filename=self.name,
            save_weights_only=True,
            enable_version_counter=False,
            **best if self.save_best_only else {},
        )

    def write(self, network: nn.Module, classes: Sequence[str], trained: Trained) -> None:
        """The kept epoch, under its own name; ``network`` takes its weights."""
        kept = load_pickled(trained.folder / "checkpoints" / f"{self.name}.ckpt")
        weights = {
            name.removeprefix("network."): value for name, value in kept["state_dict"].items()
        }
        network.load_state_dict(weights)
        value = trained.history[LOGGED[self.monitor]].iloc[kept["epoch"]]
        about = {"epoch": kept["epoch"] + 1, self.monitor: value}
        save_checkpoint(self.filepath, network, classes=classes, about=about)


@dataclass(frozen=True)
class History:
    """What ``fit`` returns: ``history``, a list per logged name, as in Keras; ``table``, the same
    under the trainer's names, one row per epoch; ``kept_epoch``.
    """

    table: pd.DataFrame
    kept_epoch: int

    @property
    def history(self) -> dict[str, list[float]]:
        table = self.table
        return {keras: table[ours].tolist() for keras, ours in LOGGED.items() if ours in table}


class KerasModel:
    """A network with ``compile``, ``fit``, ``predict`` and ``summary`` as in Keras.

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
        logits. Raises ParameterError for what is out of range.
        """
        self.settings = {
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "label_smoothing": label_smoothing,
        }
        Recipe(**self.settings)

    def fit(
        self,
        batches: Batches,
        *,
        validation_data: Batches,
        work_folder: str | Path,
        epochs: int = 1,
        callbacks: Sequence[EarlyStopping | ReduceLROnPlateau | ModelCheckpoint] = (),
        balanced: bool = False,
        report: Callable[[str], None] | None = print,
    ) -> History:
        """Train, and return the history. ``balanced`` weights the loss so that each class counts
        the same (Keras's ``class_weight``).

        Unlike Keras, every call starts from the first weights. Killed and called again with the
        same ``work_folder`` it goes on from the last whole epoch, and a finished training is read
        from there. Raises InputError, ParameterError.
        """
        if self.settings is None:
            raise InputError("fit", "the model is not compiled.", "Call compile first.")
        images = batches.images
        if (
            validation_data.images.content_hash != images.content_hash
            or validation_data.image_px != batches.image_px
        ):
            raise InputError(
                "validation_data",
                "its images are of another set or another size than the training images.",
                "Make both from one ImageSet, with the same image_px.",
            )
        settings = {"schedule": "constant", "keep": "last", **self.settings}
        for callback in callbacks:
            settings |= callback.settings()
        recipe = Recipe(
            name="keras",
            epochs=epochs,
            batch_size=batches.batch_size,
            class_weight_power=float(balanced),
            input_px=batches.image_px,
            **settings,
        )
        checkpoints = [one for one in callbacks if isinstance(one, ModelCheckpoint)]
        lines = [ProgressLines(epochs, report)] if report else []
        # other checkpoints, another folder: a finished training has written only its own
        name = "-".join(["keras", *(one.name for one in checkpoints)])
        trained = train_kept(
            self.build,
            images,
            (np.asarray(batches.ids), np.asarray(validation_data.ids)),
            recipe,
            transform=batches.transform,
            seed=self.seed,
            folder=Path(work_folder) / name,
            callbacks=[*(one.keeper() for one in checkpoints), *lines],
        )
        for checkpoint in checkpoints:
            checkpoint.write(self.build(), self.classes, trained)
        self.network = trained.network
        return History(trained.history, trained.epoch)

    def predict(self, batches: Batches) -> np.ndarray:
        """(n, classes) float64 probabilities, in the order of ``batches.ids``."""
        if self.network is None:
            raise InputError("predict", "the model is not trained.", "Call fit first.")
        return predict_probabilities(
            self.network,
            batches.images.pixels,
            batches.transform,
            rows=batches.images.positions(batches.ids),
            batch_size=batches.batch_size,
        )

    def summary(self) -> pd.DataFrame:
        """One row per part with weights: name, kind, parameters, trained or frozen."""
        rows = []
        for name, part in (self.network or self.build()).named_modules():
            own = list(part.parameters(recurse=False))
            if own:
                rows.append(
                    {
                        "layer": name,
                        "kind": type(part).__name__,
                        "parameters": sum(one.numel() for one in own),
                        "trained": all(one.requires_grad for one in own),
                    }
                )
        return pd.DataFrame(rows)
