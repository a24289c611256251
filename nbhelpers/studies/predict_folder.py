"""Predict every image below a folder, however many: one command, constant memory, and it goes on
where it was killed.

    python -m nbhelpers.studies.predict_folder --model glomeruli.safetensors --images FOLDER --out
    FOLDER

Images are taken in pieces of a few hundred. Each finished piece is a file in ``OUT/.pieces``; a
piece that is there already, of the same model, settings and files, is not computed again. At the
end the pieces are put together into ``evaluation.csv`` (name, ground_truth: the predicted class, as
the published program writes it), ``evaluation_full.csv`` and ``unreadable.csv``, and removed. A run
that was killed and started again ends with the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nbhelpers.core.errors import (
    InputError,
    TableError,
    UnreadableImageError,
    check_choice,
    check_range,
)
from nbhelpers.core.files import (
    sha256_of,
    special_file,
    spreadsheet_safe,
    whole_file,
    write_json,
)
from nbhelpers.core.predictions import PROBABILITY_PREFIX
from nbhelpers.imagesets.folder import find_images
from nbhelpers.imagesets.glomerulus_files import LARGEST_PX, prepare_glomerulus
from nbhelpers.imagesets.packed import PassingReadError
from nbhelpers.imagesets.reader import printable, read_image
from nbhelpers.inference.backends import BackendError, prepared_for, why_not
from nbhelpers.inference.new_images import warned, warning_for
from nbhelpers.studies.glomerulus_model import (
    EVALUATION_CSV,
    FULL_CSV,
    UNREADABLE_CSV,
    Predictor,
    compatible,
)
from nbhelpers.studies.shift import Shift
from nbhelpers.training.augment import Transform
from nbhelpers.training.recipe import Augmentation

BACKENDS = ("openvino bf16", "openvino fp32", "eager bf16", "eager fp32")  # the fastest first
PIECES = ".pieces"
FAILURES = ["file", "why", "fix"]


@dataclass(frozen=True)
class FolderResult:
    """What a run did: counts, images per second of the pieces computed in it (None when all were
    there), what must be said of the predictions as a whole, if anything, and whether the images are
    shifted as a set.
    """

    images: int
    unreadable: int
    pieces: int
    computed: int
    images_per_second: float | None
    warning: str = ""
    shift: str = ""


@dataclass(frozen=True)
class Piece:
    """Some images of the folder; ``key`` is the hash of all that decides their rows, ``path`` the
    file for these.
    """

    number: int
    names: list[str]
    key: str
    path: Path

    def is_there(self) -> bool:
        """Whether it was computed before, from the same files by the same model."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return json.loads(self.path.read_text(encoding="utf-8"))["key"] == self.key
        return False


