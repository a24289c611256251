"""ImageSet: a table with one row per image, beside the pixels in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import sha256_of


def failure_table(rows: Iterable[tuple[str, str, str]] = ()) -> pd.DataFrame:
    """What was left out: file, why, and how to fix it."""
    return pd.DataFrame(list(rows), columns=["file", "why", "fix"], dtype=object)


@dataclass(frozen=True)
class ImageSet:
    """Images of one classification task: 2D or 3D, one to many channels, uint8 or uint16.

    ``table`` has at least ``id`` (unique text), ``label`` (class name, or missing where unknown)
    and ``group`` (neuron, slide, plate ... as text: what must never stand in two parts of a split).
    ``pixels`` is (n, channel, y, x) or (n, channel, z, y, x), often memory-mapped. ``failures``
    lists the files that were left out, with the reason and the fix. ``content_hash`` changes when
    any pixel or label changes.
    """

    name: str
    table: pd.DataFrame
    pixels: np.ndarray
    classes: tuple[str, ...]
    source: str
    synthetic: bool
    content_hash: str = ""
    channels: tuple[str, ...] = ("grey",)
    pixel_size_nm: tuple[float, ...] | None = None
    failures: pd.DataFrame = field(default_factory=failure_table)

    def __post_init__(self):
        if len(self.table) != len(self.pixels):
            raise InputError(
                self.name, f"{len(self.table)} rows in the table but {len(self.pixels)} images."
            )
        if self.pixels.ndim not in (4, 5) or self.pixels.dtype not in (np.uint8, np.uint16):
            raise InputError(
                self.name,
                f"images are {self.pixels.dtype} with {self.pixels.ndim} axes.",
                "Expected uint8 or uint16 with the axes (image, channel, y, x) or (image, channel, "
                "z, y, x).",
            )
        if len(self.channels) != self.pixels.shape[1]:
            raise InputError(
                self.name, f"{self.pixels.shape[1]} channels but the names {self.channels}."
            )
        if self.table["id"].duplicated().any():
            twice = self.table.loc[self.table["id"].duplicated(), "id"].iloc[0]
            raise InputError(
                self.name,
                f"the id {twice} stands twice in the table.",
                "Every image needs its own id.",
            )
        unknown = set(self.table["label"].dropna()) - set(self.classes)
        if unknown:
            raise InputError(
                self.name,
                f"the labels {sorted(map(str, unknown))} are not among the classes.",
                f"The classes are {list(self.classes)}.",
            )
        if not self.content_hash:
            rows = (
                self.table[["id", "label", "group"]]
                .astype(object)
                .where(self.table["label"].notna(), None)
            )
            object.__setattr__(
                self, "content_hash", sha256_of([rows.values.tolist(), hash_of_pixels(self.pixels)])
            )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64, position in ``classes``; -1 where there is no label."""
        return pd.Categorical(self.table["label"], categories=list(self.classes)).codes.astype(
            np.int64
        )

    @property
    def groups(self) -> np.ndarray:
        """(n,) text."""
        return self.table["group"].astype(str).to_numpy()

    @property
    def ids(self) -> np.ndarray:
        """(n,) text."""
        return self.table["id"].astype(str).to_numpy()

    def counts(self) -> dict[str, int]:
        """Images per class, in the order of ``classes``."""
        return {name: int((self.labels == index).sum()) for index, name in enumerate(self.classes)}

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """Row numbers (int64) of the given ids. Raises InputError that names an id which is not in
        the set.
        """
        index = pd.Index(self.ids).get_indexer([str(value) for value in ids])
        if (index < 0).any():
            absent = [value for value, at in zip(ids, index, strict=True) if at < 0]
            raise InputError(
                self.name,
                f"{len(absent)} of the ids asked for are not in it, e.g. {absent[0]}.",
                "The split or predictions belong to other images.",
            )
        return index.astype(np.int64)

    def take(self, positions: Sequence[int] | np.ndarray) -> ImageSet:
        """The images at these row numbers, in that order."""
        positions = np.asarray(positions)
        return replace(
            self,
            table=self.table.iloc[positions].reset_index(drop=True),
            pixels=self.pixels[positions],
            content_hash="",
        )

    def summary(self) -> pd.DataFrame:
        """One row per class: images, groups. For the data section of a notebook."""
        rows = []
        for index, name in enumerate(self.classes):
            chosen = self.labels == index
            groups = len(set(self.groups[chosen]))
            rows.append({"class": name, "images": int(chosen.sum()), "groups": groups})
        return pd.DataFrame(rows)


def hash_of_pixels(pixels: np.ndarray) -> str:
    """SHA-256 over shape, type and values, read image by image so that a memory map
    stays on disk."""
    import hashlib

    digest = hashlib.sha256(f"{pixels.shape}{pixels.dtype}".encode())
    for image in pixels:
        digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
