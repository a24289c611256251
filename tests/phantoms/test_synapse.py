"""Synapse phantoms: the injected truth can be found in the pixels, and the class stands nowhere
else.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nbhelpers.core.errors import ParameterError
from nbhelpers.phantoms.synapse import (
    CLASSES,
    _order,
    make_synapse_cubes,
    make_synapse_patches,
    make_synapse_volume,
)


@pytest.fixture(scope="module")
def patches():
    return make_synapse_patches(224, neurons=28, seed=3)


@pytest.fixture(scope="module")
def volume():
    return make_synapse_volume(
        (14, 288, 320),
        neurons=4,
        synapses=10,
        seed=2,
        missing_sections=(5,),
    )


@pytest.fixture(scope="module")
def cubes():
    return make_synapse_cubes(
        72, neurons=24, shape_px=(16, 48, 48), seed=8, cue="3d", difficulty=0.5
    )


def grouped_accuracy(features, table):
    """Accuracy of a logistic regression on neurons that it was not fitted to."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    label = (table["label"] == CLASSES[1]).to_numpy()
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=0)
    return (
        cross_val_predict(model, features, label, groups=table["group"], cv=folds) == label
    ).mean()


def histogram(pixels):
    flat = pixels.reshape(len(pixels), -1).astype(float)
    return np.column_stack(
        [flat.mean(axis=1), flat.std(axis=1), np.percentile(flat, (5, 25, 50, 75, 95), axis=1).T]
    )


def test_shape_type_and_table(patches):
    assert patches.pixels.shape == (224, 1, 128, 128) and patches.pixels.dtype == np.uint8
    assert patches.cause.shape == (224, 128, 128) and patches.cause.dtype == bool
    table = patches.table
    assert table["id"].is_unique and table["group"].nunique() == 28
    assert (table.groupby("group")["label"].nunique() == 1).all()
    assert (table["label"].value_counts() == 112).all() and set(table["label"]) == set(CLASSES)


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    count=st.integers(1, 3),
    more=st.integers(1, 2),
    difficulty=st.floats(0, 2),
)
def test_a_patch_depends_on_seed_and_position_alone(seed, count, more, difficulty):
    few = make_synapse_patches(count, seed=seed, size_px=48, difficulty=difficulty)
    many = make_synapse_patches(count + more, seed=seed, size_px=48, difficulty=difficulty)
    assert np.array_equal(few.pixels, many.pixels[:count]) and np.array_equal(
        few.cause, many.cause[:count]
    )
    assert few.table.equals(many.table.iloc[:count])
    assert (few.pixels > 0).all()  # black means missing


def test_another_seed_gives_other_pixels():
    assert not np.array_equal(
        make_synapse_patches(1, seed=1, size_px=64).pixels,
        make_synapse_patches(1, seed=2, size_px=64).pixels,
    )


def test_the_cause_is_at_the_centre_and_dark(patches):
    assert patches.cause[:, 60:68, 60:68].any(axis=(1, 2)).all()
    inside = np.array(
        [image[0][where].mean() for image, where in zip(patches.pixels, patches.cause, strict=True)]
    )
    assert (inside < patches.pixels.mean(axis=(1, 2, 3)) - 10).mean() > 0.95


def test_the_injected_density_can_be_measured():
    # Clean patches: the area that is about as dark as the density, near the centre, against the
    # injected area.
    made = make_synapse_patches(
        60, seed=4, difficulty=0, matched=False
    )  # else dark areas are alike
    centre = np.s_[:, 0, 44:84, 44:84]
    smooth = gaussian_filter(made.pixels[centre].astype(float), (0, 1, 1))
    limit = made.pixels.mean(axis=(1, 2, 3)) - 1.2 * made.pixels.std(axis=(1, 2, 3))
    dark = ((smooth < limit[:, None, None]) & made.cause[:, 44:84, 44:84]).sum(axis=(1, 2))
    injected = made.table["psd_nm"] * made.table["cleft_radius_nm"]
    assert np.corrcoef(dark, injected)[0, 1] > 0.65


