"""What notebook 01 says about a MICrONS data set: its folder, its links, its health
as one score."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.files import sha256_of, whole_file
from nbhelpers.core.intervals import count_interval, mean_interval
from nbhelpers.core.seeds import derive_seed
from nbhelpers.imagesets.sections import continuity
from nbhelpers.microns.cave import check_token
from nbhelpers.microns.dataset import Extracted, check_place
from nbhelpers.microns.links import synapse_links
from nbhelpers.microns.points import Points
from nbhelpers.microns.tables import SynapseQuery, is_frozen

RESAMPLES = 2000
TAKEN = ("miniature", "queries")  # folders under data/ that notebook 01 keeps for itself


def check_request(
    query: SynapseQuery,
    *,
    source: str,
    cube_sections: int,
    data_set: str,
    data_folder: Path,
    frozen_in: Path,
) -> None:
    """What can be known to go wrong before anything slow is done.

    Raises ParameterError for a cell-type table whose words are not known, for cubes of a single
    section, for a ``data_set`` that is no name of one folder; DatasetError when that folder holds
    something else; CaveError when ``source`` is "microns", the query is not frozen in
    ``frozen_in``, and there is no token.
    """
    _ = query.cell_types
    if cube_sections == 1:
        raise ParameterError(
            "parameter cube_sections",
            "a cube of 1 section is a patch, and has no continuity.",
            "Give 2 or more, or 0 for no cubes.",
        )
    if data_set:
        if (
            not re.fullmatch(r"[A-Za-z0-9._ -]+", data_set)
            or ".." in data_set
            or data_set.strip(" .") != data_set
        ):
            raise ParameterError(
                "parameter data_set",
                f"{data_set!r} is not the name of one folder.",
                "Give one name of "
                "letters A to Z, digits, spaces, and . _ - inside; or leave it empty.",
            )
        if data_set in TAKEN:
            raise ParameterError(
                "parameter data_set",
                f"this notebook keeps other things in {data_set}.",
                "Give another name, or leave it empty.",
            )
        check_place(data_folder / data_set)
    if source == "microns" and not is_frozen(query, frozen_in):
        check_token(query.datastack)


def folder_name(
    source: str, query_hash: str, image_url: str, mip: int, shape: Mapping[str, object]
) -> str:
    """A folder per query, volume and shape, so that another query never meets the data set of an
    earlier one.

    E.g. ``miniature-1f3a9c20``. Nothing is asked of the volume, so that a finished data set is
    found offline; which miniature it was stands in the hash of the query, and its address changes
    with each start.
    """
    address = "" if source == "miniature" else image_url
    return f"{source}-{sha256_of([query_hash, address, mip, dict(shape)])[:8]}"


def training_command(cut: Extracted) -> str:
    """The line for a terminal that trains on this data set."""
    return (
        f"./run_all.sh synapse_resnet_2d -p data microns -p data_dir "
        f"{shlex.quote(f'data/{cut.folder.name}')}"
    )


def links_table(
    cut: Extracted, image_source: str, *, resolution_nm: tuple[float, float, float]
) -> pd.DataFrame:
    """One row per synapse: id, label, neuron, position in um, and the Neuroglancer link that opens
    it.

    ``resolution_nm`` (x, y, z) is the viewer's unit.
    """
    table = cut.synapses
    points = Points.from_table(table)
    links = synapse_links(
        points, table["id"].tolist(), image_source=image_source, resolution_nm=resolution_nm
    )
    return pd.DataFrame(
        {
            "id": table["id"],
            "label": table["label"],
            "neuron": table["group"],
            **{f"{axis} (µm)": points.nm[:, number] / 1000 for number, axis in enumerate("xyz")},
            "link": links,
        }
    )


def continuity_score(cut: Extracted, *, seed: int, most: int = 500) -> tuple[Estimate, float]:
    """Mean correlation of neighbouring sections with its 95 % interval (bootstrap by neuron), and
    as its floor what the same sections give when each stands beside one of another synapse: what
    cubes are like whose sections lie far apart.

    At most ``most`` cubes, drawn by ``seed``, make the floor. Raises InputError for a data set
    without cubes or with a single synapse.
    """
    table = cut.synapses
    cubes = cut.pixels("cubes")
    known = table["continuity"].notna().to_numpy()
    if known.sum() < 2:
        raise InputError(
            cut.folder.name,
            f"the continuity of {int(known.sum())} cubes is known.",
            "Cut out two synapses or more, with two sections or more.",
        )
    values = table["continuity"].to_numpy()[known]
    neurons = pd.factorize(table["group"][known])[0]
    found = mean_interval(values, neurons, derive_seed(seed, "continuity"), RESAMPLES)
    if found.low is None:  # a single neuron
        found = replace(found, low=float(values.min()), high=float(values.max()))
    rng = np.random.default_rng(derive_seed(seed, "continuity, floor"))
    rows = np.sort(rng.permutation(len(cubes))[:most])
    mixed = np.array(cubes[rows])[:, 0]
    # rows that follow one another lie side by side in the tissue, so half the set away
    other = np.roll(mixed, len(mixed) // 2, axis=0)
    mixed[:, 1::2] = other[:, 1::2]  # every second section comes from another synapse
    return found, float(np.nanmean(continuity(mixed)))


def share_cut_out(cut: Extracted) -> Estimate:
    """The share of the queried synapses that were cut out, for a data set without cubes."""
    done = len(cut.synapses)
    return count_interval(done, done + len(cut.left_out))


def score(cut: Extracted, *, seed: int) -> dict:
    """What the data set is known by: the ``name`` of the score, its ``estimate``, ``floor_name``
    and ``floor``. The continuity of neighbouring sections, or the share of the queried synapses
    that were cut out where fewer than two cubes have one.
    """
    if cut.about["cubes"] and cut.synapses["continuity"].notna().sum() > 1:
        found, floor = continuity_score(cut, seed=seed)
        return {
            "name": "Continuity of neighbouring sections",
            "estimate": found,
            "floor_name": "unrelated sections",
            "floor": floor,
        }
    return {
        "name": "Share of synapses cut out",
        "estimate": share_cut_out(cut),
        "floor_name": "none cut out",
        "floor": 0.0,
    }


def least_continuous(cut: Extracted, most: int = 5) -> pd.DataFrame:
    """The cubes whose sections correlate least, the worst first: id, label, neuron, continuity,
    zero fraction. These are the ones to look at."""
    worst = cut.synapses.nsmallest(most, "continuity", keep="first").reset_index(drop=True)
    return worst.rename(columns={"group": "neuron", "zero_fraction": "zero fraction"})[
        ["id", "label", "neuron", "continuity", "zero fraction"]
    ]


def left_out_summary(cut: Extracted) -> pd.DataFrame:
    """How many synapses were left out for which kind of reason: columns synapses, why, fix, the
    commonest first.

    What differs from synapse to synapse (how far beyond the edge) is dropped here; left_out.csv has
    it.
    """
    table = cut.left_out.assign(why=cut.left_out["why"].map(_kind_of_reason))
    found = table.groupby(["why", "fix"]).size().rename("synapses").reset_index()
    return found.sort_values("synapses", ascending=False, ignore_index=True)[
        ["synapses", "why", "fix"]
    ]


def _kind_of_reason(why: str) -> str:
    why = why.split(":")[0]
    why = re.sub(r"no chunk \S+", "no chunk", why)
    why = re.sub(r"\d+ of the \d+ sections of", "sections of", why)
    return re.sub(r"[\d.]+ % of the pixels of", "too many pixels of", why)


def keep_connectivity(cut: Extracted, features: pd.DataFrame) -> Path:
    """Write ``connectivity.parquet`` into the data set folder: the features without images of
    notebook 05, one row per synapse, in the order of ``synapses.parquet``.

    Raises InputError when a synapse has no features.
    """
    rows = features.assign(id=features["id"].astype(str)).set_index("id")
    absent = cut.synapses["id"][~cut.synapses["id"].isin(rows.index)].tolist()
    if absent:
        raise InputError(
            cut.folder.name,
            f"{len(absent)} synapses have no connectivity features, e.g. {absent[0]}.",
            "They belong to another query: delete the data set folder and run notebook 01 again.",
        )
    path = cut.folder / "connectivity.parquet"
    with whole_file(path) as temporary:
        rows.loc[cut.synapses["id"]].reset_index().to_parquet(temporary, index=False)
    return path
