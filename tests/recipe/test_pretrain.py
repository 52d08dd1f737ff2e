"""`rfft adworld pretrain` and `assess`: two steps of each part on few scenes run, go on and are reported."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import rfft
from rfft.cli.main import app
from rfft.errors import UserError
from rfft.rewards.judge import Judge
from rfft.rewards.rfnet import RFNet
from rfft.training.pretrain import base, judge, maps, probe, rfnet, vae, verdicts
from rfft.training.pretrain.fit import FitConfig, PretrainRun, fit

NETWORKS = {"rfnet": rfnet, "judge": judge, "probe": probe}


def test_a_batch_is_available_as_often_as_asked() -> None:
    labels = np.array([0, 1, 2, 3, 4, 0, 1, 1, 1, 1])
    chances = base.sampling_chances(labels)
    assert chances.sum() == pytest.approx(1)
    assert chances[labels == 0].tolist() == pytest.approx([base.AVAILABLE / 2] * 2)


def test_a_saved_state_belongs_to_its_steps_and_seed(tmp_path: Path) -> None:
    def trained(steps: int, seed: int) -> nn.Module:
        layer = nn.Linear(2, 1)

        def loss(step: int, rng: np.random.Generator) -> torch.Tensor:
            return layer(torch.ones(1, 2)).square().sum()

        run = PretrainRun(tmp_path / "out", tmp_path / "state", steps, seed)
        return fit(layer, loss, FitConfig(lr=0.1), run, "a")

    first = trained(2, seed=0).state_dict()
    again = trained(2, seed=0).state_dict()  # all done: what was saved comes back
    assert all(torch.equal(again[name], value) for name, value in first.items())
    with pytest.raises(UserError, match=r"a\.pt is of a run with --steps 2, not 3: .*--state"):
        trained(3, seed=0)
    with pytest.raises(UserError, match="with --seed 0, not 1"):
        trained(2, seed=1)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded models, to go on from; few scenes, small batches."""
    monkeypatch.setenv("RFFT_CACHE", str(tmp_path / "cache"))
    for counts in (verdicts.COUNTS, rfnet.SCENES):
        for variant in counts:
            monkeypatch.setitem(counts, variant, 8)
    for split in verdicts.ASSESSED:
        monkeypatch.setitem(verdicts.ASSESSED, split, (split, 100, 9))
    for module in (vae, base, maps, *NETWORKS.values()):
        monkeypatch.setattr(module, "BATCH", 4)
    for module in (vae, base, maps):
        monkeypatch.setattr(module, "SCENES", 16)
    for module in (vae, maps):
        monkeypatch.setattr(module, "TEST_SCENES", 8)
    folder = tmp_path / "out"
    for name in ("rf-tiny", *(f"rf-tiny-{part}" for part in (*NETWORKS, "depth", "saliency"))):
        shutil.copytree(Path(rfft.__file__).parent / "assets" / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("part", "folder", "low", "high"),  # of the figure it reports last, a PSNR or a mean error
    [
        ("vae", "rf-tiny/vae", 15, 40),
        ("depth", "rf-tiny-depth", 0, 0.3),
        ("saliency", "rf-tiny-saliency", 0, 0.3),
    ],
)
def test_vae_and_maps_go_on(
    out: Path,
    run_command: Callable[..., tuple[int, str, str]],
    part: str,
    folder: str,
    low: float,
    high: float,
) -> None:
    (file,) = (out / folder).glob("*.safetensors")
    before = load_file(file)
    code, said, told = run_command(
        *("adworld", "pretrain", part, "--out", out, "--state", out / "state", "--steps", 2)
    )
    assert code == 0, told
    after = load_file(file)
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in after)
    assert low < float(re.findall(r"\d+\.\d+", said)[-1]) < high


@pytest.mark.slow
def test_generator_and_networks_go_on_and_are_assessed(
    out: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    weights = {
        part: out / folder / "model.safetensors"
        for part, folder in {"base": "rf-tiny/text_encoder", "rfnet": rfnet.NAME, "judge": judge.NAME}.items()
    }
    before = {part: load_file(file) for part, file in weights.items()}
    for part in ("base", *NETWORKS):
        code, _, told = run_command(
            *("adworld", "pretrain", part, "--out", out, "--state", out / "state", "--steps", 2)
        )
        assert code == 0, told
    for part, file in weights.items():
        after = load_file(file)
        assert before[part].keys() == after.keys()
        assert any((before[part][name] != after[name]).any() for name in after), part

    code, said, told = run_command("adworld", "assess", "--out", out)
    assert code == 0, told
    read = json.loads((out / judge.NAME / "report.json").read_text())
    variants = ("render", "vae", "x0_hat")
    assert read.keys() == {f"{split}/{name}" for split in ("val", "test") for name in variants}
    assert "val: validation scenes, for choosing" in said
    for variant in read.values():
        assert sum(map(sum, variant["confusion"])) == 100
        assert 0 <= variant["agrees_with_rfnet"] <= 1 and 0 <= variant["macro_f1_with_rfnet"] <= 1
    dependence = json.loads((out / rfnet.NAME / "dependence.json").read_text())
    own = json.loads((out / rfnet.NAME / "report.json").read_text())
    assert dependence["g"]["render"] < own["test/render"]["macro_f1"]
    assert RFNet.from_pretrained(out / rfnet.NAME).config.num_labels == 5
    assert Judge.from_pretrained(out / judge.NAME).config.num_labels == 5


def test_only_rfnet_has_inputs_to_leave_out() -> None:
    """The judge would be trained with all of its own, and written over the one that is there."""
    result = CliRunner().invoke(app, ["adworld", "pretrain", "judge", "--drop", "d"])
    assert isinstance(result.exception, UserError) and "--drop leaves out inputs of rfnet" in str(
        result.exception
    )
