"""The headline of a run, made from what its chapters wrote down, never by hand.

The record is a dict of plain values, a key per chapter, and stands in metrics.json. Two keys decide
the headline: ``result``, the score that a notebook is known by, and ``floors``, what reaches the
same score without understanding anything. The highest of these is the one to beat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from nbhelpers.core.errors import InputError
from nbhelpers.core.estimate import Estimate


@dataclass(frozen=True)
class Headline:
    """The one score that a notebook is known by, and all that has to stand beside it.

    ``low`` and ``high`` are None where no interval can be given, ``floor`` where there is none.
    ``above_floor`` says whether the score is above its highest floor: by the interval of the paired
    difference where there is one, else by the score's own; None where neither can tell.
    ``worst_finding`` is the worst that the audit found, in a sentence; empty where all passed.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    n_text: str
    floor_name: str | None = None
    floor: float | None = None
    above_floor: bool | None = None
    model: str = ""
    worst_finding: str = ""

    def __post_init__(self):
        numbers = [self.value] if self.low is None else [self.value, self.low, self.high]
        for number in numbers:
            if not isinstance(number, float | int) or not math.isfinite(number):
                raise InputError(f"headline {self.name}", f"{number!r} is not a finite number.")
        if self.n < 1:
            raise InputError(
                f"headline {self.name}", f"n is {self.n}.", "Say how many were scored."
            )
        if self.low is not None and not self.low <= self.value <= self.high:
            raise InputError(
                f"headline {self.name}",
                f"{self.value} lies outside its interval [{self.low}, {self.high}].",
                "Use the interval of this very score.",
            )

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        return headline_text(asdict(self))


def headline_text(headline: Mapping[str, object]) -> str:
    """E.g. 'Accuracy 0.931 [0.912, 0.949], 456 spines (highest floor 0.901, shape features)'."""
    score = Estimate(headline["value"], headline.get("low"), headline.get("high"))
    counted = headline.get("n_text") or f"n = {headline['n']}"
    text = f"{headline['name']} {score.text()}, {counted}"
    if headline.get("floor") is not None:
        text += f" (highest floor {headline['floor']:.3f}, {headline['floor_name']})"
    if above_floor(headline) is False:
        text += "; NOT ABOVE ITS FLOOR"
    return text


def above_floor(headline: Mapping[str, object]) -> bool | None:
    """Whether the score is above its highest floor; None where there is no floor or no interval."""
    if headline.get("above_floor") is not None or "above_floor" in headline:
        return headline["above_floor"]
    if headline.get("floor") is None or headline.get("low") is None:
        return None
    return headline["low"] > headline["floor"]


def counted(n_images: int, n_groups: int | None, images: str, groups: str) -> str:
    """E.g. '192 synapses of 24 neurons'; without the groups where each image is its own."""
    if n_groups is None or n_groups == n_images:
        return f"{n_images} {images}"
    return f"{n_images} {images} of {n_groups} {groups}"


def make_headline(record: Mapping[str, dict]) -> Headline:
    """The headline of what the chapters recorded. Raises InputError where no score was recorded.

    ``record["result"]`` has ``name``, ``score``, ``model``, ``estimate`` and ``n_text``;
    ``record["floors"]`` maps the name of a floor to its scores, of which the one named by ``score``
    counts; ``record["differences"]``, where there is one, maps it to the paired difference of that
    score, model minus floor.
    """
    if "result" not in record:
        raise InputError(
            "run.finish",
            "no chapter recorded a score.",
            "Show the scores (nbhelpers.reports.chapters.scores), or call run.set_result.",
        )
    result = record["result"]
    estimate = result["estimate"]
    reached = {}
    for name, scores in record.get("floors", {}).items():
        value = scores[result["score"]].value if result["score"] in scores else None
        if value is not None and math.isfinite(value):
            reached[name] = float(value)
    highest = max(reached, key=reached.get) if reached else None
    above = None
    if highest is not None:
        difference = record.get("differences", {}).get(highest)
        if difference is not None and difference.has_interval:
            above = difference.low > 0
        elif estimate.low is not None:
            above = estimate.low > reached[highest]
    leaks = any(split.get("known_leak") for split in record.get("split", []))
    return Headline(
        name=result["name"] + (", from a split that leaks" if leaks else ""),
        value=float(estimate.value),
        low=None if estimate.low is None else float(estimate.low),
        high=None if estimate.high is None else float(estimate.high),
        n=int(estimate.n),
        n_text=result["n_text"],
        floor_name=highest,
        floor=reached.get(highest),
        above_floor=above,
        model=result["model"],
        worst_finding=record.get("audit", {}).get("worst", ""),
    )
