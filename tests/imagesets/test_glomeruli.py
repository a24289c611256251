"""Glomeruli: what can be used and what is refused, labels that contradict each other, and the
public patches.
"""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.core.errors import DownloadError, InputError, TableError, UnreadableImageError
from nbhelpers.imagesets import downloads, from_files, glomeruli
from nbhelpers.imagesets.bueno import load_bueno_glomeruli
from nbhelpers.imagesets.glomerulus_files import prepare_glomerulus
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli

PHANTOMS = load_phantom_glomeruli(12, 1, size_px=64).pixels


def write(path: Path, index: int = 0, size: tuple[int, int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.moveaxis(np.asarray(PHANTOMS[index]), 0, -1))
    image = image.resize(size) if size else image
    if path.suffix == ".tif":
        tifffile.imwrite(path, np.asarray(image), photometric="rgb")
    else:
        image.save(path)
    return path


@pytest.fixture
def class_folders(tmp_path):
    for index in range(6):
        write(tmp_path / "mine" / ("GS" if index % 2 else "nonGS") / f"{index}.png", index)
    return tmp_path / "mine"


def test_a_square_of_the_right_size_stays_as_it_is():
    assert np.array_equal(prepare_glomerulus(PHANTOMS[0], "x", 64), PHANTOMS[0])


@given(st.integers(32, 90), st.integers(32, 90), st.sampled_from([32, 64]))
@settings(max_examples=20, deadline=None)
def test_any_size_becomes_a_square_with_the_same_colours(height, width, size):
    image = np.asarray(
        Image.fromarray(np.moveaxis(np.asarray(PHANTOMS[1]), 0, -1)).resize((width, height))
    )
    found = prepare_glomerulus(np.moveaxis(image, -1, 0), "x", size)
    assert found.shape == (3, size, size) and found.dtype == np.uint8
    assert np.abs(found.mean((1, 2)) - image.mean((0, 1))).max() < 12


def test_a_long_image_is_continued_and_not_squashed():
    image = np.full((3, 40, 80), 250, np.uint8)
    image[:, 10:30, 30:50] = [[[120]], [[40]], [[90]]]  # a square of 20 px
    image -= np.random.default_rng(0).integers(0, 4, image.shape, np.uint8)  # as no drawing has it
    found = prepare_glomerulus(image, "x", 80)[1] < 145
    rows = np.flatnonzero(found.any(1))
    columns = np.flatnonzero(found.any(0))
    assert columns[-1] - columns[0] + 1 == 20 and found[:, 40].sum() % 20 == 0 and len(rows) >= 20


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((3, 64, 64), 9, np.uint8), "of one colour"),
        (
            np.broadcast_to(np.array([200, 90, 150], np.uint8)[:, None, None], (3, 64, 64)),
            "of one colour",
        ),
        (np.zeros((1, 64, 64), np.uint8), "of one colour"),
        (PHANTOMS[0][:1], "grey.*colour"),
        (np.repeat(PHANTOMS[0][:1], 3, 0), "grey.*colour"),
        (np.zeros((3, 10, 5000), np.uint8), "5000 x 10 px, a whole slide.*QuPath"),
        (np.zeros((3, 4097, 4097), np.uint8), "a whole slide.*single glomeruli"),
        (PHANTOMS[0][:, :20], "only 64 x 20 px"),
        (np.zeros((3, 40, 400), np.uint8), "strip"),
        (np.concatenate([PHANTOMS[0], PHANTOMS[0]]), "6 channels"),
        (PHANTOMS[0].astype(np.uint16) * 16, "16 bit.*which value is white"),
    ],
)
def test_what_cannot_be_used_says_why_and_what_to_do(pixels, words):
    with pytest.raises(UnreadableImageError, match=rf"(?s)x\.png.*{words}") as found:
        prepare_glomerulus(pixels, "x.png", 64)
    assert found.value.fix


def test_sixteen_bit_over_the_whole_range_is_read():
    found = prepare_glomerulus(PHANTOMS[0].astype(np.uint16) * 257, "x", 64)
    assert np.array_equal(found, PHANTOMS[0])


