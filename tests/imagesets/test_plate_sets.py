"""Plates as data: names, layouts, what is missing is listed, nothing looks at labels that it must
not see.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from nbhelpers.core.errors import InputError, ParameterError, SplitError, TableError
from nbhelpers.imagesets import plate_files, plates
from nbhelpers.phantoms import layouts

WAVES = {
    "MAP2": "Red - Cy5",
    "PSD-95": "Blue - FITC",
    "Synaptophysin": "Green - dsRed",
    "Hoechst": "UV - DAPI",
}
WELLS = ("B - 2", "B - 3", "C - 2", "C - 3", "D - 2")


def picture(seed=0, size=32, dtype=np.uint16):
    """Blobs on noise."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 8, (size, size))
    for y, x in rng.integers(4, size - 4, (4, 2)):
        image[y - 3 : y + 3, x - 3 : x + 3] += 60
    return np.clip(image, 0, 250).astype(dtype)


def write_plate(folder, wells=WELLS, fields=2, stains=tuple(WAVES), dtype=np.uint16):
    folder.mkdir(parents=True)
    for at, well in enumerate(wells):
        for field in range(1, fields + 1):
            for number, stain in enumerate(stains):
                tifffile.imwrite(
                    folder / f"{well}(fld {field} wv {WAVES[stain]}).tif",
                    picture(at * 100 + field * 10 + number, dtype=dtype),
                )
    return folder


@pytest.fixture
def layout(tmp_path):
    path = tmp_path / "layout.csv"
    path.write_text("well,dose_uM,amyloid_uM\nB2,0,0\nB3,0,0\nC02,0,30\nC3,0,30\nD2,3,30\n")
    return path


@pytest.fixture
def load(tmp_path, layout):
    def found(folder, **settings):
        return plates.load_plates(
            "in_cell",
            data_folder=tmp_path / "data",
            data_dir=str(folder),
            layout=str(layout),
            **settings,
        )

    return found


def reasons(images):
    return [f"{row.file}: {row.why} {row.fix}" for row in images.failures.itertuples()]


def one(images, text):
    """The only failure that says ``text``."""
    found = [reason for reason in reasons(images) if text in reason]
    assert len(found) == 1, reasons(images)
    return found[0]


# Layouts


def test_the_published_layout_gives_every_well_one_treatment():
    table = layouts.read_layout()
    assert len(table) == 48 and table["well"].is_unique and set(table["row"]) == set("BCDEFGHJ")
    assert table.groupby(["dose_uM", "amyloid_uM"]).size().eq(6).all()
    place = table.set_index("well")
    assert place.loc["J02", ["dose_uM", "amyloid_uM"]].tolist() == [10, 30]
    assert place.loc["F02", ["dose_uM", "amyloid_uM"]].tolist() == [3, 0]


def test_the_layout_as_printed_is_refused_naming_the_wells():
    printed = pd.read_csv(layouts.LAYOUT_FILE, keep_default_na=False)
    printed["well"] = printed["printed_as"].where(printed["printed_as"] != "", printed["well"])
    with pytest.raises(
        TableError, match="F02, F03, F04 stand twice; the wells J02, J03, J04 are left over"
    ):
        layouts.check_layout(printed, "printed", layouts.PUBLISHED_WELLS)


@pytest.mark.parametrize(
    "text, said",
    [
        ("well,dose_uM\nB2,0\n", "amyloid_uM"),
        ("well,dose_uM,amyloid_uM\nB2,0,0\nB02,1,0\n", "B02 stand twice"),
        ("well,dose_uM,amyloid_uM\nB2,much,0\n", "'much'"),
        ("well,dose_uM,amyloid_uM\nB2,-1,0\n", "'-1'"),
        ("well,dose_uM,amyloid_uM\n22,0,0\n", "layout.csv, well '22'"),
        ("well,dose_uM,amyloid_uM\n", "no rows"),
    ],
)
def test_bad_layouts_are_refused(tmp_path, text, said):
    (tmp_path / "layout.csv").write_text(text)
    with pytest.raises(TableError, match=said):
        layouts.read_layout(tmp_path / "layout.csv")


def test_a_layout_that_is_not_there(tmp_path):
    with pytest.raises(TableError, match="does not exist"):
        layouts.read_layout(tmp_path / "none.csv")


