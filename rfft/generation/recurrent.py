"""The command `rfft generate`: recurrent generation for a folder of products.

Shapes: B batch, K classes, S the side of the canvas.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from rfft import build
from rfft.config.load import flatten
from rfft.config.schema import Config
from rfft.data.conditions import noise_for
from rfft.data.dataset import Samples
from rfft.data.samples import Entry, Sample, Skipped
from rfft.errors import UserError
from rfft.generation.generator import load_generator
from rfft.generation.job import Job, Paint
from rfft.generation.progress import Generation
from rfft.generation.sample import autocast, paint, reward_logits
from rfft.metrics.wilson import shown_share
from rfft.models.bundle import Bundle
from rfft.types import size_of
from rfft.utils.faults import painting
from rfft.utils.log import messages
from rfft.utils.processes import broadcast, joined, rank

NAMED = 3  # pictures that are not finite, before the rest is only counted
PAINTED = (
    "model",
    "data",
    "reward",
    "rollout",
    "run.seed",
    "trainer.mixed_precision",
    "evaluate.max_attempts",
)
ELSEWHERE = ("data.cache", "data.cache_gb", "data.workers", "data.on_error")  # and what changes no picture


def generate(config: Config, lora: Path | None, out: Path) -> None:
    """Paint every product until RFNet accepts its picture, evaluate.max_attempts times at most.

    Writes, as they are done: out/images/ID.png at the product's own resolution and with its own pixels,
    out/products/ID.png, the product as it lies there (RGBA), a row of out/manifest.jsonl; at the end
    out/contact_sheet.png. The same command goes on where an earlier one was cut off. A picture or verdict
    that is not finite is never accepted; raises UserError if all are so.
    """
    settings = {name: value for name, value in flatten(asdict(config)).items() if _decides(name)}
    generation = Generation(out, settings | {"lora": lora and str(lora.resolve())})
    skipped: list[Skipped] = []
    with painting(config.evaluate.batch_size), joined() as device:
        console = messages(quiet=rank() > 0)
        samples = build.build_samples(config, "generate", skipped)
        draw = painter(config, load_generator(config, lora, device), samples, device)
        with _opened(generation):
            Job(config, draw, samples, generation, skipped).run(console)
        if rank() == 0:
            _summarize(generation, console)


def _decides(name: str) -> bool:
    """Say whether a setting decides what is painted."""
    return any(name == part or name.startswith(f"{part}.") for part in PAINTED) and name not in ELSEWHERE


@contextmanager
def _opened(generation: Generation) -> Iterator[None]:
    """Open the folder in the first process, and tell the others what is done there."""
    if rank() > 0:
        generation.done, generation.refused, generation.has_finite = broadcast(None)
        yield
        return
    with generation:
        broadcast((generation.done, generation.refused, generation.has_finite))
        yield


def _summarize(generation: Generation, console: Console) -> None:
    """Tell how many of the manifest's pictures are accepted, and which are not finite."""
    total = len(generation.done)
    if broken := generation.broken:
        names = ", ".join(broken[:NAMED]) + ", ..." * (len(broken) > NAMED)
        told = f"warning: {len(broken)} of {total} pictures are not finite: {names}"
        console.print(told, style="red", highlight=False, soft_wrap=True)
    console.print(
        f"RFNet accepts {shown_share(generation.accepted, total)} after {generation.attempts / total:.2f} "
        f"attempts on average; written: {generation.out}",
        highlight=False,
        soft_wrap=True,
    )


def painter(config: Config, bundle: Bundle, samples: Samples, device: torch.device) -> Paint:
    """Return a function that paints samples with new noise at each attempt, and asks RFNet for verdicts."""
    rfnet = build.build_rfnet(config, device)
    if rfnet is None:
        raise UserError(
            "reward.rfnet is null, and recurrent generation asks RFNet: name one with reward.rfnet"
        )
    conditions = build.build_conditions(config, bundle, samples)
    steps, scale = config.rollout.steps, config.rollout.guidance_scale

    @torch.no_grad()
    def draw(chosen: list[int], attempt: int, following: list[int]) -> tuple[Tensor, Tensor]:
        encoded = conditions.index(chosen)
        conditions.prefetch([following])
        indices = [noise_index(samples.entry(i)) for i in chosen]
        noise = noise_for(config.run.seed + attempt, indices, tuple(encoded.x_o.shape[1:]))
        batch = replace(encoded, noise=noise).to(device)
        schedule = bundle.schedule(steps, size_of(batch.product))
        with autocast(device, config.trainer.mixed_precision):
            images = paint(bundle, batch, schedule, scale)
        return images.cpu(), reward_logits(lambda x: rfnet(x, batch), images).softmax(-1).cpu()

    return draw


def noise_index(sample: Entry | Sample) -> int:
    """Return a number that is the same for a product of the same name, whatever other products come along."""
    return zlib.crc32(sample.id.encode())
