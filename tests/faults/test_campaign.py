"""Kills at random moments, and every other fault of the table ``docs/faults.md``.

``NBHELPERS_FAULTS=20`` kills each activity 30 times instead of twice, runs all tests that try a
fault, wherever they stand, and writes the numbers into the table.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import fault_table
import numpy as np
import pytest

from nbhelpers.core.errors import InputError

ROOT = fault_table.ROOT
WHOLE = "NBHELPERS_FAULTS" in os.environ
KILLS = 30 if WHOLE else 2
SEED = 7
ROWS: list[dict] = []


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    names = ("training", "extraction", "prediction", "rendering")
    program = Path(__file__).with_name("kill_job.py")
    ended = subprocess.run(
        [sys.executable, str(program), ",".join(names), str(tmp_path), str(KILLS), str(SEED)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    for name in names:
        found = json.loads((tmp_path / name / "outcome.json").read_text())
        ROWS.append({"name": name, **found})
        assert found["kills"] == KILLS and found["ended"] >= 1 and found["lost"] == [], name


@pytest.fixture
def training(tmp_path):
    """Trains a tiny network; the second argument is the work folder."""
    import kill_job

    def run(folder: Path) -> bytes:
        kill_job.train(tmp_path, folder)
        return (folder / "predictions.csv").read_bytes()

    return run


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The predictions of a training that nobody disturbs."""
    import kill_job

    folder = tmp_path_factory.mktemp("undisturbed")
    kill_job.train(folder, folder)
    return (folder / "predictions.csv").read_bytes()


def test_a_clock_that_jumps_changes_nothing(training, expected, tmp_path, monkeypatch):
    real = time.time
    calls = []

    def jumping() -> float:
        calls.append(1)
        return real() + (-1) ** len(calls) * 86400

    monkeypatch.setattr(time, "time", jumping)
    assert training(tmp_path / "jumping") == expected


@pytest.mark.slow
def test_files_dated_in_the_future_or_the_past_are_not_out_of_date(make_checkout):
    checkout = make_checkout()
    assert checkout.run(timeout=400).returncode == 0
    for date in (0, time.time() + 10 * 365 * 86400):
        for path in checkout.root.rglob("*"):
            if path.is_file():
                os.utime(path, (date, date))
        assert "Nothing is out of date." in checkout.run(timeout=400).stdout


def test_a_finished_training_predicts_to_the_last_digit_what_it_did(training, expected, tmp_path):
    assert training(tmp_path / "one") == expected
    (tmp_path / "one" / "predictions.csv").unlink()
    assert training(tmp_path / "one") == expected  # read from the file, not trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished training."""
    import kill_job

    folder = tmp_path_factory.mktemp("finished")
    kill_job.train(folder, folder)
    (folder / "predictions.csv").unlink()
    return folder


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros inside": lambda content: content[:-200] + bytes(100) + content[-100:],
    "noise": lambda content: np.random.default_rng(0).bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["network.safetensors", "training.json"])
def test_a_damaged_checkpoint_is_trained_again(
    expected, training, finished, tmp_path, name, damage
):
    shutil.copytree(finished, tmp_path / "one")
    (path,) = (tmp_path / "one").rglob(name)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert training(tmp_path / "one") == expected


@pytest.mark.parametrize("name", ["resume.ckpt", "best.ckpt"])
def test_a_damaged_point_of_return_is_not_used(training, expected, tmp_path, name, monkeypatch):
    from nbhelpers.training import trainer

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(trainer, "save_checkpoint", kill)
    with pytest.raises(Killed):
        training(tmp_path / "one")
    monkeypatch.undo()
    (path,) = (tmp_path / "one").rglob(name)
    content = path.read_bytes()
    for damage in DAMAGE.values():
        path.write_bytes(damage(content))
        assert training(tmp_path / "one") == expected
        for other in (tmp_path / "one").rglob("*.*"):
            if other.name in ("training.json", "predictions.csv"):
                other.unlink()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"process 1, since 10:00:00"])
def test_a_damaged_lock_neither_blocks_nor_breaks(tmp_path, content):
    from nbhelpers.runner.places import RunnerPaths
    from nbhelpers.runner.workflow import hold_lock

    paths = RunnerPaths(tmp_path)
    paths.lock.parent.mkdir(parents=True)
    paths.lock.write_bytes(content)
    with hold_lock(paths):
        paths.lock.write_bytes(content)
        with pytest.raises(InputError, match="another run is going on"):
            hold_lock(paths)
    hold_lock(paths).close()


