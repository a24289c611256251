"""Do corrected shares and their differences hold what they say? Simulated where the truth is known.

    .venv/bin/python benchmarks/answer.py --simulations 2000
    .venv/bin/python benchmarks/answer.py --mixtures NAME=results/NOTEBOOK/predictions.csv

Writes docs/answer.md, and docs/answer.json with all cases. The first set of cases is the one that
the method of nbhelpers/answer/shares.py was chosen on: two classes, shares of the units by a beta
distribution. The second one has other laws, classes, units, images and validation sets.

``--mixtures NAME=predictions.csv`` adds pseudo-animals mixed with known shares from a table of real
predictions (test images of its first model); groups of labelled images are drawn from it anew.

Beside the corrected shares stand the same units as counted, with Student's t over units, and the
adjusted count whose error rates are taken for exact. Of two conditions without a difference, the
test on single images, as if they were independent, says how often it would find one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, logit

from nbhelpers.answer.conditions import LEAST_APART, counts_of
from nbhelpers.answer.shares import corrected
from nbhelpers.core.files import write_json, write_text
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed

DOCS = Path(__file__).resolve().parents[1] / "docs"
CHOSEN_ON = "the method was chosen on these"
OTHER = "other laws, classes, units, images and validation sets"
SIXTY = "error rates from 60 labelled new images, 5 of each of 12 units"
MIXED = "Mixed from real predictions"
ALIKE = 0.03
GOAL = 0.93
MOST = 0.985  # of the mean coverage
ALARMS = 0.06
BIAS = 0.01
CELL = ("units", "images", "accuracy", "share", "effect", "alike", "classes", "law")
SHIFTS = """## Can 60 labelled new images show that the error rates have changed?

