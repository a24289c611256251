"""Figures of the audit: every verdict, recall and reproduced figure stands where it belongs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from nbhelpers.audit.verdicts import Audit, Check
from nbhelpers.core.errors import InputError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.figures import audit as figures


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_every_verdict_stands_at_its_check():
    audits = {
        "clean": Audit(
            {},
            (
                Check("same image in two parts", "pass", ""),
                Check("shortcut: brightness", "warn", ""),
            ),
        ),
        "injected, with a long name": Audit(
            {},
            (
                Check("shortcut: brightness", "fail", ""),
                Check("same file in two parts", "not assessable", ""),
            ),
        ),
    }
    axis = figures.verdict_board(audits).axes[0]
    assert {text.get_position(): text.get_text() for text in axis.texts} == {
        (0.5, 0.5): "pass",
        (0.5, 1.5): "warn",
        (1.5, 1.5): "FAIL",
        (1.5, 2.5): "?",
    }
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "same image in two parts",
        "shortcut: brightness",
        "same file in two parts",
    ]
    with pytest.raises(InputError, match="nothing to draw"):
        figures.verdict_board({})


def test_recalls_stand_with_their_intervals():
    table = pd.DataFrame(
        {
            "defect": ["copy", "group leak"],
            "detail": ["mirrored", "5%"],
            "injected": [3, 4],
            "found": [3, 2],
            "recall": [1.0, 0.5],
            "low": [0.44, 0.15],
            "high": [1.0, 0.85],
        }
    )
    figure = figures.recall_figure(table)
    assert {"copy: mirrored (3 of 3)", "group leak: 5% (2 of 4)"} < set(texts(figure))
    dots, *intervals = figure.axes[0].lines[:3]
    assert dots.get_xdata().tolist() == [1.0, 0.5]
    assert [sorted(line.get_xdata()) for line in intervals] == [[0.44, 1.0], [0.15, 0.85]]
    with pytest.raises(InputError, match="nothing to draw"):
        figures.recall_figure(table.head(0))


def test_the_reproduction_table_marks_what_is_synthetic_and_leaves_out_what_is_no_share():
    row = {
        "system": "A",
        "model": "TinyCNN",
        "score": "accuracy",
        "reported": 0.946,
        "reported low": 0.88,
        "reported high": 0.98,
        "published value": None,
        "published low": None,
        "published high": None,
        "published synthetic": None,
        "grouped value": 0.9,
        "grouped low": 0.87,
        "grouped high": 0.93,
        "grouped synthetic": True,
    }
    faster = {**row, "score": "times faster", "reported": 19, "grouped value": None}
    figure = figures.reproduction_figure(pd.DataFrame([row, faster]))
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["A  TinyCNN, accuracy"]
    dots = [line for line in axis.lines if line.get_marker() != "None"]
    reported, grouped = (line for line in dots if np.isfinite(line.get_xdata()).any())
    assert (reported.get_xdata()[0], grouped.get_xdata()[0]) == (0.946, 0.9)
    assert grouped.get_markerfacecolor() == "white" != reported.get_markerfacecolor()
    with pytest.raises(InputError, match="nothing to draw"):
        figures.reproduction_figure(pd.DataFrame([faster]))


def test_copies_stand_one_above_the_other():
    names = ["a.png", "b.png", "a name that is very long.png"]
    pixels = np.random.default_rng(0).integers(0, 255, (3, 1, 12, 12), dtype=np.uint8)
    images = ImageSet(
        "test",
        pd.DataFrame({"id": names, "label": ["x", "y", "x"], "group": names}),
        pixels,
        ("x", "y"),
        "made for a test",
        True,
    )
    pairs = pd.DataFrame(
        {"image": names[:2], "part": "train", "other image": names[1:], "other part": "test"}
    )
    figure = figures.copies_sheet(images, Check("near-duplicates", "fail", "", rows=pairs))
    assert [axis.get_title() for axis in figure.axes] == [
        "a.png\ntrain",
        "b.png\ntrain",
        "b.png\ntest",
        "a name that is …\ntest",
    ]
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), pixels[2, 0] / 255)
    with pytest.raises(InputError, match="nothing to draw"):
        figures.copies_sheet(images, Check("near-duplicates", "pass", "", rows=pairs.head(0)))
