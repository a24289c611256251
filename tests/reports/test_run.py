"""What a notebook holds in its hand, here as in JupyterLab: without a runner around it."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.reports.manifest import git_state
from nbhelpers.reports.record import Headline
from nbhelpers.reports.run import start_run


@pytest.fixture
def shown(monkeypatch):
    """What the run displays, as a list of HTML and text."""
    from IPython import display

    seen = []
    monkeypatch.setattr(display, "display", lambda data, raw: seen.append(data))
    return seen


@pytest.fixture
def checkout(make_checkout, monkeypatch):
    made = make_checkout()
    monkeypatch.setenv("NBHELPERS_ROOT", str(made.root))
    monkeypatch.delenv("NBHELPERS_RUN", raising=False)
    return made


def values(**more) -> dict:
    return {"steps": 3, "rate": 0.5, "kind": "plain", "data_dir": "", **more}


def headline(**more) -> Headline:
    return Headline(
        **{
            "name": "Accuracy",
            "value": 0.9,
            "low": 0.85,
            "high": 0.95,
            "n": 120,
            "n_text": "120 images",
            "floor_name": "majority class",
            "floor": 0.6,
            **more,
        }
    )


def finish(run, metrics: dict, **more) -> None:
    """A run with a score and a floor, as chapters record them."""
    score = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 120, **more}
    run.set_result("Accuracy", Estimate(**score))
    run.add_floor("majority class", Estimate(0.6))
    run.finish(metrics)


def test_by_hand_results_go_to_a_folder_of_their_own(checkout, capsys):
    namespace = values(rate=1)
    run = start_run("01_toy", namespace)
    assert run.interactive and run.folder == checkout.results / "01_toy-interactive"
    assert run.repository == checkout.root and run.data_folder == checkout.root / "data"
    assert run.parameters == values(rate=1.0) and type(namespace["rate"]) is float
    assert run.work_folder.is_dir()
    finish(run, {"total": np.float32(3)})
    assert headline_printed(capsys)
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["metrics"]["total"] == 3.0 and metrics["headline"]["n"] == 120
    assert json.loads((run.folder / "manifest.json").read_text())["state"] == "ok"
    assert not run.work_folder.exists()


def headline_printed(capsys) -> bool:
    return (
        "Accuracy 0.900 [0.850, 0.950], 120 images (highest floor 0.600, majority class)"
        in capsys.readouterr().out
    )


def test_the_same_parameters_and_code_find_the_same_work_folder_again(checkout, toy):
    first = start_run("01_toy", values())
    (first.work_folder / "step").write_text("done")
    again = start_run("01_toy", values())  # the same kernel, all cells run again
    assert again.work_folder == first.work_folder and (again.work_folder / "step").exists()
    assert start_run("01_toy", values(steps=4)).work_folder != first.work_folder
    checkout.add("01_toy", toy.cells("01_toy", middle="total = 3\n"))
    assert start_run("01_toy", values()).work_folder != first.work_folder


@pytest.mark.parametrize(
    ("namespace", "words"),
    [
        (values(steps="3"), "not a whole number"),
        (values(kind="plan"), "Did you mean plain"),
        (values(data_dir="nowhere"), "does not exist"),
        ({"steps": 3}, "Run the parameters cell first"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_removed(checkout, namespace, words):
    kept = checkout.results / "01_toy-interactive" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(ParameterError, match=words):
        start_run("01_toy", namespace)
    assert kept.exists()


def test_an_unknown_notebook_name_gets_the_nearest(checkout):
    with pytest.raises(ParameterError, match="Did you mean 01_toy"):
        start_run("01_tyo", values())


def test_a_relative_folder_is_meant_from_the_repository(checkout):
    (checkout.root / "data" / "mine").mkdir()
    namespace = values(data_dir="data/mine")
    run = start_run("01_toy", namespace)
    assert namespace["data_dir"] == run.parameters["data_dir"] == str(checkout.root / "data/mine")
    finish(run, {"a": 1})
    assert (
        json.loads((run.folder / "metrics.json").read_text())["parameters"]["data_dir"]
        == "data/mine"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": math.nan},
        {"low": math.inf},
        {"n": 0},
        {"value": 0.99},
        {"value": 0.1},
        {"low": "0.1"},
    ],
)
def test_a_headline_without_honest_numbers_is_refused(wrong):
    with pytest.raises(InputError):
        headline(**wrong)


def test_finish_wants_a_score_and_names_of_its_own(checkout):
    run = start_run("01_toy", values())
    with pytest.raises(InputError, match="no chapter recorded a score"):
        run.finish({"a": 1})
    with pytest.raises(InputError, match="stand in the record already"):
        finish(run, {"floors": 1})
    assert not (run.folder / "metrics.json").exists()


def test_figures_become_png_and_svg_and_are_shown_with_words(checkout, shown):
    from matplotlib import pyplot as plt

    run = start_run("01_toy", values())
    contents = []
    for _ in range(2):
        figure, axes = plt.subplots()
        axes.plot([1, 2])
        run.show_figure(figure, "line", caption="A <line>", alt='Goes "up"')
        assert not plt.fignum_exists(figure.number)
        contents.append(
            [(run.folder / "figures" / name).read_bytes() for name in ("line.png", "line.svg")]
        )
    assert contents[0] == contents[1]  # the same figure gives the same files
    assert contents[0][0].startswith(b"\x89PNG") and b"<svg" in contents[0][1]
    assert len(run.figures) == 1 and run.figures[0]["file"] == "figures/line.png"
    assert (
        "A &lt;line&gt;" in shown[0]["text/html"]
        and 'alt="Goes &quot;up&quot;"' in shown[0]["text/html"]
    )
    assert shown[0]["text/html"].startswith('<figure><img src="data:image/png;base64,')
    figure, _ = plt.subplots()
    for wrong in ({"name": "../out"}, {"alt": " "}, {"caption": ""}):
        with pytest.raises(InputError):
            run.show_figure(figure, **{"name": "x", "caption": "c", "alt": "a", **wrong})
    plt.close(figure)


def test_a_moving_picture_is_saved_shown_and_survives_cleaning(checkout, shown):
    import base64

    from PIL import Image

    from nbhelpers.reports.html import Cleaner

    run = start_run("01_toy", values())
    frames = np.random.default_rng(0).integers(0, 255, (4, 20, 30), dtype=np.uint8)
    run.show_animation(
        frames, "scroll", caption="A <cube>.", alt="Sections, one after the other.", ms=100
    )
    file = run.folder / "figures" / "scroll.png"
    with Image.open(file) as picture:
        assert (
            picture.n_frames == 4
            and picture.info["duration"] == 100
            and not picture.info.get("default_image")
        )
        for number, frame in enumerate(frames):  # the first one is what stands still, and on paper
            picture.seek(number)
            np.testing.assert_array_equal(np.asarray(picture.convert("L")), frame)
    cleaner = Cleaner()
    page = cleaner.restore(cleaner(shown[-1]["text/html"]))
    assert f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" in page
    assert "A &lt;cube&gt;." in page and run.figures[-1]["file"] == "figures/scroll.png"
    for wrong in (
        {"name": "../out"},
        {"alt": " "},
        {"frames": frames[0]},
        {"frames": frames.astype(float)},
    ):
        with pytest.raises(InputError):
            run.show_animation(
                **{"frames": frames, "name": "x", "caption": "c", "alt": "a", **wrong}
            )


def test_tables_are_escaped_and_captioned(checkout, shown):
    run = start_run("01_toy", values())
    table = pd.DataFrame({"file": ["<script>.png", None], "score": [0.12345, np.nan]})
    run.show_table(table, "Scores of <files>")
    page = shown[0]["text/html"]
    assert "<script>" not in page and "&lt;script&gt;.png" in page
    assert (
        "<figcaption>Scores of &lt;files&gt;</figcaption>" in page
        and '<div class="table-box"><table' in page
    )
    assert "0.123" in page and "0.12345" not in page and "n/a" in page and "nan" not in page.lower()
    run.show_table(table.iloc[1:], "Row numbers say nothing")
    assert "<th>1</th>" not in shown[1]["text/html"]
    run.show_table(table.set_index("file"), "With names in front")
    assert "&lt;script&gt;.png" in shown[2]["text/html"]


def test_counts_have_no_decimals_and_whatever_is_missing_reads_so(checkout, shown):
    run = start_run("01_toy", values())
    table = pd.DataFrame(
        {
            "n": [38.0, np.nan],
            "p": [1.0, 0.0],
            "from": [None, None],
            "k": pd.array([3, None], dtype="Int64"),
            "right": [True, False],
        }
    )
    for one in (table, table.set_axis(["n"] * 5, axis=1)):  # several columns may have one name
        run.show_table(one, "Counts")
        cells = re.findall("<td>(.*?)</td>", shown[-1]["text/html"])
        assert cells == ["38", "1.000", "n/a", "3", "True", "n/a", "0.000", "n/a", "n/a", "False"]
        assert shown[-1]["text/plain"].split()[-10:] == cells
    run.show_table(table.head(0), "Nothing")
    run.show_table(table.groupby("right")[["n"]].agg(["sum", "max"]), "Two lines of names")


def test_a_column_of_addresses_becomes_links_and_nothing_else_does(checkout, shown):
    run = start_run("01_toy", values())
    addresses = ['https://example.org/#!{"a":"<b>"}', "javascript:alert(1)"]
    run.show_table(pd.DataFrame({"id": [1, 2], "link": addresses}), "Links", links="link")
    page = shown[0]["text/html"]
    assert '<a href="https://example.org/#!{&quot;a&quot;:&quot;&lt;b&gt;&quot;}">open</a>' in page
    assert page.count("<a ") == 1 and "javascript:alert(1)" in page


def test_data_and_predictions_are_kept(checkout):
    run = start_run("01_toy", values())
    images = ImageSet(
        "toy",
        pd.DataFrame({"id": ["a", "b"], "label": ["x", "y"], "group": ["1", "2"]}),
        np.zeros((2, 1, 4, 4), np.uint8),
        ("x", "y"),
        "made here",
        True,
    )
    run.add_data(images)
    predictions = Predictions.build(
        ids=["a", "b"],
        labels=["x", "y"],
        groups=["1", "2"],
        classes=["x", "y"],
        probabilities=np.array([[0.9, 0.1], [0.4, 0.6]]),
    )
    run.save_predictions(predictions)
    finish(run, {"a": 1})
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["data"] == [
        {
            "name": "toy",
            "n": 2,
            "classes": {"x": 1, "y": 1},
            "synthetic": True,
            "content_hash": images.content_hash,
            "source": "made here",
            "left_out": 0,
            "own": "",
        }
    ]
    assert len(Predictions.load(run.folder / "predictions.csv")) == 2
    assert "predictions.csv" in manifest["files"]


def test_the_state_of_git_is_told(tmp_path):
    import subprocess

    assert git_state(tmp_path) is None

    def git(*words):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@example.org", *words],
            check=True,
            capture_output=True,
        )

    git("init")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}


def test_a_score_that_does_not_clear_its_floor_says_so(checkout, capsys):
    run = start_run("01_toy", values())
    finish(run, {})
    assert ". Yes: the score (accuracy) is above majority class by" in capsys.readouterr().out
    finish(run, {}, value=0.62, low=0.55, high=0.7)
    assert ". Not shown: the score (accuracy) may be no better than" in capsys.readouterr().out
    finish(run, {}, value=0.4, low=0.3, high=0.5)
    assert (
        ". No: the score (accuracy) is below majority class, difference -0.200"
        in capsys.readouterr().out
    )


def test_what_comes_from_a_leaking_split_says_so(checkout, shown):
    from nbhelpers.core.splits import Split

    run = start_run("01_toy", values())
    rows = pd.DataFrame(
        {"repeat": 0, "fold": 0, "part": ["train", "test"], "id": ["a", "a"], "group": ["g", "g"]}
    )
    run.show_table(pd.DataFrame({"x": [1]}), "Before")
    run.add_split(Split(rows, "published", 42, known_leak="a stands in both parts"))
    run.show_table(pd.DataFrame({"x": [1]}), "After")
    assert (
        "leaks" not in shown[0]["text/html"] and "From a split that leaks" in shown[1]["text/html"]
    )
