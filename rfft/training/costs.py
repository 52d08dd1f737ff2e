"""What a run costs, counted without the generator's weights: forwards, parameters, FLOPs, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rfft import build
from rfft.config.schema import Config, ModelConfig, TrainerConfig
from rfft.data.encoded import AHEAD
from rfft.data.sizes import as_buckets, as_size
from rfft.evaluation.networks import load_scorers
from rfft.models.bundle import Bundle
from rfft.models.families.base import Family
from rfft.models.load import load_skeleton, skeleton_batch
from rfft.models.lora import merged_bytes
from rfft.objectives.base import Work, autocast_for, render
from rfft.rewards.availability import Availability
from rfft.rewards.judge import Judge
from rfft.rewards.probe import Probe
from rfft.rewards.rfnet import RFNet
from rfft.rewards.weighted import WeightedRewards, is_differentiable
from rfft.training.method import check_gradient
from rfft.training.speed import describe_rollouts, works
from rfft.types import Conditioning, NoiseLevel, Size, sides
from rfft.utils.estimate import Cost, cost, fake, imagine, peak_bytes, weight_bytes

COUNTED = 1024  # pictures at most; more of them cost in proportion
COMPUTED, FEW = 1e11, 16  # multiply-adds and pictures: of fewer, computing is quicker than imagining


@dataclass(frozen=True)
class Forwards:
    """Of the denoiser in a micro-batch; each is one batched call for prompt and null together."""

    fewest: int  # without gradient; the draw of the trained steps makes the range
    most: int
    trained: int
    reference: int

    def __str__(self) -> str:
        range_ = f"{self.fewest} to {self.most}" if self.fewest < self.most else str(self.most)
        return f"{range_} without gradient + {self.trained} with + {self.reference} of the reference"


def count_forwards(all_works: Sequence[Work]) -> Forwards:
    """Count the denoiser's forwards in a micro-batch, over all draws of the trained steps."""
    free = [work.rollout for work in all_works]
    return Forwards(min(free), max(free), all_works[0].trained, all_works[0].reference)


@dataclass(frozen=True)
class Costs:
    """What a run costs: facts for people, and the bytes of a process's memory by what they are for."""

    facts: dict[str, str]
    lasting: dict[str, int]  # bytes that are taken all the time
    passing: dict[str, int]  # bytes at some time of a step
    together: int  # bytes of a step at its worst time; no process needs less
    start: int  # bytes at the worst time before the first step
    flops: float  # of an optimizer step and process
    denoiser: float  # the denoiser's share of them, the mean over draws of the trained steps
    forward: float  # FLOPs of a guided forward of the denoiser for one picture

    def memory(self) -> dict[str, str]:
        """Return all bytes for people, in GiB."""
        sizes = (
            self.lasting
            | self.passing
            | {
                "together, at least": self.together,
                "start-up, at least": self.start,
            }
        )
        return {name: f"{size / 2**30:,.2f} GiB" for name, size in sizes.items() if size}


