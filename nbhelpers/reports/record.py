"""The headline of a run, made from what its chapters wrote down, never by hand.

The record is a dict of plain values, a key per chapter, and stands in metrics.json. ``result`` is
the score that a notebook is known by, ``floors`` what reaches the same score without understanding
anything, ``differences`` and ``rivals`` the paired differences to floors and to models that could
make this one needless. Report, index card, terminal and README show the same headline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from nbhelpers.core.errors import InputError
from nbhelpers.core.estimate import Estimate

ANSWERS = ("yes", "no", "not shown")
DONE = "done"
WITH_WARNINGS = "done, with warnings"
MEND = "The report says of each image that was left out why, and how to mend it."
UNSURE = (
    "The network is not sure of most of them: their classes are guesses. Train on more images, or "
    "longer, where its score is low too."
)
COMPARE = (
    "Compare how they and the training images were cut, scaled and stained, or train on labelled "
    "images of their kind."
)


@dataclass(frozen=True)
class Headline:
    """The one score that a notebook is known by, and all that has to stand beside it.

    ``low`` and ``high`` are None where no interval can be given, ``floor`` where there is none.
    ``n_effective`` is how many independent images would tell as much, where that is fewer.
    ``above_floor`` says whether the score is above its highest floor: by the interval of the paired
    difference where there is one, else by the score's own; None where neither can tell.
    ``answer`` answers the notebook's question in one sentence that begins with yes, no or not
    shown. ``worst_finding`` is the worst that the audit found, ``warning`` what must be said of the
    new images, ``users_images`` what became of the images that the user gave; all are empty where
    there is nothing to say. ``state`` is "done", or "done, with warnings" where the user has little
    from the run: the warning then says what to do next.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    n_text: str
    n_effective: float | None = None
    floor_name: str | None = None
    floor: float | None = None
    above_floor: bool | None = None
    model: str = ""
    answer: str = ""
    worst_finding: str = ""
    users_images: str = ""
    state: str = DONE
    warning: str = ""

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
    """E.g. 'Accuracy 0.931 [0.912, 0.949], 456 spines (highest floor 0.901, shape features). Yes:
    TinyCNN is above shape features by +0.030 [+0.010, +0.050].'; before it what became of the
    images that the user gave.
    """
    score = Estimate(headline["value"], headline.get("low"), headline.get("high"))
    text = f"{headline['name']} {score.text()}, {scored_text(headline)}"
    if headline.get("floor") is not None:
        text += f" (highest floor {headline['floor']:.3f}, {headline['floor_name']})"
    if headline.get("answer"):
        text += f". {headline['answer']}"
    elif above_floor(headline) is False:  # of a run before answers were given
        text += "; NOT ABOVE ITS FLOOR"
    if headline.get("worst_finding"):
        text += f" Audit: {headline['worst_finding']}"
    warning = headline.get("warning")
    if warned(headline):
        text = f"{warning} {text}"
    elif warning:
        text += f" New images: {warning}"
    return f"{headline.get('users_images', '')} {text}".lstrip()


def warned(headline: Mapping[str, object] | None) -> bool:
    """Whether the run is done with warnings."""
    return bool(headline) and headline.get("state") == WITH_WARNINGS


def users_images(record: Mapping[str, dict]) -> tuple[str, str]:
    """What became of the images that the user gave, "" where none were given; and what to do next,
    "" unless more were left out than used, or fewer than half of those without a label have a
    prediction with neither of the two flags.
    """
    said = []
    steps = []
    for item in record.get("data", []):
        if item["own"]:
            used = item["n"]
            out = item["left_out"]
            # files of a plate are no images: what is left out there cannot be added to what is used
            given = f"{used + out} given, " if item["own"] == "folder" else ""
            said.append(f"Your labelled images: {given}{used} used, {out} left out.")
            if out > used:
                steps.append(MEND)
    new = record.get("new_images", {})
    if new.get("own"):
        given = new["given"]
        predicted = new["predicted"]
        refused = given - predicted
        flagged = new["out_of_distribution"]
        counts = {
            "refused (could not be used)": refused,
            "out of distribution": flagged,
            "of low confidence": new["low_confidence"],
            "whose grey values may be inverted": new.get("in_doubt"),
        }
        parts = [f"{count} {what}" for what, count in counts.items() if count]
        if predicted and flagged is None:
            parts.append("too few training images to tell which are out of distribution")
        parts = ", ".join([f"{predicted} predicted", *parts])
        said.append(f"Your {given} image{'s' * (given != 1)}: {parts}: see {new['file']}.")
        if 2 * new["unflagged"] < given:
            steps += [MEND] if refused else []
            if flagged:
                steps += [new["warning"], COMPARE]
            if 2 * (new["low_confidence"] - (flagged or 0)) > predicted:
                steps.append(UNSURE)
    return " ".join(said), " ".join(dict.fromkeys(filter(None, steps)))


