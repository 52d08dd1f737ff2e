#!/usr/bin/env python3
"""How far rollouts on the fast copy lead from those of the trained network in fp32: rf-tiny, on a CPU.

python tools/rollout_drift.py prints a table for docs/performance.md: the relative L2 distance of x.
"""

from __future__ import annotations

import torch

from rfft import build
from rfft.config.load import config_from
from rfft.data.conditions import noise_for
from rfft.models.fast import FastCopy
from rfft.objectives.base import ObjectiveSettings, roll_out

STEPS = (30, 39)
COPIES = ((torch.float32, 2), (torch.float32, 3), (torch.bfloat16, 1), (torch.bfloat16, 3))


def main() -> None:
    config = config_from({"data": {"count": 4}, "evaluate": {"enabled": False}})
    bundle = build.build_bundle(config, "cpu")
    samples = build.build_samples(config, "train")
    numbers = list(range(len(samples)))
    batch = build.build_conditions(config, bundle, samples).index(numbers)
    batch.noise = noise_for(0, numbers, tuple(batch.noise.shape[1:]))
    schedule, settings = bundle.schedule(40, config.data.image_size), ObjectiveSettings(3.0)

    def paths() -> list[torch.Tensor]:
        return [roll_out(bundle, batch, schedule, settings, 0, k, batch.noise) for k in STEPS]

    exact = paths()
    print("| copy | " + " | ".join(f"x at step {k}" for k in STEPS) + " |\n| --- |" + " --- |" * len(STEPS))
    for dtype, cache in COPIES:
        bundle.fast = FastCopy(bundle.unwrapped, dtype, cache)
        shares = [(x - there).norm() / there.norm() for x, there in zip(paths(), exact, strict=True)]
        print(f"| {dtype}, cache={cache} | " + " | ".join(f"{share:.4f}" for share in shares) + " |".rstrip())


if __name__ == "__main__":
    main()