def costs(config: Config) -> Costs:
    """Count parameters, FLOPs of an optimizer step and memory of a process."""
    model, trainer, all_works = config.model, config.trainer, works(config)
    objective, forwards = build.build_objective(config), count_forwards(all_works)
    work = max(all_works, key=lambda work: (work.merges_beside_graphs, work.graphs))  # at its worst
    bundle = _trained_skeleton(model, build.family_of(config))
    bundle.schedule(config.rollout.steps, largest(config))  # or it is refused
    rfnet = build.build_rfnet(config, "cpu")
    reward = build.build_reward(config, rfnet, "cpu")
    rewards = [reward] if rfnet is None else [reward, rfnet]
    check_gradient(config, objective, reward)
    denoiser, judge, complete = _calls(config, bundle, reward, work)
    counted = [each.flops(denoiser, objective.settings) for each in all_works]
    judged = _judged(trainer, work, judge)
    flops = trainer.accumulation * ((min(counted) + max(counted)) / 2 + judged)
    sizes = [parameter.numel() for parameter in bundle.trainable().values()]
    copies = filter(None, [bundle.frozen_controlnet])  # the reference, where a whole module is trained
    texts = bundle.family.text_networks()
    at_hand = [module for module in bundle.modules if module not in texts]
    lasting = {
        "weights": weight_bytes([*at_hand, bundle.unwrapped, *copies, *rewards]),
        "evaluation's networks": weight_bytes(_evaluation_networks(config)),
        "text encoders": weight_bytes(texts),  # they go where the CPU's memory is, after start-up
        "gradients and optimizer": 12 * sum(sizes),  # gradient and two moments, fp32
        "moving average": 4 * sum(sizes) * config.ema.enabled,
    }
    merged, fast = merged_bytes(bundle.unwrapped), config.rollout.precision != "autocast"
    if fast:  # at most: what is frozen and kept in that precision anyway is shared
        merged, lasting["rollout's copy"] = 0, 2 * sum(p.numel() for p in bundle.unwrapped.parameters())
    activations = work.graphs * work.learned * denoiser.activations
    passing = {
        "rollout's merged weights": merged,
        "denoiser's activations": activations,
        "decoder's and reward's": judge.activations,
    }
    # A merged copy is gone before the next forward with gradient, but for objectives that go on after one.
    kept = activations if work.merges_beside_graphs else 0
    apart = lasting["text encoders"] if torch.cuda.is_available() else 0
    together = sum(lasting.values()) - apart + max(merged + kept, activations + judge.activations)
    first = ("weights", "text encoders", "evaluation's networks")
    start = sum(lasting[name] for name in first) + _encoder_peak(config, bundle)
    facts = {
        "denoiser forwards per micro-batch": str(forwards),
        "forwards without gradient": describe_rollouts(config, bundle.family.units),
        "trained": f"{', '.join(model.train)}: {sum(sizes):,} parameters in {len(sizes)} tensors",
        "parameters in all": f"{sum(p.numel() for p in {*_parameters([*bundle.modules, *rewards])}):,}",
        "data in memory": f"{_data_bytes(config, bundle) / 2**20:,.1f} MiB, however many products there are",
        "per optimizer step and process": f"{flops / 1e12:,.2f} TFLOP",
    }
    if config.rollout.cache > 1:
        facts["per optimizer step and process"] += ", less what rollout.cache leaves out"
    if not complete:
        facts["not counted"] = "FLOPs and activations of rewards beside RFNet"
    denoised = trainer.accumulation * sum(counted) / len(counted)
    forward = denoiser.forward / trainer.batch_size
    return Costs(facts, lasting, passing, together, start, flops, denoised, forward)


def _trained_skeleton(model: ModelConfig, family: type[Family] | None) -> Bundle:
    """Return the generator as a run trains it, without weights."""
    dtype = getattr(torch, model.dtype)
    bundle = load_skeleton(model.bundle, dtype, model.controlnet, family, model.tiny_vae)
    bundle.quantize(model.quantize, model.train, model.lora.target_modules)
    bundle.train(list(model.train), model.lora.rank, model.lora.alpha, model.lora.target_modules)
    if model.gradient_checkpointing:
        bundle.enable_gradient_checkpointing()
    return bundle


def _judged(trainer: TrainerConfig, work: Work, judge: Cost) -> float:
    """Return the FLOPs of decoder and reward in a micro-batch."""
    parts = trainer.batch_size / min(trainer.decode_batch or trainer.batch_size, trainer.batch_size)
    if work.verdicts is not None:
        return parts * work.verdicts * judge.forward
    return parts * work.backwards * (judge.forward + judge.backward)


def largest(config: Config) -> Size:
    """Return the size of the canvas that has most pixels."""
    size = as_size(config.data.image_size)
    return max((size, *as_buckets(config.data.buckets, size)), key=lambda size: math.prod(sides(size)))


