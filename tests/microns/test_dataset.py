"""Data set folders: one process, many, or killed and gone on with, they end in the same bytes."""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import ParameterError, SplitError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split
from nbhelpers.imagesets.reader import read_image
from nbhelpers.imagesets.stacks import StackError, open_stacks
from nbhelpers.microns import dataset
from nbhelpers.microns.cutouts import Volume, VolumeError
from nbhelpers.microns.dataset import (
    Cutout,
    DatasetError,
    Origin,
    export_tiffs,
    extract,
    load,
    quality_table,
    split_by_neuron,
)

_spec = importlib.util.spec_from_file_location(
    "volume_server", Path(__file__).with_name("volume_server.py")
)
served = sys.modules.setdefault("volume_server", importlib.util.module_from_spec(_spec))
if not hasattr(served, "VolumeServer"):
    _spec.loader.exec_module(served)

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (48, 260, 300)
LOST_SECTION = 40
MISSING_CHUNK = "164-228_264-328_30-46"  # y 64 to 128, x 64 to 128, z 0 to 16 of the array


@pytest.fixture(scope="module")
def array():
    array = served.noise(SHAPE)
    array[LOST_SECTION] = 0
    array[20, 200:, 200:] = 0  # a corner without tissue, in one section
    return array


@pytest.fixture(scope="module")
def place(tmp_path_factory, array):
    folder = tmp_path_factory.mktemp("volume")
    served.write_volume(folder, [array])
    (folder / "8_8_40" / MISSING_CHUNK).unlink()
    return folder


@pytest.fixture(scope="module")
def volume(place):
    return Volume.open(f"precomputed://file://{place}")


@pytest.fixture(scope="module")
def synapses():
    return make_synapses(220)


def make_synapses(count, neurons=12, seed=0):
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, SHAPE, (count, 3))
    nm = ((voxels + served.FIRST + 0.5) * served.VOXEL_NM)[:, ::-1]
    neuron = rng.integers(0, neurons, count)
    table = pd.DataFrame(
        {
            "id": 1000 + rng.permutation(count),
            "label": np.where(neuron % 2, *dataset.CLASSES),
            "group": (7000 + neuron).astype(str),
            "pre_root_id": 864691135000000000 + neuron,
            "post_root_id": 864691136000000000 + rng.integers(0, 50, count),
            "nucleus_id": 7000 + neuron,
        }
    )
    table[["x_nm", "y_nm", "z_nm"]] = nm
    table[["pre_x_nm", "pre_y_nm", "pre_z_nm"]] = nm + np.array([80, 0, 0])
    return table.assign(z=voxels[:, 0], y=voxels[:, 1], x=voxels[:, 2])


ABOUT = {
    "datastack": "minnie65_public",
    "version": 1412,
    "timestamp": "2026-01-01",
    "query_hash": "abc",
    "noise": "some",
}


def make(synapses, volume, folder, *, about=ABOUT, name="test", stack_rows=20, **changes):
    run = {name: changes.pop(name) for name in ("jobs", "report") if name in changes}
    return extract(
        synapses,
        volume,
        folder,
        Cutout(**{"patch_px": 32, "cube_px": (8, 24, 24), **changes}),
        Origin(name, "Noise.", True, about),
        **{"stack_rows": stack_rows, "report": lambda line: None, **run},
    )


@pytest.fixture(scope="module")
def made(synapses, volume, tmp_path_factory):
    return make(synapses, volume, tmp_path_factory.mktemp("made") / "set")


