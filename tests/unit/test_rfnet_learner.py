"""Class weights, loss, learning rate and early stop, by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from rfft.errors import UserError
from rfft.rewards.rfnet import RFNet, RFNetConfig
from rfft.rfnet.learner import RFNetLearner, class_weights, weighted_loss
from rfft.rfnet.schema import RFNetOptimizerConfig, RFNetTrainingConfig
from rfft.training.recorder import Recorder
from rfft.training.supervised import rate_factor
from rfft.training.tracking import Tracker
from rfft.utils.checkpoint import Checkpoints


def test_class_weights() -> None:
    # 8 samples of 3 classes that occur: 8 / (3 * 4), 8 / (3 * 2), none, 8 / (3 * 2), none
    weights = class_weights([4, 2, 0, 2, 0])
    assert weights.tolist() == pytest.approx([2 / 3, 4 / 3, 0, 4 / 3, 0])
    assert class_weights([2, 2]).tolist() == [1, 1]


def test_weighted_loss() -> None:
    """Two samples with p = 1/2 and p = 3/4 for their labels, which weigh 2 and 0.5."""
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    loss = weighted_loss(logits, torch.tensor([0, 1]), torch.tensor([2.0, 0.5]))
    assert loss.item() == pytest.approx((2 * math.log(2) + 0.5 * math.log(4 / 3)) / 2)
    # smoothing 0.2: the label gets 0.9 of the cross-entropy, the other class 0.1
    smooth = weighted_loss(logits[1:], torch.tensor([1]), torch.ones(2), smoothing=0.2)
    assert smooth.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


def test_halves_of_a_batch_average_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 5, generator=generator), torch.tensor([0, 0, 0, 4])
    weights = class_weights([3, 0, 0, 0, 1])
    halves = [weighted_loss(logits[part], labels[part], weights) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(torch.stack(halves).mean(), weighted_loss(logits, labels, weights))


def test_the_papers_learning_rate() -> None:
    """1e-4 for five epochs of 100 steps, then a tenth; with warm-up and a second drop the same rule."""
    paper = RFNetOptimizerConfig()
    rates = [paper.lr * rate_factor(step, 100, paper) for step in (0, 499, 500, 999)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
    other = RFNetOptimizerConfig(drop_at=[1, 3], drop_factor=0.5, warmup=4)
    factors = [rate_factor(step, 10, other) for step in (0, 1, 3, 9, 10, 29, 30)]
    assert factors == pytest.approx([0.25, 0.5, 1, 1, 0.5, 0.5, 0.25])


@pytest.fixture
def learner() -> Iterator[RFNetLearner]:
    AcceleratorState._reset_state(reset_partial_state=True)
    config = RFNetTrainingConfig()
    config.trainer.patience, config.trainer.batch_size = 2, 2
    image = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    model = RFNet(RFNetConfig.tiny(16, image_size=32, width=8, heads=2, image_encoder=image, drop=["c"]))
    yield RFNetLearner(config, Accelerator(cpu=True), model, None, counts=[1] * 5)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_skipped_step_leaves_no_trace(
    learner: RFNetLearner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the weights, nor in what batch norm remembers of every forward; it is said."""

    def overflow(*_: object) -> dict[str, Tensor]:
        for buffer in learner.rfnet.buffers():
            buffer.fill_(math.nan if buffer.is_floating_point() else 7)
        for parameter in learner.rfnet.parameters():
            parameter.grad = torch.full_like(parameter, math.nan)
        return {"loss": torch.tensor(math.nan), "accuracy": torch.tensor(1.0)}

    monkeypatch.setattr(learner, "micro_batch", overflow)
    before = {name: tensor.clone() for name, tensor in learner.rfnet.state_dict().items()}
    assert any("running_mean" in name for name in before)
    metrics = learner.step()
    assert metrics["train/skipped"] == 1 and "train/accuracy" not in metrics
    Recorder(tmp_path, learner, Tracker("none", tmp_path, {})).after_step(metrics)
    assert "step 1 is skipped" in capsys.readouterr().err
    assert all(tensor.equal(before[name]) for name, tensor in learner.rfnet.state_dict().items())


def test_another_number_of_pictures_a_step(learner: RFNetLearner, tmp_path: Path) -> None:
    """Rate and epochs would no longer be where they were, and samples be repeated or left out."""
    checkpoints, done = Checkpoints(tmp_path, 1), learner.counters
    done.step, done.pictures = 3, 6  # as now: batches of two in one process
    learner.load(checkpoints.save(3, learner.weights(), learner.objects()))
    done.step, done.pictures = 4, 16
    checkpoint = checkpoints.save(4, learner.weights(), learner.objects())
    with pytest.raises(UserError, match="4 pictures a step, and now it would be 2.* keep processes x"):
        learner.load(checkpoint)


def test_early_stop_counts_validations_without_a_better_ap(learner: RFNetLearner) -> None:
    config = learner.config
    assert learner.steps == 10 * 2  # epochs * full batches
    found = []
    for step, ap in enumerate([0.5, 0.4, 0.6, 0.6, 0.59], start=1):
        learner.counters.step = step
        found.append((learner.note_validation(ap), learner.finished()))
    assert found == [(True, False), (False, False), (True, False), (False, False), (False, True)]
    assert (learner.counters.best_score, learner.counters.best_step) == (0.6, 3)
    config.trainer.patience = 0
    assert not learner.finished()
