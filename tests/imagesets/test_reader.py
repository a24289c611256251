"""Reading one image file: right, or refused with the file's name and the fix."""

import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.core.errors import UnreadableImageError
from nbhelpers.imagesets.folder import find_images
from nbhelpers.imagesets.reader import read_image


def picture(height=12, width=17, dtype=np.uint8, channels=None, seed=0):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [None, 3])
def test_lossless_formats_give_the_pixels_back(tmp_path, suffix, dtype, channels):
    pixels = picture(dtype=dtype, channels=channels)
    path = tmp_path / f"image{suffix}"
    if suffix == ".png" and dtype == np.uint16 and channels == 3:
        import imagecodecs

        path.write_bytes(imagecodecs.png_encode(pixels))  # Pillow writes no 16-bit colour
    elif suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels, photometric="rgb" if channels else "minisblack")
    read = read_image(path)
    assert read.dtype == dtype
    expected = pixels[None] if channels is None else np.moveaxis(pixels, 2, 0)
    assert np.array_equal(read, expected)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 1000),
    compression=st.sampled_from([None, "zlib", "lzw", "packbits"]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
def test_tiff_of_any_size_and_compression(
    tmp_path_factory, height, width, seed, compression, dtype
):
    path = tmp_path_factory.mktemp("tiff") / "image.tif"
    pixels = picture(height, width, dtype, seed=seed)
    tifffile.imwrite(path, pixels, compression=compression)
    assert np.array_equal(read_image(path), pixels[None])


def test_one_bit_images_become_0_and_255(tmp_path):
    mask = picture() > 127
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert np.array_equal(read_image(tmp_path / "mask.png")[0], mask * 255)


def test_a_palette_becomes_rgb(tmp_path):
    pixels = np.moveaxis(
        np.stack(
            [
                picture(seed=1) // 128 * 255,
                picture(seed=2) // 128 * 255,
                picture(seed=3) // 128 * 255,
            ]
        ),
        0,
        2,
    )
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(
        tmp_path / "palette.png"
    )
    assert np.array_equal(read_image(tmp_path / "palette.png"), np.moveaxis(pixels, 2, 0))


def test_an_opaque_alpha_channel_is_dropped(tmp_path):
    pixels = picture(channels=4)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert np.array_equal(read_image(tmp_path / "image.png"), np.moveaxis(pixels[..., :3], 2, 0))


def test_a_transparent_image_is_refused(tmp_path):
    pixels = picture(channels=4)
    pixels[0, 0, 3] = 7
    Image.fromarray(pixels).save(tmp_path / "image.png")
    with pytest.raises(UnreadableImageError, match=r"image\.png.*transparent.*Flatten"):
        read_image(tmp_path / "image.png")


@pytest.mark.parametrize("name", ["print.jpg", "print.tif"])
def test_cmyk_is_refused(tmp_path, name):
    Image.fromarray(picture(channels=4), "CMYK").save(tmp_path / name)
    with pytest.raises(UnreadableImageError, match=rf"{name}.*CMYK.*RGB"):
        read_image(tmp_path / name)


def test_nan_and_float_tiffs_are_refused(tmp_path):
    pixels = picture().astype(np.float32)
    tifffile.imwrite(tmp_path / "float.tif", pixels)
    with pytest.raises(UnreadableImageError, match=r"float\.tif.*floating point.*16"):
        read_image(tmp_path / "float.tif")
    pixels[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", pixels)
    with pytest.raises(UnreadableImageError, match=r"nan\.tif.*1 pixels are NaN"):
        read_image(tmp_path / "nan.tif")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("zero.png", b"", "empty"),
        ("notes.png", b"these are my notes", "not a PNG, JPEG or TIFF"),
        ("cut.tif", b"II*\x00\x08\x00\x00\x00", "cut or damaged"),
    ],
)
def test_files_that_are_no_images(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImageError, match=words) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value) and caught.value.fix


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match="gone.png"):
        read_image(tmp_path / "gone.png")


def test_a_wrong_suffix_is_named_with_the_right_one(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / "image.tif")
    with pytest.raises(UnreadableImageError, match=r"image\.tif.*content is PNG.*\.png"):
        read_image(tmp_path / "image.tif")


