"""Train and test on every fold of a split, choosing the recipe inside the training folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core.files import sha256_of
from nbhelpers.core.folds import Fold, log_loss, predict_folds
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split
from nbhelpers.training.augment import Transform
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Recipe
from nbhelpers.training.trainer import Trained, train


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


@dataclass(frozen=True)
class Training:
    """How networks are trained on the folds of a split.

    ``make_network()`` makes one with first weights (torch is seeded before). Of ``recipes`` the one
    with the best validation log-loss is taken in each fold; ``make_transform(recipe)`` is what its
    images go through. With ``retrain`` it is trained again on training and validation images
    together, to its last epoch, before it predicts the test part.

    Finished trainings are kept in ``work_folder``, so that a killed run goes on where it was and
    gives the same result. ``model`` names the predictions; ``report`` is told of every fold.
    """

    make_network: Callable[[], nn.Module]
    recipes: Sequence[Recipe]
    make_transform: Callable[[Recipe], Transform]
    seed: int
    work_folder: str | Path
    model: str = "network"
    retrain: bool = False
    report: Callable[[str], None] | None = print

    def but(self, **changes) -> Training:
        """The same with some fields changed."""
        return replace(self, **changes)

    def cross_validate(self, images: ImageSet, split: Split) -> CrossValidated:
        """Train every recipe in every fold and predict its validation and test images.

        Each recipe is judged on the validation part of its fold; the test part is predicted once,
        by the best one.
        """
        histories = []
        choices = []
        last = []

        def predict(fold: Fold) -> dict[str, tuple[np.ndarray, np.ndarray]]:
            about = {"repeat": fold.repeat, "fold": fold.fold}
            candidates = []
            for recipe in self.recipes:
                trained = self._trained(images, fold, recipe)
                validation = self.predicted(trained, images, fold.validation)
                loss = log_loss(validation, images.labels[fold.validation])
                candidates.append((loss, trained, validation))
                histories.append(trained.history.assign(**about, recipe=recipe.name))
            best = int(np.argmin([loss for loss, _, _ in candidates]))
            for index, (loss, trained, _) in enumerate(candidates):
                choices.append(
                    {
                        **about,
                        "recipe": trained.recipe.name,
                        "epoch": trained.epoch,
                        "validation_log_loss": loss,
                        "chosen": index == best,
                    }
                )
            _, chosen, validation = candidates[best]
            if self.retrain:
                chosen = self._retrained(images, fold, chosen.recipe)
            last[:] = [chosen]
            test = self.predicted(chosen, images, fold.test)
            return {"validation": (fold.validation, validation), "test": (fold.test, test)}

        predictions = predict_folds(predict, images, split, model=self.model, report=self.report)
        return CrossValidated(
            predictions, pd.concat(histories, ignore_index=True), pd.DataFrame(choices), last[0]
        )

    def again(
        self, result: CrossValidated, images: ImageSet, split: Split, member: int
    ) -> Predictions:
        """Test predictions of networks from another random seed, on the same folds.

        ``result`` is what ``cross_validate`` gave for these images and folds: its recipes are
        taken, nothing is chosen anew. ``member`` is 1 or more: each is another random seed.
        """
        named = {recipe.name: recipe for recipe in self.recipes}
        chosen = result.choices[result.choices["chosen"]].set_index(["repeat", "fold"])["recipe"]

        def predict(fold: Fold) -> dict[str, tuple[np.ndarray, np.ndarray]]:
            recipe = named[chosen[fold.repeat, fold.fold]]
            seed = derive_seed(self.seed, fold.repeat, fold.fold, "member", member)
            name = f"{_name(fold, recipe)}-member{member}"
            if self.retrain:
                trained = self.to_the_end(images, fold, recipe, seed, name)
            else:
                trained = self.once(images, fold.train, fold.validation, recipe, seed, name)
            return {"test": (fold.test, self.predicted(trained, images, fold.test))}

        return predict_folds(predict, images, split, model=self.model, report=self.report)

    def predict_again(
        self,
        images: ImageSet,
        split: Split,
        transform: Transform,
        *,
        test_time_augmentation: int,
        parts: Sequence[str] = ("test",),
    ) -> Predictions:
        """Predictions of the networks that ``cross_validate`` trained with the one recipe of this
        training, which now see the images through another ``transform``, or more or fewer views.

        Finished trainings are read from ``work_folder``, not done again.
        """
        (recipe,) = self.recipes

        def predict(fold: Fold) -> dict[str, tuple[np.ndarray, np.ndarray]]:
            found = {}
            for part in parts:
                make = self._retrained if self.retrain and part == "test" else self._trained
                trained = make(images, fold, recipe)
                rows = getattr(fold, part)
                seen = self.predicted(trained, images, rows, transform, test_time_augmentation)
                found[part] = (rows, seen)
            return found

        return predict_folds(predict, images, split, model=self.model)

    def on_everything(self, images: ImageSet, recipe: Recipe, member: int = 0) -> Trained:
        """The network for new images: trained on all labelled ones, to the recipe's last epoch.

        It has no score of its own; the cross-validated one of the same recipe is the estimate.
        Another ``member`` is another random seed.
        """
        labelled = np.flatnonzero(images.labels >= 0)
        which = [member] if member else []
        seed = derive_seed(self.seed, "everything", *which)
        return self._on_all(images, labelled, recipe, seed, "everything")

    def _trained(self, images: ImageSet, fold: Fold, recipe: Recipe) -> Trained:
        seed = derive_seed(self.seed, fold.repeat, fold.fold)
        return self.once(images, fold.train, fold.validation, recipe, seed, _name(fold, recipe))

    def _retrained(self, images: ImageSet, fold: Fold, recipe: Recipe) -> Trained:
        # "refit" was the word when the first trainings were kept: another one, another seed
        seed = derive_seed(self.seed, fold.repeat, fold.fold, "refit")
        return self.to_the_end(images, fold, recipe, seed, f"{_name(fold, recipe)}-retrain")

    def to_the_end(
        self, images: ImageSet, fold: Fold, recipe: Recipe, seed: int, name: str
    ) -> Trained:
        """A network for this fold, trained on its training and validation images together."""
        # not ``fold.fitted``, which is in stored order: another order gives other batches
        rows = np.concatenate([fold.train, fold.validation])
        return self._on_all(images, rows, recipe, seed, name)

    def _on_all(
        self, images: ImageSet, rows: np.ndarray, recipe: Recipe, seed: int, name: str
    ) -> Trained:
        """With nothing left to judge by, the last epoch is kept."""
        recipe = recipe.but(keep="last", early_stopping_patience=0)
        return self.once(images, rows, rows[:0], recipe, seed, name)

    def once(
        self,
        images: ImageSet,
        train_rows: np.ndarray,
        validation_rows: np.ndarray,
        recipe: Recipe,
        seed: int,
        name: str,
    ) -> Trained:
        """One training, kept in the folder of this ``name``; the rows are those of the images."""
        transform = self.make_transform(recipe)
        return train_kept(
            self.make_network,
            images,
            (images.ids[train_rows], images.ids[validation_rows]),
            recipe,
            transform=transform,
            seed=seed,
            folder=Path(self.work_folder) / name,
        )

    def predicted(
        self,
        trained: Trained,
        images: ImageSet,
        rows: np.ndarray,
        transform: Transform | None = None,
        test_time_augmentation: int = 0,
    ) -> np.ndarray:
        """(rows, classes) float64 probabilities, as the recipe predicts."""
        recipe = trained.recipe
        return predict_probabilities(
            trained.network,
            images.pixels,
            transform or self.make_transform(recipe),
            rows=rows,
            test_time_augmentation=test_time_augmentation or recipe.test_time_augmentation,
            precision=recipe.precision,
            channels_last=recipe.channels_last,
        )


def train_kept(
    make_network: Callable[[], nn.Module],
    images: ImageSet,
    ids: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    *,
    transform: Transform,
    seed: int,
    folder: Path,
    callbacks: Sequence = (),
) -> Trained:
    """:func:`train` in a folder whose name ends in a hash of all that decides the result.

    So a folder of other images, another network, recipe or seed is never taken for this one.
    """
    key = sha256_of(
        [
            images.content_hash,
            *(list(part) for part in ids),
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
        ids,
        recipe,
        transform=transform,
        seed=seed,
        work_folder=folder.with_name(f"{folder.name}-{key[:12]}"),
        callbacks=callbacks,
    )


def _name(fold: Fold, recipe: Recipe) -> str:
    return f"repeat{fold.repeat}-fold{fold.fold}-{recipe.name}"
