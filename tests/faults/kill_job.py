"""SIGKILL at random moments, many times: ``python kill_job.py ACTIVITY,ACTIVITY FOLDER KILLS SEED``
writes FOLDER/ACTIVITY/outcome.json.

Everything slow is imported once; each try is a fork of this process, so that a hundred kills take
minutes. A try does what a user's command does, in the same folder as the tries before it, which
were killed. When one gets to its end, its result is compared with that of a run that nobody
disturbed, and the next try begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning  # noqa: F401  (imported before the forks)
import nbformat
import numpy as np
import pandas as pd
import tensorstore
import torch
from torch import nn

from nbhelpers.core.files import write_json
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import hold_out
from nbhelpers.microns.cutouts import Volume
from nbhelpers.microns.dataset import CLASSES, Cutout, Origin, extract
from nbhelpers.reports.manifest import now
from nbhelpers.reports.notebooks import all_notebooks
from nbhelpers.runner.atomic_replace import recover
from nbhelpers.runner.execution import Job
from nbhelpers.runner.places import RunnerPaths, is_complete
from nbhelpers.runner.plan import make_requests
from nbhelpers.runner.workflow import make_entries, write_plan
from nbhelpers.studies import glomeruli
from nbhelpers.studies.glomerulus_model import Predictor, fit_final
from nbhelpers.studies.predict_folder import predict_folder
from nbhelpers.training.augment import Transform
from nbhelpers.training.crossvalidation import Training
from nbhelpers.training.recipe import Recipe


def make_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def train(given: Path, folder: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    pixels = (
        (rng.normal(100, 20, (64, 1, 12, 12)) + 40 * labels[:, None, None, None])
        .clip(0, 255)
        .astype(np.uint8)
    )
    table = pd.DataFrame(
        {
            "id": [f"i{n}" for n in range(64)],
            "label": np.where(labels, "b", "a"),
            "group": [f"g{n // 4}" for n in range(64)],
        }
    )
    images = ImageSet(
        name="noise",
        table=table,
        pixels=pixels,
        classes=("a", "b"),
        source="made here",
        synthetic=True,
    )
    recipe = Recipe(name="short", epochs=6, batch_size=16, learning_rate=0.01, precision="fp32")
    training = Training(
        make_network,
        [recipe],
        lambda recipe: Transform(recipe.augmentation),
        seed=0,
        work_folder=folder / "work",
        model="short",
        report=None,
    )
    split = hold_out(images, seed=0, parts_in=4, validation=1, test=1)
    found = training.cross_validate(images, split)
    found.predictions.save(folder / "predictions.csv")


SHAPE = (16, 160, 160)
FIRST = (30, 100, 50)


def give_volume(given: Path) -> None:
    store = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{given}/"},
            "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
            "scale_metadata": {
                "size": SHAPE[::-1],
                "encoding": "raw",
                "chunk_size": [64, 64, 16],
                "resolution": [8, 8, 40],
            },
        },
        create=True,
    ).result()
    store[..., 0].write(
        np.random.default_rng(1).integers(1, 255, SHAPE, dtype=np.uint8).transpose(2, 1, 0)
    ).result()


def synapses() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    voxels = rng.integers((2, 10, 10), (14, 150, 150), (80, 3))
    neuron = rng.integers(0, 8, 80)
    table = pd.DataFrame(
        {
            "id": 1000 + np.arange(80),
            "label": np.where(neuron % 2, *CLASSES),
            "nucleus_id": 7000 + neuron,
            "group": (7000 + neuron).astype(str),
            "pre_root_id": 864691135000000000 + neuron,
            "post_root_id": 864691136000000000 + neuron,
        }
    )
    nm = (voxels * (40, 8, 8) + (20, 4, 4))[:, ::-1].astype(float)
    table[["x_nm", "y_nm", "z_nm"]] = nm
    table[["pre_x_nm", "pre_y_nm", "pre_z_nm"]] = nm
    return table


ABOUT = {
    "datastack": "made here",
    "version": 1,
    "timestamp": "2026-01-01",
    "query_hash": "abc",
    "noise": "some",
}
ASKED = (
    Cutout(patch_px=16, cube_px=(4, 16, 16)),
    Origin("noise", "made here", True, ABOUT),
)
STACK_ROWS = 8


def extract_patches(given: Path, folder: Path) -> None:
    extract(
        synapses(),
        Volume.open(f"precomputed://file://{given}"),
        folder,
        *ASKED,
        stack_rows=STACK_ROWS,
        report=lambda line: None,
    )


def give_model(given: Path) -> None:
    from nbhelpers.models.frozen import make_features, make_views, mean_features
    from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli

    images = load_phantom_glomeruli(24, 1, size_px=48, difficulty=0)
    network = make_features("squeezenet1_0", weights="none", seed=1)
    views = make_views(1)
    net = fit_final(network, mean_features(network, images.pixels, views), images, 0.1)
    Predictor(net, images.classes, views, 1.0, 0.5, None, "none", 48).save(
        given / "model.safetensors"
    )
    glomeruli.write_example_images(given / "images", 16, 3, size_px=48)


def predict(given: Path, folder: Path) -> None:
    predict_folder(
        given / "model.safetensors",
        given / "images",
        folder / "out",
        piece=2,
        backend="eager fp32",
        report=None,
    )


def give_checkout(given: Path) -> None:
    (given / "notebooks").mkdir()
    (given / "profiles").mkdir()
    cell = nbformat.v4.new_code_cell("steps = 3   # 1..9: steps", metadata={"tags": ["parameters"]})
    text = "# Toy\n\n**Question.** Is it whole?\n\n**Needs.** Nothing.\n\n**Time.** A second."
    cells = [
        nbformat.v4.new_markdown_cell(text),
        cell,
        *(
            nbformat.v4.new_code_cell(
                f"print({n})", outputs=[nbformat.v4.new_output("stream", text="x" * 2000)]
            )
            for n in range(30)
        ),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), given / "notebooks/01_toy.ipynb")
    (given / "profiles/demo.yaml").write_text("notebooks:\n  01_toy: {}\n")


def render(given: Path, folder: Path) -> None:
    """From the executed notebook to report, manifest, stamp and index in place: what follows a
    notebook's last cell.
    """
    paths = RunnerPaths(given, folder / "results")
    entries = make_entries(paths, make_requests(paths, all_notebooks(paths), "demo", [], []))
    for one in (paths.workflow, paths.logs, paths.stamps, paths.staging):
        one.mkdir(parents=True, exist_ok=True)
    recover(paths)
    one_core = argparse.Namespace(cores=1, engine="local", timeout=None)
    plan = json.loads(write_plan(paths, entries, one_core).read_text())
    job = Job(plan, "01_toy", 1)
    job.started = now()
    job.prepare()
    shutil.copy(job.notebook.path, job.executed)
    write_json(job.folder / "metrics.json", {"metrics": {"total": 3}})
    headline = {
        "name": "Accuracy",
        "value": 0.9,
        "low": 0.8,
        "high": 1.0,
        "n": 8,
        "floor_name": "chance",
        "floor": 0.5,
        "state": "done",
    }
    job.succeed({"headline": headline})


def whole_report(given: Path, folder: Path) -> str:
    result = folder / "results/01_toy"
    if not result.exists():
        return ""
    manifest = json.loads((result / "manifest.json").read_text())
    whole = is_complete(result, manifest) and (
        result / "report.html"
    ).read_text().rstrip().endswith("</html>")
    return "" if whole else "a report that is not whole lies in its place"


def whole_table(given: Path, folder: Path) -> str:
    found = folder / "out/evaluation.csv"
    return (
        ""
        if not found.exists() or len(pd.read_csv(found)) >= 14
        else "a table that is not whole lies in its place"
    )


def whole_predictions(given: Path, folder: Path) -> str:
    found = folder / "predictions.csv"
    return (
        ""
        if not found.exists() or len(Predictions.load(found))
        else "a table that is not whole lies in its place"
    )


@dataclass(frozen=True)
class Activity:
    do: Callable[[Path, Path], None]
    result: tuple[str, ...]  # patterns of the files that must be the same, byte for byte
    give: Callable[[Path], None] = lambda given: None
    look: Callable[[Path, Path], str] = lambda given, folder: (
        ""
    )  # after a kill: what is wrong with what is there


ACTIVITIES = {
    "training": Activity(
        train, ("predictions.csv", "work/**/network.safetensors"), look=whole_predictions
    ),
    "extraction": Activity(
        extract_patches, ("**/*.ome.tif", "**/synapses.parquet", "**/left_out.csv"), give_volume
    ),
    "prediction": Activity(
        predict, ("out/evaluation.csv", "out/unreadable.csv"), give_model, whole_table
    ),
    "rendering": Activity(
        render,
        ("results/01_toy/metrics.json", "results/01_toy/*.ipynb"),
        give_checkout,
        whole_report,
    ),
}


def fork(function: Callable, *arguments: Path, log: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        torch.set_num_threads(1)
        function(*arguments)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def content(activity: Activity, folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for pattern in activity.result
        for path in sorted(folder.glob(pattern))
    }


def campaign(activity: Activity, base: Path, kills: int, seed: int) -> dict:
    """``kills`` kills; ``ended``: tries that got to their end; ``lost``: what was
    lost, in words."""
    chance = random.Random(seed)
    log = base / "log.txt"
    given = base / "given"
    clean = base / "clean"
    tried = base / "tried"
    for folder in (given, clean, tried):
        folder.mkdir(parents=True)
    for function, arguments in ((activity.give, (given,)), (activity.do, (given, clean))):
        began = time.monotonic()
        _, status = os.waitpid(fork(function, *arguments, log=log), 0)
        assert status == 0, log.read_text()
        took = time.monotonic() - began
    wanted = content(activity, clean)
    lost = []
    done = 0
    ended = 0
    assert wanted, "the run left no result"
    while True:
        child = fork(activity.do, given, tried, log=log)
        due = time.monotonic() + chance.uniform(0, 1.1 * took)
        over = 0
        while done < kills and not over and time.monotonic() < due:
            time.sleep(0.002)
            over, status = os.waitpid(child, os.WNOHANG)
        if not over and done < kills:
            os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(
                child, signal.SIGKILL
            )
        if not over:
            _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            done += 1
            lost += filter(None, [activity.look(given, tried)])
            continue
        ended += 1
        if status or content(activity, tried) != wanted:
            lost.append(
                log.read_text()[-2000:]
                if status
                else "another result than that of an undisturbed run"
            )
        shutil.rmtree(tried)
        tried.mkdir()
        if done >= kills:
            return {
                "kills": done,
                "ended": ended,
                "lost": lost,
                "seconds_undisturbed": round(took, 2),
            }


if __name__ == "__main__":
    names, place, count, start = sys.argv[1:]
    for name in names.split(","):
        found = campaign(ACTIVITIES[name], Path(place) / name, int(count), int(start))
        write_json(Path(place) / name / "outcome.json", found)