def test_a_stack_is_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "stack.tif",
        np.stack([picture(seed=seed) for seed in range(5)]),
        photometric="minisblack",
    )
    with pytest.raises(UnreadableImageError, match=r"stack\.tif.*stack"):
        read_image(tmp_path / "stack.tif")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_white_is_zero_tiffs_are_turned_back(tmp_path, dtype):
    pixels = picture() > 127 if dtype is bool else picture(dtype=dtype)
    stored = ~pixels  # for unsigned integers this is maximum - value
    tifffile.imwrite(tmp_path / "white.tif", stored, photometric="miniswhite")
    assert np.array_equal(
        read_image(tmp_path / "white.tif")[0], pixels * 255 if dtype is bool else pixels
    )
    if dtype is not bool:
        tifffile.imwrite(tmp_path / "signed.tif", stored.astype(np.int32), photometric="miniswhite")
        with pytest.raises(UnreadableImageError, match="white is zero"):
            read_image(tmp_path / "signed.tif")


def write_pages(path, *pages, **options):
    with tifffile.TiffWriter(path, **options) as writer:
        for pixels, about in pages:
            writer.write(pixels, **about)


def test_several_images_in_one_file_are_refused(tmp_path):
    write_pages(tmp_path / "sizes.tif", (picture(), {}), (picture(5, 6), {}))
    write_pages(tmp_path / "ome.ome.tif", (picture(), {}), (picture(seed=1), {}), ome=True)
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    for name, count in (("sizes.tif", 2), ("ome.ome.tif", 2), ("film.png", 3)):
        with pytest.raises(UnreadableImageError, match=f"{name}.*holds {count} images"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("small_first", [False, True])
@pytest.mark.parametrize("small", [picture(4, 5), picture(4, 5, channels=3)])
def test_a_thumbnail_beside_the_image_is_passed_over(tmp_path, small, small_first):
    pages = [
        (picture(16, 20), {"photometric": "minisblack"}),
        (small, {"subfiletype": 1, "photometric": "rgb" if small.ndim == 3 else "minisblack"}),
    ]
    write_pages(tmp_path / "image.tif", *(reversed(pages) if small_first else pages))
    assert np.array_equal(read_image(tmp_path / "image.tif"), picture(16, 20)[None])


def test_the_levels_of_a_pyramid_are_one_image(tmp_path):
    write_pages(
        tmp_path / "image.tif",
        (picture(64, 64), {"subifds": 1}),
        (picture(32, 32), {"subfiletype": 1}),
    )
    assert np.array_equal(read_image(tmp_path / "image.tif"), picture(64, 64)[None])


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("separate", [False, True])
def test_samples_that_are_no_alpha_are_channels(tmp_path, channels, separate):
    pixels = np.moveaxis(picture(channels=channels), 2, 0)
    tifffile.imwrite(
        tmp_path / "image.tif",
        pixels if separate else np.moveaxis(pixels, 0, 2),
        photometric="minisblack",
        planarconfig="separate" if separate else "contig",
    )
    assert np.array_equal(read_image(tmp_path / "image.tif"), pixels)


@pytest.mark.parametrize(
    "extra",
    [["unassalpha"], ["assocalpha"], ["unspecified", "unassalpha"], ["unassalpha", "unspecified"]],
)
def test_samples_that_are_alpha_are_dropped_or_refused(tmp_path, extra):
    pixels = picture(channels=3 + len(extra))
    alpha = 3 + [name.endswith("alpha") for name in extra].index(True)
    options = {"photometric": "rgb", "extrasamples": extra, "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "seen_through.tif", pixels, **options)
    with pytest.raises(UnreadableImageError, match="transparent"):
        read_image(tmp_path / "seen_through.tif")
    pixels[..., alpha] = 255
    tifffile.imwrite(tmp_path / "opaque.tif", pixels, **options)
    expected = np.delete(np.moveaxis(pixels, 2, 0), alpha, 0)
    assert np.array_equal(read_image(tmp_path / "opaque.tif"), expected)


def test_cielab_is_refused(tmp_path):
    Image.fromarray(picture(channels=3), "LAB").save(tmp_path / "lab.tif")
    with pytest.raises(UnreadableImageError, match=r"lab\.tif.*CIELAB.*RGB"):
        read_image(tmp_path / "lab.tif")


@pytest.mark.parametrize("factor", [1, 257])
def test_colour_maps_of_8_and_of_16_bit(tmp_path, factor):
    colours = picture(3, 256, seed=4)
    tifffile.imwrite(
        tmp_path / "map.tif",
        picture(),
        photometric="palette",
        colormap=colours.astype(np.uint16) * np.uint16(factor),
    )
    assert np.array_equal(read_image(tmp_path / "map.tif"), colours[:, picture()])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(3, lambda pixels: pixels[::-1, ::-1]), (6, lambda pixels: np.rot90(pixels, -1))],
)
def test_the_orientation_of_a_camera_is_applied(tmp_path, orientation, turned):
    pixels = np.zeros((16, 24), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif, quality=100)
    assert np.array_equal(read_image(tmp_path / "photo.jpg")[0], turned(pixels))


