"""Scores, times and words of the benchmark: what stands in its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from nbhelpers.core.errors import InputError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.intervals import with_interval
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.floors import shape_features
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.paired import compare_with_reference
from nbhelpers.imagesets.reader import read_image
from nbhelpers.imagesets.spines import GHANI_SOURCE, binarise, fit_frame
from nbhelpers.inference.backends import BACKENDS
from nbhelpers.inference.export import FILES, export
from nbhelpers.inference.latency import (
    Ready,
    Timing,
    best_batch,
    fastest,
    matrix_peaks,
    roofline,
    summary,
    timed_in_turn,
)
from nbhelpers.studies.benchmark import (
    OURS,
    REFERENCE,
    VIT,
    Saved,
    fit_pixels,
    network_of,
    parameters_of,
)

PUBLISHED_COLUMNS = ("model", "params", "acc", "f1", "auc", "infer_ms")
LARGE = 2_000_000  # parameters from which "few" means eager fp32 and the best other one
SIGNIFICANT = 0.05
TASKS = {
    "02_synapse_resnet_2d": "2D synapses, pretrained",
    "03_synapse_cnn_2d": "2D synapses, custom CNN",
    "04_spine_tinycnn": "dendritic spines",
    "05_synapse_3d": "3D synapses",
    "06_four_stain_resnet34": "four-stain wells",
    "07_glomeruli_resnet50": "glomeruli",
}


def score_all(saved: Sequence[Saved], *, resamples: int = 2000, seed: int = 0) -> dict[str, dict]:
    """Model to its scores, see ``evaluate``."""
    return {
        one.entrant.name: evaluate(one.predictions, resamples=resamples, seed=seed) for one in saved
    }


def compare_all(saved: Sequence[Saved], *, seed: int = 0) -> pd.DataFrame:
    """Every model against TinyCNN on the same images, p by Holm; see ``compare_with_reference``."""
    return compare_with_reference(
        Predictions.concatenate([one.predictions for one in saved]), REFERENCE, seed=seed
    )


def results_table(
    saved: Sequence[Saved],
    scores: Mapping[str, dict],
    comparison: pd.DataFrame,
    times: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per model: the six published columns, then intervals, n, paired tests, leak, note and
    times.

    Without ``times``, infer_ms is missing.
    """
    rows = []
    for one in saved:
        found = scores[one.entrant.name]
        row = {
            "model": one.entrant.name,
            "params": parameters_of(one.entrant),
            "acc": found["accuracy"]["value"],
            "f1": found["macro_f1"]["value"],
            "auc": found["auc"]["value"],
            "infer_ms": None,
            "protocol": one.split.protocol,
            "n": found["n_images"],
        }
        for short, name in (("acc", "accuracy"), ("f1", "macro_f1"), ("auc", "auc")):
            row |= {f"{short}_low": found[name]["low"], f"{short}_high": found[name]["high"]}
        rows.append(row | {"leak": one.split.known_leak, "note": one.entrant.note})
    table = pd.DataFrame(rows).astype({"params": "Int64"})
    paired = comparison.rename(
        columns={
            "accuracy difference": "acc_difference",
            "accuracy low": "acc_difference_low",
            "accuracy high": "acc_difference_high",
            "accuracy p (Holm)": "acc_p_holm",
            "macro_f1 difference": "f1_difference",
            "macro_f1 low": "f1_difference_low",
            "macro_f1 high": "f1_difference_high",
            "macro_f1 p (Holm)": "f1_p_holm",
        }
    )
    kept = ["model", *[name for name in paired if name.startswith(("acc_", "f1_"))]]
    table = table.merge(paired[kept], on="model", how="left")
    if times is not None:
        table = table.drop(columns="infer_ms").merge(times, on="model", how="left")
    return (
        table[[*PUBLISHED_COLUMNS, *(name for name in table if name not in PUBLISHED_COLUMNS)]]
        if times is not None
        else table
    )


