"""Tables of MICrONS through the real caveclient: synapses with the class of their presynaptic
neuron, frozen to files.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError, check_choice, check_range, nearest
from nbhelpers.core.files import sha256_of, sha256_of_file, whole_file, write_json
from nbhelpers.core.seeds import generator_for
from nbhelpers.microns.cave import NO_SEGMENT, CaveError, Connection
from nbhelpers.microns.miniature_server import DATASTACK
from nbhelpers.microns.points import Points

CLASSES = ("excitatory", "inhibitory")
IDS_PER_REQUEST = 50
MOST = 10**9  # of neurons or synapses
# Queries once had these too, always so: what was frozen then is found again.
OPTIONS_BEFORE = {
    "synapses_per_class": 0,
    "cell_type_column": "",
    "excitatory": (),
    "inhibitory": (),
}


@dataclass(frozen=True)
class CellTypes:
    """How one cell-type table says excitatory and inhibitory: its column, its words, and how far to
    trust it.
    """

    column: str
    words: dict[str, str]  # to the class, or to "other"
    source: str
    noise: str


CELL_TYPE_TABLES: dict[str, CellTypes] = {
    "allen_v1_column_types_slanted_ref": CellTypes(
        "classification_system",
        {
            "aibs_coarse_excitatory": "excitatory",
            "aibs_coarse_inhibitory": "inhibitory",
            "aibs_coarse_nonneuronal": "other",
        },
        "by hand, by anatomists of the Allen Institute, in a column of about 100 um in V1",
        "Labels were given by hand and are the best there are; they cover one column only.",
    ),
    "baylor_log_reg_cell_type_coarse_v1": CellTypes(
        "cell_type",
        {"excitatory": "excitatory", "inhibitory": "inhibitory"},
        "logistic regression on properties of dendrites (Celii et al. 2025)",
        "Labels are predictions from dendrites: expect a few per cent of wrong ones, and cells "
        "that are missing because "
        "their dendrites are cut.",
    ),
    "aibs_metamodel_celltypes_v661": CellTypes(
        "classification_system",
        {
            "excitatory_neuron": "excitatory",
            "inhibitory_neuron": "inhibitory",
            "nonneuron": "other",
        },
        "hierarchical classifier on soma and nucleus (Elabbady et al. 2025)",
        "Labels are predictions from soma and nucleus: some inhibitory cells of layer 5 are called "
        "excitatory.",
    ),
}


@dataclass(frozen=True)
class SynapseQuery:
    """Which synapses are wanted. The same query with the same seed gives the same synapses, on any
    machine.

    ``neurons_per_class`` presynaptic neurons are drawn by ``seed`` among those with at least
    ``min_synapses`` (inside ``box_nm``, two corners x, y, z in nm, where given), at most
    ``synapses_per_neuron`` synapses of each (0: all). ``cell_type_table`` is one of
    :data:`CELL_TYPE_TABLES`. ``sides`` "pre and post" also asks for the synapses that these neurons
    receive, for the features without images of notebook 04. ``served`` is the ``identity`` of a
    miniature: there are many of them, all of one name and version.
    """

    datastack: str
    version: int
    cell_type_table: str = "allen_v1_column_types_slanted_ref"
    neurons_per_class: int = 50
    synapses_per_neuron: int = 40
    min_synapses: int = 5
    sides: str = "pre"
    seed: int = 0
    box_nm: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    served: str = ""

    def __post_init__(self):
        if isinstance(self.version, bool) or not isinstance(self.version, int) or self.version < 1:
            raise ParameterError(
                "parameter version",
                f"{self.version!r} is not the number of a version.",
                "Pin one, such as 1412: root ids differ from version to version.",
            )
        for name, least in (
            ("neurons_per_class", 1),
            ("synapses_per_neuron", 0),
            ("min_synapses", 1),
        ):
            check_range(f"parameter {name}", getattr(self, name), least, MOST)
        check_choice("parameter sides", self.sides, ("pre", "pre and post"))
        if self.box_nm is not None:
            low, high = np.asarray(self.box_nm, dtype=np.float64).reshape(2, 3)
            if not (low < high).all():
                raise ParameterError(
                    "parameter box_nm",
                    "its second corner is not above the first one on every axis.",
                )
            object.__setattr__(self, "box_nm", (tuple(low.tolist()), tuple(high.tolist())))

    @property
    def hash(self) -> str:
        """SHA-256 of the query."""
        asked = {name: value for name, value in asdict(self).items() if name != "served" or value}
        return sha256_of(OPTIONS_BEFORE | asked)

    @property
    def cell_types(self) -> CellTypes:
        """The words of the cell-type table. Raises ParameterError for a table that is not
        known.
        """
        if self.cell_type_table not in CELL_TYPE_TABLES:
            raise ParameterError(
                "parameter cell_type_table",
                f"the words of {self.cell_type_table} for excitatory and inhibitory are not known.",
                nearest(self.cell_type_table, CELL_TYPE_TABLES),
            )
        return CELL_TYPE_TABLES[self.cell_type_table]


@dataclass(frozen=True)
class SynapseTable:
    """The frozen result of a query.

    ``synapses``: one row each, id (text), label, group (text: the nucleus of the presynaptic
    neuron, else its root), pre_root_id, post_root_id, nucleus_id (int64, -1 where there is none),
    size, and in nm (float64) x_nm, y_nm, z_nm (the cleft), pre_x_nm ..., post_x_nm ....
    ``neurons``: root_id, nucleus_id, label, group, soma x_nm, y_nm, z_nm, synapses (found), used.
    ``counts``: cells and synapses that were found, used and left out. ``noise``: how far the labels
    can be trusted. ``features``: see :func:`connectivity_features`; None for a query of side "pre".
    """

    synapses: pd.DataFrame
    neurons: pd.DataFrame
    counts: dict[str, int]
    noise: str
    query: SynapseQuery
    timestamp: str
    folder: Path
    features: pd.DataFrame | None = field(default=None)
    from_frozen: bool = False

    @property
    def query_hash(self) -> str:
        """SHA-256 of the query."""
        return self.query.hash

    @property
    def synthetic(self) -> bool:
        """Whether the synapses are those of the miniature."""
        return self.query.datastack == DATASTACK

    @property
    def about(self) -> dict[str, object]:
        """What a data set made from it must say: datastack, version, timestamp, query_hash."""
        return {
            "datastack": self.query.datastack,
            "version": self.query.version,
            "timestamp": self.timestamp,
            "query_hash": self.query_hash,
            "served": self.query.served,
            "cell_type_table": self.query.cell_type_table,
            "label_noise": self.noise,
            "counts": self.counts,
        }


# ------------------------------------------------------------------------------------------------
# the query

POINTS = {"": "ctr_pt_position", "pre_": "pre_pt_position", "post_": "post_pt_position"}
PLACES = [f"{prefix}{axis}_nm" for prefix, axis in product(POINTS, "xyz")]
SYNAPSE_COLUMNS = ("id", "pre_pt_root_id", "post_pt_root_id", "size", *POINTS.values())


def query_synapses(
    connection: Connection | Callable[[], Connection] | None,
    query: SynapseQuery,
    *,
    freeze_to: str | Path,
    report: Callable[[str], object] = print,
) -> SynapseTable:
    """The synapses of a query, from CAVE the first time, from the frozen files in ``freeze_to``
    ever after.

    ``connection`` may be a function that makes it: it is called only when there is nothing frozen,
    so that a second run needs no token and no network; None refuses to go to the network. Each
    query has its own folder in ``freeze_to``, named by its hash. Raises CaveError, also when a
    frozen file was changed.
    """
    folder = _folder_of(query, freeze_to)
    if is_frozen(query, freeze_to):
        frozen = _thaw(folder, query)
        report(
            f"Frozen query {query.hash[:12]}: {len(frozen.synapses)} synapses of "
            f"{len(frozen.neurons)} neurons, version {query.version} of {frozen.timestamp}."
        )
        return frozen
    known = query.cell_types
    if connection is None:
        raise CaveError(
            folder,
            "this query was not frozen, and the network is not to be used.",
            "Give a connection.",
        )
    if not isinstance(connection, Connection):
        connection = connection()
    if (connection.datastack, connection.version) != (query.datastack, query.version):
        raise CaveError(
            "connection",
            f"it is to {connection.datastack}, version {connection.version}, but the query is "
            f"for {query.datastack}, version {query.version}.",
            "Connect to that one.",
        )
    cells, counts = _cells(connection, query, known)
    report(
        f"{query.cell_type_table}: "
        f"{', '.join(f'{number} {name}' for name, number in counts.items())}."
    )
    chosen = []
    found = []
    for label in CLASSES:
        neurons, synapses = _choose(
            connection, query, cells[cells["label"] == label], label, counts, report
        )
        chosen.append(neurons)
        found.append(synapses)
    neurons = pd.concat(chosen, ignore_index=True)
    synapses = pd.concat(found, ignore_index=True)
    used = _thin(synapses, query)
    features = None
    if query.sides == "pre and post":
        received = _in_batches(connection, "post_pt_root_id", neurons["root_id"].to_numpy(), report)
        features = connectivity_features(used, synapses, received)
        counts["synapses received"] = len(received)
    neurons["used"] = (
        neurons["root_id"].map(used["pre_root_id"].value_counts()).fillna(0).astype(np.int64)
    )
    counts.update(
        {
            "synapses found": len(synapses),
            "synapses used": len(used),
            "synapses used onto what has no segment": int(
                (used["post_root_id"] == NO_SEGMENT).sum()
            ),
        }
    )
    noise = known.noise
    if query.datastack == DATASTACK:
        # the sentence is about people and programs that never saw this volume
        noise = f"The labels are injected by the miniature. Of this table in MICrONS: {noise}"
    table = SynapseTable(
        used, neurons, counts, noise, query, connection.timestamp, folder, features
    )
    _freeze(table)
    report(f"{len(used)} synapses of {len(neurons)} neurons, frozen as {query.hash[:12]}.")
    return table


def _cells(
    connection: Connection, query: SynapseQuery, known: CellTypes
) -> tuple[pd.DataFrame, dict[str, int]]:
    """One row per usable cell (root_id, nucleus_id, label, group, soma in nm), and the numbers of
    the others.
    """
    frame = connection.fetch(query.cell_type_table, reference=True)
    needed = [known.column, "pt_root_id", *(f"pt_position_{axis}" for axis in "xyz")]
    absent = [name for name in needed if name not in frame.columns]
    if absent:
        raise CaveError(
            f"table {query.cell_type_table}, column {absent[0]}",
            "the table does not have it.",
            nearest(absent[0], list(frame.columns)),
        )
    nucleus = pd.Series(-1, index=frame.index)
    if "target_id" in frame.columns:
        nucleus = _ids(frame, "target_id")
    rows = pd.DataFrame(
        {
            "root_id": _ids(frame, "pt_root_id"),
            "nucleus_id": nucleus.where(nucleus > 0, -1),
            "label": frame[known.column].map(known.words).fillna("unlabelled"),
            **_places(frame, "pt_position"),
        }
    )
    inside = rows[rows["root_id"] > 0]
    by_root = inside.groupby("root_id")
    labels = by_root["label"].nunique()
    nuclei = by_root["nucleus_id"].nunique()
    first = by_root.first()
    state = first["label"].mask(first["x_nm"].isna(), "without a position")
    state = state.mask(nuclei > 1, "several nuclei").mask(labels > 1, "conflicting")
    counts = {
        name: int((state == name).sum())
        for name in (
            *CLASSES,
            "other",
            "unlabelled",
            "conflicting",
            "several nuclei",
            "without a position",
        )
    }
    counts["without a segment"] = len(rows) - len(inside)
    cells = first[state.isin(CLASSES)].reset_index()
    cells["group"] = (
        cells["nucleus_id"].where(cells["nucleus_id"] > 0, cells["root_id"]).astype(str)
    )
    for label in CLASSES:
        if not counts[label]:
            raise CaveError(
                f"table {query.cell_type_table}",
                f"it has no usable cell that is {label}.",
                f"Its column {known.column} holds: "
                f"{sorted(map(str, frame[known.column].unique()))[:20]}.",
            )
    return cells[["root_id", "nucleus_id", "label", "group", "x_nm", "y_nm", "z_nm"]], counts


def _choose(
    connection: Connection,
    query: SynapseQuery,
    cells: pd.DataFrame,
    label: str,
    counts: dict[str, int],
    report: Callable[[str], object],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Neurons with enough synapses, in an order drawn by the seed, until there are as many as
    wanted.
    """
    rng = generator_for(query.seed, "neurons", label)
    order = rng.permutation(np.sort(cells["root_id"].to_numpy()))
    chosen = []
    kept = []
    for start in range(0, len(order), IDS_PER_REQUEST):
        batch = order[start : start + IDS_PER_REQUEST]
        synapses = _synapses(connection, "pre_pt_root_id", batch)
        placed = synapses.dropna(subset=PLACES)
        outgoing = placed[placed["pre_root_id"] != placed["post_root_id"]]
        for name, number in (
            ("synapses without a position", len(synapses) - len(placed)),
            ("synapses of a neuron on itself", len(placed) - len(outgoing)),
        ):
            counts[name] = counts.get(name, 0) + number
        if query.box_nm is not None:
            low, high = query.box_nm
            at = outgoing[["x_nm", "y_nm", "z_nm"]].to_numpy()
            outgoing = outgoing[((at >= low) & (at < high)).all(axis=1)]
        numbers = outgoing["pre_root_id"].value_counts()
        enough = [root for root in batch if numbers.get(root, 0) >= query.min_synapses]
        enough = enough[: query.neurons_per_class - len(chosen)]
        chosen += enough
        kept.append(outgoing[outgoing["pre_root_id"].isin(enough)])
        report(
            f"{label}: asked for {min(start + IDS_PER_REQUEST, len(order))} of {len(order)} "
            f"neurons, {len(chosen)} of {query.neurons_per_class} chosen."
        )
        if len(chosen) == query.neurons_per_class:
            break
    if not chosen:
        raise CaveError(
            f"class {label}",
            f"none of its {len(order)} neurons has {query.min_synapses} synapses"
            f"{' in the box' if query.box_nm else ''}.",
            "Lower min_synapses, or widen the box.",
        )
    synapses = pd.concat(kept, ignore_index=True)
    neurons = cells.set_index("root_id").loc[chosen].reset_index()
    neurons["synapses"] = (
        neurons["root_id"].map(synapses["pre_root_id"].value_counts()).astype(np.int64)
    )
    cell = neurons.set_index("root_id")
    return neurons, synapses.assign(
        **{
            name: synapses["pre_root_id"].map(cell[name])
            for name in ("label", "group", "nucleus_id")
        }
    )


