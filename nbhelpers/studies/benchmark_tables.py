"""Scores of the benchmark in tables and words."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.files import write_csv
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.comparison import compare_with_reference
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.imagesets.ghani import GHANI_SOURCE
from nbhelpers.studies.benchmark import OURS, REFERENCE, VIT, Saved, parameters_of

if TYPE_CHECKING:
    from nbhelpers.reports.run import NotebookRun

PUBLISHED_COLUMNS = ("model", "params", "acc", "f1", "auc", "infer_ms")
SHORT = {"accuracy": "acc", "macro_f1": "f1", "auc": "auc"}
SIGNIFICANT = 0.05
TASKS = {
    "02_synapse_resnet_cnn": "2D synapses",
    "03_spine_tinycnn": "dendritic spines",
    "04_synapse_3d": "3D synapses",
    "05_four_stain_resnet34": "four-stain wells",
    "06_glomeruli_resnet50": "glomeruli",
}


@dataclass(frozen=True)
class Results:
    """All models of the benchmark on the same images and folds: ``scores`` by model as ``evaluate``
    gives them, and ``comparison``, each against TinyCNN, p by Holm.
    """

    saved: Sequence[Saved]
    scores: Mapping[str, dict]
    comparison: pd.DataFrame

    @classmethod
    def of(cls, saved: Sequence[Saved]) -> Results:
        scores = {one.model.name: evaluate(one.predictions) for one in saved}
        everyone = Predictions.concatenate([one.predictions for one in saved])
        return cls(saved, scores, compare_with_reference(everyone, REFERENCE))

    def _predictions(self, chosen) -> list[Predictions]:
        return [one.predictions for one in self.saved if chosen(one.model)]

    @property
    def ours(self) -> Predictions:
        return self._predictions(lambda model: model.name == OURS)[0]

    @property
    def rivals(self) -> list[Predictions]:
        return self._predictions(lambda model: model.name != OURS and model.note != "floor")

    @property
    def floors(self) -> list[Predictions]:
        return self._predictions(lambda model: model.note == "floor")

    def table(self, times: pd.DataFrame | None = None) -> pd.DataFrame:
        """One row per model: the six published columns, then intervals, n, paired tests, leak, note
        and times. Without ``times``, infer_ms is missing.
        """
        rows = []
        for one in self.saved:
            found = self.scores[one.model.name]
            row = {"model": one.model.name, "params": parameters_of(one.model)}
            for name, short in SHORT.items():
                row[short] = found[name].value
            row |= {"infer_ms": None, "protocol": one.split.protocol, "n": found["n_images"]}
            for name, short in SHORT.items():
                row |= {f"{short}_low": found[name].low, f"{short}_high": found[name].high}
            rows.append(row | {"leak": one.split.known_leak, "note": one.model.note})
        table = pd.DataFrame(rows).astype({"params": "Int64"})
        table = table.merge(self._paired(), on="model", how="left")
        if times is None:
            return table
        table = table.drop(columns="infer_ms").merge(times, on="model", how="left")
        others = [name for name in table if name not in PUBLISHED_COLUMNS]
        return table[[*PUBLISHED_COLUMNS, *others]]

    def _paired(self) -> pd.DataFrame:
        """The differences to TinyCNN under the short names of the published columns."""
        names = {"model": "model"}
        for name in ("accuracy", "macro_f1"):
            short = SHORT[name]
            names |= {
                f"{name} difference": f"{short}_difference",
                f"{name} low": f"{short}_difference_low",
                f"{name} high": f"{short}_difference_high",
                f"{name} p (Holm)": f"{short}_p_holm",
            }
        kept = [name for name in names if name in self.comparison]
        return self.comparison[kept].rename(columns=names)


def show_results(run: NotebookRun, saved: Sequence[Saved]) -> Results:
    """Show and record every model on the same spines and folds; ours is the run's result."""
    results = Results.of(saved)
    run.save_predictions(Predictions.concatenate([one.predictions for one in saved]))
    run.show_table(
        readable(results.table()),
        "Accuracy, macro-F1 and AUC with 95 % intervals, and each model minus TinyCNN on the same "
        f"{run.images}; p of the accuracy, by Holm",
    )
    notes = {one.model.name: one.model.note for one in saved}
    sentences = in_words(results.comparison, notes)
    print(*sentences, sep="\n")
    models = {one.model.name for one in saved if one.model.note != "floor"}
    run.add_record("scores", {name: results.scores[name] for name in models})
    run.record["comparison"] = results.comparison.to_dict("records")
    run.record["in_words"] = sentences
    counts = {one.model.name: parameters_of(one.model) for one in saved}
    run.record["sizes"] = {name: count for name, count in counts.items() if count}
    run.record["notes"] = notes
    ours = results.scores[OURS]
    run.set_answer(*answer(results.scores, models, results.comparison))
    run.set_result(
        "Accuracy",
        ours["accuracy"],
        score="accuracy",
        model=OURS,
        n_text=f"{ours['n_images']} {run.images}",
    )
    return results