@given(
    st.sampled_from("ABCDEFGHJP"),
    st.integers(1, 24),
    st.sampled_from(["{}{}", "{} - {}", "{}{:02d}", "{}-{}"]),
)
def test_a_well_has_one_name_however_it_is_written(letter, number, form):
    assert layouts.well_name(form.format(letter, number)) == f"{letter}{number:02d}"


# IN Cell Analyzer


def test_a_folder_of_an_in_cell_analyzer(tmp_path, load):
    write_plate(tmp_path / "set" / "P1")
    write_plate(tmp_path / "set" / "P2")
    images = load(tmp_path / "set")
    assert images.pixels.shape == (20, 4, 32, 32) and images.pixels.dtype == np.uint16
    assert (
        isinstance(images.pixels, np.memmap)
        and images.channels == layouts.STAINS
        and not len(images.failures)
    )
    row = images.table.set_index("id").loc["P1/C02/2"]
    assert (row["label"], row["group"], row["row"], row["column"], row["amyloid_uM"]) == (
        "amyloid-beta",
        "P1",
        "C",
        2,
        30,
    )
    assert images.table.set_index("id").loc["P1/D02/1", "label"] is None
    file = tmp_path / "set/P1/C - 2(fld 2 wv Green - dsRed).tif"
    assert np.array_equal(
        images.pixels[images.positions(["P1/C02/2"])[0], 2], tifffile.imread(file)
    )
    assert load(tmp_path / "set").content_hash == images.content_hash


def test_the_published_form_of_a_name_parses():
    for name in (
        "B - 4(fld 1 wv Red - Cy5 ...).tif",
        "B - 04(fld 01 wv Red - Cy5 wvRed - Cy5).tif",
        "b - 4(fld 1 wv Red - Cy5).TIFF",
    ):
        found = plate_files._IN_CELL.fullmatch(name)
        assert (
            layouts.well_name(found["well"]) == "B04"
            and found["wavelength"] == "Red - Cy5"
            and int(found["field"]) == 1
        )


def test_fields_are_averaged_in_whole_blocks(tmp_path, load):
    write_plate(tmp_path / "set" / "P1")
    small = load(tmp_path / "set", size_px=16)
    whole = load(tmp_path / "set")
    assert small.pixels.shape[-2:] == (16, 16)
    assert np.allclose(
        small.pixels[0, 0], whole.pixels[0, 0].reshape(16, 2, 16, 2).mean(axis=(1, 3)), atol=0.51
    )
    with pytest.raises(TableError, match="cannot be averaged to 15 px"):
        load(tmp_path / "set", size_px=15)


def test_names_that_do_not_parse_are_listed_with_the_pattern(tmp_path, load):
    folder = write_plate(tmp_path / "set" / "P1")
    tifffile.imwrite(folder / "B4_field1.tif", picture())
    tifffile.imwrite(folder / "B - 2(fld 9 wv Pink - Cy9).tif", picture())
    images = load(tmp_path / "set")
    assert plate_files.IN_CELL_PATTERN in one(images, "P1/B4_field1.tif")
    assert "Red - Cy5" in one(images, "the wavelength Pink - Cy9 is unknown") and len(images) == 10


def test_a_folder_in_which_no_name_parses_says_so(tmp_path, load):
    (tmp_path / "set").mkdir()
    tifffile.imwrite(tmp_path / "set" / "image.tif", picture())
    with pytest.raises(InputError, match=r"fld 1 wv Red - Cy5"):
        load(tmp_path / "set")


def test_a_missing_stain_takes_its_field_and_is_named(tmp_path, load):
    folder = write_plate(tmp_path / "set" / "P1")
    (folder / "B - 3(fld 2 wv UV - DAPI).tif").unlink()
    images = load(tmp_path / "set")
    assert "Hoechst is missing" in one(images, "P1/B03/2")
    assert "P1/B03/2" not in images.ids and "B03 (1)" in one(images, "fewer than 2 fields")