def in_words(comparison: pd.DataFrame, notes: Mapping[str, str]) -> list[str]:
    """Sentences: which differences to TinyCNN are real at this n, and how TinyCNN stands to the
    ViT.

    A difference counts as real when its p, adjusted by Holm, is below .05.
    """
    n = int(comparison["n"].iloc[0])
    lines = []
    for score, name in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
        real = []
        open_ = []
        for row in comparison.to_dict("records"):
            ends = f"{row[f'{score} low']:+.3f} to {row[f'{score} high']:+.3f}"
            kind = real if row[f"{score} p (Holm)"] < SIGNIFICANT else open_
            kind.append(f"{row['model']} {row[f'{score} difference']:+.3f} ({ends})")
        lines.append(
            f"In {name}, with {n} spines, these differ from {REFERENCE} by more than chance: "
            f"{'; '.join(real) if real else 'none'}. These cannot be told from it: "
            f"{'; '.join(open_) if open_ else 'none'}."
        )
    vit = comparison[comparison["model"] == VIT]
    if len(vit):
        row = vit.iloc[0]
        side = "below" if row["accuracy difference"] > 0 else "above"
        words = (
            f"significantly {side}"
            if row["accuracy p (Holm)"] < SIGNIFICANT
            else "not significantly below or above"
        )
        lines.append(
            f"{REFERENCE}, with under 1 % of its parameters, is {words} {VIT} in accuracy "
            f"(p {row['accuracy p (Holm)']:.3f} after Holm)"
            + (f". But: {notes[VIT]}." if notes.get(VIT) else ".")
        )
    return lines


def which_backends(asked: str, parameters: int) -> tuple[str, ...]:
    """ "all" of them; "few": of networks above two million parameters only eager and OpenVINO;
    "none".
    """
    if asked == "none":
        return ("eager fp32",)
    if asked == "few" and parameters >= LARGE:
        return ("eager fp32", "openvino bf16")
    return BACKENDS


