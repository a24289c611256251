"""The benchmark: trained once and saved, read ever after, never of other images or folds, never in
silence.
"""

import json
import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nbhelpers.core import splits
from nbhelpers.core.errors import CheckpointError, InputError, PredictionsError
from nbhelpers.core.files import write_json
from nbhelpers.core.predictions import Predictions
from nbhelpers.inference.latency import Timing
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.phantoms.spine import CLASSES, load_phantom_spines
from nbhelpers.studies import benchmark as task
from nbhelpers.studies import benchmark_tables as tables
from nbhelpers.studies import benchmark_times as times
from nbhelpers.studies import spines as spine_task
from nbhelpers.training.checkpoints import save_checkpoint

NAMES = [
    "TinyCNN",
    "ViT-B16, frozen",
    "ResNet18",
    "CNN-3Layer",
    "SVM on pixels",
    "Random Forest on pixels",
    "TinyCNN, our recipe",
    "shape features + SVM",
    "majority class",
]


@pytest.fixture(scope="module")
def images():
    return load_phantom_spines(60, 3)


@pytest.fixture(scope="module")
def split(images):
    return splits.repeated_cross_validation(images, folds=2, repeats=1, seed=0)


def make_models(**changes):
    (ours,) = spine_task.recipes(
        "grouped", "gentle", epochs=1, batch_size=8, learning_rate=2e-3, input_px=16
    )
    given = {
        "epochs": {"tinycnn": 1, "resnet18": 1, "cnn3": 1},
        "ours": ours,
        "vit": task.VitWeights("none", "data", 5),
        "px": {"tinycnn": 16, "resnet18": 16, "cnn3": 16, "vit": 32},
    }
    return task.benchmark_models(CLASSES, **(given | changes))


