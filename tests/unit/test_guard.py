"""Which checkpoint is the best, and when a run games RFNet: hand-worked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rfft.config.schema import EvaluateConfig
from rfft.evaluation.guard import guard, hacking, preference
from rfft.evaluation.summary import verdict_metrics
from rfft.utils.checkpoint import Checkpoints, score_of, step_of

BASE = {"available_rate_rfnet": 0.5, "available_rate_monitor": 0.5, "gap": 0.0, "diversity": 0.4}


def at(rfnet: float, monitor: float, diversity: float = 0.4) -> dict[str, float]:
    rates = {"available_rate_rfnet": rfnet, "available_rate_monitor": monitor}
    return rates | {"gap": rfnet - monitor, "diversity": diversity}


VALIDATIONS = {
    10: at(0.60, 0.5625),
    20: at(0.75, 0.6875),
    30: at(0.80, 0.6875),  # no better by the monitor: the earlier one stays
    40: at(0.90, 0.6250),  # 27.5 points above the monitor
    50: at(0.85, 0.7500, diversity=0.3),  # the monitor's highest, but three quarters of the diversity
}


@pytest.mark.parametrize(
    ("monitor", "margin", "step", "score"),
    [
        ("another", 0.15, 20, 0.6875),
        ("another", 0.3, 20, 0.6875),
        (None, 0.15, 30, 0.80),
        (None, 0.3, 40, 0.9),
    ],
)
def test_the_best_checkpoint(
    monitor: str | None, margin: float, step: int, score: float, tmp_path: Path
) -> None:
    """The highest rate of the monitor, or of RFNet, among those without a warning; the earliest of equals."""
    settings = EvaluateConfig(monitor=monitor, max_gap=margin)
    checkpoints = Checkpoints(tmp_path, keep=1)
    for number, metrics in VALIDATIONS.items():
        _, found = guard(BASE, metrics, settings)
        if found is not None:
            checkpoints.save_best(found, number, {}, {})
    best = checkpoints.best()
    assert best is not None and (step_of(best), score_of(best)) == (step, score)


def test_what_is_wrong_is_said_in_one_line_each() -> None:
    warnings, score = guard(BASE, at(0.9, 0.625, diversity=0.3), EvaluateConfig(monitor="another"))
    assert score is None and warnings == [
        "diversity fell to 75% of the base model's, below the 90% allowed",
        "reward hacking: RFNet's rate is 27.5 points above the monitor's, 0.0 before training, and 15 more "
        "are allowed (evaluate.max_gap)",
    ]


def test_a_gap_counts_from_what_it_was_before_training() -> None:
    """A strict monitor is no alarm: 20 points below RFNet from the beginning, 25 now."""
    base = at(0.7, 0.5)
    assert hacking(base, at(0.75, 0.5), margin=0.1) is None
    assert "25.0 points above the monitor's, 20.0 before" in (hacking(base, at(0.75, 0.5), 0.04) or "")
    assert hacking(base, at(0.3, 0.6), margin=0.1) is None  # the other way round nobody is fooled
    assert hacking({}, at(0.9, 0.1), margin=0.1) is None  # nothing to compare with


def test_a_stand_in_for_the_monitor() -> None:
    base, rate = {"available_rate_rfnet": 0.5}, "available_rate_rfnet"
    told = hacking(base, {rate: 0.8, "preferred": 0.3}, margin=0.15)
    assert told == (
        "reward hacking: RFNet's rate rose, and 30% of the pictures score above the base model's, where 35% "
        "is the least allowed (evaluate.max_gap)"
    )
    assert hacking(base, {rate: 0.8, "preferred": 0.36}, margin=0.15) is None
    assert hacking(base, {rate: 0.5, "preferred": 0.3}, margin=0.15) is None  # RFNet is not pleased either


def test_the_share_that_is_preferred() -> None:
    """Two products with three pictures each: better, equal, worse; better, no score, better."""
    tuned = torch.tensor([[2.0, 1.0, 0.0], [5.0, torch.nan, 4.0]])
    base = torch.tensor([[1.0, 1.0, 1.0], [4.0, 4.0, 3.0]])
    products = np.array([0, 1])
    worse = {"clip_score": -tuned, "pickscore": tuned}
    found = preference(worse, {"clip_score": -base, "pickscore": base}, products)  # PickScore first
    assert found["preferred"].value == pytest.approx((1 + 0.5 + 0 + 1 + 1) / 5)
    assert preference({"aesthetic": tuned}, {"aesthetic": base}, products) == {}
    assert preference({"pickscore": tuned}, {}, products) == {}


def test_the_gap_is_paired_by_product() -> None:
    """RFNet accepts 3 of 4 pictures, the monitor 1: where both see one product alike, there is no spread."""
    said = {"rfnet": torch.tensor([[0, 0], [0, 1]]), "monitor": torch.tensor([[0, 1], [1, 1]])}
    gap = verdict_metrics(said, np.array([0, 1]))["gap"]
    assert gap.value == 0.5 and gap.interval() == (0.5, 0.5)
    assert "gap" not in verdict_metrics({"rfnet": said["rfnet"]}, np.array([0, 1]))
