"""One notebook under guards: what counts as success, and how each failure ends."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import pytest

from nbhelpers.reports.notebooks import all_notebooks
from nbhelpers.runner.places import RunnerPaths
from nbhelpers.runner.plan import make_requests
from nbhelpers.runner.workflow import make_entries, write_plan


def one_core(timeout: float | None = None) -> argparse.Namespace:
    return argparse.Namespace(cores=1, engine="local", timeout=timeout)


class Runner:
    def __init__(self, checkout):
        self.checkout = checkout
        self.paths = RunnerPaths(checkout.root)

    def start(self, name="01_toy", timeout=None, **values) -> subprocess.Popen:
        requests = make_requests(
            self.paths,
            all_notebooks(self.paths),
            "demo",
            [name],
            [(key, str(value)) for key, value in values.items()],
        )
        self.entries = make_entries(self.paths, requests)
        for folder in (
            self.paths.workflow,
            self.paths.logs,
            self.paths.stamps,
            self.paths.staging,
        ):
            folder.mkdir(parents=True, exist_ok=True)
        (self.paths.workflow / "stop").unlink(missing_ok=True)
        plan = write_plan(self.paths, self.entries, one_core(timeout))
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "nbhelpers.runner.execution",
                "--plan",
                str(plan),
                "--notebook",
                name,
            ],
            env=self.checkout.environment(),
        )

    def run(self, name="01_toy", **more) -> int:
        return self.start(name, **more).wait(timeout=600)

    def events(self) -> list[dict]:
        return [
            json.loads(line)
            for line in (self.paths.workflow / "events.jsonl").read_text().splitlines()
        ]

    def wait_for(self, happens, seconds=60) -> None:
        until = time.monotonic() + seconds
        while not happens():
            assert time.monotonic() < until, "it did not happen in time"
            time.sleep(0.05)

    def failed(self, name="01_toy") -> dict:
        return self.checkout.json(f"{name}.failed/manifest.json")


@pytest.fixture
def runner(make_checkout):
    return Runner(make_checkout())


@pytest.fixture
def with_middle(runner, toy):
    """Puts code into the middle of the toy notebook."""

    def put(middle: str, **more) -> Runner:
        runner.checkout.add("01_toy", toy.cells("01_toy", middle=middle, **more))
        return runner

    return put


def test_a_success_leaves_complete_results_and_no_traces(runner):
    assert runner.run(steps=4) == 0
    result = runner.checkout.results / "01_toy"
    assert {path.name for path in result.iterdir()} == {
        "01_toy.ipynb",
        "report.html",
        "metrics.json",
        "manifest.json",
    }
    metrics = runner.checkout.json("01_toy/metrics.json")
    assert metrics["notebook"] == "01_toy"
    assert metrics["parameters"] == {"steps": 4, "rate": 0.5, "kind": "plain", "data_dir": ""}
    assert {"total": 3.0, "steps": 4}.items() <= metrics["metrics"].items()
    assert metrics["headline"] == {
        "name": "Accuracy",
        "value": 0.9,
        "low": 0.85,
        "high": 0.95,
        "n": 120,
        "n_text": "120 images",
        "n_effective": None,
        "floor_name": "majority class",
        "floor": 0.6,
        "above_floor": True,
        "model": "",
        "answer": "Yes: the score (accuracy) is above majority class by +0.300 [+0.250, +0.350].",
        "worst_finding": "",
        "users_images": "",
        "state": "done",
        "warning": "",
    }
    manifest = runner.checkout.json("01_toy/manifest.json")
    assert manifest["state"] == "ok" and manifest["profile"] == "demo"
    assert manifest["parameters"]["steps"] == 4
    assert manifest["started"] < manifest["finished"] and "." in manifest["started"]
    assert 0 < manifest["wall_time_s"] < 120 and manifest["peak_memory_bytes"] > 10 * 2**20
    assert manifest["fingerprint"] == runner.entries["01_toy"]["fingerprint"]
    assert {"python", "numpy", "torch"} <= set(manifest["versions"])
    assert list(runner.paths.staging.iterdir()) == [] and not any(runner.paths.work.glob("*"))
    assert runner.paths.stamp("01_toy", manifest["fingerprint"]).exists()
    assert [event["state"] for event in runner.events()] == ["running", "done"]


def test_a_run_that_gives_the_user_nothing_is_done_with_warnings(with_middle):
    counts = {"own": True, "file": "evaluation.csv", "given": 2, "predicted": 0}
    counts |= {"out_of_distribution": None, "low_confidence": 0, "unflagged": 0, "warning": ""}
    runner = with_middle(f"total = 1\nrun.add_record('new_images', {counts})")
    assert runner.run() == 0
    last = runner.events()[-1]
    assert last["state"] == "done, with warnings" and last["text"].startswith("Your 2 images: 0")
    page = (runner.checkout.results / "index.html").read_text()
    assert page.count('"state warned">done, with warnings<') == 1 and "Your 2 images: 0" in page
    assert "notebook: 1 done, with warnings." in page


def test_nothing_names_the_machine_the_user_or_their_folders(with_middle, tmp_path):
    import getpass
    import os
    import platform

    images = tmp_path / "private folder"
    images.mkdir()
    runner = with_middle(
        "import os, sys\nprint(os.getcwd(), run.folder, data_dir, sys.executable)\n"
        "from pathlib import Path\nprint(Path.home() / 'x', run.repository)\ntotal = 1"
    )
    os.environ["NBHELPERS_TEST_TOKEN"] = "hunter2-token"
    try:
        assert runner.run(data_dir=images) == 0
    finally:
        del os.environ["NBHELPERS_TEST_TOKEN"]
    written = [path for path in (runner.checkout.results / "01_toy").rglob("*") if path.is_file()]
    assert len(written) == 4
    for path in [*written, runner.paths.logs / "01_toy.log"]:
        text = path.read_text()
        assert "hunter2-token" not in text
        if path.suffix != ".log":
            for secret in (str(tmp_path), sys.prefix, str(runner.checkout.root)):
                assert secret not in text, path.name
            assert platform.node() not in json.dumps(text) or len(platform.node()) < 4
            assert f"user: {getpass.getuser()}" not in text.lower()
    assert (
        runner.checkout.json("01_toy/manifest.json")["parameters"]["data_dir"] == "…/private folder"
    )


@pytest.mark.parametrize(
    ("middle", "finish", "reason"),
    [
        (
            "x = 1\nraise KeyError('neuron 7')",
            None,
            "KeyError: 'neuron 7' (in the section “Evaluation”)",
        ),
        (
            "import os, signal\nprint('before', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)",
            None,
            "The kernel was killed, most likely out of memory.",
        ),
        ("total = 1", "print('forgot')", "without its final record"),
        ("import sys\nsys.exit(0)", None, "without its final record"),
        (
            "import json, os, pathlib\n"
            "folder = pathlib.Path(os.environ['NBHELPERS_RUN']).parent\n"
            "(folder / 'record.json').write_text(json.dumps({'run_id': 'another', 'headline': "
            "{}}))",
            "pass",
            "without its final record",
        ),
        ("run = start_run('02_other', globals())", None, "this notebook is 01_toy"),
    ],
)
def test_each_failure_ends_as_a_marked_report_beside_the_last_good_one(
    with_middle, toy, middle, finish, reason
):
    runner = with_middle(toy.walk)
    runner.checkout.add("02_other")
    good = runner.checkout.results / "01_toy"
    good.mkdir(parents=True)
    (good / "report.html").write_text("the last good report")
    with_middle(middle, **({"finish": finish} if finish else {}))
    assert runner.run() == 1
    assert (good / "report.html").read_text() == "the last good report"
    manifest = runner.failed()
    assert (
        reason in manifest["reason"]
        and manifest["state"] == "failed"
        and manifest["headline"] is None
    )
    failed = runner.checkout.results / "01_toy.failed"
    page = (failed / "report.html").read_text()
    assert "This run failed" in page
    assert json.loads((failed / "01_toy.ipynb").read_text())["nbformat"] == 4
    assert not (failed / "metrics.json").exists()
    assert not list(runner.paths.stamps.iterdir()) and list(runner.paths.staging.iterdir()) == []
    assert runner.events()[-1]["state"] == "failed"
    if "Error" in reason or "killed" in reason:
        assert page.count('id="failed-cell"') == 1
        marked = page[page.index('id="failed-cell"') :]
        assert ("KeyError" if "Error" in reason else "before") in marked[
            : marked.index("</details>") + 200
        ]


def test_a_timeout_ends_everything_the_notebook_started(with_middle):
    runner = with_middle(
        "import subprocess, time\nfrom pathlib import Path\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "Path(run.repository / 'pid').write_text(str(child.pid))\ntime.sleep(600)"
    )
    began = time.monotonic()
    assert runner.run(timeout=0.75) == 1  # a busy machine takes 20 s to start a kernel
    assert time.monotonic() - began < 90
    assert "longer than the limit of 0.75 minutes" in runner.failed()["reason"]
    runner.wait_for(lambda: not alive(int((runner.checkout.root / "pid").read_text())), 5)


def alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_stop_by_the_user_says_so_and_a_later_success_clears_it(with_middle, toy):
    runner = with_middle("import time\n(run.repository / 'here').touch()\ntime.sleep(600)")
    job = runner.start()
    runner.wait_for((runner.checkout.root / "here").exists)
    job.terminate()
    assert job.wait(60) == 1
    assert runner.failed()["reason"] == "Stopped by the user."
    with_middle(toy.walk)
    assert runner.run() == 0
    assert not (runner.checkout.results / "01_toy.failed").exists()


def test_when_the_command_or_the_execution_is_killed_the_kernel_ends_too(with_middle):
    import psutil

    runner = with_middle(
        "import os, time\n(run.repository / 'pid').write_text(str(os.getpid()))\n"
        "while True:\n    pass"
    )
    job = runner.start()
    runner.wait_for(
        lambda: (
            (runner.checkout.root / "pid").exists() and (runner.checkout.root / "pid").read_text()
        )
    )
    pid = int((runner.checkout.root / "pid").read_text())
    assert psutil.pid_exists(pid)
    job.kill()
    job.wait()
    runner.wait_for(lambda: not alive(pid), 5)


@pytest.mark.parametrize(
    ("number", "words"),
    [(28, "the disk is full"), (13, "may not be written"), (30, "may not be written")],
)
def test_a_full_or_read_only_folder_is_said_in_words_and_loses_nothing(
    runner, monkeypatch, number, words, capsys
):
    from nbhelpers.runner import execution

    good = runner.checkout.results / "01_toy"
    good.mkdir(parents=True)
    (good / "metrics.json").write_text("{}")
    requests = make_requests(runner.paths, all_notebooks(runner.paths), "demo", [], [])
    runner.paths.workflow.mkdir()
    plan_file = write_plan(runner.paths, make_entries(runner.paths, requests), one_core())
    plan = json.loads(plan_file.read_text())

    def broken(*_, **__):
        raise OSError(number, "in the way", str(good / "report.html"))

    monkeypatch.setattr(execution.Job, "prepare", broken)
    monkeypatch.setattr(execution.Job, "fail", broken)
    assert execution.Job(plan, "01_toy", 1).run() == 1
    assert (
        words in runner.events()[-1]["text"]
        and "results/01_toy/report.html" in runner.events()[-1]["text"]
    )
    assert (good / "metrics.json").read_text() == "{}"
