"""Bundles by name: the embedded one, a folder, or a hub id, whole or as a skeleton to count costs by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from rfft.errors import UserError
from rfft.models.bundle import Bundle
from rfft.models.families import KNOWN
from rfft.models.families.base import Family
from rfft.models.pretrained import ASSETS, load_part, skeleton_part, why
from rfft.types import Batch, Size, sides

EMBEDDED = "rf-tiny"


def is_embedded(name: str) -> bool:
    """Tell whether a bundle comes with RFFT."""
    return Path(name).name == name and (ASSETS / name / "model_index.json").is_file()


def source_of(path_or_id: str | Path) -> str:
    """Return the folder or hub id behind a bundle's name."""
    name = str(path_or_id)
    return str(ASSETS / name) if is_embedded(name) else name


def load_bundle(
    path_or_id: str | Path,
    dtype: torch.dtype = torch.float32,
    controlnet: str | Path | None = None,
    family: type[Family] | None = None,
) -> Bundle:
    """Load "rf-tiny", a folder or a hub id.

    `controlnet`: a folder or id, where the base has none; `family`: what it is, where its
    model_index.json does not say. Raises UserError where it cannot be loaded.
    """
    _quiet()
    with _explained(path_or_id):
        kind = family or _recognized(path_or_id)
        return Bundle(
            kind.load(source_of(path_or_id), None if controlnet is None else str(controlnet), dtype)
        )


def load_skeleton(
    path_or_id: str,
    dtype: torch.dtype = torch.float32,
    controlnet: str | None = None,
    family: type[Family] | None = None,
    tiny_vae: str | None = None,
) -> Bundle:
    """Do as load_bundle, to count what a run costs: where the family can, config files alone are read."""
    _quiet()
    with _explained(path_or_id):
        kind = family or _recognized(path_or_id)
        bundle = Bundle(kind.skeleton(source_of(path_or_id), controlnet, dtype))
    if tiny_vae is not None:
        with torch.device("meta"):
            bundle.set_tiny_vae(skeleton_part("model.tiny_vae", AutoencoderTiny, tiny_vae).to(dtype))
    return bundle


def load_tiny_vae(path_or_id: str, dtype: torch.dtype = torch.float32) -> AutoencoderTiny:
    """Load a folder or hub id of diffusers' AutoencoderTiny."""
    return load_part("model.tiny_vae", AutoencoderTiny, path_or_id, dtype)


def skeleton_batch(bundle: Bundle, size: Size, count: int) -> Batch:
    """Return an empty batch of `count` pictures of this size."""
    height, width = sides(size)
    h, w = height // bundle.latent_factor, width // bundle.latent_factor
    channels = bundle.family.latent_channels
    conditioning = bundle.family.blank_conditioning(count)
    edges, product = torch.zeros(count, 3, height, width), torch.zeros(count, 4, height, width)
    return Batch(
        z=conditioning,
        null=conditioning,
        edges=bundle.encode_control(edges, product),
        product=product,
        x_o=torch.zeros(count, channels, h, w),
        mask=torch.zeros(count, 1, h, w),
        noise=torch.zeros(count, channels, h, w),
        sample=torch.arange(count),
        captions=["bookcase, about 180 cm tall"] * count,
        prompts=["a bookcase in a park"] * count,
    )


def _quiet() -> None:
    """Switch off the libraries' bars for parts of a pipeline, and what they log without need."""
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    # What it logs there, it raises as well; or it is a ControlNet beside a pipeline for text to image.
    for module in (
        "models.modeling_utils",
        "loaders.peft",
        "configuration_utils",
        "pipelines.pipeline_utils",
    ):
        diffusers_logging.get_logger(f"diffusers.{module}").setLevel(diffusers_logging.CRITICAL)


def _recognized(path_or_id: str | Path) -> type[Family]:
    """Return the family that recognizes the base's model_index.json."""
    source = source_of(path_or_id)
    if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
        raise UserError(
            f"bundle {path_or_id}: no model_index.json in {source}; give a diffusers pipeline folder"
        )
    index = DiffusionPipeline.load_config(source)
    pipeline = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(pipeline, str):
        raise ValueError("its model_index.json names no pipeline: _class_name is missing")
    for kind in KNOWN.values():
        if kind.recognizes(pipeline):
            return kind
    raise ValueError(f"it is a {pipeline}, of none of the families {', '.join(KNOWN)}")


@contextmanager
def _explained(name: str | Path) -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError, ValueError, SafetensorError) as error:
        choices = f"give {EMBEDDED}, a diffusers pipeline folder or a hub id"
        raise UserError(f"bundle {name} cannot be loaded ({why(error)}); {choices}") from error