def test_own_folders_of_mixed_formats_and_sizes(class_folders, tmp_path):
    write(class_folders / "GS" / "deep" / "a.tif", 7, (80, 70))
    write(class_folders / "nonGS" / "b.jpg", 8, (90, 64))
    (class_folders / "GS" / "cut.png").write_bytes(write(tmp_path / "y.png").read_bytes()[:300])
    images = glomeruli.load_own_glomeruli(class_folders, tmp_path / "data", size_px=64)
    assert images.classes == ("GS", "nonGS") and images.counts() == {"GS": 4, "nonGS": 4}
    assert images.failures["file"].tolist() == ["GS/cut.png"] and len(set(images.groups)) == 8


def test_copies_share_a_group_and_are_named(class_folders, tmp_path):
    write(class_folders / "GS" / "again.png", 1)
    images = glomeruli.load_own_glomeruli(class_folders, tmp_path / "data", size_px=64)
    copies = images.table[images.table["copy_of"] != ""]
    assert len(copies) == 1 and images.table["group"].nunique() == 6
    write(class_folders / "nonGS" / "other label.png", 3)
    images = glomeruli.load_own_glomeruli(class_folders, tmp_path / "data2", size_px=64)
    assert set(images.failures["file"]) == {"GS/3.png", "nonGS/other label.png"}


def test_class_folders_that_read_alike(class_folders, tmp_path):
    write(class_folders / "gs_" / "a.png", 3)
    with pytest.raises(TableError, match="'GS' and 'gs_' differ only in"):
        glomeruli.load_own_glomeruli(class_folders, tmp_path / "data")


def test_three_classes_are_refused_before_anything_is_decoded(class_folders, tmp_path, monkeypatch):
    write(class_folders / "other" / "a.png", 7)
    monkeypatch.setattr(from_files, "pack_images", lambda *a, **b: pytest.fail("it was decoded"))
    with pytest.raises(TableError, match=r"3 classes: GS, nonGS, other.*Two are told apart"):
        glomeruli.load_own_glomeruli(class_folders, tmp_path / "data")


@pytest.mark.parametrize("name", ["centre", "Center"])
def test_the_centre_of_an_own_table_is_kept_and_unknown_slides_are_said(
    class_folders, tmp_path, name
):
    labels = ["nonGS", "GS"] * 3
    rows = [f"{label}/{index}.png,{label},A{index // 3}" for index, label in enumerate(labels)]
    (class_folders / "all.csv").write_text(f"path,label,{name}\n" + "\n".join(rows) + "\n")
    images = glomeruli.load_own_glomeruli(class_folders / "all.csv", tmp_path / "data", size_px=64)
    assert images.table["centre"].tolist() == ["A0"] * 3 + ["A1"] * 3
    assert glomeruli.UNKNOWN_SLIDES in images.source
    (class_folders / "all.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n")
    assert (
        glomeruli.UNKNOWN_SLIDES
        not in glomeruli.load_own_glomeruli(
            class_folders / "all.csv", tmp_path / "data", size_px=64
        ).source
    )
    (class_folders / "all.csv").write_text(
        f"path,label,{name}\n" + "\n".join([*rows[:5], "GS/5.png,GS,"]) + "\n"
    )
    with pytest.raises(TableError, match="row 7.*the centre is empty.*laboratory"):
        glomeruli.load_own_glomeruli(class_folders / "all.csv", tmp_path / "data")


def test_a_whole_slide_is_refused_with_advice_and_not_decoded(class_folders, tmp_path):
    Image.new("RGB", (5000, 40), (200, 100, 150)).save(class_folders / "GS" / "large.png")
    (class_folders / "GS" / "slide.svs").write_bytes(b"II*\x00")
    images = glomeruli.load_own_glomeruli(class_folders, tmp_path / "data", size_px=64)
    assert images.failures["file"].tolist() == ["GS/large.png", "GS/slide.svs"] and len(images) == 6
    assert (
        images.failures["why"].str.contains("whole slide").all()
        and images.failures["fix"].str.contains("QuPath").all()
    )


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_new_image_whose_name_is_no_utf8_is_listed(class_folders, tmp_path):
    os.rename(class_folders / "GS" / "1.png", os.fsencode(class_folders) + b"/GS/caf\xe9.png")
    new = glomeruli.load_unlabelled_glomeruli(
        class_folders, tmp_path / "data", ("x", "y"), size_px=64
    )
    assert len(new) == 5 and new.failures["file"].tolist() == ["GS/caf\\xe9.png"]