Two classes; the images of the other class are more often taken for the
one that is looked at, so that its corrected share is wrong by .05. The table gives the power of the
most powerful test that there is (at .06 false alarms; the old error rate known exactly, the images
independent), and how many labelled images would give it power .8.
"""
METHODS = ("corrected", "counted", "rates taken for exact")


class Part(NamedTuple):
    """The units of one condition, as ``corrected`` takes them."""

    sign: int
    shares: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class Case:
    """Two conditions: in the first the last class has the ``share``, in the second the share and
    the ``effect`` together; the other classes are equally frequent.

    ``units`` per condition with ``images`` each (``uneven``: standard deviation of their
    logarithm); ``accuracy``, the same for every class; ``alike``: correlation within units, of the
    true classes and half as much of the errors; ``law`` of the units' shares: "beta", "logit"
    (normal on that scale) or "two kinds" (half the units have 1.4 times the share, half 0.6 times).
    Validation images: ``groups`` of ``size`` each, the last class with ``labelled`` of them.
    """

    units: int
    images: int
    accuracy: float
    share: float
    effect: float
    alike: float
    classes: int = 2
    law: str = "beta"
    uneven: float = 0.0
    groups: int = 15
    size: int = 30
    labelled: float = 0.3


SHARES = ((0, 0), (0.05, 0), (0.2, 0), (0, 0.1), (0.1, 0.1), (0, 0.2), (0.2, 0.2))
OTHER_SHARES = ((0, 0), (0.1, 0), (0.03, 0.12), (0.2, 0.2))


def cases_chosen_on() -> list[Case]:
    design = product((3, 4, 6, 12), (20, 60, 200), (0.7, 0.85, 0.98), SHARES, (0, 0.02, 0.1))
    return [Case(n, m, accuracy, *both, alike) for n, m, accuracy, both, alike in design]


def cases_not_looked_at() -> list[Case]:
    kinds = (
        {"classes": 3, "law": "logit"},
        {"classes": 3, "law": "two kinds", "uneven": 0.5},
        {"classes": 2, "law": "logit", "uneven": 0.5, "groups": 8, "size": 60},
        {"classes": 2, "law": "two kinds", "groups": 30, "size": 15, "labelled": 0.15},
        {"classes": 4, "law": "beta", "groups": 20, "size": 40, "labelled": 0.2},
        {"classes": 2, "law": "beta", "groups": 300, "size": 1},
    )
    found = []
    for kind in kinds:
        design = product((3, 5, 8, 10), (30, 120), (0.75, 0.92), OTHER_SHARES, (0.01, 0.05))
        found += [
            Case(n, m, accuracy, *both, alike, **kind) for n, m, accuracy, both, alike in design
        ]
    return found


def cases_of_sixty() -> list[Case]:
    kind = {"groups": 12, "size": 5, "labelled": 0.25}
    design = product((4, 6, 12), (60,), (0.75, 0.92), OTHER_SHARES, (0.02, 0.1), (2, 3))
    return [Case(*five[:3], *five[3], *five[4:], **kind) for five in design]


def around(rng: np.random.Generator, means: np.ndarray, alike: float) -> np.ndarray:
    """Shares, (..., classes), of units whose images are ``alike``, around their means."""
    if not alike:
        return means
    drawn = np.where(means > 0, rng.gamma(np.maximum(means * (1 / alike - 1), 1e-9)), 0)
    return drawn / np.maximum(drawn.sum(-1, keepdims=True), 1e-300)


def shares_of(last: np.ndarray, classes: int) -> np.ndarray:
    """(..., classes): the last class with its share, the others equally frequent."""
    others = np.repeat((1 - last[..., None]) / (classes - 1), classes - 1, axis=-1)
    return np.concatenate([others, last[..., None]], axis=-1)


def units_of(rng: np.random.Generator, case: Case, share: float, shape: tuple) -> np.ndarray:
    """The true shares of units, (*shape, classes)."""
    if case.law == "beta" or share == 0:
        means = shares_of(np.full(shape, float(share)), case.classes)
        return around(rng, means, case.alike)
    if case.law == "two kinds":
        last = np.where(rng.random(shape) < 0.5, 1.4, 0.6) * share
        return shares_of(last, case.classes)
    spread = np.sqrt(case.alike / (share * (1 - share)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()

    def above(middle: float) -> float:
        return float(weights @ expit(middle + spread * nodes)) - share

    middle = brentq(above, logit(share) - 5, logit(share) + 5)
    return shares_of(expit(middle + spread * rng.standard_normal(shape)), case.classes)


def predicted(rng: np.random.Generator, case: Case, true: np.ndarray) -> np.ndarray:
    """(..., true, predicted) counts from those of the true classes, (..., classes): every unit or
    group has error rates of its own around the common ones."""
    wrong = (1 - case.accuracy) / (case.classes - 1)
    rates = np.full((case.classes, case.classes), wrong)
    np.fill_diagonal(rates, case.accuracy)
    rates = np.broadcast_to(rates, (*true.shape, case.classes))
    return rng.multinomial(true, around(rng, rates, case.alike / 2))


def condition(rng: np.random.Generator, case: Case, share: float, simulations: int) -> Part:
    shape = (simulations, case.units)
    images = case.images * np.exp(case.uneven * rng.standard_normal(shape))
    images = np.maximum(images.round(), 5).astype(int)
    true = rng.multinomial(images, units_of(rng, case, share, shape))
    counted = predicted(rng, case, true).sum(-2) / images[..., None]
    return Part(1, counted, images.astype(float))


def validation(rng: np.random.Generator, case: Case, simulations: int) -> np.ndarray:
    shape = (simulations, case.groups)
    means = shares_of(np.full(shape, case.labelled), case.classes)
    true = rng.multinomial(case.size, around(rng, means, case.alike))
    return predicted(rng, case, true).astype(float)


def plain(
    parts: list[Part], back: np.ndarray, at: int = -1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low and high of one class, by Student's t over units (Welch)."""
    value = 0.0
    variances = []
    for sign, shares, _ in parts:
        own = (shares @ back)[..., at]
        value = value + sign * own.mean(-1)
        variances.append(own.var(-1, ddof=1) / own.shape[-1])
    freedom = parts[0].shares.shape[-2] - 1
    variance = sum(variances) + 1e-15
    freedom = freedom * variance**2 / (sum(one**2 for one in variances) + 1e-30)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    return value, value - half, value + half


def of_images(parts: list[Part]) -> float:
    """How often the test of two counts finds a difference, images taken for independent."""
    hits = [(part.shares[..., -1] * part.images).sum(-1) for part in parts]
    sizes = [part.images.sum(-1) for part in parts]
    pooled = sum(hits) / sum(sizes)
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1])) + 1e-15
    return float((abs(hits[1] / sizes[1] - hits[0] / sizes[0]) / deviation > 1.96).mean())


