"""Which image stands in which part of which fold, ready for questions about pairs of images."""

from __future__ import annotations

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
NAMES = {bits: " and ".join(name for name, bit in BITS.items() if bits & bit) for bits in range(8)}
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
        for fold in range(self.parts.shape[1]):
            a = self.parts[one, fold]
            b = self.parts[other, fold]
            test = ((a & TEST) > 0) & ((b & (TRAIN | VALIDATION)) > 0) | ((b & TEST) > 0) & (
                (a & (TRAIN | VALIDATION)) > 0
            )
            inner = ((a & TRAIN) > 0) & ((b & VALIDATION) > 0) | ((b & TRAIN) > 0) & (
                (a & VALIDATION) > 0
            )
            found = np.maximum(found, np.where(test, 2, inner).astype(np.uint8))
        return found

    def tested(self) -> np.ndarray:
        """(n,) bool: is a test image in some fold."""
        return ((self.parts & TEST) > 0).any(axis=1)

    def pair_check(
        self,
        name: str,
        one: np.ndarray,
        other: np.ndarray,
        *,
        what: str,
        fix: str,
        why_not: str = "",
        **columns: np.ndarray,
    ) -> Check:
        """The verdict on pairs of images that should not be parted: fail where a test image has its
        like in training or validation, warn where only validation is touched. ``what`` is said of
        such images in the plural."""
        leak = self.leaks(one, other)
        rows = pd.DataFrame(
            {
                "image": self.ids[one],
                "other image": self.ids[other],
                **columns,
                "leak": np.array(["", "into validation", "into test"])[leak],
            }
        )
        places = [
            [NAMES[int(bits)] for bits in np.bitwise_or.reduce(self.parts[at], axis=1)]
            for at in (one, other)
        ]
        rows.insert(1, "part", places[0])
        rows.insert(3, "other part", places[1])
        rows = rows[leak > 0].sort_values("leak", kind="stable", ignore_index=True)
        touched = np.unique(np.concatenate([one[leak == 2], other[leak == 2]]))
        touched = touched[self.tested()[touched]]
        numbers = {
            "pairs": len(one),
            "pairs across parts": int((leak > 0).sum()),
            "test images touched": len(touched),
            "test images": int(self.tested().sum()),
        }
        if (leak == 2).any():
            verdict = "fail"
            says = (
                f"{len(touched)} of {numbers['test images']} test images {what} in training or "
                f"validation."
            )
        elif (leak == 1).any():
            verdict = "warn"
            says = (
                f"{int((leak == 1).sum())} pairs of images {what} across training and validation."
            )
        else:
            verdict = "pass"
            fix = ""
            says = (
                why_not
                or f"No test images {what} in training or validation ({len(one)} such pairs within "
                f"parts)."
            )
        return Check(name, verdict, says, fix, numbers, rows.head(MOST_ROWS))
