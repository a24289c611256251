"""Write the pages that hold figures, from finished runs; no figure in them is typed by hand.

    # keep the figures of the finished runs of a profile in docs/scores/
    .venv/bin/python benchmarks/write_pages.py --keep demo
    # write README.md, docs/scores.md and docs/speed.md from docs/scores/ and benchmarks/results/
    .venv/bin/python benchmarks/write_pages.py

README.md has one row per notebook, of real images where there is such a run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from nbhelpers.core.estimate import Estimate
from nbhelpers.core.files import write_json, write_text
from nbhelpers.reports.notebooks import Notebook
from nbhelpers.reports.record import above_floor, scored_text

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- {}: begin (written by benchmarks/write_pages.py) -->"
END = "<!-- {}: end -->"
KEPT_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
SCORES_PAGE = """# Scores of all kept runs

Written by `benchmarks/write_pages.py` from `docs/scores/`. Rows of synthetic images show that the
pipeline works; they say nothing about biology. A **floor** is what a model reaches that cannot be
said to have understood anything: the highest one is shown. Times are those of two processor cores.

"""
SPEED_PAGE = """# Speed

Written by `benchmarks/write_pages.py` from `benchmarks/results/`. Each ratio was measured in one
run, the two sides in turn.

"""


def keep(profile: str, remark: str = "") -> None:
    """Keep the figures of every finished run of ``profile`` in docs/scores/, with a remark."""
    for metrics_path in sorted((ROOT / "results").glob("*/metrics.json")):
        if metrics_path.parent.name.endswith((".failed", "-interactive")):
            continue
        manifest = json.loads((metrics_path.parent / "manifest.json").read_text(encoding="utf-8"))
        if manifest["profile"] != profile or manifest["state"] != "ok":
            continue
        metrics = json.loads(metrics_path.read_text(encoding="utf-8"))
        differs, note = differences(metrics, profile)
        if differs or metrics["parameters"].get("protocol") == "published":
            print(
                f"{metrics_path.parent.name}: left out, its run was not that of the profile "
                f"{profile} ({differs})"
            )
            continue
        notes = "; ".join(filter(None, [note, remark]))
        write_scores(metrics_path.parent, profile, profile, notes)


def keep_run(folder: Path, name: str) -> None:
    """Keep the figures of one run with parameters of its own, as docs/scores/NOTEBOOK.NAME.json."""
    manifest, metrics = files_of(folder)
    differs, note = differences(metrics, manifest["profile"], path_parameters=("data_dir",))
    changes = [f"{parameter} = {metrics['parameters'][parameter]}" for parameter in differs]
    write_scores(
        folder, name, "; ".join(filter(None, [manifest["profile"], ", ".join(changes)])), note
    )


def files_of(folder: Path) -> tuple[dict, dict]:
    """The manifest and the metrics of one run."""
    return tuple(
        json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
        for part in ("manifest", "metrics")
    )


def differences(
    metrics: dict, profile: str, path_parameters: tuple[str, ...] = ()
) -> tuple[list[str], str]:
    """The parameters of a run that are not those of the profile, and a note where weights came from
    a local file.
    """
    wanted = yaml.safe_load((ROOT / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8"))[
        "notebooks"
    ]
    about = Notebook(ROOT / "notebooks" / f"{metrics['notebook']}.ipynb").parameters
    asked = {name: parameter.default for name, parameter in about.items()} | wanted.get(
        metrics["notebook"], {}
    )
    differs = [
        name
        for name, value in asked.items()
        if name in metrics["parameters"]
        and metrics["parameters"][name] != value
        and name not in path_parameters
    ]
    local = [
        name
        for name in differs
        if "weights" in name and Path(str(metrics["parameters"][name])).suffix
    ]
    return [
        name for name in differs if name not in local
    ], "started from weights in a local file" if local else ""


def kept_scores(scores: dict) -> dict:
    """Of each model (or floor) the scores that pages and the reproduction table show."""
    return {
        model: {name: entry[name] for name in KEPT_SCORES if name in entry}
        for model, entry in scores.items()
    }


def write_scores(folder: Path, name: str, profile: str, note: str) -> None:
    """Keep one run's figures as docs/scores/NOTEBOOK.NAME.json."""
    manifest, metrics = files_of(folder)
    measured = metrics["metrics"]
    data = [
        {key: item[key] for key in ("name", "n", "synthetic", "content_hash")}
        for item in manifest["data"]
    ]
    kept = {
        "notebook": manifest["notebook"],
        "profile": profile,
        "parameters": metrics["parameters"],
        "headline": metrics["headline"],
        "note": note,
        "scores": kept_scores(measured.get("scores", {})),
        "floors": kept_scores(measured.get("floors", {})),
        "data": data,
        "wall_time_s": round(manifest["wall_time_s"]),
        "peak_memory_mb": round(manifest["peak_memory_bytes"] / 2**20),
        "device": manifest["device"],
        "versions": manifest["versions"],
    }
    if len(measured.get("starts", [])) > 1:  # the same folds from other random seeds
        kept["starts"] = measured["starts"]
    write_json(ROOT / "docs" / "scores" / f"{manifest['notebook']}.{name}.json", kept)


