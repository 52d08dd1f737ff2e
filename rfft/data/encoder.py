"""A bundle's encoders, and how the latents and text features that they make are known again.

Pictures and prompts go through them one by one, so that what comes out does not depend on what else there is,
neither on the batch nor on what was in the cache.

Shapes: H W pixels of the canvas, C latent channels, h w latent, L tokens, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rfft.data.conditions import UNREAD, encode_edges, init_image, unread
from rfft.data.store import Item, key_of
from rfft.models.bundle import Bundle
from rfft.types import Conditioning, Size
from rfft.utils.log import warn
from rfft.utils.processes import rank

HIDDEN, ADDED, CUT = "hidden", "added.", "cut"  # names of a prompt's tensors in the store


class Encoder:
    """Latents of canvases and features of prompts, by the frozen networks of a bundle."""

    def __init__(self, bundle: Bundle, size: Size) -> None:
        """`size`: of canvases whose data set does not tell it."""
        self.bundle, self.size = bundle, size
        self.encodes_control = bundle.family.encodes_control
        self.name = fingerprint(bundle)
        self._told: set[tuple[str, str]] = set()

    def address(self, size: Size, *parts: bytes | str) -> bytes:
        """Return the address of what these networks make, for pictures of a size, of what the parts tell."""
        return key_of(self.name, str(size), *parts)

    @torch.no_grad()
    def picture(self, canvas: Tensor) -> Tensor:
        """Return x_o [C,h,w], on the CPU, of a canvas uint8 [4,H,W], in the precision of the frozen weights.

        Not under autocast: x_o is blended into every latent, and what half precision loses would stay there.
        """
        picture = init_image(canvas[None].float().div(255)).to(self.bundle.device)
        with torch.autocast(picture.device.type, enabled=False):
            return self.bundle.encode_image(picture)[0].cpu()

    def control_address(self, picture: bytes, canny: tuple[int, int]) -> bytes:
        """Return the address of what the ControlNet takes of a picture, whose own address is given."""
        settings = _settings(getattr(self.bundle.family.denoiser, "controlnet", None))
        return key_of("control", json.dumps(settings, sort_keys=True, default=str), str(canny), picture)

    @torch.no_grad()
    def control(self, edges: Tensor, product: Tensor) -> Tensor:
        """Return what the ControlNet takes, on the CPU, of edges [3,H,W] and a canvas [4,H,W]."""
        with torch.autocast(self.bundle.device.type, enabled=False):
            return encode_edges(self.bundle, edges[None], product[None])[0]

    @torch.no_grad()
    def prompt(self, text: str, size: Size) -> Item:
        """Return a prompt's features for pictures of a size, and how many characters of it are not read."""
        with torch.autocast(self.bundle.device.type, enabled=False):
            found, (cut,) = self.bundle.encode_prompts([text], size)
        added = {ADDED + name: tensor.cpu() for name, tensor in found.added.items()}
        return {HIDDEN: found.hidden.cpu(), CUT: torch.tensor(len(cut))} | added

    def tell_unread(self, texts: list[str], items: Sequence[Item], kind: str) -> None:
        """Warn of prompts that are not read whole, the first time that there are any; `kind`: their name."""
        if rank() > 0 or all((kind, what) in self._told for what in UNREAD):
            return
        tokenizer = getattr(self.bundle.family.pipe, "tokenizer", None)
        for what, count, problem in unread(texts, [int(item[CUT]) for item in items], tokenizer):
            if (kind, what) not in self._told:
                self._told.add((kind, what))
                warn(f"{count} of {len(texts)} {kind} {problem}")


def conditioning(items: Sequence[Item]) -> Conditioning:
    """Return the prompts' features [B,L,D] in float32, on the CPU."""
    names = [name.removeprefix(ADDED) for name in items[0] if name.startswith(ADDED)]
    added = {name: torch.cat([item[ADDED + name] for item in items]) for name in names}
    return Conditioning(torch.cat([item[HIDDEN] for item in items]), added).to("cpu", torch.float32)


def fingerprint(bundle: Bundle) -> bytes:
    """Return a hash of all that latents and text features depend on, beside what is encoded.

    These are the encoders' weights, settings and vocabularies, and how they are computed.
    """
    digest = hashlib.sha256(f"{torch.__version__} {bundle.device.type} {_tf32()}".encode())
    for module in _encoders(bundle):
        digest.update(type(module).__name__.encode())
        digest.update(json.dumps(_settings(module), sort_keys=True, default=str).encode())
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for vocabulary in _vocabularies(bundle):
        digest.update(json.dumps(vocabulary, sort_keys=True).encode())
    return digest.digest()


def _encoders(bundle: Bundle) -> Iterator[nn.Module]:
    """Yield the networks that encode: all but the denoiser's, and the small decoder."""
    own = {id(module) for module in bundle.unwrapped.modules()} | {id(bundle.tiny_vae)}
    return (module for module in bundle.modules if id(module) not in own)


def _settings(module: nn.Module | None) -> Mapping[str, Any]:
    config = getattr(module, "config", {})
    found = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: value for name, value in found.items() if not name.startswith("_")}  # where it was loaded


def _vocabularies(bundle: Bundle) -> Iterator[tuple[Mapping[str, int], int]]:
    parts = {} if bundle.pipe is None else bundle.pipe.components
    for part in parts.values():
        if hasattr(part, "get_vocab"):
            yield part.get_vocab(), part.model_max_length


def _tf32() -> bool:
    return bool(torch.backends.cuda.matmul.allow_tf32)
