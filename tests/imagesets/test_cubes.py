"""Cubes: every source gives the same axes, the user's stacks are read or named, and sick sets are
refused in words.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core import splits
from nbhelpers.core.errors import (
    InputError,
    ParameterError,
    SplitError,
    TableError,
    UnreadableImageError,
)
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets import cubes, own_cubes, vnc
from nbhelpers.imagesets.stacks import write_stack
from nbhelpers.phantoms.synapse import make_synapse_cubes, make_synapse_volume

SHAPE = (6, 32, 32)
VOXEL = (40.0, 16.0, 16.0)


def cube(seed, shape=SHAPE):
    """Sections that resemble their neighbours."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), (1, 1, 1))
    return (np.clip(noise / noise.std() * 40 + 128, 1, 255)).astype(np.uint8)


def an_image_set(pixels, **columns):
    count = len(pixels)
    table = pd.DataFrame(
        {
            "id": [f"c{at}" for at in range(count)],
            "label": np.resize(["a", "b"], count),
            "group": [f"n{at}" for at in range(count)],
        }
        | columns
    )
    return ImageSet(
        "some cubes",
        table,
        np.asarray(pixels)[:, None],
        ("a", "b"),
        "none",
        True,
        pixel_size_nm=VOXEL,
    )


@pytest.fixture
def images():
    return an_image_set([cube(seed) for seed in range(12)])


# ---- sources


def test_phantoms_are_drawn_once_and_kept(tmp_path, monkeypatch):
    from nbhelpers.phantoms import synapse

    about = {
        "data_folder": tmp_path,
        "shape_px": SHAPE,
        "voxel_nm": VOXEL,
        "phantom": {"count": 4, "neurons": 4},
    }
    images = cubes.load_cubes("phantom", **about)
    assert (
        images.pixels.shape == (4, 1, *SHAPE) and images.pixel_size_nm == VOXEL and images.synthetic
    )
    assert images.table["dense_sections"].str.len().eq(6).all()
    monkeypatch.setattr(synapse, "make_synapse_cubes", None)
    assert cubes.load_cubes("phantom", **about).content_hash == images.content_hash
    with pytest.raises(TypeError):
        other = {"phantom": {"count": 4, "neurons": 4, "cue": "all"}}
        cubes.load_cubes("phantom", **about | other)  # other cubes are drawn anew


@given(st.integers(2, 6), st.integers(16, 32))
@settings(max_examples=10, deadline=None)
def test_the_middle_of_larger_cubes_is_kept(tmp_path_factory, depth, side):
    images = an_image_set([cube(seed) for seed in range(3)])
    found = cubes.central(images, (depth, side, side), tmp_path_factory.mktemp("middle"))
    z = (6 - depth) // 2
    y = (32 - side) // 2
    assert (
        found.pixels[:, 0] == images.pixels[:, 0, z : z + depth, y : y + side, y : y + side]
    ).all()
    assert (found.content_hash == images.content_hash) == ((depth, side) == (6, 32))


def test_smaller_cubes_are_refused(images, tmp_path):
    with pytest.raises(
        InputError, match="6 sections of 32 x 32 px, smaller than the 8 sections.*sections to 6"
    ):
        cubes.central(images, (8, 32, 32), tmp_path)


@pytest.mark.parametrize(
    ("wrong", "named"), [({"data": "tiff"}, "data"), ({"data": "folder"}, "data_dir")]
)
def test_parameters_are_named(tmp_path, wrong, named):
    with pytest.raises(ParameterError, match=f"parameter {named}"):
        cubes.load_cubes(wrong["data"], data_folder=tmp_path)


def test_the_cubes_of_notebook_01_are_cropped(tmp_path, monkeypatch):
    from nbhelpers.imagesets import microns_sets

    asked = []

    def load(data_dir, data_folder, kind):
        asked.append((data_dir, data_folder, kind))
        return an_image_set([cube(seed) for seed in range(4)])

    monkeypatch.setattr(microns_sets, "_load", load)
    images = cubes.load_cubes("microns", data_folder=tmp_path, shape_px=(4, 24, 24))
    assert images.pixels.shape == (4, 1, 4, 24, 24)
    assert asked == [("", tmp_path, "cubes")]


