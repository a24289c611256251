"""One reader for every table of the user: read right whatever program wrote it, or refused."""

import os
import zipfile
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.decimals import with_decimal_points
from nbhelpers.core.errors import TableError
from nbhelpers.core.files import spreadsheet_safe, write_csv
from nbhelpers.core.tables import (
    LARGEST_BYTES,
    located,
    read_table,
    with_columns,
)

FEW = settings(max_examples=40, deadline=None)
CELL = st.text("abcäµ 0123456789.-#'\"/\\", max_size=8).map(str.strip)


def read(path):
    return read_table(path, "the table", "Save it as CSV.")


def written(folder, content, name="table.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


PLAIN = {"path": ["a.png", "b.png"], "label": ["x", "y"]}
ROWS = "path,label\na.png,x\nb.png,y\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", ROWS),
        ("t.csv", "\ufeff" + ROWS),
        ("t.csv", ROWS.encode("utf-16")),
        ("t.csv", ROWS.replace("\n", "\r\n")),
        ("t.csv", ROWS.replace("\n", "\r")),
        ("t.csv", "sep=;\n" + ROWS.replace(",", ";")),
        ("t.csv", '"sep=;"\n' + ROWS.replace(",", ";")),
        ("t.csv", ROWS.replace(",", ";")),
        ("t.tsv", ROWS.replace(",", "\t")),
        ("t.txt", ROWS.replace(",", "\t")),
        ("t.txt", ROWS.replace(",", "|")),
        ("t.txt", '"path" "label"\n"1" "a.png" "x"\n"2" "b.png" "y"\n'),
        ("t.csv", "# exported, today\n\n" + ROWS),
        ("t.csv", "path,label\n\na.png,x\n,\n# a remark\nb.png,y\n\n"),
        ("t.csv", "path , label,,\na.png, x,,\nb.png,y ,,\n"),
        ("t.csv", "path,label\na.png,x,\nb.png,y,,,\n"),
        ("t.csv", ",path,label\n0,a.png,x\n1,b.png,y\n"),
        ("t.csv", "Unnamed: 0,path,label\n4,a.png,x\n1,b.png,y\n"),
        ("t.csv", "path\tlabel\n1\ta.png\tx\n2\tb.png\ty\n"),
    ],
)
def test_the_same_table_from_any_program(tmp_path, name, content):
    assert read(written(tmp_path, content, name)).to_dict("list") == PLAIN


@FEW
@given(
    st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_was_written_is_read(tmp_path_factory, rows, separator, encoding, line_end):
    rows = [("a.png" + one, *others) for one, *others in rows]
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    table = pd.DataFrame(rows, columns=["path", "label", "group"])
    table.to_csv(path, sep=separator, encoding=encoding, index=False, lineterminator=line_end)
    found = read(path)
    # a leading apostrophe is what keeps a spreadsheet from running a formula
    assert found.reset_index(drop=True).equals(spreadsheet_safe(table, back=True))
    assert found.index.tolist() == list(range(2, len(rows) + 2))


@FEW
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=4))
def test_a_sheet_reads_like_the_text(tmp_path_factory, rows):
    rows = [("a.png" + one, other) for one, other in rows]
    path = tmp_path_factory.mktemp("tables") / "t.xlsx"
    table = pd.DataFrame(rows, columns=["path", "label"])
    table.to_excel(path, index=False)
    assert read(path).reset_index(drop=True).equals(spreadsheet_safe(table, back=True))


def test_numbers_of_a_sheet_are_as_a_person_would_write_them(tmp_path):
    table = pd.DataFrame({"path": ["a.png", None], "group": [7.0, None], "dose": [0.5, 1000.0]})
    table.to_excel(tmp_path / "t.xlsx", index=False, startrow=2)
    found = read(tmp_path / "t.xlsx")
    assert found.to_dict("list") == {
        "path": ["a.png", ""],
        "group": ["7", ""],
        "dose": ["0.5", "1000"],
    }
    assert found.index.tolist() == [4, 5]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label\na.png,x,z\n", "row 2.*3 cells.*header has 2"),
        ("path,Label,label\na.png,x,y\n", "'Label' and 'label' have one name"),
        ("path,label,label \na.png,x,y\n", "have one name"),
        ("path,label,\na.png,x,y\n", "column 3 .* no name"),
        ("", "empty"),
        ("\n ,\n", "empty"),
        ("path,label\n\xe4.png,x\n".encode("latin-1"), "not in UTF-8.*save it as CSV UTF-8"),
        (ROWS.encode("utf-16-le"), "zero bytes"),
    ],
)
def test_what_may_be_meant_in_two_ways_is_refused(tmp_path, content, words):
    with pytest.raises(TableError, match=words):
        read(written(tmp_path, content))


