"""Spine masks: the same shape gives the same tensor, and nothing but the shape passes."""

import os
import stat
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.core.errors import DownloadError, InputError, TableError, UnreadableImageError
from nbhelpers.imagesets import downloads, masks, own_spines, spines, windows
from nbhelpers.imagesets.ghani import load_ghani_spines
from nbhelpers.imagesets.packed import pack_images
from nbhelpers.imagesets.reader import read_image
from nbhelpers.phantoms.spine import load_phantom_spines


def a_mask(seed=0, size=250):
    masks = load_phantom_spines(seed + 1, 3).pixels
    return masks[seed, 0, :size, :size] > 127


def write(path, mask, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "1-bit": mask,
        "8-bit": mask.astype(np.uint8) * 255,
        "0/1": mask.astype(np.uint8),
        "16-bit": mask.astype(np.uint16) * 65535,
        "rgb": np.repeat(mask[..., None].astype(np.uint8) * 255, 3, 2),
    }
    if path.suffix == ".tif":
        tifffile.imwrite(path, values[kind], photometric="rgb" if kind == "rgb" else "minisblack")
    else:
        Image.fromarray(values[kind]).save(path)


@pytest.fixture
def class_folders(tmp_path):
    for index in range(6):
        for at, name in enumerate(("Mushroom", "Stubby")):
            write(tmp_path / "mine" / name / f"spine {index}.png", a_mask(2 * index + at), "8-bit")
    return tmp_path / "mine"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("kind", ["1-bit", "8-bit", "0/1", "16-bit", "rgb"])
def test_every_file_type_of_a_mask_gives_the_same_tensor(tmp_path, kind, suffix):
    mask = a_mask()
    write(tmp_path / "a" / f"x{suffix}", mask, kind)
    write(tmp_path / "b" / "x.png", a_mask(1), "1-bit")
    images = own_spines.load_own_spines(tmp_path, tmp_path / "data")
    assert np.array_equal(images.pixels[list(images.ids).index(f"a/x{suffix}"), 0], mask * 255)


def test_antialiasing_does_not_pass(tmp_path):
    mask = a_mask()
    soft = mask.astype(np.uint8) * 255
    edge = mask ^ np.roll(mask, 1, 0)
    soft[edge & ~mask] = 90  # lighter than background, darker than half
    assert np.array_equal(
        masks.binarise(soft[None], "x"), masks.binarise((mask * np.uint8(255))[None], "x")
    )


def labelled(*values, dtype=np.uint8, side=6):
    """One square per value, side by side, on black."""
    return np.pad(
        np.concatenate([np.pad(np.full((side, side), value, dtype), 3) for value in values], 1), 5
    )


@pytest.mark.parametrize(
    "pixels",
    [
        labelled(1, 2),
        labelled(100, 200),
        labelled(1, 2, 3),
        labelled(2, 3),
        labelled(*range(1, 8)),
        labelled(1, 2, dtype=np.uint16),
        labelled(*range(1, 41)),
        labelled(1, side=36) + np.eye(52, dtype=np.uint8),
    ],
)
def test_label_images_are_refused_and_not_cut_at_half(pixels):
    with pytest.raises(UnreadableImageError, match=r"x\.png.*labels.*255"):
        masks.binarise(pixels[None].astype(pixels.dtype), "x.png")


@pytest.mark.parametrize("levels", [256, 5, 3])
def test_smooth_edges_are_no_labels(levels):
    from PIL import ImageFilter

    for seed in range(3):
        mask = a_mask(seed)
        large = Image.fromarray(mask.astype(np.uint8) * 255)
        soft = np.asarray(
            large.filter(ImageFilter.GaussianBlur(1))
            if levels == 256
            else large.resize((125, 125), Image.Resampling.BOX)
        )
        soft = np.round(np.round(soft / 255 * (levels - 1)) / (levels - 1) * 255).astype(np.uint8)
        assert np.array_equal(masks.binarise(soft[None], "x"), soft > 127.5)