def content(folder):
    """Everything in a data set folder, but for the address of the volume and what a notebook writes
    beside it.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != "volume.json"
    }


def test_every_synapse_is_cut_out_or_listed(made, synapses, array):
    table = made.synapses.set_index("id")
    assert len(made.synapses) > 60 and len(made.left_out) > 60
    assert sorted([*table.index, *made.left_out["id"]]) == sorted(synapses["id"].astype(str))
    patches = made.pixels("patches")
    cubes = made.pixels("cubes")
    assert patches.shape == (len(table), 1, 32, 32) and cubes.shape == (len(table), 1, 8, 24, 24)
    for at, row in enumerate(table.itertuples()):
        assert np.array_equal(
            patches[at, 0], array[row.z, row.y - 16 : row.y + 16, row.x - 16 : row.x + 16]
        )
        assert np.array_equal(
            cubes[at, 0],
            array[row.z - 4 : row.z + 4, row.y - 12 : row.y + 12, row.x - 12 : row.x + 12],
        )
        assert (
            row.source_hash
            == hashlib.sha256(patches[at].tobytes() + cubes[at].tobytes()).hexdigest()
        )
    assert (table["zero_fraction"] == [(cube == 0).mean() for cube in cubes]).all()
    assert table["continuity"].between(0.2, 0.8).all()


def test_what_is_left_out_says_why(made, synapses):
    left_out = made.left_out.merge(synapses.assign(id=synapses["id"].astype(str)), on="id")
    assert (left_out["fix"] != "").all()
    edge = (
        (left_out["z"] < 4)
        | (left_out["z"] > 44)
        | (left_out["y"] < 16)
        | (left_out["y"] > 244)
        | (left_out["x"] < 16)
        | (left_out["x"] > 284)
    )
    assert edge.any() and (left_out["why"].str.contains("edge") == edge).all()
    blank = ~edge & (left_out["z"] - 4 <= LOST_SECTION) & (left_out["z"] + 4 > LOST_SECTION)
    assert blank.any()
    assert (
        left_out.loc[blank, "why"]
        .str.contains("1 of the 8 sections of its cube are blank|no chunk")
        .all()
    )
    missing = left_out["why"].str.contains(MISSING_CHUNK)
    assert missing.any() and (left_out.loc[missing, "z"] < 20).all()
    rest = left_out[~edge & ~blank & ~missing]
    assert rest["why"].str.contains("% of the pixels of its|sections of its").all()


def test_stacks_of_which_nothing_is_left(made, synapses, volume, tmp_path):
    small = make(synapses, volume, tmp_path / "small", stack_rows=2)
    assert any(
        not note["rows"]
        for note in map(
            json.loads, (path.read_text() for path in (small.folder / "work").glob("0*.json"))
        )
    )
    assert (
        small.synapses.equals(made.synapses)
        and (small.synapses.dtypes == made.synapses.dtypes).all()
    )
    assert np.array_equal(np.asarray(small.pixels("cubes")), np.asarray(made.pixels("cubes")))
    blank = synapses[
        synapses["z"].between(LOST_SECTION - 3, LOST_SECTION)
        & synapses["x"].between(20, 280)
        & synapses["y"].between(20, 240)
    ]
    with pytest.raises(
        DatasetError, match=r"all synapses were left out. First: 1 of the 8 sections of its cube"
    ):
        make(blank, volume, tmp_path / "blank")


def test_dataset_json_says_what_it_is(made):
    about = made.about
    assert {
        key: about[key]
        for key in (
            "format",
            "name",
            "source",
            "synthetic",
            "classes",
            "datastack",
            "version",
            "timestamp",
            "query_hash",
        )
    } == {
        "format": 1,
        "name": "test",
        "source": "Noise.",
        "synthetic": True,
        "classes": ["excitatory", "inhibitory"],
        "datastack": "minnie65_public",
        "version": 1412,
        "timestamp": "2026-01-01",
        "query_hash": "abc",
    }
    assert about["about"] == {"noise": "some"}
    for kind, shape in (("patches", [32, 32]), ("cubes", [8, 24, 24])):
        assert (
            about[kind]["shape_px"],
            about[kind]["voxel_nm"],
            about[kind]["mip"],
            about[kind]["dtype"],
        ) == (shape, [40.0, 8.0, 8.0], 0, "uint8")
        assert sum(stack["rows"] for stack in about[kind]["stacks"]) == len(made.synapses)
        for stack in about[kind]["stacks"]:
            assert (
                hashlib.sha256((made.folder / stack["file"]).read_bytes()).hexdigest()
                == stack["sha256"]
            )
    text = "".join(
        path.read_text() for path in (made.folder / "dataset.json", made.folder / "left_out.csv")
    )
    assert str(made.folder.parent) not in text and "/8_8_40" not in text


def test_it_is_an_image_set(made):
    images = ImageSet(
        "test", made.synapses, made.pixels("cubes"), dataset.CLASSES, made.about["source"], True
    )
    assert images.counts() == made.about["per_class"] and len(images.take([2, 0]).pixels) == 2
    assert load(made.folder).synapses.equals(made.synapses)


@pytest.mark.parametrize(
    ("patch_px", "cube_px", "absent"), [(32, None, "cubes"), (None, (8, 24, 24), "patches")]
)
def test_patches_alone_and_cubes_alone(synapses, volume, tmp_path, patch_px, cube_px, absent):
    alone = make(synapses.iloc[:40], volume, tmp_path / "set", patch_px=patch_px, cube_px=cube_px)
    assert alone.about[absent] is None and not (alone.folder / absent).exists()
    assert alone.synapses["continuity"].isna().all() == (cube_px is None)
    with pytest.raises(Exception, match=f"no {absent}"):
        open_stacks(alone.folder, absent)


def test_the_presynaptic_side_can_be_the_centre(synapses, volume, tmp_path, array):
    side = make(synapses, volume, tmp_path / "set", centre="pre", cube_px=None)
    for at, row in enumerate(side.synapses.itertuples()):
        expected = array[row.z, row.y - 16 : row.y + 16, row.x - 6 : row.x + 26]
        assert np.array_equal(side.pixels("patches")[at, 0], expected)


@settings(max_examples=5, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_shards_in_any_order_and_any_order_of_rows_give_the_same_bytes(
    made, synapses, volume, tmp_path_factory, draw, shards
):
    folder = tmp_path_factory.mktemp("shards") / "set"
    numbers = list(range(shards))
    draw.shuffle(numbers)
    for shard in numbers:
        prepare_only(synapses.sample(frac=1, random_state=shard), volume, folder)
        dataset.run_shard(folder, volume, shard, shards, report=lambda line: None)
    dataset.merge(folder)
    assert content(folder) == content(made.folder)


def test_shards_as_processes_give_the_same_bytes(made, synapses, volume, tmp_path):
    request = prepare_only(synapses, volume, tmp_path / "a folder")
    jobs = [
        subprocess.Popen(
            command(request, "--shard", str(shard), "--shards", "3"),
            cwd=tmp_path,
            env=environment(),
        )
        for shard in range(3)
    ]
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    assert not (tmp_path / "a folder" / "dataset.json").exists()
    subprocess.run(command(request, "--merge"), check=True, cwd=tmp_path, env=environment())
    assert content(tmp_path / "a folder") == content(made.folder)


@pytest.mark.slow
def test_snakemake_jobs_give_the_same_bytes(made, synapses, volume, tmp_path):
    request = prepare_only(synapses, volume, tmp_path / "a folder")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "-s",
            ROOT / "workflow" / "extraction.smk",
            "--cores",
            "2",
            "--quiet",
            "all",
            "--directory",
            tmp_path / "snakemake",
            "--config",
            f"request={request}",
            "shards=2",
        ],
        env=environment(),
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.rmtree(request.parent / "shards", ignore_errors=True)
    assert content(tmp_path / "a folder") == content(made.folder)


def prepare_only(synapses, volume, folder):
    return dataset.prepare(
        synapses,
        volume,
        folder,
        Cutout(patch_px=32, cube_px=(8, 24, 24)),
        Origin("test", "Noise.", True, ABOUT),
        stack_rows=20,
    )


def command(request, *arguments):
    return [
        sys.executable,
        "-m",
        "nbhelpers.microns.dataset",
        "--request",
        str(request),
        *arguments,
    ]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_killed_run_goes_on_without_fetching_again(synapses, place, tmp_path):
    folder = tmp_path / "set"
    with served.VolumeServer(place, latency_s=0.05) as server:
        request = prepare_only(synapses, Volume.open(server.url, concurrency=1), folder)
        job = subprocess.Popen(command(request), env=environment(), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while (
            len(list((folder / "work").glob("0*.json"))) < 3
            and time.monotonic() < deadline
            and job.poll() is None
        ):
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, "the run ended before it was killed"
        finished = sorted(path.stem for path in (folder / "work").glob("0*.json"))
        stamps = {
            path: path.stat().st_mtime_ns
            for path in folder.glob("*/*.ome.tif")
            if path.name[:5] in finished
        }
        (folder / "cubes" / ".part-of-the-killed-one").write_text("half a stack")
        server.latency_s = 0
        server.requests.clear()
        make(synapses, Volume.open(server.url), folder)
        needed = set(server.requests)
        server.requests.clear()
        whole = make(synapses, Volume.open(server.url), tmp_path / "whole")
        assert needed < set(server.requests) and len(needed) < len(server.requests) - 3
    assert len(finished) >= 3 and len(stamps) >= 3
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert content(folder) == content(whole.folder)


def test_a_finished_folder_is_found_without_reading_the_volume(synapses, place, tmp_path):
    lines = []
    with served.VolumeServer(place) as server:
        first = make(synapses, Volume.open(server.url), tmp_path / "other")
        before = server.chunk_requests
        again = make(synapses, Volume.open(server.url), tmp_path / "other", report=lines.append)
        assert server.chunk_requests == before > 0
    assert again.synapses.equals(first.synapses) and "before" in lines[0]


def test_a_damaged_or_lost_stack_is_made_again(made, synapses, volume, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(made.folder, folder)
    (folder / "cubes" / "00001.ome.tif").unlink()
    assert make(synapses, volume, folder) is not None
    assert content(folder) == content(made.folder)
    stack = folder / "patches" / "00002.ome.tif"
    stack.write_bytes(stack.read_bytes()[:-1] + b"!")
    (folder / "dataset.json").unlink()
    with pytest.raises(DatasetError, match=r"1 of \d+ stacks .* damaged: 2\."):
        make(synapses, volume, folder)
    make(synapses, volume, folder)
    assert content(folder) == content(made.folder)


@pytest.mark.parametrize(
    "harm",
    [lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), lambda whole: whole[:-100]],
    ids=["one bit", "cut"],
)
def test_a_finished_data_set_is_not_used_when_a_stack_was_damaged(
    made, synapses, volume, tmp_path, harm
):
    folder = tmp_path / "set"
    shutil.copytree(made.folder, folder)
    stack = folder / "cubes" / "00001.ome.tif"
    stack.write_bytes(harm(stack.read_bytes()))
    lines = []
    make(synapses, volume, folder, report=lines.append)
    assert len(lines) == 1 and lines[0].startswith("stack 2 of")
    assert content(folder) == content(made.folder)


def test_a_finished_data_set_is_found_without_opening_the_volume(made, synapses, volume, tmp_path):
    folder = tmp_path / "set"
    opened = []
    lines = []
    shutil.copytree(made.folder, folder)

    def never():
        opened.append(1)
        return volume

    again = make(synapses, never, folder, mip=0, report=lines.append)
    assert not opened and "before" in lines[0] and again.synapses.equals(made.synapses)
    for change in ({"mip": 1}, {"patch_px": 16}, {"about": {}}):
        with (
            pytest.raises(DatasetError, match="another data set")
            if "mip" not in change
            else nullcontext()
        ):
            make(synapses, never, folder, **change)
    assert len(opened) == 3
    assert (
        make(synapses, never, tmp_path / "new", mip=0).synapses.equals(made.synapses)
        and len(opened) == 4
    )


def test_tables_of_one_miniature_are_not_used_with_the_volume_of_another(
    synapses, volume, tmp_path
):
    for served, of in (("a" * 64, ""), ("", "b" * 64), ("a" * 64, "b" * 64)):
        with pytest.raises(
            DatasetError, match=r"the synapses are of .*miniature.*and the volume is of"
        ):
            make(
                synapses,
                replace(volume, served=of),
                tmp_path / "set",
                about={**ABOUT, "served": served},
            )
    assert make(
        synapses,
        replace(volume, served="a" * 64),
        tmp_path / "set",
        about={**ABOUT, "served": "a" * 64},
    )


@pytest.mark.parametrize("grey", [0, 1, 200, 255])
def test_sections_of_one_grey_value_are_blank_whichever_value(synapses, array, tmp_path, grey):
    there = synapses[synapses["z"].between(10, 20)].iloc[:40]
    changed = array.copy()
    changed[15] = grey
    served.write_volume(tmp_path / "volume", [changed])
    result = make(there, Volume.open(f"file://{tmp_path / 'volume'}"), tmp_path / "set")
    blank = set(result.left_out.loc[result.left_out["why"].str.contains("are blank"), "id"])
    near = there[(there["z"] - 4 <= 15) & (there["z"] + 4 > 15)]["id"].astype(str)
    assert len(blank) > 5 and blank <= set(near) and not set(near) & set(result.synapses["id"])


@pytest.mark.slow
def test_jobs_side_by_side_give_the_same_bytes_and_say_what_failed(made, synapses, place, tmp_path):
    with served.VolumeServer(place) as server:
        volume = Volume.open(server.url, retries=0)
        server.faults["8_8_40"] = [503] * 10_000
        with pytest.raises(DatasetError, match="a job failed: .*503"):
            make(synapses, volume, tmp_path / "a folder", jobs=2)
        server.faults.clear()
        make(synapses, volume, tmp_path / "a folder", jobs=3)
        make(synapses, volume, tmp_path / "one")
    assert content(tmp_path / "a folder") == content(tmp_path / "one")
    assert np.array_equal(
        np.asarray(load(tmp_path / "one").pixels("cubes")), np.asarray(made.pixels("cubes"))
    )
    with pytest.raises(ParameterError, match="jobs"):
        make(synapses, volume, tmp_path / "none", jobs=0)


def test_merging_too_early_names_the_stacks(synapses, volume, tmp_path):
    prepare_only(synapses, volume, tmp_path / "set")
    dataset.run_shard(tmp_path / "set", volume, 0, 2, report=lambda line: None)
    with pytest.raises(DatasetError, match="stacks are not finished"):
        dataset.merge(tmp_path / "set")
    with pytest.raises(StackError, match="no finished data set"):
        load(tmp_path / "set")


@pytest.mark.parametrize(
    "change", [{"patch_px": 16}, {"name": "other"}, {"about": {}}, {"stack_rows": 21}]
)
def test_a_folder_with_another_request_is_refused(made, synapses, volume, change, tmp_path):
    before = content(made.folder)
    with pytest.raises(DatasetError, match="another data set"):
        make(synapses, volume, made.folder, **change)
    with pytest.raises(DatasetError, match="another data set"):
        make(synapses.iloc[1:], volume, made.folder)
    assert content(made.folder) == before
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(DatasetError, match="something else"):
        make(synapses, volume, tmp_path)


def from_the_system(pixels):
    raise OSError(errno.ENOSPC, "No space left on device")


def from_numpy(pixels):
    with open("/dev/full", "wb") as full:  # as tifffile writes: the error has no number
        np.ascontiguousarray(pixels).tofile(full)
    raise AssertionError("the full disk took the pixels")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("fill", [from_the_system, from_numpy])
def test_a_full_disk_loses_nothing_that_is_finished(
    made, synapses, volume, tmp_path, monkeypatch, fill
):
    folder = tmp_path / "set"
    written = []

    def until_full(path, pixels, *arguments):
        if len(written) == 5:
            fill(pixels)
        written.append(path)
        return dataset_write(path, pixels, *arguments)

    dataset_write = dataset.write_stack
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_stack", until_full)
        with pytest.raises(DatasetError, match=r"disk is full: stack 3 of \d+ .*run again"):
            make(synapses, volume, folder)
    assert {path.name for path in (folder / "work").glob("0*.json")} == {"00000.json", "00001.json"}
    stamps = {path: path.stat().st_mtime_ns for path in written[:4]}
    make(synapses, volume, folder)
    assert content(folder) == content(made.folder)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_a_server_that_fails_for_good_ends_with_an_error_and_nothing_half_done(
    synapses, place, tmp_path
):
    with served.VolumeServer(place) as server:
        volume = Volume.open(server.url, retries=0)
        server.faults["8_8_40"] = [503] * 1000
        with pytest.raises(VolumeError, match="503.*what is finished is kept"):
            make(synapses, volume, tmp_path / "set")
        assert not (tmp_path / "set" / "dataset.json").exists()
        server.faults.clear()
        assert len(make(synapses, volume, tmp_path / "set").synapses) > 60


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop(columns="x_nm"), "columns ..x_nm.. are missing"),
        (lambda table: table.assign(id=1), "id 1 stands there twice"),
        (lambda table: table.assign(label="other"), r"labels \['other'\]"),
        (lambda table: table.assign(label=None), "row 0: it has no label"),
        (lambda table: table.assign(id="../" + table["id"].astype(str)), "cannot be a file name"),
        (lambda table: table.assign(continuity=1.0), "column continuity is there already"),
        (
            lambda table: table.assign(x_nm=table["x_nm"] + 1e9),
            "not one of the 30 synapses .*outside the volume",
        ),
    ],
)
def test_tables_that_cannot_be_used_are_named(synapses, volume, tmp_path, change, said):
    with pytest.raises(DatasetError, match=said):
        make(change(synapses.iloc[:30]), volume, tmp_path / "set")
    assert not (tmp_path / "set" / "dataset.json").exists()


@pytest.mark.parametrize("change", [{"centre": "post"}, {"patch_px": None, "cube_px": None}])
def test_parameters_that_cannot_be_used_are_named(synapses, volume, tmp_path, change):
    with pytest.raises(ParameterError):
        make(synapses, volume, tmp_path / "set", **change)


def test_single_tiffs_on_request(made, tmp_path):
    table = export_tiffs(made.folder, tmp_path / "out")
    assert table["id"].tolist() == made.synapses["id"].tolist()
    assert len(list((tmp_path / "out").rglob("*.tif"))) == len(table)
    for position in (5, 2):
        path = tmp_path / "out" / table["path"][position]
        assert np.array_equal(read_image(path), made.pixels("patches")[position])
        with tifffile.TiffFile(path) as tiff:
            assert 'PhysicalSizeX="8.0"' in tiff.ome_metadata


def test_the_quality_of_each_class(made):
    table = quality_table(made.folder).set_index("class")
    assert list(table.index) == ["excitatory", "inhibitory", "all"]
    assert table["synapses"][:2].to_dict() == made.about["per_class"]
    assert table.loc["all", "zero fraction, largest"] == made.synapses["zero_fraction"].max()


def test_an_edited_table_is_not_used(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "set")
    (tmp_path / "set" / "left_out.csv").write_text("id,why,fix\n")
    with pytest.raises(StackError, match=r"left_out\.csv.*changed"):
        load(tmp_path / "set")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 9)),
        min_size=8,
        max_size=31,
        unique_by=lambda one: one[0],
    ),
    st.integers(0, 2**31),
)
def test_the_split_keeps_neurons_whole_and_both_classes_in_every_part(neurons, seed):
    rows = [
        {"id": f"{neuron}-{at}", "group": str(neuron), "label": dataset.CLASSES[place % 2]}
        for place, (neuron, count) in enumerate(neurons)
        for at in range(count)
    ]
    table = pd.DataFrame(rows)
    split = split_by_neuron(table, seed=seed)
    joined = split.table.merge(table[["id", "label"]], on="id")
    assert (joined.groupby("group")["part"].nunique() == 1).all()
    assert (joined.groupby("part")["label"].nunique() == 2).all() and joined["part"].nunique() == 3
    assert joined.groupby("group").size().equals(table.groupby("group").size())
    shuffled = split_by_neuron(table.sample(frac=1, random_state=0), seed=seed)
    assert shuffled.hash == split.hash


def test_the_split_has_the_shares_asked_for_and_survives_the_disk(tmp_path):
    table = pd.DataFrame(
        {"id": np.arange(400).astype(str), "group": (np.arange(400) // 10).astype(str)}
    )
    table["label"] = np.where(table["group"].astype(int) % 2, *dataset.CLASSES)
    split = split_by_neuron(table, seed=1)
    neurons = split.table.groupby("part")["group"].nunique()
    assert neurons.to_dict() == {"train": 28, "validation": 6, "test": 6}
    assert split.hash != split_by_neuron(table, seed=2).hash
    split.save(tmp_path / "split.csv")
    assert Split.load(tmp_path / "split.csv").hash == split.hash
    assert json.loads((tmp_path / "split.json").read_text())["hash"] == split.hash


def test_a_split_that_is_impossible_is_refused():
    table = pd.DataFrame(
        {
            "id": list("abcdef"),
            "group": list("ABCDEE"),
            "label": ["excitatory"] * 3 + ["inhibitory"] * 3,
        }
    )
    with pytest.raises(SplitError, match="inhibitory.*2 neurons"):
        split_by_neuron(table, seed=0)
    with pytest.raises(SplitError, match="neuron E.*two different classes"):
        split_by_neuron(table.assign(label=["excitatory"] * 5 + ["inhibitory"]), seed=0)
