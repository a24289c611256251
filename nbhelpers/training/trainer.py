"""The trainer of all studies: Lightning underneath, batches from packed pixels, exact resume."""

import contextlib
import functools
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    WeightAveraging,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import plain, sha256_of, write_json
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import derive_seed, generator_for
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import read_tensors, save_checkpoint
from nbhelpers.training.forward import (
    default_device,
    images_at_once,
    memory_format,
    processor_flags,
    uses_bf16,
)
from nbhelpers.training.losses import check_loss, make_loss
from nbhelpers.training.mixing import mix_batch
from nbhelpers.training.pickles import load_pickled
from nbhelpers.training.recipe import Recipe

RESUME_SECONDS = 10.0  # a killed training loses at most this much and one epoch
PLATEAU_DELTA = 1e-4  # a loss that falls by less stands still, as in Keras
_LOGGERS = ("lightning.pytorch", "lightning.fabric")
MONITORS = {"balanced_accuracy": "max", "accuracy": "max", "macro_f1": "max", "loss": "min"}


@dataclass(frozen=True)
class Trained:
    """A trained network in evaluation mode, its history (one row per epoch), the epoch that was
    kept, and the folder of the training.
    """

    network: nn.Module
    history: pd.DataFrame
    epoch: int
    score: float | None
    recipe: Recipe
    folder: Path