def test_a_jpeg_of_a_mask_is_read(tmp_path):
    write(tmp_path / "mask.jpg", a_mask(), "8-bit")
    wrong = masks.binarise(read_image(tmp_path / "mask.jpg"), "x") ^ a_mask()
    assert wrong.sum() < 0.02 * a_mask().sum()


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), box=st.tuples(*[st.floats(0, 1)] * 4))
def test_the_foreground_keeps_its_size_wherever_it_lies(height, width, box):
    top = int(box[0] * (height - 1))
    left = int(box[1] * (width - 1))
    mask = np.zeros((height, width), bool)
    mask[
        top : top + 1 + int(box[2] * (height - top)), left : left + 1 + int(box[3] * (width - left))
    ] = True
    frame = windows.centre_foreground(mask, 160)
    assert (
        frame.shape == (160, 160) and frame.dtype == np.uint8 and set(np.unique(frame)) <= {0, 255}
    )
    rows = mask.any(1).sum()
    columns = mask.any(0).sum()
    if max(rows, columns) <= 160:
        assert (frame > 0).sum() == mask.sum()
    else:
        assert max((frame > 0).any(1).sum(), (frame > 0).any(0).sum()) == 160


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((1, 9, 9), np.uint8), "constant.*every pixel is 0"),
        (np.full((1, 9, 9), 255, np.uint8), "constant.*every pixel is 255"),
        (
            np.pad(np.zeros((1, 3, 3), np.uint8), ((0, 0), (3, 3), (3, 3)), constant_values=255),
            "Invert",
        ),
        (np.arange(27, dtype=np.uint8).reshape(3, 3, 3), "colour"),
    ],
)
def test_what_is_no_mask_is_refused(pixels, words):
    with pytest.raises(UnreadableImageError, match=rf"x\.png.*{words}"):
        masks.binarise(pixels, "x.png")


def test_unreadable_images_are_listed_and_the_rest_goes_on(class_folders, tmp_path):
    (class_folders / "Mushroom" / "empty.png").write_bytes(b"")
    (class_folders / "Stubby" / "<script>.png").write_bytes(b"no image")
    images = own_spines.load_own_spines(class_folders, tmp_path / "data")
    assert len(images) == 12 and images.counts() == {"Mushroom": 6, "Stubby": 6}
    assert set(images.failures["file"]) == {"Mushroom/empty.png", "Stubby/<script>.png"}
    assert (images.failures["fix"] != "").all()


def test_when_no_image_can_be_read_that_is_an_error(tmp_path):
    for name in "ab":
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the images.*empty"):
        own_spines.load_own_spines(tmp_path / "mine", tmp_path / "data")


def test_packed_images_are_decoded_once(class_folders, tmp_path):
    calls = []

    def prepare(pixels, path):
        calls.append(path)
        return pixels

    paths = sorted(class_folders.rglob("*.png"))
    first = pack_images(paths, prepare, prepare_name="test", cache_folder=tmp_path / "cache")
    assert len(calls) == 12
    again = pack_images(paths, prepare, prepare_name="test", cache_folder=tmp_path / "cache")
    assert (
        len(calls) == 12 and np.array_equal(first[0], again[0]) and isinstance(again[0], np.memmap)
    )
    write(paths[0], a_mask(40), "8-bit")  # other content, other key
    changed = pack_images(paths, prepare, prepare_name="test", cache_folder=tmp_path / "cache")
    assert len(calls) == 24 and changed[3] != first[3]
    assert np.array_equal(changed[0][0, 0], a_mask(40) * 255)


def test_a_file_refused_for_its_name_is_read_once_it_is_renamed(class_folders, tmp_path):
    path = class_folders / "Mushroom" / "spine 0.png"
    wrong = path.rename(path.with_suffix(".tif"))
    assert len(own_spines.load_own_spines(class_folders, tmp_path / "data")) == 11
    wrong.rename(path)
    assert len(own_spines.load_own_spines(class_folders, tmp_path / "data")) == 12


@pytest.mark.parametrize("trouble", [OSError(5, "Input/output error"), MemoryError()])
@pytest.mark.parametrize("where", ["reading", "preparing"])
def test_what_may_pass_is_tried_again(class_folders, tmp_path, monkeypatch, trouble, where):
    paths = sorted(class_folders.rglob("*.png"))
    usual = Path.read_bytes
    broken = [True]

    def read_bytes(path):
        if where == "reading" and broken[0] and path == paths[3]:
            raise trouble
        return usual(path)

    def prepare(pixels, path):
        if where == "preparing" and broken[0] and path == paths[3]:
            raise trouble
        return pixels

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    pixels, kept, failures, _ = pack_images(
        paths, prepare, prepare_name="test", cache_folder=tmp_path / "cache"
    )
    assert (
        len(pixels) == len(kept) == 11
        and 3 not in kept
        and failures["file"].tolist() == [str(paths[3])]
    )
    assert failures["fix"].iloc[0]
    assert np.array_equal(pixels[3], read_image(paths[4]))
    broken[0] = False
    pixels, kept, failures, _ = pack_images(
        paths, prepare, prepare_name="test", cache_folder=tmp_path / "cache"
    )
    assert len(pixels) == len(kept) == 12 and failures.empty
    assert not list((tmp_path / "cache").glob(".part-*"))


