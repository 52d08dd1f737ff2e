"""Bad input on the real command line: one clear line, exit code 2, nothing written."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfft import __version__
from rfft.errors import disk_problem
from rfft.utils.log import open_run

TINY = str(Path(__file__).parents[2] / "configs" / "tiny.yaml")


@pytest.fixture
def rfft(monkeypatch, run_command, tmp_path):
    """rfft(*arguments) -> (exit code, lines on stderr), in an empty folder that must stay as it is."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        code, _, err = run_command(*arguments)
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return code, err.splitlines()

    return run


WRONG_CONFIGS = [
    (["nowhere.yaml"], "rfft: nowhere.yaml: no such config file"),
    (
        [TINY, "trainer.step=3"],
        "rfft: command line: unknown key 'trainer.step'; did you mean 'trainer.steps'?",
    ),
    (
        [TINY, "rollout.last=50"],
        "rfft: rollout.last=50 is more than rollout.steps=40: lower rollout.last",
    ),
    ([TINY, "trainer.steps=many"], "rfft: command line: trainer.steps: Value 'many'"),
]


def test_config(rfft):
    for command in ("train", "check"):
        for arguments, message in WRONG_CONFIGS:
            code, lines = rfft(command, *arguments)
            assert (code, len(lines)) == (2, 1)
            assert lines[0].startswith(message)


def broken_products(folder):
    """Name of a broken source of products -> what rfft says about it."""
    opaque = np.full((8, 8, 3), 200, np.uint8)
    clear = np.zeros((8, 8, 4), np.uint8)
    for name in ("empty", "unreadable", "no_alpha", "transparent", "manifests", "plain"):
        (folder / name).mkdir()
    (folder / "unreadable/a.png").write_text("no picture")
    Image.fromarray(opaque).save(folder / "no_alpha/a.png")
    Image.fromarray(clear).save(folder / "transparent/a.png")
    Image.fromarray(np.full((8, 8, 4), 200, np.uint8)).save(folder / "plain/a.png")
    good = json.dumps({"id": "a", "image": "../no_alpha/a.png", "caption": "x"})
    (folder / "manifests/outside.jsonl").write_text(good)
    (folder / "manifests/missing.jsonl").write_text('{"id": "a", "image": "a.png", "caption": "x"}')
    (folder / "manifests/broken.jsonl").write_text('\n{"id": "a"\n')
    return {
        "gone": "no such folder or manifest of products",
        "empty": "no products here",
        "plain": "product 'a' has no prompt",
        "unreadable": "not a readable image",
        "no_alpha": "data.white_to_alpha=true",
        "transparent": "fully transparent",
        "manifests/outside.jsonl": "outside.jsonl:1: image '../no_alpha/a.png' leads out",
        "manifests/missing.jsonl": "missing.jsonl:1: image 'a.png' does not exist",
        "manifests/broken.jsonl": "broken.jsonl:2: broken JSON",
    }


def test_products(rfft, tmp_path):
    (tmp_path / "prompts.json").write_text('[{"prompt": "a"}]')
    for source, message in broken_products(tmp_path).items():
        prompts = [] if source == "plain" else ["data.prompts=prompts.json"]
        code, lines = rfft("check", TINY, f"data.products={source}", *prompts)
        assert (code, len(lines)) == (2, 1), lines
        assert message in lines[0]


def test_prompts(rfft, tmp_path):
    (tmp_path / "prompts.json").write_text('[{"prompt": "a"},\n')
    code, lines = rfft("check", TINY, "data.prompts=prompts.json")
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("rfft: prompts.json:2: broken JSON")


def test_network(rfft):
    code, lines = rfft("check", TINY, "reward.rfnet=nowhere")
    assert (code, len(lines)) == (2, 1)
    assert "nowhere: no such network" in lines[0]


def test_no_run(rfft, tmp_path):
    (tmp_path / "photos").mkdir()
    for command in ("evaluate", "export", "report"):
        code, lines = rfft(command, "photos")
        assert (code, len(lines)) == (2, 1)
        assert lines[0].startswith("rfft: photos: no config.yaml here, so no run")


def test_drawing_over_something(rfft, tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes/precious.txt").touch()
    code, lines = rfft("adworld", "draw", "scenes", "--count", 3)
    assert (code, lines) == (2, ["rfft: scenes: exists already; name a new one"])


def test_a_file_in_the_path(rfft, tmp_path):
    (tmp_path / "notes.txt").touch()
    code, lines = rfft("adworld", "draw", "notes.txt/scenes", "--count", 3)
    assert (code, len(lines)) == (2, 1)
    assert "a file is where a folder should be" in lines[0]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a /proc, in which nobody can make folders")
def test_a_place_where_nothing_can_be_made(rfft):
    code, lines = rfft("adworld", "draw", "/proc/scenes", "--count", 3)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("rfft: /proc/") and "cannot be made; name another path" in lines[0]
    with pytest.raises(OSError) as error:
        open_run(Path("/proc/runs/small"), "run: {seed: 0}")
    assert str(disk_problem(error.value)).startswith("/proc/runs: not there, and cannot be made")


def test_the_config_of_the_other_training(rfft):
    assert rfft("train", "rfnet_tiny") == (
        2,
        ["rfft: rfnet_tiny: a config of RFNet's training; run: rfft rfnet train rfnet_tiny"],
    )
    assert rfft("rfnet", "train", "tiny") == (
        2,
        ["rfft: tiny: a config of a generator's training; run: rfft train tiny"],
    )


def test_pretraining_out_of_order(rfft):
    for part, first in (("base", "vae"), ("depth", "base"), ("judge", "base")):
        code, lines = rfft("adworld", "pretrain", part)
        assert (code, len(lines)) == (2, 1)
        assert lines[0].startswith(f"rfft: train {first} first: pretrained/rf-tiny/")


def test_version(run_command):
    assert run_command("--version") == (0, f"rfft {__version__}\n", "")


def test_the_module_is_the_command(tmp_path):
    """`python -m rfft` is what `accelerate launch -m rfft` runs."""
    done = subprocess.run(
        [sys.executable, "-m", "rfft", "train", "gone.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rfft: gone.yaml: no such config file\n"
