"""The provenance of a run: what it was made from, where, when, and how it ended.

Nothing in it names the machine, the user or a folder of theirs, and no environment variable is
written.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "statsmodels",
    "pillow",
    "tifffile",
    "matplotlib",
    "papermill",
    "nbconvert",
    "snakemake",
)


def now() -> str:
    """The time in ISO format with fractional seconds, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def versions() -> dict[str, str]:
    """Python, this package, and the installed packages that can change a result."""
    from importlib.metadata import PackageNotFoundError, version

    import nbhelpers

    found = {"python": platform.python_version(), "nbhelpers": nbhelpers.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def device() -> dict[str, object]:
    """Processor and, where torch is in use, the accelerator. Keys: cpu, cores, threads, bfloat16,
    gpu.
    """
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        processor = ""
    facts = dict(re.findall(r"^(.+?)[ \t]*:[ \t]*(.*)$", processor, re.MULTILINE))
    flags = facts.get("flags", facts.get("Features", "")).split()
    found: dict[str, object] = {
        "cpu": facts.get("model name", "").strip() or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "threads": None,
        "gpu": None,
        "bfloat16": not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags) or None,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def system() -> str:
    """Operating system and processor type, e.g. 'Linux 6.1 x86_64'."""
    return f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}"


def peak_memory_bytes() -> int:
    """Largest resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def git_state(root: Path) -> dict[str, object] | None:
    """``{"commit": ..., "dirty": ...}`` of the checkout; None where there is no git
    or no commit."""

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def files_of(folder: Path) -> dict[str, int]:
    """Size in bytes per file of a results folder. Notebooks are left out: opening one may save it
    again.
    """
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix != ".ipynb"
        and path.name != "manifest.json"
        and not path.name.startswith(".part-")
    }
