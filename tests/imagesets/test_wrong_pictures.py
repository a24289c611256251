"""The wrong kind of picture is refused by name: grey images for masks, drawings for stained tissue,
several objects for one; and nothing of the right kind is.
"""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from nbhelpers.audit.shortcuts import families
from nbhelpers.core.errors import UnreadableImageError
from nbhelpers.imagesets.glomeruli import load_own_glomeruli
from nbhelpers.imagesets.glomerulus_files import is_drawing, prepare_glomerulus
from nbhelpers.imagesets.marks import drawn_on
from nbhelpers.imagesets.masks import binarise
from nbhelpers.imagesets.synapses import load_own_synapses
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.phantoms.spine import make_spine_phantoms
from nbhelpers.phantoms.synapse import load_phantom_synapses

Y, X = np.mgrid[:250, :250]


@pytest.fixture(scope="module")
def glomeruli():
    return np.array(load_phantom_glomeruli(24, 0).pixels)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return np.array(load_phantom_synapses(12, tmp_path_factory.mktemp("s"), seed=3).pixels)


def jpeg(image, quality):
    """(y, x) or (y, x, 3) uint8 as a JPEG gives it back."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def discs(*centres, radius=18):
    inside = np.zeros(X.shape, bool)
    for y, x in centres:
        inside |= (Y - y) ** 2 + (X - x) ** 2 < radius**2
    return inside.astype(np.uint8) * 255


# masks


def test_a_mask_with_several_objects_is_refused():
    five = discs((40, 40), (40, 200), (125, 120), (200, 60), (200, 200))
    with pytest.raises(UnreadableImageError, match=r"five\.png: several objects.*one object per"):
        binarise(five[None], "five.png")
    beside = np.maximum(discs((100, 100), radius=40), discs((100, 200), radius=20))
    with pytest.raises(UnreadableImageError, match="several objects"):
        binarise(beside[None], "x")
    noise = (np.random.default_rng(0).random((250, 250)) < 0.3).astype(np.uint8)
    with pytest.raises(UnreadableImageError, match="several objects"):
        binarise(noise[None], "x")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 3))
def test_specks_beside_a_spine_do_not_matter(seed, count, side):
    draw = np.random.default_rng(seed)
    mask = discs((125, 125), radius=60)
    for top, left in draw.integers(0, 247, (count, 2)):
        mask[top : top + side, left : left + side] = 255
    assert np.array_equal(binarise(mask[None], "x"), mask > 0)


def grey_images():
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 7, X.shape)
    spot = np.exp(-((Y - 120) ** 2 + (X - 120) ** 2) / 900)
    yield "fluorescence", 40 + 0.3 * X + 120 * spot + noise
    yield "on black", 255 * spot
    yield "saturated", 4 * 255 * spot
    yield "saturated and noisy", 4 * 255 * spot + abs(noise)
    yield "noise", draw.integers(0, 256, X.shape)
    yield "normal noise", draw.normal(128, 30, X.shape)
    yield "gradient", X
    yield "slope with ends", np.clip(2 * X - 125, 0, 255)
    yield "steeper slope", np.clip(4 * X - 400, 0, 255)
    yield "16 bit", (1000 + 3000 * spot) * 10 + 70 * noise
    spine = make_spine_phantoms(3, 1)[0][2] / 255
    light = ndimage.gaussian_filter(spine, 2) * 40 + 3
    yield "a spine as a microscope sees it", draw.poisson(light) * 5


@pytest.mark.parametrize(("name", "values"), grey_images(), ids=lambda one: str(one)[:20])
def test_a_grey_image_is_no_mask(name, values):
    kind = np.uint16 if values.max() > 2000 else np.uint8
    pixels = np.clip(values, 0, np.iinfo(kind).max).astype(kind)
    words = r"grey\.png: this is a grey image, not a mask: segment it first"
    with pytest.raises(UnreadableImageError, match=words):
        binarise(pixels[None], "grey.png")


def test_phantoms_of_other_things_are_no_masks(glomeruli, patches):
    for image in [*patches[:, 0], *glomeruli[:, 1]]:
        with pytest.raises(UnreadableImageError, match="grey image"):
            binarise(image[None], "x")
    for large in (500, 1000):  # so smooth that neighbours are equal
        y, x = np.mgrid[:large, :large] / large - 0.5
        spot = (255 * np.exp(-(x**2 + y**2) * 18)).astype(np.uint8)
        with pytest.raises(UnreadableImageError, match="grey image"):
            binarise(spot[None], "x")


CHANGES = {
    "none": lambda image: image,
    "JPEG": lambda image: Image.fromarray(jpeg(np.asarray(image), 50)),
    "coarse JPEG": lambda image: Image.fromarray(jpeg(np.asarray(image), 20)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "smaller": lambda image: image.resize((125, 125)),
    "larger": lambda image: image.resize((600, 600), Image.Resampling.BICUBIC),
    "larger, bilinear": lambda image: image.resize((1000, 1000), Image.Resampling.BILINEAR),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("matched", [False, True])
def test_masks_with_soft_edges_are_read(change, matched):
    for mask in make_spine_phantoms(40, 7, matched=matched)[0]:
        soft = np.asarray(change(Image.fromarray(mask)))
        assert np.array_equal(binarise(soft[None], "x"), soft > soft.max() / 2)


# stained sections


def label_tile():
    """Three flat colours, as QuPath exports labels."""
    colours = np.array([[0, 0, 0], [200, 0, 0], [150, 200, 150]], np.uint8)
    five = discs((40, 40), (40, 200), (125, 120), (200, 60)) > 0
    return colours[five + (X > 200).astype(int)]


def drawn_scene(bold):
    picture = Image.new("RGB", (500, 500), "white")
    pen = ImageDraw.Draw(picture)
    draw = np.random.default_rng(bold)
    for _ in range(6):
        first, last = np.sort(draw.integers(0, 500, (2, 2)), axis=0)
        pen.ellipse([*first, *last], fill=tuple(draw.integers(0, 256, 3).tolist()))
        pen.text(tuple(draw.integers(0, 400, 2).tolist()), "Glomerulus 12", fill="black")
    return np.asarray(picture.resize((250, 250)) if bold else picture)


def chart():
    steps = (Y // 25 * 7 + X // 25 * 3) % 5
    return np.asarray(
        Image.fromarray((steps * 50).astype(np.uint8)).convert("P").convert("RGB")
    ) * [[[1, 0, 1]]] + (np.array([[[0, 90, 0]]]) * (steps % 2)[..., None])


@pytest.mark.parametrize("quality", [None, 95, 75, 40])
@pytest.mark.parametrize("drawing", [label_tile(), drawn_scene(0), drawn_scene(1)])
def test_a_drawing_is_no_stained_section(drawing, quality):
    seen = jpeg(drawing, quality) if quality else drawing
    words = r"tile\.png: this is a drawing, not a stained section"
    with pytest.raises(UnreadableImageError, match=words):
        prepare_glomerulus(np.moveaxis(seen, -1, 0), "tile.png")


def test_a_heat_map_of_few_colours_is_no_stained_section():
    pixels = np.moveaxis(chart().astype(np.uint8), -1, 0)
    with pytest.raises(UnreadableImageError, match="a drawing, not a stained section"):
        prepare_glomerulus(pixels, "x")


@pytest.mark.parametrize("quality", [None, 95, 75, 30])
def test_stained_sections_are_no_drawings(glomeruli, quality):
    """Nor are they where the glomerulus is cut out onto black or white, or the image enlarged."""
    for image in glomeruli:
        rows, columns = np.indices(image.shape[1:]) - 112
        outside = rows**2 + columns**2 > 90**2
        ways = [image, image.repeat(3, 1).repeat(3, 2)]
        if quality != 30:
            ways += [np.where(outside, colour, image).astype(np.uint8) for colour in (0, 255)]
        for way in ways:
            seen = np.moveaxis(way, 0, -1)
            seen = jpeg(np.ascontiguousarray(seen), quality) if quality else seen
            assert not is_drawing(np.moveaxis(seen, -1, 0))
            assert drawn_on(np.ascontiguousarray(np.moveaxis(seen, -1, 0))) is None


# what was drawn onto an image

MARKS = {
    "a white scale bar": lambda pen: pen.rectangle([150, 200, 209, 205], fill="white"),
    "a black scale bar": lambda pen: pen.rectangle([150, 200, 209, 205], fill="black"),
    "a red arrow": lambda pen: pen.line([120, 170, 150, 200], fill="red", width=3),
    "a green outline": lambda pen: pen.ellipse([60, 60, 150, 150], outline="lime", width=2),
    "yellow letters": lambda pen: pen.text(
        (60, 60), "12 um", fill="yellow", font=ImageFont.load_default(size=30)
    ),
    "black letters": lambda pen: pen.text(
        (60, 60), "12 um", fill="black", font=ImageFont.load_default(size=30)
    ),
}


def marked(image, mark):
    """The image, (channel, y, x), with a mark, and where that is."""
    picture = Image.fromarray(np.moveaxis(image, 0, -1) if len(image) == 3 else image[0])
    before = np.asarray(picture).copy()
    mark(ImageDraw.Draw(picture))
    after = np.asarray(picture)
    changed = (after != before).reshape(*before.shape[:2], -1).any(-1)
    pixels = np.moveaxis(after, -1, 0) if len(image) == 3 else after[None]
    return np.ascontiguousarray(pixels), ndimage.find_objects(changed.astype(int))[0]


@pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
def test_what_is_drawn_onto_a_section_is_found_where_it_is(glomeruli, mark):
    for image in glomeruli:
        pixels, place = marked(image, mark)
        found = drawn_on(pixels)
        for one, other in zip(found, place, strict=True):
            assert other.start <= one.start and one.stop <= other.stop  # letters may lack an end
            assert one.stop - one.start >= 0.7 * (other.stop - other.start)


@pytest.mark.parametrize("mark", ["a white scale bar", "a black scale bar"])
def test_scale_bars_on_patches_of_synapses_are_found(patches, mark):
    def small(pen):
        pen.rectangle([60, 110, 110, 114], fill=255 if "white" in mark else 0)

    found = [drawn_on(marked(image, small)[0]) for image in patches]
    assert sum(one is not None for one in found) >= len(found) - 1
    assert not any(drawn_on(image) for image in patches)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 23), st.integers(5, 150), st.integers(5, 150), st.integers(4, 60))
def test_a_red_box_is_found_wherever_it_lies(glomeruli, number, top, left, side):
    pixels = glomeruli[number].copy()
    pixels[:, top : top + side, left : left + 5] = [[[255]], [[0]], [[0]]]
    assert drawn_on(pixels) == (slice(top, top + side), slice(left, left + 5))


def test_marked_images_stay_and_are_named_with_the_place(glomeruli, tmp_path):
    folder = tmp_path / "mine"
    for index in range(8):
        (folder / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        image = glomeruli[index]
        if index == 3:
            image, _ = marked(image, MARKS["a black scale bar"])
        picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, -1)))
        if index == 4:  # half as large again, and wider than high: places are those of the file
            picture = picture.resize((336, 336), Image.Resampling.NEAREST).crop((0, 56, 336, 280))
            ImageDraw.Draw(picture).rectangle([30, 150, 119, 161], fill="red")
        picture.save(folder / "ab"[index % 2] / f"{index}.png")
    Image.fromarray(label_tile()).save(folder / "a" / "tile-labelled.png")
    images = load_own_glomeruli(folder, tmp_path / "data")
    assert len(images) == 8
    (why,) = images.failures["why"]
    assert images.failures["file"].tolist() == ["a/tile-labelled.png"] and "a drawing" in why
    where = dict(zip(images.ids, images.table["drawn_on"], strict=True))
    assert {name for name, place in where.items() if place} == {"a/4.png", "b/3.png"}
    assert where["b/3.png"] == "y 200 to 206, x 150 to 210"
    ends = [int(number) for number in re.findall(r"\d+", where["a/4.png"])]
    assert np.abs(np.subtract(ends, [150, 162, 30, 120])).max() <= 3
    assert images.table["marked"].sum() == 2
    assert f"in 2: a/4.png at {where['a/4.png']}, b/3.png at y 200" in images.source


def test_marks_on_one_class_are_found_by_the_audit(glomeruli):
    images = load_phantom_glomeruli(24, 0)
    table = images.table.assign(marked=images.labels == 1)
    assert "marks drawn onto images" in families(replace(images, table=table), None)


def test_a_mark_on_a_synapse_patch_is_named_with_its_place(tmp_path):
    images = load_phantom_synapses(24, tmp_path / "data", neurons=8, size_px=128, seed=3)
    folder = tmp_path / "own"
    for at, label in enumerate(images.table["label"]):
        pixels = np.array(images.pixels[at, 0])
        if at == 5:
            pixels[100:104, 80:110] = 255
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / label / f"{at:02d}.png")
    found = load_own_synapses(folder, tmp_path / "data")
    assert len(found) == 24
    marked = found.table[found.table["marked"]]
    assert marked["drawn_on"].tolist() == ["y 100 to 104, x 80 to 110"]
    assert f"give the class away in 1: {marked['id'].iloc[0]} at y 100 to 104" in found.source


def test_a_neck_that_hangs_together_by_corners_is_one_spine():
    mask = np.zeros((100, 100), np.uint8)
    mask[20:45, 20:45] = 255
    mask[45:60, 45:60] = np.eye(15) * 255
    mask[60:80, 60:80] = 255
    assert binarise(mask[None], "x").sum() == np.count_nonzero(mask)
