"""What a file says about its pixels holds in every reader; what it does not hold is not made up."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.core.errors import UnreadableImageError
from nbhelpers.imagesets import packed, synapses
from nbhelpers.imagesets.from_files import GreyLine
from nbhelpers.imagesets.own_cubes import load_own_cubes, read_cube, unit_nm
from nbhelpers.imagesets.reader import read_image, turned

STACK = np.random.default_rng(0).integers(1, 255, (8, 20, 24), dtype=np.uint8)
OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{root}>'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="24" '
    'SizeY="20" SizeC="{c}" SizeZ="{z}" SizeT="1" {sizes}>{planes}</Pixels></Image></OME>'
)


def ome(z=8, c=1, planes="<TiffData/>", root="", sizes=""):
    return OME.format(z=z, c=c, planes=planes, root=root, sizes=sizes)


def write_pages(path, pages, description, **options):
    with tifffile.TiffWriter(path) as writer:
        for at, page in enumerate(pages):
            writer.write(
                page,
                description=description if at == 0 else None,
                metadata=None,
                photometric="minisblack",
                **options,
            )
    return path


# ---- planes that are said and not there


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    "planes",
    [
        "<TiffData/>",
        '<TiffData IFD="0" PlaneCount="8"/>',
        "".join(f'<TiffData FirstZ="{at}" IFD="{at}" PlaneCount="1"/>' for at in range(6)),
    ],
)
def test_an_ome_stack_with_fewer_sections_than_it_says_is_refused(tmp_path, planes, compression):
    path = tmp_path / "z.ome.tif"
    write_pages(path, STACK[:6], ome(planes=planes), compression=compression)
    for read in (read_cube, read_image):
        with pytest.raises(UnreadableImageError, match="2 of 8 sections are missing"):
            read(path)
    write_pages(path, STACK, ome(planes="<TiffData/>"), compression=compression)
    assert np.array_equal(read_cube(path)[0], STACK)


def test_a_gap_in_the_middle_of_an_ome_stack_is_refused(tmp_path):
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="{ifd}" PlaneCount="1"/>'
        for ifd, z in enumerate((0, 1, 2, 5, 6, 7))
    )
    path = write_pages(tmp_path / "z.ome.tif", STACK[:6], ome(planes=planes))
    with pytest.raises(UnreadableImageError, match="2 of 8 sections are missing"):
        read_cube(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("said", ["images=8\nslices=8", "images=8", "slices=8", "frames=8"])
@pytest.mark.parametrize("there", [1, 6])
def test_an_imagej_stack_with_fewer_images_than_it_says_is_refused(
    tmp_path, said, there, compression
):
    path = tmp_path / "fiji.tif"
    write_pages(path, STACK[:there], f"ImageJ=1.54f\n{said}\n", compression=compression)
    for read in (read_cube, read_image):
        with pytest.raises(UnreadableImageError, match="missing"):
            read(path)
    write_pages(path, STACK, f"ImageJ=1.54f\n{said}\n", compression=compression)
    assert np.array_equal(read_cube(path)[0], STACK)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("there", [1, 6])
def test_a_stack_whose_description_says_more_pages_than_there_are_is_refused(
    tmp_path, there, compression
):
    said = '{"shape": [8, 20, 24]}'
    path = write_pages(tmp_path / "s.tif", STACK[:there], said, compression=compression)
    for read in (read_cube, read_image):
        with pytest.raises(UnreadableImageError, match="missing|cut"):
            read(path)


def test_colour_channels_that_are_said_and_missing_are_refused(tmp_path):
    path = tmp_path / "c.ome.tif"
    write_pages(path, STACK[:2], ome(z=1, c=3))
    with pytest.raises(UnreadableImageError, match="1 of 3 sections are missing"):
        read_image(path)
    write_pages(path, STACK[:3], ome(z=1, c=3))
    assert np.array_equal(read_image(path), STACK[:3])
    write_pages(path, STACK[:2], "ImageJ=1.54f\nimages=3\nchannels=3\nhyperstack=true\n")
    with pytest.raises(UnreadableImageError, match="1 of 3 sections are missing"):
        read_image(path)


@pytest.mark.parametrize("options", [{"ome": True}, {"imagej": True}, {}])
def test_whole_colour_images_and_stacks_are_read(tmp_path, options):
    colour = np.random.default_rng(1).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "c.tif", colour, photometric="rgb", **options)
    assert np.array_equal(read_image(tmp_path / "c.tif"), np.moveaxis(colour, 2, 0))
    tifffile.imwrite(tmp_path / "z.tif", STACK, photometric="minisblack", **options)
    if options.get("imagej"):
        options = options | {"metadata": {"axes": "ZYX"}}
    else:
        options = options | {"metadata": {"axes": "ZYX"}, "rowsperstrip": 4}
    tifffile.imwrite(tmp_path / "z.tif", STACK, photometric="minisblack", **options)
    assert np.array_equal(read_cube(tmp_path / "z.tif")[0], STACK)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("root", [True, False])
def test_one_file_of_an_ome_set_is_its_own_plane_and_never_another_file(tmp_path, both, root):
    uid = "urn:uuid:00000000-0000-0000-0000-00000000000"
    parts = "".join(
        f'<TiffData FirstC="{at}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="m{at}.ome.tif">{uid}{at}</UUID></TiffData>'
        for at in (0, 1)
    )
    for at in (0, 1) if both else (1,):
        about = ome(z=1, c=2, planes=parts, root=f' UUID="{uid}{at}"' if root else "")
        write_pages(tmp_path / f"m{at}.ome.tif", STACK[at : at + 1], about)
    assert np.array_equal(read_image(tmp_path / "m1.ome.tif"), STACK[1:2])


@pytest.mark.parametrize("both", [True, False])
def test_a_stack_of_an_ome_set_of_files_is_refused(tmp_path, both):
    uid = "urn:uuid:00000000-0000-0000-0000-00000000000"
    parts = "".join(
        f'<TiffData FirstZ="{4 * at}" IFD="0" PlaneCount="4">'
        f'<UUID FileName="m{at}.ome.tif">{uid}{at}</UUID></TiffData>'
        for at in (0, 1)
    )
    for at in (0, 1) if both else (0,):
        about = ome(planes=parts, root=f' UUID="{uid}{at}"')
        write_pages(tmp_path / f"m{at}.ome.tif", STACK[4 * at : 4 * at + 4], about)
    with pytest.raises(UnreadableImageError, match="4 of 8 sections.*in other files"):
        read_cube(tmp_path / "m0.ome.tif")


@settings(max_examples=30, deadline=None)
@given(
    said=st.integers(1, 9),
    there=st.integers(1, 9),
    kind=st.sampled_from(["ome", "imagej"]),
    compression=st.sampled_from([None, "zlib"]),
)
def test_no_section_is_ever_made_up(tmp_path_factory, said, there, kind, compression):
    path = tmp_path_factory.mktemp("said") / "z.tif"
    about = ome(z=said) if kind == "ome" else f"ImageJ=1.54f\nimages={said}\nslices={said}\n"
    pages = STACK[np.arange(there) % 8]
    write_pages(path, pages, about, compression=compression)
    try:
        pixels, _ = read_cube(path)
    except UnreadableImageError:
        assert there != said or said == 1
    else:
        assert said <= there and len(pixels) in (said, there)
        assert np.array_equal(pixels, pages[: len(pixels)])


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_both_orders_of_bytes_and_both_lengths_of_places_are_read(tmp_path, bigtiff, byteorder):
    stack = STACK.astype(np.uint16) * 100
    options = {"bigtiff": bigtiff, "byteorder": byteorder, "compression": "zlib"}
    tifffile.imwrite(tmp_path / "z.tif", stack, photometric="minisblack", **options)
    assert np.array_equal(read_cube(tmp_path / "z.tif")[0], stack)
    tifffile.imwrite(tmp_path / "y.tif", stack[0], **options)
    assert np.array_equal(read_image(tmp_path / "y.tif")[0], stack[0])


def test_missing_tiles_and_strips_are_refused(tmp_path):
    for name, options in (
        ("tiles", {"tile": (16, 16), "compression": "zlib"}),
        ("jpeg", {"tile": (16, 16), "compression": "jpeg"}),
        ("strips", {"rowsperstrip": 4, "compression": "lzw"}),
    ):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, np.tile(STACK[0], (2, 2)), **options)
        assert read_image(path).shape == (1, 40, 48)
        with tifffile.TiffFile(path) as tiff:
            tag = next(
                tiff.pages.first.tags[code] for code in (325, 279) if code in tiff.pages.first.tags
            )
            at, size = tag.valueoffset, 2 if tag.dtype == 3 else 4
        content = bytearray(path.read_bytes())
        content[at + size : at + 2 * size] = bytes(size)  # the second piece is of no bytes
        path.write_bytes(content)
        with pytest.raises(UnreadableImageError, match="damaged|cut"):
            read_image(path)


# ---- how it stands, and what white means


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 3), (3, 3, 4)])
def test_the_orientation_of_a_tiff_is_that_of_pillow(tmp_path, orientation, dtype, shape):
    pixels = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    options = {"photometric": "minisblack"}
    if len(shape) == 3:
        separate = shape[0] == 3 and shape[2] == 4
        options = {"photometric": "rgb", "planarconfig": "separate" if separate else "contig"}
    path = tmp_path / "t.tif"
    tifffile.imwrite(path, pixels, extratags=[(274, "H", 1, orientation, True)], **options)
    plain = pixels[None] if len(shape) == 2 else pixels
    if len(shape) == 3 and not separate:
        plain = np.moveaxis(pixels, 2, 0)
    exif = Image.Exif()
    exif[274] = orientation
    from PIL import ImageOps

    right = []
    for channel in plain.astype(np.uint8):
        image = Image.fromarray(channel)
        image.getexif()[274] = orientation
        right.append(np.asarray(ImageOps.exif_transpose(image)))
    assert np.array_equal(read_image(path), np.stack(right))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sections_stand_as_their_orientation_says_and_so_do_their_voxels(tmp_path, orientation):
    tifffile.imwrite(
        tmp_path / "z.tif",
        STACK,
        imagej=True,
        resolution=(1 / 8, 1 / 4),
        metadata={"axes": "ZYX", "spacing": 40, "unit": "nm"},
        extratags=[(274, "H", 1, orientation, True)],
    )
    pixels, voxel = read_cube(tmp_path / "z.tif")
    assert np.array_equal(pixels, turned(STACK, orientation))
    assert voxel == ((40, 8, 4) if orientation > 4 else (40, 4, 8))


@pytest.mark.parametrize("deep", [False, True])
def test_a_png_of_16_bit_is_turned_too(tmp_path, deep):
    pixels = np.arange(12, dtype=np.uint16 if deep else np.uint8).reshape(3, 4)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "t.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "t.png")[0], np.rot90(pixels, -1))


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"ome": True}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stacks_where_white_is_zero_are_turned_back(tmp_path, options, dtype):
    stack = STACK.astype(dtype)
    tifffile.imwrite(
        tmp_path / "z.tif", ~stack, photometric="miniswhite", metadata={"axes": "ZYX"}, **options
    )
    assert np.array_equal(read_cube(tmp_path / "z.tif")[0], stack)


def test_a_signed_stack_where_white_is_zero_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "z.tif", STACK.astype(np.int16), photometric="miniswhite")
    with pytest.raises(UnreadableImageError, match="white is zero"):
        read_cube(tmp_path / "z.tif")


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_fill_the_range(tmp_path, bits, photometric):
    top = 2**bits - 1
    values = (np.arange(64).reshape(8, 8) % (top + 1)).astype(np.uint8)
    raw = np.packbits(
        np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(8, -1), axis=1
    )
    path = tmp_path / "few.tif"
    tags = struct.pack("<H", 8)
    number = 0 if photometric == "miniswhite" else 1
    for code, value in (
        (256, 8), (257, 8), (258, bits), (259, 1), (262, number), (273, 200), (278, 8),
        (279, raw.size),
    ):  # fmt: skip
        tags += struct.pack("<HHIHH", code, 3, 1, value, 0)
    content = (b"II*\x00\x08\x00\x00\x00" + tags + bytes(4)).ljust(200, b"\x00") + raw.tobytes()
    path.write_bytes(content)
    right = values if number else top - values
    assert np.array_equal(read_image(path)[0], right * (255 // top))


def test_a_stack_with_a_grey_colour_map_is_grey_and_one_with_colours_is_refused(tmp_path):
    ramp = np.arange(255, -1, -1, dtype=np.uint16) * 257
    options = {"photometric": "palette", "metadata": {"axes": "ZYX"}}
    tifffile.imwrite(tmp_path / "z.tif", STACK, colormap=np.stack([ramp] * 3), **options)
    assert np.array_equal(read_cube(tmp_path / "z.tif")[0], 255 - STACK)
    fire = np.stack([ramp, ramp[::-1], ramp])
    tifffile.imwrite(tmp_path / "z.tif", STACK, colormap=fire, **options)
    with pytest.raises(UnreadableImageError, match="grey stack"):
        read_cube(tmp_path / "z.tif")


# ---- sizes


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        *[(unit, 1e-3) for unit in ("pm", "picometer")],
        *[(unit, 0.1) for unit in ("Å", "\u212b", "A\u030a", "å", "angstrom", "Angstroms")],
        *[(unit, 1) for unit in ("nm", "NM", " nm ", "nanometer", "Nanometers", "nanometre")],
        *[(unit, 1e3) for unit in ("\u00b5m", "\u03bcm", "um", "UM", "micron", "microns")],
        *[(unit, 1e3) for unit in ("micrometer", "micrometre", "Micron", "Micrometres", "\u00b5")],
        *[(unit, 1e3) for unit in (r"\u00B5m", r"\\u00B5m", r"\u00b5m", r"\u03BCm", "Âµm")],
        *[(unit, 1e6) for unit in ("mm", "MM", "millimeter", "millimetres")],
        *[(unit, 1e7) for unit in ("cm", "Cm", "centimeter")],
        *[(unit, 1e9) for unit in ("m", "M", "meter", "metre", "Meters")],
        *[(unit, 2.54e7) for unit in ("inch", "in", "inches", "Inch")],
        *[(unit, 2.54e4) for unit in ("thou", "mil")],
        *[("ft", 3.048e8), ("feet", 3.048e8), ("dm", 1e8), ("km", 1e12), ("fm", 1e-6)],
        *[("Mm", 1e15), ("Ym", 1e33), ("ym", 1e-15), ("dam", 1e10), ("pt", 2.54e7 / 72)],
        *[(unit, 0) for unit in ("pixel", "pixels", "", "reference frame", "sec", "s", "furlong")],
        *[(unit, 0) for unit in (None, 3, "microseconds", "xm")],
    ],
)  # fmt: skip
def test_units_in_every_spelling(unit, size):
    assert unit_nm(unit) == pytest.approx(size)


@settings(max_examples=40, deadline=None)
@given(unit=st.text(max_size=8))
def test_a_unit_is_a_size_or_not_known(unit):
    assert unit_nm(unit) >= 0 and unit_nm(f" {unit}\t") == unit_nm(unit)


@settings(max_examples=25, deadline=None)
@given(
    z=st.floats(0.5, 500),
    unit=st.sampled_from([("nm", 1), ("\u00b5m", 1e3), ("Å", 0.1), ("pm", 1e-3), ("mm", 1e6)]),
    other=st.sampled_from([("nm", 1), ("\u00b5m", 1e3), ("cm", 1e7)]),
)
def test_every_axis_of_ome_has_its_own_unit(tmp_path_factory, z, unit, other):
    path = tmp_path_factory.mktemp("ome") / "z.ome.tif"
    sizes = (
        f'PhysicalSizeX="{4 / other[1]}" PhysicalSizeXUnit="{other[0]}" PhysicalSizeY="0.008" '
        f'PhysicalSizeZ="{z / unit[1]}" PhysicalSizeZUnit="{unit[0]}"'
    )
    about = ome(sizes=sizes).encode("utf-8")
    write_pages(path, STACK, about)
    assert read_cube(path)[1] == pytest.approx((z, 8, 4), rel=1e-5)


@pytest.mark.parametrize("unit", [r"\u00B5m", r"\\u00B5m", "microns", "Micron", "um", "micrometre"])
def test_the_micrometres_of_fiji(tmp_path, unit):
    about = {"axes": "ZYX", "spacing": 0.03, "unit": unit}
    tifffile.imwrite(tmp_path / "z.tif", STACK, imagej=True, metadata=about, resolution=(250, 250))
    assert read_cube(tmp_path / "z.tif")[1] == (30, 4, 4)


def test_axes_of_fiji_may_have_units_of_their_own(tmp_path):
    about = {"axes": "ZYX", "spacing": 30, "unit": "micron", "yunit": "mm", "zunit": "nm"}
    tifffile.imwrite(
        tmp_path / "z.tif", STACK, imagej=True, metadata=about, resolution=(250, 250000)
    )
    assert read_cube(tmp_path / "z.tif")[1] == (30, 4, 4)


def own_table(folder, write, count=4):
    rows = []
    for at in range(count):
        write(at, folder / f"c{at}.tif")
        rows.append(f"c{at}.tif,{'ab'[at % 2]},n{at}")
    (folder / "labels.csv").write_text("path,label,group\n" + "\n".join(rows))
    return folder / "labels.csv"


def test_a_size_that_is_not_known_is_said(tmp_path):
    def write(at, path):
        about = {"axes": "ZYX", "spacing": 0.03, "unit": "furlong" if at else "um"}
        tifffile.imwrite(
            path, np.roll(STACK, at, 1), imagej=True, metadata=about, resolution=(250, 250)
        )

    images = load_own_cubes(own_table(tmp_path, write), voxel_nm=(30, 4, 4))
    assert images.pixel_size_nm == (30, 4, 4)
    assert "3 of 4 stacks do not say the size" in images.source
    assert "30 x 4 x 4 nm" in images.source


@pytest.mark.parametrize("written", ["", "unknown", "NaN", "INF", "-1", "0"])
def test_a_size_that_is_no_number_is_not_known(tmp_path, written):
    sizes = f'PhysicalSizeX="{written}" PhysicalSizeY="0.008" PhysicalSizeZ="0.04"'
    path = write_pages(tmp_path / "z.ome.tif", STACK, ome(sizes=sizes))
    assert read_cube(path)[1] is None


# ---- the set decides


FORMS = [(20, np.uint8), (21, np.uint8), (20, np.uint16)]


@settings(max_examples=30, deadline=None)
@given(order=st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_the_commonest_form_wins_in_any_order(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("forms")
    paths = []
    for at, form in enumerate(order):
        side, dtype = FORMS[form]
        pixels = np.arange(side * side).reshape(side, side).astype(dtype) + dtype(at)
        paths.append(folder / f"{at:02d}.png")
        Image.fromarray(pixels).save(paths[-1])

    def pack(paths):
        return packed.pack_images(
            paths, lambda pixels, path: pixels, prepare_name="as it is", cache_folder=folder
        )

    for _ in range(2):  # made, then found
        pixels, kept, failures, _ = pack(paths)
        most = max(order.count(form) for form in order)
        form = order[kept[0]]
        assert order.count(form) == most == len(kept) == len(pixels)
        assert [at for at, one in enumerate(order) if one == form] == kept.tolist()
        assert sorted([*kept, *failures.index]) == list(range(len(order)))
        for row, at in enumerate(kept):
            assert np.array_equal(pixels[row], read_image(paths[at]))
    _, turned_round, _, _ = pack(paths[::-1])
    assert sorted(len(order) - 1 - turned_round) == kept.tolist()


PATCHES = np.random.default_rng(5)


def patch(seed, dtype=np.uint8, factor=1):
    pixels = np.random.default_rng(seed).normal(128, 40, (64, 64)).clip(0, 255).astype(np.uint8)
    return pixels.astype(dtype) * dtype(factor)


@pytest.mark.parametrize("factor", [257, 256, 16, 1])
@pytest.mark.parametrize("deep", [(0,), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (3, 10)])
def test_patches_of_8_and_16_bit_are_one_set_of_8_bit(tmp_path, deep, factor):
    (tmp_path / "mix").mkdir()
    for at in range(11):
        depth = (np.uint16, factor) if at in deep else (np.uint8, 1)
        Image.fromarray(patch(at, *depth)).save(tmp_path / "mix" / f"{at:02d}.png")
    images = synapses.load_unlabelled_synapses(
        tmp_path / "mix",
        tmp_path / "cache",
        ("e", "i"),
        64,
        own=synapses.OwnPatches(polarity="as given"),
    )
    assert len(images) == 11 and images.pixels.dtype == np.uint8 and images.failures.empty
    off = max(int(np.abs(images.pixels[at, 0].astype(int) - patch(at)).max()) for at in range(11))
    assert off == 0 if factor in (257, 1) else off <= 1
    assert "16-bit values scaled to 8 bit for the whole set" in images.source
    assert images.ids.tolist() == [f"{at:02d}.png" for at in range(11)]


def test_what_is_left_out_for_another_reason_says_nothing_of_depths(tmp_path):
    (tmp_path / "mix").mkdir()
    for at in range(6):
        pixels = patch(at, *((np.uint16, 257) if at == 4 else (np.uint8, 1)))
        Image.fromarray(pixels if at else pixels * 0 + 7).save(tmp_path / "mix" / f"{at}.png")
    as_given = synapses.OwnPatches(polarity="as given")
    for left in (5, 4):
        images = synapses.load_unlabelled_synapses(
            tmp_path / "mix", tmp_path / "cache", ("e", "i"), 64, own=as_given
        )
        assert len(images) == left and images.failures["file"].tolist() == ["0.png"]
        assert "constant" in images.failures["why"].iloc[0]
        assert ("16-bit" in images.source) == (left == 5)
        (tmp_path / "mix" / "4.png").unlink(missing_ok=True)


def test_dark_patches_of_16_bit_get_the_range_of_the_others(tmp_path):
    (tmp_path / "mix").mkdir()
    for at in range(10):
        pixels = patch(at)
        if at % 2:
            pixels = pixels.astype(np.uint16) * 4 + 20000
        Image.fromarray(pixels).save(tmp_path / "mix" / f"{at:02d}.png")
    images = synapses.load_unlabelled_synapses(
        tmp_path / "mix",
        tmp_path / "cache",
        ("e", "i"),
        64,
        own=synapses.OwnPatches(polarity="as given"),
    )
    means = images.pixels.mean(axis=(1, 2, 3))
    assert abs(means[::2].mean() - means[1::2].mean()) < 3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100), top=st.integers(64, 255))
def test_what_is_the_8_bit_image_times_257_comes_out_equal(seed, top):
    images = np.random.default_rng(seed).integers(0, top + 1, (3, 9, 9), dtype=np.uint8)
    images[0, 0, 0] = top
    deep = images.astype(np.uint16) * 257
    line = GreyLine.between([*deep, *images])
    assert np.array_equal(line.in_8_bit(deep), images)


def test_cubes_of_8_and_16_bit_are_one_set(tmp_path):
    cubes = [np.roll(STACK, at, 2) for at in range(4)]

    def write(at, path):
        cube = cubes[at].astype(np.uint16) * 257 if at == 1 else cubes[at]
        tifffile.imwrite(path, cube, photometric="minisblack", metadata={"axes": "ZYX"})

    images = load_own_cubes(own_table(tmp_path, write), voxel_nm=(30, 4, 4))
    assert np.array_equal(images.pixels[:, 0], np.stack(cubes))
    assert "16-bit values scaled to 8 bit for the whole set" in images.source


def test_one_cube_in_two_depths_is_a_copy(tmp_path):
    def write(at, path):
        cube = STACK.astype(np.uint16) * 257 if at == 1 else np.roll(STACK, 2 * (at > 1) * at, 2)
        tifffile.imwrite(path, cube, photometric="minisblack", metadata={"axes": "ZYX"})

    images = load_own_cubes(own_table(tmp_path, write, count=6), voxel_nm=(30, 4, 4))
    assert len(images) == 4 and images.failures["file"].tolist() == ["c0.tif", "c1.tif"]
    assert images.failures["why"].str.contains("under another label").all()


# ---- damage and malice


MEASURE = """
import re, sys, time
from pathlib import Path
from nbhelpers.imagesets.own_cubes import read_cube
from nbhelpers.imagesets.reader import read_image
began = time.monotonic()
for read in (read_image, read_cube):
    try:
        print("read", getattr(read(Path(sys.argv[1])), "shape", "cube"))
    except ValueError as error:
        print(type(error).__name__, error)
