"""Splits: groups stay whole, every image is tested once per repeat, and what leaks is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core import splits
from nbhelpers.core.errors import SplitError
from nbhelpers.core.imageset import ImageSet


def image_set(groups, labels, classes=("a", "b")):
    count = len(groups)
    table = pd.DataFrame(
        {"id": [f"i{index}" for index in range(count)], "label": labels, "group": groups}
    )
    return ImageSet(
        "test images", table, np.zeros((count, 1, 2, 2), np.uint8), classes, "none", True
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    per_group=st.integers(1, 5),
    folds=st.integers(2, 5),
    repeats=st.integers(1, 3),
)
def test_cross_validation_keeps_groups_whole_and_tests_each_image_once(
    seed, per_group, folds, repeats
):
    groups = np.repeat([f"g{index}" for index in range(30)], per_group)
    images = image_set(groups, np.where(np.arange(len(groups)) // per_group % 3 == 0, "a", "b"))
    split = splits.repeated_cross_validation(images, folds=folds, repeats=repeats, seed=seed)
    assert split.groups_in_two_parts() == []
    for repeat in range(repeats):
        tested = [name for fold in range(folds) for name in split.ids(repeat, fold, "test")]
        assert sorted(tested) == sorted(images.ids)
        for fold in range(folds):
            everything = split.ids(repeat, fold, *splits.PARTS)
            assert sorted(everything) == sorted(images.ids)
            for part in splits.PARTS:
                labels = images.labels[images.positions(split.ids(repeat, fold, part))]
                assert set(labels) == {0, 1}


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    images = image_set([f"g{index}" for index in range(40)], ["a", "b"] * 20)
    make = lambda seed: splits.repeated_cross_validation(images, folds=4, repeats=2, seed=seed).hash  # noqa: E731
    assert make(1) == make(1) != make(2)


def test_repeats_differ():
    images = image_set([f"g{index}" for index in range(40)], ["a", "b"] * 20)
    split = splits.repeated_cross_validation(images, folds=4, repeats=2, seed=0)
    assert set(split.ids(0, 0, "test")) != set(split.ids(1, 0, "test"))


def test_a_class_with_fewer_groups_than_folds_is_named():
    images = image_set(
        [f"g{index}" for index in range(12)], ["rare"] * 3 + ["common"] * 9, ("rare", "common")
    )
    with pytest.raises(SplitError, match=r"class rare.*3 groups.*5 folds.*fewer folds"):
        splits.repeated_cross_validation(images, folds=5, repeats=1, seed=0)


@pytest.mark.filterwarnings("error")
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    groups=st.integers(2, 7),
    per_group=st.integers(1, 6),
    folds=st.integers(2, 5),
    mixed=st.booleans(),
)
def test_few_groups_give_whole_folds_or_an_error_in_words(seed, groups, per_group, folds, mixed):
    """Every part of every fold has every class, or SplitError; never the splitter's own error or
    warning.
    """
    names = np.repeat([f"g{index}" for index in range(2 * groups)], per_group)
    number = np.arange(len(names))
    images = image_set(
        names, np.where((number if mixed else number // per_group) % 2 == 0, "a", "b")
    )
    try:
        split = splits.repeated_cross_validation(images, folds=folds, repeats=1, seed=seed)
    except SplitError as error:
        assert error.fix
        return
    for fold in range(folds):
        for part in splits.PARTS:
            assert set(images.labels[images.positions(split.ids(0, fold, part))]) == {0, 1}


@pytest.mark.filterwarnings("error")
def test_three_neurons_and_three_folds():
    images = image_set(np.repeat(["n0", "n1", "n2"], 12), ["a", "b"] * 18)
    split = splits.repeated_cross_validation(images, folds=3, repeats=2, seed=0)
    assert split.table.groupby(["repeat", "fold", "part"])["group"].nunique().eq(1).all()


def test_too_few_groups_for_a_validation_part_are_named():
    images = image_set(np.repeat(["n0", "n1", "n2", "n3"], 6), ["a", "b"] * 6 + ["b"] * 12)
    with pytest.raises(SplitError, match=r"class a.*1 group.*validation.*Add images of a"):
        splits.repeated_cross_validation(images, folds=2, repeats=1, seed=0)


def test_a_part_without_a_class_is_named(monkeypatch):
    images = image_set([f"g{index}" for index in range(12)], ["a"] * 6 + ["b"] * 6)
    halves = np.arange(12) // 6
    monkeypatch.setattr(
        splits, "_stratified_folds", lambda labels, groups, folds, seed: halves[: len(labels)]
    )
    with pytest.raises(SplitError, match=r"class b.*test part of repeat 0, fold 0.*fewer folds"):
        splits.repeated_cross_validation(images, folds=2, repeats=1, seed=0)


def test_validation_takes_the_first_inner_fold_that_has_every_class(monkeypatch):
    images = image_set([f"g{index}" for index in range(12)], ["a", "b"] * 6)
    usual = splits._stratified_folds

    def folds_of(labels, groups, folds, seed):
        if len(labels) == 12:
            return usual(labels, groups, folds, seed)
        found = np.full(len(labels), 2)
        found[np.flatnonzero(labels == 0)[0]] = 0  # the first inner fold has nothing of class b
        found[[np.flatnonzero(labels == index)[1] for index in (0, 1)]] = 1
        return found

    monkeypatch.setattr(splits, "_stratified_folds", folds_of)
    split = splits.repeated_cross_validation(images, folds=2, repeats=1, seed=0)
    for fold in range(2):
        labels = images.labels[images.positions(split.ids(0, fold, "validation"))]
        assert sorted(labels) == [0, 1]


def test_hold_out_of_too_few_images_is_an_error_in_words():
    with pytest.raises(SplitError, match="10"):
        splits.hold_out(image_set(list("uvwxyz"), ["a", "b"] * 3), seed=0)


def test_unlabelled_images_cannot_be_split():
    with pytest.raises(SplitError, match="1 images have no label"):
        splits.repeated_cross_validation(
            image_set(list("wxyz"), ["a", "b", None, "b"]), folds=2, repeats=1, seed=0
        )


def table(rows):
    return pd.DataFrame(
        [
            {"repeat": 0, "fold": 0, "part": part, "id": name, "group": group}
            for part, name, group in rows
        ]
    )


def test_a_group_in_two_parts_is_refused_unless_the_leak_is_named():
    rows = table([("train", "1", "neuron 1"), ("test", "2", "neuron 1")])
    with pytest.raises(SplitError, match="neuron 1.*more than one part"):
        splits.Split(rows, "grouped", 0)
    assert splits.Split(rows, "published", 0, known_leak="it is so").groups_in_two_parts() == [
        (0, 0, "neuron 1")
    ]


def test_a_stored_split_comes_back_and_a_changed_one_is_refused(tmp_path):
    images = image_set([f"g{index}" for index in range(20)], ["a", "b"] * 10)
    split = splits.hold_out(images, seed=3)
    split.save(tmp_path / "split.csv")
    loaded = splits.Split.load(tmp_path / "split.csv")
    assert loaded.hash == split.hash and loaded.protocol == split.protocol
    text = (tmp_path / "split.csv").read_text()
    (tmp_path / "split.csv").write_text(text.replace(",test,", ",train,", 1))
    with pytest.raises(SplitError, match=r"split\.csv.*changed"):
        splits.Split.load(tmp_path / "split.csv")
    # a leak written into the file by hand is found before the hash is
    (tmp_path / "split.csv").write_text(
        text + "0,0,train,copy," + split.table.query("part == 'test'")["group"].iloc[0] + "\n"
    )
    with pytest.raises(SplitError, match="more than one part"):
        splits.Split.load(tmp_path / "split.csv")


def test_the_hash_does_not_depend_on_the_order_of_rows():
    images = image_set([f"g{index}" for index in range(20)], ["a", "b"] * 10)
    split = splits.hold_out(images, seed=3)
    shuffled = splits.Split(split.table.sample(frac=1, random_state=0), split.protocol, split.seed)
    assert shuffled.hash == split.hash
