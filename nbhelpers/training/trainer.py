"""The trainer of all tasks: Lightning underneath, batches from packed pixels, resume to the bit."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import mmap
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.files import plain, sha256_of, write_json
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import derive_seed
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import load_pickled, read_tensors, save_checkpoint
from nbhelpers.training.losses import make_loss
from nbhelpers.training.mixing import mix_batch
from nbhelpers.training.recipe import Recipe

RESUME_SECONDS = 10.0  # a killed training loses at most this much and one epoch
VOXELS_AT_ONCE = 2**22  # of volumes, when predicting: 16 cubes of 16 x 128 x 128
_LOGGERS = ("lightning.pytorch", "lightning.fabric")
MONITORS = {"balanced_accuracy": "max", "accuracy": "max", "macro_f1": "max", "loss": "min"}


def uses_bf16(precision: str, device: str | None = None) -> bool:
    """Whether training and prediction run in bfloat16: asked for, or "auto" and the processor has
    it.

    ``device`` is "cuda" or "cpu"; without it, the one that training uses.
    """
    if precision != "auto":
        return precision == "bf16"
    if (device or _device()) == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _has_bf16_instructions() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def trains_in_bf16(precision: str, network: nn.Module) -> bool:
    """Whether this network is trained in bfloat16: asked for, or "auto" and known to be faster on
    this machine.

    On AVX-512 bf16 networks train 1.4 to 1.9 times faster (TinyCNN, ResNets, SqueezeNet, 3D
    networks; benchmarks/precision.py), but not those whose convolutions see one channel each, as in
    a MobileNet: without AMX these stay in fp32.
    """
    if precision != "auto" or _device() == "cuda":
        return uses_bf16(precision)
    grouped = any(
        part.groups > 1 for part in network.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)
    )
    return uses_bf16("auto") and (not grouped or "amx_bf16" in _processor_flags())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _has_bf16_instructions() -> bool:
    # without these, bf16 on the CPU is emulated and slower than fp32
    flags = _processor_flags()
    return (
        "avx512_bf16" in flags
        or "amx_bf16" in flags
        or "bf16" in flags.split("Features", 1)[-1].split("\n", 1)[0]
    )


def _processor_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # not Linux: fp32 is the safe choice


def memory_format(axes: int, network: nn.Module, channels_last: bool = True) -> torch.memory_format:
    """The order in memory in which a batch goes through the network fastest, where
    ``channels_last`` allows it.

    Images, with four ``axes`` (n, c, y, x), go channels last. So do volumes (n, c, z, y, x), but
    not in the training of a network with group norm on a processor: the backward pass of group norm
    takes several times as long there.
    """
    if not channels_last or axes not in (4, 5):
        return torch.contiguous_format
    if axes == 4:
        return torch.channels_last
    slow = (
        network.training
        and next(network.parameters()).device.type == "cpu"
        and any(isinstance(part, nn.GroupNorm) for part in network.modules())
    )
    return torch.contiguous_format if slow else torch.channels_last_3d


def images_at_once(pixels: np.ndarray, most: int) -> int:
    """How many images are predicted at a time: ``most``, or fewer of volumes, so that memory stays
    bounded.
    """
    return (
        most
        if pixels.ndim == 4
        else max(1, min(most, VOXELS_AT_ONCE // int(np.prod(pixels.shape[2:]))))
    )


def _own_share(batch: np.ndarray) -> np.ndarray:
    """Of a batch, what this process takes: all of it, but where several processes
    train together."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return batch
    return batch[distributed.get_rank() :: distributed.get_world_size()]


