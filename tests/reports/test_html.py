"""The page of a report: nothing from outside, nothing that runs, everything readable."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbhelpers.reports.html import (
    Cleaner,
    embed_pictures,
    interval_bar,
    last_states,
    number_headings,
    render_report,
    tidy_outputs,
)
from nbhelpers.reports.notebooks import Notebook

PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d4944415478da63fcffff3f0300"
        "08fb02fea73d81d50000000049454e44ae426082"
    )
).decode()
EVIL = "<script>alert(1)</script>"


def manifest(**more) -> dict:
    return {
        "notebook": "01_toy",
        "title": "Toy",
        "profile": "demo",
        "parameters": {"steps": 4, "rate": 0.5, "kind": "plain", "data_dir": ""},
        "seed": None,
        "state": "ok",
        "reason": "",
        "fingerprint": "f" * 64,
        "started": "2026-01-01T10:00:00.000+00:00",
        "finished": "2026-01-01T10:01:00.000+00:00",
        "wall_time_s": 60.0,
        "peak_memory_bytes": 2**30,
        "git": {"commit": "abc", "dirty": True},
        "versions": {"python": "3.11"},
        "platform": "Linux",
        "device": {"cpu": "cpu", "threads": 2},
        "data": [],
        "splits": [],
        "figures": [],
        "headline": {
            "name": "Accuracy",
            "value": 0.9,
            "low": 0.85,
            "high": 0.95,
            "n": 120,
            "floor_name": "majority class",
            "floor": 0.6,
        },
        **more,
    }


def output(**data) -> dict:
    return nbformat.v4.new_output(
        "display_data", {key.replace("_", "/", 1): value for key, value in data.items()}
    )


@pytest.fixture
def render(make_checkout):
    source = Notebook(make_checkout().root / "notebooks/01_toy.ipynb")

    def page(*outputs, markdown="# Toy\n\n## Data", failed=None, **more) -> str:
        cells = [
            nbformat.v4.new_markdown_cell(markdown),
            nbformat.v4.new_code_cell("secret_code = 1", id="one"),
        ]
        cells[1].outputs = list(outputs)
        return render_report(
            nbformat.v4.new_notebook(cells=cells), manifest(**more), source, failed_cell_id=failed
        )

    return page


def test_a_leaking_split_has_its_banner(render):
    split = {"protocol": "published", "seed": 42, "hash": "0" * 64, "known_leak": ""}
    assert "This split leaks" not in render(splits=[split])
    page = render(splits=[split, {**split, "known_leak": f"75 of 92 {EVIL}"}])
    assert "This split leaks" in page and "75 of 92 &lt;script&gt;" in page


def test_nothing_in_the_page_points_outside(render):
    page = render(
        output(
            text_html='<p>x</p><img src="https://example.org/a.png">'
            f'<img src="data:image/png;base64,{PIXEL}">'
        ),
        markdown="# Toy\n\n![there](https://example.org/b.png) "
        "<link rel=stylesheet href=//example.org/c.css>",
    )
    assert not re.search(r"""(src|srcset|poster|data|action)\s*=\s*["']?(https?:)?//""", page)
    assert "@import" not in page and "url(" not in page and "<link" not in page
    assert f"data:image/png;base64,{PIXEL}" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    "text",
    [
        EVIL,
        f"<p>{EVIL}</p>",
        "<img src=x onerror=alert(1)>",
        '<a href="javascript:alert(1)">x</a>',
        '<a href="data:text/html,<script>alert(1)</script>">x</a>',
        "<svg onload=alert(1)><script>alert(1)</script></svg>",
        "<iframe src='https://example.org'></iframe>",
        "<scr<script>ipt>alert(1)</scr</script>ipt>",
        "<style>@import 'https://example.org/a.css'</style>",
        "<body onload=alert(1)>",
        "<form action=//x><input></form>",
        "<math><mtext><img src=x onerror=alert(1)></mtext></math>",
        "<p style='background:url(//example.org)'>x</p>",
    ],
)
def test_what_could_run_is_taken_out(render, text):
    for page in (
        render(output(text_html=text)),
        render(markdown="# Toy\n\n" + text),
        render(output(text_markdown=text)),
    ):
        article = page[page.index("<article>") : page.index("</article>")]
        assert not elements(article) & {
            "script",
            "iframe",
            "style",
            "svg",
            "form",
            "input",
            "body",
            "math",
            "object",
            "link",
        }


