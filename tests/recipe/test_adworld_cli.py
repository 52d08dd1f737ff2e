"""`rfft adworld draw` writes what `read_feedback` reads, the same for any number of processes."""

import errno
import json
import re
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from rfft.adworld import draw
from rfft.adworld.draw import draw_dataset, scene
from rfft.cli.main import app
from rfft.feedback.folder import read_feedback
from rfft.types import LABELS


def test_drawn_scenes_are_read_back(tmp_path):
    out = tmp_path / "scenes"
    result = CliRunner().invoke(app, ["adworld", "draw", str(out), "--count", "30", "--seed", "4"])
    assert result.exit_code == 0, result.output
    assert re.search(r"^30 scenes in [\d.]+ s, \d+ a second: ", result.output, re.MULTILINE)
    records = read_feedback(out)
    assert len(records) == 30
    for index in (0, 29):
        drawn, record = scene(4, index, "train"), records[index]
        sample = record.load()
        assert LABELS[record.label] == drawn.label
        assert (record.caption, record.prompt) == (drawn.caption, drawn.prompt)
        for field in ("image", "product", "depth", "saliency"):
            assert np.array_equal(getattr(sample, field), getattr(drawn, field)), field
    assert json.loads((out / "prompts.jsonl").read_text().splitlines()[0])["attributes"]["surface"]


def test_the_number_of_processes_changes_nothing(tmp_path):
    for workers in (1, 2):
        draw_dataset(tmp_path / str(workers), 260, seed=1, workers=workers)
    assert (tmp_path / "1" / "label.txt").read_bytes() == (tmp_path / "2" / "label.txt").read_bytes()
    name = "images/0000259.png"
    assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_sheet(tmp_path):
    out = tmp_path / "sheet.png"
    result = CliRunner().invoke(app, ["adworld", "draw", str(out), "--sheet"])
    assert result.exit_code == 0, result.output
    assert cv2.imread(str(out)).shape[:2] == (5 * (128 + 22), 16 * 128)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    """So that the same command works once there is room."""
    written = []

    def full(path, image):
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.touch()

    with monkeypatch.context() as patched:
        patched.setattr(draw, "ProcessPoolExecutor", ThreadPoolExecutor)
        patched.setattr(draw, "_write_png", full)
        with pytest.raises(OSError, match="No space left"):
            draw_dataset(tmp_path / "scenes", 4, seed=1)
    assert len(written) == 3 and not list(tmp_path.iterdir())
    draw_dataset(tmp_path / "scenes", 4, seed=1, workers=1)
    assert len(read_feedback(tmp_path / "scenes")) == 4
