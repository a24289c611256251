"""Injected defects: clean sets made of phantoms, one defect put in, and whether the audit finds it.

Labels of a clean set are dealt to its groups at random, so nothing tells them: whatever the audit
reports of a clean set is a false alarm. Also the four published protocols, rebuilt on phantoms.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from nbhelpers.audit.checks import run_audit
from nbhelpers.audit.verdicts import Audit
from nbhelpers.core import splits
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.intervals import wilson
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split

CLASSES = ("A", "B")
COPIES = 3  # test images whose copies are injected in the training part of a set
LEAKS = (0.01, 0.05, 0.20)  # of the test images
STRENGTHS = (
    0.6,
    0.8,
    1.0,
)  # share of images in which the shortcut follows the label; in the others it is random
WELLS = [f"{row}{column:02d}" for row in "BCDEFG" for column in range(2, 12)]


@dataclass(frozen=True)
class Injected:
    """A set and its split with one defect. ``check`` is the check that should speak, ``pairs`` the
    injected copies.
    """

    images: ImageSet
    split: Split
    check: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    record: Mapping[str, object] | None = None


def pools(count: int, seed: int, data_folder) -> dict[str, np.ndarray]:
    """Phantom images to draw sets from: (count, channel, y, x) uint8 of spines (every other pixel),
    synapses, glomeruli.
    """
    from nbhelpers.phantoms import glomerulus, spine, synapse

    masks = spine.load_phantom_spines(count, seed)
    patches = synapse.load_phantom_synapses(count, data_folder, neurons=24, size_px=64, seed=seed)
    tufts = glomerulus.load_phantom_glomeruli(count, seed, size_px=64, difficulty=0.8)
    return {
        "spines": np.asarray(masks.pixels)[..., ::2, ::2],
        "synapses": np.asarray(patches.pixels),
        "glomeruli": np.asarray(tufts.pixels),
    }


def clean_set(pool: np.ndarray, seed: int, *, n: int = 240, groups: int = 40) -> Injected:
    """``n`` images of a pool in groups of equal size; label, centre, date by group and well by
    image, all at random.
    """
    rng = np.random.default_rng(derive_seed(seed, "clean set"))
    chosen = rng.choice(len(pool), n, replace=False)
    group = np.repeat(np.arange(groups), n // groups)
    label = rng.permutation(np.arange(groups) % 2)[group]
    side = pool.shape[-1]
    across = int(np.ceil(np.sqrt(n)))
    at = rng.permutation(n)
    table = pd.DataFrame(
        {
            "id": [f"image_{number:04d}.png" for number in rng.permutation(n)],
            "label": np.asarray(CLASSES, object)[label],
            "group": [f"animal-{number:02d}" for number in group],
            "x_px": (at % across) * side,
            "y_px": (at // across) * side,
            "well": rng.choice(WELLS, n),
            "centre": rng.choice(["north", "south", "east"], groups)[group],
            "date": pd.Series(
                pd.Timestamp("2024-01-01")
                + pd.to_timedelta(rng.integers(0, 200, groups)[group], unit="D")
            ).dt.strftime("%Y-%m-%d"),
            "bit_depth": rng.choice([8, 16], groups)[group],
            "width_px": rng.integers(200, 260, n),
        }
    )
    images = ImageSet(
        name="injected",
        table=table,
        pixels=pool[chosen],
        classes=CLASSES,
        source="phantoms",
        synthetic=True,
        channels=("red", "green", "blue") if pool.shape[1] == 3 else ("grey",),
    )
    return Injected(images, splits.hold_out(images, seed=derive_seed(seed, "split")))


# duplicates


def _jpeg(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)).save(
        file, "JPEG", quality=50
    )
    found = np.asarray(Image.open(file))
    return found[None] if found.ndim == 2 else np.moveaxis(found, -1, 0)


def _turned(image: np.ndarray) -> np.ndarray:
    from scipy.ndimage import rotate

    return rotate(image, 8, axes=(-1, -2), reshape=False, order=1, mode="constant")


TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same pixels": lambda image: image,
    "mirrored": lambda image: image[..., ::-1],
    "turned by 90 degrees": lambda image: np.rot90(image, 1, (-2, -1)),
    "turned by 8 degrees": _turned,
    "JPEG, quality 50": _jpeg,
    "4 bit": lambda image: (image // 16 * 17).astype(np.uint8),
    "mirrored, turned by 8 degrees, JPEG": lambda image: _jpeg(_turned(image[..., ::-1])),
}


def with_copies(made: Injected, transform: str, seed: int) -> Injected:
    """Some test images stand in the training part too, transformed, under another id and group."""
    rng = np.random.default_rng(derive_seed(seed, "copies"))
    test, train = (
        rng.choice(made.split.ids(0, 0, part), COPIES, replace=False) for part in ("test", "train")
    )
    pixels = made.images.pixels.copy()
    for one, other in zip(made.images.positions(test), made.images.positions(train), strict=True):
        pixels[other] = TRANSFORMS[transform](pixels[one])
    check = (
        "same pixels in two parts" if transform == "same pixels" else "near-duplicates in two parts"
    )
    return replace(
        made,
        images=replace(made.images, pixels=pixels, content_hash=""),
        check=check,
        pairs=tuple(zip(test, train, strict=True)),
    )


# groups, crops, selection


def with_group_leak(made: Injected, share: float, seed: int) -> Injected:
    """This share of the test images (one at least) is of groups that are trained on."""
    rng = np.random.default_rng(derive_seed(seed, "group leak"))
    test = made.split.ids(0, 0, "test")
    train = made.split.ids(0, 0, "train")
    moved = made.images.positions(rng.choice(test, max(1, round(share * len(test))), replace=False))
    table = made.images.table.copy()
    table.loc[moved, "group"] = table["group"].to_numpy()[
        made.images.positions(rng.choice(train, len(moved)))
    ]
    images = replace(made.images, table=table, content_hash="")
    rows = made.split.table.assign(group=images.groups[images.positions(made.split.table["id"])])
    return replace(
        made,
        images=images,
        split=Split(rows, made.split.protocol, 0, known_leak="injected"),
        check="same group in two parts",
    )


def with_overlap(made: Injected, share: float, seed: int) -> Injected:
    """One test crop covers this share of the height of a training crop."""
    rng = np.random.default_rng(derive_seed(seed, "overlap"))
    one, other = (
        made.images.positions(rng.choice(made.split.ids(0, 0, part), 1))[0]
        for part in ("test", "train")
    )
    table = made.images.table.copy()
    side = made.images.pixels.shape[-1]
    table.loc[one, ["x_px", "y_px"]] = [
        table.loc[other, "x_px"],
        table.loc[other, "y_px"] + round(side * (1 - share)),
    ]
    return replace(made, images=replace(made.images, table=table), check="overlapping crops")


def with_selection_on_test(made: Injected, seed: int) -> Injected:
    return replace(
        made,
        check="test used for selection",
        record={
            "choices": [
                {"recipe": name, "test_accuracy": 0.9, "chosen": name == "a"} for name in "ab"
            ]
        },
    )


# shortcuts


def _following(made: Injected, strength: float, seed: int) -> np.ndarray:
    """(n,) 0 or 1: the label in a share ``strength`` of the images, random in the others."""
    rng = np.random.default_rng(derive_seed(seed, "shortcut"))
    labels = made.images.labels
    return np.where(rng.random(len(labels)) < strength, labels, rng.integers(0, 2, len(labels)))


def _file_number(images: ImageSet, follows: np.ndarray, rng) -> ImageSet:
    order = np.argsort(follows + 0.3 * rng.random(len(follows)))
    ids = np.empty(len(follows), object)
    ids[order] = [f"image_{number:04d}.png" for number in range(len(follows))]
    return replace(images, table=images.table.assign(id=ids), content_hash="")


def _brightness(images: ImageSet, follows: np.ndarray, rng) -> ImageSet:
    shift = np.where(follows == 1, 60, 0).reshape(-1, *[1] * (images.pixels.ndim - 1))
    return replace(
        images,
        pixels=np.clip(images.pixels.astype(int) // 2 + shift, 0, 255).astype(np.uint8),
        content_hash="",
    )


def _corner_mark(images: ImageSet, follows: np.ndarray, rng) -> ImageSet:
    pixels = images.pixels.copy()
    mark = max(2, pixels.shape[-1] // 20)
    pixels[..., :mark, :mark] = np.where(follows == 1, 255, 0).reshape(-1, *[1] * (pixels.ndim - 1))
    return replace(images, pixels=pixels, content_hash="")


def _column(name: str, values: Sequence) -> Callable:
    half = len(values) // 2
    return lambda images, follows, rng: replace(
        images,
        content_hash="",
        table=images.table.assign(
            **{
                name: np.asarray(values, object)[
                    rng.integers(0, half, len(follows)) + half * follows
                ]
            }
        ),
    )


SHORTCUTS: dict[str, Callable] = {
    "file number": _file_number,
    "brightness": _brightness,
    "border and corners": _corner_mark,
    "bit depth": _column("bit_depth", [8, 16]),
    "plate position": _column("well", WELLS),
    "centre": _column("centre", ["north", "south"]),
}


def with_shortcut(made: Injected, name: str, strength: float, seed: int) -> Injected:
    """The label follows, in this share of the images, from what should not matter."""
    rng = np.random.default_rng(derive_seed(seed, "shortcut values"))
    images = SHORTCUTS[name](made.images, _following(made, strength, seed), rng)
    ids = dict(zip(made.images.ids, images.ids, strict=True))
    return replace(
        made,
        images=images,
        check=f"shortcut: {name}",
        split=replace(
            made.split, table=made.split.table.assign(id=made.split.table["id"].map(ids))
        ),
    )


# the campaign


def defects(
    strengths: Sequence[float] = STRENGTHS,
) -> list[tuple[str, str, Callable[[Injected, int], Injected]]]:
    """(kind, detail, how to plant it) of every defect of the campaign; shortcuts at these
    strengths.
    """
    found = [
        (
            "copy in test and training",
            name,
            lambda made, seed, name=name: with_copies(made, name, seed),
        )
        for name in TRANSFORMS
    ]
    found += [
        (
            "group leak",
            f"{share:.0%} of test images",
            lambda made, seed, share=share: with_group_leak(made, share, seed),
        )
        for share in LEAKS
    ]
    found += [
        (
            "overlapping crops",
            f"{share:.0%} of a crop",
            lambda made, seed, share=share: with_overlap(made, share, seed),
        )
        for share in (0.1, 0.5)
    ]
    found += [("test used for selection", "by the run's record", with_selection_on_test)]
    return found + [
        (
            f"shortcut: {name}",
            f"in {strength:.0%} of images",
            lambda made, seed, name=name, strength=strength: with_shortcut(
                made, name, strength, seed
            ),
        )
        for name in SHORTCUTS
        for strength in strengths
    ]


def found_in(made: Injected, audit: Audit) -> tuple[int, int]:
    """(found, injected): of copies the pairs, of anything else whether the right check speaks."""
    check = next((one for one in audit.checks if one.name == made.check), None)
    spoken = check is not None and check.verdict in ("warn", "fail")
    if not made.pairs:
        return int(spoken), 1
    known = (
        {
            frozenset(pair)
            for pair in zip(check.rows["image"], check.rows["other image"], strict=True)
        }
        if spoken
        else set()
    )
    return sum(frozenset(pair) in known for pair in made.pairs), len(made.pairs)


def campaign(
    images: Mapping[str, np.ndarray],
    *,
    sets: int,
    clean: int,
    seed: int,
    shuffles: int = 1000,
    strengths: Sequence[float] = STRENGTHS,
    report: Callable[[str], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Plant every defect in ``sets`` sets and audit ``clean`` sets without any; sets take the pools
    in turn.

    Returns the table of defects (``injected``, ``found``, ``recall`` with its Wilson interval) and
    the table of clean sets: of each check how many it accused wrongly, and in the row "any check"
    how many had any warning or failure.
    """
    names = list(images)
    base = lambda number: clean_set(images[names[number % len(names)]], derive_seed(seed, number))  # noqa: E731
    rows = []
    for kind, detail, plant in defects(strengths):
        counts = np.zeros(2, int)
        for number in range(sets):
            made = plant(base(number), derive_seed(seed, kind, detail, number))
            counts += found_in(
                made,
                run_audit(
                    made.images,
                    made.split,
                    record=made.record,
                    shuffles=shuffles,
                    shortcuts=kind.startswith("shortcut"),
                    seed=number,
                ),
            )
        low, high = wilson(*counts)
        rows.append(
            {
                "defect": kind,
                "detail": detail,
                "injected": int(counts[1]),
                "found": int(counts[0]),
                "recall": counts[0] / counts[1],
                "low": low,
                "high": high,
            }
        )
        if report:
            report(f"{kind}, {detail}: {counts[0]} of {counts[1]} found")
    alarms: dict[str, int] = {}
    accused = 0
    for number in range(clean):
        made = base(10_000 + number)
        found = run_audit(made.images, made.split, shuffles=shuffles, seed=number)
        wrong = [one.name for one in found.checks if one.verdict in ("warn", "fail")]
        accused += bool(wrong)
        for one in found.checks:
            alarms[one.name] = alarms.get(one.name, 0) + (one.name in wrong)
        if report and (wrong or number % 20 == 19):
            report(f"{number + 1} clean sets, {accused} accused {wrong or ''}".rstrip())
    table = pd.DataFrame(
        [
            {
                "check": name,
                "clean sets": clean,
                "alarms": count,
                "share": count / clean,
                "low": wilson(count, clean)[0],
                "high": wilson(count, clean)[1],
            }
            for name, count in [*alarms.items(), ("any check", accused)]
            if clean
        ]
    )
    return pd.DataFrame(rows), table


