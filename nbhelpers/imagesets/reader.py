"""Read one image file into (channel, y, x) uint8 or uint16, or say exactly why that is not
possible.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nbhelpers.core.errors import UnreadableImageError

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)
MAXIMUM_BYTES = 200_000_000  # of decoded pixels: with its copies an image stays below 1 GiB
MAXIMUM_PAGES = 10_000  # of a TIFF; as many thousands that lead nowhere would take minutes
MAXIMUM_VALUES = 4_000_000  # in the tags of a TIFF
MAXIMUM_SCANS = 100  # of a progressive JPEG, each of which goes over the whole image
SLIDE_SUFFIXES = (
    ".svs",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".vms",
    ".vmu",
    ".bif",
)  # whole slides, whatever is in them
_CUT_OUT = "Cut out the single objects first, for example in QuPath, and give those."
_TEXTS = frozenset((1, 2, 6, 7))  # TIFF types that are read in one piece
# raise it when a file gives other pixels or another verdict than before; packed sets depend on it
READER_VERSION = 5
# TIFF compression whose pieces are images with a size of their own: JPEG, PNG, JPEG 2000, WebP
_IMAGES = (6, 7, 33003, 33004, 33005, 34712, 34933, 34927, 50001)
_GREY_OR_COLOUR = (
    0,
    1,
    2,
    3,
    6,
)  # TIFF photometric: white is zero, black is zero, RGB, colour map, YCbCr


class PassingReadError(UnreadableImageError):
    """The image was not read this time (disk, network drive, memory), which says nothing about the
    file itself.
    """


def read_image(path: str | os.PathLike, *, longest_px: int = 0) -> np.ndarray:
    """Decode a PNG, JPEG or TIFF file to (channel, y, x), uint8 or uint16.

    1-bit images become 0 and 255. Palettes become RGB. An alpha channel is dropped where it is
    opaque everywhere. Integer TIFFs whose values fit become uint16; where white is zero, they are
    inverted. The orientation that Exif or a TIFF says is applied, so that the image stands as every
    viewer shows it. Of a TIFF pyramid the full resolution is read; pages marked as reduced
    (thumbnails) are passed over. A side longer than ``longest_px`` (0: any) is refused. What is too
    large is refused by its name, the size of the file and its first bytes, before it is read, so
    that a whole slide by mistake takes neither time nor memory.

    Raises UnreadableImageError: empty, cut or damaged file; suffix that contradicts the content;
    transparency, CMYK, CIELAB, floating point or NaN; several images in one file; planes that the
    file says and does not hold; more than 200 MB of pixels; a pipe or device; a name that is no
    UTF-8. Raises its subclass PassingReadError when the disk or the memory failed, so that a later
    try may succeed.
    """
    path = Path(path)
    with opened(path, longest_px) as file:
        kind = _kind(file.read(8))
        if kind is None:
            raise UnreadableImageError(
                path, "this is not a PNG, JPEG or TIFF image.", "Export it as one of these."
            )
        expected = SUFFIXES.get(path.suffix.lower())
        if kind != expected:
            raise UnreadableImageError(
                path,
                f"the name says {expected or path.suffix or 'nothing'} but the content is {kind}.",
                f"Rename it to end in .{kind.lower()}.",
            )
        source = file if kind == "TIFF" else path.read_bytes()
        read = _read_tiff if kind == "TIFF" else _read_with_pillow
        with named_errors(path, f"the {kind} is cut or damaged"):
            pixels = read(path, source, longest_px)
    return as_unsigned(path, pixels)


@contextmanager
def opened(path: Path, longest_px: int = 0) -> Iterator[BinaryIO]:
    """An image file, of a size that can be decoded, open to be read. Raises
    UnreadableImageError.
    """
    _check_name(path)
    try:
        _check_before_reading(path, longest_px)
        with open(path, "rb") as file:
            yield file
    except (OSError, MemoryError) as error:
        raise PassingReadError(
            path,
            f"the file cannot be read ({getattr(error, 'strerror', None) or repr(error)}).",
            "Check that it exists and that you may read it.",
        ) from None


@contextmanager
def named_errors(path: Path, what: str, fix: str = "Copy it again from its source."):
    """Every error of a decoder as UnreadableImageError: decoders raise many types on damaged files,
    and the file's name must not be lost.
    """
    try:
        yield
    except UnreadableImageError:
        raise
    except MemoryError:
        raise PassingReadError(
            path, "decoding it needs more memory than there is.", "Crop it first."
        ) from None
    except Exception as error:
        # an address differs from run to run
        words = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "it", str(error))
        raise UnreadableImageError(
            path, f"{what} ({type(error).__name__}: {words}).", fix
        ) from None


def printable(path: object) -> str:
    """A path or name as text that every file can hold: bytes that are no UTF-8 stand
    as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _check_name(path: Path) -> None:
    if printable(path) != str(path):
        raise UnreadableImageError(
            printable(path),
            "the name of the file, or of a folder it is in, is not in UTF-8.",
            "Rename it; archives from old systems bring such names.",
        )
    if path.suffix.lower() in SLIDE_SUFFIXES:
        raise UnreadableImageError(path, "this is a whole slide.", _CUT_OUT)


