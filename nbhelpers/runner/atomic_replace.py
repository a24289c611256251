"""Folders that are moved into place when complete: at every moment the old or the new one stands
there.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from nbhelpers.runner.places import RunnerPaths

ASIDE = ".previous"


def put_in_place(new: Path, target: Path, paths: RunnerPaths) -> None:
    """Make the folder ``new`` the folder ``target``, which may exist. Both lie on one file system.

    Where the system can exchange two names in one step, it does. Elsewhere the old folder is put
    aside first, and ``recover`` puts it back if a kill came in between.
    """
    if not target.exists():
        os.rename(new, target)
        return
    if exchange(new, target):
        shutil.rmtree(new, ignore_errors=True)
        return
    aside = paths.staging / (target.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(target, aside)
    os.rename(new, target)
    shutil.rmtree(aside, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (Linux); False where that is not possible."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here = -100  # AT_FDCWD: relative names are meant from the current folder
    exchange_flag = 2
    status = rename(here, os.fsencode(one), here, os.fsencode(other), exchange_flag)
    return status == 0


def recover(paths: RunnerPaths) -> None:
    """After a kill: put back what was put aside, and remove what was never finished."""
    if not paths.staging.is_dir():
        return
    for path in paths.staging.iterdir():
        if path.name.endswith(ASIDE):
            target = paths.results / path.name.removesuffix(ASIDE)
            if not target.exists():
                os.rename(path, target)
                continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