def test_too_little_memory_for_an_image_is_said_in_words(tmp_path):
    import tifffile

    path = tmp_path / "large.tif"
    tifffile.imwrite(path, np.zeros((9000, 9000), np.uint16), compression="zlib")
    program = (
        "import resource, sys\nimport tifffile, imagecodecs, numpy\nfrom "
        "nbhelpers.imagesets.reader import *\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20,) * 2)\n"
        "try:\n    read_image(sys.argv[1])\nexcept PassingReadError as error:\n    print('named:', "
        "error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "named:" in ended.stdout and "large.tif" in ended.stdout and "memory" in ended.stdout, (
        ended.stderr[-2000:]
    )


def test_a_full_disk_leaves_the_file_of_before(tmp_path):
    """The size of a file is limited as a full disk limits it: a write fails in the middle."""
    path = tmp_path / "table.csv"
    path.write_text("before")
    program = (
        "import resource, signal, sys\nfrom nbhelpers.core.files import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, "
        "(5000, 5000))\n"
        "try:\n    write_text(sys.argv[1], 'x' * 20000)\nexcept OSError:\n    print('named')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (
        ended.stdout == "named\n"
        and path.read_text() == "before"
        and len(list(tmp_path.iterdir())) == 1
    )


HERE = "tests/faults/test_campaign.py::"
# Fault, how it must end, and the tests that try it.
FAULTS = (
    (
        "disk full",
        "said in words; finished results and files are as they were",
        (
            "tests/runner/test_execution.py::test_a_full_or_read_only_folder_is_said_in_words_and_loses_nothing",
            "tests/microns/test_dataset.py::test_a_full_disk_loses_nothing_that_is_finished",
            HERE + "test_a_full_disk_leaves_the_file_of_before",
        ),
    ),
    (
        "read-only folder",
        "said in words; the last good result stays",
        (
            "tests/runner/test_execution.py::test_a_full_or_read_only_folder_is_said_in_words_and_loses_nothing",
            "tests/runner/test_command_line.py::test_a_results_folder_that_cannot_be_made_is_named",
        ),
    ),
    (
        "finished and read again",
        "the same, to the last digit",
        (HERE + "test_a_finished_training_predicts_to_the_last_digit_what_it_did",),
    ),
    (
        "clock jumps",
        "the same result; nothing counts as out of date",
        (
            HERE + "test_a_clock_that_jumps_changes_nothing",
            HERE + "test_files_dated_in_the_future_or_the_past_are_not_out_of_date",
        ),
    ),
    (
        "two runs at once in one checkout",
        "the second one says so and does nothing",
        ("tests/runner/test_command_line.py::test_a_second_run_in_the_same_checkout_is_refused",),
    ),
    (
        "memory limit hit",
        "said in words, or the last good result stays beside a marked report",
        (
            HERE + "test_too_little_memory_for_an_image_is_said_in_words",
            "tests/runner/test_execution.py::test_each_failure_ends_as_a_marked_report_beside_the_last_good_one",
            "tests/saliency/test_maps.py::test_a_batch_too_large_for_memory_is_split",
            "tests/saliency/test_maps.py::test_an_image_too_large_for_memory_is_named_and_other_errors_pass",
        ),
    ),
    (
        "network cut, slow, with errors",
        "waited out, or an error that says what to do",
        (
            "tests/microns/test_cutouts.py::test_passing_faults_of_the_server_are_waited_out",
            "tests/microns/test_cutouts.py::test_lasting_faults_of_the_server_end_with_an_error",
            "tests/microns/test_cutouts.py::test_a_server_that_says_nothing_is_given_up_soon",
            "tests/microns/test_cutouts.py::test_no_server",
        ),
    ),
    (
        "download cut",
        "the next try asks for the rest only",
        (
            "tests/imagesets/test_downloads.py::test_after_a_cut_only_the_rest_is_asked_for",
            "tests/imagesets/test_downloads.py::test_a_part_that_was_complete_gets_its_name",
            "tests/imagesets/test_downloads.py::test_an_error_of_the_server_keeps_what_came",
        ),
    ),
    (
        "wrong bytes from the network",
        "refused; nothing is kept",
        (
            "tests/imagesets/test_spines.py::test_a_cut_or_changed_download_leaves_nothing",
            "tests/imagesets/test_downloads.py::test_wrong_bytes_in_the_part_cost_one_more_download",
            "tests/imagesets/test_downloads.py::test_a_file_changed_at_its_source_is_refused_and_nothing_is_kept",
            "tests/models/test_weights.py::test_a_cut_download_leaves_nothing",
            "tests/microns/test_cutouts.py::test_a_damaged_chunk_is_an_error_and_no_pixels",
        ),
    ),
    (
        "corrupted cache",
        "made again, the same",
        (
            "tests/microns/test_dataset.py::test_a_damaged_or_lost_stack_is_made_again",
            "tests/microns/test_dataset.py::test_a_finished_data_set_is_not_used_when_a_stack_was_damaged",
        ),
    ),
    (
        "corrupted checkpoint",
        "trained again to the same result, or refused by name",
        (
            HERE + "test_a_damaged_checkpoint_is_trained_again",
            HERE + "test_a_damaged_point_of_return_is_not_used",
            "tests/training/test_checkpoints.py::test_a_cut_checkpoint_is_refused",
        ),
    ),
    (
        "corrupted result",
        "run again, or named as missing",
        (
            "tests/runner/test_command_line.py::test_a_stamp_whose_result_is_not_there_whole_is_removed",
            "tests/audit/test_reproduction.py::test_a_damaged_file_is_a_missing_run",
        ),
    ),
    (
        "file that would unpack without end",
        "refused in words, within 10 s and 1 GiB",
        (
            "tests/imagesets/test_own_pixels.py::test_a_piece_is_never_unpacked_beyond_what_was_said",
            "tests/imagesets/test_own_pixels.py::test_a_small_file_of_a_huge_piece_takes_neither_time_nor_memory",
            "tests/imagesets/test_own_pixels.py::test_a_jpeg_in_a_tiff_that_says_it_is_huge_is_refused",
            "tests/imagesets/test_own_pixels.py::test_a_png_that_is_too_large_in_memory_is_refused_by_its_size",
            "tests/imagesets/test_own_pixels.py::test_a_jpeg_that_goes_over_its_pixels_for_ever_is_refused",
            "tests/imagesets/test_own_pixels.py::test_thousands_of_pages_that_lead_nowhere_are_refused_at_once",
            "tests/imagesets/test_own_pixels.py::test_planes_without_end_are_refused_at_once",
        ),
    ),
    (
        "pipe, socket, device, link in a circle",
        "named and never opened; the others are read",
        (
            "tests/imagesets/test_own_pixels.py::test_pipes_and_devices_are_refused_instead_of_waited_for",
            "tests/faults/test_special_files.py::test_special_files_are_listed_and_the_masks_beside_them_read",
            "tests/faults/test_special_files.py::test_the_hash_of_a_folder_with_special_files_takes_no_time",
            "tests/faults/test_special_files.py::test_a_special_file_given_as_the_folder_is_refused",
            "tests/faults/test_special_files.py::test_every_folder_is_walked_once_however_links_lead",
        ),
    ),
    (
        "corrupted lock",
        "neither blocks nor breaks",
        (HERE + "test_a_damaged_lock_neither_blocks_nor_breaks",),
    ),
)


