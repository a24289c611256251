"""The command behind run_all.sh, from end to end, on toy notebooks."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nbhelpers.reports.manifest import files_of
from nbhelpers.reports.notebooks import all_notebooks
from nbhelpers.runner import command_line as cli
from nbhelpers.runner import workflow
from nbhelpers.runner.index import last_state, write_index
from nbhelpers.runner.places import RunnerPaths
from nbhelpers.runner.plan import make_requests

ROOT = Path(__file__).resolve().parents[2]
HEADLINE = "Accuracy 0.900 [0.850, 0.950], 120 images (highest floor 0.600, majority class)"


def test_run_then_nothing_to_do_then_only_what_changed(make_checkout, toy):
    checkout = make_checkout()
    checkout.add(
        "02_second",
        toy.cells("02_second", middle=toy.walk + "assert steps < 9, 'too many steps'\n"),
    )
    checkout.profile("demo", "notebooks:\n  01_toy: {}\n  02_second: {}\n")
    first = checkout.run()
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert (
        sum(line.startswith("01_toy") and "done" in line and HEADLINE in line for line in lines)
        == 1
    )
    assert sum(line.startswith("02_second") and "done" in line for line in lines) == 1
    assert lines[-1] == "Reports: results/index.html"
    assert (checkout.results / "index.html").exists()

    # Other times, same contents: a git checkout must not run anything again.
    for path in (*checkout.root.glob("notebooks/*"), *checkout.root.glob("profiles/*")):
        os.utime(path)
    began = time.monotonic()
    again = checkout.run()
    assert time.monotonic() - began < 15
    assert again.returncode == 0
    assert again.stdout.count("up to date") == 2 and "Nothing is out of date." in again.stdout
    assert "running" not in again.stdout

    # One notebook changes, the other's stamp gets lost: the first runs, the second is recognised.
    checkout.add("01_toy", toy.cells("01_toy", middle=toy.walk + "total += 1\n"))
    for stamp in (checkout.results / ".stamps").glob("02_*"):
        stamp.unlink()
    changed = checkout.run()
    assert changed.returncode == 0
    assert "(notebook changed)" in changed.stdout and changed.stdout.count("up to date") == 1
    assert checkout.json("01_toy/metrics.json")["metrics"]["total"] == 2.5

    # A failure is said, counted in the exit status, and leaves the last good result.
    failed = checkout.run("second", "-p", "steps", "9")
    assert failed.returncode == 1
    assert (
        "02_second  FAILED" in failed.stdout and "AssertionError: too many steps" in failed.stdout
    )
    assert (
        "results/02_second.failed/report.html" in failed.stdout
        and "results/.logs/02_second.log" in failed.stdout
    )
    assert "01_toy" not in failed.stdout
    assert checkout.json("02_second/metrics.json")["parameters"]["steps"] == 3
    listed = checkout.run("--list").stdout
    assert (
        "Last run: failed   AssertionError" in listed and f"Last run: done   {HEADLINE}" in listed
    )
    assert "-p steps    3            [1..1000] steps to take" in listed
    assert "Does it walk?" in listed and "--profile demo: 01_toy, 02_second" in listed


WRITES_ITS_THREADS = """import json, os, time, uuid, torch
began = time.time()
time.sleep(2)
found = {"from": began, "to": time.time(), "asked": int(os.environ["OMP_NUM_THREADS"]),
        "torch": torch.get_num_threads()}