def test_a_file_that_is_gone_is_found_again_when_it_is_back(class_folders, tmp_path):
    paths = sorted(class_folders.rglob("*.png"))
    content = paths[0].read_bytes()
    paths[0].unlink()
    arguments = {"prepare_name": "test", "cache_folder": tmp_path / "cache"}
    for _ in range(2):
        pixels, kept, failures, _ = pack_images(paths, lambda pixels, path: pixels, **arguments)
        assert len(pixels) == 11 and kept[0] == 1 and failures["file"].tolist() == [str(paths[0])]
    paths[0].write_bytes(content)
    assert len(pack_images(paths, lambda pixels, path: pixels, **arguments)[0]) == 12


def test_many_may_pack_the_same_images_at_once(class_folders, tmp_path):
    """One of them meets a passing error; it must not spoil what the others store."""
    paths = sorted(class_folders.rglob("*.png"))
    start = threading.Barrier(6)

    def pack(number):
        def prepare(pixels, path):
            if number == 0 and path == paths[2]:
                raise MemoryError
            return pixels

        start.wait()
        return pack_images(paths, prepare, prepare_name="test", cache_folder=tmp_path / "cache")

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(pack, range(6)))
    found.append(
        pack_images(
            paths, lambda pixels, path: pixels, prepare_name="test", cache_folder=tmp_path / "cache"
        )
    )
    for pixels, kept, failures, _ in found:
        assert len(kept) + len(failures) == 12
        for row, position in enumerate(kept):
            assert np.array_equal(pixels[row], read_image(paths[position]))
    assert all(len(kept) == 12 for _, kept, _, _ in found[1:])


def test_images_of_another_size_are_left_out_and_listed(tmp_path):
    for index, size in enumerate((20, 20, 21)):
        Image.fromarray(np.eye(size, dtype=np.uint8)).save(tmp_path / f"{index}.png")
    pixels, kept, failures, _ = pack_images(
        sorted(tmp_path.glob("*.png")),
        lambda pixels, path: pixels,
        prepare_name="test",
        cache_folder=tmp_path / "cache",
    )
    assert pixels.shape == (2, 1, 20, 20) and kept.tolist() == [0, 1]
    assert (
        failures["file"].tolist() == [str(tmp_path / "2.png")]
        and "(1, 21, 21)" in failures["why"].iloc[0]
    )


def test_equal_masks_share_a_group(class_folders, tmp_path):
    write(
        class_folders / "Mushroom" / "copy.png", np.roll(a_mask(0), 5, 1), "1-bit"
    )  # moved and 1-bit: same mask
    images = own_spines.load_own_spines(class_folders, tmp_path / "data")
    group = dict(zip(images.ids, images.groups, strict=True))
    assert group["Mushroom/copy.png"] == group["Mushroom/spine 0.png"]
    assert len(set(images.groups)) == 12 and len(images) == 13


# label tables


def write_table(folder, rows, header="path,label"):
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder / "labels.csv"


def test_a_label_table_is_read(class_folders, tmp_path):
    rows = [
        f'"{path.relative_to(class_folders)}",{path.parent.name},neuron {index % 3}'
        for index, path in enumerate(sorted(class_folders.rglob("*.png")))
    ]
    images = own_spines.load_own_spines(
        write_table(class_folders, rows, "path,label,group"), tmp_path / "data"
    )
    assert images.counts() == {"Mushroom": 6, "Stubby": 6} and set(images.groups) == {
        "neuron 0",
        "neuron 1",
        "neuron 2",
    }