# the published protocols


def published_protocols(
    data_folder, seed: int = 7
) -> dict[str, tuple[ImageSet, Split, Mapping | None]]:
    """The four published protocols, rebuilt on phantoms: (images, split, what is known of their
    choices).
    """
    from nbhelpers.phantoms import glomerulus, spine, synapse

    masks = spine.load_phantom_spines(200, seed)
    cubes = synapse.load_phantom_synapses(240, data_folder, neurons=24, size_px=64, seed=seed)
    by_synapse = splits.split_by_image(cubes, seed=seed)
    slides = glomerulus.load_phantom_glomeruli(160, seed, size_px=64)
    plates = _published_plates(seed)
    return {
        "A: spines, two splits with one seed": (masks, splits.published_spine_split(masks), None),
        "B: synapses in 3D, split by synapse": (cubes, by_synapse, None),
        "C: plates, test plates pick the checkpoint": (*plates, None),
        "D: glomeruli, split by image": (slides, splits.split_by_image(slides, seed=seed), None),
    }


# the wells of candidate dose 0, the ones that are trained on: fixed on every plate
CONTROL_WELLS = {
    "control": [*(f"B{at:02d}" for at in (2, 3, 4)), *(f"C{at:02d}" for at in (5, 6, 7))],
    "amyloid-beta": [*(f"C{at:02d}" for at in (2, 3, 4)), *(f"D{at:02d}" for at in (5, 6, 7))],
}


