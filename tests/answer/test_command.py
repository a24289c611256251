"""From two tables to the answer: what is read, what is said, and what is refused in words."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from nbhelpers.answer.__main__ import main

CLASSES = np.array(["mushroom", "stubby", "thin"])
RATES = np.array([[0.93, 0.05, 0.02], [0.1, 0.87, 0.03], [0.25, 0.06, 0.69]])


def called(rng, true):
    return CLASSES[[rng.choice(3, p=RATES[one]) for one in true]]


def new_images(thin, units=6, images=80, seed=0):
    """One row per image; ``thin``: condition to its share of thin spines."""
    rng = np.random.default_rng(seed)
    rows = []
    for condition, share in thin.items():
        for unit in range(units):
            true = rng.choice(3, images, p=[0.7 * (1 - share), 0.3 * (1 - share), share])
            for name in called(rng, true):
                rows.append((name, f"{condition} {unit}", condition))
    return pd.DataFrame(rows, columns=["predicted", "unit", "condition"])


def labelled_images(groups=20, size=30):
    rng = np.random.default_rng(7)
    true = rng.choice(3, groups * size, p=[0.5, 0.25, 0.25])
    group = np.repeat([f"neuron {number}" for number in range(groups)], size)
    return pd.DataFrame({"label": CLASSES[true], "predicted": called(rng, true), "group": group})


@pytest.fixture
def said(tmp_path, capsys):
    """What the command prints for two tables, and the table that it writes."""

    def run(new, labelled, status=0):
        new.to_csv(tmp_path / "new.csv", index=False)
        labelled.to_csv(tmp_path / "labelled.csv", index=False)
        files = [str(tmp_path / "new.csv"), "--validation", str(tmp_path / "labelled.csv")]
        assert main(files) == status
        printed = capsys.readouterr()
        if status:
            return printed.err
        return printed.out, pd.read_csv(tmp_path / "new_answer" / "answer.csv")

    return run


def test_a_rise_is_said_and_turned_round_it_is_a_fall(said):
    new = new_images({"control": 0.1, "treated": 0.35})
    text, table = said(new, labelled_images())
    assert "treated against control (6 and 6 units):" in text
    assert "more thin +0." in text and "fewer mushroom -0." in text
    row = table[(table["of"] == "difference") & (table["class"] == "thin")].iloc[0]
    assert row["low"] <= 0.25 <= row["high"] and row["p (Holm)"] < 0.05
    assert row["counted"] < row["corrected"]
    again, turned = said(new[::-1], labelled_images())
    assert "control against treated (6 and 6 units):" in again
    assert "fewer thin -0." in again and "more mushroom +0." in again
    other = turned[(turned["of"] == "difference") & (turned["class"] == "thin")].iloc[0]
    assert other["corrected"] == pytest.approx(-row["corrected"])
    assert other["p"] == pytest.approx(row["p"])


def test_no_difference_is_said_as_not_shown(said):
    text, table = said(new_images({"a": 0.2, "b": 0.2}, seed=3), labelled_images())
    assert "not shown to differ: thin" in text and "more thin" not in text
    assert (table.loc[table["of"] == "difference", "low"] < 0).all()


def test_every_unit_condition_and_class_has_a_row_and_shares_sum_to_one(said, tmp_path):
    _, table = said(new_images({"a": 0, "b": 0.3}), labelled_images())
    for of, places in (("unit", ["condition", "unit"]), ("condition", ["condition"])):
        rows = table[table["of"] == of]
        for column in ("counted", "corrected"):
            np.testing.assert_allclose(rows.groupby(places)[column].sum(), 1)
            assert rows[column].between(0, 1).all()
    assert (table["of"] == "unit").sum() == 2 * 6 * 3
    shares = table[table["of"] == "condition"]
    assert (shares["low"] <= shares["corrected"]).all()
    assert (shares["corrected"] <= shares["high"]).all() and shares["low"].min() >= 0
    kept = json.loads((tmp_path / "new_answer" / "answer.json").read_text())
    assert len(kept["rows"]) == len(table) and len(kept["sentences"]) == 1
    for rates in kept["error_rates"].values():
        assert sum(rates.values()) == pytest.approx(1)


def test_three_conditions_are_compared_in_pairs_and_p_adjusted(said):
    text, table = said(new_images({"a": 0.1, "b": 0.1, "c": 0.3}), labelled_images())
    assert text.count(" against ") == 3
    rows = table[table["of"] == "difference"]
    assert len(rows) == 9 and (rows["p (Holm)"] >= rows["p"]).all()


def test_of_two_classes_one_is_compared(said):
    two = {"stubby": "mushroom"}
    new = new_images({"a": 0.1, "b": 0.3}).replace({"predicted": two})
    text, table = said(new, labelled_images().replace({"label": two, "predicted": two}))
    rows = table[table["of"] == "difference"]
    assert list(rows["class"]) == ["thin"] and (rows["p"] == rows["p (Holm)"]).all()
    assert "mushroom" not in text


def test_one_condition_gives_its_shares(said):
    text, table = said(new_images({"a": 0.2}), labelled_images())
    assert "a (6 units): mushroom 0." in text and "difference" not in set(table["of"])


def test_subunits_count_the_same_within_their_unit(said):
    new = new_images({"a": 0.2, "b": 0.2}, units=4, images=40)
    new["subunit"] = np.where(new.groupby("unit").cumcount() < 30, "one", "two")
    _, table = said(new, labelled_images())
    part = new[new["unit"] == "a 0"].assign(hit=lambda rows: rows["predicted"] == "thin")
    row = table[(table["unit"] == "a 0") & (table["class"] == "thin")].iloc[0]
    assert row["counted"] == pytest.approx(part.groupby("subunit")["hit"].mean().mean())


def test_probabilities_and_other_spellings_are_understood(said):
    new = new_images({"a": 0.1, "b": 0.3})
    labelled = labelled_images()
    _, expected = said(new, labelled)
    wide = new.rename(columns={"unit": "Mouse ID", "condition": "Treatment"})
    for name in CLASSES:
        wide[f"probability {name}"] = np.where(wide["predicted"] == name, 0.6, 0.2)
    del wide["predicted"]
    wide["Treatment"] = wide["Treatment"] + " "
    other = labelled.rename(columns={"group": "neuron", "label": "Class"})
    _, found = said(wide, other)
    pd.testing.assert_frame_equal(found, expected)


def test_images_out_of_distribution_are_told(said):
    new = new_images({"a": 0.1, "b": 0.3}).assign(out_of_distribution="False")
    new.loc[0, "out_of_distribution"] = "True"
    text, _ = said(new, labelled_images())
    assert "new.csv: 1 of 960 images are out of distribution" in text


@pytest.mark.parametrize(
    ("units", "words"),
    [
        (1, "all images are of one unit"),
        (2, "there are 2 units, and how units differ takes 3"),
        (3, "no test below 4 units in each condition"),
    ],
)
def test_few_units_get_no_test_and_a_reason(said, units, words):
    text, table = said(new_images({"a": 0.1, "b": 0.4}, units=units), labelled_images())
    assert words in text and "p =" not in text
    rows = table[table["of"] == "difference"]
    assert rows["p"].isna().all() and rows["low"].notna().all() == (units == 3)


def test_few_groups_of_labelled_images_get_no_interval_and_a_reason(said):
    labelled = labelled_images()
    labelled["group"] = np.where(labelled["label"] == "thin", "x", labelled["group"])
    text, table = said(new_images({"a": 0.1, "b": 0.4}), labelled)
    assert "all images are of one labelled group" in text and table["low"].isna().all()


def test_without_groups_each_labelled_image_counts_by_itself(said):
    text, _ = said(new_images({"a": 0.1, "b": 0.4}), labelled_images().drop(columns="group"))
    assert "labelled.csv has no column group" in text and "more thin" in text


def change(table, **cells):
    for name, cell in cells.items():
        table.loc[5, name] = cell
    return table


@pytest.mark.parametrize(
    ("new", "labelled", "words"),
    [
        ({"unit": "b 1"}, {}, "new.csv, row 7: its unit stands in two conditions"),
        ({"unit": ""}, {}, "new.csv, row 7: it has no unit"),
        ({"condition": "A"}, {}, "the condition 'A' and 'a' differ only in case"),
        ({"condition": "n/a"}, {}, "a word for a missing value"),
        ({"predicted": ""}, {}, "new.csv, row 7: it has no predicted"),
        ({}, {"label": ""}, "labelled.csv, row 7: it has no label"),
        ({}, {"label": "filopodium"}, "labelled.csv, row 7: its label is no class"),
        ({}, {"label": "Thin"}, "the class 'Thin' and 'thin' differ only in case"),
        ({"predicted": "filopodium"}, {}, "no image is labelled 'filopodium'"),
        ({"model": "TinyCNN"}, {}, "its prediction is of another model"),
        ({}, {"split": "train"}, "labelled.csv, row 7: its prediction is of a training image"),
        ({"probability x": "0.1"}, {}, "row 2: its predicted is no class of the classifier"),
    ],
)
def test_a_bad_cell_is_refused_in_words(said, new, labelled, words):
    images = new_images({"a": 0.1, "b": 0.4}).assign(model="CNN")
    text = said(
        change(images, **new), change(labelled_images().assign(split="test"), **labelled), 2
    )
    assert words in text


@pytest.mark.parametrize(
    ("drop_new", "drop_labelled", "words"),
    [
        ("predicted", None, "columns ['predicted'] are missing"),
        ("unit", None, "columns ['unit'] are missing"),
        ("condition", None, "columns ['condition'] are missing"),
        (None, "label", "columns ['label'] are missing"),
        (None, "predicted", "columns ['predicted'] are missing"),
    ],
)
def test_absent_columns_are_named(said, drop_new, drop_labelled, words):
    new = new_images({"a": 0.1, "b": 0.4}).drop(columns=[drop_new] if drop_new else [])
    labelled = labelled_images().drop(columns=[drop_labelled] if drop_labelled else [])
    assert words in said(new, labelled, 2)


def test_a_class_without_labelled_images_is_refused(said):
    labelled = labelled_images()
    text = said(new_images({"a": 0.1, "b": 0.4}), labelled[labelled["label"] != "thin"], 2)
    assert "no image is labelled 'thin'" in text


def test_a_probability_that_is_a_word_is_refused_with_its_row(said):
    new = new_images({"a": 0.1, "b": 0.4}).drop(columns="predicted")
    for name in CLASSES:
        new[f"probability {name}"] = "0.3"
    new.loc[5, "probability thin"] = "much"
    assert "new.csv, row 7: a probability is no number" in said(new, labelled_images(), 2)


def test_one_class_is_refused(said):
    new = new_images({"a": 0.1, "b": 0.4}).assign(predicted="thin")
    labelled = labelled_images().assign(predicted="thin", label="thin")
    assert "there is one class only" in said(new, labelled, 2)


def test_counts_that_contradict_the_error_rates_are_told(said):
    new = new_images({"a": 0.1, "b": 0.4})
    text, _ = said(new, labelled_images())
    assert "error rates cannot" not in text
    new.loc[new["condition"] == "b", "predicted"] = "thin"  # called so at most in .7 of the images
    text, table = said(new, labelled_images())
    assert "b: counted as these error rates cannot make it" in text and "a: counted" not in text
    rows = table[table["of"] == "condition"].groupby("condition")["reason"]
    assert rows.first().notna().to_dict() == {"a": False, "b": True}


def test_two_columns_that_may_be_the_unit_are_refused(said):
    new = new_images({"a": 0.1, "b": 0.4}).rename(columns={"unit": "mouse"})
    assert "may both be the unit" in said(new.assign(culture="x"), labelled_images(), 2)


def test_a_classifier_at_chance_is_refused(said):
    labelled = labelled_images()
    labelled["predicted"] = np.random.default_rng(1).permutation(labelled["predicted"])
    text = said(new_images({"a": 0.1, "b": 0.4}), labelled, 2)
    assert "hardly tells the classes apart" in text


def test_the_command_of_the_readme_runs(tmp_path):
    new_images({"a": 0.1, "b": 0.4}).to_csv(tmp_path / "predictions.csv", index=False)
    labelled_images().to_csv(tmp_path / "labelled.csv", index=False)
    words = ["-m", "nbhelpers", "answer", "predictions.csv", "--validation", "labelled.csv"]
    ended = subprocess.run(
        [sys.executable, *words, "--out", "here"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "b against a" in ended.stdout and (tmp_path / "here" / "answer.csv").is_file()
