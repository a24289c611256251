"""The offline miniature: a loopback server that speaks CAVE and a precomputed volume, with injected
truth.

    python -m nbhelpers.microns.miniature --cache-folder data/microns_miniature

The real caveclient and tensorstore work against it as against MICrONS, so that notebook 01 can be
taught without a token and without a network. Nothing in it is biology: the volume is the synapse
phantom.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.files import sha256_of, sha256_of_file, write_json
from nbhelpers.core.seeds import derive_seed
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

# table -> column with the class, what the table calls excitatory, inhibitory, glia, and "I do not
# know"
CLASS_WORDS = {
    "allen_v1_column_types_slanted_ref": (
        "classification_system",
        "aibs_coarse_excitatory",
        "aibs_coarse_inhibitory",
        "aibs_coarse_nonneuronal",
        "aibs_coarse_unclear",
    ),
    "baylor_log_reg_cell_type_coarse_v1": ("cell_type", "excitatory", "inhibitory", None, None),
    "aibs_metamodel_celltypes_v661": (
        "classification_system",
        "excitatory_neuron",
        "inhibitory_neuron",
        "nonneuron",
        None,
    ),
}


def miniature(
    *,
    cache_folder: str | Path | None = None,
    shape_px: Sequence[int] = (64, 768, 768),
    neurons: int = 20,
    synapses: int = 240,
    seed: int = 0,
    difficulty: float = 1.0,
    unlabelled: int = 2,
    conflicting: int = 2,
    missing_sections: Sequence[int] = (),
    shifted_sections: Sequence[int] | Mapping[int, tuple[int, int]] = (),
    missing_chunks: int = 0,
    port: int = 0,
    token: str = TOKEN,
    latency_ms: float = 0.0,
    row_cap: int = 500_000,
    volume: object | None = None,
) -> Miniature:
    """Start a miniature of MICrONS on 127.0.0.1.

    Parameters
    ----------
    cache_folder : where the volume is kept, by its parameters, so that the next start is quick;
        None: a temporary folder.
    shape_px, neurons, synapses, seed, difficulty, missing_sections, shifted_sections : of the
        phantom volume.
    unlabelled, conflicting : how many of the neurons the cell-type tables do not label, or label
        twice, unlike.
    missing_chunks : chunks of mip 0 that the server does not have (404).
    latency_ms : a pause before each reply, for benchmarks. row_cap : rows after which a result is
        cut.
    volume : use this SynapseVolume instead of making one (then nothing is cached).
    """
    temporary = None
    if cache_folder is None or volume is not None:
        temporary = Path(tempfile.mkdtemp(prefix="nbhelpers-miniature-"))
    injected = {
        "unlabelled": unlabelled,
        "conflicting": conflicting,
        "missing_chunks": missing_chunks,
        "seed": seed,
    }
    try:
        if volume is not None:
            folder = _write(volume, temporary / "volume", injected)
        else:
            wanted = {
                "shape_px": tuple(shape_px),
                "neurons": neurons,
                "synapses": synapses,
                "seed": seed,
                "difficulty": difficulty,
                "missing_sections": tuple(missing_sections),
                "shifted_sections": dict(shifted_sections)
                if isinstance(shifted_sections, Mapping)
                else tuple(shifted_sections),
            }
            folder = (
                Path(cache_folder or temporary)
                / sha256_of([wanted, injected, _hash_of_makers()])[:16]
            )
            if not (folder / "about.json").is_file():
                from nbhelpers.phantoms.synapse import make_synapse_volume

                _write(make_synapse_volume(**wanted), folder, injected)
        truth = _truth(folder)
        made = Miniature(
            truth,
            _tables(truth, seed),
            port=port,
            token=token,
            latency_s=latency_ms / 1000,
            row_cap=row_cap,
        )
    except BaseException:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if temporary:
        stop = made.close

        def close() -> None:
            stop()
            shutil.rmtree(temporary, ignore_errors=True)

        made.close = close
    return made


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


def _write(volume: object, folder: Path, injected: dict[str, int]) -> Path:
    """Everything that is kept of a volume, in a folder that appears only when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    temporary = holder / "complete"  # others may read it, unlike the folder that mkdtemp makes
    try:
        temporary.mkdir()
        z, y, x = getattr(volume, "voxel_nm", (40.0, 8.0, 8.0))
        voxel_nm = (float(x), float(y), float(z))
        np.save(temporary / "pixels.npy", volume.pixels)
        write_precomputed(
            volume.pixels, temporary / "image", voxel_nm=voxel_nm, origin_nm=volume.origin_nm
        )
        rng = np.random.default_rng(derive_seed(injected["seed"], "miniature, missing chunks"))
        chunks = sorted((temporary / "image" / _scale_key(voxel_nm)).iterdir())
        for chunk in rng.permutation(len(chunks))[: injected["missing_chunks"]]:
            chunks[chunk].unlink()
        _with_states(volume.neurons, injected).to_parquet(
            temporary / "neurons.parquet", index=False
        )
        volume.synapses.to_parquet(temporary / "synapses.parquet", index=False)
        about = {"origin_nm": tuple(volume.origin_nm), "voxel_nm": voxel_nm, **injected}
        identity = sha256_of(
            [
                LAYOUT,
                about,
                sha256_of_file(temporary / "pixels.npy"),
                *(
                    hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()
                    for table in (volume.neurons, volume.synapses)
                ),
            ]
        )
        _name(temporary / "image" / "info", identity)
        write_json(temporary / "about.json", {**about, "identity": identity})
        try:
            temporary.replace(folder)
        except OSError:
            if not (
                folder / "about.json"
            ).is_file():  # else another process was quicker, with the same content
                raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)
    return folder