def _published_plates(seed: int, plates: int = 12, held_out: int = 3) -> tuple[ImageSet, Split]:
    """The layout of the published plates with pictures that are noise: the audit looks at the
    layout and the split.
    """
    rng = np.random.default_rng(derive_seed(seed, "plates"))
    rows = [
        {
            "id": f"plate-{plate:02d}/{well}",
            "label": label,
            "group": f"plate-{plate:02d}",
            "well": well,
        }
        for plate in range(plates)
        for label, wells in CONTROL_WELLS.items()
        for well in wells
    ]
    table = pd.DataFrame(rows)
    images = ImageSet(
        name="published plate layout",
        table=table,
        classes=tuple(CONTROL_WELLS),
        source="noise in the wells",
        pixels=rng.integers(0, 255, (len(table), 1, 64, 64), dtype=np.uint8),
        synthetic=True,
    )
    last = images.table["group"].isin(sorted(set(images.groups))[-held_out:]).to_numpy()
    parts = [("train", ~last), ("validation", last), ("test", last)]
    split = Split(
        pd.concat(
            [
                pd.DataFrame(
                    {
                        "repeat": 0,
                        "fold": 0,
                        "part": part,
                        "id": images.ids[rows],
                        "group": images.groups[rows],
                    }
                )
                for part, rows in parts
            ],
            ignore_index=True,
        ),
        f"published: {held_out} of {plates} plates held out",
        seed,
        known_leak="the held-out plates picked the checkpoint",
    )
    return images, split
