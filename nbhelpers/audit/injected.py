"""Injected defects: clean sets made of phantoms, one defect put in, and whether the audit finds it.

Labels of a clean set are dealt to its groups at random, so nothing tells them: whatever the audit
reports of a clean set is a false alarm. Also the four published protocols, rebuilt on phantoms.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from nbhelpers.audit.checks import run_audit
from nbhelpers.audit.verdicts import Audit
from nbhelpers.core import published_splits, splits
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.means import count_interval
from nbhelpers.core.seeds import derive_seed, generator_for
from nbhelpers.core.splits import Split, fold_table

CLASSES = ("A", "B")
COPIES = 3  # test images whose copies are injected in the training part of a set
LEAKS = (0.01, 0.05, 0.20)  # of the test images
WELLS = [f"{'BCDEFG'[at // 10]}{at % 10 + 2:02d}" for at in range(60)]  # B02 to G11
SET_SIZE = 240
GROUPS = 40


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


def clean_set(pool: np.ndarray, seed: int) -> Injected:
    """Images of a pool in groups of equal size; label, centre, date by group and well by image, all
    at random.
    """
    rng = generator_for(seed, "clean set")
    chosen = rng.choice(len(pool), SET_SIZE, replace=False)
    group = np.repeat(np.arange(GROUPS), SET_SIZE // GROUPS)
    label = rng.permutation(np.arange(GROUPS) % 2)[group]
    side = pool.shape[-1]
    across = int(np.ceil(np.sqrt(SET_SIZE)))
    at = rng.permutation(SET_SIZE)
    table = pd.DataFrame(
        {
            "id": [f"image_{number:04d}.png" for number in rng.permutation(SET_SIZE)],
            "label": np.asarray(CLASSES, object)[label],
            "group": [f"animal-{number:02d}" for number in group],
            "x_px": (at % across) * side,
            "y_px": (at // across) * side,
            "well": rng.choice(WELLS, SET_SIZE),
            "centre": rng.choice(["north", "south", "east"], GROUPS)[group],
            "date": _dates(rng.integers(0, 200, GROUPS)[group]),
            "bit_depth": rng.choice([8, 16], GROUPS)[group],
            "width_px": rng.integers(200, 260, SET_SIZE),
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


def _dates(days: np.ndarray) -> pd.Series:
    dates = pd.Timestamp("2024-01-01") + pd.to_timedelta(days, unit="D")
    return pd.Series(dates).dt.strftime("%Y-%m-%d")


# duplicates


def _jpeg(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    plain = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    Image.fromarray(plain).save(file, "JPEG", quality=50)
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
    rng = generator_for(seed, "copies")
    test = rng.choice(made.split.ids(0, 0, "test"), COPIES, replace=False)
    train = rng.choice(made.split.ids(0, 0, "train"), COPIES, replace=False)
    pairs = tuple(zip(test, train, strict=True))
    pixels = made.images.pixels.copy()
    for one, other in pairs:
        at, to = made.images.positions([one, other])
        pixels[to] = TRANSFORMS[transform](pixels[at])
    kind = "same pixels" if transform == "same pixels" else "near-duplicates"
    images = replace(made.images, pixels=pixels, content_hash="")
    return replace(made, images=images, check=f"{kind} in two parts", pairs=pairs)


# groups, crops, selection


def with_group_leak(made: Injected, share: float, seed: int) -> Injected:
    """This share of the test images (one at least) is of groups that are trained on."""
    rng = generator_for(seed, "group leak")
    test = made.split.ids(0, 0, "test")
    train = made.split.ids(0, 0, "train")
    moved = rng.choice(test, max(1, round(share * len(test))), replace=False)
    taken = made.images.positions(rng.choice(train, len(moved)))
    table = made.images.table.copy()
    table.loc[made.images.positions(moved), "group"] = table["group"].to_numpy()[taken]
    images = replace(made.images, table=table, content_hash="")
    rows = made.split.table.assign(group=images.groups[images.positions(made.split.table["id"])])
    split = Split(rows, made.split.protocol, 0, known_leak="injected")
    return replace(made, images=images, split=split, check="same group in two parts")


def with_overlap(made: Injected, share: float, seed: int) -> Injected:
    """One test crop covers this share of the height of a training crop."""
    rng = generator_for(seed, "overlap")
    test = rng.choice(made.split.ids(0, 0, "test"), 1)
    train = rng.choice(made.split.ids(0, 0, "train"), 1)
    one, other = made.images.positions([*test, *train])
    table = made.images.table.copy()
    down = round(made.images.pixels.shape[-1] * (1 - share))
    table.loc[one, ["x_px", "y_px"]] = [table.loc[other, "x_px"], table.loc[other, "y_px"] + down]
    return replace(made, images=replace(made.images, table=table), check="overlapping crops")


def with_selection_on_test(made: Injected, seed: int) -> Injected:
    choices = [
        {"recipe": "a", "test_accuracy": 0.9, "chosen": True},
        {"recipe": "b", "test_accuracy": 0.9, "chosen": False},
    ]
    return replace(made, check="test used for selection", record={"choices": choices})


# shortcuts


def _following(made: Injected, strength: float, seed: int) -> np.ndarray:
    """(n,) 0 or 1: the label in a share ``strength`` of the images, random in the others."""
    rng = generator_for(seed, "shortcut")
    labels = made.images.labels
    return np.where(rng.random(len(labels)) < strength, labels, rng.integers(0, 2, len(labels)))


def _file_number(images: ImageSet, follows: np.ndarray, rng) -> ImageSet:
    order = np.argsort(follows + 0.3 * rng.random(len(follows)))
    ids = np.empty(len(follows), object)
    ids[order] = [f"image_{number:04d}.png" for number in range(len(follows))]
    return replace(images, table=images.table.assign(id=ids), content_hash="")


def _brightness(images: ImageSet, follows: np.ndarray, rng) -> ImageSet:
    shift = _per_image(np.where(follows == 1, 60, 0), images)
    pixels = np.clip(images.pixels.astype(int) // 2 + shift, 0, 255).astype(np.uint8)
    return replace(images, pixels=pixels, content_hash="")


def _corner_mark(images: ImageSet, follows: np.ndarray, rng) -> ImageSet:
    pixels = images.pixels.copy()
    mark = max(2, pixels.shape[-1] // 20)
    pixels[..., :mark, :mark] = _per_image(np.where(follows == 1, 255, 0), images)
    return replace(images, pixels=pixels, content_hash="")


def _per_image(values: np.ndarray, images: ImageSet) -> np.ndarray:
    return values.reshape(-1, *[1] * (images.pixels.ndim - 1))


def _column(name: str, values: Sequence) -> Callable:
    """One half of the values goes with one class, the other half with the other."""
    half = len(values) // 2

    def inject(images: ImageSet, follows: np.ndarray, rng) -> ImageSet:
        at = rng.integers(0, half, len(follows)) + half * follows
        table = images.table.assign(**{name: np.asarray(values, object)[at]})
        return replace(images, table=table, content_hash="")

    return inject


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
    rng = generator_for(seed, "shortcut values")
    images = SHORTCUTS[name](made.images, _following(made, strength, seed), rng)
    renamed = dict(zip(made.images.ids, images.ids, strict=True))
    table = made.split.table.assign(id=made.split.table["id"].map(renamed))
    split = replace(made.split, table=table)
    return replace(made, images=images, split=split, check=f"shortcut: {name}")


# the campaign


Defect = tuple[str, str, Callable[[Injected, int], Injected]]


def defects(strengths: Sequence[float]) -> list[Defect]:
    """(kind, detail, how to inject it: set and seed to set) of every defect of the campaign;
    shortcuts at these strengths: the share of images in which they follow the label, in the others
    they are random.
    """
    found = []

    def add(kind: str, detail: str, inject: Callable, *how) -> None:
        found.append((kind, detail, lambda made, seed: inject(made, *how, seed)))

    for name in TRANSFORMS:
        add("copy in test and training", name, with_copies, name)
    for share in LEAKS:
        add("group leak", f"{share:.0%} of test images", with_group_leak, share)
    for share in (0.1, 0.5):
        add("overlapping crops", f"{share:.0%} of a crop", with_overlap, share)
    add("test used for selection", "by the run's record", with_selection_on_test)
    for name in SHORTCUTS:
        for strength in strengths:
            detail = f"in {strength:.0%} of images"
            add(f"shortcut: {name}", detail, with_shortcut, name, strength)
    return found


def found_in(made: Injected, audit: Audit) -> tuple[int, int]:
    """(found, injected): of copies the pairs, of anything else whether the right check speaks."""
    check = next((one for one in audit.findings() if one.name == made.check), None)
    if not made.pairs:
        return int(check is not None), 1
    known = set()
    if check is not None:
        pairs = zip(check.rows["image"], check.rows["other image"], strict=True)
        known = {frozenset(pair) for pair in pairs}
    return sum(frozenset(pair) in known for pair in made.pairs), len(made.pairs)


def campaign(
    images: Mapping[str, np.ndarray],
    *,
    sets: int,
    clean: int,
    seed: int,
    shuffles: int,
    strengths: Sequence[float],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Inject every defect in ``sets`` sets and audit ``clean`` sets without any; sets take the
    pools in turn.

    Returns the table of defects (``injected``, ``found``, ``recall`` with its Wilson interval) and
    the table of clean sets: of each check how many it accused wrongly, and in the row "any check"
    how many had any warning or failure.
    """
    names = list(images)

    def base(number: int) -> Injected:
        return clean_set(images[names[number % len(names)]], derive_seed(seed, number))

    rows = []
    for kind, detail, inject in defects(strengths):
        found = 0
        injected = 0
        for number in range(sets):
            made = inject(base(number), derive_seed(seed, kind, detail, number))
            audit = run_audit(
                made.images,
                made.split,
                record=made.record,
                shuffles=shuffles if kind.startswith("shortcut") else 0,
                seed=number,
            )
            here, all_here = found_in(made, audit)
            found += here
            injected += all_here
        row = {"defect": kind, "detail": detail, "injected": injected, "found": found}
        rows.append(row | count_interval(found, injected).columns("recall"))
    alarms = Counter()
    accused = 0
    for number in range(clean):
        made = base(10_000 + number)
        audit = run_audit(made.images, made.split, shuffles=shuffles, seed=number)
        wrong = [one.name for one in audit.findings()]
        accused += bool(wrong)
        alarms.update({one.name: int(one.name in wrong) for one in audit.checks})
    table = []
    if clean:
        for name, count in [*alarms.items(), ("any check", accused)]:
            row = {"check": name, "clean sets": clean, "alarms": count}
            table.append(row | count_interval(count, clean).columns("share"))
    return pd.DataFrame(rows), pd.DataFrame(table)


