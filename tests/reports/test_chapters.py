"""Each chapter shows its tables and figures and leaves plain values in the record."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nbhelpers.core.imageset import ImageSet, failure_table
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import hold_out
from nbhelpers.evaluation.floors import majority_class
from nbhelpers.inference.new_images import evaluation_table, warned
from nbhelpers.reports.chapters.audit import show_audit
from nbhelpers.reports.chapters.comparison import show_comparison
from nbhelpers.reports.chapters.data import kinds_of_failure, show_data, show_left_out
from nbhelpers.reports.chapters.failures import show_failures
from nbhelpers.reports.chapters.floors import show_floors
from nbhelpers.reports.chapters.mistakes import show_mistakes
from nbhelpers.reports.chapters.neurons import show_neurons
from nbhelpers.reports.chapters.new_images import show_new_images
from nbhelpers.reports.chapters.scores import show_scores
from nbhelpers.reports.chapters.split import show_split
from nbhelpers.reports.run import start_run

CLASSES = ("excitatory", "inhibitory")
COUNT = 240


@pytest.fixture
def run(make_checkout, monkeypatch):
    made = make_checkout()
    monkeypatch.setenv("NBHELPERS_ROOT", str(made.root))
    monkeypatch.delenv("NBHELPERS_RUN", raising=False)
    parameters = {"steps": 3, "rate": 0.5, "kind": "plain", "data_dir": ""}
    return start_run("01_toy", parameters, images="synapses", groups="neurons")


@pytest.fixture
def shown(monkeypatch):
    from IPython import display

    seen = []
    monkeypatch.setattr(display, "display", lambda data, raw: seen.append(data))
    return seen


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Twelve images of each of twenty neurons; every neuron has one class."""
    rng = np.random.default_rng(0)
    neuron = np.arange(COUNT) // 12
    label = np.array(CLASSES)[neuron % 2]
    pixels = rng.integers(0, 255, (COUNT, 1, 32, 32), dtype=np.uint8)
    table = pd.DataFrame(
        {
            "id": [f"synapse {number}" for number in range(COUNT)],
            "label": label,
            "group": [f"neuron {number}" for number in neuron],
        }
    )
    return ImageSet("toy synapses", table, pixels, CLASSES, "made here", True)


def predicted(images: ImageSet, rows: np.ndarray, model: str, skill: float) -> Predictions:
    rng = np.random.default_rng(1)
    score = (2 * images.labels[rows] - 1) * skill + rng.normal(0, 1, len(rows))
    second = 1 / (1 + np.exp(-score))
    return Predictions.build(
        ids=images.ids[rows],
        labels=images.table["label"].iloc[rows],
        groups=images.groups[rows],
        classes=CLASSES,
        probabilities=np.stack([1 - second, second], axis=1),
        model=model,
        split="test",
    )


def pages(shown) -> str:
    return "\n".join(one["text/html"] for one in shown)


def test_scores_floors_and_comparison_make_the_headline(run, shown, images):
    split = hold_out(images, seed=0)
    rows = images.positions(split.ids(0, 0, "test"))
    network = predicted(images, rows, "network", 3.0)
    rival = predicted(images, rows, "rival", 0.5)
    floor = majority_class(images, split)
    show_data(run, images)
    show_split(run, split, images)
    scores = show_scores(run, network)
    show_floors(run, network, [floor], rivals=[rival])
    show_comparison(run, network, [rival, floor])
    run.finish()
    saved = json.loads((run.folder / "metrics.json").read_text())
    assert set(saved["metrics"]["scores"]) == {"network", "rival"}
    assert set(saved["metrics"]["floors"]) == {"majority class"}
    headline = saved["headline"]
    assert headline["value"] == scores["network"]["accuracy"].value
    assert headline["model"] == "network" and headline["floor_name"] == "majority class"
    neurons = len(set(images.groups[rows]))
    assert headline["n_text"] == f"{len(rows)} synapses of {neurons} neurons"
    compared = {row["model"]: row for row in saved["metrics"]["comparison"]}
    assert set(compared) == {"rival", "majority class"}
    right = [one.table["predicted"] == one.table["label"] for one in (rival, network)]
    assert compared["rival"]["right alone"] == (right[0] & ~right[1]).sum()
    assert compared["rival"]["reference right alone"] == (right[1] & ~right[0]).sum()
    assert "synapses of each class" in pages(shown).lower()
    assert (run.folder / "split.csv").is_file()
    names = {figure["name"] for figure in run.figures}
    assert {"examples", "class_balance", "confusion_matrix", "reliability", "floors"} <= names


