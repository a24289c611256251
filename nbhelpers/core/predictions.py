"""Predictions: the one table that everything downstream reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import PredictionsError, check_columns
from nbhelpers.core.files import spreadsheet_safe, write_csv
from nbhelpers.core.imageset import ImageSet

FIXED_COLUMNS = ("id", "label", "group", "repeat", "fold", "split", "predicted", "model", "run")
PROBABILITY_PREFIX = "probability "


@dataclass(frozen=True)
class Predictions:
    """One row per image and time it was predicted.

    ``table`` has the columns

    - ``id``, ``label`` (true class name), ``group`` (neuron, slide, plate ... as text),
    - ``repeat``, ``fold`` (int64; 0 and 0 for a plain hold-out), ``split`` ("train", "validation",
    "test"),
    - ``predicted`` (class name), ``model`` and ``run`` (text),
    - ``probability <class>`` (float64) per class of ``classes``, each row summing to 1.

    An image appears at most once per model, repeat, fold and split.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]

    def __post_init__(self):
        wanted = [*FIXED_COLUMNS, *self.probability_columns]
        check_columns("predictions", self.table, wanted, PredictionsError)
        probabilities = self.probabilities
        bad = ~np.isfinite(probabilities).all(axis=1) | (abs(probabilities.sum(axis=1) - 1) > 1e-3)
        if bad.any():
            first = self.table["id"].iloc[int(np.flatnonzero(bad)[0])]
            raise PredictionsError(
                f"predictions, image {first}",
                f"{int(bad.sum())} rows have probabilities that are not finite or do not sum to 1.",
                "Give one probability per class, after softmax.",
            )
        unknown = set(self.table["label"]) - set(self.classes)
        if unknown:
            raise PredictionsError(
                "predictions",
                f"the labels {sorted(map(str, unknown))} are no classes.",
                f"The classes are {list(self.classes)}.",
            )
        twice = self.table.duplicated(["id", "model", "repeat", "fold", "split"])
        if twice.any():
            raise PredictionsError(
                "predictions",
                f"image {self.table.loc[twice, 'id'].iloc[0]} appears twice in one fold.",
                "Each image is predicted once per model, repeat and fold.",
            )

    # More than 8 parameters: each is a column of the table.
    @classmethod
    def build(
        cls,
        *,
        ids: Sequence[str],
        labels: Sequence[str],
        groups: Sequence[str],
        probabilities: np.ndarray,
        classes: Sequence[str],
        split: str = "test",
        repeat: int = 0,
        fold: int = 0,
        model: str = "model",
        run: str = "",
    ) -> Predictions:
        """Make the table of one fold from parallel sequences; ``probabilities`` is (n, classes)
        float.
        """
        probabilities = np.asarray(probabilities, dtype=np.float64)
        classes = tuple(classes)
        table = pd.DataFrame(
            {
                "id": [str(value) for value in ids],
                "label": list(labels),
                "group": [str(value) for value in groups],
                "repeat": repeat,
                "fold": fold,
                "split": split,
                "predicted": [classes[index] for index in probabilities.argmax(axis=1)],
                "model": model,
                "run": run,
            }
        )
        for index, name in enumerate(classes):
            table[PROBABILITY_PREFIX + name] = probabilities[:, index]
        return cls(table, classes)

    @classmethod
    def of(
        cls,
        images: ImageSet,
        probabilities: np.ndarray,
        rows: np.ndarray | slice = slice(None),
        **columns,
    ) -> Predictions:
        """The table of these ``rows`` of a set, all without; ``columns`` are more of
        :meth:`build`.
        """
        return cls.build(
            ids=images.ids[rows],
            labels=images.table["label"].iloc[rows],
            groups=images.groups[rows],
            probabilities=probabilities,
            classes=images.classes,
            **columns,
        )

    @classmethod
    def concatenate(cls, parts: Iterable[Predictions]) -> Predictions:
        """Put tables of the same classes under each other."""
        parts = list(parts)
        if not parts:
            raise PredictionsError("predictions", "there is nothing to put together.")
        if len({part.classes for part in parts}) > 1:
            raise PredictionsError(
                "predictions",
                "the tables have different classes.",
                "Only predictions of the same classes can be put together.",
            )
        return cls(pd.concat([part.table for part in parts], ignore_index=True), parts[0].classes)

    @classmethod
    def mean(cls, members: Sequence[Predictions], model: str) -> Predictions:
        """The mean probability of several models on the same images and folds, as those of another
        ``model``; rows are sorted. Raises PredictionsError for other images or folds.
        """
        keys = ["repeat", "fold", "split", "id"]
        tables = [member.table.sort_values(keys).reset_index(drop=True) for member in members]
        if len({member.classes for member in members}) != 1 or not all(
            table[keys].equals(tables[0][keys]) for table in tables
        ):
            raise PredictionsError(
                model,
                "its members were not predicted on the same images and folds.",
                "Use one split.",
            )
        columns = members[0].probability_columns
        classes = members[0].classes
        mean = np.mean([table[columns].to_numpy() for table in tables], axis=0)
        table = tables[0].assign(
            model=model, predicted=np.asarray(classes, dtype=object)[mean.argmax(1)]
        )
        table[columns] = mean
        return cls(table, classes)

    @property
    def probability_columns(self) -> list[str]:
        return [PROBABILITY_PREFIX + name for name in self.classes]

    @property
    def probabilities(self) -> np.ndarray:
        """(n, classes) float64."""
        return self.table[self.probability_columns].to_numpy(np.float64)

    @property
    def true_index(self) -> np.ndarray:
        """(n,) int64, the position of each label in ``classes``."""
        return pd.Categorical(self.table["label"], categories=list(self.classes)).codes.astype(
            np.int64
        )

    @property
    def predicted_index(self) -> np.ndarray:
        """(n,) int64, from the ``predicted`` column (a threshold may have moved it away from
        argmax).
        """
        return pd.Categorical(self.table["predicted"], categories=list(self.classes)).codes.astype(
            np.int64
        )

    def assign(self, **columns: object) -> Predictions:
        """The same with some columns changed."""
        return Predictions(self.table.assign(**columns), self.classes)

    def where(self, **equal: object) -> Predictions:
        """The rows whose columns equal the given values, e.g. ``where(split="test",
        model="TinyCNN")``.
        """
        keep = np.ones(len(self.table), dtype=bool)
        for column, value in equal.items():
            keep &= (self.table[column] == value).to_numpy()
        return Predictions(self.table[keep].reset_index(drop=True), self.classes)

    def __len__(self) -> int:
        return len(self.table)

    def save(self, path: str | Path) -> None:
        """Write as CSV, whole or not at all."""
        write_csv(path, self.table, float_format="%.9g")

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read a table written by :meth:`save`. Raises PredictionsError when it is missing or
        incomplete.
        """
        path = Path(path)
        if not path.is_file():
            raise PredictionsError(
                path, "this predictions file does not exist.", "Run the notebook that makes it."
            )
        text = dict.fromkeys(("id", "label", "group", "split", "predicted", "model", "run"), str)
        try:
            table = spreadsheet_safe(
                pd.read_csv(path, dtype=text, keep_default_na=False), back=True
            )
        except (OSError, ValueError) as error:
            raise PredictionsError(
                path,
                f"the table cannot be read ({error}).",
                "Run the notebook that makes it again.",
            ) from None
        if table.empty:
            raise PredictionsError(
                path, "the table has no rows.", "Run the notebook that makes it again."
            )
        classes = tuple(
            name.removeprefix(PROBABILITY_PREFIX)
            for name in table.columns
            if name.startswith(PROBABILITY_PREFIX)
        )
        for name in table.columns[len(FIXED_COLUMNS) :]:
            table[name] = pd.to_numeric(table[name], errors="coerce")
        return cls(table, classes)