def test_a_table_that_contradicts_the_folder(class_folders, tmp_path):
    rows = [
        f"{name}/{index}.png,{name}"
        for index in range(6)
        for name in ("GS" if index % 2 else "nonGS",)
    ]
    csv = class_folders / "all.csv"
    csv.write_text("path,label\n" + "\n".join([*rows[:5], "GS/5.png,nonGS"]) + "\n")
    with pytest.raises(TableError, match=r"GS/5\.png.*says nonGS.*folder GS"):
        glomeruli.load_own_glomeruli(csv, tmp_path / "data")
    csv.write_text("path,label\n" + "\n".join(rows) + "\n")
    assert len(glomeruli.load_own_glomeruli(csv, tmp_path / "data", size_px=64)) == 6


@pytest.mark.parametrize("one", ["1", "0"])
def test_public_csv_with_numbers_in_either_meaning(class_folders, tmp_path, one):
    value = {"GS": one, "nonGS": str(1 - int(one))}
    rows = [f"{index}.png,{value['GS' if index % 2 else 'nonGS']}" for index in range(6)]
    (class_folders / "public.csv").write_text("name,ground truth\n" + "\n".join(rows) + "\n")
    assert len(glomeruli.load_own_glomeruli(class_folders, tmp_path / "data", size_px=64)) == 6
    rows[2] = f"2.png,{value['GS']}"
    (class_folders / "public.csv").write_text("name,ground truth\n" + "\n".join(rows) + "\n")
    with pytest.raises(TableError, match=r"public\.csv, row 4.*2\.png.*folder nonGS \(1 such"):
        glomeruli.load_own_glomeruli(class_folders, tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,ground truth\n0.png,nonGS\ngone.png,GS\n", r"row 3.*gone\.png.*no class folder"),
        ("file,class\n0.png,GS\n", "columns.*are missing.*Expected.*name.*ground truth"),
    ],
)
def test_public_csv_that_cannot_be_meant(class_folders, tmp_path, text, words):
    (class_folders / "public.csv").write_text(text)
    with pytest.raises(TableError, match=words):
        glomeruli.load_own_glomeruli(class_folders, tmp_path / "data")


def test_new_images_nested_and_mixed(tmp_path):
    write(tmp_path / "new" / "a" / "b" / "1.png", 0)
    write(tmp_path / "new" / "2.jpg", 1, (100, 90))
    Image.fromarray(np.asarray(PHANTOMS[0][0])).save(tmp_path / "new" / "grey.png")
    new = glomeruli.load_unlabelled_glomeruli(
        tmp_path / "new", tmp_path / "data", ("x", "y"), size_px=64
    )
    assert set(new.ids) == {"a/b/1.png", "2.jpg"} and new.failures["file"].tolist() == ["grey.png"]
    assert (new.labels == -1).all()


