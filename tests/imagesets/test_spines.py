"""Spine masks: the same shape gives the same tensor, and nothing but the shape passes."""

import zipfile

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.errors import DownloadError, InputError, TableError, UnreadableImageError
from nbhelpers.imagesets import downloads, spines
from nbhelpers.imagesets.packed import pack_images


def a_mask(seed=0, size=250):
    masks = spines.load_phantom_spines(seed + 1, 3).pixels
    return masks[seed, 0, :size, :size] > 127


def write(path, mask, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"1-bit": mask, "8-bit": mask.astype(np.uint8) * 255, "0/1": mask.astype(np.uint8),
              "16-bit": mask.astype(np.uint16) * 65535, "rgb": np.repeat(mask[..., None].astype(np.uint8) * 255, 3, 2)}
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
    images = spines.load_own_spines(tmp_path, tmp_path / "data")
    assert np.array_equal(images.pixels[list(images.ids).index(f"a/x{suffix}"), 0], mask * 255)


def test_antialiasing_does_not_pass(tmp_path):
    mask = a_mask()
    soft = mask.astype(np.uint8) * 255
    edge = mask ^ np.roll(mask, 1, 0)
    soft[edge & ~mask] = 90  # lighter than background, darker than half
    assert np.array_equal(spines.binarise(soft[None], "x"), spines.binarise((mask * np.uint8(255))[None], "x"))


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), box=st.tuples(*[st.floats(0, 1)] * 4))
def test_the_foreground_keeps_its_size_wherever_it_lies(height, width, box):
    top, left = int(box[0] * (height - 1)), int(box[1] * (width - 1))
    mask = np.zeros((height, width), bool)
    mask[top:top + 1 + int(box[2] * (height - top)), left:left + 1 + int(box[3] * (width - left))] = True
    frame = spines.centre_foreground(mask, 160)
    assert frame.shape == (160, 160) and frame.dtype == np.uint8 and set(np.unique(frame)) <= {0, 255}
    rows, columns = mask.any(1).sum(), mask.any(0).sum()
    if max(rows, columns) <= 160:
        assert (frame > 0).sum() == mask.sum()
    else:
        assert max((frame > 0).any(1).sum(), (frame > 0).any(0).sum()) == 160


@pytest.mark.parametrize(("pixels", "words"), [
    (np.zeros((1, 9, 9), np.uint8), "constant.*every pixel is 0"),
    (np.full((1, 9, 9), 255, np.uint8), "constant.*every pixel is 255"),
    (np.pad(np.zeros((1, 3, 3), np.uint8), ((0, 0), (3, 3), (3, 3)), constant_values=255), "Invert"),
    (np.arange(27, dtype=np.uint8).reshape(3, 3, 3), "colour"),
])
def test_what_is_no_mask_is_refused(pixels, words):
    with pytest.raises(UnreadableImageError, match=rf"x\.png.*{words}"):
        spines.binarise(pixels, "x.png")


def test_unreadable_images_are_listed_and_the_rest_goes_on(class_folders, tmp_path):
    (class_folders / "Mushroom" / "empty.png").write_bytes(b"")
    (class_folders / "Stubby" / "<script>.png").write_bytes(b"no image")
    images = spines.load_own_spines(class_folders, tmp_path / "data")
    assert len(images) == 12 and images.counts() == {"Mushroom": 6, "Stubby": 6}
    assert set(images.failures["file"]) == {"Mushroom/empty.png", "Stubby/<script>.png"}
    assert (images.failures["mend"] != "").all()


def test_when_no_image_can_be_read_that_is_an_error(tmp_path):
    for name in "ab":
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the images.*empty"):
        spines.load_own_spines(tmp_path / "mine", tmp_path / "data")


