"""What a split may break: images, groups, crops that overlap, the part that is looked at once, and
the balance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from nbhelpers.audit.placement import BITS, NAMES, TEST, TRAIN, VALIDATION, Placement
from nbhelpers.audit.verdicts import Check
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.keys import bare_key
from nbhelpers.core.splits import PARTS, Split

PARENTS = (
    "volume",
    "source_image",
    "image",
    "slide",
    "tissue",
)  # crops of different ones cannot overlap
PART_OF = re.compile(
    r"(?P<stem>.*?)(?P<number>\d+)[ _-]*(?P<k>\d+)[ _-]?of[ _-]?(?P<n>\d+)$", re.IGNORECASE
)
# class shares of two parts that differ by more, and not by chance
SHARE_APART = 0.1
CERTAIN = 1e-3
DOMINANT = 0.5  # of the test images from one group
TWO_PARTS = "A split needs train and test at least."


def same_image(place: Placement) -> Check:
    """Whether one image stands in the training and in the test part of a fold (75 of 92 in the
    published spine split).
    """
    name = "same image in two parts"
    trained = (place.parts & TRAIN) > 0
    tested = (place.parts & TEST) > 0
    both = tested & trained
    inner = ((place.parts & VALIDATION) > 0) & trained
    worst = int(both.sum(axis=0).argmax())
    rows, folds = np.nonzero(both | inner)
    parts = [NAMES[bits] for bits in place.parts[rows, folds]]
    table = pd.DataFrame({"image": place.ids[rows], "fold": folds, "parts": parts})
    numbers = {
        "test images trained on": int(both[:, worst].sum()),
        "test images": int(tested[:, worst].sum()),
        "folds with such images": int(both.any(axis=0).sum()),
        "folds": place.parts.shape[1],
    }
    if both.any():
        return Check(
            name,
            "fail",
            f"{numbers['test images trained on']} of {numbers['test images']} test images were "
            f"trained on{_in_worst_fold(place)}.",
            "Make training and test part in one step, each image in one of them.",
            numbers,
            table,
        )
    if inner.any():
        return Check(
            name,
            "warn",
            f"{int(inner.sum())} validation images were trained on: choices made on them are "
            "too hopeful.",
            "Deal each image into one part.",
            numbers,
            table,
        )
    return Check(name, "pass", "No image is in two parts of a fold.", "", numbers)


def _in_worst_fold(place: Placement) -> str:
    return " (in the worst fold)" if place.parts.shape[1] > 1 else ""


def same_group(images: ImageSet, place: Placement, known: bool) -> Check:
    """Whether a group (neuron, slide, animal) stands in the test part and in another part of a
    fold.
    """
    name = "same group in two parts"
    if not known:
        return Check(
            name,
            "not assessable",
            "There is no group column. Copies of an image are found, but not whether two "
            "different images are of one neuron, slide, plate or animal.",
            "Add a column 'group' that says what was sampled independently.",
        )
    code, names = pd.factorize(images.groups, sort=True)
    rows = []
    shared = 0
    tested = 0
    inner = 0
    for fold, parts in enumerate(place.parts.T):
        holds = {part: np.bincount(code, (parts & BITS[part]) > 0, len(names)) for part in PARTS}
        fitted = holds["train"]
        if not _chosen_on_test(parts):  # that has its own check
            fitted = fitted + holds["validation"]
        leak = (holds["test"] > 0) & (fitted > 0)
        within = (holds["validation"] > 0) & (holds["train"] > 0) & (holds["test"] == 0)
        shared = max(shared, int(leak.sum()))
        inner += int(within.sum())
        tested = max(tested, int((holds["test"] > 0).sum()))
        for at in np.flatnonzero(leak | within):
            counts = {f"{part} images": int(count[at]) for part, count in holds.items()}
            rows.append({"fold": fold, "group": names[at], **counts})
    table = pd.DataFrame(rows)
    numbers = {
        "groups": len(names),
        "test groups": tested,
        "test groups in training or validation": shared,
    }
    fix = "Put all images of a group into one part: nbhelpers.core.splits makes such splits."
    if shared:
        says = (
            f"{shared} of {tested} groups of the test part also stand in training or validation"
            f"{_in_worst_fold(place)}."
        )
        return Check(name, "fail", says, fix, numbers, table)
    if inner:
        says = f"{inner} groups stand in training and validation: choices are too hopeful."
        return Check(name, "warn", says, fix, numbers, table)
    says = f"No group is in two parts ({len(names)} groups)."
    if len(names) == len(images):
        says += (
            " Every image is its own group: right only if no two are of one neuron, slide, plate "
            "or animal."
        )
    return Check(name, "pass", says, "", numbers)


def _chosen_on_test(parts: np.ndarray) -> bool:
    validation = (parts & VALIDATION) > 0
    return bool(validation.any()) and bool(((parts & TEST) > 0)[validation].all())


def one_group_by_name(images: ImageSet, place: Placement, known: bool) -> Check:
    """Groups (or, without any, images) whose names look like one: ``012854_2of2`` beside
    ``012855_1of2``, ``Slide 7`` beside ``slide_07``, ``a_1.png`` beside ``a_2.png``."""
    return _groups_by_name(images, place) if known else _families_by_name(images, place)


def _groups_by_name(images: ImageSet, place: Placement) -> Check:
    name = "names that look like one group"
    names = sorted(set(images.groups))
    pairs = list(dict.fromkeys(_series_pairs(names) + _spelling_pairs(names)))
    if not pairs:
        says = "No two group names look like parts of one."
        return Check(name, "pass", says, "", {"groups": len(names)})
    one = []
    other = []
    why = []
    for a, b, reason in pairs:
        # images that stand in the same parts would say the same: one of each kind
        left = _one_of_each(place, np.flatnonzero(images.groups == a))
        right = _one_of_each(place, np.flatnonzero(images.groups == b))
        lefts = np.repeat(left, len(right))
        rights = np.tile(right, len(left))
        worst = int(place.leaks(lefts, rights).argmax())
        one.append(lefts[worst])
        other.append(rights[worst])
        why.append(f"{a} | {b}: {reason}")
    check = place.pair_check(
        name,
        (np.array(one), np.array(other)),
        what="belong to a group whose name looks like that of a group",
        fix="Find out whether they are of one specimen; if so, give them one group.",
        columns={"groups": np.array(why)},
    )
    if check.verdict == "pass":
        return check
    words = "; ".join(dict.fromkeys(check.rows["groups"]))
    return replace(
        check,
        verdict="warn",
        says=f"Groups in different parts look like one by their names: {words[:300]}.",
        numbers={**check.numbers, "groups that look like one": len(pairs)},
    )


def _families_by_name(images: ImageSet, place: Placement) -> Check:
    name = "names that look like one group"
    label_names = {bare_key(one) for one in images.classes}
    names = np.array([_without_last_number(one, label_names) for one in images.ids])
    counts = pd.Series(names).value_counts()
    families = [one for one in counts.index[counts > 1] if one]
    inside = np.isin(names, families)
    if not 2 <= len(families) <= len(images) / 2 or inside.mean() < 0.5:
        says = "The file names show no families of images."
        return Check(name, "not assessable", says, "", {"families": len(families)})
    crossing = set()
    for parts in place.parts.T:
        used = inside & (parts > 0)
        in_parts = pd.Series(parts[used]).groupby(names[used]).nunique()
        crossing |= set(in_parts.index[in_parts > 1])
    crossing = sorted(crossing)
    numbers = {"families": len(families), "families in two parts": len(crossing)}
    if not crossing:
        says = f"The file names form {len(families)} families, each in one part."
        return Check(name, "pass", says, "", numbers)
    return Check(
        name,
        "warn",
        f"The file names form {len(families)} families, such as {crossing[0]}..., and "
        f"{len(crossing)} of them stand in several parts. If a family is a neuron, slide or "
        "animal, this is a leak.",
        "Find out what the names mean; add a column 'group' with what stands before the last "
        "number.",
        numbers,
        pd.DataFrame({"family": crossing}),
    )


def _one_of_each(place: Placement, rows: np.ndarray) -> np.ndarray:
    return rows[np.unique(place.parts[rows], axis=0, return_index=True)[1]]


def _without_last_number(name: str, labels: set[str]) -> str:
    stem = re.sub(r"\.[A-Za-z]{3,4}$", "", name.rsplit("/", 1)[-1])
    found = re.fullmatch(r"(.*[A-Za-z0-9])[ _.()-]+[A-Za-z]*\d+\)?", stem)
    return found[1] if found and bare_key(found[1]) not in labels else ""


def _series_pairs(names: list[str]) -> list[tuple[str, str, str]]:
    """Names that end in "k of n": other parts of one number, and the complementary part at the next
    number.
    """
    at = {}
    for name in names:
        match = PART_OF.fullmatch(name)
        if match:
            at[match["stem"], int(match["number"]), int(match["k"]), int(match["n"])] = name
    found = []
    for (stem, number, k, n), name in at.items():
        for other in range(1, n + 1):
            same = at.get((stem, number, other, n))
            if same and other > k:
                found.append((name, same, f"parts {k} and {other} of {n}"))
            following = at.get((stem, number + 1, other, n))
            if following and other != k:
                reason = f"parts {k} and {other} of {n} of neighbouring numbers"
                found.append((name, following, reason))
    return found


def _spelling_pairs(names: list[str]) -> list[tuple[str, str, str]]:
    by_plain: dict[str, str] = {}
    found = []
    for name in names:
        first = by_plain.setdefault(bare_key(name), name)
        if first != name:
            found.append((first, name, "differ in spelling only"))
    return found


def overlapping_crops(images: ImageSet, place: Placement) -> Check:
    """Whether crops in different parts show the same place. Needs the columns x_px and y_px (and
    z_px or section; crop_height_px and crop_width_px where the crops were of another size than
    their pixels here), or x_nm, y_nm (and z_nm) and the pixel size; crops of different volumes,
    images or slides cannot overlap."""
    from scipy.spatial import cKDTree

    name = "overlapping crops"
    table = images.table
    found = _positions(images)
    if found is None:
        return Check(
            name,
            "not assessable",
            "The positions of the crops in their source are not known.",
            "Add the columns x_px and y_px (and z_px), and 'image' or 'slide' for their source.",
        )
    at, sizes = found
    unknown = ~np.isfinite(np.c_[at, sizes]).all(axis=1)
    if unknown.any():
        return Check(
            name,
            "not assessable",
            f"Position or size of {int(unknown.sum())} of {len(table)} crops is not known.",
            "Fill in the columns of the position; the size is that of the image file.",
        )
    parent = np.zeros(len(table))
    named = [one for one in PARENTS if one in table]
    if named:
        parent = table[named[0]].astype(str).to_numpy()
    pairs = []
    for rows in table.groupby(parent).indices.values():
        tree = cKDTree(at[rows] / sizes.max(axis=0))
        near = tree.query_pairs(1 - 1e-9, p=np.inf, output_type="ndarray")
        pairs.append(rows[near])
    one, other = np.concatenate(pairs).reshape(-1, 2).T
    gap = 1 - abs(at[one] - at[other]) / (sizes[one] + sizes[other]) * 2
    near = (gap > 1e-9).all(axis=1)
    if images.pixels.ndim == 4:  # sections of one plane: what they share lies in y and x
        gap = gap[:, 1:]
    return place.pair_check(
        name,
        (one[near], other[near]),
        what="share a part of their area with an image",
        fix="Put crops that overlap into one part, or leave a border between the parts unused.",
        columns={"overlap": np.prod(gap[near], axis=1).round(4)},
    )


def _positions(images: ImageSet) -> tuple[np.ndarray, np.ndarray] | None:
    """Positions and sizes of the crops, (n, 3) float each (z, y, x) in one unit; None where the
    table has no positions.
    """
    table = images.table
    depth = images.pixels.ndim == 5
    size = np.array(images.pixels.shape[2:], float)
    if not depth:
        size = np.array([0.5, *size])  # so that neighbouring sections do not overlap
    if {"x_px", "y_px"} <= set(table):
        unit = "px"
        names = ("z_px", "section")
    elif {"x_nm", "y_nm"} <= set(table) and images.pixel_size_nm is not None:
        unit = "nm"
        names = ("z_nm",)
        pixel = np.array(images.pixel_size_nm, float)
        size = size * (pixel if depth else np.r_[1.0, pixel])
    else:
        return None
    sizes = np.tile(size, (len(table), 1))
    if unit == "px" and {"crop_height_px", "crop_width_px"} <= set(table):
        sizes[:, -2:] = table[["crop_height_px", "crop_width_px"]]
    places = [table[name] for name in names if name in table][:1] or [np.zeros(len(table))]
    places += [table[f"y_{unit}"], table[f"x_{unit}"]]
    at = np.stack([pd.to_numeric(one, errors="coerce") for one in places], 1)
    return at.astype(float), sizes


def selection(place: Placement, split: Split, record: Mapping[str, object] | None) -> Check:
    """Whether anything was chosen by its score on the test part: from the split, and from what the
    run wrote down.

    ``record`` may have ``selected_on`` ("validation", "test", "nothing") and ``choices``, rows of
    what competed with their scores, as ``cross_validate`` returns them.
    """
    name = "test used for selection"
    fix = (
        "Choose epoch, recipe and threshold on validation images that are not test images; "
        "look at test once."
    )
    tested = (place.parts & TEST) > 0
    validation = (place.parts & VALIDATION) > 0
    both = tested & validation
    worst = int(both.sum(axis=0).argmax())
    record = dict(record or {})
    choices = pd.DataFrame(record.get("choices", []))
    by_test = [column for column in map(str, choices.columns) if column.startswith("test")]
    numbers = {
        "test images also used for validation": int(both[:, worst].sum()),
        "test images": int(tested[:, worst].sum()),
        "choices recorded": len(choices),
        "selected on": record.get("selected_on", ""),
    }
    if both.any():
        rows, folds = np.nonzero(both)
        says = (
            f"{numbers['test images also used for validation']} of {numbers['test images']} test "
            "images are the validation images too: what was chosen was chosen by its test score."
        )
        table = pd.DataFrame({"image": place.ids[rows], "fold": folds})
        return Check(name, "fail", says, fix, numbers, table)
    if record.get("selected_on") == "test" or by_test:
        says = "The run's record says that something was chosen by its score on the test part"
        columns = f" ({', '.join(by_test)})" if by_test else ""
        return Check(name, "fail", f"{says}{columns}.", fix, numbers)
    if len(choices) or record.get("selected_on"):
        says = (
            f"By the run's record, choices were made on {record.get('selected_on', 'validation')} "
            f"images ({len(choices)} recorded)."
        )
        return Check(name, "pass", says, "", numbers)
    if "picked" in split.known_leak:
        return Check(name, "fail", f"The split says so: {split.known_leak}.", fix, numbers)
    if validation.any():
        says = (
            "No test image is a validation image, but no run has recorded what was chosen and by "
            "which score."
        )
        return Check(name, "not assessable", says, "", numbers)
    says = (
        "There is no validation part and no record of what was chosen by which score: whatever was "
        "chosen was perhaps chosen on test images."
    )
    return Check(name, "not assessable", says, fix, numbers)


def balance(images: ImageSet, split: Split) -> Check:
    """Classes per part and group: missing ones, shares that differ, and a test part that is mostly
    one group.
    """
    name = "balance of the classes"
    label = dict(zip(images.ids, images.table["label"], strict=True))
    table = split.table.assign(label=split.table["id"].astype(str).map(label))
    keys = ["repeat", "fold", "part", "label"]
    counts = table.groupby(keys).size().unstack("label", fill_value=0)
    counts = counts.reindex(columns=list(images.classes), fill_value=0)
    rows = counts.reset_index()
    test = split.table[split.table["part"] == "test"].groupby(["repeat", "fold"])["group"]
    # share of the largest group in the test part of each fold
    largest = test.value_counts(normalize=True).groupby(level=[0, 1]).max()
    numbers = {
        "classes": images.counts(),
        "largest share of one group in a test part": float(largest.max()) if len(test) else None,
    }

    def found(verdict: str, says: str, fix: str) -> Check:
        return Check(name, verdict, says, fix, numbers, rows)

    if sum(count > 0 for count in images.counts().values()) < 2:
        says = (
            f"All images are of one class ({', '.join(images.classes)}): nothing can be told apart."
        )
        return found("fail", says, "Add images of another class.")
    present = sorted(set(split.table["part"]))
    if not {"train", "test"} <= set(present):
        return found("fail", f"There is only the part {' and '.join(present)}.", TWO_PARTS)
    missing = _missing_class(counts)
    if missing:
        says = f"There is no image of {missing}."
        return found("warn", says, "Use fewer folds, or add images.")
    apart, p, where = _shares_apart(counts)
    if where:
        numbers["largest difference"] = apart
        says = (
            f"The share of a class differs by {apart:.0%} between training and test "
            f"({where}, p = {p:.1g})."
        )
        return found("warn", says, "Stratify the split by class.")
    # of many folds, those that test on one group alone are meant to
    largest = largest[(test.nunique() > 1) | (len(test) == 1)]
    if largest.max() > DOMINANT:
        says = (
            f"One group makes up {largest.max():.0%} of a test part: the score is about that group."
        )
        return found("warn", says, "Cap the images per group, or weigh groups equally.")
    says = (
        "Every class is in training and test; no share differs by more than a tenth beyond chance."
    )
    return found("pass", says, "")


def _missing_class(counts: pd.DataFrame) -> str:
    """The first class that a training or test part lacks, and where; empty where there is none."""
    for (repeat, fold, part), row in counts.iterrows():
        absent = row.index[row == 0]
        if part != "validation" and len(absent):
            return f"{absent[0]} in {part} (repeat {repeat}, fold {fold})"
    return ""


def _shares_apart(counts: pd.DataFrame) -> tuple[float, float, str]:
    """The largest difference of a class's share between training and test that chance does not
    explain, its p, and the fold; 0, 1 and empty where there is none.
    """
    from scipy.stats import chi2_contingency

    worst = (0.0, 1.0, "")
    for (repeat, fold), parts in counts.groupby(level=["repeat", "fold"]):
        parts = parts.droplevel(["repeat", "fold"])
        if not {"train", "test"} <= set(parts.index):
            continue
        pair = parts.loc[["train", "test"]]
        pair = pair.loc[:, pair.sum() > 0].to_numpy()
        shares = pair / pair.sum(axis=1, keepdims=True).clip(1)
        apart = float(abs(shares[0] - shares[1]).max())
        p = 1.0
        if pair.shape[1] > 1 and (pair.sum(1) > 0).all():
            p = float(chi2_contingency(pair).pvalue)
        if apart > SHARE_APART and p < CERTAIN and apart > worst[0]:
            worst = (apart, p, f"repeat {repeat}, fold {fold}")
    return worst
