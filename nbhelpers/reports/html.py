"""Executed notebooks as one HTML file each, complete without a network and safe to open.

Nothing is loaded from anywhere: pictures are inside the file, there is no MathJax and no widget
code, and the page's own policy forbids requests. HTML that comes from cells is cleaned, so that a
file name or a downloaded table cannot bring a script along.
"""

from __future__ import annotations

import base64
import hashlib
import html
import mimetypes
import re
import uuid
from pathlib import Path

from nbhelpers.reports.notebooks import Notebook
from nbhelpers.reports.parameters import shown
from nbhelpers.reports.record import above_floor, scored_text, warned

TEMPLATES = Path(__file__).parent / "templates"
TAGS = frozenset(
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption "
    "figure h1 h2 h3 h4 h5 "
    "h6 hr i img kbd li mark ol p pre s samp small span strong sub summary sup table tbody td "
    "tfoot th thead tr u "
    "ul var".split()
)
ATTRIBUTES = frozenset(
    "alt class colspan height href id rowspan scope src start title width".split()
)
SHOWN_TYPES = [  # of several forms of one output, the first that is there
    "text/html",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/markdown",
    "text/latex",
    "text/plain",
]
DATA_IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]+")


def render_report(
    notebook, manifest: dict, source: Notebook, failed_cell_id: str | None = None
) -> str:
    """The page of an executed notebook (nbformat node) and its manifest, as text."""
    cleaner = Cleaner()
    body = _export(tidy(notebook, source.path.parent), cleaner, failed_cell_id)
    body, contents = number_headings(body)
    script = template_text("report.js")
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    defaults = {name: parameter.default for name, parameter in source.parameters.items()}
    headline = manifest["headline"]
    return fill_page(
        "page.html.j2",
        manifest=manifest,
        bar=safe(interval_bar(headline) if headline else ""),
        body=safe(cleaner.restore(body)),
        contents=contents,
        parameters=source.parameters,
        defaults=shown(source.parameters, defaults),
        style=style() + code_style(),
        script=safe(script),
        script_hash=base64.b64encode(digest).decode(),
    )


def fill_page(template: str, **values: object) -> str:
    """One of our page templates, filled; every value is escaped unless marked as safe."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    for function in (above_floor, minute, repr, scored_text, seconds_text, warned):
        environment.globals[function.__name__] = function
    return environment.from_string(template_text(template)).render(**values)


def template_text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def safe(text: str):
    """Text that is HTML already."""
    from markupsafe import Markup

    return Markup(text)


def style():
    return safe(template_text("style.css"))


def code_style():
    from pygments.formatters import HtmlFormatter

    return safe(
        HtmlFormatter(style="xcode").get_style_defs(".highlight")
        + "\n.highlight { background: var(--ground); }"
    )


def _export(notebook, cleaner: Cleaner, failed_cell_id: str | None) -> str:
    from nbconvert.exporters.templateexporter import TemplateExporter
    from nbconvert.filters import Highlight2HTML
    from traitlets.config import Config

    exporter = TemplateExporter(
        Config({"NbConvertBase": {"display_data_priority": SHOWN_TYPES}}),
        file_extension=".html",
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        preprocessors=[],
        filters={
            "clean_html": cleaner,
            "highlight_code": Highlight2HTML(pygments_lexer="python"),
            "one_line": lambda text: "".join(str(text).split()),
            "base64": lambda text: base64.b64encode("".join(text).encode("utf-8")).decode(),
        },
    )
    body, _ = exporter.from_notebook_node(notebook, resources={"failed_cell_id": failed_cell_id})
    return body


EMPTY_BOX = re.compile(r"\s*<pre[^>]*>\s*</pre>\s*")  # what a progress bar of rich leaves behind


def tidy(notebook, folder: Path):
    """A copy whose outputs read well on paper: progress bars at their last state, no widgets,
    streams joined, no title (the page has it), and pictures of markdown cells as data."""
    from copy import deepcopy

    notebook = deepcopy(notebook)
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for cell in texts:
        cell.source, found = re.subn(r"(?m)^#\s+.+\n?", "", cell.source, count=1)
        if found:
            break
    for cell in texts:
        cell.source = embed_pictures(cell.source, cell.get("attachments", {}), folder)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidy_outputs(cell.outputs)
    return notebook


def tidy_outputs(outputs: list) -> list:
    joined: list = []
    streams: dict = {}  # the last one of each name, which goes on
    for output in outputs:
        if output.output_type == "stream":
            before = streams.get(output.name)
            # Messages are collected in one place; what is printed stands where it was printed.
            if before is not None and (output.name == "stderr" or before is joined[-1]):
                before.text += output.text
                continue
            streams[output.name] = output
        elif output.output_type in ("display_data", "execute_result"):
            output.data.pop("application/vnd.jupyter.widget-view+json", None)
            output.data.pop("application/javascript", None)
            if not output.data or EMPTY_BOX.fullmatch("".join(output.data.get("text/html", ""))):
                continue
        joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            output.text = last_states(output.text)
    return [output for output in joined if output.output_type != "stream" or output.text.strip()]


def last_states(text: str) -> str:
    """Lines as a terminal shows them at the end: what a carriage return overwrote is gone."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        parts = [
            part for part in re.sub(r"\x1b\[[0-9;]*[AK]", "", line).split("\r") if part.strip()
        ]
        lines.append(parts[-1] if parts else "")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def embed_pictures(source: str, attachments: dict, folder: Path) -> str:
    """Pictures that a markdown cell names (attached, or files beside the notebook) as data inside
    the text.
    """

    def embed(found: re.Match) -> str:
        before, target = found.groups()
        if target.startswith("attachment:"):
            for kind, content in attachments.get(target.removeprefix("attachment:"), {}).items():
                return f"{before}data:{kind};base64,{''.join(content.split())}"
        elif not re.match(r"[a-z]+:", target) and (folder / target).is_file():
            kind = mimetypes.guess_type(target)[0] or "image/png"
            content = base64.b64encode((folder / target).read_bytes()).decode()
            return f"{before}data:{kind};base64,{content}"
        return found[0]

    return re.sub(r"(!\[[^\]]*\]\()([^)\s]+)", embed, source)