def elements(page: str) -> set[str]:
    """The elements of a page as a parser sees them; fails on any attribute that acts."""
    seen = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.add(tag)
            for name, value in attributes:
                assert not name.startswith("on") and name not in ("style", "srcdoc", "action")
                assert not re.match(r"\s*(javascript|data:text)", value or "", re.IGNORECASE)

    Reader().feed(page)
    return seen


@given(st.text(max_size=200))
def test_no_text_becomes_a_script(text):
    cleaned = Cleaner()(f"{text}<ScRiPt >{text}</sCrIpT>{text}")
    assert not re.search(r"<\s*script", cleaned, re.IGNORECASE)


def test_plain_outputs_and_names_are_escaped(render):
    page = render(
        nbformat.v4.new_output("stream", name="stdout", text=EVIL),
        output(text_plain=EVIL),
        nbformat.v4.new_output("error", ename="ValueError", evalue=EVIL, traceback=[EVIL]),
        title=EVIL,
        reason=EVIL,
        state="failed",
        data=[
            {
                "name": EVIL,
                "n": 1,
                "classes": {EVIL: 1},
                "synthetic": False,
                "source": EVIL,
                "content_hash": "0" * 64,
            }
        ],
    )
    assert EVIL not in page
    assert page.count("&lt;script&gt;") >= 7


def test_code_is_hidden_but_there(render):
    page = render()
    assert re.search(r'<details class="code"><summary>Code</summary>', page)
    assert "secret_code" in page


def test_banners_follow_the_manifest(render):
    images = {"name": "a", "n": 3, "classes": {"x": 3}, "source": "s", "content_hash": "0" * 64}
    assert "Synthetic images" not in render()
    assert "Synthetic images" not in render(data=[{**images, "synthetic": False}])
    assert "Synthetic images" in render(
        data=[{**images, "synthetic": False}, {**images, "synthetic": True}]
    )
    assert "This run failed" not in render()
    failed = render(
        state="failed",
        reason="The kernel was killed, most likely out of memory.",
        headline=None,
        failed="one",
    )
    assert "This run failed" in failed and "most likely out of memory" in failed
    assert 'id="failed-cell"' in failed and '<details class="code" open>' in failed


def test_headline_parameters_and_provenance_are_shown(render):
    page = render()
    for words in (
        "0.900",
        "0.850 to 0.950",
        "120",
        "0.600, majority class",
        "abc with changes not committed",
        "1.00 GiB",
        "steps to take",
    ):
        assert words in page
    assert re.search(r"<tr class=changed><th scope=\"row\"><code>steps", page)
    assert not re.search(r"<tr class=changed><th scope=\"row\"><code>rate", page)


def test_streams_show_the_last_state_of_a_progress_bar(render):
    stream = [
        nbformat.v4.new_output("stream", name="stderr", text=f"\r{percent}%|##")
        for percent in (1, 50, 100)
    ]
    page = render(
        *stream,
        output(**{"application/vnd.jupyter.widget-view+json": {}, "text_plain": "the text"}),
        output(**{"application/vnd.jupyter.widget-view+json": {}}),
    )
    assert "100%|##" in page and "50%|##" not in page
    assert page.count("<summary>Messages</summary>") == 1
    assert "the text" in page and "widget" not in page[page.index("<article>") :]


