"""Own images by folders and tables: one thing spelled in two ways never stands in two parts."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.core.errors import TableError
from nbhelpers.imagesets.folder import read_label_table, read_labelled, read_unlabelled
from nbhelpers.imagesets.own_spines import load_own_spines

FEW = settings(max_examples=25, deadline=None)
HOWEVER = (
    lambda name: name,
    lambda name: f"  {name} ",
    lambda name: name.replace(" ", "\u00a0"),
    lambda name: name.replace(" ", "  "),
    lambda name: name + "\u200b",
)


def write_images(folder, names):
    for at, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), at, np.uint8)).save(folder / name)


def table_of(folder, rows, name="labels.csv"):
    write_images(folder, [row["path"] for row in rows])
    pd.DataFrame(rows).to_csv(folder / name, index=False)
    return folder / name


@FEW
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(HOWEVER)), min_size=8, max_size=12))
def test_a_group_written_in_many_ways_is_one_group_and_the_ways_are_told(tmp_path_factory, rows):
    written = [however(f"neuron {number}") for number, however in rows]
    listed = read_labelled(
        table_of(
            tmp_path_factory.mktemp("own"),
            [
                {"path": f"{at}.png", "label": "AB"[at % 2], "group": group}
                for at, group in enumerate(written)
            ],
        )
    )
    assert listed.table["group"].tolist() == [f"neuron {number}" for number, _ in rows]
    # white space around a cell says nothing, in any program
    ways = {(number, however("a b").strip(" ")) for number, however in rows}
    assert len(listed.notes) == sum(
        len({way for at, way in ways if at == number}) > 1 for number in range(4)
    )


@pytest.mark.parametrize("column", ["label", "group", "centre"])
@pytest.mark.parametrize("pair", [("K 1", "k 1"), ("K01", "K1"), ("K-1", "K_1"), ("K1", "N/A")])
def test_what_may_be_one_or_two_things_is_refused_in_every_column(tmp_path, column, pair):
    rows = [
        {"path": f"{at}.png", "label": f"c{at % 2}", "group": f"g{at}", "centre": f"z{at}"}
        for at in range(6)
    ]
    for row, key in zip(rows, pair, strict=False):
        row[column] = key
    with pytest.raises(TableError, match=column):
        read_label_table(table_of(tmp_path, rows))


def test_folder_names_are_keys_too(tmp_path):
    write_images(tmp_path, ["Mu\u0308ller/a.png", "M\u00fcller/b.png", "Thin/c.png"])
    listed = read_labelled(tmp_path)
    assert listed.table["label"].value_counts().to_dict() == {"M\u00fcller": 2, "Thin": 1}
    assert any("M\u00fcller" in note for note in listed.notes)
    write_images(tmp_path, ["thin/d.png"])
    with pytest.raises(TableError, match="'Thin' and 'thin'"):
        read_labelled(tmp_path)


def test_an_image_beside_the_folders_of_the_groups_is_left_out_and_named(tmp_path):
    names = [f"{label}/animal {at}/{n}.png" for label in "AB" for at in range(3) for n in range(2)]
    write_images(tmp_path, [*names, "A/stray.png"])
    listed = read_labelled(tmp_path)
    assert sorted(listed.table["id"]) == sorted(names)
    assert set(listed.table["group"]) == {"animal 0", "animal 1", "animal 2"}
    assert listed.failures["file"].tolist() == ["A/stray.png"]
    neurons = read_labelled(tmp_path, across_classes=False)
    assert neurons.table["group"].nunique() == 6
    write_images(tmp_path, ["C/1.png", "C/2.png"])
    listed = read_labelled(tmp_path)
    assert "group" not in listed.table
    assert len(listed.table) == 15
    assert "are no groups here" in listed.notes[0]


def test_folders_of_one_group_in_two_spellings_are_joined_or_refused(tmp_path):
    write_images(tmp_path, [f"{label}/animal {at}/x.png" for label in "AB" for at in range(2)])
    write_images(tmp_path, ["A/animal  1/y.png"])
    listed = read_labelled(tmp_path)
    assert set(listed.table["group"]) == {"animal 0", "animal 1"}
    assert "'animal  1'" in listed.notes[0]
    write_images(tmp_path, ["B/Animal_1/z.png"])
    with pytest.raises(TableError, match="'Animal_1' and 'animal 1'"):
        read_labelled(tmp_path)


def test_one_image_in_two_groups_is_refused(tmp_path):
    rows = [{"path": f"{at}.png", "label": "AB"[at % 2], "group": f"g{at}"} for at in range(4)]
    path = table_of(tmp_path, rows)
    with open(path, "a") as file:
        file.write("./0.png,A,g9\n")
    with pytest.raises(TableError, match=r"rows \[2, 6\].*0\.png has two different groups"):
        read_label_table(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".xlsx"])
def test_a_table_of_any_kind_names_images_to_train_on_and_to_predict(tmp_path, suffix):
    table = pd.DataFrame(
        {"Image": [f"sub\\{at}.png" for at in range(4)], "Class": list("ABAB"), "Animal": range(4)}
    )
    write_images(tmp_path, [f"sub/{at}.png" for at in range(4)])
    path = tmp_path / f"t{suffix}"
    if suffix == ".xlsx":
        table.to_excel(path, index=False)
    else:
        table.to_csv(path, index=suffix == ".tsv", sep={".csv": ";"}.get(suffix, "\t"))
    listed = read_labelled(path)
    assert listed.table["id"].tolist() == [f"sub/{at}.png" for at in range(4)]
    assert listed.table["group"].tolist() == list("0123")
    assert read_unlabelled(path).table["id"].tolist() == listed.table["id"].tolist()


def test_a_missing_image_is_named_with_its_row_in_the_file(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    path = tmp_path / "t.csv"
    path.write_text("# mine\npath,label\na.png,A\n\n,\nb.png,B\ngone.png,A\n")
    found = read_label_table(path).failures.iloc[0]
    assert found["file"] == "t.csv, row 7: gone.png"
    assert "at the repository" in found["fix"]


def test_joined_spellings_stand_in_the_source_of_the_set(tmp_path):
    rows = [{"path": f"{at}.png", "label": "AB"[at % 2], "group": at % 4} for at in range(8)]
    path = table_of(tmp_path, rows)
    mask = np.zeros((40, 40), np.uint8)
    for at in range(8):
        mask[10 : 20 + at, 10:20] = 255
        Image.fromarray(mask).save(tmp_path / f"{at}.png")
    table = pd.read_csv(path, dtype=str)
    table.loc[0, "group"] = "0.0"
    table.to_csv(path, index=False)
    images = load_own_spines(path, tmp_path / "data")
    assert set(images.groups) == set("0123")
    assert "group '0' is also written '0.0'" in images.source
    assert os.fspath(tmp_path) not in images.source
