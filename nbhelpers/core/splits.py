"""Splits by group: hold-out and repeated cross-validation, stored with a hash,
disjoint by check."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import SplitError, check_columns
from nbhelpers.core.files import sha256_of, spreadsheet_safe, write_csv, write_json
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import derive_seed

PARTS = ("train", "validation", "test")
COLUMNS = ("repeat", "fold", "part", "id", "group")
VALIDATION_FOLDS = 5  # of which one is the validation part


@dataclass(frozen=True)
class Split:
    """Which image is used for what, in every fold.

    ``table`` has repeat, fold (int64), part ("train", "validation", "test"), id, group. Within one
    fold no group may stand in two parts; this is checked whenever a Split is made or loaded.
    ``known_leak`` is the one way around the check: a published split that leaks, rebuilt to be
    measured and named, says in words how it leaks.
    """

    table: pd.DataFrame
    protocol: str
    seed: int
    known_leak: str = ""

    def __post_init__(self):
        check_columns("split", self.table, COLUMNS, SplitError)
        unknown = set(self.table["part"]) - set(PARTS)
        if unknown:
            raise SplitError(
                "split", f"the parts {sorted(unknown)} are unknown.", f"Known are {list(PARTS)}."
            )
        shared = self.groups_in_two_parts()
        if shared and not self.known_leak:
            repeat, fold, group = shared[0]
            raise SplitError(
                f"split, repeat {repeat}, fold {fold}",
                f"the group {group} stands in more than one part ({len(shared)} such cases).",
                "Put all images of a group into one part.",
            )

    def groups_in_two_parts(self) -> list[tuple[int, int, str]]:
        """(repeat, fold, group) of every group that stands in more than one part of a fold."""
        parts = self.table.groupby(["repeat", "fold", "group"])["part"].nunique()
        return [tuple(key) for key in parts.index[parts > 1]]

    @property
    def hash(self) -> str:
        """SHA-256 of the assignment, whatever the order of its rows."""
        rows = self.table[list(COLUMNS)].astype(str).sort_values(list(COLUMNS)).values.tolist()
        return sha256_of([self.protocol, rows])

    def folds(self) -> list[tuple[int, int]]:
        """All (repeat, fold), in order."""
        pairs = self.table[["repeat", "fold"]].drop_duplicates().sort_values(["repeat", "fold"])
        return [(int(repeat), int(fold)) for repeat, fold in pairs.itertuples(index=False)]

    def ids(self, repeat: int, fold: int, *parts: str) -> np.ndarray:
        """(n,) text: the ids in these parts of one fold, in stored order."""
        table = self.table
        keep = (table["repeat"] == repeat) & (table["fold"] == fold) & table["part"].isin(parts)
        return table.loc[keep, "id"].to_numpy()

    def only(self, repeat: int, fold: int) -> Split:
        """A split of this fold alone."""
        chosen = (self.table["repeat"] == repeat) & (self.table["fold"] == fold)
        return replace(self, table=self.table[chosen].reset_index(drop=True))

    def summary(self, images: ImageSet) -> pd.DataFrame:
        """Images per class in each part: the smallest and the largest number over the folds."""
        label = dict(zip(images.ids, images.table["label"], strict=True))
        counts = (
            self.table.assign(label=self.table["id"].map(label))
            .groupby(["part", "repeat", "fold", "label"])
            .size()
            .unstack("label", fill_value=0)
        )
        rows = []
        for part in PARTS:
            if part in counts.index.get_level_values("part"):
                of_part = counts.loc[part].reindex(columns=list(images.classes), fill_value=0)
                span = [
                    f"{low}" if low == high else f"{low} to {high}"
                    for low, high in zip(of_part.min(), of_part.max(), strict=True)
                ]
                rows.append({"part": part, **dict(zip(images.classes, span, strict=True))})
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> None:
        """Write ``path`` (CSV) and, beside it, the same name with ``.json``:
        protocol, seed, hash."""
        path = Path(path)
        write_csv(path, self.table[list(COLUMNS)])
        write_json(
            path.with_suffix(".json"),
            {
                "protocol": self.protocol,
                "seed": self.seed,
                "hash": self.hash,
                "known_leak": self.known_leak,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read what :meth:`save` wrote. Raises SplitError when it was changed, or when its parts
        overlap.
        """
        path = Path(path)
        try:
            about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            table = pd.read_csv(
                path, dtype={"part": str, "id": str, "group": str}, keep_default_na=False
            )
            table = spreadsheet_safe(table, back=True)
            protocol, seed, known_leak, written = (
                about[name] for name in ("protocol", "seed", "known_leak", "hash")
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SplitError(
                path, f"the split cannot be read ({error}).", "Make it again with its notebook."
            ) from None
        split = cls(table, protocol, seed, known_leak)
        if split.hash != written:
            raise SplitError(
                path,
                "the split was changed after it was written (its hash differs).",
                "Make it again with its notebook, or delete the .json beside it.",
            )
        return split


def fold_table(
    images: ImageSet,
    part: str | Sequence[str],
    *,
    repeat: int = 0,
    fold: int = 0,
    rows: np.ndarray | slice = slice(None),
) -> pd.DataFrame:
    """One fold of the table of a Split: the ``part`` of each image, or of these ``rows``."""
    placed = {"repeat": repeat, "fold": fold, "part": part}
    return pd.DataFrame({**placed, "id": images.ids[rows], "group": images.groups[rows]})


def check_enough(images: ImageSet, wanted: int, why: str) -> None:
    if (images.labels < 0).any():
        raise SplitError(
            images.name,
            f"{int((images.labels < 0).sum())} images have no label.",
            "Only labelled images can be split.",
        )
    for name, count in _groups_of(images, np.arange(len(images))).items():
        if count < wanted:
            raise SplitError(
                f"{images.name}, class {name}",
                f"it has {count} groups of images, and {why} need at least {wanted}.",
                f"Use fewer folds, or add images of {name}."
                if wanted > 2
                else f"Add images of {name}.",
            )


def _stratified_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(n,) fold of each image: classes spread evenly, groups whole."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    alone = len(set(groups)) == len(groups)  # the plain one balances classes better and is quicker
    maker = (StratifiedKFold if alone else StratifiedGroupKFold)(
        folds, shuffle=True, random_state=seed % 2**32
    )
    fold_of = np.full(len(labels), -1)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # of classes with fewer images than folds: callers look themselves
        try:
            for fold, (_, test) in enumerate(
                maker.split(np.zeros(len(labels)), labels, None if alone else groups)
            ):
                fold_of[test] = fold
        except ValueError:
            raise SplitError(
                "split",
                f"{len(labels)} images in {len(set(groups))} groups cannot be parted into {folds}.",
                "Use fewer parts, or add images.",
            ) from None
    return fold_of


def _groups_of(images: ImageSet, rows: np.ndarray) -> dict[str, int]:
    """Class to the number of groups that hold it, among these rows."""
    labels = images.labels[rows]
    groups = images.groups[rows]
    return {name: len(set(groups[labels == index])) for index, name in enumerate(images.classes)}


def _check_classes(images: ImageSet, rows: np.ndarray, where: str) -> None:
    for name, count in _groups_of(images, rows).items():
        if not count:
            raise SplitError(
                f"{images.name}, class {name}",
                f"no image of it falls into {where}.",
                "Its groups are too few or too large: use fewer folds or another seed, or add "
                "images.",
            )


def repeated_cross_validation(images: ImageSet, *, folds: int, repeats: int, seed: int) -> Split:
    """Stratified, grouped, repeated k-fold cross-validation with a validation part inside each
    training fold.

    Every image is in the test part of exactly one fold per repeat. Of each fold's training images
    a fifth becomes validation, or more where the rarest class has too few groups for that. Raises
    SplitError naming the class with fewer groups than folds, or that is absent from a part of a
    fold.
    """
    check_enough(images, max(folds, 2), f"{folds} folds")

    labels = images.labels
    groups = images.groups
    rows = []
    for repeat in range(repeats):
        outer = _stratified_folds(labels, groups, folds, derive_seed(seed, "outer", repeat))
        for fold in range(folds):
            part = np.where(outer == fold, "test", "train").astype(object)
            training = np.flatnonzero(outer != fold)
            where = f"of repeat {repeat}, fold {fold}"
            _check_classes(images, np.flatnonzero(outer == fold), f"the test part {where}")
            _check_classes(images, training, f"the training part {where}")
            name, fewest = min(_groups_of(images, training).items(), key=lambda item: item[1])
            if fewest < 2:
                raise SplitError(
                    f"{images.name}, class {name}",
                    f"only 1 group of it is left for training and validation {where}.",
                    f"Add images of {name} from other groups.",
                )
            inner_folds = min(VALIDATION_FOLDS, fewest)
            inner = _stratified_folds(
                labels[training],
                groups[training],
                inner_folds,
                derive_seed(seed, "inner", repeat, fold),
            )
            for chosen in range(
                inner_folds
            ):  # few groups: the first one that leaves every class on both sides
                if (
                    len(set(labels[training[inner == chosen]]))
                    == len(set(labels[training[inner != chosen]]))
                    == len(images.classes)
                ):
                    break
            else:
                raise SplitError(
                    images.name,
                    f"no validation part with every class can be made {where}.",
                    "The groups are too few or too large: use fewer folds or another seed, or add "
                    "images.",
                )
            part[training[inner == chosen]] = "validation"
            rows.append(fold_table(images, part, repeat=repeat, fold=fold))
    protocol = (
        f"grouped: {repeats} x {folds}-fold cross-validation, stratified by class, whole groups"
    )
    return Split(pd.concat(rows, ignore_index=True), protocol, seed)


def hold_out(
    images: ImageSet, *, seed: int, parts_in: int = 10, validation: int = 2, test: int = 2
) -> Split:
    """One stratified, grouped split into train, validation and test, in tenths by default (6 : 2 :
    2).
    """
    check_enough(images, parts_in if parts_in <= 3 else 3, "train, validation and test")

    tenth = _stratified_folds(images.labels, images.groups, parts_in, derive_seed(seed, "hold out"))
    part = np.select([tenth < test, tenth < test + validation], ["test", "validation"], "train")
    for wanted in PARTS:
        _check_classes(images, np.flatnonzero(part == wanted), wanted)
    table = fold_table(images, part)
    return Split(table, "grouped: hold-out, stratified by class, whole groups", seed)
