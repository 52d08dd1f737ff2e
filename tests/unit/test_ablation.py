"""The embedded RFNet's ablation: what it starts from, and what it leaves."""

import json
from pathlib import Path

import pytest
import torch

from rfft.rewards.rfnet import RFNet
from rfft.training.pretrain.rfnet import ABLATION, add_ablation, without
from tests.unit.test_rfnet import small_config

GONE = {"o": ("encoders.o.", "fusion_modules."), "d": ("encoders.d.",), "c": ("text_", "fusion_modules.")}


@pytest.mark.parametrize("modality", GONE)
def test_all_but_the_dropped_inputs_weights(modality: str) -> None:
    whole = RFNet(small_config())
    ablated, weights = without(whole, (modality,)).state_dict(), whole.state_dict()
    assert all(torch.equal(ablated[name], weights[name]) for name in ablated)
    gone = {name for name in weights if name not in ablated}
    assert gone == {n for n in weights if n.startswith((*GONE[modality], f"modality.{modality}"))}


def test_figures_are_kept_beside_each_other(tmp_path: Path) -> None:
    reports = {"vae": {"macro_f1": 0.5, "classes": {"available": {"ap": 0.6}}}}
    for steps, dropped in ((100, "d"), (200, "s"), (300, "d")):
        add_ablation(tmp_path / ABLATION, dropped, steps, reports)
    found = json.loads((tmp_path / ABLATION).read_text())
    assert {dropped: metrics["steps"] for dropped, metrics in found.items()} == {"d": 300, "s": 200}
    assert found["s"]["vae"] == {"macro_f1": 0.5, "ap": 0.6}
