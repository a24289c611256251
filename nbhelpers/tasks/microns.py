"""What notebook 01 says about a MICrONS data set: its folder, its links, its health as one score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.errors import InputError
from nbhelpers.evaluation.intervals import bootstrap_interval, group_weights, wilson
from nbhelpers.files import sha256_of, whole_file
from nbhelpers.microns.cutouts import Volume, continuity
from nbhelpers.microns.dataset import Extracted
from nbhelpers.microns.links import synapse_links
from nbhelpers.microns.points import Points
from nbhelpers.seeds import derive_seed

RESAMPLES = 2000


def folder_name(source: str, query_hash: str, volume: Volume, shape: Mapping[str, object]) -> str:
    """A folder per query, volume and shape, so that another query never meets the data set of an earlier one.

    E.g. ``miniature-1f3a9c20``. Introduced in notebook 01.
    """
    return f"{source}-{sha256_of([query_hash, volume.identity, volume.scale.mip, dict(shape)])[:8]}"


def links_table(cut: Extracted, image_source: str, *, resolution_nm: tuple[float, float, float]) -> pd.DataFrame:
    """One row per synapse: id, label, neuron, position in um, and the Neuroglancer link that opens it.

    ``resolution_nm`` (x, y, z) is the viewer's unit. Introduced in notebook 01.
    """
    table = cut.synapses
    points = Points.from_table(table)
    links = synapse_links(points, table["id"].tolist(), image_source=image_source, resolution_nm=resolution_nm)
    return pd.DataFrame({"id": table["id"], "label": table["label"], "neuron": table["group"],
                         **{f"{axis} (µm)": points.nm[:, number] / 1000 for number, axis in enumerate("xyz")},
                         "link": links})


def continuity_score(cut: Extracted, *, seed: int, most: int = 500) -> dict:
    """Mean correlation of neighbouring sections with its 95 % interval (bootstrap by neuron), and what the same
    sections give when each stands beside one of another synapse: what cubes are like whose sections lie far apart.

    value, low, high, n, floor_name, floor: the numbers of a Headline. At most ``most`` cubes, drawn by ``seed``, make
    the floor. Raises InputError for a data set without cubes or with a single synapse. Introduced in notebook 01.
    """
    table, cubes = cut.synapses, cut.pixels("cubes")
    known = table["continuity"].notna().to_numpy()
    if known.sum() < 2:
        raise InputError(cut.folder.name, f"the continuity of {int(known.sum())} cubes is known.",
                         "Cut out two synapses or more, with two sections or more.")
    values, groups = table["continuity"].to_numpy()[known], pd.factorize(table["group"][known])[0]
    count = groups.max() + 1
    sums, sizes = np.bincount(groups, values, count), np.bincount(groups, minlength=count)
    samples = np.concatenate([(weights @ sums) / (weights @ sizes) for weights in
                              group_weights(count, RESAMPLES, derive_seed(seed, "continuity"))])
    found = bootstrap_interval(values.mean(), samples, n=len(values), n_groups=count)
    if found["low"] is None:  # a single neuron
        found |= {"low": float(values.min()), "high": float(values.max())}
    rng = np.random.default_rng(derive_seed(seed, "continuity, floor"))
    rows = np.sort(rng.permutation(len(cubes))[:most])
    mixed = np.array(cubes[rows])[:, 0]
    other = np.roll(mixed, 1, axis=0)
    mixed[:, 1::2] = other[:, 1::2]  # every second section comes from another synapse
    floor = float(np.nanmean(continuity(mixed)))
    return {**{key: found[key] for key in ("value", "low", "high", "n")}, "floor_name": "sections of unlike places",
            "floor": floor}


def share_cut_out(cut: Extracted) -> dict:
    """The share of the queried synapses that were cut out, with Wilson's interval: the numbers of a Headline, for a
    data set without cubes. Introduced in notebook 01."""
    done, asked = len(cut.synapses), len(cut.synapses) + len(cut.left_out)
    low, high = wilson(done, asked)
    return {"value": done / asked, "low": min(low, done / asked), "high": max(high, done / asked), "n": asked,
            "floor_name": "none cut out", "floor": 0.0}


def left_out_summary(cut: Extracted) -> pd.DataFrame:
    """How many synapses were left out for which kind of reason: columns synapses, why, mend, the commonest first.

    What differs from synapse to synapse (how far beyond the edge) is dropped here; left_out.csv has it.
    Introduced in notebook 01.
    """
    table = cut.left_out.assign(why=cut.left_out["why"].str.split(":").str[0])
    found = table.groupby(["why", "mend"]).size().rename("synapses").reset_index()
    return found.sort_values("synapses", ascending=False, ignore_index=True)[["synapses", "why", "mend"]]


def keep_connectivity(cut: Extracted, features: pd.DataFrame) -> Path:
    """Write ``connectivity.parquet`` into the data set folder: the features without images of notebook 05, one row per
    synapse, in the order of ``synapses.parquet``.

    Raises InputError when a synapse has no features. Introduced in notebook 01.
    """
    rows = features.assign(id=features["id"].astype(str)).set_index("id")
    absent = [name for name in cut.synapses["id"] if name not in rows.index]
    if absent:
        raise InputError(cut.folder.name, f"{len(absent)} synapses have no connectivity features, e.g. {absent[0]}.",
                         "They belong to another query: delete the data set folder and run notebook 01 again.")
    path = cut.folder / "connectivity.parquet"
    with whole_file(path) as temporary:
        rows.loc[cut.synapses["id"]].reset_index().to_parquet(temporary, index=False)
    return path