def simulated(case: Case, simulations: int) -> dict:
    """How often the intervals held the truth, the mean error of the values (in standard errors of
    the simulation, too), the mean width, and how often a difference was found."""
    rng = np.random.default_rng(derive_seed(0, "answer", *map(str, asdict(case).values())))
    first = condition(rng, case, case.share, simulations)
    second = condition(rng, case, case.share + case.effect, simulations)
    counts = validation(rng, case, simulations)
    # as the command does: three groups with images of each class, or no interval, and error rates
    # that differ enough, or no answer
    usable = ((counts.sum(-1) > 0).sum(-2) >= 3).all(-1)
    rates = counts.sum(-3) / np.maximum(counts.sum((-3, -1)), 1)[..., None]
    usable &= np.linalg.svd(rates, compute_uv=False)[..., -1] >= LEAST_APART
    counts = counts[usable]
    first = Part(-1, first.shares[usable], first.images[usable])
    second = Part(1, second.shares[usable], second.images[usable])
    back = np.linalg.inv(rates[usable])
    found: dict = asdict(case) | {"usable": round(usable.mean(), 4)}
    truths = {"share": case.share + case.effect, "difference": case.effect}
    for what, parts in {"share": [second], "difference": [first, second]}.items():
        ends = {
            "corrected": [one[..., -1] for one in corrected(parts, counts)],
            "counted": plain(parts, np.eye(case.classes)),
            "rates taken for exact": plain(parts, back),
        }
        truth = truths[what]
        for method, (value, low, high, *_) in ends.items():
            held = (low <= truth + 1e-9) & (truth - 1e-9 <= high)
            found[f"{what}, {method}"] = {
                name: round(float(number), 4)
                for name, number in {
                    "coverage": held.mean(),
                    "bias": value.mean() - truth,
                    "error": value.std() / np.sqrt(len(value)),
                    "width": (high - low).mean(),
                    "found": ((low > 0) | (high < 0)).mean(),
                }.items()
            }
    found["found on single images"] = of_images([first, second])
    return found


def failing(row: dict, what: str, simulations: int) -> bool:
    """Whether an interval held the truth less often than its goal, beyond two standard errors."""
    least = GOAL - 2 * np.sqrt(GOAL * (1 - GOAL) / simulations)
    return row[f"{what}, corrected"]["coverage"] < least


def summary(rows: list[dict], simulations: int) -> dict:
    """Over cases: mean and worst coverage, bias and alarms, each way of counting beside the other.

    The worst of many cases is low by chance alone: ``below`` counts those beyond two standard
    errors, of which one in forty is expected where the goal is just held.
    """
    found: dict = {"cases": len(rows)}
    for what in ("share", "difference"):
        for method in METHODS:
            cells = [row[f"{what}, {method}"] for row in rows]
            coverage = [cell["coverage"] for cell in cells]
            beyond = [max(0, abs(cell["bias"]) - 2 * cell["error"]) for cell in cells]
            found[f"{what}, {method}"] = {
                "mean": np.mean(coverage),
                "least": min(coverage),
                "bias": max(beyond),
                "width": np.mean([cell["width"] for cell in cells]),
            }
        found[f"{what}, below"] = sum(failing(row, what, simulations) for row in rows)
    for name, same in (("alarms", True), ("power", False)):
        kept = [row for row in rows if (row["effect"] == 0) == same and row["units"] > 3]
        if not kept:
            continue
        for method in METHODS:
            of = [row[f"difference, {method}"]["found"] for row in kept]
            found[f"{name}, {method}"] = {"mean": np.mean(of), "most": max(of)}
        of = [row["found on single images"] for row in kept]
        found[f"{name}, single images"] = {"mean": np.mean(of), "most": max(of)}
    return found