def test_packed_images_are_decoded_once(class_folders, tmp_path):
    calls = []

    def prepare(pixels, path):
        calls.append(path)
        return pixels

    paths = sorted(class_folders.rglob("*.png"))
    first = pack_images(paths, prepare, prepare_name="test", cache_folder=tmp_path / "cache")
    assert len(calls) == 12
    again = pack_images(paths, prepare, prepare_name="test", cache_folder=tmp_path / "cache")
    assert len(calls) == 12 and np.array_equal(first[0], again[0]) and isinstance(again[0], np.memmap)
    write(paths[0], a_mask(40), "8-bit")  # other content, other key
    changed = pack_images(paths, prepare, prepare_name="test", cache_folder=tmp_path / "cache")
    assert len(calls) == 24 and changed[3] != first[3]
    assert np.array_equal(changed[0][0, 0], a_mask(40) * 255)


def test_images_of_another_size_are_left_out_and_listed(tmp_path):
    for index, size in enumerate((20, 20, 21)):
        Image.fromarray(np.eye(size, dtype=np.uint8)).save(tmp_path / f"{index}.png")
    pixels, kept, failures, _ = pack_images(sorted(tmp_path.glob("*.png")), lambda pixels, path: pixels,
                                            prepare_name="test", cache_folder=tmp_path / "cache")
    assert pixels.shape == (2, 1, 20, 20) and kept.tolist() == [0, 1]
    assert failures["file"].tolist() == [str(tmp_path / "2.png")] and "(1, 21, 21)" in failures["why"].iloc[0]


def test_equal_masks_share_a_group(class_folders, tmp_path):
    write(class_folders / "Mushroom" / "copy.png", np.roll(a_mask(0), 5, 1), "1-bit")  # moved and 1-bit: same mask
    images = spines.load_own_spines(class_folders, tmp_path / "data")
    group = dict(zip(images.ids, images.groups, strict=True))
    assert group["Mushroom/copy.png"] == group["Mushroom/spine 0.png"]
    assert len(set(images.groups)) == 12 and len(images) == 13


# label tables

def write_table(folder, rows, header="path,label"):
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder / "labels.csv"


def test_a_label_table_is_read(class_folders, tmp_path):
    rows = [f'"{path.relative_to(class_folders)}",{path.parent.name},neuron {index % 3}'
            for index, path in enumerate(sorted(class_folders.rglob("*.png")))]
    images = spines.load_own_spines(write_table(class_folders, rows, "path,label,group"), tmp_path / "data")
    assert images.counts() == {"Mushroom": 6, "Stubby": 6} and set(images.groups) == {"neuron 0", "neuron 1", "neuron 2"}


def test_rows_and_images_without_each_other_are_listed(class_folders, tmp_path):
    rows = [f"Mushroom/spine {index}.png,Mushroom" for index in range(6)]
    rows += ["Mushroom/gone.png,Mushroom", "Mushroom/spine 1.png,Mushroom", "Stubby/spine 0.png,Stubby",
             "Stubby/spine 1.png,"]
    images = spines.load_own_spines(write_table(class_folders, rows), tmp_path / "data")
    assert images.counts() == {"Mushroom": 6, "Stubby": 1}
    listed = dict(zip(images.failures["file"], images.failures["why"], strict=True))
    assert "does not exist" in listed["labels.csv, row 8: Mushroom/gone.png"]
    assert "twice" in listed["labels.csv, row 9: Mushroom/spine 1.png"]
    assert "no label" in listed["labels.csv, row 11: Stubby/spine 1.png"]
    assert sum("no row" in why for why in listed.values()) == 4  # Stubby 2 to 5


@pytest.mark.parametrize(("rows", "header", "words"), [
    (["Mushroom/spine 0.png,Mushroom", "Mushroom/spine 0.png,Stubby"], "path,label", r"rows \[2, 3\].*two different"),
    (["a"], "path", "column label is missing"),
    (["gone.png,Mushroom"], "path,label", "no row is left"),
    (["Mushroom/spine 0.png,Mushroom,"], "path,label,group", "row 2.*group is empty"),
])
def test_contradictory_tables_are_refused(class_folders, tmp_path, rows, header, words):
    with pytest.raises(TableError, match=words):
        spines.load_own_spines(write_table(class_folders, rows, header), tmp_path / "data")


