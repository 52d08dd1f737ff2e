"""The command `rfft generate`: recurrent generation for a folder of products.

Shapes: B batch, S the side of the canvas.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
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

from rfft import build, grid
from rfft.conditions import noise_for
from rfft.config import Config
from rfft.data.cutout import paste_back, product_layer
from rfft.data.samples import Sample, Skipped
from rfft.draft import new_folder, refuse_existing
from rfft.errors import UserError
from rfft.faults import painting
from rfft.generate import Paint, Painted, autocast, paint, recur
from rfft.log import write_skipped
from rfft.metrics.wilson import wilson_interval
from rfft.models.bundle import Bundle, load_bundle
from rfft.models.lora import lora_layers
from rfft.processes import broadcast, count, joined, rank
from rfft.types import label_names

MANIFEST, SHEET = "manifest.jsonl", "contact_sheet.png"
THUMBNAIL, SHEET_COLUMNS, SHEET_ROWS = 128, 8, 12


def generate(config: Config, lora: Path | None, out: Path) -> None:
    """Paint every product until RFNet accepts, evaluate.max_attempts times at most.

    All or nothing: out/images/ID.png at the product's own resolution and with its own pixels,
    out/products/ID.png, the product as it lies there (RGBA), out/manifest.jsonl, out/contact_sheet.png.
    """
    refuse_existing(out)
    skipped: list[Skipped] = []
    with painting(config.evaluate.batch_size), joined() as device:
        console = Console(stderr=True, quiet=rank() > 0)
        samples = build.build_samples(config, "train", skipped)
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
        if len(files) > 1 or not (files or has_controlnet):
            raise UserError(
                f"{lora}: not the folder of one exported LoRA; give what `rfft export` wrote, for example "
                "RUN/export/diffusers"
            )
    bundle = load_bundle(model.bundle, getattr(torch, model.dtype), controlnet)
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
    reward = build.build_reward(config, device)
    conditions = build.build_conditions(config, bundle, samples)
    schedule, scale = bundle.schedule(config.rollout.steps), config.rollout.guidance_scale
    shape = tuple(conditions.noise.shape[1:])

    @torch.no_grad()
    def draw(chosen: list[int], attempts: list[int]) -> tuple[Tensor, Tensor]:
        noise = torch.cat(
            [
                noise_for(config.run.seed + attempt, [noise_index(samples[i])], shape)
                for i, attempt in zip(chosen, attempts, strict=True)
            ]
        )
        batch = replace(conditions.index(chosen), noise=noise).to(device)
        with autocast(device, config.trainer.mixed_precision):
            images = paint(bundle, batch, schedule, scale)
        return images.cpu(), reward(images, batch).softmax(-1).cpu()

    return draw


def noise_index(sample: Sample) -> int:
    """The same for a product of the same name, whatever other products come along."""
    return zlib.crc32(sample.id.encode())


def _paint_all(
    config: Config, draw: Paint, samples: list[Sample], folder: Path, console: Console
) -> list[dict[str, Any]]:
    """Write pictures, manifest and contact sheet, each process its share; returns the manifest's rows."""
    settings, share = config.evaluate, range(rank(), len(samples), count())

    def draw_own(chosen: list[int], attempts: list[int]) -> tuple[Tensor, Tensor]:
        return draw([share[place] for place in chosen], attempts)

    rows: dict[int, dict[str, Any]] = {}
    thumbnails: dict[int, Tensor] = {}
    columns = ("painting", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[share]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=len(share), share="")
        for place, painted in recur(draw_own, len(share), settings.max_attempts, settings.batch_size):
            i = share[place]
            rows[i] = _row(samples[i], painted, config.run.seed)
            grid.save_png(folder / rows[i]["image"], full_size(samples[i], painted, config.data.max_pixels))
            grid.save_png(folder / rows[i]["product"], _product(samples[i], config.data.max_pixels))
            if i < SHEET_COLUMNS * SHEET_ROWS:
                small = F.interpolate(painted.image[None], (THUMBNAIL, THUMBNAIL), mode="area")[0]
                thumbnails[i] = grid.to_bytes(small)
            accepted = sum(row["accepted"] for row in rows.values()) / len(rows)
            progress.update(task, advance=1, share=f"accepted {accepted:.0%}")
    for process in range(count()):
        others = broadcast((rows, thumbnails), source=process)
        rows, thumbnails = rows | others[0], thumbnails | others[1]
    return _write_lists(folder, rows, thumbnails)


def _write_lists(
    folder: Path, rows: dict[int, dict[str, Any]], thumbnails: dict[int, Tensor]
) -> list[dict[str, Any]]:
    """Manifest and contact sheet, by the first process."""
    ordered = [rows[i] for i in sorted(rows)]
    if rank() > 0:
        return ordered
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in ordered]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")
    cells = torch.stack([thumbnails[i] for i in sorted(thumbnails)])
    verdicts = torch.tensor([row["accepted"] for row in ordered[: len(cells)]])
    grid.save_png(folder / SHEET, grid.sheet(cells, verdicts, min(SHEET_COLUMNS, len(cells))))
    return ordered


def _row(sample: Sample, painted: Painted, seed: int) -> dict[str, Any]:
    probabilities = painted.probabilities.tolist()
    return {
        "id": sample.id,
        "image": f"images/{sample.id}.png",
        "product": f"products/{sample.id}.png",
        "caption": sample.caption,
        "prompt": sample.prompt,
        "negative_prompt": sample.negative,
        "seed": seed + painted.attempt,
        "attempts": painted.attempts,
        "accepted": painted.accepted,
        "probabilities": {
            label: round(p, 4)
            for label, p in zip(label_names(len(probabilities)), probabilities, strict=True)
        },
    }


def full_size(sample: Sample, painted: Painted, max_pixels: int) -> grid.Sheet:
    """The picture at the product's own resolution with its own pixels; AdWorld's are as they are."""
    if sample.source is None or sample.placement is None:
        return grid.to_bytes(painted.image).permute(1, 2, 0).numpy()
    return paste_back(painted.image, sample.source, sample.placement, max_pixels)


def _product(sample: Sample, max_pixels: int) -> grid.Sheet:
    """The product as it lies in the picture, RGBA."""
    if sample.source is None or sample.placement is None:
        return grid.to_bytes(sample.canvas).permute(1, 2, 0).numpy()
    return product_layer(sample.source, sample.placement, max_pixels)
