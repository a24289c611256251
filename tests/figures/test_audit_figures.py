"""Figures of the audit: every verdict, recall and figure of the ledger stands where it belongs."""

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
        (0, 0): "pass",
        (0, 1): "warn",
        (1, 1): "FAIL",
        (1, 2): "?",
    }
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "same image in two parts",
        "shortcut: brightness",
        "same file in two parts",
    ]
    with pytest.raises(InputError, match="no audit"):
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
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1.0, 0.5]
    assert [line[:, 0].tolist() for line in figure.axes[0].collections[0].get_segments()] == [
        [0.44, 1.0],
        [0.15, 0.85],
    ]
    with pytest.raises(InputError, match="none to draw"):
        figures.recall_figure(table.head(0))


def test_the_ledger_marks_what_is_synthetic_and_leaves_out_what_is_no_share():
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
    reported, honest = (line for line in axis.lines if len(line.get_xdata()))
    assert (reported.get_xdata()[0], honest.get_xdata()[0]) == (0.946, 0.9)
    assert honest.get_markerfacecolor() == "white" != reported.get_markerfacecolor()


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
    assert texts(figure) == [
        "a.png\ntrain",
        "b.png\ntrain",
        "b.png\ntest",
        "a name that is …\ntest",
    ]
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), pixels[2, 0] / 255)
    with pytest.raises(InputError, match="names no pairs"):
        figures.copies_sheet(images, Check("near-duplicates", "pass", "", rows=pairs.head(0)))
