"""The reproduction table reads figures from runs; what is missing says so; nothing is typed in."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from nbhelpers.audit import reproduction
from nbhelpers.core.means import count_interval
from nbhelpers.evaluation import connectivity
from nbhelpers.phantoms.glomerulus import CLASSES
from nbhelpers.reports.notebooks import all_notebooks
from nbhelpers.runner.places import RunnerPaths
from nbhelpers.runner.plan import read_profile
from nbhelpers.studies import benchmark, benchmark_tables, benchmark_times, glomeruli, plates
from nbhelpers.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository(tmp_path):
    """Makes results of one notebook."""

    def make(notebook="03_spine_tinycnn", synthetic=False, state="ok", figures=None, **parameters):
        folder = tmp_path / "results" / notebook
        folder.mkdir(parents=True, exist_ok=True)
        score = {"value": 0.912, "low": 0.88, "high": 0.94, "n": 456}
        (folder / "metrics.json").write_text(
            json.dumps(
                {
                    "notebook": notebook,
                    "parameters": parameters,
                    "headline": {},
                    "metrics": figures or {"scores": {"TinyCNN": {"accuracy": score}}},
                }
            )
        )
        (folder / "manifest.json").write_text(
            json.dumps(
                {"state": state, "data": [{"name": "masks", "n": 456, "synthetic": synthetic}]}
            )
        )
        return tmp_path

    return make


def row_of(table, model="TinyCNN", score="accuracy"):
    return table[(table["model"] == model) & (table["score"] == score)].iloc[0]


def test_the_claims_of_all_four_systems_are_there():
    claims = reproduction.read_claims()
    assert (
        set(claims["system"]) == set("ABCD")
        and (claims["cause"].str.len() > 20).all()
        and (claims["source"] != "").all()
    )
    models = set(claims["model"])
    assert {
        "TinyCNN",
        "ViT-B16, frozen",
        "ResNet18",
        "CNN-3Layer",
        "Random Forest",
        "SVM",
        "ResNet-50",
        "custom CNN",
        "3D models",
        "connectivity baseline",
        "S4-ResNet34",
        "early fusion",
        "speed against CellProfiler",
        "ResNet50 with head",
        "gain of the custom head",
    } <= models


# what the claims ask for, a notebook can write


SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "precision", "recall")


def code_of(notebook) -> list[str]:
    text = (ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8")
    return ["".join(one["source"]) for one in json.loads(text)["cells"] if "outputs" in one]


def allowed_by(notebook) -> dict[str, list[str]]:
    """Each parameter of the notebook, and the values that the words of its comment before the colon
    name.
    """
    allowed = {}
    for line in code_of(notebook)[0].splitlines():
        words = line.split("#", 1)[1].split(":")[0]
        allowed[line.split("=")[0].strip()] = words.replace("|", " ").split()
    return allowed


def recorded(notebook, key) -> set[str]:
    """The names that may stand below a key of the notebook's metrics. The code that records the key
    is looked for.
    """
    source = "\n".join(code_of(notebook))
    if (notebook, key) == ("04_synapse_3d", "connectivity"):
        made = inspect.getsource(connectivity)
        assert '"connectivity": connectivity' in source
        assert '", SVM"' in made and '", by synapse (LEAKS)"' in made
        names = ("connectivity", "connectivity, SVM")
        return {*names, *(f"{name}, by synapse (LEAKS)" for name in names)}
    if (notebook, key) == ("06_glomeruli_resnet50", "changes"):
        assert 'show_changes(run, "changes"' in source
        return set(re.findall(r'(?:custom|linear)\("([^"]+)"', inspect.getsource(glomeruli)))
    if notebook == "07_benchmark":
        made = inspect.getsource(benchmark_tables)
        known = {"scores": 'add_record("scores"', "published": 'record["published"]'}
        known |= {"times": 'record["times"]', "sizes": 'record["sizes"]'}
        made += inspect.getsource(benchmark_times)
        assert known[key] in made and "show_results(run" in source and "show_times(run" in source
        assert "show_published(run" in source
        return {one.name for one in benchmark_models()}
    assert key == "scores" and "show_scores(run" in source, (notebook, key)
    allowed = allowed_by(notebook)
    if notebook == "02_synapse_resnet_cnn":
        return {*allowed["backbone"], "SynapseCNN"}
    if notebook == "03_spine_tinycnn":
        return {"TinyCNN"}
    if notebook == "04_synapse_3d":
        return set(allowed["backbone"])
    if notebook == "05_four_stain_resnet34":
        assert "rivals=rivals" in source  # show_floors records them as scores
        known = {"S4"}  # as kept runs of before call it
        known.add(plates.model_name("one-stain", "small", "MAP2"))  # each of S4's stains alone
        for fusion in ("s4", "early"):
            known |= {plates.model_name(fusion, encoder) for encoder in allowed["encoder"]}
        return known
    assert notebook == "06_glomeruli_resnet50", notebook
    return {f"{backbone}, fine-tuned" for backbone in allowed["port_backbone"]}


def benchmark_models():
    return benchmark.benchmark_models(
        ("Mushroom", "Stubby", "Thin"),
        epochs={"tinycnn": 1, "resnet18": 1, "cnn3": 1},
        px={"tinycnn": 16, "resnet18": 16, "cnn3": 16, "vit": 32},
        ours=Recipe(name="ours"),
        vit=benchmark.VitWeights("none", Path("data"), 1),
    )


@pytest.mark.parametrize(
    "row",
    reproduction.read_claims().itertuples(index=False),
    ids=lambda row: f"{row.model}, {row.score}",
)
def test_every_key_of_the_claims_can_be_written_by_its_notebook(row):
    if row.notebook.startswith(reproduction.MEASURED):
        source = (ROOT / f"{row.notebook}.py").read_text()
        assert all(
            f'"{step}"' in source
            for step in row.grouped_at.split("/")
            if step not in ("2048", "backends")
        )
        assert all(f'"{item.split("=")[0]}"' in source for item in row.grouped_where.split())
        return
    allowed = allowed_by(row.notebook)
    for at, where in ((row.published_at, row.published_where), (row.grouped_at, row.grouped_where)):
        for item in where.replace("|", " ").split():
            name, value = item.split("=")
            assert value in allowed[name], f"{item} is no value of {row.notebook}"
        for place in filter(None, at.split(" | ")):
            key, *steps = place.split("/")
            key, _, picked = key.partition("[")
            names = recorded(row.notebook, key)
            if picked:
                assert picked.rstrip("]").split("=")[1] in names, place
                continue
            assert steps.pop(0) in names, place
            if key == "sizes":
                assert not steps
                continue
            if steps[0] == "per_class":
                assert steps[1] in CLASSES, place
                del steps[:2]
            assert len(steps) == 1 and steps[0] in SCORES, place


def test_causes_are_those_of_the_model_and_no_interval_is_given_where_images_are_not_independent():
    claims = reproduction.read_claims()
    leaking = claims["cause"].str.contains("75 of the 92")
    assert set(claims.loc[leaking, "model"]) == {"TinyCNN", *benchmark.LEAKING}
    for model in ("ViT-B16, frozen", "CNN-3Layer"):
        scores = claims[(claims["model"] == model) & (claims["scale"] != "number")]
        assert scores["cause"].str.contains("without TinyCNN's leak").all()
    patches = claims[claims["model"].isin(["ResNet-50", "custom CNN"])]
    assert patches["reported_n"].isna().all() and patches["cause"].str.startswith("No int").all()
    (three,) = claims.loc[claims["model"] == "3D models", "cause"]
    assert "0 valid TIFF volumes" in three
    glomeruli_claims = claims[claims["system"] == "D"].set_index("score")
    assert glomeruli_claims.loc["AUC of predicted classes", "grouped_at"].endswith(
        "/balanced_accuracy"
    )
    for score in ("precision", "recall"):
        row = glomeruli_claims.loc[f"{score} (a micro average?)"]
        assert row["grouped_at"].endswith("/accuracy") and "micro average" in row["cause"]


def test_all_figures_of_the_originals_have_a_row():
    claims = reproduction.read_claims()
    assert (claims["score"] == "ms per image").sum() == 6
    assert set(claims.loc[claims["score"] == "parameters", "reported"]) == {
        457539,
        85800963,
        11304003,
        8482883,
    }
    assert {74.44, 97.2, 87.06, 99.6, 56.1} <= set(claims["reported"])


def test_after_a_demo_run_the_cells_that_it_can_fill_are_filled(repository):
    score = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 240}
    scores = {"accuracy": score, "macro_f1": score, "auc": score, "balanced_accuracy": score}
    models = ("CNN-3Layer", "ResNet18", "Random Forest on pixels", "SVM on pixels")
    every = {name: scores for name in models} | {"ViT-B16, frozen": scores}
    times = [{"model": name, "infer_ms": 2.5} for name in every]
    figures = {"scores": every, "published": every, "times": times, "sizes": {"ResNet18": 11304003}}
    about = {"synthetic": True, "data": "phantom"}
    repository("07_benchmark", figures=figures, vit_weights="none", **about)
    heads = {"scores": {"resnet50, fine-tuned": scores}}
    root = repository(
        "06_glomeruli_resnet50",
        figures=heads | {"changes": [{"change": "custom head", "difference": 0.01}]},
        protocol="grouped",
        port_backbone="resnet50",
        **about,
    )
    table = reproduction.reproduction_table(root)
    shown = reproduction.readable(table)
    for model in ("CNN-3Layer", "ResNet18", "Random Forest", "SVM"):
        row = row_of(shown, model)
        assert row["grouped here"] == "0.800 [0.700, 0.900], n = 240, SYNTHETIC"
        assert row["published protocol here"].endswith("SYNTHETIC")
        assert row_of(shown, model, "ms per image")["grouped here"] == "2.5, SYNTHETIC"
    assert row_of(shown, "ResNet18", "parameters")["grouped here"] == "11,304,003, SYNTHETIC"
    # random features are not the published model
    assert row_of(shown, "ViT-B16, frozen")["grouped here"] == reproduction.MISSING
    ours = shown[(shown["system"] == "D") & (shown["model"] == "ResNet50 with head")]
    assert len(ours) == 4 and ours["grouped here"].str.endswith("SYNTHETIC").all()


@pytest.mark.parametrize("profile", ["demo", "public", "full"])
def test_the_audit_waits_in_every_profile_for_all_that_its_table_reads(profile):
    paths = RunnerPaths(ROOT)
    found = read_profile(paths, profile, all_notebooks(paths))
    claims = reproduction.read_claims()
    read = {name for name in claims["notebook"] if not name.startswith(reproduction.MEASURED)}
    assert read & set(found.notebooks) <= set(found.after["09_claims_audit"])


def test_a_measured_time_is_read_and_its_command_named(tmp_path):
    row = row_of(
        reproduction.reproduction_table(tmp_path), "speed against CellProfiler", "times faster"
    )
    assert (
        "run missing; .venv/bin/python benchmarks/plate_inference.py --fusion s4 --encoder resnet34"
        in row["status"]
    )
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (tmp_path / "benchmarks" / "plate_inference.py").write_text("")
    (folder / "plate_inference_s4_resnet34.json").write_text(
        json.dumps(
            {
                "fusion": "s4",
                "encoder": "resnet34",
                "device": {"cpu": "some"},
                "sizes": {"2048": {"backends": {"eager fp32": {"times_cellprofiler": 12.5}}}},
            }
        )
    )
    row = row_of(
        reproduction.reproduction_table(tmp_path), "speed against CellProfiler", "times faster"
    )
    assert (
        row["grouped value"] == 12.5
        and row["on"] == "timed on some"
        and "published: not measured" in row["status"]
    )


def test_without_runs_every_row_says_missing_and_how_to_make_it(tmp_path):
    table = reproduction.reproduction_table(tmp_path)
    assert table[["published value", "grouped value"]].isna().all().all()
    assert (
        "run missing; ./run_all.sh 03_spine_tinycnn -p protocol grouped -p data ghani"
        in row_of(table)["status"]
    )
    assert row_of(reproduction.readable(table))["grouped here"] == "run missing"


def test_grouped_and_published_runs_are_told_apart(repository):
    root = repository(protocol="grouped", data="ghani")
    row = row_of(reproduction.reproduction_table(root))
    assert (row["grouped value"], row["grouped n"]) == (0.912, 456) and row[
        "published value"
    ] is None
    text = row_of(reproduction.readable(reproduction.reproduction_table(root)))
    assert (
        text["grouped here"] == "0.912 [0.880, 0.940], n = 456"
        and text["published protocol here"] == "run missing"
    )
    row = row_of(reproduction.reproduction_table(repository(protocol="published", data="ghani")))
    assert row["published value"] == 0.912 and row["grouped value"] is None


def test_runs_on_other_data_or_that_failed_do_not_count(repository):
    assert (
        row_of(reproduction.reproduction_table(repository(protocol="grouped", data="phantom")))[
            "grouped value"
        ]
        is None
    )
    assert (
        row_of(
            reproduction.reproduction_table(
                repository(protocol="grouped", data="ghani", state="failed")
            )
        )["grouped value"]
        is None
    )


def test_a_synthetic_figure_is_named_as_such(repository):
    accuracy = {"value": 0.88, "low": 0.8, "high": 0.9, "n": 200}
    root = repository(
        "02_synapse_resnet_cnn",
        synthetic=True,
        protocol="ours",
        data="phantom",
        figures={"scores": {"resnet18": {"accuracy": accuracy}}},
    )
    row = row_of(reproduction.reproduction_table(root), "ResNet-50")
    assert row["grouped synthetic"] and "data microns" in row["status"]
    assert row_of(reproduction.readable(reproduction.reproduction_table(root)), "ResNet-50")[
        "grouped here"
    ].endswith("SYNTHETIC")


def test_a_record_in_a_list_is_found(repository):
    root = repository(
        "06_glomeruli_resnet50",
        protocol="grouped",
        data="bueno",
        figures={
            "changes": [
                {"change": "other", "difference": 1},
                {"change": "custom head", "difference": -0.02, "from": -0.05, "to": 0.01},
            ]
        },
    )
    row = row_of(
        reproduction.reproduction_table(root), "gain of the custom head", "accuracy points"
    )
    assert (row["grouped value"], row["grouped low"]) == (-0.02, -0.05)


def test_a_damaged_file_is_a_missing_run(repository):
    root = repository(protocol="grouped", data="ghani")
    (root / "results" / "03_spine_tinycnn" / "metrics.json").write_text("{")
    assert row_of(reproduction.reproduction_table(root))["grouped value"] is None


def test_the_kept_scores_of_this_repository_are_read():
    row = row_of(reproduction.reproduction_table(ROOT))
    file = ROOT / "docs" / "scores" / "03_spine_tinycnn.public.json"
    kept = json.loads(file.read_text())["scores"]["TinyCNN"]["accuracy"]
    if not (ROOT / "results" / "03_spine_tinycnn").exists():
        assert row["grouped value"] == kept["value"] and not row["grouped synthetic"]
    reported = count_interval(0.9457 * 92, 92)
    assert (row["reported low"], row["reported high"]) == (reported.low, reported.high)
    assert row["reported high"] - row["reported low"] == pytest.approx(0.1, abs=0.01)


def test_a_figure_that_is_no_number_is_refused(tmp_path, monkeypatch):
    lines = reproduction.CLAIMS.read_text().splitlines()
    file = tmp_path / "claims.csv"
    file.write_text("\n".join([*lines[:2], lines[2].replace(",92.71,", ",many,"), *lines[3:]]))
    monkeypatch.setattr(reproduction, "CLAIMS", file)
    with pytest.raises(ValueError, match="many"):
        reproduction.read_claims()
