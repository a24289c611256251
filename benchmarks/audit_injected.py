"""How many planted copies and short cuts the audit finds, and how often it accuses a clean set, on
kinds of images that it was not tuned on (benchmarks/audit_kinds.py).

    # about 20 minutes on one idle core
    .venv/bin/python benchmarks/audit_injected.py --copies 2 --short-cuts 1 --clean 10
    # and how long copies take to find
    .venv/bin/python benchmarks/audit_injected.py --images 1000

Writes benchmarks/results/audit_injected.json with all tables and a sentence, and
docs/audit_benchmark.md, which tells how to score another tool on the same images. What the audit
found before a change is kept in the JSON under "before": --before FILE takes it from an older one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import audit_kinds as kinds
import numpy as np
import pandas as pd

from nbhelpers.audit import duplicates
from nbhelpers.audit.placement import Placement
from nbhelpers.audit.question import Question
from nbhelpers.audit.shortcuts import shortcut_checks
from nbhelpers.core import splits
from nbhelpers.core.files import write_json, write_text
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.intervals import share_interval
from nbhelpers.core.seeds import derive_seed
from nbhelpers.reports import manifest

ROOT = Path(__file__).resolve().parent.parent
SEED = 7
CHANNELS = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("one", "two", "three", "four")}


def image_set(pixels: np.ndarray, seed: int) -> ImageSet:
    """These images in groups, with labels that a group has at random."""
    group, label = kinds.dealt(len(pixels), seed)
    table = pd.DataFrame(
        {
            "id": [f"image {number}" for number in range(len(pixels))],
            "label": np.array(["A", "B"], object)[label],
            "group": [f"group {number:03d}" for number in group],
        }
    )
    return ImageSet(
        name="planted",
        table=table,
        pixels=pixels,
        classes=("A", "B"),
        source="audit_kinds.py",
        synthetic=True,
        channels=CHANNELS[pixels.shape[1]],
    )


def score_copies(name: str, pixels: np.ndarray, sets: int) -> list[dict]:
    """Of each kind of copy how many were planted and found; six kinds share a set, three copies
    each (two in small sets).
    """
    every = [*kinds.COPIES, *kinds.FURTHER_COPIES]
    count = 3 if len(pixels) >= 120 else 2
    rows = []
    for number in range(sets):
        for names in (every[at::3] for at in range(3)):
            seed = derive_seed(SEED, name, number, *names)
            planted, originals = kinds.planted_copies(pixels, names, count, seed)
            one, other, _, _ = duplicates.near_pairs(planted)
            found = set(zip(one.tolist(), other.tolist(), strict=True))
            for at, defect in enumerate(names):
                own = range(at * count, (at + 1) * count)
                hits = sum((int(originals[copy]), len(pixels) + copy) in found for copy in own)
                row = {"kind": name, "defect": defect, "planted": count, "found": hits}
                rows.append(row)
    return rows


def score_short_cuts(name: str, pixels: np.ndarray, sets: int) -> list[dict]:
    """Of each short cut in how many sets, planted in all images of one class, something spoke."""
    rows = []
    for defect in kinds.SHORT_CUTS:
        if not kinds.can_be_planted(defect, pixels):
            continue
        spoke = []
        for number in range(sets):
            seed = derive_seed(SEED, name, defect, number)
            images = image_set(pixels, seed)
            planted = kinds.planted_short_cut(pixels, defect, images.labels, seed)
            checks = shortcut_checks(Question(image_set(planted, seed), seed=number))
            spoke.append([one.name for one in checks if one.verdict in ("warn", "fail")])
        row = {"kind": name, "defect": defect, "planted": sets, "found": sum(map(bool, spoke))}
        rows.append(row | {"by": spoke})
    return rows


def score_clean(name: str, pixels: np.ndarray, sets: int) -> list[dict]:
    """Sets without any defect, by short cuts and by copies: each is dealt to groups, labels and
    parts anew.
    """
    one, other, _, _ = duplicates.near_pairs(pixels)
    rows = []
    for number in range(sets):
        seed = derive_seed(SEED, name, "clean", number)
        images = image_set(pixels, seed)
        split = splits.hold_out(images, seed=seed)
        checks = shortcut_checks(Question(images, split, seed=number))
        wrong = [check.name for check in checks if check.verdict in ("warn", "fail")]
        if Placement.of(images, split).leaks(one, other).any():
            wrong.append("near-duplicates in two parts")
        row = {"kind": name, "defect": "clean set", "planted": 1, "found": int(bool(wrong))}
        rows.append(row | {"by": wrong})
    return rows


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
        of_processor = time.process_time()
        one, other, _, _ = duplicates.near_pairs(pixels)
        seconds = time.monotonic() - started
        of_processor = time.process_time() - of_processor
    found = set(zip(one.tolist(), other.tolist(), strict=True))
    return {
        "images": count,
        "seconds": seconds,
        "processor_seconds": of_processor,
        "memory_mb": (manifest.peak_memory_bytes() - before) / 2**20,
        "injected": len(injected_copies),
        "found": sum(pair in found for pair in injected_copies),
        "false": len(found - set(injected_copies)),
    }


def shares(rows: list[dict], names) -> pd.DataFrame:
    """Of each defect, over the named kinds: planted, found, and the share with its interval."""
    table = pd.DataFrame([row for row in rows if row["kind"] in names])
    table = table.groupby("defect", sort=False)[["planted", "found"]].sum()
    table["share"] = table["found"] / table["planted"]
    both = [
        share_interval(found / n, n) for found, n in zip(table.found, table.planted, strict=True)
    ]
    table[["low", "high"]] = both
    return table


def share_text(found: int, planted: int) -> str:
    low, high = share_interval(found / planted, planted)
    return f"{found} of {planted} ({found / planted:.3f} [{low:.3f}, {high:.3f}])"


def sentence_of(result: dict) -> str:
    """What was found on the kinds that were only reported."""
    table = shares(result["now"], kinds.REPORTED)
    copies = table.loc[list(kinds.COPIES), ["found", "planted"]].sum()
    cuts = table.loc[list(kinds.SHORT_CUTS), ["found", "planted"]].sum()
    clean = table.loc["clean set"]
    said = (
        f"On {len(kinds.REPORTED)} kinds of images that it was not tuned on the audit finds "
        f"{share_text(*map(int, copies))} planted copies and {share_text(*map(int, cuts))} short "
        f"cuts, and accuses {share_text(int(clean.found), int(clean.planted))} clean sets wrongly."
    )
    speed = result.get("speed")
    if speed:
        said += (
            f" Near-duplicates among {speed['images']:,} images of 128 px take "
            f"{speed['processor_seconds']:.0f} s of one core; {speed['found']} of "
            f"{speed['injected']} mirrored copies found."
        )
    return said


def page_of(result: dict) -> str:
    """docs/audit_benchmark.md."""
    lines = [
        "# Planted defects: how good the audit is, and how to score another tool",
        "",
        "Written by `benchmarks/audit_injected.py`; every figure comes from its run.",
        "",
        result["sentence"],
        "",
        "## The same images and defects",
        "",
        "`benchmarks/audit_kinds.py` makes them. It needs NumPy, SciPy, Pillow, scikit-image and",
        "scikit-learn, whose pictures it cuts into tiles, and the phantoms of this package. "
        "`make_kind(name, 7)`",
        "gives the images of a kind, (n, channel, y, x) uint8; `pixel_hash` must give what stands",
        "here. Another hash means another version of a picture or of a generator.",
        "",
        "| kind | used | images | shape | sha256 of shape and values |",
        "|---|---|---|---|---|",
    ]
    for row in result["kinds"]:
        used = "tuned on" if row["kind"] in kinds.TUNED_ON else "reported"
        shape = " x ".join(map(str, row["shape"][1:]))
        lines.append(f"| {row['kind']} | {used} | {row['shape'][0]} | {shape} | `{row['hash']}` |")
    lines += [
        "",
        "Then, with the seeds that `benchmarks/audit_injected.py` derives:",
        "",
        "- **Copies.** `planted_copies(pixels, names, count, seed)` puts copies after the images "
        "and says of which image each is. A copy is found where the tool names that pair.",
        "- **Short cuts.** `dealt(n, seed)` gives groups and random labels, `planted_short_cut` "
        "changes all images of class 1. It is found where the tool says that anything tells the "
        "class.",
        "- **Clean sets** are dealt in the same way and left alone: whatever is said is wrong.",
        "",
        "Flat images (standard deviation below "
        f"{kinds.FLAT:.0f} grey levels) are not copied, as nothing in them can be found again; "
        "they stay in all sets. Mirrored classes are planted in images with light from one side: "
        "without anything of that kind a mirrored image is like any other. Hue needs colour, gamma "
        "and light need grey levels.",
        "",
        "## What was found",
        "",
        "Shares with 95 % intervals (Wilson), over all kinds of a half. *Before*: the audit that "
        "knew the old perceptual hash, on the reported kinds.",
        "",
        "| defect | tuned on | reported | reported, before |",
        "|---|---|---|---|",
    ]
    tuned = shares(result["now"], kinds.TUNED_ON)
    reported = shares(result["now"], kinds.REPORTED)
    before = shares(result["before"], kinds.REPORTED) if result["before"] else None
    for defect in reported.index:
        cells = []
        for table in (tuned, reported, before):
            if table is None or defect not in table.index:
                cells.append("-")
                continue
            row = table.loc[defect]
            figures = f"{row['share']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            cells.append(f"{figures}, n = {int(row['planted'])}")
        name = f"*{defect}*" if defect in kinds.FURTHER_COPIES else defect
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "In italics: changes beyond what the audit is meant to find. By kind, found of planted:",
        "",
        "| kind | copies | short cuts | clean sets accused |",
        "|---|---|---|---|",
    ]
    table = pd.DataFrame(result["now"])
    for row in result["kinds"]:
        own = table[table["kind"] == row["kind"]]
        cells = []
        for names in (list(kinds.COPIES), list(kinds.SHORT_CUTS), ["clean set"]):
            some = own[own["defect"].isin(names)]
            cells.append(f"{some['found'].sum()} of {some['planted'].sum()}" if len(some) else "-")
        lines.append(f"| {row['kind']} | {' | '.join(cells)} |")
    missed = pd.DataFrame(
        [row for row in result["now"] if row["found"] < row["planted"] and row["kind"]]
    )
    missed = missed[missed["defect"] != "clean set"]
    missed = missed.groupby(["kind", "defect"], sort=False)[["planted", "found"]].sum()
    lines += ["", "Missed:", ""]
    for (kind, defect), row in missed.iterrows():
        lines.append(f"- {kind}: {defect}, {row['found']} of {row['planted']} found")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copies", type=int, default=0, help="sets of copies of each kind")
    parser.add_argument("--short-cuts", type=int, default=0, help="sets of each short cut and kind")
    parser.add_argument("--clean", type=int, default=0, help="clean sets of each kind")
    parser.add_argument("--only", choices=["tuned", "reported"], help="one half of the kinds")
    parser.add_argument("--images", type=int, default=0, help="also time this many images")
    parser.add_argument("--before", type=Path, help="JSON whose figures are kept as 'before'")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "audit_injected.json"
    )
    options = parser.parse_args()
    result = {"now": [], "before": [], "speed": None}
    if options.out.exists():
        old = json.loads(options.out.read_text(encoding="utf-8"))
        result |= {key: old[key] for key in result if key in old}
    if options.before:
        result["before"] = json.loads(options.before.read_text(encoding="utf-8"))["now"]
    halves = {"tuned": kinds.TUNED_ON, "reported": kinds.REPORTED}
    names = halves.get(options.only, (*kinds.TUNED_ON, *kinds.REPORTED))
    tasks = (
        (score_copies, options.copies),
        (score_short_cuts, options.short_cuts),
        (score_clean, options.clean),
    )
    pools = {name: kinds.make_kind(name, SEED) for name in (*kinds.TUNED_ON, *kinds.REPORTED)}
    for score, sets in tasks:
        for name in names if sets else ():
            rows = score(name, pools[name], sets)
            fresh = {row["defect"] for row in rows}
            kept = [
                row for row in result["now"] if row["kind"] != name or row["defect"] not in fresh
            ]
            result["now"] = kept + rows
            found = sum(row["found"] for row in rows)
            planted = sum(row["planted"] for row in rows)
            print(f"{score.__name__}, {name}: {found} of {planted}", flush=True)
            write_json(options.out, result)
    if options.images:
        result["speed"] = time_copies(options.images, SEED)
    result["kinds"] = [
        {"kind": name, "shape": pixels.shape, "hash": kinds.pixel_hash(pixels)}
        for name, pixels in pools.items()
    ]
    result |= {"device": manifest.device(), "versions": manifest.versions()}
    result["sentence"] = sentence_of(result)
    write_json(options.out, result)
    write_text(ROOT / "docs" / "audit_benchmark.md", page_of(result))
    print(result["sentence"])


if __name__ == "__main__":
    main()
