"""The miniature: the real tensorstore and requests against it, and its command line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from urllib.parse import unquote

import numpy as np
import pytest
import requests
import tensorstore as ts

from nbhelpers.core.errors import ParameterError
from nbhelpers.microns.links import neuroglancer_state, note_on_links, synapse_links
from nbhelpers.microns.miniature import MiniatureSettings, write_precomputed
from nbhelpers.microns.miniature import miniature as start
from nbhelpers.microns.points import Points, UnitError


def pixels_of(server) -> np.ndarray:
    """(z, y, x) uint8: the volume at mip 0."""
    return np.load(server.truth.folder / "pixels.npy", mmap_mode="r")


def open_volume(url: str, mip: int = 0):
    return ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": url.removeprefix("precomputed://") + "/",
            "scale_index": mip,
        }
    ).result()


def test_volume_comes_back_bit_for_bit(miniature):
    store = open_volume(miniature.image_url)
    np.testing.assert_array_equal(
        store[..., 0].read().result().transpose(2, 1, 0), pixels_of(miniature)
    )
    offset = np.array(miniature.truth.origin_nm) / miniature.truth.voxel_nm
    assert list(store.domain.inclusive_min[:3]) == offset.tolist()


def test_mips_are_means_of_four(miniature):
    fine = pixels_of(miniature).astype(float)
    for mip in (1, 2):
        z, y, x = fine.shape
        fine = fine.reshape(z, y // 2, 2, x // 2, 2).mean((2, 4))
        coarse = open_volume(miniature.image_url, mip)[..., 0].read().result().transpose(2, 1, 0)
        assert np.abs(coarse - fine).max() <= 1  # rounded once a level
        fine = coarse.astype(float)


def test_ranges_keep_alive_and_strangers(miniature):
    with requests.Session() as session:
        url = f"{miniature.address}/image/info"
        whole = session.get(url)
        assert whole.status_code == 200 and json.loads(whole.content)["data_type"] == "uint8"
        for span, expected in (
            ("bytes=2-5", whole.content[2:6]),
            ("bytes=-4", whole.content[-4:]),
            ("bytes=5-", whole.content[5:]),
        ):
            part = session.get(url, headers={"Range": span})
            assert part.status_code == 206 and part.content == expected
        assert session.get(url, headers={"Range": "bytes=999999-"}).status_code == 416
        assert session.head(url).headers["Content-Length"] == str(len(whole.content))
        assert session.get(f"{miniature.address}/image/../about.json").status_code in (401, 404)
        assert session.get(f"{miniature.address}/image/%2e%2e/about.json").status_code == 404
        assert session.get(f"{miniature.address}/info/version").status_code == 401
        wrong = session.get(
            f"{miniature.address}/info/version", headers={"Authorization": "Bearer wrong"}
        )
        assert wrong.status_code == 403


def test_missing_chunks_are_missing(make_miniature, asked):
    with make_miniature(missing_chunks=2) as server:
        store = open_volume(server.image_url)
        read = store[..., 0].read().result().transpose(2, 1, 0)
        different = read != pixels_of(server)
        assert different.sum() == 2 * 64 * 64 * 16 and (read[different] == 0).all()
        assert len([path for path in asked if path.startswith("/image/8_8_40/")]) == 24
    with pytest.raises(requests.ConnectionError):
        requests.get(server.address + "/image/info", timeout=2)
    assert not server.truth.folder.exists()  # it was a temporary one


def test_black_sections_are_data_and_not_missing(tmp_path):
    pixels = np.zeros((16, 64, 64), np.uint8)
    write_precomputed(pixels, tmp_path)
    assert [path.name for path in (tmp_path / "8_8_40").iterdir()] == [
        "0-64_0-64_0-16"
    ]  # no .gz, and it is there


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Shared, as the phantom takes seconds to draw."""
    return tmp_path_factory.mktemp("miniature")


