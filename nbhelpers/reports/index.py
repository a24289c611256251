"""``results/index.html``: one card per notebook, with the state and the headline of
its last run."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import write_text
from nbhelpers.reports.html import fill_page, safe, seconds_text, style
from nbhelpers.reports.manifest import is_complete
from nbhelpers.reports.notebooks import Notebook, all_notebooks
from nbhelpers.reports.paths import Paths
from nbhelpers.reports.run import headline_text


@dataclass(frozen=True)
class State:
    """How the last run of a notebook ended. ``kind``: done, outdated, failed or never."""

    kind: str
    label: str
    text: str
    good: dict | None
    bad: dict | None


def last_state(places: Paths, notebook: Notebook) -> State:
    """The state of a notebook's results, seen against the files as they are now."""
    good = _manifest(places.result(notebook.name))
    bad = _manifest(places.failed(notebook.name))
    if good is not None and not (
        good.get("state") == "ok" and is_complete(places.result(notebook.name), good)
    ):
        good = None
    headline = headline_text(good["headline"]) if good and good.get("headline") else ""
    if bad is not None:
        return State("failed", "failed", bad.get("reason", ""), good, bad)
    if good is None:
        return State("never", "never run", "", None, None)
    changed = _what_changed(places, notebook, good)
    if changed:
        return State("outdated", "outdated", f"{changed} since {good['finished'][:10]}", good, None)
    return State("done", "done", headline, good, None)


def _what_changed(places: Paths, notebook: Notebook, good: dict) -> str:
    """In words, what changed since a run with the same parameters; '' if nothing."""
    from nbhelpers.reports.parameters import check_values
    from nbhelpers.runner.fingerprint import difference, fingerprint_parts
    from nbhelpers.runner.plan import RunRequest

    before = good.get("ingredients", {})
    try:
        stamp = json.loads(
            places.stamp(notebook.name, good["fingerprint"]).read_text(encoding="utf-8")
        )
        values = check_values(notebook.parameters, stamp["values"], notebook.name)
    except (
        OSError,
        ValueError,
        KeyError,
    ):  # InputError is a ValueError: the parameters have changed
        values = None
    try:
        if values is None:
            order = RunRequest(
                notebook, "", {name: item.default for name, item in notebook.parameters.items()}
            )
            now = fingerprint_parts(places, order)
            alike = {
                name
                for name in (*before, *now)
                if name != "parameters" and not name.startswith("data in ")
            }
            return difference(
                {name: before[name] for name in alike if name in before},
                {name: now[name] for name in alike if name in now},
            )
        return difference(before, fingerprint_parts(places, RunRequest(notebook, "", values)))
    except InputError as error:
        return f"the notebook cannot be read any more ({error})"


def _manifest(folder: Path) -> dict | None:
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_index(places: Paths) -> Path:
    """Write ``results/index.html`` from what lies in the results folders. Returns its path."""
    cards = []
    for notebook in all_notebooks(places).values():
        try:
            cards.append(_card(places, notebook))
        except (InputError, KeyError, TypeError) as error:
            cards.append(
                {
                    "kind": "never",
                    "label": "cannot be read",
                    "title": notebook.name,
                    "text": str(error),
                    "report": None,
                    "failed_report": None,
                    "thumbnail": None,
                    "headline": None,
                    "question": "",
                    "synthetic": False,
                    "leaks": False,
                    "facts": [],
                }
            )
    kinds = [card["kind"] for card in cards]
    words = {"done": "done", "outdated": "outdated", "failed": "failed", "never": "not run yet"}
    counts = [f"{kinds.count(kind)} {word}" for kind, word in words.items() if kind in kinds]
    noun = "notebook" if len(cards) == 1 else "notebooks"
    write_text(
        places.index,
        fill_page(
            "cards.html.j2",
            cards=cards,
            style=style(),
            summary=f"{len(cards)} {noun}: {', '.join(counts)}." if cards else "",
        ),
    )
    return places.index


def _card(places: Paths, notebook: Notebook) -> dict:
    state = last_state(places, notebook)
    good = state.good
    about = notebook.about
    facts = []
    if good:
        data = "; ".join(f"{item['name']}, {item['n']} images" for item in good["data"])
        facts = [
            ("Data", data or "none noted"),
            ("Time", seconds_text(good["wall_time_s"])),
            (
                "Run",
                f"{good['finished'][:16].replace('T', ' ')} UTC, profile "
                f"{good.get('profile') or 'none'}",
            ),
        ]
    elif about["needs"] or about["time"]:
        facts = [(name.capitalize(), about[name]) for name in ("needs", "time") if about[name]]
    return {
        "kind": state.kind,
        "label": state.label,
        "title": about["title"],
        "text": state.text if state.kind in ("failed", "outdated") else "",
        "report": _link(places, notebook.name) if good else None,
        "failed_report": _link(places, f"{notebook.name}.failed") if state.bad else None,
        "thumbnail": _thumbnail(places.result(notebook.name), good) if good else None,
        "headline": good.get("headline") if good else None,
        "question": about["question"],
        "synthetic": bool(good) and any(item["synthetic"] for item in good["data"]),
        "leaks": bool(good) and any(item.get("known_leak") for item in good.get("splits", [])),
        "facts": facts,
    }


def _link(places: Paths, folder: str) -> str | None:
    from urllib.parse import quote

    return (
        f"{quote(folder)}/report.html"
        if (places.results / folder / "report.html").exists()
        else None
    )


def _thumbnail(folder: Path, good: dict) -> str | None:
    """The figure that the run marked, else its first, as a data address of modest size."""
    figures = sorted(good.get("figures", []), key=lambda item: not item.get("thumbnail"))
    for figure in figures:
        try:
            return safe(
                "data:image/png;base64,"
                + base64.b64encode(_smaller(folder / figure["file"])).decode()
            )
        except OSError:
            continue
    return None


def _smaller(file: Path, size: tuple[int, int] = (640, 400)) -> bytes:
    import io

    from PIL import Image

    with Image.open(file) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail(size)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
