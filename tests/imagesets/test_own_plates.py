"""Plates as people have them: names of IN Cell Analyzers with planes and times, tables of public
pipelines, plate maps as grids, doses in every unit; read right, or refused in words.
"""

import itertools
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import InputError, ParameterError, TableError
from nbhelpers.imagesets import plate_files, plates
from nbhelpers.phantoms import layouts

STAIN_OF = {
    "Red - Cy5": "MAP2",
    "Blue - FITC": "PSD-95",
    "Green - dsRed": "Synaptophysin",
    "UV - DAPI": "Hoechst",
}
WELLS = ("B02", "C02")


def picture(seed=0, size=32, top=60):
    """Blobs on noise; the brighter the sharper."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 8, (size, size))
    for y, x in rng.integers(4, size - 4, (4, 2)):
        image[y - 3 : y + 3, x - 3 : x + 3] += top
    return np.clip(image, 0, 4000).astype(np.uint16)


def write(path, seed=0, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, picture(seed, **settings))
    return path


@pytest.fixture
def layout(tmp_path):
    path = tmp_path / "layout.csv"
    path.write_text("well,dose_uM,amyloid_uM\nB2,0,0\nC2,0,30\n")
    return path


@pytest.fixture
def load(tmp_path, layout):
    def found(folder, data="in_cell", **changed):
        about = {"data_folder": tmp_path / "data", "layout": str(layout), **changed}
        return plates.load_plates(data, data_dir=str(folder), **about)

    return found


def reasons(images):
    return [f"{row.file}: {row.why} {row.fix}" for row in images.failures.itertuples()]


# IN Cell Analyzer: names


NAMES = [
    ("A - 01(fld 2 wv Blue - FITC).tif", "A01", 2, "PSD-95", 1, 1),
    ("A - 01(fld 1 wv UV - DAPI z 3 time 2 - 2636ms).tif", "A01", 1, "Hoechst", 3, 2),
    ("A - 1(fld 1 wv DAPI - DAPI time 1 - 0 ms).tif", "A01", 1, "Hoechst", 1, 1),
    ("B - 4(fld 1 wv DAPI - DAPI- time 7 - 3600 ms).tif", "B04", 1, "Hoechst", 1, 7),
    ("A - 1(fld 01 wv UV - DAPI z 3).tif", "A01", 1, "Hoechst", 3, 1),
    ("B - 4(fld 1 z 12 wv Red - Cy5).tif", "B04", 1, "MAP2", 12, 1),
    ("B - 4(fld 1 time 2 z 12 wv Green - dsRed).TIFF", "B04", 1, "Synaptophysin", 12, 2),
    ("b - 4(z 12 fld 003 wv green - dsred wix 2).tif", "B04", 3, "Synaptophysin", 12, 1),
    ("P - 24(fld 1 wv Cy5 - Cy5 z02).tif", "P24", 1, "MAP2", 2, 1),
    ("A_01_f2_c1_xUV_mDAPI_z3_t2.tif", "A01", 2, "Hoechst", 3, 2),
    ("B_11_f10_c4_xRed_mCy5_z0_t0.tif", "B11", 10, "MAP2", 0, 0),
    ("B_11_f10_c2_xBlue_mFITC_t4_z0.tif", "B11", 10, "PSD-95", 0, 4),
    ("B_11_f10_c4_xRed_mCy5_z1_t1_i0.tif", "B11", 10, "MAP2", 1, 1),
    ("B_11_f10_c3_xGreen_mdsRed.tiff", "B11", 10, "Synaptophysin", 1, 1),
]


@pytest.mark.parametrize("name, well, field, stain, z, t", NAMES, ids=[row[0] for row in NAMES])
def test_names_of_old_and_new_analyzers_are_read(tmp_path, name, well, field, stain, z, t):
    write(tmp_path / "P1" / name)
    row = plate_files.in_cell_files(tmp_path)[0].iloc[0]
    assert row[["plate", "well", "field", "stain", "z", "t"]].tolist() == [
        "P1",
        well,
        field,
        stain,
        z,
        t,
    ]


@pytest.mark.parametrize(
    "name, said",
    [
        ("B - 3(fld 1 wv 390 - Blue).tif", "wavelength 390 - Blue is unknown"),
        ("B - 3(fld 1 wv Cy3 - Cy3 z 2).tif", "wavelength Cy3 - Cy3 is unknown"),
        ("B - 03(fld 1 wv TL-Brightfield - Cy3 wix 2).tif", "wavelength TL-Brightfield is unknown"),
        ("B_03_f1_c1_x405_mFITC_z0_t0.tif", "wavelength 405 - FITC is unknown"),
        ("A - 13(fld 2).tif", "does not parse"),
        ("B_03_f1_xUV_mDAPI.tif", "does not parse"),
    ],
)
def test_names_that_say_something_else_are_named(tmp_path, name, said):
    write(tmp_path / "P1" / "B - 2(fld 1 wv UV - DAPI).tif")
    write(tmp_path / "P1" / name)
    files, failures = plate_files.in_cell_files(tmp_path)
    assert len(files) == 1
    assert [why for file, why, _ in failures if name in file and said in why], failures


@given(
    st.sampled_from("ABCHP"),
    st.integers(1, 24),
    st.integers(1, 30),
    st.sampled_from(sorted(STAIN_OF)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.permutations(["fld", "wv", "z", "time"]),
)
@settings(max_examples=40, deadline=None)
def test_the_parts_of_a_name_may_come_in_any_order(row, column, field, wave, z, t, order):
    said = {"fld": f"fld {field}", "wv": f"wv {wave}", "z": f"z {z}", "time": f"time {t} - 9 ms"}
    name = f"{row} - {column}({' '.join(said[part] for part in order)}).tif"
    found = plate_files._IN_CELL.fullmatch(name)
    assert found["wavelength"] == wave and layouts.well_name(found["well"])[0] == row
    assert [int(found[part]) for part in ("field", "z", "t")] == [field, z, t]


# planes and time points


def write_stacks(folder, planes=3, times=1, newer=False):
    """All planes are faint but the second of three, which is bright."""
    for at, well in enumerate(WELLS):
        for number, wave in enumerate(STAIN_OF):
            for z in range(1, planes + 1):
                for t in range(1, times + 1):
                    row, column = well[0], int(well[1:])
                    name = f"{row} - {column}(fld 1 wv {wave} z {z} time {t} - {t * 20} ms).tif"
                    if newer:
                        light = "_m".join(wave.split(" - "))
                        name = f"{row}_{column:02}_f1_c{number}_x{light}_z{z}_t{t}.tif"
                    top = 200 if z == 2 else 30
                    write(folder / name, at * 1000 + number * 100 + z * 10 + t, top=top)
    return folder


def test_several_planes_without_a_choice_are_counted_and_the_choice_is_named(tmp_path, load):
    write_stacks(tmp_path / "set" / "P1", planes=3, times=2)
    with pytest.raises(InputError) as refused:
        load(tmp_path / "set")
    said = str(refused.value)
    assert "3 z-planes (1 to 3) and 2 time points (1 to 2)" in said
    assert all(word in said for word in ("planes", "sharpest", "maximum", "z3", "t2"))
    with pytest.raises(InputError, match="'sharpest' does not choose one of.*2 time points"):
        load(tmp_path / "set", planes="sharpest")
    with pytest.raises(InputError, match="'t2' does not choose one of 3 z-planes"):
        load(tmp_path / "set", planes="t2")


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(
    "planes, z", [("z3 t2", 3), ("3, t2", 3), ("Z 1 T 2", 1), ("sharpest t2", 2)]
)
def test_one_plane_of_a_stack_is_taken(tmp_path, load, newer, planes, z):
    write_stacks(tmp_path / "set" / "P1", times=2, newer=newer)
    images = load(tmp_path / "set", planes=planes)
    assert images.pixels.shape == (2, 4, 32, 32) and not len(images.failures)
    for at in range(2):
        for number in range(4):
            expected = picture(at * 1000 + number * 100 + z * 10 + 2, top=200 if z == 2 else 30)
            assert np.array_equal(images.pixels[at, number], expected)


def test_the_maximum_projection_is_the_brightest_value_of_all_planes(tmp_path, load):
    folder = write_stacks(tmp_path / "set" / "P1")
    images = load(tmp_path / "set", planes="maximum")
    expected = np.max([picture(1300 + z * 10 + 1, top=200 if z == 2 else 30) for z in (1, 2, 3)], 0)
    assert np.array_equal(images.pixels[1, 3], expected)
    small = load(tmp_path / "set", planes="maximum", size_px=16)
    blocks = expected.reshape(16, 2, 16, 2).mean(axis=(1, 3))
    assert np.allclose(small.pixels[1, 3], blocks, atol=0.51)
    # the planes that are not first count for what is kept, too
    tifffile.imwrite(folder / "C - 2(fld 1 wv UV - DAPI z 3 time 1 - 20 ms).tif", expected + 7)
    again = load(tmp_path / "set", planes="maximum")
    assert np.array_equal(again.pixels[1, 3], expected + 7)
    assert again.content_hash != images.content_hash


def test_a_single_plane_needs_no_choice(tmp_path, load):
    write_stacks(tmp_path / "set" / "P1", planes=1, newer=True)
    alone = load(tmp_path / "set")
    assert len(alone) == 2 and not len(alone.failures)
    assert np.array_equal(load(tmp_path / "set", planes="sharpest").pixels, alone.pixels)


@pytest.mark.parametrize("planes", ["sharpest", "maximum", "z1"])
def test_a_stack_that_lacks_a_plane_is_left_out_and_named(tmp_path, load, planes):
    folder = write_stacks(tmp_path / "set" / "P1")
    (folder / "B - 2(fld 1 wv UV - DAPI z 1 time 1 - 20 ms).tif").unlink()
    images = load(tmp_path / "set", planes=planes)
    assert images.ids.tolist() == ["P1/C02/1"]
    assert any("P1/B02/1: the stain Hoechst" in said for said in reasons(images))


def test_a_field_without_the_chosen_plane_is_named(tmp_path, load):
    folder = write_stacks(tmp_path / "set" / "P1")
    for path in folder.glob("B - 2* z 3 *"):
        path.unlink()
    images = load(tmp_path / "set", planes="z3")
    assert images.ids.tolist() == ["P1/C02/1"]
    assert any("P1/B02/1: it has no file for planes = 'z3'" in said for said in reasons(images))


def test_a_stain_of_one_plane_beside_stacks_is_taken_as_it_is(tmp_path, load):
    folder = write_stacks(tmp_path / "set" / "P1")
    for path in [*folder.glob("* DAPI z 1 *"), *folder.glob("* DAPI z 3 *")]:
        path.unlink()
    for planes in ("z3", "sharpest", "maximum"):
        images = load(tmp_path / "set", planes=planes)
        assert len(images) == 2 and not len(images.failures)
        assert np.array_equal(images.pixels[0, 3], picture(321, top=200))


def test_planes_that_differ_in_size_and_a_damaged_plane_are_named(tmp_path, load):
    folder = write_stacks(tmp_path / "set" / "P1")
    write(folder / "B - 2(fld 1 wv UV - DAPI z 3 time 1 - 20 ms).tif", size=16)
    (folder / "C - 2(fld 1 wv UV - DAPI z 3 time 1 - 20 ms).tif").write_bytes(b"")
    with pytest.raises(TableError, match="no field can be used"):
        load(tmp_path / "set", planes="maximum")
    shutil.copytree(folder, tmp_path / "set" / "P2")
    for path in (tmp_path / "set" / "P2").glob("*"):
        write(path, hash(path.name) % 1000)
    images = load(tmp_path / "set", planes="maximum")
    assert set(images.groups) == {"P2"}
    said = " ".join(reasons(images))
    assert "P1/B02/1: its stains differ in size" in said and "empty (0 bytes)" in said


@pytest.mark.parametrize("planes", ["first", "z", "z3 z4", "maximum 3", "sharpest,maximum", "t"])
def test_a_choice_of_planes_that_is_none_is_refused(tmp_path, load, planes):
    write_stacks(tmp_path / "set" / "P1")
    with pytest.raises(ParameterError, match="parameter planes.*sharpest, maximum"):
        load(tmp_path / "set", planes=planes)


@pytest.mark.parametrize(
    "planes, said",
    [
        ("z9", r"'z9' does not choose one of 3 z-planes \(1 to 3\)"),
        ("z1 t5", r"'z1 t5' does not choose one of .*1 time points \(1 to 1\)"),
    ],
)
def test_a_plane_that_is_not_there_is_refused(tmp_path, load, planes, said):
    write_stacks(tmp_path / "set" / "P1")
    with pytest.raises(ParameterError, match=said):
        load(tmp_path / "set", planes=planes)


# LoadData tables of public pipelines


def public_table(folder, there="/home/ubuntu/bucket/projects/2019/images", **changed):
    """As the tables of JUMP are: Orig and Illum columns, row and column as numbers, planes; the
    images lie below the folder of the table, their paths are those of another machine.
    """
    rows = []
    for at, well in enumerate(WELLS):
        row = {
            "Metadata_Plate": "P1",
            "Metadata_Well": well,
            "Metadata_Row": str(ord(well[0]) - 64),
            "Metadata_Col": str(int(well[1:])),
            "Metadata_Site": "1",
            "Metadata_PlaneID": "1",
            "Metadata_ChannelID": "5",
            "Metadata_AbsTime": "2019-07-01T10:00:00",
            "Metadata_dose_uM": "0",
            "Metadata_amyloid_uM": "30" if well == "C02" else "0",
        }
        for number, stain in enumerate(("DNA", "Mito")):
            name = f"{well}-ch{number}.tiff"
            write(folder / "P1" / "Images" / name, at * 10 + number)
            row |= {
                f"FileName_Orig{stain}": name,
                f"PathName_Orig{stain}": f"{there}/P1/Images",
                f"FileName_Illum{stain}": f"P1_Illum{stain}.npy",
                f"PathName_Illum{stain}": f"{there}/illum/P1",
                "FileName_CellOutlines": "outlines.png",
            }
        rows.append(row | changed)
    return pd.DataFrame(rows)


def saved(table, folder):
    path = folder / "load_data.csv"
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    "there",
    [
        "/home/ubuntu/bucket/projects/2019/images",
        "C:\\Users\\me\\plates",
        "\\\\server\\share\\plates",
        "file:///data/plates",
        "s3://cellpainting-gallery/cpg0016/images",
        "",
    ],
)
def test_a_public_load_data_table_is_read_from_where_its_images_are_now(tmp_path, load, there):
    table = public_table(tmp_path, there)
    if "\\" in there:
        for column in table.filter(like="PathName"):
            table[column] = table[column].str.replace("/", "\\")
    images = load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    assert images.channels == ("Hoechst", "Mito") and len(images) == 2
    assert np.array_equal(images.pixels[1, 0], picture(10))
    assert images.counts() == {"control": 1, "amyloid-beta": 1} and not len(images.failures)


def test_the_longest_end_of_a_path_counts(tmp_path, load):
    table = public_table(tmp_path)
    for number in range(2):
        write(tmp_path / f"B02-ch{number}.tiff", 900 + number)
    images = load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    assert np.array_equal(images.pixels[0, 0], picture(0))


def test_image_before_the_names_of_columns_and_wells_by_row_and_column(tmp_path, load):
    table = public_table(tmp_path).drop(columns="Metadata_Well").add_prefix("Image_")
    images = load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    assert images.table["well"].tolist() == ["B02", "C02"]
    table["Image_Metadata_Row"] = ["B", "C"]
    images = load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    assert images.table["well"].tolist() == ["B02", "C02"]


def test_addresses_instead_of_files(tmp_path, load):
    table = public_table(tmp_path)
    for stain in ("DNA", "Mito"):
        path = table.pop(f"PathName_Orig{stain}") + "/" + table.pop(f"FileName_Orig{stain}")
        table[f"URL_Orig{stain}"] = "file:" + path.str.replace("Images", "Im%61ges")
    images = load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    assert len(images) == 2 and images.channels == ("Hoechst", "Mito")
    table["URL_OrigDNA"] = "file://" + str(tmp_path / "P1" / "Images") + "/B02-ch0.tiff"
    with pytest.raises(TableError, match="one file stands for"):
        load(saved(table, tmp_path), "cellprofiler", layout="metadata")


def test_planes_of_a_load_data_table(tmp_path, load):
    table = public_table(tmp_path)
    for column in ("FileName_OrigDNA", "FileName_OrigMito"):
        for name in table[column]:
            write(tmp_path / "P1" / "Images" / f"p2-{name}", 77, top=200)
    other = table.assign(
        Metadata_PlaneID="2",
        FileName_OrigDNA="p2-" + table["FileName_OrigDNA"],
        FileName_OrigMito="p2-" + table["FileName_OrigMito"],
    )
    path = saved(pd.concat([table, other]), tmp_path)
    with pytest.raises(InputError, match=r"2 z-planes \(1 to 2\).*maximum"):
        load(path, "cellprofiler", layout="metadata")
    for planes in ("z2", "sharpest"):
        images = load(path, "cellprofiler", layout="metadata", planes=planes)
        assert np.array_equal(images.pixels[1, 0], picture(77, top=200))


def test_planes_inside_of_one_file_are_refused_in_words(tmp_path, load):
    table = public_table(tmp_path)
    both = [table.assign(Metadata_PlaneID="", Metadata_Frame=str(at)) for at in (0, 1)]
    path = saved(pd.concat(both).drop(columns="Metadata_PlaneID"), tmp_path)
    with pytest.raises(InputError, match="2 z-planes"):
        load(path, "cellprofiler", layout="metadata")
    with pytest.raises(InputError, match="one file stands for"):
        load(path, "cellprofiler", layout="metadata", planes="maximum")
    alone = table.assign(Frame_OrigDNA="0", Series_OrigDNA="0")
    assert len(load(saved(alone, tmp_path), "cellprofiler", layout="metadata")) == 2
    alone.loc[1, "Frame_OrigDNA"] = "3"
    with pytest.raises(TableError, match="Frame_OrigDNA.*planes within one file"):
        load(saved(alone, tmp_path), "cellprofiler", layout="metadata")


@pytest.mark.parametrize(
    "column, value, said",
    [
        ("Metadata_PlaneID", "top", "row 2: Metadata_PlaneID is 'top'"),
        ("Metadata_Site", "12345678901234567890", "row 2: Metadata_Site is"),
        ("Metadata_Well", "Z99", "well 'Z99'"),
        ("Metadata_dose_uM", "NA", "well B02: dose_uM is 'NA'"),
        ("Metadata_amyloid_uM", "", "well B02: amyloid_uM is ''"),
    ],
)
def test_cells_of_a_load_data_table_that_say_nothing_are_named(tmp_path, load, column, value, said):
    table = public_table(tmp_path)
    table[column] = value
    with pytest.raises(TableError, match=said):
        load(saved(table, tmp_path), "cellprofiler", layout="metadata")


def test_doses_of_one_well_written_in_two_ways_are_one(tmp_path, load):
    table = public_table(tmp_path)
    second = table.assign(Metadata_Site="2", Metadata_dose_uM="0.000")
    for column in ("FileName_OrigDNA", "FileName_OrigMito"):
        for name in table[column]:
            write(tmp_path / "P1" / "Images" / f"2-{name}", 5 + len(name))
        second[column] = "2-" + table[column]
    images = load(saved(pd.concat([table, second]), tmp_path), "cellprofiler", layout="metadata")
    assert len(images) == 4


# layouts: doses


def read(tmp_path, text, name="layout.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return layouts.read_layout(tmp_path / name)


@pytest.mark.parametrize(
    "header, cell",
    [
        ("dose_uM", "0.3"),
        ("dose_µM", "0.3"),
        ("dose_μM", "0.3"),
        ("Dose (nM)", "300"),
        ("dose_nM", "3e2"),
        ("Dose [mM]", "0.0003"),
        ("concentration_µM", "0.30000000000000004"),
        ("Concentration (μM)", "0.30000001"),
        ("conc_uM", ".3"),
        ("conc, pM", "300000"),
        ("Conc. in uM".replace(".", ""), "0.3"),
        ("mmoles_per_liter", "3e-4"),
        ("dose (nmol/L)", "300"),
        ("dose_M", "3e-7"),
        ("dose (mol/L)", "0.0000003"),
        ("dose", "300 nM"),
        ("dose", "0.3µM"),
        ("dose_uM", "0.3 uM"),
        ("dose_uM", "0.3 µM"),
    ],
)
def test_a_dose_is_read_in_the_unit_of_its_header_or_its_cell(tmp_path, header, cell):
    text = f'well,"{header}",amyloid (nM)\nB2,{cell},30000\nB3,0,0\n'
    table = read(tmp_path, text)
    assert table["dose_uM"].tolist() == [0.3, 0.0] and table["amyloid_uM"].tolist() == [30.0, 0.0]
    swapped = f'well,dose_nM,"{header.replace("dose", "Amyloid-beta")}"\nB2,5,{cell}\n'
    if "dose" in header:
        assert read(tmp_path, swapped)["amyloid_uM"].tolist() == [0.3]


@pytest.mark.parametrize(
    "header, cell",
    [
        ("dose", "3"),
        ("dose_mg", "3"),
        ("dose (mg/ml)", "3"),
        ("dose_percent", "3"),
        ("dose_m", "3"),
        ("dose_uM", "3 nM"),
        ("dose_uM", "3 mg"),
        ("dose_uM", "NA"),
        ("dose_uM", "n/a"),
        ("dose_uM", "-"),
        ("dose_uM", ""),
        ("dose_uM", "inf"),
        ("dose_uM", "1e999"),
        ("dose_uM", "-3"),
        ("dose_uM", "1 2"),
    ],
)
def test_a_dose_without_a_known_unit_or_without_a_number_is_refused(tmp_path, header, cell):
    with pytest.raises(TableError, match="well B02: dose|known unit"):
        read(tmp_path, f"well,{header},amyloid_uM,compound\nB2,{cell},0,X\n")


def test_two_columns_for_one_dose_are_refused(tmp_path):
    with pytest.raises(TableError, match="dose_uM must stand in one column"):
        read(tmp_path, "well,dose_nM,dose_mM,amyloid_uM\nB2,1,1,0\n")


@pytest.mark.parametrize("compound", ["", "DMSO", "none", "Vehicle", "control", "untreated", "NA"])
@pytest.mark.parametrize("dose", ["", "-", "NA", "n/a", "nan", "none"])
def test_an_empty_dose_of_no_compound_is_none(tmp_path, compound, dose):
    table = read(tmp_path, f"well,compound,dose_nM,amyloid_uM\nB2,{compound},{dose},30\nB3,X,5,0\n")
    assert table["dose_uM"].tolist() == [0.0, 0.005] and table["compound"].map(bool).all()


def test_a_dose_of_no_compound_is_refused(tmp_path):
    with pytest.raises(TableError, match="well B02: it has a dose of no compound"):
        read(tmp_path, "well,compound,dose_uM,amyloid_uM\nB2,n/a,1,0\n")


@pytest.mark.parametrize("column", ["dose_uM", "amyloid_uM"])
@pytest.mark.parametrize("nothing", [np.nan, None, pd.NA, "NA"])
def test_missing_numbers_of_a_table_made_in_python_are_named(column, nothing):
    table = pd.DataFrame(
        {"well": ["B2", "B3"], "dose_uM": [1.0, 0.0], "amyloid_uM": [0.0, 30.0], "compound": "X"}
    ).astype(object)
    assert layouts.check_layout(table)["amyloid_uM"].tolist() == [0, 30]
    table.loc[1, column] = nothing
    with pytest.raises(TableError, match=f"well B03: {column} is"):
        layouts.check_layout(table)


def test_missing_compounds_of_wells_without_a_dose_are_none(tmp_path, load):
    table = pd.DataFrame(
        {"well": ["B2", "B3"], "dose_uM": [1, 0], "amyloid_uM": [0, 30], "compound": ["X", np.nan]}
    )
    assert layouts.check_layout(table)["compound"].tolist() == ["X", "none"]


@given(
    st.sampled_from([("pM", 1e-6), ("nM", 1e-3), ("uM", 1), ("µM", 1), ("mM", 1e3), ("M", 1e6)]),
    st.floats(1e-4, 1e4),
    st.sampled_from(["dose_{}", "Dose ({})", "concentration [{}]", "conc {}", "dose"]),
)
@settings(max_examples=40, deadline=None)
def test_a_dose_is_the_same_in_every_unit(unit, dose, form):
    name, factor = unit
    written = f"{dose / factor!r}" + (f" {name}" if form == "dose" else "")
    table = pd.DataFrame({"well": ["B2"], form.format(name): [written], "amyloid_uM": ["0"]})
    assert layouts.check_layout(table)["dose_uM"].tolist() == [float(f"{dose:.6g}")]


def test_cells_of_bbbc021_without_a_dose_are_named(tmp_path):
    row = {
        "Metadata_Plate": "P",
        "Metadata_Well": "B02",
        "Metadata_Site": "1",
        "Metadata_Cell": "1",
        "Metadata_Compound": "taxol",
        "Metadata_Concentration_uM": "NA",
        "FileName": "a.tif",
    }
    tifffile.imwrite(tmp_path / "a.tif", np.stack([picture(at) for at in range(3)]))
    pd.DataFrame([row]).to_csv(tmp_path / "cells.csv", index=False)
    with pytest.raises(TableError, match="cells.csv, well B02: dose_uM is 'NA'"):
        plates.load_plates("bbbc021", data_folder=tmp_path / "data", data_dir=str(tmp_path))


# layouts: wells and grids


@pytest.mark.parametrize(
    "text", ["A1", "A01", "a-1", "A 1", "A - 1", "A_01", " A01 ", "r01c01", "R1C1", "r1 c1", "A001"]
)
def test_the_first_well_in_every_spelling(text):
    assert layouts.well_name(text) == "A01"


@pytest.mark.parametrize(
    "text", ["1A", "A", "1", "", "A0", "A49", "Z", "r0c1", "r33c1", "BA1", "А1"]
)
def test_what_is_no_well_is_named(text):
    with pytest.raises(TableError, match="well"):
        layouts.well_name(text)


@given(st.integers(1, 32), st.integers(1, 48), st.sampled_from(["{}{}", "{} - {:02}", "{}_{:03}"]))
@settings(max_examples=40, deadline=None)
def test_a_well_by_letters_and_by_numbers_is_one(row, column, form):
    letters = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *(f"A{letter}" for letter in "ABCDEF")]
    name = layouts.well_name(form.format(letters[row - 1], column))
    assert name == f"{letters[row - 1]}{column:02}" == layouts.well_name(name)
    assert layouts.well_name(f"r{row:02}c{column:02}") == name


def test_a_layout_by_row_and_column(tmp_path):
    text = "Row,Column,dose_uM,amyloid_uM\n{},2,1,0\n{},11,0,30\n"
    for rows in (("B", "C"), ("2", "3")):
        assert read(tmp_path, text.format(*rows))["well"].tolist() == ["B02", "C11"]


GRID = """\
{title},1,2,3
A,{a},{b},{c}
B,,{d},
"""


def grids(above, empty_lines=True):
    """Three grids, with the title in the corner or on a line of its own."""
    titles = {
        "dose (nM)": ("0", "3000", "", "30 nM"),
        "Amyloid_uM": ("0", "30", "30", "0"),
        "compound": ("DMSO", "X", "", "Y"),
    }
    parts = []
    for title, cells in titles.items():
        lines = GRID.format(title="" if above else title, **dict(zip("abcd", cells, strict=True)))
        head = {"": "", "padded": f"{title},,,\n", "bare": f"{title}\n"}[above]
        parts.append(head + lines)
    return (",,,\n" if empty_lines else "").join(parts)


@pytest.mark.parametrize("above", ["", "padded", "bare"])
@pytest.mark.parametrize("empty_lines", [True, False])
def test_grids_beneath_one_another_are_a_layout(tmp_path, above, empty_lines):
    table = read(tmp_path, grids(above, empty_lines)).sort_values("well")
    assert table["well"].tolist() == ["A01", "A02", "A03", "B02"]
    assert table["dose_uM"].tolist() == [0, 3, 0, 0.03]
    assert table["amyloid_uM"].tolist() == [0, 30, 30, 0]
    assert table["compound"].tolist() == ["DMSO", "X", "none", "Y"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda text: text.replace("Amyloid_uM", "what"), "amyloid_uM must stand in one column"),
        (lambda text: text.replace(",1,2,3", ",a,b,c"), "no name of a well"),
        (lambda text: text.replace("3000", "much"), "well A02: dose"),
        (lambda text: text.replace("Amyloid_uM", "dose (nM)"), "well A01: dose .* is '0 0'"),
        (lambda text: text.replace(",1,2,3", ",99,2,3", 1), "layout.csv, well 'A99'"),
        (lambda text: text.replace("DMSO,X", "DMSO,"), "well A02: it has a dose of no compound"),
        (lambda text: text.replace("A,0,30,30", "A,0,,30"), "well A02: Amyloid_uM is ''"),
    ],
)
def test_grids_that_cannot_be_read_are_refused(tmp_path, change, said):
    with pytest.raises(TableError, match=said):
        read(tmp_path, change(grids("")))


@pytest.mark.parametrize("header", ["position,dose_uM,amyloid_uM", "id,dose,amyloid"])
def test_a_table_without_wells_is_told_its_columns(tmp_path, header):
    with pytest.raises(TableError, match=r"columns \['well'\] are missing; there are") as refused:
        read(tmp_path, f"{header}\nA1,0,0\n")
    assert header.split(",")[0] in str(refused.value)


def test_grids_may_write_their_letters_small(tmp_path):
    table = read(tmp_path, "dose_uM,1,2\na,0,3\namyloid_uM,01,02\nA,30,0\n")
    assert table["well"].tolist() == ["A01", "A02"]


@given(st.sampled_from([(8, 12), (16, 24)]), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_grid_says_what_a_table_of_wells_says(tmp_path_factory, size, seed, above):
    rng = np.random.default_rng(seed)
    rows = "ABCDEFGHIJKLMNOP"[: size[0]]
    columns = range(1, size[1] + 1)
    cells = {
        "dose_uM": rng.choice(["0", "0.3", "10"], size),
        "amyloid_uM": rng.choice(["0", "30"], size),
    }
    numbers = ",".join(map(str, columns))
    lines = []
    for title, values in cells.items():
        lines += [title + "," * size[1], f",{numbers}"] if above else [f"{title},{numbers}"]
        lines += [f"{row},{','.join(line)}" for row, line in zip(rows, values, strict=True)]
    wells = ["well,dose_uM,amyloid_uM"]
    for at, row in enumerate(rows):
        for number in columns:
            wells.append(
                f"{row}{number}," + ",".join(grid[at, number - 1] for grid in cells.values())
            )
    folder = tmp_path_factory.mktemp("grid")
    grid = read(Path(folder), "\n".join(lines))
    table = read(Path(folder), "\n".join(wells))
    pd.testing.assert_frame_equal(grid[table.columns], table)


# Keys of plates and compounds, and tables of other kinds


def two_plates(folder):
    for plate, well, stain in itertools.product(("p1", "p2"), ("B", "C"), STAIN_OF):
        write(folder / plate / f"{well} - 2(fld 1 wv {stain}).tif", seed=ord(well))
    return folder


def test_a_compound_written_in_two_ways_is_one_and_told(tmp_path, load):
    folder = two_plates(tmp_path / "plates")
    rows = ["p1 ,B2,C 1,1,0", "p1,C2,none,0,30", "p2,B2,C  1,1.0,0", "p2,C2,DMSO,,30"]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["plate,well,compound,dose_uM,amyloid_uM", *rows]) + "\n")
    images = load(folder, layout=str(path))
    assert set(images.table["compound"]) == {"C 1", "none", "DMSO"}
    assert images.table.groupby("compound")["dose_uM"].unique().loc["C 1"].tolist() == [1.0]
    assert "compound 'C 1' is also written 'C  1'" in images.source


@pytest.mark.parametrize("other", ["c-1", "C1", "c 1", "C 01"])
def test_compounds_that_may_be_one_are_refused(tmp_path, load, other):
    folder = two_plates(tmp_path / "plates")
    rows = ["p1,B2,C 1,1,0", "p1,C2,none,0,30", f"p2,B2,{other},1,0", "p2,C2,none,0,30"]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["plate,well,compound,dose_uM,amyloid_uM", *rows]) + "\n")
    with pytest.raises(TableError, match=f"compound .*'{other}'"):
        load(folder, layout=str(path))


def test_a_plate_of_the_layout_spelled_unlike_its_folder_is_refused(tmp_path, load):
    folder = two_plates(tmp_path / "plates")
    path = tmp_path / "own.csv"
    rows = [f"{plate},{well}2,0,30" for plate in ("P1", "p2") for well in "BC"]
    path.write_text("\n".join(["plate,well,dose_uM,amyloid_uM", *rows]) + "\n")
    with pytest.raises(TableError, match="'P1' and 'p1'"):
        load(folder, layout=str(path))


@pytest.mark.parametrize("name", ["l.xlsx", "l.tsv", "l.csv"])
def test_a_layout_from_a_spreadsheet_is_read(tmp_path, name):
    table = pd.DataFrame({"Well": ["B2", "C2"], "Dose (nM)": ["0,5", "1"], "amyloid_uM": [0, 30]})
    path = tmp_path / name
    if name.endswith("xlsx"):
        table.to_excel(path, index=False)
    else:
        table.to_csv(path, sep="\t" if name.endswith("tsv") else ";", index=False)
    assert layouts.read_layout(path)["dose_uM"].tolist() == [0.0005, 0.001]


def test_a_grid_with_semicolons_and_decimal_commas_is_read(tmp_path):
    path = tmp_path / "grid.csv"
    path.write_text("dose_uM;1;2\nA;0,5;0\nB;1;2\n\namyloid_uM;1;2\nA;0;30\nB;0;30\n")
    found = layouts.read_layout(path).set_index("well")
    assert found["dose_uM"].to_dict() == {"A01": 0.5, "A02": 0, "B01": 1, "B02": 2}


# Several columns for one thing, and columns that are named as nobody expected


DOSED = "well,{},dose_uM,amyloid_uM\nB2,{},1,0\nB3,{},3,30\nB4,,0,0\n"
NAMES_OF_COMPOUNDS = [
    *("drug", "compound_id", "Compounds", "substance", "pert_iname", "broad_sample", "Compound ID")
]


@pytest.mark.parametrize("name", NAMES_OF_COMPOUNDS)
def test_compounds_are_known_by_many_names(tmp_path, name):
    table = read(tmp_path, DOSED.format(name, "X", "Y"))
    assert table["compound"].tolist() == ["X", "Y", "none"]


@pytest.mark.parametrize("name", ["treatment", "agent", "Wirkstoff"])
def test_compounds_under_an_unknown_name_are_not_joined(tmp_path, name):
    with pytest.raises(TableError, match=f"{name} has \\['X', 'Y 2'\\].*Name it compound"):
        read(tmp_path, DOSED.format(name, "X", "Y 2"))
    grid = f"dose_uM,1,2\nB,1,2\namyloid_uM,1,2\nB,0,30\n{name},1,2\nB,X,Y 2\n"
    with pytest.raises(TableError, match=f"{name} has .'X', 'Y 2'"):
        read(tmp_path, grid)


@pytest.mark.parametrize(
    "first, second", [("X", "X"), ("X", ""), ("1", "2"), ("0.5 nM", "1 nM"), ("2024-01-02", "3:15")]
)
def test_columns_that_name_no_compounds_do_not_disturb(tmp_path, first, second):
    assert len(read(tmp_path, DOSED.format("note", first, second))) == 3
    both = "well,row,column,dose,amyloid_uM\nB2,B,2,1 nM,0\nC3,C,3,3 µM,0\n"
    assert read(tmp_path, both)["dose_uM"].tolist() == [0.001, 3.0]


def test_a_load_data_table_with_sites_and_times_needs_no_compound(tmp_path, load):
    table = public_table(tmp_path, Metadata_dose_uM="2")
    table["Metadata_Site"] = ["s1", "s2"]
    table["Metadata_AbsTime"] = ["2019-07-01T10:00:00", "2019-07-01T10:00:09Z"]
    images = load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    assert set(images.table["compound"]) == {"candidate"}
    table["Metadata_Medikament"] = ["X", "Y"]
    with pytest.raises(TableError, match="Medikament has .'X', 'Y'"):
        load(saved(table, tmp_path), "cellprofiler", layout="metadata")


def test_a_copy_of_the_published_layout_is_a_layout(tmp_path):
    copy = read(tmp_path, layouts.LAYOUT_FILE.read_text(encoding="utf-8"))
    pd.testing.assert_frame_equal(copy, layouts.read_layout())


@pytest.mark.parametrize("cell", ["1.000", "10.000", "1.000 nM"])
def test_german_thousands_beside_decimal_commas_are_refused(tmp_path, cell):
    text = f"well;dose_nM;amyloid_uM\nB2;0,5;0\nB3;{cell};30\n"
    with pytest.raises(TableError, match="well B03: dose_nM is '.*1000"):
        read(tmp_path, text)
    grid = f"dose_nM;2;3\nB;0,5;{cell}\n\namyloid_uM;2;3\nB;0;1.000\n"
    with pytest.raises(TableError, match="well B03: dose_nM is '.*1000"):
        read(tmp_path, grid)
    # the other grid has no decimal comma
    assert read(tmp_path, grid.replace(cell, "10", 1))["amyloid_uM"].tolist() == [0.0, 1.0]


def test_english_thousands_beside_commas_of_another_column_are_refused(tmp_path):
    with pytest.raises(TableError, match="well B03: dose_nM is '1,000'"):
        read(tmp_path, 'well,dose_nM,amyloid_uM\nB2,500,"1,2"\nB3,"1,000",30\n')
    grid = 'dose_nM,2,3\nB,500,"1,000"\n\namyloid_uM,2,3\nB,"1,2",30\n'
    with pytest.raises(TableError, match="well B03: dose_nM is '1,000'"):
        read(tmp_path, grid)


@pytest.mark.parametrize(
    "columns, cells",
    [
        ("dose_uM,dose_nM", "1,1"),
        ("dose_nM,dose_uM", "1,1"),
        ("dose_mM,dose_uM_final", "1,1"),
        ("dose_uM,dose_uM_final", "1,1"),
        ("dose_uM,Dose final (nM)", "1,1"),
        ("dose,dose_unit", "1 uM,nM"),
        ("dose_uM,unit", "1,nM"),
        ("dose_uM,Concentration units", "1,nM"),
    ],
)
def test_two_columns_that_may_both_be_the_dose_are_refused(tmp_path, columns, cells):
    with pytest.raises(TableError, match="dose_uM must stand in one column"):
        read(tmp_path, f"well,{columns},amyloid_uM\nB2,{cells},0\n")


def test_two_columns_of_one_dose_that_agree_are_read(tmp_path):
    text = "well,dose_uM,dose_nM,dose_rank,amyloid_uM,abeta (nM)\nB2,1,1000,1,30,30000\n"
    table = read(tmp_path, text)
    assert table["dose_uM"].tolist() == [1.0] and table["amyloid_uM"].tolist() == [30.0]
    with pytest.raises(TableError, match="amyloid_uM must stand in one column"):
        read(tmp_path, text.replace("30000", "3000"))


CONTRADICT = [
    ("well,row,column", "B2,B,2", "B02,2,3"),
    ("well,well_position", "B2,B02", "B2,B03"),
    ("compound,broad_sample,well", "X,BRD-1,B2", "X,BRD-2,B3"),
    ("compound,drug,well", "X,X,B2", "X,Y,B3"),
    ("plate,plate_id,well", "p,1,B2", "p,2,B3"),
]


@pytest.mark.parametrize("columns, first, second", CONTRADICT, ids=[row[0] for row in CONTRADICT])
def test_two_columns_for_one_thing_that_contradict_each_other_are_refused(
    tmp_path, columns, first, second
):
    text = f"{columns},dose_uM,amyloid_uM\n{first},0,0\n"
    assert read(tmp_path, text)["well"].tolist() == ["B02"]
    with pytest.raises(
        TableError, match=f"two columns name the {columns.split(',')[0]}, and contr"
    ):
        read(tmp_path, f"{text}{second},0,30\n")


def test_empty_cells_and_names_that_go_together_contradict_nothing(tmp_path):
    rows = ["B2,B,2,X,BRD-1,1,0", "B3,,,Y,BRD-2,1,0", "B4,B,4,DMSO,,0,0", "B5,B,5,none,,0,0"]
    text = "well,row,column,compound,broad_sample,dose_uM,amyloid_uM\n" + "\n".join(rows)
    assert read(tmp_path, text)["compound"].tolist() == ["X", "Y", "DMSO", "none"]


def test_a_well_of_a_load_data_table_that_is_not_its_row_and_column_is_refused(tmp_path, load):
    table = public_table(tmp_path)
    table["Metadata_Col"] = "3"
    with pytest.raises(
        TableError, match="name the well, and contradict each other: .'B02', 'r2c3'"
    ):
        load(saved(table, tmp_path), "cellprofiler", layout="metadata")


def test_a_file_name_and_an_address_that_differ_are_refused(tmp_path, load):
    table = public_table(tmp_path)
    table["URL_OrigDNA"] = "s3://there/P1/Im%61ges/" + table["FileName_OrigDNA"]
    images = load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    assert np.array_equal(images.pixels[1, 0], picture(10))
    table["URL_OrigDNA"] = table["URL_OrigDNA"].iloc[::-1].tolist()
    with pytest.raises(TableError, match="URL_OrigDNA and FileName_OrigDNA name different files"):
        load(saved(table, tmp_path), "cellprofiler", layout="metadata")


# Numbers of planes and fields, names of files


@pytest.mark.parametrize("column", ["Metadata_PlaneID", "Metadata_Site", "Metadata_Timepoint"])
@pytest.mark.parametrize("cell", ["-2", "0.5", "x1_y2", "1 of 3", "1,5", "2-3"])
def test_what_is_no_whole_number_chooses_no_plane(tmp_path, load, column, cell):
    table = public_table(tmp_path)
    table[column] = cell
    with pytest.raises(TableError, match=f"row 2: {column} is '{cell}'. Give a number"):
        load(saved(table, tmp_path), "cellprofiler", layout="metadata")


@pytest.mark.parametrize("cell", ["0", "3", "03", "z3", "Site 3", "s_03", "3.0"])
def test_a_whole_number_may_stand_after_letters(tmp_path, load, cell):
    table = public_table(tmp_path)
    table["Metadata_Site"] = cell
    images = load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    assert set(images.table["field"]) == {0 if cell == "0" else 3}


def test_a_plate_of_the_layout_without_files_is_listed(tmp_path, load):
    folder = two_plates(tmp_path / "plates")
    rows = [f"{plate},{well}2,0,{30 * (well == 'C')}" for plate in ("p1", "p9") for well in "BC"]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["plate,well,dose_uM,amyloid_uM", *rows]) + "\n")
    images = load(folder, layout=str(path))
    assert set(images.groups) == {"p1"}
    assert any("p9: no field in 2 wells of the layout: B02, C02" in row for row in reasons(images))


@pytest.mark.parametrize("name", ["B - 0", "B - 00", "B - 49", "ZZ - 4", "AG - 4"])
def test_one_name_of_no_well_stops_no_folder(tmp_path, load, name):
    folder = two_plates(tmp_path / "plates")
    write(folder / "p1" / f"{name}(fld 1 wv UV - DAPI).tif")
    write(folder / "p1" / f"{name.replace(' - ', '_')}_f1_c1_xUV_mDAPI.tif")
    images = load(folder)
    assert len(images) == 4
    assert sum("does not parse" in row and "p1/" in row for row in reasons(images)) == 2


def test_pipes_among_the_files_are_listed_and_not_opened(tmp_path, load):
    folder = two_plates(tmp_path / "plates")
    path = folder / "p1" / "B - 2(fld 1 wv UV - DAPI).tif"
    path.unlink()
    os.mkfifo(path)
    images = load(folder)
    assert len(images) == 3 and any("named pipe" in row for row in reasons(images))
    table = public_table(tmp_path)
    path = tmp_path / "P1" / "Images" / "B02-ch0.tiff"
    path.unlink()
    os.mkfifo(path)
    table["PathName_OrigDNA"] = str(path.parent)
    images = load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    assert len(images) == 1 and any("named pipe" in row for row in reasons(images))


@pytest.mark.parametrize("planes", ["sharpest", "maximum"])
def test_a_pipe_among_planes_is_listed(tmp_path, load, planes):
    folder = write_stacks(tmp_path / "set" / "P1")
    path = folder / "B - 2(fld 1 wv UV - DAPI z 3 time 1 - 20 ms).tif"
    path.unlink()
    os.mkfifo(path)
    images = load(tmp_path / "set", planes=planes)
    assert images.ids.tolist() == ["P1/C02/1"] and len(images.failures)


@pytest.mark.parametrize("size_px", [-8, -1, 10**6])
def test_a_size_that_is_none_is_refused(tmp_path, load, size_px):
    with pytest.raises(ParameterError, match="parameter size_px"):
        load(two_plates(tmp_path / "plates"), size_px=size_px)


def test_what_empties_a_set_is_said(tmp_path, load):
    folder = two_plates(tmp_path / "plates")
    write(folder / "p1" / "overview.tif")
    for path in folder.glob("*/*DAPI*"):
        path.unlink()  # so that remarks come before
    (tmp_path / "other.csv").write_text("well,dose_uM,amyloid_uM\nH9,0,0\n")
    with pytest.raises(TableError, match="no field can be used. p2/C02: the well is outside"):
        load(folder, layout=str(tmp_path / "other.csv"))


def test_missing_columns_of_a_load_data_table_are_said_once(tmp_path, load):
    table = public_table(tmp_path).drop(columns="Metadata_Plate")
    with pytest.raises(TableError) as refused:
        load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    said = str(refused.value)
    assert said.count("Metadata_Row") == 2 and "<stain>" not in said
    assert "Expected Metadata_Plate" in said and "FileName_OrigMito" in said


@pytest.mark.parametrize("form", [str.lower, str.upper, str])
def test_orig_before_a_stain_in_any_case(tmp_path, load, form):
    table = public_table(tmp_path).drop(columns="FileName_CellOutlines")
    table.columns = [form(name) if name[:4] in ("File", "Path") else name for name in table]
    images = load(saved(table, tmp_path), "cellprofiler", layout="metadata")
    assert images.channels == ("Hoechst", form("Mito"))


# Grids and doses as people write them


@pytest.mark.parametrize(
    "text",
    [
        "dose_uM,A,B\n1,0,1\n2,3,0\namyloid_uM,A,B\n1,0,0\n2,30,30\n",
        ",,\n,dose_uM,1,2\n,A,0,1\n,amyloid_uM,1,2\n,A,0,30\n",
        "My plate of March\nwell,dose_uM,amyloid_uM\nB2,0,0\n",
    ],
)
def test_what_is_neither_table_nor_grids_is_told_what_both_are(tmp_path, text):
    with pytest.raises(TableError, match="or grids: letters down, numbers across"):
        read(tmp_path, text)


def test_a_dose_beside_a_share_of_the_solvent_is_none(tmp_path):
    text = "well,compound,dose_uM,amyloid_uM\n"
    for name in (
        "DMSO 0.1%",
        "DMSO (0.1 %)",
        "vehicle 0.5 %",
        "0.1% DMSO",
        "DMSO 0.1% (v/v)",
        '"DMSO 0,1 %"',
    ):
        table = read(tmp_path, f"{text}B2,{name},,0\nB3,X,1,0\n")
        assert table["dose_uM"].tolist() == [0.0, 1.0]
    with pytest.raises(TableError, match="well B02: dose_uM is ''"):
        read(tmp_path, f"{text}B2,X 0.1%,,0\nB3,X,1,0\n")


@pytest.mark.parametrize("name", ["DMSO", "DMSO 0.1%", "Vehicle", "untreated"])
def test_a_control_has_no_dose(tmp_path, name):
    with pytest.raises(TableError, match="well B02: it has a dose of no compound.*control has no"):
        read(tmp_path, f"well,compound,dose_uM,amyloid_uM\nB2,{name},1,0\nB3,X,1,0\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("amyloid_uM,", "# second, of March,,\namyloid_uM,"),
        lambda text: text.replace("B,", "# row B\nB,"),
        lambda text: text.replace(",1,2", ",1.0,2.0"),
        lambda text: text.replace(",1,2", ",1,2,").replace("A,0,1", "A,0,1,A"),
        lambda text: re.sub("^([AB]),.*", r"\g<0>,\1", text, flags=re.M),
        lambda text: re.sub("^([AB]),.*", r"\g<0>,\1", text.replace(",1,2", ",1,2,"), flags=re.M),
    ],
)
def test_grids_with_remarks_points_or_letters_on_both_sides(tmp_path, change):
    text = "dose_uM,1,2\nA,0,1\nB,3,0\namyloid_uM,1,2\nA,0,0\nB,30,30\n"
    pd.testing.assert_frame_equal(read(tmp_path, change(text)), read(tmp_path, text))


def test_a_cell_of_a_grid_beneath_no_number_is_refused(tmp_path):
    with pytest.raises(TableError, match="no name of a well"):
        read(tmp_path, "dose_uM,1,2\nA,0,1,5\namyloid_uM,1,2\nA,0,0\n")


def test_rows_and_columns_with_points_are_numbers(tmp_path):
    text = "row,column,dose_uM,amyloid_uM\n1.0,1.0,0,0\nB,12.0,0,30\n"
    assert read(tmp_path, text)["well"].tolist() == ["A01", "B12"]


@pytest.mark.parametrize(
    "header", ["Aβ42 (µM)", "Aβ1-42 µM", "Abeta (1-42) uM", "amyloid-β 1–40 [µM]", "aβ_µM"]
)
def test_amyloid_is_known_by_its_names(tmp_path, header):
    assert read(tmp_path, f"well,dose_uM,{header}\nB2,0,30\n")["amyloid_uM"].tolist() == [30.0]


def test_the_planes_that_were_chosen_stand_in_the_source(tmp_path, load):
    write_stacks(tmp_path / "set" / "P1")
    assert "planes z3" in load(tmp_path / "set", planes="z3").source
    for path in (tmp_path / "set" / "P1").glob("* z [13] *"):
        path.unlink()
    assert "planes" not in load(tmp_path / "set").source
