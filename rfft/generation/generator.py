"""The generator that `rfft generate` paints with."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError

from rfft import build
from rfft.config.schema import Config
from rfft.errors import UserError
from rfft.models.bundle import Bundle
from rfft.models.families import KNOWN
from rfft.models.load import load_bundle
from rfft.models.lora import lora_layers


def load_generator(config: Config, lora: Path | None, device: torch.device) -> Bundle:
    """Load the config's bundle, with a LoRA and ControlNet that `rfft export` wrote for diffusers or kohya.

    Raises UserError if the folder holds anything else, or weights that do not fit or are not finite.
    """
    model = config.model
    controlnet, file = model.controlnet, None
    if lora is not None:
        files = sorted(lora.glob("*.safetensors"))
        file = files[0] if files else None
        has_controlnet = (lora / "controlnet" / "config.json").is_file()
        controlnet = str(lora / "controlnet") if has_controlnet else controlnet
        # Beside a denoiser or its PEFT adapter, a ControlNet is but half of what was exported.
        halves = any((lora / kind.part).exists() for kind in KNOWN.values())
        if len(files) > 1 or not (files or has_controlnet) or halves:
            raise UserError(
                f"{lora}: not the folder of one exported LoRA; give what `rfft export` wrote in diffusers' "
                "or kohya's form, for example RUN/export/diffusers; a merged export goes with --model"
            )
    bundle = load_bundle(model.bundle, getattr(torch, model.dtype), controlnet, build.family_of(config))
    bundle.set_embedded_guidance(model.embedded_guidance)
    if file is not None:
        try:
            bundle.pipe.load_lora_weights(file.parent, weight_name=file.name)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            if "size mismatch" in str(error):
                reason = "it was trained on a base of other sizes"
            raise UserError(f"{file} is no LoRA for the bundle {model.bundle}: {reason}") from error
        denoiser = getattr(bundle.unwrapped, bundle.family.part)
        if not lora_layers(denoiser):
            raise UserError(f"{file} is no LoRA for the bundle {model.bundle}: nothing in it fits")
        weights = (p for layer in lora_layers(denoiser) for p in layer.parameters())
        if not all(weight.isfinite().all() for weight in weights):
            raise UserError(f"{file}: it holds weights that are NaN or infinite; export another checkpoint")
    bundle.quantize(model.quantize, model.train, model.lora.target_modules)
    return bundle.to(device)
