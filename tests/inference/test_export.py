"""Exported networks give what fp32 gives, are refused where they drift, and are read only as they
were written.
"""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nbhelpers.core.errors import CheckpointError, ParameterError
from nbhelpers.imagesets.windows import centred
from nbhelpers.inference import backends
from nbhelpers.inference import export as command
from nbhelpers.inference.backends import BackendError, why_not
from nbhelpers.inference.export import export, load_exported
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.phantoms.spine import CLASSES, load_phantom_spines
from nbhelpers.studies.spines import GENTLE
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import save_checkpoint
from nbhelpers.training.forward import predict_probabilities

RECIPE = GENTLE.but(input_px=32, epochs=1, test_time_augmentation=2)
WRITTEN = (
    "eager fp32",
    "eager bf16",
    "onnx fp32",
    "openvino fp32",
    "openvino bf16",
    "openvino int8",
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return TinyCNN(1, 3).eval()


@pytest.fixture(scope="module")
def images():
    return centred(load_phantom_spines(12, 0), 160)


def write(folder, network, images, backend, **changes):
    if why_not(backend):
        pytest.skip(f"{backend}: {why_not(backend)}")
    return export(
        folder,
        network,
        RECIPE,
        images.pixels,
        backend=backend,
        channels=1,
        classes=images.classes,
        about={"window": True},
        **changes,
    )


@pytest.mark.parametrize("backend", WRITTEN)
def test_what_is_read_back_predicts_as_fp32_does(tmp_path, network, images, backend):
    card = write(tmp_path / "out", network, images, backend)
    assert (
        card["backend"] == backend
        and card["input"] == [1, 32, 32]
        and card["drift"]["n"] in (6, 12)
    )
    exported = load_exported(tmp_path / "out")
    prepare = Transform(RECIPE.augmentation, 32, 1)
    plain = predict_probabilities(
        network, images.pixels, prepare, test_time_augmentation=2, precision="fp32"
    )
    assert np.allclose(
        exported.predict(images.pixels), plain, atol=1e-5 if backend.endswith("fp32") else 0.03
    )
    assert exported.card == json.loads((tmp_path / "out" / "card.json").read_text())


def test_a_file_that_drifts_is_not_left_behind(tmp_path, network, images, monkeypatch):
    monkeypatch.setattr(backends, "MOST_DRIFT", -1)
    with pytest.raises(BackendError, match="drifts from fp32.*limits are -1"):
        write(tmp_path, network, images, "openvino fp32")
    assert not list(tmp_path.iterdir())


def test_changed_missing_and_foreign_files_are_refused(tmp_path, network, images):
    with pytest.raises(CheckpointError, match=r"no readable card\.json"):
        load_exported(tmp_path)
    card = write(tmp_path, network, images, "eager fp32")
    for damaged in (
        [],
        card | {"files": []},
        card | {"backend": "int8"},
        {"files": {}, "backend": "eager fp32"},
    ):
        (tmp_path / "card.json").write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match=r"no readable card\.json"):
            load_exported(tmp_path)
    write(tmp_path, network, images, "eager fp32")
    path = tmp_path / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(CheckpointError, match=r"network\.safetensors.*changed after the export"):
        load_exported(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_exported(tmp_path)


def test_a_backend_that_is_missing_here_is_named(tmp_path, network, images, monkeypatch):
    write(tmp_path, network, images, "eager fp32")
    monkeypatch.setattr(backends, "why_not", lambda backend: "it is not installed")
    with pytest.raises(BackendError, match="not installed"):
        load_exported(tmp_path)
    with pytest.raises(BackendError, match="not installed"):
        export(
            tmp_path,
            network,
            RECIPE,
            images.pixels,
            backend="onnx fp32",
            channels=1,
            classes=images.classes,
            about={},
        )


def test_unknown_backends_and_too_few_images(tmp_path, network, images):
    with pytest.raises(ParameterError, match="'int8' is unknown"):
        write(tmp_path, network, images, "int8")
    with pytest.raises(ParameterError, match="3 is out of range. Give a number from 4"):
        export(
            tmp_path,
            network,
            RECIPE,
            images.pixels[:3],
            backend="eager fp32",
            channels=1,
            classes=images.classes,
            about={},
        )


@pytest.fixture
def masks(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for number, mask in enumerate(load_phantom_spines(8, 5).pixels[:, 0]):
        Image.fromarray(mask).save(folder / f"{number}.png")
    return folder


def test_the_command_writes_and_predicts(tmp_path, network, masks, capsys):
    about = {"recipe": RECIPE.as_dict(), "protocol": "grouped: 1 x 3-fold"}
    save_checkpoint(tmp_path / "net.safetensors", network, classes=CLASSES, about=about)
    (masks / "cut.png").write_bytes((masks / "0.png").read_bytes()[:60])
    where = ["--masks", str(masks), "--out"]
    checkpoint = str(tmp_path / "net.safetensors")
    assert (
        command.main(["write", checkpoint, "--backend", "eager fp32", *where, str(tmp_path / "e")])
        == 0
    )
    assert command.main(["predict", str(tmp_path / "e"), *where, str(tmp_path / "found.csv")]) == 0
    assert "8 masks predicted, 1 could not be used" in capsys.readouterr().out
    assert command.main(["predict", str(tmp_path / "e"), *where, str(masks)]) == 2
    assert "Is a directory" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "found.csv")
    assert len(table) == 9 and table["problem"].notna().sum() == 1
    assert table.filter(like="probability ").dropna().sum(axis=1).to_numpy() == pytest.approx(
        np.ones(8), abs=1e-4
    )


def test_the_command_says_in_one_line_what_to_fix(tmp_path, network, masks, capsys):
    where = ["--masks", str(masks), "--out", str(tmp_path / "e")]
    assert command.main(["write", str(tmp_path / "none.safetensors"), *where]) == 2
    save_checkpoint(
        tmp_path / "net.safetensors", network, classes=CLASSES, about={"recipe": "none"}
    )
    assert command.main(["write", str(tmp_path / "net.safetensors"), *where]) == 2
    assert command.main(["predict", str(tmp_path / "e"), *where]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) == 3
        and "does not exist" in lines[0]
        and "cannot be exported" in lines[1]
        and "card.json" in lines[2]
    )
