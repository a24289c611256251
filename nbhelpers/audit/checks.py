"""The audit: all checks of one set of images and its split, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Provenance:
    """What is known of a set beyond its table and pixels, as of a user's own table.

    ``files``: one path per image, in the order of the set, to compare the files themselves.
    ``groups_known``, ``pixels_known``: False where the group column, or the pixels, only stand in
    for what nobody has. ``columns``: further columns of the table to try as shortcuts. ``checks``:
    what was found out before, put first.
    """

    files: Sequence[str | Path] | None = None
    groups_known: bool = True
    pixels_known: bool = True
    columns: Sequence[str] = ()
    checks: Sequence[Check] = ()


def run_audit(
    images: ImageSet,
    split: Split,
    *,
    predictions: Predictions | None = None,
    record: Mapping[str, object] | None = None,
    provenance: Provenance | None = None,
    embed: Callable[[np.ndarray], np.ndarray] | None = None,
    shuffles: int = 1000,
    seed: int = 0,
) -> Audit:
    """Look for leaks and shortcuts in a set of images and its split, before or after training.

    Parameters
    ----------
    split : any split; one that leaks, with ``known_leak``, is what the audit is for.
    predictions : of the image model (test rows of one model), to compare its score with those of
        shortcuts.
    record : what a run wrote down: ``selected_on`` ("validation", "test"), ``choices`` (see
        ``groups.selection``).
    embed : pixels to (n, d) features, e.g. ``embedding.network_embedding(...)``; a second witness
        of near-duplicates.
    shuffles : of labels, to tell shortcuts from chance: fewer where chance does as well at once,
        more (about 200 for each shortcut that is tried) where what looks like one must be told from
        the best of many. 0 leaves the shortcuts out, which is quicker.

    Returns an Audit; its ``stop_if_failed()`` stops training before it begins. Raises InputError
    when the split names images that the set lacks.
    """
    known = provenance or Provenance()
    if known.files is not None and len(known.files) != len(images):
        raise InputError(
            images.name,
            f"there are {len(known.files)} files for {len(images)} images.",
            "Give one path per image.",
        )
    place = Placement.of(images, split)
    leaks = [
        groups.same_image(place),
        *_copies(images, place, known, embed),
        groups.same_group(images, place, known.groups_known),
        groups.one_group_by_name(images, place, known.groups_known),
        groups.overlapping_crops(images, place),
    ]
    parts = set(split.table["part"])
    if not {"train", "test"} <= parts:
        # with nothing to compare, that nothing was found says nothing
        only = f"There is only the part {' and '.join(sorted(parts))}."
        open_ = {"verdict": "not assessable", "says": only, "fix": groups.TWO_PARTS}
        leaks = [replace(one, **open_) if one.verdict == "pass" else one for one in leaks]
    checks = [*known.checks, *leaks]
    checks += [groups.selection(place, split, record), groups.balance(images, split)]
    if shuffles:
        checks += shortcut_checks(
            images,
            split,
            predictions=predictions,
            columns=known.columns,
            pixels_known=known.pixels_known,
            shuffles=shuffles,
            seed=seed,
        )
    about = {
        "images": images.name,
        "n": len(images),
        "groups": len(set(images.groups)) if known.groups_known else None,
        "classes": images.counts(),
        "content_hash": images.content_hash,
        "synthetic": images.synthetic,
        "protocol": split.protocol,
        "split": split.hash,
        "known_leak": split.known_leak,
    }
    return Audit(about, tuple(checks))


def audit_section(
    images: ImageSet,
    split: Split,
    predictions: Predictions | None = None,
    *,
    choices: pd.DataFrame | None = None,
    **options,
) -> tuple[Audit, pd.DataFrame]:
    """The audit of a training notebook, and its checks that did not pass as a table for readers:
    check, verdict, what was found, fix.

    ``predictions`` are the test rows of the notebook's model, ``choices`` the table of
    ``cross_validate``; ``options`` go to :func:`run_audit`.
    """
    if choices is not None and len(choices):
        record = {"selected_on": "validation", "choices": choices.to_dict("records")}
        options = {"record": record, **options}
    found = run_audit(images, split, predictions=predictions, **options)
    table = found.table().rename(columns={"how to fix it": "fix"})
    return found, table[table["verdict"] != "pass"].reset_index(drop=True)


def _copies(images: ImageSet, place: Placement, known: Provenance, embed) -> list[Check]:
    """The checks for the same file, the same pixels, near-duplicates, and what an
    embedding adds."""
    near = "near-duplicates in two parts"
    if not known.pixels_known:
        return [
            Check(
                near,
                "not assessable",
                "No image file could be read: copies can only be told by their names.",
                "Give a column 'path' with the image files; it starts at the folder of the table.",
            )
        ]
    pixels = duplicates.equal_pairs(duplicates.pixel_hashes(images.pixels))
    one, other, alike, threshold = duplicates.near_pairs(images.pixels)
    turned = place.pair_check(
        near,
        (one, other),
        fix=COPIES,
        what="are a turned, mirrored, recompressed or slightly edited copy of an image",
        columns={"correlation": alike.round(4)},
    )
    checks = [
        _same_file(place, known.files),
        place.pair_check(
            "same pixels in two parts",
            pixels,
            fix=COPIES,
            what="have the very pixels of an image",
        ),
        replace(turned, numbers={**turned.numbers, "correlation asked for": threshold}),
    ]
    if embed is not None:
        pairs = set(zip(one.tolist(), other.tolist(), strict=True))
        checks.append(_embedded(images, place, embed, pairs))
    return checks


def _same_file(place: Placement, files: Sequence[str | Path] | None) -> Check:
    name = "same file in two parts"
    if files is None:
        says = "The files themselves are not known here; their pixels are."
        return Check(name, "not assessable", says)
    hashes = [sha256_of_file(file) if Path(file).is_file() else "" for file in files]
    if not any(hashes):
        says = "None of the files can be found."
        return Check(name, "not assessable", says, "Give paths that exist.")
    pairs = duplicates.equal_pairs(hashes)
    what = "are a copy, byte for byte, of a file"
    return place.pair_check(name, pairs, fix=COPIES, what=what)


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
    pairs = zip(one.tolist(), other.tolist(), strict=True)
    new = np.array([pair not in known for pair in pairs], bool)
    check = place.pair_check(
        name,
        (one[new], other[new]),
        what="look to a network like a copy of an image",
        fix="Look at the pairs in the CSV. " + COPIES,
        columns={"cosine": alike[new].round(4)},
    )
    verdict = "warn" if check.verdict == "fail" else check.verdict
    return replace(check, verdict=verdict, numbers={**check.numbers, "cosine asked for": threshold})
