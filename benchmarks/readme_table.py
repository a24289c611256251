"""Write the table of notebooks in README.md from finished runs; no figure in it is typed by hand.

./run_all.sh --profile public .venv/bin/python benchmarks/readme_table.py --keep public   # keeps
the figures of the runs in docs/scores/ .venv/bin/python benchmarks/readme_table.py
# writes the table from docs/scores/ alone
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from nbhelpers.core.estimate import Estimate
from nbhelpers.core.files import write_json, write_text
from nbhelpers.reports.notebooks import Notebook

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- {}: begin (written by benchmarks/readme_table.py) -->"
END = "<!-- {}: end -->"


def keep(profile: str) -> None:
    """Keep the figures of every finished run of ``profile`` in docs/scores/."""
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
        write_scores(metrics_path.parent, profile, profile, note)


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


def write_scores(folder: Path, name: str, profile: str, note: str) -> None:
    manifest, metrics = files_of(folder)
    data = [
        {key: item[key] for key in ("name", "n", "synthetic", "content_hash")}
        for item in manifest["data"]
    ]
    models = {
        model: entry
        for model, entry in metrics["metrics"].items()
        if isinstance(entry, dict) and "macro_f1" in entry
    }
    # the model that the notebook is about: the one that the headline names ("Accuracy, mean of 3
    # TinyCNNs"), or the first
    named = next(
        (model for model in models if metrics["headline"]["name"].endswith(f", {model}")),
        next(iter(models), ""),
    )
    kept = {
        model: {
            score: entry[score]
            for score in ("accuracy", "balanced_accuracy", "macro_f1", "auc")
            if score in entry
        }
        for model, entry in models.items()
    }
    main = kept.get(named, {})
    starts = metrics["metrics"].get("starts", [])  # the same folds from other random starts
    floors = metrics["metrics"].get("floors", {})
    floors = {
        floor: {score: entry[score] for score in ("accuracy", "macro_f1")}
        for floor, entry in floors.items()
        if isinstance(entry, dict) and "macro_f1" in entry
    }
    write_json(
        ROOT / "docs" / "scores" / f"{manifest['notebook']}.{name}.json",
        {
            "notebook": manifest["notebook"],
            "profile": profile,
            "parameters": metrics["parameters"],
            "headline": metrics["headline"],
            "note": note,
            "scores": main,
            "floors": floors,
            "data": data,
            **({"one_network": kept["TinyCNN"]} if named.startswith("mean of ") else {}),
            **({"starts": starts} if len(starts) > 1 else {}),
            "wall_time_s": round(manifest["wall_time_s"]),
            "peak_memory_mb": round(manifest["peak_memory_bytes"] / 2**20),
            "device": manifest["device"],
            "versions": manifest["versions"],
        },
    )


def table() -> str:
    """The table as Markdown, from docs/scores/."""
    lines = [
        "| notebook | profile | images | score with 95 % interval | floor | time |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "docs" / "scores").glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        head = one["headline"]
        macro = one["scores"].get("macro_f1")
        images = ", ".join(
            f"{item['n']} {'synthetic' if item['synthetic'] else 'real'}" for item in one["data"]
        )
        shape = one["floors"].get("shape features + SVM")
        floors = f"{head['floor']:.3f} ({head['floor_name']})" + (
            f"; {shape['accuracy']['value']:.3f} (shape features + SVM)" if shape else ""
        )
        also = f", macro-F1 {Estimate.from_dict(macro)}" if macro else ""
        if alone := one.get("one_network"):
            accuracy = alone["accuracy"]["value"]
            macro_f1 = alone["macro_f1"]["value"]
            also += f" (one network: {accuracy:.3f}, macro-F1 {macro_f1:.3f})"
        if starts := one.get("starts"):
            score = head["name"] if head["name"] in starts[0] else "balanced accuracy"
            values = [start[score] for start in starts if start.get("network") != "all together"]
            together = [start[score] for start in starts if start.get("network") == "all together"]
            also += (
                f" (from {len(values)} random starts {score} {min(values):.3f} to {max(values):.3f}"
                + "".join(f", all together {value:.3f}" for value in together)
                + ")"
            )
        images += f"; {one['note']}" if one.get("note") else ""
        lines.append(
            f"| `{one['notebook']}` | {one['profile']} | {images} | {uncapitalised(head['name'])} "
            f"{Estimate.from_dict(head)}{also} | {floors} | "
            f"{duration(one['wall_time_s'])} |"
        )
    return "\n".join(lines)


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
            f"{max(ratios):.0f}).{honest_scores(one.get('score'))}"
        )
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        if (
            "sentence" in one
        ):  # the other benchmarks put theirs together themselves, from what they measured
            lines.append(f"- {one['sentence']}")
    return "\n".join(lines)


def honest_scores(score: dict | None) -> str:
    """A sentence: the scores of the published recipe and of ours on the same folds, and their
    difference.
    """
    if not score:
        return ""
    ours = score["ours"]["accuracy"]
    published = score["published"]["accuracy"]
    difference = score["ours_minus_published"]["accuracy"]
    return (
        f" On the same five honest folds (n = {ours['n']}) the published recipe reaches an "
        f"accuracy of "
        f"{published['value']:.3f}, ours {ours['value']:.3f}; difference "
        f"{difference['difference']:+.3f} "
        f"[{difference['low']:+.3f}, {difference['high']:+.3f}]."
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
    options = parser.parse_args()
    if options.keep:
        keep(options.keep)
    for folder, name in options.keep_run:
        keep_run(Path(folder), name)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, block in (("scores", table()), ("speed", speed())):
        begin = BEGIN.format(name)
        end = END.format(name)
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{block}\n{end}{rest.split(end)[1]}"
        print(block)
    write_text(readme, text)


if __name__ == "__main__":
    main()