def train(
    make_network: Callable[[], nn.Module],
    images: ImageSet,
    ids: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    *,
    transform: Transform,
    seed: int,
    work_folder: str | Path,
    callbacks: Sequence[Callback] = (),
) -> Trained:
    """Train one network and keep the epoch that the recipe asks for, judged on the validation
    images.

    ``ids`` are those of the training and of the validation images; with no validation images the
    last epoch is kept. Killed at any moment and called again with the same arguments, it goes on
    from the last whole epoch and ends with the same weights, bit for bit, on the same machine. A
    finished training is read from ``work_folder``. ``callbacks`` are more callbacks of Lightning,
    such as :class:`ProgressLines`. Raises InputError for images without labels, and at once where
    the loss is no finite number any more.
    """
    work_folder = Path(work_folder)
    # numbers below 1e-38 are 0: they can make steps in bfloat16 several times slower
    torch.set_flush_denormal(True)

    def make_in_order() -> nn.Module:
        # as it is ordered in memory, so is it added up: other last digits otherwise
        network = make_network()
        order = memory_format(images.pixels.ndim, network, recipe.channels_last)
        return network if order == torch.contiguous_format else network.to(memory_format=order)

    before = _finished_before(make_in_order, work_folder, recipe)
    if before is not None:
        return before
    labels = images.labels
    train_rows = _labelled_rows(images, ids[0], "train")
    validation_rows = _labelled_rows(images, ids[1], "validation")
    if not len(train_rows):
        raise InputError(images.name, "there are no training images.", "Check the split.")
    torch.manual_seed(derive_seed(seed, "weights"))
    network = make_in_order()
    order = _SeededOrder(len(train_rows), recipe.batch_size, derive_seed(seed, "train"))
    training_batches = _Batches(images.pixels, labels, train_rows)
    loaders = [DataLoader(training_batches, sampler=order, batch_size=None)]
    validated = len(validation_rows) > 0
    if validated:
        count = -(-len(validation_rows) // images_at_once(images.pixels, 256))
        parts = np.array_split(np.arange(len(validation_rows)), count)
        validation_batches = _Batches(images.pixels, labels, validation_rows)
        loaders.append(DataLoader(validation_batches, sampler=parts, batch_size=None))
    task = ClassifierTask(
        network,
        recipe,
        transform,
        seed=derive_seed(seed, "steps"),
        class_counts=np.bincount(labels[train_rows], minlength=len(images.classes)),
        total_steps=len(order) * recipe.epochs,
    )
    monitor = f"validation_{recipe.select_by}"
    mode = MONITORS[recipe.select_by]
    keep_best = recipe.keep == "best" and validated
    history = History()
    resume_path = work_folder / "resume.ckpt"
    resume_point = ResumePoint(resume_path, recipe.epochs)
    used = [history, *callbacks]
    if recipe.schedule == "plateau":
        used.append(ReducedRate(recipe, "validation_loss" if validated else "train_loss"))
    if recipe.ema_decay:
        used.append(average_weights(recipe.ema_decay))
    if recipe.early_stopping_patience and validated:
        used.append(EarlyStopping(monitor, mode=mode, patience=recipe.early_stopping_patience))
    if keep_best:
        best = ModelCheckpoint(
            work_folder, "best", monitor=monitor, mode=mode, enable_version_counter=False
        )
        used.append(best)
    used.append(resume_point)
    work_folder.mkdir(parents=True, exist_ok=True)
    content = _load(resume_path)
    if content is not None and keep_best and _load(work_folder / "best.ckpt") is None:
        content = None  # damaged: the epoch to keep is lost, begin anew
    if content is None or not content["callbacks"][resume_point.state_key]["finished"]:
        with _quiet():
            trainer = lightning.Trainer(
                accelerator="gpu" if default_device() == "cuda" else "cpu",
                devices=1,
                max_epochs=recipe.epochs,
                callbacks=used,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                precision="bf16-mixed" if trains_in_bf16(recipe.precision, network) else "32-true",
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                default_root_dir=work_folder,
            )
            resumed = resume_path if content else None
            trainer.fit(task, *loaders, ckpt_path=resumed, weights_only=True)
        content = _load(resume_path)
    # From the files, so that a run killed between the last epoch and here ends with the very same
    # weights. With averaging, Lightning puts the averaged weights under "state_dict".
    chosen = _load(work_folder / "best.ckpt") if keep_best else content
    task.load_state_dict(chosen["state_dict"])
    kept_epoch = int(chosen["epoch"]) + 1
    rows = content["callbacks"][history.state_key]["rows"]
    score = rows[kept_epoch - 1][monitor] if validated else None
    network = task.network.cpu().eval()
    card = {"recipe": recipe.as_dict()}
    save_checkpoint(
        work_folder / "network.safetensors", network, classes=images.classes, about=card
    )
    about = plain({"epoch": kept_epoch, "score": score, "history": rows})
    write_json(work_folder / "training.json", {**about, "hash": sha256_of(about)})
    for name in ("resume.ckpt", "best.ckpt"):
        (work_folder / name).unlink(missing_ok=True)
    network = network.to(default_device())
    return Trained(network, pd.DataFrame(rows), kept_epoch, score, recipe, work_folder)


def _labelled_rows(images: ImageSet, ids: np.ndarray, part: str) -> np.ndarray:
    rows = images.positions(ids)
    unlabelled = int((images.labels[rows] < 0).sum())
    if unlabelled:
        raise InputError(
            images.name,
            f"{unlabelled} {part} images have no label.",
            "Only labelled images can be trained on.",
        )
    return rows


def _load(path: Path) -> dict[str, Any] | None:
    """A checkpoint of Lightning's, or None where there is none or it was damaged since."""
    try:
        return load_pickled(path)
    except Exception:  # of many types, where a pickle is damaged
        return None


def _finished_before(
    make_network: Callable[[], nn.Module], folder: Path, recipe: Recipe
) -> Trained | None:
    """What a finished training left in its folder; None where nothing is there or it was damaged
    since.
    """
    try:
        about = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        if about.pop("hash") != sha256_of(about):
            return None
        network = make_network()
        network.load_state_dict(read_tensors(folder / "network.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
    history = pd.DataFrame(about["history"])
    network = network.eval().to(default_device())
    return Trained(network, history, about["epoch"], about["score"], recipe, folder)


def trains_in_bf16(precision: str, network: nn.Module) -> bool:
    """Whether this network is trained in bfloat16: asked for, or "auto" and known to be faster on
    this machine.

    On AVX-512 bf16 networks train 1.4 to 1.9 times faster (TinyCNN, ResNets, SqueezeNet, 3D
    networks; benchmarks/precision.py), but not those whose convolutions see one channel each, as in
    a MobileNet: without AMX these stay in fp32.
    """
    if precision != "auto" or default_device() == "cuda":
        return uses_bf16(precision)
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)]
    grouped = any(part.groups > 1 for part in convolutions)
    return uses_bf16("auto") and (not grouped or "amx_bf16" in processor_flags())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's hints on loaders and hardware are no news to the reader of a report."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@dataclass(eq=False)
class _Batches(Dataset):
    """Indexes whole batches out of the packed pixels: one slice a batch, no per-image work."""

    pixels: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = self.positions[batch]
        return torch.from_numpy(self.pixels[rows]), torch.from_numpy(self.labels[rows])


@dataclass(eq=False)
class _SeededOrder(Sampler):
    """Batches of row numbers; the order of an epoch depends on the seed and the epoch alone."""

    count: int
    batch_size: int
    seed: int
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:  # Lightning calls this before each epoch
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, self.count // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        draw = generator_for(self.seed, "order", self.epoch)
        order = draw.permutation(self.count)
        # the incomplete last batch is left out: each epoch leaves out others
        for step in range(len(self)):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]