def test_rows_and_images_without_each_other_are_listed(class_folders, tmp_path):
    rows = [f"Mushroom/spine {index}.png,Mushroom" for index in range(6)]
    rows += [
        "Mushroom/gone.png,Mushroom",
        "Mushroom/spine 1.png,Mushroom",
        "Stubby/spine 0.png,Stubby",
        "Stubby/spine 1.png,",
    ]
    images = own_spines.load_own_spines(write_table(class_folders, rows), tmp_path / "data")
    assert images.counts() == {"Mushroom": 6, "Stubby": 1}
    listed = dict(zip(images.failures["file"], images.failures["why"], strict=True))
    assert "does not exist" in listed["labels.csv, row 8: Mushroom/gone.png"]
    assert "twice" in listed["labels.csv, row 9: Mushroom/spine 1.png"]
    assert "no label" in listed["labels.csv, row 11: Stubby/spine 1.png"]
    assert sum("no row" in why for why in listed.values()) == 4  # Stubby 2 to 5


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (
            ["Mushroom/spine 0.png,Mushroom", "Mushroom/spine 0.png,Stubby"],
            "path,label",
            r"rows \[2, 3\].*two different",
        ),
        (["a"], "path", "columns .*label.* are missing"),
        (["gone.png,Mushroom"], "path,label", "no row is left"),
        (
            ["Mushroom/spine 0.png,Mushroom,", "Stubby/spine 0.png,Stubby,a"],
            "path,label,group",
            "row 2.*group is empty",
        ),
    ],
)
def test_contradictory_tables_are_refused(class_folders, tmp_path, rows, header, words):
    with pytest.raises(TableError, match=words):
        own_spines.load_own_spines(write_table(class_folders, rows, header), tmp_path / "data")


@pytest.mark.parametrize(
    "other", ["./Mushroom/spine 0.png", "Stubby/../Mushroom/spine 0.png", "link.png", "{}"]
)
def test_one_image_under_two_names(class_folders, tmp_path, other):
    image = class_folders / "Mushroom" / "spine 0.png"
    (class_folders / "link.png").symlink_to(image)
    other = other.format(image)
    rows = [f"Mushroom/spine {index}.png,Mushroom" for index in range(6)]
    with pytest.raises(TableError, match=r"rows \[2, 8\].*two different"):
        own_spines.load_own_spines(
            write_table(class_folders, [*rows, f"{other},Stubby"]), tmp_path / "data"
        )
    images = own_spines.load_own_spines(
        write_table(class_folders, [*rows, f"{other},Mushroom", "Stubby/spine 0.png,Stubby"]),
        tmp_path / "data",
    )
    assert images.counts() == {"Mushroom": 6, "Stubby": 1} and "Mushroom/spine 0.png" in images.ids
    twice = images.failures[images.failures["why"].str.contains("twice")]
    assert len(twice) == 1 and twice["file"].iloc[0].startswith("labels.csv, row 8: ")


def test_ids_and_failures_name_no_folder_of_the_machine(class_folders, tmp_path):
    table = tmp_path / "tables" / "labels.csv"
    table.parent.mkdir()
    (class_folders / "Stubby" / "spine 5.png").write_bytes(b"")
    write(table.parent / "near.png", a_mask(30), "8-bit")
    rows = [
        f"{class_folders}/Mushroom/spine 0.png,Mushroom",
        f"{class_folders}/Stubby/spine 0.png,Stubby",
        f"{class_folders}/Stubby/spine 1.png,Stubby",
        f"{class_folders}/Stubby/spine 5.png,Stubby",
        f"{table.parent}/near.png,Mushroom",
        "../mine/Mushroom/spine 2.png,Mushroom",
        f"{class_folders}/Stubby/gone.png,Stubby",
    ]
    images = own_spines.load_own_spines(write_table(table.parent, rows), tmp_path / "data")
    assert images.ids.tolist() == [
        "Mushroom/spine 0.png",
        "Stubby/spine 0.png",
        "spine 1.png",
        "near.png",
        "../mine/Mushroom/spine 2.png",
    ]
    assert {"spine 5.png", "labels.csv, row 8: gone.png"} < set(images.failures["file"])
    assert not images.failures["file"].str.contains(str(tmp_path), regex=False).any()


def test_class_folders_that_cannot_be_meant(class_folders, tmp_path):
    (class_folders / "Thin").mkdir()
    with pytest.raises(TableError, match="Thin.*holds no images"):
        own_spines.load_own_spines(class_folders, tmp_path / "data")
    (class_folders / "Thin").rmdir()
    write(class_folders / "loose.png", a_mask(), "8-bit")
    with pytest.raises(TableError, match=r"loose\.png.*beside the class folders"):
        own_spines.load_own_spines(class_folders, tmp_path / "data")
    with pytest.raises(InputError, match="nowhere.*does not exist"):
        own_spines.load_own_spines(tmp_path / "nowhere", tmp_path / "data")