def test_phantom_volume_is_cached_by_its_parameters(cache):
    settings = MiniatureSettings(shape_px=(24, 256, 256), neurons=8, synapses=8)
    with start(settings, cache_folder=cache) as server:
        first = np.array(pixels_of(server))
        state = server.truth.neurons["state"].value_counts()
        assert state["unlabelled"] == 2 and state["conflicting"] == 2 and state["mislabelled"] == 1
        assert server.truth.synapses["pre_root_id"].isin(server.truth.neurons["root_id"]).all()
        at = Points.from_table(server.truth.synapses).voxels(server.truth.voxel_nm)
        at = np.floor(at - np.divide(server.truth.origin_nm, server.truth.voxel_nm) + 1e-6)
        assert (at >= 0).all() and (at < first.shape[::-1]).all()
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    with start(settings, cache_folder=cache) as server:
        np.testing.assert_array_equal(pixels_of(server), first)
    assert {
        path: path.stat().st_mtime_ns for path in cache.rglob("*")
    } == made  # nothing was made again


def test_impossible_wishes(make_miniature, miniature):
    with pytest.raises(ParameterError, match="fewer than four"):
        make_miniature(unlabelled=10, conflicting=5)
    with pytest.raises(ParameterError, match="port"):
        make_miniature(port=int(miniature.address.rsplit(":", 1)[1]))


def test_command_line_serves_until_it_is_ended(cache):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "nbhelpers.microns.miniature",
            "--cache-folder",
            str(cache),
            "--shape",
            "24",
            "256",
            "256",
            "--neurons",
            "8",
            "--synapses",
            "8",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline() for _ in range(5)]
        address = re.search(r'server_address = "(http://127\.0\.0\.1:\d+)"', "".join(lines))[1]
        assert requests.get(f"{address}/image/info", timeout=5).json()["type"] == "image"
        token = re.search(r'^token = "(\S+)"$', "".join(lines), re.MULTILINE)[1]
        headers = {"Authorization": f"Bearer {token}"}
        assert (
            requests.get(f"{address}/materialize/version", headers=headers, timeout=5).json()
            == "5.13.0"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_many_links_are_those_of_the_single_ones_and_quick():
    rng = np.random.default_rng(0)
    points = Points.in_nm(rng.uniform(0, 1e6, (100_000, 3)))
    ids = [f'{at}"<the place>%&' for at in range(len(points))]
    source = "precomputed://https://example.org/em"
    began = time.process_time()
    links = synapse_links(points, ids, image_source=source)
    assert time.process_time() - began < 10
    for row in (0, 7, 99_999):
        assert json.loads(unquote(links[row].split("#!", 1)[1])) == neuroglancer_state(
            points[row], name=ids[row], image_source=source
        )
    assert synapse_links(points[:0], [], image_source=source) == []


def test_links_open_the_synapse(miniature):
    points = Points.from_table(miniature.truth.synapses)[:3]
    links = synapse_links(points, ["a", "b", "c"], image_source=miniature.image_url)
    for row, link in enumerate(links):
        state = json.loads(unquote(link.split("#!", 1)[1]))
        assert state["dimensions"] == {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}
        np.testing.assert_allclose(
            np.array(state["position"]) * [8, 8, 40], points.nm[row], atol=0.02
        )
        assert state["layers"][0]["source"] == miniature.image_url
        assert state["layers"][-1]["annotations"][0]["point"] == state["position"]
    assert "only this machine" in note_on_links(miniature.image_url)
    assert "only this machine" in note_on_links("precomputed://file:///somewhere/em")
    assert "public viewer" in note_on_links(
        "precomputed://https://bossdb-open-data.s3.amazonaws.com/iarpa_microns/em"
    )
    with pytest.raises(UnitError):
        neuroglancer_state(points.nm[:1], name="a", image_source=miniature.image_url)
    with pytest.raises(ParameterError, match="ids"):
        synapse_links(points, ["a"], image_source=miniature.image_url)
    with pytest.raises(ParameterError, match="format"):
        synapse_links(points[:1], ["a"], image_source="https://somewhere/em")
