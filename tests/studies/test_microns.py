"""What notebook 01 says of a data set: its health against its floor, its links, what
was left out."""

from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.microns import dataset
from nbhelpers.microns.cutouts import Volume
from nbhelpers.microns.miniature import write_precomputed
from nbhelpers.microns.tables import SynapseQuery
from nbhelpers.studies import microns


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Smooth tissue in which neighbouring sections look alike, and forty synapses of eight neurons,
    two at the edge.
    """
    from scipy.ndimage import gaussian_filter

    folder = tmp_path_factory.mktemp("volume")
    draw = np.random.default_rng(3)
    tissue = gaussian_filter(draw.normal(size=(24, 160, 160)), (2, 3, 3))
    pixels = np.interp(tissue, (tissue.min(), tissue.max()), (1, 255)).astype(np.uint8)
    write_precomputed(pixels, folder / "image", origin_nm=(8000, 8000, 4000))
    at = draw.integers((40, 40, 8), (120, 120, 16), (40, 3))
    at[:2, 0] = 3  # at the edge
    nm = np.array([8000, 8000, 4000]) + (at + 0.5) * [8, 8, 40]
    table = pd.DataFrame(
        {
            "id": [str(number) for number in range(40)],
            "group": [f"n{number % 8}" for number in range(40)],
            "label": np.where(np.arange(40) % 8 < 4, "excitatory", "inhibitory"),
            "pre_root_id": np.arange(40),
            "post_root_id": np.arange(40),
            "nucleus_id": np.arange(40) % 8,
            **{f"{axis}_nm": nm[:, column] for column, axis in enumerate("xyz")},
        }
    )
    volume = Volume.open(f"precomputed://file://{folder / 'image'}")
    cut = dataset.extract(
        table,
        volume,
        folder / "set",
        dataset.Cutout(patch_px=32, cube_px=(8, 32, 32)),
        dataset.Origin("test", "test", True),
        report=lambda line: None,
    )
    return cut, volume


def test_sections_that_follow_each_other_are_told_from_sections_that_do_not(made):
    cut, _ = made
    found = microns.mean_continuity(cut)
    floor = microns.unrelated_continuity(cut, seed=1)
    assert found.low <= found.value <= found.high and found.n == len(cut.synapses) == 38
    assert found.value == pytest.approx(cut.synapses["continuity"].mean())
    assert found.low > 0.5 and abs(floor.value) < 0.2
    assert found == microns.mean_continuity(cut)
    assert floor == microns.unrelated_continuity(cut, seed=1)


def test_each_synapse_has_a_link_with_its_own_place(made):
    cut, _ = made
    links = microns.links_table(cut, "precomputed://https://example.org/em")
    assert list(links["id"]) == list(cut.synapses["id"]) and links["link"].is_unique
    assert links["link"].str.startswith("https://").all()
    assert links["x (µm)"].to_numpy() == pytest.approx(cut.synapses["x_nm"] / 1000)


def test_another_query_or_shape_gets_another_folder(made):
    def name(
        source="miniature",
        query="ab",
        url="precomputed://http://127.0.0.1:1/image",
        mip=0,
        patch=32,
    ):
        return microns.folder_name(source, query, url, mip, {"patch_px": patch})

    assert name().startswith("miniature-") and name() == name(
        url="precomputed://http://127.0.0.1:2/image"
    )
    assert (
        len(
            {
                name(),
                name(query="ac"),
                name(patch=64),
                name(mip=1),
                name("microns"),
                name("microns", url="other"),
            }
        )
        == 6
    )


def a_request(tmp_path, **changes):
    query = changes.pop("query", SynapseQuery("minnie65_public", 1300))
    microns.check_request(
        query,
        **{
            "source": "miniature",
            "cube_sections": 16,
            "data_set": "",
            "data_folder": tmp_path,
            **changes,
        },
    )


@pytest.mark.parametrize(
    "name",
    ["..", "../x", "a/b", "/abs", "a\\b", ".hidden", "a..b", " ", "x ", "queries", "a;b", "ü", "."],
)
def test_a_data_set_is_the_name_of_one_folder(tmp_path, name):
    with pytest.raises(ParameterError, match="data_set"):
        a_request(tmp_path, data_set=name)


def test_what_cannot_work_is_said_before_anything_slow(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for data_set in ("", "my set 2.1", "set_a-b"):
        a_request(tmp_path, data_set=data_set)
    for sections in (0, 2, 16):
        a_request(tmp_path, cube_sections=sections)
    with pytest.raises(ParameterError, match=r"cube_sections.*1 section.*0 for no cubes"):
        a_request(tmp_path, cube_sections=1)
    with pytest.raises(ParameterError, match=r"allen_v1 .*There is: .*allen_v1_column"):
        a_request(tmp_path, query=SynapseQuery("minnie65_public", 1300, cell_type_table="allen_v1"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("")
    with pytest.raises(InputError, match="photos.*something else"):
        a_request(tmp_path, data_set="photos")
    with pytest.raises(InputError, match="CAVE token: there is none"):
        a_request(tmp_path, source="microns")
    frozen = tmp_path / "queries" / SynapseQuery("minnie65_public", 1300).hash[:16]
    frozen.mkdir(parents=True)
    (frozen / "query.json").write_text("{}")
    a_request(tmp_path, source="microns")  # a frozen query needs no token


def test_the_command_survives_a_shell(made, tmp_path):
    import shlex
    from dataclasses import replace

    words = shlex.split(microns.training_command(replace(made[0], folder=tmp_path / "my set")))
    assert words[-1] == "data/my set" and words[:2] == ["./run_all.sh", "synapse_resnet_cnn"]


def test_the_worst_cubes_are_listed_first_and_few_cubes_have_another_score(made):
    from dataclasses import replace

    cut, _ = made
    worst = microns.least_continuous(cut)
    lowest = sorted(cut.synapses["continuity"])
    assert list(worst["continuity"]) == lowest[: len(worst)] and len(worst) >= 3
    few = replace(
        cut, synapses=cut.synapses.assign(continuity=[0.5] + [np.nan] * (len(cut.synapses) - 1))
    )
    results = []
    for one in (cut, few):
        run = Mock(seed=1)
        microns.set_score(run, one)
        results.append((*run.set_result.call_args.args, *run.add_floor.call_args.args))
    (name, continuity, floor_name, floor), (other_name, share, _, nothing) = results
    assert name == "Continuity of neighbouring sections" and floor_name == "unrelated sections"
    assert continuity == microns.mean_continuity(cut)
    assert floor == microns.unrelated_continuity(cut, seed=1)
    assert other_name == "Share of synapses cut out" and nothing.value == 0
    assert share.value == pytest.approx(38 / 40) and share.low < share.value < share.high


def test_connectivity_is_kept_in_the_order_of_the_synapses(made):
    cut, _ = made
    features = pd.DataFrame({"id": range(40), "pre_partners_sent": np.arange(40.0)}).sample(
        frac=1, random_state=0
    )
    kept = pd.read_parquet(microns.keep_connectivity(cut, features))
    assert list(kept["id"]) == list(cut.synapses["id"])
    assert list(kept["pre_partners_sent"]) == [float(name) for name in cut.synapses["id"]]
    with pytest.raises(InputError, match="no connectivity features"):
        microns.keep_connectivity(cut, features[features["id"] > 20])
