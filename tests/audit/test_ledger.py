"""The ledger reads every figure from runs; what is missing says so, and nothing is typed in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nbhelpers.audit import ledger
from nbhelpers.errors import TableError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository(tmp_path):
    """Makes results of one notebook."""
    def make(notebook="04_spine_tinycnn", synthetic=False, state="ok", figures=None, **parameters):
        folder = tmp_path / "results" / notebook
        folder.mkdir(parents=True, exist_ok=True)
        score = {"value": 0.912, "low": 0.88, "high": 0.94, "n": 456}
        (folder / "metrics.json").write_text(json.dumps({
            "notebook": notebook, "parameters": parameters, "headline": {},
            "metrics": figures or {"TinyCNN": {"accuracy": score}}}))
        (folder / "manifest.json").write_text(json.dumps({
            "state": state, "data": [{"name": "masks", "n": 456, "synthetic": synthetic}]}))
        return tmp_path

    return make


def row_of(table, model="TinyCNN", score="accuracy"):
    return table[(table["model"] == model) & (table["score"] == score)].iloc[0]


def test_the_claims_of_all_four_systems_are_there():
    claims = ledger.read_claims()
    assert (
        set(claims["system"]) == set("ABCD") and (claims["cause"].str.len() > 20).all() and (claims["source"] != "").all()
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
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(claims["notebook"]) - notebooks <= {"05_synapse_3d", "06_four_stain_resnet34", "08_benchmark"}


def test_without_runs_every_row_says_missing_and_how_to_make_it(tmp_path):
    table = ledger.ledger(tmp_path)
    assert table[["published value", "honest value"]].isna().all().all()
    assert "run missing; ./run_all.sh 04_spine_tinycnn -p protocol honest -p data ghani" in row_of(table)["status"]
    assert row_of(ledger.ledger_table(table))["honest here"] == "run missing"


def test_honest_and_published_runs_are_told_apart(repository):
    root = repository(protocol="honest", data="ghani")
    row = row_of(ledger.ledger(root))
    assert (row["honest value"], row["honest n"]) == (0.912, 456) and row["published value"] is None
    text = row_of(ledger.ledger_table(ledger.ledger(root)))
    assert text["honest here"] == "0.912 [0.880, 0.940], n = 456" and text["published protocol here"] == "run missing"
    row = row_of(ledger.ledger(repository(protocol="published", data="ghani")))
    assert row["published value"] == 0.912 and row["honest value"] is None


def test_runs_on_other_data_or_that_failed_do_not_count(repository):
    assert row_of(ledger.ledger(repository(protocol="honest", data="phantom")))["honest value"] is None
    assert row_of(ledger.ledger(repository(protocol="honest", data="ghani", state="failed")))["honest value"] is None


def test_a_synthetic_figure_is_named_as_such(repository):
    root = repository("02_synapse_resnet_2d", synthetic=True, protocol="ours", data="phantom",
                      figures={"network": {"accuracy": {"value": 0.88, "low": 0.8, "high": 0.9, "n": 200}}})
    row = row_of(ledger.ledger(root), "ResNet-50")
    assert row["honest synthetic"] and "data microns" in row["status"]
    assert row_of(ledger.ledger_table(ledger.ledger(root)), "ResNet-50")["honest here"].endswith("SYNTHETIC")


def test_a_record_in_a_list_is_found(repository):
    root = repository(
        "07_glomeruli_resnet50",
        protocol="honest",
        data="bueno",
        figures={
            "changes": [
                {"change": "other", "difference": 1},
                {"change": "custom head", "difference": -0.02, "from": -0.05, "to": 0.01},
            ]
        },
    )
    row = row_of(ledger.ledger(root), "gain of the custom head", "accuracy points")
    assert (row["honest value"], row["honest low"]) == (-0.02, -0.05)


def test_a_damaged_file_is_a_missing_run(repository):
    root = repository(protocol="honest", data="ghani")
    (root / "results" / "04_spine_tinycnn" / "metrics.json").write_text("{")
    assert row_of(ledger.ledger(root))["honest value"] is None


def test_the_kept_scores_of_this_repository_are_read():
    row = row_of(ledger.ledger(ROOT))
    kept = json.loads((ROOT / "docs" / "scores" / "04_spine_tinycnn.public.json").read_text())["scores"]["accuracy"]
    if not (ROOT / "results" / "04_spine_tinycnn").exists():
        assert row["honest value"] == kept["value"] and not row["honest synthetic"]
    assert row["reported low"] == pytest.approx(0.879, abs=0.002) and row["reported high"] == pytest.approx(
        0.977, abs=0.002
    )


@pytest.mark.parametrize(("text", "words"), [("system,model\nA,b\n", "are missing"), (None, "row 3")])
def test_claims_that_cannot_be_read_are_refused(tmp_path, text, words):
    file = tmp_path / "claims.csv"
    if text is None:
        lines = ledger.CLAIMS.read_text().splitlines()
        text = "\n".join([*lines[:2], lines[2].replace(",92.71,", ",many,"), *lines[3:]])
    file.write_text(text)
    with pytest.raises(TableError, match=words):
        ledger.read_claims(file)