def _check_before_reading(path: Path, longest_px: int) -> None:
    """Whether the file is an image of a size that can be read, from its length and
    its first bytes."""
    about = path.stat()
    if not about.st_size and stat.S_ISREG(about.st_mode):
        raise UnreadableImageError(
            path, "the file is empty (0 bytes).", "Copy it again from its source."
        )
    if stat.S_ISDIR(about.st_mode):
        raise PassingReadError(path, "this folder cannot be opened.", "Check that you may read it.")
    if not stat.S_ISREG(about.st_mode):
        raise UnreadableImageError(
            path, "this is no file but a pipe, socket or device.", "Give the image file itself."
        )
    # as much again for thumbnails
    most = min(8 * longest_px**2 or MAXIMUM_BYTES, MAXIMUM_BYTES)
    if (length := about.st_size) > 2 * most + 2**20:
        raise UnreadableImageError(
            path, f"the file has {length / 2**20:.0f} MB, a whole slide perhaps.", _CUT_OUT
        )
    # of a TIFF no more is read than its head before this is known
    if SUFFIXES.get(path.suffix.lower()) != "TIFF" and (size := stored_size(path)):
        _check_size(path, *size, longest_px)


def stored_size(path: Path) -> tuple[int, int] | None:
    """Width and height (px), as the image stands, by the first bytes of its file; None where these
    do not say. No pixel is read.

    Raises OSError, and UnreadableImageError for a PNG or JPEG that is too large to be decoded.
    """
    from PIL import Image

    with open(path, "rb") as file:
        kind = _kind(file.read(8))
        file.seek(0)
        try:  # no pixel is read
            if kind == "TIFF":
                with _opened(path, file) as (tiff, _):
                    size = tiff.pages.first.imagewidth, tiff.pages.first.imagelength
                    orientation = tiff.pages.first.tags.valueof(274, 1)
            else:
                with Image.open(file, formats=[str(kind)]) as image:
                    size = image.size
                    orientation = image.getexif().get(274) if "exif" in image.info else 1
            return size[::-1] if orientation in range(5, 9) else size
        except Image.DecompressionBombError:
            raise UnreadableImageError(
                path,
                f"the image has over {2 * Image.MAX_IMAGE_PIXELS // 10**6} megapixels, a "
                "whole slide perhaps.",
                _CUT_OUT,
            ) from None
        except Exception:  # of many types; what is damaged is said when it is decoded
            return None


def _kind(content: bytes) -> str | None:
    return next((name for magic, name in _MAGIC if content.startswith(magic)), None)


