"""Stacks: many images of one size in a few OME-TIFF files, read as one array without
loading them."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import sha256_of_file, whole_file

DATASET_FORMAT = 1  # raise it when the meaning of a data set folder changes
OPEN_FILES = 64  # mapped at one time; each holds a file handle, of which a process often has 1024


class StackError(InputError):
    """A stack that is missing, cut or of another shape than said."""


def write_stack(path: str | os.PathLike, pixels: np.ndarray, voxel_nm: Sequence[float]) -> str:
    """Write (n, y, x) or (n, z, y, x) uint8 or uint16 as one uncompressed OME-TIFF, whole or not at
    all.

    ``voxel_nm`` is (z, y, x), and stands in the file as PhysicalSize in nm. The images are the time
    axis of the OME file, which every viewer scrolls through. The same pixels give the same bytes.
    Returns the SHA-256 of the file.
    """
    import tifffile

    pixels = np.ascontiguousarray(pixels)
    if pixels.ndim not in (3, 4) or pixels.dtype not in (np.uint8, np.uint16) or not pixels.size:
        raise StackError(
            path,
            f"the pixels are {pixels.dtype} {pixels.shape}.",
            "Expected uint8 or uint16, (n, y, x) or (n, z, y, x), at least one image.",
        )
    sizes = {f"PhysicalSize{axis}": float(size) for axis, size in zip("ZYX", voxel_nm, strict=True)}
    # tifffile would draw a new identifier each time
    identifier = uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(pixels.data).hexdigest())
    metadata = {
        "axes": "TYX" if pixels.ndim == 3 else "TZYX",
        **sizes,
        **{f"{name}Unit": "nm" for name in sizes},
        "UUID": f"urn:uuid:{identifier}",
    }
    with whole_file(path) as temporary:
        with tifffile.TiffWriter(temporary, ome=True, bigtiff=pixels.nbytes > 2**31) as tiff:
            tiff.write(pixels, photometric="minisblack", metadata=metadata)
        return sha256_of_file(temporary)


class _PixelsInFiles:
    """What follows from ``shape``, ``dtype`` and indexing, for images that stay in files until they
    are asked for.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def _taken(self, first: object) -> np.ndarray:
        """The images at this index of the first axis."""
        raise NotImplementedError

    def __getitem__(self, key: object) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if first is None or first is Ellipsis:
            return np.asarray(self)[key]
        found = self._taken(first)
        whole = found.ndim - self.ndim + 1  # axes that the first index has left
        return found[(*[slice(None)] * whole, *rest)] if rest else found

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the pixels lie in files: an array of all of them is always a copy")
        return self[:].astype(dtype or self.dtype, copy=False)


class StackedPixels(_PixelsInFiles):
    """The images of several stacks as one read-only array (n, 1, y, x) or (n, 1, z, y, x), left on
    disk.

    ``stacks`` is (file, rows) per stack, in order; ``image_shape`` (y, x) or (z, y, x). Nothing is
    read until it is indexed; an int or a slice within one stack gives a view of the mapped file,
    everything else a copy in the order asked for. Stands in for a NumPy array in ImageSet, in the
    trainer and in figures: shape, dtype, ndim, len, iteration, and indexing by int, slice, int
    array or bool array, with indices of further axes behind them. ``np.asarray`` loads everything.
    Raises StackError for a file that is missing, cut, or not as described.
    """

    def __init__(
        self,
        stacks: Sequence[tuple[str | os.PathLike, int]],
        image_shape: Sequence[int],
        dtype: object,
    ):
        self.files = [Path(file) for file, _ in stacks]
        self.image_shape = tuple(int(side) for side in image_shape)
        self.dtype = np.dtype(dtype)
        if len(self.image_shape) not in (2, 3):
            raise StackError(
                "stacks", f"the image shape is {self.image_shape}.", "Give (y, x) or (z, y, x)."
            )
        self._starts = np.concatenate(
            [[0], np.cumsum([int(rows) for _, rows in stacks], dtype=np.int64)]
        )
        self._rows = np.arange(self._starts[-1])
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        image_bytes = int(np.prod(self.image_shape)) * self.dtype.itemsize
        for file, rows in zip(self.files, np.diff(self._starts), strict=True):
            if not file.is_file():
                raise StackError(
                    file, "the stack is missing.", "Make the data set again: what is there is kept."
                )
            if file.stat().st_size < rows * image_bytes:
                raise StackError(
                    file,
                    f"the stack is cut: it is smaller than {rows} images.",
                    "Delete it and make the data set again: the other stacks are kept.",
                )

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self._starts[-1]), 1, *self.image_shape)

    def __repr__(self) -> str:
        return f"StackedPixels({self.shape}, {self.dtype}, in {len(self.files)} files)"

    def __iter__(self) -> Iterator[np.ndarray]:
        for stack in range(len(self.files)):
            yield from self._stack(stack)

    def _taken(self, first: object) -> np.ndarray:
        rows = self._rows[first]  # by which NumPy says what is wrong with an index
        stacks = np.searchsorted(self._starts, rows, side="right") - 1
        if np.ndim(rows) == 0:
            return self._stack(int(stacks))[rows - self._starts[stacks]]
        if isinstance(first, slice) and len(rows) and stacks[0] == stacks[-1]:
            start, stop = rows[[0, -1]] - self._starts[stacks[0]]
            step = first.step or 1
            end = stop + step
            return self._stack(int(stacks[0]))[start : end if end >= 0 else None : step]
        pixels = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        for stack in np.unique(stacks):
            here = stacks == stack
            pixels[here] = self._stack(int(stack))[rows[here] - self._starts[stack]]
        return pixels

    def _stack(self, number: int) -> np.ndarray:
        """(rows, 1, ...) read-only map of one file; the least recently used of too
        many is closed."""
        with self._lock:
            if number in self._maps:
                self._maps.move_to_end(number)
                return self._maps[number]
            rows = int(self._starts[number + 1] - self._starts[number])
            mapped = _map(self.files[number], (rows, 1, *self.image_shape), self.dtype)
            self._maps[number] = mapped
            if len(self._maps) > OPEN_FILES:
                self._maps.popitem(last=False)
            return mapped


