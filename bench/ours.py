"""RFFT in the benchmark: python bench/ours.py [setting=value ...], driven by bench/run.py."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bench.setting import BASE, BATCH, GUIDANCE, LAST, LR, PROMPTS, RANK, SIZE, STEPS, TARGETS, Step, serve
from rfft import build
from rfft.config.load import config_from
from rfft.config.schema import Config
from rfft.models.denoiser import UNetDenoiser
from rfft.models.families.sd import StableDiffusion
from rfft.models.load import skeleton_batch
from rfft.rewards.weighted import WeightedRewards
from rfft.training.learner import RFFTLearner
from rfft.training.speed import mean_rollout, prepare_rollouts
from rfft.types import Batch

SETTINGS: dict[str, Any] = {
    "model": {
        "bundle": str(BASE),
        "family": "bench.ours:UNetAlone",
        "lora": {"rank": RANK, "alpha": RANK, "target_modules": TARGETS},
    },
    "data": {"image_size": SIZE, "cache": None},
    "reward": {"rfnet": None, "terms": [{"use": "bench.ours:Brightness"}]},
    "rollout": {"steps": STEPS, "last": LAST, "guidance_scale": GUIDANCE},
    "optimizer": {"lr": LR},
    "trainer": {"batch_size": BATCH, "accumulation": 1, "steps": 10**6},
    "evaluate": {"enabled": False},
}


class UNetAlone(StableDiffusion):
    """The base without its ControlNet, which the others have not got."""

    def __init__(self, pipe: Any, controlnet: Any = None) -> None:
        super().__init__(pipe, controlnet)
        self.denoiser = UNetDenoiser(pipe.unet, None, pipe.scheduler.config.prediction_type)

    def networks(self) -> list[nn.Module]:
        return [self.pipe.unet, self.pipe.vae, *self.text_networks()]


class Brightness:
    """The reward of all programs: it costs nothing."""

    def __call__(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return 1 - image.mean((1, 2, 3)), {}


def make_batch(config: Config, bundle: Any) -> Batch:
    """Return the prompts' batch without products: nothing is inpainted."""
    with bundle.device:
        batch = skeleton_batch(bundle, SIZE, BATCH)
    z, null = (bundle.encode_prompts(texts, SIZE)[0] for texts in (PROMPTS, [""] * BATCH))
    return replace(batch, z=z, null=null, prompts=PROMPTS)


def main(overrides: list[str]) -> None:
    config = config_from(SETTINGS, overrides)
    accelerator = Accelerator(
        mixed_precision=config.trainer.mixed_precision, cpu=not torch.cuda.is_available()
    )
    bundle = build.build_bundle(config, accelerator.device)
    reward = WeightedRewards([("", 1.0, Brightness())])
    learner = RFFTLearner(config, accelerator, bundle, reward, None, make_batch(config, bundle))
    prepare_rollouts(config, bundle)
    trained, references = learner.work.trained, learner.work.reference
    mean = mean_rollout(config) + trained + references

    def step() -> Step:
        before = learner.counters.forwards
        learner.step()
        return Step(trained * BATCH, learner.counters.forwards - before, mean)

    serve(step)


if __name__ == "__main__":
    main(sys.argv[1:])