class _Batches(Dataset):
    """Indexes whole batches out of the packed pixels: one slice a batch, no per-image work."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, positions: np.ndarray):
        self.pixels = pixels
        self.labels = labels
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.positions[_own_share(batch)]
        return torch.from_numpy(self.pixels[rows]), torch.from_numpy(self.labels[rows])

    def __getstate__(
        self,
    ) -> dict[str, Any]:  # to another process as the name of the file, not as its pixels
        state = dict(self.__dict__)
        pixels = self.pixels
        if isinstance(pixels, np.memmap) and isinstance(pixels.base, mmap.mmap):
            state["pixels"] = (
                pixels.filename,
                pixels.dtype,
                "r",
                pixels.offset,
                pixels.shape,
                "F" if np.isfortran(pixels) else "C",
            )
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.pixels, tuple):
            self.pixels = np.memmap(*self.pixels)


class _SeededOrder(Sampler):
    """Batches of row numbers; the order of an epoch depends on the seed and the epoch alone."""

    def __init__(self, count: int, batch_size: int, seed: int):
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:  # Lightning calls this before each epoch
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, self.count // self.batch_size)

    def __iter__(self):
        order = np.random.default_rng(derive_seed(self.seed, "order", self.epoch)).permutation(
            self.count
        )
        for step in range(
            len(self)
        ):  # the incomplete last batch is left out: each epoch leaves out others
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
        validated: bool = True,
        devices: int = 1,
    ):
        super().__init__()
        self.validated = validated
        self.devices = devices
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
        self._validation: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.contiguous(
            memory_format=memory_format(images.ndim, self.network, self.recipe.channels_last)
        )
        return self.network(images).float()

    def on_fit_start(self) -> None:
        if (
            self.devices > 1
        ):  # in a process that Lightning started, and which knows nothing of the first one
            torch.set_flush_denormal(True)
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)

    def training_step(self, batch, batch_index: int) -> torch.Tensor:
        pixels, labels = batch
        # every draw of this step, dropout too, comes from (seed, epoch, step): that is what makes
        # resume exact
        own = (
            (self.global_rank,) if self.devices > 1 else ()
        )  # each process draws for its own share of the batch
        step = (self.current_epoch, batch_index, *own)
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
        self.log(
            "train_loss",
            loss,
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),
            sync_dist=self.devices > 1,
        )
        return loss

    def validation_step(self, batch, batch_index: int) -> None:
        pixels, labels = batch
        self._validation.append((self(self.transform.evaluate(pixels)), labels))

    def on_validation_epoch_end(self) -> None:
        from sklearn.metrics import f1_score

        logits, labels = (torch.cat(parts) for parts in zip(*self._validation, strict=True))
        self._validation.clear()
        if self.devices > 1:  # every process scores the whole, and so takes the same decisions
            shares: list = [None] * self.devices
            torch.distributed.all_gather_object(shares, (logits.cpu(), labels.cpu()))
            logits, labels = (torch.cat(parts) for parts in zip(*shares, strict=True))
        predicted = logits.argmax(1).cpu().numpy()
        labels_array = labels.cpu().numpy()
        present = np.unique(labels_array)
        recalls = [(predicted[labels_array == name] == name).mean() for name in present]
        scores = {
            "loss": float(F.cross_entropy(logits, labels)),
            "accuracy": float((predicted == labels_array).mean()),
            "balanced_accuracy": float(np.mean(recalls)),
            "macro_f1": float(
                f1_score(labels_array, predicted, labels=present, average="macro", zero_division=0)
            ),
        }
        self.log_dict(
            {f"validation_{name}": value for name, value in scores.items()},
            sync_dist=self.devices > 1,
        )

    def configure_optimizers(self):
        recipe = self.recipe
        settings = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": True}
        kinds = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
        }
        optimizer = kinds[recipe.optimizer](self._parameters_by_rate(), **settings)
        if recipe.schedule == "plateau":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=0.5, patience=5
            )
            monitor = "validation_loss" if self.validated else "train_loss"
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": monitor, "interval": "epoch"},
            }
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
        groups = [
            {"params": [parameter for parameter in trained if id(parameter) not in inside]},
            {
                "params": [parameter for parameter in trained if id(parameter) in inside],
                "lr": self.recipe.learning_rate * self.recipe.backbone_rate,
            },
        ]
        return [group for group in groups if group["params"]]

    def on_before_optimizer_step(self, optimizer) -> None:
        # not by Lightning's own setting, which refuses fused optimizers
        if self.recipe.clip_gradient:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_gradient)


class History(Callback):
    """One row per epoch; part of every checkpoint, so that a resumed run has the whole of it."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []

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


