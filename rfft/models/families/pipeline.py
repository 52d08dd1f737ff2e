"""Bases that a diffusers pipeline with a ControlNet loads: what all of them have in common.

Shapes: B batch, C latent channels, h w latent, H W pixels, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from rfft.errors import UserError, require
from rfft.models.families.base import Family
from rfft.models.pretrained import from_config, load_part, skeleton_part


class PipelineFamily(Family):
    """A base whose networks are the components of a diffusers pipeline."""

    # Its class; the base itself may name another one, for text to image. It may have no ControlNet.
    pipeline: ClassVar[Any]
    denoiser_kind: ClassVar[Any]  # of the component `part`
    controlnet_kind: ClassVar[Any] = ControlNetModel  # None: it takes none
    vae_kind: ClassVar[Any] = AutoencoderKL
    channels_key: ClassVar[str] = "latent_channels"  # in the autoencoder's config
    scheduler_kind: ClassVar[Any]
    text_encoders: ClassVar[dict[str, Any]]  # by component; a base may lack those that `required` lacks
    required: ClassVar[tuple[str, ...]]  # components without which this is another kind of model
    optional: ClassVar[tuple[str, ...]] = ()  # components that it may lack, and its pipeline would miss
    options: ClassVar[dict[str, Any]] = {}  # of from_pretrained

    def __init__(self, pipe: Any, controlnet: Any = None) -> None:
        """Take the diffusers pipeline, and the ControlNet for one that has none."""
        self.pipe, self.vae = pipe, pipe.vae
        self.controlnet: Any = getattr(pipe, "controlnet", None) if controlnet is None else controlnet
        self.latent_factor = pipe.vae_scale_factor
        self.latent_channels = pipe.vae.config[self.channels_key]
        self.fp32_vae = False  # it overflows in half precision

    # ---- loading ----

    @classmethod
    def load(cls, source: str, controlnet: str | None, dtype: torch.dtype) -> PipelineFamily:
        there = cls._check_components(source, controlnet)
        options = cls.options | {"torch_dtype": dtype, "use_safetensors": True}
        options |= {name: None for name in cls.optional if name not in there}
        network, own = None, "controlnet" in cls.pipeline._get_signature_types()
        if controlnet is not None:
            network = load_part("model.controlnet", cls.controlnet_kind, controlnet, dtype)
        elif not own and cls.controlnet_kind is not None:
            network = cls.controlnet_kind.from_pretrained(
                source, subfolder="controlnet", torch_dtype=dtype, use_safetensors=True
            )
        if own and network is not None:
            options["controlnet"] = network
        return cls(cls.pipeline.from_pretrained(source, **options), network)

    @classmethod
    def skeleton(cls, source: str, controlnet: str | None, dtype: torch.dtype) -> PipelineFamily:
        """Read the config files alone; the networks are on the meta device."""
        there = cls._check_components(source, controlnet)
        scheduler = from_config(cls.scheduler_kind, source, subfolder="scheduler")
        parts: dict[str, Any] = {"scheduler": scheduler}
        with torch.device("meta"):
            parts |= {
                cls.part: from_config(cls.denoiser_kind, source, subfolder=cls.part),
                "vae": from_config(cls.vae_kind, source, subfolder="vae"),
                "controlnet": cls._skeleton_controlnet(source, controlnet),
            }
            for name, kind in cls.text_encoders.items():
                if name in there:
                    parts[name] = kind(kind.config_class.from_pretrained(source, subfolder=name))
        for part in parts.values():
            if isinstance(part, nn.Module):
                part.to(device="meta", dtype=dtype)  # ChatGLM takes memory all the same
        taken = set(cls.pipeline._get_signature_types())
        network = parts["controlnet"] if "controlnet" in taken else parts.pop("controlnet")
        index = DiffusionPipeline.load_config(source)
        settings = {name: value for name, value in index.items() if isinstance(value, bool) and name in taken}
        with torch.device("meta"):  # SD 3.5's copies weights of one network to another
            pipe = cls.pipeline(**(dict.fromkeys(taken) | settings | parts))
        return cls(pipe, network)

    @classmethod
    def _skeleton_controlnet(cls, source: str, controlnet: str | None) -> Any:
        if cls.controlnet_kind is None:
            return None
        if controlnet is None:
            return from_config(cls.controlnet_kind, source, subfolder="controlnet")
        return skeleton_part("model.controlnet", cls.controlnet_kind, controlnet)

    @classmethod
    def _check_components(cls, source: str, controlnet: str | None) -> set[str]:
        """Return the components that the base has; raises ValueError or UserError for one that is missing."""
        index = DiffusionPipeline.load_config(source)
        there = {name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None}
        if missing := [name for name in cls.required if name not in there]:
            raise ValueError(
                f"this {index['_class_name']} has no {', '.join(missing)}: a refiner, or another kind of "
                "model"
            )
        if cls.controlnet_kind is None:
            require(controlnet is None, f"bundle {source} takes no ControlNet: leave out model.controlnet")
        elif controlnet is None and "controlnet" not in there:
            raise UserError(
                f"bundle {source} has no ControlNet: name one that fits it (canny edges) with "
                "model.controlnet"
            )
        return there

    # ---- use ----

    def networks(self) -> list[nn.Module]:
        every = getattr(self.pipe, self.part), self.controlnet, self.vae, *self.text_networks()
        return [network for network in every if network is not None]

    def text_networks(self) -> list[nn.Module]:
        found = [getattr(self.pipe, name) for name in self.text_encoders]
        return [network for network in found if network is not None]

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        return self._encode(pixels, self._vae_shift())

    def _encode(self, pixels: Tensor, shift: float) -> Tensor:
        with self._vae_precision(pixels.device):
            posterior = self.vae.encode((2 * pixels - 1).to(self.vae.dtype)).latent_dist
        return ((posterior.mode() - shift) * self.vae.config.scaling_factor).to(pixels.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        latent = latent / self.vae.config.scaling_factor + self._vae_shift()
        with self._vae_precision(latent.device):
            pixels = self.vae.decode(latent.to(self.vae.dtype), return_dict=False)[0]
        return pixels.to(latent.dtype) / 2 + 0.5

    def enable_gradient_checkpointing(self) -> None:
        for module in (getattr(self.pipe, self.part), self.controlnet, self.vae):
            if module is not None and module._supports_gradient_checkpointing:
                module.enable_gradient_checkpointing()

    def _vae_shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)

    def _vae_precision(self, device: torch.device) -> AbstractContextManager[object]:
        kind = device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        return torch.autocast(kind, enabled=False) if self.fp32_vae and half else nullcontext()


def quiet(pipe: Any) -> None:
    """Have a pipeline and its tokenizers not say what of the prompts is cut off: RFFT counts it."""
    logging.get_logger(type(pipe).__module__).setLevel(logging.ERROR)
    transformers_logging.get_logger("transformers.tokenization_utils_base").setLevel(logging.ERROR)


def tokenize(tokenizer: Any, prompts: list[str]) -> tuple[Tensor, list[str]]:
    """Return token ids [B,L], and for each prompt the text behind the last token that there is room for."""
    limit = tokenizer.model_max_length
    ids = tokenizer(
        prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    ).input_ids
    return ids, cut_off(tokenizer, prompts, limit)


def cut_off(tokenizer: Any, prompts: list[str], limit: int, ends: int = 1) -> list[str]:
    """Return for each prompt the text for which `limit` tokens, with `ends` for its end, leave no room."""
    whole = tokenizer(prompts, verbose=False).input_ids
    # The last places within the limit are the end's, and so are the last ones of the whole.
    rests = [tokens[limit - ends : len(tokens) - ends] for tokens in whole]
    return [tokenizer.decode(rest) if rest else "" for rest in rests]


def check_fit(base: Any, controlnet: Any, same: Sequence[tuple[str, str]]) -> None:
    """Raise UserError unless the configs of base and ControlNet agree in the settings `same`.

    Each is a setting's name and what it counts; a ControlNet's null means that it takes none of it.
    """
    for name, what in same:
        if controlnet[name] is not None and base[name] != controlnet[name]:
            raise UserError(
                f"the ControlNet is for another base ({what} {controlnet[name]}, this one's {base[name]}): "
                "name one that fits with model.controlnet"
            )
