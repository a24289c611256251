"""What can be told of a synapse without its image: a logistic model on connectivity, by neuron and,
to show it, leaking.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed, generator_for
from nbhelpers.core.splits import Split, fold_table
from nbhelpers.evaluation import floors

# of the presynaptic neuron, the same for all its synapses; names as in
# nbhelpers.microns.tables.connectivity_features
NEURON_COLUMNS = (
    "pre_synapses_sent",
    "pre_partners_sent",
    "pre_mean_size_sent",
    "pre_synapses_received",
    "pre_partners_received",
    "pre_mean_size_received",
    "pre_fraction_answered",
    "pre_synapses_per_partner",
    "pre_fraction_sent",
)
SYNAPSE_COLUMNS = (
    "size",
    "post_synapses_received",
    "post_partners_received",
    "post_mean_size_received",
    "pair_synapses",
)
FOLDS = 5
LEAK = (
    "synapses of one neuron stand in training and test, so its connectivity names the neuron, "
    "and with it the class"
)


def has_connectivity(folder: str | Path) -> bool:
    """Whether notebook 01 wrote features without images into this data set folder."""
    return (Path(folder) / "connectivity.parquet").is_file()


def read_connectivity(images: ImageSet, folder: str | Path) -> pd.DataFrame:
    """The features that notebook 01 wrote with ``partners`` on, one row per cube in the order of
    the set, logarithms of what is counted or measured. Raises InputError when there are none, or a
    cube has none.
    """
    path = Path(folder) / "connectivity.parquet"
    if not has_connectivity(folder):
        raise InputError(
            path.name,
            "the data set has no connectivity features.",
            "Run notebook 01 again with partners = True.",
        )
    table = pd.read_parquet(path)
    table = table.assign(id=table["id"].astype(str)).set_index("id")
    absent = [one for one in images.ids if one not in table.index]
    if absent:
        raise InputError(
            path.name,
            f"{len(absent)} cubes have no connectivity features, e.g. {absent[0]}.",
            "They belong to another data set: run notebook 01 again.",
        )
    return _scaled(table.loc[images.ids].drop(columns=["group", "label"]).reset_index(drop=True))


def synthetic_connectivity(images: ImageSet, seed: int) -> pd.DataFrame:
    """SYNTHETIC features of the same names for phantoms, which have no partners: numbers that are
    the same for all synapses of a neuron and others that are not, none of which has to do with the
    class.

    So they can name a neuron and nothing else: what a model scores with them by synapse is leak.
    """
    draw = generator_for(seed, "connectivity")
    neuron, names = pd.factorize(images.groups, sort=True)
    own = np.exp(3 + draw.normal(size=(len(names), len(NEURON_COLUMNS))))[neuron]
    single = np.exp(3 + draw.normal(size=(len(images), len(SYNAPSE_COLUMNS))))
    return _scaled(
        pd.DataFrame(np.hstack([own, single]), columns=[*NEURON_COLUMNS, *SYNAPSE_COLUMNS])
    )


def _scaled(features: pd.DataFrame) -> pd.DataFrame:
    """Counts and sizes span powers of ten."""
    return np.log1p(features.astype(float).clip(lower=0))


def split_by_synapse(images: ImageSet, *, seed: int) -> Split:
    """The split that must not be used: cross-validation by synapse, whatever the neuron; its
    ``known_leak`` says so.
    """
    from sklearn.model_selection import StratifiedKFold

    rng_state = derive_seed(seed, "by synapse") % 2**32
    maker = StratifiedKFold(FOLDS, shuffle=True, random_state=rng_state)
    parts = []
    for fold, (_, test) in enumerate(maker.split(images.ids, images.labels)):
        part = np.full(len(images), "train", object)
        part[test] = "test"
        parts.append(fold_table(images, part, fold=fold))
    return Split(
        pd.concat(parts, ignore_index=True),
        f"LEAKS: {FOLDS}-fold cross-validation by synapse",
        seed,
        known_leak=LEAK,
    )


def connectivity_predictions(
    images: ImageSet, split: Split, features: pd.DataFrame, *, seed: int
) -> list[Predictions]:
    """Test predictions without images: "connectivity" on the split of the networks, and
    "connectivity, by synapse (LEAKS)" with cross-validation by synapse; both logistic regressions,
    as published; and the same two with an RBF-SVM.
    """
    leaky = split_by_synapse(images, seed=seed)
    found = []
    for classifier, kind in (("logistic", ""), ("svm", ", SVM")):
        for used, leak in ((split, ""), (leaky, ", by synapse (LEAKS)")):
            name = f"connectivity{kind}{leak}"
            found.append(
                floors.features_floor(features, images, used, name, classifier, seed=seed % 2**32)
            )
    return found
