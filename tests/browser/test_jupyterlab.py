"""demo2d as a user meets it: opened in JupyterLab in a real browser, all cells run, the results
looked at.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]
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
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/themes": {"theme": "JupyterLab Light"},
}
MOST_S = 300  # on a busy machine; a laptop takes less than 60


@pytest.fixture
def laboratory(make_checkout, tmp_path):
    """A JupyterLab of its own on loopback, with a token of its own, over a copy of demo2d. Gives
    address and root.
    """
    pytest.importorskip("jupyterlab")
    checkout = make_checkout(notebook=None)
    (checkout.root / "checkpoints").mkdir()
    shutil.copy(ROOT / "notebooks" / "demo2d.ipynb", checkout.root / "notebooks")
    for path in (ROOT / "checkpoints").glob("synapse_phantom_2d.*"):
        shutil.copy(path, checkout.root / "checkpoints")
    home = tmp_path / "jupyter"
    token = secrets.token_hex(16)
    for name, value in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = checkout.environment() | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_TOKEN": token,
    }  # not as an argument, which others can read
    with open(tmp_path / "lab.log", "wb") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={port}",
                "--ServerApp.port_retries=0",
                f"--ServerApp.root_dir={checkout.root}",
                "--ServerApp.allow_root=True",
                "--LabApp.news_url=",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            env=environment,
            cwd=checkout.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/api?token={token}", timeout=5
                ).read()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, (
                    tmp_path / "lab.log"
                ).read_text()
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/lab/tree/notebooks/demo2d.ipynb?token={token}", checkout
    finally:
        server.terminate()  # ends its kernels too
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture
def page(chromium_path):
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.left = []
        page.too_late = sync.TimeoutError

        def guard(route):
            address = urlparse(route.request.url)
            if address.scheme in ("data", "blob") or address.hostname == "127.0.0.1":
                route.continue_()
            else:
                page.left.append(route.request.url)
                route.abort()

        page.route("**/*", guard)
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def choose(page, menu: str, *entries: str) -> None:
    """Open a menu of the menu bar and click through its entries."""
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
    for entry in entries:
        page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{entry}$")).click()


def run_all_cells(page, checkout) -> dict:
    """Choose Run > Run All Cells, wait for the end, and give the run's metrics."""
    for _ in range(
        4
    ):  # JupyterLab drops the order while it still connects to the kernel, without a word
        choose(page, "Run", "Run All Cells")
        try:
            page.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]")).first.wait_for(
                state="attached", timeout=15_000
            )
            break
        except page.too_late:
            continue
    folder = checkout.results / "demo2d-interactive"
    until = time.monotonic() + MOST_S
    while not (folder / "manifest.json").is_file():
        error = page.locator("[data-mime-type='application/vnd.jupyter.error']")
        if error.count() or time.monotonic() > until:
            screenshot(page, "demo2d-failed")
        assert error.count() == 0, error.first.inner_text()
        assert time.monotonic() < until, (
            "the notebook did not come to its end; see results/.screenshots"
        )
        page.wait_for_timeout(500)
    return json.loads((folder / "metrics.json").read_text())


def shown(page, place):
    """Scroll on until ``place`` is in view, and give it."""
    for _ in range(
        60
    ):  # JupyterLab makes the cells that are far from view only when they come near
        if place.count():
            break
        page.locator(".jp-WindowedPanel-outer").first.hover()
        page.mouse.wheel(0, 500)
        page.wait_for_timeout(150)
    place.scroll_into_view_if_needed()
    return place


def shown_picture(page, alt: str):
    """Scroll the picture with this alt text into view; it must be decoded and have a size."""
    picture = shown(page, page.locator(f"img[alt^='{alt}']").first)
    assert (
        picture.evaluate(
            "async image => { await image.decode(); return image.complete && image.naturalWidth; }"
        )
        > 200
    )
    box = picture.bounding_box()
    assert box["width"] > 200 and box["height"] > 150
    return picture


def screenshot(page, name: str) -> None:
    folder = ROOT / "results" / ".screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def to_the_top(page) -> None:
    page.locator(".jp-WindowedPanel-outer").first.evaluate("panel => panel.scrollTo(0, 0)")
    page.wait_for_timeout(300)


def test_demo2d_in_jupyterlab(laboratory, page):
    address, checkout = laboratory
    page.goto(address)
    page.locator(".jp-Notebook h1", has_text="Synapses in 2D: the demo").wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    metrics = run_all_cells(page, checkout)
    accuracy = metrics["headline"]["value"]
    for theme in ("Light", "Dark"):
        if theme == "Dark":
            choose(page, "Settings", "Theme", "JupyterLab Dark")
            page.locator("body[data-jp-theme-light='false']").wait_for(state="attached")
        to_the_top(page)
        for name, alt in (
            ("confusion", "A table of true against predicted classes"),
            ("reliability", "Accuracy against confidence"),
            ("predictions", "Some synapses with their true class"),
        ):
            shown_picture(page, alt)
            screenshot(page, f"demo2d-{name}-{theme.lower()}")
        assert contrast_of_text(page) > 4.5
        text = shown(page, page.get_by_text(re.compile(rf"Accuracy {accuracy:.3f} \[")).first)
        assert text.is_visible()
        screenshot(page, f"demo2d-headline-{theme.lower()}")
    assert page.locator("text=Traceback").count() == 0
    assert metrics["headline"]["low"] <= accuracy <= metrics["headline"]["high"]
    assert page.left == []
    table = (checkout.results / "demo2d-interactive" / "evaluation.csv").read_text()
    assert table.startswith("name,predicted,probability excitatory,probability inhibitory")


def contrast_of_text(page) -> float:
    """WCAG contrast ratio of a caption against the page of the notebook."""
    return page.evaluate("""() => {
        const caption = document.querySelector('.jp-OutputArea figcaption');
        const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
        let place = caption, ground = [0, 0, 0, 0];
        while (place && (ground.length === 4 && ground[3] === 0)) {
            ground = rgb(getComputedStyle(place).backgroundColor); place = place.parentElement;
        }
        const light = colour => { const [r, g, b] = colour.slice(0, 3).map(v => v / 255).map(
            v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const [a, b] = [light(rgb(getComputedStyle(caption).color)), light(ground)];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }""")