def test_emptied_progress_bars_leave_no_box():
    kept, emptied = (
        nbformat.v4.new_output(
            "display_data", {"text/html": [f"<pre class='x'>{text}</pre>"], "text/plain": text}
        )
        for text in ("kept", "")
    )
    assert tidy_outputs([emptied, kept, emptied]) == [kept]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\rb", "b"),
        ("a\rb\r", "b"),
        ("a\r\nb\n", "a\nb\n"),
        ("1\r2\n3\r4", "2\n4"),
        ("", ""),
        ("x\x1b[A\ry", "y"),
    ],
)
def test_carriage_returns(text, expected):
    assert last_states(text) == expected


def test_headings_get_addresses_of_their_own_and_one_h1(render):
    page = render(markdown="# Toy\n\n## Data\n\n## Data\n\n### Main\n\n#### Deep\n\n# Second title")
    assert page.count("<h1>") == 1 and "<h1 " not in page
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for address in re.findall(r'<li class="level-\d"><a href="#([^"]+)"', page):
        assert address in ids
    body, contents = number_headings("<h2>A &amp; B</h2><h2>A  B</h2>")
    assert [item["text"] for item in contents] == ["A & B", "A  B"]
    assert [item["id"] for item in contents] == ["a-b", "a-b-2"] and 'id="a-b-2"' in body


def test_pictures_of_markdown_cells_come_along(tmp_path):
    (tmp_path / "a.png").write_bytes(base64.b64decode(PIXEL))
    text = embed_pictures(
        "![x](a.png) ![y](attachment:b.png) ![z](gone.png)",
        {"b.png": {"image/png": PIXEL}},
        tmp_path,
    )
    assert text.count(PIXEL) == 2 and "gone.png" in text


def test_wide_tables_scroll_in_a_box_once(render):
    page = render(
        output(text_html="<table><tr><td>1</td></tr></table>"),
        output(text_html='<div class="table-box"><table><tr><td>1</td></tr></table></div>'),
    )
    article = page[page.index("<article>") : page.index("</article>")]
    assert article.count('class="table-box"') == article.count("<table") == 2


def test_the_bar_is_left_out_where_it_would_mislead():
    headline = manifest()["headline"]
    assert "<svg" in interval_bar(headline) and ">floor<" in interval_bar(headline)
    assert interval_bar({**headline, "high": 3.0}) == ""
    assert interval_bar({**headline, "low": None, "high": None}) == ""
    assert interval_bar({**headline, "value": float("nan")}) == ""
    without_floor = interval_bar({**headline, "floor": None, "floor_name": None})
    assert "<svg" in without_floor and "floor" not in without_floor


def test_a_headline_says_what_it_has_and_nothing_of_what_it_lacks(render):
    headline = manifest()["headline"]
    full = {
        "n_text": "192 synapses of 24 neurons",
        "above_floor": False,
        "answer": "Not shown: the network may be no better than its floor.",
        "worst_finding": "Two images are copies <b>",
        "warning": "Most look unlike the training images.",
        "something": "else",
    }
    page = render(headline={**headline, **full})
    for words in (
        "192 synapses of 24 neurons",
        "Not shown: the network may be no better than its floor.",
        "Two images are copies &lt;b&gt;",
        "New images:</strong> Most look unlike the training images.",
    ):
        assert words in page
    users = {"users_images": "Your 2 images <b>", "state": "done, with warnings", "warning": "Mend"}
    page = render(headline={**headline, **users})
    top = page[: page.index('class="headline"')]
    assert "Your 2 images &lt;b&gt;" in top and "What to do next:</strong> Mend" in top
    assert '"state warned">done, with warnings<' in top and "New images:" not in page
    bare = {**headline, "low": None, "high": None, "floor": None, "floor_name": None}
    top = render(headline=bare)
    top = top[top.index('class="headline"') : top.index("</header>")]
    assert "0.900" in top and "interval" not in top and "floor" not in top.lower()
    low = {**headline, "low": 0.55}
    assert "not above its floor" in render(headline=low)
    assert "not above its floor" not in render(headline={**low, "above_floor": None})
