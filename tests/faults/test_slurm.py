"""A real SLURM of one machine, started here and ended here: a sweep on it, and a job that the
scheduler kills.

Skipped with the reason where the programs are not installed (Debian: slurmctld, slurmd,
slurm-client, munge; Python: snakemake-executor-plugin-slurm) or the test does not run as root,
which slurmd needs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from nbhelpers.core.files import CODE_ROOT

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scancel", "squeue")
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
PLUGIN = importlib.util.find_spec("snakemake_executor_plugin_slurm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"SLURM is not installed here: {', '.join(MISSING)}"),
    pytest.mark.skipif(
        PLUGIN is None, reason="the package snakemake-executor-plugin-slurm is not installed"
    ),
    pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="slurmd needs root"),
]

CONFIGURATION = """\
ClusterName=one
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
MinJobAge=3000
NodeName=localhost CPUs=4 RealMemory=64000 State=UNKNOWN
PartitionName=normal Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Starts munged, slurmctld and slurmd with all of their files in one folder; ends them whatever
    happens.
    """
    import tempfile

    folder = Path(
        tempfile.mkdtemp(prefix="slurm-")
    )  # a short path: sockets have at most 107 letters
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(folder=folder, controller=free_port(), node=free_port())
    )
    srun = (
        folder / "srun"
    )  # the plugin takes SLURM_CONF from the srun in a job, which looks in /etc/slurm then
    srun.write_text(
        f'#!/bin/sh\nSLURM_CONF={configuration} exec {shutil.which("srun", path=SEARCH)} "$@"\n'
    )
    srun.chmod(0o755)
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    monkeypatch.setenv("PATH", f"{folder}:{SEARCH}")
    daemons = []
    try:
        for command in (
            [
                "munged",
                "-F",
                "--force",
                f"--key-file={key}",
                f"--socket={folder}/munge.socket",
                f"--pid-file={folder}/munged.pid",
                f"--log-file={folder}/munged.log",
                f"--seed-file={folder}/munge.seed",
            ],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "localhost"],
        ):
            daemons.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            time.sleep(1)
        until = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h"], capture_output=True, text=True).stdout:
            assert time.monotonic() < until, (folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.5)
        yield folder
    finally:
        subprocess.run(["scancel", "--user=root"], capture_output=True, timeout=20)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def profile(tmp_path) -> str:
    """The profile of the repository, for a cluster without accounting and with short waits."""
    found = yaml.safe_load((CODE_ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    found |= {
        "slurm-status-command": "squeue",
        "slurm-init-seconds-before-status-checks": 2,
        "latency-wait": 10,
        "seconds-between-status-checks": 3,
        "retries": 2,
        "slurm-logdir": str(tmp_path / "slurm-logs"),
    }
    found["default-resources"]["mem_mb"] = 1000
    folder = tmp_path / "one_machine"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(found))
    return str(folder)


@pytest.fixture
def checkout(make_checkout):
    """A toy checkout whose commands find the plugin, which need not lie in the environment of the
    package.
    """
    made = make_checkout("checkout")
    plain = made.environment
    made.environment = lambda: (
        (found := plain())
        | {
            "PYTHONPATH": os.pathsep.join(
                [found["PYTHONPATH"], str(Path(PLUGIN.origin).parents[1])]
            )
        }
    )
    return made


def test_a_sweep_runs_on_a_cluster(slurm, profile, checkout):
    done = checkout.run("toy", "--sweep", "steps=3,4,5", "--workflow-profile", profile, timeout=600)
    log = checkout.results / "sweeps" / "01_toy-by-steps" / ".logs" / "snakemake.log"
    assert done.returncode == 0, done.stdout + done.stderr + log.read_text()[-3000:]
    assert "SLURM" in log.read_text() and done.stdout.count(" done ") == 3
    summary = json.loads(
        (checkout.results / "sweeps" / "01_toy-by-steps" / "summary.json").read_text()
    )
    assert summary["runs"] == {"done": 3}


STEPS = """\
import time
from nbhelpers.core.files import CODE_ROOT
from nbhelpers.core.files import CODE_ROOT, write_text
done = sorted(run.work_folder.glob("step-*"))
print("begins at", len(done))
for step in range(len(done), 20):
    time.sleep(1)
    write_text(run.work_folder / f"step-{step:02}", "")
