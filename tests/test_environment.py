"""pyproject.toml, environment.yml and requirements.lock name the same packages; the scripts make
the environment.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WANTED = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]
LOCK = (ROOT / "requirements.lock").read_text()


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("_", "-")


def locked() -> dict[str, dict[str, str]]:
    """Package name to version to its block in the lock; a version may be for some Pythons or
    systems only.
    """
    found: dict[str, dict[str, str]] = {}
    for block in re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE):
        pinned = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", block)
        if pinned:
            found.setdefault(name_of(pinned[1]), {})[pinned[2]] = block
    return found


def test_conda_users_get_the_same_requirements():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
    assert sorted(pip) == sorted(WANTED)
    names = [entry.split(">")[0] for entry in content["dependencies"] if isinstance(entry, str)]
    assert names == ["python", "pip"]
    floor = PROJECT["project"]["requires-python"]
    assert any(
        entry.startswith(f"python{floor}")
        for entry in content["dependencies"]
        if isinstance(entry, str)
    )


@pytest.mark.parametrize("file", ["pyproject.toml", "environment.yml"])
def test_every_dependency_has_its_reason(file):
    lines = (ROOT / file).read_text().splitlines()
    for requirement in WANTED:
        line = next(line for line in lines if f'"{requirement}"' in line)
        assert re.search(r"#\s*\w{2,}.*\w", line), line


def test_the_lock_holds_every_dependency_with_hashes_and_in_the_asked_range():
    from packaging.requirements import Requirement

    pins = locked()
    for requirement in map(Requirement, WANTED):
        versions = pins[name_of(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), (
            requirement,
            versions,
        )
    for name, versions in pins.items():
        for block in versions.values():
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), name


def test_the_lock_names_no_index_and_no_address():
    assert not re.search(r"--(extra-)?index-url|--find-links|https?://|file://| @ ", LOCK)


def test_the_installed_packages_are_those_of_the_lock():
    from importlib.metadata import version

    pins = locked()
    for requirement in WANTED:
        name = name_of(requirement)
        assert version(name).split("+")[0] in {pin.split("+")[0] for pin in pins[name]}, name


@pytest.fixture
def small_checkout(tmp_path):
    """The scripts beside a lock of nothing, in a folder with a space; an installer that only notes
    its calls.
    """
    root = tmp_path / "a checkout"
    (root / "workflow").mkdir(parents=True)
    shutil.copy(ROOT / "workflow/environment.sh", root / "workflow")
    for script in ("run_all.sh", "run_tests.sh"):
        shutil.copy(ROOT / script, root)
    (root / "requirements.lock").write_text("")
    (root / "nbhelpers").mkdir()
    (root / "nbhelpers/__init__.py").write_text("")
    (root / "nbhelpers/__main__.py").write_text("import sys; print('command got', sys.argv[1:])")
    tools = tmp_path / "tools"
    tools.mkdir()
    uv = tools / "uv"
    uv.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\n'
        f'echo "$@" >> "{tmp_path}/calls"\n'
        'echo "error from https://index.example.org/simple/torch" >&2\n'
        f'[ ! -e "{tmp_path}/broken" ]\n'
    )
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)

    def run(*arguments, script="run_all.sh"):
        return subprocess.run(
            ["bash", str(root / script), *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        )

    run.root = root
    run.tmp = tmp_path
    run.calls = lambda: (
        (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    )
    return run


def test_the_environment_is_made_once_and_the_command_gets_its_arguments(small_checkout):
    first = small_checkout("toy", "-p", "steps", "a b")
    assert first.returncode == 0, first.stderr
    assert "command got ['toy', '-p', 'steps', 'a b']" in first.stdout
    assert len(small_checkout.calls()) == 1 and "--require-hashes" in small_checkout.calls()[0]
    again = small_checkout()
    assert again.returncode == 0 and again.stderr == "" and len(small_checkout.calls()) == 1
    (small_checkout.root / "requirements.lock").write_text("# changed\n")
    assert small_checkout().returncode == 0
    assert len(small_checkout.calls()) == 2


def test_an_interrupted_installation_is_not_taken_for_a_good_one(small_checkout):
    (small_checkout.tmp / "broken").touch()
    failed = small_checkout()
    assert failed.returncode != 0 and "could not be installed" in failed.stderr
    assert (
        "index.example.org" not in failed.stderr + failed.stdout
        and "command got" not in failed.stdout
    )
    assert not (small_checkout.root / ".venv/.complete").exists()
    (small_checkout.tmp / "broken").unlink()
    assert "command got" in small_checkout().stdout
    assert len(small_checkout.calls()) == 2


def test_notebooks_opened_by_hand_find_the_package(small_checkout):
    assert small_checkout().returncode == 0
    shown = subprocess.run(
        [
            small_checkout.root / ".venv/bin/python",
            "-c",
            "import nbhelpers; print(nbhelpers.__file__)",
        ],
        capture_output=True,
        text=True,
        cwd=small_checkout.tmp,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert str(small_checkout.root) in shown.stdout, shown.stderr


def test_without_a_new_enough_python_the_message_says_what_to_install(small_checkout):
    shutil.rmtree(small_checkout.root / ".venv")
    tools = small_checkout.tmp / "old"
    tools.mkdir()
    for name in ("bash", "dirname", "cat", "rm", "env"):
        (tools / name).symlink_to(shutil.which(name))
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    ended = subprocess.run(
        [shutil.which("bash"), str(small_checkout.root / "run_all.sh")],
        capture_output=True,
        text=True,
        env={"PATH": str(tools), "HOME": str(small_checkout.tmp)},
    )
    assert ended.returncode != 0
    assert "No Python 3.11 or newer" in ended.stderr and "python3-venv" in ended.stderr