class ResumePoint(Checkpoint):
    """Writes ``resume.ckpt`` after an epoch, but not too often, and after the last one; knows in it
    whether that was the last.

    The file holds the network three times and more (averaged weights, both moments of the
    optimiser): half a second for a ResNet-18, which after every short epoch would be a fifth of the
    training. Runs after all other callbacks, so their state of this epoch is in the file.
    """

    def __init__(self, path: Path, epochs: int):
        self.path = path
        self.epochs = epochs
        self.finished = False
        self.written = time.monotonic()

    def on_train_epoch_end(self, trainer, task) -> None:
        done = trainer.current_epoch + 1
        self.finished = done == self.epochs or trainer.should_stop
        due = self.finished or time.monotonic() - self.written >= RESUME_SECONDS
        if trainer.strategy.broadcast(
            due
        ):  # all processes save together, and their clocks may differ
            trainer.save_checkpoint(
                self.path
            )  # Lightning writes to a temporary name, then replaces
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


def _average(
    decay: float, averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor
) -> None:
    now = min(decay, (1 + float(count)) / (10 + float(count)))
    if averaged[0].is_floating_point():
        torch._foreach_lerp_(averaged, current, 1 - now)
    else:  # counters
        torch._foreach_copy_(averaged, current)


class ProgressLines(Callback):
    """About ten plain lines per training: readable in a terminal, in JupyterLab, in a log and in a
    report.
    """

    def __init__(self, epochs: int, report: Callable[[str], None]):
        self.epochs = epochs
        self.report = report
        self.started = time.monotonic()
        self.first: int | None = None

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


@dataclass(frozen=True)
class Trained:
    """A trained network in evaluation mode, its history (one row per epoch), and the epoch that was
    kept.
    """

    network: nn.Module
    history: pd.DataFrame
    epoch: int
    score: float | None
    recipe: Recipe


