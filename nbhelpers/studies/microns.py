"""What notebook 01 does around a MICrONS data set: whom it asks, its folder, its links, and its
quality as one score.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.files import sha256_of, whole_file
from nbhelpers.core.means import count_interval, mean_interval
from nbhelpers.core.seeds import generator_for
from nbhelpers.figures import volumes
from nbhelpers.imagesets.sections import continuity
from nbhelpers.microns.cave import Connection, check_token
from nbhelpers.microns.cutouts import Volume
from nbhelpers.microns.dataset import Cutout, Extracted, Origin, check_place, extract
from nbhelpers.microns.links import synapse_links
from nbhelpers.microns.miniature import Miniature, MiniatureSettings, miniature
from nbhelpers.microns.points import Points
from nbhelpers.microns.tables import SynapseQuery, SynapseTable, is_frozen

MOST_UNRELATED = 500  # cubes of which the floor of the continuity is made
IMAGES = (  # of MICrONS
    "precomputed://https://bossdb-open-data.s3.amazonaws.com/iarpa_microns/minnie/minnie65/em"
)
# Folders under data/ that notebook 01 keeps for itself.
MINIATURE = "miniature"
QUERIES = "queries"
FOLDER_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_-]([A-Za-z0-9._ -]*[A-Za-z0-9_-])?")


def check_request(
    query: SynapseQuery, *, source: str, cube_sections: int, data_set: str, data_folder: Path
) -> None:
    """What can be known to go wrong before anything slow is done.

    Raises ParameterError for a cell-type table whose words are not known, for cubes of a single
    section, for a ``data_set`` that is no name of one folder; DatasetError when that folder holds
    something else; CaveError when ``source`` is "microns", the query is not frozen yet, and there
    is no token.
    """
    _ = query.cell_types
    if cube_sections == 1:
        raise ParameterError(
            "parameter cube_sections",
            "a cube of 1 section is a patch, and has no continuity.",
            "Give 2 or more, or 0 for no cubes.",
        )
    if data_set:
        if not FOLDER_NAME.fullmatch(data_set) or data_set in (MINIATURE, QUERIES):
            raise ParameterError(
                "parameter data_set",
                f"{data_set!r} is not the name of one folder, or this notebook keeps other things "
                "in it.",
                "Give one name of letters A to Z, digits, spaces, and . _ - inside; or leave it "
                "empty.",
            )
        check_place(data_folder / data_set)
    if source == "microns" and not is_frozen(query, data_folder / QUERIES):
        check_token(query.datastack)


def open_miniature(
    data_folder: Path, *, tissue_px: int, neurons_per_class: int, seed: int
) -> Miniature:
    """The miniature of notebook 01: 40 sections with about one synapse in 1,500 square pixels,
    and, as in real tissue, one section missing. Neurons to spare, as some have too few synapses.
    """
    settings = MiniatureSettings(
        shape_px=(40, tissue_px, tissue_px),
        neurons=2 * neurons_per_class + 8,
        synapses=round(tissue_px**2 / 1500),
        missing_sections=(36,),
        seed=seed,
    )
    return miniature(settings, cache_folder=data_folder / MINIATURE)


def connection(query: SynapseQuery, server: Miniature | None) -> Callable[[], Connection]:
    """A function that connects to whom the query asks: the miniature, or CAVE with your token."""
    place = {}
    if server is not None:
        place = {"server_address": server.address, "token": server.token}
    return partial(Connection, query.datastack, version=query.version, **place)


def facts(found: SynapseTable) -> dict[str, object]:
    """What was asked, and how much of it there is."""
    frozen = " (read from the frozen files)" if found.from_frozen else ""
    return {
        "datastack": found.query.datastack,
        "version": found.query.version,
        "as of": found.timestamp,
        "cell types": found.query.cell_type_table,
        "query": f"{found.query_hash[:12]}…{frozen}",
        **found.counts,
    }


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
    folder = shlex.quote(f"data/{cut.folder.name}")
    return f"./run_all.sh synapse_resnet_cnn -p data microns -p data_dir {folder}"


def cut_out(
    found: SynapseTable, image_url: str, folder: Path, *, mip: int, shape: Mapping, jobs: int
) -> Extracted:
    """Cut the synapses of a query out of the volume, or find the finished data set in ``folder``.
    ``shape`` is that of :func:`folder_name`.
    """
    asked = found.query
    return extract(
        found.synapses,
        lambda: Volume.open(image_url, mip=mip),  # opened only when there is something to cut
        folder,
        Cutout(**shape, mip=mip),
        Origin(
            f"synapses of {asked.datastack}",
            f"{asked.datastack}, version {asked.version}, labels from {asked.cell_type_table}",
            found.synthetic,
            found.about,
        ),
        jobs=jobs,
    )


def show_cube(run, cut: Extracted) -> None:
    """The first cube of a data set in a notebook's ``run``, moving and as a strip of sections."""
    first = cut.synapses.iloc[0]
    cube = cut.pixels("cubes")[0][0]
    run.show_animation(
        volumes.cube_frames(cube),
        "scroll",
        caption="A scroll through the same cube as below: the bar shows the depth.",
        alt="A moving picture: the sections of one cube one after the other, as one scrolls "
        "through them.",
    )
    title = f"synapse {first['id']}, {first['label']}"
    run.show_figure(
        volumes.cube_strip(cube, cut.about["cubes"]["voxel_nm"], title=title),
        "cube",
        caption="A walk through one cube, section by section. Neighbouring sections must look "
        "alike.",
        alt="The sections of one cube in a row, in order of their depth.",
    )