total = len(done)
"""


def test_a_job_that_the_scheduler_kills_goes_on_where_it_was(slurm, profile, checkout, toy):
    checkout.add("01_toy", toy.cells("01_toy", middle=STEPS))
    process = subprocess.Popen(
        checkout.command("--workflow-profile", profile),
        env=checkout.environment(),
        cwd=checkout.root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    until = time.monotonic() + 200
    while len(list(checkout.results.glob(".work/01_toy/*/step-*"))) < 4:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.3)
    job = subprocess.run(
        ["squeue", "-h", "-o", "%A", "-t", "R"], capture_output=True, text=True
    ).stdout.split()
    assert len(job) == 1
    subprocess.run(["scancel", *job], check=True)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, (
        out + (checkout.results / ".logs/snakemake.log").read_text()[-3000:]
    )
    assert "01_toy  done" in out
    assert (
        checkout.json("01_toy/metrics.json")["metrics"]["total"] >= 4
    )  # the second attempt did not begin anew


def test_a_notebook_that_fails_by_itself_is_not_tried_again(slurm, profile, checkout, toy):
    checkout.add("01_toy", toy.cells("01_toy", middle="total = 0\nraise ValueError('no')"))
    done = checkout.run("--workflow-profile", profile, timeout=600)
    assert (
        done.returncode == 1
        and done.stdout.count("  running") == 1
        and "ValueError: no" in done.stdout
    )


def test_extraction_in_shards_gives_the_same_bytes(slurm, profile, checkout, tmp_path):
    import kill_job

    from nbhelpers.microns.cutouts import Volume
    from nbhelpers.microns.dataset import prepare

    for name in ("volume", "alone"):
        (tmp_path / name).mkdir()
    kill_job.give_volume(tmp_path / "volume")
    kill_job.extract_patches(tmp_path / "volume", tmp_path / "alone")
    request = prepare(
        kill_job.synapses(),
        Volume.open(f"precomputed://file://{tmp_path / 'volume'}"),
        tmp_path / "in shards",
        *kill_job.ASKED,
        stack_rows=kill_job.STACK_ROWS,
    )
    environment = checkout.environment()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "-s",
            str(CODE_ROOT / "workflow/extraction.smk"),
            "--workflow-profile",
            profile,
            "--directory",
            str(tmp_path / "snakemake"),
            "--config",
            f"request={request}",
            "shards=3",
        ],
        env=environment,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        done.stderr.count("has been submitted with SLURM jobid") >= 4
    )  # three shards and the merging
    extraction = kill_job.ACTIVITIES["extraction"]
    wanted, found = (
        kill_job.content(extraction, tmp_path / name) for name in ("alone", "in shards")
    )
    assert wanted and {name: found.get(name) for name in wanted} == wanted


def test_a_whole_small_run(slurm, profile, checkout):
    for name in (
        "notebooks/demo2d.ipynb",
        "checkpoints/synapse_phantom_2d.safetensors",
        "checkpoints/synapse_phantom_2d.md",
    ):
        (checkout.root / name).parent.mkdir(exist_ok=True)
        shutil.copy(CODE_ROOT / name, checkout.root / name)
    checkout.profile("demo", "notebooks:\n  demo2d: {phantoms: 60, neurons: 12}\n")
    done = checkout.run("demo2d", "--workflow-profile", profile, timeout=500)
    assert done.returncode == 0 and "demo2d  done" in done.stdout, done.stdout
    assert checkout.json("demo2d/manifest.json")["state"] == "ok"
