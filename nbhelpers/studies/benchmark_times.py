"""Times of the benchmark: what each model costs from the file, and what this machine could do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from PIL import Image

from nbhelpers.core.files import write_csv
from nbhelpers.core.imageset import ImageSet
from nbhelpers.evaluation.floors import make_classifier
from nbhelpers.evaluation.shapes import shape_features
from nbhelpers.figures.benchmark import pareto, roofline_bars
from nbhelpers.imagesets.masks import binarise, fit_frame
from nbhelpers.imagesets.reader import read_image
from nbhelpers.inference.backends import BACKENDS, program_of
from nbhelpers.inference.export import FILES, export
from nbhelpers.inference.latency import (
    DTYPES,
    Timing,
    best_batch,
    dtype_of,
    fastest,
    roofline,
    summary,
    timed_in_turn,
)
from nbhelpers.studies.benchmark import Saved, fit_pixels, network_of, parameters_of

if TYPE_CHECKING:
    from nbhelpers.reports.run import NotebookRun

LARGE = 2_000_000  # parameters from which "few" means eager fp32 and the best other one
CHECKED = 64  # images on which a backend is compared with eager fp32


@dataclass(frozen=True)
class Timed:
    """What was timed. ``models`` has a row per model, ``backends`` one per network and backend,
    ``peaks`` the most multiply-adds per second seen in each number format, ``machine`` where.
    """

    models: pd.DataFrame
    backends: pd.DataFrame
    peaks: Mapping[str, float | None]
    machine: str


def which_backends(asked: str, parameters: int) -> tuple[str, ...]:
    """The backends to measure: "all"; "few", for networks above two million parameters only eager
    and OpenVINO; or "none", only eager.
    """
    if asked == "none":
        return ("eager fp32",)
    if asked == "few" and parameters >= LARGE:
        return ("eager fp32", "openvino bf16")
    return BACKENDS


@dataclass(frozen=True)
class Clock:
    """Times models on the masks of ``images``; ``example`` is the file of one mask, ``machine`` the
    name of this one.
    """

    images: ImageSet
    example: Path
    timing: Timing
    machine: str
    backends: str = "few"
    seed: int = 0

    def time_all(self, saved: Sequence[Saved]) -> Timed:
        """Time every model.

        Of the table of models: ``infer_ms`` is one image from its file to its probabilities in
        eager fp32 (batch 1, as published, median), ``infer_p95_ms``; ``decoded_ms`` the same from
        an image in memory: networks from their prepared input, classical models from the mask, so
        that they are charged for their features; ``best_backend`` with ``best_ms``,
        ``best_p95_ms``, ``best_infer_ms``; ``best_batch`` and ``images_per_s``; ``threads``;
        ``rounds``, of how many calls a median and a p95 are. Classical models are fitted once more
        for this; no score comes of it.
        """
        from threadpoolctl import threadpool_limits

        threads = self.timing.threads
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            rows = []
            tables = []
            for one in saved:
                name = one.model.name
                if one.model.make_network is None:
                    # NumPy's products, which know nothing of torch's threads
                    with threadpool_limits(threads):
                        rows.append({"model": name, **self._classical(one)})
                    continue
                row, table = self._network(one)
                rows.append({"model": name, **row})
                table.insert(0, "model", name)
                tables.append(table)
        finally:
            torch.set_num_threads(before)
        lines = pd.concat(tables, ignore_index=True)
        seen = lines.groupby(lines["backend"].map(dtype_of))["peak"].max()
        peaks = {dtype: seen.get(dtype) for dtype in DTYPES}
        return Timed(
            pd.DataFrame(rows).assign(threads=threads),
            lines,
            peaks,
            f"{self.machine}, {threads} threads",
        )

    def _network(self, one: Saved) -> tuple[dict, pd.DataFrame]:
        model = one.model
        transform = model.transform
        first = np.arange(min(2 * CHECKED, len(self.images)))
        shown = model.shown(self.images.take(first))
        ready, table = roofline(
            network_of(one),
            shown.pixels[1::2],
            transform,
            which_backends(self.backends, parameters_of(model)),
            calibration=shown.pixels[::2],
            timing=self.timing,
        )
        looks = model.recipe.test_time_augmentation if model.recipe else 1
        single = self.images.take(np.arange(1))

        def prepared(pixels: np.ndarray) -> torch.Tensor:
            """All looks at each image: a prediction that averages eight of them costs eight."""
            images = torch.from_numpy(np.array(pixels))
            return torch.cat([transform.evaluate(images, look) for look in range(looks)])

        def from_file() -> torch.Tensor:
            read = replace(
                single,
                pixels=decoded(self.example)[None],
                content_hash="not hashed: one image for the clock",
            )
            return prepared(model.shown(read).pixels).contiguous()

        best = fastest(table)
        image = prepared(shown.pixels[:1]).contiguous()
        runs = {}
        for name in ("eager fp32", best):
            run = ready[name].run
            runs[name] = lambda run=run: run(from_file())
            runs[f"{name}, decoded"] = lambda run=run: run(image)
        row = _times(timed_in_turn(runs, self.timing), "eager fp32", best)
        batch = transform.evaluate(torch.from_numpy(np.array(shown.pixels[:32]))).contiguous()
        several = best_batch(ready[_for_batches(table)], batch, seconds=self.timing.seconds)
        rate = several["images_per_s"] / looks
        alone = 1e3 / row["best_ms"]
        rounds = row.pop("rounds")
        row |= {
            "best_batch": several["batch"] if rate > alone else 1,
            "images_per_s": max(rate, alone),
            "test_time_augmentation": looks,
            "rounds": rounds,
            "input_px": int(batch.shape[-1]),
            "multiply_adds": int(table["multiply_adds"].iloc[0]),
        }
        return row, table

    def _classical(self, one: Saved) -> dict:
        if one.model.kind == "majority":
            return {}
        predict = self._fitted(one)
        mask = self.images.pixels[:1, 0]
        several = self.images.pixels[:32, 0]
        name = "scikit-learn"
        runs = {
            name: lambda: predict(decoded(self.example)),
            f"{name}, decoded": lambda: predict(mask),
            "several": lambda: predict(several),
        }
        spent = timed_in_turn(runs, self.timing)
        return _times(spent, name, name) | {
            "best_batch": len(several),
            "images_per_s": 1e3 / summary(spent["several"], len(several))["median_ms"],
            "input_px": self.images.pixels.shape[-1],
        }

    def _fitted(self, one: Saved) -> Callable[[np.ndarray], np.ndarray]:
        """A classical model fitted on all but the last fold: masks (n, y, x) to probabilities."""
        tested = one.split.ids(*one.split.folds()[-1], "test")
        fitted = self.images.positions(np.setdiff1d(self.images.ids, tested))
        masks = self.images.pixels[fitted][:, 0] > 127
        labels = self.images.labels[fitted]
        if one.model.kind == "shape":
            inner_folds = int(min(5, np.bincount(labels).min()))
            pipeline = make_classifier("svm", None, self.seed, inner_folds)
            pipeline.fit(shape_features(masks), labels)
            return lambda some: pipeline.predict_proba(shape_features(some))
        classifier = fit_pixels(one.model, masks, labels, self.seed)
        return lambda some: classifier.probabilities(some > 127)


def decoded(path: Path) -> np.ndarray:
    """(1, y, x) uint8, 0 and 255: a mask file as the collection reads it, with all its checks."""
    return fit_frame(binarise(read_image(path), path), 250)[None]


def _times(spent: Mapping[str, np.ndarray], plain: str, best: str) -> dict:
    """What the table of models says of one backend as published, and of the best one, by their
    names from the file, and with ", decoded" from the decoded image.
    """
    told = {name: summary(values) for name, values in spent.items()}
    return {
        "infer_ms": told[plain]["median_ms"],
        "infer_p95_ms": told[plain]["p95_ms"],
        "decoded_ms": told[f"{plain}, decoded"]["median_ms"],
        "best_backend": best,
        "best_ms": told[f"{best}, decoded"]["median_ms"],
        "best_p95_ms": told[f"{best}, decoded"]["p95_ms"],
        "best_infer_ms": told[best]["median_ms"],
        "rounds": told[best]["rounds"],
    }


def _for_batches(table: pd.DataFrame) -> str:
    """The backend that works on many images at once: eager bf16, unless it was refused or this
    processor has none.
    """
    status = table.set_index("backend")["status"]
    return "eager bf16" if status.get("eager bf16") == "offered" else "eager fp32"


def write_example(images: ImageSet, path: Path) -> Path:
    """The first mask as a PNG file, for the clock."""
    Image.fromarray(images.pixels[0, 0]).save(path)
    return path


def show_times(run: NotebookRun, timed: Timed) -> None:
    """Show and record the table of models."""
    run.record["times"] = timed.models.to_dict("records")
    shown = timed.models.drop(columns="threads").rename(columns=_spaced)
    run.show_table(
        shown,
        f"Milliseconds per mask, {timed.machine}. infer ms: from the file, eager fp32, median; "
        "decoded ms: from the decoded image; best ms: the same by the best backend; p95: 95 % of "
        "the rounds were faster",
        decimals=2,
    )


def show_pareto(run: NotebookRun, table: pd.DataFrame, timed: Timed) -> None:
    """What accuracy costs; ``table`` is that of the results with their times."""
    run.show_figure(
        pareto(table),
        "pareto",
        thumbnail=True,
        caption="What accuracy costs: accuracy in the grouped protocol against the time per mask, "
        f"from the file, in eager fp32 ({timed.machine}). The area of a dot goes with the number "
        "of parameters.",
        alt="One dot per model, accuracy upwards, milliseconds to the right on a logarithmic axis.",
    )


def show_roofline(run: NotebookRun, timed: Timed, models: Sequence[str]) -> None:
    """The measured peaks, how far each backend is from them, and ``backends.csv``; bars for the
    named ``models``.
    """
    peaks = [
        {"number format": name, "10^9 multiply-adds per second": peak and peak / 1e9}
        for name, peak in timed.peaks.items()
    ]
    run.show_table(pd.DataFrame(peaks), f"The measured peak of {timed.machine}", decimals=0)
    for number, name in enumerate(models):
        run.show_figure(
            roofline_bars(timed.backends, name),
            f"roofline_{number + 1}",
            caption=f"{name}: one decoded mask at a time by each backend.",
            alt="A bar per backend with a tick at the least time of its number format.",
        )
    shown = timed.backends.rename(columns=_spaced)
    columns = ["model", "backend", "status", "median ms", "p95 ms", "floor ms", "times floor"]
    columns += ["withdrawn", "speedup", "drift", "changed", "n"]
    run.show_table(
        shown[columns],
        "Every network and backend; drift is the largest difference of a probability from eager "
        "fp32 on n masks, changed the share of labels; withdrawn: why times the floor is not told",
        decimals=2,
    )
    refused = shown[shown["status"] != "offered"]
    if len(refused):
        run.show_table(
            refused[["model", "backend", "status", "reason"]], "Why some are not offered"
        )
    write_csv(run.folder / "backends.csv", timed.backends)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def export_fastest(one: Saved, images: ImageSet, timed: Timed, folder: Path) -> dict:
    """Write the network of one model for its fastest offered backend that has files, into
    ``folder``; returns the card, and says what was written.
    """
    model = one.model
    lines = timed.backends
    has_files = lines["backend"].map(program_of).isin(FILES)
    mine = lines[(lines["model"] == model.name) & has_files]
    shown = model.shown(images.take(np.arange(min(128, len(images)))))
    card = export(
        folder,
        network_of(one),
        model.recipe,
        shown.pixels,
        backend=fastest(mine),
        channels=model.channels,
        classes=images.classes,
        about={
            "model": model.name,
            "data": images.source,
            "synthetic": images.synthetic,
            "protocol": one.split.protocol,
            "window": "window" in model.about,
        },
    )
    drift = card["drift"]["probability"]
    print(f"Written for {card['backend']}: {', '.join(card['files'])}; largest drift {drift:.4f}")
    return card