def test_a_stain_that_a_whole_plate_lacks_is_said_once(tmp_path, load):
    write_plate(tmp_path / "set" / "P1")
    write_plate(tmp_path / "set" / "P2", stains=("MAP2", "Hoechst"))
    images = load(tmp_path / "set")
    assert "PSD-95 and Synaptophysin is missing in all 10 fields" in one(images, "P2: the stain")
    assert set(images.groups) == {"P1"} and images.pixels.shape[1] == 4


@pytest.mark.parametrize("stains", [("Hoechst",), ("Hoechst", "MAP2")])
def test_a_set_without_some_stains_is_read_in_those_it_has(tmp_path, load, stains):
    write_plate(tmp_path / "set" / "P1", stains=stains)
    images = load(tmp_path / "set")
    assert images.channels == stains[::-1] and images.pixels.shape == (10, len(stains), 32, 32)
    assert "carry on with the other stains" in one(images, "no file has the wavelength Blue - FITC")


@pytest.mark.parametrize("layout", ["randomised", "metadata"])
def test_a_layout_of_another_source_is_refused(tmp_path, layout):
    with pytest.raises(ParameterError, match=f"parameter layout: '{layout}' is for"):
        plates.load_plates("in_cell", data_folder=tmp_path, data_dir=str(tmp_path), layout=layout)


@pytest.mark.parametrize(
    "wells, lacks",
    [
        (("B - 2", "B - 3", "D - 2"), "amyloid-beta: no compound, 30 uM"),
        (("C - 2", "C - 3", "D - 2"), "control: no compound, 0 uM"),
    ],
)
def test_a_plate_of_one_class_is_listed(tmp_path, load, wells, lacks):
    write_plate(tmp_path / "set" / "P1", wells=wells)
    assert lacks in one(load(tmp_path / "set"), "P1: no usable field is of the class")


def test_a_duplicate_field_is_left_out_naming_both_files(tmp_path, load):
    folder = write_plate(tmp_path / "set" / "P1")
    tifffile.imwrite(folder / "B - 2(fld 1 wv Red - Cy5 again).tif", picture(7))
    images = load(tmp_path / "set")
    said = one(images, "stands twice")
    assert (
        "again" in said and "B - 2(fld 1 wv Red - Cy5).tif" in said and "P1/B02/1" not in images.ids
    )


def test_a_well_outside_the_layout_is_listed(tmp_path, load):
    write_plate(tmp_path / "set" / "P1", wells=(*WELLS, "G - 9"))
    images = load(tmp_path / "set")
    assert "outside the layout (8 files)" in one(images, "P1/G09") and "G09" not in set(
        images.table["well"]
    )


def test_a_well_without_images_is_listed(tmp_path, load):
    write_plate(tmp_path / "set" / "P1", wells=WELLS[:-1])
    assert "in 1 well of the layout: D02" in one(load(tmp_path / "set"), "no field")


def test_an_empty_well_shows_noise_only_and_is_left_out(tmp_path, load):
    folder = write_plate(tmp_path / "set" / "P1")
    rng = np.random.default_rng(0)
    for path in folder.glob("C - 3*"):
        tifffile.imwrite(path, rng.normal(100, 8, (32, 32)).astype(np.uint16))
    images = load(tmp_path / "set")
    assert "nothing but noise" in one(images, "P1/C03: the well is empty") and len(images) == 8
    assert isinstance(images.pixels, np.memmap)


def test_an_empty_well_is_found_under_uneven_light(tmp_path, load):
    folder = write_plate(tmp_path / "set" / "P1")
    rng = np.random.default_rng(0)
    at = np.linspace(-1, 1, 32)
    light = 100 * (1.2 - 0.1 * at[:, None] ** 2 + 0.12 * at)
    for path in folder.glob("C - 3*"):
        tifffile.imwrite(path, (light + rng.normal(0, 8, (32, 32))).astype(np.uint16))
    images = load(tmp_path / "set")
    assert one(images, "P1/C03: the well is empty") and len(images) == 8


def test_stains_of_different_size_are_listed(tmp_path, load):
    folder = write_plate(tmp_path / "set" / "P1")
    tifffile.imwrite(folder / "B - 2(fld 1 wv Red - Cy5).tif", picture(size=16))
    assert "MAP2 16 x 16 px" in one(load(tmp_path / "set"), "P1/B02/1: its stains differ in size")


