"""What notebook 01 says of a data set: its health against its floor, its links, what was left out."""

import numpy as np
import pandas as pd
import pytest

from nbhelpers.errors import InputError
from nbhelpers.microns import dataset
from nbhelpers.microns.cutouts import Volume
from nbhelpers.microns.miniature import write_precomputed
from nbhelpers.tasks import microns


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Smooth tissue in which neighbouring sections look alike, and forty synapses of eight neurons, two at the edge."""
    from scipy.ndimage import gaussian_filter

    folder = tmp_path_factory.mktemp("volume")
    draw = np.random.default_rng(3)
    tissue = gaussian_filter(draw.normal(size=(24, 160, 160)), (2, 3, 3))
    pixels = np.interp(tissue, (tissue.min(), tissue.max()), (1, 255)).astype(np.uint8)
    write_precomputed(pixels, folder / "image", origin_nm=(8000, 8000, 4000))
    at = draw.integers((40, 40, 8), (120, 120, 16), (40, 3))
    at[:2, 0] = 3  # at the edge
    nm = np.array([8000, 8000, 4000]) + (at + 0.5) * [8, 8, 40]
    table = pd.DataFrame({"id": [str(number) for number in range(40)], "group": [f"n{number % 8}" for number in range(40)],
                          "label": np.where(np.arange(40) % 8 < 4, "excitatory", "inhibitory"),
                          "pre_root_id": np.arange(40), "post_root_id": np.arange(40), "nucleus_id": np.arange(40) % 8,
                          **{f"{axis}_nm": nm[:, column] for column, axis in enumerate("xyz")}})
    volume = Volume.open(f"precomputed://file://{folder / 'image'}")
    cut = dataset.extract(table, volume, folder / "set", patch_px=32, cube_px=(8, 32, 32), name="test", source="test",
                          synthetic=True, report=lambda line: None)
    return cut, volume


def test_sections_that_follow_each_other_are_told_from_sections_that_do_not(made):
    cut, _ = made
    found = microns.continuity_score(cut, seed=1)
    assert found["low"] <= found["value"] <= found["high"] and found["n"] == len(cut.synapses) == 38
    assert found["value"] == pytest.approx(cut.synapses["continuity"].mean())
    assert found["low"] > 0.5 and abs(found["floor"]) < 0.2
    assert found == microns.continuity_score(cut, seed=1)


def test_what_was_left_out_is_counted_by_reason(made):
    summary = microns.left_out_summary(made[0])
    assert summary["synapses"].sum() == len(made[0].left_out) == 2
    assert "edge" in summary["why"].iloc[0]
    share = microns.share_cut_out(made[0])
    assert share["value"] == pytest.approx(38 / 40) and share["low"] < share["value"] < share["high"]


def test_each_synapse_has_a_link_with_its_own_place(made):
    cut, volume = made
    links = microns.links_table(cut, "precomputed://https://example.org/em", resolution_nm=volume.voxel_nm[::-1])
    assert list(links["id"]) == list(cut.synapses["id"]) and links["link"].is_unique
    assert links["link"].str.startswith("https://").all()
    assert links["x (µm)"].to_numpy() == pytest.approx(cut.synapses["x_nm"] / 1000)


def test_another_query_or_shape_gets_another_folder(made):
    name = microns.folder_name("miniature", "ab", made[1], {"patch_px": 32})
    assert name.startswith("miniature-") and name == microns.folder_name("miniature", "ab", made[1], {"patch_px": 32})
    assert len({name, microns.folder_name("miniature", "ac", made[1], {"patch_px": 32}),
                microns.folder_name("miniature", "ab", made[1], {"patch_px": 64})}) == 3


def test_connectivity_is_kept_in_the_order_of_the_synapses(made):
    cut, _ = made
    features = pd.DataFrame({"id": range(40), "pre_partners_sent": np.arange(40.0)}).sample(frac=1, random_state=0)
    kept = pd.read_parquet(microns.keep_connectivity(cut, features))
    assert list(kept["id"]) == list(cut.synapses["id"])
    assert list(kept["pre_partners_sent"]) == [float(name) for name in cut.synapses["id"]]
    with pytest.raises(InputError, match="no connectivity features"):
        microns.keep_connectivity(cut, features[features["id"] > 20])