# not ru_maxrss, which begins with the memory of the process that started this one
most = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(time.monotonic() - began, int(most[1]) / 2**20)
"""


def measured(path):
    """What both readers say, the seconds they took together, and the most GiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *words, numbers = done.stdout.splitlines()
    seconds, memory = map(float, numbers.split())
    assert seconds < 10 and memory < 1, (words, seconds, memory)
    return words


def tiff_of_one_piece(path, compression, piece, side=16, tile=0):
    """A grey TIFF of 8 bit whose one strip or tile is ``piece``."""
    tags = [(256, side), (257, side), (258, 8), (259, compression), (262, 1), (277, 1)]
    tags += [(322, tile), (323, tile)] if tile else [(278, side)]
    data = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags += [(324, data), (325, len(piece))] if tile else [(273, data), (279, len(piece))]
    content = b"II*\x00" + struct.pack("<IH", 8, len(tags))
    content += b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in sorted(tags))
    path.write_bytes(content + bytes(4) + piece)
    return path


@pytest.mark.parametrize("compression", ["zlib", "zstd", "lzma", "lzw"])
@pytest.mark.parametrize("tile", [0, 65536])
def test_a_piece_is_never_unpacked_beyond_what_was_said(tmp_path, compression, tile):
    import imagecodecs

    code = {"zlib": 8, "zstd": 50000, "lzma": 34925, "lzw": 5}[compression]
    piece = getattr(imagecodecs, f"{compression}_encode")(bytes(2**24))
    path = tiff_of_one_piece(tmp_path / "bomb.tif", code, piece, tile=tile)
    real = tifffile.TIFF.DECOMPRESSORS[code]
    assert len(real(piece)) == 2**24
    try:
        assert read_image(path).shape == (1, 16, 16) and not tile
    except UnreadableImageError as error:
        assert "damaged" in str(error)


