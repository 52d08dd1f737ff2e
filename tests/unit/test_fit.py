"""Pretraining's loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rfft.training.pretrain.fit import FitConfig, PretrainRun, fit


@pytest.mark.usefixtures("fresh_accelerator")
def test_cut_off_and_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    steps: list[int] = []

    def train(state: str, dies_at: int | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)

        def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
            if step == dies_at:
                raise KeyboardInterrupt
            steps.append(step)
            x = torch.from_numpy(rng.normal(size=(4, 3))).float()
            return (model(x) + torch.randn(4, 1)).pow(2).mean()

        run = PretrainRun(tmp_path, tmp_path / state, steps=4)
        return fit(model, loss_fn, FitConfig(lr=0.1, checkpoint_every=1), run, "net").state_dict()

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("parts", dies_at=2)
    parts = train("parts")
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3]
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
