"""The studies of notebook 08: which images are looked at, what is said of them, and that an
injected mark is called one.
"""

from dataclasses import replace

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nbhelpers.core.errors import ParameterError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.studies import saliency as task
from nbhelpers.studies import synapses2d
from nbhelpers.training.checkpoints import hash_of_weights

SIDE = 32
MARK = 6


class Bright(nn.Module):
    """Says "spot" where anything is bright; ``corner``: where the upper left corner is."""

    def __init__(self, corner=False):
        super().__init__()
        self.find = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(2, 2)
        self.corner = corner
        with torch.no_grad():
            self.find[0].weight.fill_(1 / 9)
            self.find[0].bias.fill_(-0.3)
            self.head.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
            self.head.bias.copy_(torch.tensor([-2.0, 2.0]))

    def forward(self, images):
        found = self.find(images)
        found = found[..., :MARK, :MARK] if self.corner else found
        return self.head(8 * found.flatten(2).sum(2) / (MARK**2 if self.corner else 25))


def image_set(count=20):
    """Half of the images hold a bright spot, away from the corners; where it is."""
    draw = np.random.default_rng(0)
    pixels = np.zeros((count, 1, SIDE, SIDE), np.uint8)
    cause = np.zeros((count, SIDE, SIDE), bool)
    for at in range(0, count, 2):
        y, x = draw.integers(10, 20, 2)
        cause[at, y : y + 5, x : x + 5] = True
    pixels[:, 0][cause] = 255
    table = pd.DataFrame(
        {
            "id": [f"i{at:02}" for at in range(count)],
            "label": ["spot", "none"] * (count // 2),
            "group": [f"g{at % 10}" for at in range(count)],
        }
    )
    images = ImageSet(
        name="spots",
        table=table,
        pixels=pixels,
        classes=("spot", "none"),
        synthetic=True,
        source="spots",
    )
    return images, cause


def study_of(tmp_path, corner=False, look_at=8):
    images, cause = image_set()
    mark = None
    if corner:
        images = task.with_corner_mark(images, MARK)
        mark = np.zeros_like(cause)
        mark[:, :MARK, :MARK] = True
    recipe = synapses2d.recipe("cnn", test_time_augmentation=1)
    case = task.Case(
        "Bright",
        images,
        recipe,
        synapses2d.transform,
        cause=cause,
        mark=mark,
        network=Bright(corner),
    )
    before = hash_of_weights(case.network)
    study = task.make_study(case, look_at=look_at, seed=3, work_folder=tmp_path)
    assert hash_of_weights(case.network) == before
    return study


def texts(figure):
    return " ".join(found.get_text() for found in figure.findobj(matplotlib.text.Text))


def test_a_study_looks_at_images_with_a_cause_and_says_where_the_network_looks(tmp_path):
    study = study_of(tmp_path)
    assert len(study.images) == 8 and study.cause.reshape(8, -1).any(1).all()
    assert study.checks.table.set_index("check").at["injected cause", "value"] > 10
    assert (study.predictions.predicted_index == study.predictions.true_index).all() and len(
        study.predictions.table
    ) == 20
    said, good = task.titles(study, [0, 1])
    assert said[0].startswith("spot\n→ spot ") and good == [True, True]
    figure = task.draw_maps(study)
    assert "FAILED" not in texts(figure) or study.checks.failed
    table = task.method_table([study], ["layercam", "occlusion"])
    assert table["n"].tolist() == [task.COMPARED] and float(table["layercam"][0].split()[0]) > 3
    assert (
        task.sentences([study])[0].startswith("Bright: ")
        and "SHORTCUT" not in task.sentences([study])[0]
    )
    name, found, chance = task.main_check(study)
    assert name == "Map energy in the cause, by area" and chance == 1 and found.n == 8
    assert found.value > 10 and found.low is None  # all images alike: no interval
    (row,) = task.network_table([study]).to_dict("records")
    assert row["parameters"] == "26" and row["layers looked into"] != "none"


def test_maps_that_failed_are_named_in_the_worst_finding(tmp_path):
    good = study_of(tmp_path)
    bad = study_of(tmp_path, corner=True)
    assert task.worst_finding([bad]).startswith("Bright: FAILED")
    assert task.answer([bad])[0] == "not shown"  # made to fail: no network is left to be judged
    bad = replace(bad, case=replace(bad.case, mark=None))
    answer, because = task.answer([bad])
    assert answer == "no" and "Bright" in because
    passed = replace(
        good, checks=replace(good.checks, table=good.checks.table.query("passed != False"))
    )
    assert task.worst_finding([passed]) == ""
    assert task.answer([passed])[0] in ("yes", "not shown")  # by what is open
    assert task.answer([passed, bad])[0] == "no"


def test_where_no_cause_is_known_the_map_is_compared_with_a_random_one(tmp_path):
    study = study_of(tmp_path)
    table = study.checks.table.query("check != 'injected cause'")
    name, found, chance = task.main_check(replace(study, checks=replace(study.checks, table=table)))
    assert name == "ROAD, over random map" and chance == 0 and found.value is not None


def test_a_injected_mark_is_called_a_shortcut_and_the_maps_are_stamped(tmp_path):
    study = study_of(tmp_path, corner=True)
    assert "SHORTCUT: the maps point at the mark in the corner" in task.sentences([study])[0]
    assert {"corners", "injected mark"} <= set(study.checks.failed) and "FAILED" in texts(
        task.draw_maps(study)
    )
    assert (
        len(task.method_table([study], ["layercam"])) == 0
    )  # where a mark gives the class away, the cause is none
    unknown = replace(
        study,
        checks=replace(study.checks, table=study.checks.table.query("check != 'injected mark'")),
    )
    assert "SHORTCUT?" in task.sentences([unknown])[0]  # nobody said that there is a mark


def test_the_mark_tells_the_class_and_changes_nothing_else():
    images, _ = image_set()
    marked = task.with_corner_mark(images, MARK)
    corner = marked.pixels[:, 0, :MARK, :MARK].reshape(len(marked), -1)
    assert (corner == np.where(marked.labels == 0, 255, 0)[:, None]).all()
    np.testing.assert_array_equal(marked.pixels[..., MARK:], images.pixels[..., MARK:])
    assert (
        images.pixels[:, 0, :MARK, :MARK].max() == 0 and marked.content_hash != images.content_hash
    )


def test_wrong_predictions_are_a_quarter_at_most_and_classes_take_turns():
    images, cause = image_set()
    sure = np.tile([0.9, 0.1], (20, 1))
    sure[1::2] = sure[1::2, ::-1]
    sure[[0, 1, 2, 3, 4, 5, 6, 7]] = sure[[0, 1, 2, 3, 4, 5, 6, 7]][:, ::-1]  # eight wrong ones
    predictions = task.Predictions.build(
        ids=images.ids,
        labels=images.table["label"],
        groups=images.groups,
        classes=images.classes,
        probabilities=sure,
        model="m",
    )
    case = task.Case("c", images, synapses2d.recipe("cnn"), synapses2d.transform)
    rows = task.chosen_rows(predictions, case, 8, seed=1)
    wrong = predictions.predicted_index[rows] != predictions.true_index[rows]
    assert wrong.sum() == 2 and len(set(rows)) == 8
    assert sorted(images.labels[rows[~wrong]]) == [0, 0, 0, 1, 1, 1]
    with_cause = task.chosen_rows(predictions, replace(case, cause=cause), 8, seed=1)
    assert cause[with_cause].reshape(8, -1).any(1).all()
    assert (task.chosen_rows(predictions, case, 8, seed=1) == rows).all()


def test_an_unknown_case_is_named(tmp_path):
    with pytest.raises(ParameterError, match="'dogs' is unknown.*spines"):
        task.make_case("dogs", task.Settings(tmp_path))
