"""The audit: all checks of one set of images and its split, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from nbhelpers.audit.question import Provenance, Question
from nbhelpers.audit.verdicts import Audit
from nbhelpers.core.errors import InputError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split

# What is looked at, in this order: "module:function", a function of a Question that gives a list
# of checks. A check of your own is one more line.
CHECKS = (
    "nbhelpers.audit.leaks:leak_checks",
    "nbhelpers.audit.shortcuts:shortcut_checks",
)


def run_audit(
    images: ImageSet,
    split: Split,
    *,
    predictions: Predictions | None = None,
    record: Mapping[str, object] | None = None,
    provenance: Provenance | None = None,
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
    question = Question(images, split, known, predictions, record, shuffles, seed)
    checks = list(known.checks)
    for name in CHECKS:
        module, _, function = name.partition(":")
        checks += getattr(import_module(module), function)(question)
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
