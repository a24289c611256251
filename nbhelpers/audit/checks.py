"""The audit: all checks of one set of images and its split, in one call; and the section for
training notebooks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.audit import duplicates, groups
from nbhelpers.audit.placement import Placement
from nbhelpers.audit.shortcuts import shortcut_checks
from nbhelpers.audit.verdicts import Audit, Check
from nbhelpers.core.errors import InputError
from nbhelpers.core.files import sha256_of_file
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split

if TYPE_CHECKING:
    from nbhelpers.core.predictions import Predictions

COPIES = "Keep one of the copies, or give all copies of an image one group before splitting."


def run_audit(
    images: ImageSet,
    split: Split,
    *,
    predictions: Predictions | None = None,
    record: Mapping[str, object] | None = None,
    files: Sequence[str | Path] | None = None,
    groups_known: bool = True,
    pixels_known: bool = True,
    columns: Sequence[str] = (),
    shortcuts: bool = True,
    embed: Callable[[np.ndarray], np.ndarray] | None = None,
    strict: bool = False,
    shuffles: int = 1000,
    seed: int = 0,
    extra: Sequence[Check] = (),
) -> Audit:
    """Look for leaks and shortcuts in a set of images and its split, before or after training.

    Parameters
    ----------
    split : any split; one that leaks, with ``known_leak``, is what the audit is for.
    predictions : of the image model (test rows of one model), to compare its score with those of
        shortcuts.
    record : what a run wrote down: ``selected_on`` ("validation", "test"), ``choices`` (see
        ``groups.selection``).
    files : one path per image, in the order of the set, to compare the files themselves.
    groups_known, pixels_known : False where the group column, or the pixels, only stand in for what
        nobody has.
    columns : further columns of the table to try as shortcuts; ``shortcuts=False`` leaves them all
        out, which is quicker.
    embed : pixels to (n, d) features, e.g. ``duplicates.network_embedding(...)``; a second witness
        of near-duplicates.
    strict : raise AuditError, with the audit in it, when a check fails; training then stops before
        it begins.
    shuffles : of labels, to tell shortcuts from chance: fewer where chance does as well at once,
        more (about 200 for each shortcut that is tried) where what looks like one must be told from
        the best of many.

    Returns an Audit. Raises InputError when the split names images that the set lacks.
    """
    if files is not None and len(files) != len(images):
        raise InputError(
            images.name,
            f"there are {len(files)} files for {len(images)} images.",
            "Give one path per image.",
        )
    place = Placement.of(images, split)
    copies = (
        _copies(images, place, files, embed)
        if pixels_known
        else [
            Check(
                "near-duplicates in two parts",
                "not assessable",
                "No image file could be read: copies can only be told by their names.",
                "Give a column 'path' with the image files; it starts at the folder of the table.",
            )
        ]
    )
    leaks = [
        groups.same_image(place),
        *copies,
        groups.same_group(images, place, groups_known),
        groups.one_group_by_name(images, place, groups_known),
        groups.overlapping_crops(images, place),
    ]
    parts = set(split.table["part"])
    if (
        not {"train", "test"} <= parts
    ):  # with nothing to compare, that nothing was found says nothing
        leaks = [
            one
            if one.verdict != "pass"
            else Check(
                one.name,
                "not assessable",
                f"There is only the part {' and '.join(sorted(parts))}.",
                "A split needs train and test at least.",
                one.numbers,
            )
            for one in leaks
        ]
    checks = [*extra, *leaks, groups.selection(place, split, record), groups.balance(images, split)]
    if shortcuts:
        checks += shortcut_checks(
            images,
            columns=columns,
            predictions=predictions,
            pixels_known=pixels_known,
            shuffles=shuffles,
            seed=seed,
        )
    found = Audit(
        {
            "images": images.name,
            "n": len(images),
            "groups": len(set(images.groups)) if groups_known else None,
            "classes": images.counts(),
            "content_hash": images.content_hash,
            "synthetic": images.synthetic,
            "protocol": split.protocol,
            "split": split.hash,
            "known_leak": split.known_leak,
        },
        tuple(checks),
    )
    if strict:
        found.stop_if_failed()
    return found


def _copies(
    images: ImageSet, place: Placement, files: Sequence[str | Path] | None, embed
) -> list[Check]:
    """The checks for the same file, the same pixels, near-duplicates, and what an
    embedding adds."""
    if files is None:
        checks = [
            Check(
                "same file in two parts",
                "not assessable",
                "The files themselves are not known here; their pixels are.",
            )
        ]
    else:
        hashes = [sha256_of_file(file) if Path(file).is_file() else "" for file in files]
        checks = [
            place.pair_check(
                "same file in two parts",
                *duplicates.equal_pairs(hashes),
                fix=COPIES,
                what="are a copy, byte for byte, of a file",
            )
            if any(hashes)
            else Check(
                "same file in two parts",
                "not assessable",
                "None of the files can be found.",
                "Give paths that exist.",
            )
        ]
    same = duplicates.equal_pairs(duplicates.pixel_hashes(images.pixels))
    checks.append(
        place.pair_check(
            "same pixels in two parts", *same, fix=COPIES, what="have the very pixels of an image"
        )
    )
    one, other, alike, threshold = duplicates.near_pairs(images.pixels)
    check = place.pair_check(
        "near-duplicates in two parts",
        one,
        other,
        fix=COPIES,
        correlation=alike.round(4),
        what="are a turned, mirrored, recompressed or slightly edited copy of an image",
    )
    checks.append(
        Check(
            check.name,
            check.verdict,
            check.says,
            check.fix,
            {**check.numbers, "correlation asked for": threshold},
            check.rows,
        )
    )
    if embed is not None:
        checks.append(
            _embedded(images, place, embed, set(zip(one.tolist(), other.tolist(), strict=True)))
        )
    return checks


def _embedded(images: ImageSet, place: Placement, embed, known: set[tuple[int, int]]) -> Check:
    """Pairs that a network holds for alike and the hash does not: to be looked at, so never worse
    than warn.
    """
    name = "near-duplicates by embedding"
    try:
        one, other, alike, threshold = duplicates.embedded_pairs(embed(images.pixels))
    except InputError as error:
        return Check(
            name,
            "not assessable",
            f"The embedding model is absent ({error.what}) Near-duplicates are found by the "
            "perceptual hash alone.",
            error.fix,
        )
    new = np.array(
        [pair not in known for pair in zip(one.tolist(), other.tolist(), strict=True)], bool
    )
    check = place.pair_check(
        name,
        one[new],
        other[new],
        cosine=alike[new].round(4),
        what="look to a network like a copy of an image",
        fix="Look at the pairs in the CSV. " + COPIES,
    )
    return Check(
        name,
        "warn" if check.verdict == "fail" else check.verdict,
        check.says,
        check.fix,
        {**check.numbers, "cosine asked for": threshold},
        check.rows,
    )


def record_of(folder: str | Path) -> dict:
    """What a finished run wrote down about its choices, for ``run_audit(record=...)``, from
    metrics.json and manifest.json.

    Raises InputError where the folder holds no finished run.
    """
    try:
        metrics, manifest = (
            json.loads((Path(folder) / name).read_text(encoding="utf-8"))
            for name in ("metrics.json", "manifest.json")
        )
    except (OSError, ValueError) as error:
        raise InputError(
            folder, f"there is no finished run in it ({error}).", "Give a folder under results/."
        ) from None
    leaks = " ".join(str(one.get("known_leak", "")) for one in manifest.get("splits", []))
    choices = metrics["metrics"].get("choices") or []
    if "picked" in leaks:
        return {"selected_on": "test", "choices": choices}
    chosen = choices or metrics["metrics"].get("recipes_chosen")
    return {"selected_on": "validation", "choices": choices} if chosen else {}


def audit_section(
    run,
    images: ImageSet,
    split: Split,
    predictions: Predictions | None = None,
    *,
    choices: pd.DataFrame | None = None,
    strict: bool = False,
    **options,
) -> Audit:
    """The audit section of a training notebook: shows the verdicts as a table, says what to fix,
    writes ``audit/``.

    ``predictions`` are the test rows of the notebook's model, ``choices`` the table of
    ``cross_validate``; ``options`` go to ``run_audit``. With ``strict`` a failed audit stops the
    notebook, after its table was shown.
    """
    record = options.pop("record", None) or (
        {"selected_on": "validation", "choices": choices.to_dict("records")}
        if choices is not None and len(choices)
        else None
    )
    found = run_audit(images, split, predictions=predictions, record=record, **options)
    found.save(run.folder / "audit")
    shown = found.table().rename(columns={"how to fix it": "fix"})
    run.show_table(
        shown[shown["verdict"] != "pass"].reset_index(drop=True),
        caption=f"Audit of {images.name}: {found.verdict}. "
        f"{int((shown['verdict'] == 'pass').sum())} of {len(shown)} checks passed and are left out "
        f"here; all are in "
        "audit/audit.json, the rows in question in the CSV files beside it.",
    )
    if strict:
        found.stop_if_failed()
    return found
