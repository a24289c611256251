"""How many injected defects the audit finds, and how often it accuses a clean set, on phantoms of
three kinds.

    # about half an hour on one core
    .venv/bin/python benchmarks/audit_injected.py --sets 10 --clean 200
    # and how long copies take to find
    .venv/bin/python benchmarks/audit_injected.py --images 100000

Writes benchmarks/results/audit_injected.json with both tables, audit_injected.csv with the defects,
and a sentence.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from nbhelpers.audit import duplicates, injected
from nbhelpers.core.files import whole_file, write_json
from nbhelpers.core.intervals import share_interval
from nbhelpers.reports import manifest

ROOT = Path(__file__).resolve().parent.parent


def time_copies(count: int, seed: int) -> dict:
    """Seconds and memory for near-duplicates among ``count`` images of 128 x 128 px on disk, one in
    a hundred a copy.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.lib.format.open_memmap(
            Path(folder) / "pixels.npy", "w+", np.uint8, (count, 1, 128, 128)
        )
        for start in range(0, count, 1000):
            noise = rng.normal(size=(min(1000, count - start), 1, 128, 128)).astype(np.float32)
            noise = gaussian_filter(noise, (0, 0, 3, 3))
            pixels[start : start + 1000] = np.clip(128 + 400 * noise, 0, 255)
        injected_copies = [(at, at + count // 2) for at in range(0, count // 2, 100)]
        for one, other in injected_copies:
            pixels[other] = pixels[one][..., ::-1]
        before = manifest.peak_memory_bytes()
        started = time.monotonic()
        one, other, _, _ = duplicates.near_pairs(pixels)
        seconds = time.monotonic() - started
    found = set(zip(one.tolist(), other.tolist(), strict=True))
    return {
        "images": count,
        "seconds": seconds,
        "memory_mb": (manifest.peak_memory_bytes() - before) / 2**20,
        "injected": len(injected_copies),
        "found": sum(pair in found for pair in injected_copies),
        "false": len(found - set(injected_copies)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=10, help="sets per defect")
    parser.add_argument("--clean", type=int, default=200)
    parser.add_argument(
        "--phantoms", type=int, default=900, help="images of each kind that sets are drawn from"
    )
    parser.add_argument("--images", type=int, default=0, help="also time this many images")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "audit_injected.json"
    )
    options = parser.parse_args()
    pools = injected.pools(options.phantoms, options.seed, ROOT / "data")
    report = lambda text: print(text, flush=True)  # noqa: E731
    defects, alarms = injected.campaign(
        pools, sets=options.sets, clean=options.clean, seed=options.seed, report=report
    )
    hits = int(defects["found"].sum())
    total = int(defects["injected"].sum())
    low, high = share_interval(hits / total, total)
    accused = alarms[alarms["check"] == "any check"].iloc[0]
    speed = time_copies(options.images, options.seed) if options.images else None
    sentence = (
        f"The audit finds {hits} of {total} injected defects ({hits / total:.3f} [{low:.3f}, "
        f"{high:.3f}]) and accuses "
        f"{accused['alarms']} of {accused['clean sets']} clean sets of phantoms "
        f"({accused['share']:.3f} "
        f"[{accused['low']:.3f}, {accused['high']:.3f}]) wrongly."
    )
    if speed:
        sentence += (
            f" Near-duplicates among {speed['images']:,} images of 128 px take "
            f"{speed['seconds'] / 60:.1f} min and "
            f"{speed['memory_mb']:.0f} MB; {speed['found']} of {speed['injected']} mirrored copies "
            f"found."
        )
    write_json(
        options.out,
        {
            "defects": defects.to_dict("records"),
            "clean": alarms.to_dict("records"),
            "speed": speed,
            "device": manifest.device(),
            "versions": manifest.versions(),
            "sentence": sentence,
        },
    )
    with whole_file(options.out.with_suffix(".csv")) as temporary:
        defects.to_csv(temporary, index=False)
    print(sentence)


if __name__ == "__main__":
    main()