# downloads


def test_offline_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    # a port of this machine on which nobody listens stands for "no network"
    here = downloads.RemoteFile(
        "Dataset_Labels.xlsx", "http://127.0.0.1:9/Dataset_Labels.xlsx", "0" * 64, 1
    )
    monkeypatch.setattr(downloads, "files_of", lambda _: (here,))
    with pytest.raises(
        DownloadError, match=r"download failed.*by hand.*Dataset_Labels\.xlsx.*sha256 0000"
    ):
        downloads.fetch("spines_ghani", tmp_path)
    assert not list(tmp_path.rglob("*.xlsx"))


@pytest.fixture
def server():
    import http.server
    import threading

    content = {"good": b"the whole file" * 1000}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = content["good"]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write({"/cut": body[:5000], "/wrong": body[::-1]}.get(self.path, body))
            if self.path == "/cut":
                self.connection.close()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", content["good"]
        running.shutdown()


@pytest.mark.parametrize(
    ("path", "words"), [("/cut", "failed|cut or changed"), ("/wrong", "cut or changed")]
)
def test_a_cut_or_changed_download_leaves_nothing(
    tmp_path, monkeypatch, capsys, server, path, words
):
    import hashlib

    address, content = server
    file = downloads.RemoteFile(
        "file.bin", address + path, hashlib.sha256(content).hexdigest(), len(content)
    )
    monkeypatch.setattr(downloads, "files_of", lambda _: (file,))
    with pytest.raises(DownloadError, match=words):
        downloads.fetch("test", tmp_path)
    assert not (tmp_path / "test" / "file.bin").exists()
    good = downloads.RemoteFile("file.bin", address + "/good", file.sha256, len(content))
    monkeypatch.setattr(downloads, "files_of", lambda _: (good,))
    assert downloads.fetch("test", tmp_path)["file.bin"].read_bytes() == content
    said = capsys.readouterr()
    assert "test: 1 files, 0.0 MB, are downloaded once" in said.out and "file.bin: 100%" in said.err


def test_a_file_put_there_by_hand_is_checked_too(tmp_path):
    (tmp_path / "spines_ghani").mkdir()
    (tmp_path / "spines_ghani" / "Dataset_Annotations.zip").write_bytes(b"something else")
    with pytest.raises(DownloadError, match="sha256 differs"):
        downloads.fetch("spines_ghani", tmp_path)


@pytest.mark.parametrize(
    "member",
    [
        "../outside.png",
        "/etc/outside.png",
        "a/../../outside.png",
        "..\\outside.png",
        "C:/outside.png",
    ],
)
def test_a_zip_that_leaves_its_folder_is_refused(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("1.png", b"fine")
        archive.writestr(member, b"not fine")
    with pytest.raises(DownloadError, match=r"evil\.zip.*outside the folder"):
        downloads.unpack_zip(tmp_path / "evil.zip", tmp_path / "out" / "masks")
    assert not (tmp_path / "out" / "masks").exists() and not list(tmp_path.rglob("outside.png"))


def test_many_may_unpack_the_same_zip_at_once(tmp_path):
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        for index in range(50):
            archive.writestr(f"a/{index}.png", bytes(1000))
    start = threading.Barrier(8)

    def unpack(_):
        start.wait()
        return downloads.unpack_zip(tmp_path / "masks.zip", tmp_path / "out" / "masks")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(unpack, range(8))) == {tmp_path / "out" / "masks"}
    assert len(list((tmp_path / "out" / "masks" / "a").iterdir())) == 50
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["masks"]


def test_others_may_read_an_unpacked_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        archive.writestr("1.png", b"x")
    (tmp_path / "usual").mkdir()
    folder = downloads.unpack_zip(tmp_path / "masks.zip", tmp_path / "masks")
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_a_zip_that_cannot_be_put_in_place_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        archive.writestr("1.png", b"x")
    (tmp_path / "masks").write_text("a file stands here")
    with pytest.raises(OSError, match="masks"):
        downloads.unpack_zip(tmp_path / "masks.zip", tmp_path / "masks")
    assert os.listdir(tmp_path) and not list(tmp_path.glob(".part-*"))


