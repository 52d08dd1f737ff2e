"""What a run costs, counted without the generator's weights: forwards, parameters, FLOPs, memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rfft import build
from rfft.config.schema import Config
from rfft.data.samples import Sample
from rfft.diffusion.sampling import cfg_eps
from rfft.models.lora import merged_bytes
from rfft.models.pipeline import Bundle
from rfft.models.skeleton import load_skeleton, skeleton_batch
from rfft.objectives.x0_hat import Draw, render
from rfft.rewards.availability import RewardModel
from rfft.rewards.judge import Judge
from rfft.rewards.preference import WeightedRewards
from rfft.rewards.probe import Probe
from rfft.utils.estimate import Cost, cost, fake, imagine, weight_bytes

CAPTION = 32  # tokens
SOMETHING = Sample("", torch.empty(0), caption="bookcase, about 180 cm tall", prompt="a bookcase in a park")


@dataclass(frozen=True)
class Forwards:
    """Of the denoiser in a micro-batch; each is one batched call for prompt and null together."""

    fewest: int  # without gradient; the draw of the trained steps makes the range
    most: int
    trained: int
    reference: int

    @property
    def mean(self) -> float:
        return (self.fewest + self.most) / 2 + self.trained + self.reference

    def __str__(self) -> str:
        range_ = f"{self.fewest} to {self.most}" if self.fewest < self.most else str(self.most)
        return f"{range_} without gradient + {self.trained} with + {self.reference} of the reference"


def count_forwards(config: Config) -> Forwards:
    rollout, trained = config.rollout, config.rollout.grad_steps
    references = trained * (config.objective.regularizer != "none")
    if config.objective.through != "x0_hat":  # all the way to the picture
        free = rollout.steps - trained
        return Forwards(free, free, trained, references)
    draw = Draw(config.run.seed, rollout.steps, rollout.last, trained, strata=1)  # the whole pool
    free_by_draw = [max(draw(step, 0)) + 1 - trained for step in range(1000)]
    return Forwards(min(free_by_draw), max(free_by_draw), trained, references)


def costs(config: Config) -> dict[str, str]:
    """Parameters, FLOPs of an optimizer step and memory of a process, as facts by name."""
    model, trainer, forwards = config.model, config.trainer, count_forwards(config)
    dtype = getattr(torch, model.dtype)
    bundle = load_skeleton(model.bundle, model.controlnet, model.tiny_vae, dtype)
    bundle.train(list(model.train), model.lora.rank, model.lora.alpha, model.lora.target_modules)
    if model.gradient_checkpointing:
        bundle.enable_gradient_checkpointing()
    bundle.schedule(config.rollout.steps)  # or it is refused
    reward = build.build_reward(config, "cpu")
    extra = build.build_extra_rewards(config, [SOMETHING] * trainer.batch_size, "cpu")
    rewards = [module for module in (reward, extra) if module is not None]
    judges = weight_bytes(_evaluation_networks(config))
    denoiser, judge, complete = _calls(config, bundle, reward, extra)

    # Through the sampler, the trained steps are one graph with one picture at its end; x0_hat's have one of
    # each per step.
    through_rollout = config.objective.through != "x0_hat"
    graphs, pictures = (forwards.trained, 1) if through_rollout else (1, forwards.trained)
    parts = trainer.batch_size / min(trainer.decode_batch or trainer.batch_size, trainer.batch_size)
    judged = pictures * parts * (judge.forward + judge.backward)
    flops = forwards.mean * denoiser.forward + forwards.trained * denoiser.backward + judged
    sizes = [parameter.numel() for parameter in bundle.trainable().values()]
    copies = filter(None, [bundle.frozen_controlnet])  # the reference, where a whole module is trained
    lasting = {
        "weights": weight_bytes([*bundle.modules, bundle.unwrapped, *copies, *rewards]),
        "evaluation's networks": judges,
        "gradients and optimizer": 12 * sum(sizes),  # gradient and two moments, fp32
        "moving average": 4 * sum(sizes) * config.ema.enabled,
    }
    merged, activations = merged_bytes(bundle.unwrapped), graphs * denoiser.activations
    passing = {
        "rollout's merged weights": merged,
        "denoiser's activations": activations,
        "decoder's and reward's": judge.activations,
    }
    # A merged copy is gone before the next forward with gradient; DRTune makes one after them, too.
    kept = activations if config.objective.through == "drtune" else 0
    together = sum(lasting.values()) + max(merged + kept, activations + judge.activations)
    memory = lasting | passing | {"together, at least": together}
    facts = {
        "denoiser forwards per micro-batch": str(forwards),
        "trained": f"{', '.join(model.train)}: {sum(sizes):,} parameters in {len(sizes)} tensors",
        "parameters in all": f"{sum(p.numel() for p in _parameters([*bundle.modules, *rewards])):,}",
        "per optimizer step and process": f"{trainer.accumulation * flops / 1e12:,.2f} TFLOP",
    }
    facts |= {f"memory: {name}": f"{size / 2**30:.2f} GiB" for name, size in memory.items() if size}
    return facts if complete else facts | {"not counted": "FLOPs and activations of reward.extra"}


def _evaluation_networks(config: Config) -> list[nn.Module]:
    """Those that stay in memory while the run trains."""
    settings = config.evaluate
    if not settings.enabled:
        return []
    readers = (Judge, settings.judge), (Probe, settings.probe)
    own = [kind.from_pretrained(name) for kind, name in readers if name is not None]
    return [*own, *build.build_scorers(config, "cpu").values()]


def _calls(
    config: Config, bundle: Bundle, reward: RewardModel, extra: WeightedRewards | None
) -> tuple[Cost, Cost, bool]:
    """Of the denoiser for a micro-batch (prompt and null at once); of decoder and rewards for a part of it.

    And whether `extra` is in it: somebody's own reward may look at values, and there are none.
    """
    trainer, size = config.trainer, config.data.image_size
    half = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[trainer.mixed_precision]
    precise = config.objective.fp32 or half is None
    rows = torch.arange(min(trainer.decode_batch or trainer.batch_size, trainer.batch_size))
    frozen = [*bundle.modules, reward, *([] if extra is None else [extra])]
    with fake():
        imagine([*frozen, bundle.unwrapped])
        batch = skeleton_batch(bundle, size, trainer.batch_size, CAPTION)
        t = torch.zeros((), dtype=torch.long)
        # All steps of DRaFT but the first hand the gradient on to the one before.
        x = batch.noise.clone().requires_grad_(config.objective.through == "draft")
        with torch.autocast("cpu", half, enabled=not precise):
            weights = bundle.unwrapped.parameters()
            denoiser = cost(lambda: torch.cat(cfg_eps(bundle.denoiser, x, t, batch)), weights)
        # Real numbers: texts are looked up by them.
        part = replace(batch.index(slice(len(rows))), sample=rows)
        x0 = part.noise.requires_grad_()

        def verdicts(others: WeightedRewards | None) -> Tensor:
            image = render(bundle, x0, part, preview=True)
            verdict = reward(image, part).sum()
            return verdict if others is None else verdict + others(image, part)[0].sum()

        with torch.autocast("cpu", half, enabled=half is not None):
            try:
                return denoiser, cost(lambda: verdicts(extra), _parameters(frozen)), True
            except RuntimeError:
                if extra is None:
                    raise
                return denoiser, cost(lambda: verdicts(None), _parameters(frozen)), False


def _parameters(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    return (parameter for module in modules for parameter in module.parameters())