def encoded(kind, compression=None):
    buffer = io.BytesIO()
    if kind == "TIFF":
        tifffile.imwrite(buffer, picture(64, 64), compression=compression)
    else:
        Image.fromarray(picture(64, 64)).save(buffer, kind)
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "TIFF"]), share=st.floats(0.05, 0.97))
def test_a_truncated_image_never_comes_back_as_an_image(tmp_path_factory, kind, share):
    content = encoded(kind)
    path = tmp_path_factory.mktemp("cut") / f"image.{kind.lower()}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreadableImageError, match=path.name):
        read_image(path)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "LZW"]),
    at=st.floats(0, 1),
    value=st.integers(0, 255),
    count=st.integers(1, 8),
)
def test_damaged_bytes_end_in_a_named_error_or_an_image(tmp_path_factory, kind, at, value, count):
    content = bytearray(encoded("TIFF", "lzw") if kind == "LZW" else encoded(kind))
    start = int(at * (len(content) - count))
    content[start : start + count] = bytes([value]) * count
    path = tmp_path_factory.mktemp("damaged") / (
        "image.tif" if kind in ("TIFF", "LZW") else f"image.{kind.lower()}"
    )
    path.write_bytes(content)
    try:
        pixels = read_image(path)
    except UnreadableImageError as error:
        assert path.name in str(error)
    else:
        assert pixels.ndim == 3 and pixels.dtype in (np.uint8, np.uint16) and pixels.size > 0


@pytest.mark.parametrize(
    "name", ["my spine (1).png", 'it\'s 50% "thin".png', "<script>alert(1)<.png", "näve-ß.png"]
)
def test_odd_file_names_are_read(tmp_path, name):
    Image.fromarray(picture()).save(tmp_path / name)
    assert read_image(tmp_path / name).shape == (1, 12, 17)


