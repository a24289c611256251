"""The glomerulus task: splits by slide and centre, choices on validation only, thresholds, and the
model for new images.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nbhelpers.core import splits
from nbhelpers.core.errors import CheckpointError, PredictionsError, SplitError
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.calibration import (
    apply_temperature,
    average_by_image,
    fit_temperature,
)
from nbhelpers.evaluation.decisions import (
    apply_threshold,
    choose_threshold,
    fit_conformal,
    mixture_threshold,
    threshold_folds,
)
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.imagesets.glomeruli import UNKNOWN_SLIDES, load_unlabelled_glomeruli
from nbhelpers.models.frozen import make_features, make_views, mean_features
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.studies import glomeruli as study
from nbhelpers.studies import glomerulus_model as final

VIEWS = make_views(2)


@pytest.fixture(scope="module")
def images():
    # random filters, which the tests look through, see little of matched ones
    return load_phantom_glomeruli(100, 1, size_px=48, difficulty=0.3, matched=False)


@pytest.fixture(scope="module")
def network():
    return make_features("squeezenet1_0", weights="none", seed=1)


@pytest.fixture(scope="module")
def features(network, images):
    return mean_features(network, images.pixels, VIEWS)


@pytest.fixture(scope="module")
def split(images):
    return splits.repeated_cross_validation(images, folds=3, repeats=1, seed=0)


@pytest.fixture(scope="module")
def ours(network, images, features, split):
    return study.our_head(study.Variant(network, features), images, split, model="ours", seed=0)


def test_each_centre_is_left_out_once(images):
    split = study.leave_one_centre_out(images, seed=0)
    centre = dict(zip(images.ids, images.table["centre"], strict=True))
    for (repeat, fold), name in zip(split.folds(), ("C1", "C2"), strict=True):
        assert {centre[one] for one in split.ids(repeat, fold, "test")} == {name}
        rest = split.ids(repeat, fold, "train", "validation")
        assert name not in {centre[one] for one in rest} and len(
            split.ids(repeat, fold, "validation")
        )
    assert not split.groups_in_two_parts()


def test_one_centre_or_one_slide_only_is_refused(images, features, network):
    one_centre = images.take(np.flatnonzero(images.table["centre"] == "C1"))
    with pytest.raises(SplitError, match="one centre.*column 'centre'"):
        study.leave_one_centre_out(one_centre, seed=0)
    slide = np.flatnonzero(images.groups == images.groups[0])
    with pytest.raises(SplitError, match="come from one slide.*Add slides"):
        study.make_split("grouped", images.take(slide), folds=3, repeats=1, seed=0)
    with pytest.raises(SplitError, match="one slide only.*Add slides"):
        study._inner_folds(images.labels[slide], images.groups[slide], 0)


def test_a_centre_without_a_class_is_named(images):
    keep = (images.table["centre"] == "C1") | (images.table["label"] == "GS")
    with pytest.raises(SplitError, match="the centres other than C1.*no image of nonGS"):
        study.leave_one_centre_out(images.take(np.flatnonzero(keep)), seed=0)


def test_only_known_slides_are_called_honest(images):
    settings = {"folds": 3, "repeats": 1, "seed": 0}
    assert study.make_split("grouped", images, **settings).protocol.startswith("grouped: ")
    unknown = replace(images, source=f"your own images; {UNKNOWN_SLIDES}")
    protocol = study.make_split("grouped", unknown, **settings).protocol
    assert (
        protocol.startswith("by image")
        and "no slide is named" in protocol
        and "grouped" not in protocol
    )


def test_the_published_split_names_its_leak(images):
    split = study.make_split("published", images, folds=3, repeats=1, seed=0)
    sizes = split.table["part"].value_counts()
    assert sizes["train"] == 70 and sizes["validation"] == sizes["test"] == 15
    assert split.known_leak.endswith("test images come from slides that were trained on")


def test_no_head_sees_the_slide_it_predicts_and_each_image_is_tested_once(images, features, split):
    seen = []

    class Recorder:
        def __init__(self, values):
            self.rows = {tuple(row) for row in values[:, :3]}

        def probabilities(self, values):
            mine = {tuple(row) for row in values[:, :3]}
            seen.append(groups_of(self.rows) & groups_of(mine))
            return np.full((len(values), 2), 0.5)

    where = {tuple(row): group for row, group in zip(features[:, :3], images.groups, strict=True)}

    def groups_of(rows):
        return {where[row] for row in rows}

    def fit(values, labels):
        return Recorder(values)

    candidates = {"a": fit, "b": fit}
    found = study.cross_predict(candidates, features, images, split, model="x", seed=0)
    assert seen and not any(seen)
    test = found.predictions.where(split="test")
    assert sorted(test.table["id"]) == sorted(images.ids)
    validation = found.predictions.where(split="validation")
    assert (
        set(validation.table["fold"]) == {0, 1, 2}
        and not validation.table.duplicated(["fold", "id"]).any()
    )


def test_the_candidate_is_chosen_by_validation_and_the_texture_is_learnt(ours, images):
    assert ours.choices.groupby("fold")["chosen"].sum().eq(1).all()
    chosen = ours.choices.loc[
        ours.choices.groupby("fold")["validation_log_loss"].idxmin(), "chosen"
    ]
    assert chosen.all()
    assert evaluate(ours.predictions.where(split="test"))["auc"].value > 0.85


def test_a_leaking_split_keeps_its_own_validation_part(network, images, features):
    split = study.make_split("published", images, folds=3, repeats=1, seed=0)
    found = study.our_head(study.Variant(network, features), images, split, model="x", seed=0)
    assert sorted(found.predictions.where(split="validation").table["id"]) == sorted(
        split.ids(0, 0, "validation")
    )


def test_features_of_other_images_are_refused(images, features, split):
    with pytest.raises(PredictionsError, match="99, "):
        study.cross_predict({}, features[:-1], images, split, model="x", seed=0)


# thresholds


def scored(logits, labels, part="validation", fold=0):
    positive = 1 / (1 + np.exp(-np.asarray(logits, float)))
    return Predictions.build(
        ids=[f"{part}{fold}-{index}" for index in range(len(labels))],
        labels=[("nonGS", "GS")[label] for label in labels],
        groups=["s"] * len(labels),
        fold=fold,
        probabilities=np.stack([1 - positive, positive], 1),
        classes=("nonGS", "GS"),
        split=part,
    )


def balanced(predictions):
    return evaluate(predictions)["balanced_accuracy"].value


def test_the_threshold_is_found_where_the_classes_part():
    draw = np.random.default_rng(0)
    labels = (np.arange(200) < 30).astype(int)
    logits = draw.normal(0, 0.5, 200) + np.where(labels, -1.0, -4.0)  # the model is too shy
    validation = scored(logits, labels)
    test = scored(logits + draw.normal(0, 0.1, 200), labels, "test")
    assert (
        balanced(test) < 0.6 < 0.97 < balanced(apply_threshold(test, choose_threshold(validation)))
    )
    with pytest.raises(PredictionsError, match="not be fitted on test"):
        choose_threshold(test)
    with pytest.raises(PredictionsError, match="all of one class"):
        choose_threshold(scored(logits[:30], labels[:30]))


def test_a_shifted_centre_is_fixed_without_labels():
    draw = np.random.default_rng(1)
    labels = (np.arange(200) < 60).astype(int)
    logits = draw.normal(0, 0.8, 200) + np.where(labels, 3.0, -3.0)
    both = Predictions.concatenate([scored(logits, labels), scored(logits + 3, labels, "test")])
    by_how = {
        how: balanced(threshold_folds(both, how)[0]) for how in ("half", "validation", "unlabelled")
    }
    assert by_how["unlabelled"] > 0.97 > by_how["validation"] and by_how["half"] < 0.97


@pytest.mark.parametrize(
    "logits", [np.zeros(50), np.random.default_rng(0).normal(size=200), np.array([5.0, -5.0] * 10)]
)
def test_without_two_groups_there_is_no_threshold_from_unlabelled_images(logits):
    positive = 1 / (1 + np.exp(-logits))
    assert mixture_threshold(np.stack([1 - positive, positive], 1)) is None


# tables


def test_changes_are_compared_on_the_same_folds(network, images, features, split):
    ways = ("one view", "published", "macenko", "reinhard", "restained", "views")
    variants = dict.fromkeys(ways, study.Variant(network, features))
    found = study.measured_changes(variants, images, split, seed=0, epochs=2)
    table = study.changes_table(found).set_index("change")
    assert len(table) == len(found) == 11 and table["AUC"].between(0.3, 1).all()
    assert "linear head, restained" in table.index
    same = table.loc["linear head, Macenko"]  # the same features under another name
    assert same["difference"] == 0 and same["AUC"] == table.loc["linear head", "AUC"]
    assert np.isnan(table.loc["linear head", "difference"])


def test_the_remedies_for_the_stain_are_measured_on_the_centre_left_out(images, tmp_path):
    some = images.take(range(50))
    look = study.Look("squeezenet1_0", views=3, stain=0.2)
    variants = study.feature_variants(some, look, data_folder=tmp_path, cache_folder=tmp_path)
    found = study.stain_changes(variants, some, study.leave_one_centre_out(some, seed=0), seed=0)
    table = study.changes_table(found)
    assert table["change"].tolist() == [
        study.REFERENCE,
        "linear head, Macenko",
        "linear head, Reinhard",
        "linear head, restained",
    ]
    assert len({one.probabilities.tobytes() for one in found}) == 4 and all(
        len(one) == len(some) for one in found
    )


def test_the_sibling_has_its_own_published_settings():
    from nbhelpers.training.recipe import Recipe

    assert study.published_settings("resnet50") == {"optimizer": "adam", "learning_rate": 1e-4}
    sibling = Recipe(**study.published_settings("densenet169"))
    assert (sibling.optimizer, sibling.learning_rate) == (
        "adamw",
        5e-5,
    ) and sibling.label_smoothing > 0


def test_scores_by_centre_stand_beside_random_weights(network, images, features):
    centre_split = study.leave_one_centre_out(images, seed=0)
    blurred = features + np.random.default_rng(1).normal(0, 40, features.shape) * features.std(0)
    found = study.our_head(study.Variant(network, blurred), images, centre_split, model="x", seed=0)
    scores = study.fold_scores(found, found, ["C1", "C2"])
    assert list(scores) == ["C1", "C2", "all"]
    assert [row["AUC"].n for row in scores.values()] == [50, 50, 100]
    for row in scores.values():
        assert row["AUC"] == row["random weights AUC"] and 0 <= row["ECE calibrated"].value <= 1
        assert row["AUC"].low - 1e-9 <= row["AUC"].value <= row["AUC"].high + 1e-9


def test_an_ensemble_is_the_mean_and_needs_the_same_images(ours):
    test = ours.predictions.where(split="test")
    both = Predictions.mean([test, test], "both")
    assert np.allclose(
        both.probabilities,
        test.table.sort_values(["repeat", "fold", "split", "id"])[test.probability_columns],
    )
    with pytest.raises(PredictionsError, match="same images"):
        Predictions.mean([test, ours.predictions.where(split="test", fold=0)], "x")


# new images


@pytest.fixture(scope="module")
def predictor(network, features, images, ours):
    look = study.Look("squeezenet1_0", views=2, stain=0.2)
    return study.final_predictor(look, study.Variant(network, features), images, ours, coverage=0.9)


@pytest.fixture(scope="module")
def saved(predictor, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    predictor.save(path, data="phantoms")
    return path


def test_a_saved_model_predicts_the_same(predictor, saved, images):
    again = final.Predictor.load(saved)
    table = again.table(images.ids[:20], again.features_of(images.pixels[:20]), confidence=0.7)
    before = predictor.table(
        images.ids[:20], predictor.features_of(images.pixels[:20]), confidence=0.7
    )
    assert table.drop(columns="model").equals(before.drop(columns="model"))
    assert len(again.model) == 16 and (table["model"] == again.model).all()
    assert (again.views, again.threshold, again.normalisation) == (
        predictor.views,
        predictor.threshold,
        "none",
    )


def test_another_checkpoint_is_refused(saved, tmp_path):
    from nbhelpers.models.tinycnn import TinyCNN
    from nbhelpers.training.checkpoints import save_checkpoint

    save_checkpoint(tmp_path / "tiny.safetensors", TinyCNN(), classes=["a"], about={})
    with pytest.raises(CheckpointError, match="TinyCNN, not GlomerulusNet"):
        final.Predictor.load(tmp_path / "tiny.safetensors")
    save_checkpoint(
        tmp_path / "bare.safetensors", final.GlomerulusNet("squeezenet1_0"), classes=["a"], about={}
    )
    with pytest.raises(CheckpointError, match="lacks what a prediction needs"):
        final.Predictor.load(tmp_path / "bare.safetensors")


def test_new_images_get_rows_sets_and_flags_and_the_unreadable_none(predictor, tmp_path):
    folder = study.write_example_images(tmp_path / "new", 8, 5, size_px=48)
    new = load_unlabelled_glomeruli(folder, tmp_path / "data", predictor.classes, size_px=48)
    table = final.predict_new(predictor, new, tmp_path / "out", confidence=0.7)
    assert len(table) == 8 and (tmp_path / "out").is_dir()
    probabilities = table[["probability nonGS", "probability GS"]].to_numpy()
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5) and set(table["set"]) <= {
        "GS",
        "nonGS",
        "nonGS or GS",
    }
    assert all(row.predicted in row.set or row.low_confidence for row in table.itertuples())
    text = (tmp_path / "out" / "evaluation.csv").read_text()
    assert (
        text.startswith("name,ground_truth\nbiopsy A/glomerulus_02.jpg,")
        and len(text.splitlines()) == 9
    )
    refused = pd.read_csv(tmp_path / "out" / "unreadable.csv").set_index("file")
    assert (
        set(refused.index) == {"grey.png", "one_colour.png", "cut_short.png"}
        and refused.notna().all().all()
    )


def test_what_looks_like_nothing_known_is_flagged(predictor, images):
    noise = np.random.default_rng(0).integers(0, 255, (3, 3, 48, 48)).astype(np.uint8)
    unlike = predictor.table(list("abc"), predictor.features_of(noise), confidence=0.7)[
        "out_of_distribution"
    ]
    usual = predictor.table(images.ids, predictor.features_of(images.pixels), confidence=0.7)[
        "out_of_distribution"
    ]
    assert unlike.all() and usual.mean() < 0.05


def test_with_few_training_images_what_is_usual_is_unknown(network, images, features):
    few = images.take(range(12))
    net = final.fit_final(network, features[:12], few, 0.1)
    assert net.usual is None
    one = final.Predictor(net, few.classes, VIEWS, 1.0, None, None, "none", 48)
    table = one.table(["x"], features[:1], confidence=0.7)
    assert table["out_of_distribution"].tolist() == ["unknown"] and table["set"].tolist() == [
        "unknown"
    ]


def test_sets_and_threshold_are_those_of_the_validation_rows(predictor, ours):
    validation = average_by_image(ours.predictions.where(split="validation"))
    temperature = fit_temperature(validation)
    calibrated = apply_temperature(validation, temperature)  # the scale of the table
    assert predictor.temperature == temperature and predictor.threshold == choose_threshold(
        calibrated
    )
    assert np.array_equal(predictor.sets.lowest, fit_conformal(calibrated, 0.9).lowest)


def test_each_image_counts_once_for_the_final_model_however_often_it_validated(
    network, features, images, ours
):
    """Three folds validate each image twice. Too shy a model has another threshold than one half,
    so that two thresholds must be compared.
    """
    shy = ours.predictions.table.copy()
    shy["probability GS"] **= 200
    shy["probability nonGS"] = 1 - shy["probability GS"]
    shy = replace(ours, predictions=Predictions(shy, images.classes))
    look = study.Look("squeezenet1_0", views=2, stain=0.2)
    variant = study.Variant(network, features)
    found = study.final_predictor(look, variant, images, shy, coverage=0.9)
    assert found.threshold < 0.5 and found.sets.n == len(images)


@pytest.mark.parametrize("threshold", [0.02, 0.5, 0.98])
def test_the_threshold_is_on_the_scale_of_the_table_and_its_class_in_the_set(
    predictor, images, features, threshold
):
    other = replace(predictor, threshold=threshold, temperature=3.0)
    table = other.table(images.ids, features, confidence=0.7)
    assert ((table["predicted"] == "GS") == (table["probability GS"] >= threshold)).all()
    assert all(row.predicted in row.set.split(" or ") for row in table.itertuples())


def test_a_normalising_model_normalises(predictor, images):
    other = replace(predictor, normalisation="reinhard")
    assert not np.allclose(
        other.features_of(images.pixels[:4]), predictor.features_of(images.pixels[:4])
    )


def test_the_gallery_shows_the_doubtful_first(predictor, images):
    from nbhelpers.figures.gallery import prediction_gallery

    some = images.take(range(8))
    table = predictor.table(some.ids, predictor.features_of(some.pixels), confidence=0.7)
    table["low_confidence"] = np.arange(8) == 5
    table["out_of_distribution"] = False
    figure = prediction_gallery(some, table)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(titles) == 8 and titles[0].startswith(some.ids[5].rsplit("/", 1)[-1][:10])
    frames = [
        axis.spines["top"] for axis in figure.axes
    ]  # a projecting end would fill the gaps of a dashed one
    assert (
        frames[0].get_linestyle() != frames[1].get_linestyle()
        and frames[0].get_capstyle() == "butt"
    )


@pytest.mark.realdata
@pytest.mark.slow
def test_random_weights_already_reach_something_on_the_real_patches(real_data, tmp_path):
    """One view of random weights, as no pretrained file is at hand: far above chance, far below the
    goal.
    """
    from nbhelpers.imagesets.bueno import load_bueno_glomeruli

    real = load_bueno_glomeruli(tmp_path, data_dir=real_data("glomeruli_bueno"))
    network = make_features("squeezenet1_0", weights="none", seed=0)
    values = mean_features(network, real.pixels, make_views(1))
    split = study.leave_one_centre_out(real, seed=0)
    found = study.our_head(study.Variant(network, values), real, split, model="x", seed=0)
    assert evaluate(found.predictions.where(split="test"))["auc"].value > 0.8