class ChosenPixels(_PixelsInFiles):
    """Some rows of an array of images that lies on disk, left there: (n, ...) in the order of
    ``rows``.

    Indexed as :class:`StackedPixels` is, by whose means nothing but what is asked for is read.
    """

    def __init__(self, pixels: np.ndarray | StackedPixels, rows: Sequence[int] | np.ndarray):
        self.pixels = pixels
        self.rows = np.asarray(rows, dtype=np.int64)
        self.dtype = pixels.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.pixels.shape[1:])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.pixels[row] for row in self.rows)

    def _taken(self, first: object) -> np.ndarray:
        return self.pixels[self.rows[first]]


def _map(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The pixels of a stack that :func:`write_stack` wrote: one block without gaps, from the first
    page on.
    """
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            found = (page.shape, page.dtype)
            offset = page.dataoffsets[0]
            compression = int(page.compression)
        if found != (shape[-2:], dtype) or compression != 1:
            raise StackError(
                file,
                f"its images are {found[1]} {found[0]}, not {dtype} {shape[-2:]} uncompressed.",
                "It belongs to another data set: make this one again.",
            )
        return np.memmap(file, dtype, "r", offset, shape)
    except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
        if isinstance(error, InputError):
            raise
        raise StackError(
            file,
            f"the stack cannot be read ({error}).",
            "Delete it and make the data set again: the other stacks are kept.",
        ) from None


def about_dataset(folder: str | os.PathLike) -> dict:
    """The content of the dataset.json that notebook 01 wrote last.

    Raises StackError when there is none, or one that cannot be read.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StackError(
            folder.name,
            "it is no finished data set of notebook 01 (there is no dataset.json in it).",
            "Run notebook 01_extract_microns_patches to its end, or give the folder that it wrote "
            "as data_dir; without either, set data to 'phantom'.",
        ) from None
    except (OSError, ValueError) as error:
        raise StackError(
            f"{folder.name}/dataset.json", f"it cannot be read ({error}).", "Run notebook 01 again."
        ) from None
    if not isinstance(about, dict) or about.get("format") != DATASET_FORMAT:
        found = about.get("format") if isinstance(about, dict) else about
        raise StackError(
            f"{folder.name}/dataset.json",
            f"its format is {found}, and {DATASET_FORMAT} can be read.",
            "Run notebook 01 of this version again.",
        )
    return about


def read_dataset(folder: str | os.PathLike) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    """The dataset.json, the synapses and what was left out (id, why, fix) of a data set folder.

    Raises StackError when it is unfinished, or a table is missing or was changed.
    """
    folder = Path(folder)
    about = about_dataset(folder)
    try:
        for file, digest in about.get("tables", {}).items():
            if sha256_of_file(folder / file) != digest:
                raise StackError(
                    f"{folder.name}/{file}",
                    "the table was changed after notebook 01 wrote it.",
                    "Delete dataset.json and run notebook 01 again: the stacks are kept.",
                )
        synapses = pd.read_parquet(folder / "synapses.parquet")
        left_out = pd.read_csv(folder / "left_out.csv", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        if isinstance(error, StackError):
            raise
        raise StackError(
            folder.name,
            f"a table of the data set cannot be read ({error}).",
            "Run notebook 01 again; it goes on where it stopped.",
        ) from None
    return about, synapses, left_out


def open_stacks(folder: str | os.PathLike, kind: str) -> StackedPixels:
    """The ``patches`` or ``cubes`` of a data set folder (see :mod:`nbhelpers.microns.dataset`).

    Raises StackError when the folder is no data set, or has no images of that kind.
    """
    folder = Path(folder)
    here = about_dataset(folder).get(kind)
    if not here:
        raise StackError(
            folder.name, f"the data set has no {kind}.", f"Run notebook 01 again with {kind}."
        )
    try:
        stacks = [(folder / stack["file"], stack["rows"]) for stack in here["stacks"]]
        return StackedPixels(stacks, here["shape_px"], here["dtype"])
    except (AttributeError, KeyError, TypeError, OverflowError) as error:
        raise StackError(
            folder / "dataset.json",
            f"it is damaged ({type(error).__name__}: {error}).",
            "Make the data set again: its stacks are kept.",
        ) from None