def test_a_small_file_of_a_huge_piece_takes_neither_time_nor_memory(tmp_path):
    packer = zlib.compressobj(1)
    piece = b"".join(packer.compress(bytes(2**20)) for _ in range(1200)) + packer.flush()
    path = tiff_of_one_piece(tmp_path / "bomb.tif", 8, piece)
    assert all("damaged" in word or "cannot be read" in word for word in measured(path))


def test_a_jpeg_in_a_tiff_that_says_it_is_huge_is_refused(tmp_path):
    import imagecodecs

    piece = bytearray(imagecodecs.jpeg_encode(np.zeros((16, 16), np.uint8)))
    at = piece.index(b"\xff\xc0")
    for side in (13000, 65000):
        piece[at + 5 : at + 9] = struct.pack(">HH", side, side)
        path = tiff_of_one_piece(tmp_path / "bomb.tif", 7, bytes(piece))
        for read in (read_image, read_cube):
            with pytest.raises(UnreadableImageError, match=r"bomb\.tif"):
                read(path)


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def black_png(path, width, height, depth=8, colour=0):
    samples = {0: 1, 2: 3, 3: 1}[colour]
    packer = zlib.compressobj(1)
    lines = bytes((1 + width * samples * depth // 8) * 10)
    row = b"".join(packer.compress(lines) for _ in range(height // 10)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + palette
        + chunk(b"IDAT", row)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("form", [(8, 2), (16, 0), (8, 3)])
def test_a_png_that_is_too_large_in_memory_is_refused_by_its_size(tmp_path, form):
    black_png(tmp_path / "large.png", 13000, 13000, *form)
    with pytest.raises(UnreadableImageError, match="13000 x 13000 px, a whole slide"):
        read_image(tmp_path / "large.png")


def test_the_largest_png_that_is_read_stays_below_a_gibibyte(tmp_path):
    black_png(tmp_path / "large.png", 13000, 13000)
    assert measured(tmp_path / "large.png")[0] == "read (1, 13000, 13000)"


def test_a_jpeg_that_goes_over_its_pixels_for_ever_is_refused(tmp_path):
    path = tmp_path / "scans.jpg"
    Image.fromarray(STACK[0]).save(path, progressive=True)
    content = path.read_bytes()
    path.write_bytes(content[:-2] + content[content.rindex(b"\xff\xda") : -2] * 500 + b"\xff\xd9")
    with pytest.raises(UnreadableImageError, match="too often"):
        read_image(path)


def test_thousands_of_pages_that_lead_nowhere_are_refused_at_once(tmp_path):
    pages = b"".join(struct.pack("<HI", 0, 8 + 6 * at) for at in range(1, 200_000))
    (tmp_path / "pages.tif").write_bytes(b"II*\x00" + struct.pack("<I", 8) + pages)
    count = struct.pack("<HHHII", 1, 273, 4, 50_000_000, 100) + bytes(4)
    (tmp_path / "values.tif").write_bytes(b"II*\x00" + struct.pack("<I", 8) + count + bytes(200))
    for name in ("pages.tif", "values.tif"):
        for read in (read_image, read_cube):
            with pytest.raises(UnreadableImageError, match="leads nowhere"):
                read(tmp_path / name)


@pytest.mark.parametrize(
    "about",
    [
        ome(z=10**9),
        ome(planes='<TiffData IFD="0" PlaneCount="1000000000"/>'),
        ome(planes='<TiffData FirstZ="1000000000" IFD="0" PlaneCount="1"/>'),
        "ImageJ=1.54f\nimages=1000000000\nslices=1000000000\n",
        '{"shape": [1000000000, 20, 24]}',
    ],
)
def test_planes_without_end_are_refused_at_once(tmp_path, about):
    write_pages(tmp_path / "z.tif", STACK[:1], about)
    for read in (read_image, read_cube):
        with pytest.raises(UnreadableImageError, match=r"z\.tif"):
            read(tmp_path / "z.tif")


@pytest.mark.skipif(sys.platform != "linux", reason="pipes and devices are files on Unix only")
def test_pipes_and_devices_are_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "zero.tif").symlink_to("/dev/zero")
    for name in ("pipe.tif", "zero.tif"):
        for read in (read_image, read_cube):
            with pytest.raises(UnreadableImageError, match="pipe, socket or device"):
                read(tmp_path / name)