def kept_runs() -> list[dict]:
    """All kept runs, in the order of their file names."""
    paths = sorted((ROOT / "docs" / "scores").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def is_synthetic(run: dict) -> bool:
    return any(item["synthetic"] for item in run["data"])


def score_of(run: dict) -> str:
    """E.g. 'accuracy 0.931 [0.908, 0.952] (mean of 3 TinyCNNs)'."""
    head = run["headline"]
    text = f"{uncapitalised(head['name'])} {Estimate.from_dict(head)}"
    return f"{text} ({head['model']})" if head.get("model") else text


def floor_of(run: dict) -> str:
    """The highest floor by name, and whether the score is above it."""
    head = run["headline"]
    if head.get("floor") is None:
        return "none"
    text = f"{head['floor']:.3f} ({head['floor_name']})"
    return text + "; **not above it**" if above_floor(head) is False else text


def answer_of(run: dict) -> str:
    """The answer to the notebook's question, as its report gives it, and the worst finding; of an
    older run, what has to be said of it.
    """
    head = run["headline"]
    worst = head.get("worst_finding")
    answer = head.get("answer") or f"({run['note']})"
    return " ".join(filter(None, [answer, f"Audit: {worst}" if worst else ""]))


def images_of(run: dict) -> str:
    kinds = "synthetic" if is_synthetic(run) else "real"
    return f"{scored_text(run['headline'])}, {kinds}"


def preference(run: dict) -> tuple[bool, bool]:
    """Which of a notebook's runs README shows: real images before synthetic ones, and a profile as
    it stands before one with changed parameters. The smallest wins.
    """
    changed = run["profile"] not in ("demo", "public")
    return is_synthetic(run), changed


def readme_table() -> str:
    """One row per notebook, see ``preference``."""
    chosen = {}
    for run in sorted(kept_runs(), key=preference):
        chosen.setdefault(run["notebook"], run)
    lines = [
        "| notebook | images | score with 95 % interval | highest floor | answer |",
        "|---|---|---|---|---|",
    ]
    for notebook, run in sorted(chosen.items()):
        link = f"[{notebook}](notebooks/{notebook}.ipynb)"
        lines.append(
            f"| {link} | {images_of(run)} | {score_of(run)} | {floor_of(run)} | {answer_of(run)} |"
        )
    return "\n".join(lines)


def scores_page() -> str:
    """The table of all kept runs as Markdown."""
    lines = [
        "| notebook | run | images | score with 95 % interval | highest floor | time |",
        "|---|---|---|---|---|---|",
    ]
    for run in kept_runs():
        macro = run["scores"].get(run["headline"].get("model", ""), {}).get("macro_f1")
        score = score_of(run)
        if macro:
            score += f", macro-F1 {Estimate.from_dict(macro)}"
        what = f"{run['profile']}; {run['note']}" if run.get("note") else run["profile"]
        lines.append(
            f"| `{run['notebook']}` | {what} | {images_of(run)} | {score}{seeds_of(run)} | "
            f"{floor_of(run)} | {duration(run['wall_time_s'])} |"
        )
    return SCORES_PAGE + "\n".join(lines) + "\n"


def seeds_of(run: dict) -> str:
    """What other random seeds gave on the same folds."""
    starts = run.get("starts")
    if not starts:
        return ""
    head = run["headline"]["name"]
    score = head if head in starts[0] else "balanced accuracy"
    values = [one[score] for one in starts if one.get("network") != "all together"]
    together = [one[score] for one in starts if one.get("network") == "all together"]
    text = f" (from {len(values)} random seeds {score} {min(values):.3f} to {max(values):.3f}"
    return text + "".join(f", all together {value:.3f}" for value in together) + ")"


def speed() -> str:
    """A sentence per speed benchmark, from benchmarks/results/."""
    lines = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("spine_training_*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        ratios = [each["ratio"] for each in one["rounds"]]
        published = sorted(each["published_s"] for each in one["rounds"])[len(ratios) // 2]
        ours = sorted(each["ours_s"] for each in one["rounds"])[len(ratios) // 2]
        lines.append(
            f"- Training TinyCNN once on {one['n_training']} "
            f"{'public masks' if one['data'] == 'ghani' else 'phantoms'}, "
            f"{one['threads']} threads, {'bfloat16' if one['bf16'] else 'fp32'}, "
            f"{one['processor']}: the published loop "
            f"{duration(published)}, ours {duration(ours)}; median of {len(ratios)} pairs "
            f"{one['median_ratio']:.0f} times "
            f"faster (lowest {min(ratios):.0f}, highest "
            f"{max(ratios):.0f}).{grouped_scores(one.get('score'))}"
        )
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        if (
            "sentence" in one
        ):  # the other benchmarks put theirs together themselves, from what they measured
            lines.append(f"- {one['sentence']}")
    return "\n".join(lines)


def grouped_scores(score: dict | None) -> str:
    """A sentence: the scores of the published recipe and of ours on the same folds, and their
    difference.
    """
    if not score:
        return ""
    ours = score["ours"]["accuracy"]
    published = score["published"]["accuracy"]
    difference = score["ours_minus_published"]["accuracy"]
    return (
        f" On the same five grouped folds (n = {ours['n']}) the published recipe reaches an "
        f"accuracy of "
        f"{published['value']:.3f}, ours {ours['value']:.3f}; difference "
        f"{difference['difference']:+.3f} "
        f"[{difference['low']:+.3f}, {difference['high']:+.3f}]."
    )


def statistics_sentence() -> str:
    """What the simulations of benchmarks/statistics.py found, for the README."""
    path = ROOT / "docs" / "statistics.json"
    summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
    parts = []
    for title, found in summary["coverage"].items():
        parts.append(
            f"in {found['mean']:.1%} of the experiments on average and {found['lowest']:.1%} in "
            f"the worst of {found['cases']} designs ({title})"
        )
    paired = summary["paired"]
    return (
        "What these numbers hold was simulated where the truth is known "
        "([docs/statistics.md](docs/statistics.md)): the 95 % intervals of accuracy, balanced "
        f"accuracy, macro-F1 and AUC held it {', and '.join(parts)}. Two equal models were called "
        f"different in {paired['mean']:.1%} on average and {paired['highest']:.1%} in the worst of "
        f"{paired['cases']} designs."
    )


def uncapitalised(text: str) -> str:
    return text if text[:2].isupper() else text[:1].lower() + text[1:]  # AUC stays AUC


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keep",
        metavar="PROFILE",
        help="first keep the figures of the finished runs of this profile",
    )
    parser.add_argument(
        "--keep-run",
        nargs=2,
        metavar=("FOLDER", "NAME"),
        action="append",
        default=[],
        help="keep one finished run with parameters of its own under this name",
    )
    parser.add_argument("--remark", default="", help="what has to be said of the kept runs")
    options = parser.parse_args()
    if options.keep:
        keep(options.keep, options.remark)
    for folder, name in options.keep_run:
        keep_run(Path(folder), name)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, content in (("scores", readme_table()), ("statistics", statistics_sentence())):
        begin = BEGIN.format(name)
        end = END.format(name)
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    write_text(readme, text)
    write_text(ROOT / "docs" / "scores.md", scores_page())
    write_text(ROOT / "docs" / "speed.md", SPEED_PAGE + speed() + "\n")


if __name__ == "__main__":
    main()
