"""From files to an image set, alike for all kinds of images: what cannot be read, copies of one
image, 16-bit grey, and files to try a prediction on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import TableError
from nbhelpers.core.files import sha256_of
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets.folder import FileList
from nbhelpers.imagesets.packed import OTHER_FORM, NoUsableImageError, pack_images
from nbhelpers.imagesets.reader import read_image

# percentiles of a 16-bit set that become 0 and 255
DARKEST = 0.1
BRIGHTEST = 99.9
ALIKE = 64  # grey values, of 255, by which ordinary images of one kind differ in range
SAMPLED = 1000  # images from which the range of a set is measured


@dataclass(frozen=True)
class FileImages:
    """Images that were read from files: ``table`` (path, id, label, perhaps group) beside
    ``pixels``. ``failures`` lists by id what was left out; ``key`` is the hash of what was read;
    ``notes``, told with the source, say what was done to it.
    """

    table: pd.DataFrame
    pixels: np.ndarray
    failures: pd.DataFrame
    key: str = ""
    notes: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        return bool(len(self.table)) and bool(self.table["label"].notna().all())

    def without(self, wrong: np.ndarray, why: str, fix: str) -> FileImages:
        """The others; those where ``wrong`` (n,) is true are listed. Of none no notes are left."""
        if not wrong.any():
            return self
        listed = pd.DataFrame({"file": self.table["id"][wrong], "why": why, "fix": fix})
        return replace(
            self,
            table=self.table[~wrong].reset_index(drop=True),
            pixels=self.pixels[~wrong],
            failures=pd.concat([self.failures, listed], ignore_index=True),
            notes=self.notes * (not wrong.all()),
        )

    def without_copies(self, contents: Iterable[np.ndarray], group: str = "") -> FileImages:
        """Without images whose content stands under two labels. The table gains ``print``, equal
        for equal content.

        Where ``group`` is the word for a group ("neuron"), images whose content stands in two
        groups are left out too: one copy would train, the other test.
        """
        prints = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in contents]
        found = replace(self, table=self.table.assign(print=np.array(prints, dtype=object)))
        if not self.labelled:
            return found
        ways = [("label", "under another label", "label")]
        if group and "group" in self.table:
            ways.append(("group", "in another group", group))
        for column, where, right in ways:
            several = found.table.groupby("print")[column].transform("nunique").to_numpy() > 1
            found = found.without(
                several,
                f"the same image stands {where} too.",
                f"Decide which {right} is right, and delete the other copy.",
            )
        return found

    def check_classes(self, listed: FileList) -> None:
        """Raise TableError, with the first reason, when of all images of a class none is left."""
        left = set(self.table["label"])
        for label, rows in listed.table.groupby("label"):
            if label not in left:
                first = self.failures[self.failures["file"].isin(rows["id"])].iloc[0]
                raise TableError(
                    first["file"],
                    f"none of the {len(rows)} images of class {label} can be used; this one: "
                    f"{first['why']}",
                    first["fix"],
                )

    def image_set(self, *, source: str, **about: object) -> ImageSet:
        """As an ImageSet; ``about`` are its name, classes, channels ..."""
        return ImageSet(
            table=self.table.drop(columns=["path", "print"], errors="ignore"),
            pixels=self.pixels,
            failures=self.failures,
            synthetic=False,
            source="; ".join((source, *self.notes)),
            **about,
        )


def read_files(
    listed: FileList,
    data_folder: str | Path,
    prepare: Callable[[np.ndarray, Path], np.ndarray],
    *,
    name: str,
    shape: Sequence[int],
    longest_px: int = 0,
) -> FileImages:
    """Read and prepare the files of a list, once (see
    :func:`nbhelpers.imagesets.packed.pack_images`).

    ``name`` stands for ``prepare`` and its settings, ``shape`` is that of a prepared image. Where
    files of 8 and of 16 bit are mixed, all become 8 bit and ``notes`` say how. When no file can be
    used, NoUsableImageError is raised; without labels (images to predict) the result is
    empty and lists them all. Raises TableError when of a class no image can be used.
    """
    table = listed.table
    paths = table["path"].tolist()
    try:
        pixels, kept, failures, key = pack_images(
            paths,
            prepare,
            prepare_name=name,
            cache_folder=Path(data_folder) / "packed",
            longest_px=longest_px,
        )
    except NoUsableImageError as error:
        if table["label"].notna().any():
            raise
        pixels = np.zeros((0, *shape), np.uint8)
        kept = np.zeros(0, np.int64)
        failures = error.failures
        key = ""
    # of one shape, they can differ in their bit depth only
    others = failures.index[[why.startswith(OTHER_FORM) for why in failures["why"]]]
    if len(others):
        few = [prepare(read_image(paths[at]), paths[at]) for at in others[:SAMPLED]]
        line = GreyLine.between([*pixels, *few])
        found = read_files(
            listed,
            data_folder,
            lambda image, path: line.in_8_bit(prepare(image, path)),
            name=f"{name}, {line}",
            shape=shape,
            longest_px=longest_px,
        )
        return replace(found, notes=(*found.notes, str(line)))
    # by their ids, as a report names no folder of the user's machine
    failures["file"] = table["id"].to_numpy()[failures.index]
    found = FileImages(
        table.iloc[kept].reset_index(drop=True),
        pixels,
        pd.concat([listed.failures, failures], ignore_index=True),
        # a file that failed this time only may be there the next time
        sha256_of([key, kept.tolist()]),
        listed.notes,
    )
    if len(kept):
        found.check_classes(listed)
    return found


@dataclass(frozen=True)
class GreyLine:
    """One straight line for all images of a set: ``low`` becomes ``dark``, ``high`` ``bright``.

    Cameras fill a part of 16 bit only: with 12 of them, all greys would be below 0.06 of the range.
    """

    low: float
    high: float
    dark: float = 0.0
    bright: float = 255.0

    @classmethod
    def through(cls, values: np.ndarray) -> GreyLine:
        """The line that brings the darkest and brightest values to 0 and 255."""
        return cls(*np.percentile(values, (DARKEST, BRIGHTEST)))

    @classmethod
    def between(cls, images: Sequence[np.ndarray]) -> GreyLine:
        """The line that brings those of 16 bit to 8, as the others have.

        The top of the camera, of 8, 10, ... 16 bit, becomes 255, so that one image in both depths
        is one and the same. Where the images of 16 bit would then be much darker, brighter or
        flatter than the others, their percentiles are brought together, as those of new patches
        and of the training images: brightness must not tell which file an image is from.
        """
        deep = spread([image for image in images if image.dtype == np.uint16])
        others = spread([image for image in images if image.dtype == np.uint8])
        bits = max(8, int(deep.max()).bit_length())
        line = cls(0, 2 ** (bits + bits % 2) - 1)
        ends = np.percentile(deep, (1, 99))
        wanted = np.percentile(others, (1, 99))
        if np.abs(line.scaled(ends) - wanted).max() > ALIKE:
            line = cls(*ends.tolist(), *wanted.tolist())
        return line

    def in_8_bit(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of 8 bit stay as they are."""
        if pixels.dtype == np.uint8:
            return pixels
        return np.clip(np.rint(self.scaled(pixels)), 0, 255).astype(np.uint8)

    def scaled(self, pixels: np.ndarray) -> np.ndarray:
        """Float values, neither rounded nor clipped."""
        scale = (self.bright - self.dark) / max(self.high - self.low, 1.0)
        return (pixels.astype(np.float32) - self.low) * scale + self.dark

    def __str__(self) -> str:
        return (
            f"16-bit values scaled to 8 bit for the whole set, {self.low:.0f} to {self.dark:.0f} "
            f"and {self.high:.0f} to {self.bright:.0f}"
        )


def spread(images: Sequence[np.ndarray]) -> np.ndarray:
    """Up to 1000 images, spread evenly over the set."""
    rows = np.linspace(0, len(images) - 1, min(SAMPLED, len(images))).astype(int)
    return np.stack([images[at] for at in rows])


def write_examples(
    folder: str | Path,
    stem: str,
    images: Iterable[np.ndarray],
    unusable: Mapping[str, np.ndarray],
) -> Path:
    """Write images (y, x) uint8 as ``<stem>_01.png`` and so on, the ``unusable`` ones by their
    names, and a file that is cut short: something to try a prediction on.
    """
    from PIL import Image

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, 1):
        Image.fromarray(np.asarray(image)).save(folder / f"{stem}_{number:02d}.png")
    for name, image in unusable.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    first = (folder / f"{stem}_01.png").read_bytes()
    (folder / "cut_short.png").write_bytes(first[:200])
    return folder
