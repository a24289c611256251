"""Damaged files: what is done to a good one, and how a reader may answer. Used by
test_mutations.py.

Good files are made here, small, with pixels and rows that are known, so that a reading which gives
something else without a word is found out. All chance comes from one seed.
"""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError

SECONDS = 10.0  # more for one small file is a hang
BYTES = 2**30  # more for one small file is too much


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 3, 20))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flip_header(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(3):
        changed[chance.randrange(min(64, len(changed)))] = chance.randrange(256)
    return bytes(changed)


def zeros(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    size = chance.randrange(1, len(content) - start + 1)
    return content[:start] + bytes(size) + content[start + size :]


def insert(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + chance.randbytes(chance.randrange(1, 40)) + content[at:]


def remove(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[:at] + content[at + chance.randrange(1, 40) :]


def noise(content: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(len(content))


def nothing(content: bytes, chance: random.Random) -> bytes:
    return b""


def other_kind(content: bytes, chance: random.Random) -> bytes:
    return chance.choice(
        (
            b"%PDF-1.4\n",
            b"PK\x03\x04",
            b"\x80\x04",
            b"<html>not found</html>",
            b"\xff\xfea\x00",
            b"{}",
            b"[]",
            b"null",
            b"\n\n\n",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        )
    )


def append(content: bytes, chance: random.Random) -> bytes:
    return content + chance.randbytes(chance.randrange(1, 200))


def halves_swapped(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    return content[at:] + content[:at]


BYTE_DAMAGE = (
    cut,
    flip,
    flip_header,
    zeros,
    insert,
    remove,
    noise,
    nothing,
    other_kind,
    append,
    halves_swapped,
)


def lines_of(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


def line_lost(content: bytes, chance: random.Random) -> bytes:
    lines = lines_of(content)
    lines.pop(chance.randrange(len(lines)))
    return b"".join(lines)


def line_twice(content: bytes, chance: random.Random) -> bytes:
    lines = lines_of(content)
    at = chance.randrange(len(lines))
    return b"".join([*lines[:at], lines[at], *lines[at:]])


def cell_replaced(content: bytes, chance: random.Random) -> bytes:
    lines = lines_of(content)
    at = chance.randrange(len(lines))
    cells = lines[at].rstrip(b"\r\n").split(b",")
    cells[chance.randrange(len(cells))] = chance.choice(
        (
            b"",
            b"NaN",
            b"inf",
            b"-1",
            b"1e999",
            b'"',
            b"\x00",
            b"\xff",
            "é".encode(),
            b"=1+1",
            b"../../x",
            b"9" * 400,
        )
    )
    return b"".join([*lines[:at], b",".join(cells) + b"\n", *lines[at + 1 :]])


def other_encoding(content: bytes, chance: random.Random) -> bytes:
    return content.decode("utf-8").encode(chance.choice(("utf-16", "utf-32", "utf-8-sig")))


def other_separator(content: bytes, chance: random.Random) -> bytes:
    return content.replace(b",", chance.choice((b";", b"\t", b" ", b"|")))


TEXT_DAMAGE = (line_lost, line_twice, cell_replaced, other_encoding, other_separator)


@dataclass(frozen=True)
class Reader:
    """``make`` writes good files into a folder and names the one to damage; ``read`` gives what it
    says as a value that can be compared; ``silent`` says in words why a value is wrong, or ''."""

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    silent: Callable[..., str] = lambda good, read: ""
    text: bool = False


PIXELS = np.random.default_rng(5).integers(1, 255, (3, 24, 20), dtype=np.uint8)


def lost_pixels(good: np.ndarray, read: np.ndarray, most: float = 0.25) -> str:
    """Areas that are filled: decoders put zeros or grey where something is missing. The good images
    are noise.
    """
    alike = (read[..., 1:, 1:] == read[..., :-1, 1:]) & (read[..., 1:, 1:] == read[..., 1:, :-1])
    share = alike.mean() if alike.size else 1.0
    return (
        f"{share:.0%} of the pixels are like the pixels above and before them"
        if share > most
        else ""
    )


def filled_jpeg(good: np.ndarray, read: np.ndarray) -> str:
    """JPEG has no check sum: with other tables in its head the same data give smoother pixels,
    which nobody can know.
    """
    return lost_pixels(good, read, most=0.75)


def lost_bytes(good: np.ndarray, read: np.ndarray, path: Path) -> str:
    """The same for files that hold pixels as plain bytes, where zeros may be what
    the file holds."""
    content = path.read_bytes()
    stored = any(read.astype(read.dtype.newbyteorder(order)).tobytes() in content for order in "<>")
    return "" if stored else lost_pixels(good, read)


def image_file(suffix: str, grey: bool, **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"image{suffix}"
        pixels = PIXELS[0] if grey else np.moveaxis(PIXELS, 0, 2)
        if suffix == ".tif":
            import tifffile

            tifffile.imwrite(
                path,
                pixels.astype(np.uint16) * 257 if options.pop("deep", False) else pixels,
                **options,
            )
        else:
            from PIL import Image

            Image.fromarray(pixels).save(path, **options)
        return path

    return make


def read_image(path: Path) -> np.ndarray:
    from nbhelpers.imagesets.reader import read_image

    return read_image(path)


def label_table(folder: Path) -> Path:
    for name in "abcdef":
        image_file(".png", grey=True)(folder).rename(folder / f"{name}.png")
    path = folder / "labels.csv"
    path.write_text(
        "path,label,group\n"
        + "".join(
            f"{name}.png,{'thin' if name in 'abc' else 'stubby'},neuron {name}\n"
            for name in "abcdef"
        )
    )
    return path


def read_labels(path: Path) -> object:
    from nbhelpers.imagesets.folder import read_label_table

    found = read_label_table(path)
    return found.table, found.failures


def no_rows(good: object, read: object) -> str:
    return (
        "" if sum(len(part) for part in read) else "no row is left, and none is listed as a failure"
    )


def split_file(folder: Path) -> Path:
    from nbhelpers.core.splits import Split

    names = [f"i{number}" for number in range(12)]
    parts = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    Split(
        pd.DataFrame({"repeat": 0, "fold": 0, "part": parts, "id": names, "group": names}), "toy", 0
    ).save(folder / "split.csv")
    return folder / "split.csv"


def split_note(folder: Path) -> Path:
    return split_file(folder).with_suffix(".json")


def read_split(path: Path) -> str:
    from nbhelpers.core.splits import Split

    return Split.load(path.with_suffix(".csv")).hash


def changed(good: object, read: object) -> str:
    return "" if good == read else "another split was read without a word"


def predictions_file(folder: Path) -> Path:
    from nbhelpers.core.predictions import Predictions

    Predictions.build(
        ids=list("abcdef"),
        labels=["x", "y"] * 3,
        groups=list("aabbcc"),
        classes=("x", "y"),
        probabilities=np.array([[0.9, 0.1], [0.25, 0.75]] * 3),
    ).save(folder / "predictions.csv")
    return folder / "predictions.csv"


def read_predictions(path: Path) -> object:
    from nbhelpers.core.predictions import Predictions

    return Predictions.load(path)


def impossible(good: object, read: object) -> str:
    shares = read.probabilities
    if not len(read):
        return "a table of no row"
    return (
        ""
        if np.isfinite(shares).all() and (shares >= 0).all() and (shares <= 1).all()
        else "impossible probabilities"
    )


def checkpoint_file(folder: Path) -> Path:
    from nbhelpers.models.tinycnn import TinyCNN
    from nbhelpers.training.checkpoints import save_checkpoint

    save_checkpoint(
        folder / "network.safetensors", TinyCNN(2), classes=["x", "y"], about={"recipe": "toy"}
    )
    return folder / "network.safetensors"


def read_checkpoint(path: Path) -> object:
    from nbhelpers.models.tinycnn import TinyCNN
    from nbhelpers.training.checkpoints import load_checkpoint

    return load_checkpoint(path, TinyCNN)


def same_weights(good: object, read: object) -> str:
    pairs = zip(good[0].state_dict().values(), read[0].state_dict().values(), strict=True)
    return (
        ""
        if all(one.equal(other) for one, other in pairs)
        else "other weights were read without a word"
    )


def pth_file(folder: Path) -> Path:
    import torch

    torch.save({"weight": torch.arange(12.0).reshape(3, 4)}, folder / "weights.pth")
    return folder / "weights.pth"


def read_weights(path: Path) -> object:
    from nbhelpers.models.weights import read_weights

    return read_weights(path)


def packed_cache(suffix: str) -> Callable[[Path], Path]:
    """What pack_images keeps of six images; a damaged one is to be made again without a word."""

    def make(folder: Path) -> Path:
        label_table(folder)
        read_packed(folder / "cache" / "x")
        return next((folder / "cache").glob(f"*{suffix}"))

    return make


def read_packed(path: Path) -> np.ndarray:
    from nbhelpers.imagesets.packed import pack_images

    return np.array(
        pack_images(
            sorted(path.parent.parent.glob("*.png")),
            lambda pixels, path: pixels,
            prepare_name="as it is",
            cache_folder=path.parent,
        )[0]
    )


def cube_file(folder: Path) -> Path:
    import tifffile

    pixels = np.random.default_rng(3).integers(1, 255, (5, 16, 16), dtype=np.uint8)
    tifffile.imwrite(
        folder / "cube.tif",
        pixels,
        imagej=True,
        resolution=(0.125, 0.125),
        metadata={"axes": "ZYX", "spacing": 40.0, "unit": "nm"},
    )
    return folder / "cube.tif"


def read_cube(path: Path) -> np.ndarray:
    from nbhelpers.imagesets.own_cubes import read_cube

    return read_cube(path)[0]


def volume(folder: Path) -> Path:
    """A precomputed volume of one chunk."""
    import tensorstore as ts

    pixels = np.random.default_rng(4).integers(1, 255, (8, 32, 32), dtype=np.uint8)
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
            "scale_metadata": {
                "size": [32, 32, 8],
                "encoding": "raw",
                "chunk_size": [32, 32, 8],
                "resolution": [8, 8, 40],
            },
        },
        create=True,
    ).result()
    store[..., 0].write(pixels.transpose(2, 1, 0)).result()
    return next((folder / "8_8_40").iterdir())


def volume_info(folder: Path) -> Path:
    volume(folder)
    return folder / "info"


def read_volume(path: Path) -> np.ndarray:
    from nbhelpers.microns.cutouts import Volume
    from nbhelpers.microns.points import Points

    opened = Volume.open(
        f"file://{path.parent if path.name == 'info' else path.parents[1]}", timeout_s=5
    )
    plan = opened.plan(Points.in_nm([[128.0, 128.0, 160.0]]), (8, 32, 32))
    if not len(plan.order):
        raise InputError(path, str(plan.why[0]))
    found = opened.cut([plan], plan.order)
    if found.left_out:
        raise InputError(path, found.left_out[0][1], found.left_out[0][2])
    return found.pixels[0][0]


def cellprofiler_table(folder: Path) -> Path:
    path = folder / "load_data.csv"
    path.write_text(
        "Metadata_Plate,Metadata_Well,Metadata_Site,FileName_DAPI,Metadata_Concentration_uM\n"
        + "".join(f"p1,B{n:02},1,image{n}.png,{n}\n" for n in range(2, 8))
    )
    return path


def read_cellprofiler(path: Path) -> object:
    from nbhelpers.imagesets.plate_files import cellprofiler_files

    return (cellprofiler_files(path)[0],)


def layout_file(folder: Path) -> Path:
    from nbhelpers.phantoms.layouts import LAYOUT_FILE

    path = folder / "layout.csv"
    path.write_bytes(LAYOUT_FILE.read_bytes())
    return path


def read_layout(path: Path) -> object:
    from nbhelpers.phantoms.layouts import read_layout

    return (read_layout(path),)


def audit_table(folder: Path) -> Path:
    path = folder / "table.csv"
    path.write_text(
        "id,label,split,group\n"
        + "".join(
            f"i{n},{'xy'[n % 2]},{'train' if n < 8 else 'test'},g{n // 2}\n" for n in range(12)
        )
    )
    return path


def read_audit(path: Path) -> object:
    from nbhelpers.audit.table import read_table

    return (read_table(path, path.parent / "cache").images.table,)


def stack_folder(folder: Path) -> Path:
    from nbhelpers.imagesets.stacks import write_stack

    pixels = np.random.default_rng(2).integers(1, 255, (4, 16, 16), dtype=np.uint8)
    write_stack(folder / "stack.ome.tif", pixels, (40, 8, 8))
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "format": 1,
                "patches": {
                    "stacks": [{"file": "stack.ome.tif", "rows": 4}],
                    "shape_px": [16, 16],
                    "dtype": "uint8",
                },
            }
        )
    )
    return folder / "stack.ome.tif"


def stack_note(folder: Path) -> Path:
    stack_folder(folder)
    return folder / "dataset.json"


def read_stacks(path: Path) -> np.ndarray:
    from nbhelpers.imagesets.stacks import open_stacks

    return np.asarray(open_stacks(path.parent, "patches"))


def other_pixels(good: np.ndarray, read: np.ndarray) -> str:
    return (
        ""
        if len(read) and np.array_equal(read, good[: len(read)])
        else "other pixels were read without a word"
    )


def made_again(good: np.ndarray, read: np.ndarray) -> str:
    return "" if np.array_equal(good, read) else "other pixels were read without a word"


def manifest_file(folder: Path) -> Path:
    path = folder / "manifest.json"
    path.write_text(
        json.dumps(
            {
                "notebook": "04_spine_tinycnn",
                "parameters": {"epochs": 3},
                "headline": {"value": 0.5},
            }
        )
    )
    return path


def read_manifest(path: Path) -> object:
    from nbhelpers.runner.repeat import read_manifest

    return read_manifest(path)


def notebook_file(folder: Path) -> Path:
    path = folder / "01_toy.ipynb"
    path.write_text(
        json.dumps(
            {
                "cells": [
                    {
                        "cell_type": "code",
                        "metadata": {"tags": ["parameters"]},
                        "source": "steps = 3   # 1..9: steps to take\n",
                    }
                ],
                "nbformat": 4,
            }
        )
    )
    return path


def read_notebook(path: Path) -> object:
    from nbhelpers.reports.notebooks import Notebook

    return Notebook(path).parameters


READERS = (
    Reader("PNG, grey", image_file(".png", True), read_image, lost_pixels),
    Reader("PNG, colour", image_file(".png", False), read_image, lost_pixels),
    Reader("JPEG", image_file(".jpg", False, quality=95), read_image, filled_jpeg),
    Reader(
        "JPEG, progressive", image_file(".jpg", True, progressive=True), read_image, filled_jpeg
    ),
    Reader("TIFF, plain", image_file(".tif", True), read_image, lost_bytes),
    Reader("TIFF, LZW", image_file(".tif", False, compression="lzw"), read_image, lost_pixels),
    Reader(
        "TIFF, Deflate, 16 bit",
        image_file(".tif", True, compression="zlib", deep=True),
        read_image,
        lost_pixels,
    ),
    Reader("label table", label_table, read_labels, no_rows, text=True),
    Reader("split", split_file, read_split, changed, text=True),
    Reader("split's note", split_note, read_split, changed),
    Reader("predictions", predictions_file, read_predictions, impossible, text=True),
    Reader("checkpoint", checkpoint_file, read_checkpoint, same_weights),
    Reader("weights, .pth", pth_file, read_weights),
    Reader("packed pixels", packed_cache(".npy"), read_packed, made_again),
    Reader("packed pixels' note", packed_cache(".json"), read_packed, made_again),
    Reader("TIFF stack of sections", cube_file, read_cube, lost_bytes),
    Reader("EM volume, chunk", volume, read_volume, lost_bytes),
    Reader("EM volume, info", volume_info, read_volume),
    Reader("CellProfiler table", cellprofiler_table, read_cellprofiler, no_rows, text=True),
    Reader("plate layout", layout_file, read_layout, no_rows, text=True),
    Reader("table of an audit", audit_table, read_audit, no_rows, text=True),
    Reader("stack of patches", stack_folder, read_stacks, lost_bytes),
    Reader("stacks' note", stack_note, read_stacks, other_pixels),
    Reader("manifest", manifest_file, read_manifest),
    Reader("notebook", notebook_file, read_notebook),
)


def answer(reader: Reader, path: Path, good: object) -> tuple[str, str]:
    """How a reader takes a file: ('refused', reason), ('read', ''), or ('lost', what
    went wrong)."""
    with at_most(SECONDS):
        try:
            found = reader.read(path)
        except InputError as error:
            return "refused", str(error)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return "lost", f"{type(error).__name__}: {error}"
    wrong = wrong_in(reader, good, found, path)
    return ("lost", wrong) if wrong else ("read", "")


def wrong_in(reader: Reader, good: object, found: object, path: Path) -> str:
    return (
        reader.silent(good, found, path)
        if reader.silent is lost_bytes
        else reader.silent(good, found)
    )


class TooLongError(BaseException):
    """Not an Exception: no reader may take it for one of its own."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TooLongError(f"a hang: more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