def train(
    make_network: Callable[[], nn.Module],
    images: ImageSet,
    train_ids: np.ndarray,
    validation_ids: np.ndarray,
    recipe: Recipe,
    *,
    transform: Transform,
    seed: int,
    work_folder: str | Path,
    report: Callable[[str], None] | None = None,
    callbacks: Sequence[Callback] = (),
    devices: int = 1,
) -> Trained:
    """Train one network and keep the epoch that the recipe asks for, judged on the validation
    images.

    Killed at any moment and called again with the same arguments, it goes on from the last whole
    epoch and ends with the same weights, bit for bit, on the same machine. A finished training is
    read from ``work_folder``. With no validation images the last epoch is kept. ``callbacks`` are
    more callbacks of Lightning. Raises InputError for images without labels.

    ``devices`` above 1 trains with Lightning's DDP in so many processes, on as many GPUs, or on the
    processor: each takes its share of every batch, so that batch size and steps stay what the
    recipe says. Processes are started afresh (in a notebook: forked, which a GPU that was used
    before does not survive), so a script needs the usual ``if __name__ == "__main__":``, and
    progress is printed whatever ``report`` is. Augmentation is drawn for each share by itself;
    without it the result is that of one process, up to rounding. Raises ParameterError for a batch
    size that the devices do not divide, and InputError for fewer validation images than devices.
    """
    work_folder = Path(work_folder)
    finished = work_folder / "training.json"
    weights = work_folder / "network.safetensors"
    torch.set_flush_denormal(
        True
    )  # numbers below 1e-38 are 0: they can make steps in bfloat16 several times slower

    def make_in_order() -> (
        nn.Module
    ):  # as it is ordered in memory, so is it added up: other last digits otherwise
        network = make_network()
        order = memory_format(images.pixels.ndim, network, recipe.channels_last)
        return (
            network if order == torch.contiguous_format else network.to(memory_format=order)
        )  # else leave it alone

    if before := _finished_before(make_in_order, finished, weights, recipe):
        return before
    labels = images.labels
    rows = {"train": images.positions(train_ids), "validation": images.positions(validation_ids)}
    for part, positions in rows.items():
        if len(positions) and (labels[positions] < 0).any():
            raise InputError(
                images.name,
                f"{int((labels[positions] < 0).sum())} {part} images have no label.",
                "Only labelled images can be trained on.",
            )
    if not len(rows["train"]):
        raise InputError(images.name, "there are no training images.", "Check the split.")
    _check_devices(devices, recipe, images, rows)
    torch.manual_seed(derive_seed(seed, "weights"))
    network = make_in_order()
    order = _SeededOrder(len(rows["train"]), recipe.batch_size, derive_seed(seed, "train"))
    loaders = {
        "train_dataloaders": DataLoader(
            _Batches(images.pixels, labels, rows["train"]), sampler=order, batch_size=None
        )
    }
    validate = len(rows["validation"]) > 0
    if validate:
        batches = np.array_split(
            np.arange(len(rows["validation"])),
            -(-len(rows["validation"]) // images_at_once(images.pixels, 256)),
        )
        loaders["val_dataloaders"] = DataLoader(
            _Batches(images.pixels, labels, rows["validation"]), sampler=batches, batch_size=None
        )
    task = ClassifierTask(
        network,
        recipe,
        transform,
        seed=derive_seed(seed, "steps"),
        class_counts=np.bincount(labels[rows["train"]], minlength=len(images.classes)),
        total_steps=len(order) * recipe.epochs,
        validated=validate,
        devices=devices,
    )
    history = History()
    keep_best = recipe.keep == "best" and validate
    callbacks = [history, *callbacks]
    if report:
        callbacks.append(ProgressLines(recipe.epochs, report if devices == 1 else _print_once))
    if recipe.ema_decay:
        callbacks.append(average_weights(recipe.ema_decay))
    monitor = f"validation_{recipe.select_by}"
    mode = MONITORS[recipe.select_by]
    if recipe.early_stopping_patience and validate:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=recipe.early_stopping_patience))
    best = ModelCheckpoint(
        work_folder, "best", monitor=monitor, mode=mode, save_top_k=1, enable_version_counter=False
    )
    if keep_best:
        callbacks.append(best)
    resume_path = work_folder / "resume.ckpt"
    resume_point = ResumePoint(resume_path, recipe.epochs)
    callbacks.append(resume_point)
    work_folder.mkdir(parents=True, exist_ok=True)
    content = _load(resume_path)
    if content is not None and keep_best and _load(work_folder / "best.ckpt") is None:
        content = None  # damaged: the epoch to keep is lost, begin anew
    if content is None or not content["callbacks"][resume_point.state_key]["finished"]:
        with _quiet():
            trainer = lightning.Trainer(
                accelerator="gpu" if _device() == "cuda" else "cpu",
                devices=devices,
                max_epochs=recipe.epochs,
                strategy=_strategy(devices),
                sync_batchnorm=devices > 1 and _device() == "cuda",
                callbacks=callbacks,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                precision="bf16-mixed" if trains_in_bf16(recipe.precision, network) else "32-true",
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                default_root_dir=work_folder,
            )
            trainer.fit(
                task, **loaders, ckpt_path=resume_path if content else None, weights_only=True
            )
        content = _load(resume_path)
    # from the files, so that a run killed between the last epoch and here ends with the very same
    # weights;
    # with averaging, Lightning puts the averaged weights under "state_dict"
    chosen = _load(work_folder / "best.ckpt") if keep_best else content
    task.load_state_dict(chosen["state_dict"])
    kept_epoch = int(chosen["epoch"]) + 1
    rows_of_history = content["callbacks"][history.state_key]["rows"]
    score = rows_of_history[kept_epoch - 1][monitor] if validate else None
    network = task.network.cpu().eval()
    save_checkpoint(weights, network, classes=images.classes, about={"recipe": recipe.as_dict()})
    about = plain({"epoch": kept_epoch, "score": score, "history": rows_of_history})
    write_json(finished, {**about, "hash": sha256_of(about)})
    for name in ("resume.ckpt", "best.ckpt"):
        (work_folder / name).unlink(missing_ok=True)
    return Trained(network.to(_device()), pd.DataFrame(rows_of_history), kept_epoch, score, recipe)