def show_published(
    run: NotebookRun, leaking: Sequence[Saved], times: pd.DataFrame, beside: pd.DataFrame
) -> None:
    """Show and record the models under the published protocol, and write both protocols to
    ``benchmark_results.csv``; ``beside`` is the table of the grouped one.
    """
    results = Results.of(leaking)
    table = results.table(times)
    run.show_table(readable(table, leak=True), "The published protocol. Its scores leak.")
    run.record["published"] = results.scores
    run.record["published_comparison"] = results.comparison.to_dict("records")
    run.record["known_leak"] = leaking[0].split.known_leak
    both = pd.concat([beside, table], ignore_index=True)
    write_csv(run.folder / "benchmark_results.csv", both)


def answer(
    scores: Mapping[str, dict], models: Collection[str], comparison: pd.DataFrame
) -> tuple[str, str]:
    """Which model is best, and whether any of the differences to TinyCNN is beyond chance; for
    :meth:`nbhelpers.reports.run.NotebookRun.set_answer`.
    """
    first_of_all = max(scores, key=lambda name: scores[name]["accuracy"].value)
    best = max(models, key=lambda name: scores[name]["accuracy"].value)
    compared = comparison[comparison["model"].isin(models)]
    real = compared[compared["accuracy p (Holm)"] < SIGNIFICANT]["model"].tolist()
    first = f"{best} has the highest accuracy of the models, {scores[best]['accuracy'].text()}"
    if first_of_all not in models:
        floor = scores[first_of_all]["accuracy"].value
        return "not shown", f"{first}, but the floor of {first_of_all} reaches {floor:.3f}"
    if real and best in (OURS, REFERENCE, *real):
        return "yes", f"{first}, and beyond chance {REFERENCE} differs from {', '.join(real)}"
    return "not shown", f"{first}, but none of the differences to {REFERENCE} is beyond chance"


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
            columns = [f"{score} {end}" for end in ("difference", "low", "high")]
            kind = real if row[f"{score} p (Holm)"] < SIGNIFICANT else open_
            kind.append(
                f"{row['model']} {Estimate(*[row[name] for name in columns]).text(sign='+')}"
            )
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


def overview(repository: str | Path) -> pd.DataFrame:
    """The other notebooks' models from their saved predictions, one row each; runs that are missing
    with their command.

    Columns: ``task``, ``model``, ``images`` ("synthetic" or "real"), ``n``, ``groups``, ``balanced
    accuracy``, ``from``, ``to``, ``floor`` (one class only), ``AUC``, ``leak``, ``status``.
    """
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
                score = evaluate(found.where(model=model))
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
                    **score["balanced_accuracy"].columns("balanced accuracy", "from", "to"),
                    "floor": 1 / present,
                    "AUC": score["auc"].value,
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


def readable(table: pd.DataFrame, *, leak: bool = False) -> pd.DataFrame:
    """The table of results for readers: scores with their intervals as text, and the note, or the
    leak, of each model.
    """

    def text(row: pd.Series, name: str) -> str:
        return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]).text()

    rows = [
        {
            "model": row["model"],
            "n": row["n"],
            "accuracy": text(row, "acc"),
            "macro-F1": text(row, "f1"),
            "AUC": text(row, "auc"),
            "minus TinyCNN": "" if pd.isna(row["acc_difference"]) else text(row, "acc_difference"),
            "p (Holm)": row["acc_p_holm"],
            "leak": row["leak"],
            "note": row["note"],
        }
        for _, row in table.iterrows()
    ]
    return pd.DataFrame(rows).drop(columns=[] if leak else "leak")


def published_files(images: ImageSet, data_folder: str | Path) -> dict[str, Path]:
    """Id to the file of every mask of the public set, which is unpacked in ``data_folder``; empty
    for other sets.
    """
    if images.source != GHANI_SOURCE:
        return {}
    files = {path.name: path for path in Path(data_folder).glob("unpacked/spines_ghani-*/**/*.png")}
    return files if set(images.ids) <= set(files) else {}
