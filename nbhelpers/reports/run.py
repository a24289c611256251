"""What a notebook holds in its hand while it runs: its parameters, its folders, its record."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.core.files import CODE_ROOT, plain, sha256_of, sha256_of_file, whole_file, write_json
from nbhelpers.reports import manifest
from nbhelpers.reports.notebooks import Notebook, all_notebooks, find_notebook
from nbhelpers.reports.parameters import check_values, shown
from nbhelpers.reports.parent import end_with
from nbhelpers.reports.paths import Paths, check_path
from nbhelpers.reports.record import ANSWERS, make_headline

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from nbhelpers.core.estimate import Estimate
    from nbhelpers.core.imageset import ImageSet
    from nbhelpers.core.predictions import Predictions
    from nbhelpers.core.splits import Split

RUN_VARIABLE = (
    "NBHELPERS_RUN"  # path of the file in which the runner tells the notebook about its run
)
DPI = 144  # of saved figures; pages show them at 96
RECORD = "record.json"
OWN_DATA = ("folder", "in_cell", "cellprofiler")  # values of the parameter data: the user's images
STATE = "state.json"
_HELD: dict[Path, object] = {}  # locks of this process, by path; open for its whole life


@dataclass
class NotebookRun:
    """One run of one notebook. Made by ``start_run``."""

    notebook: str
    parameters: dict[str, object]
    folder: Path
    work_folder: Path
    repository: Path
    run_id: str
    interactive: bool
    shown_parameters: dict[str, object]
    fingerprint: str = ""
    profile: str | None = None
    started: str = ""
    images: str = "images"  # what is classified, in the plural, for captions and counts
    groups: str = "groups"  # what images must not be torn from: neurons, slides, plates
    record: dict[str, dict] = field(default_factory=dict)  # what the chapters found; metrics.json
    data: list[dict] = field(default_factory=list)
    splits: list[dict] = field(default_factory=list)
    figures: list[dict] = field(default_factory=list)
    finished: bool = False
    _private: Path | None = None  # where the runner reads the record; None in JupyterLab
    _clock: float = field(default_factory=time.monotonic, repr=False)

    @property
    def data_folder(self) -> Path:
        """Where downloads are kept."""
        return self.repository / "data"

    @property
    def seed(self) -> int:
        """The parameter ``seed`` of the notebook; 0 where it has none."""
        return int(self.parameters.get("seed", 0))

    def add_data(self, imageset: ImageSet) -> None:
        """Note which images the run used; synthetic ones give the report its banner, and those of
        the user are counted above its headline.
        """
        data = self.parameters.get("data")
        self.data.append(
            plain(
                {
                    "name": imageset.name,
                    "n": len(imageset),
                    "classes": imageset.counts(),
                    "content_hash": imageset.content_hash,
                    "synthetic": bool(imageset.synthetic),
                    "source": imageset.source,
                    "left_out": len(imageset.failures),
                    "own": data if data in OWN_DATA else "",
                }
            )
        )
        self._save_state()

    def add_split(self, split: Split) -> None:
        """Note the protocol, seed and hash of a split; one that leaks gives the report its banner,
        and a note to the caption of every later figure and table."""
        self.splits.append(
            plain(
                {
                    "protocol": split.protocol,
                    "seed": split.seed,
                    "hash": split.hash,
                    "known_leak": split.known_leak,
                }
            )
        )
        self.record["split"] = self.splits
        self._save_state()

    def add_record(self, chapter: str, values: Mapping[str, object]) -> None:
        """Add plain values to the chapter's part of metrics.json."""
        self.record.setdefault(chapter, {}).update(values)

    def set_result(
        self,
        name: str,
        estimate: Estimate,
        *,
        score: str = "",
        model: str = "",
        n_text: str = "",
    ) -> None:
        """Set the score that this run is known by; its floors are those that were recorded for the
        same ``score``. ``n_text`` says what was counted, e.g. "192 synapses of 24 neurons"."""
        self.record["result"] = {
            "name": name,
            "score": score or name,
            "model": model,
            "estimate": estimate,
            "n_text": n_text or f"{estimate.n} {self.images}",
        }

    def set_answer(self, answer: str, because: str) -> None:
        """Answer the notebook's question where it is not whether the score is above its floor:
        ``answer`` is "yes", "no" or "not shown", ``because`` says by what, without a full stop.
        """
        if answer not in ANSWERS:
            raise InputError("run.set_answer", f"{answer!r} is none of {ANSWERS}.")
        self.record["answer"] = {"answer": answer, "because": because}

    def add_floor(self, name: str, estimate: Estimate) -> None:
        """Record what reaches the score of the result without understanding anything."""
        self.add_record("floors", {name: {self.record["result"]["score"]: estimate}})

    def show_figure(
        self, figure: Figure, name: str, *, caption: str, alt: str, thumbnail: bool = False
    ) -> None:
        """Save a matplotlib figure as PNG and SVG under ``figures/``, show it here, and close it.

        ``name`` becomes the file name (letters, digits, _ and -). ``alt`` says in words what is to
        be seen, for readers who cannot see it. ``thumbnail`` marks the picture for the index; else
        it is the first one.
        """
        import matplotlib
        from matplotlib import pyplot

        caption = self._checked_caption(name, caption, alt)
        file = self.folder / "figures" / f"{name}.png"
        look = {"bbox_inches": "tight", "facecolor": "white"}
        with whole_file(file) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None}, **look)
        # A fixed salt and no date: the same figure gives the same file.
        with (
            matplotlib.rc_context({"svg.hashsalt": name}),
            whole_file(file.with_suffix(".svg")) as temporary,
        ):
            figure.savefig(temporary, format="svg", metadata={"Date": None}, **look)
        pyplot.close(figure)
        pixels_wide = int.from_bytes(file.read_bytes()[16:20], "big")  # from the header of the PNG
        self._add_figure(file, caption, alt, pixels_wide * 96 // DPI, thumbnail)

    def show_animation(
        self, frames: np.ndarray, name: str, *, caption: str, alt: str, ms: int = 250
    ) -> None:
        """Save (n, y, x) uint8 as a moving PNG under ``figures/`` and show it here: a frame each
        ``ms``, over and over.

        Printed, it is the first frame. ``name``, ``caption`` and ``alt`` as for show_figure.
        """
        from PIL import Image

        caption = self._checked_caption(name, caption, alt)
        if getattr(frames, "ndim", 0) != 3 or frames.dtype != "uint8" or not frames.size:
            raise InputError(
                f"figure {name}", "the frames are no (n, y, x) uint8 with something in it."
            )
        file = self.folder / "figures" / f"{name}.png"
        first, *rest = map(Image.fromarray, frames)
        with whole_file(file) as temporary:
            first.save(
                temporary, format="PNG", save_all=True, append_images=rest, duration=ms, loop=0
            )
        self._add_figure(file, caption, alt, first.width, thumbnail=False)

    def _checked_caption(self, name: str, caption: str, alt: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(
                f"figure {name!r}", "the name becomes a file name.", "Use letters, digits, _ and -."
            )
        if not alt.strip() or not caption.strip():
            raise InputError(
                f"figure {name}",
                "caption or alt text is empty.",
                "Say in words what is to be seen.",
            )
        return caption + self._leak_note()

    def _add_figure(
        self, file: Path, caption: str, alt: str, css_width: int, thumbnail: bool
    ) -> None:
        import base64

        self.figures = [item for item in self.figures if item["name"] != file.stem]
        self.figures.append(
            {
                "name": file.stem,
                "file": f"figures/{file.name}",
                "caption": caption,
                "alt": alt,
                "thumbnail": bool(thumbnail),
            }
        )
        self._save_state()
        content = base64.b64encode(file.read_bytes()).decode()
        page = (
            f'<figure><img src="data:image/png;base64,{content}" alt="{html.escape(alt)}" '
            f'width="{css_width}"><figcaption>{html.escape(caption)}</figcaption></figure>'
        )
        _show(page, f"[figure: {alt}]")

    def show_table(
        self, table: pd.DataFrame, caption: str, *, decimals: int = 3, links: str = ""
    ) -> None:
        """Show a table with a caption; everything in it is escaped, missing values read 'n/a',
        counts have no decimals.

        ``links`` names a column of web addresses, which become a link "open" each.
        """
        import pandas as pd

        caption += self._leak_note()
        index = table.index.name is not None or not pd.api.types.is_integer_dtype(
            table.index
        )  # no row numbers
        shown = _readable(table)
        places = {}
        look = {"index": index, "float_format": f"{{:.{decimals}f}}".format}
        words = shown.to_string(max_rows=60, **look)
        if links:
            places = {f"link-{uuid.uuid4().hex}": str(address) for address in table[links]}
            shown = shown.assign(**{links: list(places)})
        body = shown.to_html(escape=True, border=0, justify="unset", max_rows=200, **look)
        for place, address in places.items():
            known = address.startswith(("https://", "http://"))
            body = body.replace(
                place,
                f'<a href="{html.escape(address)}">open</a>' if known else html.escape(address),
            )
        page = (
            f"<figure><figcaption>{html.escape(caption)}</figcaption><div "
            f'class="table-box">{body}</div>'
            "</figure>"
        )
        _show(page, f"{caption}\n{words}")

    def show_facts(self, facts: Mapping[str, object], caption: str) -> None:
        """Show a table of two columns: what, and its value as text."""
        import pandas as pd

        values = [str(value) for value in facts.values()]
        self.show_table(pd.DataFrame({"what": list(facts), "value": values}), caption)

    def _leak_note(self) -> str:
        return (
            " (From a split that leaks.)" if any(item["known_leak"] for item in self.splits) else ""
        )

    def save_predictions(self, predictions: Predictions) -> None:
        """Write ``predictions.csv``, the table that everything downstream reads."""
        predictions.save(self.folder / "predictions.csv")

    def finish(self, metrics: Mapping[str, object] | None = None) -> None:
        """Write ``metrics.json`` and the final record, and print the headline, which is made from
        what the chapters recorded. Without this call a run does not count as a success.

        ``metrics`` holds what the notebook measured beside its chapters: results only, no times
        and no paths, as two runs of the same code give the same file. Raises InputError where no
        score was recorded, or where ``metrics`` has the name of a chapter.
        """
        twice = sorted(set(metrics or {}) & set(self.record))
        if twice:
            raise InputError("run.finish", f"{twice} stand in the record already.", "Rename them.")
        self.record["synthetic"] = any(item["synthetic"] for item in self.data)
        self.record["data"] = self.data
        headline = make_headline(self.record)
        measured = {**self.record, **(metrics or {})}
        for held_by_the_headline in ("result", "answer", "synthetic", "data"):
            measured.pop(held_by_the_headline, None)
        write_json(
            self.folder / "metrics.json",
            {
                "notebook": self.notebook,
                "parameters": self.shown_parameters,
                "headline": headline,
                "metrics": measured,
            },
        )
        self.finished = True
        record = {**self._state(), "headline": headline.as_dict()}
        if self._private is None:
            self._finish_here(record)
        else:
            write_json(self._private / RECORD, record)
        print(headline)

    def _finish_here(self, record: dict) -> None:
        """In JupyterLab there is no runner: the run writes its manifest itself."""
        record.pop("run_id")
        write_json(
            self.folder / "manifest.json",
            {
                **record,
                "notebook": self.notebook,
                "profile": None,
                "parameters": self.shown_parameters,
                "state": "ok",
                "reason": "",
                "started": self.started,
                "finished": manifest.now(),
                "wall_time_s": round(time.monotonic() - self._clock, 3),
                "fingerprint": self.fingerprint,
                "git": manifest.git_state(self.repository),
                "files": manifest.files_of(self.folder),
            },
        )
        shutil.rmtree(self.work_folder, ignore_errors=True)
        print(f"Files of this run: {self.folder.relative_to(self.repository)}")

    def _state(self) -> dict:
        return {
            "run_id": self.run_id,
            "data": self.data,
            "splits": self.splits,
            "figures": self.figures,
            "seed": self.parameters.get("seed"),
            "versions": manifest.versions(),
            "platform": manifest.system(),
            "device": manifest.device(),
            "peak_memory_bytes": manifest.peak_memory_bytes(),
        }

    def _save_state(self) -> None:
        if self._private is not None:
            write_json(self._private / STATE, self._state())


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """Missing values as "n/a", whatever the column; counts that a missing value has made decimal
    (38.0) as counts.
    """

    def counts(column: pd.Series) -> bool:
        known = column.dropna()
        return (
            column.dtype.kind == "f"
            and len(known) > 0
            and bool((known % 1 == 0).all() and known.abs().max() > 1)
        )

    whole = [column.astype("Int64") if counts(column) else column for _, column in table.items()]
    columns = [column.astype(object).where(column.notna(), "n/a") for column in whole]
    return type(table)(dict(enumerate(columns)), index=table.index).set_axis(table.columns, axis=1)


def _show(page: str, text: str) -> None:
    from IPython.display import display

    display({"text/html": page, "text/plain": text}, raw=True)


def start_run(
    name: str,
    namespace: MutableMapping[str, object],
    *,
    images: str = "images",
    groups: str = "groups",
) -> NotebookRun:
    """Open the run of a notebook: check its parameters, seed everything, make its folders.

    ``name`` is the notebook's file name without suffix, ``namespace`` is ``globals()``. Parameter
    values are put back into it in the right type; of a relative path in a parameter the place is
    the repository. ``images`` and ``groups`` are what the notebook's captions call its images and
    what must not be torn apart ("synapses", "neurons"). Opened in JupyterLab, results go to
    ``results/<name>-interactive/``. Raises ParameterError.
    """
    told = os.environ.get(RUN_VARIABLE)
    order = json.loads(Path(told).read_text(encoding="utf-8")) if told else None
    places = Paths.find(order["root"] if order else None)
    notebook = find_notebook(name, all_notebooks(places))
    if order and order["notebook"] != notebook.name:
        raise ParameterError(
            f"start_run({name!r})",
            f"this notebook is {order['notebook']}.",
            "Give start_run the name of its own notebook.",
        )
    absent = [key for key in notebook.parameters if key not in namespace]
    if absent:
        raise ParameterError(
            f"parameter {absent[0]}", "is not set.", "Run the parameters cell first."
        )
    values = check_values(
        notebook.parameters, {key: namespace[key] for key in notebook.parameters}, notebook.name
    )
    own = _headless(order, Path(told)) if order else _interactive(notebook, places, values)
    run = NotebookRun(
        notebook=notebook.name,
        parameters={},
        repository=places.root,
        shown_parameters=shown(notebook.parameters, values),
        interactive=not order,
        **own,
    )
    for key, parameter in notebook.parameters.items():
        values[key] = parameter.with_path(values[key], lambda item: str(places.of_user(item)))
    run.images = images
    run.groups = groups
    run.parameters.update(values)
    namespace.update(values)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.work_folder.mkdir(parents=True, exist_ok=True)
    _hold(run.work_folder.parent / (run.work_folder.name + ".lock"))
    if "seed" in values:
        from nbhelpers.core.seeds import seed_everything

        seed_everything(int(values["seed"]))
    return run


def _headless(order: dict, told: Path) -> dict[str, object]:
    """What the runner says of a run."""
    end_with(os.getppid())
    said = {name: order[name] for name in ("run_id", "fingerprint", "profile", "started")}
    folders = {name: Path(order[name]) for name in ("folder", "work_folder")}
    return said | folders | {"_private": told.parent}


def _interactive(notebook: Notebook, places: Paths, values: dict) -> dict[str, object]:
    """The same of a run in JupyterLab, which has no runner."""
    for key, parameter in notebook.parameters.items():
        if parameter.names_path(values[key]):
            check_path(places, values[key], f"parameter {key}")
    # What a killed run left may be used again only by the same code and parameters. Trainings
    # look at the images themselves.
    code = [sha256_of_file(file) for file in sorted((CODE_ROOT / "nbhelpers").rglob("*.py"))]
    cells = [cell["source"] for cell in notebook.content["cells"]]
    fingerprint = sha256_of([values, code, cells])
    folder = places.results / f"{notebook.name}-interactive"
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "folder": folder,
        "work_folder": places.work / f"{notebook.name}-interactive" / fingerprint[:16],
        "run_id": uuid.uuid4().hex,
        "fingerprint": fingerprint,
        "started": manifest.now(),
    }


def _hold(path: Path, patience: float = 60.0) -> None:
    """Hold a lock for the life of this process, so that two runs never write to one work folder.

    After a kill the kernel of the killed run may live for a second more; hence the patience.
    """
    try:
        import fcntl
    except ImportError:  # Windows: notebooks opened by hand only
        return
    if path in _HELD:  # the notebook is run again in the same kernel
        return
    handle = open(path, "a")
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _HELD[path] = handle
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise InputError(
                    path.parent.name,
                    "this notebook is already running with the same parameters.",
                    "Stop the other run, or its kernel in JupyterLab, first.",
                ) from None
            time.sleep(0.1)