def _check_devices(
    devices: int, recipe: Recipe, images: ImageSet, rows: dict[str, np.ndarray]
) -> None:
    if devices == 1:
        return
    if devices < 1 or recipe.batch_size % devices or len(rows["train"]) < recipe.batch_size:
        raise ParameterError(
            "parameter devices",
            f"{devices} devices cannot share batches of {recipe.batch_size} from "
            f"{len(rows['train'])} images alike.",
            "Give a number that divides batch_size, or 1.",
        )
    if 0 < len(rows["validation"]) < devices:
        raise InputError(
            images.name,
            f"there are {len(rows['validation'])} validation images for {devices} devices.",
            "Each device needs one: give fewer devices.",
        )


def _strategy(devices: int) -> str:
    if devices == 1:
        return "auto"
    from lightning.fabric.utilities.imports import _IS_INTERACTIVE

    return "ddp_notebook" if _IS_INTERACTIVE else "ddp_spawn"


def _print_once(line: str) -> None:
    if torch.distributed.get_rank() == 0:
        print(line, flush=True)


def _load(path: Path) -> dict[str, Any] | None:
    """A checkpoint of Lightning's, or None where there is none or it was damaged since."""
    try:
        return load_pickled(path)
    except Exception:  # of many types, where a pickle is damaged
        return None


def _finished_before(
    make_network: Callable[[], nn.Module], finished: Path, weights: Path, recipe: Recipe
) -> Trained | None:
    """What a finished training left in its folder; None where nothing is there or it was damaged
    since.
    """
    import json

    try:
        about = json.loads(finished.read_text(encoding="utf-8"))
        if about.pop("hash") != sha256_of(about):
            return None
        network = make_network()
        network.load_state_dict(read_tensors(weights))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
    return Trained(
        network.eval().to(_device()),
        pd.DataFrame(about["history"]),
        about["epoch"],
        about["score"],
        recipe,
    )


@contextlib.contextmanager
def _quiet():
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


@torch.inference_mode()
def predict_probabilities(
    network: nn.Module,
    pixels: np.ndarray,
    transform: Transform,
    *,
    views: int = 1,
    precision: str = "auto",
    channels_last: bool = True,
    batch_size: int = 128,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Images or volumes, uint8 or uint16, to (n, classes) float64 probabilities, averaged over
    ``views`` of each.

    ``pixels`` is (n, c, y, x) or (n, c, z, y, x), read batch by batch, so it may be a memory map
    larger than memory; ``rows`` are the row numbers to predict (all without), which are so never in
    memory together. At most ``batch_size`` at a time, fewer of large volumes. The network comes out
    as it went in.
    """
    was_training = network.training
    network = network.eval()
    device = next(network.parameters()).device
    parts = []
    batch_size = images_at_once(pixels, batch_size)
    for start in range(0, len(pixels) if rows is None else len(rows), batch_size):
        some = slice(start, start + batch_size)
        batch = torch.from_numpy(np.array(pixels[some if rows is None else rows[some]])).to(device)
        total = 0.0
        for view in range(views):
            images = transform.evaluate(batch, view)
            images = images.contiguous(
                memory_format=memory_format(images.ndim, network, channels_last)
            )
            with torch.autocast(
                device.type, torch.bfloat16, enabled=uses_bf16(precision, device.type)
            ):
                logits = network(images)
            total = total + logits.double().softmax(1)
        parts.append((total / views).cpu().numpy())
    network.train(was_training)
    if not parts:
        return np.zeros((0, 0))
    return np.concatenate(parts)