def _read_with_pillow(path: Path, content: bytes, longest_px: int) -> np.ndarray:
    from PIL import Image

    # Pillow would cut 16-bit colour to 8 bit
    deep = content[:4] == b"\x89PNG" and content[24:25] == b"\x10"
    with Image.open(io.BytesIO(content)) as image:
        samples = 4 if image.mode == "P" else len(image.getbands()) * (1 + deep)
        _check_size(path, *image.size, longest_px, samples)
        _check_alone(path, getattr(image, "n_frames", 1))
        if "progressive" in image.info and content.count(b"\xff\xda") > MAXIMUM_SCANS:
            raise UnreadableImageError(
                path, "the JPEG goes over its pixels too often.", "Save it again."
            )
        # behind the pixels, Pillow finds it only by decoding the whole PNG
        marked = not deep or "exif" in image.info or b"eXIf" in content[-(2**16) :]
        orientation = image.getexif().get(274, 1) if marked else 1
        if deep:
            import imagecodecs

            pixels = imagecodecs.png_decode(content)
        else:
            if image.mode == "P":
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            elif image.mode == "1":
                image = image.convert("L")
            elif image.mode in ("L", "RGB") and "transparency" in image.info:
                image = image.convert("LA" if image.mode == "L" else "RGBA")
            elif image.mode not in ("L", "LA", "RGB", "RGBA"):
                raise UnreadableImageError(
                    path,
                    f"the pixel type {image.mode} is not handled.",
                    "Save it as 8- or 16-bit grey, or as RGB (in Fiji: Image > Type > RGB Color).",
                )
            pixels = np.asarray(image)
    pixels = _without_alpha(path, pixels if pixels.ndim == 3 else pixels[..., None])
    return turned(pixels, orientation)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(..., y, x) as the orientation of Exif or TIFF says, 1 to 8, that it is to stand."""
    if orientation in range(5, 9):
        pixels = pixels.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[..., ::-1]
    return pixels


def _without_alpha(path: Path, pixels: np.ndarray) -> np.ndarray:
    """(y, x, sample) of grey or RGB, each with or without alpha, to (channel, y, x)."""
    return np.moveaxis(_drop_alpha(path, pixels, -1) if pixels.shape[2] in (2, 4) else pixels, 2, 0)


def _drop_alpha(path: Path, pixels: np.ndarray, at: int) -> np.ndarray:
    """(y, x, sample) without the sample ``at``, which is alpha."""
    opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
    if (pixels[..., at] != opaque).any():
        raise UnreadableImageError(
            path, "parts of the image are transparent.", "Flatten it on the right background first."
        )
    return np.delete(pixels, at, 2)


def _read_tiff(path: Path, file: BinaryIO, longest_px: int) -> np.ndarray:
    with one_series(path, file, longest_px) as (_, series):
        page = series.keyframe
        height = series.shape[series.axes.index("Y")]
        width = series.shape[series.axes.index("X")]
        named = [one for one in zip(series.axes, series.shape, strict=True) if one[0] in "YXSC"]
        long = {name for name, size in zip(series.axes, series.shape, strict=True) if size > 1}
        if long - set("YXSC") or {"S", "C"} <= long:
            raise UnreadableImageError(
                path,
                f"the TIFF is a stack with the axes {series.axes} {series.shape}.",
                "Give one plane per file, or project the stack.",
            )
        pixels = decoded(path, series).reshape([size for _, size in named])
        alpha = [
            page.samplesperpixel - len(page.extrasamples) + at
            for at, meaning in enumerate(page.extrasamples)
            if int(meaning) in (1, 2)
        ]
    keep = [name for name, _ in named]
    if page.photometric == 3 and pixels.ndim == 2:
        pixels = np.take(colours_of(page), pixels, 1)
    elif "S" in keep:
        pixels = np.moveaxis(pixels, keep.index("S"), -1).reshape(height, width, -1)
        pixels = np.moveaxis(_drop_alpha(path, pixels, alpha[0]) if alpha else pixels, 2, 0)
    else:
        pixels = np.moveaxis(pixels, keep.index("C"), 0) if "C" in keep else pixels[None]
    return turned(pixels, page.tags.valueof(274, 1))


def colours_of(page) -> np.ndarray:
    """The colour map of a page, (3, values) uint8."""
    # of 16 bit as the standard says, or of 8 bit as some programs write
    colours = np.asarray(page.colormap)
    return (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)


@contextmanager
def _opened(path: Path, file: BinaryIO) -> Iterator:
    import tifffile

    file.seek(0)
    places = check_pages(path, file)
    file.seek(0)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is raised below
    # other files of a set are never opened
    with tifffile.TiffFile(file, _multifile=False) as tiff:
        tiff.pages.cache = True
        yield tiff, places


@contextmanager
def one_series(path: Path, file: BinaryIO, longest_px: int = 0) -> Iterator[tuple]:
    """The open TIFF and its one image, whole and of a size and colours that can be decoded.

    Raises UnreadableImageError.
    """
    from tifffile.tifffile import shaped_description_metadata

    with _opened(path, file) as (tiff, places):
        end = file.seek(0, io.SEEK_END)
        said, others = _said_planes(path, tiff)
        if not tiff.pages.first.is_final:
            _check_planes(path, said, len(places), others)
        # thumbnails beside the image are marked as reduced; the levels of a pyramid lie inside one
        # series
        images = [one for one in tiff.series if not one.keyframe.is_reduced] or tiff.series
        _check_alone(path, len(images))
        series = images[0]
        page = series.keyframe
        width = page.imagewidth
        height = page.imagelength
        _check_size(path, width, height, longest_px, series.nbytes // (width * height))
        start = series.dataoffset
        block = range(start or end, (start or end) + series.nbytes)
        if block.stop <= end and not any(at in block for at in places):
            # one block, which its first page describes; no page lies in it
            pages = [page]
            held = series.size // page.size
        else:
            pages = [one for one in series.pages if one is not None]
            held = len(pages)
        _check_whole(path, page, pages, file, end)
        if text := page.shaped_description:
            said = math.prod(shaped_description_metadata(text)["shape"]) // page.size
        _check_planes(path, max(said, series.size // page.size), held, others)
        _check_colours(path, page)
        yield tiff, series


def _check_planes(path: Path, said: int, held: int, others: bool) -> None:
    if held < said and not (others and held == 1):
        raise UnreadableImageError(
            path,
            f"{said - held} of {said} sections are missing{', they are in other files' * others}.",
            "Save the whole image as one file; or copy it again from its source.",
        )


def _said_planes(path: Path, tiff) -> tuple[int, bool]:
    """How many planes OME or ImageJ say that the image has, and whether some are in other files."""
    about = tiff.ome_metadata or ""
    files = re.findall(r"<(?:\w+:)?UUID\b[^>]*FileName\s*=\s*[\"']([^\"']*)", about)
    number = r"\s*=\s*[\"'](\d+)"
    said = [
        math.prod(map(int, re.findall(r"\bSize[ZCT]" + number, one)))
        for one in re.findall(r"<(?:\w+:)?Pixels\b[^>]*", about)
    ]
    places = re.findall(r"\b(?:PlaneCount|NumPlanes|IFD|First[ZCT])" + number, about)
    if tiff.is_imagej:
        about = tiff.imagej_metadata
        axes = [about.get(name, 1) for name in ("frames", "slices", "channels")]
        said = [max(about.get("images", 1), math.prod(axes))]
    if (most := max([0, *said, *map(int, places)])) > MAXIMUM_PAGES:
        raise UnreadableImageError(path, f"it says that it has {most} planes.", _CUT_OUT)
    planes = said[0] // tiff.pages.first.samplesperpixel if len(said) == 1 else 0
    return planes, len(set(files)) > 1


def _check_whole(path: Path, page, pages: Sequence, file: BinaryIO, end: int) -> None:
    """Whether the file holds every byte of the pages, as tifffile fills up with zeros, and no piece
    of them is larger than they are.
    """
    parts = math.prod(page.chunked)
    part = math.prod(page.chunks)
    whole = parts * part * page.dtype.itemsize <= 2 * MAXIMUM_BYTES
    least = page.nbytes if page.is_contiguous else 0
    bits = 258 in page.tags
    pictures = page.compression in _IMAGES
    for one in pages:
        places = list(zip(one.dataoffsets, one.databytecounts, strict=False))
        held = sum(one.databytecounts)
        whole &= len(places) >= parts and all(0 < size <= end - at for at, size in places)
        whole &= held >= least
        # without the tag of the bits a pixel has one; what is made for such pixels may omit it
        whole &= bits or (page.compression < 5 and held <= page.nbytes // 2)
        if pictures:
            for at, size in places if whole else ():
                file.seek(at)
                whole &= _size_within(file.read(size)) <= 4 * part
    if not whole:
        raise UnreadableImageError(
            path,
            "the TIFF is cut or damaged: the pieces in it do not make the image.",
            "Copy it again from its source.",
        )


def _size_within(piece: bytes) -> int:
    """Pixels of a JPEG or other image that is a piece of a TIFF; 0 where that is not known."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(piece)) as image:
            return math.prod(image.size)
    except UnidentifiedImageError:
        return 0


