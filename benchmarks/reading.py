"""What the checks of the reader cost: files read by the package against the bare decoder.

    .venv/bin/python benchmarks/reading.py
    .venv/bin/python benchmarks/reading.py --before ../another_checkout

Each kind of file is read by both in turn, once a round; the figure is the median ratio of a round.
With ``--before`` (a checkout of an earlier state, whose package must read the same files) the same
is measured there in turn with this one, and ``times_before`` is what reading costs now in units of
what it cost then. Writes benchmarks/results/reading.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 200  # of each kind, each round
KINDS = {
    "PNG, grey, 128 px": (".png", (128, 128), {}),
    "PNG, colour, 224 px": (".png", (224, 224, 3), {}),
    "JPEG, colour, 224 px": (".jpg", (224, 224, 3), {}),
    "TIFF, plain, 16 bit, 256 px": (".tif", (256, 256), {}),
    "TIFF, LZW, 256 px": (".tif", (256, 256), {"compression": "lzw"}),
    "TIFF, Deflate, 16 bit, 512 px": (".tif", (512, 512), {"compression": "zlib"}),
}
STACK = "TIFF stack, 12 x 128 x 128"
TABLE = "label table of 5,000 images"


def write_files(folder: Path) -> None:
    """The same files each time: smooth structure with noise, as micrographs have."""
    draw = np.random.default_rng(0)
    for number, (suffix, shape, more) in enumerate(KINDS.values()):
        deep = "16 bit" in list(KINDS)[number]
        wave = 60 * np.sin(np.arange(shape[1]) / 9)[:, None] if len(shape) == 3 else 0
        values = 128 + wave + draw.normal(0, 12, shape)
        pixels = np.clip(values, 0, 255).astype(np.uint8)
        path = folder / f"{number}{suffix}"
        if suffix == ".tif":
            tifffile.imwrite(path, pixels.astype(np.uint16) * 200 if deep else pixels, **more)
        else:
            Image.fromarray(pixels).save(path, quality=90)
    stack = np.clip(draw.normal(128, 20, (12, 128, 128)), 1, 255).astype(np.uint8)
    tifffile.imwrite(folder / "stack.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    (folder / "many").mkdir()
    for number in range(5000):
        (folder / "many" / f"{number}.png").touch()
    table = pd.DataFrame({"path": [f"many/{number}.png" for number in range(5000)]})
    table["label"] = np.where(table.index % 2, "a", "b")
    table["group"] = [f"neuron {number // 10}" for number in range(5000)]
    table.to_csv(folder / "labels.csv", index=False)


def bare(path: Path) -> np.ndarray:
    if path.suffix == ".tif":
        return tifffile.imread(path)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return np.asarray(image)


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds of the quickest block of one round: by the package and by the bare decoder."""
    from nbhelpers.imagesets.folder import read_label_table
    from nbhelpers.imagesets.own_cubes import read_cube
    from nbhelpers.imagesets.reader import read_image

    def seconds(read: Callable, path: Path, times: int) -> float:
        read(path)
        quickest = float("inf")
        # of several blocks: where memory is taken from makes single ones a sixth slower
        for _ in range(min(5, times)):
            start = time.perf_counter()
            for _ in range(max(1, times // 5)):
                read(path)
            quickest = min(quickest, time.perf_counter() - start)
        return quickest

    found = {}
    for number, (kind, (suffix, *_)) in enumerate(KINDS.items()):
        path = folder / f"{number}{suffix}"
        found[kind] = {
            "ours": seconds(read_image, path, IMAGES),
            "bare": seconds(bare, path, IMAGES),
        }
    path = folder / "stack.tif"
    found[STACK] = {"ours": seconds(read_cube, path, 50), "bare": seconds(bare, path, 50)}
    path = folder / "labels.csv"
    found[TABLE] = {
        "ours": seconds(read_label_table, path, 1),
        "bare": seconds(pd.read_csv, path, 1),
    }
    return found


def in_checkout(checkout: Path, folder: Path) -> dict[str, dict[str, float]]:
    """:func:`measured` in a process of its own, with the package of that checkout."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(folder)],
        env=os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier state")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measured(asked.measure)))
        return
    checkouts = {"now": ROOT} | ({"before": asked.before} if asked.before else {})
    rounds: dict[str, list] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        for number in range(asked.rounds):
            # the order turns, so that a machine that slows down favours neither
            for name in list(checkouts)[:: -1 if number % 2 else 1]:
                rounds[name].append(in_checkout(checkouts[name], Path(folder)))
    rows = []
    for kind in [*KINDS, STACK, TABLE]:
        ours = {name: [one[kind]["ours"] for one in rounds[name]] for name in rounds}
        row = {
            "kind": kind,
            "times_bare": statistics.median(
                one[kind]["ours"] / one[kind]["bare"] for one in rounds["now"]
            ),
        }
        if asked.before:
            pairs = zip(ours["now"], ours["before"], strict=True)
            row["times_before"] = statistics.median(now / before for now, before in pairs)
        rows.append({name: round(v, 3) if name != "kind" else v for name, v in row.items()})
    print(pd.DataFrame(rows).to_string(index=False))
    from nbhelpers.core.files import write_json
    from nbhelpers.reports.manifest import device

    about = {"rounds": asked.rounds, "device": device(), "kinds": rows}
    write_json(ROOT / "benchmarks" / "results" / "reading.json", about)


if __name__ == "__main__":
    main()
