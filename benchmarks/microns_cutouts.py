"""How fast cubes are cut out of a precomputed volume over HTTP, against the two usual ways, in one
run (A B C A B C).

The volume is noise, in chunks of 128 x 128 x 16 voxels, served on the loopback interface by a
process of its own that waits 30 ms before each answer. Cubes of 64 x 64 x 16 voxels lie densely in
it, so that they share chunks.

A, per plane: one read per section of each cube, without a cache, as the original extraction did. It
   has no memory, so that a part of the cubes is timed and the time per cube is taken.
B, cloud-volume: one read per cube, without a cache. It is no dependency of this collection, and
   runs in an environment of its own: --cloudvolume-python PATH. Without it, B is left out and the
   reason is written down.
C, ours: all cubes as one plan of :class:`nbhelpers.microns.cutouts.Volume`, opened anew each time.

Each reader's cubes are compared bit for bit with the array that was written. Then, with ours alone:
cubes a second against the number of requests under way, requests per distinct chunk of a volume of
which a smaller and smaller part fits into the cache, and the peak memory of a whole extraction of
1,000 to 100,000 synapses.

    .venv/bin/python benchmarks/microns_cutouts.py --cloudvolume-python OTHER/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "microns")]

from volume_server import chunks_of, write_volume  # noqa: E402

from nbhelpers.core.files import write_json  # noqa: E402
from nbhelpers.microns.cutouts import Volume  # noqa: E402
from nbhelpers.microns.dataset import CLASSES, Cutout, Origin, extract  # noqa: E402
from nbhelpers.microns.points import Points  # noqa: E402

VOXEL_NM = (40.0, 8.0, 8.0)
FIRST = (0, 0, 0)
CHUNK = (16, 128, 128)
CUBE = (16, 64, 64)
# the large one does not fit into the cache of the memory curve
SHAPE = (64, 768, 768)
LARGE = (128, 1536, 1536)

CLOUDVOLUME = """
import hashlib, json, sys, time
from importlib.metadata import version
from cloudvolume import CloudVolume
url, starts, shape = json.loads(sys.stdin.read())
began = time.perf_counter()
volume = CloudVolume("precomputed://" + url, mip=0, progress=False, cache=False, lru_bytes=0)
digest = hashlib.sha256()
for z, y, x in starts:
    cube = volume[x:x + shape[2], y:y + shape[1], z:z + shape[0]]
    digest.update(cube[..., 0].transpose(2, 1, 0).tobytes())
