"""The ledger reads every figure from runs; what is missing says so, and nothing is typed in."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path

import pytest

from nbhelpers.audit import reproduction
from nbhelpers.core.errors import TableError
from nbhelpers.phantoms.glomerulus import CLASSES
from nbhelpers.studies import glomeruli

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository(tmp_path):
    """Makes results of one notebook."""

    def make(notebook="04_spine_tinycnn", synthetic=False, state="ok", figures=None, **parameters):
        folder = tmp_path / "results" / notebook
        folder.mkdir(parents=True, exist_ok=True)
        score = {"value": 0.912, "low": 0.88, "high": 0.94, "n": 456}
        (folder / "metrics.json").write_text(
            json.dumps(
                {
                    "notebook": notebook,
                    "parameters": parameters,
                    "headline": {},
                    "metrics": figures or {"TinyCNN": {"accuracy": score}},
                }
            )
        )
        (folder / "manifest.json").write_text(
            json.dumps(
                {"state": state, "data": [{"name": "masks", "n": 456, "synthetic": synthetic}]}
            )
        )
        return tmp_path

    return make


def row_of(table, model="TinyCNN", score="accuracy"):
    return table[(table["model"] == model) & (table["score"] == score)].iloc[0]


def test_the_claims_of_all_four_systems_are_there():
    claims = reproduction.read_claims()
    assert (
        set(claims["system"]) == set("ABCD")
        and (claims["cause"].str.len() > 20).all()
        and (claims["source"] != "").all()
    )
    models = set(claims["model"])
    assert {
        "TinyCNN",
        "ViT-B16, frozen",
        "ResNet18",
        "CNN-3Layer",
        "Random Forest",
        "SVM",
        "ResNet-50",
        "custom CNN",
        "3D models",
        "connectivity baseline",
        "S4-ResNet34",
        "early fusion",
        "speed against CellProfiler",
        "ResNet50 with head",
        "gain of the custom head",
    } <= models


# what the claims ask for, a notebook can write


def cells_of(notebook):
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))[
        "cells"
    ]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def written_by(notebook) -> set[str]:
    """The keys of the metrics that the notebook hands to run.finish."""
    for cell in cells_of(notebook):
        for call in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "finish":
                (metrics,) = (one.value for one in call.keywords if one.arg == "metrics")
                return {
                    key.value for key in metrics.keys if key is not None
                }  # None: tables that are unpacked there
    raise AssertionError(f"{notebook} finishes without metrics")


def allowed_by(notebook) -> dict[str, str]:
    """Each parameter of the notebook, and the words of its comment before the colon: the values it
    may have.
    """
    (cell,) = (
        cell for cell in cells_of(notebook) if "parameters" in cell["metadata"].get("tags", [])
    )
    lines = ("".join(cell["source"])).splitlines()
    return {line.split("=")[0].strip(): line.split("#", 1)[1].split(":")[0] for line in lines}


def names_below(notebook, key) -> set[str] | None:
    """The names that may stand below a key of the metrics; None: scores of one model."""
    from nbhelpers.evaluation import connectivity
    from nbhelpers.studies import benchmark, plates
    from nbhelpers.training.recipe import Recipe

    if notebook == "08_benchmark":
        return {
            one.name
            for one in benchmark.entrants(
                ("Mushroom", "Stubby", "Thin"),
                epochs={"tinycnn": 1, "resnet18": 1, "cnn3": 1},
                vit_weights="none",
                seed=1,
                px={"tinycnn": 16, "resnet18": 16, "cnn3": 16, "vit": 32},
                ours=Recipe(name="ours"),
                data_folder=Path("data"),
            )
        }
    if (notebook, key) == ("05_synapse_3d", "connectivity"):
        source = inspect.getsource(connectivity.connectivity_predictions)
        assert '", SVM"' in source and '", by synapse (LEAKS)"' in source
        return {
            f"connectivity{kind}{leak}"
            for kind in ("", ", SVM")
            for leak in ("", ", by synapse (LEAKS)")
        }
    if (notebook, key) == ("06_four_stain_resnet34", "all"):
        return {
            plates.model_name("early", encoder) for encoder in ("small", "resnet18", "resnet34")
        }
    if (notebook, key) == ("07_glomeruli_resnet50", "changes"):
        return set(re.findall(r'(?:custom|linear)\("([^"]+)"', inspect.getsource(glomeruli)))
    return None


@pytest.mark.parametrize(
    "row",
    reproduction.read_claims().itertuples(index=False),
    ids=lambda row: f"{row.model}, {row.score}",
)
def test_every_key_of_the_claims_can_be_written_by_its_notebook(row):
    if row.notebook.startswith(reproduction.MEASURED):
        source = (ROOT / f"{row.notebook}.py").read_text()
        assert all(
            f'"{step}"' in source
            for step in row.grouped_at.split("/")
            if step not in ("2048", "backends")
        )
        assert all(f'"{item.split("=")[0]}"' in source for item in row.grouped_where.split())
        return
    keys = written_by(row.notebook)
    allowed = allowed_by(row.notebook)
    for at, where in ((row.published_at, row.published_where), (row.grouped_at, row.grouped_where)):
        for item in where.replace("|", " ").split():
            name, value = item.split("=")
            assert value in allowed[name].replace("|", " ").split(), (
                f"{item} is no value of {row.notebook}"
            )
        for place in filter(None, at.split(" | ")):
            key, *steps = place.split("/")
            key, _, picked = key.partition("[")
            names = names_below(row.notebook, key)
            assert key in keys or place.startswith("scores/"), (
                place
            )  # docs/scores/ keeps the main model's alone
            if picked:
                assert picked.rstrip("]").split("=")[1] in names, place
                continue
            if names is not None:
                assert steps.pop(0) in names, place
            if steps[0] == "per_class":
                assert steps[1] in CLASSES, place
                del steps[:2]
            assert steps in (
                [one]
                for one in (
                    "accuracy",
                    "balanced_accuracy",
                    "macro_f1",
                    "auc",
                    "precision",
                    "recall",
                )
            )


def test_a_measured_time_is_read_and_its_command_named(tmp_path):
    row = row_of(
        reproduction.reproduction_table(tmp_path), "speed against CellProfiler", "times faster"
    )
    assert (
        "run missing; .venv/bin/python benchmarks/plate_inference.py --fusion s4 --encoder resnet34"
        in row["status"]
    )
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (tmp_path / "benchmarks" / "plate_inference.py").write_text("")
    (folder / "plate_inference_s4_resnet34.json").write_text(
        json.dumps(
            {
                "fusion": "s4",
                "encoder": "resnet34",
                "device": {"cpu": "some"},
                "sizes": {"2048": {"backends": {"eager fp32": {"times_cellprofiler": 12.5}}}},
            }
        )
    )
    row = row_of(
        reproduction.reproduction_table(tmp_path), "speed against CellProfiler", "times faster"
    )
    assert (
        row["grouped value"] == 12.5
        and row["on"] == "timed on some"
        and "published: not measured" in row["status"]
    )


def test_without_runs_every_row_says_missing_and_how_to_make_it(tmp_path):
    table = reproduction.reproduction_table(tmp_path)
    assert table[["published value", "grouped value"]].isna().all().all()
    assert (
        "run missing; ./run_all.sh 04_spine_tinycnn -p protocol grouped -p data ghani"
        in row_of(table)["status"]
    )
    assert row_of(reproduction.readable(table))["grouped here"] == "run missing"


def test_honest_and_published_runs_are_told_apart(repository):
    root = repository(protocol="grouped", data="ghani")
    row = row_of(reproduction.reproduction_table(root))
    assert (row["grouped value"], row["grouped n"]) == (0.912, 456) and row[
        "published value"
    ] is None
    text = row_of(reproduction.readable(reproduction.reproduction_table(root)))
    assert (
        text["grouped here"] == "0.912 [0.880, 0.940], n = 456"
        and text["published protocol here"] == "run missing"
    )
    row = row_of(reproduction.reproduction_table(repository(protocol="published", data="ghani")))
    assert row["published value"] == 0.912 and row["grouped value"] is None


def test_runs_on_other_data_or_that_failed_do_not_count(repository):
    assert (
        row_of(reproduction.reproduction_table(repository(protocol="grouped", data="phantom")))[
            "grouped value"
        ]
        is None
    )
    assert (
        row_of(
            reproduction.reproduction_table(
                repository(protocol="grouped", data="ghani", state="failed")
            )
        )["grouped value"]
        is None
    )


def test_a_synthetic_figure_is_named_as_such(repository):
    root = repository(
        "02_synapse_resnet_2d",
        synthetic=True,
        protocol="ours",
        data="phantom",
        figures={"network": {"accuracy": {"value": 0.88, "low": 0.8, "high": 0.9, "n": 200}}},
    )
    row = row_of(reproduction.reproduction_table(root), "ResNet-50")
    assert row["grouped synthetic"] and "data microns" in row["status"]
    assert row_of(reproduction.readable(reproduction.reproduction_table(root)), "ResNet-50")[
        "grouped here"
    ].endswith("SYNTHETIC")


def test_a_record_in_a_list_is_found(repository):
    root = repository(
        "07_glomeruli_resnet50",
        protocol="grouped",
        data="bueno",
        figures={
            "changes": [
                {"change": "other", "difference": 1},
                {"change": "custom head", "difference": -0.02, "from": -0.05, "to": 0.01},
            ]
        },
    )
    row = row_of(
        reproduction.reproduction_table(root), "gain of the custom head", "accuracy points"
    )
    assert (row["grouped value"], row["grouped low"]) == (-0.02, -0.05)


def test_a_damaged_file_is_a_missing_run(repository):
    root = repository(protocol="grouped", data="ghani")
    (root / "results" / "04_spine_tinycnn" / "metrics.json").write_text("{")
    assert row_of(reproduction.reproduction_table(root))["grouped value"] is None


def test_the_kept_scores_of_this_repository_are_read():
    row = row_of(reproduction.reproduction_table(ROOT))
    kept = json.loads((ROOT / "docs" / "scores" / "04_spine_tinycnn.public.json").read_text())[
        "scores"
    ]["accuracy"]
    if not (ROOT / "results" / "04_spine_tinycnn").exists():
        assert row["grouped value"] == kept["value"] and not row["grouped synthetic"]
    assert row["reported low"] == pytest.approx(0.879, abs=0.002) and row[
        "reported high"
    ] == pytest.approx(0.977, abs=0.002)


@pytest.mark.parametrize(
    ("text", "words"), [("system,model\nA,b\n", "are missing"), (None, "row 3")]
)
def test_claims_that_cannot_be_read_are_refused(tmp_path, text, words):
    file = tmp_path / "claims.csv"
    if text is None:
        lines = reproduction.CLAIMS.read_text().splitlines()
        text = "\n".join([*lines[:2], lines[2].replace(",92.71,", ",many,"), *lines[3:]])
    file.write_text(text)
    with pytest.raises(TableError, match=words):
        reproduction.read_claims(file)
