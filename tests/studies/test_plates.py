"""The plate task: recipes, training in stages on held-out plates, floors, log-odds of every well,
and who sees what.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from nbhelpers.core.errors import ParameterError, SplitError
from nbhelpers.core.imageset import ImageSet, failure_table
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split
from nbhelpers.evaluation.plate_floors import stain_features
from nbhelpers.evaluation.plates import field_scores, well_scores
from nbhelpers.imagesets.plates import load_plates, load_unlabelled_plates, split_by_plate
from nbhelpers.inference.new_images import flags
from nbhelpers.studies import plates as task
from nbhelpers.training.checkpoints import save_checkpoint
from nbhelpers.training.recipe import Augmentation

STAINS = ("first", "second")


def toy(plates=5, wells=24, size=32, seed=0):
    """Two stains; in the class amyloid-beta the second one has broad stripes instead of fine ones.
    Every third well of a plate has no label."""
    draw = np.random.default_rng(seed)
    rows = []
    pixels = []
    for plate in range(plates):
        for well in range(wells):
            broad = well % 2
            stripes = np.where(np.arange(size) // (8 if broad else 2) % 2, 60, 190)
            field = draw.integers(60, 190, (2, size, size))
            field[1] = field[1] // 4 + stripes * 3 // 4
            name = f"{'BCDEFG'[well // 4]}{well % 4 + 2:02d}"
            rows.append(
                {
                    "id": f"p{plate}/{name}",
                    "label": None if well % 3 == 2 else ("control", "amyloid-beta")[broad],
                    "group": f"p{plate}",
                    "plate": f"p{plate}",
                    "well": name,
                    "row": name[0],
                    "column": int(name[1:]),
                    "field": 1,
                    "compound": "C01",
                    "dose_uM": float(well % 3 == 2),
                    "amyloid_uM": 30.0 * broad,
                }
            )
            pixels.append(field)
    return ImageSet(
        "toy",
        pd.DataFrame(rows),
        np.array(pixels, np.uint8),
        ("control", "amyloid-beta"),
        "",
        True,
        channels=STAINS,
    )


def accuracy(predictions):
    return (predictions.predicted_index == predictions.true_index).mean()


SMALL = task.recipe("ours", epochs=10, batch_size=8, learning_rate=4e-3, precision="fp32")
SETTINGS = {"seed": 0, "report": None}
S4 = task.NetworkChoice("s4", "small")
EARLY = task.NetworkChoice("early", "small")


@pytest.fixture(scope="module")
def images():
    return toy()


@pytest.fixture(scope="module")
def split(images):
    return task.make_split("phantom", images, test_plates=1, seed=0)


@pytest.fixture(scope="module")
def s4(images, split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s4")
    return folder, task.train_network(S4, images, split, SMALL, work_folder=folder, **SETTINGS)


def test_recipes_by_name():
    published = task.recipe("published")
    assert (
        published.optimizer,
        published.learning_rate,
        published.epochs,
        published.batch_size,
    ) == ("sgd", 1e-3, 10, 2)
    assert published.augmentation == Augmentation() and (published.keep, published.select_by) == (
        "best",
        "loss",
    )
    assert task.recipe("ours", epochs=3).epochs == 3
    with pytest.raises(ParameterError, match="'best' is unknown"):
        task.recipe("best")


def test_stains_move_together_and_change_their_tones_apart():
    pixels = torch.randint(60, 190, (6, 3, 16, 16), dtype=torch.uint8)
    pixels[:, 1] = pixels[:, 0]
    moved = task.transform(
        SMALL.but(augmentation=Augmentation(quarter_turns=True, flip_horizontal=True))
    )
    seen = moved.train(pixels, 1)
    assert torch.equal(seen[:, 0], seen[:, 1]) and not torch.equal(seen, moved.evaluate(pixels))
    toned = task.transform(SMALL.but(augmentation=Augmentation(brightness=0.3)))
    seen = toned.train(pixels, 1)
    factor = seen.mean((2, 3)) / toned.evaluate(pixels).mean((2, 3))
    assert (factor.std(1) > 0.01).all() and factor.min() > 0.69 and factor.max() < 1.31
    torch.testing.assert_close(
        seen, toned.evaluate(pixels) * factor[:, :, None, None], atol=1e-5, rtol=1e-4
    )
    assert torch.equal(toned.train(pixels, 1), seen) and not torch.equal(
        toned.train(pixels, 2), seen
    )
    assert torch.equal(toned.evaluate(pixels), pixels / 255)


def test_plates_are_held_out_whole_and_only_candidates_are_used(images, split):
    parts = split.table.groupby("group")["part"].nunique()
    assert parts.max() == 1 and set(split.table["part"]) == {"train", "validation", "test"}
    assert set(split.table["id"]) == set(images.ids[images.labels >= 0])
    assert set(split.ids(0, 0, "test")) <= {name for name in images.ids if name.startswith("p4")}
    assert len(task.make_split("bbbc021", images, test_plates=1, seed=0).folds()) == 5
    with pytest.raises(SplitError, match="validation are asked for"):
        task.make_split("phantom", images, test_plates=5, seed=0)


def test_s4_learns_from_one_stain_encoders_in_two_stages(s4, images, split):
    folder, trained = s4
    test = trained.result.predictions.where(split="test")
    assert set(test.table["id"]) == set(split.ids(0, 0, "test")) and accuracy(test) == 1
    alone = {
        name: accuracy(one.predictions.where(split="test"))
        for name, one in trained.one_stain.items()
    }
    assert tuple(alone) == STAINS and alone["second"] == 1 and alone["first"] < 0.9
    history = trained.result.histories
    assert list(history["recipe"].unique()) == [task.FIRST_STAGE, "ours"]
    assert (
        history[history["recipe"] == "ours"]["learning_rate"].max()
        <= SMALL.learning_rate * task.LATER_RATE * 1.001
    )
    first = next(folder.glob("s4/0/*first stage*")) / "network.safetensors"
    one = next(folder.glob("one-stain/1/*ours*")) / "network.safetensors"
    from safetensors.torch import load_file

    started = load_file(first)
    source = load_file(one)
    assert torch.equal(
        started["backbone.1.layer1.0.conv1.weight"], source["backbone.0.layer1.0.conv1.weight"]
    )
    assert not torch.equal(
        started["backbone.1.layer4.0.conv1.weight"], source["backbone.0.layer4.0.conv1.weight"]
    )
    final = trained.result.last.network.state_dict()
    assert not torch.equal(
        started["backbone.1.layer1.0.conv1.weight"], final["backbone.1.layer1.0.conv1.weight"].cpu()
    )


def test_what_the_training_fields_look_like_tells_strange_ones(s4, images, split, tmp_path):
    last = s4[1].result.last
    kept = task.training_reference(images, split, s4[1].result)
    assert len(kept["usual_reference"]) == len(split.ids(0, 0, "train"))
    path = tmp_path / "network.safetensors"
    save_checkpoint(path, last.network, classes=images.classes, about={}, beside=kept)
    look = task.transform(last.recipe)
    assert flags(path, last.network, images, look)[0].mean() < 0.2
    noise = np.random.default_rng(0).integers(0, 256, images.pixels[:6].shape).astype(np.uint8)
    strange = replace(images.take(range(6)), pixels=noise)
    assert flags(path, last.network, strange, look)[0].all()


def test_a_finished_training_is_found_again(s4, images, split):
    folder, trained = s4
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("training.json")}
    again = task.train_network(S4, images, split, SMALL, work_folder=folder, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("training.json")} == before
    np.testing.assert_allclose(
        again.result.predictions.probabilities, trained.result.predictions.probabilities, atol=1e-5
    )


def test_every_plate_left_out_is_tested_once(images, tmp_path):
    three = images.take(np.flatnonzero(images.groups < "p3"))
    split = task.make_split("bbbc021", three, test_plates=1, seed=0)
    trained = task.train_network(
        EARLY, three, split, SMALL.but(epochs=1), work_folder=tmp_path, **SETTINGS
    )
    tested = trained.result.predictions.where(split="test").table
    assert sorted(tested["id"]) == sorted(three.ids[three.labels >= 0]) and set(tested["fold"]) == {
        0,
        1,
        2,
    }
    assert trained.one_stain == {}


def test_a_validation_plate_of_one_class_chooses_nothing(images, tmp_path):
    table = images.table.copy()
    table.loc[(table["plate"] == "p0") & (table["label"] != "control"), "label"] = None
    split = split_by_plate(
        ImageSet("toy", table, images.pixels, images.classes, "", True, channels=STAINS), seed=0
    )
    one_class = split.table.assign(
        part=split.table["group"].map({"p0": "validation", "p4": "test"}).fillna("train")
    )
    split = Split(one_class, "grouped", 0)
    trained = task.train_network(
        EARLY, images, split, SMALL.but(epochs=2), work_folder=tmp_path, **SETTINGS
    )
    assert trained.result.last.recipe.keep == "last" and trained.result.last.epoch == 2


def test_log_odds_of_all_fields_agree_with_the_predictions_and_do_not_saturate(s4, images):
    trained = s4[1].result
    found = task.field_log_odds(trained.last, images)
    assert found.shape == (len(images),) and np.isfinite(found).all()
    test = trained.predictions.where(split="test")
    own = found[images.positions(test.table["id"])]
    np.testing.assert_allclose(1 / (1 + np.exp(-own)), test.probabilities[:, 1], atol=1e-4)
    network = trained.last.network
    with torch.no_grad():
        network.head.weight *= 100  # so sure that every probability is 0 or 1
        network.head.bias *= 100
    try:
        sure = task.field_log_odds(trained.last, images)
    finally:
        with torch.no_grad():
            network.head.weight /= 100
            network.head.bias /= 100
    assert (
        np.isfinite(sure).all() and np.corrcoef(sure, found)[0, 1] > 0.99
    )  # bfloat16 rounds such large values
    with pytest.raises(ParameterError, match="3 classes"):
        task.field_log_odds(
            trained.last, replace(images, classes=("control", "amyloid-beta", "other"))
        )


@pytest.mark.parametrize(
    "given, found",
    [
        (2, 2),
        ("2", 2),
        (" p0 ", ["p0"]),
        ("p4, p1,p4", ["p4", "p1"]),
    ],
)
def test_test_plates_are_a_number_or_names(images, given, found):
    assert task.chosen_plates(images, given) == found


@pytest.mark.parametrize("given", ["p9", "p1, p9", "0", "6", "-1", "", ",", "1.5"])
def test_what_is_no_plate_is_refused_with_the_plates_there_are(images, given):
    with pytest.raises(ParameterError, match="parameter test_plates.*p0, p1, p2, p3, p4"):
        task.make_split("in_cell", images, test_plates=given, seed=0)


def test_plates_named_by_numbers(images):
    table = images.table.assign(plate=images.table["plate"].str[1:], group=images.groups)
    numbered = replace(images, table=table)
    assert task.chosen_plates(numbered, "3") == 3
    assert task.chosen_plates(numbered, "3,") == ["3"]
    many = replace(images, table=table.assign(plate="22" + table["plate"]))
    assert task.chosen_plates(many, "223") == ["223"]
    comma = replace(images, table=table.assign(plate="a, " + table["plate"]))
    assert task.chosen_plates(comma, "a, 1") == ["a, 1"]
    assert task.chosen_plates(comma, "a, 1 ,a, 0,") == ["a, 1", "a, 0"]
    one_in_another = replace(images, table=table.assign(plate=table["plate"].replace("4", "0, 3")))
    assert task.chosen_plates(one_in_another, "1, 0, 3, 0") == ["1", "0, 3", "0"]
    with pytest.raises(ParameterError, match="'03' is no plate"):
        task.chosen_plates(one_in_another, "1, 03, 0")


def test_a_number_of_plates_means_nothing_where_each_is_left_out_in_turn(images, capsys):
    for given, said in (("2", 1), ("p1, p2", 0)):
        task.make_split("bbbc021", images, test_plates=given, seed=0)
        assert capsys.readouterr().out.count("is not used") == said


@pytest.mark.parametrize("data", ["phantom", "in_cell", "bbbc021"])
def test_named_plates_are_the_test_plates(images, data):
    table = task.make_split(data, images, test_plates="p1, p2", seed=0).table
    assert set(table.loc[table["part"] == "test", "group"]) == {"p1", "p2"}


def of_one_class(images, plate, label="control"):
    left = (images.table["plate"] != plate) | (images.table["label"] == label)
    table = images.table.assign(label=images.table["label"].where(left, None))
    return replace(images, table=table, content_hash="")


def test_every_well_of_every_plate_is_in_the_table_whatever_its_classes(
    s4, images, tmp_path, capsys
):
    """Plates of one class, and of none, in a hold-out and where each plate is left out in turn."""
    result = s4[1].result
    few = of_one_class(of_one_class(images, "p0"), "p1", "no class")
    few.table.loc[few.groups == "p1", "dose_uM"] = 1.0
    run = SimpleNamespace(folder=tmp_path, record={})
    split = task.make_split("in_cell", few, test_plates="p4", seed=0)
    tested = task.judge_wells(run, few, split, result)
    wells = pd.read_csv(tmp_path / "all_wells.csv").set_index("plate")
    assert len(wells) == 5 * 24 and set(tested["plate"]) == {"p4"}
    assert wells["part"].groupby("plate").first().to_dict() == {
        "p0": "train",
        "p1": "unused",
        **split.table.groupby("group")["part"].first().drop("p0").to_dict(),
    }
    assert set(wells.loc["p1", "controls"]) == {"none"} and set(wells.loc["p2", "controls"]) == {
        "both"
    }
    assert wells.loc["p1", "damage"].isna().all()
    said = capsys.readouterr().out
    assert "all_wells.csv: 120 wells of 5 plates" in said and "test: p4" in said
    assert "Without fields of every class, so never tested on: p0, p1." in said
    assert "so without normalised effect: p1 (none)." in said
    split = task.make_split("bbbc021", few, test_plates="1", seed=0)
    labelled = few.take(np.flatnonzero(few.labels >= 0))
    tests = [
        Predictions.of(
            labelled.take(np.flatnonzero(labelled.groups == plate)),
            np.tile([0.3, 0.7], ((labelled.groups == plate).sum(), 1)),
            model="m",
        ).assign(fold=fold, split="test")
        for fold, plate in enumerate(["p2", "p3", "p4"])
    ]
    left_out = SimpleNamespace(last=result.last, predictions=Predictions.concatenate(tests))
    task.judge_wells(run, few, split, left_out)
    fields = pd.read_csv(tmp_path / "all_fields.csv")
    wells = pd.read_csv(tmp_path / "all_wells.csv")
    assert len(wells) == len(fields) == 5 * 24 and fields["id"].is_unique
    by_fold = fields["id"].isin(left_out.predictions.table["id"])
    assert set(fields.loc[by_fold, "probability"].round(6)) == {0.7}
    assert set(fields.loc[by_fold, "part"]) == {"test"}
    others = fields[~by_fold].groupby("plate")["part"].agg(set).to_dict()
    assert others == {
        "p0": {"train"},
        "p1": {"unused"},
        "p2": {"validation"},
        "p3": {"train"},
        "p4": {"test"},
    }
    assert set(fields.loc[fields["plate"] == "p0", "part"]) == {"train"}


def new_of(images, failures=()):
    table = images.table.assign(label=None, scaled_by="all wells")
    return replace(
        images, table=table, synthetic=False, content_hash="", failures=failure_table(failures)
    )


def test_new_plates_get_a_row_for_each_field_and_each_well(s4, images, split, tmp_path):
    result = s4[1].result
    file = tmp_path / "network.safetensors"
    plain = {"classes": images.classes, "about": {}}
    save_checkpoint(file, result.last.network, **plain)
    rows = np.flatnonzero(images.groups == "p4")
    first = images.take(rows)
    twice = pd.concat([first.table, first.table.assign(id=first.table["id"] + "/2")])
    both = np.concatenate([first.pixels, first.pixels[::-1]])
    twice = replace(first, table=twice.reset_index(drop=True), pixels=both)
    new = new_of(twice, [("p4/x.tif", "it is cut.", "Copy it.")])
    table, wells = task.predict_new(file, result.last, new, confidence=0.7)
    assert table["name"].tolist() == [*new.ids, "p4/x.tif"]
    assert table["problem"].iloc[-1] == "it is cut. Copy it."
    new.failures.attrs["images"] = 0  # what follows are notes on wells
    noted, _ = task.predict_new(file, result.last, new, confidence=0.7)
    assert noted["name"].tolist() == [*new.ids]
    assert set(table["out_of_distribution"].iloc[:-1]) == {"unknown"}
    assert len(wells) == 24 and set(wells["n_fields"]) == {2}
    odds = task.field_log_odds(result.last, new)
    expected = well_scores(field_scores(new, odds))
    name = "probability amyloid-beta"
    np.testing.assert_allclose(wells[name], expected["probability"], atol=1e-6)
    mean = wells[f"{name}, mean of fields"]
    np.testing.assert_allclose(mean, expected["mean_probability"], atol=1e-6)
    assert (wells["predicted"] == np.where(wells[name] > 0.5, *images.classes[::-1])).all()
    assert (wells["low_confidence"] == (wells[name].sub(0.5).abs() < 0.2)).all()
    assert set(wells["out_of_distribution"]) == {"unknown"}
    usual = task.training_reference(images, split, result)
    save_checkpoint(file, result.last.network, beside=usual, **plain)
    strange = new.pixels.copy()
    strange[:] = np.random.default_rng(0).integers(0, 255, strange.shape)
    table, wells = task.predict_new(
        file, result.last, replace(new, pixels=strange, content_hash=""), confidence=0.7
    )
    assert "are unlike the training images" in table["warning"].iloc[0]
    assert set(wells["out_of_distribution"]) == {True} and wells["low_confidence"].all()
    assert wells.filter(regex="^probability|damage").isna().all(axis=None)
    assert task.predict_new(file, result.last, None, confidence=0.7) == (None, None)


def test_what_is_said_and_shown_of_new_wells(s4, images, tmp_path, capsys):
    file = tmp_path / "network.safetensors"
    last = s4[1].result.last
    save_checkpoint(file, last.network, classes=images.classes, about={})
    new = new_of(images.take(np.flatnonzero(images.groups <= "p1")))
    unknown = new.table["plate"] == "p1"
    new.table.loc[unknown, ["dose_uM", "amyloid_uM"]] = np.nan
    new = replace(new, table=new.table.assign(treatment="unknown"))
    shown = {}
    run = SimpleNamespace(
        folder=tmp_path,
        show_table=lambda table, caption: shown.update({caption: table}),
        show_figure=lambda figure, name, **about: shown.update({name: figure}),
    )
    _, wells = task.predict_new(file, last, new, confidence=0.7)
    task.show_new_wells(run, wells, "amyloid-beta")
    assert len(pd.read_csv(tmp_path / "new_wells.csv")) == 48
    said = capsys.readouterr().out
    assert "p0: 24 wells, scaled by all wells of it.\n" in said
    assert "p1: 24 wells, scaled by all wells of it. Controls: none, so no normalised" in said
    assert list(shown) == ["The first of 48 wells in new_wells.csv", "new_plates"]
    task.show_new_wells(run, None, "amyloid-beta")


def test_example_plates_are_read_as_they_were_drawn(tmp_path):
    csv = task.write_example_plate(tmp_path / "example", tmp_path, 32, 0)
    known = load_plates("phantom", data_folder=tmp_path, size_px=32, phantom={"plates": 1})
    about = {"data_folder": tmp_path, "layout": "metadata"}
    found = load_unlabelled_plates(csv, known, **about)
    assert len(found) == 47 and found.failures["why"].str.contains("cut or damaged").sum() == 1
    assert set(found.table["scaled_by"]) == {"wells without compound"}
    doses = found.table.groupby("dose_uM").size()
    assert doses.index.tolist() == [0, 1, 3, 10] and doses.min() >= 11


@pytest.mark.realdata
def test_a_plate_of_bbbc021_is_named_for_test(real_data, tmp_path):
    images = load_plates("bbbc021", data_folder=tmp_path, data_dir=str(real_data("bbbc021_subset")))
    table = task.make_split("bbbc021", images, test_plates="Week4_27821", seed=0).table
    assert set(table.loc[table["part"] == "test", "group"]) == {"Week4_27821"}
    with pytest.raises(SplitError, match="Week4_27481: it has only the class DMSO"):
        task.make_split("bbbc021", images, test_plates="Week4_27481", seed=0)
    with pytest.raises(ParameterError, match="Did you mean Week4_27801"):
        task.make_split("bbbc021", images, test_plates="Week4_27800", seed=0)


def test_maps_of_each_encoder_at_the_size_of_the_field(s4, images):
    trained = s4[1].result
    rows, titles = task.telling_fields(trained.predictions.where(split="test"), images)
    maps = task.maps_of_fields(trained.last, images, rows)
    assert maps.shape == (len(rows), 2, 32, 32) and len(titles) == len(rows) == 4
    assert [images.table["label"].iloc[row] for row in rows] == ["control"] * 2 + [
        "amyloid-beta"
    ] * 2
    assert all("amyloid-beta" in title for title in titles)


def test_floors_stand_on_the_same_test_fields_and_see_only_what_they_may(images, split):
    made = task.floor_predictions(S4, images, split, seed=0)
    found = {one.table["model"].iloc[0]: one for one in made}
    assert list(found) == [
        "majority class",
        "stain intensity",
        "grey-level baseline",
        "colour means",
        "radial profile",
        "power spectrum",
        "border",
        "photometric together",
        "random weights",
        "well position alone",
        "background alone",
    ]
    for one in found.values():
        assert set(one.table["id"]) == set(split.ids(0, 0, "test"))
    again = task.floor_predictions(S4, images, split, seed=0)[-3]
    np.testing.assert_array_equal(again.probabilities, found["random weights"].probabilities)


def test_stain_intensities_see_no_structure(images):
    draw = np.random.default_rng(1)
    shuffled = draw.permuted(images.pixels.reshape(len(images), 2, -1), axis=2).reshape(
        images.pixels.shape
    )
    pd.testing.assert_frame_equal(
        stain_features(images.pixels, STAINS),
        stain_features(shuffled, STAINS),
        rtol=1e-4,
    )
    wide = stain_features(images.pixels.astype(np.uint16) * 257, STAINS)
    pd.testing.assert_frame_equal(wide, stain_features(images.pixels, STAINS), rtol=1e-4)


@pytest.mark.slow
def test_early_fusion_sees_torn_pairs_and_s4_does_not(tmp_path):
    predicted = task.colocalisation_experiment(
        "small",
        plates=8,
        fields=4,
        epochs=12,
        seed=7,
        data_folder=tmp_path,
        work_folder=tmp_path,
    )
    s4, early, intensity = (accuracy(one) for one in predicted)
    assert early > 0.68 and s4 < early - 0.1 and intensity < early
    assert ", beyond chance" in task.colocalisation_sentence(predicted)