def test_mixed_bit_depths_are_listed_even_when_the_odd_one_comes_first(tmp_path, load):
    folder = write_plate(tmp_path / "set" / "P1")
    for stain in WAVES.values():
        tifffile.imwrite(folder / f"B - 2(fld 1 wv {stain}).tif", picture(dtype=np.uint8))
    images = load(tmp_path / "set")
    assert "8 bit, most fields are 32 x 32 px, 16 bit" in one(images, "P1/B02/1")
    assert len(images) == 9 and images.pixels.dtype == np.uint16


@pytest.mark.parametrize("dtype, top", [(np.uint8, 255), (np.uint16, 4095), (np.uint16, 65535)])
def test_saturated_images_are_left_out(tmp_path, load, dtype, top):
    folder = write_plate(tmp_path / "set" / "P1", dtype=dtype)
    image = picture(dtype=dtype)
    image[:8] = top
    tifffile.imwrite(folder / "B - 2(fld 1 wv Red - Cy5).tif", image)
    images = load(tmp_path / "set")
    assert (
        f"25 % of its pixels have the brightest value {top}" in one(images, "saturated")
        and len(images) == 9
    )


def test_one_grey_colour_and_damage_are_listed(tmp_path, load):
    folder = write_plate(tmp_path / "set" / "P1")
    tifffile.imwrite(folder / "B - 2(fld 1 wv Red - Cy5).tif", np.full((32, 32), 9, np.uint16))
    (folder / "B - 2(fld 2 wv Red - Cy5).tif").write_bytes(b"")
    tifffile.imwrite(
        folder / "B - 3(fld 1 wv Red - Cy5).tif", np.stack([picture(1), picture(2), picture(3)])
    )
    images = load(tmp_path / "set")
    assert (
        one(images, "every pixel has the value 9")
        and one(images, "empty (0 bytes)")
        and len(images) == 7
    )


# CellProfiler


@pytest.fixture
def load_data(tmp_path):
    folder = write_plate(tmp_path / "set" / "images", stains=("MAP2", "Hoechst"))
    rows = [
        {
            "Metadata_Plate": "P1",
            "Metadata_Well": well.replace(" - ", "0"),
            "Metadata_Site": f"s{field}",
            "PathName_DNA": str(folder) if field == 1 else "images",
            "FileName_DNA": f"{well}(fld {field} wv UV - DAPI).tif",
            "PathName_map2": "images",
            "FileName_map2": f"{well}(fld {field} wv Red - Cy5).tif",
            "Metadata_Concentration_uM": "0",
            "Metadata_Amyloid_uM": "30" if well[0] == "C" else "0",
            "Metadata_Compound": "X",
        }
        for well in WELLS
        for field in (1, 2)
    ]
    return pd.DataFrame(rows), tmp_path / "set" / "load_data.csv"


def test_a_load_data_table_of_two_stains(tmp_path, load_data, layout):
    table, path = load_data
    table.to_csv(path, index=False)
    images = plates.load_plates(
        "cellprofiler", data_folder=tmp_path / "data", data_dir=str(path), layout="metadata"
    )
    assert images.channels == ("MAP2", "Hoechst") and images.pixels.shape == (10, 2, 32, 32)
    assert set(images.table["compound"]) == {"X"} and images.counts() == {
        "control": 6,
        "amyloid-beta": 4,
    }
    other = plates.load_plates(
        "cellprofiler", data_folder=tmp_path / "data", data_dir=str(path), layout=str(layout)
    )
    assert other.counts() == {"control": 4, "amyloid-beta": 4}


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda table: table.drop(columns="Metadata_Well"), "Metadata_Well"),
        (
            lambda table: table.drop(columns=["FileName_DNA", "FileName_map2"]),
            "Expected .* as in FileName_DNA",
        ),
        (lambda table: table.drop(columns="Metadata_Site"), "wells have several rows"),
        (lambda table: table.assign(Metadata_Well=["B02", "??"] * 5), r"row 3, well '\?\?'"),
        (
            lambda table: table.assign(Metadata_Plate=["P1", " "] * 5),
            "row 3: Metadata_Plate is empty",
        ),
        (lambda table: table.assign(FileName_DNA="", FileName_map2=""), "no row names a file"),
        (
            lambda table: table.assign(Metadata_Concentration_uM=["0", "1"] * 5),
            "B02, B03, C02, C03, D02 stand twice",
        ),
        (
            lambda table: table.assign(**{f"FileName_{number}": "a.tif" for number in range(4)}),
            "1 to 5 stains",
        ),
        (lambda table: table.assign(Metadata_Site="first"), "row 2: Metadata_Site is 'first'"),
        (
            lambda table: table.assign(FileName_Hoechst=table["FileName_DNA"]),
            "1 to 5 stains, each once",
        ),
    ],
)
def test_bad_load_data_tables(tmp_path, load_data, change, said):
    table, path = load_data
    change(table).to_csv(path, index=False)
    with pytest.raises(TableError, match=said):
        plates.load_plates(
            "cellprofiler", data_folder=tmp_path, data_dir=str(path), layout="metadata"
        )


