"""Notebook 05 runs from top to bottom, small, on the published layout, and says that position tells
the treatment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(checkout: Path, *parameters: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NBHELPERS_ROOT": str(checkout), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "nbhelpers", "05_four_stain_resnet34"]
    for text in parameters:
        command += ["-p", *text.split("=", 1)]
    return subprocess.run(
        command, env=environment, cwd=checkout, text=True, capture_output=True, timeout=900
    )


def test_a_wrong_folder_of_new_plates_stops_the_run_before_the_training(checkout, tmp_path):
    done = run(checkout, "plates=5", "fields=1", "size_px=32", f"new_images_dir={tmp_path}")
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "none of its 0 files has a name of an IN Cell Analyzer" in said
    results = checkout / "results" / "05_four_stain_resnet34.failed"
    assert results.is_dir() and not (results / "predictions.csv").exists()


@pytest.mark.parametrize(
    ("fusion", "plates"), [("s4", "3"), ("weighted", "plate01, plate02, plate04")]
)
def test_every_fusion_runs_and_position_is_named_on_the_published_layout(checkout, fusion, plates):
    done = run(
        checkout,
        "layout=published",
        f"fusion={fusion}",
        "plates=5",
        "fields=1",
        "size_px=32",
        "epochs=1",
        "experiment=false",
        "rival=none",
        f"test_plates={plates}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = checkout / "results" / "05_four_stain_resnet34"
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    audit = json.loads((folder / "audit" / "audit.json").read_text())
    (position,) = [one for one in audit["checks"] if one["name"] == "shortcut: plate position"]
    assert position["verdict"] in ("warn", "fail")
    assert "Position and treatment are confounded" in position["fix"]
    judged = pd.read_csv(folder / "all_fields.csv")
    assert len(judged) == 5 * 48 and set(judged["part"]) == {"train", "validation", "test"}
    wells = pd.read_csv(folder / "all_wells.csv")
    assert len(wells) == 5 * 48 and set(wells["controls"]) == {"both"}
    tested = set(wells.loc[wells["part"] == "test", "plate"])
    assert len(tested) == 3 and (plates == "3" or tested == set(plates.split(", ")))
    fresh = pd.read_csv(folder / "evaluation.csv")
    assert fresh["problem"].notna().sum() == 1 and len(fresh) == 48  # a file
    assert pd.read_csv(folder / "new_wells.csv")["predicted"].notna().sum() == 47
    called = {
        row["compound"] for row in metrics["hits"]
    }  # a network that learnt nothing in one epoch calls none
    assert called <= {"C01", "C02", "C03"}
    assert {row["plate"] for row in metrics["controls"]} == set(
        judged.loc[judged["part"] == "test", "plate"]
    )
    assert ("MAP2 alone" in metrics["scores"]) == (fusion == "s4")
    assert (folder / "network.safetensors").is_file() and (
        folder / "figures" / "gradcam.png"
    ).is_file()
