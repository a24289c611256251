"""Cutouts are the very voxels of the volume; what is not there is named and never filled."""

import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.imagesets.sections import constant_sections, continuity, zero_fraction
from nbhelpers.microns import cutouts
from nbhelpers.microns.cutouts import Volume, VolumeError
from nbhelpers.microns.points import Points, UnitError

_spec = importlib.util.spec_from_file_location(
    "volume_server", Path(__file__).with_name("volume_server.py")
)
served = sys.modules.setdefault("volume_server", importlib.util.module_from_spec(_spec))
if not hasattr(served, "VolumeServer"):
    _spec.loader.exec_module(served)

SHAPES = ((40, 150, 130), (40, 75, 65))
FIRST = (served.FIRST, (30, 100, 50))
VOXELS = ((40.0, 8.0, 8.0), (40.0, 16.0, 16.0))


@pytest.fixture(scope="module")
def arrays():
    return [served.noise(shape, seed) for seed, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("volume")
    served.write_volume(folder, arrays)
    return folder


@pytest.fixture(scope="module")
def volumes(folder):
    return [Volume.open(f"precomputed://file://{folder}", mip=mip) for mip in (0, 1)]


@pytest.fixture
def server(folder):
    with served.VolumeServer(folder) as server:
        yield server


def points_at(voxels, mip=0):
    """Points in the middle of voxels (z, y, x), counted from the corner of the array."""
    centres = (np.asarray(voxels) + FIRST[mip] + 0.5) * VOXELS[mip]
    return Points.in_nm(centres[:, ::-1])


def everywhere(count=40, mip=0, seed=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, SHAPES[mip], (count, 3))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cutouts_are_the_voxels_of_the_array(volumes, arrays, data):
    mip = data.draw(st.sampled_from([0, 1]))
    volume = volumes[mip]
    array = arrays[mip]
    size = np.array(SHAPES[mip])
    shape = tuple(data.draw(st.integers(1, int(side))) for side in size)
    centres = np.array(
        [
            [data.draw(st.integers(0, int(side) - 1)) for side in size]
            for _ in range(data.draw(st.integers(1, 6)))
        ]
    )
    plan = volume.plan(points_at(centres, mip), shape)
    flat = volume.plan(points_at(centres, mip), shape[1:])
    fits = [
        (start >= 0).all() and (start + shape <= size).all()
        for start in centres - np.array(shape) // 2
    ]
    assert [not reason for reason in plan.why] == fits
    assert sorted(plan.order) == list(np.flatnonzero(fits))
    cut = volume.cut([plan, flat], plan.order)
    assert np.array_equal(cut.rows, plan.order) and not cut.left_out
    for row, cube, patch in zip(cut.rows, *cut.pixels, strict=True):
        z, y, x = centres[row] - np.array(shape) // 2
        expected = array[z : z + shape[0], y : y + shape[1], x : x + shape[2]]
        assert np.array_equal(cube, expected) and cube.dtype == array.dtype
        assert np.array_equal(patch[0], expected[shape[0] // 2])


def test_the_unit_of_the_points_does_not_matter_but_must_be_known(volumes):
    points = points_at([[20, 70, 60]])
    table_voxels = Points(points.voxels((4, 4, 40)), (4, 4, 40))
    plans = [volumes[0].plan(each, (8, 16, 16)) for each in (points, table_voxels)]
    assert np.array_equal(plans[0].starts, plans[1].starts)
    assert np.array_equal(plans[0].starts[0] - FIRST[0], [20 - 4, 70 - 8, 60 - 8])
    with pytest.raises(UnitError, match="no unit"):
        volumes[0].plan(points.nm, (8, 16, 16))


def test_what_reaches_beyond_the_volume_is_named(volumes):
    plan = volumes[0].plan(
        points_at([[20, 70, 60], [20, 3, 60], [39, 70, 129], [20, 70, 5000]]), (8, 16, 16)
    )
    assert plan.why[0] == ""
    assert "edge" in plan.why[1] and "5 px along y" in plan.why[1]
    assert "7 px along x, 3 px along z" in plan.why[2]
    assert "outside the volume" in plan.why[3]
    assert list(plan.order) == [0]


def test_the_order_keeps_neighbours_together_whatever_the_order_of_the_points(volumes):
    centres = everywhere(300)
    plans = [
        volumes[0].plan(points_at(centres[way]), (1, 8, 8))
        for way in (slice(None), slice(None, None, -1))
    ]
    ordered = [
        centres[way][plan.order]
        for way, plan in zip((slice(None), slice(None, None, -1)), plans, strict=True)
    ]
    assert np.array_equal(*ordered)
    chunk = [tuple(place) for place in (plans[0].starts[plans[0].order] - FIRST[0]) // served.CHUNK]
    assert len(set(chunk)) == 1 + sum(
        one != other for one, other in zip(chunk[1:], chunk[:-1], strict=True)
    )


def test_each_chunk_is_asked_for_once(server, monkeypatch):
    monkeypatch.setattr(cutouts, "GROUP_BYTES", 200_000)
    volume = Volume.open(server.url)
    plan = volume.plan(points_at(everywhere(300)), (8, 32, 32))
    cut = volume.cut([plan, volume.plan(points_at(everywhere(300)), (32, 32))], plan.order)
    assert len(cut.rows) == len(plan.order) > 100
    assert server.chunk_requests == served.chunks_of(plan, volume.scale)
    assert {count for path, count in server.requests.items() if path != "/info"} == {1}


def test_each_chunk_is_asked_for_once_where_the_volume_is_larger_than_the_cache(tmp_path):
    """2304 chunks of 64 KB, of which the cache holds 512; what lies in the sides of tiles comes
    twice.
    """
    shape = (64, 1536, 1536)
    cutout = (12, 48, 48)
    cache = 512 * 2**16
    served.write_volume(tmp_path, [np.ones(shape, np.uint8)], first=(0, 0, 0))
    rng = np.random.default_rng(0)
    voxels = rng.integers(np.array(cutout) // 2, np.array(shape) - np.array(cutout) // 2, (9000, 3))
    points = Points.in_nm(((voxels + 0.5) * served.VOXEL_NM)[:, ::-1])
    with served.VolumeServer(tmp_path) as server:
        volume = Volume.open(server.url, cache_bytes=cache)
        plan = volume.plan(points, cutout, tile_bytes=cache)
        for start in range(0, len(plan.order), 1000):
            volume.cut([plan], plan.order[start : start + 1000])
        requests = server.chunk_requests
    assert served.chunks_of(plan, volume.scale) > 2000
    assert requests <= 1.15 * served.chunks_of(
        plan, volume.scale
    )  # at the default, four times this many chunks of 256 KB fit: below 1.1


def simulated(tile_chunks, held, size, cutout, chunk, count):
    """Reads per distinct chunk of a cache of the last ``held`` chunks, in the order of a plan for
    ``tile_chunks``.
    """
    from collections import OrderedDict

    from nbhelpers.microns.cutouts import Scale

    scale = Scale(0, "", served.VOXEL_NM, (0, 0, 0), size, chunk)
    volume = Volume("", scale, (scale,), np.dtype(np.uint8), "", 1.0, {}, None)
    low = (
        np.random.default_rng(1).integers(0, np.array(size) - cutout + 1, (count, 3))
        + np.array(cutout) // 2
    )
    plan = volume.plan(
        Points.in_nm(((low + 0.5) * served.VOXEL_NM)[:, ::-1]),
        cutout,
        tile_bytes=tile_chunks * int(np.prod(chunk)),
    )
    cache = OrderedDict()
    reads = 0
    for start in plan.starts[plan.order]:
        first = start // chunk
        last = (start + cutout - 1) // chunk
        for place in np.ndindex(*(last - first + 1)):
            place = tuple(first + place)
            reads += place not in cache
            cache[place] = None
            cache.move_to_end(place)
            if len(cache) > held:
                cache.popitem(last=False)
    return reads / served.chunks_of(plan, volume.scale)


@pytest.mark.parametrize(
    ("cutout", "chunk"),
    [((16, 128, 128), (16, 256, 256)), ((16, 57, 57), (16, 64, 64)), ((16, 64, 64), (64, 64, 64))],
)
def test_the_order_of_a_plan_needs_few_reads_of_a_cache_that_holds_a_thousand_chunks(cutout, chunk):
    size = tuple(side * count for side, count in zip(chunk, (6, 48, 48), strict=True))
    assert simulated(1024, 1024, size, cutout, chunk, 25000) <= 1.1


def test_missing_chunks_are_left_out_and_named(folder, arrays, tmp_path):
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "100-164_200-264_30-46":
            (tmp_path / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.relative_to(folder)).write_bytes(file.read_bytes())
    centres = np.array([[8, 20, 20], [8, 100, 100], [20, 60, 30]])
    with served.VolumeServer(tmp_path) as server:
        for url in (f"file://{tmp_path}", server.url):
            volume = Volume.open(url)
            cut = volume.cut([volume.plan(points_at(centres), (8, 16, 16))], [0, 1, 2])
            assert list(cut.rows) == [1, 2] and cut.pixels[0].all()
            ((row, why, _),) = cut.left_out
            assert row == 0 and "no chunk 100-164_200-264_30-46" in why
            assert np.array_equal(cut.pixels[0][0], arrays[0][4:12, 92:108, 92:108])


@pytest.mark.parametrize("fault", [429, 500, 503, "cut"])
def test_passing_faults_of_the_server_are_waited_out(server, arrays, fault):
    volume = Volume.open(server.url)
    server.faults["164-228_264-328_30-46"] = [fault, fault]
    cut = volume.cut([volume.plan(points_at([[8, 100, 100]]), (8, 16, 16))], [0])
    assert np.array_equal(cut.pixels[0][0], arrays[0][4:12, 92:108, 92:108])
    assert server.requests["/8_8_40/164-228_264-328_30-46"] == 3


@pytest.mark.parametrize(
    ("fault", "said"), [(503, "503"), (403, "not public"), ("stall", "no answer within 1 s")]
)
def test_lasting_faults_of_the_server_end_with_an_error(server, fault, said):
    volume = Volume.open(server.url, retries=1, timeout_s=1)
    server.faults["164-228_264-328_30-46"] = [fault] * 20
    with pytest.raises(VolumeError, match=said):
        volume.cut([volume.plan(points_at([[8, 100, 100]]), (8, 16, 16))], [0])


def test_a_damaged_chunk_is_an_error_and_no_pixels(folder, tmp_path):
    served.write_volume(tmp_path, [served.noise((16, 64, 64))])
    next((tmp_path / "8_8_40").iterdir()).write_bytes(b"too short")
    volume = Volume.open(f"file://{tmp_path}")
    with pytest.raises(VolumeError, match="damaged"):
        volume.cut([volume.plan(points_at([[8, 32, 32]]), (8, 16, 16))], [0])


def test_no_server(folder):
    with served.VolumeServer(folder) as server:
        pass
    with pytest.raises(VolumeError, match="cannot be reached"):
        Volume.open(server.url, retries=1)


def test_a_server_that_says_nothing_is_given_up_soon(server, monkeypatch):
    monkeypatch.setattr(cutouts, "ANSWER_S", 0.5)
    server.faults["info"] = ["stall"] * 9
    with pytest.raises(VolumeError, match=r"no answer within 0\.5 s"):
        Volume.open(server.url)


@pytest.mark.parametrize("mip", [2, -1])
def test_a_mip_that_does_not_exist_lists_those_that_do(folder, mip):
    with pytest.raises(VolumeError, match=r"0: 8 x 8 x 40 nm; 1: 16 x 16 x 40 nm"):
        Volume.open(f"file://{folder}", mip=mip)


@pytest.mark.parametrize(
    "url", ["/some/folder", "ftp://host/volume", "precomputed://", "file://relative/folder"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(VolumeError):
        Volume.open(url)


def test_a_folder_without_a_volume_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="no file info"):
        Volume.open(f"file://{tmp_path}")
    (tmp_path / "info").write_text('{"scales": []}')
    with pytest.raises(VolumeError, match="no resolution level"):
        Volume.open(f"file://{tmp_path}")


@pytest.mark.parametrize("dtype", [np.uint32, np.float32])
def test_segmentations_and_floats_are_refused(tmp_path, dtype):
    served.write_volume(tmp_path, [np.ones((16, 64, 64), dtype)])
    with pytest.raises(VolumeError, match=np.dtype(dtype).name):
        Volume.open(f"file://{tmp_path}")


def test_a_cutout_larger_than_the_volume_is_refused(volumes):
    with pytest.raises(
        VolumeError, match=r"41 x 16 x 16 px .*larger than the volume of 40 x 150 x 130 px"
    ):
        volumes[0].plan(points_at([[20, 70, 60]]), (41, 16, 16))
    with pytest.raises(VolumeError, match="shape_px"):
        volumes[0].plan(points_at([[20, 70, 60]]), (0, 16, 16))


def test_gzip_written_chunks_are_refused_before_and_while_reading(tmp_path):
    served.write_volume(tmp_path, [served.noise((16, 64, 64))])
    volume = Volume.open(f"file://{tmp_path}")
    chunk = next((tmp_path / "8_8_40").iterdir())
    (chunk.parent / (chunk.name + ".gz")).write_bytes(gzip.compress(chunk.read_bytes()))
    chunk.unlink()
    with pytest.raises(VolumeError, match=r"\.gz: .*compressed.*gunzip"):
        Volume.open(f"file://{tmp_path}")
    with pytest.raises(VolumeError, match=r"\.gz: .*compressed.*gunzip"):
        volume.cut([volume.plan(points_at([[8, 32, 32]]), (8, 16, 16))], [0])


@pytest.mark.parametrize(
    ("url", "https"),
    [
        ("precomputed://gs://bucket/em/v1", "https://storage.googleapis.com/bucket/em/v1/"),
        ("s3://open-data/a/em/", "https://open-data.s3.amazonaws.com/a/em/"),
    ],
)
def test_public_buckets_are_read_without_an_account(url, https):
    from nbhelpers.microns.cutouts import _store_url

    assert _store_url(url) == https


def test_16_bit_volumes(tmp_path):
    array = served.noise((16, 64, 64), dtype=np.uint16)
    served.write_volume(tmp_path, [array])
    volume = Volume.open(f"file://{tmp_path}")
    cut = volume.cut([volume.plan(points_at([[8, 32, 32]]), (16, 64, 64))], [0])
    assert volume.dtype == np.uint16 and np.array_equal(cut.pixels[0][0], array)


def test_jpeg_volumes_are_read_as_they_were_compressed(tmp_path):
    import tensorstore as ts

    served.write_volume(tmp_path, [served.noise((32, 128, 64))], encoding="jpeg")
    stored = ts.open(
        {"driver": "neuroglancer_precomputed", "kvstore": f"file://{tmp_path}/"}, open=True
    ).result()
    whole = stored[..., 0].read().result().transpose(2, 1, 0)
    volume = Volume.open(f"file://{tmp_path}")
    cut = volume.cut([volume.plan(points_at([[16, 64, 32]]), (20, 90, 50))], [0])
    assert np.array_equal(cut.pixels[0][0], whole[6:26, 19:109, 7:57])


def test_zero_fraction_and_continuity_find_lost_and_shifted_sections():
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    still = np.repeat(gaussian_filter(rng.normal(size=(64, 64)), 2)[None], 8, 0)
    still = (
        (128 + 200 * still + rng.normal(scale=4, size=still.shape)).clip(1, 255).astype(np.uint8)
    )
    lost = still.copy()
    shifted = still.copy()
    lost[3] = 0
    shifted[4:] = np.roll(still[4:], 20, 1)
    cubes = np.stack([still, lost, shifted])
    assert (
        np.array_equal(zero_fraction(cubes)[:2].sum(1), [0, 1]) and zero_fraction(cubes)[1, 3] == 1
    )
    values = continuity(cubes)
    expected = np.mean(
        [np.corrcoef(still[z].ravel(), still[z + 1].ravel())[0, 1] for z in range(7)]
    )
    assert values[0] == pytest.approx(expected, abs=1e-4) and values[2] < values[0] - 0.1
    assert (
        np.isnan(continuity(cubes[:, :1])).all() and (continuity(np.zeros_like(cubes)) == 0).all()
    )


@pytest.mark.parametrize("grey", [0, 1, 128, 255])
def test_a_section_of_one_grey_value_breaks_the_continuity_whichever_value(grey):
    cube = np.repeat(np.random.default_rng(0).integers(1, 255, (1, 48, 48), dtype=np.uint8), 8, 0)
    broken = cube.copy()
    broken[3] = grey
    assert continuity(np.stack([cube, broken])) == pytest.approx([1, 5 / 7])
    assert np.array_equal(np.flatnonzero(constant_sections(broken[None])[0]), [3])
