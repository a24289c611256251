"""Whole folders: the same tables whatever the pieces, after a kill too, with every file either
predicted or listed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nbhelpers.core.errors import ParameterError, TableError
from nbhelpers.imagesets.glomeruli import load_unlabelled_glomeruli
from nbhelpers.models.frozen import make_features, make_views, mean_features
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.studies import glomerulus_model as task
from nbhelpers.studies import predict_folder as command
from nbhelpers.studies.glomeruli import write_example_images
from nbhelpers.studies.predict_folder import predict_folder

ROOT = Path(__file__).resolve().parents[2]
FILES = ("evaluation.csv", "evaluation_full.csv", "unreadable.csv")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    images = load_phantom_glomeruli(40, 1, size_px=48, difficulty=0)
    network = make_features("squeezenet1_0", weights="none", seed=1)
    views = make_views(2)
    net = task.fit_final(network, mean_features(network, images.pixels, views), images, 0.1)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    task.Predictor(net, images.classes, views, 1.0, 0.5, None, "none", 48).save(path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_example_images(tmp_path_factory.mktemp("images") / "new", 15, 3, size_px=48)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def expected(model, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected")
    result = predict_folder(model, images, out, piece=4, backend="eager fp32", report=None)
    assert (result.images, result.unreadable, result.pieces, result.computed) == (18, 3, 5, 5)
    return contents(out)


def test_every_file_is_predicted_or_listed(expected, images, tmp_path):
    for name, content in expected.items():
        (tmp_path / name).write_bytes(content)
    table, full, refused = (pd.read_csv(tmp_path / name) for name in FILES)
    on_disk = {path.relative_to(images).as_posix() for path in images.rglob("*") if path.is_file()}
    assert set(table["name"]) | set(refused["file"]) == on_disk and len(table) + len(
        refused
    ) == len(on_disk)
    assert (
        list(table.columns) == ["name", "ground_truth"]
        and (table["ground_truth"] == full["predicted"]).all()
    )
    assert np.allclose(full[["probability nonGS", "probability GS"]].sum(axis=1), 1, atol=1e-5)


def test_the_same_image_gets_the_same_flag_as_in_notebook_06(model, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    draw = np.random.default_rng(0)
    for number in range(4):
        noise = draw.integers(0, 256, (48, 48, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"noise_{number}.png")
    predictor = task.Predictor.load(model)
    new = load_unlabelled_glomeruli(
        tmp_path / "images", tmp_path / "data", predictor.classes, size_px=48
    )
    there = task.predict_new(predictor, new, tmp_path / "there", confidence=0.7)
    predict_folder(model, tmp_path / "images", tmp_path / "here", piece=3, report=None)
    here = pd.read_csv(tmp_path / "here" / "evaluation_full.csv").set_index("name")
    flags = ["out_of_distribution", "flagged_by_chance"]
    pd.testing.assert_frame_equal(here[flags], there.set_index("name").loc[here.index, flags])
    strange = here.index.str.startswith("noise")
    assert here.loc[strange, "out_of_distribution"].all() and strange.sum() == 4
    assert here.loc[~strange, "out_of_distribution"].mean() < 0.3


@pytest.mark.parametrize("piece", [1, 100])
def test_the_size_of_a_piece_changes_next_to_nothing(model, images, expected, tmp_path, piece):
    predict_folder(model, images, tmp_path, piece=piece, backend="eager fp32", report=None)
    found = contents(tmp_path)
    assert (
        found["evaluation.csv"] == expected["evaluation.csv"]
        and found["unreadable.csv"] == expected["unreadable.csv"]
    )


def test_a_run_in_bfloat16_leaves_no_trace_in_the_next_one(model):
    predictor = task.Predictor.load(model)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 48, 48), np.uint8)
    first, _, again = (
        predictor.features_of(pixels, precision=precision) for precision in ("fp32", "bf16", "fp32")
    )
    assert np.array_equal(first, again)


def test_finished_pieces_are_not_computed_again_unless_something_changed(
    model, images, expected, tmp_path, monkeypatch
):
    shutil.copytree(images, tmp_path / "images")
    done = []
    compute = command._compute

    def until_the_third(*arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(compute(*arguments))

    monkeypatch.setattr(command, "_compute", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(
            model, tmp_path / "images", tmp_path / "out", piece=4, backend="eager fp32", report=None
        )
    assert not (tmp_path / "out" / "evaluation.csv").exists()
    monkeypatch.undo()
    changed = tmp_path / "images" / "biopsy A" / "glomerulus_02.jpg"  # of the first piece
    os.utime(changed, (1, 1))
    result = predict_folder(
        model, tmp_path / "images", tmp_path / "out", piece=4, backend="eager fp32", report=None
    )
    assert result.computed == 3 and contents(tmp_path / "out") == expected
    assert not (tmp_path / "out" / ".pieces").exists()


@pytest.mark.slow
def test_a_killed_command_goes_on_and_ends_with_the_same_files(model, images, expected, tmp_path):
    arguments = [
        sys.executable,
        "-m",
        "nbhelpers.studies.predict_folder",
        "--model",
        model,
        "--images",
        images,
        "--out",
        tmp_path / "out",
        "--piece",
        "4",
        "--backend",
        "eager fp32",
        "--threads",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    while (
        not list((tmp_path / "out").glob(".pieces/*.json"))
        and running.poll() is None
        and time.monotonic() < until
    ):
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    again = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=600)
    assert (
        again.returncode == 0
        and "18 images" in again.stdout
        and "3 could not be used" in again.stdout
    )
    found = contents(tmp_path / "out")
    assert (
        found["evaluation.csv"] == expected["evaluation.csv"]
        and found["unreadable.csv"] == expected["unreadable.csv"]
    )


def test_fewer_views_are_the_first_ones(model, images, tmp_path):
    predict_folder(model, images, tmp_path, views=1, backend="eager fp32", report=None)
    full = pd.read_csv(tmp_path / "evaluation_full.csv")
    predictor = task.Predictor.load(model)
    from nbhelpers.imagesets.glomerulus_files import prepare_glomerulus
    from nbhelpers.imagesets.reader import read_image

    name = full["name"].iloc[0]
    pixels = prepare_glomerulus(read_image(images / name), name, 48)[None]
    features = mean_features(predictor.network.features, pixels, predictor.views[:1])
    assert full["probability GS"].iloc[0] == pytest.approx(
        predictor.table([name], features, confidence=0.7)["probability GS"].iloc[0], abs=0.02
    )


def test_images_unlike_the_training_ones_get_a_warning_and_no_probability(model, tmp_path, capsys):
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3)).astype(np.uint8)
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    arguments = ["--model", str(model), "--images", str(tmp_path / "images"), "--piece", "2"]
    out = tmp_path / "out"
    assert command.main([*arguments, "--backend", "eager fp32", "--out", str(out)]) == 0
    table, full = (pd.read_csv(out / name) for name in FILES[:2])
    assert list(table.columns) == ["name", "ground_truth", "warning"] and len(table) == 5
    assert table["warning"].str.startswith("5 of 5 new images are unlike").all()
    assert full["probability GS"].isna().all() and (full["set"] == "unknown").all()
    assert "WARNING: 5 of 5 new images" in capsys.readouterr().out


def test_tables_inside_the_image_folder_are_not_taken_for_images(model, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    first = predict_folder(
        model, tmp_path / "images", tmp_path / "images" / "out", backend="eager fp32", report=None
    )
    second = predict_folder(
        model, tmp_path / "images", tmp_path / "images" / "out", backend="eager fp32", report=None
    )
    assert first.images == second.images == 18


def test_images_and_tables_in_one_folder(model, images, expected, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for out in (tmp_path / "images", tmp_path / "link"):
        result = predict_folder(
            model, tmp_path / "images", out, piece=4, backend="eager fp32", report=None
        )
        assert result.images == 18 and contents(tmp_path / "images") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_name_that_is_no_utf8_is_listed_and_the_rest_predicted(model, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    shutil.copy(images / "grey.png", os.fsencode(tmp_path / "images") + b"/caf\xe9.png")
    result = predict_folder(
        model, tmp_path / "images", tmp_path / "out", backend="eager fp32", report=None
    )
    assert (result.images, result.unreadable) == (19, 4)
    assert "caf\\xe9.png" in pd.read_csv(tmp_path / "out" / "unreadable.csv")["file"].tolist()


def test_fewer_views_are_said_and_give_no_sets(model, images, tmp_path):
    said = []
    predict_folder(model, images, tmp_path, views=1, backend="eager fp32", report=said.append)
    full = pd.read_csv(tmp_path / "evaluation_full.csv")
    assert (
        set(full["views"]) == {"1 of 2"}
        and set(full["set"]) == {"unknown"}
        and "warning: 1 of 2 views" in said[0]
    )
    predict_folder(model, images, tmp_path, views=2, backend="eager fp32", report=None)
    assert "views" not in pd.read_csv(tmp_path / "evaluation_full.csv")


def test_openvino_agrees_with_eager(model, images, expected, tmp_path):
    pytest.importorskip("openvino")
    predict_folder(model, images, tmp_path, piece=4, backend="openvino fp32", report=None)
    assert (tmp_path / "evaluation.csv").read_bytes() == expected["evaluation.csv"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"piece": 0}, ParameterError, "piece"),
        ({"views": 3}, ParameterError, "The model has 2 views"),
        ({"confidence": 2}, ParameterError, "confidence"),
        ({"backend": "tpu"}, ParameterError, "backend"),
    ],
)
def test_parameters_out_of_range(model, images, tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        predict_folder(model, images, tmp_path, report=None, **changes)


def test_the_command_says_what_to_fix(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = [
        "--model",
        str(model),
        "--images",
        str(tmp_path / "empty"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert command.main(arguments) == 2 and "no images in this folder" in capsys.readouterr().err
    with pytest.raises(TableError, match="no images"):
        predict_folder(model, tmp_path / "empty", tmp_path / "out", report=None)
    (tmp_path / "a file").write_text("x")
    assert (
        command.main([*arguments[:3], str(ROOT / "tests"), "--out", str(tmp_path / "a file")]) == 2
    )
    assert "a file: this folder cannot be made or written" in capsys.readouterr().err
    assert (
        command.main([*arguments, "--threads", "-1"]) == 2
        and "parameter threads" in capsys.readouterr().err
    )
    arguments[1] = str(tmp_path / "gone.safetensors")
    assert command.main(arguments) == 2 and "does not exist" in capsys.readouterr().err


def test_names_that_a_spreadsheet_would_run_are_made_safe(model, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    good = next(path for path in sorted(images.rglob("*.png")) if path.stat().st_size > 1000)
    for name in ("=1+1.png", "@x.png", "plain.png"):
        shutil.copy(good, folder / name)
    (folder / "-cut.png").write_bytes(good.read_bytes()[:300])
    predict_folder(model, folder, tmp_path / "out", report=None)
    table, full, refused = (pd.read_csv(tmp_path / "out" / name) for name in FILES)
    assert sorted(table["name"]) == ["'=1+1.png", "'@x.png", "plain.png"] == sorted(full["name"])
    assert refused["file"].tolist() == ["'-cut.png"]


def test_a_shift_is_told_of_all_images_together_and_a_stop_changes_nothing(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr("nbhelpers.studies.shift.mixture_threshold", lambda probabilities: 0.52)
    folder = write_example_images(tmp_path / "new", 36, 4, size_px=48)
    predictor = task.Predictor.load(model)
    assert predictor.network.places is not None
    new = load_unlabelled_glomeruli(folder, tmp_path / "data", predictor.classes, size_px=48)
    about = {"piece": 7, "backend": "eager fp32"}
    for limit in (0.0, np.inf):  # shifted, and not
        places = replace(predictor.network.places, limit=limit)
        predictor.network.places = places
        whole = predict_folder(predictor, folder, tmp_path / f"{limit}", report=None, **about)
        table = task.predict_new(predictor, new, tmp_path / "direct", confidence=0.7)
        full = pd.read_csv(tmp_path / f"{limit}" / FILES[1])
        told = full[task.SHIFT].iloc[0].astype(float)
        assert np.allclose(told, table[task.SHIFT].iloc[0].astype(float), rtol=0.01)
        assert told["threshold"] == (0.5 if limit else 0.52)
        assert full[task.SHIFT].nunique().max() == 1
        assert ("No shift is seen" in whole.shift) == (limit > 0)
        positive = full["probability GS"].dropna() >= full["threshold"].iloc[0]
        said = full["predicted"][positive.index] == "GS"
        assert said.equals(positive)

    stopped = []

    def stop(line):
        stopped.append(line)
        if len(stopped) == 3:
            raise KeyboardInterrupt

    predictor.network.places = replace(places, limit=0.0)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(predictor, folder, tmp_path / "stopped", report=stop, **about)
    after = predict_folder(predictor, folder, tmp_path / "stopped", report=None, **about)
    assert after.computed < after.pieces
    # other columns may differ in their last digit here, as both runs share one process
    same = ["name", "predicted", *task.SHIFT]
    tables = [pd.read_csv(tmp_path / name / FILES[1])[same] for name in ("stopped", "0.0")]
    assert tables[0].equals(tables[1])