# ---- the user's stacks


def write(folder, pixels, name, **more):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / name, pixels, **more)


@pytest.fixture
def own(tmp_path):
    """A folder with a CSV of eight stacks; ``own(name=pixels)`` replaces some of them."""

    def make(voxel=VOXEL, **changed):
        rows = []
        for at in range(8):
            name = f"c{at}.tif"
            pixels = changed.get(f"c{at}", cube(at))
            sizes = zip("ZYX", changed.get(f"v{at}", voxel), strict=True)
            write(
                tmp_path,
                pixels,
                name,
                ome=True,
                metadata={
                    "axes": "ZYX",
                    **{f"PhysicalSize{axis}": side / 1000 for axis, side in sizes},
                },
            )
            rows.append(f"{name},{'ab'[at % 2]},n{at // 2}-{at % 2}")
        (tmp_path / "labels.csv").write_text("path,label,group\n" + "\n".join(rows))
        return tmp_path / "labels.csv"

    return make


def test_own_stacks_with_their_neurons_and_voxels(own):
    images = own_cubes.load_own_cubes(own())
    assert (
        images.pixels.shape == (8, 1, *SHAPE)
        and images.pixel_size_nm == VOXEL
        and images.classes == ("a", "b")
    )
    assert (images.pixels[3, 0] == cube(3)).all() and images.table["group"].tolist()[2] == "n1-0"
    assert not images.synthetic and not len(images.failures)


def test_stacks_whose_membranes_look_bright_are_told_by_class_and_kept(own):
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    sections = []
    for at in range(8):
        noise = np.random.default_rng(at).normal(0, 8, SHAPE)
        lines = np.abs((y * np.cos(at) + x * np.sin(at)) % 12 - 6) < 1.5  # dark on bright
        sections.append(np.clip(170 - 90 * lines + noise, 0, 255).astype(np.uint8))
    usual = own_cubes.load_own_cubes(own(**{f"c{at}": sections[at] for at in range(8)}))
    assert "in_doubt" not in usual.table
    turned = {f"c{at}": 255 - sections[at] if at % 2 else sections[at] for at in range(8)}
    images = own_cubes.load_own_cubes(own(**turned))
    assert len(images) == 8
    assert "of class b membranes look bright" in images.source
    assert "may give the class away" in images.source
    assert images.table.groupby("in_doubt")["label"].unique().apply(list).to_dict() == {
        False: ["a"],
        True: ["b"],
    }


def test_voxels_of_imagej_stacks_and_of_silent_ones(tmp_path):
    write(
        tmp_path,
        cube(0),
        "fiji.tif",
        imagej=True,
        resolution=(1 / 0.008, 1 / 0.008),
        metadata={"axes": "ZYX", "spacing": 0.04, "unit": "um"},
    )
    write(tmp_path, cube(0), "silent.tif")
    assert own_cubes.read_cube(tmp_path / "fiji.tif")[1] == pytest.approx((40, 8, 8), rel=1e-4)
    assert own_cubes.read_cube(tmp_path / "silent.tif")[1] is None


def test_mixed_shapes_are_refused_by_name(own):
    with pytest.raises(
        InputError,
        match=r"c5.tif: its shape is 5 sections of 32 x 32 px.*most cubes have 6.*\(1 of 8",
    ):
        own_cubes.load_own_cubes(own(c5=cube(5, (5, 32, 32))))


def test_mixed_voxel_sizes_are_refused_by_name(own):
    with pytest.raises(
        InputError,
        match=r"c2.tif: its voxel size \(z, y, x\) is 40 x 8 x 8 nm.*40 x 16 x 16.*Resample",
    ):
        own_cubes.load_own_cubes(own(v2=(40.0, 8.0, 8.0)))


