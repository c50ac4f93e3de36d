"""Make the pictures of docs/viewer.md: the page of `nerf view`, in headless Chromium.

    python scripts/viewer_pictures.py runs/robot         of a model of data/sample; writes docs/pictures/viewer*.jpg

Needs the extras view and browser, and Chromium. Nothing is written into the run.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from nerf.views.viewer.edits import Edits
from nerf.views.viewer.server import Viewer
from nerf.views.viewer.subject import open_subject

OUT = Path(__file__).resolve().parent.parent / "docs/pictures"
WINDOW = {"width": 1120, "height": 700}
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking"]
PATIENCE = 60.0  # seconds


def settled(page: Any, viewer: Viewer) -> None:
    """Wait until the finest picture is there, and the page has drawn it."""
    page.wait_for_timeout(1500)
    end = time.monotonic() + PATIENCE
    while viewer.clients[0].viewport.pace.level is not None and time.monotonic() < end:
        page.wait_for_timeout(100)
    page.wait_for_timeout(4000)


def press(control: Any) -> None:
    control.wait_for(state="attached", timeout=1000 * PATIENCE)
    control.dispatch_event("click")


def save(page: Any, name: str) -> None:
    picture = Image.open(io.BytesIO(page.screenshot(timeout=1000 * PATIENCE))).convert("RGB")
    picture.save(OUT / name, quality=88, optimize=True)
    print(OUT / name, (OUT / name).stat().st_size, "bytes")


def main() -> None:
    from playwright.sync_api import sync_playwright

    subject = open_subject(Path(sys.argv[1]))
    subject.load_photos()
    subject.folder, subject.history.now = None, Edits()  # edits are made, and not kept
    viewer = Viewer(subject, port=0)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport=WINDOW)
        page.goto(viewer.address)
        page.get_by_role("tab", name="View").wait_for(timeout=1000 * PATIENCE)
        settled(page, viewer)
        for button in page.locator(".mantine-Notification-root button").all():  # that there is no graphics card
            press(button)
        press(page.get_by_label("Cameras", exact=True))
        settled(page, viewer)
        save(page, "viewer.jpg")
        press(page.get_by_label("Cameras", exact=True))
        page.get_by_role("tab", name="Edit").click(timeout=1000 * PATIENCE)
        press(page.get_by_label("Keep only a box"))
        settled(page, viewer)
        save(page, "viewer-edit.jpg")
        browser.close()
    viewer.close()


if __name__ == "__main__":
    main()
