#!/usr/bin/env python3
"""The picture in docs/review.md, and how long the page takes from a key to the next picture.

python tools/review_pictures.py docs/review.jpg: draws scenes of AdWorld, serves them, looks at the page in
a headless Chromium (Debian's chromium, by way of playwright) at a desk's and a phone's width.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rfft.adworld.draw import draw_dataset

SCENES, TIMED, GAP = 48, 40, 12
SIZES = ((1280, 800), (390, 800))
STOPWATCH = """() => {
  window.waits = [];
  let began = 0;
  document.addEventListener("keydown", () => { began = performance.now(); }, true);
  const painted = () => requestAnimationFrame(() => window.waits.push(performance.now() - began));
  document.getElementById("pictures").addEventListener("load", painted, true);
}"""


def main() -> None:
    from playwright.sync_api import sync_playwright

    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        scenes = Path(folder) / "scenes"
        draw_dataset(scenes, SCENES, seed=0)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"], timeout=60_000
        )
        with served(scenes, Path(folder) / "feedback.db") as url:
            page = entered(browser, url, SIZES[0])
            print(latency(page))
            page.keyboard.press("Shift+Digit5")
            page.locator(".picture img").click()
            phone = entered(browser, url, SIZES[1])
            beside([shot(page), shot(phone)]).save(out, quality=88, optimize=True)
        browser.close()


@contextmanager
def served(scenes: Path, store: Path) -> Iterator[str]:
    """Yield the address of `rfft review serve`."""
    command = [sys.executable, "-m", "rfft", "review", "serve", str(scenes), "--store", str(store)]
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def entered(browser: Any, url: str, size: tuple[int, int]) -> Any:
    """Return the page of a new rater, with its first picture."""
    viewport = {"width": size[0], "height": size[1]}
    page = browser.new_context(viewport=viewport, bypass_csp=True).new_page()  # for the stopwatch
    page.goto(url)
    page.get_by_label("Your name").fill(f"rater of {size[0]} px")
    page.get_by_role("button", name="Begin").click()
    page.wait_for_selector(".picture img")
    page.wait_for_load_state("networkidle")
    return page


def latency(page: Any) -> str:
    """Answer by keys and return median and 95th percentile from a key to the next picture, painted."""
    page.evaluate(STOPWATCH)
    for count in range(TIMED):
        page.keyboard.press("1")
        page.wait_for_function(f"window.waits.length > {count}")
        page.wait_for_timeout(300)
    waits = page.evaluate("window.waits")
    median, late = np.percentile(waits, [50, 95])
    return f"{TIMED} pictures: {median:.0f} ms from key to next picture, {late:.0f} ms at most in 95 %"


def shot(page: Any) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures in one row."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    row, left = Image.new("RGB", (width, max(p.height for p in pictures)), (120, 120, 120)), 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return row


if __name__ == "__main__":
    main()