def share_found(defects: pd.DataFrame) -> Estimate:
    """The share of all injected defects of a :func:`campaign` that were found."""
    if not len(defects):
        return Estimate(0.0, 0.0, 1.0, 1, reason="no defect was injected")
    return count_interval(defects["found"].sum(), int(defects["injected"].sum()))


def false_alarms(alarms: pd.DataFrame) -> Estimate:
    """The share of the clean sets of a :func:`campaign` that were accused of anything."""
    if not len(alarms):
        return Estimate.undefined("no clean set was audited")
    any_check = alarms.set_index("check").loc["any check"]
    return count_interval(any_check["alarms"], int(any_check["clean sets"]))


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
    by_synapse = published_splits.split_by_image(cubes, seed=seed)
    slides = glomerulus.load_phantom_glomeruli(160, seed, size_px=64)
    plates = _published_plates(seed)
    return {
        "A: spines, two splits with one seed": (
            masks,
            published_splits.published_spine_split(masks),
            None,
        ),
        "B: synapses in 3D, split by synapse": (cubes, by_synapse, None),
        "C: plates, test plates pick the checkpoint": (*plates, None),
        "D: glomeruli, split by image": (
            slides,
            published_splits.split_by_image(slides, seed=seed),
            None,
        ),
    }


# the wells of candidate dose 0, the ones that are trained on: fixed on every plate
CONTROL_WELLS = {
    "control": ["B02", "B03", "B04", "C05", "C06", "C07"],
    "amyloid-beta": ["C02", "C03", "C04", "D05", "D06", "D07"],
}
PLATES = 12
HELD_OUT = 3


def _published_plates(seed: int) -> tuple[ImageSet, Split]:
    """The layout of the published plates with pictures that are noise: the audit looks at the
    layout and the split.
    """
    rng = generator_for(seed, "plates")
    rows = []
    for plate in range(PLATES):
        for label, wells in CONTROL_WELLS.items():
            group = f"plate-{plate:02d}"
            rows += [
                {"id": f"{group}/{well}", "label": label, "group": group, "well": well}
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
    last = images.table["group"].isin(sorted(set(images.groups))[-HELD_OUT:]).to_numpy()
    parts = [
        fold_table(images, part, rows=chosen)
        for part, chosen in (("train", ~last), ("validation", last), ("test", last))
    ]
    split = Split(
        pd.concat(parts, ignore_index=True),
        f"published: {HELD_OUT} of {PLATES} plates held out",
        seed,
        known_leak="the held-out plates picked the checkpoint",
    )
    return images, split
