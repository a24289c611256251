"""Do the intervals and p-values hold what they say? Simulated where the truth is known.

    .venv/bin/python benchmarks/statistics.py --simulations 2000
    .venv/bin/python benchmarks/statistics.py --table NAME=results/NOTEBOOK/predictions.csv

Writes docs/statistics.json, and docs/statistics.md from it. The first set of cases is the one that
the constants of nbhelpers/core/intervals.py were chosen on; the second one (other laws of how
groups differ, other shares of the classes, other sizes) was not looked at before. ``--table`` adds
a table of real predictions, whose groups are drawn anew: the truth is then the score of the table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from scipy.special import expit, softmax
from scipy.stats import norm

from nbhelpers.core.files import write_json, write_text
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.evaluation.metrics import GroupSums, scores_of
from nbhelpers.evaluation.paired import differences_of

DOCS = Path(__file__).resolve().parents[1] / "docs"
SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "log_loss", "recall")
COMPARED = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
LEAST = {"recall": 0.92, "log_loss": 0.87}  # of the coverage; .93 for all others
LEAST_OF_STRESS = 0.89
TRUTH_IMAGES = 200_000
CHOSEN_ON = "the constants were chosen on these"
NEW = "not looked at before"


@dataclass(frozen=True)
class Case:
    """One simulated experiment.

    ``groups`` of ``size`` images (``uneven``: the standard deviation of log size); ``pure``:
    every group has one class; ``shares`` of the classes; ``accuracy`` of the model; ``alike``:
    standard deviation of what the images of a group share, as a multiple of what is their own,
    with the ``law`` "normal", "heavy" (Student's t, 3 degrees of freedom), "skewed" (an
    exponential) or "few bad" (one group in eight is moved by twice as much as ``alike``);
    ``repeats`` of a cross-validation that differ by ``noise``; ``sharpness`` of the
    probabilities.
    """

    name: str
    groups: int
    size: int = 1
    accuracy: float = 0.85
    alike: float = 0.0
    pure: bool = False
    shares: tuple[float, ...] = (0.5, 0.5)
    uneven: float = 0.0
    law: str = "normal"
    repeats: int = 1
    noise: float = 0.0
    sharpness: float = 1.0
    stress: bool = False


def cases_chosen_on() -> list[Case]:
    found = []
    for n in (20, 40, 92, 200, 500):
        for accuracy in (0.8, 0.9, 0.977, 0.995):
            name = f"{n} independent images, accuracy {accuracy}"
            found.append(Case(name, n, accuracy=accuracy))
    for groups, size in ((3, 30), (5, 20), (8, 12), (10, 20), (12, 30), (20, 10), (40, 10)):
        for alike in (0.2, 0.7):
            for pure in (True, False):
                if pure and groups < 5:
                    continue
                found.append(grouped(groups, size, alike=alike, pure=pure))
    for groups in (8, 12, 24):
        for pure in (True, False):
            found.append(grouped(groups, 10, alike=0.7, pure=pure, accuracy=0.977))
    for groups in (8, 12, 20):
        for pure in (True, False):
            found.append(grouped(groups, 15, alike=0.7, pure=pure, uneven=0.6))
    for groups in (3, 5, 8, 12, 20):
        for pure in (True, False):
            if pure and groups < 5:
                continue
            found.append(grouped(groups, 20, alike=1.4, pure=pure, stress=True))
    for groups, size in ((40, 1), (200, 1), (10, 20)):
        found.append(grouped(groups, size, alike=0.3, sharpness=3.0))
    for groups, size in ((40, 1), (120, 1)):
        found.append(grouped(groups, size, repeats=3, noise=0.7))
    for groups in (5, 10, 20):
        for pure in (True, False):
            found.append(grouped(groups, 15, alike=0.4, pure=pure, repeats=3, noise=0.7))
    three = (0.63, 0.25, 0.12)
    for groups, size in ((90, 1), (200, 1), (10, 20), (12, 15), (20, 15), (40, 10)):
        for alike in (0.3, 0.8):
            for pure in (True, False):
                if size == 1 and (pure or alike > 0.5):
                    continue
                found.append(grouped(groups, size, alike=alike, pure=pure, shares=three))
    return found


def cases_not_looked_at() -> list[Case]:
    found = []
    for law in ("heavy", "skewed", "few bad"):
        for groups, size in ((6, 25), (9, 16), (15, 12), (30, 8)):
            for pure in (True, False):
                found.append(grouped(groups, size, alike=0.5, pure=pure, law=law))
    for shares in ((0.9, 0.1), (0.7, 0.3)):
        for groups, size in ((150, 1), (9, 30), (16, 25)):
            found.append(grouped(groups, size, alike=0.4, shares=shares))
    for groups, size in ((7, 40), (18, 12), (33, 6)):
        for uneven in (0.3, 1.0):
            found.append(grouped(groups, size, alike=0.5, uneven=uneven, law="heavy"))
    four = (0.4, 0.3, 0.2, 0.1)
    for groups, size in ((120, 1), (14, 20), (28, 10)):
        found.append(grouped(groups, size, alike=0.5, shares=four, law="skewed"))
    for accuracy in (0.6, 0.95, 0.99):
        for groups, size in ((60, 1), (11, 14), (25, 9)):
            found.append(grouped(groups, size, alike=0.5, accuracy=accuracy, law="few bad"))
    return found


def grouped(groups: int, size: int, **settings) -> Case:
    """A case with a name that says what it is."""
    words = [f"{groups} groups of {size}" if size > 1 else f"{groups} independent images"]
    if "uneven" in settings:
        words[0] = f"{groups} uneven groups of about {size}"
    if size > 1:
        words.append("one class a group" if settings.get("pure") else "classes mixed")
    for key, value in settings.items():
        if key == "law" and value != "normal":
            words.append(f"group effects {value}")
        elif key in ("alike", "accuracy", "sharpness", "noise", "uneven"):
            words.append(f"{key} {value:g}")
        elif key == "shares":
            words.append("classes " + "/".join(f"{share:g}" for share in value))
        elif key == "repeats":
            words.append(f"{value} repeats")
        elif key == "stress" and value:
            words.append("stress")
    return Case(", ".join(words), groups, size, **settings)


# Drawing


def design(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups, (n,) int each, the same in every simulation of a case."""
    sizes = np.full(case.groups, case.size)
    if case.uneven:
        quantiles = norm.ppf((np.arange(case.groups) + 0.5) / case.groups)
        factors = np.exp(case.uneven * quantiles)
        sizes = np.maximum(2, np.round(case.size * factors / factors.mean())).astype(int)
        sizes = np.random.default_rng(case.groups).permutation(sizes)
    group = np.repeat(np.arange(case.groups), sizes)
    if case.pure:
        return _classes(case.shares, case.groups)[group], group
    return np.random.default_rng(5).permutation(_classes(case.shares, len(group))), group