def test_new_images_of_which_none_can_be_used(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_bytes(b"")
    new = glomeruli.load_unlabelled_glomeruli(tmp_path / "new", tmp_path / "data", ("x", "y"))
    assert len(new) == 0 and new.failures["file"].tolist() == ["a.png"]
    (tmp_path / "new" / "a.png").unlink()
    with pytest.raises(InputError, match="no images in this folder"):
        glomeruli.load_unlabelled_glomeruli(tmp_path / "new", tmp_path / "data", ("x", "y"))


def test_the_look_at_the_data():
    table = glomeruli.intensity_table(load_phantom_glomeruli(20, 2, size_px=48))
    assert table["images"].sum() == 20 and set(table["centre"]) == {"C1", "C2"}
    assert table["red mean"].between(50, 255).all() and set(table["width, px"]) == {"48"}


def test_the_look_at_the_data_tells_the_sizes_of_the_files(class_folders, tmp_path):
    write(class_folders / "GS" / "a.tif", 7, (80, 70))
    write(class_folders / "GS" / "b.jpg", 8, (90, 64))
    images = glomeruli.load_own_glomeruli(class_folders, tmp_path / "data", size_px=64)
    table = glomeruli.intensity_table(images).set_index("label")
    assert table.loc["GS", ["width, px", "height, px"]].tolist() == ["64 to 90", "64 to 70"]
    assert table.loc["nonGS", ["width, px", "height, px"]].tolist() == ["64", "64"]


@pytest.fixture
def small_registry(tmp_path, monkeypatch):
    """Four of the published names with phantoms as content."""
    folder = tmp_path / "given"
    files = []
    names = (
        "GS/SAS_1_001-1.png",
        "nonGS/SAS_1_001-2.png",
        "GS/SESCAM_102-3.png",
        "nonGS/SESCAM_4_0-4.png",
    )
    for index, name in enumerate(names):
        path = write(folder / "Patches/Raw/Images" / name, index)
        files.append(
            downloads.RemoteFile(
                f"Patches/Raw/Images/{name}",
                "http://127.0.0.1:9/" + name,
                hashlib.sha256(path.read_bytes()).hexdigest(),
                path.stat().st_size,
            )
        )
    monkeypatch.setattr(downloads, "files_of", lambda _: tuple(files))
    return folder


def test_centre_and_slide_come_from_the_file_name(small_registry, tmp_path):
    images = load_bueno_glomeruli(tmp_path / "data", data_dir=small_registry)
    assert images.table["slide"].tolist() == ["SAS_1", "SAS_1", "SESCAM_102", "SESCAM_4"]
    assert images.groups.tolist() == images.table["slide"].tolist() and images.classes == (
        "nonGS",
        "GS",
    )


def test_a_part_of_the_public_set_is_read_and_said(small_registry, tmp_path):
    (small_registry / "Patches/Raw/Images/GS/SESCAM_102-3.png").unlink()
    images = load_bueno_glomeruli(tmp_path / "data", data_dir=small_registry)
    assert len(images) == 3 and images.source.startswith("3 of 4 patches")
    assert "1 patches of the centre SESCAM" in images.failures["file"].tolist()
    (small_registry / "Patches/Raw/Images/GS/SAS_1_001-1.png").write_bytes(b"another")
    with pytest.raises(DownloadError, match=r"SAS_1_001-1\.png.*sha256 differs"):
        load_bueno_glomeruli(tmp_path / "data", data_dir=small_registry)


def test_offline_names_some_files_and_counts_the_rest(tmp_path, monkeypatch):
    table = downloads.RemoteTable("glomeruli_bueno.csv", "http://127.0.0.1:9/")
    monkeypatch.setitem(downloads.REGISTRY, "glomeruli_bueno", table)
    with pytest.raises(DownloadError, match=r"by hand.*and 934 more") as found:
        downloads.fetch("glomeruli_bueno", tmp_path)
    assert len(str(found.value)) < 4000


def test_the_registry_pins_all_published_patches():
    files = downloads.files_of("glomeruli_bueno")
    assert len(files) == 946 and len({file.sha256 for file in files}) >= 940
    assert all(downloads.BUENO_COMMIT in file.url and len(file.sha256) == 64 for file in files)
    table = pd.DataFrame(
        [dict(zip(("a", "b"), Path(file.name).parts[-2:], strict=True)) for file in files]
    )
    assert table["a"].value_counts().to_dict() == {"nonGS": 737, "GS": 209}


@pytest.mark.realdata
def test_the_public_patches(real_data, tmp_path):
    images = load_bueno_glomeruli(tmp_path, data_dir=real_data("glomeruli_bueno"))
    assert set(images.table["centre"]) >= {"SAS", "SESCAM"} and images.pixels.shape[1:] == (
        3,
        224,
        224,
    )
    assert len(images) >= 484 and len(set(images.groups)) >= 20


@pytest.mark.parametrize("names", [("CD4+", "CD4-"), ("\u6b63\u5e38", "\u786c\u5316")])
def test_a_table_may_name_classes_in_any_script_and_with_signs(tmp_path, names):
    rows = ["path,label"]
    for index in range(6):
        name = names[index % 2]
        write(tmp_path / "mine" / name / f"{index}.png", index)
        rows.append(f"{name}/{index}.png,{name}")
    (tmp_path / "mine" / "all.csv").write_text("\n".join(rows) + "\n")
    images = glomeruli.load_own_glomeruli(tmp_path / "mine" / "all.csv", tmp_path / "data")
    assert set(images.classes) == set(names)


def test_sizes_and_marks_are_those_of_the_image_as_it_stands(class_folders, tmp_path):
    path = class_folders / "GS" / "turned.jpg"
    pixels = np.array(Image.open(write(tmp_path / "a.png", 0, size=(96, 64))))
    pixels[5:9, 40:70] = (0, 0, 255)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    images = glomeruli.load_own_glomeruli(class_folders, tmp_path / "data", size_px=96)
    row = images.table.set_index("id").loc["GS/turned.jpg"]
    assert (row["width_px"], row["height_px"]) == (64, 96)
    y, x = (list(map(int, part.split()[1::2])) for part in row["drawn_on"].split(", "))
    assert np.abs(np.array([y, x]) - [[40, 70], [55, 59]]).max() <= 2
