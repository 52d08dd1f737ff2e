"""report.html: complete without a network, safe against what captions may hold, and opened in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rfft.config.load import load_config, to_yaml
from rfft.evaluation import store, summary
from rfft.evaluation.charts import smooth
from rfft.evaluation.evaluator import Evaluation
from rfft.evaluation.picture_file import PictureFile
from rfft.evaluation.report import write_report
from rfft.utils.log import MetricsFile, write_environment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\" onload=\"alert(2)"
COUNT, SEEDS = 10, 2
# Ten of twenty pictures are available before; nine of the others after, and one of those no longer.
BASE, TUNED = [i % 2 == 0 for i in range(20)], [i not in (4, 7) for i in range(20)]


def evaluation(accepted: list[bool], generator: torch.Generator) -> Evaluation:
    """Random pictures of which RFNet accepts some; the judge, all but the first of those."""
    products, n = np.arange(COUNT), COUNT * SEEDS
    judged = {"rfnet": torch.tensor(accepted), "judge": torch.tensor(accepted)}
    judged["judge"][accepted.index(True)] = False
    said = {name: torch.where(yes, 0, 4).reshape(COUNT, SEEDS) for name, yes in judged.items()}
    probabilities = {
        name: torch.nn.functional.one_hot(verdicts, 5).float() * 0.8 + 0.04 for name, verdicts in said.items()
    }
    small = torch.rand(n, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(small, 64, mode="bilinear").mul(255).byte()
    noise = torch.rand(COUNT, SEEDS, generator=generator)
    estimates = summary.verdict_metrics(said, products)
    estimates |= summary.attempt_metrics(said["rfnet"] == 0, products)
    estimates |= summary.mean_metrics("diversity", 0.3 + 0.1 * noise, products)
    estimates |= summary.mean_metrics("kid", 0.01 + 0.02 * noise, products)
    facts = {"images": n, "not_finite": 0, "max_attempts": SEEDS}
    pictures = PictureFile(n)
    for i, image in enumerate(images):
        pictures.write(i, image)
    return Evaluation(estimates, pictures, probabilities, {}, facts)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "runs/small")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, with captions and prompts that try to be HTML."""
    folder = tmp_path_factory.mktemp("finished")
    config = load_config("tiny", [f"tracker.group='{EVIL.replace(chr(39), chr(34))}'"])
    (folder / "config.yaml").write_text(to_yaml(config))
    write_environment(folder)
    metrics = MetricsFile(folder / "metrics.jsonl")
    for step in range(1, 41):
        scalars = {"train/f_ac": 1 / step, "train/available": 1 - 1 / step, "train/lr": float("nan")}
        metrics.write(step, scalars)
    metrics.close()
    cells = [
        {"id": f"{i}", "product": f"{i}", "prompt": f"{EVIL} {i}", "caption": EVIL, "seed": seed}
        for i in range(COUNT)
        for seed in range(SEEDS)
    ]
    generator = torch.Generator().manual_seed(0)
    grid = {"grid": {"evaluate.seeds": SEEDS}, "intervals": {"products": COUNT}, "cells": cells}
    for state, accepted in (("base", BASE), ("tuned", TUNED)):
        store.record(folder, state, grid, evaluation(accepted, generator), 40 if state == "tuned" else None)
    counters = {"seconds": 321.0, "steps": 40, "grad_samples": 1280, "denoiser_forwards": 1480}
    store.finish(folder, counters, checkpoint=40)
    return folder


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_in_it(run: Path) -> None:
    path = write_report(run)
    page = Page(path.read_text())
    assert path == run / "report.html"
    assert page.tags.count("img") == 2 * COUNT * SEEDS + 2  # pairs, and the two curves that have values
    text = " ".join(page.text.split())
    for words in (
        "of 20 pictures: 9 became available, 1 broke (10 were available before, 18 are now)",
        "By RFNet",
        "By the judge",
        "Fixed: became available (9)",
        "Broken: no longer available (1)",
        "Unchanged (10)",
        "50.0 %",
        "90.0 % (75.0 to 100.0)",
        "+40.0 points (+",
        "available (RFNet) ↑",
        "attempts until accepted ↓",
        "40 optimizer steps",
        "5.3 minutes",
        "F_AC + 0.03 * L_CC, 40 optimizer steps",
        "regularizer: cc",
    ):
        assert words in text, words


def test_what_changed_comes_first(run: Path) -> None:
    """Nine pairs that became available, then the one that broke, before all that stayed as they were."""
    page = Page(write_report(run).read_text())
    said = [value.split(": ")[1][:9] for name, value in page.attributes if name == "alt" and ": " in value]
    pairs = list(zip(said[::2], said[1::2], strict=True))
    assert pairs[:10] == [("shape hal", "available")] * 9 + [("available", "shape hal")]
    assert all(before == after for before, after in pairs[10:]) and len(pairs) == 20