def clock(
    saved: Sequence[Saved],
    images: ImageSet,
    example: Path,
    *,
    backends: str = "few",
    timing: Timing,
    check: int = 64,
    seed: int = 0,
    peaks: Mapping[str, float | None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Times of every model on this machine, the backends of every network, and the measured peaks.

    ``example`` is one mask file. Of the first table: ``infer_ms`` is one image from its file to its
    probabilities in eager fp32 (batch 1, as published, median), ``infer_p95_ms``; ``decoded_ms``
    the same from an image in memory: networks from their prepared input, classical models from the
    mask, so that they are charged for their features; ``best_backend`` with ``best_ms``,
    ``best_p95_ms``, ``best_infer_ms``; ``best_batch`` and ``images_per_s``; ``threads``;
    ``rounds``, of how many calls a median and a p95 are. Classical models are fitted once more for
    this; no score comes of it.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(timing.threads)
    try:
        peaks = dict(peaks or matrix_peaks())
        rows = []
        tables = []
        for one in saved:
            if one.entrant.make_network is None:
                # NumPy's products, which know nothing of torch's threads
                with threadpool_limits(timing.threads):
                    row = _clock_classical(one, images, example, timing, seed)
                rows.append({"model": one.entrant.name, **row})
                continue
            row, table = _clock_network(one, images, example, backends, timing, check, peaks)
            rows.append({"model": one.entrant.name, **row})
            tables.append(table.assign(model=one.entrant.name))
        lines = pd.concat(tables, ignore_index=True)
        return (
            pd.DataFrame(rows).assign(threads=timing.threads),
            lines[["model", *lines.columns.drop("model")]],
            peaks,
        )
    finally:
        torch.set_num_threads(before)


def decoded(path: Path) -> np.ndarray:
    """(1, y, x) uint8, 0 and 255: a mask file as the collection reads it, with all its checks."""
    return fit_frame(binarise(read_image(path), path), 250)[None]


def _clock_network(
    one: Saved,
    images: ImageSet,
    example: Path,
    backends: str,
    timing: Timing,
    check: int,
    peaks: Mapping[str, float | None],
) -> tuple[dict, pd.DataFrame]:
    entrant = one.entrant
    network = network_of(one)
    prepare = entrant.transform
    shown = entrant.shown(images.take(np.arange(min(2 * check, len(images)))))
    ready, table = roofline(
        network,
        shown.pixels[1::2],
        prepare,
        which_backends(backends, parameters_of(entrant)),
        calibration=shown.pixels[::2],
        peaks=peaks,
        timing=timing,
    )
    single = images.take(np.arange(1))
    views = entrant.recipe.test_time_augmentation if entrant.recipe else 1

    def seen(pixels: np.ndarray) -> torch.Tensor:
        """All views of each image, as the network gets them: a prediction that averages eight views
        costs eight passes.
        """
        pixels = torch.from_numpy(np.array(pixels))
        return torch.cat([prepare.evaluate(pixels, view) for view in range(views)]).contiguous()

    def whole(run: Ready) -> torch.Tensor:
        return run.run(seen(entrant.shown(_with_pixels(single, decoded(example)[None])).pixels))

    best = fastest(table)
    image = seen(shown.pixels[:1])
    batch = prepare.evaluate(torch.from_numpy(np.array(shown.pixels[:32]))).contiguous()
    runs = {
        f"{name}{', decoded' * inside}": (lambda run=ready[name]: run.run(image))
        if inside
        else (lambda run=ready[name]: whole(run))
        for name in ("eager fp32", best)
        for inside in (False, True)
    }
    spent = {
        name: summary(values)
        for name, values in timed_in_turn(
            runs, rounds=timing.rounds, seconds=timing.seconds
        ).items()
    }
    several = best_batch(ready[_for_batches(table)], batch, seconds=timing.seconds)
    rate = several["images_per_s"] / views
    alone = 1e3 / spent[f"{best}, decoded"]["median_ms"]
    row = {
        "infer_ms": spent["eager fp32"]["median_ms"],
        "infer_p95_ms": spent["eager fp32"]["p95_ms"],
        "decoded_ms": spent["eager fp32, decoded"]["median_ms"],
        "best_backend": best,
        "best_ms": spent[f"{best}, decoded"]["median_ms"],
        "best_p95_ms": spent[f"{best}, decoded"]["p95_ms"],
        "best_infer_ms": spent[best]["median_ms"],
        "best_batch": several["batch"] if rate > alone else 1,
        "images_per_s": max(rate, alone),
        "views": views,
        "rounds": spent[best]["rounds"],
    }
    return row | {
        "input_px": int(batch.shape[-1]),
        "multiply_adds": int(table["multiply_adds"].iloc[0]),
    }, table


def _for_batches(table: pd.DataFrame) -> str:
    """The backend that works on many images at once: eager bf16, unless it was refused or this
    processor has none.
    """
    offered = set(table.loc[table["status"] == "offered", "backend"])
    return "eager bf16" if "eager bf16" in offered else "eager fp32"


def _with_pixels(images: ImageSet, pixels: np.ndarray) -> ImageSet:
    return replace(images, pixels=pixels, content_hash="not hashed: one image for the clock")


def _clock_classical(
    one: Saved, images: ImageSet, example: Path, timing: Timing, seed: int
) -> dict:
    from nbhelpers.evaluation.floors import _pipeline

    entrant = one.entrant
    fitted = images.positions(
        np.setdiff1d(images.ids, one.split.ids(*one.split.folds()[-1], "test"))
    )
    if entrant.kind == "majority":
        return {}
    masks = images.pixels[fitted][:, 0] > 127
    labels = images.labels[fitted]
    if entrant.kind == "shape":
        model = _pipeline("svm", None, seed, int(min(5, np.bincount(labels).min()))).fit(
            shape_features(masks), labels
        )

        def run(some: np.ndarray) -> np.ndarray:
            return model.predict_proba(shape_features(some))
    else:
        model = fit_pixels(entrant, masks, labels, seed)

        def run(some: np.ndarray) -> np.ndarray:
            return model.probabilities(some > 127)

    mask = images.pixels[:1, 0]
    several = images.pixels[:32, 0]
    runs = {
        "whole": lambda: run(decoded(example)),
        "decoded": lambda: run(mask),
        "several": lambda: run(several),
    }
    spent = timed_in_turn(runs, rounds=timing.rounds, seconds=timing.seconds)
    whole, inside, batch = (
        summary(spent[name], count)
        for name, count in (("whole", 1), ("decoded", 1), ("several", len(several)))
    )
    return {
        "infer_ms": whole["median_ms"],
        "infer_p95_ms": whole["p95_ms"],
        "decoded_ms": inside["median_ms"],
        "best_backend": "scikit-learn",
        "best_ms": inside["median_ms"],
        "best_p95_ms": inside["p95_ms"],
        "best_infer_ms": whole["median_ms"],
        "best_batch": len(several),
        "images_per_s": 1e3 / batch["median_ms"],
        "rounds": whole["rounds"],
        "input_px": images.pixels.shape[-1],
    }


def overview(repository: str | Path, *, resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """The other notebooks' models from their saved predictions, one row each; runs that are missing
    with their command.

    Columns: ``task``, ``model``, ``images`` ("synthetic" or "real"), ``n``, ``groups``, ``balanced
    accuracy``, ``from``, ``to``, ``floor`` (one class only), ``AUC``, ``leak``, ``status``.
    """
    import json

    rows = []
    for notebook, task in TASKS.items():
        folder = Path(repository) / "results" / notebook
        if not (folder / "predictions.csv").is_file():
            rows.append({"task": task, "status": f"run missing: ./run_all.sh {notebook}"})
            continue
        try:
            about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            found = Predictions.load(folder / "predictions.csv").where(split="test")
            synthetic = [bool(one["synthetic"]) for one in about["data"]]
            leaks = [one["known_leak"] for one in about["splits"] if one["known_leak"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            rows.append(
                {"task": task, "status": f"cannot be read ({why}); ./run_all.sh {notebook}"}
            )
            continue
        kind = "unknown" if not synthetic else "synthetic" if any(synthetic) else "real"
        facts = {"images": kind, "leak": "; ".join(leaks)}
        for model in dict.fromkeys(found.table["model"]):
            try:
                score = evaluate(found.where(model=model), resamples=resamples, seed=seed)
            except InputError as error:
                rows.append(
                    {"task": task, "model": model, **facts, "status": f"no score: {error.what}"}
                )
                continue
            present = sum(count > 0 for count in score["classes"].values())
            rows.append(
                {
                    "task": task,
                    "model": model,
                    **facts,
                    "n": score["n_images"],
                    "groups": score["n_groups"],
                    "balanced accuracy": score["balanced_accuracy"]["value"],
                    "from": score["balanced_accuracy"]["low"],
                    "to": score["balanced_accuracy"]["high"],
                    "floor": 1 / present,
                    "AUC": score["auc"]["value"],
                    "status": f"results/{notebook}",
                }
            )
    columns = [
        "task",
        "model",
        "images",
        "n",
        "groups",
        "balanced accuracy",
        "from",
        "to",
        "floor",
        "AUC",
        "leak",
        "status",
    ]
    return pd.DataFrame(rows).reindex(columns=columns).astype({"n": "Int64", "groups": "Int64"})


def export_fastest(one: Saved, images: ImageSet, lines: pd.DataFrame, folder: Path) -> dict:
    """Write the network of one model for its fastest offered backend that has files, into
    ``folder``; returns the card.
    """
    entrant = one.entrant
    mine = lines[
        (lines["model"] == entrant.name) & lines["backend"].str.split(" ").str[0].isin(FILES)
    ]
    shown = entrant.shown(images.take(np.arange(min(128, len(images)))))
    about = {
        "entrant": entrant.name,
        "data": images.source,
        "synthetic": images.synthetic,
        "protocol": one.split.protocol,
        "window": "window" in entrant.about,
    }
    return export(
        folder,
        network_of(one),
        entrant.recipe,
        shown.pixels,
        backend=fastest(mine),
        channels=entrant.channels,
        classes=images.classes,
        about=about,
    )


def readable(table: pd.DataFrame, *, leak: bool = False) -> pd.DataFrame:
    """The table of results for readers: scores with their intervals as text, and the note, or the
    leak, of each model.
    """

    def text(row: pd.Series, name: str) -> str:
        return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"])

    rows = []
    for _, row in table.iterrows():
        found = {
            "model": row["model"],
            "n": row["n"],
            "accuracy": text(row, "acc"),
            "macro-F1": text(row, "f1"),
            "AUC": text(row, "auc"),
            "minus TinyCNN": "" if pd.isna(row["acc_difference"]) else text(row, "acc_difference"),
            "p (Holm)": row["acc_p_holm"],
        }
        rows.append(found | ({"leak": row["leak"]} if leak else {}) | {"note": row["note"]})
    return pd.DataFrame(rows)


def published_files(images: ImageSet, data_folder: str | Path) -> dict[str, Path]:
    """Id to the file of every mask of the public set, which is unpacked in ``data_folder``; empty
    for other sets.
    """
    if images.source != GHANI_SOURCE:
        return {}
    files = {path.name: path for path in Path(data_folder).glob("unpacked/spines_ghani-*/**/*.png")}
    return files if set(images.ids) <= set(files) else {}


def highest_floor(saved: Sequence[Saved], scores: Mapping[str, dict]) -> str:
    """The floor with the highest accuracy: the one that a model has to beat."""
    return max(
        (one.entrant.name for one in saved if one.entrant.note == "floor"),
        key=lambda name: scores[name]["accuracy"]["value"],
    )


def headline_model(saved: Sequence[Saved]) -> str:
    """Ours, where it is there; else TinyCNN."""
    return OURS if any(one.entrant.name == OURS for one in saved) else REFERENCE