def test_several_sheets_no_sheet_and_no_table_are_refused(tmp_path):
    with pd.ExcelWriter(tmp_path / "two.xlsx") as book:
        for name in ("mine", "yours"):
            pd.DataFrame(PLAIN).to_excel(book, sheet_name=name, index=False)
    with pytest.raises(TableError, match="several sheets: mine, yours"):
        read(tmp_path / "two.xlsx")
    with pytest.raises(TableError, match="cannot be read"):
        read(written(tmp_path, "no zip", "a.xlsx"))
    with pytest.raises(TableError, match="does not exist"):
        read(tmp_path / "gone.csv")
    with pytest.raises(TableError, match="is no file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(TableError, match="is no file"):
        read(tmp_path / "pipe.csv")
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    with pytest.raises(TableError, match="more than"):
        read(tmp_path / "huge.csv")


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (["0,5", "1,000"], ["0.5", "1.000"]),
        (["1,25", "3"], ["1.25", "3"]),
        (["0,5 µM", "1"], ["0.5 µM", "1"]),
        (["1,000", "20,000"], ["1,000", "20,000"]),
        (["0.5", "1"], ["0.5", "1"]),
        (["a,b", "1"], ["a,b", "1"]),
        (["0,5", "1.000"], ["0.5", "1.000 (1.000 or 1000?)"]),
    ],
)
def test_a_decimal_comma_is_a_point_unless_it_may_be_thousands(cells, found):
    assert with_decimal_points(pd.Series(cells)).tolist() == found


def test_a_quote_that_never_ends_is_refused_and_a_remark_of_two_lines_is_read(tmp_path):
    rows = 'path,label,note\na.png,x,"5 inch\nb.png,y,ok\nc.png,x,ok\n'
    stray = 'path,note,group\n0.png,"5 inch,g1\n1.png,7 inch" disk,g2\n'
    escaped = 'path,note\na.png,"x \\"y\\" z"\n'  # as R writes by default
    for content in (rows, rows + 'd.png,y,"ok\n', stray, escaped):
        with pytest.raises(TableError, match="a quote near line . is wrong"):
            read(written(tmp_path, content))
    note = "Alt; klein; rund\nStreet 5, Berlin, 2\nlines"
    found = read(written(tmp_path, f'path,note,more\na.png,"{note}",x\n'))
    assert found["note"].tolist() == [note]


def test_what_the_package_wrote_is_read_back(tmp_path):
    table = pd.DataFrame({"path": ["=a.png", "-b", "c"], "label": ["+", "'-", "@x"]})
    write_csv(tmp_path / "t.csv", table)
    assert read(tmp_path / "t.csv").to_dict("list") == table.to_dict("list")


