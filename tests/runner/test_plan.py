"""Profiles and overrides: refused before anything runs when a name or a value is wrong."""

from __future__ import annotations

import os

import pytest

from nbhelpers.core.errors import ParameterError
from nbhelpers.core.files import CODE_ROOT
from nbhelpers.reports.notebooks import all_notebooks, find_notebook
from nbhelpers.runner.fingerprint import (
    code_parts,
    difference,
    fingerprint_parts,
    hash_of_tree,
)
from nbhelpers.runner.places import RunnerPaths
from nbhelpers.runner.plan import _from_here, make_requests, profile_names, read_profile


@pytest.fixture
def checkout(make_checkout):
    made = make_checkout()
    made.add("02_other_toy")
    made.profile("demo", "notebooks:\n  01_toy: {rate: 1e-3}\n  02_other_toy:\n")
    return made


def requests(checkout, *asked, profile="demo", overrides=()):
    paths = RunnerPaths(checkout.root)
    return make_requests(paths, all_notebooks(paths), profile, asked, overrides)


def test_a_profile_runs_exactly_its_notebooks_with_its_values(checkout):
    checkout.profile("one", "notebooks:\n  02_other_toy: {steps: 9}\n")
    assert [
        (request.notebook.name, request.values["steps"])
        for request in requests(checkout, profile="one")
    ] == [("02_other_toy", 9)]
    first, second = requests(checkout)
    assert first.values == {"steps": 3, "rate": 0.001, "kind": "plain", "data_dir": ""}
    assert second.values["rate"] == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("notebooks:\n  01_tou: {}\n", "Did you mean 01_toy"),
        ("notebooks:\n  01_toy: {step: 3}\n", "Did you mean steps"),
        ("notebooks:\n  01_toy: {steps: '3'}\n", "not a whole number"),
        ("notebooks:\n  01_toy: {steps: 0}\n", "outside its range"),
        ("notebooks:\n  01_toy: {kind: plan}\n", "Did you mean plain"),
        ("notebooks:\n  01_toy: 3\n", "parameter: value"),
        ("notebooks: [01_toy]\n", "must hold `notebooks:`"),
        ("notebook:\n  01_toy: {}\n", "must hold `notebooks:`"),
        ("notebooks: {}\n", "nothing to run"),
        ("notebooks: {\n", "not valid YAML"),
        ("notebooks:\n  01_toy: {data_dir: nowhere}\n", "does not exist"),
    ],
)
def test_a_wrong_profile_is_refused_with_its_name(checkout, text, words):
    checkout.profile("mine", text)
    with pytest.raises(ParameterError, match=words) as caught:
        requests(checkout, profile="mine")
    assert "mine" in str(caught.value) or "data_dir" in str(caught.value)


def test_a_notebook_waits_for_the_one_whose_data_it_reads(checkout):
    from nbhelpers.runner.command_line import make_entries

    checkout.profile(
        "chain", "notebooks:\n  02_other_toy: {}\n  01_toy: {}\nafter:\n  02_other_toy: 01_toy\n"
    )
    both = make_entries(RunnerPaths(checkout.root), requests(checkout, profile="chain"))
    assert both["01_toy"]["stamp"] in both["02_other_toy"]["inputs"]
    alone = make_entries(
        RunnerPaths(checkout.root), requests(checkout, "02_other_toy", profile="chain")
    )
    assert not any(path.endswith(".done") for path in alone["02_other_toy"]["inputs"])
    checkout.profile("wrong", "notebooks:\n  01_toy: {}\nafter:\n  01_toy: 01_tou\n")
    with pytest.raises(ParameterError, match="Did you mean 01_toy"):
        requests(checkout, profile="wrong")


def test_an_unknown_profile_names_the_nearest(checkout):
    with pytest.raises(ParameterError, match="Did you mean demo"):
        requests(checkout, profile="dmeo")


def test_overrides_go_to_the_named_notebooks(checkout):
    (request,) = requests(checkout, "toy", overrides=[("steps", "7"), ("kind", "fancy")])
    assert (request.notebook.name, request.values["steps"], request.values["kind"]) == (
        "01_toy",
        7,
        "fancy",
    )
    assert request.values["rate"] == 0.001  # the profile's


@pytest.mark.parametrize(
    ("asked", "override", "words"),
    [
        (["01_toy"], ("step", "7"), "Did you mean steps"),
        ([], ("stepz", "7"), "Did you mean steps"),
        (["01_toy"], ("steps", "x"), "not a whole number"),
        (["01_toy"], ("rate", "2"), "outside its range"),
    ],
)
def test_a_wrong_override_is_refused(checkout, asked, override, words):
    with pytest.raises(ParameterError, match=words):
        requests(checkout, *asked, overrides=[override])


def test_without_a_named_notebook_an_override_goes_where_the_parameter_exists(checkout, toy):
    checkout.add("03_third", toy.cells("03_third", parameters="extra = 1  # why\n"))
    checkout.profile("demo", "notebooks:\n  01_toy: {}\n  03_third: {}\n")
    first, third = requests(checkout, overrides=[("extra", "2")])
    assert "extra" not in first.values and third.values == {"extra": 2}


@pytest.mark.parametrize(
    "asked", ["01_toy", "toy", "01", "1", "notebooks/01_toy.ipynb", "01_toy.ipynb"]
)
def test_notebooks_are_found_by_name_short_name_number_or_path(checkout, asked):
    assert find_notebook(asked, all_notebooks(RunnerPaths(checkout.root))).name == "01_toy"


def test_an_unknown_or_doubtful_notebook_is_refused(checkout):
    checkout.add("03_toy")
    notebooks = all_notebooks(RunnerPaths(checkout.root))
    with pytest.raises(ParameterError, match="Did you mean other_toy"):
        find_notebook("othr_toy", notebooks)
    with pytest.raises(ParameterError, match="01_toy or 03_toy"):
        find_notebook("toy", notebooks)


