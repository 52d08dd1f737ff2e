"""Training without the command line around it: a resume goes on as if nothing had interrupted it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rfft.config.load import config_from
from rfft.models.load import load_bundle
from rfft.rewards.weighted import WeightedRewards
from rfft.training.learner import RFFTLearner
from rfft.types import Batch, Reward
from rfft.utils.checkpoint import Checkpoints

SMALL = {
    "model.lora": {"rank": 2, "alpha": 4, "target_modules": ["to_q", "to_v", "conv1"]},
    "rollout": {"steps": 4, "last": 2, "guidance_scale": 3.0},
    "trainer": {"steps": 4, "batch_size": 2, "accumulation": 1},
}
MakeLearner = Callable[..., RFFTLearner]


@pytest.fixture
def make_learner(
    pipeline_folder: Path, make_batch: Callable[..., Batch], reward: Reward
) -> Iterator[MakeLearner]:
    """make_learner(*overrides): a new learner of the tiny pipeline on two products."""

    def make(*overrides: str) -> RFFTLearner:
        AcceleratorState._reset_state(reset_partial_state=True)
        config = config_from(SMALL, overrides)
        model, precision = config.model, config.trainer.mixed_precision
        bundle = load_bundle(pipeline_folder)
        torch.manual_seed(0)  # of the adapters
        bundle.train(list(model.train), model.lora.rank, model.lora.alpha, model.lora.target_modules)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        terms = WeightedRewards([("", 1.0, reward)])
        return RFFTLearner(config, accelerator, bundle, terms, None, make_batch(bundle))

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def losses(learner: RFFTLearner, steps: int) -> list[float]:
    return [learner.step()["train/loss"] for _ in range(steps)]


@pytest.mark.parametrize(
    "settings",
    [
        ["ema.enabled=true", "trainer.accumulation=2", "optimizer.warmup=3"],
        ["rollout.grad_steps=2", "objective.regularizer=kl", "trainer.mixed_precision=bf16"],
        ["model.train=[controlnet,denoiser_lora]", "objective.regularizer=none"],
        ["objective.use=drtune", "rollout.grad_steps=2", "trainer.mixed_precision=bf16"],
        ["objective.beta=auto", "objective.drift=1e-6", "objective.regularizer=kl+cc", "optimizer.lr=1e-3"],
        ["objective.use=flowbp-bridge", "rollout.grad_steps=2", "objective.step_weights=[2, 1]"],
        ["objective.use=draft-lv", "rollout.grad_steps=1"],
        ["objective.use=ddpo", "rollout.grad_steps=2", "objective.options={group: 2}"],
    ],
)
def test_resumed_is_uninterrupted_bit_for_bit(
    make_learner: MakeLearner, tmp_path: Path, settings: list[str]
) -> None:
    whole = make_learner(*settings)
    expected = losses(whole, 4)

    parts = make_learner(*settings)
    assert losses(parts, 2) == expected[:2]
    checkpoint = Checkpoints(tmp_path, keep=1).save(2, parts.weights(), parts.objects())
    resumed = make_learner(*settings)
    resumed.load(checkpoint)
    assert losses(resumed, 2) == expected[2:]

    if whole.dual is not None:
        assert resumed.dual is not None and whole.dual.holding
        assert resumed.dual.value == whole.dual.value > whole.dual.start
    assert replace(resumed.counters, seconds=0.0) == replace(whole.counters, seconds=0.0)
    for name, tensors in whole.weights().items():
        again = resumed.weights()[name]
        assert all(torch.equal(tensor, again[key]) for key, tensor in tensors.items())
    moments = [learner.engine.state_dict()["state"] for learner in (whole, resumed)]
    for index, state in moments[0].items():
        assert all(torch.equal(value, moments[1][index][name]) for name, value in state.items())
