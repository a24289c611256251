"""Read one image file into (channel, y, x) uint8 or uint16, or say exactly why that is not
possible.
"""

from __future__ import annotations

import io
import logging
import os
import re
import struct
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
MAXIMUM_PIXELS = 200_000_000  # a whole slide by mistake would not fit in memory
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
# raise it when a file gives other pixels or another verdict than before; packed sets depend on it
READER_VERSION = 3
_PLAIN_BYTES = (
    1,
    5,
    8,
    32773,
    32946,
    34925,
    50000,
)  # TIFF compression: none, LZW, Deflate, PackBits, LZMA, Zstandard
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
    inverted. The Exif orientation of a JPEG or PNG is applied, so that the image stands as every
    viewer shows it. Of a TIFF pyramid the full resolution is read; pages marked as reduced
    (thumbnails) are passed over. A side longer than ``longest_px`` (0: any) is refused. What is too
    large is refused by its name, the size of the file and its first bytes, before it is read, so
    that a whole slide by mistake takes neither time nor memory.

    Raises UnreadableImageError: empty, cut or damaged file; suffix that contradicts the content;
    transparency, CMYK, CIELAB, floating point or NaN; several images in one file; more than 200
    megapixels; a name that is no UTF-8. Raises its subclass PassingReadError when the disk or the
    memory failed, so that a later try may succeed.
    """
    path = Path(path)
    _check_name(path)
    try:
        _check_before_reading(path, longest_px)
        content = path.read_bytes()
    except OSError as error:
        raise PassingReadError(
            path,
            f"the file cannot be read ({error.strerror or error}).",
            "Check that it exists and that you may read it.",
        ) from None
    except MemoryError:
        raise PassingReadError(
            path, "reading it needs more memory than there is.", "Crop it first."
        ) from None
    if not content:
        raise UnreadableImageError(
            path, "the file is empty (0 bytes).", "Copy it again from its source."
        )
    kind = _kind(content)
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
    try:
        pixels = (_read_tiff if kind == "TIFF" else _read_with_pillow)(path, content, longest_px)
    except UnreadableImageError:
        raise
    except MemoryError:
        raise PassingReadError(
            path, "decoding it needs more memory than there is.", "Crop it first."
        ) from None
    except Exception as error:
        # decoders raise many types on damaged files; the file's name must not be lost
        # an address differs from run to run
        words = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "it", str(error))
        raise UnreadableImageError(
            path,
            f"the {kind} is cut or damaged ({type(error).__name__}: {words}).",
            "Copy it again from its source.",
        ) from None
    return as_unsigned(path, pixels)


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
    if path.is_dir():
        raise PassingReadError(path, "this folder cannot be opened.", "Check that you may read it.")
    pixels = min(longest_px**2, MAXIMUM_PIXELS) if longest_px else MAXIMUM_PIXELS
    if (
        length := path.stat().st_size
    ) > 16 * pixels + 2**20:  # 8 bytes a pixel, and as much again for thumbnails
        raise UnreadableImageError(
            path, f"the file has {length / 2**20:.0f} MB, a whole slide perhaps.", _CUT_OUT
        )
    if size := stored_size(path):
        _check_size(path, *size, longest_px)


def stored_size(path: Path) -> tuple[int, int] | None:
    """Width and height (px) as the first bytes of an image file say; None where they do not. No
    pixel is read.

    Raises OSError, and UnreadableImageError for a PNG or JPEG that is too large to be decoded.
    """
    import tifffile
    from PIL import Image

    with open(path, "rb") as file:
        kind = _kind(file.read(8))
        file.seek(0)
        try:  # no pixel is read
            if kind == "TIFF":
                logging.getLogger("tifffile").setLevel(logging.CRITICAL)
                with tifffile.TiffFile(file) as tiff:
                    return int(tiff.pages.first.imagewidth), int(tiff.pages.first.imagelength)
            with Image.open(file, formats=[kind] if kind else []) as image:
                return image.size
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
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as image:
        _check_size(path, *image.size, longest_px)
        _check_alone(path, getattr(image, "n_frames", 1))
        if (
            content[:4] == b"\x89PNG" and content[24:25] == b"\x10"
        ):  # Pillow would cut 16-bit colour to 8 bit
            import imagecodecs

            pixels = imagecodecs.png_decode(content)
            return _without_alpha(path, pixels if pixels.ndim == 3 else pixels[..., None])
        if image.mode == "CMYK" or image.mode == "YCCK":
            raise UnreadableImageError(
                path,
                "the colours are CMYK, which are inks for print.",
                "Convert it to RGB (in Fiji: Image > Type > RGB Color).",
            )
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode == "1":
            image = image.convert("L")
        elif image.mode not in ("L", "LA", "RGB", "RGBA"):
            raise UnreadableImageError(
                path,
                f"the pixel type {image.mode} is not handled.",
                "Save it as 8- or 16-bit grey, or as RGB.",
            )
        pixels = np.asarray(ImageOps.exif_transpose(image))
    return _without_alpha(path, pixels if pixels.ndim == 3 else pixels[..., None])


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


def _read_tiff(path: Path, content: bytes, longest_px: int) -> np.ndarray:
    import tifffile

    check_pages(path, io.BytesIO(content))
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is raised below
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        # thumbnails beside the image are marked as reduced; the levels of a pyramid lie inside one
        # series
        images = [one for one in tiff.series if not one.keyframe.is_reduced] or tiff.series
        _check_alone(path, len(images))
        series = images[0]
        for page in series.pages:
            # tifffile fills what is missing from a cut file with zeros
            ends = [
                at + size for at, size in zip(page.dataoffsets, page.databytecounts, strict=False)
            ]
            if not ends or max(ends) > len(content):
                raise UnreadableImageError(
                    path,
                    "the TIFF is cut: it ends before its last row.",
                    "Copy it again from its source.",
                )
            _check_sizes(path, page, content)
        height = series.shape[series.axes.index("Y")]
        width = series.shape[series.axes.index("X")]
        _check_size(path, width, height, longest_px)
        page = series.keyframe
        _check_colours(path, page)
        axes = series.axes
        shape = series.shape
        long = [name for name, size in zip(axes, shape, strict=True) if size > 1]
        if set(long) - set("YXSC") or {"S", "C"} <= set(long):
            raise UnreadableImageError(
                path,
                f"the TIFF is a stack with the axes {axes} {shape}.",
                "Give one plane per file, or project the stack.",
            )
        pixels = series.asarray()
        if int(page.photometric) == 0 and 262 in page.tags:
            pixels = _white_is_zero(path, pixels, page.bitspersample)
        palette = page.colormap if int(page.photometric) == 3 else None
        alpha = [
            page.samplesperpixel - len(page.extrasamples) + at
            for at, meaning in enumerate(page.extrasamples)
            if int(meaning) in (1, 2)
        ]
    keep = [name for name, size in zip(axes, shape, strict=True) if name in "YXSC"]
    pixels = pixels.reshape(
        [size for name, size in zip(axes, shape, strict=True) if name in "YXSC"]
    )
    if palette is not None and pixels.ndim == 2:
        colours = np.asarray(
            palette
        )  # (3, 256), of 16 bit as the standard says, or of 8 bit as some programs write
        return (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)[:, pixels]
    if "S" in keep:
        pixels = np.moveaxis(pixels, keep.index("S"), -1).reshape(height, width, -1)
        return np.moveaxis(_drop_alpha(path, pixels, alpha[0]) if alpha else pixels, 2, 0)
    if "C" in keep:
        return np.moveaxis(pixels, keep.index("C"), 0)
    return pixels[None]


def check_pages(path: object, file: BinaryIO) -> None:
    """Whether the list of pages of a TIFF ends: tifffile follows a list that leads back into itself
    for ever.

    Raises UnreadableImageError.
    """
    start = file.read(16)
    if start[:2] not in (b"II", b"MM"):
        return  # no TIFF: tifffile says so
    order = "<" if start[:2] == b"II" else ">"
    big = start[2:4] in (b"+\x00", b"\x00+")
    (count_form, count_size), (form, size), tag_size = (
        (("Q", 8), ("Q", 8), 20) if big else (("H", 2), ("I", 4), 12)
    )
    seen: set[int] = set()
    try:
        (at,) = struct.unpack_from(order + form, start, 8 if big else 4)
        while at and at not in seen:
            seen.add(at)
            file.seek(at)
            (tags,) = struct.unpack(order + count_form, file.read(count_size))
            file.seek(tags * tag_size, os.SEEK_CUR)
            (at,) = struct.unpack(order + form, file.read(size))
    except (struct.error, OSError, ValueError, OverflowError):
        at = -1
    if at:
        raise UnreadableImageError(
            path,
            "the TIFF is cut or damaged: its list of pages leads nowhere.",
            "Copy it again from its source.",
        )


def _check_sizes(path: Path, page, content: bytes) -> None:
    """Whether a TIFF page holds as many bytes as its size and pixel type need: tifffile fills up
    with zeros.
    """
    import tifffile

    key = page.keyframe  # later pages of a series keep only where their bytes lie
    if int(key.compression) not in _PLAIN_BYTES:
        return
    decode = tifffile.TIFF.DECOMPRESSORS[key.compression]
    held = sum(
        len(decode(content[at : at + size]))
        for at, size in zip(page.dataoffsets, page.databytecounts, strict=True)
    )
    samples = key.samplesperpixel if int(key.planarconfig) == 1 else 1
    if key.is_tiled:
        lines = key.tilelength * int(np.prod(key.chunked))
        wanted = lines * -(-key.tilewidth * samples * key.bitspersample // 8)
    else:
        lines = key.imagelength * (key.samplesperpixel // samples)
        wanted = lines * -(-key.imagewidth * samples * key.bitspersample // 8)
    if held < wanted or (
        258 not in key.tags and held > 4 * wanted
    ):  # without the tag of the bits a pixel has one
        raise UnreadableImageError(
            path,
            f"the TIFF is damaged: it holds {held} bytes where its size and pixel type need "
            f"{wanted}.",
            "Copy it again from its source.",
        )


def _check_colours(path: Path, page) -> None:
    """Whether the numbers of a TIFF page are grey or RGB; of JPEG compression YCbCr becomes RGB on
    decoding.
    """
    fix = "Convert it to RGB (in Fiji: Image > Type > RGB Color)."
    photometric = int(page.photometric)
    if photometric == 5:
        raise UnreadableImageError(path, "the colours are CMYK, which are inks for print.", fix)
    if photometric in (8, 9, 10):
        raise UnreadableImageError(
            path, "the colours are CIELAB (lightness and two colour axes).", fix
        )
    if photometric == 3 and page.colormap is None:
        raise UnreadableImageError(
            path, "the colour map of the TIFF is missing.", "Export it again."
        )
    if photometric not in _GREY_OR_COLOUR or (
        photometric == 6 and int(page.compression) not in (6, 7)
    ):
        raise UnreadableImageError(
            path,
            f"the colours are {getattr(page.photometric, 'name', photometric)}, "
            "which is not handled.",
            fix,
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


def _check_size(path: Path, width: int, height: int, longest_px: int) -> None:
    if width * height > MAXIMUM_PIXELS or (longest_px and max(width, height) > longest_px):
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
        if not np.isfinite(pixels).all():
            raise UnreadableImageError(
                path,
                f"{int((~np.isfinite(pixels)).sum())} pixels are NaN or infinite.",
                "Find out where they come from; save the fixed image as 8 or 16 bit.",
            )
        raise UnreadableImageError(
            path,
            f"the pixels are floating point ({pixels.dtype}).",
            "Save it as 8 or 16 bit (in Fiji: Image > Type > 16-bit).",
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