def _classes(shares: tuple[float, ...], count: int) -> np.ndarray:
    places = (np.arange(count) + 0.5) / count
    return np.searchsorted(np.cumsum(shares), places).clip(0, len(shares) - 1)


def effects(rng: np.random.Generator, case: Case, shape: tuple[int, ...]) -> np.ndarray:
    """What the images of a group share: a shift of their scores; of "few bad" one that makes
    the answers worse.
    """
    if case.law == "heavy":
        return case.alike * rng.standard_t(3, shape) / np.sqrt(3)
    if case.law == "skewed":
        return case.alike * (1 - rng.exponential(1, shape))
    if case.law == "few bad":
        return -2 * case.alike * (rng.random(shape) < 1 / 8)
    return case.alike * rng.normal(size=shape)


def strength(case: Case) -> float:
    """The distance of the classes at which the model has its accuracy."""
    if len(case.shares) == 2:
        return float(norm.ppf(case.accuracy) * np.sqrt(1 + case.alike**2))
    return 2.3 if case.accuracy == 0.85 else float(2 + 8 * (case.accuracy - 0.85))


def draw(rng: np.random.Generator, case: Case, true: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(repeats, n, classes) probabilities of one simulated model."""
    kinds = len(case.shares)
    shape = (case.repeats, len(true))
    n_groups = int(group.max()) + 1
    if kinds == 2:
        side = 2 * true - 1
        score = side * strength(case) + rng.normal(size=len(true))
        shared = effects(rng, case, (n_groups,))[group]
        score = score + (side * shared if case.law == "few bad" else shared)
        score = score + case.noise * rng.normal(size=shape)
        p = expit(case.sharpness * score)
        return np.stack([1 - p, p], axis=2)
    score = strength(case) * (np.arange(kinds) == true[:, None])
    score = score + rng.normal(size=(len(true), kinds))
    score = score + effects(rng, case, (n_groups, kinds))[group]
    return softmax(case.sharpness * (score + case.noise * rng.normal(size=(*shape, kinds))), axis=2)


def sums_of(
    probabilities: np.ndarray, true: np.ndarray, group: np.ndarray, names: tuple[str, ...]
) -> GroupSums:
    """Of (repeats, n, classes) probabilities."""
    repeats, n, kinds = probabilities.shape
    flat = probabilities.reshape(-1, kinds)
    return GroupSums(
        names,
        flat,
        np.tile(true, repeats),
        flat.argmax(axis=1),
        np.tile(group, repeats),
        np.repeat(np.arange(repeats), n),
    )


def classes_of(case: Case) -> tuple[str, ...]:
    return tuple(f"class {kind}" for kind in range(len(case.shares)))


def estimates(sums: GroupSums) -> dict:
    """The scores that are looked at; recall of the last, rarest class."""
    found = scores_of(sums)
    return {**found, "recall": found["per_class"][sums.classes[-1]]["recall"]}


# Coverage of intervals


def truth(case: Case) -> dict[str, float]:
    true, group = design(case)
    copies = max(2, TRUTH_IMAGES // len(true))
    many = np.tile(true, copies)
    groups = (np.arange(copies)[:, None] * case.groups + group).ravel()
    rng = np.random.default_rng(derive_seed(1, case.name))
    p = draw(rng, case, many, groups)[:1]
    halves = (np.arange(len(many)) % 2).astype(np.int64)  # nothing here is left out in turn
    scores = sums_of(p, many, halves, classes_of(case)).scores()
    found = {name: float(scores[name][0]) for name in SCORES if name != "recall"}
    return found | {"recall": float(scores["recall"][0, -1])}


def coverage(case: Case, simulations: int) -> dict:
    """How often the interval of each score held the truth, and its mean width."""
    true, group = design(case)
    wanted = truth(case)

    def one(number: int) -> dict:
        rng = np.random.default_rng(derive_seed(7, case.name, number))
        return estimates(sums_of(draw(rng, case, true, group), true, group, classes_of(case)))

    return {**asdict(case), "scores": tally(one, wanted, simulations)}


def tally(
    one: Callable[[int], dict], wanted: dict[str, float], simulations: int
) -> dict[str, dict]:
    held = dict.fromkeys(SCORES, 0)
    given = dict.fromkeys(SCORES, 0)
    width = dict.fromkeys(SCORES, 0.0)
    for number in range(simulations):
        found = one(number)
        for name in SCORES:
            if found[name].low is None:
                continue
            given[name] += 1
            width[name] += found[name].high - found[name].low
            held[name] += found[name].low <= wanted[name] <= found[name].high
    return {
        name: {
            "truth": wanted[name],
            "coverage": held[name] / given[name] if given[name] else None,
            "width": width[name] / given[name] if given[name] else None,
            "with_interval": given[name] / simulations,
        }
        for name in SCORES
    }


def resampled_table(name: str, path: Path, groups: int, simulations: int) -> dict:
    """A table of real predictions as the population: ``groups`` of its groups drawn anew."""
    table = Predictions.load(path).where(split="test")
    first = table.table["model"].iloc[0]
    table = table.where(model=first, repeat=table.table["repeat"].iloc[0])
    sums = GroupSums.of(table)
    wanted = {key: float(sums.scores()[key][0]) for key in SCORES if key != "recall"}
    wanted["recall"] = float(sums.scores()["recall"][0, -1])
    rows_of = [np.flatnonzero(sums.group == group) for group in range(sums.n_groups)]

    def one(number: int) -> dict:
        rng = np.random.default_rng(derive_seed(9, name, number))
        drawn = [rows_of[group] for group in rng.integers(sums.n_groups, size=groups)]
        rows = np.concatenate(drawn)
        group = np.repeat(np.arange(groups), [len(part) for part in drawn])
        nothing = np.zeros(len(rows), np.int64)
        return estimates(
            GroupSums(
                sums.classes,
                sums.probabilities[rows],
                sums.true[rows],
                sums.chosen[rows],
                group,
                nothing,
            )
        )

    scores = tally(one, wanted, simulations)
    label = f"{name}: {groups} of its {sums.n_groups} groups, drawn anew"
    return {"name": label, "stress": False, "scores": scores}


# Paired differences


def paired_cases() -> list[tuple[Case, float]]:
    """Cases, each with how much the two models differ from group to group."""
    found = [(grouped(n, 1, accuracy=0.85), 0.0) for n in (20, 40, 92, 200, 500)]
    for groups, size in ((4, 30), (5, 30), (6, 30), (8, 30), (10, 30), (12, 30), (20, 15)):
        for pure in (True, False):
            found.append((grouped(groups, size, alike=0.4, pure=pure), 0.5))
    for law in ("heavy", "few bad"):
        for groups, size in ((7, 25), (14, 12), (26, 9)):
            found.append((grouped(groups, size, alike=0.4, law=law), 0.7))
    for groups, size in ((120, 1), (10, 20)):
        found.append((grouped(groups, size, alike=0.4, repeats=3, noise=0.5), 0.4))
    return found


def rejections(case: Case, apart: float, simulations: int) -> dict:
    """How often two equal models are called different at p = .05, and two unequal ones."""
    true, group = design(case)
    names = classes_of(case)
    scale = np.sqrt(0.5)  # half of what is an image's own is shared by both models

    def pair(number: int, better: float) -> dict:
        rng = np.random.default_rng(derive_seed(11, case.name, apart, better, number))
        side = 2 * true - 1
        shared = side * strength(case) + effects(rng, case, (case.groups,))[group]
        shared = shared + scale * rng.normal(size=len(true))
        sums = []
        for model in range(2):
            own = better * model * side + scale * rng.normal(size=len(true))
            own = own + apart * rng.normal(size=case.groups)[group]
            noise = case.noise * rng.normal(size=(case.repeats, len(true)))
            p = expit(2 * (shared + own + noise))
            sums.append(sums_of(np.stack([1 - p, p], axis=2), true, group, names))
        return differences_of(sums[1], sums[0])

    row = {"name": f"{case.name}, models differ by {apart:g}"}
    for key, better in (("rejected", 0.0), ("power", 0.5)):
        counts = dict.fromkeys(COMPARED, 0)
        given = 0
        for number in range(simulations):
            found = pair(number, better)
            given += found["accuracy"].p is not None
            for name in COMPARED:
                counts[name] += found[name].p is not None and found[name].p <= 0.05
        row[key] = {name: counts[name] / max(given, 1) for name in COMPARED}
    return row


# The page


def failing(row: dict, simulations: int) -> list[str]:
    """The scores of a case that lie below their goal by more than two standard errors."""
    found = []
    for name, entry in row["scores"].items():
        least = LEAST_OF_STRESS if row["stress"] else LEAST.get(name, 0.93)
        if name in LEAST:
            least = min(least, LEAST[name])
        slack = 2 * np.sqrt(least * (1 - least) / simulations)
        if entry["coverage"] is not None and entry["coverage"] < least - slack:
            found.append(name)
    return found


def shown(number: float | None) -> str:
    return "none" if number is None else f"{number:.3f}"


def page(found: dict) -> str:
    lines = [
        "# What the statistics hold",
        "",
        "Written by `benchmarks/statistics.py` from `docs/statistics.json`. Experiments were "
        f"simulated {found['simulations']:,} times each where the truth is known. **Coverage** "
        "is how often a 95 % interval held the truth; *none* where there is no interval "
        "(fewer than three groups of a class). Below its goal beyond two standard errors: "
        "marked with \\*. Intervals above .985 are wider than they had to be: with few groups "
        "they rest on an assumption, and the reports say so.",
        "",
    ]
    for title, rows in found["coverage"].items():
        lines += [f"## Intervals: {title}", ""]
        lines += ["| case | " + " | ".join(name.replace("_", " ") for name in SCORES) + " |"]
        lines += ["|" + "---|" * (len(SCORES) + 1)]
        for row in rows:
            low = failing(row, found["simulations"])
            cells = [
                shown(row["scores"][name]["coverage"]) + ("*" if name in low else "")
                for name in SCORES
            ]
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
        lines += [""]
    lines += [
        "## Paired differences",
        "",
        "Of two equal models: how often p is at most .05 (it should be .05 or less). *Power*: "
        "the same for a model that is better by half a standard deviation.",
        "",
        "| case | "
        + " | ".join(f"{name.replace('_', ' ')}" for name in COMPARED)
        + " | power (accuracy) |",
        "|" + "---|" * (len(COMPARED) + 2),
    ]
    for row in found["paired"]:
        cells = [shown(row["rejected"][name]) for name in COMPARED]
        cells.append(shown(row["power"]["accuracy"]))
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def summary(found: dict) -> dict:
    """What the README quotes: the lowest, mean and highest coverage, and rejections."""
    said = {"coverage": {}}
    for title, rows in found["coverage"].items():
        values = [
            row["scores"][name]["coverage"]
            for row in rows
            for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc")
            if row["scores"][name]["coverage"] is not None
        ]
        said["coverage"][title] = {
            "cases": len(rows),
            "lowest": min(values),
            "mean": float(np.mean(values)),
            "below_goal": sum(bool(failing(row, found["simulations"])) for row in rows),
        }
    rejected = [value for row in found["paired"] for value in row["rejected"].values()]
    said["paired"] = {
        "cases": len(found["paired"]),
        "highest": max(rejected),
        "mean": float(np.mean(rejected)),
    }
    return said


def joined(old: dict, new: dict) -> dict:
    """The cases of ``old`` in their order, those of ``new`` in place of the same ones; both of
    as many simulations.
    """
    if old["simulations"] != new["simulations"]:
        raise SystemExit(f"The file holds cases of {old['simulations']} simulations.")

    def put(before: list[dict], after: list[dict]) -> list[dict]:
        again = {row["name"]: row for row in after}
        return [again.get(row["name"], row) for row in before]

    coverage = dict(old["coverage"])
    for title, rows in new["coverage"].items():
        coverage[title] = put(coverage.get(title, rows), rows)
    return {**new, "coverage": coverage, "paired": put(old["paired"], new["paired"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the two files")
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    parser.add_argument(
        "--table", action="append", default=[], metavar="NAME=FILE", help="real predictions"
    )
    options = parser.parse_args()
    started = time.monotonic()
    found = {"simulations": options.simulations, "coverage": {}, "paired": []}
    pool = ProcessPoolExecutor(options.processes)
    counts = repeat(options.simulations)
    for title, cases in ((CHOSEN_ON, cases_chosen_on()), (NEW, cases_not_looked_at())):
        rows = []
        wanted = [case for case in cases if options.only in case.name]
        for row in pool.map(coverage, wanted, counts):
            rows.append(row)
            short = [shown(entry["coverage"]) for entry in row["scores"].values()]
            print(f"{time.monotonic() - started:6.0f} s  {row['name']}: {short}", flush=True)
        found["coverage"][title] = rows
    for text in options.table:
        name, _, path = text.partition("=")
        rows = found["coverage"].setdefault("real predictions, groups drawn anew", [])
        for groups in (6, 12):
            rows.append(resampled_table(name, Path(path), groups, options.simulations))
    pairs = [pair for pair in paired_cases() if options.only in pair[0].name]
    cases = [case for case, _ in pairs]
    apart = [difference for _, difference in pairs]
    for row in pool.map(rejections, cases, apart, counts):
        found["paired"].append(row)
        print(f"{time.monotonic() - started:6.0f} s  {row}", flush=True)
    if options.only:  # some cases: of the others, what the files hold already
        found = joined(json.loads((options.out / "statistics.json").read_text()), found)
    found["summary"] = summary(found)
    print(json.dumps(found["summary"], indent=1))
    write_json(options.out / "statistics.json", found)
    write_text(options.out / "statistics.md", page(found))
