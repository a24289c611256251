"""The report and the index as a reader sees them: in a real browser, with the network cut off."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

START = """\
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.estimate import Estimate
from nbhelpers.reports.run import start_run

run = start_run("01_spines", globals())
"""
DATA = """\
rng = np.random.default_rng(0)
table = pd.DataFrame({"id": [f"spine {i}" for i in range(90)],
                      "label": ["mushroom", "stubby", "thin"] * 30,
                      "group": [str(i // 9) for i in range(90)]})
images = ImageSet("spine phantoms", table, rng.integers(0, 255, (90, 1, 8, 8), np.uint8),
                  ("mushroom", "stubby", "thin"), "made by this notebook", True)
run.add_data(images)
run.show_table(images.summary(), "Images per class")
"""
TRAINING = """\
import sys
import time
for epoch in range(5):
    print(f"\\repoch {epoch + 1} of 5, validation accuracy {0.8 + epoch / 40:.3f}", end="")
print()
print("a warning that nobody needs to read first", file=sys.stderr)
names = [f"feature {i} <script>alert(1)</script>" for i in range(30)]
wide = pd.DataFrame(rng.normal(size=(4, 30)), columns=names)
run.show_table(wide, "A table wider than the page")
"""
FIGURE = """\
figure, axes = plt.subplots(1, 2, figsize=(9, 4))
axes[0].imshow([[50, 3, 1], [2, 30, 4], [1, 2, 27]], cmap="Blues")
axes[0].set(title="Confusion matrix", xlabel="predicted", ylabel="true")
axes[1].plot(np.linspace(0.5, 0.95, 20))
axes[1].set(title="Validation accuracy", xlabel="epoch", ylabel="accuracy")
run.show_figure(figure, "confusion",
                caption="Where the network errs: thin spines are taken for stubby ones.",
                alt="Confusion matrix of three classes beside the course of the "
                "validation accuracy")
"""
FINISH = """\
run.set_result("Accuracy", Estimate(0.931, 0.912, 0.949, 456))
run.add_floor("majority class", Estimate(0.632))
run.finish({"accuracy": 0.931})
"""


@pytest.fixture(scope="module")
def browser(chromium_path):
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a file with the network cut off. Gives the page, the requests that left, and the
    console's errors.
    """
    context = browser.new_context(viewport={"width": 1366, "height": 768}, offline=True)
    left = []
    errors = []

    def guard(route):
        if route.request.url.startswith(("file:", "data:")):
            route.continue_()
        else:
            left.append(route.request.url)
            route.abort()

    context.route("**/*", guard)

    def open_file(path: Path):
        page = context.new_page()
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else left.append(request.url)
            ),
        )
        page.on(
            "console",
            lambda message: errors.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri(), wait_until="load")
        return page

    yield open_file, left, errors
    context.close()


def screenshot(page, name: str, **more) -> None:
    folder = ROOT / "results" / ".screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", **more)


def pictures_are_there(page) -> int:
    sizes = page.eval_on_selector_all(
        "img", "all => all.map(img => [img.complete, img.naturalWidth])"
    )
    assert all(complete and width > 0 for complete, width in sizes)
    return len(sizes)


CONTRAST = """() => {
  const channels = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = channels(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest('svg, script, style')) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(channels(style.color)), light(ground(element))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5))
      poor.push(walker.currentNode.textContent.trim().slice(0, 40) + ': ' + ratio.toFixed(2));
  }
  return poor;
}"""


def check_accessibility(page) -> None:
    """WCAG 2.1 AA as far as a program can tell: language, one h1, headings in order, alternative
    texts, names of links and buttons, heads of tables, ids that stand once, and contrast of all
    text that is seen."""
    assert page.evaluate("document.documentElement.lang") == "en" and page.title()
    levels = page.eval_on_selector_all(
        "h1,h2,h3,h4,h5,h6", "all => all.map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels)), levels
    assert page.locator("main").count() == 1
    without = page.eval_on_selector_all(
        "img",
        "all => all.filter(i => !i.hasAttribute('alt') || (!i.alt.trim() && "
        "!i.closest('[aria-hidden=true]'))).length",
    )
    assert without == 0, "a figure has no alternative text"
    drawn = page.eval_on_selector_all(
        "svg", "all => all.filter(s => !s.getAttribute('aria-label')).length"
    )
    nameless = page.eval_on_selector_all(
        "a[href], button, summary",
        "all => all.filter(one => !one.closest("
        "'[aria-hidden=true]') && !(one.innerText.trim() || one.textContent.trim() || "
        "one.getAttribute('aria-label'))).length",
    )
    headless = page.eval_on_selector_all(
        "table", "all => all.filter(table => !table.querySelector('th')).length"
    )
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert (drawn, nameless, headless) == (0, 0, 0) and len(ids) == len(set(ids))
    assert page.evaluate(CONTRAST) == []


def cells(toy) -> list[dict]:
    return [
        toy.markdown(
            "# Dendritic spines with a small network\n\n**Question.** Can a network tell three "
            "shapes of "
            "spines apart?\n\n**Needs.** Nothing: the images are made here.\n\n**Time.** 20 "
            "seconds.\n\n"
            "<script>document.title = 'taken over'</script><img src=x "
            "onerror=\"document.title='taken'\">"
            "![outside](https://example.org/pixel.png)"
        ),
        toy.code(
            "epochs = 5      # 1..100: passes over the training images\n"
            "rate = 8e-4     # 1e-6..1: step size\n",
            "parameters",
        ),
        toy.code(START),
        toy.markdown("## Data\n\nLook at it **first**. One row a class; `group` is the neuron."),
        toy.code(DATA),
        toy.markdown("## Training"),
        toy.code(TRAINING),
        toy.markdown("## Evaluation\n\n### Confusion\n\nMost errors lie between two classes."),
        toy.code(FIGURE),
        toy.markdown(
            "## Limits\n\n- Synthetic.\n- Few.\n\n> No biology here.\n\n## Limits\n\nAgain."
        ),
        toy.code(FINISH),
    ]


def test_report_and_index_open_complete_without_a_network(make_checkout, toy, open_page):
    checkout = make_checkout(notebook=None)
    checkout.add("01_spines", cells(toy))
    checkout.add("02_broken", toy.cells("02_broken", middle="raise ValueError('no <b>good</b>')"))
    checkout.add("03_waiting")
    checkout.profile("demo", "notebooks:\n  01_spines: {epochs: 7}\n  02_broken: {}\n")
    ended = checkout.run(timeout=400)  # a machine that does much else
    assert ended.returncode == 1, ended.stdout + ended.stderr
    open_file, left, errors = open_page

    page = open_file(checkout.results / "01_spines" / "report.html")
    assert page.title() == "Dendritic spines with a small network"
    assert page.locator("h1").count() == 1
    levels = page.eval_on_selector_all("h1,h2,h3,h4", "all => all.map(h => Number(h.tagName[1]))")
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    for heading in (
        "Data",
        "Training",
        "Evaluation",
        "Limits",
        "Parameters of this run",
        "Provenance",
    ):
        assert page.get_by_role("heading", name=heading, exact=True).first.is_visible()
    assert pictures_are_there(page) == 1  # neither the broken one nor the one from outside
    assert page.get_by_alt_text("Confusion matrix of three classes").is_visible()
    assert "Synthetic images" in page.locator(".banner.synthetic").inner_text()
    assert "0.931" in page.locator(".headline").inner_text()
    assert "Scored\n456 images" in page.locator(".headline").inner_text()
    links = page.eval_on_selector_all("nav li a", "all => all.map(a => a.getAttribute('href'))")
    assert len(set(links)) == len(links)
    assert all(page.locator(link).count() == 1 for link in links)
    assert not page.locator("details.code pre").first.is_visible()
    check_accessibility(page)
    screenshot(page, "report")
    screenshot(page, "report-whole", full_page=True)
    page.get_by_role("button", name="Show all code").click()
    assert all(box.is_visible() for box in page.locator("details.code pre").all())
    check_accessibility(page)  # the colours of the code, too
    page.get_by_role("button", name="Hide all code").click()
    assert not page.locator("details.code pre").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    wide = page.locator("figure", has_text="wider than the page").locator(".table-box")
    assert wide.evaluate("box => box.scrollWidth > box.clientWidth")
    assert "epoch 5 of 5" in page.locator("pre.stdout").first.inner_text()
    assert "epoch 4 of 5" not in page.content()
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.get_by_alt_text("Confusion matrix of three classes").is_visible()
    screenshot(page, "report-print", full_page=True)

    page = open_file(checkout.results / "02_broken.failed" / "report.html")
    banner = page.locator(".banner.failed")
    assert (
        "ValueError: no <b>good</b>" in banner.inner_text() and "Evaluation" in banner.inner_text()
    )
    assert page.locator("#failed-cell pre").first.is_visible()
    check_accessibility(page)
    screenshot(page, "report-failed", full_page=True)

    page = open_file(checkout.results / "index.html")
    assert page.locator(".card").count() == 3
    check_accessibility(page)
    assert [state.inner_text() for state in page.locator(".states .state:first-child").all()] == [
        "done",
        "failed",
        "never run",
    ]
    assert pictures_are_there(page) == 1
    assert "0.931" in page.locator(".card").first.inner_text()
    screenshot(page, "index", full_page=True)
    page.get_by_role("link", name="Dendritic spines with a small network").click()
    assert page.title() == "Dendritic spines with a small network"

    assert left == []
    assert [error for error in errors if "Content Security Policy" not in error] == []