def test_classes_differ_in_density_and_vesicles(patches):
    middle = patches.table.groupby("label")[["psd_nm", "flattened"]].mean()
    assert middle.loc["excitatory", "psd_nm"] > 2 * middle.loc["inhibitory", "psd_nm"]
    assert middle.loc["inhibitory", "flattened"] > middle.loc["excitatory", "flattened"] + 0.5


def test_neurons_have_a_style_of_their_own(patches):
    table = patches.table[patches.table["label"] == "excitatory"]
    between = table.groupby("group")["psd_nm"].mean().var()
    within = table.groupby("group")["psd_nm"].var().mean()
    assert (
        between > 1.5 * within / 8
    )  # eight synapses a neuron: an eighth would be expected without a style


def test_grey_values_do_not_tell_the_class(patches):
    assert grouped_accuracy(patches.pixels.mean(axis=(2, 3)), patches.table) < 0.6
    assert grouped_accuracy(histogram(patches.pixels), patches.table) < 0.62


def test_difficulty_adds_noise_and_overlap():
    easy, hard = (
        make_synapse_patches(40, neurons=20, size_px=48, seed=1, difficulty=one).table
        for one in (0, 2)
    )
    assert easy["noise"].max() < hard["noise"].min() and easy["blur"].mean() < hard["blur"].mean()
    gap = [
        table.groupby("label")["psd_nm"].mean()
        @ [1, -1]
        / table.groupby("label")["psd_nm"].std().mean()
        for table in (easy, hard)
    ]
    assert gap[0] > 1.5 * gap[1]
    assert easy["tilt_degree"].abs().max() < hard["tilt_degree"].abs().max()


def test_cubes_go_on_from_section_to_section():
    made = make_synapse_cubes(2, neurons=2, shape_px=(6, 64, 64), seed=3)
    assert made.pixels.shape == (2, 1, 6, 64, 64) and made.cause.shape == (2, 6, 64, 64)
    for cube in made.pixels[:, 0].reshape(2, 6, -1):
        correlation = np.corrcoef(cube)
        assert np.diag(correlation, 1).mean() > 0.25
        assert np.diag(correlation, 1).mean() > np.diag(correlation, 4).mean() + 0.05


# ---- the cue that lies in the order of the sections


def injected_sections(table):
    return np.array([[int(one) for one in row] for row in table["dense_sections"]])


def changes(values):
    """How much a quantity changes from section to section, for its spread over the sections."""
    values = values - values.mean(axis=1, keepdims=True)
    return (np.abs(np.diff(values, axis=1)).mean(axis=1) / values.std(axis=1))[:, None]


def density(cubes):
    """Number of dark pixels of the synapse, section by section: (n, z)."""
    pixels = gaussian_filter(cubes.pixels[:, 0].astype(float), (0, 0, 1, 1))
    limit = (
        pixels.mean(axis=(2, 3), keepdims=True)
        - 1.2 * cubes.pixels.std(axis=(1, 2, 3, 4))[:, None, None, None]
    )
    return ((pixels < limit) & cubes.cause.any(axis=1, keepdims=True)).sum(axis=(2, 3))


def test_the_order_of_the_sections_tells_the_class(cubes):
    assert grouped_accuracy(changes(injected_sections(cubes.table)), cubes.table) > 0.95
    assert grouped_accuracy(changes(density(cubes)), cubes.table) > 0.9
    assert np.allclose(
        changes(density(cubes)[:, ::-1]), changes(density(cubes))
    )  # whichever way round


def test_shuffled_sections_tell_nothing(cubes):
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(density(cubes), axis=1)
    assert abs(grouped_accuracy(changes(shuffled), cubes.table) - 0.5) < 0.16


def test_no_section_for_itself_tells_the_class(cubes):
    injected = injected_sections(cubes.table)
    assert (injected.sum(axis=1) == 8).all()
    # Random features of the single sections: whatever decides in a section would show up in some of
    # them.
    rng = np.random.default_rng(1)
    sections = cubes.pixels[:, 0].reshape(-1, 48, 48).astype(float)
    crops = sections[:, 12:36, 12:36].reshape(len(sections), -1)
    features = np.maximum(
        (crops - crops.mean()) / crops.std() @ rng.normal(size=(crops.shape[1], 24)), 0
    )
    table = cubes.table.loc[np.repeat(cubes.table.index, 16)]
    assert (
        abs(grouped_accuracy(np.column_stack([features, histogram(sections)]), table) - 0.5) < 0.09
    )