def test_a_load_data_row_without_its_file_is_listed(tmp_path, load_data):
    table, path = load_data
    table.loc[3, "FileName_DNA"] = "gone.tif"
    table.to_csv(path, index=False)
    images = plates.load_plates(
        "cellprofiler", data_folder=tmp_path / "data", data_dir=str(path), layout="metadata"
    )
    assert "cannot be read" in one(images, "load_data.csv, row 5: gone.tif") and len(images) == 9


def test_a_load_data_file_named_for_two_fields_is_listed(tmp_path, load_data):
    table, path = load_data
    table.loc[1, "FileName_map2"] = table.loc[0, "FileName_map2"]
    table.to_csv(path, index=False)
    images = plates.load_plates(
        "cellprofiler", data_folder=tmp_path / "data", data_dir=str(path), layout="metadata"
    )
    assert (
        "P1/B02/1, MAP2 and P1/B02/2, MAP2" in one(images, "one file stands for")
        and len(images) == 8
    )


def test_five_stains_and_names_with_dollars_and_tags(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rows = []
    stains = [*layouts.STAINS, "Tau"]
    for well, dose in (("B2", 0), ("B3", 3)):
        names = {f"FileName_{stain}": f"{well}{number}.tif" for number, stain in enumerate(stains)}
        for number, name in enumerate(names.values()):
            tifffile.imwrite(folder / name, picture(number + 10 * dose))
        rows.append(
            {
                "Metadata_Plate": "P1",
                "Metadata_Well": well,
                "Metadata_Concentration_uM": dose,
                **names,
                "Metadata_Amyloid_uM": 0,
                "Metadata_Compound": "<b>$x_1$</b>",
            }
        )
    pd.DataFrame(rows).to_csv(folder / "load.csv", index=False)
    images = plates.load_plates(
        "cellprofiler",
        data_folder=tmp_path / "data",
        data_dir=str(folder / "load.csv"),
        layout="metadata",
    )
    assert images.pixels.shape == (2, 5, 32, 32) and images.channels == tuple(stains)
    assert images.table["treatment"].tolist() == ["none", "<b>$x_1$</b> 3 uM"]


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"data": "zeiss"}, "data"),
        ({"data": "in_cell"}, "data_dir"),
    ],
)
def test_wrong_parameters_are_named(tmp_path, settings, name):
    with pytest.raises(ParameterError, match=f"parameter {name}"):
        plates.load_plates(**settings, data_folder=tmp_path)


# Phantoms, normalisation, splits


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return plates.load_plates(
        "phantom",
        data_folder=tmp_path_factory.mktemp("data"),
        size_px=32,
        phantom={"plates": 5, "fields": 1},
    )


def test_phantoms_are_kept_and_found_again(tmp_path):
    about = {"data_folder": tmp_path, "size_px": 32, "phantom": {"plates": 1, "fields": 1}}
    first = plates.load_plates("phantom", **about)
    second = plates.load_plates("phantom", **about)
    assert (
        first.synthetic
        and isinstance(second.pixels, np.memmap)
        and first.content_hash == second.content_hash
    )
    assert len(list((tmp_path / "phantoms").iterdir())) == 1
    summary = plates.plate_summary(first).iloc[0]
    assert summary[["wells", "fields", "control", "not for training"]].tolist() == [48, 48, 6, 36]