def test_a_picture_that_is_not_finite_says_so(run: Path) -> None:
    file = run / store.EVALUATION
    evaluation = json.loads(file.read_text())
    evaluation["tuned"]["probabilities"]["rfnet"][2] = None
    evaluation["tuned"]["not_finite"] = 1
    file.write_text(json.dumps(evaluation))
    found = store.finish(run, {})
    assert found["verdicts"]["rfnet"] == {"pictures": 20, "available_before": 10, "fixed": 9, "broken": 2}
    text = Page(write_report(run).read_text()).text
    assert "1 of 20 pictures of the tuned model are not finite" in text and "after: not finite" in text
    assert "pictures not finite" in text


def test_nothing_is_loaded_from_elsewhere(run: Path) -> None:
    text = write_report(run).read_text()
    sources = [value for name, value in Page(text).attributes if name in ("src", "href", "srcset", "data")]
    assert sources and all(value and value.startswith("data:") for value in sources)
    assert "@import" not in text and not re.search(r"url\(\s*['\"]?(?!data:)", text)


def test_captions_and_names_cannot_be_html(run: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["run"]["name"] = EVIL  # no config that is loaded may have such a name
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    text = write_report(run).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>document.title" in page.text  # shown as the text it is


@pytest.mark.parametrize("missing", ["evaluation.json", "samples/base.png"])
def test_without_all_pictures_there_are_no_pairs(run: Path, missing: str) -> None:
    (run / missing).unlink()
    page = Page(write_report(run).read_text())
    assert page.tags.count("img") == 2  # the curves
    assert "available (RFNet)" in page.text


def test_a_grid_of_any_size(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit for pictures from elsewhere is not one for a run's own; the comparison stays small."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    monkeypatch.setattr(store, "COMPARED", 4)
    store.finish(run, {})
    assert Page(write_report(run).read_text()).tags.count("img") == 2 * COUNT * SEEDS + 2
    monkeypatch.undo()
    with Image.open(run / store.COMPARISON) as comparison:
        assert 4 * 128 < comparison.width < 5 * 128  # and the rows' names


def test_a_base_model_alone(run: Path) -> None:
    """Of pictures that were picked, from prompts that were engineered; nothing was trained."""
    (run / "metrics.jsonl").unlink()
    evaluation = json.loads((run / store.EVALUATION).read_text())
    special = {"only_accepted": True, "max_attempts": 3, "quality_words": "sharp"}
    evaluation["base"] |= special
    (run / store.EVALUATION).write_text(json.dumps(evaluation))
    found = store.finish_base(run)
    assert found["base"]["only_accepted"]
    page = Page(write_report(run).read_text())
    assert page.tags.count("img") == COUNT * SEEDS
    for words in ("nothing was trained", "RFNet refused was painted anew", "3 attempts", "“sharp” was added"):
        assert words in page.text, words
    assert "50.0 %" in page.text and "points" not in page.text and "F_AC" not in page.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["objective.use=drtune"], "from the finished picture to 4 of its steps (DRTune)"),
        (
            ["reward.terms=[{use: rfnet}, {use: pickscore, weight: 0.5}]"],
            "F_AC + 0.5 * pickscore + 0.03 * L_CC",
        ),
    ],
)
def test_the_report_says_what_was_trained(run: Path, changes: list[str], told: str) -> None:
    (run / "config.yaml").write_text(to_yaml(load_config("tiny", changes)))
    assert told in Page(write_report(run).read_text()).text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load_config("tiny")))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/f_ac": 1.5}\n{"step": 2, "tra')
    page = Page(write_report(tmp_path).read_text())
    assert "img" not in page.tags and "tiny" in page.text


def test_smooth_by_hand() -> None:
    assert smooth(np.array([0.0, 3.0, 6.0, 0.0]), 1).tolist() == [1.5, 3.0, 3.0, 3.0]
    assert smooth(np.array([1.0, 2.0]), 0).tolist() == [1.0, 2.0]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium to open the report")
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(run: Path, tmp_path: Path, dark: bool) -> None:
    report, shot = write_report(run), tmp_path / "shot.png"
    browser = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    browser += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,1600"]
    browser += ["--blink-settings=preferredColorScheme=0"] * dark
    page = report.as_uri()
    done = subprocess.run(
        [*browser, "--dump-dom", page], capture_output=True, text=True, timeout=120, check=True
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title and title[1] == "tiny: RFFT report"  # no script has run
    subprocess.run([*browser, f"--screenshot={shot}", page], capture_output=True, timeout=120, check=True)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (1600, 1200, 3)
    paper = pixels[5, 5].mean()
    assert paper < 60 if dark else paper > 240
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5000  # the pictures are painted
