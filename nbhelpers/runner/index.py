"""``results/index.html``: a card per notebook, with the state and the headline of its last run."""

from __future__ import annotations

import base64
import io
from dataclasses import asdict, dataclass
from pathlib import Path

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import sha256_of, write_text
from nbhelpers.reports.html import fill_page, safe, style, template_text
from nbhelpers.reports.notebooks import Notebook, all_notebooks
from nbhelpers.reports.parameters import check_values
from nbhelpers.reports.paths import read_json
from nbhelpers.reports.record import DONE, WITH_WARNINGS, warned
from nbhelpers.runner.fingerprint import code_parts, difference, fingerprint_parts
from nbhelpers.runner.places import RunnerPaths, headline_of, is_complete
from nbhelpers.runner.plan import RunRequest

COUNTED = {
    "done": DONE,
    "warned": WITH_WARNINGS,
    "outdated": "outdated",
    "failed": "failed",
    "never": "not run yet",
}
PAGE = "cards.html.j2"
THUMBNAIL_PX = (640, 400)


@dataclass(frozen=True)
class State:
    """How the last run of a notebook ended.

    ``kind`` is done, warned, outdated, failed or never, and ``text`` the headline or the reason.
    ``good`` is the manifest of the last run that succeeded, ``bad`` of one that has failed since;
    empty where there is none.
    """

    kind: str
    text: str
    good: dict
    bad: dict

    @property
    def label(self) -> str:
        return "never run" if self.kind == "never" else COUNTED[self.kind]


def last_state(paths: RunnerPaths, notebook: Notebook) -> State:
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
        return State("outdated", f"{changed} since {good.get('finished', '')[:10]}", good, bad)
    kind = "warned" if warned(good.get("headline")) else "done"
    return State(kind, headline_of(good), good, bad)


def _what_changed(paths: RunnerPaths, notebook: Notebook, good: dict) -> str:
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


def write_index(paths: RunnerPaths) -> None:
    """Write ``results/index.html`` from what lies in the results folders, where it has changed."""
    cards = {name: _card(paths, notebook) for name, notebook in all_notebooks(paths).items()}
    # Drawing thumbnails is the slow part. The page carries the hash of all that stands on it, and
    # is left alone as long as that is the same.
    mark = sha256_of([cards, template_text(PAGE), style()])
    if paths.index.exists() and mark in paths.index.read_text(encoding="utf-8"):
        return
    kinds = [card["kind"] for card in cards.values()]
    page = fill_page(
        PAGE,
        cards=cards,
        counts=[f"{kinds.count(kind)} {word}" for kind, word in COUNTED.items() if kind in kinds],
        thumbnails={name: _thumbnail(paths.result(name), card) for name, card in cards.items()},
        style=style(),
        mark=mark,
    )
    write_text(paths.index, page)


def _card(paths: RunnerPaths, notebook: Notebook) -> dict:
    """What the page shows of one notebook, as plain values."""
    try:
        state = last_state(paths, notebook)
        return {**asdict(state), "label": state.label, **notebook.about}
    except InputError as error:
        state = asdict(State("failed", str(error), {}, {}))
        return {**state, "label": "cannot be read", "title": notebook.name}


def _thumbnail(folder: Path, card: dict) -> str | None:
    """The figure that the run marked, else its first, as a data address of modest size."""
    from PIL import Image

    figures = card["good"].get("figures", [])
    for figure in sorted(figures, key=lambda item: not item.get("thumbnail")):
        buffer = io.BytesIO()
        try:
            with Image.open(folder / figure["file"]) as picture:
                small = picture.convert("RGB")
        except OSError:
            continue
        small.thumbnail(THUMBNAIL_PX)
        small.save(buffer, format="PNG", optimize=True)
        return safe("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return None