def _name(info: Path, identity: str) -> None:
    """Write into the volume which miniature it is of: its tables must not be used with the volume
    of another one.
    """
    info.write_text(
        json.dumps({**json.loads(info.read_text(encoding="utf-8")), "served": identity}),
        encoding="utf-8",
    )


def _scale_key(voxel_nm: Sequence[float]) -> str:
    return "_".join(f"{step:g}" for step in voxel_nm)


def write_precomputed(
    pixels: np.ndarray,
    folder: str | Path,
    *,
    voxel_nm: Sequence[float] = (8, 8, 40),
    origin_nm: Sequence[float] = (0, 0, 0),
    mips: int = 3,
    chunk_px: Sequence[int] = (64, 64, 16),
) -> None:
    """Write a Neuroglancer precomputed volume of raw chunks, each mip halved in x and y.

    ``pixels`` is (z, y, x) uint8; ``voxel_nm``, ``origin_nm`` and ``chunk_px`` are x, y, z. Raises
    InputError when the origin is not a whole number of voxels.
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
                    "chunk_size": list(chunk_px),
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
    for _ in range(1, mips):
        smaller = ts.downsample(store, [2, 2, 1, 1], "mean")
        resolution = [2 * resolution[0], 2 * resolution[1], resolution[2]]
        store = scale(list(smaller.shape[:3]), list(smaller.domain.inclusive_min[:3]), resolution)
        store.write(smaller.read().result()).result()


def _with_states(neurons: pd.DataFrame, injected: dict[str, int]) -> pd.DataFrame:
    """The neurons with their injected ``state``; taken from the larger class first, so that both
    stay usable.
    """
    unlabelled = injected["unlabelled"]
    conflicting = injected["conflicting"]
    order = np.random.default_rng(derive_seed(injected["seed"], "miniature, states")).permutation(
        len(neurons)
    )
    left = {
        name: [at for at in order if neurons["cell_type"].iloc[at] == name]
        for name in ("excitatory", "inhibitory")
    }
    if unlabelled < 0 or conflicting < 0 or unlabelled + conflicting > len(neurons) - 4:
        raise ParameterError(
            "parameters unlabelled, conflicting",
            f"{unlabelled} and {conflicting} of {len(neurons)} neurons leave fewer than four.",
            "Plant fewer, or make more neurons.",
        )
    state = np.full(len(neurons), "labelled", dtype=object)
    for name, number in (("unlabelled", unlabelled), ("conflicting", conflicting)):
        for _ in range(number):
            state[max(left.values(), key=len).pop()] = name
    if left["inhibitory"]:
        state[left["inhibitory"][0]] = "mislabelled"
    return neurons.assign(state=state).reset_index(drop=True)


def _truth(folder: Path) -> Truth:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    neurons = pd.read_parquet(folder / "neurons.parquet")
    counts = {}
    for table in CLASS_WORDS:
        wrong = (neurons["state"] == "mislabelled") & (table == "aibs_metamodel_celltypes_v661")
        named = neurons["cell_type"].where(~wrong, "excitatory")[
            neurons["state"].isin(["labelled", "mislabelled"])
        ]
        glia = GLIA if CLASS_WORDS[table][3] else 0
        counts[table] = {
            "excitatory": int((named == "excitatory").sum()),
            "inhibitory": int((named == "inhibitory").sum()),
            "unlabelled": int((neurons["state"] == "unlabelled").sum()),
            "conflicting": int((neurons["state"] == "conflicting").sum()),
            "other": glia,
        }
    return Truth(
        neurons,
        pd.read_parquet(folder / "synapses.parquet"),
        tuple(about["origin_nm"]),
        tuple(about["voxel_nm"]),
        counts,
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
    rng = np.random.default_rng(derive_seed(seed, "miniature, tables"))
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
    conflicts = np.flatnonzero(neurons["state"] == "conflicting")
    merged = neurons.iloc[conflicts[1::2]].copy()
    merged["nucleus_id"] = glia["nucleus_id"].max() + 1 + np.arange(len(merged))
    merged["cell_type"] = merged["cell_type"].map(
        {"excitatory": "inhibitory", "inhibitory": "excitatory"}
    )
    twice = neurons.iloc[conflicts[0::2]].copy()
    twice["cell_type"] = twice["cell_type"].map(
        {"excitatory": "inhibitory", "inhibitory": "excitatory"}
    )

    nuclei = pd.concat([neurons, glia, merged], ignore_index=True)
    tables = {
        NUCLEUS_TABLE: pd.DataFrame(
            {
                "id": nuclei["nucleus_id"],
                "created": _CREATED,
                "valid": "t",
                "volume": np.round(rng.uniform(200, 500, len(nuclei)), 2),
                **_position(nuclei, "", "pt_position"),
                "pt_supervoxel_id": nuclei["root_id"] - 864 * 10**12,
                "pt_root_id": nuclei["root_id"],
            }
        )
    }
    cells = pd.concat([nuclei, twice], ignore_index=True)
    for table, (column, excitatory, inhibitory, other, unknown) in CLASS_WORDS.items():
        kinds = cells["cell_type"]
        if table == "aibs_metamodel_celltypes_v661":
            kinds = kinds.mask(cells["state"] == "mislabelled", "excitatory")
        word = kinds.map({"excitatory": excitatory, "inhibitory": inhibitory, "other": other})
        word = word.mask(cells["state"] == "unlabelled", unknown)
        rows = cells if other else cells[kinds != "other"]
        other_column = "cell_type" if column == "classification_system" else "classification_system"
        tables[table] = pd.DataFrame(
            {
                "id": np.arange(1, len(rows) + 1),
                "created": _CREATED,
                "valid": "t",
                "target_id": rows["nucleus_id"],
                column: word.loc[rows.index],
                other_column: "miniature",
            }
        ).reset_index(drop=True)
    synapses = truth.synapses
    tables[SYNAPSE_TABLE] = pd.DataFrame(
        {
            "id": synapses["id"],
            "created": _CREATED,
            "superceded_id": np.nan,
            "valid": "t",
            **_position(synapses, "pre_", "pre_pt_position"),
            **_position(synapses, "post_", "post_pt_position"),
            **_position(synapses, "", "ctr_pt_position"),
            "size": synapses["size"].astype(np.float64),
            "pre_pt_supervoxel_id": synapses["pre_root_id"] - 864 * 10**12,
            "pre_pt_root_id": synapses["pre_root_id"],
            "post_pt_supervoxel_id": synapses["post_root_id"] - 864 * 10**12,
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
        "--shape", type=int, nargs=3, default=(64, 768, 768), metavar=("Z", "Y", "X")
    )
    parser.add_argument("--neurons", type=int, default=20)
    parser.add_argument("--synapses", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--difficulty", type=float, default=1.0)
    parser.add_argument(
        "--latency-ms", type=float, default=0.0, help="pause before each reply, for benchmarks"
    )
    parser.add_argument(
        "--row-cap", type=int, default=500_000, help="rows after which a result is cut"
    )
    parser.add_argument("--token", default=TOKEN, help="what clients must send; no secret")
    given = parser.parse_args(arguments)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        with miniature(
            cache_folder=given.cache_folder,
            shape_px=given.shape,
            neurons=given.neurons,
            synapses=given.synapses,
            seed=given.seed,
            difficulty=given.difficulty,
            port=given.port,
            latency_ms=given.latency_ms,
            row_cap=given.row_cap,
            token=given.token,
        ) as server:
            token = (
                f'token = "{TOKEN}"\n' if given.token == TOKEN else ""
            )  # one that was given stays with its giver
            print(
                f'server_address = "{server.address}"\n{token}datastack = "{DATASTACK}"\nversion = '
                f"{VERSION}\n"
                f'image_url = "{server.image_url}"\nServing; interrupt (Ctrl+C) to stop.',
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