def test_16_bit_stacks_fill_the_range_of_greys_alike_and_missing_pixels_stay_0(own):
    """12-bit greys in 16 bit end at 0.06 of the range: less than what augmentation adds, so little
    would be learnt.
    """
    deep = {f"c{at}": cube(at).astype(np.uint16) * 16 for at in range(8)}
    deep["c3"][2, :4] = 0
    images = own_cubes.load_own_cubes(own(**deep))
    before = np.stack(list(deep.values()))[:, None]
    assert (
        images.pixels.dtype == np.uint8
        and np.percentile(images.pixels, 0.2) < 10
        and images.pixels.max() == 255
    )
    assert ((images.pixels == 0) == (before == 0)).all() and (images.pixels[3, 0, 2, :4] == 0).all()
    assert np.corrcoef(images.pixels.ravel(), before.ravel())[0, 1] > 0.99
    assert "16-bit values scaled to 8 bit for the whole set" in images.source


def test_copies_under_two_labels_or_neurons_are_listed_and_without_neurons_are_one_group(own):
    table = own(c3=cube(0), c4=cube(2))  # c0 and c3: two labels; c2 and c4: two neurons
    images = own_cubes.load_own_cubes(table)
    why = dict(zip(images.failures["file"], images.failures["why"], strict=True))
    assert set(why) == {"c0.tif", "c3.tif", "c2.tif", "c4.tif"} and len(images) == 4
    assert "under another label" in why["c3.tif"] and "in another group" in why["c4.tif"]
    table.write_text("\n".join(line.rpartition(",")[0] for line in table.read_text().splitlines()))
    images = own_cubes.load_own_cubes(table)
    groups = dict(zip(images.ids, images.groups, strict=True))
    assert (
        groups["c2.tif"] == groups["c4.tif"] == "c2.tif"
        and len(set(groups.values())) == 5
        and len(images) == 6
    )
    assert set(images.groups) <= set(
        images.ids
    )  # by which notebook 05 tells that no neuron is known


def test_black_and_nan_stacks_are_listed_and_not_trained(own):
    holes = cube(0).astype(np.float32)
    holes[0, 0, 0] = np.nan
    images = own_cubes.load_own_cubes(
        own(c1=np.zeros(SHAPE, np.uint8), c4=holes, c6=holes * 0 + 1.5)
    )
    why = dict(zip(images.failures["file"], images.failures["why"], strict=True))
    assert len(images) == 5 and set(why) == {"c1.tif", "c4.tif", "c6.tif"}
    assert (
        "all black" in why["c1.tif"]
        and "1 pixels are NaN" in why["c4.tif"]
        and "NaN" in why["c6.tif"]
    )


def test_a_class_without_a_usable_stack_is_refused(own):
    black = np.zeros(SHAPE, np.uint8)
    with pytest.raises(TableError, match="none of the 4 images of class b can be used.*all black"):
        own_cubes.load_own_cubes(own(c1=black, c3=black, c5=black, c7=black))


def test_a_single_class_is_refused(own):
    table = own()
    table.write_text(table.read_text().replace(",b,", ",a,"))
    with pytest.raises(TableError, match="every image has the label a"):
        own_cubes.load_own_cubes(table)


