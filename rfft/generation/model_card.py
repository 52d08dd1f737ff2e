"""The README.md that goes along with exported weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from rfft.config.describe import describe_objective
from rfft.config.load import flatten
from rfft.data.dataset import evaluation_source
from rfft.models.bundle import Bundle
from rfft.models.load import is_embedded

SHOWN = ("model.", "reward.", "rollout.", "objective.", "optimizer.", "trainer.batch", "trainer.accumulation")


@dataclass(frozen=True)
class CardMetrics:
    """What an evaluation measured, as the card shows it."""

    rows: Sequence[Any] = ()  # evaluation.tables.MetricRow: a line of the table each
    images: int = 0  # pictures of each state
    painted: str = ""  # how they differ from a model's plain first pictures


def write_card(
    file: Path, config: dict[str, Any], format: str, step: int, bundle: Bundle, metrics: CardMetrics
) -> None:
    """Write the card of the weights beside `file`.

    A run of `config` (resolved) trained them for `step` steps.
    """
    data = config["data"]
    settings = {k: v for k, v in flatten(config).items() if k.startswith(SHOWN) and v is not None}
    environment = Environment(  # noqa: S701  Markdown: escaping would garble it
        loader=PackageLoader("rfft"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    card = environment.get_template("model_card.md.j2").render(
        config=config,
        products=config["evaluate"]["products"] or evaluation_source(data["products"], data["holdout"]),
        settings=settings,
        step=step,
        usage="\n".join(usage(format, config, bundle)),
        scheduler="its family's sampler" if bundle.pipe is None else type(bundle.pipe.scheduler).__name__,
        objective=describe_objective(config),
        rows=metrics.rows,
        images=metrics.images,
        painted=metrics.painted,
    )
    file.write_text(card, encoding="utf-8")


def usage(format: str, config: dict[str, Any], bundle: Bundle) -> list[str]:
    """Return lines of Python that load the export from the folder it lies in."""
    if bundle.pipe is None:
        return ["# no diffusers pipeline knows this base: RFFT itself loads it, by model.family"]
    pipeline, own = type(bundle.pipe).__name__, bundle.unwrapped.controlnet
    controlnet_kind = type(own).__name__
    parts, may_lack = bundle.pipe.components, bundle.pipe._optional_components
    without = [f"{name}=None" for name, part in parts.items() if part is None and name not in may_lack]
    without += ["safety_checker=None"] * ("safety_checker" in bundle.pipe.config)
    hint = [f"# {bundle.family.hint}"] * bool(bundle.family.hint)
    taken = "controlnet" in parts or own is None
    apart = f"# {pipeline} paints without it; `rfft generate` paints with both"
    if format == "merged":
        here = '"."'
        lines = [
            f"from diffusers import {pipeline}",
            f"pipe = {pipeline}.from_pretrained({', '.join([here, *without])})",
        ]
        if not taken:
            lines[0] = f"from diffusers import {controlnet_kind}, {pipeline}"
            lines += [f'controlnet = {controlnet_kind}.from_pretrained("controlnet")', apart]
        return lines + hint
    modes, base, controlnet = (config["model"][name] for name in ("train", "bundle", "controlnet"))
    whole = "controlnet" in modes or ("controlnet_lora" in modes and format != "peft")
    embedded = is_embedded(base)
    arguments = [f'source_of("{base}")' if embedded else f'"{base}"', *without]
    lines = [f"from diffusers import {pipeline if own is None else f'{controlnet_kind}, {pipeline}'}"]
    lines += ["from peft import PeftModel"] * (format == "peft")
    lines += ["from rfft.models.load import source_of  # it comes with RFFT"] * embedded
    if whole or controlnet is not None or not taken:
        where = '"controlnet"' if whole else f'"{controlnet or base}"'
        where += "" if whole or controlnet is not None else ', subfolder="controlnet"'
        lines.append(f"controlnet = {controlnet_kind}.from_pretrained({where})")
        if taken:
            arguments.append("controlnet=controlnet")
        else:
            lines.append(apart)
    lines += [f"pipe = {pipeline}.from_pretrained(", *(f"    {a}," for a in arguments), ")"]
    if format == "peft":
        adapters = [bundle.part_of(mode) for mode in modes if mode.endswith("_lora")]
        # The pipeline keeps its own network, whose class some of them ask for: PEFT puts adapters into it.
        for name in adapters:
            network = name if name == "controlnet" and not taken else f"pipe.{name}"
            lines.append(f'PeftModel.from_pretrained({network}, "{name}")')
    elif "denoiser_lora" in modes:
        name = "pytorch_lora_weights" if format == "diffusers" else config["run"]["name"]
        lines.append(f'pipe.load_lora_weights(".", weight_name="{name}.safetensors")')
    return lines + hint
