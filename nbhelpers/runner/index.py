"""``results/index.html``: a card per notebook, with the state and the headline of its last run."""

from __future__ import annotations

import base64
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import sha256_of, write_text
from nbhelpers.reports.html import fill_page, minute, safe, seconds_text, style, template_text
from nbhelpers.reports.manifest import is_complete
from nbhelpers.reports.notebooks import Notebook, all_notebooks
from nbhelpers.reports.parameters import check_values
from nbhelpers.reports.paths import Paths, read_json
from nbhelpers.reports.record import headline_text
from nbhelpers.runner.fingerprint import code_parts, difference, fingerprint_parts
from nbhelpers.runner.plan import RunRequest

COUNTED = {"done": "done", "outdated": "outdated", "failed": "failed", "never": "not run yet"}
PAGE = "cards.html.j2"
THUMBNAIL_PX = (640, 400)


@dataclass(frozen=True)
class State:
    """How the last run of a notebook ended.

    ``kind`` is done, outdated, failed or never, and ``text`` the headline or the reason. ``good``
    is the manifest of the last run that succeeded, ``bad`` of one that has failed since; empty
    where there is none.
    """

    kind: str
    text: str
    good: dict
    bad: dict

    @property
    def label(self) -> str:
        return "never run" if self.kind == "never" else self.kind


@dataclass(frozen=True)
class Card:
    """What the page shows of one notebook."""

    kind: str
    label: str
    title: str
    text: str
    question: str = ""
    run_id: str = ""
    report: str = ""
    failed_report: str = ""
    headline: dict | None = None
    synthetic: bool = False
    leaks: bool = False
    facts: tuple = ()


def last_state(paths: Paths, notebook: Notebook) -> State:
    """The state of a notebook's results, seen against the files as they are now."""
    folder = paths.result(notebook.name)
    good = read_json(folder / "manifest.json")
    bad = read_json(paths.failed(notebook.name) / "manifest.json")
    if good.get("state") != "ok" or not is_complete(folder, good):
        good = {}
    if bad:
        return State("failed", bad.get("reason", ""), good, bad)
    if not good:
        return State("never", "", good, bad)
    changed = _what_changed(paths, notebook, good)
    if changed:
        return State("outdated", f"{changed} since {good['finished'][:10]}", good, bad)
    headline = good.get("headline")
    return State("done", headline_text(headline) if headline else "", good, bad)


def _what_changed(paths: Paths, notebook: Notebook, good: dict) -> str:
    """In words, what changed since a run with the same parameters; '' if nothing."""
    before = good.get("ingredients", {})
    try:
        code = code_parts(notebook)
        parameters = notebook.parameters
    except InputError as error:
        return f"the notebook cannot be read any more ({error})"
    try:
        stamp = read_json(paths.stamp(notebook.name, good["fingerprint"]))
        values = check_values(parameters, stamp["values"], notebook.name)
    except (KeyError, InputError):
        # The stamp is gone or the notebook has other parameters by now: only code can be compared.
        own = ("parameters", "data in ")
        made_from = {name: part for name, part in before.items() if not name.startswith(own)}
        return difference(made_from, code)
    return difference(before, fingerprint_parts(paths, RunRequest(notebook, "", values), code))


def write_index(paths: Paths) -> None:
    """Write ``results/index.html`` from what lies in the results folders, where it has changed."""
    cards = {}
    for name, notebook in all_notebooks(paths).items():
        try:
            cards[name] = _card(notebook, last_state(paths, notebook))
        except (InputError, KeyError, TypeError) as error:
            cards[name] = Card("never", "cannot be read", name, str(error))
    # Drawing thumbnails is the slow part. The page carries the hash of all that stands on it, and
    # is left alone as long as that is the same.
    contents = [template_text(PAGE), style(), [asdict(card) for card in cards.values()]]
    mark = sha256_of(contents)
    if paths.index.exists() and mark in paths.index.read_text(encoding="utf-8"):
        return
    kinds = [card.kind for card in cards.values()]
    counts = [f"{kinds.count(kind)} {word}" for kind, word in COUNTED.items() if kind in kinds]
    noun = "notebook" if len(cards) == 1 else "notebooks"
    page = fill_page(
        PAGE,
        cards=cards,
        thumbnails={name: _thumbnail(paths.result(name)) for name in cards},
        style=style(),
        mark=mark,
        summary=f"{len(cards)} {noun}: {', '.join(counts)}." if cards else "",
    )
    write_text(paths.index, page)


def _card(notebook: Notebook, state: State) -> Card:
    about = notebook.about
    good = state.good
    data = good["data"] if good else []
    splits = good.get("splits", [])
    facts = [(name.capitalize(), about[name]) for name in ("needs", "time") if about[name]]
    if good:
        used = "; ".join(f"{item['name']}, {item['n']} images" for item in data)
        facts = [
            ("Data", used or "none noted"),
            ("Time", seconds_text(good["wall_time_s"])),
            ("Run", f"{minute(good['finished'])}, profile {good.get('profile') or 'none'}"),
        ]
    folder = quote(notebook.name)
    return Card(
        state.kind,
        state.label,
        about["title"],
        state.text if state.kind in ("failed", "outdated") else "",
        question=about["question"],
        run_id=good.get("run_id", ""),
        report=f"{folder}/report.html" if good else "",
        failed_report=f"{folder}.failed/report.html" if state.bad else "",
        headline=good.get("headline"),
        synthetic=any(item["synthetic"] for item in data),
        leaks=any(item.get("known_leak") for item in splits),
        facts=tuple(facts),
    )


def _thumbnail(folder: Path) -> str | None:
    """The figure that the run marked, else its first, as a data address of modest size."""
    from PIL import Image

    figures = read_json(folder / "manifest.json").get("figures", [])
    for figure in sorted(figures, key=lambda item: not item.get("thumbnail")):
        buffer = io.BytesIO()
        try:
            with Image.open(folder / figure.get("file", "")) as picture:
                small = picture.convert("RGB")
        except OSError:
            continue
        small.thumbnail(THUMBNAIL_PX)
        small.save(buffer, format="PNG", optimize=True)
        return safe("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return None