def test_a_damaged_zip_is_named(tmp_path):
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DownloadError, match=r"damaged\.zip.*damaged"):
        downloads.unpack_zip(tmp_path / "damaged.zip", tmp_path / "masks")


# the real masks


@pytest.mark.realdata
def test_the_public_masks(real_data, tmp_path):
    images = load_ghani_spines(tmp_path, data_dir=real_data("spines_ghani"))
    assert images.counts() == {"Mushroom": 288, "Stubby": 113, "Thin": 55}
    assert images.pixels.shape == (456, 1, 250, 250) and set(np.unique(images.pixels[::50])) == {
        0,
        255,
    }
    small = windows.centred(images, 160)
    assert (
        (small.pixels > 0).sum((1, 2, 3)) == images.table["foreground_px"]
    ).all()  # all fit, none was shrunk
    assert len(set(images.groups)) == 456


@pytest.mark.realdata
def test_the_published_leak_is_reproduced(real_data, tmp_path):
    from nbhelpers.core.published_splits import published_spine_split

    images = load_ghani_spines(tmp_path, data_dir=real_data("spines_ghani"))
    split = published_spine_split(images)
    assert split.known_leak.startswith("75 of 92 test images were trained on")
    test = pd.Series(images.labels[images.positions(split.ids(0, 0, "test"))]).value_counts()
    assert test.tolist() == [58, 23, 11]


# what a new user stumbled over


def test_copies_of_a_mask_under_two_labels_are_left_out_and_listed(class_folders, tmp_path):
    write(class_folders / "Stubby" / "copy.png", a_mask(0), "8-bit")  # stands in Mushroom already
    images = own_spines.load_own_spines(class_folders, tmp_path / "data")
    assert (
        set(images.failures["file"]) == {"Mushroom/spine 0.png", "Stubby/copy.png"}
        and len(images) == 11
    )
    assert images.failures["why"].str.contains("another label").all()


def test_a_class_of_which_no_image_can_be_used_is_named_with_a_reason(class_folders, tmp_path):
    (class_folders / "Thin").mkdir()
    (class_folders / "Thin" / "cut.png").write_bytes(b"")
    with pytest.raises(
        TableError, match=r"Thin/cut\.png.*none of the 1 images of class Thin.*empty.*Copy it again"
    ):
        own_spines.load_own_spines(class_folders, tmp_path / "data")


def test_a_table_of_one_class_is_refused(class_folders, tmp_path):
    rows = [f"Mushroom/spine {index}.png,Mushroom" for index in range(6)]
    with pytest.raises(TableError, match="every image has the label Mushroom"):
        own_spines.load_own_spines(write_table(class_folders, rows), tmp_path / "data")


def test_new_images_of_which_none_can_be_used_are_all_listed(tmp_path):
    (tmp_path / "new").mkdir()
    for name in ("a.png", "b.tif"):
        (tmp_path / "new" / name).write_bytes(b"")
    new = spines.load_unlabelled_spines(tmp_path / "new", tmp_path / "data", ("x", "y"))
    assert len(new) == 0 and new.failures["file"].tolist() == ["a.png", "b.tif"]
    with pytest.raises(InputError, match="this is a file.*folder that it is in"):
        spines.load_unlabelled_spines(tmp_path / "new" / "a.png", tmp_path / "data", ("x", "y"))


def test_a_mask_of_a_few_pixels_is_no_spine():
    pixels = np.zeros((1, 50, 50), np.uint8)
    pixels[0, 20, 20:29] = 255
    with pytest.raises(UnreadableImageError, match="only 9 px are white"):
        masks.binarise(pixels, "x.png")


def test_all_files_to_fetch_by_hand_are_named_at_once(tmp_path):
    with pytest.raises(DownloadError, match=r"Annotations\.zip.*Dataset_Labels\.xlsx.*data_dir"):
        downloads.fetch("spines_ghani", tmp_path / "cache", given_folder=tmp_path)


def test_a_progress_bar_does_not_flood_a_log():
    """Where nobody looks on, a bar of a thousand quick steps is drawn at its begin
    and at its end."""
    import contextlib
    import io

    from nbhelpers.imagesets.downloads import progress_bar

    log = io.StringIO()
    with contextlib.redirect_stderr(log):
        for _ in progress_bar(range(3000), desc="masks", unit="file", file=log):
            pass
    assert "masks: 100%" in log.getvalue() and log.getvalue().count("\r") <= 4
