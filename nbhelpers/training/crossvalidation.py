"""Train and test on every fold of a split, choosing the recipe inside the training folds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core.files import sha256_of
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split
from nbhelpers.training.augment import Transform
from nbhelpers.training.recipe import Recipe
from nbhelpers.training.trainer import Trained, predict_probabilities, train


@dataclass(frozen=True)
class CrossValidated:
    """What came out of all folds.

    ``predictions`` has the validation and test parts of every fold; ``histories`` one row per
    repeat, fold, recipe and epoch; ``choices`` one row per repeat, fold and recipe: its validation
    log-loss, the epoch, whether chosen; ``last`` is the network that predicted the test part of the
    last fold: of a hold-out, the one that was tested.
    """

    predictions: Predictions
    histories: pd.DataFrame
    choices: pd.DataFrame
    last: Trained


def cross_validate(
    make_network: Callable[[], nn.Module],
    images: ImageSet,
    split: Split,
    recipes: Sequence[Recipe],
    *,
    make_transform: Callable[[Recipe], Transform],
    seed: int,
    work_folder: str | Path,
    model: str,
    retrain: bool = False,
    run: str = "",
    report: Callable[[str], None] | None = print,
) -> CrossValidated:
    """Train on every fold, predict its validation and test images, and put all predictions in one
    table.

    Each recipe is trained on the training part and judged by its log-loss on the validation part of
    the same fold; the test part is predicted once, by the best recipe. With ``retrain`` that recipe
    is first trained again on training and validation images together, to its last epoch. Finished
    trainings are kept in ``work_folder``, so that a killed run goes on where it was and gives the
    same result.
    """
    parts = []
    histories = []
    choices = []
    folds = split.folds()
    for number, (repeat, fold) in enumerate(folds, start=1):
        started = time.monotonic()
        ids = {part: split.ids(repeat, fold, part) for part in ("train", "validation", "test")}
        candidates = []
        for recipe in recipes:
            folder = Path(work_folder) / f"repeat{repeat}-fold{fold}-{recipe.name}"
            transform = make_transform(recipe)
            trained = _train_once(
                make_network,
                images,
                ids["train"],
                ids["validation"],
                recipe,
                transform,
                derive_seed(seed, repeat, fold),
                folder,
            )
            predictions = _predict(
                trained,
                images,
                ids["validation"],
                transform,
                repeat=repeat,
                fold=fold,
                split="validation",
                model=model,
                run=run,
            )
            candidates.append((log_loss(predictions), trained, predictions))
            histories.append(trained.history.assign(repeat=repeat, fold=fold, recipe=recipe.name))
        best = int(np.argmin([loss for loss, _, _ in candidates]))
        for index, (loss, trained, _) in enumerate(candidates):
            choices.append(
                {
                    "repeat": repeat,
                    "fold": fold,
                    "recipe": trained.recipe.name,
                    "epoch": trained.epoch,
                    "validation_log_loss": loss,
                    "chosen": index == best,
                }
            )
        _, chosen, validation = candidates[best]
        transform = make_transform(chosen.recipe)
        if retrain:
            folder = Path(work_folder) / f"repeat{repeat}-fold{fold}-{chosen.recipe.name}-retrain"
            chosen = _train_once(
                make_network,
                images,
                np.concatenate([ids["train"], ids["validation"]]),
                ids["test"][:0],
                chosen.recipe.but(keep="last", early_stopping_patience=0),
                transform,
                derive_seed(seed, repeat, fold, "refit"),
                folder,
            )
        test = _predict(
            chosen,
            images,
            ids["test"],
            transform,
            repeat=repeat,
            fold=fold,
            split="test",
            model=model,
            run=run,
        )
        parts += [validation, test]
        if report:
            right = (validation.predicted_index == validation.true_index).mean()
            report(
                f"{model}: fold {number:>2} of {len(folds)} ({chosen.recipe.name}): validation "
                f"accuracy {right:.3f}, "
                f"{time.monotonic() - started:.0f} s"
            )
    return CrossValidated(
        Predictions.concatenate(parts),
        pd.concat(histories, ignore_index=True),
        pd.DataFrame(choices),
        chosen,
    )


def train_again(
    make_network: Callable[[], nn.Module],
    images: ImageSet,
    split: Split,
    recipes: Sequence[Recipe],
    result: CrossValidated,
    *,
    member: int,
    make_transform: Callable[[Recipe], Transform],
    seed: int,
    work_folder: str | Path,
    model: str,
    retrain: bool = False,
    run: str = "",
    report: Callable[[str], None] | None = print,
) -> Predictions:
    """Test predictions of networks from another random start, on the same folds and with the
    recipes chosen there.

    ``result`` is what ``cross_validate`` gave for the same arguments; nothing is chosen anew.
    ``member`` is 1 or more: each is another start.
    """
    named = {recipe.name: recipe for recipe in recipes}
    parts = []
    chosen = result.choices[result.choices["chosen"]].set_index(["repeat", "fold"])["recipe"]
    for repeat, fold in split.folds():
        started = time.monotonic()
        recipe = named[chosen[repeat, fold]]
        train_ids, validation_ids = (
            split.ids(repeat, fold, part) for part in ("train", "validation")
        )
        if retrain:
            train_ids = np.concatenate([train_ids, validation_ids])
            validation_ids = validation_ids[:0]
            recipe = recipe.but(keep="last", early_stopping_patience=0)
        transform = make_transform(recipe)
        trained = _train_once(
            make_network,
            images,
            train_ids,
            validation_ids,
            recipe,
            transform,
            derive_seed(seed, repeat, fold, "member", member),
            Path(work_folder) / f"repeat{repeat}-fold{fold}-{recipe.name}-member{member}",
        )
        parts.append(
            _predict(
                trained,
                images,
                split.ids(repeat, fold, "test"),
                transform,
                repeat=repeat,
                fold=fold,
                split="test",
                model=model,
                run=run,
            )
        )
        if report:
            report(
                f"{model}: repeat {repeat + 1}, fold {fold + 1}, {time.monotonic() - started:.0f} s"
            )
    return Predictions.concatenate(parts)


def train_on_everything(
    make_network: Callable[[], nn.Module],
    images: ImageSet,
    recipe: Recipe,
    *,
    make_transform: Callable[[Recipe], Transform],
    seed: int,
    work_folder: str | Path,
    member: int = 0,
) -> Trained:
    """The network for new images: all labelled images, the recipe's last epoch. It has no score of
    its own; the cross-validated one of the same recipe is the estimate. Another ``member`` is
    another random start."""
    labelled = images.ids[images.labels >= 0]
    return _train_once(
        make_network,
        images,
        labelled,
        labelled[:0],
        recipe.but(keep="last", early_stopping_patience=0),
        make_transform(recipe),
        derive_seed(seed, "everything", *([member] if member else [])),
        Path(work_folder) / "everything",
    )


def _train_once(
    make_network, images, train_ids, validation_ids, recipe, transform, seed, folder
) -> Trained:
    # a folder of other images, another network, recipe or seed must not be taken for this one
    key = sha256_of(
        [
            images.content_hash,
            list(train_ids),
            list(validation_ids),
            recipe.as_dict(),
            seed,
            repr(make_network()),
            type(transform).__name__,
            {name: str(value) for name, value in vars(transform).items()},
            torch.get_num_threads(),
            str(torch.cuda.is_available()),
        ]
    )
    return train(
        make_network,
        images,
        train_ids,
        validation_ids,
        recipe,
        transform=transform,
        seed=seed,
        work_folder=folder.with_name(f"{folder.name}-{key[:12]}"),
    )


def _predict(
    trained: Trained, images: ImageSet, ids: np.ndarray, transform: Transform, **about
) -> Predictions:
    rows = images.positions(ids)
    recipe = trained.recipe
    probabilities = predict_probabilities(
        trained.network,
        images.pixels,
        transform,
        rows=rows,
        views=recipe.test_time_augmentation,
        precision=recipe.precision,
        channels_last=recipe.channels_last,
    )
    return Predictions.build(
        ids=ids,
        labels=images.table["label"].iloc[rows],
        groups=images.groups[rows],
        probabilities=probabilities,
        classes=images.classes,
        **about,
    )


def log_loss(predictions: Predictions) -> float:
    """Mean negative log-probability of the true class (nats): judges the probabilities, not only
    the winners.
    """
    true = predictions.probabilities[np.arange(len(predictions)), predictions.true_index]
    return float(-np.log(np.clip(true, 1e-12, 1)).mean())
