"""Decode once: every image of a set in one memory-mapped array, found again by the hash of its
content.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, UnreadableImageError
from nbhelpers.core.files import sha256_of, sha256_of_file, whole_file, write_json
from nbhelpers.core.imageset import failure_table
from nbhelpers.core.kept import write_pieces
from nbhelpers.imagesets.reader import READER_VERSION, PassingReadError, read_image

FORMAT = 3  # raise it when the meaning of packed files changes
# so begins the reason where an image has another type or shape than most
OTHER_FORM = "unlike most of the set, it is"
WAITING = 64  # decoded images at one time, at most: memory stays flat


class NoUsableImageError(InputError):
    """Not one of the images can be used; ``failures`` is the table of :func:`pack_images`."""

    failures: pd.DataFrame


def pack_images(
    paths: Sequence[str | os.PathLike],
    prepare: Callable[[np.ndarray, Path], np.ndarray],
    *,
    prepare_name: str,
    cache_folder: str | os.PathLike,
    longest_px: int = 0,
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame, str]:
    """Read and prepare image files in parallel into one ``.npy`` file, or find the one made before.

    Parameters
    ----------
    paths : the image files.
    prepare : takes what :func:`read_image` gives, (channel, y, x) uint8 or uint16, and the path;
        returns an array of one shape and type for every file. It may raise UnreadableImageError,
        which leaves the file out. So are those left out whose shape or type is not the commonest,
        whatever their order; of several that are as common, the largest counts.
    prepare_name : names ``prepare`` and its settings; part of the key, so that other settings make
        another file.
    cache_folder : where the packed files are.
    longest_px : images with a longer side are refused before they are decoded; 0: any.

    Returns
    -------
    pixels : (kept, ...) memory map, read-only.
    kept : (kept,) int64, which of ``paths`` each row is.
    failures : table with file, why, fix: the files that were left out; its index are their
        positions in ``paths``.
    key : 64 hex digits, from the bytes and suffixes of all files, ``prepare_name`` and the version
        of the reader.

    Packed files that were damaged since (their hash differs) are made again. When a file failed for
    a reason that may pass (disk, memory), the result is not kept, and the next call tries again.
    Several processes may pack the same files at once: a kept result is the same from each of them.

    Raises NoUsableImageError when no file at all can be used.
    """
    paths = [Path(path) for path in paths]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # hashing and decoding release Python's lock
        hashes = list(pool.map(_hash_or_reason, paths))
        # the suffix counts, as the reader refuses a file whose content contradicts it
        files = [[digest, path.suffix.lower()] for digest, path in zip(hashes, paths, strict=True)]
        limit = [longest_px] if longest_px else []
        key = sha256_of([FORMAT, READER_VERSION, prepare_name, *limit, files])
        data_path = Path(cache_folder) / f"{key[:32]}.npy"
        pixels, note = _found(data_path)

        def one(at: int) -> np.ndarray | UnreadableImageError:
            return _prepared(paths[at], hashes[at], prepare, longest_px)

        while pixels is None:  # a second time where the first image is not as most of them
            try:
                results = _in_order(pool, one, range(len(paths)))
                pixels, note = _decoded(paths, results, data_path, note.get("usual"))
            except _NotKept as result:
                pixels, note = result.args
    kept = np.asarray(note["kept"], dtype=np.int64)
    return pixels, kept, _failure_table(paths, note["failures"]), key


def _failure_table(paths: Sequence[Path], failures: Sequence[dict]) -> pd.DataFrame:
    # names may differ between two sets of the same bytes, so failures are kept by position
    rows = [(str(paths[item["position"]]), item["why"], item["fix"]) for item in failures]
    return failure_table(rows).set_axis([item["position"] for item in failures])


def _found(data_path: Path) -> tuple[np.ndarray | None, dict]:
    """Pixels and note that were packed before; (None, {}) where there are none, or where they were
    damaged since.
    """
    try:
        note = json.loads(data_path.with_suffix(".json").read_text(encoding="utf-8"))
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


def _prepared(
    path: Path, digest: str, prepare: Callable, longest_px: int
) -> np.ndarray | UnreadableImageError:
    limit = {"longest_px": longest_px} if longest_px else {}
    if digest.startswith("unreadable: "):
        # the key says so too: once it can be read, the key is another
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


def _decoded(
    paths: Sequence[Path],
    results: Iterable[np.ndarray | UnreadableImageError],
    data_path: Path,
    form: tuple | None = None,
) -> tuple[np.ndarray, dict]:
    """Pixels and note of all files of a form (type and shape), kept under their final names unless
    a failure may pass. Where none is given and that of the first image is not the commonest,
    _NotKept carries no pixels, and the commonest.
    """
    counts = Counter()
    known = form is not None
    kept: list[int] = []
    failures: list[dict] = []
    passing = []

    def usable() -> Iterator[np.ndarray]:
        nonlocal form
        for position, result in enumerate(results):
            if isinstance(result, np.ndarray):
                own = result.dtype, result.shape
                counts[own] += 1
                form = form or own
                if own == form:
                    kept.append(position)
                    yield result[None]
                    continue
                result = UnreadableImageError(
                    paths[position],
                    f"{OTHER_FORM} {own[0]} {own[1]}; the others are {form[0]} {form[1]}.",
                    "All images of a set need the same size and type.",
                )
            failures.append({"position": position, "why": result.what, "fix": result.fix})
            if isinstance(result, PassingReadError):
                passing.append(position)
        if not kept:
            reason = "There are no files."
            if failures:
                reason = f"First: {failures[0]['why']} {failures[0]['fix']}"
            where = paths[0].parent if paths else "images"
            error = NoUsableImageError(where, "none of the images can be used.", reason)
            error.failures = _failure_table(paths, failures)
            raise error

    with whole_file(data_path) as temporary:
        write_pieces(temporary, usable())
        usual = max(counts, key=lambda one: (counts[one], one[1], one[0].itemsize))
        if not known and usual != form:
            raise _NotKept(None, {"usual": usual})
        note = {
            "kept": kept,
            "failures": failures,
            "note": sha256_of([kept, failures]),
            "sha256": sha256_of_file(temporary),
        }
        if passing:
            # leaving by an exception removes the file's name; the map outlives it
            raise _NotKept(np.load(temporary, mmap_mode="r"), note)
    write_json(data_path.with_suffix(".json"), note)
    return np.load(data_path, mmap_mode="r"), note


class _NotKept(Exception):
    """Carries pixels and note that are right for this call but must not be found by the next
    one.
    """


def _in_order(pool: ThreadPoolExecutor, function: Callable, items: Iterable) -> Iterator:
    """Results in the order of ``items``, with a bounded number waiting."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= WAITING:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