@pytest.fixture(scope="module")
def models():
    return {one.name: one for one in make_models()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    return task.Cache(root, root / "work", 1)


@pytest.fixture(scope="module")
def load(images, split, cache):
    def load(model, **changes):
        wanted = (changes.pop("images", images), changes.pop("split", split))
        return replace(cache, **changes).load(model, *wanted)

    return load


@pytest.fixture(scope="module")
def saved(models, load):
    """Those that need no large network."""
    return [load(models[name]) for name in NAMES if name not in ("ViT-B16, frozen", "ResNet18")]


def test_who_takes_part_and_what_is_said_of_them(models):
    assert list(models) == NAMES
    assert models["TinyCNN"].note == "reduced: 1 epochs instead of 100, 16 px instead of 250"
    assert task.RANDOM_FEATURES in models[task.VIT].note
    as_published = {
        one.name: one
        for one in make_models(
            epochs={"tinycnn": 100, "resnet18": 30, "cnn3": 20},
            px={"tinycnn": 0, "resnet18": 0, "cnn3": 0, "vit": 224},
        )
    }
    assert (
        as_published["TinyCNN"].note
        == as_published["ResNet18"].note
        == as_published["CNN-3Layer"].note
        == ""
    )
    assert as_published["TinyCNN"].recipe == spine_task.PUBLISHED
    resnet = as_published["ResNet18"].recipe
    assert (resnet.optimizer, resnet.learning_rate, resnet.epochs) == ("adam", 1e-4, 30)
    assert resnet.augmentation.rotation_degrees == 15 and resnet.augmentation.flip_horizontal
    parameters = [task.parameters_of(as_published[name]) for name in NAMES[:5]]
    assert parameters == [457_539, 85_800_963, 11_304_003, 8_482_883, None]


def test_trained_once_then_read(models, load, images, split, capsys):
    model = replace(models["TinyCNN"], name="TinyCNN again")
    with pytest.raises(
        PredictionsError, match="TinyCNN again.*no saved predictions.*run_all.sh 07_benchmark"
    ):
        load(model, train_missing=False)
    first = load(model)
    assert "trained now, once" in capsys.readouterr().out
    second = load(model, train_missing=False)
    assert "trained now" not in capsys.readouterr().out and second.source.startswith(
        "TinyCNN again: read from"
    )
    pd.testing.assert_frame_equal(first.predictions.table, second.predictions.table)
    assert sorted(first.predictions.table["id"]) == sorted(images.ids)
    network = task.network_of(second)
    _, fold = split.folds()[-1]
    last = second.predictions.where(fold=fold)
    pixels = images.pixels[images.positions(last.table["id"])]
    with torch.inference_mode():
        again = network(model.transform.evaluate(torch.from_numpy(pixels))).softmax(1).numpy()
    assert (
        np.abs(again - last.probabilities).max() < 0.05
    )  # saved in bfloat16 where the processor has it


@pytest.mark.parametrize("change", ["seed", "recipe", "images", "split"])
def test_what_decides_the_predictions_decides_the_key(models, images, split, change):
    model = models["TinyCNN"]
    given = {"images": images, "split": split, "seed": 1}
    before = model.key(**given)
    if change == "recipe":
        model = replace(model, recipe=model.recipe.but(epochs=2))
    else:
        given[change] = {
            "seed": 2,
            "images": load_phantom_spines(60, 4),
            "split": splits.repeated_cross_validation(images, folds=3, repeats=1, seed=0),
        }[change]
    assert model.key(**given) != before


def test_changed_predictions_are_refused_and_lost_weights_named(models, load, saved):
    model = replace(models["CNN-3Layer"], name="CNN-3Layer again")
    one = load(model)
    one.checkpoint.unlink()
    with pytest.raises(CheckpointError, match="weights of CNN-3Layer again are gone.*07_benchmark"):
        task.network_of(one)
    path = one.checkpoint.with_name("predictions.csv")
    path.write_text(path.read_text().replace("Thin", "Stubby", 1))
    with pytest.raises(PredictionsError, match=r"predictions\.csv.*changed after.*07_benchmark"):
        load(model)
    with pytest.raises(InputError, match="is no network"):
        task.network_of(next(one for one in saved if one.model.kind == "svm"))


def test_a_damaged_cache_names_the_folder_to_delete(models, load):
    one = load(replace(models["CNN-3Layer"], name="CNN-3Layer, damaged"))
    one.checkpoint.write_bytes(one.checkpoint.read_bytes()[:-4] + b"harm")
    with pytest.raises(
        CheckpointError,
        match=f"damaged.*Delete the folder {one.checkpoint.parent.name}.*07_benchmark",
    ):
        task.network_of(one)
    for text in ("{", "[]", "{}"):
        one.checkpoint.with_name("about.json").write_text(text)
        with pytest.raises(
            PredictionsError, match=r"about\.json.*cannot be read.*Delete the folder.*07_benchmark"
        ):
            load(one.model)


@pytest.mark.parametrize("name", ["SVM on pixels", "Random Forest on pixels"])
def test_a_class_that_no_fold_can_be_fitted_to_is_named(models, load, images, split, name):
    rest = split.table[
        ~((split.table["part"] != "test") & split.table["id"].isin(images.ids[images.labels == 2]))
    ]
    with pytest.raises(
        InputError, match=f"{name}.*no image of {images.classes[2]} to fit on.*fewer folds"
    ):
        load(models[name], split=replace(split, table=rest.reset_index(drop=True)))


def test_predictions_of_other_images_folds_or_labels_are_refused(saved, images, split):
    found = saved[0].predictions
    task.check_same(found, images, split, "here", "COMMAND")
    for table, words in (
        (found.table[1:], "other images or folds"),
        (found.table.assign(fold=1 - found.table["fold"]), "other images or folds"),
        (found.table.assign(id=[f"x{one}" for one in found.table["id"]]), "other images"),
        (found.table.assign(label=np.roll(found.table["label"], 1)), "another label"),
    ):
        with pytest.raises(PredictionsError, match=f"(?s){words}.*COMMAND"):
            task.check_same(
                Predictions(table.reset_index(drop=True), found.classes),
                images,
                split,
                "here",
                "COMMAND",
            )


def test_from_notebook_03_only_with_its_images_and_folds(tmp_path, saved, models, images, split):
    folder = tmp_path / "results" / "03_spine_tinycnn"
    with pytest.raises(PredictionsError, match="has not been run.*COMMAND"):
        task.from_notebook_03(models[task.OURS], images, split, tmp_path, "COMMAND")
    found = saved[0].predictions
    found.save(folder / "predictions.csv")
    with pytest.raises(PredictionsError, match=r"manifest\.json.*cannot be read"):
        task.from_notebook_03(models[task.OURS], images, split, tmp_path, "COMMAND")
    manifest = {"data": [{"content_hash": images.content_hash}], "splits": [{"hash": split.hash}]}
    write_json(folder / "manifest.json", manifest)
    weights = folder / "tinycnn_spines.safetensors"
    ours = models[task.OURS]
    with pytest.raises(PredictionsError, match="weights cannot be read.*does not exist.*COMMAND"):
        task.from_notebook_03(ours, images, split, tmp_path, "COMMAND")

    def leave(recipe, channels=1, scale=True):
        save_checkpoint(
            weights,
            TinyCNN(channels, 3),
            classes=images.classes,
            about={"recipe": recipe.as_dict(), "scale": {"zoom": 1.0} if scale else None},
        )

    for given, words in (
        ((ours.recipe.but(input_px=32),), r"another recipe \(input_px\)"),
        ((ours.recipe, 3), r"another recipe \(channels\)"),
        ((ours.recipe, 1, False), r"another recipe \(pose\)"),
    ):
        leave(*given)
        with pytest.raises(PredictionsError, match=f"{words}.*COMMAND"):
            task.from_notebook_03(ours, images, split, tmp_path, "COMMAND")
    leave(ours.recipe)
    weights.write_bytes(weights.read_bytes()[:-4] + b"harm")
    with pytest.raises(PredictionsError, match="weights cannot be read.*damaged.*COMMAND"):
        task.from_notebook_03(ours, images, split, tmp_path, "COMMAND")
    leave(ours.recipe)
    one = task.from_notebook_03(models[task.OURS], images, split, tmp_path, "COMMAND")
    assert (
        set(one.predictions.table["model"]) == {task.OURS} and "read from results/03" in one.source
    )
    for key, value, words in (
        ("data", [{"content_hash": "x"}], "other images"),
        ("splits", [{"hash": "x"}], "other folds"),
    ):
        write_json(folder / "manifest.json", manifest | {key: value})
        with pytest.raises(PredictionsError, match=f"{words}.*COMMAND"):
            task.from_notebook_03(models[task.OURS], images, split, tmp_path, "COMMAND")


def test_the_command_of_notebook_03_can_be_pasted():
    found = task.command_of_notebook_03(
        {"data": "folder", "data_dir": "/my masks/of mice", "folds": 3, "ours_recipe": ""}
        | {"ours_px": 64, "vit_px": 32}
    )
    assert shlex.split(found) == [
        "./run_all.sh",
        "03_spine_tinycnn",
        *("-p", "data", "folder"),
        *("-p", "data_dir", "/my masks/of mice"),
        *("-p", "folds", "3"),
        *("-p", "input_px", "64"),
    ]


def test_the_published_splits_test_the_same_spines_and_only_one_trains_on_them(images, models):
    both = task.published_splits(images)
    tested = [set(one.ids(0, 0, "test")) for one in both.values()]
    assert tested[0] == tested[1]
    assert tested[0] & set(both["leaks"].ids(0, 0, "train")) and both["leaks"].known_leak
    assert set(both["others"].ids(0, 0, "train")) == set(images.ids) - tested[0]
    assert (
        "dendrites" in both["others"].known_leak
    )  # phantoms have dendrites, which the published split knows nothing of
    alone = replace(images, table=images.table.assign(group=images.ids), content_hash="")
    assert task.published_splits(alone)["others"].known_leak == ""
    assert set(task.LEAKING) == {"TinyCNN", "ResNet18"}


def test_the_vit_is_embedded_once_and_its_head_is_one_layer_on_top(
    models, load, cache, images, split
):
    one = load(models[task.VIT])
    shelf = cache.folder
    stored = list((shelf / "embeddings").glob("*.npy"))
    assert len(stored) == 1 and np.load(stored[0]).shape == (60, 768)
    before = stored[0].stat().st_mtime_ns
    task.embeddings(models[task.VIT], images, shelf)
    assert stored[0].stat().st_mtime_ns == before
    kept = np.load(stored[0])
    stored[0].write_bytes(stored[0].read_bytes()[:500])  # cut, by a full disk say: computed again
    assert np.array_equal(task.embeddings(models[task.VIT], images, shelf), kept)
    assert one.checkpoint.stat().st_size < 20_000  # the head alone
    network = task.network_of(one)
    last = one.predictions.where(fold=split.folds()[-1][1])
    with torch.inference_mode():
        logits = network.head(
            torch.from_numpy(np.load(stored[0])[images.positions(last.table["id"])])
        )
    assert np.abs(logits.softmax(1).numpy() - last.probabilities).max() < 1e-3


def test_the_published_reading_is_another_entrant(models, images, split, tmp_path, monkeypatch):
    for name, mask in zip(images.ids, images.pixels[:, 0], strict=True):
        Image.fromarray(mask).convert("1").save(tmp_path / f"{name}.png")
    files = {name: tmp_path / f"{name}.png" for name in images.ids}
    monkeypatch.setattr(task.Cache, "load", lambda self, model, images, split: model)
    cache = task.Cache(tmp_path, tmp_path, 1)
    svm = models["SVM on pixels"]
    assert cache.load_as_published(svm, images, {"others": split}, {}) is svm
    read = cache.load_as_published(svm, images, {"others": split}, files)
    assert read.values(images).max() == 1 and "1-bit" in read.note
    assert read.key(images, split, 1) != models["SVM on pixels"].key(images, split, 1)


@pytest.fixture(scope="module")
def measured(saved, images, tmp_path_factory):
    example = tmp_path_factory.mktemp("example") / "mask.png"
    Image.fromarray(images.pixels[0, 0]).save(example)
    before = torch.get_num_threads()
    clock = times.Clock(
        images,
        example,
        Timing(1, rounds=3, seconds=2),
        "a processor",
        backends="none",
    )
    timed = clock.time_all(saved)
    assert torch.get_num_threads() == before and timed.machine == "a processor, 1 threads"
    return timed


def test_every_model_has_its_time_and_classical_ones_pay_for_their_features(measured):
    found = measured.models.set_index("model")
    assert set(found.index) == set(NAMES) - {"ViT-B16, frozen", "ResNet18"}
    timed = found.drop("majority class")
    assert (timed["rounds"] == 3).all()  # a p95 says of how many it is
    assert (timed[["infer_ms", "decoded_ms", "best_ms", "images_per_s"]] > 0).all().all()
    assert (found["threads"] == 1).all()
    # measuring a mask takes more than looking it up
    assert timed.loc["shape features + SVM", "decoded_ms"] > 0.5
    assert found.loc[task.OURS, "test_time_augmentation"] == 8
    assert found.loc["TinyCNN", "test_time_augmentation"] == 1
    lines = measured.backends
    assert set(lines["model"]) == {"TinyCNN", "CNN-3Layer", task.OURS}
    assert set(lines["status"]) == {"offered"}


def test_a_refused_backend_gives_no_throughput_either():
    for status, name in (
        ("offered", "eager bf16"),
        ("refused", "eager fp32"),
        ("not available", "eager fp32"),
    ):
        table = pd.DataFrame(
            {"backend": ["eager fp32", "eager bf16"], "status": ["offered", status]}
        )
        assert times._for_batches(table) == name


def test_classical_models_keep_to_the_threads_that_are_named(saved, images, tmp_path, monkeypatch):
    from threadpoolctl import threadpool_info, threadpool_limits

    seen = []

    def note_threads(*_):
        pools = [one for one in threadpool_info() if one["user_api"] == "blas"]
        seen.extend(one["num_threads"] for one in pools)
        return {}

    monkeypatch.setattr(times.Clock, "_classical", note_threads)
    example = times.write_example(images, tmp_path / "mask.png")
    timing = Timing(1, rounds=3, seconds=0.1)
    clock = times.Clock(images, example, timing, "a processor", backends="none")
    with threadpool_limits(2):
        clock.time_all([one for one in saved if one.model.name in ("TinyCNN", "SVM on pixels")])
    assert seen and set(seen) == {1}


def test_the_fastest_offered_backend_is_written(saved, measured, images, tmp_path):
    one = next(one for one in saved if one.model.name == task.OURS)
    lines = pd.concat(
        [
            measured.backends,
            pd.DataFrame(
                [  # the fastest of all is refused, the next has no files
                    {
                        "model": task.OURS,
                        "backend": "openvino int8",
                        "status": "refused",
                        "median_ms": 1e-6,
                    },
                    {"model": task.OURS, "backend": "int8", "status": "offered", "median_ms": 1e-5},
                ]
            ),
        ],
        ignore_index=True,
    )
    timed = replace(measured, backends=lines)
    card = times.export_fastest(one, images, timed, tmp_path / "exported")
    assert (
        card["backend"] == "eager fp32" and card["about"]["window"] is True and card["views"] == 8
    )


def test_the_table_begins_with_the_published_columns(saved, measured):
    leaking = replace(saved[0], split=replace(saved[0].split, protocol="published"))
    results = tables.Results.of([leaking, *saved[1:]])
    table = results.table(measured.models)
    # each row has its own protocol
    others = [saved[1].split.protocol] * (len(saved) - 1)
    assert table["protocol"].tolist() == ["published", *others]
    assert [one.table["model"].iloc[0] for one in results.floors] == [
        "shape features + SVM",
        "majority class",
    ]
    assert results.ours.table["model"].iloc[0] == task.OURS
    assert (
        tuple(table.columns[:6])
        == tables.PUBLISHED_COLUMNS
        == ("model", "params", "acc", "f1", "auc", "infer_ms")
    )
    assert (table["n"] == 60).all() and table["params"].isna().sum() == 4
    assert (table["acc_low"] <= table["acc"]).all() and (table["acc"] <= table["acc_high"]).all()
    assert table.set_index("model").loc["TinyCNN", ["acc_difference", "acc_p_holm"]].isna().all()
    shown = tables.readable(table, leak=True)
    assert (
        list(shown["model"]) == list(table["model"]) and shown["accuracy"].str.contains(r"\[").all()
    )


def rows(difference: float, p: float, model: str = task.VIT) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": model,
                "n": 92,
                "accuracy difference": difference,
                "accuracy low": difference - 0.1,
                "accuracy high": difference + 0.1,
                "accuracy p (Holm)": p,
                "macro_f1 difference": 0.0,
                "macro_f1 low": -0.1,
                "macro_f1 high": 0.1,
                "macro_f1 p (Holm)": 1.0,
            }
        ]
    )