def test_a_damaged_sheet_is_refused_in_words(tmp_path):
    pd.DataFrame(PLAIN).to_excel(tmp_path / "good.xlsx", index=False)
    for name in ("xl/worksheets/sheet1.xml", "xl/styles.xml", "xl/workbook.xml"):
        with (
            zipfile.ZipFile(tmp_path / "good.xlsx") as good,
            zipfile.ZipFile(tmp_path / "bad.xlsx", "w") as bad,
        ):
            for part in good.namelist():
                content = good.read(part)
                bad.writestr(part, content[: len(content) // 2] if part == name else content)
        with pytest.raises(TableError, match="cannot be read"):
            read(tmp_path / "bad.xlsx")


def test_long_ids_of_a_sheet_say_that_their_digits_are_lost(tmp_path):
    ids = [864691135212863360 + at for at in range(3)]
    pd.DataFrame({"path": list("abc"), "group": ids}).to_excel(tmp_path / "t.xlsx", index=False)
    groups = read(tmp_path / "t.xlsx")["group"]
    assert len(set(groups)) == 3 or all("e+" in one for one in groups)


def test_columns_are_known_whatever_their_case_spaces_and_signs():
    table = pd.DataFrame(columns=["Image Path", "CLASS", "patient_ID", "note"])
    wanted = {"path": ("image path",), "label": ("class",), "group": ("patient", "patient id")}
    assert list(with_columns(table, "t.csv", wanted)) == ["path", "label", "group", "note"]
    two = pd.DataFrame(columns=["path", "patient", "Patient ID"])
    with pytest.raises(TableError, match="patient and Patient ID may both be the group"):
        with_columns(two, "t.csv", wanted)
    assert list(with_columns(two.assign(Group=""), "t.csv", wanted)) == [*two, "group"]


@FEW
@given(
    st.sampled_from(["C:\\data\\exp 1\\", "/home/somebody/exp 1/", "\\\\server\\share\\exp 1\\"]),
    st.sampled_from(["", "plate 1", "plate 1/day 2"]),
    st.lists(st.sampled_from("abcdef"), min_size=1, unique=True),
)
def test_paths_of_another_machine_are_found_below_the_folder(
    tmp_path_factory, start, folder, names
):
    base = tmp_path_factory.mktemp("here")
    (base / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (base / folder / f"{name}.png").touch()
    slash = "\\" if "\\" in start else "/"
    rest = [f"{folder}/{name}.png".lstrip("/") for name in [*names, "gone"]]
    found = located([start + one.replace("/", slash) for one in rest], base)
    assert found == rest


def test_a_name_alone_does_not_make_a_file_of_another_folder_the_one_that_is_meant(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "a.png").touch()
    found = located(["/far/s1/a.png", "/far/s2/a.png"], tmp_path)
    assert found == ["s1/a.png", "s2/a.png"]


def test_a_path_is_looked_for_beside_the_table_then_the_notebook_then_in_the_repository(
    tmp_path, monkeypatch
):
    places = [tmp_path / name for name in ("table", "notebooks", "repository", "home")]
    for place in places:
        (place / "sub").mkdir(parents=True)
        (place / "sub" / "a.png").touch()
    monkeypatch.chdir(places[1])
    monkeypatch.setenv("NBHELPERS_ROOT", str(places[2]))
    monkeypatch.setenv("HOME", str(places[3]))
    assert located(["~/sub/a.png"], places[0]) == [str(places[3] / "sub/a.png")]
    assert located(["sub\\a.png"], places[0]) == ["sub/a.png"]
    for place, after in pairwise(places[:3]):
        (place / "sub" / "a.png").unlink()
        assert located(["sub/a.png"], places[0]) == [str(after / "sub/a.png")]
    (places[2] / "sub" / "a.png").unlink()
    assert located(["sub/a.png"], places[0]) == ["sub/a.png"]


def test_a_sheet_with_a_far_cell_and_a_long_one_take_little(tmp_path):
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(["path", "label"])
    for number in range(5000):
        sheet.append([f"{number}.png", "x"])
    book.save(tmp_path / "long.xlsx")
    assert len(read(tmp_path / "long.xlsx")) == 5000
    book = openpyxl.Workbook()
    book.active.append(["path", "label"])
    book.active.append(["a.png", "x"])
    book.active.cell(200_000, 1, " ")
    book.active.cell(3, 9_000, " ")
    book.save(tmp_path / "far.xlsx")
    assert read(tmp_path / "far.xlsx").to_dict("list") == {"path": ["a.png"], "label": ["x"]}
    book = openpyxl.Workbook()
    for row in range(1, 401):
        book.active.cell(row, 9_000, "x")
    book.save(tmp_path / "wide.xlsx")
    with pytest.raises(TableError, match="more than 3000000 cells"):
        read(tmp_path / "wide.xlsx")


@pytest.mark.parametrize(
    "content", ["#,path,label\n1,a.png,x\n2,b.png,y\n", "# path,label\na.png,x\nb.png,y\n"]
)
def test_a_header_may_begin_as_a_remark_does(tmp_path, content):
    assert read(written(tmp_path, content))[["path", "label"]].to_dict("list") == PLAIN


def test_cells_that_are_one_too_many_in_every_row_do_not_shift_the_columns(tmp_path):
    with pytest.raises(TableError, match="row 2.*4 cells"):
        read(written(tmp_path, "well,path,dose\n1,a,0,5\n2,b,1,5\n"))
