"""The command `rfft generate`: recurrent generation for a folder of products.

Shapes: B batch, S the side of the canvas.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from torch import Tensor

from rfft import build
from rfft.config.schema import Config
from rfft.data.conditions import noise_for
from rfft.data.cutout import paste_back, product_layer
from rfft.data.samples import Sample, Skipped
from rfft.errors import UserError
from rfft.generation.sample import Outcome, autocast, improves, paint, recur
from rfft.metrics.wilson import wilson_interval
from rfft.models.bundle import Bundle, load_bundle
from rfft.models.lora import lora_layers
from rfft.types import label_names
from rfft.utils import contact_sheet
from rfft.utils.atomic_io import new_folder, refuse_existing
from rfft.utils.faults import painting
from rfft.utils.log import messages, write_skipped
from rfft.utils.processes import broadcast, count, joined, rank, spread

MANIFEST, SHEET = "manifest.jsonl", "contact_sheet.png"
THUMBNAIL, SHEET_COLUMNS, SHEET_ROWS = 128, 8, 12

# Samples and the number of attempts they have behind them -> pictures [B,3,H,W], class probabilities [B,5]
Paint = Callable[[list[int], int], tuple[Tensor, Tensor]]


def generate(config: Config, lora: Path | None, out: Path) -> None:
    """Paint every product until RFNet accepts, evaluate.max_attempts times at most.

    All or nothing: out/images/ID.png at the product's own resolution and with its own pixels,
    out/products/ID.png, the product as it lies there (RGBA), out/manifest.jsonl, out/contact_sheet.png.
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
    accepted = sum(row["accepted"] for row in rows)
    low, high = wilson_interval(accepted, len(rows))
    attempts = sum(row["attempts"] for row in rows) / len(rows)
    console.print(
        f"RFNet accepts {accepted} of {len(rows)} pictures ({accepted / len(rows):.1%}, 95 % interval "
        f"{low:.1%} to {high:.1%}) after {attempts:.2f} attempts on average; written: {out}",
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def _folder_for_all(out: Path) -> Iterator[Path]:
    """The first process's new_folder(out)."""
    if rank() > 0:
        yield broadcast(None)
        return
    with new_folder(out) as draft:
        yield broadcast(draft)


def load_generator(config: Config, lora: Path | None, device: torch.device) -> Bundle:
    """The bundle, with a LoRA and ControlNet that `rfft export` wrote in diffusers' or kohya's form."""
    model = config.model
    controlnet, file = model.controlnet, None
    if lora is not None:
        files = sorted(lora.glob("*.safetensors"))
        file = files[0] if files else None
        has_controlnet = (lora / "controlnet" / "config.json").is_file()
        controlnet = str(lora / "controlnet") if has_controlnet else controlnet
        # Beside a U-Net or its PEFT adapter, a ControlNet is but half of what was exported.
        if len(files) > 1 or not (files or has_controlnet) or (lora / "unet").exists():
            raise UserError(
                f"{lora}: not the folder of one exported LoRA; give what `rfft export` wrote in diffusers' "
                "or kohya's form, for example RUN/export/diffusers; a merged export goes with --model"
            )
    bundle = load_bundle(model.bundle, getattr(torch, model.dtype), controlnet, model.family)
    if file is not None:
        try:
            bundle.pipe.load_lora_weights(file.parent, weight_name=file.name)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"{file} is no LoRA for the bundle {model.bundle}: {reason}") from error
        if not lora_layers(bundle.pipe.unet):
            raise UserError(f"{file} is no LoRA for the bundle {model.bundle}: nothing in it fits the U-Net")
    return bundle.to(device)


def painter(config: Config, bundle: Bundle, samples: list[Sample], device: torch.device) -> Paint:
    """Paints samples with the noise of their next attempts, and lets RFNet judge."""
    rfnet = build.build_rfnet(config, device)
    if rfnet is None:
        raise UserError(
            "reward.rfnet is null, and recurrent generation asks RFNet: name one with reward.rfnet"
        )
    conditions = build.build_conditions(config, bundle, samples)
    schedule, scale = bundle.schedule(config.rollout.steps), config.rollout.guidance_scale
    shape = tuple(conditions.noise.shape[1:])

    @torch.no_grad()
    def draw(chosen: list[int], attempt: int) -> tuple[Tensor, Tensor]:
        noise = noise_for(config.run.seed + attempt, [noise_index(samples[i]) for i in chosen], shape)
        batch = replace(conditions.index(chosen), noise=noise).to(device)
        with autocast(device, config.trainer.mixed_precision):
            images = paint(bundle, batch, schedule, scale)
        return images.cpu(), rfnet(images, batch).softmax(-1).cpu()

    return draw


def noise_index(sample: Sample) -> int:
    """The same for a product of the same name, whatever other products come along."""
    return zlib.crc32(sample.id.encode())