@pytest.mark.parametrize("sections", [4, 7, 16])
def test_every_section_is_dense_as_often_in_both_classes(sections):
    rng = np.random.default_rng(sections)
    for label in CLASSES:
        injected = np.array([_order(rng, sections, label) for _ in range(1500)])
        assert (injected.sum(axis=1) == sections // 2).all()
        assert np.abs(injected.mean(axis=0) - sections // 2 / sections).max() < 4 * 0.5 / np.sqrt(
            1500
        )
        around = (injected != np.roll(injected, 1, axis=1)).sum(axis=1)
        assert (around == 2).all() if label == CLASSES[0] else (around > 2).all()


# ---- the volume


def voxels(volume, prefix=""):
    """Voxel (z, y, x) of a point of each synapse."""
    place = volume.synapses[[f"{prefix}{axis}_nm" for axis in "xyz"]].to_numpy() - volume.origin_nm
    return np.floor(place[:, ::-1] / volume.voxel_nm).astype(int)


def test_volume_tables(volume):
    neurons = volume.neurons
    synapses = volume.synapses
    assert (
        volume.pixels.shape == volume.cause.shape == (14, 288, 320)
        and volume.pixels.dtype == np.uint8
    )
    assert len(synapses) == 10 and synapses["id"].is_unique and all(np.array(volume.origin_nm) > 0)
    for table, names in (
        (neurons, ("root_id", "nucleus_id")),
        (synapses, ("id", "pre_root_id", "post_root_id")),
    ):
        assert all(table[name].dtype == np.int64 for name in names)
    assert neurons["root_id"].is_unique and neurons["nucleus_id"].is_unique
    assert set(synapses["pre_root_id"]) == set(neurons["root_id"])
    assert (synapses["pre_root_id"] != synapses["post_root_id"]).all()
    assert (neurons["cell_type"].value_counts() == 2).all()


def test_synapse_points_lie_on_clefts(volume):
    centre, before, after = (voxels(volume, name) for name in ("", "pre_", "post_"))
    shown = centre[:, 0] != 5
    assert shown.sum() >= 6
    for z, y, x in centre[shown]:
        assert volume.cause[z, y - 2 : y + 3, x - 2 : x + 3].any()
        near = volume.pixels[z, max(0, y - 3) : y + 4, max(0, x - 3) : x + 4]
        assert near.min() < volume.pixels[z].mean() - volume.pixels[z].std()
    for one in (before, after):
        distance = np.linalg.norm((one - centre) * volume.voxel_nm, axis=1)
        assert (distance > 60).all() and (distance < 330).all()


def test_missing_sections_are_black_and_no_other_voxel_is(volume):
    black = (volume.pixels == 0).all(axis=(1, 2))
    assert np.flatnonzero(black).tolist() == [5] and (volume.pixels[~black] > 0).all()
    assert not volume.cause[5].any()


@pytest.mark.parametrize(
    "make, wrong",
    [
        (make_synapse_patches, {"count": 0}),
        (make_synapse_patches, {"neurons": 1}),
        (make_synapse_patches, {"size_px": 8}),
        (make_synapse_patches, {"pixel_nm": 0}),
        (make_synapse_patches, {"difficulty": 2.5}),
        (make_synapse_cubes, {"cue": "2d"}),
        (make_synapse_cubes, {"shape_px": (16, 128)}),
        (make_synapse_cubes, {"shape_px": (2, 64, 64), "cue": "3d"}),
        (make_synapse_cubes, {"voxel_nm": (40, 8)}),
        (make_synapse_volume, {"synapses": 3}),
        (make_synapse_volume, {"missing_sections": (64,)}),
        (make_synapse_volume, {"shape_px": (8, 64, 64), "synapses": 400}),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, wrong):
    count = {} if make is make_synapse_volume else {"count": 2}
    name = "synapses" if "synapses" in wrong else next(iter(wrong))
    with pytest.raises(ParameterError, match=f"parameter {name}"):
        make(**{**count, **wrong})
