"""Runs repeated from what they left behind: verified bit for bit, rebuilt from a manifest, refused
with a reason.
"""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.reports.notebooks import all_notebooks
from nbhelpers.runner import command_line as cli
from nbhelpers.runner.places import RunnerPaths
from nbhelpers.runner.repeat import (
    Verdict,
    changed_since,
    compare,
    largest_difference,
    read_manifest,
    request_of_manifest,
    same_machine,
    table_of,
)

HEADLINE = {
    "name": "Accuracy",
    "value": 0.9,
    "low": 0.85,
    "high": 0.95,
    "n": 120,
    "floor_name": "majority class",
    "floor": 0.6,
}
DEVICE = {"cpu": "a", "gpu": None, "threads": 2, "cores": 2, "bfloat16": None}


@pytest.fixture
def paths(make_checkout):
    return RunnerPaths(make_checkout().root)


@pytest.fixture
def pair(tmp_path):
    """Makes two results folders that differ in what is asked for."""

    def make(device=None, metrics=None, **headline):
        folders = []
        for name, more in (("before", {}), ("after", headline)):
            folder = tmp_path / name
            folder.mkdir()
            own = {"total": 1.5, "list": [1, 2]} | (metrics or {} if name == "after" else {})
            (folder / "metrics.json").write_text(
                json.dumps({"metrics": own, "headline": HEADLINE | more})
            )
            (folder / "manifest.json").write_text(
                json.dumps(
                    {
                        "headline": HEADLINE | more,
                        "platform": "Linux",
                        "versions": {"torch": "2"},
                        "device": DEVICE | (device or {} if name == "after" else {}),
                    }
                )
            )
            folders.append(folder)
        return folders

    return make


def test_the_same_bytes_are_the_same_on_any_machine(pair):
    assert compare("01_toy", *pair(device={"cpu": "b"})).kind == "same"


def test_one_other_digit_on_the_same_machine_differs(pair):
    verdict = compare("01_toy", *pair(metrics={"total": 1.5000001}))
    assert verdict.kind == "differs" and "1e-07 in total" in verdict.text


@pytest.mark.parametrize(("value", "kind"), [(0.915, "close"), (0.93, "differs")])
def test_on_another_machine_the_headline_decides(pair, value, kind):
    verdict = compare("01_toy", *pair(device={"cpu": "b"}, metrics={"total": 7}, value=value))
    assert (
        verdict.kind == kind
        and "another machine" in verdict.text
        and "5.5 in total" in verdict.text
    )


def test_predictions_that_are_gone_differ(pair):
    before, after = pair()
    (before / "predictions.csv").write_text("id\n1\n")
    verdict = compare("01_toy", before, after)
    assert verdict.kind == "differs" and verdict.text == "predictions.csv; same metrics"


@pytest.mark.parametrize("key", ["cpu", "gpu", "threads", "bfloat16"])
def test_what_makes_another_machine(key):
    before = {"platform": "Linux", "versions": {}, "device": DEVICE}
    assert same_machine(before, {**before, "device": DEVICE | {"cores": 64}})
    assert not same_machine(before, {**before, "device": DEVICE | {key: "other"}})
    assert not same_machine(before, {**before, "versions": {"torch": "3"}})


tree = st.recursive(
    st.one_of(st.integers(-5, 5), st.text(max_size=2), st.none(), st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(tree)
def test_nothing_differs_from_itself(value):
    assert largest_difference(value, value) == ("", 0.0)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_the_largest_difference_is_found(one, other):
    where, size = largest_difference({"a": [0, one], "b": 1}, {"a": [0, other], "b": 1})
    assert size == abs(one - other) and where == ("a.1" if one != other else "")
    assert largest_difference({"a": 1}, {})[1] == float("inf")
    assert largest_difference({"a": None}, {})[1] == float("inf")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "no JSON"),
        ("[]", "no manifest"),
        ('{"notebook": "01_toy"}', "no manifest"),
        ('{"notebook": 3, "parameters": {}}', "no manifest"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, content, words):
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_manifest(path)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"notebook": "tyo", "parameters": {}}, "Did you mean"),
        ({"notebook": "01_toy", "parameters": {"step": 3}}, "no parameter step"),
        ({"notebook": "01_toy", "parameters": {"steps": "x"}}, "not a whole number"),
        ({"notebook": "01_toy", "parameters": {"data_dir": "…/spines"}}, "-p data_dir PATH"),
        ({"notebook": "01_toy", "parameters": {"data_dir": "data/nowhere"}}, "does not exist"),
    ],
)
def test_a_manifest_that_does_not_fit_the_checkout_is_refused(paths, found, words):
    with pytest.raises(ParameterError, match=words):
        request_of_manifest(paths, all_notebooks(paths), found, "manifest.json")