@pytest.mark.parametrize(
    ("pixels", "more", "what"),
    [
        (cube(0)[0], {}, "grey stack is"),
        (np.zeros((3, 16, 16, 3), np.uint8) + 7, {"photometric": "rgb"}, "grey stack is"),
        (cube(0), {"imagej": True, "metadata": {"axes": "CYX"}}, r"axes CYX.*Re-order"),
        (
            cube(0)[:4],
            {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"]},
            "grey stack is",
        ),
        (cube(0).astype(np.float32), {}, "floating point"),
        (np.full(SHAPE, 9, np.uint8), {}, "constant"),
    ],
)
def test_what_is_no_grey_stack_is_named(tmp_path, pixels, more, what):
    write(tmp_path, pixels, "it.tif", **more)
    with pytest.raises(UnreadableImageError, match=what):
        own_cubes.read_cube(tmp_path / "it.tif")


def test_cut_and_damaged_stacks_are_named(tmp_path):
    (tmp_path / "it.tif").write_bytes(b"II*\x00 and no more")
    with pytest.raises(UnreadableImageError, match="it.tif: the TIFF is cut or damaged"):
        own_cubes.read_cube(tmp_path / "it.tif")
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(UnreadableImageError, match="text.tif.*cannot be read as a TIFF stack"):
        own_cubes.read_cube(tmp_path / "text.tif")
    for name, more in (("fiji.tif", {"imagej": True}), ("plain.tif", {"compression": "zlib"})):
        write(tmp_path, cube(0), name, **more)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: 2 * len(whole) // 3])
        with pytest.raises(UnreadableImageError, match=name):
            own_cubes.read_cube(tmp_path / name)


def test_a_folder_in_place_of_the_table(tmp_path):
    with pytest.raises(TableError, match="Give a CSV"):
        own_cubes.load_own_cubes(tmp_path)


# ---- quality control


def test_good_cubes_pass_whole(images):
    found, table = cubes.quality_control(images)
    assert found is images and table["class"].tolist() == [
        "a",
        "b",
        "all",
        "unrelated sections",
    ]
    assert table["continuity, median"].iloc[-1] < 0.1 < 0.3 < table["continuity, median"].iloc[0]
    assert (
        "12 cubes of 6 sections of 32 x 32 px, voxels of 40 x 16 x 16 nm"
        in cubes.quality_sentence(found, table)
    )


def test_the_40_section_mistake_is_refused_with_its_explanation():
    """The published mistake: positions in voxels of 4 x 4 x 40 nm taken for nm, so each plane steps
    40 sections.
    """
    volume = make_synapse_volume((212, 104, 104), neurons=4, synapses=4, seed=1).pixels
    starts = [(z, y, x) for z in range(0, 12, 2) for y in (0, 56) for x in (0, 56)]
    right = an_image_set([volume[z : z + 6, y : y + 48, x : x + 48] for z, y, x in starts])
    wrong = an_image_set([volume[z : z + 240 : 40, y : y + 48, x : x + 48] for z, y, x in starts])
    assert wrong.pixels.shape[1:] == right.pixels.shape[1:]
    cubes.quality_control(right)
    with pytest.raises(
        InputError, match="do not look alike.*4 x 4 x 40 nm are taken for nm.*steps 40 sections"
    ):
        cubes.quality_control(wrong)


def test_one_class_with_the_40_section_mistake_is_refused_too():
    """Else a network would tell the classes apart by how well their sections go together."""
    pixels = np.stack([cube(seed) for seed in range(24)])
    order = np.random.default_rng(0)
    pixels[1::2] = np.stack(
        [pixels[order.permutation(np.arange(1, 24, 2)), at] for at in range(SHAPE[0])], axis=1
    )
    with pytest.raises(
        InputError, match="neighbouring sections of class b do not look alike.*steps 40 sections"
    ):
        cubes.quality_control(an_image_set(pixels))


def test_black_cubes_are_listed_and_not_trained(images):
    pixels = np.array(images.pixels[:, 0])
    pixels[2] = 0
    pixels[5, :3] = 0
    found, table = cubes.quality_control(an_image_set(pixels))
    assert set(images.ids) - set(found.ids) == {"c2", "c5"} and found.failures["file"].tolist() == [
        "c2",
        "c5",
    ]
    assert (
        "all black" in found.failures["why"][0] and "50% of its pixels" in found.failures["why"][1]
    )
    assert table["cubes"].iloc[2] == 10


def test_cubes_on_disk_stay_there_when_some_are_left_out(tmp_path, monkeypatch):
    """One black cube among 100,000 must not load the other 99,999."""
    pixels = np.stack([cube(seed) for seed in range(40)])[:, None]
    pixels[3] = 0
    np.save(tmp_path / "cubes.npy", pixels)
    whole = an_image_set(pixels[:, 0])
    onto = ImageSet(
        "cubes",
        whole.table,
        np.load(tmp_path / "cubes.npy", mmap_mode="r"),
        ("a", "b"),
        "none",
        True,
    )
    most = []
    index = np.memmap.__getitem__

    def watched(array, key):
        found = index(array, key)
        most.append(
            0 if isinstance(found.base, np.memmap) else found.size
        )  # a view of the file is not read
        return found

    monkeypatch.setattr(np.memmap, "__getitem__", watched)
    found, _ = cubes.quality_control(onto)
    assert max(most) <= pixels[0].size and len(found) == 39 and "c3" not in found.ids
    monkeypatch.undo()
    assert np.array_equal(np.asarray(found.pixels), np.delete(pixels, 3, axis=0))
    assert found.content_hash not in ("", onto.content_hash)


def test_a_class_that_is_all_black_leaves_a_single_class(images):
    pixels = np.array(images.pixels[:, 0])
    pixels[1::2] = 0
    with pytest.raises(
        InputError, match="every cube is of the class a, after 6 black ones were left out"
    ):
        cubes.quality_control(an_image_set(pixels))


def test_a_set_of_black_cubes_only_is_refused(images):
    with pytest.raises(InputError, match="there is no cube, after 12 black ones"):
        cubes.quality_control(an_image_set(np.zeros_like(images.pixels[:, 0])))


def test_what_notebook_01_measured_is_believed(images):
    table = images.table.assign(zero_fraction=0.0, continuity=0.01)
    with pytest.raises(InputError, match="correlation is 0.01"):
        cubes.quality_control(ImageSet("cubes", table, images.pixels, images.classes, "none", True))


def test_patches_are_no_cubes(images):
    flat = ImageSet("flat", images.table, images.pixels[:, :, 0], images.classes, "none", True)
    with pytest.raises(InputError, match="two sections or more"):
        cubes.measure_quality(flat)


def test_too_few_neurons_of_a_class_cannot_be_split(images):
    few = images.table.assign(
        group=np.where(images.table["label"] == "a", "n0", images.table["group"])
    )
    few = ImageSet("cubes", few, images.pixels, images.classes, "none", True)
    with pytest.raises(SplitError, match="class a: it has 1 groups of images"):
        splits.hold_out(few, seed=0)


# ---- new cubes


@pytest.fixture
def new(images, tmp_path):
    """A function that writes cubes by name, (pixels, voxel), and reads the folder, or another
    place, for prediction by a network that was trained on ``images``.
    """
    _, quality = cubes.quality_control(images)

    def read(path=None, known=images, **named):
        for name, (pixels, voxel) in named.items():
            write_stack(tmp_path / "new" / f"{name}.tif", pixels[None], voxel)
        place = path or tmp_path / "new"
        return cubes.load_unlabelled_cubes(place, known, quality, voxel_nm=VOXEL)

    return read


def test_new_cubes_are_cropped_to_those_of_the_training(new, tmp_path):
    large = cube(30, (9, 40, 36))
    write(tmp_path / "new", cube(31), "sub/silent.tif")
    found = new(large=(large, VOXEL), same=(cube(32), VOXEL))
    assert found.ids.tolist() == ["large.tif", "same.tif", "sub/silent.tif"]
    assert np.array_equal(found.pixels[0, 0], large[1:7, 4:36, 2:34])
    assert np.array_equal(found.pixels[2, 0], cube(31))
    assert (found.labels == -1).all() and found.classes == ("a", "b")
    assert "1 of 3 stacks do not say" in found.source and not found.synthetic
    csv = tmp_path / "some.csv"
    csv.write_text("file,batch\nnew/same.tif,1\nnew/gone.tif,2\n")
    found = new(csv)
    assert found.ids.tolist() == ["new/same.tif"]
    assert found.failures["file"].tolist() == ["new/gone.tif"]


def test_new_cubes_that_do_not_fit_are_named_and_the_rest_is_read(new, tmp_path):
    black = cube(41)
    black[:2] = 0
    jumping = np.stack([cube(50 + at)[at] for at in range(6)])
    write(tmp_path / "new", np.zeros(SHAPE, np.uint8), "all_black.tif")
    (tmp_path / "new" / "notes.png").write_bytes(b"no image")
    found = new(
        good=(cube(40), VOXEL),
        flat=(cube(42)[:5], VOXEL),
        narrow=(cube(43)[:, :, 1:], VOXEL),
        fine=(cube(44), (40.0, 8.0, 8.0)),
        black=(black, VOXEL),
        jumping=(jumping, VOXEL),
    )
    assert found.ids.tolist() == ["good.tif"]
    said = dict(zip(found.failures["file"], found.failures["why"], strict=True))
    assert set(said) == {
        "all_black.tif",
        "black.tif",
        "fine.tif",
        "flat.tif",
        "jumping.tif",
        "narrow.tif",
        "notes.png",
    }
    assert "5 sections of 32 x 32 px, smaller than the 6 sections of 32 x 32" in said["flat.tif"]
    assert "40 x 8 x 8 nm, and those of the training cubes are 40 x 16 x 16" in said["fine.tif"]
    assert said["black.tif"] == "33% of its pixels are black."
    assert "neighbouring sections do not look alike: their correlation is" in said["jumping.tif"]
    assert (found.failures["fix"] != "").all()


@pytest.mark.parametrize("side, fits", [(16.006, True), (15.86, True), (16.3, False)])
def test_voxels_of_one_size_but_for_a_measurement_are_alike(new, own, side, fits):
    found = new(other=(cube(44), (40.0, side, side)))
    assert (len(found), len(found.failures)) == (fits, not fits)
    if fits:
        assert own_cubes.load_own_cubes(own(v2=(40.0, side, side))).pixel_size_nm == VOXEL
    else:
        with pytest.raises(InputError, match="40 x 16.3 x 16.3 nm, and most cubes have 40 x 16 x"):
            own_cubes.load_own_cubes(own(v2=(40.0, side, side)))


def test_voxels_do_not_count_where_those_of_the_training_are_not_known(new, images):
    found = new(known=replace(images, pixel_size_nm=None), fine=(cube(44), (40.0, 8.0, 8.0)))
    assert len(found) == 1 and not len(found.failures)


def test_new_cubes_of_which_none_can_be_used(new, tmp_path):
    found = new(flat=(cube(42)[:5], VOXEL))
    assert found.pixels.shape == (0, 1, *SHAPE) and found.failures["file"].tolist() == ["flat.tif"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="no images in this folder"):
        new(tmp_path / "empty")
    with pytest.raises(InputError, match="does not exist"):
        new(tmp_path / "nowhere")


def test_new_16_bit_cubes_come_to_the_greys_of_the_training(new, images):
    deep = cube(60).astype(np.uint16) * 9 + 100
    deep[0, :5] = 0
    found = new(deep=(deep, VOXEL), plain=(cube(61), VOXEL))
    assert "as in the training cubes" in found.source and found.pixels.dtype == np.uint8
    assert (found.pixels[0, 0, 0, :5] == 0).all()
    made = np.percentile(found.pixels[0][found.pixels[0] > 0], (1, 99))
    assert np.allclose(made, np.percentile(images.pixels, (1, 99)), atol=3)
    assert np.array_equal(found.pixels[1, 0], cube(61))


def test_new_cubes_with_inverted_greys_are_refused(tmp_path):
    shape = {"shape_px": (4, 128, 128), "voxel_nm": (40, 8, 8)}
    drawn = make_synapse_cubes(8, neurons=4, **shape, seed=1).pixels[:, 0]
    known = an_image_set(drawn)
    _, quality = cubes.quality_control(known)
    for at, pixels in enumerate(drawn[:5]):
        write_stack(tmp_path / "new" / f"{at}.tif", 255 - pixels[None], VOXEL)
    found = cubes.load_unlabelled_cubes(tmp_path / "new", known, quality, voxel_nm=VOXEL)
    assert not len(found) and found.failures["why"].str.startswith("the grey values are inv").all()
    assert "inverse" not in found.source  # of none that is left
    about = {"voxel_nm": VOXEL, "polarity": "as given"}
    found = cubes.load_unlabelled_cubes(tmp_path / "new", known, quality, **about)
    assert len(found) == 5 and not len(found.failures) and "in_doubt" not in found.table
    for at, pixels in enumerate(drawn[1:5], 1):
        write_stack(tmp_path / "new" / f"{at}.tif", pixels[None], VOXEL)
    found = cubes.load_unlabelled_cubes(tmp_path / "new", known, quality, voxel_nm=VOXEL)
    assert found.ids.tolist() == ["1.tif", "2.tif", "3.tif", "4.tif"]
    assert found.failures["file"].tolist() == ["0.tif"]


def test_example_cubes_are_read_as_they_were_drawn(new, images, tmp_path):
    cubes.write_example_cubes(tmp_path / "new", images)
    found = new()
    assert np.array_equal(found.pixels, images.pixels)
    assert sorted(found.failures["file"]) == [
        "all_black.tif",
        "cut_short.tif",
        "too_few_sections.tif",
    ]


# ---- real EM


@pytest.fixture
def stack(monkeypatch):
    """Noise with dark balls in ten sections, and their mask."""
    draw = np.random.default_rng(3)
    z, y, x = np.ogrid[:10, :256, :256]
    mask = np.zeros((10, 256, 256), bool)
    for _ in range(14):
        centre = draw.uniform((2, 20, 20), (8, 236, 236))
        mask |= (4 * (z - centre[0])) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 9**2
    pixels = np.where(mask, 50, draw.integers(90, 250, mask.shape)).astype(np.uint8)
    monkeypatch.setattr(vnc, "read_vnc", lambda kind, **where: (pixels, mask))
    return pixels, mask


def test_cubes_of_the_nerve_cord_hold_what_the_table_says(stack):
    pixels, mask = stack
    images = vnc.load_vnc_cubes("vnc_synapse", data_folder="nowhere", shape_px=(4, 32, 32))
    assert images.pixels.shape[1:] == (1, 4, 32, 32) and images.pixel_size_nm == vnc.VOXEL_NM
    cause = vnc.cause_masks(images, data_folder="nowhere")
    for at, row in enumerate(images.table.itertuples()):
        here = np.s_[
            row.first_section : row.first_section + 4,
            row.y_px - 16 : row.y_px + 16,
            row.x_px - 16 : row.x_px + 16,
        ]
        assert (images.pixels[at, 0] == pixels[here]).all() and (cause[at] == mask[here]).all()
        assert (
            0 <= row.first_section <= 6 and row.first_section <= row.section < row.first_section + 4
        )
        assert mask[here].any() == (row.label == "synapse")
    assert images.table.groupby("object")["block"].nunique().max() == 1
    counts = images.table.groupby(["block", "label"]).size().unstack()
    assert (counts["other"] == 2 * counts["synapse"]).all()


def test_cubes_of_two_blocks_share_no_pixel(stack):
    table = vnc.load_vnc_cubes("vnc_synapse", data_folder="nowhere", shape_px=(4, 32, 32)).table
    covered = {block: np.zeros((256, 256), int) for block in table["block"]}
    for row in table.itertuples():
        covered[row.block][row.y_px - 16 : row.y_px + 16, row.x_px - 16 : row.x_px + 16] = 1
    assert sum(covered.values()).max() == 1


@pytest.mark.parametrize("shape", [(1, 32, 32), (21, 32, 32), (4, 32, 48), (4, 32)])
def test_shapes_of_the_nerve_cord_are_checked(stack, shape):
    with pytest.raises(ParameterError, match="shape_px"):
        vnc.load_vnc_cubes("vnc_synapse", data_folder="nowhere", shape_px=shape)


@pytest.mark.realdata
@pytest.mark.parametrize("kind", ["synapse", "mitochondrion"])
def test_cubes_of_the_public_stack_pass(real_data, tmp_path, kind):
    images = cubes.load_cubes(
        f"vnc_{kind}",
        data_folder=tmp_path,
        data_dir=str(real_data("vnc_sstem")),
        shape_px=(8, 128, 128),
    )
    found, table = cubes.quality_control(images)
    assert (
        len(found) == len(images) > 150
        and images.table.loc[images.labels == 1, "object"].nunique() > 30
    )
    assert table["continuity, median"].iloc[2] > 0.2