def scored_text(headline: Mapping[str, object]) -> str:
    """What was scored, e.g. '192 synapses of 24 neurons, as good as 114 independent ones'."""
    text = headline.get("n_text") or f"n = {headline['n']}"
    if headline.get("n_effective"):
        text += f", as good as {headline['n_effective']:.0f} independent ones"
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
    counts; ``record["differences"]`` and ``record["rivals"]`` map floors and rivals to the paired
    difference of that score, model minus the other; ``record["answer"]``, where a notebook's
    question is not whether its score is above its floor, has ``answer`` and ``because``.
    """
    if "result" not in record:
        raise InputError(
            "run.finish",
            "no chapter recorded a score.",
            "Show the scores (nbhelpers.reports.chapters.scores), or call run.set_result.",
        )
    result = record["result"]
    estimate = result["estimate"]
    if estimate.value is None:
        raise InputError(
            f"headline {result['name']}",
            f"it is not defined: {estimate.reason}.",
            "Test images of every class.",
        )
    reached = {}
    for name, scores in record.get("floors", {}).items():
        value = scores[result["score"]].value if result["score"] in scores else None
        if value is not None and math.isfinite(value):
            reached[name] = float(value)
    highest = max(reached, key=reached.get) if reached else None
    difference = _difference(record, estimate, highest, reached)
    leaks = any(split.get("known_leak") for split in record.get("split", []))
    said, next_steps = users_images(record)
    return Headline(
        name=result["name"] + (", from a split that leaks" if leaks else ""),
        **estimate.columns(),
        n=int(estimate.n),
        n_text=result["n_text"],
        n_effective=estimate.n_effective,
        floor_name=highest,
        floor=reached.get(highest),
        above_floor=None if difference is None else difference.above_zero,
        model=result["model"],
        answer=_answer(record, highest, difference, leaks),
        worst_finding=record.get("audit", {}).get("worst", ""),
        users_images=said,
        state=WITH_WARNINGS if next_steps else DONE,
        warning=next_steps or record.get("new_images", {}).get("warning", ""),
    )


def _difference(
    record: Mapping[str, dict], estimate: Estimate, highest: str | None, reached: dict[str, float]
) -> Estimate | None:
    """Score minus highest floor: the paired difference, else the score's own interval less the
    floor; None where neither has an interval.
    """
    if highest is None:
        return None
    paired = record.get("differences", {}).get(highest)
    if paired is not None:
        return paired if paired.has_interval else None
    if estimate.low is None:
        return None
    floor = reached[highest]
    return Estimate(estimate.value - floor, estimate.low - floor, estimate.high - floor)


def _answer(
    record: Mapping[str, dict], highest: str | None, difference: Estimate | None, leaks: bool
) -> str:
    """One sentence that begins with yes, no or not shown; made from what was found."""
    own = record.get("answer")
    result = record["result"]
    model = result["model"] or f"the score ({result['name'].lower()})"
    rivals = {name: one for name, one in record.get("rivals", {}).items() if one.has_interval}
    if leaks:
        rivals = {}
        text = "Not shown: the split leaks, so the score says nothing about new images"
    elif own:
        text = f"{own['answer'].capitalize()}: {own['because']}"
        if difference is not None:
            text += f"; {model} minus {highest} {difference.text(sign='+')}"
    elif highest is None:
        text = "Not shown: there is no floor to compare the score with"
    elif difference is None:
        paired = record.get("differences", {}).get(highest, result["estimate"])
        text = f"Not shown: {paired.reason or 'the difference to the highest floor is unknown'}"
    elif difference.above_zero:
        text = f"Yes: {model} is above {highest} by {difference.text(sign='+')}"
    elif difference.high < 0:
        text = f"No: {model} is below {highest}, difference {difference.text(sign='+')}"
    else:
        text = (
            f"Not shown: {model} may be no better than {highest}, difference "
            f"{difference.text(sign='+')}"
        )
    if rivals:
        strongest = min(rivals, key=lambda name: rivals[name].value)
        text += f"; against {strongest}, which is no floor, {rivals[strongest].text(sign='+')}"
    if record.get("synthetic"):
        text += "; on synthetic images"
    return text + "."
