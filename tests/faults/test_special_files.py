"""Pipes, sockets, devices and links of all kinds among the user's files: nothing hangs, each is
named, and the others go on.
"""

import os
import socket
from pathlib import Path

import corpus
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import folders_below, sha256_of_file, special_file
from nbhelpers.imagesets import glomeruli, spines
from nbhelpers.imagesets.folder import find_images
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.phantoms.spine import load_phantom_spines
from nbhelpers.reports.paths import Paths
from nbhelpers.runner.fingerprint import hash_of_tree
from nbhelpers.studies import predict_folder as folder_study

KINDS = {
    "a named pipe": "pipe.png",
    "a socket": "socket.png",
    "a device": "zeros.png",
}


@pytest.fixture(autouse=True)
def never_hang():
    with corpus.at_most(60):
        yield


def add_special_files(folder, monkeypatch):
    """One of each kind; a socket by a short relative name, as these are at most 107 bytes long."""
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "no suffix")
    with monkeypatch.context() as patch, socket.socket(socket.AF_UNIX) as made:
        patch.chdir(folder)
        made.bind("socket.png")
    (folder / "zeros.png").symlink_to("/dev/zero")
    (folder / "broken.png").symlink_to("nowhere.png")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "piped.png").symlink_to("pipe.png")
    (folder / "round").symlink_to(".")


@pytest.fixture
def masks(tmp_path, monkeypatch):
    folder = tmp_path / "masks"
    for index, mask in enumerate(load_phantom_spines(8, 0).pixels[:, 0]):
        part = folder / "ab"[index % 2]
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(part / f"mask_{index}.png")
    add_special_files(folder / "a", monkeypatch)
    return folder


def check_left_out(failures, start=""):
    why = dict(zip(failures["file"], failures["why"], strict=True))
    for kind, name in [
        *KINDS.items(),
        ("a named pipe", "piped.png"),
        ("a named pipe", "no suffix"),
    ]:
        assert f"this is no regular file ({kind})" in why.pop(start + name)
    assert "No such file" in why.pop(f"{start}broken.png")
    assert "symbolic links" in why.pop(f"{start}itself.png")
    assert not why


def test_special_files_are_listed_and_the_masks_beside_them_read(masks, tmp_path):
    images = spines.load_spines("folder", data_folder=tmp_path / "data", data_dir=str(masks))
    assert len(images) == 8
    check_left_out(images.failures, "a/")
    again = spines.load_unlabelled_spines(masks / "a", tmp_path / "data", ("a", "b"))
    assert len(again) == 4
    check_left_out(again.failures)


def test_special_files_are_listed_among_glomeruli(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = load_phantom_glomeruli(3, seed=0).pixels
    for index, image in enumerate(pixels):
        Image.fromarray(np.moveaxis(np.array(image), 0, -1)).save(folder / f"{index}.png")
    add_special_files(folder, monkeypatch)
    images = glomeruli.load_unlabelled_glomeruli(folder, tmp_path / "data", ("a", "b"))
    assert len(images) == 3
    check_left_out(images.failures)
    found = [folder_study._read(path, path.name, 48) for path in find_images(folder)]
    read = [one for one in found if isinstance(one, np.ndarray)]
    assert len(read) == 3
    said = " ".join(one.what for one in found if not isinstance(one, np.ndarray))
    assert all(f"this is no regular file ({kind})" in said for kind in KINDS)


def test_the_hash_of_a_folder_with_special_files_takes_no_time(masks, tmp_path):
    paths = Paths(tmp_path)
    before = hash_of_tree(paths, masks)
    assert before == hash_of_tree(paths, masks)
    (masks / "a" / "pipe.png").unlink()
    assert hash_of_tree(paths, masks) != before
    hash_of_tree(paths, masks / "a" / "no suffix")


@pytest.mark.parametrize("name", ["pipe.png", "zeros.png", "socket.png", "piped.png"])
def test_a_special_file_given_as_the_folder_is_refused(masks, tmp_path, name):
    path = masks / "a" / name
    for load in (find_images, lambda path: spines.load_unlabelled_spines(path, tmp_path, ("a",))):
        with pytest.raises(InputError, match="this is a file"):
            load(path)
    with pytest.raises(OSError, match="no regular file"):
        sha256_of_file(path)


def test_ordinary_files_are_not_special(masks):
    assert not any(map(special_file, [masks, masks / "b", masks / "b" / "mask_1.png", "nowhere"]))
    assert not special_file("a\0b")


NAMES = ("a", "b", "c", ".d")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)), max_size=6),
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(NAMES), max_size=2),
            st.sampled_from(["l", "m", "n", "A"]),
            st.lists(st.sampled_from([*NAMES, "..", "l"]), max_size=3),
        ),
        max_size=6,
    ),
)
def test_every_folder_is_walked_once_however_links_lead(tmp_path_factory, folders, links):
    """All real folders are there by their own path, and no folder twice by two paths."""
    above = tmp_path_factory.mktemp("above")
    top = above / "top"
    for start in (top, above / "elsewhere"):
        for (parts,) in [((),), *folders]:
            (start.joinpath(*parts)).mkdir(parents=True, exist_ok=True)
    for parts, name, target in links:
        link = top.joinpath(*parts, name)
        if link.parent.is_dir() and not os.path.lexists(link):
            link.symlink_to(os.path.join("..", *target) if target else "/")
    found = [folder for folder, _ in folders_below(top)]
    real = [os.path.realpath(folder) for folder in found]
    assert len(real) == len(set(real))
    own = [Path(root) for root, _, _ in os.walk(top) if not Path(root).is_symlink()]
    assert {one.resolve() for one in own} <= {Path(one) for one in real}
    assert str(above.parent) not in real and "/" not in real
    visible = folders_below(top, hidden=False)
    assert not any(
        part.startswith(".") for folder, _ in visible for part in folder.relative_to(top).parts
    )
