"""SIGKILL at random moments of a run, many times, then finish it: as if nothing had happened."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from nbhelpers.reports.notebooks import all_notebooks
from nbhelpers.runner.atomic_replace import recover
from nbhelpers.runner.places import RunnerPaths, is_complete
from nbhelpers.runner.plan import make_requests
from nbhelpers.runner.workflow import check_stamp, make_entries, write_plan

pytestmark = pytest.mark.slow
KILLS = 22 if "NBHELPERS_FAULTS" in os.environ else 4
NAME = "01_steps"
ONE_CORE = argparse.Namespace(cores=1, engine="local", timeout=None)

PARAMETERS = "steps = 8   # 1..100: steps to take\nstart = 1   # 0..9: where to begin\n"
STEPS = """\
import json
import time

from nbhelpers.core.files import write_json, write_text
from nbhelpers.core.seeds import derive_seed

values = []
for step in range(steps):
    file = run.work_folder / f"step-{step}.json"
    if not file.exists():
        time.sleep(0.2)
        previous = values[-1] if values else start
        write_json(file, {"value": derive_seed(previous, step), "previous": previous})
    values.append(json.loads(file.read_text())["value"])
write_text(run.folder / "predictions.csv", "\\n".join(map(str, values)))
"""
FINISH = """\
run.set_result("Accuracy", Estimate(0.9, 0.8, 1.0, 8))
run.add_floor("chance", Estimate(0.5))
run.finish({"values": values})
"""


class Toy:
    """The same toy notebook in a root of its own, run either by the whole command or by its job
    alone.
    """

    def __init__(self, checkout, toy):
        self.checkout = checkout
        self.paths = RunnerPaths(checkout.root)
        checkout.add(NAME, toy.cells(NAME, middle=STEPS, parameters=PARAMETERS, finish=FINISH))
        checkout.profile("demo", f"notebooks:\n  {NAME}: {{}}\n")
        self.result = checkout.results / NAME

    def start(self, start: int, whole_command: bool) -> subprocess.Popen:
        overrides = [("start", str(start))]
        if whole_command:
            command = self.checkout.command("-p", *overrides[0])
        else:  # what the command does before it starts the workflow engine
            entries = make_entries(
                self.paths,
                make_requests(self.paths, all_notebooks(self.paths), "demo", [], overrides),
            )
            recover(self.paths)
            check_stamp(self.paths, NAME, entries[NAME], force=False)
            for folder in (
                self.paths.workflow,
                self.paths.logs,
                self.paths.stamps,
                self.paths.staging,
            ):
                folder.mkdir(parents=True, exist_ok=True)
            command = [
                sys.executable,
                "-m",
                "nbhelpers.runner.execution",
                "--notebook",
                NAME,
                "--plan",
                str(write_plan(self.paths, entries, ONE_CORE)),
            ]
        return subprocess.Popen(
            command,
            env=self.checkout.environment(),
            cwd=self.checkout.root,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def files(self) -> dict[str, bytes]:
        return {
            name: (self.result / name).read_bytes() for name in ("metrics.json", "predictions.csv")
        }

    def start_in_place(self) -> int | None:
        """With which parameter the result in place was made; fails on anything that is not a whole
        result.
        """
        if not self.result.exists():
            return None
        manifest = json.loads((self.result / "manifest.json").read_text())
        assert manifest["state"] == "ok" and is_complete(self.result, manifest)
        assert (self.result / "report.html").read_text().rstrip().endswith("</html>")
        assert json.loads((self.result / f"{NAME}.ipynb").read_text())["cells"]
        assert (
            manifest["parameters"]
            == json.loads((self.result / "metrics.json").read_text())["parameters"]
        )
        return manifest["parameters"]["start"]


def test_a_run_killed_many_times_ends_as_if_it_never_was(make_checkout, toy):
    clean = Toy(make_checkout("clean root"), toy)
    clean_files = {}
    took = {}
    for start, whole_command in ((1, True), (2, False)):
        began = time.monotonic()
        assert clean.start(start, whole_command).wait(120) == 0
        took[whole_command] = time.monotonic() - began
        assert clean.start_in_place() == start
        clean_files[start] = clean.files()
    assert clean_files[1] != clean_files[2]

    tried = Toy(make_checkout("killed root"), toy)
    moments = random.Random(4)
    kills = 0
    runs = 0
    wanted = 1
    before = None
    seen = set()
    while kills < KILLS:
        runs += 1
        assert runs < 4 * KILLS
        whole_command = runs % 4 == 0
        # Moments over the whole span of a run, evenly but at random within each tenth.
        moment = took[whole_command] * ((runs * 7) % 10 + moments.random()) / 10
        process = tried.start(wanted, whole_command)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0
        at_place = tried.start_in_place()
        assert at_place in (before, wanted)
        seen.add(at_place)
        if at_place is not None:
            assert tried.files() == clean_files[at_place]
        before = at_place
        if at_place == wanted:  # from here on, replace this result by the other one
            wanted = 3 - wanted
    assert KILLS < 20 or {None, 1} <= seen  # kills before and after there was a result

    ended = tried.checkout.run("-p", "start", str(wanted))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert tried.start_in_place() == wanted
    assert tried.files() == clean_files[wanted]
    assert list(tried.paths.staging.iterdir()) == [] and not any(tried.paths.work.glob("*/*"))
    assert "Nothing is out of date." in tried.checkout.run("-p", "start", str(wanted)).stdout
