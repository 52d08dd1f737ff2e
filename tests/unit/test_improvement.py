"""Training improves something: twenty steps toward a toy reward, by every objective."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rfft.models.bundle import Bundle
from rfft.objectives.base import Objective, ObjectiveSettings
from rfft.objectives.regularizers import ConsistentCondition
from rfft.objectives.surrogate import Surrogate
from rfft.types import Batch
from tests.toys import Darkness

STEPS = 4
REGULARIZED = ObjectiveSettings(1.0, ConsistentCondition(), 1e-4)


@pytest.mark.parametrize(
    "objective",
    [
        Surrogate(REGULARIZED),
        Surrogate(REGULARIZED, sees="finished"),
        Surrogate(ObjectiveSettings(1.0), sees="finished", alpha=1.0),
    ],
)
def test_the_loss_of_a_toy_reward_falls(
    make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch], objective: Objective
) -> None:
    bundle = make_trained("denoiser_lora", shift=0.0)
    batch, schedule, losses = make_batch(bundle), bundle.schedule(STEPS), []
    optimizer = torch.optim.AdamW(bundle.trainable().values(), lr=5e-2)
    for step in range(20):
        ks = [STEPS - 1 - step % 2]
        losses.append(objective.step(bundle, Darkness(1.0), batch, schedule, ks, Tensor.backward).loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), losses