def test_the_first_cell_tells_question_needs_and_time(checkout):
    about = all_notebooks(RunnerPaths(checkout.root))["01_toy"].about
    assert about == {
        "title": "Toy 01_toy",
        "question": "Does it walk?",
        "needs": "Nothing.",
        "time": "A second.",
    }


def test_the_profiles_of_this_repository_fit_its_notebooks():
    paths = RunnerPaths(CODE_ROOT)
    notebooks = all_notebooks(paths)
    if not notebooks:
        pytest.skip("no notebooks yet")
    assert {"demo", "public", "full"} <= set(profile_names(paths))
    for name in profile_names(paths):
        assert read_profile(paths, name, notebooks)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_fingerprint_follows_the_images_that_a_table_names(checkout, tmp_path, separator):
    (tmp_path / "images").mkdir()
    images = [tmp_path / "images" / f"{name}.png" for name in "abc"]
    for path in images:
        path.write_bytes(b"before")
    rows = [
        ["Label", "Path"],
        ["x", "images/a.png"],
        ["y", str(images[1])],
        ["y", "images/gone.png"],
        ["y", ""],
    ]
    table = tmp_path / "labels.csv"
    table.write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8-sig")
    paths = RunnerPaths(checkout.root)
    seen = [hash_of_tree(paths, table)]
    assert seen == [hash_of_tree(paths, table)]
    for path in (images[0], images[1], tmp_path / "images" / "gone.png"):
        path.write_bytes(b"after it")
        seen.append(hash_of_tree(paths, table))
    assert len(set(seen)) == 4
    images[2].write_bytes(b"no row names it")
    assert hash_of_tree(paths, table) == seen[-1]
    table.write_bytes(b"\xff\x00,path\nno table")  # the notebook will say what is wrong with it
    assert hash_of_tree(paths, table) not in seen


@pytest.mark.parametrize("there", ["", "/home/far/plates/", "C:\\\\far\\\\"])
@pytest.mark.parametrize("url", [False, True])
def test_the_fingerprint_follows_the_images_that_a_load_data_table_names(
    checkout, tmp_path, there, url
):
    image = tmp_path / "imgs" / "a 1.png"
    image.parent.mkdir()
    image.write_bytes(b"before")
    if url:
        place = "file:///" + there.strip("/").replace("C:", "") + "/imgs/a%201.png"
        text = f"URL_OrigDNA,Metadata_Plate\n{place},P\n"
    else:
        text = f"Image_FileName_DNA,Image_PathName_DNA\na 1.png,{there}imgs\n"
    table = tmp_path / "load.csv"
    table.write_text(text)
    paths = RunnerPaths(checkout.root)
    before = hash_of_tree(paths, table)
    image.write_bytes(b"after it")
    assert hash_of_tree(paths, table) != before


def test_the_fingerprint_finds_what_the_reader_finds_whatever_each_path_begins_with(
    checkout, tmp_path
):
    images = [tmp_path / "p1" / "a.png", tmp_path / "b.png"]
    for path in images:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"before")
    table = tmp_path / "load.csv"
    table.write_text("FileName_DNA,PathName_DNA\na.png,/far/p1\nb.png,C:\\other\\place\n")
    paths = RunnerPaths(checkout.root)
    seen = {hash_of_tree(paths, table)}
    for path in images:
        path.write_bytes(b"after it")
        seen.add(hash_of_tree(paths, table))
    assert len(seen) == 3


def test_a_huge_file_is_told_by_size_and_time_and_not_read(checkout, tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(2**40)
    paths = RunnerPaths(checkout.root)
    before = hash_of_tree(paths, tmp_path)
    os.utime(tmp_path / "huge.png", (1, 1))
    assert hash_of_tree(paths, tmp_path) != before


def test_a_typed_path_is_meant_from_where_the_user_stands(checkout, monkeypatch):
    paths = RunnerPaths(checkout.root)
    (checkout.root / "mine").mkdir()
    (paths.notebooks / "beside").mkdir()
    monkeypatch.chdir(checkout.root)
    assert _from_here(paths, "mine") == "mine"
    assert _from_here(paths, "beside") == "beside"
    assert _from_here(paths, "~nobody-of-this-name/x").endswith("x")
    (paths.notebooks / "mine").mkdir()
    assert _from_here(paths, "mine") == str(checkout.root / "mine")


def test_the_fingerprint_follows_contents_and_not_times(checkout, toy, tmp_path):
    import json
    import os

    data = tmp_path / "images"
    data.mkdir()
    (data / "a.png").write_bytes(b"a")
    override = [("data_dir", str(data))]

    def parts():
        (request,) = requests(checkout, "01_toy", overrides=override)
        return fingerprint_parts(RunnerPaths(checkout.root), request, code_parts(request.notebook))

    before = parts()
    assert before == parts()
    os.utime(data / "a.png", (1, 1))
    path = checkout.root / "notebooks/01_toy.ipynb"
    content = json.loads(path.read_text())
    content["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    content["cells"][1]["execution_count"] = 3
    content["metadata"]["language_info"] = {"name": "python"}
    path.write_text(json.dumps(content))
    assert parts() == before
    (data / "a.png").write_bytes(b"b")
    assert difference(before, parts()) == "data in data_dir changed"
    checkout.add("01_toy", toy.cells("01_toy", middle=toy.walk + "total += 1\n"))
    assert difference(before, parts()) == "notebook, data in data_dir changed"
    override.append(("steps", "4"))
    assert difference(before, parts()) == "parameters, notebook and 1 more changed"
