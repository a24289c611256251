"""Which image stands in which part of which fold, ready for questions about pairs of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nbhelpers.audit.verdicts import Check
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split

TRAIN = 1
VALIDATION = 2
TEST = 4
BITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
NAMES = [
    "",
    "train",
    "validation",
    "train and validation",
    "test",
    "train and test",
    "validation and test",
    "train and validation and test",
]
MOST_ROWS = 100_000  # of offending pairs that are written


@dataclass(frozen=True)
class Placement:
    """``parts`` is (n, folds) uint8: the sum of 1 (train), 2 (validation), 4 (test) for each image
    in each fold.

    A sound split has one of them at most; a published one may have several.
    """

    ids: np.ndarray
    parts: np.ndarray

    @classmethod
    def of(cls, images: ImageSet, split: Split) -> Placement:
        """Raises InputError when the split names images that are not in the set."""
        at = images.positions(split.table["id"])
        fold = split.table.groupby(["repeat", "fold"]).ngroup().to_numpy()
        parts = np.zeros((len(images), fold.max(initial=0) + 1), np.uint8)
        np.bitwise_or.at(parts, (at, fold), split.table["part"].map(BITS).to_numpy(np.uint8))
        return cls(images.ids, parts)

    def leaks(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(pairs,) uint8 for pairs of different images: 2, one is tested and the other trained or
        chosen with in the same fold; 1, one is trained and the other validated with; 0, no harm."""
        found = np.zeros(len(one), np.uint8)
        for parts in self.parts.T:
            a = parts[one]
            b = parts[other]
            test = _parted(a, b, TEST, TRAIN | VALIDATION)
            inner = _parted(a, b, TRAIN, VALIDATION)
            found = np.maximum(found, np.where(test, 2, inner).astype(np.uint8))
        return found

    def tested(self) -> np.ndarray:
        """(n,) bool: is a test image in some fold."""
        return ((self.parts & TEST) > 0).any(axis=1)

    def pair_check(
        self,
        name: str,
        pairs: tuple[np.ndarray, np.ndarray],
        *,
        what: str,
        fix: str,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> Check:
        """The verdict on pairs of images that should not be parted: fail where a test image has its
        like in training or validation, warn where only validation is touched.

        ``pairs`` are rows (one, other), ``columns`` what else is known of each pair; ``what`` is
        said of such images in the plural.
        """
        one, other = pairs
        leak = self.leaks(one, other)
        rows = pd.DataFrame(
            {
                "image": self.ids[one],
                "part": self._names(one),
                "other image": self.ids[other],
                "other part": self._names(other),
                **(columns or {}),
                "leak": np.array(["", "into validation", "into test"])[leak],
            }
        )
        rows = rows[leak > 0].sort_values("leak", kind="stable", ignore_index=True)
        touched = np.unique(np.concatenate([one[leak == 2], other[leak == 2]]))
        touched = touched[self.tested()[touched]]
        numbers = {
            "pairs": len(one),
            "pairs across parts": int((leak > 0).sum()),
            "test images touched": len(touched),
            "test images": int(self.tested().sum()),
        }
        rows = rows.head(MOST_ROWS)
        if (leak == 2).any():
            says = f"{len(touched)} of {numbers['test images']} test images {what} in training or "
            return Check(name, "fail", says + "validation.", fix, numbers, rows)
        if (leak == 1).any():
            says = f"{int((leak == 1).sum())} pairs of images {what} across training and "
            return Check(name, "warn", says + "validation.", fix, numbers, rows)
        says = f"No test images {what} in training or validation ({len(one)} such pairs within "
        return Check(name, "pass", says + "parts).", "", numbers, rows)

    def _names(self, rows: np.ndarray) -> list[str]:
        """The parts, over all folds, in which these images stand."""
        return [NAMES[bits] for bits in np.bitwise_or.reduce(self.parts[rows], axis=1).tolist()]


def _parted(one: np.ndarray, other: np.ndarray, here: int, there: int) -> np.ndarray:
    """(pairs,) bool: one of the two stands ``here`` and the other ``there``."""
    return ((one & here) > 0) & ((other & there) > 0) | ((other & here) > 0) & ((one & there) > 0)