def test_normalising_brings_plates_together_and_looks_at_no_label(phantoms, tmp_path):
    found = plates.normalise_to_controls(phantoms, cache_folder=tmp_path)
    plain = (phantoms.table["dose_uM"] == 0).to_numpy()

    def spread(images):
        dark = np.array(
            [
                np.percentile(images.pixels[plain & (images.groups == plate)], 1, axis=(0, 2, 3))
                for plate in sorted(set(images.groups))
            ]
        )
        return dark.std(axis=0).max()

    assert spread(found) < 0.5 * spread(phantoms) and isinstance(found.pixels, np.memmap)
    assert found.table["clipped"].max() < 0.2
    swapped = replace(
        phantoms,
        table=phantoms.table.assign(
            label=phantoms.table["label"].map(
                {"control": "amyloid-beta", "amyloid-beta": "control"}
            )
        ),
        content_hash="",
    )
    assert np.array_equal(plates.normalise_to_controls(swapped).pixels, found.pixels)
    shuffled = phantoms.table["amyloid_uM"].where(~plain, 30 - phantoms.table["amyloid_uM"])
    other = replace(phantoms, table=phantoms.table.assign(amyloid_uM=shuffled), content_hash="")
    assert np.array_equal(plates.normalise_to_controls(other).pixels, found.pixels)


def test_normalising_keeps_the_order_of_grey_values_within_a_plate(phantoms):
    found = plates.normalise_to_controls(phantoms, wells="all")
    here = phantoms.groups == "plate01"
    before = phantoms.pixels[here][:, 1].ravel().astype(int)
    after = found.pixels[here][:, 1].ravel().astype(int)
    order = np.argsort(before, kind="stable")
    assert (np.diff(after[order]) >= 0).all()


def test_a_plate_without_controls_is_scaled_by_all_its_wells_and_said(phantoms):
    table = phantoms.table.assign(
        dose_uM=phantoms.table["dose_uM"].where(phantoms.table["plate"] != "plate03", 1.0)
    )
    found = plates.normalise_to_controls(replace(phantoms, table=table))
    assert found.source.endswith("and by all wells where there are none: plate03")
    by = plates.plate_summary(found).set_index("plate")["scaled by"]
    assert by["plate03"] == "all wells" and set(by.drop("plate03")) == {"wells without compound"}
    here = found.groups == "plate03"
    for wells, rows in (("all", here), ("controls", ~here)):
        alike = plates.normalise_to_controls(phantoms, wells=wells)
        assert np.array_equal(found.pixels[rows], alike.pixels[rows])
    with pytest.raises(ParameterError, match="parameter wells"):
        plates.normalise_to_controls(phantoms, wells="some")


def test_controls_that_are_one_of_the_classes_do_not_set_the_scale(phantoms):
    label = np.where(
        phantoms.table["dose_uM"] == 0, "control", "amyloid-beta"
    )  # as DMSO against a compound
    images = replace(phantoms, table=phantoms.table.assign(label=label), content_hash="")
    with pytest.raises(ParameterError, match="would show the label"):
        plates.normalise_to_controls(images)
    assert len(plates.normalise_to_controls(images, wells="all")) == len(images)


@given(st.integers(0, 1000), st.integers(1, 3))
def test_whole_plates_are_split(phantoms, seed, test):
    split = plates.split_by_plate(phantoms, test=test, seed=seed)
    groups = split.table.groupby("part")["group"].unique()
    assert len(groups["test"]) == test and len(groups["validation"]) == 1
    assert len(split.table) == (phantoms.labels >= 0).sum()
    parts = plates.parts_of_plates(phantoms, split)
    assert (pd.Series(parts).groupby(phantoms.groups).nunique() == 1).all() and "" not in set(parts)


def test_named_plates_are_split_as_named(phantoms):
    split = plates.split_by_plate(phantoms, test=["plate02"])
    assert set(split.table.loc[split.table["part"] == "test", "group"]) == {"plate02"}