def test_class_folders_that_cannot_be_meant(class_folders, tmp_path):
    (class_folders / "Thin").mkdir()
    with pytest.raises(TableError, match="Thin.*holds no images"):
        spines.load_own_spines(class_folders, tmp_path / "data")
    (class_folders / "Thin").rmdir()
    write(class_folders / "loose.png", a_mask(), "8-bit")
    with pytest.raises(TableError, match=r"loose\.png.*beside the class folders"):
        spines.load_own_spines(class_folders, tmp_path / "data")
    with pytest.raises(InputError, match="nowhere.*does not exist"):
        spines.load_own_spines(tmp_path / "nowhere", tmp_path / "data")


# downloads

def test_offline_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    # a port of this machine on which nobody listens stands for "no network"
    here = downloads.RemoteFile("Dataset_Labels.xlsx", "http://127.0.0.1:9/Dataset_Labels.xlsx", "0" * 64, 1)
    monkeypatch.setitem(downloads.REGISTRY, "spines_ghani", (here,))
    with pytest.raises(DownloadError, match=r"download failed.*by hand.*Dataset_Labels\.xlsx.*sha256 0000"):
        downloads.fetch("spines_ghani", tmp_path, progress=False)
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


@pytest.mark.parametrize(("path", "words"), [("/cut", "failed|cut or changed"), ("/wrong", "cut or changed")])
def test_a_cut_or_changed_download_leaves_nothing(tmp_path, monkeypatch, server, path, words):
    import hashlib

    address, content = server
    file = downloads.RemoteFile("file.bin", address + path, hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setitem(downloads.REGISTRY, "test", (file,))
    with pytest.raises(DownloadError, match=words):
        downloads.fetch("test", tmp_path, progress=False)
    assert not (tmp_path / "test" / "file.bin").exists()
    good = downloads.RemoteFile("file.bin", address + "/good", file.sha256, len(content))
    monkeypatch.setitem(downloads.REGISTRY, "test", (good,))
    assert downloads.fetch("test", tmp_path, progress=False)["file.bin"].read_bytes() == content


def test_a_file_put_there_by_hand_is_checked_too(tmp_path):
    (tmp_path / "spines_ghani").mkdir()
    (tmp_path / "spines_ghani" / "Dataset_Annotations.zip").write_bytes(b"something else")
    with pytest.raises(DownloadError, match="sha256 differs"):
        downloads.fetch("spines_ghani", tmp_path, progress=False)


@pytest.mark.parametrize("member", ["../outside.png", "/etc/outside.png", "a/../../outside.png", "..\\outside.png",
                                    "C:/outside.png"])
def test_a_zip_that_leaves_its_folder_is_refused(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("1.png", b"fine")
        archive.writestr(member, b"not fine")
    with pytest.raises(DownloadError, match=r"evil\.zip.*outside the folder"):
        downloads.unpack_zip(tmp_path / "evil.zip", tmp_path / "out" / "masks")
    assert not (tmp_path / "out" / "masks").exists() and not list(tmp_path.rglob("outside.png"))


def test_a_damaged_zip_is_named(tmp_path):
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DownloadError, match=r"damaged\.zip.*damaged"):
        downloads.unpack_zip(tmp_path / "damaged.zip", tmp_path / "masks")


# the real masks

@pytest.mark.realdata
def test_the_public_masks(real_data, tmp_path):
    images = spines.load_ghani_spines(tmp_path, given_folder=real_data("spines_ghani"))
    assert images.counts() == {"Mushroom": 288, "Stubby": 113, "Thin": 55}
    assert images.pixels.shape == (456, 1, 250, 250) and set(np.unique(images.pixels[::50])) == {0, 255}
    small = spines.centred(images, 160)
    assert ((small.pixels > 0).sum((1, 2, 3)) == images.table["foreground_px"]).all()  # all fit, none was shrunk
    assert len(set(images.groups)) == 456


@pytest.mark.realdata
def test_the_published_leak_is_reproduced(real_data, tmp_path):
    from nbhelpers.splits import published_spine_split

    images = spines.load_ghani_spines(tmp_path, given_folder=real_data("spines_ghani"))
    split = published_spine_split(images)
    assert split.known_leak.startswith("75 of 92 test images were trained on")
    test = pd.Series(images.labels[images.positions(split.ids(0, 0, "test"))]).value_counts()
    assert test.tolist() == [58, 23, 11]