def test_images_whose_polarity_is_in_doubt_are_shown_both_ways(run, shown, images):
    show_data(run, images)
    assert [figure["name"] for figure in run.figures] == ["examples"]
    doubtful = replace(images, table=images.table.assign(in_doubt=images.labels == 1))
    show_data(run, doubtful)
    assert [figure["name"] for figure in run.figures][-1] == "inverse"
    assert "inverted" in run.figures[-1]["caption"]


def test_the_outcome_turned_around_is_not_above_its_floor(run, shown, images):
    split = hold_out(images, seed=0)
    rows = images.positions(split.ids(0, 0, "test"))
    worse = predicted(images, rows, "network", 0.0)
    better = predicted(images, rows, "measured shapes", 3.0)
    show_scores(run, worse)
    show_floors(run, worse, [better])
    run.finish()
    headline = json.loads((run.folder / "metrics.json").read_text())["headline"]
    assert headline["above_floor"] is False and headline["floor_name"] == "measured shapes"


def test_of_several_scores_the_first_with_an_interval_is_the_result(run, shown, images):
    rows = np.arange(COUNT)
    perfect = predicted(images, rows, "network", 50.0)
    scores = show_scores(run, perfect, score=("balanced_accuracy", "accuracy"))["network"]
    wanted = "balanced_accuracy" if scores["balanced_accuracy"].has_interval else "accuracy"
    assert run.record["result"]["score"] == wanted


def test_two_models_have_a_table_and_a_matrix_each(run, shown, images):
    rows = np.arange(COUNT)
    models = [predicted(images, rows, name, 1.0) for name in ("ResNet", "CNN")]
    assert set(show_scores(run, models)) == {"ResNet", "CNN"}
    assert run.record["result"]["model"] == "ResNet"
    names = [figure["name"] for figure in run.figures]
    assert names == ["confusion_matrix", "reliability", "confusion_matrix_2", "reliability_2"]


REASONS = [
    "the volume has no chunk 0-64_0-64_0-16 there.",
    "the volume has no chunk 64-128_0-64_0-16 there.",
    "1 of the 8 sections of its cube are blank.",
    "2 of the 8 sections of its cube are blank.",
    "5.1 % of the pixels of its cube are 0.",
    "6.0 % of the pixels of its cube are 0.",
    "it lies at the edge: the cutout would reach beyond the volume by 3 px along x.",
]


def test_reasons_are_counted_without_their_numbers_and_names():
    failures = pd.DataFrame({"file": range(7), "why": REASONS, "fix": "Do without it."})
    found = kinds_of_failure(failures)
    assert sorted(found["files"]) == [1, 2, 2, 2]
    assert not found["why"].str.contains(r"[0-9]").any()


def test_few_files_that_were_left_out_are_listed_and_many_are_counted(run, shown, images):
    for times in (1, 20):
        failures = pd.DataFrame({"file": "a.tif", "why": REASONS * times, "fix": "Do without it."})
        show_left_out(run, replace(images, failures=failures))
    listed, counted = (one["text/html"] for one in shown)
    assert "Left out: 7." in listed and "by 3 px along x" in listed
    assert "Left out: 140." in counted and "a.tif" not in counted and "edge" in counted