def one_class(phantoms, plate="plate02"):
    label = phantoms.table["label"].where(
        (phantoms.table["plate"] != plate) | (phantoms.table["label"] == "control"), None
    )
    return replace(phantoms, table=phantoms.table.assign(label=label), content_hash="")


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"test": ["plate99"]}, "plate99: there is no such plate"),
        ({"test": 5}, "1 plates for validation are asked for"),
        ({"test": 4}, "no plate is left to train"),
        ({"test": ["plate02"]}, "plate02: it has only the class control"),
    ],
)
def test_impossible_splits_say_why(phantoms, settings, said):
    images = one_class(phantoms) if settings.get("test") == ["plate02"] else phantoms
    with pytest.raises(SplitError, match=said):
        plates.split_by_plate(images, **settings)


def test_a_plate_of_one_class_is_never_drawn_for_test(phantoms):
    for seed in range(20):
        split = plates.split_by_plate(one_class(phantoms), test=2, seed=seed)
        assert set(split.table.loc[split.table["group"] == "plate02", "part"]) == {"train"}


def test_each_plate_is_left_out_once(phantoms):
    split = plates.leave_one_plate_out(one_class(phantoms))
    tested = split.table[split.table["part"] == "test"].groupby("fold")["group"].unique()
    assert sorted(name for names in tested for name in names) == [
        "plate01",
        "plate03",
        "plate04",
        "plate05",
    ]
    with pytest.raises(SplitError, match="only 1 plates"):
        plates.leave_one_plate_out(phantoms.take(np.flatnonzero(phantoms.groups == "plate01")))


@pytest.mark.realdata
def test_bbbc021_cells(real_data, tmp_path):
    images = plates.load_plates(
        "bbbc021", data_folder=tmp_path, data_dir=str(real_data("bbbc021_subset"))
    )
    assert (
        images.pixels.shape == (1320, 3, 68, 68)
        and images.pixels.dtype == np.uint16
        and not len(images.failures)
    )
    assert images.counts() == {"DMSO": 640, "cycloheximide": 680}
    split = plates.leave_one_plate_out(images)
    assert len(split.folds()) == 2 and "one class only" in split.protocol


def test_bbbc021_without_its_table(tmp_path):
    with pytest.raises(TableError, match="cells.csv"):
        plates.load_plates("bbbc021", data_folder=tmp_path, data_dir=str(Path(tmp_path)))


def test_a_platemap_with_tabs_is_a_layout(tmp_path):
    path = tmp_path / "platemap.txt"
    rows = [
        "plate_map_name\twell_position\tbroad_sample\tmmoles_per_liter\tamyloid_uM",
        "M1\tA01\tBRD-1\t0.005\t30",
        "M1\ta2\tDMSO\t\t0",
    ]
    path.write_text("\n".join(rows))
    table = layouts.read_layout(path)
    assert table["well"].tolist() == ["A01", "A02"] and table["compound"].tolist() == [
        "BRD-1",
        "DMSO",
    ]
    assert table["dose_uM"].tolist() == [5.0, 0.0] and table["amyloid_uM"].tolist() == [30.0, 0.0]
    path.write_text("\n".join(row.rpartition("\t")[0] for row in rows))
    with pytest.raises(TableError, match="amyloid_uM"):
        layouts.read_layout(path)
    path.write_text("\n".join(rows).replace("0.005", "five"))
    with pytest.raises(TableError, match="well A01.*five"):
        layouts.read_layout(path)


# New plates


@pytest.fixture
def new_plates(tmp_path, load):
    """A function that reads tmp_path/new for plates like those of tmp_path/set, and the folder."""
    write_plate(tmp_path / "set" / "P1")
    known = plates.normalise_to_controls(load(tmp_path / "set"))

    def found(path=tmp_path / "new", **changed):
        return plates.load_unlabelled_plates(path, known, data_folder=tmp_path / "data", **changed)

    return found, tmp_path / "new"


