"""Decode once: every image of a set in one memory-mapped array, found again by the hash of its
content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, UnreadableImageError
from nbhelpers.core.files import sha256_of, sha256_of_file, whole_file, write_json
from nbhelpers.imagesets.reader import READER_VERSION, PassingReadError, read_image


class NoUsableImageError(InputError):
    """Not one of the images can be used; ``failures`` is the table with file, why
    and fix of each."""

    def __init__(
        self, where: object, what: str, fix: str = "", failures: pd.DataFrame | None = None
    ):
        super().__init__(where, what, fix)
        self.failures = failures


FORMAT = 2  # raise it when the meaning of packed files changes


def pack_images(
    paths: Sequence[str | os.PathLike],
    prepare: Callable[[np.ndarray, Path], np.ndarray],
    *,
    prepare_name: str,
    cache_folder: str | os.PathLike,
    workers: int | None = None,
    progress: bool = False,
    longest_px: int = 0,
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame, str]:
    """Read and prepare image files in parallel into one ``.npy`` file, or find the one made before.

    Parameters
    ----------
    paths : the image files.
    prepare : takes what :func:`read_image` gives, (channel, y, x) uint8 or uint16, and the path;
        returns an array of the same shape and type for every file. It may raise
        UnreadableImageError, which leaves the file out.
    prepare_name : names ``prepare`` and its settings; part of the key, so that other settings make
        another file.
    cache_folder : where the packed files lie.
    longest_px : images with a longer side are refused before they are decoded; 0: any.

    Returns
    -------
    pixels : (kept, ...) memory map, read-only.
    kept : (kept,) int64, which of ``paths`` each row is.
    failures : table with file, why, fix: the files that were left out.
    key : 64 hex digits, from the bytes and suffixes of all files, ``prepare_name`` and the version
        of the reader.

    Packed files that were damaged since (their hash differs) are made again. When a file failed for
    a reason that may pass (disk, memory), the result is not kept, and the next call tries again.
    Several processes may pack the same files at once: a kept result is the same from each of them.

    Raises NoUsableImageError when no file at all can be used.
    """
    paths = [Path(path) for path in paths]
    workers = workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:  # hashing and decoding release Python's lock
        hashes = list(pool.map(_hash_or_reason, paths))
        # the suffix counts, as the reader refuses a file whose content contradicts it
        files = [[digest, path.suffix.lower()] for digest, path in zip(hashes, paths, strict=True)]
        key = sha256_of(
            [FORMAT, READER_VERSION, prepare_name, *([longest_px] if longest_px else []), files]
        )
        data_path = Path(cache_folder) / f"{key[:32]}.npy"
        note_path = data_path.with_suffix(".json")
        pixels, note = _found(data_path, note_path)
        if pixels is None:
            try:
                pixels, note = _decode(
                    paths, hashes, prepare, data_path, note_path, pool, progress, longest_px
                )
            except _NotKept as result:
                pixels, note = result.args
    # names may differ between two sets of the same bytes, so failures are kept by position
    failures = pd.DataFrame(
        [
            {"file": str(paths[item["position"]]), "why": item["why"], "fix": item["fix"]}
            for item in note["failures"]
        ],
        columns=["file", "why", "fix"],
    )
    kept = np.asarray(note["kept"], dtype=np.int64)
    return pixels, kept, failures, key


def _found(data_path: Path, note_path: Path) -> tuple[np.ndarray | None, dict]:
    """Pixels and note that were packed before; (None, {}) where there are none, or where they were
    damaged since.
    """
    try:
        note = json.loads(note_path.read_text(encoding="utf-8"))
        if note["sha256"] == sha256_of_file(data_path) and note["note"] == sha256_of(
            [note["kept"], note["failures"]]
        ):
            return np.load(data_path, mmap_mode="r"), note
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None, {}


def _hash_or_reason(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        return f"unreadable: {error.strerror or error}"


def _decode(
    paths, hashes, prepare, data_path, note_path, pool, progress, longest_px
) -> tuple[np.ndarray, dict]:
    """Pixels and note of all files, kept under their final names unless a failure may pass."""
    limit = {"longest_px": longest_px} if longest_px else {}

    def one(item):
        path, digest = item
        if digest.startswith(
            "unreadable: "
        ):  # the key says so too: once it can be read, the key is another
            return UnreadableImageError(
                path,
                f"the file cannot be read ({digest.split(': ', 1)[1]}).",
                "Check that it exists and that you may read it.",
            )
        try:
            return prepare(read_image(path, **limit), path)
        except UnreadableImageError as error:
            return error
        except (OSError, MemoryError) as error:
            return PassingReadError(
                path, f"preparing it failed ({type(error).__name__}: {error}).", "Run again."
            )

    kept = []
    failures = []
    first = None
    passing = False
    with whole_file(data_path) as temporary, open(temporary, "wb") as file:
        file.write(bytes(128))  # room for the header, written when the number of images is known
        for position, result in enumerate(
            _in_order(pool, one, list(zip(paths, hashes, strict=True)), progress)
        ):
            if isinstance(result, np.ndarray):
                first = result if first is None else first
                if (result.shape, result.dtype) != (first.shape, first.dtype):
                    result = UnreadableImageError(
                        paths[position],
                        f"the image is {result.dtype} {result.shape}, the first one "
                        f"{first.dtype} {first.shape}.",
                        "All images of a set need the same size and type.",
                    )
            if isinstance(result, UnreadableImageError):
                passing |= isinstance(result, PassingReadError)
                failures.append({"position": position, "why": result.what, "fix": result.fix})
                continue
            file.write(np.ascontiguousarray(result).tobytes())
            kept.append(position)
        if first is None:
            reason = (
                f"First: {failures[0]['why']} {failures[0]['fix']}"
                if failures
                else "There are no files."
            )
            raise NoUsableImageError(
                paths[0].parent if paths else "images",
                "none of the images can be used.",
                reason,
                pd.DataFrame(
                    [
                        {
                            "file": str(paths[item["position"]]),
                            "why": item["why"],
                            "fix": item["fix"],
                        }
                        for item in failures
                    ]
                ),
            )
        file.seek(0)
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": first.dtype.str, "fortran_order": False, "shape": (len(kept), *first.shape)},
        )
        if file.tell() != 128:
            raise RuntimeError("the .npy header does not have its usual length of 128 bytes")
        file.flush()
        note = {
            "kept": kept,
            "failures": failures,
            "note": sha256_of([kept, failures]),
            "sha256": sha256_of_file(temporary),
        }
        if passing:
            raise _NotKept(
                np.load(temporary, mmap_mode="r"), note
            )  # removes the file's name; the map outlives it
    write_json(note_path, note)
    return np.load(data_path, mmap_mode="r"), note


class _NotKept(Exception):
    """Carries pixels and note that are right for this call but must not be found by
    the next one."""


def _in_order(pool, function, items, progress):
    """Results in the order of ``items``, with a bounded number waiting, so that
    memory stays flat."""
    from collections import deque

    from nbhelpers.imagesets.downloads import progress_bar

    waiting = deque()
    bar = progress_bar(total=len(items), desc="decoding", unit="image", disable=not progress)
    with bar:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 64:
                yield waiting.popleft().result()
                bar.update()
        while waiting:
            yield waiting.popleft().result()
            bar.update()
