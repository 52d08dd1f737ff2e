"""report.html: complete without a network, safe against what captions may hold, and opened in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rfft.config.load import load_config, to_yaml
from rfft.evaluation import store
from rfft.evaluation.report import smooth, write_report
from rfft.utils.log import MetricsFile, write_environment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\" onload=\"alert(2)"
COUNT, SEEDS = 10, 2


def share(rate: float) -> dict[str, float]:
    return {"rate": rate, "low": max(0.0, rate - 0.1), "high": min(1.0, rate + 0.1)}


def metrics(rate: float) -> dict[str, Any]:
    failures = {"space_mismatch": share((1 - rate) / 2), "size_mismatch": share((1 - rate) / 2)}
    return {
        "images": COUNT * SEEDS,
        "available_rate": {"rfnet": share(rate), "judge": share(rate - 0.05)},
        "failures": {"rfnet": failures, "judge": failures},
        "attempts": 2 - rate,
        "attempts_interval": [1.5 - rate, 2.5 - rate],
        "max_attempts": 2,
        "success_at": [rate, 1 - (1 - rate) ** 2],
        "success_at_interval": [[rate - 0.1, rate + 0.1], [0.7, 1.0]],
        "alignment": 0.8,
        "alignment_interval": [0.77, 0.83],
        "alignment_by": {"surface": share(0.9), "prop": share(0.7)},
        "diversity": 0.31,
        "diversity_interval": [0.28, 0.34],
        "vendi": 4.2,
        "vendi_interval": [3.9, 4.5],
        "colourfulness": 33.0,
        "colourfulness_interval": [30.0, 36.0],
        "kid": 0.0123,
        "kid_std": 0.001,
        "kid_interval": [0.0103, 0.0143],
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run, with captions and prompts that try to be HTML."""
    folder = tmp_path / "runs/small"
    folder.mkdir(parents=True)
    config = load_config("tiny", [f"tracker.group='{EVIL.replace(chr(39), chr(34))}'"])
    (folder / "config.yaml").write_text(to_yaml(config))
    write_environment(folder)
    metrics = MetricsFile(folder / "metrics.jsonl")
    for step in range(1, 41):
        scalars = {"train/f_ac": 1 / step, "train/available": 1 - 1 / step, "train/lr": float("nan")}
        metrics.write(step, scalars)
    metrics.close()
    cells = [
        {"id": f"{i}", "prompt": f"{EVIL} {i}", "caption": EVIL, "seed": seed}
        for i in range(COUNT)
        for seed in range(SEEDS)
    ]
    generator = torch.Generator().manual_seed(0)
    for state, rate in (("base", 0.5), ("tuned", 0.9)):
        probabilities = torch.rand(len(cells), 5, generator=generator).softmax(-1)
        store.record(folder, state, cells, metrics(rate), {"rfnet": probabilities.tolist()}, {})
        small = torch.rand(COUNT * SEEDS, 3, 8, 8, generator=generator)
        images = torch.nn.functional.interpolate(small, 64, mode="bilinear").mul(255).byte()
        store.save_pictures(folder, state, images.unflatten(0, (COUNT, SEEDS)))
    counters = {"seconds": 321.0, "steps": 40, "grad_samples": 1280, "denoiser_forwards": 1480}
    store.finish(folder, counters)
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
    for words in (
        "50.0 %",
        "90.0 %",
        "+40.0 points",
        "available (RFNet)",
        "40 optimizer steps",
        "5.3 minutes",
        "F_AC + 0.03 * L_CC, 40 optimizer steps",
        "regularizer: cc",
    ):
        assert words in page.text, words


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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(store, "COMPARED", 4)
    store.finish(run, {})
    assert Page(write_report(run).read_text()).tags.count("img") == 2 * COUNT * SEEDS + 2
    monkeypatch.undo()
    with Image.open(run / store.COMPARISON) as comparison:
        assert 4 * 128 < comparison.width < 5 * 128


def test_a_base_model_alone(run: Path) -> None:
    """Of pictures that were picked, from prompts that were engineered; nothing was trained."""
    (run / "metrics.jsonl").unlink()
    evaluation = json.loads((run / store.EVALUATION).read_text())
    special = {"only_accepted": True, "max_attempts": 3, "quality_words": "sharp"}
    evaluation["base"]["metrics"] |= special
    (run / store.EVALUATION).write_text(json.dumps(evaluation))
    store.finish_base(run)
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