@pytest.mark.parametrize(
    ("difference", "p", "words"),
    [
        (0.05, 0.4, "not significantly below or above"),
        (0.2, 0.01, "is significantly below"),
        (-0.2, 0.01, "is significantly above"),
    ],
)
def test_in_words(difference, p, words):
    lines = tables.in_words(rows(difference, p), {task.VIT: ""})
    assert words in lines[-1] and "92 spines" in lines[0]
    assert ("chance: none" in lines[0]) == (p > 0.05) and ("told from it: none" in lines[0]) == (
        p < 0.05
    )
    assert "macro-F1" in lines[1] and "chance: none" in lines[1]
    assert (
        "But: RANDOM" in tables.in_words(rows(difference, p), {task.VIT: task.RANDOM_FEATURES})[-1]
    )


def test_overview_reads_what_is_there_and_names_what_is_not(tmp_path, saved):
    folder = tmp_path / "results" / "03_spine_tinycnn"
    Predictions.concatenate([saved[0].predictions, saved[-1].predictions]).save(
        folder / "predictions.csv"
    )
    write_json(
        folder / "manifest.json", {"data": [{"synthetic": True}], "splits": [{"known_leak": ""}]}
    )
    broken = tmp_path / "results" / "06_glomeruli_resnet50"
    broken.mkdir()
    (broken / "predictions.csv").write_text("id,label\n1,a\n")
    found = tables.overview(tmp_path)
    here = found[found["task"] == "dendritic spines"]
    assert here["model"].tolist() == ["TinyCNN", "majority class"] and (here["n"] == 60).all()
    assert (
        here["floor"].tolist() == pytest.approx([1 / 3] * 2)
        and (here["images"] == "synthetic").all()
    )
    missing = found.set_index("task").loc["2D synapses", "status"]
    assert missing == "run missing: ./run_all.sh 02_synapse_resnet_cnn"
    assert "cannot be read" in found.set_index("task").loc["glomeruli", "status"]
    write_json(folder / "manifest.json", {"data": [], "splits": []})
    assert set(tables.overview(tmp_path).set_index("task").loc["dendritic spines", "images"]) == {
        "unknown"
    }
    for damaged in ([], {}, {"data": [{}], "splits": []}):
        write_json(folder / "manifest.json", damaged)
        status = tables.overview(tmp_path).set_index("task").loc["dendritic spines", "status"]
        assert "cannot be read" in status and "./run_all.sh 03_spine_tinycnn" in status


def test_which_backends():
    assert times.which_backends("none", 10) == ("eager fp32",)
    assert "openvino int8" in times.which_backends("few", 400_000)
    assert (
        len(times.which_backends("few", 80_000_000))
        == 2
        < len(times.which_backends("all", 80_000_000))
    )


def test_about_says_of_what_the_predictions_are(saved, images, split):
    about = json.loads((saved[0].checkpoint.parent / "about.json").read_text())
    assert about["content_hash"] == images.content_hash
    assert about["split"] == split.hash and about["synthetic"] is True
