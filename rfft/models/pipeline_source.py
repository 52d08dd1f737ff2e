"""Which pipeline a bundle's name stands for, and whether its parts belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    DiffusionPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
)

from rfft.errors import UserError
from rfft.models.pretrained import ASSETS, why

EMBEDDED = "rf-tiny"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
XL_PARTS = ("text_encoder_2", "tokenizer_2")


def source_of(path_or_id: str | Path) -> str:
    """The folder or hub id behind a bundle's name."""
    name = str(path_or_id)
    folder = ASSETS / EMBEDDED if name == EMBEDDED else Path(name)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise UserError(f"bundle {name}: no model_index.json in {folder}; give a diffusers pipeline folder")
    return str(folder) if folder.is_dir() else name


def cannot_load(name: str, error: Exception) -> UserError:
    choices = f"give {EMBEDDED}, a diffusers pipeline folder or a hub id"
    return UserError(f"bundle {name} cannot be loaded ({why(error)}); {choices}")


def cannot_load_part(setting: str, name: str, error: Exception) -> UserError:
    """Of the parts that have a setting of their own."""
    return UserError(f"{setting} {name}: neither a folder nor a hub id that loads ({why(error)})")


def pipeline_class(source: str, controlnet: str | Path | None = None) -> Any:
    """SD or SDXL, by the class that model_index.json names; whatever that class is for, its parts fit.

    `controlnet`: that of the config, for a base that comes without one.
    """
    index = DiffusionPipeline.load_config(source)
    named = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(named, str):
        raise ValueError("its model_index.json names no pipeline: _class_name is missing")
    is_xl = named.startswith("StableDiffusionXL")
    if not is_xl and not named.startswith("StableDiffusion"):
        raise ValueError(f"it is a {named}, not a Stable Diffusion 1.x, 2.x or XL")
    there = {name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None}
    if missing := [name for name in (*PARTS, *(XL_PARTS if is_xl else ())) if name not in there]:
        raise ValueError(f"this {named} has no {', '.join(missing)}: a refiner, or another kind of model")
    if controlnet is None and "controlnet" not in there:
        raise UserError(
            f"bundle {source} has no ControlNet: name one that fits it (canny edges) with model.controlnet"
        )
    return StableDiffusionXLControlNetInpaintPipeline if is_xl else StableDiffusionControlNetInpaintPipeline


def check_shapes(pipe: Any) -> None:
    """U-Net, VAE and ControlNet belong together: otherwise the first forward would end in a traceback."""
    unet, controlnet = pipe.unet.config, pipe.controlnet.config
    if unet.in_channels != pipe.vae.config.latent_channels:
        raise UserError(
            f"the bundle's U-Net takes {unet.in_channels} channels, as inpainting ones do: give a base whose "
            f"U-Net takes {pipe.vae.config.latent_channels}"
        )
    for name, what in (("cross_attention_dim", "text features"), ("block_out_channels", "channels")):
        if unet[name] != controlnet[name]:
            raise UserError(
                f"the ControlNet is for another base ({what} {controlnet[name]}, the U-Net's {unet[name]}): "
                "name one that fits with model.controlnet"
            )
