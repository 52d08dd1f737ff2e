"""`rfft` for the processes of a job, each of which leaves its trained weights in $RANKS/RANK.safetensors."""

from __future__ import annotations

import os

from safetensors.torch import save_file

from rfft.cli.main import main
from rfft.training.learner import RFFTLearner

step = RFFTLearner.step


def step_and_save(self: RFFTLearner) -> dict[str, float]:
    scalars = step(self)
    weights = {name: weight.clone() for name, weight in self.bundle.adapter_state_dict().items()}
    save_file(weights, f"{os.environ['RANKS']}/{os.environ['RANK']}.safetensors")
    return scalars


if __name__ == "__main__":
    RFFTLearner.step = step_and_save  # type: ignore[method-assign]
    main()
