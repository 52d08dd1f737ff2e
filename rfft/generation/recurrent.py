"""The command `rfft generate`: recurrent generation for a folder of products.

Shapes: B batch, K classes, N samples, S the side of the canvas.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from rfft import build
from rfft.config.schema import Config
from rfft.data.conditions import noise_for
from rfft.data.samples import Sample, Skipped
from rfft.errors import UserError
from rfft.generation.generated import KeptPictures, manifest_row, write_lists
from rfft.generation.generator import load_generator
from rfft.generation.sample import Outcome, autocast, improves, paint, recur, reward_logits
from rfft.metrics.verdict import NOT_FINITE, is_accepted, verdicts_of
from rfft.metrics.wilson import shown_share
from rfft.models.bundle import Bundle
from rfft.utils.atomic_io import new_folder, refuse_existing
from rfft.utils.faults import painting
from rfft.utils.log import messages, write_skipped
from rfft.utils.processes import broadcast, count, joined, rank, spread

NAMED = 3  # pictures that are not finite, before the rest is only counted

# Samples and the number of attempts they have behind them -> pictures [B,3,S,S], class probabilities [B,K]
Paint = Callable[[list[int], int], tuple[Tensor, Tensor]]


def generate(config: Config, lora: Path | None, out: Path) -> None:
    """Paint every product until RFNet accepts its picture, evaluate.max_attempts times at most.

    Writes, all or nothing: out/images/ID.png at the product's own resolution and with its own pixels,
    out/products/ID.png, the product as it lies there (RGBA), out/manifest.jsonl, out/contact_sheet.png.
    A picture or verdict that is not finite is never accepted; raises UserError if all are so.
    """
    refuse_existing(out)
    skipped: list[Skipped] = []
    with painting(config.evaluate.batch_size), joined() as device:
        console = messages(quiet=rank() > 0)
        samples = build.build_samples(config, "generate", skipped)
        draw = painter(config, load_generator(config, lora, device), samples, device)
        with _folder_for_all(out) as draft:
            for kind in ("images", "products"):
                (draft / kind).mkdir(exist_ok=True)
            rows = _paint_all(config, draw, samples, draft, console)
            if rank() == 0:
                write_skipped(draft, [asdict(product) for product in skipped])
    _summarize(rows, out, console)


def _summarize(rows: list[dict[str, Any]], out: Path, console: Console) -> None:
    """Tell how many of the manifest's pictures are accepted, and which are not finite."""
    if broken := [row["id"] for row in rows if row.get("not_finite")]:
        names = ", ".join(broken[:NAMED]) + ", ..." * (len(broken) > NAMED)
        told = f"warning: {len(broken)} of {len(rows)} pictures are not finite: {names}"
        console.print(told, style="red", highlight=False, soft_wrap=True)
    accepted = sum(row["accepted"] for row in rows)
    attempts = sum(row["attempts"] for row in rows) / len(rows)
    console.print(
        f"RFNet accepts {shown_share(accepted, len(rows))} after {attempts:.2f} attempts on average; "
        f"written: {out}",
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def _folder_for_all(out: Path) -> Iterator[Path]:
    """Open the first process's new_folder(out) in all processes."""
    if rank() > 0:
        yield broadcast(None)
        return
    with new_folder(out) as draft:
        yield broadcast(draft)


def painter(config: Config, bundle: Bundle, samples: list[Sample], device: torch.device) -> Paint:
    """Return a function that paints samples with new noise at each attempt, and asks RFNet for verdicts."""
    rfnet = build.build_rfnet(config, device)
    if rfnet is None:
        raise UserError(
            "reward.rfnet is null, and recurrent generation asks RFNet: name one with reward.rfnet"
        )
    conditions = build.build_conditions(config, bundle, samples)
    schedule = bundle.schedule(config.rollout.steps, config.data.image_size)
    scale = config.rollout.guidance_scale
    shape = tuple(conditions.noise.shape[1:])

    @torch.no_grad()
    def draw(chosen: list[int], attempt: int) -> tuple[Tensor, Tensor]:
        noise = noise_for(config.run.seed + attempt, [noise_index(samples[i]) for i in chosen], shape)
        batch = replace(conditions.index(chosen), noise=noise).to(device)
        with autocast(device, config.trainer.mixed_precision):
            images = paint(bundle, batch, schedule, scale)
        return images.cpu(), reward_logits(lambda x: rfnet(x, batch), images).softmax(-1).cpu()

    return draw


def noise_index(sample: Sample) -> int:
    """Return a number that is the same for a product of the same name, whatever other products come along."""
    return zlib.crc32(sample.id.encode())


def _paint_all(
    config: Config, draw: Paint, samples: list[Sample], folder: Path, console: Console
) -> list[dict[str, Any]]:
    """Paint and write pictures, manifest and contact sheet; return the manifest's rows.

    The processes share an attempt's batches, which do not depend on how many processes there are.
    """
    settings, pictures = config.evaluate, KeptPictures(folder, samples, config.data.max_pixels)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[share]}"))

    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("painting", share="")

        def attempt_all(waiting: list[int], attempt: int, best: dict[int, Outcome]) -> Tensor:
            size = settings.batch_size
            batches = [waiting[first : first + size] for first in range(0, len(waiting), size)]
            before = len(samples) - len(waiting)  # accepted in earlier attempts
            accepted = 0  # in this one, by this process
            name = f"attempt {attempt + 1} of {settings.max_attempts}"
            progress.reset(task, description=name, total=len(waiting))

            def paint_one(number: int) -> Tensor:
                nonlocal accepted
                chosen = batches[number]
                images, probabilities = draw(chosen, attempt)
                accepted += int(is_accepted(probabilities).sum())
                for i, image, p in zip(chosen, images, probabilities, strict=True):
                    if improves(p, best.get(i)):
                        pictures.keep(i, image, attempt)
                return probabilities

            def show(done: int) -> None:
                now = before + sum(broadcast(accepted, source=process) for process in range(count()))
                share = f"accepted {now / len(samples):.0%}"
                progress.update(task, completed=sum(map(len, batches[:done])), share=share)

            found = torch.cat(spread(paint_one, len(batches), show))
            if attempt == 0 and len(samples) > 1:  # other seeds would help a single one, not all of them
                _require_finite(found, config)
            return found

        best = recur(attempt_all, len(samples), settings.max_attempts)
    _require_finite(torch.stack([outcome.probabilities for outcome in best.values()]), config)
    rows = [manifest_row(samples[i], best[i], config.run.seed) for i in range(len(samples))]
    cells = pictures.thumbnails()
    if rank() == 0:
        write_lists(folder, rows, cells)
    return rows


def _require_finite(probabilities: Tensor, config: Config) -> None:
    """Raise UserError if none of the verdicts [N,K] is finite."""
    if (verdicts_of(probabilities) == NOT_FINITE).all():
        precision = config.trainer.mixed_precision
        fix = "set trainer.mixed_precision=bf16" if precision == "fp16" else "check the generator's weights"
        raise UserError(
            f"none of {len(probabilities)} pictures is finite (NaN or infinite), nothing is written: {fix}, "
            f"or lower rollout.guidance_scale={config.rollout.guidance_scale:g}"
        )