def table_of(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def split_by(rows: list[dict], name: str, simulations: int) -> str:
    """A table over the values of one setting."""
    header = [name, "cases", "share: mean", "worst", "below", "difference: mean", "worst", "below"]
    lines = []
    for value in sorted({row[name] for row in rows}):
        of = summary([row for row in rows if row[name] == value], simulations)
        line = [value, of["cases"]]
        for what in ("share", "difference"):
            cell = of[f"{what}, corrected"]
            line += [f"{cell['mean']:.3f}", f"{cell['least']:.3f}", of[f"{what}, below"]]
        lines.append(line)
    return table_of(header, lines)


def page(found: dict) -> str:
    simulations = found["simulations"]
    text = [
        "# What corrected shares hold\n",
        f"Written by `benchmarks/answer.py`, all cases in `docs/answer.json`: {simulations:,} "
        "experiments per case, simulated where the truth is known. Two conditions of 3 to 12 "
        "units; what is looked at is the share of one class in the second condition, and by how "
        "much it differs from the first. **Coverage**: how often a 95 % interval held the truth; "
        f"the goals are {GOAL} in every case and at most {MOST} on average. *Below*: cases under "
        "the goal by more than two standard errors. **Bias**: the largest mean error of a case "
        "beyond two standard errors (of values before they are limited to 0 and 1; goal "
        f"{BIAS}). **Found**: how often a difference was called one (p < .05), from 4 units per "
        f"condition; where there is none, at most {ALARMS}.\n",
    ]
    for title, rows in found["sets"].items():
        of = summary(rows, simulations)
        text.append(f"## {title[0].upper()}{title[1:]}\n")
        lines = []
        for method in METHODS:
            line = [method]
            for what in ("share", "difference"):
                cell = of[f"{what}, {method}"]
                line += [f"{cell['mean']:.3f}", f"{cell['least']:.3f}", f"{cell['bias']:.3f}"]
            alarms = of[f"alarms, {method}"]
            line += [f"{alarms['mean']:.3f}", f"{alarms['most']:.3f}"]
            lines.append([*line, f"{of[f'power, {method}']['mean']:.3f}"])
        single = [f"{of['alarms, single images'][key]:.3f}" for key in ("mean", "most")]
        power = f"{of['power, single images']['mean']:.3f}"
        lines.append(["test on single images", *[""] * 6, *single, power])
        header = ["", "share: coverage", "worst", "bias", "difference: coverage", "worst", "bias"]
        header += ["found without one: mean", "most", "found where there is one"]
        usable = np.mean([row["usable"] for row in rows])
        text.append(
            f"{of['cases']} cases. In {100 * usable:.1f} % of the experiments the labelled images "
            "sufficed (three groups with images of each class, error rates that differ enough); of "
            "the others the command gives no interval or no answer.\n\n" + table_of(header, lines)
        )
        for name in ("units", "images", "accuracy", "share", "effect", "alike", "law", "classes"):
            if len({row[name] for row in rows}) > 1:
                text.append(split_by(rows, name, simulations))
        worst = [
            [what, *(row[name] for name in CELL), f"{row[f'{what}, corrected']['coverage']:.3f}"]
            for row, what in product(rows, ("share", "difference"))
            if failing(row, what, simulations)
        ]
        text.append("Below the goal: " + ("" if worst else "none.\n"))
        if worst:
            text.append(table_of(["of", *CELL, "coverage"], worst))
    return "\n".join([*text, SHIFTS, shifts()])


def shifts() -> str:
    """How well labelled new images can show that the error rates of the validation images no longer
    hold: for the most powerful test that there is, of independent images, an old rate that is known
    exactly, and a change in one known direction."""
    lines = []
    for accuracy, share in product((0.7, 0.85, 0.9, 0.95, 0.98), (0.1, 0.3)):
        rates = [1 - accuracy, 1 - accuracy + 0.05 * (2 * accuracy - 1) / (1 - share)]
        enough = next(n for n in range(20, 9999, 10) if best_power(n * (1 - share), *rates) >= 0.8)
        lines.append([accuracy, share, f"{best_power(60 * (1 - share), *rates):.2f}", enough])
    return table_of(["accuracy", "share", "power with 60", "images for power .8"], lines)


def best_power(images: float, before: float, after: float) -> float:
    """Of the randomised test of a binomial share at ALARMS (Neyman and Pearson)."""
    images = round(images)
    tail = stats.binom.sf(np.arange(images + 1) - 1, images, before)
    first = int(np.flatnonzero(tail <= ALARMS)[0])
    extra = (ALARMS - tail[first]) / (tail[first - 1] - tail[first])
    more = extra * stats.binom.pmf(first - 1, images, after)
    return float(stats.binom.sf(first - 1, images, after) + more)


def mixed(name: str, path: Path, simulations: int) -> list[dict]:
    """Coverage for each class and effect: the class rises by the effect from its share in the
    table, in 6 pseudo-animals per condition of 60 images each, whose shares differ (``ALIKE``)."""
    table = Predictions.load(path).where(split="test")
    first = table.table["model"].iloc[0]
    table = table.where(model=first, repeat=table.table["repeat"].iloc[0])
    counts = counts_of(table.table, table.classes)
    rates = counts.sum(0) / counts.sum((0, 2))[:, None]
    shares = counts.sum((0, 2)) / counts.sum()
    rng = np.random.default_rng(derive_seed(0, "mixed", name))
    drawn = counts[rng.integers(len(counts), size=(simulations, len(counts)))]
    found = []
    for at, effect in product(range(len(table.classes)), (0, 0.1)):
        after = shares * (1 - effect / (1 - shares[at]))
        after[at] = shares[at] + effect
        parts = []
        for sign, means in ((-1, shares), (1, after)):
            units = around(rng, np.broadcast_to(means, (simulations, 6, len(means))), ALIKE)
            true = rng.multinomial(60, units)
            counted = rng.multinomial(true, rates).sum(-2) / 60
            parts.append(Part(sign, counted, np.full((simulations, 6), 60.0)))
        row = {"predictions": f"{name}, {first}", "class": table.classes[at], "effect": effect}
        truths = {"share": (parts[1:], after[at]), "difference": (parts, effect)}
        for what, (of, truth) in truths.items():
            for method, ends in (
                ("corrected", [one[..., at] for one in corrected(of, drawn)]),
                ("counted", plain(of, np.eye(len(shares)), at)),
            ):
                held = (ends[1] <= truth) & (truth <= ends[2])
                row[f"{what}, {method}"] = round(float(held.mean()), 3)
                row[f"mean {what}, {method}"] = round(float(ends[0].mean()), 3)
        found.append(row)
    return found


def mixtures_page(rows: list[dict], simulations: int) -> str:
    return (
        f"\n## {MIXED}\n\nPseudo-animals with known shares, {simulations:,} experiments each: 6 "
        "per condition, 60 images each, drawn from a table of predictions; in the second condition "
        "a class is more frequent by the effect. The labelled images are as many groups of the "
        "table as it has, drawn anew. Coverage of 95 % intervals, and the mean of the values.\n\n"
        + table_of(list(rows[0]), [list(row.values()) for row in rows])
    )


def lines_of(rows: list[dict]) -> dict[str, object]:
    """All cases, a line of text each."""
    settings = [field.name for field in fields(Case)]
    columns = list(product(("share", "difference"), ("coverage", "bias", "width", "found")))
    lines = []
    for row in rows:
        cells = [row[f"{what}, corrected"][number] for what, number in columns]
        lines.append(", ".join(map(str, [*(row[name] for name in settings), *cells])))
    return {"columns": ", ".join([*settings, *map(" ".join, columns)]), "cases": lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--every", type=int, default=1, help="of the cases only one in so many")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the two files")
    parser.add_argument(
        "--mixtures", action="append", default=[], metavar="NAME=FILE", help="only these, added"
    )
    options = parser.parse_args()
    json_file = options.out / "answer.json"
    page_file = options.out / "answer.md"
    if options.mixtures:
        rows = []
        for text in options.mixtures:
            name, _, path = text.partition("=")
            rows += mixed(name, Path(path), options.simulations)
        write_json(json_file, json.loads(json_file.read_text()) | {"mixtures": rows})
        before = page_file.read_text().partition(f"\n## {MIXED}")[0]
        write_text(page_file, before + mixtures_page(rows, options.simulations))
        return
    sets = {}
    kept = {}
    designs = {CHOSEN_ON: cases_chosen_on(), OTHER: cases_not_looked_at(), SIXTY: cases_of_sixty()}
    for title, cases in designs.items():
        rows = [simulated(case, options.simulations) for case in cases[:: options.every]]
        sets[title] = rows
        kept[title] = {"summary": summary(rows, options.simulations)} | lines_of(rows)
    found = {"simulations": options.simulations, "sets": sets}
    write_json(json_file, found | {"sets": kept})
    write_text(page_file, page(found))


if __name__ == "__main__":
    main()