def _synapses(connection: Connection, column: str, roots: np.ndarray) -> pd.DataFrame:
    """All synapses whose ``column`` is one of ``roots``, with places in nm, NaN where the table has
    none."""
    table = connection.synapse_table
    if not table:
        raise CaveError(f"datastack {connection.datastack}", "it names no synapse table.")
    frame = connection.fetch(table, where={column: roots}, columns=SYNAPSE_COLUMNS)
    pre, post = (_ids(frame, name) for name in ("pre_pt_root_id", "post_pt_root_id"))
    if len(frame) and not np.isin(pre if column == "pre_pt_root_id" else post, roots).all():
        raise CaveError(f"table {table}", "the server answered with synapses of other neurons.")
    if frame["id"].duplicated().any():
        raise CaveError(
            f"table {table}", f"the id {frame['id'][frame['id'].duplicated()].iloc[0]} came twice."
        )
    places = {}
    for prefix, name in POINTS.items():
        places |= _places(frame, name, prefix)
    return pd.DataFrame(
        {
            "id": _ids(frame, "id").astype(str),
            "pre_root_id": pre,
            "post_root_id": post,
            "size": frame["size"].astype(np.float64),
            **places,
        }
    )


def _places(frame: pd.DataFrame, column: str, prefix: str = "") -> pd.DataFrame:
    """Columns ``<prefix>x_nm``, ``y_nm``, ``z_nm`` of a column of positions; NaN in rows that have
    none."""
    there = frame.reindex(columns=[f"{column}_{axis}" for axis in "xyz"]).notna().all(axis=1)
    nm = Points.from_cave(frame[there], column).nm
    names = [f"{prefix}{axis}_nm" for axis in "xyz"]
    return pd.DataFrame(nm, frame.index[there], names).reindex(frame.index)


