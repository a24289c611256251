"""The parameters cell: its grammar, and what values it lets through."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbhelpers.core.errors import ParameterError
from nbhelpers.reports.notebooks import Notebook
from nbhelpers.reports.parameters import (
    check_value,
    check_values,
    parameters_of_source,
    shown,
)
from nbhelpers.runner.plan import parse_text

CELL = """\
# What this run uses.
data = "phantom"   # phantom | ghani | folder: where the images come from
epochs = 40        # 1..1000: passes over the training images
learning_rate = 8e-4   # 1e-6..1: step size of Adam
flip = True        # mirror images while training: spines have no handedness
data_dir = ""      # the folder with your images (only for data = "folder")
shift = 0.5        # -1..: in pixels
offset = -3        # ..0: shift in y
"""


def check(parameter, raw):
    return check_value(parameter, raw, f"parameter {parameter.name}")


def parse(parameter, text):
    return parse_text(parameter, text, f"parameter {parameter.name}")


@pytest.fixture
def parameters():
    return parameters_of_source(CELL)


def test_each_line_gives_name_type_constraint_and_reason(parameters):
    assert list(parameters) == [
        "data",
        "epochs",
        "learning_rate",
        "flip",
        "data_dir",
        "shift",
        "offset",
    ]
    assert parameters["data"].choices == ("phantom", "ghani", "folder")
    assert parameters["data"].reason == "where the images come from"
    assert (parameters["epochs"].low, parameters["epochs"].high, parameters["epochs"].type) == (
        1,
        1000,
        int,
    )
    assert parameters["learning_rate"].constraint == "1e-06..1"
    assert parameters["flip"].reason == "mirror images while training: spines have no handedness"
    assert parameters["data_dir"].is_path and not parameters["data"].is_path
    assert (parameters["shift"].type, parameters["shift"].low, parameters["shift"].high) == (
        float,
        -1,
        None,
    )
    assert (parameters["offset"].low, parameters["offset"].high) == (None, 0)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1", "has no reason"),
        ("x = 1  # 1..2:", "no reason"),
        ("x = 2 * y  # why", "no literal"),
        ("x = int('3')  # why", "no literal"),
        ("import os  # why", "only lines of the form"),
        ("x = y = 1  # why", "only lines of the form"),
        ("x += 1  # why", "only lines of the form"),
        ("x: int = 1  # why", "only lines of the form"),
        ("x = 1; y = 2  # why", "one line of its own"),
        ("x = [1,\n 2]  # why", "one line of its own"),
        ("x = 1  # why\nx = 2  # why", "twice"),
        ("x = None  # why", "no type"),
        ("x = {'a': 1}  # why", "no type"),
        ("x = []  # why", "no type"),
        ("x = [1, 2]  # why", "no type"),
        ("x = 5  # 1..4: why", "contradicts"),
        ("x = 'a'  # b | c: why", "contradicts"),
        ("x = 'a'  # 1..4: why", "does not fit"),
        ("x = 1  # 1 | two: why", "is not a whole number"),
        ("x = ", "not valid Python"),
    ],
)
def test_a_wrong_line_is_refused_and_named(source, words):
    with pytest.raises(ParameterError, match=words):
        parameters_of_source(source, "04_x.ipynb")


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", 1, 1.0),
        ("learning_rate", 0.5, 0.5),
        ("epochs", 1, 1),
        ("epochs", 1000, 1000),
        ("flip", False, False),
        ("data", "ghani", "ghani"),
        ("shift", "1e1", 10.0),
    ],
)
def test_values_that_fit_come_back_in_the_right_type(parameters, name, raw, expected):
    value = check(parameters[name], raw)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("epochs", True),
        ("epochs", "5"),
        ("epochs", 5.0),
        ("epochs", 0),
        ("epochs", 1001),
        ("epochs", None),
        ("learning_rate", True),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", "nan"),
        ("learning_rate", "fast"),
        ("learning_rate", 2),
        ("flip", 1),
        ("flip", "true"),
        ("data", "gani"),
        ("data", 3),
        ("data", ["ghani"]),
        ("shift", [0, 1]),
        ("shift", -2),
    ],
)
def test_values_that_do_not_fit_are_refused(parameters, name, raw):
    with pytest.raises(ParameterError, match=name):
        check(parameters[name], raw)


def test_the_message_names_the_nearest_choice_and_parameter(parameters):
    with pytest.raises(ParameterError, match="Did you mean ghani"):
        check(parameters["data"], "gani")
    with pytest.raises(ParameterError, match="Did you mean epochs"):
        check_values(parameters, {"epoch": 5}, "profiles/demo.yaml")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("epochs", "5", 5),
        ("learning_rate", "1e-3", 1e-3),
        ("flip", "no", False),
        ("flip", "True", True),
        ("data_dir", "3", "3"),
        ("shift", "1.5", 1.5),
    ],
)
def test_the_command_line_is_read_as_the_type_of_the_default(parameters, name, text, expected):
    value = parse(parameters[name], text)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("epochs", "5.5"),
        ("epochs", "many"),
        ("flip", "maybe"),
        ("learning_rate", "nan"),
        ("epochs", "-1"),
    ],
)
def test_a_wrong_text_on_the_command_line_is_refused(parameters, name, text):
    with pytest.raises(ParameterError, match=name):
        parse(parameters[name], text)


@given(
    st.one_of(
        st.integers(-(10**6), 10**6),
        st.booleans(),
        st.text(max_size=20),
        st.floats(allow_nan=False, allow_infinity=False, width=32),
    )
)
def test_every_literal_survives_the_cell_and_its_own_check(value):
    found = parameters_of_source(f"value = {value!r}  # a reason\n")["value"]
    assert found.default == value and type(found.default) is type(value)
    assert check(found, value) == value


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.text(max_size=10),
        st.floats(),
        st.lists(st.integers(), max_size=2),
        st.integers(),
    )
)
def test_what_passes_for_a_whole_number_is_one_within_its_range(raw):
    parameter = parameters_of_source("n = 5  # 1..10: why\n")["n"]
    try:
        value = check(parameter, raw)
    except ParameterError:
        return
    assert type(value) is int and 1 <= value <= 10 and raw == value


def test_numpy_scalars_from_a_notebook_are_taken_for_what_they_are(parameters):
    import numpy as np

    assert type(check(parameters["epochs"], np.int64(7))) is int
    with pytest.raises(ParameterError):
        check(parameters["epochs"], np.float64(7))


def test_exactly_one_cell_is_tagged(make_checkout, toy):
    checkout = make_checkout()
    assert list(Notebook(checkout.root / "notebooks/01_toy.ipynb").parameters) == [
        "steps",
        "rate",
        "kind",
        "data_dir",
    ]
    none = checkout.add("02_none", [toy.markdown("# None"), toy.code("x = 1  # why")])
    two = checkout.add(
        "03_two", [toy.code("x = 1  # why", "parameters"), toy.code("y = 1  # why", "parameters")]
    )
    for path in (none, two):
        with pytest.raises(ParameterError, match="Exactly one"):
            _ = Notebook(path).parameters
    broken = checkout.root / "notebooks/04_broken.ipynb"
    broken.write_text("{")
    with pytest.raises(ParameterError, match=r"04_broken\.ipynb"):
        _ = Notebook(broken).parameters


def test_reports_show_only_the_last_part_of_the_users_folders(parameters):
    values = {"data_dir": "/home/someone/my spines", "data": "folder"}
    assert shown(parameters, values) == {"data_dir": "…/my spines", "data": "folder"}


def test_a_choice_may_be_a_file():
    weights = parameters_of_source(
        'weights = "none"  # imagenet | none | FILE: what the network starts from'
    )["weights"]
    assert check(weights, "imagenet") == "imagenet" and not weights.names_path("imagenet")
    assert check(weights, "my weights/net.pth") == "my weights/net.pth"
    assert weights.is_path and weights.names_path("net.pth")
    for wrong in ("imagnet", "FILE", ""):
        with pytest.raises(ParameterError, match="none of its choices"):
            check(weights, wrong)
