"""Notebook 06 runs from top to bottom, small, on the published layout, and says that position tells
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
    command = [sys.executable, "-m", "nbhelpers", "06_four_stain_resnet34"]
    for text in parameters:
        command += ["-p", *text.split("=", 1)]
    return subprocess.run(
        command, env=environment, cwd=checkout, text=True, capture_output=True, timeout=900
    )


@pytest.mark.parametrize("fusion", ["s4", "weighted"])
def test_every_fusion_runs_and_position_is_named_on_the_published_layout(checkout, fusion):
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
        "test_plates=3",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = checkout / "results" / "06_four_stain_resnet34"
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert any(
        "Warning: position and treatment are confounded" in line
        for line in metrics["position_sentences"]
    )
    judged = pd.read_csv(folder / "all_fields.csv")
    assert len(judged) == 5 * 48 and set(judged["part"]) == {"train", "validation", "test"}
    called = {
        row["compound"] for row in metrics["hits"]
    }  # a network that learnt nothing in one epoch calls none
    assert called <= {"C01", "C02", "C03"}
    assert {row["plate"] for row in metrics["controls"]} == set(
        judged.loc[judged["part"] == "test", "plate"]
    )
    assert ("MAP2 alone" in metrics["all"]) == (fusion == "s4")
    assert (folder / "network.safetensors").is_file() and (
        folder / "figures" / "gradcam.png"
    ).is_file()
