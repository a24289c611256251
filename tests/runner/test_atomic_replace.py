"""Results are moved into place: at every moment the old or the new folder stands there, whole."""

from __future__ import annotations

import os

import pytest

from nbhelpers.reports.manifest import files_of
from nbhelpers.runner import atomic_replace
from nbhelpers.runner.places import RunnerPaths, is_complete


@pytest.fixture
def paths(tmp_path):
    paths = RunnerPaths(tmp_path)
    paths.staging.mkdir(parents=True)
    return paths


def folder(path, text):
    path.mkdir(parents=True)
    (path / "metrics.json").write_text(text)
    return path


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_new_folder_replaces_the_old(paths, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic_replace, "exchange", lambda one, other: False)
    target = paths.result("01_toy")
    for text in ("first", "second"):
        atomic_replace.put_in_place(folder(paths.staging / "new", text), target, paths)
        assert (target / "metrics.json").read_text() == text
        assert list(paths.staging.iterdir()) == []


@pytest.mark.parametrize("renames_before_the_kill", [1, 2])
def test_a_kill_between_the_two_renames_is_fixed_at_the_next_start(
    paths, monkeypatch, renames_before_the_kill
):
    monkeypatch.setattr(atomic_replace, "exchange", lambda one, other: False)
    target = folder(paths.result("01_toy"), "old")
    new = folder(paths.staging / "new", "new")
    left = [renames_before_the_kill]
    rename = os.rename

    def dying_rename(one, other):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        rename(one, other)

    monkeypatch.setattr(atomic_replace.os, "rename", dying_rename)
    monkeypatch.setattr(
        atomic_replace.shutil, "rmtree", lambda *_, **__: None
    )  # a kill leaves everything
    try:
        atomic_replace.put_in_place(new, target, paths)
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    atomic_replace.recover(paths)
    assert (target / "metrics.json").read_text() == (
        "old" if renames_before_the_kill == 1 else "new"
    )
    assert list(paths.staging.iterdir()) == []


def test_recovery_removes_what_was_never_finished(paths):
    folder(paths.staging / "01_toy-abc" / "result", "half")
    (paths.staging / "loose").write_text("x")
    atomic_replace.recover(paths)
    assert list(paths.staging.iterdir()) == []
    assert not paths.result("01_toy").exists()


def test_a_result_is_complete_only_with_all_its_files(tmp_path):
    result = folder(tmp_path / "r", "{}")
    (result / "report.html").write_text("page")
    (result / "01_toy.ipynb").write_text("{}")
    manifest = {"files": files_of(result)}
    assert set(manifest["files"]) == {"metrics.json", "report.html"}
    assert is_complete(result, manifest)
    (result / "01_toy.ipynb").write_text("opened and saved in JupyterLab")
    assert is_complete(result, manifest)
    (result / "report.html").write_text("pag")
    assert not is_complete(result, manifest)
    (result / "report.html").unlink()
    assert not is_complete(result, manifest)
    assert not is_complete(result, {})