def _evaluation_networks(config: Config) -> list[nn.Module]:
    """Those that stay in memory while the run trains."""
    settings = config.evaluate
    if not settings.enabled:
        return []
    readers = (Judge, settings.judge), (RFNet, settings.monitor), (Probe, settings.probe)
    own = [kind.from_pretrained(name) for kind, name in readers if name is not None]
    return [*own, *load_scorers(config, "cpu").values()]


def _calls(config: Config, bundle: Bundle, reward: WeightedRewards, work: Work) -> tuple[Cost, Cost, bool]:
    """Count the denoiser's call for a micro-batch, and decoder's and rewards' for a part of it.

    The last value is false if RFNet alone is in it: one's own reward may look at values that are not there.
    """
    trainer = config.trainer
    half = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[trainer.mixed_precision]
    judged = min(trainer.decode_batch or trainer.batch_size, trainer.batch_size)
    # What has no gradient is not ours, and may be far away: it is not asked for the sake of counting.
    every, reward = reward, WeightedRewards([term for term in reward.terms if is_differentiable(term[2])])
    counted, rows = (min(count, COUNTED) for count in (trainer.batch_size, judged))
    frozen = [*bundle.modules, reward]
    size = largest(config)
    schedule = bundle.schedule(config.rollout.steps, size)
    positions = counted * math.prod(sides(size)) // bundle.latent_factor**2
    multiply_adds = positions * sum(p.numel() for p in bundle.unwrapped.parameters())
    small = multiply_adds < COMPUTED and counted <= FEW
    with nullcontext() if small else fake():
        imagine([*frozen, bundle.unwrapped])
        batch = skeleton_batch(bundle, size, counted)
        level = NoiseLevel(torch.zeros((), dtype=schedule.timesteps.dtype), torch.ones(()), torch.ones(()))
        # Where the gradient enters by the input, all steps but the first hand it on to the one before.
        x = batch.noise.clone().requires_grad_(work.chained)

        def denoised() -> Tensor:
            both = Conditioning.pair(batch.null, batch.z), torch.cat([batch.edges, batch.edges])
            return bundle.denoiser(torch.cat([x, x]), level, *both).x0

        with autocast_for(config.objective.precision, x.device):
            denoiser = cost(denoised, bundle.unwrapped.parameters()) * (trainer.batch_size / counted)
        part = batch.index(slice(rows))
        x0 = part.noise.requires_grad_()

        def losses() -> Tensor:
            return reward(render(bundle, x0, part, preview=True), part)[0].sum()

        with torch.autocast("cpu", half, enabled=half is not None):
            complete = len(reward.terms) == len(every.terms)
            try:
                judge = cost(losses, _parameters(frozen))
            except RuntimeError:
                reward = WeightedRewards([term for term in reward.terms if isinstance(term[2], Availability)])
                judge, complete = cost(losses, _parameters(frozen)), False
    return denoiser, judge * (judged / rows), complete


def _encoder_peak(config: Config, bundle: Bundle) -> int:
    """Return the bytes that encoding a product takes beside the weights; at first it is for an evaluation."""
    with fake():
        imagine(bundle.modules)
        pictures = torch.zeros(1, 3, *sides(largest(config)))  # one by one, see data/encoder.py
        return peak_bytes(lambda: bundle.encode_image(pictures), _parameters(bundle.modules))


def _data_bytes(config: Config, bundle: Bundle) -> int:
    """Return the bytes of the batch that is trained on, and of those that are read meanwhile."""
    with fake():
        batch = skeleton_batch(bundle, largest(config), 1)
        both = batch.null.cat(batch.z)
    texts = [both.hidden, *both.added.values()]
    canvases = batch.product.numel()  # uint8, beside those in [0, 1]
    tensors = [*texts, batch.edges, batch.product, batch.x_o, batch.mask, batch.noise]
    ahead = AHEAD if config.data.workers else 0
    return (1 + ahead) * config.trainer.batch_size * (canvases + sum(tensor.nbytes for tensor in tensors))


def _parameters(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    return (parameter for module in modules for parameter in module.parameters())
