"""The review page in a real browser: every task by keys and by mouse, at a desk's width and a phone's."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import Vote
from tests.recipe.test_review_cli import NASTY, generated, served

__all__ = ["generated"]  # a fixture
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
WIDTHS = {"desk": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders with a picture each in the same eight places, in groups of four."""
    folders = tuple(tmp_path_factory.mktemp(name) for name in ("before", "after"))
    for shade, folder in enumerate(folders):
        for i in range(8):
            path = folder / f"product {i // 4}" / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (96, 96), (25 * i, 90 * shade, 140)).save(path)
    return folders  # type: ignore[return-value]


@contextmanager
def opened(browser: Any, width: str, store: Path, *arguments: object) -> Iterator[Any]:
    """The page with its first question; it must not have logged an error at the end."""
    with served(store, *arguments) as (_, lines):
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        page = browser.new_context(viewport=size).new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(lines[1])
        page.get_by_label("Your name").fill("anna")
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector(".picture img")
        yield page
        assert not problems
        assert page.locator("html").evaluate("e => e.scrollWidth") <= size["width"]


def wait_for_votes(page: Any, count: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#counts")).to_have_text(re.compile(f"^you {count},"), timeout=30_000)


def votes(store: Path) -> list[Vote]:
    return VoteStore(store).votes()


@pytest.mark.parametrize("width", WIDTHS)
def test_labels(browser: Any, generated: Path, tmp_path: Path, width: str) -> None:
    store = tmp_path / "feedback.db"
    with opened(browser, width, store, generated) as page:
        assert page.locator("#caption").text_content() == NASTY  # shown, not run
        page.keyboard.press("1")
        wait_for_votes(page, 1)
        page.keyboard.press("Shift+Digit3")  # ticked, then sent with another
        page.keyboard.press("n")
        page.keyboard.type(NASTY)
        page.keyboard.press("Escape")
        page.locator(".picture img").click()
        page.keyboard.press("6")
        wait_for_votes(page, 2)
        page.get_by_role("button", name="indistinctiveness", exact=False).last.click()
        wait_for_votes(page, 3)
        page.keyboard.press("Backspace")
        wait_for_votes(page, 2)
        page.get_by_role("button", name="Guide").click()
        assert page.get_by_role("heading", name="shape hallucination").is_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("p")
        page.get_by_role("cell", name="anna").wait_for()
        page.keyboard.press("Escape")
        assert page.title() != "broken"
    first, second = votes(store)
    assert first.answer == {"labels": ["available"]} and first.seconds is not None
    assert second.answer == {"labels": ["space_mismatch", "shape_hallucination"]} and second.note == NASTY
    assert second.x == pytest.approx(0.5, abs=0.02) and second.y == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("width", WIDTHS)
def test_pairs(browser: Any, two_runs: tuple[Path, Path], tmp_path: Path, width: str) -> None:
    store = tmp_path / "feedback.db"
    with opened(browser, width, store, two_runs[0], "--task", "pairs") as page:
        page.keyboard.press("ArrowRight")
        wait_for_votes(page, 1)
        page.locator(".picture").first.click()
        wait_for_votes(page, 2)
        before = page.locator(".picture img").first.get_attribute("src")
        page.keyboard.press("Space")
        page.wait_for_selector(
            f".picture:first-child img:not([src='{before}'])"
        )  # what is not seen has no vote
        page.get_by_role("button", name="The same").click()
        wait_for_votes(page, 3)
    found = votes(store)
    seen = [{vote.left, vote.right} for vote in found]
    assert len(seen[0] & seen[1]) == 1  # the winner stayed
    assert not seen[2] & (seen[0] | seen[1])  # another product
    assert found[2].answer == {"better": "same"}


@pytest.mark.parametrize("width", WIDTHS)
def test_good_same_bad(browser: Any, two_runs: tuple[Path, Path], tmp_path: Path, width: str) -> None:
    """What is called left is counted for whichever run lay on the left."""
    store = tmp_path / "feedback.db"
    with opened(browser, width, store, *two_runs, "--task", "gsb") as page:
        shown = [page.locator(".picture img").nth(i).get_attribute("src") for i in range(2)]
        for key in ("1", "2", "3", "1"):
            page.keyboard.press(key)
        wait_for_votes(page, 1)
        for name in ("overall", "alignment", "quality", "realism"):
            page.get_by_label(f"{name}: The same").click()
        wait_for_votes(page, 2)
    first, second = votes(store)
    left_first = shown[0].endswith(first.left)
    good, bad = ("good", "bad") if left_first else ("bad", "good")
    assert first.answer == {"overall": good, "alignment": "same", "quality": bad, "realism": good}
    assert set(second.answer.values()) == {"same"}
    pictures = VoteStore(store).pictures()
    assert all(pictures[vote.left].source == two_runs[0].name for vote in (first, second))


@pytest.mark.parametrize("width", WIDTHS)
def test_scores(browser: Any, generated: Path, tmp_path: Path, width: str) -> None:
    store = tmp_path / "feedback.db"
    with opened(browser, width, store, generated, "--task", "scores") as page:
        page.keyboard.press("a")
        page.keyboard.press("2")
        wait_for_votes(page, 1)
        page.get_by_role("button", name="artefacts").click()
        page.get_by_role("button", name="usable").click()
        wait_for_votes(page, 2)
    assert [vote.answer for vote in votes(store)] == [
        {"score": 2, "defects": ["floats"]},
        {"score": 3, "defects": ["artefacts"]},
    ]