def predict_folder(
    model: str | Path | Predictor,
    images: str | Path,
    out: str | Path,
    *,
    confidence: float = 0.7,
    piece: int = 256,
    backend: str = "auto",
    views: int | None = None,
    report: Callable[[str], None] | None = print,
) -> FolderResult:
    """Predict all images below ``images`` and write three tables into ``out``; see the text of this
    module.

    ``views`` takes only the first views of the model (1 is the image alone: fastest); temperature,
    threshold and sets were fitted with all of them, so the sets are "unknown" then and a column
    ``views`` says so. ``backend`` "auto" is OpenVINO where it is installed, in bfloat16 where the
    processor has it, else eager PyTorch. ``out`` may lie inside ``images``, and is not searched
    then. Raises InputError for a folder without images and an ``out`` that cannot be written,
    CheckpointError for a model that cannot be used, ParameterError.
    """
    predictor = model if isinstance(model, Predictor) else Predictor.load(model)
    images = Path(images)
    out = Path(out)
    report = report or (lambda line: None)
    check_range("parameter piece", piece, 1, 100_000)
    check_range("parameter confidence", confidence, 0, 1)
    fewer = ""
    if views is not None:
        count = len(predictor.views)
        check_range("parameter views", views, 1, count, f"The model has {count} views.")
        if views < count:
            fewer = f"{views} of {count}"
            predictor = replace(predictor, views=predictor.views[:views], sets=None)
            report(
                f"warning: {fewer} views of the model are used, but its temperature and threshold "
                "were fitted with all: probabilities are less well calibrated, and there are no "
                "prediction sets"
            )
    names = _names(images, out)
    if not names:
        raise TableError(
            images, "there are no images in this folder.", "PNG, TIFF and JPEG files are read."
        )
    engine = _Engine(predictor, backend)
    folder = out / PIECES
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            out,
            f"this folder cannot be made or written ({error.strerror or error}).",
            "Give another folder for the tables.",
        ) from None
    settings = [6, predictor.model, len(predictor.views), engine.backend, confidence, piece]
    started = time.monotonic()
    computed = 0
    done = 0
    count = -(-len(names) // piece)
    with engine, ThreadPoolExecutor(engine.workers) as pool:
        # made as they come: the hashes of 100,000 files are never in memory together
        pieces = (_piece(images, names, number, piece, folder, settings) for number in range(count))
        todo = (one for one in pieces if not one.is_there())
        for one, begun in _ahead(todo, images, engine, pool):
            _compute(engine, one, begun, confidence)
            computed += 1
            done += len(one.names)
            if computed % max(1, count // 20) == 0:
                rate = done / (time.monotonic() - started)
                left = max(len(names) - (one.number + 1) * piece, 0) / rate
                report(
                    f"piece {one.number + 1} of {count}   {rate:.1f} images per second   "
                    f"{left:.0f} s left"
                )
    spent = time.monotonic() - started
    unreadable, warning, shift = _put_together(folder, count, predictor, fewer, confidence)
    shutil.rmtree(folder, ignore_errors=True)
    rate = done / spent if computed else None
    return FolderResult(len(names), unreadable, count, computed, rate, warning, str(shift))


def _names(images: Path, out: Path) -> list[str]:
    """The images below the folder, but not those in an ``out`` that lies inside it."""
    top = images.resolve()
    own = out.resolve()
    names = [path.relative_to(images).as_posix() for path in find_images(images)]
    if own == top or not own.is_relative_to(top):
        return names
    return [name for name in names if not (top / name).is_relative_to(own)]


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _piece(
    images: Path, names: Sequence[str], number: int, size: int, folder: Path, settings: list
) -> Piece:
    chosen = list(names[number * size : (number + 1) * size])
    stamps = [[name, *_stamp(images / name)] for name in chosen]
    return Piece(number, chosen, sha256_of([*settings, stamps]), _path(folder, number))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        return -1, -1
    return about.st_size, about.st_mtime_ns


def _ahead(
    todo: Iterator[Piece], images: Path, engine: _Engine, pool: ThreadPoolExecutor
) -> Iterator[tuple[Piece, list[Future]]]:
    """Adds what the pool makes of each image; the next piece is begun while this one is finished,
    and never more.
    """
    waiting: deque = deque()
    for piece in todo:
        begun = [pool.submit(engine.begin, images / name, name) for name in piece.names]
        waiting.append((piece, begun))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _read(path: Path, name: str, size_px: int) -> np.ndarray | UnreadableImageError:
    if why := special_file(path):
        return UnreadableImageError(name, f"{why}.", "Move it away.")
    for attempt in range(3):
        try:
            return prepare_glomerulus(read_image(path, longest_px=LARGEST_PX), name, size_px)
        except PassingReadError as error:  # a network drive may come back
            found = error
            time.sleep(0.2 * attempt)
        except UnreadableImageError as error:
            return error
    return found


def _compute(engine: _Engine, piece: Piece, begun: list[Future], confidence: float) -> None:
    usable = {}
    failures = []
    for name, one in zip(piece.names, begun, strict=True):
        result = one.result()
        if isinstance(result, np.ndarray):
            usable[name] = result
        else:
            failures.append({"file": printable(name), "why": result.what, "fix": result.fix})
    begun.clear()  # else their results would stay in memory
    rows = []
    place = np.zeros(0)
    if usable:
        features = engine.finish(np.stack(list(usable.values())))
        table = engine.predictor.table(list(usable), features, confidence=confidence)
        rows = json.loads(table.to_json(orient="records", double_precision=10))
        place = engine.predictor.place(features)
    content = {"rows": rows, "place": place, "failures": failures}
    write_json(piece.path, {"key": piece.key, **content})


def _put_together(
    folder: Path, count: int, predictor: Predictor, fewer: str, confidence: float
) -> tuple[int, str, Shift]:
    """Write the three tables piece by piece, with ``fewer`` as column "views"; returns the number
    of unreadable files, the warning where most images are unlike the training images, and their
    shift.
    """
    unreadable = 0
    flags = []
    last_class = []
    place = np.zeros(0)
    for number in range(count):
        content = json.loads(_path(folder, number).read_text(encoding="utf-8"))
        flags += [row["out_of_distribution"] is True for row in content["rows"]]
        name = PROBABILITY_PREFIX + predictor.classes[-1]
        last_class += [row[name] for row in content["rows"]]
        if content["place"]:
            place = np.array(content["place"]) + (place if len(place) else 0)
    if fewer:  # where the training images lie was found with all views
        place = np.zeros(0)
    shift = predictor.shift(place, np.array(last_class), np.array(flags, bool))
    warning = warning_for(sum(flags), len(flags))
    out = folder.parent
    columns = predictor.table([], np.zeros((0, 0)), confidence=0).columns
    with (
        whole_file(out / EVALUATION_CSV) as first,
        whole_file(out / FULL_CSV) as second,
        whole_file(out / UNREADABLE_CSV) as third,
    ):
        for number in range(count):
            content = json.loads(_path(folder, number).read_text(encoding="utf-8"))
            table = pd.DataFrame(content["rows"], columns=columns)
            table = warned(predictor.shifted(table, shift, confidence=confidence), warning)
            table = table.assign(views=fewer) if fewer else table
            failures = pd.DataFrame(content["failures"], columns=FAILURES)
            unreadable += len(failures)
            for path, part in ((first, compatible(table)), (second, table), (third, failures)):
                spreadsheet_safe(part).to_csv(path, mode="a", header=number == 0, index=False)
    return unreadable, warning, shift


class _Engine:
    """The network as the backend runs it, and who does what.

    OpenVINO computes each image in the thread that has just decoded it, while it is in the cache (a
    third faster than decoded pieces through a queue); eager PyTorch computes whole pieces in
    batches.
    """

    def __init__(self, predictor: Predictor, backend: str):
        check_choice("parameter backend", backend, ("auto", *BACKENDS))
        if backend == "auto":
            backend = next(name for name in BACKENDS if not why_not(name))
        elif why_not(backend):
            raise BackendError(f"backend {backend}", f"{why_not(backend)}.", "Use auto.")
        self.predictor = predictor
        self.backend = backend
        self.threads = torch.get_num_threads()
        self.network = predictor.network.features
        self.compiled = backend.startswith("openvino")
        if self.compiled:
            example = np.zeros((1, 3, predictor.size_px, predictor.size_px), np.uint8)
            ready = prepared_for(self.network, example, Transform(Augmentation()), backend)
            self.network = ready.network

    def __enter__(self) -> _Engine:
        if self.compiled:
            torch.set_num_threads(1)  # each worker has one image
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.threads)

    @property
    def workers(self) -> int:
        return 2 * self.threads if self.compiled else min(8, os.cpu_count() or 1)

    def begin(self, path: Path, name: str) -> np.ndarray | UnreadableImageError:
        """What can be done with one image in a thread of its own: its features, or its pixels, or
        why neither.
        """
        found = _read(path, name, self.predictor.size_px)
        if self.compiled and isinstance(found, np.ndarray):
            return self.features(found[None])[0]
        return found

    def finish(self, results: np.ndarray) -> np.ndarray:
        """(n, width) features of what :meth:`begin` gave."""
        return results if self.compiled else self.features(results)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        precision = "bf16" if self.backend == "eager bf16" else "fp32"
        return self.predictor.features_of(pixels, network=self.network, precision=precision)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 with one line on standard error when something must be fixed by
    the user.
    """
    parser = argparse.ArgumentParser(
        prog="python -m nbhelpers.studies.predict_folder", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--model", required=True, help="the .safetensors file that notebook 06 wrote")
    add("--images", required=True, help="folder with images, nested as you like")
    add("--out", required=True, help="folder for the tables; the same one to go on after a kill")
    add("--confidence", type=float, default=0.7, help="below it a row is flagged (0.7)")
    add("--views", type=int, help="how many views of each image to average; 1 is fastest (all)")
    add("--piece", type=int, default=256, help="images per piece (256)")
    add("--threads", type=int, help="threads that compute")
    add("--backend", default="auto", choices=("auto", *BACKENDS))
    given = vars(parser.parse_args(arguments))
    threads = given.pop("threads")
    try:
        if threads is not None:
            check_range("parameter threads", threads, 1, 1024)
            torch.set_num_threads(threads)
        result = predict_folder(**given)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(result.shift)
    if result.warning:
        print(f"WARNING: {result.warning}")
    rate = f", {result.images_per_second:.1f} images per second" if result.images_per_second else ""
    print(
        f"{result.images} images{rate}; {result.unreadable} could not be used, see {UNREADABLE_CSV}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