def decoded(path: Path, series) -> np.ndarray:
    """The pixels of a series, where white is not zero, and those of 2 or 4 bit in 8."""
    pixels = series.asarray()
    page = series.keyframe
    if page.photometric == 0 and 262 in page.tags:
        pixels = _white_is_zero(path, pixels, page.bitspersample)
    if page.bitspersample in (2, 4) and page.photometric < 2:
        pixels = pixels * np.uint8(255 // (2**page.bitspersample - 1))
    return pixels


def check_pages(path: object, file: BinaryIO) -> set[int]:
    """Where the pages of a TIFF are described, in a list that must end: tifffile follows one that
    leads back into itself for ever.

    Raises UnreadableImageError.
    """
    seen: set[int] = set()
    start = file.read(16)
    if start[:2] not in (b"II", b"MM"):
        return seen  # no TIFF: tifffile says so
    order = "<" if start[:2] == b"II" else ">"
    big = start[2:4] in (b"+\x00", b"\x00+")
    form = "Q" if big else "I"
    number = struct.Struct(order + ("Q" if big else "H"))
    link = struct.Struct(order + form)
    tag = struct.Struct(f"{order}HH{form}{link.size}x")
    values = 0
    try:
        (at,) = link.unpack_from(start, 8 if big else 4)
        while at and at not in seen and len(seen) < MAXIMUM_PAGES and values < MAXIMUM_VALUES:
            seen.add(at)
            file.seek(at)
            (tags,) = number.unpack(file.read(number.size))
            # with more of them, tifffile refuses it
            rows = tag.iter_unpack(file.read(min(tags, 4096) * tag.size))
            # what is no text is read one by one
            values += tags + sum(count for _, kind, count in rows if kind not in _TEXTS)
            (at,) = link.unpack(file.read(link.size))
    except (struct.error, OSError, ValueError, OverflowError):
        at = -1
    if at or values > MAXIMUM_VALUES:
        raise UnreadableImageError(
            path,
            "the TIFF is cut or damaged: its list of pages leads nowhere.",
            "Copy it again from its source.",
        )
    return seen


def _check_colours(path: Path, page) -> None:
    """Whether the numbers of a TIFF page are grey or RGB; of JPEG compression YCbCr becomes RGB on
    decoding.
    """
    photometric = int(page.photometric)
    if photometric == 3 and page.colormap is None:
        raise UnreadableImageError(
            path, "the colour map of the TIFF is missing.", "Export it again."
        )
    if photometric not in _GREY_OR_COLOUR or (photometric == 6 and page.compression not in (6, 7)):
        name = "CMYK" if photometric == 5 else getattr(page.photometric, "name", photometric)
        raise UnreadableImageError(
            path,
            f"the colours are {name}, which is not handled.",
            "Convert it to RGB (in Fiji: Image > Type > RGB Color).",
        )


def _white_is_zero(path: Path, pixels: np.ndarray, bits: int) -> np.ndarray:
    """Pixels stored with 0 for white, turned to 0 for black."""
    if pixels.dtype == bool:
        return ~pixels
    if pixels.dtype.kind != "u":
        raise UnreadableImageError(
            path,
            f"white is zero in it, which has no meaning for {pixels.dtype}.",
            "Save it as 8 or 16 bit where black is zero.",
        )
    return pixels.dtype.type(2**bits - 1) - pixels


def _check_alone(path: Path, count: int) -> None:
    if count > 1:
        raise UnreadableImageError(
            path, f"the file holds {count} images.", "Save the one that is meant by itself."
        )


def _check_size(path: Path, width: int, height: int, longest_px: int, depth: int = 1) -> None:
    """``depth``: bytes that all values at one place take."""
    if width * height * depth > MAXIMUM_BYTES or (longest_px and max(width, height) > longest_px):
        raise UnreadableImageError(
            path, f"the image is {width} x {height} px, a whole slide perhaps.", _CUT_OUT
        )


def as_unsigned(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Values as they are, in uint8 or uint16."""
    if pixels.size == 0:
        raise UnreadableImageError(path, "the image has no pixels.")
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind == "f":
        wrong = int((~np.isfinite(pixels)).sum())
        raise UnreadableImageError(
            path,
            f"the pixels are floating point ({pixels.dtype}); {wrong} pixels are NaN or infinite.",
            "Find out where NaN are from; save it as 8 or 16 bit (in Fiji: Image > Type > 16-bit).",
        )
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() <= 65535:
        return pixels.astype(np.uint16)
    raise UnreadableImageError(
        path,
        f"the values {pixels.min()} to {pixels.max()} do not fit in 16 bit.",
        "Save it as 8 or 16 bit.",
    )