def test_files_whose_place_a_manifest_hides_are_given_anew(paths):
    (paths.root / "data" / "mine").mkdir()
    found = {
        "notebook": "01_toy",
        "parameters": {"data_dir": "…/spines", "steps": 7},
        "profile": "full",
    }
    request = request_of_manifest(
        paths, all_notebooks(paths), found, "m", [("data_dir", str(paths.root / "data" / "mine"))]
    )
    assert (
        request.values["steps"] == 7
        and request.values["data_dir"].endswith("mine")
        and request.profile == "full"
    )


def test_what_changed_since_is_said(paths):
    words = changed_since(
        {"ingredients": {"a.py": "1"}, "versions": {"torch": "1.0"}}, {"a.py": "2"}, paths.root
    )
    assert words[0] == "a.py changed" and words[1].startswith("versions: torch 1.0 then, 2.")


def test_the_table_shows_every_verdict():
    lines = table_of(
        [
            Verdict("01_toy", "same", 0.9, 0.9, "every byte"),
            Verdict("02_long_name", "lost", 0.9, None, "why"),
        ]
    ).splitlines()
    assert lines[1].split() == ["01_toy", "same", "0.9000", "0.9000", "every", "byte"]
    assert lines[2].split() == ["02_long_name", "NOT", "REPEATED", "0.9000", "why"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--verify"], "no finished run"),
        (["--verify", "toy"], "no finished run"),
        (["--verify", "-p", "steps", "3"], "cannot go together with -p"),
        (["--verify", "tyo"], "Did you mean"),
        (["--from-manifest", "nowhere.json"], "cannot be read"),
        (["toy", "--from-manifest", "m.json"], "with the name of a notebook"),
        (["--profile", "demo", "--from-manifest", "m.json"], "with --profile"),
    ],
)
def test_the_command_refuses_with_a_reason(paths, monkeypatch, capsys, arguments, words):
    monkeypatch.setenv("NBHELPERS_ROOT", str(paths.root))
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err and not paths.results.exists()


@pytest.mark.slow
def test_verify_and_from_manifest_from_end_to_end(make_checkout, toy):
    checkout = make_checkout()
    chance = (
        "import pathlib\nmark = run.repository / 'chance'\ntotal = float(mark.read_text()) "
        "if mark.exists() else 1.0\n"
    )
    checkout.add("01_toy", toy.cells("01_toy", middle=chance))
    assert checkout.run("-p", "steps", "5").returncode == 0
    before = checkout.json("01_toy/manifest.json")
    same = checkout.run("--verify")
    assert (
        same.returncode == 0
        and "same" in same.stdout
        and "every byte of metrics.json" in same.stdout
    ), same.stderr
    assert checkout.json("01_toy/manifest.json") == before
    assert not any((checkout.results / ".verify").iterdir())

    (checkout.root / "chance").write_text("2.5")
    differs = checkout.run("--verify", "toy")
    assert (
        differs.returncode == 1 and "DIFFERS" in differs.stdout and "1.5 in total" in differs.stdout
    )
    assert (checkout.results / ".verify" / "differing" / "01_toy" / "report.html").exists()
    (checkout.root / "chance").write_text("no number")
    lost = checkout.run("--verify", "toy")
    assert lost.returncode == 1 and "NOT REPEATED" in lost.stdout and "ValueError" in lost.stdout
    assert checkout.json("01_toy/manifest.json") == before

    (checkout.root / "chance").unlink()
    manifest = checkout.root / "kept.json"
    shutil.copy(checkout.results / "01_toy" / "manifest.json", manifest)
    assert checkout.run("-p", "steps", "6").returncode == 0
    rebuilt = checkout.run("--from-manifest", str(manifest))
    assert (
        rebuilt.returncode == 0
        and "Then: Accuracy 0.900" in rebuilt.stdout
        and "Now:  Accuracy" in rebuilt.stdout
    )
    assert checkout.json("01_toy/metrics.json")["parameters"]["steps"] == 5
    assert checkout.json("01_toy/manifest.json")["fingerprint"] == before["fingerprint"]