class Cleaner:
    """Keeps of a piece of HTML what a report needs: text, tables, pictures inside the page, links.

    Pictures are taken out before and put back after (``restore``), as the parser is slow on long
    texts.
    """

    def __init__(self):
        self.token = uuid.uuid4().hex
        self.pictures: list[str] = []

    def __call__(self, text: str) -> str:
        import bleach

        text = DATA_IMAGE.sub(self._take, str(text))
        # What stands inside these is no text to be shown.
        text = re.sub(
            r"<(script|style|iframe|object|template|noscript)\b.*?(</\1\s*>|\Z)",
            "",
            text,
            flags=re.IGNORECASE | re.DOTALL,
        )
        text = bleach.clean(
            text,
            tags=TAGS,
            attributes=self._allowed,
            protocols={"http", "https", "mailto", "data"},
            strip=True,
            strip_comments=True,
        )
        text = re.sub(
            r"<img\b(?![^>]*\bsrc=)[^>]*>", "<em>(picture from outside, left out)</em>", text
        )
        text = re.sub(r'(<img src="[^"]*")(?![^>]*\balt=)', r'\1 alt=""', text)
        if "table-box" not in text:
            text = text.replace("<table", '<div class="table-box"><table').replace(
                "</table>", "</table></div>"
            )
        return text.replace(
            '<div class="table-box">',
            '<div class="table-box" tabindex="0" role="region" aria-label="Table">',
        )

    def restore(self, text: str) -> str:
        return re.sub(
            rf"data:,{self.token}-(\d+)", lambda found: self.pictures[int(found[1])], text
        )

    def _take(self, found: re.Match) -> str:
        self.pictures.append("".join(found[0].split()))
        return f"data:,{self.token}-{len(self.pictures) - 1}"

    def _allowed(self, tag: str, name: str, value: str) -> bool:
        if name == "src":
            return tag == "img" and value.startswith(f"data:,{self.token}-")
        if name == "href":
            return tag == "a" and not value.strip().lower().startswith("data:")
        return name in ATTRIBUTES


def number_headings(body: str) -> tuple[str, list[dict]]:
    """Give every heading an id of its own; return the table of contents (levels 2 and 3) too."""
    contents: list[dict] = []
    used = {"main", "toggle-code", "failed-cell", "run-parameters", "run-provenance"}

    def mark(found: re.Match) -> str:
        level = int(found["level"])
        inner = re.sub(r'<a class="anchor-link".*?</a>', "", found["inner"], flags=re.DOTALL)
        text = html.unescape(re.sub(r"<[^>]+>", "", inner)).strip()
        name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        number = 1
        candidate = name
        while candidate in used:
            number += 1
            candidate = f"{name}-{number}"
        used.add(candidate)
        level = max(level, 2)  # the page's title is the one h1
        if level <= 3 and text:
            contents.append({"level": level, "id": candidate, "text": text})
        return f'<h{level} id="{candidate}">{inner}</h{level}>'

    # Headings of markdown cells only: a heading within a figure or table box stays as it is.
    body = re.sub(
        r"<h(?P<level>[1-6])\b[^>]*>(?P<inner>.*?)</h(?P=level)>", mark, body, flags=re.DOTALL
    )
    return body, contents


def interval_bar(headline: dict) -> str:
    """The score on a line from 0 to 1: interval as a band, floor as a mark where there is one.
    Nothing without an interval, and for scores outside 0..1.
    """
    needed = [headline["value"], headline.get("low"), headline.get("high")]
    floor = headline.get("floor")
    numbers = needed if floor is None else [*needed, floor]
    if any(number is None or not 0 <= number <= 1 for number in numbers):
        return ""
    value, low, high = needed
    return fill_page("bar.html.j2", value=value, low=low, high=high, floor=floor)


def minute(time: str) -> str:
    """A time of a manifest to the minute, e.g. '2026-01-01 10:00 UTC'."""
    return f"{time[:16].replace('T', ' ')} UTC"


def seconds_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