class ClassifierTask(lightning.LightningModule):
    """A network with its recipe, as Lightning wants it."""

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        transform: Transform,
        *,
        class_counts: np.ndarray,
        total_steps: int,
        seed: int,
    ):
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.transform = transform
        self.total_steps = total_steps
        self.seed = seed
        weight = None
        if recipe.class_weight_power:
            share = class_counts.sum() / (len(class_counts) * np.maximum(class_counts, 1))
            weight = torch.tensor(share**recipe.class_weight_power, dtype=torch.float32)
        self.register_buffer("class_weight", weight, persistent=False)
        self.class_counts = class_counts
        self._validation: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        order = memory_format(images.ndim, self.network, self.recipe.channels_last)
        return self.network(images.contiguous(memory_format=order)).float()

    def training_step(self, batch, batch_index: int) -> Tensor:
        pixels, labels = batch
        # every draw of this step, dropout too, comes from (seed, epoch, step): that is what makes
        # resume exact
        step = (self.current_epoch, batch_index)
        torch.manual_seed(derive_seed(self.seed, "step", *step))
        images = self.transform.train(pixels, derive_seed(self.seed, "augment", *step))
        if self.recipe.mix != "none":
            images, labels = mix_batch(
                images,
                labels,
                len(self.class_counts),
                mix=self.recipe.mix,
                alpha=self.recipe.mix_alpha,
                seed=derive_seed(self.seed, "mix", *step),
            )
        loss = make_loss(self.recipe, self.class_counts, self.class_weight)(self(images), labels)
        self._check(loss, f"step {batch_index + 1}")
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def _check(self, loss: Tensor, part: str) -> None:
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        check_loss(float(loss.detach()), f"epoch {self.current_epoch + 1}, {part}", rate)

    def validation_step(self, batch, batch_index: int) -> None:
        pixels, labels = batch
        self._validation.append((self(self.transform.evaluate(pixels)), labels))

    def on_validation_epoch_end(self) -> None:
        from sklearn.metrics import precision_recall_fscore_support

        # of the whole part at once: a mean over batches would overrate the last, smaller one
        logits = torch.cat([one for one, _ in self._validation])
        labels = torch.cat([one for _, one in self._validation])
        self._validation.clear()
        predicted = logits.argmax(1).cpu().numpy()
        true = labels.cpu().numpy()
        present = np.unique(true)
        _, recall, macro_f1, _ = precision_recall_fscore_support(
            true, predicted, labels=present, average="macro", zero_division=0
        )
        loss = F.cross_entropy(logits, labels)
        self._check(loss, "validation")
        self.log("validation_loss", float(loss))
        self.log("validation_accuracy", float((predicted == true).mean()))
        self.log("validation_balanced_accuracy", float(recall))
        self.log("validation_macro_f1", float(macro_f1))

    def configure_optimizers(self):
        recipe = self.recipe
        settings = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": True}
        kinds = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
        }
        optimizer = kinds[recipe.optimizer](self._parameters_by_rate(), **settings)
        if recipe.schedule == "plateau":  # then ReducedRate sets the rate
            return {"optimizer": optimizer}
        warmup = recipe.warmup_fraction * self.total_steps

        def rate(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if recipe.schedule == "constant":
                return 1.0
            done = (step - warmup) / max(1.0, self.total_steps - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _parameters_by_rate(self) -> list:
        """What is trained: all in one group, or the backbone in a second one with a rate of its
        own.
        """
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        backbone = getattr(self.network, "backbone", None)
        if self.recipe.backbone_rate == 1 or backbone is None:
            return trained
        inside = {id(parameter) for parameter in backbone.parameters()}
        head = [parameter for parameter in trained if id(parameter) not in inside]
        body = [parameter for parameter in trained if id(parameter) in inside]
        rate = self.recipe.learning_rate * self.recipe.backbone_rate
        groups = [{"params": head}, {"params": body, "lr": rate}]
        return [group for group in groups if group["params"]]

    def on_before_optimizer_step(self, optimizer) -> None:
        # not by Lightning's own setting, which refuses fused optimizers
        if self.recipe.clip_gradient:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_gradient)


@dataclass(eq=False)
class History(Callback):
    """One row per epoch; part of every checkpoint, so that a resumed run has the whole of it."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def on_train_epoch_end(self, trainer, task) -> None:
        row = {
            "epoch": trainer.current_epoch + 1,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        row |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append(dict(sorted(row.items())))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


@dataclass(eq=False)
class ReducedRate(Callback):
    """The schedule "plateau": where the loss has stood still for some epochs, the rate falls by a
    factor, as Keras's ReduceLROnPlateau counts them.

    Not Lightning's own plateau, which steps after the checkpoint of its epoch is written: a run
    killed in between would miss that step.
    """

    recipe: Recipe
    monitor: str
    best: float = math.inf
    waited: int = 0

    def on_train_epoch_end(self, trainer, task) -> None:
        value = float(trainer.callback_metrics[self.monitor])
        if value < self.best - PLATEAU_DELTA:
            self.best = value
            self.waited = 0
            return
        self.waited += 1
        if self.waited < self.recipe.plateau_patience:
            return
        self.waited = 0
        lowest = self.recipe.plateau_lowest_rate
        for group in trainer.optimizers[0].param_groups:
            if group["lr"] > lowest:
                group["lr"] = max(group["lr"] * self.recipe.plateau_factor, lowest)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


@dataclass(eq=False)
class ResumePoint(Checkpoint):
    """Writes ``resume.ckpt`` after an epoch, but not too often, and after the last one; knows in it
    whether that was the last.

    The file holds the network three times and more (averaged weights, both moments of the
    optimiser): half a second for a ResNet-18, which after every short epoch would be a fifth of the
    training. Runs after all other callbacks, so their state of this epoch is in the file.
    """

    path: Path
    epochs: int
    finished: bool = False
    written: float = field(default_factory=time.monotonic)

    def on_train_epoch_end(self, trainer, task) -> None:
        self.finished = trainer.current_epoch + 1 == self.epochs or trainer.should_stop
        if self.finished or time.monotonic() - self.written >= RESUME_SECONDS:
            # Lightning writes to a temporary name, then replaces
            trainer.save_checkpoint(self.path)
            self.written = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"finished": self.finished}


def average_weights(decay: float) -> WeightAveraging:
    """Lightning's exponential moving average, with a decay that rises to ``decay`` over the first
    steps.

    With the full decay from the start, a short training would still remember its random first
    weights.
    """
    return WeightAveraging(multi_avg_fn=functools.partial(_average, decay))


def _average(decay: float, averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    now = min(decay, (1 + float(count)) / (10 + float(count)))
    if averaged[0].is_floating_point():
        torch._foreach_lerp_(averaged, current, 1 - now)
    else:  # counters
        torch._foreach_copy_(averaged, current)


@dataclass(eq=False)
class ProgressLines(Callback):
    """About ten plain lines per training: readable in a terminal, in JupyterLab, in a log and in a
    report.
    """

    epochs: int
    report: Callable[[str], None] = print
    started: float = field(default_factory=time.monotonic)
    first: int | None = None

    def on_train_epoch_start(self, trainer, task) -> None:
        self.first = trainer.current_epoch if self.first is None else self.first

    def on_train_epoch_end(self, trainer, task) -> None:
        done = trainer.current_epoch + 1
        if done % max(1, self.epochs // 10) and done != self.epochs:
            return
        spent = time.monotonic() - self.started
        left = spent / (done - self.first) * (self.epochs - done)
        scores = trainer.callback_metrics
        text = f"epoch {done:>4} of {self.epochs}   training loss {float(scores['train_loss']):.3f}"
        if "validation_balanced_accuracy" in scores:
            balanced = float(scores["validation_balanced_accuracy"])
            text += f"   validation balanced accuracy {balanced:.3f}"
        self.report(f"{text}   {left:.0f} s left")