def test_every_test_of_the_table_is_there():
    for _, _, tests in FAULTS:
        for test in tests:
            file, name = test.split("::")
            assert re.search(
                rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
            ), test


@pytest.mark.skipif(not WHOLE, reason="the table is written with NBHELPERS_FAULTS=20")
def test_write_the_kills():
    assert len(ROWS) == 4, "run the test above, too"
    fault_table.record("kills", {"seed": SEED, "rows": ROWS})


@pytest.mark.skipif(not WHOLE, reason="the table is written with NBHELPERS_FAULTS=20")
def test_write_the_others(tmp_path):
    tests = sorted({test for _, _, named in FAULTS for test in named})
    environment = {key: value for key, value in os.environ.items() if key != "NBHELPERS_FAULTS"}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--junitxml",
            str(tmp_path / "out.xml"),
            *tests,
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        timeout=1500,
    )
    cases = [
        (
            f"{case.get('classname').replace('.', '/')}.py::{case.get('name').split('[')[0]}",
            any(one.tag in ("failure", "error", "skipped") for one in case),
        )
        for case in ElementTree.parse(tmp_path / "out.xml").iter("testcase")
    ]
    rows = [
        {
            "fault": fault,
            "ends": ends,
            "tests": [test.split("::")[1] for test in named],
            "cases": sum(name in named for name, _ in cases),
            "lost": sum(bad for name, bad in cases if name in named),
        }
        for fault, ends, named in FAULTS
    ]
    assert all(row["cases"] >= len(row["tests"]) for row in rows), rows
    fault_table.record("others", {"rows": rows})
    assert not any(row["lost"] for row in rows), rows