def _ids(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of ids as int64, 0 where there is none. A column of floats is refused: the ids of
    CAVE have 18 digits, of which a float keeps 16, and rounded ids are those of other cells."""
    if (
        len(frame)
        and frame[column].notna().any()
        and not pd.api.types.is_integer_dtype(frame[column])
    ):
        raise CaveError(
            f"column {column}",
            f"its ids came as {frame[column].dtype}, which rounds them.",
            "Nothing was used. Update caveclient and pyarrow, and run again.",
        )
    return frame[column].fillna(NO_SEGMENT).astype(np.int64)


def _in_batches(
    connection: Connection, column: str, roots: np.ndarray, report: Callable[[str], object]
) -> pd.DataFrame:
    parts = []
    for start in range(0, len(roots), IDS_PER_REQUEST):
        parts.append(_synapses(connection, column, roots[start : start + IDS_PER_REQUEST]))
        report(
            f"synapses by {column}: {min(start + IDS_PER_REQUEST, len(roots))} of {len(roots)} "
            "neurons."
        )
    return pd.concat(parts, ignore_index=True)


def _thin(synapses: pd.DataFrame, query: SynapseQuery) -> pd.DataFrame:
    """At most so many synapses per neuron; drawn by the seed, sorted by id."""
    limit = query.synapses_per_neuron
    chosen = []
    for root, rows in synapses.groupby("pre_root_id"):
        if limit and len(rows) > limit:
            draw = generator_for(query.seed, "synapses of", root)
            rows = rows.sort_values("id").iloc[draw.permutation(len(rows))[:limit]]
        chosen.append(rows)
    columns = ["id", "label", "group", "pre_root_id", "post_root_id", "nucleus_id", "size", *PLACES]
    return pd.concat(chosen)[columns].sort_values("id", ignore_index=True)


def connectivity_features(
    used: pd.DataFrame, sent: pd.DataFrame, received: pd.DataFrame
) -> pd.DataFrame:
    """What can be known about each synapse without an image: the floor that images must clear in
    notebook 05.

    ``used`` are the synapses of the data set, ``sent`` all those that the chosen neurons make (in
    the box of the query, where it has one), ``received`` all those they get. One row per used
    synapse: id, group, label, its ``size``, and of its presynaptic neuron the numbers of synapses
    and partners on both sides, mean sizes, and the fraction of partners that answer; of its pair
    the number of synapses; of its postsynaptic cell what it gets from the chosen neurons. No class
    of any cell goes in. The other inputs of the postsynaptic cells are not asked for: in MICrONS
    these are millions of rows. Root id 0 (no segment there) is no cell: it counts among no
    partners, and each synapse onto it stands as the only one of its pair.
    """
    nameless = sent.loc[sent["post_root_id"] == NO_SEGMENT, "id"]
    # each onto a cell of its own, with a root below 0
    stand_in = pd.Series(-1 - np.arange(len(nameless)), index=nameless, dtype=np.int64)
    sent = sent.assign(post_root_id=_with_stand_ins(sent, stand_in))
    used = used.assign(post_root_id=_with_stand_ins(used, stand_in))
    of_pre = sent.groupby("pre_root_id").agg(
        pre_synapses_sent=("id", "size"),
        pre_partners_sent=("post_root_id", _cells_in),
        pre_mean_size_sent=("size", "mean"),
    )
    onto = (
        received[received["pre_root_id"] != received["post_root_id"]]
        .groupby("post_root_id")
        .agg(
            pre_synapses_received=("id", "size"),
            pre_partners_received=("pre_root_id", _cells_in),
            pre_mean_size_received=("size", "mean"),
        )
    )
    pairs = (
        sent.groupby(["pre_root_id", "post_root_id"]).size().rename("pair_synapses").reset_index()
    )
    answers = set(zip(received["post_root_id"], received["pre_root_id"], strict=True))
    pairs["answered"] = [
        pair in answers for pair in zip(pairs["pre_root_id"], pairs["post_root_id"], strict=True)
    ]
    named = pairs[pairs["post_root_id"] > 0]
    of_pre = of_pre.join(onto).join(
        named.groupby("pre_root_id")["answered"].mean().rename("pre_fraction_answered")
    )
    # a neuron without inputs has none: 0 is its number, and its mean size is not used
    of_pre = of_pre.fillna(0.0)
    onto_cells = sent[sent["post_root_id"] > 0].groupby("pre_root_id").size()
    onto_cells = onto_cells.reindex(of_pre.index, fill_value=0)
    of_pre["pre_synapses_per_partner"] = onto_cells / of_pre["pre_partners_sent"].clip(lower=1)
    of_pre["pre_fraction_sent"] = of_pre["pre_synapses_sent"] / (
        of_pre["pre_synapses_sent"] + of_pre["pre_synapses_received"]
    )
    of_post = sent.groupby("post_root_id").agg(
        post_synapses_received=("id", "size"),
        post_partners_received=("pre_root_id", "nunique"),
        post_mean_size_received=("size", "mean"),
    )
    features = (
        used[["id", "group", "label", "pre_root_id", "post_root_id", "size"]]
        .join(of_pre, on="pre_root_id")
        .join(of_post, on="post_root_id")
        .merge(
            pairs.drop(columns="answered"),
            how="left",
            validate="many_to_one",
            on=["pre_root_id", "post_root_id"],
        )
    )
    return features.drop(columns=["pre_root_id", "post_root_id"])


def _with_stand_ins(table: pd.DataFrame, stand_in: pd.Series) -> np.ndarray:
    known = table["id"].isin(stand_in.index).to_numpy()
    posts = table["post_root_id"].to_numpy(np.int64, copy=True)
    posts[known] = stand_in.loc[table["id"][known]].to_numpy()
    return posts


def _cells_in(roots: pd.Series) -> int:
    return roots[roots > 0].nunique()


# ------------------------------------------------------------------------------------------------
# frozen files


def is_frozen(query: SynapseQuery, freeze_to: Path | str) -> bool:
    """Whether the result of this query lies in ``freeze_to``, so that it needs no token and no
    network.
    """
    return (_folder_of(query, freeze_to) / "query.json").is_file()


def _folder_of(query: SynapseQuery, freeze_to: Path | str) -> Path:
    return Path(freeze_to) / query.hash[:16]


def _freeze(table: SynapseTable) -> None:
    """Write the tables, and last query.json with the hash of each and of itself: without it nothing
    counts as frozen.
    """
    frames = {"synapses": table.synapses, "neurons": table.neurons, "features": table.features}
    files = {}
    for name, frame in frames.items():
        if frame is not None:
            path = table.folder / f"{name}.parquet"
            with whole_file(path) as temporary:
                frame.to_parquet(temporary, index=False)
            files[path.name] = {"rows": len(frame), "sha256": sha256_of_file(path)}
    about = {
        "format": 1,
        "query": asdict(table.query),
        "query_hash": table.query_hash,
        "timestamp": table.timestamp,
        "counts": table.counts,
        "noise": table.noise,
        "files": files,
    }
    write_json(table.folder / "query.json", {**about, "hash": sha256_of(about)})


def _thaw(folder: Path, query: SynapseQuery) -> SynapseTable:
    fix = f"Delete the folder {folder.name} and query again."
    try:
        about = json.loads((folder / "query.json").read_text(encoding="utf-8"))
        if about.pop("hash") != sha256_of(about) or about["query_hash"] != query.hash:
            raise CaveError(folder / "query.json", "it was changed after it was written.", fix)
        frames = {}
        for name, stated in about["files"].items():
            if sha256_of_file(folder / name) != stated["sha256"]:
                raise CaveError(
                    folder / name,
                    "it was changed or damaged after it was written (its hash differs).",
                    fix,
                )
            frames[Path(name).stem] = pd.read_parquet(folder / name)
        return SynapseTable(
            frames["synapses"],
            frames["neurons"],
            about["counts"],
            about["noise"],
            query,
            about["timestamp"],
            folder,
            frames.get("features"),
            from_frozen=True,
        )
    except CaveError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CaveError(
            folder, f"the frozen query cannot be read ({type(error).__name__}).", fix
        ) from None
