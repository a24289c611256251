"""Connectivity alone: what names the neuron scores by synapse, and not by neuron; the leak carries
its name.
"""

import numpy as np
import pandas as pd
import pytest

from nbhelpers.core import splits
from nbhelpers.core.errors import InputError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.evaluation import connectivity


@pytest.fixture
def images():
    count = 480
    neuron = np.arange(count) % 24
    table = pd.DataFrame(
        {
            "id": [f"{at}" for at in range(count)],
            "label": np.where(neuron % 2, "a", "b"),
            "group": [f"n{one}" for one in neuron],
        }
    )
    return ImageSet(
        "cubes", table, np.zeros((count, 1, 2, 2, 2), np.uint8), ("a", "b"), "none", True
    )


def accuracy(predictions):
    return float((predictions.predicted_index == predictions.true_index).mean())


def test_features_that_name_the_neuron_leak_by_synapse_only(images):
    split = splits.repeated_cross_validation(images, folds=4, repeats=1, seed=0)
    features = connectivity.synthetic_connectivity(images, 1)
    found = {
        one.table["model"].iloc[0]: accuracy(one)
        for one in connectivity.connectivity_predictions(images, split, features, seed=0)
    }
    assert list(found) == [
        "connectivity",
        "connectivity, by synapse (LEAKS)",
        "connectivity, SVM",
        "connectivity, SVM, by synapse (LEAKS)",
    ]
    assert (
        found["connectivity, SVM, by synapse (LEAKS)"] > 0.95 and found["connectivity, SVM"] < 0.8
    )
    assert found["connectivity, by synapse (LEAKS)"] > found["connectivity"]


def test_synthetic_features_carry_no_class_and_are_the_same_again(images):
    means = []
    for seed in range(40):
        features = connectivity.synthetic_connectivity(images, seed)
        neurons = features[list(connectivity.NEURON_COLUMNS)].groupby(images.groups)
        assert (neurons.nunique() == 1).all(axis=None)
        means.append(features.groupby(images.table["label"]).mean().diff().iloc[1])
    assert abs(np.mean(means)) < 0.1  # over seeds the classes are alike
    assert connectivity.synthetic_connectivity(images, 3).equals(
        connectivity.synthetic_connectivity(images, 3)
    )


def test_the_split_by_synapse_says_that_it_leaks(images):
    split = connectivity.split_by_synapse(images, seed=0)
    assert "LEAKS" in split.protocol and "one neuron" in split.known_leak
    assert len(split.groups_in_two_parts()) > 100
    assert split.table[split.table["part"] == "test"]["id"].is_unique


def test_real_features_are_read_in_the_order_of_the_cubes(images, tmp_path):
    assert not connectivity.has_connectivity(tmp_path)
    with pytest.raises(InputError, match="no connectivity features.*partners = True"):
        connectivity.read_connectivity(images, tmp_path)
    table = images.table.assign(
        id=images.table["id"].astype(int), size=np.arange(480.0), pair_synapses=1
    )
    table.iloc[::-1].to_parquet(tmp_path / "connectivity.parquet")
    found = connectivity.read_connectivity(images, tmp_path)
    assert list(found) == ["size", "pair_synapses"] and np.allclose(
        found["size"], np.log1p(np.arange(480))
    )
    table.iloc[:400].to_parquet(tmp_path / "connectivity.parquet")
    with pytest.raises(InputError, match=r"80 cubes have no connectivity features, e.g. 400\."):
        connectivity.read_connectivity(images, tmp_path)