(run.repository / f"threads-{uuid.uuid4().hex}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_notebooks_run_side_by_side_and_never_with_more_threads_than_cores(make_checkout, toy):
    checkout = make_checkout()
    names = ["01_toy", "02_second", "03_third"]
    for name in names:
        checkout.add(name, toy.cells(name, middle=WRITES_ITS_THREADS + toy.walk))
    checkout.profile(
        "demo",
        "notebooks:\n"
        + "".join(f"  {name}: {{}}\n" for name in names)
        + "after:\n  03_third: [01_toy, 02_second]\n",
    )

    def threads() -> list[dict]:
        found = [json.loads(path.read_text()) for path in checkout.root.glob("threads-*.json")]
        assert all(one["asked"] == one["torch"] for one in found)
        return sorted(found, key=lambda one: one["from"])

    whole = checkout.run("--cores", "2")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    runs = threads()
    assert [one["asked"] for one in runs] == [
        1,
        1,
        2,
    ]  # the last one waited for the others, and has both cores
    assert runs[1]["from"] < runs[0]["to"], "the first two did not run side by side"
    for one in runs:
        at_once = sum(
            other["asked"] for other in runs if other["from"] <= one["from"] < other["to"]
        )
        assert at_once <= 2

    # What is repeated keeps the threads it had; what is asked for alone gets more.
    for path in checkout.root.glob("threads-*.json"):
        path.unlink()
    verified = checkout.run("--cores", "2", "--verify", "01_toy")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert [one["asked"] for one in threads()] == [1]
    assert checkout.run("--cores", "2", "--force", "01_toy").returncode == 0
    assert [one["asked"] for one in threads()] == [1, 2]


def test_what_comes_after_a_failed_notebook_is_said_not_to_have_run(make_checkout, toy):
    checkout = make_checkout()
    checkout.add("01_toy", toy.cells("01_toy", middle="raise ValueError('neuron 7')"))
    checkout.add("02_second", toy.cells("02_second", middle=toy.walk))
    checkout.profile(
        "demo", "notebooks:\n  01_toy: {}\n  02_second: {}\nafter:\n  02_second: [01_toy]\n"
    )
    ended = checkout.run()
    assert ended.returncode != 0 and "neuron 7" in ended.stdout
    line = next(line for line in ended.stdout.splitlines() if line.startswith("02_second"))
    assert "not run" in line and "01_toy failed" in line and "FAILED" not in line


@pytest.mark.parametrize(
    ("cores", "notebooks", "threads"),
    [(1, 1, 1), (2, 1, 2), (2, 2, 1), (4, 2, 2), (8, 11, 1), (64, 1, 2)],
)
def test_threads_follow_from_what_was_asked_for(cores, notebooks, threads):
    entries = {str(number): {} for number in range(notebooks)}
    workflow.share_threads(entries, cores)
    assert all(entry["threads"] == threads for entry in entries.values())


@pytest.mark.slow
def test_a_changed_helper_runs_exactly_the_notebooks_that_use_it(make_checkout, toy, tmp_path):
    """With a package of its own, in which one helper is changed."""
    package = tmp_path / "package"
    for folder in ("nbhelpers", "workflow"):
        shutil.copytree(
            ROOT / folder,
            package / folder,
            ignore=shutil.ignore_patterns("__pycache__", ".snakemake"),
        )
    shutil.copy(ROOT / "requirements.lock", package)
    checkout = make_checkout()
    checkout.environment = lambda: {
        **os.environ,
        "NBHELPERS_ROOT": str(checkout.root),
        "PYTHONPATH": str(package),
    }
    checkout.add(
        "01_toy",
        toy.cells("01_toy", middle="from nbhelpers.imagesets import polarity\n" + toy.walk),
    )
    checkout.add("02_other", toy.cells("02_other"))
    checkout.profile("demo", "notebooks:\n  01_toy: {}\n  02_other: {}\n")
    first = checkout.run()
    assert first.returncode == 0 and first.stdout.count(" done ") == 2, first.stdout + first.stderr
    helper = package / "nbhelpers/imagesets/polarity.py"
    helper.write_text(helper.read_text() + "\n\nADDED = 1\n")
    second = checkout.run()
    assert second.returncode == 0 and second.stdout.count(" done ") == 1, (
        second.stdout + second.stderr
    )
    assert (
        "nbhelpers/imagesets/polarity.py changed" in second.stdout
        and "02_other  up to date" in second.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tyo"], "Did you mean toy"),
        (["--profile", "dmo"], "Did you mean demo"),
        (["-p", "step", "4"], "Did you mean steps"),
        (["-p", "steps", "four"], "not a whole number"),
        (["-p", "rate", "nan"], "not a finite number"),
        (["-p", "kind", "fency"], "Did you mean fancy"),
        (["-p", "data_dir", "nowhere"], "does not exist"),
        (["-p", "steps"], "expected 2 arguments"),
        (["--cores", "0"], "less than 1"),
        (["--cores", "two"], "invalid int"),
        (["--timeout", "-3"], "positive"),
        (["--timeout", "nan"], "positive"),
        (["--forse"], "Did you mean --force"),
        (["--engine", "slrm"], "mean slurm"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(
    make_checkout, monkeypatch, capsys, arguments, words
):
    checkout = make_checkout()
    monkeypatch.setenv("NBHELPERS_ROOT", str(checkout.root))
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert (
        words in shown.err and shown.err.startswith("run_all.sh: ") and "Traceback" not in shown.err
    )
    assert not checkout.results.exists()


def test_help_and_list_import_nothing_heavy(make_checkout):
    checkout = make_checkout()
    script = (
        "import sys; from nbhelpers.runner import command_line as cli\n"
        "try: cli.main([{!r}])\nexcept SystemExit: pass\n"
        "heavy = {{'torch', 'pandas', 'papermill', 'nbconvert', 'snakemake', 'matplotlib'}} & "
        "set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    for option in ("--help", "--list"):
        ended = subprocess.run(
            [*checkout.command()[:1], "-c", script.format(option)],
            env=checkout.environment(),
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert "01_toy" in ended.stdout or option == "--help"


def test_to_find_that_nothing_is_out_of_date_nothing_heavy_is_imported(finished):
    """Twice: the first time the index is written."""
    script = (
        "import sys; from nbhelpers.runner import command_line as cli\n"
        "assert cli.main([]) == 0\n"
        "heavy = {'torch', 'lightning', 'pandas', 'numpy', 'matplotlib', 'snakemake', 'papermill', "
        "'IPython', 'nbconvert'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    index = finished.checkout.results / "index.html"
    written = []
    for _ in range(2):
        ended = subprocess.run(
            [*finished.checkout.command()[:1], "-c", script],
            env=finished.checkout.environment(),
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        assert "Nothing is out of date." in ended.stdout
        written.append(index.stat().st_mtime_ns)
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ([], ["01_toy up to date"]),
        (["--force"], ["01_toy would run (--force)"]),
        (["-p", "steps", "5"], ["01_toy would run (parameters changed)"]),
        (["toy", "--sweep", "steps=5,6"], ["steps=5 would run", "steps=6 would run"]),
        (["--verify"], ["01_toy would run"]),
    ],
)
def test_a_dry_run_says_what_would_run_and_runs_nothing(
    finished, monkeypatch, capsys, arguments, lines
):
    before = sorted(finished.checkout.root.rglob("*"))
    monkeypatch.setenv("NBHELPERS_ROOT", str(finished.checkout.root))
    assert cli.main([*arguments, "--dry-run"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert len(shown) == len(lines)
    assert all(line.startswith(words) for line, words in zip(shown, lines, strict=True)), shown
    assert sorted(finished.checkout.root.rglob("*")) == before


def test_a_dry_run_checks_everything(finished, monkeypatch, capsys):
    monkeypatch.setenv("NBHELPERS_ROOT", str(finished.checkout.root))
    assert cli.main(["toy", "-p", "steps", "0", "--dry-run"]) == 2
    assert "outside its range" in capsys.readouterr().err


def test_a_second_run_in_the_same_checkout_is_refused(make_checkout, monkeypatch, capsys):
    checkout = make_checkout()
    monkeypatch.setenv("NBHELPERS_ROOT", str(checkout.root))
    lock = workflow.hold_lock(RunnerPaths(checkout.root))
    assert cli.main([]) == 2
    assert (
        f"another run is going on in this checkout (process {os.getpid()}"
        in capsys.readouterr().err
    )
    lock.close()
    workflow.hold_lock(RunnerPaths(checkout.root)).close()


def test_a_results_folder_that_cannot_be_made_is_named(make_checkout, monkeypatch, capsys):
    checkout = make_checkout()
    checkout.results.write_text("a file in the way")
    monkeypatch.setenv("NBHELPERS_ROOT", str(checkout.root))
    assert cli.main([]) == 2
    assert "results" in capsys.readouterr().err
    assert checkout.results.read_text() == "a file in the way"


def test_ctrl_c_ends_the_run_with_a_word(make_checkout, toy):
    checkout = make_checkout()
    checkout.add(
        "01_toy",
        toy.cells(
            "01_toy", middle="import time\n(run.repository / 'here').touch()\ntime.sleep(600)"
        ),
    )
    process = subprocess.Popen(
        checkout.command(),
        env=checkout.environment(),
        cwd=checkout.root,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    until = time.monotonic() + 90
    while not (checkout.root / "here").exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Stopped by the user." in out
    assert checkout.json("01_toy.failed/manifest.json")["reason"] == "Stopped by the user."


@pytest.fixture
def finished(make_checkout):
    """A checkout with a result in place, made without running anything."""
    checkout = make_checkout()
    paths = RunnerPaths(checkout.root)
    entry = workflow.make_entries(
        paths, make_requests(paths, all_notebooks(paths), "demo", [], [])
    )["01_toy"]
    folder = checkout.results / "01_toy"
    folder.mkdir(parents=True)
    for name in ("report.html", "metrics.json"):
        (folder / name).write_text("{}")
    manifest = {
        "state": "ok",
        "fingerprint": entry["fingerprint"],
        "ingredients": entry["parts"],
        "files": files_of(folder),
        "finished": "2026-01-01T10:00:00+00:00",
        "wall_time_s": 3.0,
        "notebook": "01_toy",
        "parameters": entry["values"],
        "data": [],
        "splits": [],
        "figures": [],
        "profile": "demo",
        "headline": {
            "name": "Accuracy",
            "value": 0.9,
            "low": 0.85,
            "high": 0.95,
            "n": 120,
            "floor_name": "majority class",
            "floor": 0.6,
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return argparse.Namespace(
        checkout=checkout,
        paths=paths,
        entry=entry,
        folder=folder,
        manifest=manifest,
        stamp=Path(entry["stamp"]),
    )


def damage(finished, how):
    if how == "cut report":
        (finished.folder / "report.html").write_text("{")
    elif how == "no metrics":
        (finished.folder / "metrics.json").unlink()
    elif how == "half manifest":
        (finished.folder / "manifest.json").write_text(json.dumps(finished.manifest)[:50])
    elif how == "another run":
        (finished.folder / "manifest.json").write_text(
            json.dumps({**finished.manifest, "fingerprint": "0" * 64})
        )
    elif how == "failed since":
        (finished.checkout.results / "01_toy.failed").mkdir()
    elif how == "nothing there":
        import shutil

        shutil.rmtree(finished.folder)


@pytest.mark.parametrize(
    "how",
    ["cut report", "no metrics", "half manifest", "another run", "failed since", "nothing there"],
)
def test_a_stamp_whose_result_is_not_there_whole_is_removed(finished, how):
    workflow.check_stamp(finished.paths, "01_toy", finished.entry, force=False)
    assert finished.stamp.exists()  # written anew, as the result is whole
    damage(finished, how)
    workflow.check_stamp(finished.paths, "01_toy", finished.entry, force=False)
    assert not finished.stamp.exists()


def test_force_forgets_the_stamp_and_half_done_work(finished):
    workflow.check_stamp(finished.paths, "01_toy", finished.entry, force=False)
    work = finished.paths.work_of("01_toy", finished.entry["fingerprint"])
    work.mkdir(parents=True)
    workflow.check_stamp(finished.paths, "01_toy", finished.entry, force=True)
    assert not finished.stamp.exists() and not work.exists()


def test_the_index_marks_done_outdated_failed_and_never_run(finished, toy):
    checkout = finished.checkout
    paths = finished.paths
    checkout.add("02_never")

    def kinds():
        notebooks = all_notebooks(paths)
        write_index(paths)
        return [last_state(paths, notebook).kind for notebook in notebooks.values()]

    workflow.check_stamp(paths, "01_toy", finished.entry, force=False)
    assert kinds() == ["done", "never"]
    page = (checkout.results / "index.html").read_text()
    assert (
        "0.900" in page
        and "[0.850, 0.950], n = 120" in page
        and "floor 0.600, majority class" in page
    )
    assert 'href="01_toy/report.html"' in page and "http:" not in page
    checkout.add("01_toy", toy.cells("01_toy", middle="total = 0\n"))
    assert kinds() == ["outdated", "never"]
    assert "notebook changed since 2026-01-01" in (checkout.results / "index.html").read_text()
    failed = checkout.results / "01_toy.failed"
    failed.mkdir()
    (failed / "manifest.json").write_text(
        json.dumps({"state": "failed", "reason": "no <b>luck</b>"})
    )
    (failed / "report.html").write_text("x")
    assert kinds() == ["failed", "never"]
    page = (checkout.results / "index.html").read_text()
    assert (
        "no &lt;b&gt;luck" in page
        and 'href="01_toy.failed/report.html"' in page
        and "last good report" in page
    )


def test_the_index_survives_a_notebook_that_cannot_be_read(finished):
    (finished.checkout.root / "notebooks/03_broken.ipynb").write_text("{")
    write_index(finished.paths)
    assert "cannot be read" in (finished.checkout.results / "index.html").read_text()


def test_durations_are_never_sixty_seconds_of_a_minute():
    assert [workflow.duration(value) for value in (None, 0.4, 119.4, 119.6, 479.9)] == [
        "",
        "0 s",
        "119 s",
        "2 min 00",
        "8 min 00",
    ]