def _paint_all(
    config: Config, draw: Paint, samples: list[Sample], folder: Path, console: Console
) -> list[dict[str, Any]]:
    """Write pictures, manifest and contact sheet; returns the manifest's rows.

    The processes share an attempt's batches, which do not depend on how many processes there are.
    """
    settings, pictures = config.evaluate, KeptPictures(folder, samples, config.data.max_pixels)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[share]}"))

    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("painting", share="")

        def attempt_all(waiting: list[int], attempt: int, best: dict[int, Outcome]) -> Tensor:
            size = settings.batch_size
            batches = [waiting[first : first + size] for first in range(0, len(waiting), size)]
            done = len(samples) - len(waiting)
            share = f"accepted {done / len(samples):.0%}" if attempt else ""
            name = f"attempt {attempt + 1} of {settings.max_attempts}"
            progress.reset(task, description=name, total=len(waiting), share=share)

            def paint_one(number: int) -> Tensor:
                chosen = batches[number]
                images, probabilities = draw(chosen, attempt)
                for i, image, p in zip(chosen, images, probabilities, strict=True):
                    if improves(p, best.get(i)):
                        pictures.keep(i, image, attempt)
                return probabilities

            def show(done: int) -> None:
                progress.update(task, completed=sum(map(len, batches[:done])))

            return torch.cat(spread(paint_one, len(batches), show))

        best = recur(attempt_all, len(samples), settings.max_attempts)
    rows = [_row(samples[i], best[i], config.run.seed) for i in range(len(samples))]
    cells = pictures.thumbnails()
    if rank() == 0:
        _write_lists(folder, rows, cells)
    return rows


class KeptPictures:
    """The kept pictures: at full size in a folder, small for the contact sheet; this process's alone."""

    def __init__(self, folder: Path, samples: list[Sample], max_pixels: int) -> None:
        self.folder, self.samples, self.max_pixels = folder, samples, max_pixels
        self.small: dict[int, tuple[int, Tensor]] = {}  # sample -> attempt, uint8 [3,128,128]

    def keep(self, i: int, image: Tensor, attempt: int) -> None:
        """Write sample i's picture [3,S,S] over that of an earlier attempt."""
        sample = self.samples[i]
        if attempt == 0:
            contact_sheet.save_png(
                self.folder / f"products/{sample.id}.png", _product(sample, self.max_pixels)
            )
        contact_sheet.save_png(
            self.folder / f"images/{sample.id}.png", full_size(sample, image, self.max_pixels)
        )
        if i < SHEET_COLUMNS * SHEET_ROWS:
            small = F.interpolate(image[None], (THUMBNAIL, THUMBNAIL), mode="area")[0]
            self.small[i] = attempt, contact_sheet.to_bytes(small)

    def thumbnails(self) -> Tensor:
        """Those of all processes, uint8 [N,3,128,128]."""
        latest: dict[int, tuple[int, Tensor]] = {}
        for process in range(count()):
            for i, found in broadcast(self.small, source=process).items():
                latest[i] = max(latest.get(i, found), found, key=lambda kept: kept[0])
        return torch.stack([latest[i][1] for i in sorted(latest)])


def _write_lists(folder: Path, rows: list[dict[str, Any]], cells: Tensor) -> None:
    """Manifest and contact sheet."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")
    verdicts = torch.tensor([row["accepted"] for row in rows[: len(cells)]])
    contact_sheet.save_png(
        folder / SHEET, contact_sheet.sheet(cells, verdicts, min(SHEET_COLUMNS, len(cells)))
    )


def _row(sample: Sample, outcome: Outcome, seed: int) -> dict[str, Any]:
    probabilities = outcome.probabilities.tolist()
    return {
        "id": sample.id,
        "image": f"images/{sample.id}.png",
        "product": f"products/{sample.id}.png",
        "caption": sample.caption,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative,
        "seed": seed + outcome.attempt,
        "attempts": outcome.attempts,
        "accepted": outcome.accepted,
        "probabilities": {
            label: round(p, 4)
            for label, p in zip(label_names(len(probabilities)), probabilities, strict=True)
        },
    }


def full_size(sample: Sample, image: Tensor, max_pixels: int) -> contact_sheet.Sheet:
    """The picture [3,S,S] at the product's own resolution with its own pixels; AdWorld's are as they are."""
    if sample.source is None or sample.placement is None:
        return contact_sheet.to_bytes(image).permute(1, 2, 0).numpy()
    return paste_back(image, sample.source, sample.placement, max_pixels)


def _product(sample: Sample, max_pixels: int) -> contact_sheet.Sheet:
    """The product as it lies in the picture, RGBA."""
    if sample.source is None or sample.placement is None:
        return contact_sheet.to_bytes(sample.canvas).permute(1, 2, 0).numpy()
    return product_layer(sample.source, sample.placement, max_pixels)
