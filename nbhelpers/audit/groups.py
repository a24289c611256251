"""What a split may break: images, groups, crops that overlap, the part that is looked at once, and
the balance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from nbhelpers.audit.placement import NAMES, TEST, TRAIN, VALIDATION, Placement
from nbhelpers.audit.verdicts import Check
from nbhelpers.core.imageset import ImageSet
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


def same_image(place: Placement) -> Check:
    """Whether one image stands in the training and in the test part of a fold (75 of 92 in the
    published spine split).
    """
    both = ((place.parts & TEST) > 0) & ((place.parts & TRAIN) > 0)
    inner = ((place.parts & VALIDATION) > 0) & ((place.parts & TRAIN) > 0)
    tested = ((place.parts & TEST) > 0).sum(axis=0)
    worst = int(both.sum(axis=0).argmax())
    rows, folds = np.nonzero(both | inner)
    table = pd.DataFrame(
        {
            "image": place.ids[rows],
            "fold": folds,
            "parts": [NAMES[bits] for bits in place.parts[rows, folds]],
        }
    )
    numbers = {
        "test images trained on": int(both[:, worst].sum()),
        "test images": int(tested[worst]),
        "folds with such images": int(both.any(axis=0).sum()),
        "folds": place.parts.shape[1],
    }
    name = "same image in two parts"
    if both.any():
        return Check(
            name,
            "fail",
            f"{numbers['test images trained on']} of {numbers['test images']} test images were "
            f"trained "
            "on" + (" (in the worst fold)." if numbers["folds"] > 1 else "."),
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
    for fold in range(place.parts.shape[1]):
        holds = np.stack(
            [
                np.bincount(code, (place.parts[:, fold] & bit) > 0, len(names))
                for bit in (TRAIN, VALIDATION, TEST)
            ]
        )
        fitted = (
            holds[0] if _chosen_on_test(place.parts[:, fold]) else holds[0] + holds[1]
        )  # that has its own check
        leak = (holds[2] > 0) & (fitted > 0)
        within = (holds[1] > 0) & (holds[0] > 0) & (holds[2] == 0)
        shared = max(shared, int(leak.sum()))
        inner = inner + int(within.sum())
        tested = max(tested, int((holds[2] > 0).sum()))
        rows += [
            {
                "fold": fold,
                "group": names[at],
                **{f"{part} images": int(holds[row, at]) for row, part in enumerate(PARTS)},
            }
            for at in np.flatnonzero(leak | within)
        ]
    table = pd.DataFrame(rows)
    numbers = {
        "groups": len(names),
        "test groups": tested,
        "test groups in training or validation": shared,
    }
    fix = "Put all images of a group into one part: nbhelpers.core.splits makes such splits."
    if shared:
        return Check(
            name,
            "fail",
            f"{shared} of {tested} groups of the test part also stand in training or validation"
            + (" (in the worst fold)." if place.parts.shape[1] > 1 else "."),
            fix,
            numbers,
            table,
        )
    if inner:
        return Check(
            name,
            "warn",
            f"{inner} groups stand in training and validation: choices are too hopeful.",
            fix,
            numbers,
            table,
        )
    alone = len(names) == len(images)
    return Check(
        name,
        "pass",
        f"No group is in two parts ({len(names)} groups)."
        + (
            " Every image is its own group: right only if no two are of one neuron, slide, plate "
            "or animal."
            if alone
            else ""
        ),
        "",
        numbers,
    )


def _chosen_on_test(parts: np.ndarray) -> bool:
    validation = (parts & VALIDATION) > 0
    return bool(validation.any()) and bool(((parts & TEST) > 0)[validation].all())


def one_group_by_name(images: ImageSet, place: Placement, known: bool) -> Check:
    """Groups (or, without any, images) whose names look like one: ``012854_2of2`` beside
    ``012855_1of2``, ``Slide 7`` beside ``slide_07``, ``a_1.png`` beside ``a_2.png``."""
    name = "names that look like one group"
    label_names = {_plain(one) for one in images.classes}
    names = (
        images.groups
        if known
        else np.array([_without_last_number(one, label_names) for one in images.ids])
    )
    of_name = pd.Series(np.arange(len(names))).groupby(names).first()
    if known:
        pairs = _series_pairs(list(of_name.index)) + _spelling_pairs(list(of_name.index))
        found = [(a, b, why) for a, b, why in dict.fromkeys(pairs)]
        one = []
        other = []
        why = []
        for (
            a,
            b,
            reason,
        ) in found:  # images that stand in the same parts would say the same: one of each kind
            left, right = (
                _one_of_each(place, np.flatnonzero(names == one_name)) for one_name in (a, b)
            )
            at = np.repeat(left, len(right)), np.tile(right, len(left))
            worst = int(place.leaks(*at).argmax())
            one.append(at[0][worst])
            other.append(at[1][worst])
            why.append(f"{a} | {b}: {reason}")
        if not found:
            return Check(
                name,
                "pass",
                "No two group names look like parts of one.",
                "",
                {"groups": len(of_name)},
            )
        check = place.pair_check(
            name,
            np.array(one),
            np.array(other),
            what="belong to a group whose name looks like that of a group",
            fix="Find out whether they are of one specimen; if so, give them one group.",
            groups=np.array(why),
        )
        words = "; ".join(dict.fromkeys(check.rows["groups"])) if len(check.rows) else ""
        return (
            check
            if check.verdict == "pass"
            else Check(
                name,
                "warn",
                f"Groups in different parts look like one by their names: {words[:300]}.",
                check.fix,
                check.numbers | {"groups that look like one": len(found)},
                check.rows,
            )
        )
    counts = pd.Series(names).value_counts()
    families = [one for one in counts.index[counts > 1] if one]
    inside = np.isin(names, families)
    if not 2 <= len(families) <= len(images) / 2 or inside.mean() < 0.5:
        return Check(
            name,
            "not assessable",
            "The file names show no families of images.",
            "",
            {"families": len(families)},
        )
    crossing = set()
    for parts in place.parts.T:
        used = inside & (parts > 0)
        in_parts = pd.Series(parts[used]).groupby(names[used]).nunique()
        crossing |= set(in_parts.index[in_parts > 1])
    crossing = sorted(crossing)
    numbers = {"families": len(families), "families in two parts": len(crossing)}
    if not crossing:
        return Check(
            name,
            "pass",
            f"The file names form {len(families)} families, each in one part.",
            "",
            numbers,
        )
    return Check(
        name,
        "warn",
        f"The file names form {len(families)} families, such as {crossing[0]}..., and "
        f"{len(crossing)} of "
        "them stand in several parts. If a family is a neuron, slide or animal, this is a leak.",
        "Find out what the names mean; add a column 'group' with what stands before the last "
        "number.",
        numbers,
        pd.DataFrame({"family": crossing}),
    )


def _one_of_each(place: Placement, rows: np.ndarray) -> np.ndarray:
    return rows[np.unique(place.parts[rows], axis=0, return_index=True)[1]]


def _plain(text: str) -> str:
    return re.sub(
        r"(?<!\d)0+(?=\d)",
        "",
        re.sub(r"[^a-z0-9]+", "", re.sub(r"(?<=\d)[^a-z0-9]+(?=\d)", "x", text.lower())),
    )


def _without_last_number(name: str, labels: set[str]) -> str:
    stem = re.sub(r"\.[A-Za-z]{3,4}$", "", name.rsplit("/", 1)[-1])
    found = re.fullmatch(r"(.*[A-Za-z0-9])[ _.()-]+[A-Za-z]*\d+\)?", stem)
    return found[1] if found and _plain(found[1]) not in labels else ""


def _series_pairs(names: list[str]) -> list[tuple[str, str, str]]:
    """Names that end in "k of n": other parts of one number, and the complementary part at the next
    number.
    """
    found = []
    parsed = [(name, match) for name in names if (match := PART_OF.fullmatch(name))]
    at = {(m["stem"], int(m["number"]), int(m["k"]), int(m["n"])): name for name, m in parsed}
    for (stem, number, k, n), name in at.items():
        for other in range(1, n + 1):
            for step in (0, 1):
                if (
                    other != k
                    and (mate := at.get((stem, number + step, other, n)))
                    and (step or other > k)
                ):
                    where = " of neighbouring numbers" if step else ""
                    found.append((name, mate, f"parts {k} and {other} of {n}{where}"))
    return found


def _spelling_pairs(names: list[str]) -> list[tuple[str, str, str]]:
    by_plain: dict[str, str] = {}
    return [
        (first, name, "differ in spelling only")
        for name in sorted(names)
        if (first := by_plain.setdefault(_plain(name), name)) != name
    ]


def overlapping_crops(images: ImageSet, place: Placement) -> Check:
    """Whether crops in different parts show the same place. Needs the columns x_px and y_px (and
    z_px or section; crop_height_px and crop_width_px where the crops were of another size than
    their pixels here), or x_nm, y_nm (and z_nm) and the pixel size; crops of different volumes,
    images or slides cannot overlap."""
    from scipy.spatial import cKDTree

    name = "overlapping crops"
    table = images.table
    depth = images.pixels.ndim == 5
    size = (
        np.array(images.pixels.shape[2:], float)
        if depth
        else np.array([0.5, *images.pixels.shape[2:]], float)
    )
    unit = next((unit for unit in ("px", "nm") if {f"x_{unit}", f"y_{unit}"} <= set(table)), None)
    if unit == "nm":
        if images.pixel_size_nm is None:
            unit = None
        else:
            pixel = np.array(images.pixel_size_nm, float)
            size = size * (pixel if depth else np.r_[1.0, pixel])
    if unit is None:
        return Check(
            name,
            "not assessable",
            "The positions of the crops in their source are not known.",
            "Add the columns x_px and y_px (and z_px), and 'image' or 'slide' for their source.",
        )
    sizes = np.tile(size, (len(table), 1))
    if unit == "px" and {"crop_height_px", "crop_width_px"} <= set(table):
        sizes[:, -2:] = table[["crop_height_px", "crop_width_px"]]
    z_name = next(
        (
            one
            for one in (f"z_{unit}", "section")
            if one in table and (unit == "px" or one != "section")
        ),
        None,
    )
    z = table[z_name] if z_name else np.zeros(len(table))
    places = (z, table[f"y_{unit}"], table[f"x_{unit}"])
    at = np.stack([pd.to_numeric(one, errors="coerce") for one in places], 1).astype(float)
    unknown = ~np.isfinite(np.c_[at, sizes]).all(axis=1)
    if unknown.any():
        return Check(
            name,
            "not assessable",
            f"Position or size of {int(unknown.sum())} of {len(table)} crops is not known.",
            "Fill in the columns of the position; the size is that of the image file.",
        )
    size = sizes.max(axis=0)
    parent = next(
        (table[one].astype(str).to_numpy() for one in PARENTS if one in table), np.zeros(len(table))
    )
    pairs = []
    for rows in pd.Series(np.arange(len(table))).groupby(parent).agg(list):
        near = cKDTree(at[rows] / size).query_pairs(1 - 1e-9, p=np.inf, output_type="ndarray")
        pairs.append(np.asarray(rows)[near])
    one, other = np.concatenate(pairs).reshape(-1, 2).T
    gap = 1 - abs(at[one] - at[other]) / (sizes[one] + sizes[other]) * 2
    near = (gap > 1e-9).all(axis=1)
    one = one[near]
    other = other[near]
    gap = gap[near]
    share = np.prod(gap[:, 0 if depth else 1 :], axis=1)
    return place.pair_check(
        name,
        one,
        other,
        what="share a part of their area with an image",
        overlap=share.round(4),
        fix="Put crops that overlap into one part, or leave a border between the parts unused.",
    )


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
    both = ((place.parts & TEST) > 0) & ((place.parts & VALIDATION) > 0)
    worst = int(both.sum(axis=0).argmax())
    record = dict(record or {})
    choices = pd.DataFrame(record.get("choices", []))
    by_test = [column for column in choices.columns if str(column).startswith("test")]
    numbers = {
        "test images also used for validation": int(both[:, worst].sum()),
        "test images": int(tested[:, worst].sum()),
        "choices recorded": len(choices),
        "selected on": record.get("selected_on", ""),
    }
    if both.any():
        rows, folds = np.nonzero(both)
        return Check(
            name,
            "fail",
            f"{numbers['test images also used for validation']} of {numbers['test images']} test "
            f"images "
            "are the validation images too: what was chosen was chosen by its test score.",
            fix,
            numbers,
            pd.DataFrame({"image": place.ids[rows], "fold": folds}),
        )
    if record.get("selected_on") == "test" or by_test:
        return Check(
            name,
            "fail",
            "The run's record says that something was chosen by its score on the test part"
            + (f" ({', '.join(map(str, by_test))})." if by_test else "."),
            fix,
            numbers,
        )
    validation = ((place.parts & VALIDATION) > 0).any()
    if len(choices) or record.get("selected_on"):
        return Check(
            name,
            "pass",
            "By the run's record, choices were made on "
            f"{record.get('selected_on', 'validation')} images ({len(choices)} recorded).",
            "",
            numbers,
        )
    if split.known_leak and "picked" in split.known_leak:
        return Check(name, "fail", f"The split says so: {split.known_leak}.", fix, numbers)
    return Check(
        name,
        "not assessable",
        "No test image is a validation image, but no run has recorded what was chosen and by "
        "which score."
        if validation
        else "There is no validation part and no record of what was chosen by which "
        "score: whatever was chosen was perhaps chosen on test images.",
        "" if validation else fix,
        numbers,
    )


def balance(images: ImageSet, split: Split) -> Check:
    """Classes per part and group: missing ones, shares that differ, and a test part that is mostly
    one group.
    """
    from scipy.stats import chi2_contingency

    label = dict(zip(images.ids, images.table["label"], strict=True))
    table = split.table.assign(label=split.table["id"].astype(str).map(label)).dropna(
        subset=["label"]
    )
    counts = (
        table.groupby(["repeat", "fold", "part", "label"]).size().unstack("label", fill_value=0)
    )
    counts = counts.reindex(columns=list(images.classes), fill_value=0)
    name = "balance of the classes"
    rows = counts.reset_index()
    test = split.table[split.table["part"] == "test"]
    largest = (
        test.groupby(["repeat", "fold", "group"]).size() / test.groupby(["repeat", "fold"]).size()
        if len(test)
        else None
    )
    numbers = {
        "classes": images.counts(),
        "largest share of one group in a test part": float(largest.max())
        if largest is not None and len(largest)
        else None,
    }
    if len(images.classes) < 2 or sum(count > 0 for count in images.counts().values()) < 2:
        return Check(
            name,
            "fail",
            f"All images are of one class ({', '.join(images.classes)}): nothing can be told "
            f"apart.",
            "Add images of another class.",
            numbers,
            rows,
        )
    if not {"train", "test"} <= set(split.table["part"]):
        return Check(
            name,
            "fail",
            f"There is only the part {' and '.join(sorted(set(split.table['part'])))}.",
            "A split needs train and test at least.",
            numbers,
            rows,
        )
    worst = (0.0, 1.0, "")
    missing = ""
    for (repeat, fold), parts in counts.groupby(level=["repeat", "fold"]):
        parts = parts.droplevel(["repeat", "fold"])
        for part in parts.index[(parts.index != "validation") & (parts == 0).any(axis=1)]:
            absent = parts.columns[(parts.loc[part] == 0).to_numpy()][0]
            missing = missing or f"{absent} in {part} (repeat {repeat}, fold {fold})"
        if {"train", "test"} <= set(parts.index):
            pair = parts.loc[["train", "test"], parts.loc[["train", "test"]].sum() > 0].to_numpy()
            shares = pair / pair.sum(axis=1, keepdims=True).clip(1)
            apart = float(abs(shares[0] - shares[1]).max())
            p = (
                float(chi2_contingency(pair).pvalue)
                if pair.shape[1] > 1 and (pair.sum(1) > 0).all()
                else 1.0
            )
            if apart > SHARE_APART and p < CERTAIN and apart > worst[0]:
                worst = (apart, p, f"repeat {repeat}, fold {fold}")
    if missing:
        return Check(
            name,
            "warn",
            f"There is no image of {missing}.",
            "Use fewer folds, or add images.",
            numbers,
            rows,
        )
    if worst[2]:
        return Check(
            name,
            "warn",
            f"The share of a class differs by {worst[0]:.0%} between training and test "
            f"({worst[2]}, p = {worst[1]:.1g}).",
            "Stratify the split by class.",
            numbers | {"largest difference": worst[0]},
            rows,
        )
    groups = test.groupby(["repeat", "fold"])["group"].nunique()
    # of many folds, those that test on one group alone are meant to
    largest = largest.groupby(level=[0, 1]).max()[(groups > 1) | (len(groups) == 1)]
    if len(largest) and largest.max() > DOMINANT:
        return Check(
            name,
            "warn",
            f"One group makes up {largest.max():.0%} of a test part: the score is about that "
            f"group.",
            "Cap the images per group, or weigh groups equally.",
            numbers,
            rows,
        )
    return Check(
        name,
        "pass",
        "Every class is in training and test; no share differs by more than a tenth beyond chance.",
        "",
        numbers,
        rows,
    )