def test_mistakes_failures_and_neurons(run, shown, images, capsys):
    tested = predicted(images, np.arange(COUNT), "network", 1.0)
    show_mistakes(run, images, tested)
    show_failures(run, images, tested, unit="neuron")
    show_neurons(run, [tested, predicted(images, np.arange(COUNT), "rival", 0.5)])
    assert set(run.record["per_neuron"]) == {"network", "rival"}
    assert set(run.record["error_correlation"]) == {"network", "rival"}
    names = {figure["name"] for figure in run.figures}
    assert {"mistakes", "errors_by_quality", "errors_by_neuron", "neuron_curve"} <= names
    assert "neuron_curve_2" in names
    show_neurons(run, tested, unit="object")
    assert run.record["per_neuron"] is None and "nothing to combine" in capsys.readouterr().out


def test_groups_of_the_user_are_not_called_neurons(run, shown, images, capsys):
    show_failures(run, images, predicted(images, np.arange(COUNT), "network", 1.0), unit="group")
    show_neurons(run, predicted(images, np.arange(COUNT), "network", 1.0), unit="group")
    curve = next(figure for figure in run.figures if figure["name"] == "neuron_curve")
    said = capsys.readouterr().out + curve["caption"] + curve["alt"]
    assert "a group is right" in said and "neuron" not in said


def test_the_audit_leaves_its_verdict_and_its_worst_finding(run, shown, images):
    split = hold_out(images, seed=0)
    rows = images.positions(split.ids(0, 0, "test"))
    show_audit(run, images, split, predicted(images, rows, "network", 1.0))
    found = json.loads((run.folder / "audit" / "audit.json").read_text())
    assert run.record["audit"]["verdict"] == found["verdict"]
    verdicts = {check["verdict"] for check in found["checks"]}
    assert bool(run.record["audit"]["worst"]) == bool(verdicts & {"warn", "fail"})
    table = shown[0]["text/html"]
    assert "Audit of toy synapses" in table and "<td>pass</td>" not in table


def test_new_images_are_counted(run, shown, images, capsys):
    new = images.take(np.arange(4))
    table = evaluation_table(
        new.ids,
        np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]]),
        CLASSES,
        np.array([False, True, False, False]),
        confidence=0.7,
        failures=new.failures,
    )
    show_new_images(run, new, table, own=True)
    counts = run.record["new_images"]
    assert counts["given"] == counts["predicted"] == 4
    assert counts["low_confidence"] == 2 and counts["out_of_distribution"] == 1
    assert len(pd.read_csv(run.folder / "evaluation.csv")) == 4
    said = "Your 4 images: 4 predicted, 1 out of distribution, 2 of low confidence: see"
    assert said in capsys.readouterr().out and counts["warning"] == ""
    show_new_images(run, new, table, own=False)  # examples: shown, and nothing to be looked at
    assert run.record["new_images"]["warning"] == "" and not capsys.readouterr().out
    files = failure_table([("a.tif", "it is cut.", "Copy it.")] * 3)
    files.attrs["given"] = 5  # fields of a plate, whose files are more
    show_new_images(run, replace(new, failures=files), table, own=True)
    assert "Your 5 images: 4 predicted, 1 refused" in capsys.readouterr().out
    doubtful = replace(new, table=new.table.assign(in_doubt=True), failures=files)
    show_new_images(run, doubtful, table, own=True)
    assert "2 of low confidence, 4 whose grey values may be inverted" in capsys.readouterr().out
    assert pd.read_csv(run.folder / "evaluation.csv")["in_doubt"].tolist() == [True] * 4
    unknown = table.assign(out_of_distribution="unknown")
    show_new_images(run, new, unknown, own=True)
    assert run.record["new_images"]["out_of_distribution"] is None
    table["out_of_distribution"] = True
    table = warned(table, "They mean nothing.")
    show_new_images(run, new, table, own=True)
    assert run.record["new_images"]["warning"] == "They mean nothing."
    assert "They mean nothing." in capsys.readouterr().out
    assert pd.read_csv(run.folder / "evaluation.csv")["warning"].notna().all()
    show_new_images(run, None, None, own=False)
    assert "No new images were named" in capsys.readouterr().out
