"""Read one image file into (channel, y, x) uint8 or uint16, or say exactly why that is not possible."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np

from nbhelpers.errors import UnreadableImageError

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"II*\x00", "TIFF"), (b"MM\x00*", "TIFF"),
          (b"II+\x00", "TIFF"), (b"MM\x00+", "TIFF"))
MAXIMUM_PIXELS = 200_000_000  # a whole slide by mistake would not fit in memory


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Decode a PNG, JPEG or TIFF file to (channel, y, x), uint8 or uint16.

    1-bit images become 0 and 255. Palettes become RGB. An alpha channel is dropped where it is opaque
    everywhere. Integer TIFFs whose values fit become uint16. Introduced in notebook 04.

    Raises UnreadableImageError: empty, cut or damaged file; suffix that contradicts the content; transparency,
    CMYK, floating point or NaN; several pages; more than 200 megapixels.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(path, f"the file cannot be read ({error.strerror}).",
                                   "Check that it exists and that you may read it.") from None
    if not content:
        raise UnreadableImageError(path, "the file is empty (0 bytes).", "Copy it again from its source.")
    kind = next((name for magic, name in _MAGIC if content.startswith(magic)), None)
    if kind is None:
        raise UnreadableImageError(path, "this is not a PNG, JPEG or TIFF image.", "Export it as one of these.")
    expected = SUFFIXES.get(path.suffix.lower())
    if kind != expected:
        raise UnreadableImageError(path, f"the name says {expected or path.suffix or 'nothing'} but the content "
                                   f"is {kind}.", f"Rename it to end in .{kind.lower()}.")
    try:
        pixels = _read_tiff(path, content) if kind == "TIFF" else _read_with_pillow(path, content)
    except UnreadableImageError:
        raise
    except MemoryError:
        raise UnreadableImageError(path, "decoding it needs more memory than there is.", "Crop it first.") from None
    except Exception as error:  # decoders raise many types on damaged files; the file's name must not be lost
        raise UnreadableImageError(path, f"the {kind} is cut or damaged ({type(error).__name__}: {error}).",
                                   "Copy it again from its source.") from None
    return _as_unsigned(path, pixels)


def _read_with_pillow(path: Path, content: bytes) -> np.ndarray:
    from PIL import Image

    if content[:4] == b"\x89PNG" and content[24:25] == b"\x10":  # Pillow would cut 16-bit colour to 8 bit
        import imagecodecs

        _check_size(path, int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big"))
        pixels = imagecodecs.png_decode(content)
        return _drop_alpha(path, pixels if pixels.ndim == 3 else pixels[..., None])
    with Image.open(io.BytesIO(content)) as image:
        _check_size(path, *image.size)
        if image.mode == "CMYK" or image.mode == "YCCK":
            raise UnreadableImageError(path, "the colours are CMYK, which are inks for print.",
                                       "Convert it to RGB (in Fiji: Image > Type > RGB Color).")
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode == "1":
            image = image.convert("L")
        elif image.mode not in ("L", "LA", "RGB", "RGBA"):
            raise UnreadableImageError(path, f"the pixel type {image.mode} is not handled.",
                                       "Save it as 8- or 16-bit grey, or as RGB.")
        pixels = np.asarray(image)
    return _drop_alpha(path, pixels if pixels.ndim == 3 else pixels[..., None])


def _drop_alpha(path: Path, pixels: np.ndarray) -> np.ndarray:
    """(y, x, sample) with or without alpha to (channel, y, x)."""
    if pixels.shape[2] in (2, 4):
        if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
            raise UnreadableImageError(path, "parts of the image are transparent.",
                                       "Flatten it on the right background first.")
        pixels = pixels[..., :-1]
    return np.moveaxis(pixels, 2, 0)


def _read_tiff(path: Path, content: bytes) -> np.ndarray:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is raised below
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        series = tiff.series[0]
        for page in series.pages:
            # tifffile fills what is missing from a cut file with zeros
            ends = [at + size for at, size in zip(page.dataoffsets, page.databytecounts, strict=False)]
            if not ends or max(ends) > len(content):
                raise UnreadableImageError(path, "the TIFF is cut: it ends before its last row.",
                                           "Copy it again from its source.")
        height, width = series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")]
        _check_size(path, width, height)
        if int(tiff.pages[0].photometric) == 5:
            raise UnreadableImageError(path, "the colours are CMYK, which are inks for print.",
                                       "Convert it to RGB (in Fiji: Image > Type > RGB Color).")
        axes, shape = series.axes, series.shape
        extra = [name for name, size in zip(axes, shape, strict=True) if name not in "YXSC" and size > 1]
        if extra:
            raise UnreadableImageError(path, f"the TIFF is a stack with the axes {axes} {shape}.",
                                       "Give one plane per file, or project the stack.")
        pixels = series.asarray()
        palette = tiff.pages[0].colormap
    keep = [name for name, size in zip(axes, shape, strict=True) if name in "YXSC"]
    pixels = pixels.reshape([size for name, size in zip(axes, shape, strict=True) if name in "YXSC"])
    if palette is not None and pixels.ndim == 2:
        colours = (np.asarray(palette) >> 8).astype(np.uint8)  # (3, 256) of 16 bit
        return colours[:, pixels]
    if "S" in keep:
        return _drop_alpha(path, np.moveaxis(pixels, keep.index("S"), -1).reshape(height, width, -1))
    if "C" in keep:
        return np.moveaxis(pixels, keep.index("C"), 0)
    return pixels[None]


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAXIMUM_PIXELS:
        raise UnreadableImageError(path, f"the image is {width} x {height} px, a whole slide perhaps.",
                                   "Cut out the single objects first.")


def _as_unsigned(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Values as they are, in uint8 or uint16."""
    if pixels.size == 0:
        raise UnreadableImageError(path, "the image has no pixels.")
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise UnreadableImageError(path, f"{int((~np.isfinite(pixels)).sum())} pixels are NaN or infinite.",
                                       "Find out where they come from; save the mended image as 8 or 16 bit.")
        raise UnreadableImageError(path, f"the pixels are floating point ({pixels.dtype}).",
                                   "Save it as 8 or 16 bit (in Fiji: Image > Type > 16-bit).")
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() <= 65535:
        return pixels.astype(np.uint16)
    raise UnreadableImageError(path, f"the values {pixels.min()} to {pixels.max()} do not fit in 16 bit.",
                               "Save it as 8 or 16 bit.")