@pytest.mark.parametrize("name", ["slide.svs", "slide.NDPI", "slide.mrxs", "slide.scn"])
def test_whole_slides_are_refused_by_their_name_without_being_read(tmp_path, name):
    with open(tmp_path / name, "wb") as file:
        file.write(b"II*\x00")
        file.truncate(3 * 2**30)  # a sparse file
    with pytest.raises(UnreadableImageError, match=r"whole slide.*QuPath"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_what_is_too_large_is_refused_before_it_is_decoded_or_read(tmp_path, monkeypatch, suffix):
    Image.new("RGB", (300, 200), (200, 100, 150)).save(tmp_path / f"image{suffix}")
    assert read_image(tmp_path / f"image{suffix}", longest_px=300).shape == (3, 200, 300)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    with pytest.raises(UnreadableImageError, match=r"300 x 200 px, a whole slide perhaps.*QuPath"):
        read_image(tmp_path / f"image{suffix}", longest_px=299)
    with open(tmp_path / f"image{suffix}", "r+b") as file:
        file.truncate(2 * 2**30)
    with pytest.raises(UnreadableImageError, match=r"2048 MB, a whole slide perhaps"):
        read_image(tmp_path / f"image{suffix}", longest_px=4096)


def test_a_size_that_is_hidden_behind_a_thumbnail_is_seen_before_decoding(tmp_path, monkeypatch):
    with tifffile.TiffWriter(tmp_path / "image.tif") as tiff:
        tiff.write(picture(8, 10), subfiletype=1)
        tiff.write(picture(40, 50))
    monkeypatch.setattr(
        tifffile.TiffPageSeries, "asarray", lambda *a, **b: pytest.fail("it was decoded")
    )
    with pytest.raises(UnreadableImageError, match="50 x 40 px, a whole slide"):
        read_image(tmp_path / "image.tif", longest_px=45)


def test_reasons_are_the_same_in_every_run(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing of it")
    with pytest.raises(UnreadableImageError, match="cut or damaged") as caught:
        read_image(tmp_path / "cut.png")
    assert " at 0x" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_name_that_is_no_utf8_is_refused_in_words_that_can_be_written(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    Image.fromarray(picture()).save(path)
    with pytest.raises(
        UnreadableImageError, match=r"caf\\xe9\.png.*is not in UTF-8.*Rename"
    ) as caught:
        read_image(path)
    str(caught.value).encode()


def test_links_to_folders_are_followed_but_each_folder_is_read_once(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "top" / folder).mkdir(parents=True)
        (tmp_path / "top" / folder / "x.png").write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.png").write_bytes(b"")
    (tmp_path / "top" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
    (tmp_path / "top" / "a" / "back").symlink_to(tmp_path / "top")
    (tmp_path / "top" / "a" / "over").symlink_to(tmp_path / "top" / "b")
    (tmp_path / "top" / "b" / "over").symlink_to(tmp_path / "top" / "a")
    found = [
        path.relative_to(tmp_path / "top").as_posix() for path in find_images(tmp_path / "top")
    ]
    assert found == ["a/x.png", "b/x.png", "linked/y.png"]


def test_a_folder_that_cannot_be_opened_is_listed(tmp_path, monkeypatch):
    (tmp_path / "top" / "closed").mkdir(parents=True)
    (tmp_path / "top" / "x.png").write_bytes(b"")
    scan = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_images(tmp_path / "top") == [
        tmp_path / "top" / "x.png",
        tmp_path / "top" / "closed",
    ]
    with pytest.raises(UnreadableImageError, match="closed.*this folder cannot be opened"):
        read_image(tmp_path / "top" / "closed")


def tag_at(content: bytes, code: int) -> int:
    """Where a tag stands in the first page of a little-endian TIFF."""
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    return next(
        at
        for at in range(first + 2, first + 2 + 12 * count, 12)
        if struct.unpack_from("<H", content, at)[0] == code
    )


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("damage", ["pages in a circle", "more rows", "no bits per pixel"])
def test_tiffs_that_would_hang_or_be_filled_with_zeros_are_refused(tmp_path, damage, compression):
    path = tmp_path / "image.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)
    tifffile.imwrite(path, pixels, compression=compression)
    assert np.array_equal(read_image(path)[0], pixels)
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    if damage == "pages in a circle":
        struct.pack_into("<I", content, first + 2 + 12 * count, first)
    elif damage == "more rows":
        struct.pack_into("<I", content, tag_at(content, 257) + 8, 400)
    else:
        struct.pack_into("<H", content, tag_at(content, 258), 65000)
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match="damaged"):
        read_image(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_stack_of_several_pages_is_refused_in_words(tmp_path, compression):
    tifffile.imwrite(
        tmp_path / "stack.tif",
        np.stack([picture(seed=at) for at in range(3)]),
        photometric="minisblack",
        compression=compression,
    )
    with pytest.raises(UnreadableImageError, match="stack with the axes"):
        read_image(tmp_path / "stack.tif")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_that_is_said_to_be_transparent_is_transparent(tmp_path, mode):
    image = Image.new(mode, (8, 8), 200 if mode == "L" else (200, 100, 50))
    image.putpixel((3, 3), 7 if mode == "L" else (7, 7, 7))
    image.save(tmp_path / "a.png", transparency=7 if mode == "L" else (7, 7, 7))
    with pytest.raises(UnreadableImageError, match="transparent"):
        read_image(tmp_path / "a.png")
    image.save(tmp_path / "b.png", transparency=9 if mode == "L" else (9, 9, 9))
    assert read_image(tmp_path / "b.png").shape == (1 if mode == "L" else 3, 8, 8)
