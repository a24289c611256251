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
import csv
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nbhelpers.core.errors import InputError, ParameterError, TableError, UnreadableImageError
from nbhelpers.core.files import sha256_of, whole_file, write_json
from nbhelpers.imagesets.folder import find_images
from nbhelpers.imagesets.glomerulus_files import LARGEST_PX, prepare_glomerulus
from nbhelpers.imagesets.packed import PassingReadError
from nbhelpers.imagesets.reader import printable, read_image
from nbhelpers.studies.glomeruli import (
    EVALUATION_CSV,
    FULL_CSV,
    UNREADABLE_CSV,
    Predictor,
    compatible,
)

BACKENDS = ("auto", "eager fp32", "eager bf16", "openvino fp32", "openvino bf16")
PIECES = ".pieces"


@dataclass(frozen=True)
class FolderResult:
    """What a run did: counts, and images per second of the pieces computed in it (None when all
    were there).
    """

    images: int
    unreadable: int
    pieces: int
    computed: int
    images_per_second: float | None


def predict_folder(
    model: str | Path | Predictor,
    images: str | Path,
    out: str | Path,
    *,
    confidence: float = 0.7,
    piece: int = 256,
    workers: int | None = None,
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
    if not 1 <= piece <= 100_000:
        raise ParameterError("parameter piece", f"{piece} is out of range.", "Give 1 to 100000.")
    if workers is not None and not 1 <= workers <= 1024:
        raise ParameterError("parameter workers", f"{workers} is out of range.", "Give 1 to 1024.")
    if not 0 <= confidence <= 1:
        raise ParameterError(
            "parameter confidence", f"{confidence} is out of range.", "Give 0 to 1."
        )
    if views is not None:
        if not 1 <= views <= len(predictor.views):
            raise ParameterError(
                "parameter views",
                f"{views} is out of range.",
                f"The model has {len(predictor.views)} views: give 1 to {len(predictor.views)}.",
            )
    fewer = (
        f"{views} of {len(predictor.views)}" if views not in (None, len(predictor.views)) else ""
    )
    if fewer:
        predictor = replace(predictor, views=predictor.views[:views], sets=None)
        if report:
            report(
                f"warning: {fewer} views of the model are used, but its temperature and threshold "
                f"were fitted with all: "
                "probabilities are less well calibrated, and there are no prediction sets"
            )
    names = _names(images, out)
    if not names:
        raise TableError(
            images, "there are no images in this folder.", "PNG, TIFF and JPEG files are read."
        )
    engine = _Engine(predictor, backend)
    settings = [3, predictor.model, len(predictor.views), engine.backend, confidence, piece]
    pieces = out / PIECES
    started = time.monotonic()
    computed = 0
    done = 0
    try:
        pieces.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            out,
            f"this folder cannot be made or written ({error.strerror or error}).",
            "Give another folder for the tables.",
        ) from None
    count = -(-len(names) // piece)
    with engine, ThreadPoolExecutor(workers or engine.workers) as pool:
        waiting = _todo(images, names, piece, pieces, settings)
        for number, key, chosen, results in _ahead(waiting, images, engine, pool):
            _compute(
                engine, predictor, chosen, results, confidence, pieces / f"{number:06d}.json", key
            )
            computed = computed + 1
            done = done + len(chosen)
            if report and (computed % max(1, count // 20) == 0):
                rate = done / (time.monotonic() - started)
                left = max(len(names) - (number + 1) * piece, 0) / rate
                report(
                    f"piece {number + 1} of {count}   {rate:.1f} images per second   "
                    f"{left:.0f} s left"
                )
    spent = time.monotonic() - started
    unreadable = _put_together(pieces, count, out, predictor, fewer)
    shutil.rmtree(pieces, ignore_errors=True)
    return FolderResult(len(names), unreadable, count, computed, done / spent if computed else None)


def _names(images: Path, out: Path) -> list[str]:
    """The images below the folder, but not those in an ``out`` that lies inside it."""
    top = images.resolve()
    own = out.resolve()
    names = [path.relative_to(images).as_posix() for path in find_images(images)]
    if own == top or not own.is_relative_to(top):
        return names
    return [name for name in names if not (top / name).is_relative_to(own)]


def _todo(
    images: Path, names: Sequence[str], piece: int, pieces: Path, settings: list
) -> Iterator[tuple]:
    """(number, key, names) of the pieces that are not there yet with the same key: settings, names,
    sizes and times.
    """
    for number in range(-(-len(names) // piece)):
        chosen = list(names[number * piece : (number + 1) * piece])
        key = sha256_of([*settings, [[name, *_stamp(images / name)] for name in chosen]])
        try:
            if (
                json.loads((pieces / f"{number:06d}.json").read_text(encoding="utf-8"))["key"]
                == key
            ):
                continue
        except (OSError, ValueError, KeyError):
            pass
        yield number, key, chosen


def _stamp(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        return -1, -1
    return about.st_size, about.st_mtime_ns


def _ahead(
    todo: Iterator[tuple], images: Path, engine: _Engine, pool: ThreadPoolExecutor
) -> Iterator[tuple]:
    """Adds what the pool makes of each image; the next piece is begun while this one is finished,
    and never more.
    """
    waiting: deque = deque()
    for number, key, chosen in todo:
        waiting.append(
            (
                number,
                key,
                chosen,
                [pool.submit(engine.begin, images / name, name) for name in chosen],
            )
        )
        if len(waiting) > 1:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _read(path: Path, name: str, size_px: int) -> np.ndarray | UnreadableImageError:
    for attempt in range(3):
        try:
            return prepare_glomerulus(read_image(path, longest_px=LARGEST_PX), name, size_px)
        except PassingReadError as error:  # a network drive may come back
            found = error
            time.sleep(0.2 * attempt)
        except UnreadableImageError as error:
            return error
    return found


def _compute(
    engine: _Engine,
    predictor: Predictor,
    names: list[str],
    begun: list,
    confidence: float,
    path: Path,
    key: str,
) -> None:
    results = [item.result() for item in begun]
    begun.clear()
    usable = [
        (name, result)
        for name, result in zip(names, results, strict=True)
        if isinstance(result, np.ndarray)
    ]
    failures = [
        {"file": printable(name), "why": result.what, "fix": result.fix}
        for name, result in zip(names, results, strict=True)
        if not isinstance(result, np.ndarray)
    ]
    rows = []
    if usable:
        features = engine.finish(np.stack([result for _, result in usable]))
        table = predictor.table([name for name, _ in usable], features, confidence=confidence)
        rows = json.loads(table.to_json(orient="records", double_precision=10))
    write_json(path, {"key": key, "rows": rows, "failures": failures})


def _put_together(pieces: Path, count: int, out: Path, predictor: Predictor, fewer: str) -> int:
    """Write the three tables piece by piece, with ``fewer`` as column "views"; returns the number
    of unreadable files.
    """
    unreadable = 0
    empty = predictor.table([], np.zeros((0, 0)), confidence=0)
    empty = empty.assign(views="") if fewer else empty
    with (
        whole_file(out / EVALUATION_CSV) as first,
        whole_file(out / FULL_CSV) as second,
        whole_file(out / UNREADABLE_CSV) as third,
    ):
        headers = (
            (first, compatible(empty).columns),
            (second, empty.columns),
            (third, ("file", "why", "fix")),
        )
        for path, columns in headers:
            with open(path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow(columns)
        for number in range(count):
            content = json.loads((pieces / f"{number:06d}.json").read_text(encoding="utf-8"))
            table = pd.DataFrame(content["rows"], columns=empty.columns)
            table = table.assign(views=fewer) if fewer else table
            failures = pd.DataFrame(content["failures"], columns=["file", "why", "fix"])
            unreadable += len(failures)
            for path, part in ((first, compatible(table)), (second, table), (third, failures)):
                part.to_csv(
                    path, mode="a", header=False, index=False, encoding="utf-8", lineterminator="\n"
                )
    return unreadable


class _Engine:
    """The network as the backend runs it, and who does what.

    OpenVINO computes each image in the thread that has just decoded it, while it is in the cache (a
    third faster than decoded pieces through a queue); eager PyTorch computes whole pieces in
    batches.
    """

    def __init__(self, predictor: Predictor, backend: str):
        from nbhelpers.inference.backends import BackendError, prepared_for, why_not
        from nbhelpers.training.augment import Transform
        from nbhelpers.training.recipe import Augmentation

        if backend not in BACKENDS:
            raise ParameterError(
                "parameter backend",
                f"{backend!r} is unknown.",
                f"Give one of {', '.join(BACKENDS)}.",
            )
        if backend == "auto":
            backend = next(
                name
                for name in ("openvino bf16", "openvino fp32", "eager bf16", "eager fp32")
                if not why_not(name)
            )
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
        return (
            self.features(found[None])[0]
            if self.compiled and isinstance(found, np.ndarray)
            else found
        )

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
    parser.add_argument(
        "--model", required=True, help="the .safetensors file that notebook 07 wrote"
    )
    parser.add_argument("--images", required=True, help="folder with images, nested as you like")
    parser.add_argument(
        "--out",
        required=True,
        help="folder for the tables; give the same one to go on after a kill",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.7,
        help="below this probability a row is flagged (0.7)",
    )
    parser.add_argument(
        "--views", type=int, help="how many views of each image to average; 1 is fastest (all)"
    )
    parser.add_argument("--piece", type=int, default=256, help="images per piece (256)")
    parser.add_argument("--workers", type=int, help="threads that read images")
    parser.add_argument("--threads", type=int, help="threads that compute")
    parser.add_argument("--backend", default="auto", choices=BACKENDS)
    given = parser.parse_args(arguments)
    try:
        if given.threads is not None:
            if given.threads < 1:
                raise ParameterError(
                    "parameter threads", f"{given.threads} is out of range.", "Give 1 or more."
                )
            torch.set_num_threads(given.threads)
        result = predict_folder(
            given.model,
            given.images,
            given.out,
            confidence=given.confidence,
            piece=given.piece,
            workers=given.workers,
            backend=given.backend,
            views=given.views,
        )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    rate = f", {result.images_per_second:.1f} images per second" if result.images_per_second else ""
    print(
        f"{result.images} images{rate}; {result.unreadable} could not be used, see {UNREADABLE_CSV}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