def links_table(cut: Extracted, image_source: str) -> pd.DataFrame:
    """One row per synapse: id, label, neuron, position in um, and the Neuroglancer link that opens
    it.
    """
    table = cut.synapses
    points = Points.from_table(table)
    found = table[["id", "label", "group"]].rename(columns={"group": "neuron"})
    for number, axis in enumerate("xyz"):
        found[f"{axis} (µm)"] = points.nm[:, number] / 1000
    found["link"] = synapse_links(
        points,
        table["id"].tolist(),
        image_source=image_source,
        resolution_nm=cut.about["patches"]["voxel_nm"][::-1],  # x, y, z: the viewer's unit
    )
    return found


def set_score(run, cut: Extracted) -> None:
    """Make the continuity of the cubes the result of a notebook's ``run``, with its floor; or the
    share that was cut out, where fewer than two cubes have a continuity.
    """
    known = cut.synapses[cut.synapses["continuity"].notna()]
    if cut.about["cubes"] and len(known) > 1:
        found = mean_continuity(cut)
        counted = f"{found.n} synapses of {known['group'].nunique()} neurons"
        run.set_result("Continuity of neighbouring sections", found, n_text=counted)
        run.add_floor("unrelated sections", unrelated_continuity(cut, seed=run.seed))
    else:
        asked = len(cut.synapses) + len(cut.left_out)
        run.set_result("Share of synapses cut out", count_interval(len(cut.synapses), asked))
        run.add_floor("none cut out", Estimate(0.0, n=asked))


def mean_continuity(cut: Extracted) -> Estimate:
    """Mean correlation of neighbouring sections with its 95 % interval over neurons."""
    known = cut.synapses[cut.synapses["continuity"].notna()]
    neurons = pd.factorize(known["group"])[0]  # numbered in the order of the table
    values = known["continuity"].to_numpy()
    return mean_interval(values, neurons)


def unrelated_continuity(cut: Extracted, *, seed: int) -> Estimate:
    """The floor of the continuity: what the same sections give when each stands beside one of
    another synapse, as in cubes whose sections lie far apart. Of at most 500 cubes, drawn by
    ``seed``.
    """
    cubes = cut.pixels("cubes")
    rng = generator_for(seed, "continuity, floor")
    rows = np.sort(rng.permutation(len(cubes))[:MOST_UNRELATED])
    mixed = np.array(cubes[rows])[:, 0]
    # Half the set away: rows that follow one another lie side by side in the tissue.
    other = np.roll(mixed, len(mixed) // 2, axis=0)
    mixed[:, 1::2] = other[:, 1::2]  # every second section comes from another synapse
    return Estimate(float(np.nanmean(continuity(mixed))), n=len(mixed))


def least_continuous(cut: Extracted) -> pd.DataFrame:
    """The five cubes whose sections correlate least, the worst first: id, label, neuron,
    continuity, zero fraction. These are the ones to look at."""
    worst = cut.synapses.nsmallest(5, "continuity", keep="first").reset_index(drop=True)
    shown = worst[["id", "label", "group", "continuity", "zero_fraction"]]
    return shown.rename(columns={"group": "neuron", "zero_fraction": "zero fraction"})


def keep_connectivity(cut: Extracted, features: pd.DataFrame) -> Path:
    """Write ``connectivity.parquet`` into the data set folder: the features without images of
    notebook 04, one row per synapse, in the order of ``synapses.parquet``.

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
