"""The embedded RFNet's ablation: what it leaves."""

import json
from pathlib import Path

from rfft.training.pretrain.rfnet import ABLATION, add_ablation


def test_metrics_are_kept_beside_each_other(tmp_path: Path) -> None:
    reports = {"vae": {"macro_f1": 0.5, "classes": {"available": {"ap": 0.6}}}}
    for steps, dropped in ((100, "d"), (200, "s"), (300, "d")):
        add_ablation(tmp_path / ABLATION, dropped, steps, reports)
    found = json.loads((tmp_path / ABLATION).read_text())
    assert {dropped: metrics["steps"] for dropped, metrics in found.items()} == {"d": 300, "s": 200}
    assert found["s"]["vae"] == {"macro_f1": 0.5, "ap": 0.6}
