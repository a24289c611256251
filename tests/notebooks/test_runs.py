"""Every notebook of the synapse chain runs from top to bottom, small; one reads what the other
wrote; no token anywhere.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from nbhelpers.microns.miniature_server import TOKEN
from nbhelpers.training.checkpoints import read_card

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NBHELPERS_ROOT": str(checkout), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "nbhelpers", *arguments],
        env=environment,
        cwd=checkout,
        text=True,
        capture_output=True,
        timeout=900,
    )


def as_options(parameters: dict[str, str]) -> list[str]:
    found = []
    for name, value in parameters.items():
        found += ["-p", name, value]
    return found


@pytest.fixture(scope="module")
def extracted(checkout):
    parameters = {
        "tissue_px": "384",
        "neurons_per_class": "4",
        "patch_px": "64",
        "cube_px": "32",
        "cube_sections": "6",
        "partners": "true",
        "single_tiffs": "true",
        "shards": "2",
    }
    done = run(checkout, "01_extract_microns_patches", *as_options(parameters))
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "results" / "01_extract_microns_patches"


def test_extraction_writes_a_data_set_that_goes_with_its_report(checkout, extracted):
    metrics = json.loads((extracted / "metrics.json").read_text())["metrics"]
    data = checkout / "data" / metrics["data_set"]
    table = pd.read_parquet(data / "synapses.parquet")
    assert len(table) == metrics["synapses"] > 20 and set(table["label"]) == {
        "excitatory",
        "inhibitory",
    }
    split = pd.read_csv(data / "split.csv", dtype=str)
    assert split.groupby("group")["part"].nunique().max() == 1 and set(split["part"]) == {
        "train",
        "validation",
        "test",
    }
    assert len(list((extracted / "tiffs").rglob("*.ome.tif"))) == len(table)
    assert list(pd.read_parquet(data / "connectivity.parquet")["id"]) == list(table["id"])
    links = pd.read_csv(extracted / "neuroglancer_links.csv", dtype=str)
    assert list(links["id"]) == list(table["id"])


def test_the_report_has_a_scroll_through_one_cube(extracted):
    from PIL import Image

    with Image.open(extracted / "figures" / "scroll.png") as picture:
        assert picture.is_animated and picture.n_frames == 6
    content = base64.b64encode((extracted / "figures" / "scroll.png").read_bytes()).decode()
    assert f"data:image/png;base64,{content}" in (extracted / "report.html").read_text()


def test_another_miniature_is_asked_anew_and_its_patches_lie_where_its_synapses_are(
    checkout, extracted
):
    """Same query, other tissue: the frozen answer about the first one must not be used."""
    import numpy as np

    from nbhelpers.imagesets.stacks import open_stacks

    before = json.loads((extracted / "metrics.json").read_text())["metrics"]
    parameters = {
        "tissue_px": "320",
        "neurons_per_class": "4",
        "patch_px": "64",
        "cube_px": "32",
        "cube_sections": "6",
        "partners": "true",
    }
    done = run(checkout, "01_extract_microns_patches", *as_options(parameters))
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((extracted / "metrics.json").read_text())["metrics"]
    assert (
        metrics["data_set"] != before["data_set"] and metrics["query_hash"] != before["query_hash"]
    )
    data = checkout / "data" / metrics["data_set"]
    about = json.loads((data / "dataset.json").read_text())
    (folder,) = (
        path.parent
        for path in (checkout / "data" / "miniature").glob("*/about.json")
        if json.loads(path.read_text())["identity"] == about["about"]["served"]
    )
    injected = pd.read_parquet(folder / "synapses.parquet")
    injected.index = injected["id"].astype(str)
    tissue = np.load(folder / "pixels.npy", mmap_mode="r")
    origin = json.loads((folder / "about.json").read_text())
    table = pd.read_parquet(data / "synapses.parquet")
    patches = open_stacks(data, "patches")
    for row, name in enumerate(table["id"]):
        nm = injected.loc[name, ["x_nm", "y_nm", "z_nm"]].to_numpy(float) - origin["origin_nm"]
        x, y, z = np.floor(nm / [8, 8, 40]).astype(int)  # the very section that holds the cleft
        np.testing.assert_array_equal(patches[row, 0], tissue[z, y - 32 : y + 32, x - 32 : x + 32])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("cube_sections", "1", "1 section"),
        ("data_set", "..", "one folder"),
        ("cell_type_table", "allen_v1", "not known"),
    ],
)
def test_what_cannot_work_is_refused_before_the_miniature_is_made(checkout, name, value, words):
    made = checkout / "data" / "miniature"
    before = sorted(made.iterdir()) if made.exists() else []
    done = run(checkout, "01_extract_microns_patches", "-p", name, value, "-p", "tissue_px", "704")
    assert done.returncode != 0 and words in done.stdout + done.stderr
    assert (sorted(made.iterdir()) if made.exists() else []) == before


def test_the_token_stands_nowhere(checkout, extracted):
    searched = 0
    for path in checkout.rglob("*"):
        if path.is_file():
            searched += 1
            assert TOKEN.encode() not in path.read_bytes(), path
    assert searched > 20


def test_the_training_notebook_reads_the_extracted_data_set_as_it_is(checkout, extracted):
    data = json.loads((extracted / "metrics.json").read_text())["metrics"]["data_set"]
    parameters = {
        "data": "microns",
        "data_dir": f"data/{data}",
        "size_px": "64",
        "resnet_epochs": "1",
        "cnn_epochs": "1",
        "backbone": "squeezenet1_0",
    }
    done = run(checkout, "02_synapse_resnet_cnn", *as_options(parameters))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = checkout / "results" / "02_synapse_resnet_cnn"
    predicted = pd.read_csv(folder / "predictions.csv", dtype={"id": str})
    split = pd.read_csv(checkout / "data" / data / "split.csv", dtype=str)
    tested = predicted[(predicted["split"] == "test")]
    assert set(tested["id"]) == set(split.loc[split["part"] == "test", "id"])
    networks = ["squeezenet1_0", "SynapseCNN"]
    assert set(tested["model"]) == {
        *networks,
        "majority class",
        "grey-level baseline",
        "radial profile",
        "power spectrum",
        "border",
        "photometric together",
        *(f"random weights, {name}" for name in networks),
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    losses = metrics["metrics"]["validation_log_loss"]
    assert metrics["headline"]["model"] == min(networks, key=losses.get)
    card = read_card(folder / "network.safetensors")
    kinds = {"squeezenet1_0": "PretrainedCNN", "SynapseCNN": "SynapseCNN"}
    assert card["architecture"] == kinds[metrics["headline"]["model"]]
    assert not (folder / "evaluation.csv").exists()  # no new patches were named


def test_an_injected_shortcut_is_named_in_the_report(checkout):
    parameters = {
        "phantoms": "240",
        "neurons": "24",
        "size_px": "64",
        "resnet_epochs": "1",
        "cnn_epochs": "1",
        "confound": "1",
    }
    done = run(checkout, "02_synapse_resnet_cnn", *as_options(parameters))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = checkout / "results" / "02_synapse_resnet_cnn"
    checks = json.loads((folder / "audit" / "audit.json").read_text())["checks"]
    verdicts = {check["name"]: check["verdict"] for check in checks}
    assert verdicts["shortcut: brightness"] in ("warn", "fail"), verdicts
    audit = json.loads((folder / "metrics.json").read_text())["metrics"]["audit"]
    assert audit["verdict"] != "pass" and audit["worst"]
    assert "shortcut: brightness" in (folder / "report.html").read_text()


def test_cubes_are_predicted_by_the_network_that_is_kept(checkout):
    small = {
        "phantoms": "60",
        "neurons": "12",
        "sections": "8",
        "size_px": "32",
        "input_px": "16",
        "epochs": "1",
        "ablation": "none",
    }
    (checkout / "empty").mkdir()
    done = run(checkout, "04_synapse_3d", *as_options({**small, "new_images_dir": "empty"}))
    assert done.returncode != 0 and "empty: there are no images" in done.stdout + done.stderr
    done = run(checkout, "04_synapse_3d", *as_options(small))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = checkout / "results" / "04_synapse_3d"
    table = pd.read_csv(folder / "evaluation.csv").set_index("name")
    assert table["predicted"].notna().sum() == 8
    assert set(table.index[table["problem"].notna()]) == {
        "all_black.tif",
        "cut_short.tif",
        "too_few_sections.tif",
    }
    assert read_card(folder / "network.safetensors")["architecture"] == "UNet3D"
