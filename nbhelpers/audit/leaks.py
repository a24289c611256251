"""Leaks between the parts of a split: copies, torn groups, a test part that was chosen on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nbhelpers.audit import duplicates, groups
from nbhelpers.audit.placement import Placement
from nbhelpers.audit.question import Provenance, Question
from nbhelpers.audit.verdicts import Check
from nbhelpers.core.files import sha256_of_file
from nbhelpers.core.imageset import ImageSet

COPIES = "Keep one of the copies, or give all copies of an image one group before splitting."


def leak_checks(question: Question) -> list[Check]:
    """Every check of what must not stand in two parts, then how the model was chosen and whether
    the parts hold the same classes.
    """
    images = question.images
    split = question.split
    known = question.known
    place = Placement.of(images, split)
    leaks = [
        groups.same_image(place),
        *_copies(images, place, known),
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
    return [
        *leaks,
        groups.selection(place, split, question.record),
        groups.balance(images, split),
    ]


def _copies(images: ImageSet, place: Placement, known: Provenance) -> list[Check]:
    """The checks for the same file, the same pixels, and near-duplicates."""
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
    one, other, alike, asked = duplicates.near_pairs(images.pixels)
    turned = place.pair_check(
        near,
        (one, other),
        fix=COPIES,
        what="are a turned, mirrored, cropped, shifted, recompressed or slightly edited copy of an "
        "image",
        columns={"correlation": alike.round(4), "correlation asked for": asked.round(4)},
    )
    return [
        _same_file(place, known.files),
        place.pair_check(
            "same pixels in two parts",
            pixels,
            fix=COPIES,
            what="have the very pixels of an image",
        ),
        turned,
    ]


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
