"""The offline miniature: a loopback server that speaks CAVE and a precomputed volume, with injected
truth.

    python -m nbhelpers.microns.miniature --cache-folder data/microns_miniature

The real caveclient and tensorstore work against it as against MICrONS, so that notebook 01 can be
taught without a token and without a network. Nothing in it is biology: the volume is the synapse
phantom.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.files import sha256_of, sha256_of_file, write_json
from nbhelpers.core.seeds import generator_for
from nbhelpers.imagesets.downloads import whole_folder
from nbhelpers.microns.miniature_server import (
    DATASTACK,
    NUCLEUS_TABLE,
    SYNAPSE_TABLE,
    TABLE_RESOLUTION_NM,
    TOKEN,
    VERSION,
    Miniature,
    Truth,
)
from nbhelpers.microns.tables import CELL_TYPE_TABLES

# What a table says where it does not know; the others say nothing.
UNKNOWN = {"allen_v1_column_types_slanted_ref": "aibs_coarse_unclear"}


@dataclass(frozen=True)
class MiniatureSettings:
    """What a miniature holds: a phantom volume (``shape_px`` z, y, x to ``missing_sections``, see
    :func:`nbhelpers.phantoms.synapse.make_synapse_volume`), and what is wrong with it.

    ``unlabelled``, ``conflicting``: how many of the neurons the cell-type tables do not label, or
    label twice, in two ways. ``missing_chunks``: of mip 0, that the server does not have (404).
    """

    shape_px: Sequence[int] = (64, 768, 768)
    neurons: int = 20
    synapses: int = 240
    seed: int = 0
    missing_sections: Sequence[int] = ()
    unlabelled: int = 2
    conflicting: int = 2
    missing_chunks: int = 0


USUAL = MiniatureSettings()


def miniature(
    settings: MiniatureSettings = USUAL,
    *,
    cache_folder: str | Path | None = None,
    port: int = 0,
    token: str = TOKEN,
    row_cap: int = 500_000,
    volume: object | None = None,
) -> Miniature:
    """Start a miniature of MICrONS on 127.0.0.1.

    Parameters
    ----------
    cache_folder : where the volume is kept, by its settings, so that the next start is quick;
        None: a temporary folder.
    row_cap : rows after which a result is cut.
    volume : use this SynapseVolume instead of making one (then nothing is cached).
    """
    temporary = None
    if cache_folder is None or volume is not None:
        temporary = Path(tempfile.mkdtemp(prefix="nbhelpers-miniature-"))
    try:
        if volume is not None:
            folder = _write(volume, temporary / "volume", settings)
        else:
            key = sha256_of([asdict(settings), _hash_of_makers()])[:16]
            folder = Path(cache_folder or temporary) / key
            if not (folder / "about.json").is_file():
                from nbhelpers.phantoms.synapse import make_synapse_volume

                names = ("shape_px", "neurons", "synapses", "seed", "missing_sections")
                wanted = {name: getattr(settings, name) for name in names}
                _write(make_synapse_volume(**wanted), folder, settings)
        truth = _truth(folder)
        tables = _tables(truth, settings.seed)
        return Miniature(truth, tables, port=port, token=token, row_cap=row_cap, scratch=temporary)
    except BaseException:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


# raise it when the same phantom comes to be served in another way: tables, chunks, files
LAYOUT = "layout 2"


def _hash_of_makers() -> str:
    """Changes when the code that draws the volume changes: an old cached volume is
    not used then."""
    import nbhelpers.phantoms

    files = sorted(Path(nbhelpers.phantoms.__file__).parent.glob("synapse*.py"))
    return hashlib.sha256(
        b"".join([LAYOUT.encode(), *(path.read_bytes() for path in files)])
    ).hexdigest()


def _write(volume: object, folder: Path, settings: MiniatureSettings) -> Path:
    """Everything that is kept of a volume, in a folder that appears only when it is complete."""
    names = ("unlabelled", "conflicting", "missing_chunks", "seed")
    injected = {name: getattr(settings, name) for name in names}
    with whole_folder(folder) as temporary:
        z, y, x = getattr(volume, "voxel_nm", (40.0, 8.0, 8.0))
        voxel_nm = (float(x), float(y), float(z))
        np.save(temporary / "pixels.npy", volume.pixels)
        write_precomputed(
            volume.pixels, temporary / "image", voxel_nm=voxel_nm, origin_nm=volume.origin_nm
        )
        rng = generator_for(settings.seed, "miniature, missing chunks")
        chunks = sorted((temporary / "image" / _scale_key(voxel_nm)).iterdir())
        for chunk in rng.permutation(len(chunks))[: settings.missing_chunks]:
            chunks[chunk].unlink()
        neurons = _with_states(volume.neurons, settings)
        neurons.to_parquet(temporary / "neurons.parquet", index=False)
        volume.synapses.to_parquet(temporary / "synapses.parquet", index=False)
        about = {"origin_nm": tuple(volume.origin_nm), "voxel_nm": voxel_nm, **injected}
        pixels = sha256_of_file(temporary / "pixels.npy")
        tables = [
            hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()
            for table in (volume.neurons, volume.synapses)
        ]
        identity = sha256_of([LAYOUT, about, pixels, *tables])
        # which miniature it is of: its tables must not be used with the volume of another one
        info = temporary / "image" / "info"
        content = json.loads(info.read_text(encoding="utf-8"))
        info.write_text(json.dumps({**content, "served": identity}), encoding="utf-8")
        write_json(temporary / "about.json", {**about, "identity": identity})
    return folder


def _scale_key(voxel_nm: Sequence[float]) -> str:
    return "_".join(f"{step:g}" for step in voxel_nm)


def write_precomputed(
    pixels: np.ndarray,
    folder: str | Path,
    *,
    voxel_nm: Sequence[float] = (8, 8, 40),
    origin_nm: Sequence[float] = (0, 0, 0),
) -> None:
    """Write a Neuroglancer precomputed volume of raw chunks of 64 x 64 x 16 voxels, three mips,
    each halved in x and y.

    ``pixels`` is (z, y, x) uint8; ``voxel_nm`` and ``origin_nm`` are x, y, z. Raises InputError
    when the origin is not a whole number of voxels.
    """
    import tensorstore as ts

    offset = np.asarray(origin_nm, dtype=np.float64) / np.asarray(voxel_nm, dtype=np.float64)
    if not np.allclose(offset, np.round(offset), atol=1e-9):
        raise InputError(
            "origin_nm",
            f"{tuple(origin_nm)} is not a whole number of voxels of {tuple(voxel_nm)} nm.",
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def scale(size: list[int], voxel_offset: list[int], resolution: list[float]) -> object:
        return ts.open(
            {
                "driver": "neuroglancer_precomputed",
                "kvstore": {"driver": "file", "path": f"{folder}/"},
                "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
                "scale_metadata": {
                    "key": _scale_key(resolution),
                    "size": size,
                    "voxel_offset": voxel_offset,
                    "resolution": resolution,
                    "encoding": "raw",
                    "chunk_size": [64, 64, 16],
                },
                # a black section is data; a chunk that is not there is a fault
                "store_data_equal_to_fill_value": True,
                "create": True,
                "open": True,
            }
        ).result()

    resolution = [float(step) for step in voxel_nm]
    store = scale(list(pixels.shape[::-1]), [round(step) for step in offset], resolution)
    store[..., 0].write(pixels.transpose(2, 1, 0)).result()
    for _ in range(2):
        smaller = ts.downsample(store, [2, 2, 1, 1], "mean")
        resolution = [2 * resolution[0], 2 * resolution[1], resolution[2]]
        store = scale(list(smaller.shape[:3]), list(smaller.domain.inclusive_min[:3]), resolution)
        store.write(smaller.read().result()).result()


def _with_states(neurons: pd.DataFrame, settings: MiniatureSettings) -> pd.DataFrame:
    """The neurons with their injected ``state``; taken from the larger class first, so that both
    stay usable.
    """
    wanted = {"unlabelled": settings.unlabelled, "conflicting": settings.conflicting}
    draw = generator_for(settings.seed, "miniature, states")
    order = draw.permutation(len(neurons))
    left = {
        name: [at for at in order if neurons["cell_type"].iloc[at] == name]
        for name in ("excitatory", "inhibitory")
    }
    if sum(wanted.values()) > len(neurons) - 4:
        raise ParameterError(
            "parameters unlabelled, conflicting",
            f"{wanted} of {len(neurons)} neurons leave fewer than four.",
            "Inject fewer, or make more neurons.",
        )
    state = np.full(len(neurons), "labelled", dtype=object)
    for name, number in wanted.items():
        for _ in range(number):
            state[max(left.values(), key=len).pop()] = name
    if left["inhibitory"]:
        state[left["inhibitory"][0]] = "mislabelled"
    return neurons.assign(state=state).reset_index(drop=True)


def _truth(folder: Path) -> Truth:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return Truth(
        pd.read_parquet(folder / "neurons.parquet"),
        pd.read_parquet(folder / "synapses.parquet"),
        tuple(about["origin_nm"]),
        tuple(about["voxel_nm"]),
        folder,
        about["identity"],
    )


GLIA = 3  # cells without synapses that the tables call non-neuronal
_CREATED = pd.Timestamp("2020-11-04 11:02:08.388988", tz="UTC")


def _tables(truth: Truth, seed: int) -> dict[str, pd.DataFrame]:
    """The tables as CAVE stores them: points in voxels of 4 x 4 x 40 nm, cell types as references
    to nuclei.
    """
    neurons = truth.neurons
    rng = generator_for(seed, "miniature, tables")
    middle = neurons[["x_nm", "y_nm", "z_nm"]].mean()
    glia = pd.DataFrame(
        {
            "root_id": neurons["root_id"].max() + 1 + np.arange(GLIA),
            "nucleus_id": neurons["nucleus_id"].max() + 1 + np.arange(GLIA),
            "cell_type": "other",
            "state": "labelled",
            **{name: middle[name] + rng.uniform(-500, 500, GLIA) for name in middle.index},
        }
    )
    # every second conflict: a second nucleus, called the other class, in the same segment (a merge
    # error)
    other = {"excitatory": "inhibitory", "inhibitory": "excitatory"}
    conflicts = neurons[neurons["state"] == "conflicting"]
    conflicts = conflicts.assign(cell_type=conflicts["cell_type"].map(other))
    twice = conflicts.iloc[0::2]
    merged = conflicts.iloc[1::2]
    merged = merged.assign(nucleus_id=glia["nucleus_id"].max() + 1 + np.arange(len(merged)))

    nuclei = pd.concat([neurons, glia, merged], ignore_index=True)
    tables = {
        NUCLEUS_TABLE: pd.DataFrame(
            {
                "id": nuclei["nucleus_id"],
                "created": _CREATED,
                "valid": "t",
                **_position(nuclei, "", "pt_position"),
                "pt_root_id": nuclei["root_id"],
            }
        )
    }
    cells = pd.concat([nuclei, twice], ignore_index=True)
    for table, known in CELL_TYPE_TABLES.items():
        words = {kind: word for word, kind in known.words.items()}
        kinds = cells["cell_type"]
        if table == "aibs_metamodel_celltypes_v661":
            kinds = kinds.mask(cells["state"] == "mislabelled", "excitatory")
        word = kinds.map(words).mask(cells["state"] == "unlabelled", UNKNOWN.get(table))
        rows = cells[kinds.isin(words)]
        (other_column,) = {"cell_type", "classification_system"} - {known.column}
        tables[table] = pd.DataFrame(
            {
                "id": np.arange(1, len(rows) + 1),
                "created": _CREATED,
                "valid": "t",
                "target_id": rows["nucleus_id"],
                known.column: word.loc[rows.index],
                other_column: "miniature",
            }
        ).reset_index(drop=True)
    synapses = truth.synapses
    tables[SYNAPSE_TABLE] = pd.DataFrame(
        {
            "id": synapses["id"],
            "created": _CREATED,
            "valid": "t",
            **_position(synapses, "pre_", "pre_pt_position"),
            **_position(synapses, "post_", "post_pt_position"),
            **_position(synapses, "", "ctr_pt_position"),
            "size": synapses["size"].astype(np.float64),
            "pre_pt_root_id": synapses["pre_root_id"],
            "post_pt_root_id": synapses["post_root_id"],
        }
    )
    return tables


def _position(table: pd.DataFrame, prefix: str, name: str) -> dict[str, np.ndarray]:
    # the voxel that holds the place, as in CAVE: the nearest corner may be that of the next section
    return {
        f"{name}_{axis}": np.floor(table[f"{prefix}{axis}_nm"].to_numpy() / step + 1e-6).astype(
            np.int64
        )
        for axis, step in zip("xyz", TABLE_RESOLUTION_NM, strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: serve until it is interrupted."""
    import signal

    parser = argparse.ArgumentParser(
        prog="python -m nbhelpers.microns.miniature", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--cache-folder", default="data/microns_miniature", help="where made volumes are kept"
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    parser.add_argument(
        "--shape", type=int, nargs=3, default=USUAL.shape_px, metavar=("Z", "Y", "X")
    )
    parser.add_argument("--neurons", type=int, default=USUAL.neurons)
    parser.add_argument("--synapses", type=int, default=USUAL.synapses)
    parser.add_argument("--seed", type=int, default=USUAL.seed)
    given = parser.parse_args(arguments)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    settings = MiniatureSettings(tuple(given.shape), given.neurons, given.synapses, given.seed)
    try:
        with miniature(settings, cache_folder=given.cache_folder, port=given.port) as server:
            print(
                f'server_address = "{server.address}"',
                f'token = "{TOKEN}"',
                f'datastack = "{DATASTACK}"',
                f"version = {VERSION}",
                f'image_url = "{server.image_url}"',
                "Serving; interrupt (Ctrl+C) to stop.",
                sep="\n",
                flush=True,
            )
            threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    except InputError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