print(json.dumps([time.perf_counter() - began, digest.hexdigest(), version("cloud-volume")]))
"""


@contextlib.contextmanager
def serving(folder, latency_ms):
    """Address of a server process."""
    script = ROOT / "tests" / "microns" / "volume_server.py"
    process = subprocess.Popen(
        [sys.executable, script, folder, "--latency-ms", str(latency_ms)],
        text=True,
        stdout=subprocess.PIPE,
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def requests_so_far(address):
    with urllib.request.urlopen(f"{address}/_requests") as answer:
        return int(answer.read())


def per_plane(address, starts):
    """One request for each chunk of each section, one section after the other."""
    import tensorstore as ts

    began = time.perf_counter()
    digest = hashlib.sha256()
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": address,
            "scale_index": 0,
            "context": {"cache_pool": {"total_bytes_limit": 0}},
        },
        open=True,
        read=True,
    ).result()
    for z, y, x in starts:
        cube = [
            store[x : x + CUBE[2], y : y + CUBE[1], section, 0].read().result().T
            for section in range(z, z + CUBE[0])
        ]
        digest.update(np.stack(cube).tobytes())
    return time.perf_counter() - began, digest.hexdigest()


def cloudvolume(python, address, starts):
    done = subprocess.run(
        [python, "-c", CLOUDVOLUME],
        input=json.dumps([address, starts, CUBE]),
        text=True,
        capture_output=True,
        check=True,
    )
    seconds, digest, release = json.loads(done.stdout.splitlines()[-1])
    return seconds, digest, release


def ours(address, starts, concurrency=32):
    began = time.perf_counter()
    volume = Volume.open(f"precomputed://{address}", concurrency=concurrency)
    centres = np.array(starts) + np.array(CUBE) // 2 + 0.5
    plan = volume.plan(Points.in_nm((centres * VOXEL_NM)[:, ::-1]), CUBE)
    cut = volume.cut([plan], plan.order)
    digest = hashlib.sha256()
    back = np.argsort(cut.rows)
    seconds = time.perf_counter() - began
    for at in back:
        digest.update(cut.pixels[0][at].tobytes())
    return seconds, digest.hexdigest(), chunks_of(plan, volume.scale)


def compare(folder, array, asked, report):
    rng = np.random.default_rng(0)
    starts = rng.integers(0, np.array(SHAPE) - CUBE + 1, (asked.cubes, 3)).tolist()
    expected = {
        count: hashlib.sha256(
            b"".join(
                array[z : z + CUBE[0], y : y + CUBE[1], x : x + CUBE[2]].tobytes()
                for z, y, x in starts[:count]
            )
        ).hexdigest()
        for count in (asked.cubes, asked.plane_cubes)
    }
    rows: dict[str, list[dict]] = {"per plane": [], "cloud-volume": [], "ours": []}
    with serving(folder, asked.latency_ms) as address:

        def timed(name, count, read):
            before = requests_so_far(address)
            seconds, digest, *rest = read()
            row = {
                "ms_per_cube": 1000 * seconds / count,
                "cubes": count,
                "bit_exact": digest == expected[count],
                "requests": requests_so_far(address) - before,
            }
            rows[name].append(row)
            print(f"{name}: {row}", flush=True)
            return rest

        for _ in range(asked.rounds):
            timed(
                "per plane",
                asked.plane_cubes,
                lambda: per_plane(address, starts[: asked.plane_cubes]),
            )
            if asked.cloudvolume_python:
                (report["cloudvolume"],) = timed(
                    "cloud-volume",
                    asked.cubes,
                    lambda: cloudvolume(asked.cloudvolume_python, address, starts),
                )
            (chunks,) = timed("ours", asked.cubes, lambda: ours(address, starts))
    median = {
        name: statistics.median(row["ms_per_cube"] for row in found)
        for name, found in rows.items()
        if found
    }
    report["readers"] = rows
    report["ms_per_cube"] = median
    report["faster_than_per_plane"] = median["per plane"] / median["ours"]
    report["faster_than_cloudvolume"] = (
        median["cloud-volume"] / median["ours"]
        if asked.cloudvolume_python
        else "not measured: no --cloudvolume-python was given"
    )
    report["distinct_chunks"] = chunks
    # the one request more is the file info
    report["requests_per_distinct_chunk"] = (
        max(row["requests"] - 1 for row in rows["ours"]) / chunks
    )
    return starts


def against_concurrency(folder, starts, asked):
    """Cubes and requests a second against requests under way, with and without latency: the latter
    is the server.
    """
    curves = {}
    for latency in (asked.latency_ms, 0):
        with serving(folder, latency) as address:
            ours(address, starts)  # first reads of the files
            curve = []
            for concurrency in (1, 2, 4, 8, 16, 32, 64):
                seconds, _, chunks = min(
                    (ours(address, starts, concurrency) for _ in range(2)), key=lambda one: one[0]
                )
                curve.append(
                    {
                        "concurrency": concurrency,
                        "cubes_per_s": len(starts) / seconds,
                        "requests_per_s": chunks / seconds,
                    }
                )
                print(f"{latency:g} ms latency: {curve[-1]}", flush=True)
            curves[f"{latency:g} ms latency"] = curve
    return curves


def against_cache(folder):
    """Requests per distinct chunk over HTTP, stack by stack, with caches that hold part of the
    volume only. The order is made for the cache of each row, as it is for the default one; chunks
    of 64 x 64 x 16, cutouts of 57 x 57 x 16."""
    shape = (128, 3072, 3072)
    chunk = (16, 64, 64)
    cutout = np.array((16, 57, 57))
    count = 30_000
    write_volume(folder, [np.ones(shape, np.uint8)], first=FIRST, chunk=chunk, voxel_nm=VOXEL_NM)
    low = np.random.default_rng(2).integers(0, np.array(shape) - cutout + 1, (count, 3))
    points = Points.in_nm(((low + cutout // 2 + 0.5) * VOXEL_NM)[:, ::-1])
    rows = []
    chunk_bytes = int(np.prod(chunk))
    for held in (512, 1024, 4096):
        with serving(folder, 0) as address:
            volume = Volume.open(f"precomputed://{address}", cache_bytes=held * chunk_bytes)
            plan = volume.plan(points, cutout, tile_bytes=held * chunk_bytes)
            before = requests_so_far(address)
            for start in range(0, len(plan.order), 2000):
                volume.cut([plan], plan.order[start : start + 2000])
            chunks = chunks_of(plan, volume.scale)
            rows.append(
                {
                    "cache_mb": held * chunk_bytes / 2**20,
                    "chunks_held": held,
                    "distinct_chunks": chunks,
                    "volume_mb": int(np.prod(shape)) / 2**20,
                    "cutouts": len(plan.order),
                    "requests_per_distinct_chunk": (requests_so_far(address) - before) / chunks,
                }
            )
        print(rows[-1], flush=True)
    return rows


def processor():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or "unknown"


def sentence(report, asked):
    ratio = report["faster_than_cloudvolume"]
    than_cloudvolume = (
        f" and {ratio:.0f} times as fast as cloud-volume {report['cloudvolume']}"
        if isinstance(ratio, float)
        else ""
    )
    default = next(row for row in report["against_cache"] if row["chunks_held"] == 1024)
    return (
        f"Cubes of 64 x 64 x 16 voxels come {report['faster_than_per_plane']:.0f} times as fast as "
        f"plane by plane"
        f"{than_cloudvolume} (n = {asked.cubes} cubes, {asked.plane_cubes} plane by plane; medians "
        f"of {asked.rounds} "
        f"rounds; loopback server with {asked.latency_ms:g} ms latency; "
        f"{report['requests_under_way']} requests under "
        f"way; {report['machine']['cores']} threads of {report['machine']['processor']}), with "
        f"{report['requests_per_distinct_chunk']:.2f} requests per distinct chunk, and "
        f"{default['requests_per_distinct_chunk']:.2f} where the volume is "
        f"{default['volume_mb'] / default['cache_mb']:.0f} times as large as the cache "
        f"(n = {default['cutouts']} cutouts, {default['chunks_held']} chunks in the cache)."
    )


def synapses_in(shape, count):
    rng = np.random.default_rng(1)
    voxels = rng.integers((8, 64, 64), np.array(shape) - (8, 64, 64), (count, 3))
    neuron = rng.integers(0, 200, count)
    table = pd.DataFrame(
        {
            "id": np.arange(count),
            "label": np.where(neuron % 2, *CLASSES),
            "group": neuron.astype(str),
            "pre_root_id": neuron,
            "post_root_id": neuron,
            "nucleus_id": neuron,
        }
    )
    table[["x_nm", "y_nm", "z_nm"]] = ((voxels + 0.5) * VOXEL_NM)[:, ::-1]
    return table


def extraction(place, count):
    """One whole extraction in this process, and the most memory it took: JSON on the last line."""
    volume = Volume.open(f"file://{place}", cache_bytes=128 * 2**20)
    with tempfile.TemporaryDirectory(dir=Path(place).parent) as folder:
        began = time.perf_counter()
        done = extract(
            synapses_in(LARGE, count),
            volume,
            Path(folder) / "set",
            Cutout(patch_px=64, cube_px=(8, 32, 32)),
            Origin("benchmark", "Noise.", True),
            stack_rows=1000,
            report=lambda line: None,
        )
        seconds = time.perf_counter() - began
        assert len(done.synapses) == count
        table = int(done.synapses.memory_usage(deep=True).sum())
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(
        json.dumps(
            {
                "synapses": count,
                "peak_mb": peak / 1024,
                "table_mb": table / 2**20,
                "seconds": seconds,
                "synapses_per_s": count / seconds,
            }
        )
    )


def memory(folder):
    write_volume(folder, [noise(LARGE)], first=FIRST, chunk=CHUNK, voxel_nm=VOXEL_NM)
    curve = []
    for count in (1_000, 10_000, 100_000):
        done = subprocess.run(
            [sys.executable, __file__, "--extraction", folder, str(count)],
            text=True,
            capture_output=True,
            check=True,
        )
        curve.append(json.loads(done.stdout.splitlines()[-1]))
        print(curve[-1], flush=True)
    return curve


def noise(shape):
    return np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cloudvolume-python", help="the Python of an environment with cloud-volume"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cubes", type=int, default=200)
    parser.add_argument(
        "--plane-cubes", type=int, default=15, help="how many of them are read per plane"
    )
    parser.add_argument("--latency-ms", type=float, default=30)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "microns_cutouts.json"
    )
    parser.add_argument("--extraction", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.extraction:
        return extraction(asked.extraction[0], int(asked.extraction[1]))
    report = {
        "what": "cubes of 64 x 64 x 16 voxels from a precomputed volume over loopback HTTP",
        "latency_ms": asked.latency_ms,
        "volume_px": SHAPE,
        "chunk_px": CHUNK,
        "cube_px": CUBE,
        "rounds": asked.rounds,
        "requests_under_way": 32,
        "machine": {
            "cores": os.cpu_count(),
            "processor": processor(),
            "python": sys.version.split()[0],
        },
        "versions": {
            name: version(name) for name in ("tensorstore", "numpy", "tifffile", "pandas")
        },
        "cloudvolume": "absent",
    }
    with tempfile.TemporaryDirectory() as scratch:
        array = noise(SHAPE)
        write_volume(f"{scratch}/volume", [array], first=FIRST, chunk=CHUNK, voxel_nm=VOXEL_NM)
        starts = compare(f"{scratch}/volume", array, asked, report)
        report["against_concurrency"] = against_concurrency(f"{scratch}/volume", starts, asked)
        report["against_cache"] = against_cache(f"{scratch}/wide")
        report["memory"] = {
            "about": "whole extraction (patches 64 px, cubes 8 x 32 x 32, stacks of 1000) from a "
            "local "
            "volume of 128 x 1536 x 1536 voxels, cache of 128 MB",
            "curve": memory(f"{scratch}/large"),
        }
    report["sentence"] = sentence(report, asked)
    write_json(asked.out, report)
    print(report["sentence"])
    print(
        json.dumps(
            {
                key: report[key]
                for key in (
                    "ms_per_cube",
                    "faster_than_per_plane",
                    "faster_than_cloudvolume",
                    "requests_per_distinct_chunk",
                )
            },
            indent=2,
        )
    )
    return None


if __name__ == "__main__":
    main()
