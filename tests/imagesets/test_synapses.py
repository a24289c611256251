"""Synapse patches: every source gives an ImageSet by neuron, and what cannot be used is said, never
fixed in silence.
"""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.core.errors import (
    InputError,
    ParameterError,
    SplitError,
    TableError,
    UnreadableImageError,
)
from nbhelpers.core.files import write_json
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split, hold_out
from nbhelpers.imagesets import microns_sets, polarity, synapses
from nbhelpers.imagesets.confound import with_training_confound
from nbhelpers.imagesets.stacks import write_stack

SIZE = 64


def em_like(seed, size=SIZE):
    """Bright cytosol with thin dark membranes: the borders of cells around random
    seeds, and noise."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, size, (12, 2))
    y, x = np.mgrid[:size, :size]
    distances = np.sort(np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1]), axis=2)
    membrane = np.exp(-(((distances[..., 1] - distances[..., 0]) / 2.5) ** 2))
    return np.clip(170 - 90 * membrane + rng.normal(0, 8, (size, size)), 0, 255).astype(np.uint8)


def write_folders(root, neurons=3, each=3, change=lambda image: image, suffix=".png"):
    """Class / neuron / image."""
    number = 0
    for label in synapses.CLASSES:
        for neuron in range(neurons):
            folder = root / label / f"neuron {neuron}"
            folder.mkdir(parents=True)
            for index in range(each):
                number += 1
                image = change(em_like(number))
                if suffix == ".tif":
                    tifffile.imwrite(folder / f"{index}.tif", image)
                else:
                    Image.fromarray(image).save(folder / f"{index}.png")
    return root


@pytest.fixture
def own(tmp_path):
    return write_folders(tmp_path / "mine")


def load(path, tmp_path, **changes):
    own = synapses.OwnPatches(**changes)
    return synapses.load_own_synapses(path, tmp_path / "data", size_px=SIZE, own=own)


def test_folders_below_the_class_folders_are_the_neurons(own, tmp_path):
    images = load(own, tmp_path)
    assert images.pixels.shape == (18, 1, SIZE, SIZE) and images.classes == synapses.CLASSES
    assert len(set(images.groups)) == 6 and "no group" not in images.source
    assert np.array_equal(images.pixels[0, 0], em_like(1))


def test_without_a_neuron_equal_pixels_share_a_group_and_the_source_says_what_that_means(
    own, tmp_path
):
    for path in own.glob("*/*/*.png"):
        path.rename(path.parents[1] / f"{path.parent.name}-{path.name}")
    twin = own / "excitatory" / "twin.png"
    twin.write_bytes((own / "excitatory" / "neuron 0-0.png").read_bytes())
    for folder in own.glob("*/neuron?[0-9]"):
        folder.rmdir()
    images = load(own, tmp_path)
    group = dict(zip(images.ids, images.groups, strict=True))
    assert (
        group["excitatory/twin.png"] == group["excitatory/neuron 0-0.png"]
        and len(set(images.groups)) == 18
    )
    assert "no group is named" in images.source


def test_a_table_with_neurons(own, tmp_path):
    paths = sorted(own.glob("*/*/*.png"))
    table = pd.DataFrame(
        {
            "path": [path.relative_to(own).as_posix() for path in paths],
            "label": [path.parts[-3] for path in paths],
            "group": "n",
        }
    )
    table["group"] = [f"cell {index // 3}" for index in range(len(table))]
    table.to_csv(own / "labels.csv", index=False)
    assert set(load(own / "labels.csv", tmp_path).groups) == set(table["group"])


@pytest.mark.parametrize(
    "shape, crop, word, fix",
    [
        (
            (60, 64),
            False,
            "64 x 60 px: too small, 64 x 64 px are needed",
            "Cut a patch of 64 x 64 px",
        ),
        ((80, 80), False, "80 x 80 px, and 64 x 64 px are wanted", "crop"),
        ((60, 90), True, "too small", "64 x 64"),
    ],
)
def test_a_patch_of_another_size_is_named_with_the_size_that_is_needed(
    tmp_path, shape, crop, word, fix
):
    with pytest.raises(UnreadableImageError, match=word) as error:
        synapses.prepare_patch(
            em_like(0, 100)[None, : shape[0], : shape[1]], "a.png", size_px=64, crop=crop
        )
    assert error.value.where == "a.png" and fix in error.value.fix


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 60), st.integers(16, 60), st.integers(8, 16))
def test_a_crop_is_the_centre(height, width, size):
    image = np.arange(height * width, dtype=np.uint16).reshape(1, height, width)
    cut = synapses.prepare_patch(image, "a", size_px=size, crop=True)
    top = (height - size) // 2
    left = (width - size) // 2
    assert np.array_equal(cut, image[:, top : top + size, left : left + size])


def test_resampling_keeps_lengths_in_nanometres(tmp_path):
    """A stripe of 160 nm is 40 px at 4 nm and 20 px at 8 nm."""
    image = np.full((1, 200, 200), 200, np.uint8)
    image[:, :, 80:120] = 50
    small = synapses.prepare_patch(image, "a", size_px=100, pixel_nm=4)
    assert small.shape == (1, 100, 100) and small.dtype == np.uint8
    assert (small[0] < 125).sum(1).tolist() == [20] * 100
    with pytest.raises(UnreadableImageError, match="too small") as error:
        synapses.prepare_patch(image, "a", size_px=128, pixel_nm=4)
    assert "256 x 256 px" in error.value.fix


def test_grey_stored_as_colour_is_read_and_colour_is_refused():
    grey = em_like(0)[None]
    assert np.array_equal(synapses.prepare_patch(np.repeat(grey, 3, 0), "a", size_px=SIZE), grey)
    coloured = np.concatenate([grey, grey // 2, grey])
    with pytest.raises(UnreadableImageError, match="3 colour channels"):
        synapses.prepare_patch(coloured, "a", size_px=SIZE)
    with pytest.raises(UnreadableImageError, match="constant"):
        synapses.prepare_patch(np.zeros((1, SIZE, SIZE), np.uint8), "a", size_px=SIZE)


def test_sixteen_bit_is_scaled_once_for_the_whole_set(tmp_path):
    """12 bit in a 16-bit file: brightness differences between patches stay."""
    write_folders(
        tmp_path / "deep", change=lambda image: image.astype(np.uint16) * 16, suffix=".tif"
    )
    write_folders(tmp_path / "flat")
    deep = load(tmp_path / "deep", tmp_path)
    flat = load(tmp_path / "flat", tmp_path)
    assert deep.pixels.dtype == np.uint8 and "16-bit values scaled" in deep.source
    means = [np.asarray(one.pixels).mean(axis=(1, 2, 3)) for one in (deep, flat)]
    assert np.corrcoef(*means)[0, 1] > 0.999
    assert np.asarray(deep.pixels).min() == 0 and np.asarray(deep.pixels).max() == 255
    again = load(tmp_path / "deep", tmp_path)
    assert again.content_hash == deep.content_hash


def test_a_file_that_failed_for_a_passing_reason_is_there_the_next_time(tmp_path, monkeypatch):
    from nbhelpers.imagesets import packed

    write_folders(
        tmp_path / "deep", change=lambda image: image.astype(np.uint16) * 16, suffix=".tif"
    )
    read = packed.read_image

    def flaky(path):
        if path.name == "0.tif":
            raise packed.PassingReadError(path, "the network drive is away.", "Run again.")
        return read(path)

    monkeypatch.setattr(packed, "read_image", flaky)
    assert len(load(tmp_path / "deep", tmp_path)) == 12
    monkeypatch.setattr(packed, "read_image", read)
    images = load(tmp_path / "deep", tmp_path)
    assert len(images) == 18 and len(images.failures) == 0


def test_new_sixteen_bit_patches_get_the_grey_range_of_the_training_patches(own, tmp_path):
    training = load(own, tmp_path)
    write_folders(
        tmp_path / "deep", change=lambda image: image.astype(np.uint16) * 100 + 5000, suffix=".tif"
    )
    new = synapses.load_unlabelled_synapses(
        tmp_path / "deep",
        tmp_path / "data",
        training.classes,
        SIZE,
        synapses.PatchReference.of(training),
    )
    assert abs(np.asarray(new.pixels, float) - np.asarray(training.pixels, float)).mean() < 3
    assert new.table["label"].isna().all() and "as in the training images" in new.source


def test_inverted_grey_is_refused_with_the_fix_and_taken_when_meant(tmp_path):
    white = write_folders(tmp_path / "white", change=lambda image: 255 - image)
    with pytest.raises(InputError, match="membranes are bright") as error:
        load(white, tmp_path)
    assert "Invert" in error.value.fix
    images = load(white, tmp_path, polarity="as given")
    assert np.array_equal(images.pixels[0, 0], 255 - em_like(1))


def test_a_single_inverted_patch_is_listed(own, tmp_path):
    path = own / "inhibitory" / "neuron 1" / "0.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    images = load(own, tmp_path)
    assert len(images) == 17 and images.failures["file"].tolist() == ["inhibitory/neuron 1/0.png"]
    assert "inverted" in images.failures["why"].iloc[0]


def test_new_patches_are_compared_with_the_polarity_of_the_training_patches(tmp_path, own):
    white = write_folders(tmp_path / "white", change=lambda image: 255 - image)
    trained_on_white = synapses.PatchReference.of(load(white, tmp_path, polarity="as given"))
    assert trained_on_white.membrane_contrast < 0
    found = synapses.load_unlabelled_synapses(
        white, tmp_path / "data", synapses.CLASSES, SIZE, trained_on_white
    )
    assert len(found) == 18 and len(found.failures) == 0
    found = synapses.load_unlabelled_synapses(
        own, tmp_path / "data", synapses.CLASSES, SIZE, trained_on_white
    )
    assert (
        len(found) == 0
        and len(found.failures) == 18
        and "membranes are dark" in found.failures["why"].iloc[0]
    )
    card = json.loads(json.dumps(trained_on_white.as_dict()))
    assert synapses.PatchReference(**card) == trained_on_white


@pytest.mark.parametrize("seed", range(5))
def test_inverting_turns_the_sign_and_brightness_does_not_matter(seed):
    image = em_like(seed)
    plain, white, dim = polarity.membrane_contrast(np.stack([image, 255 - image, image // 2 + 20]))
    assert (
        plain > 0.03
        and white == pytest.approx(-plain, abs=1e-4)
        and dim == pytest.approx(plain, abs=0.03)
    )


@pytest.mark.parametrize(
    ("contrast", "verdict"),
    [
        ([0.3, 0.2, 0.1, 0.0, -0.1], "as usual"),
        ([-0.1] * 8, "in doubt"),  # as dense tissue is
        ([-0.1] * 12 + [0.1] * 2, "in doubt"),
        ([-0.02, 0.02] * 10, "in doubt"),  # half of them turned round
        ([0.1] * 17 + [-0.02] * 3, "as usual"),
        ([-0.3] * 8, "inverted"),
        ([-0.3] * 8 + [0.1], "in doubt"),
        ([-0.04] * 3, "as usual"),
        ([-0.1], "in doubt"),
    ],
)
def test_a_set_is_judged_as_a_whole_and_refused_only_beyond_doubt(contrast, verdict):
    contrast = np.array(contrast)
    assert polarity.polarity_of(contrast) == verdict
    assert polarity.polarity_of(-contrast, usual=-0.1) == verdict


@pytest.mark.parametrize("inverted_share", [0.1, 0.3, 0.5, 0.7])
def test_a_mixture_is_told_apart_however_many_are_inverted(inverted_share):
    sure = np.random.default_rng(0).normal(0.28, 0.03, 20)
    inverted = np.arange(20) < 20 * inverted_share
    assert np.array_equal(polarity.unlike_the_others(np.where(inverted, -sure, sure)), inverted)
    assert np.array_equal(
        polarity.unlike_the_others(np.where(inverted, sure, -sure), usual=-0.3), inverted
    )


def test_two_patches_are_compared_with_the_training_patches():
    assert polarity.unlike_the_others(np.array([0.3, -0.3]), usual=0.3).tolist() == [False, True]
    assert not polarity.unlike_the_others(np.array([0.3, -0.3])).any()


def test_one_patch_is_left_out_only_where_the_others_are_sure():
    sure = np.array([0.3, 0.28, 0.31, 0.29, 0.3, -0.3])
    assert polarity.unlike_the_others(sure).tolist() == [False] * 5 + [True]
    unsure = np.array([0.3, 0.02, -0.1, 0.2, 0.05, -0.3])
    assert not polarity.unlike_the_others(unsure).any()
    dense = np.array([0.02, 0.03, 0.05, 0.06, 0.09, 0.11, -0.23])  # small patches of real tissue
    assert not polarity.unlike_the_others(dense).any()


@pytest.mark.realdata
def test_no_patch_of_real_tissue_is_refused_and_sets_that_are_inverted_are_seen(real_data):
    """108 sets of 25 patches: 4.6, 8 and 10 nm, three crops, four blurs, three contrasts."""
    from scipy.ndimage import gaussian_filter
    from skimage.transform import rescale

    draw = np.random.default_rng(0)
    files = sorted((real_data("vnc_sstem") / "stack1" / "raw").glob("*.tif"))[::4]
    seen = []
    for nm, size, blur in itertools.product((4.6, 8, 10), (64, 96, 128), range(4)):
        patches = []
        for file in files:
            section = rescale(tifffile.imread(file).astype(float), 4.6 / nm, anti_aliasing=True)
            section = gaussian_filter(section, blur) if blur else section
            corners = draw.integers(0, len(section) - size, (5, 2))
            patches += [section[y : y + size, x : x + size] for y, x in corners]
        for strength in (0.5, 1, 1.5):
            given = np.clip(128 + (np.stack(patches) - 128) * strength, 0, 255).astype(np.uint8)
            contrast = polarity.membrane_contrast(given)
            assert polarity.polarity_of(contrast) == "as usual"
            assert not polarity.unlike_the_others(contrast).any()
            seen.append(polarity.polarity_of(polarity.membrane_contrast(255 - given)) != "as usual")
    assert np.mean(seen) >= 0.95


def test_two_labels_for_one_patch_are_both_left_out(own, tmp_path):
    (own / "inhibitory" / "neuron 0" / "copy.png").write_bytes(
        (own / "excitatory" / "neuron 0" / "0.png").read_bytes()
    )
    images = load(own, tmp_path)
    assert len(images) == 17 and set(images.failures["file"]) == {
        "inhibitory/neuron 0/copy.png",
        "excitatory/neuron 0/0.png",
    }


def test_a_class_of_which_nothing_can_be_used_is_named(own, tmp_path):
    for path in own.glob("inhibitory/*/*.png"):
        Image.fromarray(em_like(1, 40)).save(path)
    with pytest.raises(TableError, match="none of the 9 images of class inhibitory.*too small"):
        load(own, tmp_path)


def test_to_predict_a_folder_or_a_table(own, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="no images"):
        synapses.load_unlabelled_synapses(
            tmp_path / "empty", tmp_path / "data", synapses.CLASSES, SIZE
        )
    (own / "new.csv").write_text(
        "path;note\nexcitatory/neuron 0/0.png;a\ninhibitory/neuron 0/0.png;b\ngone.png;c\n"
    )
    found = synapses.load_unlabelled_synapses(
        own / "new.csv", tmp_path / "data", synapses.CLASSES, SIZE
    )
    assert found.ids.tolist() == ["excitatory/neuron 0/0.png", "inhibitory/neuron 0/0.png"]
    assert found.failures["file"].tolist() == ["gone.png"]
    (own / "new.csv").write_text("name\nx.png\n")
    with pytest.raises(TableError, match="columns .*path.* are missing"):
        synapses.load_unlabelled_synapses(
            own / "new.csv", tmp_path / "data", synapses.CLASSES, SIZE
        )


def test_a_stack_for_a_patch_is_listed(own, tmp_path):
    tifffile.imwrite(
        own / "excitatory" / "neuron 0" / "cube.tif", np.stack([em_like(seed) for seed in range(7)])
    )
    images = load(own, tmp_path)
    assert (
        images.failures["file"].tolist() == ["excitatory/neuron 0/cube.tif"] and len(images) == 18
    )
    assert "images" in images.failures["why"].iloc[0] or "stack" in images.failures["why"].iloc[0]


# The data set of notebook 01


@pytest.fixture
def microns(tmp_path):
    """12 patches of 6 neurons in two stacks, as notebook 01 writes them."""
    path = tmp_path / "microns"
    pixels = np.stack([em_like(seed) for seed in range(12)])
    stacks = []
    for index, part in enumerate((pixels[:7], pixels[7:])):
        file = f"patches/{index:05d}.ome.tif"
        stacks.append(
            {"file": file, "rows": len(part), "sha256": write_stack(path / file, part, (40, 8, 8))}
        )
    table = pd.DataFrame(
        {
            "id": [str(10 + index) for index in range(12)],
            "label": [synapses.CLASSES[index // 2 % 2] for index in range(12)],
            "group": [str(600 + index // 2) for index in range(12)],
            "x_nm": 1.0,
        }
    )
    table.to_parquet(path / "synapses.parquet")
    pd.DataFrame({"id": ["99"], "why": ["at the edge."], "fix": ["None."]}).to_csv(
        path / "left_out.csv", index=False
    )
    write_json(
        path / "dataset.json",
        {
            "format": 1,
            "name": "miniature",
            "source": "a test",
            "synthetic": True,
            "classes": synapses.CLASSES,
            "cubes": None,
            "patches": {
                "shape_px": [SIZE, SIZE],
                "voxel_nm": [40, 8, 8],
                "mip": 0,
                "dtype": "uint8",
                "stacks": stacks,
            },
        },
    )
    Split(
        pd.DataFrame(
            {
                "repeat": 0,
                "fold": 0,
                "part": ["train"] * 8 + ["validation"] * 2 + ["test"] * 2,
                "id": table["id"],
                "group": table["group"],
            }
        ),
        "by neuron",
        0,
    ).save(path / "split.csv")
    return path


def test_the_data_set_of_notebook_01(microns, tmp_path):
    images = synapses.load_synapses(
        "microns", data_folder=tmp_path, data_dir=str(microns), size_px=SIZE
    )
    assert (
        images.pixels.shape == (12, 1, SIZE, SIZE)
        and images.pixel_size_nm == (8, 8)
        and images.synthetic
    )
    assert all(np.array_equal(image[0], em_like(seed)) for seed, image in enumerate(images.pixels))
    assert images.failures["file"].tolist() == ["99"]
    split = microns_sets.load_stored_split(microns)
    assert images.labels[images.positions(split.ids(0, 0, "train"))].tolist() == [0, 0, 1, 1] * 2


def test_larger_stored_patches_are_cropped_once_and_smaller_ones_refused(microns, tmp_path):
    images = microns_sets.load_microns_patches(microns, tmp_path / "data", size_px=32)
    assert (
        np.array_equal(images.pixels[8, 0], em_like(8)[16:48, 16:48])
        and "central 32" in images.source
    )
    whole = microns_sets.load_microns_patches(microns, tmp_path / "data", size_px=None)
    assert whole.content_hash != images.content_hash and whole.pixels.shape[-1] == SIZE
    with pytest.raises(InputError, match="64 x 64 px, smaller than the 128 x 128 px"):
        microns_sets.load_microns_patches(microns, tmp_path / "data", size_px=128)


def test_a_missing_or_half_made_data_set_says_which_notebook_to_run(microns, tmp_path):
    with pytest.raises(InputError, match="01_extract_microns_patches"):
        synapses.load_synapses("microns", data_folder=tmp_path / "nothing")
    with pytest.raises(InputError, match="no cubes"):
        microns_sets.load_microns_cubes(microns, tmp_path)
    (microns / "split.csv").write_text((microns / "split.csv").read_text().replace("test", "train"))
    with pytest.raises(SplitError, match="changed"):
        microns_sets.load_stored_split(microns)
    (microns / "synapses.parquet").write_bytes(b"cut")
    with pytest.raises(InputError, match="cannot be read"):
        microns_sets.load_microns_patches(microns, tmp_path, size_px=SIZE)


# Parameters, and the injected shortcut


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"data": "micron"}, "phantom, microns"),
        ({"data": "folder"}, "data_dir"),
    ],
)
def test_parameters_are_checked(tmp_path, changes, word):
    with pytest.raises(ParameterError, match=word):
        synapses.load_synapses(**{"data_folder": tmp_path, **changes})


def noise_set(n=40, per_neuron=2):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "id": [str(index) for index in range(n)],
            "label": [synapses.CLASSES[index // per_neuron % 2] for index in range(n)],
            "group": [str(index // per_neuron) for index in range(n)],
        }
    )
    return ImageSet(
        "noise",
        table,
        rng.integers(60, 190, (n, 1, 16, 16), dtype=np.uint8),
        synapses.CLASSES,
        "a test",
        True,
    )


def test_the_injected_shortcut_is_in_the_training_part_only():
    images = noise_set()
    split = hold_out(images, seed=1)
    shifted = with_training_confound(images, split, 1.0)
    difference = (np.asarray(shifted.pixels, int) - np.asarray(images.pixels, int)).reshape(
        len(images), -1
    )
    test = images.positions(split.ids(0, 0, "test"))
    assert not difference[test].any() and len(test)
    rest = np.setdiff1d(np.arange(len(images)), test)
    assert (difference[rest] == np.where(images.labels[rest] == 0, 22, -22)[:, None]).all()
    assert shifted.content_hash != images.content_hash and "brightness shifted" in shifted.source
    many = Split(pd.concat([split.table, split.table.assign(fold=1)]), "two folds", 0)
    with pytest.raises(SplitError, match="2 folds"):
        with_training_confound(images, many)
    with pytest.raises(ParameterError, match="strength"):
        with_training_confound(images, split, -1)


# Phantoms


def test_phantoms_are_drawn_once_with_their_causes_in_the_same_order(tmp_path, monkeypatch):
    from nbhelpers.phantoms import synapse

    images = synapses.load_synapses(
        "phantom",
        data_folder=tmp_path,
        size_px=SIZE,
        seed=2,
        phantom={"count": 8, "neurons": 4},
    )
    assert (
        images.pixels.shape == (8, 1, SIZE, SIZE)
        and images.synthetic
        and images.classes == synapses.CLASSES
    )
    assert (
        len(set(images.groups)) == 4 and images.table.groupby("group")["label"].nunique().max() == 1
    )
    monkeypatch.setattr(
        synapse, "make_synapse_patches", lambda *_, **__: pytest.fail("drawn again")
    )
    again = synapses.load_synapses(
        "phantom",
        data_folder=tmp_path,
        size_px=SIZE,
        seed=2,
        phantom={"count": 8, "neurons": 4},
    )
    assert again.content_hash == images.content_hash and isinstance(again.pixels, np.memmap)
    causes = synapse.phantom_causes(8, tmp_path, neurons=4, size_px=SIZE, seed=2)
    assert (
        causes.shape == (8, SIZE, SIZE) and causes.dtype == bool and causes.any(axis=(1, 2)).all()
    )
    darker = [
        image[0][cause].mean() < image[0][~cause].mean()
        for image, cause in zip(images.pixels, causes, strict=True)
    ]
    assert np.mean(darker) > 0.7
    contrast = polarity.membrane_contrast(images.pixels)
    assert polarity.polarity_of(contrast) == "as usual"
    assert polarity.polarity_of(-contrast) != "as usual"


def test_example_files_to_predict_hold_three_that_cannot_be_used(tmp_path):
    folder = synapses.write_example_patches(
        tmp_path / "new", tmp_path / "data", 6, seed=1, size_px=128
    )
    found = synapses.load_unlabelled_synapses(folder, tmp_path / "data", synapses.CLASSES, 128)
    assert len(found) == 6
    why = found.failures.set_index("file")["why"]
    assert set(why.index) == {"cut_short.png", "inverted.png", "too_small.png"}
    assert (
        "inverted" in why["inverted.png"]
        and "too small" in why["too_small.png"]
        and "cut" in why["cut_short.png"]
    )


def test_a_copy_in_another_group_is_left_out_and_listed(tmp_path):
    from PIL import Image

    draw = np.random.default_rng(5)
    rows = []
    for number in range(6):
        pixels = draw.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", "excitatory" if number < 3 else "inhibitory", f"n{number}"))
    Image.fromarray(pixels).save(tmp_path / "copy.png")
    rows.append(("copy.png", "inhibitory", "n9"))
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(
        tmp_path / "labels.csv", index=False
    )
    images = synapses.load_own_synapses(
        tmp_path / "labels.csv",
        tmp_path / "cache",
        size_px=32,
        own=synapses.OwnPatches(polarity="as given"),
    )
    assert len(images) == 5 and set(images.failures["file"]) == {"5.png", "copy.png"}
    assert images.failures["why"].str.contains("another group").all()


def test_a_class_that_is_lost_to_copies_is_refused(own, tmp_path):
    for path in sorted((own / "excitatory").glob("*/*.png")):
        path.write_bytes((own / "inhibitory" / path.relative_to(own / "excitatory")).read_bytes())
    with pytest.raises(TableError, match="none of the 9 images of class excitatory"):
        load(own, tmp_path)