def test_every_well_of_new_plates_is_read_whatever_the_layout_knows(new_plates, tmp_path):
    load_new, folder = new_plates
    write_plate(folder / "N1")
    write_plate(folder / "N2", wells=("G - 9", "P - 24"))
    images = load_new()
    assert sorted(set(images.table["plate"] + images.table["well"])) == [
        *(f"N1{well}" for well in ("B02", "B03", "C02", "C03", "D02")),
        "N2G09",
        "N2P24",
    ]
    assert (images.labels == -1).all() and images.ids[0] == "N1/B02 field 1"
    assert set(images.table["treatment"]) == {"unknown"} and not len(images.failures)
    assert set(images.table["scaled_by"]) == {"all wells"}
    layout = tmp_path / "new.csv"
    layout.write_text("plate,well,dose_uM,amyloid_uM\nN1,B2,0,0\nN1,C02,3,30\nP1,B2,0,0\n")
    images = load_new(layout=str(layout))
    by = images.table.groupby("plate")[["treatment", "scaled_by"]].agg(lambda many: set(many))
    assert by["treatment"].to_dict() == {
        "N1": {"none", "candidate 3 uM + amyloid-beta 30 uM", "unknown"},
        "N2": {"unknown"},
    }
    assert by["scaled_by"].to_dict() == {"N1": {"wells without compound"}, "N2": {"all wells"}}
    assert not len(images.failures) and len(images) == 14
    assert set(load_new(layout=str(layout), wells="all").table["scaled_by"]) == {"all wells"}


def test_of_new_plates_what_cannot_be_used_is_listed_and_the_rest_read(new_plates):
    load_new, folder = new_plates
    plate = write_plate(folder / "N1")
    cut = plate / "B - 2(fld 1 wv Red - Cy5).tif"
    cut.write_bytes(cut.read_bytes()[:100])
    (plate / "C - 2(fld 2 wv UV - DAPI).tif").unlink()
    images = load_new()
    assert len(images) == 8
    assert "Hoechst is missing" in one(images, "N1/C02 field 2: ") and one(images, cut.name)
    # given are fields, however many files of them are cut, and wells without one are no images
    (plate / "B - 2(fld 1 wv UV - DAPI).tif").write_bytes(b"II*")
    layout = folder.parent / "layout.csv"
    layout.write_text("well,dose_uM,amyloid_uM\nB2,0,0\nC2,0,30\nH7,0,0\nH8,0,0\n")
    images = load_new(layout=str(layout))
    assert images.failures.attrs == {"given": 10, "images": 3} and len(images) == 8
    notes = images.failures["why"].str.contains("of the layout:")
    assert notes.tolist() == [False] * 3 + [True, True]


def test_new_plates_of_other_stains_or_size_are_refused(new_plates, tmp_path):
    load_new, folder = new_plates
    write_plate(folder / "N1", stains=("MAP2", "Hoechst"))
    with pytest.raises(InputError, match="stains of the new plates are MAP2, Hoechst, and those"):
        load_new()
    write_plate(tmp_path / "large" / "N1")
    with pytest.raises(InputError, match="height and width of the new plates are 16, 16, and"):
        load_new(tmp_path / "large", size_px=16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="none of its 0 files has a name"):
        load_new(tmp_path / "empty")
    with pytest.raises(InputError, match="does not exist"):
        load_new(tmp_path / "nowhere")


def test_new_plates_of_a_load_data_table(tmp_path, load_data):
    table, path = load_data
    table.to_csv(path, index=False)
    about = {"data_folder": tmp_path / "data"}
    known = plates.load_plates("cellprofiler", data_dir=str(path), layout="metadata", **about)
    other = path.with_name("new.csv")
    table.drop(columns=list(table.filter(regex="Conc|Amyl|Comp"))).to_csv(other, index=False)
    found = plates.load_unlabelled_plates(other, known, **about)
    assert len(found) == 10 and set(found.table["scaled_by"]) == {"all wells"}
    found = plates.load_unlabelled_plates(path, known, layout="metadata", **about)
    assert set(found.table["scaled_by"]) == {"wells without compound"}
    with pytest.raises(TableError, match="dose_uM must stand"):
        plates.load_unlabelled_plates(other, known, layout="metadata", **about)


@pytest.mark.parametrize("named", [["plate03"], ["plate05", "plate01"]])
def test_named_plates_are_left_out_in_turn(phantoms, named):
    split = plates.leave_one_plate_out(one_class(phantoms), test=named)
    tested = split.table[split.table["part"] == "test"].groupby("fold")["group"].first()
    assert tested.tolist() == named
    with pytest.raises(SplitError, match="plate02: it has only the class control"):
        plates.leave_one_plate_out(one_class(phantoms), test=["plate02"])
