"""Tables for spreadsheets: nothing in them runs as a formula, and what is read back is exactly what
was written.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.audit.verdicts import Audit, Check
from nbhelpers.core.files import spreadsheet_safe, write_csv
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split

FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://x")',
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
]
NAMES = st.one_of(
    st.sampled_from(
        [*FORMULAS, "a\r=1", "'=1", "''@", "'", "-", "-0.5", "a,b", 'say "x"', "'plain"]
    ),
    st.text("=+-@'a0,; \"\t\r", min_size=1, max_size=6),
)


@pytest.mark.parametrize("text", [*FORMULAS, "'=1"])
def test_no_text_in_a_table_is_run_by_a_spreadsheet(tmp_path, text):
    table = pd.DataFrame({"file": [text, "a.png"], "label": pd.Categorical([text, "b"])})
    write_csv(tmp_path / "t.csv", table)
    with open(tmp_path / "t.csv", newline="") as file:
        first = file.read().split("\n")[1]
    assert first.lstrip('"').startswith("'")
    assert spreadsheet_safe(spreadsheet_safe(table), back=True)["file"].tolist() == [text, "a.png"]


def test_numbers_stay_numbers(tmp_path):
    table = pd.DataFrame({"x": [-0.5, np.inf], "n": [-3, 3], "o": [-1, None], "t": [True, False]})
    table["o"] = table["o"].astype(object)
    write_csv(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text() == table.to_csv(index=False)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(NAMES, min_size=2, max_size=6, unique=True), st.lists(NAMES, min_size=6, max_size=6)
)
def test_predictions_and_splits_come_back_exactly(tmp_path_factory, ids, words):
    folder = tmp_path_factory.mktemp("tables")
    classes = tuple(dict.fromkeys([*words[:2], "other"]))
    made = Predictions.build(
        ids=ids,
        labels=[classes[0]] * len(ids),
        groups=[words[2]] * len(ids),
        probabilities=np.full((len(ids), len(classes)), 1 / len(classes)).round(4) + 0.0,
        classes=classes,
        model=words[3],
        run=words[4],
    )
    made.save(folder / "predictions.csv")
    read = Predictions.load(folder / "predictions.csv")
    assert read.classes == classes
    pd.testing.assert_frame_equal(read.table, made.table)
    table = pd.DataFrame({"repeat": 0, "fold": 0, "part": "test", "id": ids, "group": words[5]})
    split = Split(table, "by hand", 0)
    split.save(folder / "split.csv")
    pd.testing.assert_frame_equal(Split.load(folder / "split.csv").table, table)


def test_the_tables_of_an_audit_are_safe(tmp_path):
    rows = pd.DataFrame({"file": ["=1.png"], "correlation": [-0.5]})
    Audit({}, (Check("files", "warn", "says", "fix", {}, rows),)).save(tmp_path)
    (written,) = tmp_path.glob("*.csv")
    assert written.read_text().splitlines()[1] == "'=1.png,-0.5"
